"""The commands, each in a process of its own, against a running node: what they print and how they exit."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pty
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from fedstac import bootstrap
from fedstac.db import nodes
from fedstac.demo import sample
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import open_source
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.settings import Settings
from fedstac.workers import roles
from fedstac.workers.following import Follower
from fedstac.workers.index_node import IndexHandler
from tests.support.clients import broken
from tests.support.commands import Fedstac, Result, StartCommand, alone, each_alone, environment, lines, to
from tests.support.forking import Forks
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until

# --- publish ---


async def test_lines_from_a_pipe_are_published_and_reported_line_by_line(api: Api, fedstac: Fedstac) -> None:
    items = list(sample.items(25))
    done = await fedstac("publish", "-", "--batch", "10", "-o", "ndjson", stdin=lines(items), **to(api))
    assert (done.code, done.stderr) == (0, "")
    events = [line["event"] for line in done.lines]
    assert sorted(events) == ["accepted"] * 3 + ["settled"] * 3 + ["summary"]
    summary = done.lines[-1]
    assert (summary["published"], summary["unchanged"], summary["rejected"], summary["requests"]) == (25, 0, 0, 3)
    again = await fedstac("publish", "-", stdin=lines(items), **to(api))
    assert (again.code, again.stdout) == (0, "published 0, unchanged 25 of 25 items in 1 request\n")


async def test_a_folder_with_gzip_is_published(api: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    items = list(sample.items(12))
    folder = tmp_path / "datasets" / "deep"
    folder.mkdir(parents=True)
    (folder / "one.json").write_text(json.dumps(items[0], indent=2))
    (folder / "two.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": items[1:5]}))
    (folder.parent / "rest.ndjson.gz").write_bytes(gzip.compress(lines(items[5:])))
    done = await fedstac("publish", "datasets", "-o", "json", "-c", "CMIP6", **to(api))
    assert done.code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["summary"]["published"] == 12
    assert (len(answer["requests"]), answer["problems"]) == (1, [])


async def test_one_invalid_item_exits_1_and_names_line_pointer_and_problem(
    api: Api, fedstac: Fedstac, tmp_path: Path
) -> None:
    items = list(sample.items(6))
    items[3] = broken(items[3])
    items[3]["properties"] = {**items[3]["properties"], "fedstac:state": "published"}
    (tmp_path / "items.ndjson").write_bytes(lines(items) + b"{no JSON\n")
    done = await fedstac("publish", "items.ndjson", **to(api))
    assert done.code == 1
    assert f"rejected: items.ndjson:4  {items[3]['id']}" in done.stdout
    assert "\n  stac-validation\n" in done.stdout
    assert "    /geometry" in done.stdout
    assert "\n    warning /properties/fedstac:state: " in done.stdout  # it is no reason of the refusal
    assert "rejected: items.ndjson:7" in done.stdout
    assert done.stdout.endswith("published 5, rejected 2 of 7 items in 1 request\n")
    found = await fedstac("publish", "items.ndjson", "-o", "ndjson", **to(api))
    troubles = {line["place"]: line for line in found.lines if line["event"] == "rejected"}
    assert troubles["items.ndjson:4"]["findings"][0]["pointer"].startswith("/geometry")
    assert troubles["items.ndjson:4"]["request"]


async def test_batches_that_are_refused_as_a_whole_do_not_stop_the_others(api: Api, fedstac: Fedstac) -> None:
    items = list(sample.items(30))
    items[10:20] = [broken(item) for item in items[10:20]]
    done = await fedstac("publish", "-", "--batch", "10", "-o", "json", stdin=lines(items), **to(api))
    assert done.code == 1
    answer = json.loads(done.stdout)
    assert answer["summary"]["published"] == 20
    assert [trouble["place"] for trouble in answer["problems"]] == [f"standard input:{n}" for n in range(11, 21)]


async def test_only_the_first_twenty_are_shown_in_a_table(api: Api, fedstac: Fedstac) -> None:
    done = await fedstac("publish", "-", stdin=lines([broken(item) for item in sample.items(23)]), **to(api))
    assert done.code == 1
    assert done.stdout.count("rejected: ") == 20
    assert "and 3 more; -o ndjson shows all of them" in done.stdout


async def test_without_waiting_the_requests_are_named(api: Api, fedstac: Fedstac) -> None:
    items = [*sample.items(3), broken(next(sample.items(1, start=3)))]
    done = await fedstac("publish", "-", "--no-wait", "-o", "ndjson", stdin=lines(items), **to(api))
    assert done.code == 1  # what is refused at once is known
    [accepted] = [line for line in done.lines if line["event"] == "accepted"]
    assert (accepted["total"], accepted["rejected"]) == (4, 1)
    followed = await fedstac("status", accepted["request"], "--follow", "-o", "json", **to(api))
    assert followed.code == 1
    assert json.loads(followed.stdout)["status"] == "partly"
    refused = await fedstac("status", accepted["request"], "--status", "rejected", "-o", "ndjson", **to(api))
    [row] = refused.lines
    assert (row["n"], row["type"]) == (3, "stac-validation")
    table = await fedstac("status", accepted["request"], **to(api))
    assert "partly" in table.stdout
    assert "item 3" in table.stdout


async def test_it_waits_until_a_node_shows_everything(api: Api, tmp_path: Path, start_command: StartCommand) -> None:
    process = await start_command(
        "publish", "-", "--batch", "4", "--wait-visible", "east", "-o", "ndjson", folder=tmp_path, **to(api)
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(lines(list(sample.items(10))))
    process.stdin.write_eof()
    settled = 0
    while settled < 3:
        settled += json.loads(await process.stdout.readline())["event"] == "settled"
    bearer = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    head = ["1", "0"]
    while int(head[1]) < 1 + 10:  # the collection and the items: what is settled gets its place a moment later
        head = (await api.anyone.get("/events/head", headers=bearer)).json()["cursor"].split(".")
    report = {"epoch": int(head[0]), "through": int(head[1])}
    response = await api.anyone.post("/events/status", json=report, headers=bearer)
    assert response.status_code == 204
    rest, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert json.loads(rest.splitlines()[-1])["visible"] == {"east": 10}


async def test_a_node_that_nobody_knows_is_not_waited_for_silently(api: Api, fedstac: Fedstac) -> None:
    waits = ("publish", "-", "--wait-visible", "nowhere", "--patience", "0.5")
    done = await fedstac(*waits, stdin=lines(list(sample.items(2))), **to(api))
    assert done.code == 5
    assert "published everything, nowhere shows not all of it (nodes that follow: none), and nothing" in done.stderr


async def test_bars_are_on_the_terminal_and_results_in_the_file(api: Api, tmp_path: Path, command_forks: Forks) -> None:
    own, theirs = pty.openpty()
    (tmp_path / "items.ndjson").write_bytes(lines(list(sample.items(6))))
    try:
        process = await asyncio.create_subprocess_exec(
            *command_forks.program, "publish", "items.ndjson", "-o", "ndjson", cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE, stderr=theirs, env=environment(TERM="xterm", NO_COLOR="1", **to(api)),
        )  # fmt: skip
        stdout, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        os.close(theirs)
        shown = rest_of(own)
    finally:
        os.close(own)
    assert [json.loads(line)["event"] for line in stdout.splitlines()] == ["accepted", "settled", "summary"]
    assert "published" in shown
    assert "accepted" in shown
    assert "[32m" not in shown


def rest_of(terminal: int) -> str:
    """Return what was written on a terminal that nobody has open any more."""
    written = b""
    with suppress(OSError):  # its end
        while piece := os.read(terminal, 1 << 16):
            written += piece
    return written.decode()


async def test_ctrl_c_names_what_was_accepted(
    start_api: StartApi, dsn: str, tmp_path: Path, start_command: StartCommand
) -> None:
    api = await start_api(dsn=dsn, background=False)
    await api.admin.post("/collections", json=sample.collection())
    process = await start_command("publish", "-", "-o", "ndjson", folder=tmp_path, **to(api))
    assert process.stdin
    assert process.stdout
    process.stdin.write(lines(list(sample.items(5))))
    process.stdin.write_eof()
    accepted = json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE))
    process.send_signal(signal.SIGINT)
    stdout, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 130
    assert f"fedstac status {accepted['request']}" in stderr.decode()
    summary = json.loads(stdout.splitlines()[-1])
    assert (summary["interrupted"], summary["open"], summary["accepted"]) == (True, [accepted["request"]], 5)


async def test_it_gives_up_when_nothing_moves(start_api: StartApi, dsn: str, fedstac: Fedstac) -> None:
    api = await start_api(dsn=dsn, background=False)
    await api.admin.post("/collections", json=sample.collection())
    done = await fedstac("publish", "-", "--patience", "0.1", stdin=lines(list(sample.items(2))), **to(api))
    assert done.code == 5
    assert "nothing moved for 0.1 s" in done.stderr
    assert "not settled yet: fedstac status" in done.stderr


# --- exit codes ---


@pytest.mark.parametrize(
    ("arguments", "role", "code", "phrase"),
    [
        (("publish", "-", "-c", "nowhere"), "admin", 3, "there is no collection 'nowhere'"),
        (("publish", "-"), "wrong", 4, "this token is not known here"),
        (("publish", "-"), "node:east", 4, "may not publish"),
        (("publish", "nothing.json"), "admin", 2, "nothing.json does not exist"),
        (("publish", "-", "--batch", "0"), "admin", 2, "--batch"),
        (("status", "7c1f"), "admin", 3, "'7c1f' is not the id of a request, which is a UUID"),
        (("search", "--filter", "and and"), "admin", 2, "CQL2"),
        (("search", "--datetime", "yesterday"), "admin", 2, "one maybe `..`; a year is written 2000"),
        (("search", "--bbox", "1,x"), "admin", 2, "west,south,east,north"),
        (("feed", "tail"), "admin", 4, "is no node"),
        (("feed", "tail", "--after", "7.7"), "node:east", 3, "the feed cannot go on"),
        (("feed", "tail", "--follow", "-o", "json"), "node:east", 2, "-o ndjson"),
        (("search", "--url", "localhost"), "admin", 2, "http://"),
        (("nothing",), "admin", 2, "No such command"),
    ],
)
async def test_errors_are_one_sentence_and_an_exit_code(
    arguments: tuple[str, ...], role: str, code: int, phrase: str, api: Api, fedstac: Fedstac
) -> None:
    done = await fedstac(*arguments, stdin=lines(list(sample.items(2))), **to(api, role))
    assert (done.code, done.stdout) == (code, "")
    assert phrase in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


async def test_a_server_that_is_away_exits_5(fedstac: Fedstac) -> None:
    done = await fedstac("search", FEDSTAC_URL="http://127.0.0.1:9", FEDSTAC_RETRIES="0")
    assert done.code == 5
    assert done.stderr.startswith("fedstac: http://127.0.0.1:9 does not answer (tried once: ")
    assert done.stderr.count("\n") == 1
    result = await fedstac("search", FEDSTAC_URL="http://127.0.0.1:9", FEDSTAC_RETRIES="0", FEDSTAC_DEBUG="1")
    assert "Traceback" in result.stderr


async def test_errors_are_json_where_results_are(api: Api, fedstac: Fedstac) -> None:
    refused = await fedstac("get", "CMIP6.nothing", "-o", "json", **to(api))
    error = json.loads(refused.stderr)["error"]
    assert (refused.code, refused.stdout) == (3, "")
    assert (error["type"], error["status"], error["exit_code"]) == ("item-does-not-exist", 404, 3)
    misspelt = await fedstac("serach", "-o", "ndjson")
    assert (misspelt.code, json.loads(misspelt.stderr)["error"]["exit_code"]) == (2, 2)
    wrong = await fedstac("--output=json", "search", "--bbox", "here", **to(api))
    assert "west,south,east,north" in json.loads(wrong.stderr)["error"]["detail"]


async def test_a_server_that_does_not_answer_is_named_before_each_new_try(fedstac: Fedstac) -> None:
    done = await fedstac("search", FEDSTAC_URL="http://127.0.0.1:9", FEDSTAC_RETRIES="2")
    *notices, end = done.stderr.splitlines()
    assert [notice.partition("; ")[2].partition(" in ")[0] for notice in notices] == ["try 2 of 3", "try 3 of 3"]
    assert end.startswith("fedstac: http://127.0.0.1:9 does not answer (tried 3 times: ")


async def test_h_is_help(fedstac: Fedstac) -> None:
    for command in ((), ("search",), ("replica", "add")):
        short, long = await fedstac(*command, "-h"), await fedstac(*command, "--help")
        assert (short.code, short.stdout) == (0, long.stdout)
    assert "70 a fault in fedstac itself" in " ".join((await fedstac("-h")).stdout.split())


async def test_hints_name_commands(api: Api, fedstac: Fedstac) -> None:
    unknown = await fedstac("requests", "show", "nothing", **to(api))
    assert "fedstac requests list lists yours" in unknown.stderr


async def test_no_address_and_wrong_settings_are_wrong_usage(fedstac: Fedstac) -> None:
    done = await fedstac("search")
    assert done.code == 2
    assert "FEDSTAC_URL" in done.stderr
    wrong = await fedstac("search", FEDSTAC_RETRIES="many")
    assert wrong.code == 2
    assert wrong.stderr.startswith("fedstac: FEDSTAC_RETRIES: ")


# --- search and feed ---


async def test_searches_print_tables_lines_and_collections(api: Api, fedstac: Fedstac) -> None:
    items = list(sample.items(8))
    response = await api.admin.post("/collections/CMIP6/items", json={"type": "FeatureCollection", "features": items})
    assert response.status_code == 200
    ids = {str(item["id"]) for item in items}
    found = await fedstac("search", "-c", "CMIP6", "-o", "ndjson", "--limit", "0", **to(api))
    assert {line["id"] for line in found.lines} == ids
    found = await fedstac("-o", "json", "--url", api.url, "search", "--limit", "3", "--sortby", "-id")
    features = json.loads(found.stdout)["features"]
    assert [feature["id"] for feature in features] == sorted(ids, reverse=True)[:3]
    title = str(items[0]["properties"]["cmip6:variable_id"])
    for option in ("-q", "--q", "--query-text"):
        by_text = await fedstac("search", option, title, "-o", "ndjson", **to(api))
        wanted = {str(item["id"]) for item in items if item["properties"]["cmip6:variable_id"] == title}
        assert {line["id"] for line in by_text.lines} == wanted
    code = await fedstac("search", "-q", title, "-o", "python", **to(api))
    assert f"q={title!r}" in code.stdout
    counts = await fedstac("facets", "-q", title, "total_count", "-o", "ndjson", **to(api))
    assert [line["value"] for line in counts.lines] == [len(wanted)]
    table = await fedstac("search", **to(api))
    header, *rows = table.stdout.splitlines()
    assert header.split() == ["collection", "from", "latest", "state", "id"]
    assert {row.split()[-1] for row in rows} == ids
    assert (await fedstac("search", "--ids", "x,y", "-o", "json", **to(api))).stdout == (
        '{"type":"FeatureCollection","features":[]}\n'
    )
    assert (await fedstac("search", "--matched", "--bbox", "-180,-90,180,90", **to(api))).stdout == "8\n"
    moment = "1990-06-01T00:00:00Z"
    during = [item for item in items if item["properties"]["end_datetime"] >= moment]
    counted = await fedstac("search", "--matched", "--datetime", f"{moment}/..", "-o", "json", **to(api))
    assert json.loads(counted.stdout) == {"matched": len(during), "estimated": False}


async def test_facets_are_counted_in_tables_lines_and_json(api: Api, fedstac: Fedstac) -> None:
    items = list(sample.items(8))
    await api.admin.post("/collections/CMIP6/items", json={"type": "FeatureCollection", "features": items})
    sources = Counter(str(item["properties"]["cmip6:source_id"]) for item in items)
    lines = (await fedstac("facets", "source_id", "-c", "CMIP6", "-o", "ndjson", **to(api))).lines
    assert {line["value"]: line["datasets"] for line in lines} == sources
    (first, *_), name = sources, "cmip6_source_id_frequency"
    condition = ("--filter", f"cmip6:source_id = '{first}'")
    found = await fedstac("facets", "cmip6:source_id", "total_count", *condition, "-o", "json", **to(api))
    one = json.loads(found.stdout)
    assert [each["name"] for each in one] == [name, "total_count"]
    assert one[1]["value"] == one[0]["buckets"][0]["frequency"] == sources[first]
    every = json.loads((await fedstac("facets", name, *condition, "--multi-select", "-o", "json", **to(api))).stdout)
    assert {bucket["key"] for bucket in every[0]["buckets"]} == set(sources)
    (_, its_count), *others = sources.most_common()
    table = (await fedstac("facets", "-c", "CMIP6", "--top", "1", **to(api))).stdout.splitlines()
    assert table[0].split() == ["datasets", "8"]
    at = table.index("source_id")
    assert table[at + 1].split()[0] == str(its_count)
    assert table[at + 2].strip() == f"… and {len(others)} more; --top 0 shows all"
    assert max(map(len, table)) <= 120  # one long value moves no other
    assert table[table.index("year of the start") + 1].split()[1].isdigit()
    shown = (await fedstac("facets", "cmip6_source_id", **to(api))).stdout.splitlines()  # as its heading has it
    assert shown[1] == "cmip6_source_id"
    assert sorted(shown[2:]) == sorted(f"{count:>8}  {value}" for value, count in sources.items())
    wrong = await fedstac("facets", "sourse_id", "-c", "CMIP6", **to(api))
    assert (wrong.code, "did you mean" in wrong.stderr) == (2, True)


async def test_a_search_by_an_unknown_name_warns_on_standard_error(api: Api, fedstac: Fedstac) -> None:
    items = list(sample.items(8))
    await api.admin.post("/collections/CMIP6/items", json={"type": "FeatureCollection", "features": items})
    source = str(items[0]["properties"]["cmip6:source_id"])
    for arguments, named in (
        (("--filter", f"cmip6:sourceid = '{source}'"), "cmip6:source_id"), (("-c", "CMIP66"), "CMIP6"),
        (("-c", "CMIP6", "--sortby=-nope"), "nope"), (("--filter", "nope = 1", "--matched"), "nope"),
    ):  # fmt: skip
        done = await fedstac("search", *arguments, "-o", "ndjson", **to(api))
        assert done.code == 0
        assert done.stderr.startswith("warning: ")
        assert named in done.stderr
    short = await fedstac("search", "-c", "CMIP6", "--filter", f"source_id = '{source}'", "-o", "ndjson", **to(api))
    assert short.stderr == ""
    assert {line["properties"]["cmip6:source_id"] for line in short.lines} == {source}
    year = await fedstac("search", "--datetime", "1990", "--matched", **to(api))
    assert int(year.stdout) == sum(
        p["start_datetime"] < "1991" and p["end_datetime"] >= "1990" for p in (item["properties"] for item in items)
    )


@pytest.mark.parametrize("form", ["ndjson", "table"])
async def test_a_reader_that_has_seen_enough_is_no_error(
    form: str, api: Api, tmp_path: Path, command_forks: Forks
) -> None:
    items = list(sample.items(30))
    await api.admin.post("/collections/CMIP6/items", json={"type": "FeatureCollection", "features": items})
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *command_forks.program, "search", "-o", form, cwd=tmp_path, stdout=write,
        stderr=asyncio.subprocess.PIPE, env=environment(**to(api)),
    )  # fmt: skip
    os.close(write)
    os.close(read)  # before a line is written: it has no need of any
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (process.returncode, stderr) == (141, b"")


async def test_a_full_disk_is_named(api: Api, tmp_path: Path, command_forks: Forks) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        *command_forks.program, "whoami", "-o", "json", cwd=tmp_path, stdout=full,
        stderr=asyncio.subprocess.PIPE, env=environment(**to(api)),
    )  # fmt: skip
    os.close(full)
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    message = '{"error":{"detail":"the results cannot be written: No space left on device","exit_code":2}}\n'
    assert (process.returncode, stderr.decode()) == (2, message)


STREAMS = """
import os, sys
for number in {closed}:
    os.close(number)
