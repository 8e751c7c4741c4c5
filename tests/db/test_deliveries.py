"""Generated deliveries at an index node: duplicates, reordering, splits and rewinds end in the same state.

A log of publications, new versions, retractions and their undoing is delivered in ways that seeds draw, each way
in a transaction that is rolled back. After every page no lineage has two latest (I11), and none that was demoted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from fedstac import applying, publication
from fedstac.bootstrap import Node
from fedstac.db import nodes
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.actions import Work
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.events import Cursor, DatasetEvent, Event
from tests.db import writing
from tests.db.writing import ANNA, Connect, Item

SEED = 20270
LINEAGES, VERSIONS = 3, (20200101, 20210101, 20220101)
TWO_LATEST = "SELECT lineage FROM fedstac.record WHERE latest GROUP BY 1 HAVING count(*) > 1"


async def log_of(conn: Connection) -> list[Event]:
    """Return the log of a few lineages, each with versions that come, go and come back."""
    chance = random.Random(SEED)
    items = [dict(item) for item in sample.items(LINEAGES, versions=1)]
    for day in VERSIONS:
        for item in items:
            await writing.publish(conn, writing.version(item, day))
    for _ in range(12):
        item = writing.version(chance.choice(items), chance.choice(VERSIONS))
        undo = chance.random() < 0.4
        await publication.perform(conn, writing.RULES, [change_of(item, undo=undo)])
        if chance.random() < 0.3:
            await writing.publish(conn, writing.titled(item, f"title {chance.random()}"))
    await writing.sequence_all(conn)
    return await writing.whole_feed(conn)


def change_of(item: Item, *, undo: bool) -> Work:
    draft = writing.draft(item)
    target = Target(draft.collection, draft.id, draft.lineage)
    command = Reinstate(target, ANNA) if undo else Retract(target, ANNA, {"reason": "x"})
    return Work(command, "anna", "reinstate" if undo else "retract")


def delivery(datasets: list[Event], chance: random.Random) -> Iterator[list[Event]]:
    """Yield pages: the log cut anywhere, pages again, rewinds, and in half of the cases the events in any order."""
    events = list(datasets)
    if chance.random() < 0.5:
        chance.shuffle(events)
    at = 0
    while at < len(events):
        size = chance.choice((1, 2, 5, 13, 40))
        page = events[at : at + size]
        if chance.random() < 0.3:
            page = [*page, *chance.choices(events, k=3)]
        yield page
        at = max(at + size - chance.choice((0, 0, 0, 1, 7)), 0) if size > 7 else at + size
    yield chance.choices(events, k=5)


async def deliver_in_many_ways(
    east: Connection, log: list[Event], wanted: dict[str, tuple[str, bool]], ways: int
) -> int:
    """Deliver the log in so many ways; return how many events that were."""
    datasets: list[Event] = [event for event in log if isinstance(event, DatasetEvent)]
    async with east.transaction():
        await applying.apply(east, [event for event in log if not isinstance(event, DatasetEvent)])
    await nodes.move(east, nodes.INDEX, "west", Cursor(1, len(log)))
    count = 0
    for seed in range(SEED, SEED + ways):
        chance = random.Random(seed)
        delivered_events: list[Event] = []
        trial = east.transaction()
        await trial.start()
        for page in delivery(datasets, chance):
            await applying.apply(east, page)
            delivered_events += page
            count += len(page)
            assert await east.fetch(TWO_LATEST) == [], f"seed {seed}"
            if chance.random() < 0.1:
                assert await writing.stored(east) == writing.fold(delivered_events), f"seed {seed}"
        assert await writing.stored(east) == wanted, f"seed {seed}"
        await trial.rollback()
    return count


async def test_two_thousand_generated_deliveries_end_in_the_same_state(
    west: Node, east: Connection, connect: Connect
) -> None:
    conn = await connect()
    log = await log_of(conn)
    assert await deliver_in_many_ways(east, log, await writing.stored(conn), 70) > 2000


@pytest.mark.soak
async def test_a_hundred_thousand_generated_deliveries_end_in_the_same_state(
    west: Node, east: Connection, connect: Connect
) -> None:
    conn = await connect()
    log = await log_of(conn)
    count = await deliver_in_many_ways(east, log, await writing.stored(conn), 3500)
    print(f"{count} deliveries")
    assert count > 100_000
