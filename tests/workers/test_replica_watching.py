"""The watch of a replica node: what lasts is told once; /healthcheck and metrics show how it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedstac.api.nodes import health
from fedstac.api.nodes.health import Health
from fedstac.bootstrap import Node
from fedstac.db import metrics as node_figures
from fedstac.db.connections import Connection
from fedstac.db.replica import figures
from fedstac.domain.replication.alarms import REASONS, AlarmKind
from fedstac.domain.replication.budgets import Budgets, Usage
from fedstac.domain.replication.policy import DEFAULT_TIER
from fedstac.domain.replication.states import SERVED_TIER
from fedstac.replication.policy_file import PolicyFile
from fedstac.workers.replica_watching import Watch
from tests.db.replica.planting import PlantedFile, plant
from tests.support.places import REPOSITORY

GOOD_POLICY = "version: 1\nrules: []\nsources: []\n"
FILES = [PlantedFile("a.nc", b"a"), PlantedFile("b.nc", b"bb", "queued")]


async def wait_for(conn: Connection, id: str, reason: str) -> int:
    return await plant(conn, id, FILES, state="waiting", announced_at="", reason=reason)


async def troubles_of(conn: Connection) -> list[tuple[str, str]]:
    rows = await conn.fetch("SELECT kind, what FROM fedstac.trouble ORDER BY id")
    return [(row["kind"], row["what"]) for row in rows]


async def test_what_lasts_is_told_once_and_again_after_it_has_ended(node: Node, conn: Connection) -> None:
    watch = Watch(node, lambda: {SERVED_TIER: REPOSITORY}, policy_alert=lambda: None)
    await watch.look()
    assert await troubles_of(conn) == []
    for n in range(3):
        await wait_for(conn, f"d{n}", f"disk full: there is no room for p{n}: No space left on device")
    await wait_for(conn, "b", "over the budget of the node: 3 TB of 3 TB are taken, and this needs 1 GB; …")
    await wait_for(conn, "e", "disk refuses: e.nc cannot be stored: Permission denied")
    await wait_for(conn, "c", "west is closed until 06:00 UTC")
    await conn.execute(
        """INSERT INTO fedstac.replica_host (host, failures, away_until, reason, since)
           VALUES ('west.example', 9, clock_timestamp() + interval '1 minute', 'no answer', now() - interval '2 hours'),
                  ('south.example', 1, clock_timestamp() + interval '1 minute', 'no answer', now())"""
    )
    for _ in range(2):
        await watch.look()
    first = [
        ("replica-away", "west.example"), ("replica-budget", "over the budget of the node"),
        ("replica-disk", "disk full"), ("replica-disk-broken", "disk refuses"),
    ]  # fmt: skip
    assert await troubles_of(conn) == first
    await conn.execute("UPDATE fedstac.replica_dataset SET state = 'queued' WHERE id LIKE 'd%'")
    await watch.look()
    await conn.execute("UPDATE fedstac.replica_dataset SET state = 'waiting' WHERE id LIKE 'd%'")
    await watch.look()
    assert await troubles_of(conn) == [*first, ("replica-disk", "disk full")]


async def test_a_broken_policy_file_is_told_once_and_again_when_it_breaks_again(
    node: Node, conn: Connection, tmp_path: Path
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD_POLICY)
    file = PolicyFile(path)
    watch = Watch(node, lambda: {}, policy_alert=lambda: file.alert)
    for text in (GOOD_POLICY, "rules: 7\n", "rules: 78\n", GOOD_POLICY, "rules: 789\n"):
        path.write_text(text)
        file.look()
        await watch.look()
    assert await troubles_of(conn) == [("replica-policy", "policy file")] * 2
    detail = await conn.fetchval("SELECT detail FROM fedstac.trouble ORDER BY id LIMIT 1")
    assert f"{path}: line 1: rules is no list" in detail


def test_the_reasons_of_obstacles_begin_as_the_watch_looks_for_them() -> None:
    sentence = Budgets(node=10).obstacle(Usage(10), "all", 5)
    assert sentence is not None
    assert sentence.startswith(REASONS[AlarmKind.BUDGET])


async def test_the_figures_of_a_replica_node(node: Node, conn: Connection) -> None:
    async with node.pool.acquire() as own:
        assert (await node_figures.read(own)).replica is None
    await plant(conn, "fine", FILES[:1])
    await plant(conn, "parked", FILES, state="parked", announced_at="")
    await wait_for(conn, "w", "west is closed")
    await conn.execute(
        """INSERT INTO fedstac.replica_host (host, failures, away_until, reason)
           VALUES ('west.example', 1, clock_timestamp() + interval '1 minute', 'no answer')"""
    )
    folders = {SERVED_TIER: REPOSITORY, "tape": REPOSITORY / "no-such-folder"}
    await Watch(node, lambda: folders, policy_alert=lambda: None).look()
    async with node.pool.acquire() as own:
        replica = (await node_figures.read(own)).replica
        stand = await figures.stand(own)
    assert replica is not None
    assert {each.state: (each.datasets, each.bytes) for each in replica.states} == {
        "announced": (1, 1), "parked": (1, 3), "waiting": (1, 3)
    }  # fmt: skip
    assert (replica.open_files, replica.verified_seconds) == ({"queued": 2}, None)
    assert (stand.parked, stand.waiting, stand.away_hosts) == (1, 1, ["west.example"])
    assert stand.free_bytes["tape"] is None
    assert (stand.free_bytes[DEFAULT_TIER] or 0) > 0


@pytest.mark.parametrize(
    ("parked", "refused", "free", "status"),
    [(0, 0, 5, "ok"), (1, 0, 5, "degraded"), (0, 2, 5, "degraded"), (0, 0, None, "degraded")],
)
def test_health_names_what_needs_somebody_and_not_what_waits(
    parked: int, refused: int, free: int | None, status: str
) -> None:
    stand = figures.ReplicaStand(parked, 7, refused, 3, ["west.example"], {"default": free}, None)
    result = health._with_replica(Health({"status": "ok"}, ()), stand)
    assert result.body["status"] == status
    assert (status == "ok") == (not result.reasons)


def test_health_keeps_the_word_of_the_feed_and_says_what_to_do() -> None:
    stand = figures.ReplicaStand(1, 7, 2, 3, [], {"default": None}, None)
    result = health._with_replica(Health({"status": "ok", "replica": "partly"}, ()), stand)
    replica = result.body["replica"]
    assert isinstance(replica, dict)
    assert (replica["feed"], replica["parked"]) == ("partly", 1)
    assert result.reasons == (
        "replica: 1 datasets are parked; see fedstac replica status --state parked",
        "replica: origins refuse 2 announcements; see fedstac replica status --state parked",
        "replica: the folder of the tier default is not there; mount it, or take the tier out of the policy",
    )
