"""What a node stores of a page of events, and what later events and policies make of it, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import files, orders
from fedstac.domain.replication.dataset_files import files_of
from tests.replication.dataset_events import bring, event, files_here, state_of, take


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    opened = await connections.connect(dsn, application="fedstac test")
    yield opened
    await asyncio.wait_for(opened.close(), 10)


# --- paths ---


async def test_of_two_datasets_of_one_page_with_the_same_path_and_other_bytes_the_second_is_parked(
    conn: Connection,
) -> None:
    await take(conn, event("a", {"data/x.nc": "one"}), event("b", {"data/x.nc": "two", "data/y.nc": "y"}),
               event("c", {"data/x.nc": "one"}))  # fmt: skip
    assert await files_here(conn, "a") == [("data/x.nc", "queued")]
    assert await files_here(conn, "b") == [("", "failed"), ("data/y.nc", "queued")]
    assert await files_here(conn, "c") == [("data/x.nc", "queued")]
    assert await state_of(conn, "a") == ("queued", "")
    assert await state_of(conn, "b") == ("parked", "asset0: data/x.nc is another file here, of CMIP6/a")


async def retry_all(conn: Connection) -> None:
    await orders.retry(conn, [row["n"] for row in await conn.fetch("SELECT n FROM fedstac.replica_dataset")], actor="a")


async def test_a_file_without_a_path_says_why_after_a_retry_and_has_one_when_its_path_is_free(conn: Connection) -> None:
    await take(conn, event("a", {"data/x.nc": "one"}), event("b", {"data/x.nc": "two"}))
    await retry_all(conn)
    assert await files_here(conn, "b") == [("", "failed")]
    assert await state_of(conn, "b") == ("parked", "asset0: data/x.nc is another file here, of CMIP6/a")
    await conn.execute("DELETE FROM fedstac.replica_dataset WHERE id = 'a'")
    await retry_all(conn)
    assert await files_here(conn, "b") == [("data/x.nc", "queued")]
    assert await state_of(conn, "b") == ("queued", "")


async def test_a_retry_never_gives_a_replaced_file_the_path_of_another_datasets_file(conn: Connection) -> None:
    await take(conn, event("a", {"data/x.nc": "one"}), event("b", {"data/x.nc": "one"}))
    await bring(conn, "b")
    await take(conn, event("a", {"data/x.nc": "two"}, seq=2), event("c", {"data/z.nc": "z"}))
    async with conn.transaction():  # as a transfer that is over, or a removal, does
        n = await conn.fetchval("SELECT n FROM fedstac.replica_dataset WHERE id = 'a'")
        replaced = files_of(orjson.loads(event("a", {"data/x.nc": "two"}).document or ""))
        await files.plan(conn, [files.FilePlan(n, "", replaced)])
        await conn.execute("UPDATE fedstac.replica_dataset SET state = 'parked' WHERE n = $1", n)
    for _ in range(2):
        assert await files_here(conn, "a") == [("", "failed")]
        await retry_all(conn)
    assert await files_here(conn, "b") == [("data/x.nc", "verified")]
    assert await state_of(conn, "a") == ("parked", "asset0: data/x.nc is another file here, of CMIP6/b")