os.execv(sys.executable, [sys.executable, "-m", "fedstac", *{arguments!r}])
"""


async def ended(script: str, folder: Path, **variables: str) -> Result:
    """Run a script, and return how what it became has ended; its output as UTF-8."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=environment(**variables),
    )  # fmt: skip
    stdout, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode is not None
    return Result(process.returncode, stdout.decode(), stderr.decode())


async def test_closed_streams_are_no_fault(api: Api, tmp_path: Path) -> None:
    script = STREAMS.format(closed=[0, 1], arguments=["search", "-o", "ndjson"])
    done = await ended(script, tmp_path, **to(api))
    assert (done.code, done.stderr) == (0, "")


async def test_results_are_utf_8_whatever_the_locale(api: Api, tmp_path: Path) -> None:
    title = "Größe, 気候"
    created = await api.admin.post("/collections", json={**sample.collection("Z"), "title": title})
    assert created.status_code == 201, created.text
    for form in ("table", "ndjson"):
        script = STREAMS.format(closed=[], arguments=["collections", "list", "-o", form])
        done = await ended(script, tmp_path, PYTHONIOENCODING="latin-1", **to(api))
        assert (done.code, title in done.stdout, done.stderr) == (0, True, ""), done


async def test_a_full_disk_is_named_at_the_end_too(tmp_path: Path) -> None:
    script = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); " + STREAMS.format(
        closed=[], arguments=["vocab", "show", "CMIP6", "-o", "json"]
    )
    done = await ended(script, tmp_path)
    assert (done.code, "No space left on device" in done.stderr, "Exception" in done.stderr) == (2, True, False), done


