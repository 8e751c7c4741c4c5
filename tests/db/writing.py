"""What the tests of the write path share: datasets, commands, writers, and the feed folded by hand.

`python -m tests.db.writing <dsn> <seed> <number> <batches>` is one writer in a process of its own.
"""

from __future__ import annotations

import asyncio
import copy
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import orjson

from fedstac import collection_writing, publication
from fedstac.bootstrap import Node
from fedstac.db import connections, facets, feed, invariants, requests
from fedstac.db.connections import Connection
from fedstac.db.invariants import Violation
from fedstac.demo import sample
from fedstac.domain import documents, events
from fedstac.domain.actions import Work
from fedstac.domain.actions.publish import Publish
from fedstac.domain.documents import ItemTexts
from fedstac.domain.events import Cursor, DatasetEvent, Event
from fedstac.domain.model import NO_CLAIM, Draft, LatestClaim, Receipt
from fedstac.domain.policy import Policy, Principal
from fedstac.domain.vocabulary import DatasetName, name_of
from fedstac.publication import NodeRules
from fedstac.vocabularies.checker import open_checker
from tests.support.waiting import PATIENCE

Item = dict[str, Any]
Connect = Callable[[], Any]  # opens a connection of the test's own
CHECKER = open_checker()
CMIP6 = CHECKER.vocabularies.current("CMIP6")
ANNA = Principal("anna", frozenset({"admin"}))
BATCH = 200


def titled(item: Item, title: str) -> Item:
    """Return the same version with the same files and another description."""
    changed = copy.deepcopy(item)
    changed["properties"]["description"] = title
    return changed


def version(item: Item, day: int) -> Item:
    """Return another version of the dataset, with files of its own."""
    changed = copy.deepcopy(item)
    changed["id"] = f"{item['id'].rpartition('.v')[0]}.v{day}"
    for asset in changed["assets"].values():
        if "file:checksum" in asset:
            asset["file:checksum"] = f"1220{day:064}"
    return changed


def plain(number: int, title: str = "") -> Item:
    """Return an item of a collection without a vocabulary."""
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": f"thing-{number}", "collection": "plain",
        "geometry": {"type": "Point", "coordinates": [number % 180, number % 90]},
        "properties": {"datetime": "2020-01-01T00:00:00Z", "title": title}, "links": [], "assets": {},
    }  # fmt: skip


def draft(item: Item) -> Draft:
    vocabulary = CHECKER.vocabularies.current(item["collection"])
    name = name_of(item["collection"], item["id"], vocabulary)
    assert isinstance(name, DatasetName)
    return documents.prepare(item, name, vocabulary)


def work(*items: Item | Draft, principal: Principal = ANNA) -> list[Work]:
    drafts = [item if isinstance(item, Draft) else draft(item) for item in items]
    return [Work(Publish(one, principal), principal.name, "publish") for one in drafts]


RULES = NodeRules("west", CHECKER, Policy(), CHECKER.vocabularies)


async def publish(conn: Connection, *items: Item | Draft) -> list[Receipt]:
    return await publication.perform(conn, RULES, work(*items))


async def prepare(conn: Connection, *items: Item) -> None:
    """Make the codes of documents, as a worker does before the transaction that publishes them.

    Whoever publishes in a transaction that stays open makes others wait for new codes otherwise.
    """
    await facets.prepare(conn, [draft(item) for item in items])


async def create_collections(node: Node, *names: str) -> None:
    async with node.pool.acquire() as conn:
        for name in names:
            writer = collection_writing.CollectionWriter(conn, node.settings.node, "anna", node.collection_schema)
            await writer.create(sample.collection(name))


async def submit(conn: Connection, *items: Item) -> requests.NewRequest:
    """Accept a batch as the API does; the workers find it in the queue."""
    drafts = [draft(item) for item in items]
    new = [
        requests.NewItem(d.lineage, d.id, ItemTexts(orjson.dumps(i).decode()))
        for d, i in zip(drafts, items, strict=True)
    ]
    collection = items[0]["collection"]
    vocabulary = CHECKER.vocabularies.current(collection)
    version = vocabulary.version if vocabulary else None
    accepted = requests.NewRequest(uuid4(), collection, "publish", "anna", ("admin",), None, "test", version, new)
    async with conn.transaction():
        await requests.create(conn, [accepted])
    return accepted


