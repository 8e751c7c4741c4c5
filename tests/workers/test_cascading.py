"""The deletion of a collection survives kill -9 between any two steps: each dataset is marked once, it ends once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.collection_writing import CollectionWriter
from fedstac.db import cascades, connections
from fedstac.db.cascades import CascadeOrder
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.actions import Work
from fedstac.domain.actions.delete import Delete
from fedstac.domain.actions.target import Target
from fedstac.domain.cascade import Cascade
from fedstac.domain.errors import CollectionClosing
from fedstac.domain.model import Outcome
from fedstac.workers import cascading
from tests.db import writing
from tests.db.writing import ANNA
from tests.support.failpoints import once_at
from tests.support.forking import shared
from tests.support.places import REPOSITORY

ITEMS = list(sample.items(110))
MARKED, DELETED = "org.fedstac.dataset.marked.v1", "org.fedstac.collection.deleted.v1"


@pytest.fixture
async def conn(node: Node, dsn: str) -> AsyncIterator[Connection]:
    """Of a node with datasets."""
    await writing.create_collections(node, "CMIP6")
    opened = await connections.connect(dsn)
    await writing.publish(opened, *ITEMS)
    yield opened
    await asyncio.wait_for(opened.close(), 10)


def writer(node: Node, conn: Connection) -> CollectionWriter:
    return CollectionWriter(conn, "west", "anna", node.collection_schema)


async def begin(node: Node, conn: Connection, *roles: str) -> Cascade:
    order = CascadeOrder("anna", roles or ("admin",), None, "the project has ended")
    return await writer(node, conn).begin_cascade("CMIP6", order, confirmed=len(ITEMS))


async def work(dsn: str, *words: str) -> list[int]:
    """Work in processes that are killed at failpoints; return how each ended."""
    process = await asyncio.create_subprocess_exec(
        *shared().program, "-m", "tests.support.cascade_process", dsn, *words, cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    stdout, _ = await process.communicate()
    return [int(line) for line in stdout.split(b"\n") if line.lstrip(b"-").isdigit()]


async def events_of(conn: Connection, type: str) -> list[dict[str, object]]:
    rows = await conn.fetch("SELECT event FROM fedstac.outbox WHERE type = $1 ORDER BY id", type)
    return [orjson.loads(row["event"]) for row in rows]


async def delete_all(conn: Connection) -> None:
    """Delete what is marked; everybody has done their part."""
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    rows = await conn.fetch("SELECT id, lineage FROM fedstac.record WHERE state = 'marked'")
    deletions = [
        Work(Delete(Target("CMIP6", row["id"], row["lineage"]), ANNA), ANNA.name, "delete") for row in rows
    ]  # fmt: skip
    receipts = await publication.perform(conn, writing.RULES, deletions)
    assert {receipt.outcome for receipt in receipts} == {Outcome.DELETED}


@pytest.mark.long
async def test_a_cascade_that_is_killed_again_and_again_marks_each_dataset_once(
    node: Node, conn: Connection, dsn: str
) -> None:
    cascade = await begin(node, conn)
    kills = (
        "perform.records=kill:2", "perform.events=kill", "cascade.marked=kill", "perform.finished=kill",
        "cascade.advanced=kill",
    )  # fmt: skip
    assert await work(dsn, *kills) == [-9] * len(kills)
    state = await cascades.newest(conn, "CMIP6")
    assert state is not None
    assert state.state == "marking"
    assert 0 < (await cascades.counts(conn, "CMIP6"))["marked"] < len(ITEMS)
    with pytest.raises(CollectionClosing, match=str(cascade.id)):
        await begin(node, conn)
    assert await work(dsn, "-") == [0]
    assert await cascades.counts(conn, "CMIP6") == {"marked": len(ITEMS)}
    marks = await events_of(conn, MARKED)
    assert Counter(event["subject"] for event in marks) == Counter(f"CMIP6/{item['id']}" for item in ITEMS)
    assert {event["causationid"] for event in marks} == {str(cascade.id)}
    entries = await conn.fetch("SELECT dataset, count(*) AS n FROM fedstac.deletion GROUP BY dataset")
    assert {row["dataset"]: row["n"] for row in entries} == {item["id"]: 1 for item in ITEMS}
    assert await writing.violations(conn) == []

    await delete_all(conn)
    await conn.execute("UPDATE fedstac.cascade SET next_at = clock_timestamp()")
    assert await work(dsn, "cascade.ending=kill") == [-9]
    assert await events_of(conn, DELETED) == []
    assert await work(dsn, "-", "-") == [0, 0]
    [end] = await events_of(conn, DELETED)
    assert end["causationid"] == str(cascade.id)
    assert await writing.violations(conn) == []


async def test_two_workers_do_not_mark_at_once(node: Node, conn: Connection, dsn: str) -> None:
    await begin(node, conn)
    async with cascades.leading(conn) as leads:
        assert leads
        async with node.pool.acquire() as other:
            assert not await cascading.step(node, other)
    assert (await cascades.counts(conn, "CMIP6")) == {"published": len(ITEMS)}


async def test_what_cannot_be_marked_is_counted_with_the_reason_and_tried_again(node: Node, conn: Connection) -> None:
    await begin(node, conn, "observer")
    while await cascading.step(node, conn):
        pass
    state = await cascades.newest(conn, "CMIP6")
    assert state is not None
    assert (state.state, state.refused) == ("waiting", len(ITEMS))
    assert state.refusal is not None
    assert "anna may not mark" in state.refusal
    assert await events_of(conn, MARKED) == []
    await conn.execute("UPDATE fedstac.cascade SET next_at = clock_timestamp(), roles = '{admin}'")
    while await cascading.step(node, conn):
        pass
    after = await cascades.newest(conn, "CMIP6")
    assert after == replace(state, refused=0, refusal=None)
    assert await cascades.counts(conn, "CMIP6") == {"marked": len(ITEMS)}


async def test_who_publishes_just_now_is_counted_or_refused(node: Node, conn: Connection, dsn: str) -> None:
    late, other = await connections.connect(dsn), await connections.connect(dsn)
    [new] = [item for item in sample.items(len(ITEMS) + 1) if item["id"] not in {each["id"] for each in ITEMS}][:1]
    try:
        await writing.prepare(late, new)
        transaction = late.transaction()
        await transaction.start()
        [receipt] = await writing.publish(late, new)
        assert receipt.problem is None
        begins = asyncio.create_task(begin(node, conn))
        await writing.is_blocked(other, conn, late)
        await transaction.commit()
        with pytest.raises(Exception, match=f"has {len(ITEMS) + 1} datasets, and {len(ITEMS)} were confirmed"):
            await begins
        order = CascadeOrder("anna", ("admin",), None, "over")
        await writer(node, conn).begin_cascade("CMIP6", order, confirmed=len(ITEMS) + 1)
        [receipt] = await writing.publish(late, writing.version(new, 20300101))
        assert isinstance(receipt.problem, CollectionClosing)
    finally:
        await late.close(timeout=10)
        await other.close(timeout=10)


async def test_a_collection_with_datasets_of_another_node_is_not_deleted(node: Node, conn: Connection) -> None:
    await conn.execute("UPDATE fedstac.record SET origin = 'east' WHERE id = $1", ITEMS[0]["id"])
    with pytest.raises(Exception, match="the node east has datasets in CMIP6"):
        await begin(node, conn)


async def test_a_part_that_a_cancel_overtakes_marks_nothing(node: Node, conn: Connection, dsn: str) -> None:
    """The answer to the cancel has come: the datasets that were chosen before stay as they are."""
    await begin(node, conn)

    async def cancel() -> None:
        other = await connections.connect(dsn)
        await writer(node, other).cancel_cascade("CMIP6")
        await other.close()

    with once_at("cascade.chosen", cancel):
        while await cascading.step(node, conn):
            pass
    state = await cascades.newest(conn, "CMIP6")
    assert state is not None
    assert state.state == "cancelled"
    assert await cascades.counts(conn, "CMIP6") == {"published": len(ITEMS)}
    assert await events_of(conn, MARKED) == []
    assert await writing.violations(conn) == []
