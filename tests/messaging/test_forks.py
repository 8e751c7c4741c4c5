"""An origin whose database is restored or promoted: who is within the fork goes on, others take a snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import pytest

from fedstac.db.connections import Connection
from fedstac.demo import embedded, sample
from fedstac.settings import Settings
from tests.messaging.journeys import BROKERS, ROADS, Road, items, journey, road
from tests.support.databases import databases, name_in
from tests.support.nodes import Api, running

ANOTHER_TIMELINE = (
    "UPDATE fedstac.feed_state SET timeline = '0000FFFF'"  # what a restore to a moment, or a standby, has
)


@pytest.fixture(params=ROADS)
async def way(request: pytest.FixtureRequest) -> AsyncIterator[Road]:
    kind = request.param
    async with road(kind, request.getfixturevalue(BROKERS[kind]) if kind in BROKERS else None) as made:
        yield made


@pytest.fixture
def copies(cluster: embedded.Cluster, dsn: str) -> Iterator[Callable[[], str]]:
    """Make copies of the publishing node's database: backups of it, as it is at that moment."""
    with databases(cluster, name_in(dsn)) as copy:
        yield copy


@asynccontextmanager
async def west(dsn: str) -> AsyncIterator[Api]:
    settings = Settings(dsn=dsn, node="west", default_wait_seconds=60, request_seconds=120, _env_file=None)
    async with running(settings) as api:
        yield api


@asynccontextmanager
async def session(dsn: str) -> AsyncIterator[Connection]:
    conn = await asyncpg.connect(dsn)
    try:
        yield conn
    finally:
        await conn.close()


async def snapshots(api: Api) -> int:
    """Return how many pages of its snapshot a publishing node has served."""
    text = (await api.admin.get("/metrics")).text
    name = "fedstac_http_request_duration_seconds_count{"
    lines = [line for line in text.splitlines() if line.startswith(name) and 'route="/snapshot"' in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


async def test_a_restored_origin_is_followed_from_the_fork_or_from_a_snapshot(
    dsn: str, copies: Callable[[], str], make_database: Callable[[], str], way: Road
) -> None:
    everything, near, far = items(30), make_database(), make_database()
    async with west(dsn) as api, session(dsn) as conn:
        await api.admin.post("/collections", json=sample.collection())
        await way.build(conn)
        for database in (near, far):
            async with journey(api, partial(str, database), way, snapshot_first=False) as trip:
                if database == near:
                    await trip.publish(*everything[:10])
                async with trip.following():
                    await trip.arrive()
    backup = copies()
    async with west(dsn) as api, journey(api, lambda: far, way, snapshot_first=False) as trip:
        await trip.publish(*everything[10:20])  # what the backup does not have
        async with trip.following():
            await trip.arrive()
        lost_cursor = await trip.cursor()
    async with session(backup) as conn:
        await conn.execute(ANOTHER_TIMELINE)
    async with west(backup) as api:
        for database, may_take_snapshot in ((near, False), (far, True)):
            async with journey(api, partial(str, database), way, snapshot_first=False) as trip:
                if not may_take_snapshot:
                    await trip.publish(*everything[15:25])
                async with trip.following():
                    await trip.arrive()
                    await trip.publish(*(everything[25:28] if may_take_snapshot else everything[28:]))
                    await trip.arrive()
                assert await trip.differences() == []
                assert await trip.cursor() == await trip.head() != lost_cursor
                assert (await snapshots(api) > 0) is may_take_snapshot
                found = {row["id"] for row in await ids(trip.east.settings.dsn)}
                assert not found & {item["id"] for item in everything[10:15]}


async def ids(dsn: str) -> list[asyncpg.Record]:
    async with session(dsn) as conn:
        return await conn.fetch("SELECT id FROM pgstac.items")


async def test_a_clean_switchover_reloads_nothing(
    dsn: str, copies: Callable[[], str], make_database: Callable[[], str], way: Road
) -> None:
    everything, east = items(20), make_database()
    async with west(dsn) as api, session(dsn) as conn:
        await api.admin.post("/collections", json=sample.collection())
        await way.build(conn)
        async with journey(api, partial(str, east), way, snapshot_first=False) as trip:
            await trip.publish(*everything[:10])
            async with trip.following():
                await trip.arrive()
            before = await trip.cursor()
    standby = copies()
    async with session(standby) as conn:
        await conn.execute(ANOTHER_TIMELINE)
    async with west(standby) as api, journey(api, partial(str, east), way, snapshot_first=False) as trip:
        await trip.publish(*everything[10:])
        async with trip.following():
            await trip.arrive()
        outcomes = await trip.outcomes()
        assert (outcomes["applied"], outcomes["ignored"]) == (10, 0)
        assert await snapshots(api) == 0
        assert await trip.differences() == []
        assert before.epoch < (await trip.cursor()).epoch
