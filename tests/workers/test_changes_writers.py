"""GET /changes beside many writers: nothing is missed and nothing repeated, while who polls by timestamp misses."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import asyncpg
import pytest

from fedstac.bootstrap import Node
from fedstac.db import connections, feed
from fedstac.db.connections import Connection
from fedstac.domain.subscriptions import SubscriptionFilter
from fedstac.messaging.formats import Encoder
from fedstac.workers import delivering
from fedstac.workers.page_cache import PageCache
from tests.db import writing
from tests.support.waiting import PATIENCE, until
from tests.workers.things import thing

log = logging.getLogger(__name__)
WRITERS = 64
KILLED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)  # of a session


@pytest.mark.parametrize(("batches", "kills", "open_seconds"), [
    pytest.param(2, 6, 0.0, id="small"), pytest.param(60, 200, 600.0, id="ten-minutes", marks=pytest.mark.soak),
])  # fmt: skip
async def test_changes_miss_and_repeat_nothing_beside_writers_kills_and_a_transaction_that_stays_open(
    node: Node, conn: Connection, dsn: str, batches: int, kills: int, open_seconds: float
) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    await writing.create_collections(node, "plain")
    await writing.sequence_all(conn)
    pids: list[int] = []  # of sessions that may be killed
    writers_done = asyncio.Event()
    polled: set[str] = set()
    polled_to = datetime(2000, 1, 1, tzinfo=UTC)

    async def session(work: Callable[[Connection], Awaitable[bool]]) -> None:
        """Work in sessions until it is done; one that is killed is followed by another."""
        is_done = False
        while not is_done:
            own = await connections.connect(dsn)
            pid = own.get_server_pid()
            pids.append(pid)
            try:
                with suppress(*KILLED):
                    is_done = await work(own)
            finally:
                pids.remove(pid)
                own.terminate()

    def writer(number: int) -> Callable[[Connection], Awaitable[bool]]:
        remaining = [[number * 100_000 + n * 10 + k for k in range(3)] for n in range(batches)]

        async def write(own: Connection) -> bool:
            while remaining:
                await writing.publish(own, *(thing(n) for n in remaining[-1]))
                remaining.pop()  # a batch whose session was killed is published again: nothing new, or all of it
                await asyncio.sleep(chance.random() * open_seconds / batches * 0.5)
            return True

        return write

    async def sequence(own: Connection) -> bool:
        while not writers_done.is_set():
            await feed.sequence(own)
            await asyncio.sleep(0.01)
        return True

    async def kill(own: Connection) -> bool:
        for _ in range(kills):
            await asyncio.sleep(0.02 + open_seconds / kills * 0.8)
            if pids:
                await own.fetchval("SELECT pg_terminate_backend($1)", chance.choice(pids))
        return True

    async def poll() -> None:
        """Ask as a client does that remembers the newest time it saw."""
        nonlocal polled_to
        rows = await conn.fetch("SELECT id, updated FROM fedstac.record WHERE updated > $1", polled_to)
        polled.update(row["id"] for row in rows)
        polled_to = max([row["updated"] for row in rows], default=polled_to)

    cursor, events, pages = "0.0", list[str](), PageCache(node)

    async def read_page() -> bool:
        nonlocal cursor
        page = await delivering.changes_since(
            pages, cursor, SubscriptionFilter.parse({"collections": ["plain"]}), reader=writing.ANNA,
            encoder=Encoder(), limit=50, wait=0,
        )  # fmt: skip
        if page.events and chance.random() < 0.2:
            return True  # the reader was killed before it had noted the page: it reads the same page again
        events.extend(each.delivery.event.event_id for each in page.events)
        cursor = str(page.cursor)
        return page.has_more

    async def read() -> None:
        while not writers_done.is_set():
            await read_page()
            await poll()
            await asyncio.sleep(0.01)

    late = await connections.connect(dsn)
    begin = time.monotonic()
    try:
        await writing.prepare(late, thing(99))
        transaction = late.transaction()
        await transaction.start()
        await writing.publish(late, thing(99))  # its time is that of now, and its place in the log that of its commit
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(session(sequence)), group.create_task(read())]
            killer = await connections.connect(dsn)
            killing = group.create_task(kill(killer))
            await asyncio.gather(*(session(writer(number)) for number in range(1, WRITERS + 1)))
            await killing
            await asyncio.sleep(max(0.0, open_seconds - (time.monotonic() - begin)))
            await transaction.commit()
            writers_done.set()
            await asyncio.gather(*helpers)
            await killer.close(timeout=PATIENCE)
    finally:
        await late.close(timeout=PATIENCE)
    await writing.sequence_all(conn)
    await poll()

    async def is_read() -> bool:
        return not await read_page() and cursor == str(await _head(conn))

    await until(is_read)
    rows = await conn.fetch("SELECT event_id::text AS id, dataset FROM fedstac.outbox WHERE collection = 'plain'")
    assert len(events) == len(set(events))
    assert set(events) == {row["id"] for row in rows}
    missed = {row["dataset"] for row in rows if row["dataset"]} - polled
    log.info("polling by timestamp missed %d of %d datasets", len(missed), len({row["dataset"] for row in rows}) - 1)
    assert "thing-99" in missed


async def _head(conn: Connection) -> object:
    return await feed.head(conn)
