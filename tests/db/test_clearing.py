"""Datasets that a full-state load clears: what is stored, announced, and applied by consumers."""

from __future__ import annotations

import pytest

from fedstac import applying, publication
from fedstac.bootstrap import Node
from fedstac.db import feed, grant_rights, invariants
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain import events
from fedstac.domain.actions import Work
from fedstac.domain.actions.clear import Clear, Rebuild
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import Target
from fedstac.domain.model import Draft, Outcome, Receipt
from tests.db import writing
from tests.db.writing import ANNA

[ITEM] = sample.items(1)
DRAFT = writing.draft(ITEM)


def clear(draft: Draft) -> Clear:
    return Clear(Target(draft.collection, draft.id, draft.lineage), ANNA)


async def perform(node: Node, conn: Connection, *commands: Clear | Rebuild | Publish) -> list[Receipt]:
    return await publication.perform(conn, node.rules, [Work(each, ANNA.name, "load") for each in commands])


async def state(conn: Connection, id: str) -> tuple[str, bool, bool, int]:
    """Return the state, whether it has a document, whether searches find it, and how many the collection shows."""
    row = await conn.fetchrow(
        """SELECT r.state, r.document IS NOT NULL AS has_document, i.id IS NOT NULL AS is_found,
                  (SELECT sum(records) FROM fedstac.tally WHERE collection = r.collection)::int AS shown
           FROM fedstac.record r LEFT JOIN pgstac.items i ON i.collection = r.collection AND i.id = r.id
           WHERE r.id = $1""",
        id,
    )
    assert row is not None
    return tuple(row)


async def test_what_is_cleared_is_gone_and_may_come_again(west: Node, conn: Connection) -> None:
    await perform(west, conn, Publish(DRAFT, ANNA))
    assert await state(conn, DRAFT.id) == ("published", True, True, 1)
    await perform(west, conn, clear(DRAFT))
    assert await state(conn, DRAFT.id) == ("cleared", False, False, 0)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.file_reference") == 0
    await perform(west, conn, Publish(DRAFT, ANNA))
    assert await state(conn, DRAFT.id) == ("published", True, True, 1)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.file_reference") > 0


async def test_a_rebuild_is_two_events_in_one_transaction(west: Node, conn: Connection) -> None:
    await perform(west, conn, Publish(DRAFT, ANNA))
    [receipt] = await perform(west, conn, Rebuild(clear(DRAFT), Publish(DRAFT, ANNA)))
    assert receipt.outcome is Outcome.REBUILT
    assert await state(conn, DRAFT.id) == ("published", True, True, 1)
    types = await conn.fetch("SELECT type, seq, xid FROM fedstac.outbox WHERE dataset = $1 ORDER BY id", DRAFT.id)
    assert [(row["type"], row["seq"]) for row in types] == [
        (events.PUBLISHED, 1), (events.CLEARED, 2), (events.PUBLISHED, 3)
    ]  # fmt: skip
    assert types[1]["xid"] == types[2]["xid"]
    assert await conn.fetchval("SELECT count(*) FROM fedstac.file_reference") > 0
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
async def test_a_consumer_ends_as_its_origin_in_whatever_order_events_come(
    west: Node, conn: Connection, east: Connection, order: tuple[int, ...]
) -> None:
    await perform(west, conn, Publish(DRAFT, ANNA))
    await perform(west, conn, Rebuild(clear(DRAFT), Publish(DRAFT, ANNA)))
    await perform(west, conn, clear(DRAFT))
    await writing.sequence_all(conn)
    [*collections, first, second, third, fourth] = await writing.whole_feed(conn)
    async with east.transaction():
        await applying.apply(east, collections)
    for n in order:
        async with east.transaction():
            await applying.apply(east, [[first, second, third, fourth][n]])
    assert await writing.stored(east) == await writing.stored(conn)
    assert await writing.searched(east) == {}
    assert await feed.digests(east, "west") == await feed.digests(conn, "west")


async def test_readers_of_a_consumer_that_applies_both_events_together_never_miss_the_dataset(
    west: Node, conn: Connection, east: Connection
) -> None:
    await perform(west, conn, Publish(DRAFT, ANNA))
    await perform(west, conn, Rebuild(clear(DRAFT), Publish(DRAFT, ANNA)))
    await writing.sequence_all(conn)
    log = await writing.whole_feed(conn)
    for page in (log[:-2], log[-2:]):
        async with east.transaction():
            await applying.apply(east, page)
    assert await writing.searched(east) == {DRAFT.id: True}


async def test_grants_of_what_is_cleared_close_and_others_stay(west: Node, conn: Connection) -> None:
    drafts = [writing.draft(item) for item in sample.items(3, versions=1, seed=5)]
    await perform(west, conn, *(Publish(draft, ANNA) for draft in drafts))
    await conn.executemany(
        """INSERT INTO fedstac.access_grant (id, subject, collection, scope, target, valid_from, valid_until, given_at,
                                             given_by)
           VALUES (gen_random_uuid(), 'bert', 'CMIP6', 'dataset', $1, now() - interval '1 day',
                   now() + interval '1 day', now(), 'anna')""",
        [(draft.id,) for draft in drafts],
    )
    removed, rebuilt, kept = drafts
    await perform(west, conn, clear(removed), Rebuild(clear(rebuilt), Publish(rebuilt, ANNA)), Publish(kept, ANNA))
    keys = {("CMIP6", draft.id) for draft in drafts}
    assert await grant_rights.open_to(conn, "bert", keys) == {("CMIP6", kept.id)}
    closed = await conn.fetch("SELECT target FROM fedstac.access_grant WHERE closed_at IS NOT NULL")
    assert {row["target"] for row in closed} == {removed.id, rebuilt.id}
    announced = await conn.fetch("SELECT key FROM fedstac.outbox WHERE type = 'org.fedstac.grant.withdrawn.v1'")
    assert {row["key"] for row in announced} == {f"grant:dataset:CMIP6/{each.id}" for each in (removed, rebuilt)}
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []
