"""`verify --repair`: what an index node lacks, has wrong or too much is mended from its origin, without a snapshot."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

from fedstac.db import invariants
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.messaging.origin import Origin
from fedstac.workers import verifying
from fedstac.workers.verifying import DatasetDifference
from tests.db.writing import titled
from tests.messaging.journeys import HttpRoad, Journey, journey
from tests.support.nodes import Api

ITEMS = [copy.deepcopy(dict(item)) for item in sample.items(30)]


@pytest.fixture
async def trip(api: Api, make_database: Callable[[], str]) -> AsyncIterator[Journey]:
    """An index node that has everything of a publishing node."""
    async with journey(api, make_database, HttpRoad()) as made:
        await made.publish(*ITEMS)
        async with made.following():
            await made.arrive()
        yield made


@pytest.fixture
async def here(trip: Journey) -> AsyncIterator[Connection]:
    """A session at the index node's database that may spoil it."""
    conn = await asyncpg.connect(trip.east.settings.dsn)
    yield conn
    await conn.close()


async def repair(trip: Journey) -> dict[str, str | None]:
    """Verify and repair; return the reason of what stays, by id."""
    async with Origin(trip.source) as origin:
        comparison = await verifying.verify(trip.east, origin)
        repairs = await verifying.repair(trip.east, origin, comparison.differences)
    return {each.difference.id: each.reason for each in repairs}


async def lose(conn: Connection, ids: list[str]) -> None:
    leaf = await conn.fetchval("SELECT '_items_' || key FROM pgstac.collections WHERE id = 'CMIP6'")
    await conn.execute(f"DELETE FROM pgstac.{leaf} WHERE id = ANY ($1)", ids)
    shown = "SELECT count(*) FROM fedstac.record WHERE id = ANY ($1) AND state IN ('published', 'retracted')"
    await conn.execute(f"INSERT INTO fedstac.tally (collection, records) SELECT 'CMIP6', -({shown})", ids)
    await conn.execute("DELETE FROM fedstac.record WHERE id = ANY ($1)", ids)


async def test_what_is_missing_different_or_too_much_is_mended(trip: Journey, here: Connection) -> None:
    ids = [item["id"] for item in ITEMS]
    await lose(here, ids[:12])
    await here.execute(
        "UPDATE fedstac.record SET digest = '\\x00', publisher = 'mallory' WHERE id = ANY ($1)", ids[12:15]
    )
    await here.execute(
        """INSERT INTO fedstac.record SELECT (jsonb_populate_record(r, jsonb_build_object(
               'id', r.id || '.extra', 'latest', false, 'claims_latest', false, 'n', nextval('fedstac.record_n')))).*
           FROM fedstac.record r WHERE id = $1""",
        ids[20],
    )
    snapshots = await here.fetchval("SELECT count(*) FROM fedstac.consumer_cursor WHERE snapshot IS NOT NULL")
    assert await repair(trip) == dict.fromkeys([*ids[:15], f"{ids[20]}.extra"])
    assert await trip.differences() == []
    assert snapshots == 0
    async with trip.east.pool.acquire() as conn:
        assert {broken.name for broken in await invariants.check(conn)} <= {"I8"}  # the tally of the planted record
    assert [tuple(row) for row in await here.fetch("SELECT action, items FROM fedstac.audit")] == [("repair", 16)]
    found = {row["id"] for row in await here.fetch("SELECT id FROM pgstac.items")}
    assert found == set(ids)
    assert await repair(trip) == {}


async def test_what_became_newer_meanwhile_stays(trip: Journey, here: Connection) -> None:
    item = ITEMS[0]
    async with Origin(trip.source) as origin:
        state = await origin.current("CMIP6", [item["id"]])
        await trip.publish(titled(item, "newer"))
        async with trip.following():
            await trip.arrive()
        origin.current = lambda *_: answer(state)  # type: ignore[method-assign,assignment]
        difference = DatasetDifference("CMIP6", item["id"], "different", 1, 1)
        await verifying.repair(trip.east, origin, [difference])
    assert await trip.differences() == []
    assert '"newer' in await here.fetchval("SELECT document FROM fedstac.record WHERE id = $1", item["id"])


async def answer(state: object) -> object:
    return state


async def test_a_dataset_that_came_up_meanwhile_is_not_removed_as_too_much(trip: Journey, here: Connection) -> None:
    place = await here.fetchrow("SELECT epoch, seq FROM fedstac.record WHERE id = $1", ITEMS[0]["id"])
    assert place is not None
    async with Origin(trip.source) as origin:
        difference = DatasetDifference("CMIP6", ITEMS[0]["id"], "extra here", place["epoch"], place["seq"])
        await verifying.repair(trip.east, origin, [difference])
    assert await trip.differences() == []


async def test_what_this_node_cannot_take_stays_with_its_reason(
    trip: Journey, here: Connection, conn: Connection
) -> None:
    id = ITEMS[0]["id"]
    await lose(here, [id])
    await conn.execute("UPDATE fedstac.record SET cv_version = '9.9' WHERE id = $1", id)
    reasons = await repair(trip)
    assert "vocabulary CMIP6 9.9 cannot be had" in (reasons[id] or "")


async def test_the_latest_version_is_right_after_a_repair(trip: Journey, here: Connection) -> None:
    rows = await here.fetch("SELECT lineage FROM fedstac.record GROUP BY 1 HAVING count(*) > 1 LIMIT 3")
    ids = [
        row["id"]
        for row in await here.fetch(
            "SELECT id FROM fedstac.record WHERE lineage = ANY ($1)", [row["lineage"] for row in rows]
        )
    ]
    assert ids
    latest = await here.fetch("SELECT id FROM fedstac.record WHERE latest ORDER BY id")
    for lost in (ids, ids[::2], ids[1::2]):
        await lose(here, lost)
        await repair(trip)
        assert await here.fetch("SELECT id FROM fedstac.record WHERE latest ORDER BY id") == latest
    assert await trip.differences() == []


async def test_a_node_of_the_federation_asks_for_the_state_of_named_datasets(api: Api, trip: Journey) -> None:
    bearer = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    for query in ("collection=CMIP6", "id=a", "collection=CMIP6" + "&id=x" * 101):
        assert (await api.anyone.get(f"/snapshot?{query}", headers=bearer)).status_code == 400
    query = f"collection=CMIP6&id={ITEMS[0]['id']}&id=unknown"
    body = (await api.anyone.get(f"/snapshot?{query}", headers=bearer)).json()
    assert ([each["data"]["id"] for each in body["entries"]], body["next"]) == ([ITEMS[0]["id"]], None)
