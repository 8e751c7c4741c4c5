"""Grants in the database: what they open, by the state of the datasets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import orjson
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import connections, grant_lists, grant_rights, grants, invariants, people
from fedstac.db.connections import Connection
from fedstac.demo import embedded
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.delete import Delete
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import ItemDeleted, MarkedForDeletion
from fedstac.domain.grants import GrantScope, GrantTarget
from fedstac.workers import granting
from fedstac.workers.deleting import Caller
from tests.db import writing
from tests.support.databases import name_in
from tests.support.waiting import until

NOW = datetime.now(UTC)


@pytest.fixture
async def conn(west: Node, connect: writing.Connect) -> Connection:
    opened: Connection = await connect()
    await publication.perform(opened, writing.RULES, writing.work(*(writing.plain(number) for number in range(4))))
    return opened


@pytest.fixture
async def deleter(cluster: embedded.Cluster, dsn: str) -> AsyncIterator[Connection]:
    """Somebody who may close what people have, and see nothing else."""
    opened = await connections.connect(cluster.dsn(name_in(dsn), user="fedstac_deleter"))
    yield opened
    await asyncio.wait_for(opened.close(), 10)


async def insert(conn: Connection, subject: str, scope: str, target: str, *, days: tuple[int, int] = (-1, 1)) -> None:
    await conn.execute(
        """INSERT INTO fedstac.access_grant (id, subject, collection, scope, target, valid_from, valid_until, given_at,
                                             given_by) VALUES ($1, $2, 'plain', $3, $4, $5, $6, $7, 'anna')""",
        uuid4(), subject, scope, target, NOW + timedelta(days[0]), NOW + timedelta(days[1]), NOW,
    )  # fmt: skip


EVERY = {("plain", f"thing-{number}") for number in range(4)}


async def test_a_grant_opens_the_dataset_the_lineage_or_the_project_that_it_is_for(conn: Connection) -> None:
    await insert(conn, "bert", "dataset", "thing-1")
    await insert(conn, "bert", "lineage", "plain/thing-2")
    await insert(conn, "carla", "project", "")
    assert await grant_rights.open_to(conn, "bert", EVERY) == {("plain", "thing-1"), ("plain", "thing-2")}
    assert await grant_rights.open_to(conn, "carla", EVERY | {("plain", "not-there")}) == EVERY
    assert await grant_rights.open_to(conn, "dora", EVERY) == set()
    assert await grant_rights.open_to(conn, "bert", []) == set()


async def test_a_grant_opens_nothing_before_its_time_and_after_it(conn: Connection) -> None:
    await insert(conn, "bert", "dataset", "thing-1", days=(1, 2))
    await insert(conn, "bert", "dataset", "thing-2", days=(-2, -1))
    assert await grant_rights.open_to(conn, "bert", EVERY) == set()


async def test_grants_close_with_a_person_and_each_is_announced(conn: Connection, deleter: Connection) -> None:
    await insert(conn, "bert", "dataset", "thing-1")
    await insert(conn, "bert", "dataset", "thing-1", days=(0, 9))
    await insert(conn, "bert", "lineage", "plain/thing-2")
    await insert(conn, "carla", "dataset", "thing-1")
    assert (await people.leave(deleter, "bert", "plain", dry_run=True)).grants == 3
    before = datetime.now(UTC)
    assert (await people.leave(deleter, "bert", "plain")).grants == 3
    assert (await people.leave(deleter, "bert", "plain")).is_empty
    assert await grant_rights.open_to(conn, "bert", EVERY) == set()
    assert await grant_rights.open_to(conn, "carla", EVERY) == {("plain", "thing-1")}
    rows = await conn.fetch(
        """SELECT o.*, g.id AS grant, g.closed_by, g.closed_why FROM fedstac.outbox o
           LEFT JOIN fedstac.access_grant g ON g.cause = o.event_id WHERE type LIKE '%grant%' ORDER BY o.key, o.seq"""
    )
    assert [(row["key"], row["seq"], row["collection"], row["dataset"]) for row in rows] == [
        ("grant:dataset:plain/thing-1", 1, "plain", None), ("grant:dataset:plain/thing-1", 2, "plain", None),
        ("grant:lineage:plain/thing-2", 1, "plain", None),
    ]  # fmt: skip
    for row in rows:
        event = orjson.loads(row["event"])
        assert row["event_id"].version == 7
        assert row["event"].startswith('{"specversion"')
        moment = datetime.fromtimestamp((row["event_id"].int >> 80) / 1000, UTC)
        assert before - timedelta(seconds=1) < moment < datetime.now(UTC) + timedelta(seconds=1)
        assert (event["id"], event["type"]) == (str(row["event_id"]), "org.fedstac.grant.withdrawn.v1")
        assert event["source"] == "west"
        assert event["partitionkey"] == row["key"]
        assert UUID(event["data"]["grant"]) == row["grant"]
        assert event["data"]["reason"] == "leave-project"
        assert event["data"]["actor"] == row["closed_by"]
        assert row["closed_by"].startswith("database:")
    assert orjson.loads(rows[2]["event"])["data"]["lineage"] == "thing-2"
    assert orjson.loads(rows[0]["event"])["subject"] == "plain/thing-1"
    acts = await conn.fetch("SELECT dataset, collection, detail FROM fedstac.audit WHERE action = 'withdraw-grant'")
    assert {row["dataset"] for row in acts} == {f"grant/{row['grant']}" for row in rows}
    assert {(row["collection"], row["detail"]) for row in acts} == {("plain", '{"reason":"leave-project"}')}


ANNA = Caller(writing.ANNA, writing.RULES.policy)


def target(number: int) -> Target:
    return Target("plain", f"thing-{number}", f"plain/thing-{number}")


async def perform(conn: Connection, *commands: Command) -> None:
    receipts = await publication.perform(conn, writing.RULES, [Work(command, "anna", "x") for command in commands])
    assert [receipt.problem for receipt in receipts] == [None] * len(commands)


async def give(conn: Connection, node: Node, subject: str, **what: str) -> list[granting.GrantOutcome]:
    wish = granting.read_wish({"subject": subject, "valid_until": "2999-01-01T00:00:00Z", **what})
    return await granting.give(conn, node, ANNA, [wish])


async def events(conn: Connection) -> list[tuple[str, str, int, str | None, str | None]]:
    """Return the events about grants: type, key, number of grants, subject, reason."""
    rows = await conn.fetch("SELECT key, type, event FROM fedstac.outbox WHERE type LIKE '%.grant.%' ORDER BY id")
    data = [orjson.loads(row["event"])["data"] for row in rows]
    return [
        (row["type"].split(".")[-2], row["key"], each["grants"], each["subject"], each.get("reason"))
        for row, each in zip(rows, data, strict=True)
    ]


async def test_a_grant_given_twice_is_one_with_one_event(conn: Connection, west: Node) -> None:
    [first] = await give(conn, west, "bert", dataset="plain/thing-1")
    [second] = await give(conn, west, "bert", dataset="plain/thing-1")
    assert first.is_new
    assert not second.is_new
    assert first.grant == second.grant is not None
    wishes = [granting.read_wish({"subject": {"iss": "https://aai.example", "sub": sub}, "project": "plain",
                                  "valid_until": "2999-01-01T00:00:00Z"}) for sub in ("x", "y", "x")]  # fmt: skip
    several = await granting.give(conn, west, ANNA, wishes)
    assert [each.is_new for each in several] == [True, True, False]
    persons = [each.grant.subject for each in several if each.grant]
    assert persons[0] == persons[2] != persons[1]
    assert await events(conn) == [
        ("given", "grant:dataset:plain/thing-1", 1, "bert", None),
        ("given", "grant:project:plain", 1, persons[0], None), ("given", "grant:project:plain", 1, persons[1], None),
    ]  # fmt: skip
    other = GrantTarget.parse(GrantScope.DATASET, "plain/thing-3")
    assert await granting.check(conn, ANNA, ("https://aai.example", "y"), other)
    assert await invariants.check(conn) == []


async def test_grants_follow_the_state_of_their_datasets(conn: Connection, west: Node) -> None:
    for number in (1, 2):
        await give(conn, west, "bert", dataset=f"plain/thing-{number}")
    await give(conn, west, "carla", lineage="plain/thing-2")
    await perform(conn, *(Retract(target(number), writing.ANNA, {"reason": "wrong"}) for number in (1, 3)))
    assert await grant_rights.open_to(conn, "bert", EVERY) == {("plain", "thing-2")}
    await perform(conn, Mark(target(1), writing.ANNA), Mark(target(2), writing.ANNA))
    assert await grant_rights.open_to(conn, "bert", EVERY) == set()
    [refused] = await give(conn, west, "dora", dataset="plain/thing-2")
    assert isinstance(refused.problem, MarkedForDeletion)
    assert refused.problem.deletion is not None
    await perform(conn, Unmark(target(1), writing.ANNA), Reinstate(target(1), writing.ANNA))
    assert await grant_rights.open_to(conn, "bert", EVERY) == {("plain", "thing-1")}
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await perform(conn, Delete(target(2), writing.ANNA))
    [refused] = await give(conn, west, "dora", dataset="plain/thing-2")
    assert isinstance(refused.problem, ItemDeleted)
    given = [each for each in await events(conn) if each[0] == "given"]
    assert len(given) == 3
    assert [each for each in await events(conn) if each[0] != "given"] == [
        ("suspended", "grant:dataset:plain/thing-1", 1, None, "retracted"),
        ("suspended", "grant:dataset:plain/thing-2", 1, None, "marked"),
        ("restored", "grant:dataset:plain/thing-1", 1, None, "published"),
        ("withdrawn", "grant:dataset:plain/thing-2", 1, None, "deleted"),
    ]  # fmt: skip
    closed = await grant_lists.page(
        conn, grant_lists.GrantFilter(is_open=False), grant_lists.GrantSight(sees_all=True), after=None, limit=9
    )  # fmt: skip
    deletion = await conn.fetchval("SELECT event_id FROM fedstac.outbox WHERE type LIKE '%dataset.deleted%'")
    assert [(each.closed_by, each.closed_why, each.cause) for each in closed] == [("anna", "deleted", deletion)]
    assert await invariants.check(conn) == []


async def test_the_grants_of_a_subject_are_withdrawn_in_parts(
    conn: Connection, west: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await give(conn, west, "bert", dataset=f"plain/thing-{number}")
        await give(conn, west, "carla", dataset=f"plain/thing-{number}")
    monkeypatch.setattr(granting, "MOST_AT_ONCE", 2)
    for count in (3, 0):
        assert count == await granting.withdraw_matching(conn, west, ANNA, subject="bert", target=None, reason="over")
    rows = await conn.fetch(
        """SELECT subject, closed_at IS NULL AS is_open, g.xmin::text FROM fedstac.access_grant g ORDER BY g.id"""
    )
    assert {row["subject"] for row in rows if row["is_open"]} == {"carla"}
    assert len({row["xmin"] for row in rows if row["subject"] == "bert"}) == 2
    assert await invariants.check(conn) == []


async def test_a_grant_that_runs_out_while_it_is_given_opens_nothing(conn: Connection, west: Node) -> None:
    project = GrantTarget.parse(GrantScope.PROJECT, "plain")
    async with conn.transaction():
        await grants.target_states(conn, [project], {}, locking=True)
        [given] = await grants.give(conn, [grants.NewGrant("bert", project, None, NOW)], actor="anna")
    assert given.grant.valid_from < given.grant.valid_until
    assert await grant_rights.open_to(conn, "bert", EVERY) == set()


async def test_a_lineage_of_several_institutions_is_of_none(west: Node, connect: writing.Connect) -> None:
    conn = await connect()
    items = [writing.plain(number) for number in (1, 2)]
    items = [{**item, "properties": {**item["properties"], "who": f"who-{n}"}} for n, item in enumerate(items)]
    await publication.perform(conn, writing.RULES, writing.work(*items))
    lineage = GrantTarget.parse(GrantScope.LINEAGE, "plain/thing-1")

    async def institution() -> str | None:
        return (await grants.target_states(conn, [lineage], {"plain": "who"}))[lineage].institution

    assert await institution() == "who-0"
    await conn.execute("UPDATE fedstac.record SET lineage = 'plain/thing-1', latest = false WHERE id = 'thing-2'")
    assert await institution() is None


async def test_a_deletion_counts_the_grants_that_it_closes(
    conn: Connection, west: Node, connect: writing.Connect
) -> None:
    """Somebody withdraws one grant, and another one alone, while datasets are deleted that have them."""
    other = await connect()
    for subject, number in (("bert", 1), ("carla", 1), ("bert", 2)):
        await give(conn, west, subject, dataset=f"plain/thing-{number}")
    await perform(conn, Mark(target(1), writing.ANNA), Mark(target(2), writing.ANNA))
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    ids = await grant_lists.open_ids(conn, "bert", target=None, projects=["plain"], limit=9)
    async with other.transaction():
        assert await grants.withdraw(other, ids, actor="anna", reason="over") == 2
        deleting = asyncio.create_task(perform(conn, Delete(target(1), writing.ANNA), Delete(target(2), writing.ANNA)))
        await until(lambda: waits(other, conn))
    await asyncio.wait_for(deleting, 10)
    assert [each for each in await events(conn) if each[4] == "deleted"] == [
        ("withdrawn", "grant:dataset:plain/thing-1", 1, None, "deleted")
    ]
    assert await invariants.check(conn) == []


async def waits(conn: Connection, other: Connection) -> bool:
    """Tell whether the other connection waits for this one's locks."""
    waiting: bool = await conn.fetchval(
        "SELECT pg_backend_pid() = ANY (pg_blocking_pids($1))", other.get_server_pid()
    )  # fmt: skip
    return waiting
