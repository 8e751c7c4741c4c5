"""Connections: the pool of a process, and sessions of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any, TypeAlias

import asyncpg
import stamina

from fedstac.runtime.causes import is_transient
from fedstac.runtime.outages import Outage

# asyncpg is generic to the type checker only
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Row = asyncpg.Record


class LazyConnection:
    """A connection for statements that maybe nobody sends: the first one takes it, and it is kept for the others."""

    def __init__(self, take: Callable[[], Awaitable[Connection]]) -> None:
        self._take = take
        self._conn: Connection | None = None

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[Row]:
        """Return the rows of a statement."""
        return await (await self._connection()).fetch(query, *args, timeout=timeout)

    async def fetchrow(self, query: str, *args: object, timeout: float | None = None) -> Row | None:
        """Return the first row of a statement."""
        return await (await self._connection()).fetchrow(query, *args, timeout=timeout)

    async def fetchval(self, query: str, *args: object, timeout: float | None = None) -> Any:
        """Return the first value of the first row of a statement."""
        return await (await self._connection()).fetchval(query, *args, timeout=timeout)

    async def _connection(self) -> Connection:
        if self._conn is None:
            self._conn = await self._take()
        return self._conn


Reader: TypeAlias = "Connection | LazyConnection"

# pgstac's functions need its schema on the path; parallel plans and jit cost more than they bring on these queries
SESSION = {
    "search_path": "pgstac, public",
    "timezone": "UTC",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "application_name": "fedstac",
    "fedstac.columns": "on",  # this code writes the rows of fedstac.facet; for others a trigger does (0035_columns.sql)
    "client_connection_check_interval": "2000",  # a statement ends when its process is gone
}
AWAY_SECONDS = 60.0
IDLE_SECONDS = 300.0  # between two statements of a transaction, after which PostgreSQL ends it
SERVER_GRACE = 2.0  # seconds by which PostgreSQL's own limit is longer than ours


async def pool(
    dsn: str, *, least: int = 1, size: int, application: str = "fedstac", longest: float | None = None
) -> Pool:
    """Open a pool on `dsn`, or on PGHOST and its like where that is empty. Wait a minute for a database that is away.

    `longest`: seconds after which PostgreSQL itself ends a statement, should this process fail to cancel it. A process
    that stands still in a transaction holds its rows for IDLE_SECONDS: then others go on.
    """
    settings = SESSION | {"application_name": application}
    settings["idle_in_transaction_session_timeout"] = str(int(IDLE_SECONDS * 1000))
    if longest is not None:
        settings["statement_timeout"] = str(int((longest + SERVER_GRACE) * 1000))
    outage = Outage("the database")

    def is_away(error: Exception) -> bool:
        if not is_transient(error) or isinstance(error, asyncpg.exceptions.ClientConfigurationError):
            return False
        outage.failed(error)
        return True

    async for attempt in stamina.retry_context(on=is_away, timeout=AWAY_SECONDS, attempts=None, wait_max=1.0):
        with attempt:
            opened = await asyncpg.create_pool(
                dsn or None,
                min_size=least,
                max_size=size,
                server_settings=settings,
                command_timeout=120,
                timeout=30,
                reset=_nothing_to_reset,
                # searches are literal text: what is kept of them is memory that callers choose
                statement_cache_size=300 if longest is None else 100,
                max_cacheable_statement_size=15 << 10 if longest is None else 4 << 10,
            )
            outage.ended()
            return opened
    raise AssertionError("the last attempt raises")


async def _nothing_to_reset(conn: object) -> None:
    """Leave a session as it is: the pool's have no listeners, no session settings and no session locks."""


async def connect(
    dsn: str, *, application: str = "fedstac", settings: Mapping[str, str] = MappingProxyType({})
) -> asyncpg.Connection[asyncpg.Record]:
    """Open a connection of its own, for locks that live as long as it does. `settings`: more, of PostgreSQL."""
    session = SESSION | {"application_name": application, **settings}
    return await asyncpg.connect(dsn or None, server_settings=session, timeout=30)


def is_open(conn: Connection) -> bool:
    """Return whether the session of a connection goes on.

    A pool takes a connection back whose session has ended. It raises an error then, whatever it is asked.
    """
    try:
        return not conn.is_closed()
    except asyncpg.InterfaceError:
        return False


def on_end(conn: Connection, call: Callable[[], object]) -> None:
    """Call something when a connection ends, whoever ends it: what it locked is free then."""

    def ended(_: Connection) -> None:
        call()

    conn.add_termination_listener(ended)


@asynccontextmanager
async def leading(conn: Connection, lock: int) -> AsyncIterator[bool]:
    """Yield whether this session has an advisory lock, which nobody else gets until the end of the context.

    A session that may have it longer is ended: one of a pool lives on, and nobody would lead any more.
    """
    with _ending_if_unclear(conn):
        is_leader = bool(await conn.fetchval("SELECT pg_try_advisory_lock($1)", lock))
    try:
        yield is_leader
    finally:
        if is_leader and is_open(conn):
            with _ending_if_unclear(conn):
                await conn.execute("SELECT pg_advisory_unlock($1)", lock)


@contextmanager
def _ending_if_unclear(conn: Connection) -> Iterator[None]:
    """End a session whose statement was cancelled or failed: what it has locked is not known."""
    try:
        yield
    except BaseException:
        if is_open(conn):
            conn.terminate()
        raise
