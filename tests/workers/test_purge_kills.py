"""An index node and a replica node that die at every step of their parts of a deletion, and of the purge after it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fedstac import bootstrap
from fedstac.db import invariants
from fedstac.db.connections import Connection
from fedstac.demo import embedded, sample
from fedstac.domain.replication.paths import MARK
from fedstac.settings import Settings
from fedstac.workers import roles
from tests.support.consumer_process import ends_of
from tests.support.dumps import dump, lines_with
from tests.support.nodes import Api
from tests.support.waiting import until
from tests.workers.replicating import POLICY, plant

MARKER = "qzxmark"
WAIT = {"Prefer": "wait=60"}
INDEX_STEPS = ("index.written", "index.applied")
REPLICA_STEPS = ("replica.written", "replica.applied", "replica.taken", "replica.removed")


@pytest.fixture
def settings(api: Api, make_database: Callable[[], str], tmp_path: Path) -> Settings:
    """Of the node east: it has an index and copies in one database."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "served").mkdir()
    token = api.tokens["node:east"]
    return Settings(
        dsn=make_database(), node="east", source=api.url, source_token=token, replica_token=token,
        replica_policy=str(tmp_path / "policy.yaml"), replica_folder=str(tmp_path / "served"),
        replica_url="https://east.example/data", _env_file=None,
    )  # fmt: skip


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Connection]:
    """Run both roles, and give a connection to their database."""
    stop = asyncio.Event()
    parts = (*roles.INDEX.parts(settings), *roles.REPLICA.parts(settings))
    async with (
        bootstrap.node(settings) as node, bootstrap.beside(node, parts, stop), node.pool.acquire() as conn
    ):  # fmt: skip
        yield conn


async def publish(api: Api) -> str:
    """Publish a dataset whose deletion waits for both roles; return its path."""
    parts = [{"name": "east", "owns_identifier": True}, {"name": "east/replica"}]
    rules = {"dependencies": parts, "grace_days": 0}
    answer = await api.admin.put("/deletions/rules/CMIP6", json=rules, headers={"If-Match": '"0"'})
    assert answer.status_code == 200, answer.text
    [item] = sample.items(1, versions=1)
    item["properties"]["description"] = f"{MARKER}-description"
    for n, asset in enumerate(asset for asset in item["assets"].values() if "file:checksum" in asset):
        asset["href"] = f"https://127.0.0.1:9/{MARKER}-{n}.nc"
    assert (await api.admin.post("/collections/CMIP6/items", json=item, headers=WAIT)).status_code == 201
    return f"/collections/CMIP6/items/{item['id']}"


async def bring(settings: Settings, path: str) -> list[Path]:
    """Let east have the dataset in its index, and its files on the disk."""
    id = path.rpartition("/")[2]
    async with running(settings) as own:

        async def is_planned() -> bool:
            query = "SELECT count(*) FROM fedstac.{} WHERE id = $1"
            counts = [
                await own.fetchval(query.format("replica_file JOIN fedstac.replica_dataset USING (n)"), id),
                await own.fetchval(query.format("record"), id),
            ]
            return all(counts)

        await until(is_planned)
        return await plant(own, Path(settings.replica_folder), id)


async def die(settings: Settings, role: roles.Role, *steps: str) -> None:
    """Let processes die at these steps, one after the other."""
    assert await ends_of(settings, role, *(f"{step}=kill" for step in steps)) == [-signal.SIGKILL] * len(steps)


async def purge(api: Api, path: str) -> None:
    for action in ("delete", "purge"):
        answer = await api.admin.post(f"{path}/{action}", json={}, headers=WAIT)
        assert answer.status_code == 200, answer.text


async def is_gone(
    settings: Settings, own: Connection, api: Api, conn: Connection, cluster: embedded.Cluster, served: list[Path]
) -> None:
    """Wait until east has applied the purge, and look for what is left of the dataset."""

    async def is_purged() -> bool:
        at_replica = """SELECT event_state = 'purged' AND state = 'removed' AND NOT EXISTS (
                            SELECT FROM fedstac.replica_removal WHERE state <> 'done') FROM fedstac.replica_dataset"""
        return bool(await own.fetchval(at_replica)) and bool(
            await own.fetchval("SELECT state = 'purged' FROM fedstac.record")
        )

    await until(is_purged)

    async def has_reported() -> bool:
        return bool(await own.fetchval("SELECT count(*) = 0 FROM fedstac.own_report"))

    await until(has_reported)
    assert not any(each.exists() for each in served)
    place = Path(settings.replica_folder)
    left = {
        name for folder in (place, place.with_name(f"{place.name}.restricted"))
        for _, folders, files in os.walk(folder) for name in (*folders, *files)
    }  # fmt: skip
    assert left <= {MARK}
    for dsn in (api.settings.dsn, settings.dsn):
        assert lines_with(MARKER, dump(cluster, dsn)) == []
    assert await invariants.check(conn) == []


async def parts_of(conn: Connection) -> dict[str, str]:
    rows = await conn.fetch("SELECT name, state FROM fedstac.deletion_dependency")
    return {row["name"]: row["state"] for row in rows}


async def test_nodes_that_die_at_every_step_report_all_the_same_and_leave_no_byte(
    api: Api, conn: Connection, cluster: embedded.Cluster, settings: Settings
) -> None:
    path = await publish(api)
    served = await bring(settings, path)
    answer = await api.admin.delete(f"{path}?reason={MARKER}-mark", headers=WAIT)
    assert answer.status_code == 200, answer.text
    await die(settings, roles.INDEX, *INDEX_STEPS, "index.reported")
    await die(settings, roles.REPLICA, *REPLICA_STEPS, "replica.reported")
    async with running(settings) as own:

        async def all_is_reported() -> bool:
            return await parts_of(conn) == {"east": "ok", "east/replica": "ok"} and bool(
                await own.fetchval("SELECT count(*) = 0 FROM fedstac.own_report")
            )

        await until(all_is_reported)
    reports = "SELECT count(*) FROM fedstac.audit WHERE action = 'report-deletion'"
    assert await conn.fetchval(reports) == 2  # what was sent again changed nothing
    await purge(api, path)
    await die(settings, roles.INDEX, *INDEX_STEPS)
    await die(settings, roles.REPLICA, *REPLICA_STEPS)
    async with running(settings) as own:
        await is_gone(settings, own, api, conn, cluster, served)


@pytest.mark.parametrize("step", [*REPLICA_STEPS, "replica.reported"])
async def test_a_node_that_died_at_a_step_and_comes_back_after_the_purge_leaves_no_byte(
    api: Api, conn: Connection, cluster: embedded.Cluster, settings: Settings, step: str
) -> None:
    """The files are where the mark moved them, or on their way, and nothing may be stored of that."""
    path = await publish(api)
    served = await bring(settings, path)
    assert (await api.admin.delete(f"{path}?reason={MARKER}-mark", headers=WAIT)).status_code == 200
    await die(settings, roles.REPLICA, step)
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    await purge(api, path)
    async with running(settings) as own:
        await is_gone(settings, own, api, conn, cluster, served)
