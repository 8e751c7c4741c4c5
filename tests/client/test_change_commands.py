"""Commands that look at datasets and change them, each in a process of its own, against a running node."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg

from fedstac.demo import sample
from tests.support.clients import FILES, ID, ITEM, newer
from tests.support.commands import Fedstac, StartCommand, each_alone, environment, lines, to
from tests.support.forking import Forks
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until

NEWER = newer(ITEM)["id"]
UNKNOWN = ID[:-8] + "20010101"
WHY = ("--reason", "wrong forcing")


async def served(api: Api, id: str = ID) -> dict[str, Any]:
    return dict((await api.anyone.get(f"/collections/CMIP6/items/{id}")).json())


# --- looks ---


async def test_a_dataset_is_shown(west: Api, fedstac: Fedstac) -> None:
    done = await fedstac("get", ID, "-o", "json", **to(west))
    assert (done.code, json.loads(done.stdout)["id"]) == (0, ID)
    people = await fedstac("get", ID, **to(west))
    assert json.loads(people.stdout) == json.loads(done.stdout)
    assert people.stdout.count("\n") > 50
    unknown = await fedstac("get", UNKNOWN, **to(west))
    assert (unknown.code, unknown.stdout) == (3, "")
    assert UNKNOWN in unknown.stderr


async def test_versions_are_listed(west: Api, fedstac: Fedstac) -> None:
    done = await fedstac("history", ID, **to(west))
    assert done.code == 0
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["version", "state", "latest", "since", "changed"]
    assert [row[:3] for row in rows] == [
        [ITEM["properties"]["version"], "published", "no"], ["20991231", "published", "yes"],
    ]  # fmt: skip
    assert max(map(len, done.stdout.splitlines())) <= 80
    base = await fedstac("history", ID.rpartition(".v")[0], "-o", "ndjson", **to(west))
    assert [line["id"] for line in base.lines] == [ID, NEWER]
    assert (await fedstac("history", "CMIP6.nothing", **to(west))).code == 3


async def test_differences_are_shown(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    done = await fedstac("diff", NEWER, **to(west))
    assert done.code == 1
    assert f"--- {ID}\n+++ {NEWER}\n" in done.stdout
    assert '\n+    "version": "20991231"' in done.stdout
    assert "fedstac:" not in done.stdout
    (tmp_path / "item.json").write_text(json.dumps(ITEM, indent=1))
    same = await fedstac("diff", ID, "item.json", **to(west))
    assert (same.code, same.stdout) == (0, "")
    changed = {**ITEM, "properties": {**ITEM["properties"], "description": "other"}}
    (tmp_path / "item.json").write_text(json.dumps(changed))
    other = await fedstac("diff", ID, "item.json", "-o", "json", **to(west))
    assert other.code == 1
    assert '+    "description": "other",' in json.loads(other.stdout)["diff"]
    assert (await fedstac("diff", ID, **to(west))).code == 3  # nothing before it
    assert "fedstac:" in (await fedstac("diff", ID, NEWER, "--all", **to(west))).stdout


# --- changes of one ---


async def test_one_is_retracted_and_reinstated(west: Api, fedstac: Fedstac) -> None:
    reasons = ("--reason", "wrong forcing", "--errata", "https://errata.esgf.io/1", "--replaced-by", NEWER)
    tried = await fedstac("retract", ID, *reasons, "--dry-run", **to(west))
    assert (tried.code, tried.stdout) == (0, f"would be retracted  {ID}\n")
    assert '+    "retracted": true' in tried.stderr
    assert (await served(west))["properties"]["retracted"] is False
    done = await fedstac("retract", ID, *reasons, "--data", "restrict", **to(west))
    assert (done.code, done.stdout, done.stderr) == (0, f"retracted  {ID}\n", "")
    assert (await served(west))["properties"]["fedstac:retraction"] == {
        "reason": "wrong forcing", "errata": "https://errata.esgf.io/1", "replaced_by": NEWER, "data": "restrict",
    }  # fmt: skip
    again = await fedstac("retract", ID, *reasons, "--data", "restrict", "-o", "json", **to(west))
    [row] = json.loads(again.stdout)
    assert (again.code, row["outcome"], row["status"]) == (0, "identical", "done")
    back = await fedstac("reinstate", ID, **to(west))
    assert (back.code, back.stdout) == (0, f"reinstated  {ID}\n")


async def test_a_retraction_is_seen_in_search_and_history(west: Api, fedstac: Fedstac) -> None:
    reasons = (*WHY, "--errata", "https://errata.esgf.io/1", "--replaced-by", UNKNOWN)
    done = await fedstac("retract", ID, *reasons, **to(west))
    assert (done.code, done.stdout.splitlines()[0]) == (0, f"retracted  {ID}")
    assert "warning /replaced_by: there is no dataset" in done.stdout
    assert ID not in (await fedstac("search", "--ids", ID, **to(west))).stdout
    for command in (("search", "--ids", ID, "--retracted", "include"), ("history", ID)):
        shown = (await fedstac(*command, **to(west))).stdout
        assert "retracted: wrong forcing" in shown
        assert f"use instead: {UNKNOWN}" in shown
        assert "see: https://errata.esgf.io/1" in shown
    assert (await fedstac("history", ID, "--events", **to(west))).stdout.count("wrong forcing") == 1
    more = await fedstac("retract", ID, "--data", "purge", **to(west))
    assert more.code == 0
    retraction = (await served(west))["properties"]["fedstac:retraction"]
    assert (retraction["reason"], retraction["replaced_by"], retraction["data"]) == ("wrong forcing", UNKNOWN, "purge")


REFUSALS: tuple[tuple[tuple[str, ...], str, int, str], ...] = (
    (("retract", UNKNOWN, *WHY), "admin", 3, "there is no dataset"),
    (("retract", UNKNOWN, "--dry-run", *WHY), "admin", 3, "there is no dataset"),
    (("retract", "CMIP6.nothing", *WHY), "admin", 3, "item-does-not-exist"),
    (("retract", "nowhere.nothing", *WHY), "admin", 3, "there is no collection 'nowhere'"),
    (("retract", ID), "admin", 2, "say why"),
    (("retract", ID, "--data", "purge"), "admin", 1, "`reason` is missing"),
    (("retract", ID, *WHY), "node:east", 4, "may not retract"),
    (("retract", ID, *WHY), "wrong", 4, "this token is not known here"),
    (("retract", ID, "--errata", "javascript:x"), "admin", 1, "`errata` is an address"),
    (("retract", *WHY), "admin", 2, "say which datasets"),
    (("retract", "--ids", "nothing.txt", *WHY), "admin", 2, "nothing.txt cannot be read"),
    (("retract", ID, "--data", "burn"), "admin", 2, "--data"),
    (("retract", "CMIP6." + "x" * 100_000, *WHY), "admin", 1, "no id is as long"),
    (("retract", ID, *WHY), "a\nb", 1, "the token holds a line break"),
    (("retract", ID, *WHY), "tökén", 4, "this token is not known here"),
    (("patch", ID, "--set", "description=x", "--override", "a\nb"), "admin", 1, "the header Fedstac-Override"),
    (("patch", ID), "admin", 2, "say --set"),
    (("patch", ID, "--set", "x"), "admin", 2, "KEY=VALUE"),
    (("patch", ID, "-f", "nothing.json"), "admin", 2, "cannot be read"),
    (("patch", ID, "--set", "cmip6:nominal_resolution=100km"), "admin", 1, "did you mean `100 km`?"),
    (("patch", ID, "--set", "version=20200101"), "admin", 1, "is part of what the dataset is known by"),
    (("reinstate", UNKNOWN), "admin", 3, "there is no dataset"),
    (("unmark", UNKNOWN), "admin", 3, "there is no dataset"),
    (("quarantine", UNKNOWN, *WHY), "admin", 3, "there is no dataset"),
    (("quarantine", ID), "admin", 2, "say why"),
    (("quarantine", ID, *WHY, "--link", "javascript:x"), "admin", 1, "`links` is a list"),
    (("quarantine", ID, *WHY), "node:east", 4, "may not quarantine"),
    (("release", UNKNOWN), "admin", 3, "there is no dataset"),
    (("delete", UNKNOWN, "--yes"), "admin", 3, "there is no dataset"),
    (("delete", ID), "admin", 2, "cannot be taken back"),
    (("purge", ID, "--yes"), "admin", 1, "only what is deleted can be purged, or was cleared"),
    (("replica", "add", ID, "--node", "east"), "admin", 2, "--base-url"),
    (("replica", "list", UNKNOWN), "admin", 3, "there is no"),
)  # arguments, role, exit code, and what is said


async def test_what_is_refused_says_why_and_changes_nothing(west: Api, fedstac: Fedstac) -> None:
    before = await served(west)
    for arguments, role, code, message in REFUSALS:
        done = await fedstac(*arguments, **to(west, role))
        shown = " ".join((done.stdout + done.stderr).replace("│", " ").split())
        assert (done.code, message in shown) == (code, True), (arguments, shown)
        assert "Traceback" not in shown
    assert await served(west) == before


async def test_a_file_of_ids_is_read_as_a_whole_before_anything_is_done(
    west: Api, fedstac: Fedstac, tmp_path: Path
) -> None:
    features = b'{"type": "FeatureCollection", "features": []}'
    for line in (b'{"id": 5}', b'{"id": ""}', b"\xff\xfe", b'{"id": "x"', features):
        (tmp_path / "ids").write_bytes(ID.encode() + b"\n" + line + b"\n")
        done = await fedstac("retract", "--ids", "ids", *WHY, **to(west))
        assert (done.code, done.stdout) == (2, ""), line
        assert "ids:2 is neither an id nor an item" in " ".join(done.stderr.replace("│", " ").split())
        assert (await served(west))["properties"]["retracted"] is False


async def test_ids_are_taken_as_other_programs_write_them(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b'\xef\xbb\xbf%s\r\n\r\n"%s"\r\n' % (ID.encode(), NEWER.encode()))
    done = await fedstac("retract", "--ids", "ids", *WHY, "-o", "ndjson", **to(west))
    assert (done.code, sorted(row["id"] for row in done.lines)) == (0, sorted([ID, NEWER]))
    nothing = await fedstac("retract", "--ids", "-", *WHY, **to(west))
    assert (nothing.code, nothing.stderr) == (0, "retract: 0 datasets\n")


async def test_a_token_that_is_refused_says_nothing_of_what_may_have_been_done(west: Api, fedstac: Fedstac) -> None:
    done = await fedstac("retract", ID, NEWER, *WHY, **to(west, "wrong"))
    assert done.code == 4
    assert done.stderr.startswith("fedstac: this token is not known here")
    assert done.stderr.count("\n") == 1


async def test_the_reason_of_an_exemption_may_be_in_any_language(west: Api, fedstac: Fedstac) -> None:
    key = FILES[0]
    options = ("--set", f"/assets/{key}/file:size=1", "--override", "größer 🎉")
    done = await fedstac("patch", ID, *options, "-o", "json", **to(west))
    assert (done.code, json.loads(done.stdout)[0]["outcome"]) == (0, "replaced"), done
    [event] = (await fedstac("feed", "tail", "-n", "1", "-o", "ndjson", **to(west, "node:east"))).lines
    assert "größer 🎉" in json.dumps(event, ensure_ascii=False)


async def test_metadata_is_patched(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    change = ("--set", "cmip6:grid=native", "--set", "/properties/description=said", "--set", "n=3",
              "--add-link", "related=https://errata.esgf.io/1")  # fmt: skip
    tried = await fedstac("patch", ID, *change, "--dry-run", **to(west))
    assert (tried.code, tried.stdout) == (0, f"would be updated  {ID}\n")
    assert '+    "description": "said",' in tried.stderr
    done = await fedstac("patch", ID, *change, **to(west))
    assert (done.code, done.stdout) == (0, f"updated  {ID}\n"), done.stderr
    found = await served(west)
    assert [found["properties"][name] for name in ("cmip6:grid", "description", "n")] == ["native", "said", 3]
    errata = {"rel": "related", "href": "https://errata.esgf.io/1", "type": "text/html", "title": "Errata issue"}
    assert errata in found["links"]
    again = await fedstac("patch", ID, *change, **to(west))
    assert (again.code, again.stdout) == (0, f"unchanged  {ID}\n")
    gone = await fedstac("patch", ID, "--unset", "n", "--unset", "never", **to(west))
    assert gone.code == 0
    assert "n" not in (await served(west))["properties"]
    (tmp_path / "patch.json").write_text(json.dumps({"properties": {"description": None}}))
    assert (await fedstac("patch", ID, "-f", "patch.json", **to(west))).stdout == f"updated  {ID}\n"
    assert "description" not in (await served(west))["properties"]


async def test_marking_and_unmarking(west: Api, fedstac: Fedstac) -> None:
    assert (await fedstac("mark", ID, "--reason", "a test", **to(west))).stdout == f"marked  {ID}\n"
    assert (await fedstac("get", ID, **to(west))).code == 3
    assert (await fedstac("unmark", ID, **to(west))).stdout == f"unmarked  {ID}\n"
    assert (await fedstac("get", ID, **to(west))).code == 0


async def test_a_quarantine_and_its_release(west: Api, fedstac: Fedstac) -> None:
    case = ("--case", "T-1041", "--contact", "data@a.example", "--link", "https://a.example/1")
    tried = await fedstac("quarantine", ID, "--reason", "personal data?", *case, "--dry-run", **to(west))
    assert (tried.code, tried.stdout) == (0, f"would be quarantined  {ID}\n")
    assert '+    "fedstac:state": "quarantined"' in tried.stderr
    done = await fedstac("quarantine", ID, "--reason", "personal data?", *case, **to(west))
    assert (done.code, done.stdout) == (0, f"quarantined  {ID}\n")
    assert (await served(west))["properties"]["fedstac:quarantine"] == {"case": "T-1041", "contact": "data@a.example"}
    versions = await fedstac("history", ID, **to(west))
    assert "under quarantine: somebody looks into it; ask data@a.example" in versions.stdout
    again = await fedstac("quarantine", ID, "--reason", "personal data?", *case, "-o", "ndjson", **to(west))
    assert [row["outcome"] for row in again.lines] == ["identical"]
    back = await fedstac("release", "--ids", "-", "--decision", "harmless", stdin=ID.encode(), **to(west))
    assert (back.code, back.stdout) == (0, f"released  {ID}\n")
    assert (await served(west))["properties"]["fedstac:state"] == "published"


async def test_what_is_missing_before_a_deletion_is_listed(west: Api, fedstac: Fedstac) -> None:
    unmarked = await fedstac("delete", ID, "--yes", **to(west))
    assert (unmarked.code, "only what is marked for deletion is deleted" in unmarked.stdout) == (1, True)
    await fedstac("mark", ID, NEWER, **to(west))
    early = await fedstac("delete", ID, "--yes", **to(west))
    assert early.code == 1
    assert "/grace_until: the grace period lasts until" in early.stdout
    rows = (await fedstac("delete", ID, "--dry-run", "-o", "ndjson", **to(west))).lines
    assert [(row["type"], "grace" in {one["rule"] for one in row["findings"]}) for row in rows] == [
        ("deletion-not-ready", True)
    ]  # fmt: skip


async def test_a_deletion_is_typed_or_said_to_be_meant(
    west: Api, fedstac: Fedstac, tmp_path: Path, command_forks: Forks
) -> None:
    await fedstac("mark", ID, NEWER, **to(west))
    await make_ready(west)
    for arguments in (("delete", ID), ("delete", "--ids", "-"), ("purge", ID)):
        unsure = await fedstac(*arguments, stdin=ID.encode(), **to(west))
        assert (unsure.code, unsure.stdout) == (2, "")
        assert "say --yes" in unsure.stderr
    code, seen = await on_terminal(command_forks, west, tmp_path, "delete", ID, answer=b"y\n", question=b"to go on")
    assert (code, "nothing is changed" in seen) == (1, True)
    code, seen = await on_terminal(
        command_forks, west, tmp_path, "delete", ID, answer=ID.encode() + b"\n", question=b"to go on"
    )
    assert (code, f"deleted  {ID}" in seen) == (0, True)
    gone = await fedstac("get", ID, **to(west))
    assert gone.code == 3
    assert "its id is never used again" in gone.stderr
    code, seen = await on_terminal(
        command_forks, west, tmp_path, "purge", ID, NEWER, answer=b"2\n", question=b"to go on"
    )
    assert (code, f"purged  {ID}" in seen, f"rejected: {NEWER}" in seen) == (1, True, True)
    again = await fedstac("delete", ID, "--yes", "-o", "ndjson", **to(west))
    assert [(row["status"], row["outcome"]) for row in again.lines] == [("done", "identical")]


async def make_ready(api: Api) -> None:
    """Let the grace of all deletions be over, and waive everybody."""
    conn = await asyncpg.connect(api.settings.dsn)
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 s'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    await conn.close()


async def on_terminal(
    forks: Forks, api: Api, folder: Path, *arguments: str, answer: bytes, question: bytes = b"[y/N]",
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> tuple[int, str]:  # fmt: skip
    """Run a command on a terminal and answer its question."""
    own, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *forks.program, *arguments, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment(TERM="xterm", NO_COLOR="1", **to(api)),
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    try:
        async with asyncio.timeout(PATIENCE):
            while question not in seen:
                seen += await asyncio.to_thread(os.read, own, 1 << 16)
            if meanwhile:
                await meanwhile()
            os.write(own, answer)
            while True:
                try:
                    seen += await asyncio.to_thread(os.read, own, 1 << 16)
                except OSError:
                    break
            return await process.wait(), seen.decode()
    finally:
        os.close(own)


async def test_on_a_terminal_the_difference_is_shown_and_a_question_asked(
    west: Api, tmp_path: Path, command_forks: Forks
) -> None:
    code, shown = await on_terminal(command_forks, west, tmp_path, "retract", ID, "--reason", "x", answer=b"n\n")
    assert (code, "nothing is changed" in shown) == (1, True)
    assert '+    "retracted": true' in shown
    assert (await served(west))["properties"]["retracted"] is False
    code, shown = await on_terminal(command_forks, west, tmp_path, "retract", ID, NEWER, *WHY, answer=b"y\n")
    assert code == 0, shown
    assert "retract 2 datasets?" in shown
    assert (await served(west))["properties"]["retracted"] is True
    (tmp_path / "ids").write_text(f"{ID}\n{NEWER}\n")
    code, shown = await on_terminal(command_forks, west, tmp_path, "reinstate", "--ids", "ids", answer=b"n\n")
    assert (code, "reinstate 2 datasets?" in shown) == (1, True)
    code, shown = await on_terminal(
        command_forks, west, tmp_path, "reinstate", ID, answer=b"\x04"
    )  # the end of the input
    assert (code, "stopped" in shown) == (130, True), shown
    assert (await served(west))["properties"]["retracted"] is True


async def test_what_was_changed_since_it_was_shown_is_not_overwritten(
    west: Api, tmp_path: Path, command_forks: Forks
) -> None:
    async def somebody_else() -> None:
        body = {"properties": {"cmip6:grid": "theirs"}}
        assert (await west.admin.patch(f"/collections/CMIP6/items/{ID}", json=body)).status_code == 200

    change = ("patch", ID, "--set", "cmip6:grid=mine")
    code, shown = await on_terminal(command_forks, west, tmp_path, *change, answer=b"y\n", meanwhile=somebody_else)
    assert (code, "precondition-failed" in shown) == (1, True), shown
    assert (await served(west))["properties"]["cmip6:grid"] == "theirs"


# --- many ---


async def test_many_are_changed_and_failures_do_not_stop_the_others(api: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    items = list(sample.items(60))
    body = {"type": "FeatureCollection", "features": items}
    assert (await api.admin.post("/collections/CMIP6/items", json=body)).status_code == 200
    ids = [str(item["id"]) for item in items]
    lines_of_ids = "\n".join([*ids[:30], "CMIP6.nothing", "", "# a comment", *ids[30:], "nowhere.x"]) + "\n"
    tried = await fedstac(
        "retract", "--ids", "-", "--dry-run", *WHY, "-o", "ndjson", stdin=lines_of_ids.encode(), **to(api)
    )
    assert tried.code == 1
    assert {line["outcome"] for line in tried.lines} == {"retracted", "rejected"}
    done = await fedstac("retract", "--ids", "-", *WHY, "-o", "ndjson", stdin=lines_of_ids.encode(), **to(api))
    assert done.code == 1
    rows = {line["id"]: line for line in done.lines}
    assert {id for id, row in rows.items() if row["status"] == "done"} == set(ids)
    assert rows["CMIP6.nothing"]["type"] == "item-does-not-exist"
    assert rows["nowhere.x"]["status"] == "rejected"
    assert "retract: 62 datasets: retracted 60, rejected 2" in done.stderr
    (tmp_path / "items.ndjson").write_bytes(lines(items))
    back = await fedstac("reinstate", "--ids", "items.ndjson", **to(api))
    assert back.code == 0
    assert sorted(back.stdout.split()[1::2]) == sorted(ids)
    assert back.stderr == "reinstate: 60 datasets: reinstated 60\n"


async def test_ctrl_c_says_what_may_have_been_done(
    start_api: StartApi, dsn: str, tmp_path: Path, start_command: StartCommand
) -> None:
    api = await start_api(dsn=dsn)
    await api.admin.post("/collections", json=sample.collection())
    items = list(sample.items(5))
    await api.admin.post("/collections/CMIP6/items", json={"type": "FeatureCollection", "features": items})
    process = await start_command("retract", "--ids", "-", *WHY, "-o", "ndjson", folder=tmp_path, **to(api))
    assert process.stdin
    assert process.stdout
    process.stdin.write("".join(f"{item['id']}\n" for item in items).encode())
    await process.stdin.drain()  # and it stays open: more may come

    async def all_are_done() -> bool:
        found = [await served(api, str(item["id"])) for item in items]
        return all(one["properties"]["retracted"] for one in found)

    await until(all_are_done)
    process.send_signal(signal.SIGINT)
    stdout, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 130
    assert {json.loads(line)["id"] for line in stdout.splitlines()} == {item["id"] for item in items}
    assert "retract: 5 datasets: retracted 5" in stderr.decode()


async def test_a_server_that_is_away_ends_it(fedstac: Fedstac) -> None:
    away = {"FEDSTAC_URL": "http://127.0.0.1:9", "FEDSTAC_TOKEN": "x", "FEDSTAC_RETRIES": "0"}
    done = await fedstac("retract", "CMIP6.a", "CMIP6.b", *WHY, **away)
    assert done.code == 5
    assert "may have been done: CMIP6.a" in done.stderr
    assert "does not answer" in done.stderr


# --- replicas ---


@contextmanager
def data_node(files: dict[str, bytes]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            assert "authorization" not in self.headers
            content = files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_replicas_are_added_listed_verified_and_removed(api: Api, fedstac: Fedstac) -> None:
    item = json.loads(json.dumps(ITEM))
    content = b"some bytes of a model"
    for key in FILES:
        item["assets"][key] |= {
            "file:size": len(content), "file:checksum": "1220" + hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
    item["properties"]["size"] = len(content) * len(FILES)
    response = await api.admin.post("/collections/CMIP6/items", json=item)
    assert response.status_code == 201, response.text
    paths = {"/data/" + item["assets"][key]["file:local_path"]: content for key in FILES}
    with data_node(paths) as base:
        added = ("replica", "add", ID, "--node", "east", "--base-url", base + "/data/")
        tried = await fedstac(*added, "--dry-run", **to(api, "node:east"))
        assert (tried.code, tried.stdout) == (0, f"would be replicated  {ID}\n"), tried.stderr
        assert (await fedstac(*added, **to(api, "node:east"))).stdout == f"replicated  {ID}\n"
        listed = await fedstac("replica", "list", ID, **to(api))
        assert listed.stdout.splitlines()[1].split() == ["east", f"{len(FILES)}/{len(FILES)}", "yes"]
        for options in ((), ("--checksums",)):
            verified = await fedstac("replica", "verify", ID, "--node", "east", *options, **to(api))
            assert (verified.code, verified.stdout, verified.stderr) == (0, "", f"ok {len(FILES)}\n")
        first = next(iter(paths))
        paths[first] = content[::-1]
        assert (await fedstac("replica", "verify", ID, "-n", "east", **to(api))).code == 0
        wrong = await fedstac("replica", "verify", ID, "-n", "east", "--checksums", "-o", "ndjson", **to(api))
        assert wrong.code == 1
        assert [line["detail"][:13] for line in wrong.lines if line["status"] == "wrong"] == ["checksum 1220"]
        paths[first] = content + b"!"
        short = await fedstac("replica", "verify", ID, "-n", "east", **to(api))
        assert (short.code, f"{len(content) + 1} bytes, and {len(content)} in the dataset" in short.stdout) == (1, True)
        del paths[first]
        assert "answered 404" in (await fedstac("replica", "verify", ID, "-n", "east", **to(api))).stdout
    gone = await fedstac("replica", "remove", ID, "-n", "east", **to(api, "node:east"))
    assert gone.stdout == f"removed from east  {ID}\n"
    assert (await fedstac("replica", "list", ID, "-o", "json", **to(api))).stdout == "[]\n"


# --- help ---


async def test_help_needs_no_server_parts_and_fits_80_columns(tmp_path: Path) -> None:
    names = (
        "get", "history", "diff", "patch", "retract", "reinstate", "mark", "unmark", "quarantine", "release", "delete",
        "purge", "replica add", "replica verify",
    )  # fmt: skip
    for name, done in zip(
        names, await each_alone(tmp_path, [[*name.split(), "--help"] for name in names]), strict=True
    ):
        assert (done.code, done.stderr) == (0, ""), name
        assert f"fedstac {name} " in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert "Examples" in done.stdout
