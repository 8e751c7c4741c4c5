"""Background parts: what ends them is logged and counted, they start again, and /healthcheck shows it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest
import structlog

from fedstac.runtime import commits, supervision
from fedstac.runtime.outages import Outage
from fedstac.runtime.supervision import Parts, keep_running, keep_trying
from fedstac.runtime.wakeup import Backoff
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until

Lines = list[Any]
PUBLISHING = {
    "publisher",
    "sequencer",
    "retention",
    "deletions",
    "subscriptions",
    "notifier",
    "relay",
    "statuses",
    "bulk",
    "loads",
    "cascades",
    "grants",
    "refusals",
    "vocabularies",
    "columns",
    "heartbeat",
    "outages",
    "commits",
}
FOLLOWING = {
    "follower", "housekeeping", "notifier", "refusals", "vocabularies", "columns", "heartbeat", "outages", "commits",
}  # fmt: skip


async def by_raising() -> None:
    raise RuntimeError("out of its loop")


async def by_returning() -> None:
    return


async def by_cancelling() -> None:
    raise asyncio.CancelledError


End = Callable[[], Awaitable[None]]
ENDS: dict[End, str] = {
    by_raising: "RuntimeError: out of its loop",
    by_returning: "it returned",
    by_cancelling: "it was cancelled",
}


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The lines that are logged."""
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(supervision, "FIRST_RESTART_SECONDS", 0.001)
    return Parts(Outage("the database"))


async def until_true(condition: Callable[[], bool]) -> None:
    async def look() -> bool:
        return condition()

    await until(look)


def events(lines: Lines, part: str) -> list[str]:
    return [line["event"] for line in lines if line.get("part") == part]


@pytest.mark.parametrize("end", ENDS)
async def test_a_part_that_ends_is_logged_counted_and_started_again(parts: Parts, lines: Lines, end: End) -> None:
    stop, starts = asyncio.Event(), 0

    async def run() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            await end()
        else:
            await stop.wait()

    running = asyncio.create_task(keep_running(parts, "part", run, stop))
    await until_true(lambda: starts == 2)
    state = parts.state("part")
    assert (state.wanted, state.running, state.restarts) == (1, 1, 1)
    assert parts.troubles() == {"part": f"it ended: {ENDS[end].partition(':')[0]}"}
    assert events(lines, "part") == ["a part ended; it is started again"]
    stop.set()
    await running
    assert state.running == 0


async def test_a_part_that_ends_again_and_again_ends_the_process(parts: Parts, lines: Lines) -> None:
    stop = asyncio.Event()
    await asyncio.wait_for(keep_running(parts, "part", by_raising, stop), PATIENCE)
    assert stop.is_set()
    assert parts.state("part").restarts == supervision.MOST_ENDS
    assert str(parts.gave_up) == "the part part ended 10 times; the last time: RuntimeError: out of its loop"
    assert events(lines, "part")[-1] == "a part ends again and again; the process ends"


async def test_a_part_that_is_stopped_stops_what_it_runs(parts: Parts) -> None:
    ended = asyncio.Event()

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(keep_running(parts, "part", run, asyncio.Event()))
    await until_true(lambda: parts.state("part").running == 1)
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ended.is_set()


async def test_a_fault_that_lasts_is_logged_when_it_begins_and_when_it_ends(parts: Parts, lines: Lines) -> None:
    stop, steps = asyncio.Event(), 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps <= 5:
            raise asyncpg.DiskFullError("no space left on device")
        stop.set()

    await keep_trying(parts, "part", step, stop, backoff=Backoff(0.001, 0.001))
    assert events(lines, "part") == ["a part fails; it tries again", "a part works again"]
    assert (lines[0]["reason"], lines[1]["times"]) == ("DiskFullError (53100): no space left on device", 5)
    assert parts.troubles() == {}


async def test_what_everybody_may_read_of_a_fault_of_ours_is_its_class(parts: Parts, lines: Lines) -> None:
    parts.fails("part", ValueError("the hidden dataset CMIP6.x.v1"))
    assert parts.troubles() == {"part": "ValueError"}
    assert lines[0]["reason"] == "ValueError: the hidden dataset CMIP6.x.v1"


async def test_each_thing_that_is_missing_is_one_line(parts: Parts, lines: Lines) -> None:
    for _ in range(3):
        for table in ("record", "audit"):
            parts.fails("api", asyncpg.UndefinedTableError(f'relation "{table}" does not exist'))
    assert len(events(lines, "api")) == 2
    assert all(table in parts.troubles()["api"] for table in ("record", "audit"))


async def test_a_database_that_is_away_is_one_line_for_all_parts(parts: Parts, lines: Lines) -> None:
    for name in ("publisher", "sequencer", "notifier"):
        parts.fails(name, ConnectionRefusedError(111, "refused"))
        parts.fails(name, asyncpg.InternalClientError("got result for unknown protocol state 3"))
    assert [line["event"] for line in lines] == [
        "the database is away or overloaded; what needs it waits, or is refused"
    ]
    assert parts.troubles() == {}


async def test_a_step_that_did_nothing_does_not_end_a_trouble(parts: Parts) -> None:
    stop, steps = asyncio.Event(), 0
    parts.fails("part", asyncpg.InsufficientPrivilegeError("permission denied"))

    async def idle() -> bool:
        nonlocal steps
        steps += 1
        if steps == 3:
            stop.set()
        return False

    await keep_trying(parts, "part", idle, stop)
    assert parts.troubles() == {"part": "InsufficientPrivilegeError (42501): permission denied"}


