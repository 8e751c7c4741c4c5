"""The pools of a process: one that stands still in a transaction, and whose turn it is."""

from __future__ import annotations

import asyncio

import pytest

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.pools import Pool
from fedstac.runtime.budget import Lane
from fedstac.runtime.causes import DRIVER_ERRORS, is_transient
from tests.support.waiting import PATIENCE, until


async def test_rows_of_a_transaction_that_idles_come_free_and_the_pool_goes_on(
    conn: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.2)
    pool = await connections.pool(dsn, size=1)
    try:
        own = await pool.acquire()
        transaction = own.transaction()
        await transaction.start()
        await own.execute("SELECT pg_advisory_xact_lock(4711)")
        assert not await conn.fetchval("SELECT pg_try_advisory_lock(4711)")
        await until(lambda: conn.fetchval("SELECT pg_try_advisory_lock(4711)"))
        with pytest.raises((*DRIVER_ERRORS, OSError)) as raised:
            await own.execute("SELECT 1")
        assert is_transient(raised.value)
        await pool.release(own)
        assert await pool.fetchval("SELECT 1") == 1
    finally:
        pool.terminate()


async def test_whoever_waits_first_has_the_next_connection_of_a_lane(dsn: str) -> None:
    """Somebody who comes just when one is given back waits behind those who wait already.

    Two who have their turns at once may begin in either order.
    """
    lane = Pool(await connections.pool(dsn, least=2, size=2), Lane.READER, 2)
    served: list[int] = []

    async def ask(number: int) -> None:
        async with lane.acquire() as conn:
            served.append(number)
            await conn.fetchval("SELECT 1")

    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(300):
                tasks.create_task(ask(number))
                await asyncio.sleep(0)
    finally:
        lane.terminate()
    assert sorted(served) == list(range(300))
    assert max(abs(number - place) for place, number in enumerate(served)) <= 1
    assert lane.users == 0


async def test_who_leaves_while_waiting_keeps_no_turn(dsn: str) -> None:
    lane = Pool(await connections.pool(dsn, size=1), Lane.READER, 1)

    async def ask() -> None:
        async with lane.acquire() as conn:
            await conn.fetchval("SELECT 1")

    try:
        async with lane.acquire():
            tasks = [asyncio.create_task(ask()) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[1].cancel()
        async with asyncio.timeout(PATIENCE):
            await tasks[2]
            await ask()
    finally:
        lane.terminate()
    assert [task.cancelled() for task in tasks] == [True, True, False]
