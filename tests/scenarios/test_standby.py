"""Searches answered by a streaming standby, made by pg_basebackup: who publishes sees that at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psycopg
import pytest

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import pools
from fedstac.demo import embedded, sample
from fedstac.domain.errors import Unavailable
from fedstac.runtime.budget import Budget, Lane
from fedstac.settings import Settings
from tests.scenarios.watching import wait_until
from tests.support.databases import name_in
from tests.support.processes import serving

pytestmark = pytest.mark.long


@pytest.fixture
def standby(cluster: embedded.Cluster, dsn: str, tmp_path: Path) -> Iterator[embedded.Cluster]:
    """A standby that follows the tests' cluster. It has the database of the test."""
    folder = tmp_path / "standby"
    folder.mkdir()
    command = [
        str(embedded.find_binaries() / "pg_basebackup"), "--pgdata", str(folder / "pgdata"), "--write-recovery-conf",
        "--checkpoint=fast", "--no-password", "--dbname", cluster.dsn(),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    shutil.copy(cluster.data / "password", folder / "password")
    owner = (cluster.data / "pgdata").stat()
    for path in (tmp_path, folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    for above in (tmp_path, *tmp_path.parents[:3]):  # pytest's own, up to the folder of its user
        above.chmod(above.stat().st_mode | 0o111)
    with embedded.cluster(folder, settings={"fsync": "off", "shared_buffers": "32MB"}) as running:
        yield running


def promote(standby: embedded.Cluster) -> None:
    """Make a standby a server of its own. It may cut connections at that."""
    with suppress(psycopg.OperationalError), psycopg.connect(standby.dsn(), autocommit=True) as root:
        root.execute("SELECT pg_promote()")


async def status_of(url: str) -> int:
    async with httpx.AsyncClient(timeout=30) as client:
        return (await client.get(url)).status_code


async def first_of(node: Node, lane: Lane, item_id: str) -> tuple[bool, bool]:
    """Return whether the standby answered a search of a lane, and whether it found the dataset."""
    async with Budget(20, lane, lambda: Unavailable("over")), node.search_pool.acquire() as conn:
        row = await conn.fetchrow(
            "SELECT pg_is_in_recovery() AS copy, EXISTS (SELECT FROM pgstac.items WHERE id = $1) AS found", item_id
        )
        assert row is not None
        return row["copy"], row["found"]


async def test_who_publishes_sees_it_at_the_standby_and_where_that_fails_at_the_other(
    dsn: str, standby: embedded.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.db import writing

    monkeypatch.setattr(pools, "AWAY_SECONDS", 0.0)
    copy = standby.dsn(name_in(dsn), user="fedstac_writer", password="writer")
    items = list(sample.items(40))
    async with bootstrap.node(Settings(dsn=dsn, read_dsn=copy, node="west", _env_file=None)) as node:
        await writing.create_collections(node, "CMIP6")
        for item in items[:30]:
            async with node.pool.acquire() as conn:
                await writing.publish(conn, item)
            assert await first_of(node, Lane.READER, item["id"]) == (True, True)
        assert await first_of(node, Lane.ANONYMOUS, items[0]["id"]) == (True, True)
        with psycopg.connect(standby.dsn(), autocommit=True) as root:
            root.execute("SELECT pg_wal_replay_pause()")
            async with node.pool.acquire() as conn:
                await writing.publish(conn, items[30])
            assert await first_of(node, Lane.READER, items[30]["id"]) == (False, True)
            root.execute("SELECT pg_wal_replay_resume()")
        assert await first_of(node, Lane.READER, items[30]["id"]) == (True, True)
        promote(standby)
        _, is_there = await first_of(node, Lane.READER, items[30]["id"])
        assert is_there


async def test_searches_write_nothing_and_go_on_without_the_standby(
    dsn: str, standby: embedded.Cluster, tmp_path: Path
) -> None:
    from tests.db import writing

    copy = standby.dsn(name_in(dsn), user="fedstac_writer", password="writer")
    [item] = sample.items(1)
    async with bootstrap.node(Settings(dsn=dsn, node="west", _env_file=None)) as node:
        await writing.create_collections(node, "CMIP6")
        async with node.pool.acquire() as conn:
            await writing.publish(conn, item)
    variables = {"FEDSTAC_DSN": dsn, "FEDSTAC_READ_DSN": copy, "FEDSTAC_NODE": "west", "FEDSTAC_PORT": "0"}
    with serving(tmp_path, **variables) as (process, ready):
        wait_until(lambda: ready.exists() or process.poll() is not None, what="the node answers")
        url = json.loads(ready.read_text())["url"]
        paths = [
            "/search?filter=%22cmip6:source_id%22='x'", "/search?limit=1", f"/collections/CMIP6/items/{item['id']}",
            "/collections/CMIP6/items", "/aggregate?aggregations=total_count", "/collections/CMIP6/queryables",
            "/collections", "/collections?q=cmip6", f"/collections/CMIP6/items/{item['id']}/history",
        ]  # fmt: skip
        for path in paths:
            assert await status_of(url + path) == 200, path
        promote(standby)
        for path in paths:
            assert await status_of(url + path) == 200, path