async def test_ctrl_c_while_it_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, signal\n"
        "original = builtins.__import__\n"
        "def interrupted(name, *rest, **more):\n"
        "    if name == 'typer':\n"
        "        builtins.__import__ = original\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return original(name, *rest, **more)\n"
        "builtins.__import__ = interrupted\n"
    )
    script = STREAMS.format(closed=[], arguments=["search"])
    done = await ended(script, tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.code, done.stdout, done.stderr) == (130, "", "stopped\n")


async def test_the_feed_is_shown_and_followed(
    api: Api, fedstac: Fedstac, tmp_path: Path, start_command: StartCommand
) -> None:
    body = {"type": "FeatureCollection", "features": list(sample.items(5))}
    assert (await api.admin.post("/collections/CMIP6/items", json=body)).status_code == 200
    follower = await start_command(
        "feed", "tail", "--after", "0.0", "-f", "-o", "ndjson", folder=tmp_path, **to(api, "node:east")
    )
    assert follower.stdout
    try:
        events = [json.loads(await asyncio.wait_for(follower.stdout.readline(), PATIENCE)) for _ in range(6)]
        assert [event["pos"] for event in events] == [1, 2, 3, 4, 5, 6]
        follower.send_signal(signal.SIGINT)
        _, stderr = await asyncio.wait_for(follower.communicate(), PATIENCE)
        assert (follower.returncode, stderr) == (130, b"stopped\n")
    finally:
        if follower.returncode is None:
            follower.kill()
    last = await fedstac("feed", "tail", "-n", "2", "-o", "json", **to(api, "node:east"))
    head = events[-1]["pos"]
    assert len(json.loads(last.stdout)) >= 2 or head > 6
    table = await fedstac("feed", "tail", "--after", "0.0", "--type", events[0]["type"], **to(api, "node:east"))
    assert "collection.created" in table.stdout
    assert "go on with --after 1." in table.stderr


# --- tokens ---


async def test_a_token_is_issued_listed_and_revoked(api: Api, fedstac: Fedstac, dsn: str) -> None:
    issued = await fedstac("token", "issue", "ncar", "--role", "publisher:NCAR", FEDSTAC_DSN=dsn)
    assert issued.code == 0, issued.stderr
    token = issued.stdout.strip()
    assert token.startswith("fst_")
    listed = await fedstac("token", "list", "-o", "ndjson", FEDSTAC_DSN=dsn)
    [row] = [line for line in listed.lines if line["name"] == "ncar"]
    assert row["roles"] == ["publisher:NCAR"]
    assert token not in listed.stdout
    response = await api.anyone.get(
        "/requests/00000000-0000-0000-0000-000000000000", headers={"Authorization": f"Bearer {token}"}
    )
    assert response.status_code == 404
    assert (await fedstac("token", "revoke", row["id"], FEDSTAC_DSN=dsn)).code == 0
    assert (await fedstac("token", "revoke", "ncar", FEDSTAC_DSN=dsn)).code == 3
    wrong = await fedstac("token", "issue", "x", "--role", "king", FEDSTAC_DSN=dsn)
    assert wrong.code == 2
    for name in ("", " ", "a\nb", "x" * 101, "anonymous", "person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2"):
        assert (await fedstac("token", "issue", name, "--role", "admin", FEDSTAC_DSN=dsn)).code == 2


async def test_a_token_ends_when_its_time_is_over(api: Api, fedstac: Fedstac, dsn: str) -> None:
    issue = ("token", "issue", "ncar", "--role", "publisher:NCAR", "-o", "json")
    issued = json.loads((await fedstac(*issue, "--expires", "90d", FEDSTAC_DSN=dsn)).stdout)
    there = {"FEDSTAC_URL": api.url, "FEDSTAC_TOKEN": issued["token"]}
    me = json.loads((await fedstac("whoami", "-o", "json", **there)).stdout)
    assert me["expires"][:16] == issued["expires"][:16]
    assert "expires" in (await fedstac("whoami", **there)).stdout
    late = json.loads((await fedstac(*issue, "--expires", "1h", FEDSTAC_DSN=dsn)).stdout)["token"]
    conn = await asyncpg.connect(dsn)
    await conn.execute(
        "UPDATE fedstac.token SET expires = now() - interval '1 s' WHERE expires < now() + interval '1 d'"
    )
    await conn.close()
    ended = await fedstac("whoami", FEDSTAC_URL=api.url, FEDSTAC_TOKEN=late)
    assert (ended.code, "this token ended at" in ended.stderr) == (4, True), ended.stderr
    listed = await fedstac("token", "list", FEDSTAC_DSN=dsn)
    assert any(line.split()[1:4:2] == ["ncar", "ended"] for line in listed.stdout.splitlines()), listed.stdout
    for wrong in ("soon", "2001-01-01", "0d"):
        assert (await fedstac(*issue, "--expires", wrong, FEDSTAC_DSN=dsn)).code == 2


