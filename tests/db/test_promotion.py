"""`promote_previous` in the database: the version before is announced whole, and is the latest at every node."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import orjson
import pytest

from fedstac import applying, publication
from fedstac.bootstrap import Node
from fedstac.db import invariants, records
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.events import DatasetEvent, Event
from fedstac.domain.model import Outcome, Record
from fedstac.domain.patching import JsonPatch
from fedstac.domain.policy import Policy
from tests.db import writing
from tests.db.writing import ANNA, Connect, version

[ITEM] = sample.items(1, seed=3)
OLD, NEW = (version(dict(ITEM), day) for day in (20200101, 20210101))


def retract(item: writing.Item) -> Work:
    return Work(Retract(target_of(item), ANNA, {"reason": "wrong units"}), "anna", "retract")


def target_of(item: writing.Item) -> Target:
    made = writing.draft(item)
    return Target("CMIP6", made.id, made.lineage)


async def latest_of(conn: Connection) -> dict[str, bool]:
    rows = await conn.fetch(f"SELECT {records.COLUMNS}, document FROM fedstac.record")
    stored = [records.from_row(row) for row in rows]
    assert all(isinstance(record, Record) and record.document for record in stored)
    return {record.id: record.latest for record in stored}


async def test_the_version_before_is_latest_again_everywhere(west: Node, east: Connection, connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, OLD, NEW)
    rules = replace(writing.RULES, policy=Policy(promoting=frozenset({"CMIP6"})))

    decision = await publication.preview(conn, rules, retract(NEW).command)
    assert [change.after.id for change in decision.changes] == [NEW["id"], OLD["id"]]
    [receipt] = await publication.perform(conn, rules, [retract(NEW)])
    assert receipt.outcome is Outcome.RETRACTED
    assert await latest_of(conn) == {OLD["id"]: True, NEW["id"]: False}

    events = await conn.fetchval(
        "SELECT event FROM fedstac.outbox WHERE dataset = $1 ORDER BY id DESC LIMIT 1", OLD["id"]
    )
    assert orjson.loads(events)["data"]["document"]["id"] == OLD["id"]
    await writing.sequence_all(conn)
    async with east.transaction():
        await applying.apply(east, await writing.whole_feed(conn))
    assert await latest_of(east) == await latest_of(conn)
    assert await writing.searched(east) == await writing.searched(conn)

    again = Work(Reinstate(target_of(NEW), ANNA), "anna", "reinstate")
    await publication.perform(conn, rules, [again])
    assert await latest_of(conn) == {OLD["id"]: False, NEW["id"]: True}


# --- whatever comes in one batch, and however the policy changes between ---

DAYS = (20200101, 20210101, 20220101, 20230101)
TOGETHER, APART = list(sample.items(2, versions=1, seed=4))
GIVE_UP = JsonPatch([{"op": "add", "path": "/properties/latest", "value": False}])


def step(item: writing.Item, action: str) -> Work:
    """Return the command; an older dataset with the same description is the same."""
    target = target_of(item)
    commands: dict[str, Callable[[], Command]] = {
        "publish": lambda: writing.work(item)[0].command,
        "update": lambda: writing.work(writing.titled(item, "another"))[0].command,
        "retract": lambda: Retract(target, ANNA, {"reason": "wrong units"}),
        "reinstate": lambda: Reinstate(target, ANNA),
        "mark": lambda: Mark(target, ANNA),
        "unmark": lambda: Unmark(target, ANNA),
        "give up": lambda: Amend(target, ANNA, GIVE_UP, "6.2.60.0"),
    }
    return Work(commands[action](), "anna", action)


async def states(conn: Connection, item: writing.Item) -> list[tuple[object, ...]]:
    """Return what is stored of the item's versions, and what search shows of them; times and numbers aside."""
    rows = await conn.fetch(
        """SELECT r.version, r.state, r.latest, r.claims_latest, r.superseded, r.retraction, r.document::jsonb - 'id',
                  i.content->'properties'->'latest', i.content->'properties'->'description'
           FROM fedstac.record r LEFT JOIN pgstac.items i ON i.id = r.id AND i.collection = r.collection
           WHERE r.lineage = $1 ORDER BY r.version""",
        target_of(item).lineage,
    )
    return [tuple(row)[:6] + tuple(row)[7:] for row in rows]


@pytest.mark.parametrize("seed", range(6))
async def test_a_batch_does_what_its_steps_do_one_by_one_and_any_order_of_events_gives_the_same(
    seed: int, west: Node, east: Connection, connect: Connect
) -> None:
    conn, chance = await connect(), random.Random(seed)
    actions = {"publish": 2, "update": 2, "retract": 6, "reinstate": 6, "mark": 3, "unmark": 6, "give up": 0.1}
    rules = writing.RULES
    for _ in range(40):
        if chance.random() < 0.3:  # switched on or off between two batches
            rules = replace(rules, policy=Policy(promoting=chance.choice((frozenset({"CMIP6"}), frozenset()))))
        steps = chance.choices(list(actions), list(actions.values()), k=chance.randint(1, 8))
        steps_by_day = [(chance.choice(DAYS), act) for act in steps]
        receipts = await publication.perform(
            conn, rules, [step(version(TOGETHER, day), act) for day, act in steps_by_day]
        )
        alone = [
            receipt for day, act in steps_by_day
            for receipt in await publication.perform(conn, rules, [step(version(APART, day), act)])
        ]  # fmt: skip
        assert [receipt.outcome for receipt in receipts] == [receipt.outcome for receipt in alone], steps_by_day
        assert await states(conn, TOGETHER) == await states(conn, APART), steps_by_day
    assert await invariants.check(conn) == []
    await writing.sequence_all(conn)
    log = await writing.whole_feed(conn)
    datasets = [event for event in log if isinstance(event, DatasetEvent)]
    page: list[Event] = [*datasets, *chance.sample(datasets, len(datasets) // 3)]
    chance.shuffle(page)
    async with east.transaction():
        await applying.apply(east, [event for event in log if not isinstance(event, DatasetEvent)])
    while page:
        size = chance.choice((1, 3, 40))
        async with east.transaction():
            await applying.apply(east, page[:size])
        page = page[size:]
    assert await writing.stored(east) == await writing.stored(conn)
    assert await writing.searched(east) == await writing.searched(conn)
