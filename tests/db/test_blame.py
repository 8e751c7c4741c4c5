"""Blame: an item fails for attempts of its own, alone. Neither a crash loop nor a bad neighbour fails it."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
import structlog

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import queue
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.errors import InternalError
from fedstac.runtime.causes import DRIVER_ERRORS
from fedstac.workers import publisher
from tests.db import writing
from tests.db.writing import Connect, Item

SEED = int(os.environ.get("FEDSTAC_TEST_SEED") or random.randrange(1_000_000))
ITEMS = list(sample.items(2 * 200, versions=1))
KILLS, SPOILT = 500, 200
SPOILS = {
    "a document that is no JSON": "UPDATE fedstac.request_item SET document = '{' WHERE id = $1",
    "a document that is no item": "UPDATE fedstac.request_item SET document = '7', prepared = NULL WHERE id = $1",
    "what was prepared is damaged": "UPDATE fedstac.request_item SET prepared = '[1' WHERE id = $1",
    "what was prepared is of another form": """UPDATE fedstac.request_item SET prepared = '{"a": 1}' WHERE id = $1""",
    "an identity that nobody packed": "UPDATE fedstac.request SET identity = '?' WHERE id = $2",
    "an action that nobody knows": "UPDATE fedstac.request SET action = 'levitate' WHERE id = $2",
    "a version of the vocabulary that is nowhere": "UPDATE fedstac.request SET cv_version = '9' WHERE id = $2",
}


class Killed(BaseException):
    """What kill -9 looks like from inside: nothing is cleaned up."""


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "FIRST_REST_SECONDS", 0.001)


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    """What was logged: a traceback on a terminal would take longer than the test."""
    with structlog.testing.capture_logs() as entries:
        yield entries


def killing(monkeypatch: pytest.MonkeyPatch, places: Callable[[], str]) -> None:
    """Make workers die at the place that `places` draws at each of their claims."""
    place = ""

    def failpoint(name: str) -> None:
        nonlocal place
        if name == "worker.claimed":
            place = places()
        if name == place:
            raise Killed

    monkeypatch.setattr(publisher, "failpoint", failpoint)
    monkeypatch.setattr(publication, "failpoint", failpoint)


async def submit_spoilt(conn: Connection, items: Sequence[Item], spoils: Sequence[str]) -> list[int]:
    """Accept each item as a request of its own, and damage what is stored. Return the ids of the queued items."""
    ids = []
    for item, spoil in zip(items, spoils, strict=True):
        accepted = await writing.submit(conn, item)
        row: Any = await conn.fetchrow("SELECT id, request FROM fedstac.request_item WHERE request = $1", accepted.id)
        statement = SPOILS[spoil]
        await conn.execute(statement.replace("$2", "$1"), row["request"] if "$2" in statement else row["id"])
        ids.append(row["id"])
    return ids


async def work_all(west: Node, conn: Connection) -> None:
    while await conn.fetchval("SELECT EXISTS (SELECT FROM fedstac.request_item WHERE status = 'queued')"):
        await publisher.work_once(west, conn, "w")


async def final(conn: Connection) -> dict[int, tuple[str, int]]:
    """Return the status and the own attempts of each item."""
    rows = await conn.fetch("SELECT id, status, attempts FROM fedstac.request_item")
    return {row["id"]: (row["status"], row["attempts"]) for row in rows}


@pytest.mark.parametrize("spoil", SPOILS)
async def test_an_item_that_cannot_be_read_fails_alone(west: Node, connect: Connect, spoil: str) -> None:
    conn = await connect()
    await writing.submit(conn, *ITEMS[:30])
    [bad] = await submit_spoilt(conn, ITEMS[30:31], [spoil])
    await writing.submit(conn, *ITEMS[31:90])
    await work_all(west, conn)
    states = await final(conn)
    assert states.pop(bad) == ("failed", publisher.ATTEMPTS)
    assert set(states.values()) == {("done", 0)}
    row = await conn.fetchrow("SELECT problem, detail FROM fedstac.request_item WHERE id = $1", bad)
    assert tuple(row) == (InternalError.name, "the server could not process it")
    assert await conn.fetchval("SELECT count(*) FROM fedstac.audit WHERE outcome = 'failed'") == 1


async def test_an_item_that_cannot_be_read_holds_up_what_is_behind_it_in_its_lineage(
    west: Node, connect: Connect
) -> None:
    conn = await connect()
    [bad] = await submit_spoilt(conn, ITEMS[:1], ["a document that is no JSON"])
    behind = await writing.submit(conn, writing.titled(ITEMS[0], "behind"))
    await publisher.work_once(west, conn, "w")
    assert (await final(conn))[bad] == ("queued", 1)
    status = "SELECT status FROM fedstac.request_item WHERE request = $1"
    assert await conn.fetchval(status, behind.id) == "queued"
    await work_all(west, conn)
    assert (await conn.fetchval(status, behind.id), (await final(conn))[bad][0]) == ("done", "failed")


async def kill_one(west: Node, connect: Connect, watcher: Connection) -> None:
    """Run a worker in a session of its own. It dies where the test wants it to, unless it finds nothing to claim."""
    worker = await connect()
    try:
        await publisher.work_once(west, worker, "w")
    except Killed:
        await end_session(worker, watcher)


async def end_session(worker: Connection, watcher: Connection) -> None:
    pid = worker.get_server_pid()
    worker.terminate()
    await writing.until(watcher, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid)


async def test_sessions_that_are_ended_in_order_are_no_deaths(west: Node, connect: Connect) -> None:
    """PostgreSQL that is started again ends them, each in the middle of a batch."""
    conn, blocker = await connect(), await connect()
    await writing.publish(conn, *ITEMS[:3])
    await writing.submit(conn, *(writing.titled(item, "another") for item in ITEMS[:3]))
    async with blocker.transaction():
        await blocker.execute("SELECT FROM fedstac.lineage FOR UPDATE")
        for _ in range(3):
            async with west.pool.acquire() as own:
                work = asyncio.create_task(publisher.work_once(west, own, "w"))
                blocks, pids = (
                    "SELECT $2 = ANY (pg_blocking_pids($1))",
                    (own.get_server_pid(), blocker.get_server_pid()),
                )
                await writing.until(conn, blocks, *pids)
                await conn.execute("SELECT pg_terminate_backend($1)", own.get_server_pid())
                with pytest.raises(DRIVER_ERRORS):
                    await work
            assert (
                await conn.fetchval("SELECT count(*) FROM fedstac.shard WHERE token IS NOT NULL OR attempts > 0") == 0
            )
    await work_all(west, conn)
    assert set((await final(conn)).values()) == {("done", 0)}


async def test_kills_right_after_the_claim_are_no_attempts(
    west: Node, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = await connect()
    await writing.submit(conn, *ITEMS[:20])
    killing(monkeypatch, lambda: "worker.claimed")
    for _ in range(20):
        await kill_one(west, connect, conn)
    assert set((await final(conn)).values()) == {("queued", 0)}
    killing(monkeypatch, lambda: "")
    await work_all(west, conn)
    assert {status for status, _ in (await final(conn)).values()} == {"done"}


@pytest.mark.long
async def test_kills_at_random_places_and_unreadable_items_fail_no_innocent_item(
    west: Node, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"FEDSTAC_TEST_SEED={SEED}")
    chance, conn = random.Random(SEED), await connect()
    bad: list[int] = []
    for n in range(0, SPOILT, 10):
        await writing.submit(conn, *ITEMS[n * 2 : n * 2 + 10])
        bad += await submit_spoilt(conn, ITEMS[n * 2 + 10 : n * 2 + 20], chance.choices(list(SPOILS), k=10))
    places = ["worker.claimed"] * 5 + ["worker.performed", "perform.locked", "perform.written", "perform.finished"]
    killing(monkeypatch, lambda: chance.choice(places))
    for _ in range(KILLS):
        await kill_one(west, connect, conn)
    killing(monkeypatch, lambda: "")
    await work_all(west, conn)
    states = await final(conn)
    assert {states.pop(item)[0] for item in bad} == {"failed"}
    assert {status for status, _ in states.values()} == {"done"}


async def test_a_claim_ends_with_the_session_of_its_worker(west: Node, connect: Connect) -> None:
    conn, worker = await connect(), await connect()
    await writing.submit(conn, *ITEMS[:20])
    claim = await queue.claim(worker, "one", uuid4(), 600)
    assert claim is not None
    assert await queue.claim(conn, "two", uuid4(), 600) is None
    await end_session(worker, conn)
    taken = await queue.claim(conn, "two", uuid4(), 600)
    assert taken is not None
    assert taken.deaths == 1
    assert set(taken.shards) <= set(claim.shards)
