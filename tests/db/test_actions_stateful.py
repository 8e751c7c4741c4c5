"""20 000 random actions by random principals keep the invariants (I1 to I16), and repeat, restore, refuse as promised.

FEDSTAC_TEST_SEED replays a walk (each prints its own), FEDSTAC_TEST_STEPS says how many steps it has.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable

import pytest

from fedstac import bootstrap, publication
from fedstac.bootstrap import Node
from fedstac.db import feed, invariants, nodes, records
from fedstac.db.connections import Connection
from fedstac.domain.events import Cursor, DatasetEvent, Event
from fedstac.domain.model import Outcome, Record
from fedstac.settings import Settings
from tests.db import writing
from tests.db.walking import Step, Walk
from tests.db.writing import Connect

SEED = int(os.environ.get("FEDSTAC_TEST_SEED") or random.randrange(1_000_000))
STEPS = int(os.environ.get("FEDSTAC_TEST_STEPS") or 20_000)
CHECKED_EVERY = 2_500  # steps: the invariants over all, and the index's database
SIZES = (1, 1, 2, 5, 20, 60, 60)


@pytest.fixture
async def east(make_database: Callable[[], str]) -> AsyncIterator[Connection]:
    """The database of an index node that follows west."""
    config = Settings(dsn=make_database(), node="east", _env_file=None)
    async with bootstrap.node(config) as running, running.pool.acquire() as conn:
        yield conn


async def test_random_actions_by_random_principals(west: Node, connect: Connect, east: Connection) -> None:
    print(f"FEDSTAC_TEST_SEED={SEED}")
    conn, chance = await connect(), random.Random(SEED)
    walk, steps, checked, last, told = Walk(chance), 0, 0, 0, 0
    last = await conn.fetchval("SELECT max(id) FROM fedstac.outbox")
    while steps < STEPS:
        batch = walk.batch(chance.choice(SIZES))
        if chance.random() < 0.03:
            await publication.rehearse(conn, await writing.world(conn), [step.work for step in batch])
            assert await stored(conn) == walk.records
        last = await perform(conn, walk, batch, last)
        steps += len(batch)
        if steps - checked >= CHECKED_EVERY or steps >= STEPS:
            checked = steps
            await writing.sequence_all(conn)
            told = await follow(conn, east, chance, told)
            await compare(conn, east, walk)
    print(steps, dict(walk.outcomes), dict(walk.refusals))
    if steps >= 5_000:
        assert set(walk.outcomes) == set(Outcome) - {Outcome.FAILED}


async def perform(conn: Connection, walk: Walk, batch: list[Step], last: int) -> int:
    """One batch, and what is stored after it: exactly what the receipts say, and an event for each change."""
    receipts = await publication.perform(conn, await writing.world(conn), [step.work for step in batch])
    changes = walk.follow(batch, receipts)
    assert await stored(conn) == walk.records
    rows = await conn.fetch(
        """SELECT id, event_id, key, collection, dataset, seq, type, digest, event FROM fedstac.outbox
           WHERE id > $1 ORDER BY id""",
        last,
    )
    assert len(rows) == len(changes)
    for row, (step, change) in zip(rows, changes, strict=True):
        walk.check_event(row, step, change)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.lineage") >= len(walk.seqs)
    return int(rows[-1]["id"]) if rows else last


async def stored(conn: Connection) -> dict[str, Record]:
    rows = await conn.fetch(f"SELECT {records.COLUMNS}, document FROM fedstac.record")
    return {row["id"]: records.from_row(row) for row in rows}


async def follow(conn: Connection, east: Connection, chance: random.Random, told: int) -> int:
    """Delivers what is new to the index node, in pages that overlap and are out of order; what is told by then."""
    log = await writing.whole_feed(conn)
    fresh = log[max(0, told - 50) :]
    collections = [event for event in fresh if not isinstance(event, DatasetEvent)]
    datasets: list[Event] = [event for event in fresh if isinstance(event, DatasetEvent)]
    pages = [collections, *(datasets[at : at + 150] for at in range(0, len(datasets), 100))]
    for page in pages:
        chance.shuffle(page)
        async with east.transaction():
            await publication.apply(east, page)
    await nodes.move(east, "west", Cursor(1, len(log)))
    return len(log)


async def compare(conn: Connection, east: Connection, walk: Walk) -> None:
    log = await writing.whole_feed(conn)
    assert await writing.stored(conn) == writing.fold(log)
    assert await stored(east) == await stored(conn)
    assert await writing.searched(east) == await writing.searched(conn)
    assert await feed.digests(east, "west") == await feed.digests(conn, "west")
    assert await invariants.check(conn) == []
    assert await invariants.check(east) == []
    for key in walk.seqs:
        assert sum(record.latest for record in walk.records.values() if record.lineage == key) <= 1
