"""The connections of a process, in lanes: what fills one of them does not hold up the others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import asyncpg
import structlog

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.domain.errors import Unavailable
from fedstac.runtime import budget
from fedstac.runtime.budget import Lane

# PostgreSQL shares processors evenly: with more connections than these, searches take them from publishing
FOR_READERS = max(2, min(8, os.cpu_count() or 2))
WAITING_PER_CONNECTION = 100  # requests of a lane that may wait for a connection, for each that it has
WAIT_SECONDS = 5.0  # that a request of a lane waits for a connection
RELEASE_SECONDS = 1.0  # that PostgreSQL has to confirm a cancelled statement, before its connection is cut
BUSY: Mapping[Lane, str] = {
    Lane.HEALTH: "many ask for the health of this node at once; try again",
    Lane.WORK: "many requests are being stored; try again in a moment",
    Lane.READER: "many searches of callers with a token are under way; try again in a moment",
    Lane.ANONYMOUS: "many searches are under way; try again in a moment, or send a token",
}
log = structlog.get_logger()


class Pool:
    """The connections of one lane. Requests that would wait too long are refused; background parts wait."""

    def __init__(self, pool: connections.Pool, lane: Lane, size: int) -> None:
        self._pool = pool
        self._lane = lane
        self.size = size
        self._most_users = size * (1 + WAITING_PER_CONNECTION)
        self._users = 0  # that hold a connection or wait for one

    @property
    def users(self) -> int:
        """Return how many have a connection or wait for one."""
        return self._users

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """Yield a connection. Unavailable where too many requests wait already, or this one waited too long."""
        request = budget.current()
        if request is not None and self._users >= self._most_users:
            raise self._busy()
        self._users += 1
        try:
            conn = await self._take(patient=request is None)
            keep = request.on_overrun(conn.terminate) if request else None
            try:
                yield conn
            finally:
                await self._give_back(conn)
                if keep:
                    keep()
        finally:
            self._users -= 1

    async def _take(self, *, patient: bool) -> asyncpg.pool.PoolConnectionProxy[asyncpg.Record]:
        if patient:
            return await self._pool.acquire()
        try:
            async with asyncio.timeout(WAIT_SECONDS) as waiting:
                return await self._pool.acquire()
        except TimeoutError:
            if waiting.expired():
                raise self._busy() from None
            raise

    async def _give_back(self, conn: asyncpg.pool.PoolConnectionProxy[asyncpg.Record]) -> None:
        """Release a connection, and never raise: the work has its result, and asyncpg replaces a broken connection."""
        try:
            await self._pool.release(conn, timeout=RELEASE_SECONDS)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("a connection is replaced", lane=self._lane, error=type(error).__name__)

    def _busy(self) -> Unavailable:
        return Unavailable(BUSY[self._lane], retry_after=2)

    def terminate(self) -> None:
        self._pool.terminate()


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

    @property
    def work(self) -> Pool:
        """For writes and background parts."""
        return self.lanes[Lane.WORK]

    def current(self) -> Pool:
        """Return the pool of whoever is working."""
        return self.lanes[budget.lane()]

    def by_name(self) -> list[tuple[str, Pool]]:
        """Return the name and the pool of each lane."""
        return [(str(lane), pool) for lane, pool in self.lanes.items()]

    def terminate(self) -> None:
        for pool in self.lanes.values():
            pool.terminate()


async def open_pools(dsn: str, sizes: Sizes, *, application: str) -> Pools:
    """Open the pools of all lanes. Wait a minute for a database that is away."""
    of = {
        Lane.WORK: sizes.pool_size,
        Lane.READER: sizes.reader_pool_size or FOR_READERS,
        Lane.ANONYMOUS: sizes.anonymous_pool_size or FOR_READERS,
        Lane.HEALTH: 1,
    }
    lanes: dict[Lane, Pool] = {}
    try:
        for lane, size in of.items():
            name = application if lane is Lane.WORK else f"{application} {lane}"
            least = 1 if lane is Lane.WORK else 0
            longest = None if lane is Lane.WORK else sizes.request_seconds
            pool = await connections.pool(dsn, least=least, size=size, application=name, longest=longest)
            lanes[lane] = Pool(pool, lane, size)
    except BaseException:
        Pools(lanes).terminate()
        raise
    return Pools(lanes)
