"""People who leave a project, or leave for good: what closes, what stays, all of it in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.collection_writing import CollectionWriter
from fedstac.db import (
    audit,
    bulks,
    cascades,
    connections,
    invariants,
    loads,
    notifications,
    own_groups,
    people,
    queue,
    requests,
    subscriptions,
)
from fedstac.db.bulks import Bulk, BulkResult
from fedstac.db.cascades import CascadeOrder
from fedstac.db.connections import Connection
from fedstac.db.loads import NewLoad
from fedstac.db.own_groups import GroupRole
from fedstac.db.people import PersonalData, PersonalGroup
from fedstac.db.requests import NewItem, NewRequest
from fedstac.db.subscriptions import NewSubscription
from fedstac.demo import embedded, sample
from fedstac.domain.bulk import read_wish
from fedstac.domain.documents import ItemTexts
from fedstac.domain.events import START
from fedstac.domain.groups import Identity
from fedstac.domain.model import Outcome
from fedstac.domain.policy import DELETION_MANAGER, Principal
from fedstac.domain.reconcile import LoadMode
from fedstac.publication import ClaimLost
from fedstac.runtime import failpoints
from fedstac.workers import bulk_changes, cascading, publisher
from fedstac.workers.bulk_changes import BulkRequest
from tests.db import writing
from tests.support.databases import name_in

ANNA = Identity("https://aai.example/x", "anna-1", "Anna", "anna@example.org", "", frozenset(), (), frozenset())
BERT = replace(ANNA, subject="bert-1", name="Bert", email="bert@example.org")
ITEMS = list(sample.items(3))


@pytest.fixture
async def conn(node: Node, dsn: str) -> AsyncIterator[Connection]:
    await writing.create_collections(node, "CMIP6")
    opened = await connections.connect(dsn)
    yield opened
    await asyncio.wait_for(opened.close(), 10)


@pytest.fixture
async def deleter(conn: Connection, cluster: embedded.Cluster, dsn: str) -> AsyncIterator[Connection]:
    """Somebody who may erase people, and see nothing else."""
    opened = await connections.connect(cluster.dsn(name_in(dsn), user="fedstac_deleter"))
    yield opened
    await asyncio.wait_for(opened.close(), 10)


@pytest.fixture
async def anna(conn: Connection) -> str:
    """The pseudonym of somebody with groups, destinations, results that they wait for, a session and datasets."""
    who, other = await people.pseudonym(conn, ANNA), await people.pseudonym(conn, BERT)
    for name, project in (("six", "CMIP6"), ("five", "CMIP5"), ("every", "*")):
        await own_groups.create(conn, name, project, "NCAR", "", "admin")
        await own_groups.add(conn, name, who, GroupRole.MEMBER, "admin")
        await own_groups.add(conn, name, other, GroupRole.MEMBER, "admin")
    await own_groups.add(conn, "six", who, GroupRole.MANAGER, "admin")
    publisher = Principal(who, frozenset({"admin"}))
    await publication.perform(conn, writing.RULES, writing.work(*ITEMS, principal=publisher))
    for owner, address in ((who, "mailto:anna@example.org"), (other, "mailto:bert@example.org")):
        destination, _ = await notifications.register(conn, owner, address, ["dataset"], confirmed=True)
        request = await writing.submit(conn, *ITEMS)
        await notifications.wish(conn, request.id, destination.id)
        await notifications.wish(conn, uuid4(), destination.id)  # of a request that never came
        await notifications.tell(conn, destination.id, "test", ["test"])
    await conn.execute(
        """INSERT INTO fedstac.console_session (id, sealed, actor, ends_at)
           VALUES (sha256('a'), 'x', $1, clock_timestamp() + interval '1 day')""",
        who,
    )
    return who


async def rows_of(conn: Connection) -> dict[str, list[Any]]:
    """Return the tables that the departure of a person may touch."""
    tables = ("own_group_person", "destination", "awaited", "notification", "console_session", "person", "record")
    return {
        table: await conn.fetch(f"SELECT t::text FROM fedstac.{table} t ORDER BY 1") for table in (*tables, "audit")
    }


async def test_who_leaves_a_project_leaves_its_groups_and_waits_for_nothing_of_it(
    conn: Connection, deleter: Connection, anna: str
) -> None:
    before = await rows_of(conn)
    shown = await people.leave(deleter, anna, "CMIP6", dry_run=True)
    assert shown.groups == (PersonalGroup("six", "CMIP6", "manager"), PersonalGroup("six", "CMIP6", "member"))
    assert (shown.awaited, shown.datasets, shown.destinations, shown.mapping) == (1, len(ITEMS), 0, False)
    assert await rows_of(conn) == before
    assert await people.leave(deleter, anna, "CMIP6") == shown
    groups = await own_groups.every(conn, of=anna)
    assert [group.name for group in groups] == ["every", "five"]
    assert await conn.fetchval("SELECT count(*) FROM fedstac.awaited") == 3
    assert len(await notifications.destinations(conn, anna)) == 1
    assert await people.pseudonym(conn, ANNA) == anna
    rows = [row async for row in audit.rows(conn, audit.RowFilter(limit=3))]
    assert {(row.action, row.collection, row.dataset) for row in rows} == {
        ("leave-project", "CMIP6", anna), ("remove-member", "CMIP6", f"group/six/{anna}"),
        ("remove-manager", "CMIP6", f"group/six/{anna}"),
    }  # fmt: skip
    assert {row.actor for row in rows} == {"database:fedstac_deleter"}
    after = await rows_of(conn)
    again = await people.leave(deleter, anna, "CMIP6")
    assert (again.is_empty, again.datasets) == (True, len(ITEMS))
    assert await rows_of(conn) == after


async def test_who_is_erased_follows_nothing_any_more(conn: Connection, deleter: Connection, anna: str) -> None:
    for name in ("hers", "others"):
        owner = Principal(anna if name == "hers" else "somebody", frozenset())
        new = NewSubscription(
            name=name, owner=owner, delivery="pull", url=None, format="cloudevents", key_template="", filter="{}",
            batch=1, after=START,
        )  # fmt: skip
        await subscriptions.put(conn, new, actor=owner.name)
    assert (await people.leave(deleter, anna, "CMIP6", dry_run=True)).subscriptions == 0
    shown = await people.erase(deleter, anna, dry_run=True)
    assert (shown.subscriptions, shown.as_json()["closes"]["subscriptions"]) == (1, 1)
    assert await people.erase(deleter, anna) == shown
    assert [each.name for each in await subscriptions.every(conn, owner=None, after="", limit=10)] == ["others"]
    rows = [row async for row in audit.rows(conn, audit.RowFilter(dataset="subscription/hers"))]
    acts = {(row.actor, row.action) for row in rows}
    assert acts == {(anna, "add-subscription"), ("database:fedstac_deleter", "remove-subscription")}
    assert (await people.erase(deleter, anna)).is_empty


@pytest.mark.parametrize("project", ["CMIP6", None])
async def test_loads_of_who_leaves_are_cancelled_unless_they_are_applied(
    conn: Connection, deleter: Connection, anna: str, project: str | None
) -> None:
    ids = {"hers": uuid4(), "elsewhere": uuid4(), "others": uuid4()}
    for name, collection in (("hers", "CMIP6"), ("elsewhere", "CMIP5"), ("others", "CMIP6")):
        submitter = "somebody" if name == "others" else anna
        new = NewLoad(
            id=ids[name], collection=collection, mode=LoadMode.APPLY, override=None, submitter=submitter, roles=(),
            identity=None, correlation="request", traceparent=None,
        )  # fmt: skip
        await loads.create(conn, new)
    shown = await _depart(deleter, anna, project, dry_run=True)
    assert shown.loads == (2 if project is None else 1)
    assert await _depart(deleter, anna, project) == shown
    rows = await conn.fetch(
        "SELECT id FROM fedstac.load WHERE cancelled_by = 'database:fedstac_deleter' AND step = 'empty'"
    )
    gone = {ids["hers"], ids["elsewhere"]} if project is None else {ids["hers"]}
    assert {row["id"] for row in rows} == gone
    for id in gone:
        [row] = [row async for row in audit.rows(conn, audit.RowFilter(dataset=f"load/{id}"))]
        assert row.action == "cancel-load"
    assert (await _depart(deleter, anna, project, dry_run=True)).loads == 0


async def _depart(deleter: Connection, who: str, project: str | None, *, dry_run: bool = False) -> PersonalData:
    if project is None:
        return await people.erase(deleter, who, dry_run=dry_run)
    return await people.leave(deleter, who, project, dry_run=dry_run)


async def test_who_is_erased_leaves_a_name_that_names_nobody(conn: Connection, deleter: Connection, anna: str) -> None:
    before = await rows_of(conn)
    shown = await people.erase(deleter, anna, dry_run=True)
    assert [group.name for group in shown.groups] == ["six", "every", "five", "six"]
    assert (shown.awaited, shown.destinations, shown.messages, shown.sessions) == (2, 1, 1, 1)
    assert (shown.mapping, shown.datasets) == (True, len(ITEMS))
    assert await rows_of(conn) == before
    assert await people.erase(deleter, anna) == shown

    after = await rows_of(conn)
    assert after["record"] == before["record"]
    assert after["audit"][: len(before["audit"])] == before["audit"]
    for table, rows in after.items():
        if table not in ("record", "audit"):
            assert not [row for row in rows if anna in row[0] or "anna" in row[0]], table
    assert len(after["own_group_person"]) == 3  # Bert's
    assert len(after["destination"]) == 1
    assert {row["publisher"] for row in await conn.fetch("SELECT publisher FROM fedstac.record")} == {anna}
    assert [row.actor async for row in audit.rows(conn, audit.RowFilter(who=anna))]
    assert await invariants.check(conn) == []

    assert (await people.erase(deleter, anna)).is_empty
    assert await rows_of(conn) == after
    back = await people.pseudonym(conn, ANNA)
    assert back != anna
    assert await own_groups.memberships(conn, [back, anna]) == {}


async def begin_work(node: Node, conn: Connection, who: str) -> tuple[Bulk, UUID]:
    """Let somebody begin a change of all datasets, and the deletion of their collection."""
    principal = Principal(who, frozenset({"admin"}))
    wish = read_wish({"action": "quarantine", "quarantine": {"reason": "?"}})
    request = BulkRequest(wish, [item["id"] for item in ITEMS], {}, {})
    look = await bulk_changes.preview(node, conn, principal, request)
    job, _ = await bulk_changes.start(
        node, conn, principal, request, look.digest, identity=None, correlation="c", traceparent=None
    )
    writer = CollectionWriter(conn, "west", who, node.collection_schema)
    order = CascadeOrder(who, ("admin",), None, "over")
    cascade = await writer.begin_cascade("CMIP6", order, confirmed=len(ITEMS))
    return job, cascade.id


async def test_what_somebody_began_stops_when_they_are_erased(
    node: Node, conn: Connection, deleter: Connection, anna: str
) -> None:
    job, cascade = await begin_work(node, conn, anna)
    shown = await people.erase(deleter, anna, dry_run=True)
    assert (shown.bulks, shown.cascades) == (1, 1)
    left = await people.leave(deleter, anna, "CMIP6")
    assert (left.bulks, left.cascades) == (0, 0)
    assert await bulks.are_open(conn)
    erased = await people.erase(deleter, anna)
    assert (erased.bulks, erased.cascades) == (1, 1)
    assert (await people.erase(deleter, anna)).is_empty

    assert await bulk_changes.work_off(node, conn, asyncio.Event())
    while await cascading.step(node, conn):
        pass
    after = await bulks.find(conn, job.id)
    assert after is not None
    assert (after.status, after.cancelled_by, after.counts["cancelled"]) == (
        "cancelled", "database:fedstac_deleter", len(ITEMS),
    )  # fmt: skip
    results = await bulks.results(conn, job.id, status=None, after=0, limit=10)
    assert {result.status for result in results} == {"cancelled"}
    ended = await cascades.newest(conn, "CMIP6")
    assert ended is not None
    assert (ended.id, ended.state, ended.ended_by) == (cascade, "cancelled", DELETION_MANAGER)
    assert await cascades.counts(conn, "CMIP6") == {"published": len(ITEMS)}
    rows = [row async for row in audit.rows(conn, audit.RowFilter(limit=100))]
    assert {(row.action, row.dataset) for row in rows} > {
        ("cancel-bulk", f"bulk/{job.id}"), ("cancel-cascade", f"cascade/{cascade}"),
    }  # fmt: skip
    last = await conn.fetchval("SELECT type FROM fedstac.outbox ORDER BY id DESC LIMIT 1")
    assert last == "org.fedstac.collection.reopened.v1"
    assert await invariants.check(conn) == []


async def test_a_part_of_a_change_that_is_being_done_is_whole_before_its_submitter_is_erased(
    node: Node, conn: Connection, deleter: Connection, anna: str, dsn: str
) -> None:
    job, _ = await begin_work(node, conn, anna)
    other = await connections.connect(dsn)
    try:
        async with conn.transaction():
            assert len(await bulks.take(conn, job.id, 1)) == 1
            erasing = asyncio.create_task(people.erase(deleter, anna))
            await writing.is_blocked(other, deleter, conn)
            await bulks.finish(conn, job.id, [BulkResult(1, "done", "quarantined", None, None)])
        shown = await erasing
    finally:
        await other.close(timeout=10)
    assert shown.bulks == 1
    rows = await bulks.results(conn, job.id, status=None, after=0, limit=10)
    assert [row.status for row in rows] == ["done", *["cancelled"] * (len(ITEMS) - 1)]


async def ask(conn: Connection, who: str, *numbers: int) -> NewRequest:
    """Let somebody ask for a change of datasets; the workers find it in the queue."""
    items = [writing.titled(ITEMS[number], f"asked for by {who}") for number in numbers]
    vocabulary = writing.CHECKER.vocabularies.current("CMIP6")
    assert vocabulary is not None
    new = [NewItem(each.lineage, each.id, ItemTexts(orjson.dumps(item).decode()))
           for each, item in zip(map(writing.draft, items), items, strict=True)]  # fmt: skip
    request = NewRequest(uuid4(), "CMIP6", "publish", who, ("admin",), None, "asked", vocabulary.version, new)
    async with conn.transaction():
        await requests.create(conn, [request])
    return request


async def test_what_somebody_asked_for_and_nobody_has_begun_is_not_done_when_they_are_erased(
    node: Node, conn: Connection, deleter: Connection, anna: str
) -> None:
    """A worker that has read an item by then cannot perform it any more."""
    while await publisher.work_once(node, conn, "worker"):
        pass
    hers, others = [await ask(conn, anna, 0, 1), await ask(conn, anna, 2)], await ask(conn, "boris", 1)
    assert (await people.leave(deleter, anna, "CMIP6", dry_run=True)).requests == 0
    shown = await people.erase(deleter, anna, dry_run=True)
    assert (shown.requests, shown.as_json()["closes"]["requests"]) == (2, 2)
    claim = await queue.claim(conn, "worker", uuid4(), 60.0)
    assert claim is not None
    shift = publisher.Shift(node, conn, claim)
    batch = await queue.waiting(conn, claim, 10)
    assert len(batch) == 4
    assert await people.erase(deleter, anna) == shown
    with pytest.raises(ClaimLost):
        await shift._perform(batch)
    while await publisher.work_once(node, conn, "another"):
        pass
    for request in hers:
        summary = await requests.summary(conn, request.id)
        assert summary is not None
        assert (summary.status, summary.outcomes) == ("rejected", {"cancelled": len(request.items)})
        results = await requests.results(conn, request.id, status=None, after=-1, limit=9)
        assert {(each.problem, "was erased" in str(each.detail)) for each in results} == {("cancelled", True)}
    done = await requests.summary(conn, others.id)
    assert done is not None
    assert done.counts == {"done": 1}
    rows = [row async for row in audit.rows(conn, audit.RowFilter(limit=100)) if row.action == "cancel"]
    assert sorted((row.actor, row.dataset, row.outcome) for row in rows) == sorted(
        ("database:fedstac_deleter", item["id"], "rejected") for item in ITEMS
    )
    assert {str(row.request) for row in rows} == {str(request.id) for request in hers}
    assert (await people.erase(deleter, anna)).is_empty
    assert await invariants.check(conn) == []


async def test_a_batch_of_the_queue_that_is_being_performed_is_whole_before_its_submitter_is_erased(
    node: Node, conn: Connection, deleter: Connection, anna: str, dsn: str
) -> None:
    while await publisher.work_once(node, conn, "worker"):
        pass
    request = await ask(conn, anna, 0, 1)
    other = await connections.connect(dsn)
    try:
        claim = await queue.claim(conn, "worker", uuid4(), 60.0)
        assert claim is not None
        async with conn.transaction():
            assert await queue.hold(conn, claim)
            erasing = asyncio.create_task(people.erase(deleter, anna))
            await writing.is_blocked(other, deleter, conn)
            [first, _] = await queue.waiting(conn, claim, 10)
            items = [queue.Result(first.id, Outcome.REJECTED, "conflict", "a reason", (), None)]
            await queue.finish(conn, items)
        shown = await erasing
    finally:
        await other.close(timeout=10)
    assert shown.requests == 1
    summary = await requests.summary(conn, request.id)
    assert summary is not None
    assert summary.outcomes == {"rejected": 1, "cancelled": 1}


async def test_a_departure_that_dies_half_way_has_not_begun(
    conn: Connection, deleter: Connection, anna: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await rows_of(conn)

    def die(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(failpoints, "_action", die)
    for departure in (people.leave(deleter, anna, "CMIP6"), people.erase(deleter, anna)):
        with pytest.raises(ConnectionError):
            await departure
    assert await rows_of(conn) == before


async def test_two_who_erase_at_once_write_one_row(
    conn: Connection, deleter: Connection, anna: str, cluster: embedded.Cluster, dsn: str
) -> None:
    other = await connections.connect(cluster.dsn(name_in(dsn), user="fedstac_deleter"))
    try:
        results = await asyncio.gather(people.erase(deleter, anna), people.erase(other, anna))
    finally:
        await other.close(timeout=10)
    assert sorted(result.is_empty for result in results) == [False, True]
    rows = [row async for row in audit.rows(conn, audit.RowFilter(dataset=anna))]
    assert [row.action for row in rows] == ["erase-person"]


async def test_a_token_that_is_no_person_leaves_a_project_and_is_nobody_to_erase(
    conn: Connection, deleter: Connection, anna: str
) -> None:
    await own_groups.add(conn, "six", "carl", GroupRole.MEMBER, "admin")
    assert (await people.leave(deleter, "carl", "CMIP6")).groups == (PersonalGroup("six", "CMIP6", "member"),)
    assert (await people.erase(deleter, f"person:{uuid4()}")).is_empty
