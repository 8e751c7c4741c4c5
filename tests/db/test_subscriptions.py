"""The log as subscriptions read it, and what is stored of what was not taken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import feed, grants, subscription_events, subscriptions
from fedstac.db.connections import Connection
from fedstac.db.grants import NewGrant
from fedstac.db.subscription_events import Postponement
from fedstac.db.subscriptions import NewSubscription
from fedstac.domain import events
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import CursorGone, TooManyRequests
from fedstac.domain.events import START, Cursor, LoggedEvent
from fedstac.domain.grants import GIVEN, GrantScope, GrantTarget
from fedstac.domain.patching import MergePatch
from fedstac.domain.policy import Principal
from fedstac.domain.subscriptions import ChangeKind, Subscriber, SubscriptionFilter
from fedstac.workers import delivering, subscribing
from fedstac.workers.subscribing import SubscriptionWish
from tests.db import writing
from tests.db.writing import ANNA

STRANGER = Subscriber("stranger", SubscriptionFilter.parse({}))
TITLED_A = Subscriber("titled", SubscriptionFilter.parse({"cql2": "title = 'a'"}))
MANAGER = Subscriber("manager", SubscriptionFilter.parse({}), ANNA)


def thing(number: int, title: str) -> dict[str, Any]:
    return {**writing.plain(number, title), "bbox": [number, number, number, number]}


async def make_log(node: Node, conn: Connection) -> None:
    """Publish two datasets, change the title of one, and mark it."""
    await writing.create_collections(node, "plain")
    await writing.publish(conn, thing(1, "a"))
    await writing.publish(conn, thing(2, "b"))
    draft = writing.draft(thing(1, "a"))
    target = Target("plain", draft.id, draft.lineage)
    changes: list[Command] = [Amend(target, ANNA, MergePatch({"properties": {"title": "b"}}), None), Mark(target, ANNA)]
    receipts = await publication.perform(conn, writing.RULES, [Work(change, "anna", "change") for change in changes])
    assert [receipt.problem for receipt in receipts] == [None, None]
    await feed.sequence(conn)


async def test_each_subscriber_gets_what_fits_and_what_they_may_see(node: Node, conn: Connection) -> None:
    await make_log(node, conn)
    page = await subscription_events.look(conn, START, {"plain"})
    assert [event.cursor.pos for event in page.events] == [1, 2, 3, 4, 5]
    got = await delivering.deliveries(node, conn, page.events, [STRANGER, TITLED_A, MANAGER])
    changes = {name: [(each.event.cursor.pos, each.kind) for each in own] for name, own in got.items()}
    entered, changed, departed = ChangeKind.ENTERED, ChangeKind.CHANGED, ChangeKind.LEFT
    assert changes["stranger"] == [(1, changed), (3, entered), (5, departed)], "it is hidden by now"
    assert changes["titled"] == [(1, changed), (4, departed)]
    assert changes["manager"] == [(1, changed), (2, entered), (3, entered), (4, changed), (5, changed)]


async def test_the_same_subscription_that_is_put_twice_at_once_is_one(west: Node, connect: writing.Connect) -> None:
    first, second, watcher = await connect(), await connect(), await connect()
    wish = SubscriptionWish(name="mine")
    async with first.transaction():
        one = await subscribing.put(west, first, wish, caller=ANNA)
        again = asyncio.create_task(subscribing.put(west, second, wish, caller=ANNA))
        await writing.is_blocked(watcher, second, first)
    other = await again
    assert (one.is_new, other.is_new) == (True, False)
    assert other.subscription.secret == one.subscription.secret


async def test_nobody_has_too_many_subscriptions_by_asking_for_several_at_once(
    west: Node, connect: writing.Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "MOST_OF_OWNER", 2)
    connections = [await connect() for _ in range(6)]
    outcomes = await asyncio.gather(*(
        subscribing.put(west, conn, SubscriptionWish(name=f"mine-{n}"), caller=ANNA)
        for n, conn in enumerate(connections)
    ), return_exceptions=True)  # fmt: skip
    assert sum(isinstance(each, TooManyRequests) for each in outcomes) == 4, outcomes
    assert await connections[0].fetchval("SELECT count(*) FROM fedstac.subscription") == 2


async def test_the_event_before_is_looked_up_where_it_is_not_in_the_page(node: Node, conn: Connection) -> None:
    await make_log(node, conn)
    page = await subscription_events.look(conn, Cursor(1, 3), None)
    previous = await subscription_events.previous_events(conn, page.events)
    places = {pos: event.cursor.pos if event else None for pos, event in previous.items()}
    assert places == {4: 2, 5: 4}
    beginning = await subscription_events.look(conn, START, None, 2)
    assert await subscription_events.previous_events(conn, beginning.events) == {2: None}


async def test_a_page_whose_datasets_were_large_before_is_read_in_pieces(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_log(node, conn)
    draft = writing.draft(thing(2, "b"))
    change = Amend(Target("plain", draft.id, draft.lineage), ANNA, MergePatch({"properties": {"title": "a"}}), None)
    await publication.perform(conn, writing.RULES, [Work(change, "anna", "change")])
    await feed.sequence(conn)
    page = (await subscription_events.look(conn, Cursor(1, 3), None)).events
    readers = [STRANGER, TITLED_A, MANAGER]
    whole = await delivering.deliveries(node, conn, page, readers)
    assert {
        pos: event.cursor.pos for pos, event in (await subscription_events.previous_events(conn, page)).items() if event
    } == {4: 2, 5: 4, 6: 3}
    monkeypatch.setattr(subscription_events, "PREVIOUS_BYTES", 1)
    assert set(await subscription_events.previous_events(conn, page)) == {4, 5}
    assert await delivering.deliveries(node, conn, page, readers) == whole
    assert [each.event.cursor.pos for each in whole["titled"]] == [4, 6]


async def test_what_retention_takes_during_a_look_is_not_passed_over(
    node: Node, conn: Connection, administrator: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_log(node, conn)
    resume = feed.resume

    async def resume_and_forget(conn: Connection, after: Cursor) -> Cursor:
        cursor = await resume(conn, after)
        await administrator.execute("UPDATE fedstac.forgotten SET pos = 3")
        await administrator.execute("DELETE FROM fedstac.feed WHERE pos <= 3")
        return cursor

    monkeypatch.setattr(feed, "resume", resume_and_forget)
    with pytest.raises(CursorGone):
        await subscription_events.look(conn, Cursor(1, 1), None)


async def test_a_look_passes_over_what_is_of_other_collections(node: Node, conn: Connection) -> None:
    await make_log(node, conn)
    page = await subscription_events.look(conn, START, {"CMIP6"})
    assert (page.events, page.through.pos) == ([], 5)
    cut = await subscription_events.look(conn, START, {"plain"}, 2)
    assert ([event.cursor.pos for event in cut.events], cut.through.pos) == ([1, 2], 2)


async def test_later_events_of_a_dataset_wait_behind_the_one_that_was_not_taken(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_log(node, conn)
    new = NewSubscription(
        name="s", owner=ANNA, delivery="pull", url=None, format="cloudevents", key_template="",
        filter="{}", batch=10, after=START,
    )  # fmt: skip
    await subscriptions.put(conn, new, actor="anna")
    page = (await subscription_events.look(conn, START, None)).events
    _, first, other, second, _ = page
    await subscription_events.postpone(
        conn, "s", [Postponement(first, "broken", 0), Postponement(second, "", 0, attempts=0)]
    )
    blocked = await subscription_events.held_back(conn, "s", page)
    assert blocked.positions == {2, 4}
    assert blocked.datasets == {("plain", "thing-1")}
    assert other.dataset == "thing-2"
    await subscription_events.postpone(conn, "s", [Postponement(page[0], "broken", 60)])
    blocked = await subscription_events.held_back(conn, "s", page)
    assert ("plain", None) in blocked.datasets, "the collection's events too"
    await subscription_events.settle(conn, "s", [1])
    assert [each.pos for each in await subscription_events.due(conn, "s", 10)] == [2]
    await subscription_events.postpone(conn, "s", [Postponement(first, "broken", 60)])
    assert await subscription_events.due(conn, "s", 10) == []
    await subscription_events.bury(conn, [("s", 2)], "broken for good")
    assert [each.pos for each in await subscription_events.due(conn, "s", 10)] == [4]  # nothing waits behind the dead
    [letter] = await subscription_events.dead_letters(conn, "s", after=0, limit=10)
    assert (letter.pos, letter.attempts, letter.reason) == (2, 2, "broken for good")
    assert await subscription_events.has_waiting(conn, "s", 1)
    assert not await subscription_events.has_waiting(conn, "s", 2)
    monkeypatch.setattr(subscription_events, "MOST_DEAD_LETTERS", 2)
    await subscription_events.postpone(conn, "s", [Postponement(event, "no", None) for event in (second, other)])
    letters = await subscription_events.dead_letters(conn, "s", after=0, limit=10)
    assert [each.pos for each in letters] == [4, 3], "the oldest went"


async def test_a_private_dataset_is_there_for_whom_a_grant_names_and_leaves_with_it(
    node: Node, conn: Connection
) -> None:
    await writing.create_collections(node, "plain")
    private = thing(1, "a")
    private["properties"]["fedstac:access"] = "private"
    await writing.publish(conn, private)
    target = GrantTarget("plain", GrantScope.DATASET, "thing-1")
    until = datetime.now(UTC) + timedelta(days=1)
    async with conn.transaction():
        [given] = await grants.give(conn, [NewGrant("holder", target, None, until)], actor="anna")
    await feed.sequence(conn)
    holder = Subscriber("holder", SubscriptionFilter.parse({}), Principal("holder", frozenset()))
    page = (await subscription_events.look(conn, START, {"plain"})).events

    async def kinds(page: Sequence[LoggedEvent]) -> dict[str, list[tuple[int, str]]]:
        got = await delivering.deliveries(node, conn, page, [STRANGER, holder])
        return {
            name: [(each.event.cursor.pos, each.kind) for each in own if each.event.dataset]
            for name, own in got.items()
        }

    assert await kinds(page) == {"stranger": [], "holder": [(2, "entered")]}
    got = await delivering.deliveries(node, conn, page, [STRANGER, holder])
    assert [each.event.type for each in got["holder"]][-1] == GIVEN
    assert [each.event.type for each in got["stranger"]] == [events.COLLECTION_CREATED]
    async with conn.transaction():
        await grants.withdraw(conn, [given.grant.id], actor="anna", reason="it has ended")
    draft = writing.draft(thing(1, "a"))
    change = Amend(Target("plain", draft.id, draft.lineage), ANNA, MergePatch({"properties": {"title": "b"}}), None)
    [receipt] = await publication.perform(conn, writing.RULES, [Work(change, "anna", "change")])
    assert receipt.problem is None
    await feed.sequence(conn)
    page = (await subscription_events.look(conn, Cursor(1, 3), {"plain"})).events
    assert await kinds(page) == {"stranger": [], "holder": [(page[-1].cursor.pos, "left")]}
