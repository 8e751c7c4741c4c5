"""The pools of a process: one that stands still in a transaction, and whose turn it is."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionProxy

from fedstac.db import connections, pools
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


class _CancelledSession:
    """A session whose advisory lock is taken, or whose release is asked for, just as its task is cancelled."""

    def __init__(self, conn: Connection, *, at_release: bool) -> None:
        self._conn, self._at_release = conn, at_release

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    async def fetchval(self, statement: str, *parameters: object) -> Any:
        value = await self._conn.fetchval(statement, *parameters)
        if not self._at_release:
            raise asyncio.CancelledError
        return value

    async def execute(self, statement: str, *parameters: object) -> str:
        raise asyncio.CancelledError


@pytest.mark.parametrize("at_release", [False, True])
async def test_a_session_of_a_pool_leads_no_longer_than_its_work(
    conn: Connection, dsn: str, *, at_release: bool
) -> None:
    pool = await connections.pool(dsn, size=1)
    try:
        own = await pool.acquire()
        cancelled_session: Any = _CancelledSession(own, at_release=at_release)
        with pytest.raises(asyncio.CancelledError):
            async with connections.leading(cancelled_session, 4711):
                pass
        await until(lambda: conn.fetchval("SELECT pg_try_advisory_lock(4711)"))
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
        async def give_back(
            self, conn: PoolConnectionProxy[asyncpg.Record], taken_in: int, *, is_in_order: bool
        ) -> None:
            is_giving_back.set()
            await super().give_back(conn, taken_in, is_in_order=False)

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


PROCESS = "SELECT pg_backend_pid()"
IS_LOCKED = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711)"


async def test_a_connection_that_comes_back_in_order_is_the_next_ones_and_soon_asyncpgs(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "KEPT_SECONDS", 0.01)
    pool = await connections.pool(dsn, size=2)
    lane = Pool(pool, Lane.READER, 2)
    try:
        processes = []
        for _ in range(3):
            async with lane.acquire() as conn:
                processes.append(await conn.fetchval(PROCESS))
        assert len(set(processes)) == 1
        assert pool.get_idle_size() == 0

        async def are_idle() -> bool:
            return pool.get_idle_size() == pool.get_size()

        await until(are_idle)
        async with lane.acquire() as conn:
            lane._begin_round()
        assert pool.get_idle_size() == 1, "it was taken in the round before"
        async with lane.acquire() as conn:
            assert await conn.fetchval(PROCESS) == processes[0]
    finally:
        lane.terminate()


async def test_a_connection_that_comes_back_in_disorder_is_asyncpgs_at_once(dsn: str, conn: Connection) -> None:
    """In a transaction, or after an exception: then a statement may still be under way."""
    pool = await connections.pool(dsn, size=1)
    lane = Pool(pool, Lane.READER, 1)
    try:
        async with lane.acquire() as own:
            await own.execute("BEGIN; SELECT pg_advisory_xact_lock(4711)")
        assert not await conn.fetchval(IS_LOCKED)
        assert pool.get_idle_size() == 1
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with lane.acquire() as own:
                await own.execute("SELECT 1 / 0")
        assert pool.get_idle_size() == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), lane.acquire() as own:
                await own.execute("SELECT pg_advisory_lock(4711), pg_sleep(60)")
        async with lane.acquire() as own:
            assert await own.fetchval("SELECT 1") == 1
    finally:
        lane.terminate()


async def test_a_kept_connection_that_broke_is_replaced(dsn: str, conn: Connection) -> None:
    lane = Pool(await connections.pool(dsn, size=1), Lane.READER, 1)
    try:
        for _ in range(2):
            async with lane.acquire() as own:
                process = await own.fetchval(PROCESS)
            await conn.fetchval("SELECT pg_terminate_backend($1, 5000)", process)

            async def is_gone() -> bool:
                return not any(connections.is_open(spare) for spare in lane._spare)

            await until(is_gone)
            async with lane.acquire() as own:
                assert await own.fetchval(PROCESS) != process
        assert lane.users == 0
    finally:
        lane.terminate()


async def test_who_reads_in_memory_needs_no_connection_and_is_counted_all_the_same(dsn: str) -> None:
    lane = Pool(await connections.pool(dsn, size=1), Lane.READER, 1)
    readers, waiting = pools.READING_PER_CONNECTION, 2
    go = asyncio.Event()
    began: list[int] = []
    ended: list[int] = []

    async def read(number: int) -> None:
        async with lane.reading() as conn:
            began.append(number)
            await go.wait()
            ended.append(await conn.fetchval("SELECT $1::int", number))

    async def have_begun() -> bool:
        return len(began) == readers

    try:
        async with asyncio.TaskGroup() as tasks, lane.acquire():
            for number in range(readers + waiting):
                tasks.create_task(read(number))
            await until(have_begun)
            assert lane.users == readers + waiting + 1
            go.set()
            await asyncio.sleep(0)
            assert not ended, "somebody else has the connection"
        assert began == list(range(readers + waiting))
        assert sorted(ended) == began
        assert lane.users == 0
    finally:
        lane.terminate()
