"""`fedstac mark --filter` and its like: the look, the question, the work, and `fedstac bulk` after it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
from pathlib import Path

from tests.support.clients import ID
from tests.support.commands import Fedstac, environment, to
from tests.support.forking import Forks
from tests.support.nodes import Api
from tests.support.waiting import PATIENCE

BOTH = ("-c", "CMIP6", "--filter", "cmip6:source_id IS NOT NULL")


async def matched(api: Api) -> int:
    return int((await api.anyone.get("/search?collections=CMIP6")).json()["numberMatched"])


async def test_a_script_looks_and_has_done_what_it_saw(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    mark = ("mark", *BOTH, "--reason", "replaced")
    look = await fedstac(*mark, "--dry-run", "-o", "json", **to(west))
    assert look.code == 0, look.stderr
    preview = json.loads(look.stdout)
    assert (preview["total"], preview["with_newer_version"]) == (2, 1)
    people = await fedstac(*mark, "--dry-run", **to(west))
    assert "mark 2 datasets" in people.stdout
    assert preview["digest"].partition(".")[0] in people.stdout
    nobody = await fedstac(*mark, **to(west))
    assert (nobody.code, "--yes --digest" in nobody.stderr) == (2, True)
    assert (await fedstac(*mark, "--yes", **to(west))).code == 2
    for more in ((), ("--digest", preview["digest"])):
        tried = await fedstac(*mark, "--dry-run", "--yes", *more, "-o", "json", **to(west))
        assert (tried.code, json.loads(tried.stdout)["total"]) == (0, 2), tried.stderr
    assert (await fedstac("bulk", "list", "-o", "ndjson", **to(west))).lines == []
    assert await matched(west) == 2

    done = await fedstac(*mark, "--yes", "--digest", preview["digest"], "-o", "json", **to(west))
    assert done.code == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["status"], job["counts"]["done"], job["reason"]) == ("done", 2, "replaced")
    assert await matched(west) == 0
    other = await fedstac("mark", *BOTH, "--yes", "--digest", preview["digest"], **to(west))
    assert (other.code, "no longer" in other.stderr) == (1, True)

    [row] = (await fedstac("bulk", "list", "-o", "ndjson", **to(west))).lines
    assert row["id"] == job["id"]
    assert "done" in (await fedstac("bulk", "show", job["id"], **to(west))).stdout
    rows = (await fedstac("bulk", "datasets", job["id"], "-o", "ndjson", **to(west))).lines
    assert (len(rows), {each["outcome"] for each in rows}) == (2, {"marked"})
    assert (await fedstac("bulk", "cancel", job["id"], **to(west))).code == 1
    assert (await fedstac("bulk", "show", "nothing", **to(west))).code == 3

    (tmp_path / "ids").write_text(ID + "\n")
    unmark = ("unmark", "--ids", "ids")
    digest = json.loads((await fedstac(*unmark, *BOTH[2:], "--dry-run", "-o", "json", **to(west))).stdout or "{}")
    assert digest == {}  # a filter and ids


async def test_on_a_terminal_the_number_of_datasets_is_typed(west: Api, tmp_path: Path, command_forks: Forks) -> None:
    for typed, code in ((b"3\n", 1), (b"2\n", 0)):
        own, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *command_forks.program, "quarantine", *BOTH, "--reason", "look",
            cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs,
            env=environment(TERM="xterm", NO_COLOR="1", **to(west)),
        )  # fmt: skip
        os.close(theirs)
        text = b""
        try:
            async with asyncio.timeout(PATIENCE):
                while b"type the number" not in text:
                    text += await asyncio.to_thread(os.read, own, 1 << 16)
                os.write(own, typed)
                while True:
                    try:
                        text += await asyncio.to_thread(os.read, own, 1 << 16)
                    except OSError:
                        break
                assert await process.wait() == code, text
        finally:
            os.close(own)
    assert await matched(west) == 0
