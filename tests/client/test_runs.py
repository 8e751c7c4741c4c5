"""`fedstac publish` before and after it sends: what would become of each, and runs that go on after an interruption."""

from __future__ import annotations

import asyncio
import copy
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedstac.client import runs
from fedstac.client.documents import DocumentTrouble, ReadyDocument, Unreadable
from fedstac.client.runs import Run
from fedstac.client.values import AcceptedBatch, Request
from fedstac.demo import sample
from tests.support.clients import ITEM, broken, newer
from tests.support.commands import Fedstac, StartCommand, lines, to
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until


def told_better(item: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(item)
    changed["properties"]["description"] = "told better"
    return changed


async def count(api: Api) -> int:
    body = (await api.anyone.get("/collections/CMIP6/items", params={"limit": 1})).json()
    return int(body["numberMatched"])


# --- before it sends ---


async def test_prior_publication_is_told_and_nothing_sent(west: Api, fedstac: Fedstac) -> None:
    items = [ITEM, told_better(newer(ITEM)), newer(ITEM, "21000101"), newer(ITEM, "19990101"),
             next(sample.items(1, start=5)), broken(next(sample.items(1, start=6)))]  # fmt: skip
    done = await fedstac("publish", "-", "--dry-run", "-o", "ndjson", stdin=lines(items), **to(west))
    assert done.code == 1
    rows = {line["id"]: line["outcome"] for line in done.lines if line["event"] == "foreseen"}
    assert [rows[item["id"]] for item in items[:5]] == ["identical", "update", "newer", "older", "new"]
    [refused] = [line for line in done.lines if line["event"] == "rejected"]
    assert refused["place"] == "standard input:6"
    assert refused["findings"]
    assert done.lines[-1]["foreseen"] == {
        "identical": 1, "update": 1, "newer": 1, "older": 1, "new": 1, "rejected": 1,
    }  # fmt: skip
    assert await count(west) == 2
    table = await fedstac("publish", "-", "--dry-run", stdin=lines(items[:2]), **to(west))
    assert table.code == 0
    assert [line for line in table.stdout.splitlines() if not line.startswith("    ")] == [
        f"identical  {ITEM['id']}", f"update     {items[1]['id']}",
        "nothing sent; of 2 items would be: identical 1, update 1",
    ]  # fmt: skip


async def test_check_tells_first_and_does_not_send_what_is_there(west: Api, fedstac: Fedstac) -> None:
    items = [ITEM, newer(ITEM), newer(ITEM, "21000101")]
    done = await fedstac("publish", "-", "--check", stdin=lines(items), **to(west))
    assert done.code == 0
    assert [line for line in done.stdout.splitlines() if not line.startswith("    ")] == [
        f"identical  {items[0]['id']}", f"identical  {items[1]['id']}", f"newer      {items[2]['id']}",
        "published 1, skipped 2 of 3 items in 1 request",
    ]  # fmt: skip
    assert await count(west) == 3


# --- runs ---


async def test_a_run_that_was_stopped_goes_on(
    start_api: StartApi, dsn: str, fedstac: Fedstac, tmp_path: Path, start_command: StartCommand
) -> None:
    api = await start_api(dsn=dsn)
    await api.admin.post("/collections", json=sample.collection())
    items = list(sample.items(30))
    (tmp_path / "items.ndjson").write_bytes(lines(items))
    process = await start_command(
        "publish", "-", "--batch", "10", "--run", "run.ndjson", "-o", "ndjson", folder=tmp_path, **to(api)
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(lines(items[:15]))  # a batch and a half; the rest does not come
    await process.stdin.drain()
    assert json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE))["event"] == "accepted"
    process.send_signal(signal.SIGINT)
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 130
    assert "go on with: fedstac publish - --run run.ndjson" in stderr.decode()
    done = await fedstac("publish", "items.ndjson", "--run", "run.ndjson", "--batch", "10", "-o", "ndjson", **to(api))
    assert done.code == 0, done.stderr
    summary = done.lines[-1]
    assert (summary["read"], summary["skipped"]) == (30, 10)
    assert await count(api) == 30
    assert not (tmp_path / "run.ndjson").exists()  # nothing is left of it


