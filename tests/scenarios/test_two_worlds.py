"""Two databases, one with hidden things and one without them: who may not see them gets the same bytes from both.

The second database is a copy of the first, made before a dataset was published, found by searches and marked for
deletion. Afterwards the hrefs of a retracted dataset are others in the copy.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncpg
import httpx
import orjson
import psycopg
import pytest
import pytest_asyncio

from fedstac.api.search.query import MAC_BYTES
from fedstac.db import collections
from fedstac.demo import embedded, sample
from fedstac.domain.visibility import Visibility
from fedstac.settings import Settings
from tests.support import nodes as running_nodes
from tests.support.clients import newer
from tests.support.databases import databases, name_in
from tests.support.nodes import Api
from tests.support.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("two worlds")]

Json = dict[str, Any]
ITEMS = list(sample.items(30))
PATH = "/collections/CMIP6/items"
LATER = newer(ITEMS[0])
HIDDEN = [newer(ITEMS[0], "18500101"), *sample.items(3, start=5000)]  # an older version of a dataset, and new ones
RETRACTED = [ITEMS[1]["id"], ITEMS[2]["id"]]
SECRET, OTHER = "https://secret-one.example", "https://secret-two.example"
ASKING = ("date", "x-request-id", "server")  # headers that differ anyway
UNSEEN = HIDDEN[1]["properties"]["cmip6:source_id"]
FACETS = ["cmip6_source_id_frequency", "cmip6_variable_id_frequency", "total_count", "datetime_min", "datetime_max"]

POSTED: list[Json] = [
    {}, {"limit": 3}, {"limit": 1000}, {"retracted": "include"}, {"retracted": "only"},
    {"retracted": "only", "limit": 1},
    {"ids": [HIDDEN[0]["id"], HIDDEN[1]["id"], ITEMS[0]["id"]], "retracted": "include"},
    {"filter": {"op": "in", "args": [{"property": "retracted"}, [False]]}},
    {"filter": {"op": "=", "args": [{"property": "cmip6:source_id"}, UNSEEN]}, "retracted": "include"},
    {"filter": {"op": "=", "args": [{"property": "source_id"}, UNSEEN]}, "limit": 2},
    {"filter": {"op": "like", "args": [{"property": "id"}, "CMIP6.%"]}, "limit": 5, "sortby": [{"field": "id"}]},
    {"filter": {"op": "=", "args": [{"property": "fedstac:state"}, "marked"]}},
    {"filter": {"op": "isNull", "args": [{"property": "nothing"}]}, "limit": 4},
    {"bbox": [-180, -90, 180, 90], "datetime": "1800-01-01T00:00:00Z/..", "limit": 7},
    {"sortby": [{"field": "updated", "direction": "desc"}], "limit": 2, "retracted": "include"},
    {"query": {"latest": {"eq": True}}, "limit": 6}, {"collections": ["CMIP6"], "limit": 200},
    {"fields": {"include": ["assets", "links"]}, "retracted": "only"},
]  # fmt: skip
ADDRESSES = [
    PATH, f"{PATH}?retracted=include&limit=200", "/search?limit=5&sortby=-id", "/search?filter=latest=true&limit=4",
    "/queryables", "/collections/CMIP6/queryables", "/collections", "/collections/CMIP6", "/",
    *(f"{PATH}/{id}{suffix}" for id in (ITEMS[0]["id"], LATER["id"], *RETRACTED, *(each["id"] for each in HIDDEN), "x")
      for suffix in ("", "/history", "?access=full")),
    *(f"{path}?aggregations={','.join(FACETS)}{more}" for path in ("/aggregate", "/collections/CMIP6/aggregate")
      for more in ("", "&filter=latest=true&filter-lang=cql2-text")),
    "/aggregations", "/collections/CMIP6/aggregations", "/aggregate", "/collections/CMIP6/aggregate",
]  # fmt: skip


@dataclass(frozen=True)
class Worlds:
    """The node with hidden things, the one without them, and the tokens of both."""

    hiding: Api
    plain: Api
    tokens: dict[str, str]


async def publish(api: Api, *documents: Json) -> None:
    body = {"type": "FeatureCollection", "features": documents}
    answer = await api.admin.post(PATH, json=body, headers={"Prefer": "wait=60"})
    assert answer.json()["status"] == "done", answer.text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds(cluster: embedded.Cluster, template: str) -> AsyncIterator[Worlds]:
    with databases(cluster, template) as make:
        first = make()
        settings = Settings(
            dsn=first, node="west", default_wait_seconds=60, public_url="https://stac.example", _env_file=None
        )
        async with running_nodes.running(settings) as api:
            (await api.admin.post("/collections", json=sample.collection())).raise_for_status()
            await publish(api, *(_with_secret(item) if item["id"] in RETRACTED else item for item in ITEMS))
            await publish(api, LATER)
            for id in RETRACTED:
                why = {"reason": "wrong", "replaced_by": HIDDEN[1]["id"]}
                (await api.admin.post(f"{PATH}/{id}/retract", json=why)).raise_for_status()
            tokens = api.tokens
        with databases(cluster, f'"{name_in(first)}"') as copy:
            second = copy()
            with psycopg.connect(cluster.dsn(name_in(second)), autocommit=True) as conn:
                conn.execute("UPDATE fedstac.record SET document = replace(document, %s, %s)", (SECRET, OTHER))
            async with (
                running_nodes.running(settings) as hiding,
                running_nodes.running(settings.model_copy(update={"dsn": second})) as plain,
            ):
                for api in (hiding, plain):
                    await until(partial(is_from_memory, api))
                await publish(hiding, *HIDDEN)
                warm = await hiding.anyone.post("/search", json={"limit": 200, "retracted": "include"})
                assert {each["id"] for each in HIDDEN} <= {each["id"] for each in warm.json()["features"]}
                for address in ADDRESSES:
                    await hiding.anyone.get(address)
                for each in HIDDEN:
                    (await hiding.admin.delete(f"{PATH}/{each['id']}")).raise_for_status()
                yield Worlds(hiding, plain, tokens)


async def is_from_memory(api: Api) -> bool:
    """Tell whether a page comes from the coded columns: its tokens say so."""
    page = (await api.anyone.post("/search", json={"limit": 1})).json()
    token = next(link["body"]["token"] for link in page["links"] if link["rel"] == "next")
    sides = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[MAC_BYTES:])
    return bool(sides[3])


def _with_secret(item: Json) -> Json:
    """Return a dataset whose files are at an address that nobody may learn."""
    text = orjson.dumps(item).decode()
    for asset in item["assets"].values():
        text = text.replace(asset["href"], SECRET + "/" + asset["href"].rpartition("/")[2])
    document: Json = orjson.loads(text)
    return document


def seen(answer: httpx.Response) -> tuple[int, dict[str, str], str]:
    headers = {name: value for name, value in answer.headers.items() if name not in ASKING}
    return answer.status_code, headers, answer.text.replace(answer.headers["x-request-id"], "")


@pytest.mark.parametrize("who", ["nobody", "publisher:NCAR", "node:east", "node:south"])
async def test_who_may_not_see_gets_the_same_bytes(worlds: Worlds, who: str) -> None:
    assert all("NCAR" not in each["id"] for each in (*HIDDEN, *ITEMS[:3]))
    headers = {"Authorization": f"Bearer {worlds.tokens[who]}"} if who in worlds.tokens else {}
    both = (worlds.hiding.anyone, worlds.plain.anyone)
    count = 0

    async def compare(method: str, address: str, body: Any = None) -> httpx.Response:
        nonlocal count
        count += 1
        content = None if body is None else orjson.dumps(body)
        kind = {"Content-Type": "application/json"} if body is not None else {}
        one, other = [
            await client.request(method, address.removeprefix("https://stac.example"), content=content,
                                 headers={**headers, **kind})
            for client in both
        ]  # fmt: skip
        assert seen(one) == seen(other), (method, address, body)
        assert SECRET not in one.text
        return one

    for address in ADDRESSES:
        answer = await compare("GET", address)
        assert answer.status_code in (200, 401, 404), answer.text
        if answer.status_code == 200 and "features" in answer.text[:60]:
            await follow(compare, answer.json())
    for body in POSTED:
        answer = await compare("POST", "/search", body)
        assert answer.status_code == 200, answer.text
        await follow(compare, answer.json())
    ids = [each["id"] for each in (*HIDDEN, *ITEMS)]
    await compare("POST", "/datasets/status", ids)
    await compare("POST", "/datasets/status", {"ids": ids, "collections": ["CMIP6"]})
    for each in HIDDEN:
        await compare("OPTIONS", f"{PATH}/{each['id']}")
    assert count > 100


async def follow(compare: Any, page: Json) -> None:
    """Compare all pages to the end, and back."""
    for rel in ("next", "prev"):
        while (link := next((each for each in page["links"] if each["rel"] == rel), None)) is not None:
            token = link["body"]["token"] if link["method"] == "POST" else link["href"].rpartition("token=")[2]
            assert SECRET.encode() not in base64.urlsafe_b64decode(token + "==")
            page = (await compare(link["method"], link["href"], link.get("body"))).json()


async def test_an_administrator_sees_both_worlds(worlds: Worlds) -> None:
    """What the comparison hides is there: without this it would prove nothing."""
    item = await worlds.hiding.admin.get(f"{PATH}/{RETRACTED[0]}", params={"access": "full"})
    assert SECRET in item.text
    assert OTHER in (await worlds.plain.admin.get(f"{PATH}/{RETRACTED[0]}", params={"access": "full"})).text
    assert (await worlds.hiding.admin.get(f"{PATH}/{HIDDEN[0]['id']}/history")).status_code == 200
    assert (await worlds.plain.admin.get(f"{PATH}/{HIDDEN[0]['id']}/history")).status_code == 404
    conn = await asyncpg.connect(worlds.hiding.settings.dsn)
    try:
        assert await conn.fetchval("SELECT count(*) FROM fedstac.record WHERE state = 'marked'") == len(HIDDEN)
        assert (await collections.totals(conn, Visibility.INCLUDE))["CMIP6"] == len(ITEMS) + 1
    finally:
        await conn.close()
