"""Which version is latest at an index node (C1): the one that made the last claim, whatever came late or never."""

from __future__ import annotations

from fedstac import applying, publication
from fedstac.bootstrap import Node
from fedstac.db import invariants
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.actions import Work
from fedstac.domain.actions.retract import Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.events import Event
from tests.db import writing
from tests.db.writing import ANNA, Connect, Item

[ITEM] = sample.items(1)


async def deliver(conn: Connection, page: list[Event]) -> applying.PageResult:
    async with conn.transaction():
        return await applying.apply(conn, page)


async def retract(conn: Connection, item: Item) -> None:
    draft = writing.draft(item)
    target = Target(draft.collection, draft.id, draft.lineage)
    await publication.perform(conn, writing.RULES, [Work(Retract(target, ANNA, {"reason": "x"}), "anna", "retract")])


async def test_a_version_whose_demotion_is_missing_is_not_latest_when_the_newer_one_goes(
    east: Connection, west: Node, connect: Connect
) -> None:
    """The `superseded` of the first version is parked, and the second one is retracted."""
    origin = await connect()
    first, second = writing.version(ITEM, 20200101), writing.version(ITEM, 20210101)
    for item in (first, second):
        await writing.publish(origin, item)
    await retract(origin, second)
    await writing.sequence_all(origin)
    log = await writing.whole_feed(origin)
    collections_, [published, demoted, newer, retracted] = log[:2], log[2:]
    for page in (collections_, [published], [newer], [retracted]):
        assert (await deliver(east, page)).applied_count == len(page)
    assert await writing.searched(east) == {first["id"]: False, second["id"]: False}
    assert [broken for broken in await invariants.check(east) if broken.name == "I11"] == []
    await deliver(east, [demoted])
    assert await writing.stored(east) == await writing.stored(origin)


async def test_a_claim_counts_also_where_its_dataset_is_further(east: Connection, west: Node, connect: Connect) -> None:
    """From a topic with item ids as keys the retraction of the second version may come before its publication."""
    origin = await connect()
    first, second = writing.version(ITEM, 20200101), writing.version(ITEM, 20210101)
    for item in (first, second):
        await writing.publish(origin, item)
    await retract(origin, second)
    await writing.sequence_all(origin)
    log = await writing.whole_feed(origin)
    collections_, [published, _, newer, retracted] = log[:2], log[2:]
    await deliver(east, collections_)
    await deliver(east, [retracted])
    await deliver(east, [published])
    assert await writing.searched(east) == {first["id"]: True, second["id"]: False}
    assert (await deliver(east, [newer])).ignored_count == 1
    assert await writing.searched(east) == {first["id"]: False, second["id"]: False}
    assert [broken for broken in await invariants.check(east) if broken.name == "I11"] == []


async def test_a_log_that_is_told_anew_makes_its_claims_anew(east: Connection, west: Node, connect: Connect) -> None:
    origin = await connect()
    for day in (20200101, 20210101):
        await writing.publish(origin, writing.version(ITEM, day))
    await writing.sequence_all(origin)
    log = await writing.whole_feed(origin)
    await deliver(east, log)
    await applying.forget(east, "west", before_epoch=2**62)
    await deliver(east, log[:3])
    assert await writing.searched(east) == {writing.version(ITEM, 20200101)["id"]: True}