async def test_ctrl_c_before_anything_was_sent_leaves_nothing(
    api: Api, tmp_path: Path, start_command: StartCommand
) -> None:
    process = await start_command("publish", "-", "--run", "run.ndjson", folder=tmp_path, **to(api))
    run = tmp_path / "run.ndjson"

    async def has_begun() -> bool:
        return run.exists() and run.stat().st_size > 0

    await until(has_begun)  # it reads what does not come
    process.send_signal(signal.SIGINT)
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (process.returncode, stderr.decode()) == (130, "stopped before anything was sent\n")
    assert not run.exists()


@pytest.mark.parametrize("cut", [0, 5])
async def test_a_killed_run_goes_on_also_with_a_line_cut_off(
    cut: int, start_api: StartApi, dsn: str, fedstac: Fedstac, tmp_path: Path, start_command: StartCommand
) -> None:
    api = await start_api(dsn=dsn)
    await api.admin.post("/collections", json=sample.collection())
    items = list(sample.items(30))
    (tmp_path / "items.ndjson").write_bytes(lines(items))
    process = await start_command(
        "publish", "-", "--batch", "10", "--run", "run.ndjson", "-o", "ndjson", folder=tmp_path, **to(api)
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(lines(items[:25]))
    await process.stdin.drain()
    accepted = 0
    while accepted < 2:
        accepted += json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE))["event"] == "accepted"
    process.kill()
    await process.communicate()
    run = tmp_path / "run.ndjson"
    raw = run.read_bytes()
    last = raw[:-1].rfind(b'{"accepted"')
    run.write_bytes(raw if not cut else raw[: last + cut])
    done = await fedstac("publish", "items.ndjson", "--run", "run.ndjson", "-o", "ndjson", **to(api))
    assert done.code == 0, done.stderr
    assert done.lines[-1]["skipped"] == (10 if cut else 20)
    assert await count(api) == 30
    assert not run.exists()


