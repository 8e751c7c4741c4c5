"""Verification: is what an index node has the same as what its origin has, by digest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedstac.bootstrap import Node
from fedstac.db import feed, nodes
from fedstac.db.connections import Connection, Row
from fedstac.domain import events
from fedstac.domain.events import Cursor
from fedstac.messaging.origin import Origin
from fedstac.runtime.wakeup import Backoff


@dataclass(frozen=True, slots=True)
class DatasetDifference:
    """One dataset on which a node and its origin do not agree."""

    collection: str
    id: str
    kind: str  # missing here, extra here, or different


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
        if place and place.snapshot is None and (place.cursor.epoch, place.cursor.pos) >= (head.epoch, head.pos):
            return
        await asyncio.sleep(backoff.pause())


def _compare(collection: str, entries: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[DatasetDifference]:
    """Return what differs in a bucket; a record that is newer here than in the origin's list is no difference."""
    there, here = {row["id"]: row for row in entries}, {row["id"]: row for row in rows}
    differences = [DatasetDifference(collection, item, "missing here") for item in sorted(there.keys() - here.keys())]
    differences += [DatasetDifference(collection, item, "extra here") for item in sorted(here.keys() - there.keys())]
    for item in sorted(there.keys() & here.keys()):
        if there[item]["digest"] != here[item]["digest"] and there[item]["seq"] >= here[item]["seq"]:
            differences.append(DatasetDifference(collection, item, "different"))
    return differences
