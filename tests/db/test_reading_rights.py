"""What subscribers get of datasets that are not open to everybody: by level, by grant, and as of now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import feed, grants, subscription_events
from fedstac.db.connections import Connection
from fedstac.db.subscription_events import MissedEvent
from fedstac.domain import events
from fedstac.domain import grants as grant_rules
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.delete import Delete
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.events import START
from fedstac.domain.grants import GrantScope, GrantTarget
from fedstac.domain.patching import MergePatch
from fedstac.domain.policy import Principal
from fedstac.domain.subscriptions import ChangeKind, Subscriber, SubscriptionFilter
from fedstac.workers import delivering, subscribing
from tests.db import writing
from tests.db.writing import ANNA

ALL = SubscriptionFilter.parse({})
HOLDER = Subscriber("holder", ALL, Principal("holder", frozenset(("member",))))
OTHER = Subscriber("other", ALL, Principal("other", frozenset(("member",))))
READERS = (Subscriber("anyone", ALL), HOLDER, OTHER, Subscriber("manager", ALL, ANNA))
SECRET = "https://secret.example/data.nc"


def thing(number: int, level: str | None) -> dict[str, Any]:
    item = writing.plain(number)
    properties = {**item["properties"], **({"fedstac:access": level} if level else {})}
    return {**item, "properties": properties, "bbox": [0, 0, 1, 1], "assets": {"data": {"href": SECRET}}}


async def change(conn: Connection, *commands: Command) -> None:
    receipts = await publication.perform(conn, writing.RULES, [Work(each, "anna", "change") for each in commands])
    assert [receipt.problem for receipt in receipts] == [None] * len(commands)


async def give(conn: Connection, item: dict[str, Any] | None, subject: str) -> None:
    """Give a grant of a dataset; without one, of the project."""
    now = datetime.now(UTC)
    await conn.execute(
        """INSERT INTO fedstac.access_grant (id, subject, collection, scope, target, valid_from, valid_until, given_at,
                                             given_by) VALUES ($1, $2, 'plain', $3, $4, $5, $6, $5, 'anna')""",
        uuid4(), subject, *(("dataset", item["id"]) if item else ("project", "")), now - timedelta(hours=1),
        now + timedelta(hours=1),
    )  # fmt: skip


def target(item: dict[str, Any]) -> Target:
    draft = writing.draft(item)
    return Target("plain", draft.id, draft.lineage)


async def deliveries(node: Node, conn: Connection) -> dict[str, list[tuple[str, ChangeKind, bool]]]:
    """Return what each reader gets of the whole log: the dataset, the kind, and whether the files are in it."""
    await feed.sequence(conn)
    page = await subscription_events.look(conn, START, {"plain"})
    logged = [event for event in page.events if event.dataset is not None]
    got = await delivering.deliveries(node, conn, logged, READERS)
    return {
        name: [(str(each.event.dataset), each.kind, SECRET in each.event.text) for each in own]
        for name, own in got.items()
    }


async def test_levels_decide_what_is_delivered_and_grants_open_it(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    opened, controlled, private = thing(1, None), thing(2, "controlled"), thing(3, "private")
    for item in (opened, controlled, private):
        await writing.publish(conn, item)
    await give(conn, controlled, "holder")
    await give(conn, private, "holder")
    got, entered = await deliveries(node, conn), ChangeKind.ENTERED
    of_everybody = [(opened["id"], entered, True), (controlled["id"], entered, False)]
    whole = [(each["id"], entered, True) for each in (opened, controlled, private)]
    assert got == {"anyone": of_everybody, "other": of_everybody, "holder": whole, "manager": whole}


async def test_what_is_hidden_by_now_is_not_delivered_from_the_time_when_it_was_not(
    node: Node, conn: Connection
) -> None:
    await writing.create_collections(node, "plain")
    closed, restricted, marked = thing(1, None), thing(2, None), thing(3, None)
    for item in (closed, restricted, marked):
        await writing.publish(conn, item)
    await change(
        conn, Amend(target(closed), ANNA, MergePatch({"properties": {"fedstac:access": "private"}}), None),
        Amend(target(restricted), ANNA, MergePatch({"properties": {"fedstac:access": "controlled"}}), None),
        Mark(target(marked), ANNA),
    )  # fmt: skip
    got = await deliveries(node, conn)
    assert got["anyone"] == got["other"] == [
        (restricted["id"], ChangeKind.ENTERED, False), (closed["id"], ChangeKind.LEFT, False),
        (restricted["id"], ChangeKind.CHANGED, False), (marked["id"], ChangeKind.LEFT, False),
    ]  # fmt: skip
    assert len(got["manager"]) == 6
    assert all(has_files for _, _, has_files in got["manager"])


async def test_who_had_a_private_dataset_by_a_grant_learns_that_it_is_gone(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    private = thing(1, "private")
    await writing.publish(conn, private)
    await give(conn, private, "holder")
    await change(conn, Retract(target(private), ANNA, {"reason": "wrong"}))
    got = await deliveries(node, conn)
    assert got["holder"] == [(private["id"], ChangeKind.LEFT, False)], "a retraction suspends the grant"
    assert got["anyone"] == got["other"] == []


async def test_who_had_a_private_dataset_by_a_grant_learns_of_its_deletion_though_the_log_lost_its_text(
    node: Node, conn: Connection
) -> None:
    await writing.create_collections(node, "plain")
    private = thing(1, "private")
    await writing.publish(conn, private)
    await give(conn, private, "holder")
    assert (await deliveries(node, conn))["holder"] == [(private["id"], ChangeKind.ENTERED, True)]
    await change(conn, Mark(target(private), ANNA))
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await change(conn, Delete(target(private), ANNA))
    got = await deliveries(node, conn)
    assert got["holder"] == [(private["id"], ChangeKind.LEFT, False)]
    assert got["anyone"] == got["other"] == []


async def test_a_private_dataset_leaves_whose_grant_ran_out(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    private = thing(1, "private")
    await writing.publish(conn, private)
    await give(conn, private, "holder")
    assert (await deliveries(node, conn))["holder"] == [(private["id"], ChangeKind.ENTERED, True)]
    await conn.execute("UPDATE fedstac.access_grant SET valid_until = clock_timestamp()")
    await change(conn, Amend(target(private), ANNA, MergePatch({"properties": {"title": "b"}}), None))
    assert (await deliveries(node, conn))["holder"] == [(private["id"], ChangeKind.LEFT, False)]
    await conn.execute("UPDATE fedstac.access_grant SET valid_until = valid_from + interval '1 second'")
    assert (await deliveries(node, conn))["holder"] == [], "it ran out before the dataset was there"


async def test_whose_grant_ended_is_told_nothing_of_what_came_later(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    earlier, later = thing(1, "private"), thing(2, "private")
    await writing.publish(conn, earlier)
    for subject, ending in (
        ("holder", "valid_until = clock_timestamp()"),
        ("other", "closed_at = clock_timestamp(), closed_by = 'anna', closed_why = 'over'"),
    ):
        await give(conn, None, subject)
        await conn.execute(f"UPDATE fedstac.access_grant SET {ending} WHERE subject = $1", subject)
    await writing.publish(conn, later)
    await change(conn, *(
        Amend(target(each), ANNA, MergePatch({"properties": {"title": "another"}}), None) for each in (earlier, later)
    ))  # fmt: skip
    got = await deliveries(node, conn)
    assert got["holder"] == got["other"] == [(earlier["id"], ChangeKind.LEFT, False)]


async def test_what_a_grant_opened_enters_though_it_was_there_before(node: Node, conn: Connection) -> None:
    """It was published before the grant was given; so its next event is no change of what the holder has."""
    await writing.create_collections(node, "plain")
    private = thing(1, "private")
    await writing.publish(conn, private)
    await give(conn, private, "holder")
    await conn.execute("UPDATE fedstac.access_grant SET valid_from = clock_timestamp()")
    for title in ("b", "c"):
        await change(conn, Amend(target(private), ANNA, MergePatch({"properties": {"title": title}}), None))
    kinds = [kind for _, kind, _ in (await deliveries(node, conn))["holder"]]
    assert kinds[1:] == [ChangeKind.ENTERED, ChangeKind.CHANGED]
    assert [kind for _, kind, _ in (await deliveries(node, conn))["manager"]][1:] == [ChangeKind.CHANGED] * 2


async def grant_events(node: Node, conn: Connection) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return what each reader gets of events about grants: the type's end, and the data."""
    await feed.sequence(conn)
    page = await subscription_events.look(conn, START, {"plain"})
    logged = [event for event in page.events if event.type.startswith(grant_rules.PREFIX)]
    got = await delivering.deliveries(node, conn, logged, READERS)
    return {
        name: [(each.event.type.split(".")[-2], orjson.loads(each.event.text)["data"]) for each in own]
        for name, own in got.items()
    }  # fmt: skip


