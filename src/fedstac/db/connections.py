"""Connections: the pool of a process, and which failures are worth another try."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

import asyncpg
import stamina

from fedstac.runtime.outages import Outage

# asyncpg is generic to the type checker only
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Row = asyncpg.Record

# pgstac's functions need its schema on the path; parallel plans and jit cost more than they bring on these queries
SESSION = {
    "search_path": "pgstac, public",
    "timezone": "UTC",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "application_name": "fedstac",
    "client_connection_check_interval": "2000",  # a statement ends when its process is gone
}
# SQLSTATE: rollback, resources, intervention, connection; locks, input and output, read-only; schema and grants
TRANSIENT_CLASSES = ("40", "53", "57", "08", "55", "58", "25", "42")
AWAY_SECONDS = 60.0
SERVER_GRACE = 2.0  # seconds by which PostgreSQL's own limit is longer than ours
REFUSED_CLASSES = ("22", "23", "54")  # data exception, integrity constraint, program limit: the item itself


async def pool(
    dsn: str, *, least: int = 1, size: int, application: str = "fedstac", longest: float | None = None
) -> Pool:
    """A pool on `dsn`, or on PGHOST and its like where that is empty. Waits a minute for a database that is away.

    longest: seconds after which PostgreSQL itself ends a statement, should this process fail to cancel it.
    """
    settings = SESSION | {"application_name": application}
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
                statement_cache_size=300,  # searches are literal text, and must not push out the statements of writes
            )
            outage.ended()
            return opened
    raise AssertionError("the last attempt raises")


async def _nothing_to_reset(conn: object) -> None:
    """Sessions are left as they were found: no listeners, no session settings, no session locks from the pool."""


async def connect(dsn: str, *, application: str = "fedstac") -> asyncpg.Connection[asyncpg.Record]:
    """A connection of its own, for locks that live as long as it does."""
    return await asyncpg.connect(dsn or None, server_settings=SESSION | {"application_name": application}, timeout=30)


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed when it is tried again."""
    if isinstance(error, asyncpg.PostgresError):
        return _lacks_partition(error) or (error.sqlstate or "").startswith(TRANSIENT_CLASSES)
    return isinstance(error, (OSError, asyncpg.InterfaceError, asyncio.TimeoutError))


def is_refusal(error: BaseException) -> bool:
    """Whether the database refused the data itself."""
    if isinstance(error, asyncpg.PostgresError):
        return not _lacks_partition(error) and (error.sqlstate or "").startswith(REFUSED_CLASSES)
    return isinstance(error, UnicodeEncodeError)  # COPY raises what it cannot encode as it is


def was_ended_in_order(error: BaseException) -> bool:
    """Whether PostgreSQL said itself that it ends the session: somebody asked it to, and no statement is to blame."""
    return isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "").startswith("57P")


def _lacks_partition(error: asyncpg.PostgresError) -> bool:
    """Our fault, not the item's: nobody made partitions of the outbox ahead."""
    return isinstance(error, asyncpg.CheckViolationError) and getattr(error, "table_name", None) == "outbox"
