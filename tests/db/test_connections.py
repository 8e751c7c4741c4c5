"""The pool of a process that stands still in a transaction."""

from __future__ import annotations

import asyncpg
import pytest

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.runtime.causes import is_transient
from tests.support.waiting import until


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
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)) as raised:
            await own.execute("SELECT 1")
        assert is_transient(raised.value)
        await pool.release(own)
        assert await pool.fetchval("SELECT 1") == 1
    finally:
        pool.terminate()
