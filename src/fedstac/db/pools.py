"""The connections of a process, in lanes: what fills one of them does not hold up the others."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypeAlias

import asyncpg
import structlog

from fedstac.db import connections
from fedstac.db.connections import Connection, LazyConnection, Reader
from fedstac.domain.errors import Unavailable
from fedstac.runtime import budget
from fedstac.runtime.budget import Budget, Lane
from fedstac.runtime.causes import DRIVER_ERRORS

# PostgreSQL shares processors evenly: with more connections than these, searches take them from publishing
FOR_READERS = max(2, min(8, os.cpu_count() or 2))
WAITING_PER_CONNECTION = 100  # requests of a lane that may wait for a connection, for each that it has
READING_PER_CONNECTION = 4  # searches of a lane in memory at once, for each connection: the event loop is everybody's
WAIT_SECONDS = 5.0  # that a request of a lane waits for a connection
CATCH_UP_SECONDS, POLL_SECONDS = 1.0, 0.005  # that a read waits for a standby, and between looks at it
AWAY_SECONDS = 5.0  # for which a standby that could not answer is not asked again
RELEASE_SECONDS = 1.0  # that PostgreSQL has to confirm a cancelled statement, before its connection is cut
ELSEWHERE_SECONDS = 5.0  # for a last thing on another connection, where the own session has ended
KEPT_SECONDS = 2.0  # after which asyncpg has a kept connection back: it renews old ones, and closes those that idle
BUSY: Mapping[Lane, str] = {
    Lane.HEALTH: "many ask for the health of this node at once; try again",
    Lane.WORK: "many requests are being stored; try again in a moment",
    Lane.READER: "many searches of callers with a token are under way; try again in a moment",
    Lane.ANONYMOUS: "many searches are under way; try again in a moment, or send a token",
}
log = structlog.get_logger()

PooledConnection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


class Pool:
    """The connections of one lane. Requests that would wait too long are refused; background parts wait.

    Whoever waits first has the next connection. asyncpg's own queue gives it to whoever comes just then, and sends the
    one who waited to the end: with eight at once and two connections, one in ten waited five times as long as most.

    A connection that comes back in order is kept for the next one: asyncpg spends a task and two timers on it. asyncpg
    has all of them back every KEPT_SECONDS.
    """

    def __init__(self, pool: connections.Pool, lane: Lane, size: int) -> None:
        self._pool = pool
        self._turns = asyncio.Semaphore(size)
        self.places_to_read = asyncio.Semaphore(size * READING_PER_CONNECTION)
        self._lane = lane
        self.size = size
        self._most_users = size * (1 + WAITING_PER_CONNECTION)
        self._users = 0  # that hold a connection or wait for one
        self._spare: list[PooledConnection] = []
        self._round = 0  # what was taken in an earlier one goes back to asyncpg
        self._next_round: asyncio.TimerHandle | None = None
        self._returning: set[asyncio.Task[None]] = set()

    @property
    def users(self) -> int:
        """Return how many have a connection or wait for one."""
        return self._users

    async def try_elsewhere(self, work: Callable[[Connection], Awaitable[object]]) -> None:
        """Do a last thing for work whose own session may have ended, on another connection, in ELSEWHERE_SECONDS.

        What fails is left: the database may be away.
        """
        with suppress(Exception):
            async with asyncio.timeout(ELSEWHERE_SECONDS), self.acquire() as conn:
                await work(conn)

    def acquire(self) -> AbstractAsyncContextManager[Connection]:
        """Yield a connection. Unavailable where too many requests wait already, or this one waited too long."""
        return _Use(self)

    def reading(self) -> AbstractAsyncContextManager[Reader]:
        """Yield a connection that a statement takes when it needs one: searches in memory need none, and share looks.

        Unavailable as `acquire`, and at a statement that waited too long.
        """
        return _LazyUse(self)

    def enter(self, request: Budget | None) -> None:
        """Count somebody. Unavailable where too many requests wait already."""
        if request is not None and self._users >= self._most_users:
            raise self._busy()
        self._users += 1

    def leave(self) -> None:
        """Count somebody no more."""
        self._users -= 1

    async def take_place_to_read(self, request: Budget | None) -> None:
        """Wait for a place among those who read. Unavailable after WAIT_SECONDS."""
        if not self.places_to_read.locked():
            await self.places_to_read.acquire()  # at once
            return
        async with self._in_time(request):
            await self.places_to_read.acquire()

    async def take(self, request: Budget | None) -> tuple[PooledConnection, int]:
        """Wait for a connection. Return it, and the round in which it was taken."""
        if self._spare and not self._turns.locked() and connections.is_open(self._spare[-1]):
            await self._turns.acquire()  # at once
            return self._spare.pop(), self._round
        async with self._in_time(request):
            return await self._wait(), self._round

    async def give_back(self, conn: PooledConnection, taken_in: int, *, is_in_order: bool) -> None:
        """Take a connection back, and never raise: the work has its result.

        is_in_order: no exception ended the work. Else a statement may still be under way.
        """
        try:
            if is_in_order and taken_in == self._round and connections.is_open(conn) and not conn.is_in_transaction():
                self._spare.append(conn)
                if self._next_round is None:
                    self._next_round = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._begin_round)
            else:
                await self._release(conn)
        finally:
            self._turns.release()

    async def _wait(self) -> PooledConnection:
        """Wait for a turn, then take a connection."""
        await self._turns.acquire()
        try:
            while self._spare:
                conn = self._spare.pop()
                if connections.is_open(conn):
                    return conn
                await self._release(conn)
            return await self._pool.acquire()
        except BaseException:
            self._turns.release()
            raise

    @asynccontextmanager
    async def _in_time(self, request: Budget | None) -> AsyncIterator[None]:
        """Let a request wait for WAIT_SECONDS at most: Unavailable after them. Background parts have time."""
        try:
            async with asyncio.timeout(None if request is None else WAIT_SECONDS) as waiting:
                yield
        except TimeoutError:
            if waiting.expired():
                raise self._busy() from None
            raise

    def _begin_round(self) -> None:
        """Let asyncpg have the connections back: those that are kept now, the others when their work is done."""
        self._next_round = None
        self._round += 1
        for conn in self._spare:
            task = budget.detached(self._release(conn))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)
        self._spare.clear()

    async def _release(self, conn: PooledConnection) -> None:
        """Give a connection to asyncpg, and never raise: asyncpg replaces a broken one."""
        try:
            await self._pool.release(conn, timeout=RELEASE_SECONDS)
        except (OSError, TimeoutError, *DRIVER_ERRORS) as error:
            log.warning("a connection is replaced", lane=self._lane, error=type(error).__name__)

    def _busy(self) -> Unavailable:
        return Unavailable(BUSY[self._lane], retry_after=2)

    def terminate(self) -> None:
        if self._next_round is not None:
            self._next_round.cancel()
        self._spare.clear()
        self._pool.terminate()


class _Holder:
    """Takes a connection of a lane once, and gives it back."""

    __slots__ = ("_conn", "_forget", "_pool", "_request", "_taken_in")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._request = budget.current()
        self._conn: PooledConnection | None = None

    async def _take(self) -> Connection:
        conn, self._taken_in = await self._pool.take(self._request)
        self._forget = self._request.on_overrun(conn.terminate) if self._request is not None else None
        self._conn = conn
        return conn

    async def _give_back(self, *, is_in_order: bool) -> None:
        """Give the connection back, where it was taken."""
        if self._conn is None:
            return
        try:
            await self._pool.give_back(self._conn, self._taken_in, is_in_order=is_in_order)
        finally:
            if self._forget is not None:  # else what overruns would cut a connection that others have by then
                self._forget()


class _Use(_Holder):
    """The use of a connection, as `async with` has it."""

    async def __aenter__(self) -> Connection:
        self._pool.enter(self._request)
        try:
            return await self._take()
        except BaseException:
            self._pool.leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._give_back(is_in_order=kind is None)
        finally:
            self._pool.leave()


class _LazyUse(_Holder):
    """The use of a connection that maybe nobody needs. It has a place to read, so that one lane has not all turns."""

    async def __aenter__(self) -> Reader:
        self._pool.enter(self._request)
        try:
            await self._pool.take_place_to_read(self._request)
        except BaseException:
            self._pool.leave()
            raise
        return LazyConnection(self._take)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.places_to_read.release()
        try:
            await self._give_back(is_in_order=kind is None)
        finally:
            self._pool.leave()


class CopyPool:
    """The connections of one lane to a streaming standby. Where it cannot answer, the lane's own server does.

    Callers with a token see what they wrote: their reads wait until the standby has all that the other server had when
    they came, for CATCH_UP_SECONDS at most.
    """

    def __init__(self, copy: Pool, original: Pool, *, waits: bool) -> None:
        self._copy = copy
        self._original = original
        self._waits = waits
        self._away_until = 0.0

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """Yield a connection, as the pools do."""
        async with AsyncExitStack() as stack:
            conn = await self._from_copy(stack)
            yield conn if conn is not None else await stack.enter_async_context(self._original.acquire())

    def reading(self) -> AbstractAsyncContextManager[Reader]:
        """Yield a connection at once: until the standby has all, it is not known which server is asked."""
        return self.acquire()

    async def _from_copy(self, stack: AsyncExitStack) -> Connection | None:
        """Return a connection to the standby; None where it is away, is none, or lags behind."""
        if time.monotonic() < self._away_until:
            return None
        place = None
        if self._waits:
            async with self._original.acquire() as conn:
                place = await conn.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        async with AsyncExitStack() as opened:
            try:
                conn = await opened.enter_async_context(self._copy.acquire())
                if await _has_all(conn, place):
                    stack.push_async_exit(opened.pop_all())
                    return conn
                log.warning("the standby lags behind, or is none; the other server answers", seconds=CATCH_UP_SECONDS)
            except (OSError, *DRIVER_ERRORS) as error:
                log.warning("the standby is away; the other server answers", error=type(error).__name__)
        self._away_until = time.monotonic() + AWAY_SECONDS
        return None

    def terminate(self) -> None:
        self._copy.terminate()


async def _has_all(conn: Connection, place: str | None) -> bool:
    """Wait until a standby has replayed a place of the log. False where it is none, or takes CATCH_UP_SECONDS."""
    end = time.monotonic() + CATCH_UP_SECONDS
    while True:
        row = await conn.fetchrow(
            """SELECT pg_is_in_recovery() AS follows, coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, true)
                      AS has_all""",
            place,
        )
        assert row is not None
        if not row["follows"] or row["has_all"] or time.monotonic() > end:
            return bool(row["follows"] and row["has_all"])
        await asyncio.sleep(POLL_SECONDS)


class Sizes(Protocol):
    """How many connections each lane has at most."""

    @property
    def pool_size(self) -> int: ...
    @property
    def reader_pool_size(self) -> int: ...
    @property
    def anonymous_pool_size(self) -> int: ...
    @property
    def request_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Pools:
    """The lanes of a process. All but that of work open their connections when they are first used."""

    lanes: Mapping[Lane, Pool]
    copies: Mapping[Lane, CopyPool] = field(default_factory=dict)  # of a standby, for searches

    @property
    def work(self) -> Pool:
        """For writes and background parts."""
        return self.lanes[Lane.WORK]

    def current(self) -> Pool:
        """Return the pool of whoever is working."""
        return self.lanes[budget.lane()]

    def searching(self) -> Pool | CopyPool:
        """Return the pool for a search of whoever is working."""
        lane = budget.lane()
        return self.copies.get(lane) or self.lanes[lane]

    def by_name(self) -> list[tuple[str, Pool]]:
        """Return the name and the pool of each lane."""
        return [(str(lane), pool) for lane, pool in self.lanes.items()]

    def terminate(self) -> None:
        for pool in self.lanes.values():
            pool.terminate()
        for copy in self.copies.values():
            copy.terminate()


async def open_pools(dsn: str, sizes: Sizes, *, application: str, read_dsn: str = "") -> Pools:
    """Open the pools of all lanes. Wait a minute for a database that is away. `read_dsn`: of a standby for searches."""
    of = {
        Lane.WORK: sizes.pool_size,
        Lane.READER: sizes.reader_pool_size or FOR_READERS,
        Lane.ANONYMOUS: sizes.anonymous_pool_size or FOR_READERS,
        Lane.HEALTH: 1,
    }
    lanes: dict[Lane, Pool] = {}
    copies: dict[Lane, CopyPool] = {}
    try:
        for lane, size in of.items():
            name = application if lane is Lane.WORK else f"{application} {lane}"
            least = 1 if lane is Lane.WORK else 0
            longest = None if lane is Lane.WORK else sizes.request_seconds
            pool = await connections.pool(dsn, least=least, size=size, application=name, longest=longest)
            lanes[lane] = Pool(pool, lane, size)
            if read_dsn and lane in (Lane.READER, Lane.ANONYMOUS):
                pool = await connections.pool(read_dsn, least=0, size=size, application=name, longest=longest)
                copies[lane] = CopyPool(Pool(pool, lane, size), lanes[lane], waits=lane is Lane.READER)
    except BaseException:
        Pools(lanes, copies).terminate()
        raise
    return Pools(lanes, copies)
