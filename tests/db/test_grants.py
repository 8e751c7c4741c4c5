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
from fedstac.db import connections, grants, people
from fedstac.db.connections import Connection
from fedstac.demo import embedded
from tests.db import writing
from tests.support.databases import name_in

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
    assert await grants.open_to(conn, "bert", EVERY) == {("plain", "thing-1"), ("plain", "thing-2")}
    assert await grants.open_to(conn, "carla", EVERY | {("plain", "not-there")}) == EVERY
    assert await grants.open_to(conn, "dora", EVERY) == set()
    assert await grants.open_to(conn, "bert", []) == set()


async def test_a_grant_opens_nothing_before_its_time_and_after_it(conn: Connection) -> None:
    await insert(conn, "bert", "dataset", "thing-1", days=(1, 2))
    await insert(conn, "bert", "dataset", "thing-2", days=(-2, -1))
    assert await grants.open_to(conn, "bert", EVERY) == set()


async def test_grants_close_with_a_person_and_each_is_announced(conn: Connection, deleter: Connection) -> None:
    await insert(conn, "bert", "dataset", "thing-1")
    await insert(conn, "bert", "dataset", "thing-1", days=(0, 9))
    await insert(conn, "bert", "lineage", "plain/thing-2")
    await insert(conn, "carla", "dataset", "thing-1")
    assert (await people.leave(deleter, "bert", "plain", dry_run=True)).grants == 3
    before = datetime.now(UTC)
    assert (await people.leave(deleter, "bert", "plain")).grants == 3
    assert (await people.leave(deleter, "bert", "plain")).is_empty
    assert await grants.open_to(conn, "bert", EVERY) == set()
    assert await grants.open_to(conn, "carla", EVERY) == {("plain", "thing-1")}
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
