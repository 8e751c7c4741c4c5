"""Consumers: a new one is a handler and a role, shares a database with the others, and outlives events that kill."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.demo import embedded, sample
from fedstac.domain.events import Cursor
from fedstac.messaging.origin import Origin
from fedstac.workers import roles
from fedstac.workers.pages import HandledPage, Page, PageReading, Rejection
from tests.support import deadly_event
from tests.support.forking import Forks
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until

# --- everything that a fourth consumer needs ---


class Counter:
    """Counts the events of each dataset, and lets its acknowledgement wait."""

    consumer = "counter"

    def __init__(self, node: Node, origin: Origin) -> None:
        self.may_acknowledge = allowance

    async def prepare(self, page: Page) -> PageReading:
        return PageReading({}, [Rejection(event, "no dataset") for event in page.events if "id" not in event["data"]])

    async def handle(self, conn: Connection, page: Page) -> HandledPage:
        ids = [event["data"]["id"] for event in page.events]
        await conn.execute("INSERT INTO public.counted SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", ids)
        return HandledPage(len(ids), 0)

    async def acknowledgeable(self, origin: str, applied: Cursor) -> Cursor:
        return applied if self.may_acknowledge.is_set() else Cursor(0, 0)


allowance = asyncio.Event()
COUNTER = roles.consumer("counter", Counter)

# ---


def make_table(cluster: embedded.Cluster, dsn: str) -> None:
    with psycopg.connect(cluster.dsn(urlsplit(dsn).path.lstrip("/")), autocommit=True) as conn:
        conn.execute("CREATE TABLE public.counted (id text PRIMARY KEY)")
        conn.execute("GRANT SELECT, INSERT ON public.counted TO fedstac_writer")


async def acknowledged(api: Api) -> dict[str, int]:
    """Return the position through which each consumer has acknowledged at the origin."""
    body = (await api.admin.get("/events/head", headers=bearer(api))).json()
    return {row["node"]: int(row["through"].partition(".")[2]) for row in body["nodes"]}


def bearer(api: Api) -> dict[str, str]:
    return {"Authorization": f"Bearer {api.tokens['node:east']}"}


async def test_a_fourth_role_follows_beside_an_index_node_in_one_database(
    api: Api, start_api: StartApi, make_database: Callable[[], str], cluster: embedded.Cluster
) -> None:
    allowance.clear()
    dsn = make_database()
    make_table(cluster, dsn)
    index = await start_api(dsn=dsn, node="east", source=api.url, source_token=api.tokens["node:east"])
    items = list(sample.items(3, versions=1))
    body = {"type": "FeatureCollection", "features": items}
    assert (await api.admin.post("/collections/CMIP6/items", json=body)).status_code == 200
    async with (
        bootstrap.node(index.settings) as node,
        bootstrap.beside(node, COUNTER.parts(index.settings), asyncio.Event()),
        node.pool.acquire() as conn,
    ):

        async def both_have_everything() -> bool:
            counted = {row[0] for row in await conn.fetch("SELECT id FROM public.counted")}
            found = (await index.anyone.get("/search")).json()["features"]
            return counted == {item["id"] for item in found} == {item["id"] for item in items}

        await until(both_have_everything)
        places = await conn.fetch("SELECT consumer, origin FROM fedstac.consumer_cursor ORDER BY 1")
        assert [tuple(row) for row in places] == [("counter", "west"), ("index", "west")]
        # the new one parks what it does not take; that is no matter of the other
        parked = await conn.fetch("SELECT consumer, subject FROM fedstac.parked_event")
        assert [tuple(row) for row in parked] == [("counter", "CMIP6")]

        async def is_shown() -> bool:
            body = (await index.anyone.get("/healthcheck")).json()
            return bool(body["follower"] == "following" and body["parts"].get("counter", {}).get("running") == 1)

        await until(is_shown)

        async def index_has_acknowledged() -> bool:
            return "east" in await acknowledged(api)

        await until(index_has_acknowledged)
        assert "east/counter" not in {name: pos for name, pos in (await acknowledged(api)).items() if pos}
        allowance.set()

        async def both_have_acknowledged() -> bool:
            through = await acknowledged(api)
            return through.get("east/counter") == through.get("east")

        await until(both_have_acknowledged)
    [request] = (await api.admin.get("/requests")).json()["requests"][:1]
    visible = (await api.admin.get(f"/requests/{request['id']}")).json()["visible"]
    assert [entry["node"] for entry in visible] == ["east"]


# --- events that kill ---


@pytest.mark.long
async def test_an_event_that_kills_the_process_is_parked_after_a_few_deaths_and_the_rest_is_applied(
    api: Api, make_database: Callable[[], str], command_forks: Forks
) -> None:
    items = list(sample.items(40, versions=1))
    killer = items[17]["id"]
    body = {"type": "FeatureCollection", "features": items}
    assert (await api.admin.post("/collections/CMIP6/items", json=body)).status_code == 200
    dsn = make_database()
    environment = {
        **os.environ, "FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "east", "FEDSTAC_PORT": "0", "FEDSTAC_SOURCE": api.url,
        "FEDSTAC_SOURCE_TOKEN": api.tokens["node:east"], **deadly_event.environment(killer),
    }  # fmt: skip
    conn = await asyncpg.connect(dsn)

    async def parked() -> list[Any]:
        return [row[0] for row in await conn.fetch("SELECT detail FROM fedstac.parked_event")]

    deaths = 0
    while not await parked():
        assert deaths < 9
        process = command_forks.start(["index-node"], environment=environment, output=None)
        try:
            async with asyncio.timeout(PATIENCE):
                while process.poll() is None and not await parked():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, PATIENCE)
        deaths += process.returncode == -9
    assert await parked() == ["3 processes of this node ended while they applied it"]
    shown = {row[0] for row in await conn.fetch("SELECT id FROM fedstac.record")}
    assert shown == {item["id"] for item in items} - {killer}
    assert await conn.fetchval("SELECT deaths FROM fedstac.consumer_cursor") == 0
    await conn.close()