async def test_a_token_for_a_misspelt_institution_is_questioned(fedstac: Fedstac, dsn: str) -> None:
    issue = ("token", "issue", "ncar", "--role", "publisher:NCARR")
    done = await fedstac(*issue, FEDSTAC_DSN=dsn)
    assert (done.code, "did you mean NCAR?" in " ".join(done.stderr.replace("│", " ").split())) == (2, True), done
    assert (await fedstac(*issue, "--unknown-institution", FEDSTAC_DSN=dsn)).code == 0


async def test_a_database_that_is_away_exits_5(fedstac: Fedstac) -> None:
    for command in (("token", "list"), ("sink", "list"), ("audit", "list"), ("admin", "check"), ("parked", "list")):
        done = await fedstac(*command, FEDSTAC_DSN="postgresql://nobody@127.0.0.1:9/none")
        assert done.code == 5
        assert done.stderr.startswith("fedstac: no PostgreSQL answers at 127.0.0.1:9 (")
        assert done.stderr.endswith("): start it, or see to FEDSTAC_DSN\n")
        assert done.stderr.count("\n") == 1


# --- an index node's copy ---


@asynccontextmanager
async def following(settings: Settings) -> AsyncIterator[None]:
    """Yield an index node that has everything when the block begins."""
    stop = asyncio.Event()
    async with bootstrap.node(settings) as node, bootstrap.beside(node, roles.INDEX.parts(settings), stop):

        async def has_all() -> bool:
            address = SourceAddress(settings.source, settings.source_token)
            async with Origin(address) as origin, node.pool.acquire() as conn:
                _, head = await origin.head()
                place = await nodes.progress(conn, nodes.INDEX, "west")
                return place is not None and place.snapshot is None and place.cursor.pos == head.pos > 1

        await until(has_all)
        yield