@pytest.mark.parametrize(
    ("seconds", "share", "rest"),
    [(1.0, 0.5, 1.0), (0.3, 0.75, 0.1), (0.1, 0.2, 0.4), (1.0, 1.0, 0.0), (0.0, 0.5, 0.0), (60.0, 0.5, 2.0)],
)
def test_a_step_is_followed_by_the_rest_that_leaves_others_their_share(
    seconds: float, share: float, rest: float
) -> None:
    assert supervision.rest_seconds(seconds, share) == pytest.approx(rest)


async def test_a_part_works_its_share_of_the_time_and_looks_now_and_then_where_there_is_nothing_to_do(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[float, float | None]] = [(0.4, 0.8), (0.4, 0.2), (9.0, 0.5), (0.1, None)]
    stop, now = asyncio.Event(), 0.0
    pauses, are_well = list[float](), list[bool]()
    parts.fails("part", asyncpg.InsufficientPrivilegeError("permission denied"))

    async def step() -> float | None:
        nonlocal now
        seconds, share = steps[len(pauses)]
        now += seconds
        return share

    async def note_pause(_: asyncio.Event, seconds: float) -> None:
        pauses.append(seconds)
        are_well.append(not parts.troubles())
        if len(pauses) == len(steps):
            stop.set()

    monkeypatch.setattr(supervision, "pause", note_pause)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    await supervision.keep_working(parts, "part", step, stop)
    assert pauses == pytest.approx([0.1, 1.6, supervision.LONGEST_REST_SECONDS, supervision.LOOK_SECONDS])
    assert are_well == [False, True, True, True], "a step that did something ends the trouble"


async def test_a_look_that_finds_nothing_to_do_ends_no_trouble(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a part whose only piece of work fails, and is put off each time, would seem well in between."""
    stop, looks = asyncio.Event(), 0
    parts.fails("part", asyncpg.InsufficientPrivilegeError("permission denied"))

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            stop.set()

    monkeypatch.setattr(supervision, "LOOK_SECONDS", 0.0)
    await supervision.keep_working(parts, "part", look, stop)
    assert parts.troubles() == {"part": "InsufficientPrivilegeError (42501): permission denied"}


async def test_a_trouble_that_does_not_come_again_is_forgotten(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.fails("part", RuntimeError("once"))
    parts.forget_old_troubles()
    assert parts.troubles()
    monkeypatch.setattr(supervision, "FORGOTTEN_SECONDS", -1.0)
    parts.forget_old_troubles()
    assert parts.troubles() == {}


def end_each_part_once(monkeypatch: pytest.MonkeyPatch, end: End) -> None:
    """Make each part end once, at its next first step, in this way; those of nodes that run already may, too."""
    ended: set[tuple[int, str]] = set()
    original = keep_trying

    async def ending(parts: Parts, name: str, *arguments: Any, **named: Any) -> None:
        if (id(parts), name) in ended:
            await original(parts, name, *arguments, **named)
        else:
            ended.add((id(parts), name))
            await end()

    monkeypatch.setattr(supervision, "keep_trying", ending)
    monkeypatch.setattr(supervision, "FIRST_RESTART_SECONDS", 0.01)
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.5)  # after which a part without work takes its first step


async def health(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = (await api.anyone.get("/healthcheck")).json()
    return found


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("values", "names"), [({}, PUBLISHING), ({"node": "east", "source": "set"}, FOLLOWING)])
async def test_every_part_of_a_node_that_ends_is_started_again_and_shown(
    api: Api, start_api: StartApi, make_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch, lines: Lines,
    end: End, values: dict[str, str], names: set[str],
) -> None:  # fmt: skip
    if values:
        values = {**values, "source": api.url, "source_token": api.tokens["node:east"]}
    end_each_part_once(monkeypatch, end)
    node = await start_api(dsn=make_database(), **values)
    async with asyncio.timeout(PATIENCE):
        while True:
            stand = (await health(node))["parts"]
            if stand.keys() == names and all(
                p["restarts"] == 1 and p["running"] == p["wanted"] for p in stand.values()
            ):
                break
            await asyncio.sleep(0.1)
    body = await health(node)
    assert body["status"] == "degraded"
    assert any("it ended" in reason for reason in body["reasons"])
    readiness = await node.anyone.get("/readiness")
    assert (readiness.status_code, "it ended" in readiness.json()["detail"]) == (503, True)
    metrics = (await node.admin.get("/metrics")).text
    restarts = dict(re.findall(r'^fedstac_part_restarts_total\{part="([^"]+)"\} ([0-9.]+)$', metrics, re.MULTILINE))
    assert {name: restarts[name] for name in names} == dict.fromkeys(names, "1.0")
    logged = {line["part"]: line["reason"] for line in lines if line["event"] == "a part ended; it is started again"}
    assert {name: logged[name] for name in names} == dict.fromkeys(names, ENDS[end])


ENDING = """
import sys
from fedstac.cli import main
from fedstac.runtime import supervision
from fedstac.workers import {module}

async def run(*_):
    raise RuntimeError("out of its loop")

supervision.FIRST_RESTART_SECONDS = 0.001
{module}.run = run
sys.argv = ["fedstac", {command!r}]
main()
"""


@pytest.mark.parametrize(
    ("command", "module"), [("serve", "notifier"), ("worker", "publisher"), ("sequencer", "sequencer")]
)
def test_a_process_whose_part_ends_again_and_again_ends_with_an_error(dsn: str, command: str, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(command=command, module=module)], capture_output=True, text=True,
        env={**os.environ, "FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west", "FEDSTAC_PORT": "0"}, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 70, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"the part {module} ended 10 times; the last time: RuntimeError: out of its loop" in last
