"""Every source of events does the same: each event once and in order, and one event delays no other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import asyncpg
import orjson
import pytest

from fedstac.db import invariants, parked
from fedstac.db.connections import Connection
from fedstac.demo import embedded
from fedstac.demo.brokers import NatsServer
from tests.db.spoiling import SPOILS
from tests.db.writing import titled
from tests.messaging.journeys import BROKERS, ROADS, Json, Road, items, journey, road
from tests.support.nodes import Api
from tests.support.waiting import until


@pytest.fixture(params=ROADS)
async def way(request: pytest.FixtureRequest) -> AsyncIterator[Road]:
    kind = request.param
    async with road(kind, request.getfixturevalue(BROKERS[kind]) if kind in BROKERS else None) as made:
        yield made


@pytest.fixture
async def owner(cluster: embedded.Cluster, dsn: str) -> AsyncIterator[Connection]:
    """A session at the publishing node's database that may change what nobody may."""
    connection = await asyncpg.connect(cluster.dsn(urlsplit(dsn).path.removeprefix("/")))
    yield connection
    await connection.close()


async def test_events_are_applied_once_and_a_restart_goes_on_where_it_was(
    api: Api, conn: Connection, make_database: Callable[[], str], way: Road
) -> None:
    first, second, third = items(30)[:10], items(30)[10:20], items(30)[20:]
    await way.build(conn)
    async with journey(api, make_database, way, snapshot_first=False) as trip:
        await trip.publish(*first)
        async with trip.following():
            await trip.arrive()
            await trip.publish(*second)
            await trip.arrive()
        await trip.publish(*third)
        async with trip.following():
            await trip.arrive()
        assert await trip.differences() == []
        outcomes = await trip.outcomes()
        assert (outcomes["applied"], outcomes["ignored"]) == ((await trip.head()).pos, 0)
        async with trip.east.pool.acquire() as here:
            assert await invariants.check(here) == []


async def test_a_new_index_node_takes_a_snapshot_and_goes_on(
    api: Api, conn: Connection, make_database: Callable[[], str], way: Road
) -> None:
    await way.build(conn)
    async with journey(api, make_database, way) as trip:
        await trip.publish(*items(10))
        async with trip.following():
            await trip.arrive()
            await trip.publish(*items(15)[10:])
            await trip.arrive()
        assert await trip.differences() == []


async def test_what_a_road_has_lost_comes_from_the_publishing_node(
    api: Api, conn: Connection, make_database: Callable[[], str], way: Road
) -> None:
    everything = items(30)
    await way.build(conn)
    async with journey(api, make_database, way, snapshot_first=False) as trip:
        await trip.publish(*everything[:10])
        async with trip.following():
            await trip.arrive()
        await trip.publish(*everything[10:20])
        await way.lose()
        await trip.publish(*everything[20:])
        async with trip.following():
            await trip.arrive()
        assert await trip.differences() == []
        assert (await trip.outcomes())["ignored"] == 0


async def test_while_the_broker_is_away_events_come_from_the_publishing_node(
    api: Api, conn: Connection, make_database: Callable[[], str], own_nats_server: NatsServer
) -> None:
    everything = items(40)
    async with road("nats", own_nats_server) as way:
        await way.build(conn)
        async with journey(api, make_database, way, snapshot_first=False) as trip:
            await trip.publish(*everything[:10])
            async with trip.following():
                await trip.arrive()
                own_nats_server.process.kill()
                await trip.publish(*everything[10:20])
                await trip.arrive()  # the broker is still away
            await trip.publish(*everything[20:30])
            async with trip.following():  # also where it is away when an index node starts
                await trip.arrive()
                own_nats_server.process.start()
                await trip.publish(*everything[30:])
                await trip.arrive()
            assert await trip.differences() == []
            assert (await trip.outcomes())["ignored"] == 0


async def test_poison_of_every_kind_is_parked_delays_nobody_and_is_healed_by_a_later_event(
    api: Api, conn: Connection, owner: Connection, make_database: Callable[[], str], way: Road
) -> None:
    everything = items(len(SPOILS) + 10)
    poisoned, sound = everything[: len(SPOILS)], everything[len(SPOILS) :]
    async with journey(api, make_database, way, snapshot_first=False) as trip:
        await trip.publish(*poisoned)
        await trip.publish(*sound[:5])
        await spoil(owner, [item["id"] for item in poisoned])
        await way.build(conn)
        head = await trip.head()

        async def all_is_sent() -> bool:
            return not await conn.fetch("SELECT FROM fedstac.sink WHERE pos < $1", head.pos)

        await until(all_is_sent)
        litter = await way.litter()
        await trip.publish(*sound[5:])
        async with trip.following():
            print(f"arrived after {await trip.arrive():.1f} s")
            async with trip.east.pool.acquire() as here:
                found = {row[0] for row in await here.fetch("SELECT id FROM fedstac.record")}
                assert {item["id"] for item in sound} <= found

                async def litter_is_parked() -> bool:
                    return await here.fetchval(
                        "SELECT count(*) = $1 FROM fedstac.parked_event WHERE outcome = 'rejected' AND seq = 0", litter
                    ) is True  # fmt: skip

                await until(litter_is_parked) if litter else None
                rows = await parked.every(here)
                assert len(rows) + len(found) >= len(everything) + litter
                troubles_count = await here.fetchval("SELECT count(*) FROM fedstac.trouble WHERE kind = 'parked'")
                assert troubles_count >= min(len(rows), parked.MOST_REPORTED)
                await trip.publish(*(titled(item, f"mended {n}") for n, item in enumerate(poisoned)))
                print(f"arrived after {await trip.arrive():.1f} s")
                left = [row for row in await parked.every(here) if row.subject.startswith("CMIP6/CMIP6.")]
                assert left == []
        assert await trip.differences() == []


async def spoil(owner: Connection, ids: list[str]) -> None:
    """Spoil the stored event of each dataset in a way of its own."""
    await owner.execute("SET session_replication_role = replica")  # the log cannot be changed otherwise
    for id, change in zip(ids, SPOILS, strict=True):
        event: Json = orjson.loads(await owner.fetchval("SELECT event FROM fedstac.outbox WHERE dataset = $1", id))
        change(event)
        await owner.execute("UPDATE fedstac.outbox SET event = $2 WHERE dataset = $1", id, orjson.dumps(event).decode())
