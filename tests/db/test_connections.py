"""The pools of a process: one that stands still in a transaction, and whose turn it is."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionProxy

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.pools import Pool
from fedstac.runtime.budget import Budget, Lane
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


async def test_a_request_that_ends_while_it_gives_its_connection_back_cuts_it_for_nobody(dsn: str) -> None:
    """The next one has that connection by then."""
    is_giving_back, budget = asyncio.Event(), Budget(PATIENCE, Lane.READER, TimeoutError)

    class WatchedPool(Pool):
        async def _give_back(self, conn: PoolConnectionProxy[asyncpg.Record]) -> None:
            is_giving_back.set()
            await super()._give_back(conn)

    lane = WatchedPool(await connections.pool(dsn, size=1), Lane.READER, 1)

    async def ask() -> None:
        async with budget, lane.acquire() as conn:
            await conn.fetchval("SELECT 1")

    try:
        asking = asyncio.create_task(ask())
        await is_giving_back.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        assert budget._overruns == set()
        async with asyncio.timeout(PATIENCE), lane.acquire() as conn:
            assert await conn.fetchval("SELECT 1") == 1
    finally:
        lane.terminate()


@pytest.mark.parametrize("seed", range(3))
async def test_no_turn_is_lost_or_given_twice_whoever_leaves_when(dsn: str, seed: int) -> None:
    lane, rng = Pool(await connections.pool(dsn, size=2), Lane.READER, 2), random.Random(seed)
    holders, most = 0, 0

    async def ask() -> None:
        nonlocal holders, most
        async with lane.acquire() as conn:
            holders += 1
            most = max(most, holders)
            try:
                await conn.fetchval("SELECT 1")
            finally:
                holders -= 1

    try:
        tasks: list[asyncio.Task[None]] = []
        for _ in range(200):
            tasks.append(asyncio.create_task(ask()))
            if rng.random() < 0.4:
                rng.choice(tasks).cancel()
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*tasks, return_exceptions=True)
            async with lane.acquire(), lane.acquire():
                assert lane.users == 2
    finally:
        lane.terminate()
    assert (most, holders, lane.users) == (2, 0, 0)
    assert all(task.cancelled() or task.exception() is None for task in tasks)
