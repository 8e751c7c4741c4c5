"""Why work with the database failed: each class of errors by what it means."""

from __future__ import annotations

import asyncio
import errno
from contextlib import AsyncExitStack

import asyncpg
import pytest
from asyncpg.exceptions import _base

from fedstac.db.connections import Connection
from fedstac.runtime.causes import Cause, cause_of, was_ended_in_order
from tests.support.waiting import PATIENCE, until

REFUSED_BY_A_CHECK = asyncpg.CheckViolationError("no partition of relation found for row")
REFUSED_BY_A_CHECK.table_name = "outbox"
CAUSES = [
    (asyncpg.ConnectionDoesNotExistError("closed"), Cause.AWAY),
    (asyncpg.AdminShutdownError("terminating connection"), Cause.AWAY),
    (asyncpg.CannotConnectNowError("starting up"), Cause.AWAY),
    (asyncpg.TooManyConnectionsError("too many clients"), Cause.AWAY),
    (asyncpg.OutOfMemoryError("out of memory"), Cause.AWAY),
    (asyncpg.ReadOnlySQLTransactionError("read-only"), Cause.AWAY),
    (asyncpg.InternalClientError("got result for unknown protocol state 3"), Cause.AWAY),
    (asyncpg.exceptions.ProtocolError("unexpected"), Cause.AWAY),
    (asyncpg.InterfaceError("the underlying connection is closed"), Cause.AWAY),
    (asyncpg.InterfaceError("pool is closing"), Cause.AWAY),
    (asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), Cause.AWAY),
    (ConnectionResetError(errno.ECONNRESET, "reset"), Cause.AWAY),
    (FileNotFoundError(errno.ENOENT, "no socket of PostgreSQL"), Cause.AWAY),
    (TimeoutError(), Cause.AWAY),
    (asyncpg.SerializationError("could not serialize"), Cause.CONFLICT),
    (asyncpg.DeadlockDetectedError("deadlock"), Cause.CONFLICT),
    (asyncpg.LockNotAvailableError("lock timeout"), Cause.CONFLICT),
    (asyncpg.QueryCanceledError("statement timeout"), Cause.CONFLICT),
    (asyncpg.InvalidCachedStatementError("a migration changed the table"), Cause.CONFLICT),
    (asyncpg.UntranslatableCharacterError("NUL"), Cause.REFUSED),
    (asyncpg.NotNullViolationError("null"), Cause.REFUSED),
    (asyncpg.UniqueViolationError("twice"), Cause.OURS),
    (asyncpg.StatementTooComplexError("stack depth"), Cause.REFUSED),
    (_base.DataError("value out of int32 range"), Cause.REFUSED),
    (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogate"), Cause.REFUSED),
    (asyncpg.InsufficientPrivilegeError("permission denied"), Cause.OPERATORS),
    (asyncpg.DiskFullError("no space left on device"), Cause.OPERATORS),
    (asyncpg.ConfigurationLimitExceededError("temporary file size"), Cause.OPERATORS),
    (asyncpg.PostgresIOError("could not read block"), Cause.OPERATORS),
    (asyncpg.DataCorruptedError("invalid page"), Cause.OPERATORS),
    (asyncpg.IndexCorruptedError("index"), Cause.OPERATORS),
    (asyncpg.InvalidPasswordError("password"), Cause.OPERATORS),
    (asyncpg.InvalidCatalogNameError("no database"), Cause.OPERATORS),
    (REFUSED_BY_A_CHECK, Cause.OPERATORS),
    (asyncpg.UndefinedTableError("relation does not exist"), Cause.SCHEMA),
    (asyncpg.UndefinedColumnError("column does not exist"), Cause.SCHEMA),
    (asyncpg.UndefinedFunctionError("function does not exist"), Cause.SCHEMA),
    (asyncpg.InvalidSchemaNameError("schema does not exist"), Cause.SCHEMA),
    (asyncpg.InternalServerError("tuple concurrently updated"), Cause.OURS),
    (asyncpg.InterfaceError("the server expects 2 arguments for this query, 1 was passed"), Cause.OURS),
    (FileNotFoundError(errno.ENOENT, "no file", "/some/file"), Cause.OURS),
    (OSError(errno.ENOSPC, "no space for a file of ours"), Cause.OURS),
    (KeyError("x"), Cause.OURS),
]


@pytest.mark.parametrize(("error", "cause"), CAUSES, ids=lambda value: type(value).__name__)
def test_an_error_has_the_cause_that_it_means(error: Exception, cause: Cause) -> None:
    assert cause_of(error) is cause


@pytest.mark.parametrize("transactions", [0, 1, 2])
async def test_a_session_that_somebody_ended_is_told_from_one_that_vanished(
    conn: Connection, dsn: str, transactions: int
) -> None:
    """The driver and its transactions hide what PostgreSQL said, each behind an error of its own."""
    own = await asyncpg.connect(dsn)

    async def work() -> None:
        async with AsyncExitStack() as stack:
            for _ in range(transactions):
                await stack.enter_async_context(own.transaction())
            await own.execute(f"SELECT pg_sleep({PATIENCE})")

    working = asyncio.create_task(work())
    active = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'"
    await until(lambda: conn.fetchval(active, own.get_server_pid()))
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as raised:
        await working
    assert cause_of(raised.value) is Cause.AWAY
    assert was_ended_in_order(raised.value)
    assert not was_ended_in_order(asyncpg.ConnectionDoesNotExistError("closed"))
