"""Every source of events does the same: each event once and in order, and one event delays no other."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import asyncpg
import orjson
import pytest

from fedstac.db import invariants, parked
from fedstac.db.connections import Connection
from fedstac.demo import embedded
from fedstac.demo.brokers import NatsServer
from fedstac.domain.events import Cursor
from tests.db.spoiling import SPOILS, UNKNOWN_TYPE
from tests.db.writing import titled
from tests.messaging.journeys import BROKERS, ROADS, Journey, Json, Road, items, journey, road
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
    groups = range(0, len(SPOILS), 4)
    everything = items(len(SPOILS) + len(groups) + 7)
    poisoned, others = everything[: len(SPOILS)], everything[len(SPOILS) :]
    sound, later, last = others[: len(groups)], others[len(groups) : -2], others[-2:]
    harmless = SPOILS.index(UNKNOWN_TYPE)
    async with journey(api, make_database, way, snapshot_first=False) as trip:
        for start, item in zip(groups, sound, strict=True):  # it comes behind some of the poison
            await trip.publish(*poisoned[start : start + 4], item)
        event_ids = await spoil(owner, [item["id"] for item in poisoned])
        poison_ids = sorted(event_ids[:harmless] + event_ids[harmless + 1 :])
        await way.build(conn)
        await until_all_is_sent(conn, await trip.head())
        async with trip.following(), trip.east.pool.acquire() as here:
            seconds = await trip.arrive()
            print(f"{way.name}: {len(poison_ids)} kinds of poison; all others arrived after {seconds:.1f} s")
            assert await shown_ids(here, poisoned) == [poisoned[harmless]["id"]]
            assert await shown_ids(here, sound) == sorted(item["id"] for item in sound)
            assert await parked_ids(here) == poison_ids
            lags = [await lag_of(trip, here, item) for item in later]
            print(f"{way.name}: with all of it parked another lineage was {max(lags):.2f} s behind at most")
            litter = await way.litter()
            lags = [await lag_of(trip, here, item) for item in last]
            print(f"{way.name}: and behind {litter} messages that no relay wrote {max(lags):.2f} s at most")
            await until_all_are_told(here, conn, len(poison_ids) + litter)
            assert await parked_ids(here) == poison_ids
            await trip.publish(*(titled(item, f"mended {n}") for n, item in enumerate(poisoned)))
            print(f"{way.name}: healed after {await trip.arrive():.1f} s")
            assert await parked_ids(here) == []
            assert await shown_ids(here, poisoned) == sorted(item["id"] for item in poisoned)
        assert await trip.differences() == []


async def until_all_is_sent(origin: Connection, head: Cursor) -> None:
    """Wait until the sinks of a node have everything up to a place."""

    async def is_sent() -> bool:
        return not await origin.fetch("SELECT FROM fedstac.sink WHERE pos < $1", head.pos)

    await until(is_sent)


async def until_all_are_told(here: Connection, origin: Connection, count: int) -> None:
    """Wait until so many events are parked, each told to the operators of both nodes, by its name or among others."""

    async def are_told() -> bool:
        rows = await parked.every(here)
        exceptions = await origin.fetch("SELECT event_id FROM fedstac.node_exception WHERE node = 'east'")
        troubles = await here.fetch("SELECT what FROM fedstac.trouble WHERE kind = 'parked'")
        counts = [int(row["what"].split()[0]) for row in troubles if row["what"].endswith(" more")]
        return (
            len(rows) == count
            and {row.event_id for row in rows} == {row["event_id"] for row in exceptions}
            and len(troubles) - len(counts) + sum(counts) == count
        )

    await until(are_told)


async def spoil(owner: Connection, ids: list[str]) -> list[str]:
    """Spoil the stored event of each dataset in a way of its own. Return the ids of the events."""
    event_ids = []
    await owner.execute("SET session_replication_role = replica")  # the log cannot be changed otherwise
    for id, change in zip(ids, SPOILS, strict=True):
        event: Json = orjson.loads(await owner.fetchval("SELECT event FROM fedstac.outbox WHERE dataset = $1", id))
        event_ids.append(event["id"])
        change(event)
        await owner.execute("UPDATE fedstac.outbox SET event = $2 WHERE dataset = $1", id, orjson.dumps(event).decode())
    return event_ids


async def shown_ids(here: Connection, datasets: list[Json]) -> list[str]:
    """Return those of the datasets that searches of an index node find."""
    rows = await here.fetch(
        "SELECT id FROM pgstac.items WHERE id = ANY ($1::text[])", [each["id"] for each in datasets]
    )
    return sorted(row["id"] for row in rows)


async def parked_ids(here: Connection) -> list[str]:
    """Return the ids of the events that are parked; messages that are no events are left out."""
    return sorted(row.event_id for row in await parked.every(here) if row.seq or row.subject.startswith("CMIP6/CMIP6."))


async def lag_of(trip: Journey, here: Connection, item: Json) -> float:
    """Publish a dataset. Return the seconds from its commit until searches of the index node find it."""
    start = time.monotonic()
    await trip.publish(item)

    async def is_shown() -> bool:
        return await shown_ids(here, [item]) != []

    await until(is_shown)
    return time.monotonic() - start
