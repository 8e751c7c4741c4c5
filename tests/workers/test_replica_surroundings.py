"""What transfers ask of the policy and its sources: hosts that are away for all processes, closed sources, budgets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedstac.db.connections import Connection
from fedstac.db.replica import placement_queue, settling
from fedstac.db.replica.placement_queue import UnplacedDataset
from fedstac.domain.replication.placing import Obstacle
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.replication.copying import NoThrottle
from fedstac.workers.replica_surroundings import PolicySurroundings
from tests.support.replica_rows import add_dataset

POLICY = ReplicaPolicy.parse("""\
version: 1
budget: 100 B
rules: [{name: all, action: replicate}]
sources:
  - {name: w, hosts: [w.example], connections: 3}
  - {name: e, hosts: [e.example, e2.example], calendar: {zone: Europe/Berlin, closed: [
      {every: [saturday, sunday], from: "00:00", to: "24:00", reason: weekend}]}}
""")
SATURDAY, MONDAY = datetime(2026, 11, 28, 12, tzinfo=UTC), datetime(2026, 11, 30, 12, tzinfo=UTC)


def surroundings() -> PolicySurroundings:
    return PolicySurroundings("me", lambda: POLICY, lambda: {"": Path("/srv")}, NoThrottle())


def dataset(n: int, size: int = 60) -> UnplacedDataset:
    assets = {"a": {"href": "https://w.example/a", "alternate": {"e": {"href": "https://e.example/a"}}},
              "b": {"href": "https://elsewhere.example/b"}}  # fmt: skip
    values: dict[str, Any] = {
        "n": n, "origin": "west", "collection": "c", "id": f"d{n}", "tier": "", "rule": "all", "size": size,
        "document": {"assets": assets}, "is_admitted": False, "assets": ("a", "b"), "faults": {}, "placed_counts": {},
    }  # fmt: skip
    return UnplacedDataset(**values)


async def test_a_closed_source_says_why_and_until_when_and_has_no_cap(conn: Connection) -> None:
    view = await surroundings().view(conn, SATURDAY)
    assert view.caps == {"w": 3}
    closed = view.closures.lanes["e"]
    assert "weekend" in closed.reason
    assert closed.until == datetime(2026, 11, 29, 23, tzinfo=UTC)
    assert (await surroundings().view(conn, MONDAY)).caps == {"w": 3, "e": None}


async def test_a_host_that_fails_is_away_for_all_processes_until_it_gives_a_file(conn: Connection) -> None:
    one, other = surroundings(), surroundings()
    await one.failed(conn, "w.example", "it answers 503", 30.0)
    await other.failed(conn, "w.example", "it answers 503", 30.0)  # the same outage, seen by another worker
    failures = await conn.fetchval("SELECT failures FROM fedstac.replica_host")
    view = await other.view(conn, datetime.now(UTC))
    away = view.closures.hosts["w.example"]
    assert (failures, "it answers 503" in away.reason) == (1, True)
    assert away.until is not None
    assert 25 < (away.until - datetime.now(UTC)).total_seconds() <= 30
    assert [each.node for each in other.choose(dataset(1)).candidates["a"]] == ["e", "west"]
    await other.worked(conn, "w.example")
    assert (await one.view(conn, datetime.now(UTC))).closures.hosts == {}


@pytest.mark.parametrize(("failures", "least", "most"), [(1, 9, 10), (3, 39, 40), (20, 599, 600)])
async def test_the_pause_doubles_up_to_ten_minutes(conn: Connection, failures: int, least: float, most: float) -> None:
    await conn.execute("INSERT INTO fedstac.replica_host VALUES ('h', $1, clock_timestamp(), 'away')", failures)
    await surroundings().failed(conn, "h", "away", 0.0)
    seconds = await conn.fetchval(
        "SELECT extract(epoch FROM away_until - clock_timestamp())::float8 FROM fedstac.replica_host"
    )
    assert least < seconds <= most


async def test_a_file_without_a_listed_copy_says_so_and_a_budget_admits_no_more_than_it_has(conn: Connection) -> None:
    choices = surroundings().choose(dataset(1))
    assert "the policy does not list elsewhere.example" in choices.reasons["b"]
    async with conn.transaction():
        obstacles = await surroundings().over_budget(conn, [dataset(1), dataset(2), dataset(3, size=40)])
    assert list(obstacles) == [2]
    assert "over the budget of the node" in obstacles[2].reason


async def test_where_a_budget_is_reached_all_wait_that_do_not_fit_and_the_others_come_next(conn: Connection) -> None:
    for n in range(12):
        await add_dataset(conn, f"large{n}", {"f": ("https://w.example/large-90.bin",)}, priority=5)
    await add_dataset(conn, "here", {"f": ("https://w.example/here-50.bin",)}, priority=5)
    await conn.execute("UPDATE fedstac.replica_dataset SET state = 'complete' WHERE id = 'here'")
    await add_dataset(conn, "under way", {"f": ("https://w.example/way-30.bin",)})
    await conn.execute("UPDATE fedstac.replica_dataset SET turn = now(), state = 'waiting' WHERE id = 'under way'")
    await add_dataset(conn, "small", {"f": ("https://w.example/small-9.bin",)})
    async with conn.transaction():
        first = await placement_queue.unplaced(conn)
        assert {each.id[:5] for each in first} == {"large"}
        obstacles = await surroundings().over_budget(conn, first)
        until = datetime.now(UTC) + timedelta(seconds=30)
        await settling.hold(conn, {n: Obstacle(each.reason, until) for n, each in obstacles.items()})
    async with conn.transaction():
        second = await placement_queue.unplaced(conn)
        assert {each.id for each in second} == {"under way", "small"}
        assert await surroundings().over_budget(conn, [each for each in second if not each.is_admitted]) == {}
    rows = await conn.fetch("SELECT reason FROM fedstac.replica_dataset WHERE id LIKE 'large%' AND state = 'waiting'")
    assert len(rows) == 12
    assert sorted({row["reason"].partition(";")[0] for row in rows}) == [
        "over the budget of the node: 80 B of 100 B are taken, and this needs 90 B",
        "over the budget of the node: 80 B of 100 B are taken, and this needs more than is left",
    ]