async def test_a_copy_is_verified_and_rebuilt(api: Api, fedstac: Fedstac, make_database: Callable[[], str]) -> None:
    body = {"type": "FeatureCollection", "features": list(sample.items(40))}
    assert (await api.admin.post("/collections/CMIP6/items", json=body)).status_code == 200
    east = make_database()
    variables = {"FEDSTAC_DSN": east, "FEDSTAC_NODE": "east", "FEDSTAC_SOURCE": api.url,
                 "FEDSTAC_SOURCE_TOKEN": api.tokens["node:east"]}  # fmt: skip
    settings = Settings(dsn=east, node="east", source=api.url, source_token=api.tokens["node:east"], _env_file=None)
    async with following(settings):
        refused = await fedstac("rebuild", "--from", "zero", **variables)
        assert refused.code == 2
        assert "stop the index node first" in refused.stderr
        verified = await fedstac("verify", **variables)
        assert (verified.code, verified.stdout) == (0, "")
        assert "40 datasets at the source, 0 differences" in verified.stderr
    conn = await asyncpg.connect(east)
    for start_from in ("zero", "snapshot"):
        gone = await conn.fetchval(
            "DELETE FROM fedstac.record WHERE id = (SELECT max(id) FROM fedstac.record) RETURNING id"
        )
        verified = await fedstac("verify", "-o", "ndjson", **variables)
        assert verified.code == 1
        assert verified.lines == [{"origin": "west", "collection": "CMIP6", "id": gone, "kind": "missing here"}]
        rebuilt = await fedstac("rebuild", "--from", start_from, **variables)
        assert rebuilt.code == 0, rebuilt.stderr
        verified = await fedstac("verify", "-o", "json", **variables)
        assert verified.code == 0
        assert json.loads(verified.stdout)["differences"] == []
    lost = await conn.fetchval(
        "DELETE FROM fedstac.record WHERE id = (SELECT max(id) FROM fedstac.record) RETURNING id"
    )
    repaired = await fedstac("verify", "--repair", "-o", "ndjson", **variables)
    assert (repaired.code, [(row["id"], row["mended"]) for row in repaired.lines]) == (0, [(lost, True)])
    assert (await fedstac("verify", **variables)).code == 0
    assert await conn.fetchval("SELECT count(*) FROM pgstac.items") == 40
    await conn.close()


async def test_a_second_index_node_stands_by_and_takes_over(api: Api, make_database: Callable[[], str]) -> None:
    east = make_database()
    settings = Settings(dsn=east, node="east", source=api.url, source_token=api.tokens["node:east"], _env_file=None)
    publish = api.admin.post("/collections/CMIP6/items", json=next(sample.items(1)))
    address = SourceAddress(api.url, settings.source_token)
    async with bootstrap.node(settings) as node, Origin(address) as origin, open_source(address) as source:
        first, second = (Follower(node, IndexHandler(node, origin), origin, source) for _ in range(2))
        stops = [asyncio.Event(), asyncio.Event()]
        task = asyncio.create_task(first.run(stops[0]))

        async def first_leads() -> bool:
            return first.applied_cursor.pos > 0

        await until(first_leads)
        waiting = asyncio.create_task(second.run(stops[1]))
        assert (await publish).status_code == 201

        async def first_has_it() -> bool:
            return first.applied_cursor.pos > 1

        async def second_tries() -> bool:
            return second.lock is not None

        await until(first_has_it)
        await until(second_tries)
        assert second.applied_cursor.pos == 0
        stops[0].set()
        await asyncio.wait_for(task, PATIENCE)

        async def second_leads() -> bool:
            return second.applied_cursor.pos > 1

        await until(second_leads)
        stops[1].set()
        await asyncio.wait_for(waiting, PATIENCE)


# --- installed without the server's parts ---


async def test_help_needs_no_server_parts_and_fits_80_columns(tmp_path: Path) -> None:
    names = ("", "publish", "status", "search", "feed tail", "token issue", "verify", "rebuild")
    for name, done in zip(
        names, await each_alone(tmp_path, [[*name.split(), "--help"] for name in names]), strict=True
    ):
        assert (done.code, done.stderr) == (0, ""), name
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert "\x1b" not in done.stdout
        assert f"fedstac {name}" in done.stdout
        assert "Examples" in done.stdout or not name


async def test_without_the_server_parts_the_remedy_is_named(tmp_path: Path) -> None:
    code, _, stderr = await alone(tmp_path, "token", "list")
    assert code == 2
    assert "pip install 'fedstac[server]'" in stderr


async def test_the_client_works_without_the_server_parts(api: Api, tmp_path: Path) -> None:
    code, stdout, _ = await alone(tmp_path, "--url", api.url, "search", "--matched")
    assert (code, stdout) == (0, "0\n")


async def test_the_version_is_shown(fedstac: Fedstac) -> None:
    done = await fedstac("--version")
    assert (done.code, done.stdout.split()[0]) == (0, "fedstac")