async def write(dsn: str, seed: int, number: int, batches: int) -> list[Receipt]:
    """Write as writer `number` of this seed: batches over shared lineages, versions and titles in disorder."""
    chance = random.Random(f"{seed}/{number}")
    universe = list(sample.items(600, versions=4, seed=seed))
    conn = await connections.connect(dsn)
    try:
        receipts: list[Receipt] = []
        for _ in range(batches):
            items = [
                plain(chance.randrange(150))
                if chance.random() < 0.2
                else titled(item, f"title {chance.randrange(3)}")
                if chance.random() < 0.2
                else item
                for item in chance.choices(universe, k=BATCH)
            ]
            receipts += await publish(conn, *items)
        return receipts
    finally:
        await conn.close(timeout=PATIENCE)


async def sequence_all(conn: Connection) -> None:
    while await feed.sequence(conn):
        continue


async def violations(conn: Connection) -> list[Violation]:
    """Return what contradicts the invariants, where no sequencer runs.

    An event may wait a minute for its position. Processes that are started one after the other take longer at times.
    """
    await sequence_all(conn)
    return await invariants.check(conn)


async def whole_feed(conn: Connection) -> list[Event]:
    """Return every event as a consumer reads it."""
    head = await feed.head(conn)
    entries = await feed.page(conn, 0, 1_000_000)
    while entries and (more := await feed.page(conn, entries[-1].pos, 1_000_000)):
        entries += more
    assert [entry.pos for entry in entries] == list(range(1, head.pos + 1))
    texts = [events.positioned(entry.event, Cursor(head.epoch, entry.pos)) for entry in entries]
    return [events.read(orjson.loads(text), CMIP6) for text in texts]


def fold(log: Sequence[Event]) -> dict[str, tuple[str, bool]]:
    """Return digest and latest of each dataset: its last event; of a lineage the one that made the last claim (C1)."""
    last: dict[str, DatasetEvent] = {}
    claims: dict[str, LatestClaim] = {}
    for event in log:
        if isinstance(event, DatasetEvent):
            record = event.record
            last[record.id] = max(
                last.get(record.id, event), event, key=lambda each: (each.record.epoch, each.record.seq)
            )
            claims[record.lineage] = max(claims.get(record.lineage, NO_CLAIM), record.claim or NO_CLAIM)
    return {
        name: (event.record.digest.hex(), event.record.claim == claims[event.record.lineage])
        for name, event in last.items()
    }


async def stored(conn: Connection) -> dict[str, tuple[str, bool]]:
    """Return digest and latest of each record."""
    rows = await conn.fetch("SELECT id, encode(digest, 'hex') AS digest, latest FROM fedstac.record")
    return {row["id"]: (row["digest"], row["latest"]) for row in rows}


async def searched(conn: Connection) -> dict[str, bool]:
    """Return latest of each dataset that search finds."""
    rows = await conn.fetch("SELECT id, content->'properties'->>'latest' AS latest FROM pgstac.items")
    return {row["id"]: row["latest"] == "true" for row in rows}


async def until(conn: Connection, query: str, *values: object) -> None:
    """Wait until a query gives true."""
    deadline = time.monotonic() + PATIENCE
    while not await conn.fetchval(query, *values):
        assert time.monotonic() < deadline, f"waited in vain for: {query}"
        await asyncio.sleep(0.005)


async def is_blocked(watcher: Connection, blocked: Connection, by: Connection) -> None:
    """Wait until one connection waits for a lock of another."""
    await until(watcher, "SELECT $1 = ANY (pg_blocking_pids($2))", by.get_server_pid(), blocked.get_server_pid())


async def main(dsn: str, seed: str, number: str, batches: str) -> None:
    receipts = await write(dsn, int(seed), int(number), int(batches))
    print(len(receipts), sum(len(receipt.changes) for receipt in receipts))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
