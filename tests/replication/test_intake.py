"""What a node stores of a page of events, and what later events and policies make of it, on PostgreSQL."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping

import orjson
import pytest

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import files, orders
from fedstac.db.replica.datasets import DatasetKey, NewestEvent
from fedstac.domain.replication.dataset_files import digest_of, files_of, total_bytes
from fedstac.domain.replication.policy import ReplicaAction, ReplicaDecision
from fedstac.domain.replication.reacting import EventState
from fedstac.replication import intake

WANTED = ReplicaDecision(ReplicaAction.REPLICATE, "all")
UNWANTED = ReplicaDecision(ReplicaAction.IGNORE, "none")


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    opened = await connections.connect(dsn, application="fedstac test")
    yield opened
    await asyncio.wait_for(opened.close(), 10)


def event(
    id: str, files: Mapping[str, str], *, seq: int = 1, state: EventState = EventState.PUBLISHED, mirror: str = ""
) -> NewestEvent:
    """Return an event of a dataset with these files: the content of each by its path. mirror: whose copies it has."""
    assets = {
        f"asset{n}": {
            "href": f"https://west.example/{path}", "file:local_path": path, "file:size": len(content),
            "file:checksum": "1220" + hashlib.sha256(content.encode()).hexdigest(),
            **({"alternate": {mirror: {"href": f"https://{mirror}.example/{path}"}}} if mirror else {}),
        } for n, (path, content) in enumerate(files.items())
    }  # fmt: skip
    document = {"id": id, "collection": "CMIP6", "properties": {}, "assets": assets}
    own = files_of(document)
    return NewestEvent(
        DatasetKey("CMIP6", id), "west", id, 1, seq, seq, f"{id}-{seq}", state, True, None,
        orjson.dumps(document).decode(), total_bytes(own), len(own), digest_of(own),
    )  # fmt: skip


async def take(conn: Connection, *events: NewestEvent, decision: ReplicaDecision = WANTED) -> None:
    async with conn.transaction():
        await intake.take(conn, [intake.judge(each, decision) for each in events], policy_digest="1")


async def reconsider(conn: Connection, newest: NewestEvent, decision: ReplicaDecision) -> None:
    async with conn.transaction():
        await intake.reconsider(conn, [intake.judge(newest, decision)], policy_digest="2")


async def bring(conn: Connection, id: str, *, state: str = "announced") -> None:
    """Let the files of a dataset be here."""
    async with conn.transaction():
        n = await conn.fetchval("SELECT n FROM fedstac.replica_dataset WHERE id = $1", id)
        await conn.execute("UPDATE fedstac.replica_file SET state = 'verified' WHERE n = $1", n)
        await conn.execute(
            """UPDATE fedstac.replica_dataset SET state = $2,
                      announced_digest = CASE WHEN $2 = 'announced' THEN files_digest END WHERE n = $1""",
            n, state,
        )  # fmt: skip


async def state_of(conn: Connection, id: str) -> tuple[str, str]:
    row = await conn.fetchrow("SELECT state, reason FROM fedstac.replica_dataset WHERE id = $1", id)
    assert row is not None
    return row["state"], row["reason"]


async def files_here(conn: Connection, id: str) -> list[tuple[str, str]]:
    """Return path and state of each file of a dataset."""
    rows = await conn.fetch(
        """SELECT path, f.state FROM fedstac.replica_file f JOIN fedstac.replica_dataset USING (n) WHERE id = $1
           ORDER BY asset""",
        id,
    )
    return [tuple(row) for row in rows]


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
