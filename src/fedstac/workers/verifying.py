"""Verification: is what an index node has the same as what its origin has, by digest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedstac import applying
from fedstac.bootstrap import Node
from fedstac.db import audit, feed, nodes, parked, records
from fedstac.db.connections import Connection, Row
from fedstac.db.records import RecordPlace
from fedstac.domain import events
from fedstac.domain.events import Cursor, DatasetEvent
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import RawEvent
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.wakeup import Backoff
from fedstac.workers.index_node import IndexHandler
from fedstac.workers.pages import Page

AT_ONCE = 100  # datasets that are mended in one transaction; the origin takes no more ids
NOT_NOW = "it changed meanwhile, or its collection or lineage is another origin's; verify again"


@dataclass(frozen=True, slots=True)
class DatasetDifference:
    """One dataset on which a node and its origin do not agree."""

    collection: str
    id: str
    kind: str  # missing here, extra here, or different
    epoch: int = 0  # of the record here
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of comparing a node with an origin."""

    cursor: Cursor  # here, at the end
    compared: int  # datasets at the origin
    differences: Sequence[DatasetDifference]


async def verify(node: Node, origin: Origin, *, patience: float = 30.0) -> Comparison:
    """Compare every record's digest with the origin's.

    Buckets are compared by a fingerprint. Those that differ are compared again, record by record, once this node has
    what the origin had announced by then, so that what is merely on its way is no difference. A node that does not get
    there within `patience` seconds is compared as it is.
    """
    name, _ = await origin.head()
    _, rows_there = await origin.digests()
    there = {(row["collection"], row["bucket"]): (row["n"], row["digest"]) for row in rows_there}
    async with node.pool.acquire() as conn:
        rows_here = await feed.digests(conn, name)
        here = {(row["collection"], row["bucket"]): (row["n"], row["digest"]) for row in rows_here}
        differences: list[DatasetDifference] = []
        for collection, bucket in sorted(here.keys() | there.keys()):
            if here.get((collection, bucket)) == there.get((collection, bucket)):
                continue
            entries = await origin.bucket(collection, bucket)
            _, head = await origin.head()
            await _reach(conn, name, head, patience)
            candidates = _compare(collection, entries, await feed.bucket(conn, name, collection, bucket))
            news = {row["id"] for row in await origin.bucket(collection, bucket)} if candidates else set()
            differences += [each for each in candidates if each.kind != "extra here" or each.id not in news]
        progress = await nodes.progress(conn, nodes.INDEX, name)
    cursor = progress.cursor if progress else events.START
    return Comparison(cursor, sum(count for count, _ in there.values()), differences)


async def _reach(conn: Connection, origin: str, head: Cursor, patience: float) -> None:
    """Wait until everything up to a position is applied here."""
    deadline, backoff = time.monotonic() + patience, Backoff()
    while time.monotonic() < deadline:
        place = await nodes.progress(conn, nodes.INDEX, origin)
        if place and place.snapshot is None and place.cursor >= head:
            return
        await asyncio.sleep(backoff.pause())


def _compare(collection: str, entries: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[DatasetDifference]:
    """Return what differs in a bucket; a record that is newer here than in the origin's list is no difference."""
    there, here = {row["id"]: row for row in entries}, {row["id"]: row for row in rows}
    differences = [DatasetDifference(collection, item, "missing here") for item in sorted(there.keys() - here.keys())]
    differences += [
        DatasetDifference(collection, item, "extra here", here[item]["epoch"], here[item]["seq"])
        for item in sorted(here.keys() - there.keys())
    ]
    for item in sorted(there.keys() & here.keys()):
        if there[item]["digest"] != here[item]["digest"] and there[item]["seq"] >= here[item]["seq"]:
            differences.append(DatasetDifference(collection, item, "different", here[item]["epoch"], here[item]["seq"]))
    return differences


# --- repairing ---


@dataclass(frozen=True, slots=True)
class Repair:
    """What came of mending a difference; `reason` where it stays."""

    difference: DatasetDifference
    reason: str | None = None


async def repair(node: Node, origin: Origin, differences: Sequence[DatasetDifference]) -> list[Repair]:
    """Mend datasets of an index node by what the origin says of them now, a hundred at once. No snapshot is taken.

    A node that follows meanwhile is not disturbed: what it applied since is newer and stays.
    """
    handler = IndexHandler(node, origin)
    repairs: list[Repair] = []
    for collection in sorted({each.collection for each in differences}):
        own = [each for each in differences if each.collection == collection]
        for start in range(0, len(own), AT_ONCE):
            repairs += await _repair(node, origin, handler, own[start : start + AT_ONCE])
    return repairs


async def _repair(
    node: Node, origin: Origin, handler: IndexHandler, differences: Sequence[DatasetDifference]
) -> list[Repair]:
    collection = differences[0].collection
    state = await origin.current(collection, [each.id for each in differences])
    page = Page(state.origin, state.entries, state.cursor)
    reading = await handler.prepare(page)
    reasons = {_id_of(rejection.event): rejection.reason for rejection in reading.rejections}
    entries = [
        event for event in reading.values.values()
        if isinstance(event, DatasetEvent)
        and (event.record.origin, event.record.collection) == (state.origin, collection)
    ]  # fmt: skip
    present_ids = {_id_of(event) for event in state.entries}
    surplus = [
        RecordPlace(each.id, each.epoch, each.seq)
        for each in differences if each.kind == "extra here" and each.id not in present_ids
    ]  # fmt: skip
    async with node.pool.acquire() as conn, conn.transaction():
        keys = await records.lineages_of(conn, collection, [place.id for place in surplus])
        result = await applying.mend(
            conn, applying.RepairOrder(state.origin, collection, entries, surplus=surplus, lineages=keys)
        )
        await parked.unpark(conn, nodes.INDEX, state.origin, [
            parked.SubjectPlace(f"{collection}/{event.record.id}", event.record.epoch, event.record.seq)
            for event in entries if event.record.id in result.applied_ids
        ])  # fmt: skip
        row = audit.NewRow(
            actor=await audit.operator(conn), action="repair", collection=collection, dataset=state.origin,
            request=None, outcome="done", before=None, after=None, items=len(result.applied_ids | result.removed_ids),
        )  # fmt: skip
        await audit.append(conn, [row])
        failpoint("repair.written")
    mended_ids = result.applied_ids | result.removed_ids
    return [
        Repair(each, None if each.id in mended_ids else reasons.get(each.id, NOT_NOW)) for each in differences
    ]  # fmt: skip


def _id_of(event: RawEvent) -> str:
    data = event.get("data")
    return str(data.get("id")) if isinstance(data, dict) else ""