@pytest.mark.parametrize("scope", GrantScope)
async def test_a_holder_learns_what_becomes_of_the_grants_of_a_target(
    node: Node, conn: Connection, scope: GrantScope
) -> None:
    """Suspended, restored, and withdrawn from all who have one; not by whom, nor how many others have one."""
    await writing.create_collections(node, "plain")
    private = thing(1, "private")
    await writing.publish(conn, private)
    names = {GrantScope.DATASET: private["id"], GrantScope.LINEAGE: target(private).lineage, GrantScope.PROJECT: ""}
    for subject in ("holder", "third"):
        await give(conn, private, subject)
    await conn.execute("UPDATE fedstac.access_grant SET scope = $1, target = $2", scope, names[scope])
    await change(conn, Retract(target(private), ANNA, {"reason": "wrong"}))
    await change(conn, Reinstate(target(private), ANNA))
    async with conn.transaction():
        await grants.withdraw_of_target(conn, GrantTarget("plain", scope, names[scope]), actor="anna", reason="over")
    got = await grant_events(node, conn)
    assert got["anyone"] == got["other"] == []
    assert [kind for kind, _ in got["manager"]] == ["suspended", "restored", "withdrawn"]
    assert [kind for kind, _ in got["holder"]] == ["suspended", "restored", "withdrawn"]
    for _, data in got["holder"]:
        assert not {"actor", "grants"} & data.keys()
        assert data["subject"] is None
    assert got["holder"][-1][1]["reason"] == "over"
    assert got["manager"][-1][1]["grants"] == 2


@pytest.mark.parametrize("event_type", [events.MARKED, events.UNMARKED])
def test_an_event_that_was_not_taken_tells_nothing_of_a_mark(event_type: str) -> None:
    now = datetime.now(UTC)
    missed = MissedEvent(1, 1, 7, "e", "plain/thing-1", "plain", "thing-1", event_type, 10, "no", now, None, now, now)
    assert subscribing.letter_of(missed)["type"] == events.UPDATED


async def test_an_event_of_a_private_dataset_says_its_level(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    await writing.publish(conn, thing(1, "private"))
    await feed.sequence(conn)
    page = await subscription_events.look(conn, START, {"plain"})
    [event] = [orjson.loads(each.text) for each in page.events if each.dataset is not None]
    assert event["data"]["access"] == "private"
    assert event["data"]["latest"] is False