async def test_what_was_refused_is_sent_again_when_it_is_mended(api: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    items = list(sample.items(12))
    (tmp_path / "items.ndjson").write_bytes(
        lines([broken(item) if n in (3, 7) else item for n, item in enumerate(items)])
    )
    done = await fedstac("publish", "items.ndjson", **to(api))
    assert done.code == 1
    [run] = (tmp_path / "state" / "fedstac" / "runs").iterdir()
    assert f"fedstac publish --retry-failed {run}" in done.stderr
    again = await fedstac("publish", "--retry-failed", str(run), **to(api))
    assert again.code == 1
    assert again.stdout.endswith("published 0, skipped 10, rejected 2 of 12 items in 0 requests\n")
    (tmp_path / "items.ndjson").write_bytes(lines(items))
    mended = await fedstac("publish", "--retry-failed", str(run), **to(api))
    assert (mended.code, mended.stdout) == (
        0, "published 2, skipped 10 of 12 items in 1 request\n"
    ), mended.stderr  # fmt: skip
    assert not run.exists()
    assert await count(api) == 12


async def test_a_run_that_is_complete_leaves_no_file(api: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    done = await fedstac("publish", "-", stdin=lines(list(sample.items(3))), **to(api))
    assert (done.code, done.stderr) == (0, "")
    assert list((tmp_path / "state" / "fedstac" / "runs").iterdir()) == []


async def test_a_name_that_is_no_text_is_one_like_others(api: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    items, strange = list(sample.items(2)), "\udcff"  # as Python shows the byte 0xff
    (tmp_path / strange).mkdir()
    (tmp_path / strange / f"{strange}.json").write_bytes(lines([broken(items[0])]))
    (tmp_path / strange / "good.json").write_bytes(lines(items[1:]))
    done = await fedstac("publish", strange, "--run", "run", **to(api))
    assert done.code == 1, done.stderr
    assert done.stdout.endswith("published 1, rejected 1 of 2 items in 1 request\n")
    (tmp_path / strange / f"{strange}.json").write_bytes(lines(items[:1]))
    again = await fedstac("publish", "--retry-failed", "run", **to(api))
    assert (again.code, await count(api)) == (0, 2), again.stderr


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (("--retry-failed", "none.ndjson"), "none.ndjson cannot be read"),
        (("-", "--run", "no-run.json"), "no-run.json is no file of a publishing run"),
        (("--run", "new.ndjson"), "say what to publish"),
        (("-", "--run", "a", "--retry-failed", "b"), "one of them"),
        (("-", "--run", "/proc/none"), "say where with --run FILE"),
    ],
)
async def test_wrong_usage_is_told(
    arguments: tuple[str, ...], phrase: str, api: Api, fedstac: Fedstac, tmp_path: Path
) -> None:
    (tmp_path / "no-run.json").write_text('{"type": "Feature"}\n')
    done = await fedstac("publish", *arguments, stdin=lines(list(sample.items(1))), **to(api))
    assert done.code == 2
    assert await count(api) == 0
    assert phrase in " ".join(done.stderr.replace("│", " ").split())
    assert (tmp_path / "no-run.json").read_text() == '{"type": "Feature"}\n'


def test_a_run_that_was_stopped_between_two_batches_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run.ndjson", "items", "CMIP6")
    run.begin()
    run.close(interrupted=True)
    assert not run.path.exists()  # nothing was sent
    run.add_accepted(AcceptedBatch("r1", "u", 1), [ReadyDocument("items:1", "id1", "CMIP6", b"{}")])
    run.step(Request("r1", "done", "CMIP6", 1, {"done": 1}, {"new": 1}, False, 1, {}, {}))
    run.close(interrupted=True)
    assert len(Run.read(run.path).sent_digests) == 1
    run.close()
    assert not run.path.exists()


def test_a_run_is_one_process_and_survives_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.ndjson"
    entries = [ReadyDocument(f"items:{n}", f"id{n}", "CMIP6", b"{}%d" % n) for n in range(6)]
    run = Run(path, "items", "CMIP6")
    run.add_accepted(AcceptedBatch("r1", "u", 3), entries[:3])
    run.step(DocumentTrouble("items:1", "id1", "rejected", "t", "d"))
    run.add_accepted(AcceptedBatch("r2", "u", 3), entries[3:])
    second = Run.read(path)
    with pytest.raises(Unreadable, match="another publish is using"):
        second.add_accepted(AcceptedBatch("r3", "u", 1), entries[:1])
    run.close()
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    for cut in range(head, len(whole) + 1):
        path.write_bytes(whole[:cut])
        read = Run.read(path)
        left = [entry for entry in read.unsent(entries, refused_only=False) if entry is not None]
        assert left in (entries, entries[3:], [])
        read.add_accepted(AcceptedBatch("r4", "u", 1), entries[5:])
        read.close()
        again = Run.read(path)
        assert runs.digest(entries[5]) in again.sent_digests
        assert again.sent_digests >= read.sent_digests


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_that_finds_no_room_names_its_file_and_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "run.ndjson"
    entry = ReadyDocument("items:1", "id1", "CMIP6", b"{}")
    run = Run(path, "items", "CMIP6")
    with largest_file(10):
        with pytest.raises(Unreadable, match=r"the run cannot be kept in .*run\.ndjson: File too large"):
            run.begin()
        run.close(interrupted=True)
    assert not path.exists()  # nothing was sent
    run.begin()
    with largest_file(path.stat().st_size + 10), pytest.raises(Unreadable, match="say where with --run FILE"):
        run.add_accepted(AcceptedBatch("r1", "u", 1), [entry])
    with largest_file(path.stat().st_size):
        run.close(interrupted=True)
    again = Run.read(path)
    assert list(again.unsent([entry], refused_only=False)) == [entry]
    again.add_accepted(AcceptedBatch("r1", "u", 1), [entry])
    again.close(interrupted=True)
    assert Run.read(path).sent_digests == {runs.digest(entry)}


async def test_a_run_goes_on_with_the_options_that_it_began_with(api: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    items = list(sample.items(4))
    (tmp_path / "items.ndjson").write_bytes(lines([*items[:3], broken(items[3])]))
    began = await fedstac(
        "publish", "items.ndjson", "--run", "run", "--batch", "2", "--patience", "99", "--check", **to(api)
    )
    assert began.code == 1
    options = {"batch": 2, "wait": True, "wait_visible": [], "patience": 99.0, "check": True, "url": api.url}
    assert Run.read(tmp_path / "run").options == options
    other = {**to(api), "FEDSTAC_URL": "http://127.0.0.1:9"}
    elsewhere = await fedstac("publish", "--retry-failed", "run", **other)
    message = " ".join(elsewhere.stderr.replace("│", " ").split())
    assert (elsewhere.code, f"this run publishes at {api.url}" in message) == (2, True), message
    again = await fedstac("publish", "--retry-failed", "run", "--patience", "98", **to(api))
    assert again.code == 1
    assert Run.read(tmp_path / "run").options == {**options, "patience": 98.0}
    (tmp_path / "items.ndjson").write_bytes(lines(items))
    mended = await fedstac("publish", "--retry-failed", "run", FEDSTAC_TOKEN=api.tokens["admin"])
    assert (mended.code, mended.stdout.splitlines()[0]) == (0, f"new        {items[3]['id']}"), mended.stderr
    assert not (tmp_path / "run").exists()


def test_the_options_that_were_given_last_count(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "items.ndjson")
    run.options = {"batch": 2, "wait_visible": ["east"]}
    run.begin()
    run.add_accepted(AcceptedBatch("1", "http://x/requests/1", 1), [ReadyDocument("items.ndjson:1", "a", "c", b"{}")])
    run.close(interrupted=True)
    again = Run.read(tmp_path / "run")
    assert again.options == {"batch": 2, "wait_visible": ["east"]}
    again.options = {"batch": 3, "wait_visible": ["east"]}
    again.begin()
    again.close(interrupted=True)
    assert Run.read(tmp_path / "run").options == {"batch": 3, "wait_visible": ["east"]}


async def test_a_check_says_what_an_update_changes_and_whose_change_it_undoes(
    api: Api, fedstac: Fedstac, tmp_path: Path
) -> None:
    [item] = sample.items(1)
    (tmp_path / "items.ndjson").write_bytes(lines([item]))
    assert (await fedstac("publish", "items.ndjson", **to(api))).code == 0
    assert (await fedstac("patch", item["id"], "--set", "cmip6:grid=native", **to(api))).code == 0
    tried = await fedstac("publish", "items.ndjson", "--dry-run", **to(api))
    assert (tried.code, tried.stdout.splitlines()[0]) == (0, f"update     {item['id']}")
    assert "    changes /properties/cmip6:grid\n" in tried.stdout
    assert "    undoes or overwrites: amend by admin at " in tried.stdout
    done = await fedstac("publish", "items.ndjson", "--check", "-o", "json", **to(api))
    [foreseen] = json.loads(done.stdout)["foreseen"]
    summary = json.loads(done.stdout)["summary"]
    assert (summary["published"], summary["updated"]) == (1, 1)
    assert (foreseen["outcome"], foreseen["changed"]) == ("update", ["/properties/cmip6:grid"])
    assert (foreseen["last_change"]["actor"], foreseen["last_change"]["action"]) == ("admin", "amend")
