"""Retracted datasets: left out of searches that do not speak of them, and without files for almost everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio
from pystac_client import Client

from fedstac.db import nodes
from fedstac.demo import embedded, sample
from tests.support import nodes as running_nodes
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
ITEMS = list(sample.items(8))
INSTITUTION = ITEMS[0]["properties"]["cmip6:institution_id"]
RETRACTED, OTHER = ITEMS[0]["id"], ITEMS[1]["id"]
ALL = {item["id"] for item in ITEMS}
PATH = "/collections/CMIP6/items"
WHY = {"reason": "wrong forcing", "errata": "https://errata.esgf.io/1", "replaced_by": OTHER}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def west(cluster: embedded.Cluster, template: str) -> AsyncIterator[Api]:
    """A node with eight datasets, of which the first one is retracted."""
    async with running_nodes.publishing(cluster, template, {"CMIP6": ITEMS}) as api:
        (await api.admin.post(f"{PATH}/{RETRACTED}/retract", json=WHY)).raise_for_status()
        yield api


def ids(answer: httpx.Response) -> set[str]:
    """Return what a page found, after a look at its numbers."""
    assert answer.status_code == 200, answer.text
    page = answer.json()
    found = {feature["id"] for feature in page["features"]}
    assert page["numberMatched"] == page["numMatched"] == page["numberReturned"] == len(found)
    return found


IN_FALSE = {"op": "in", "args": [{"property": "retracted"}, [False]]}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({}, ALL - {RETRACTED}),
        ({"collections": ["CMIP6"]}, ALL - {RETRACTED}),
        ({"ids": [RETRACTED, OTHER]}, {OTHER}),
        ({"retracted": "exclude"}, ALL - {RETRACTED}),
        ({"retracted": "include"}, ALL),
        ({"retracted": "only"}, {RETRACTED}),
        ({"retracted": "only", "collections": ["CMIP6", "nowhere"]}, {RETRACTED}),
        ({"retracted": "only", "collections": ["nowhere"]}, set()),
        ({"retracted": "only", "ids": [OTHER]}, set()),
        ({"filter": IN_FALSE}, ALL - {RETRACTED}),
        ({"filter": {"op": "=", "args": [{"property": "properties.retracted"}, True]}}, {RETRACTED}),
        ({"filter": {"op": "=", "args": [{"property": "state"}, "retracted"]}}, {RETRACTED}),
        ({"filter": {"op": "=", "args": [{"property": "latest"}, False]}}, set()),
        ({"filter": {"op": "=", "args": [{"property": "retracted"}, True]}, "retracted": "exclude"}, set()),
        ({"query": {"retracted": {"eq": True}}}, {RETRACTED}),
        ({"query": {"fedstac:retraction.reason": {"contains": "forcing"}}}, {RETRACTED}),
        ({"sortby": [{"field": "retracted", "direction": "asc"}]}, ALL - {RETRACTED}),
        ({"fields": {"include": ["retracted"]}}, ALL - {RETRACTED}),
    ],
)
async def test_a_search_finds_them_if_it_speaks_of_them(west: Api, body: Json, found: set[str]) -> None:
    assert ids(await west.anyone.post("/search", json=body)) == found


async def test_get_takes_the_same_parameters(west: Api) -> None:
    for path in ("/search", PATH):
        assert ids(await west.anyone.get(path)) == ALL - {RETRACTED}
        assert ids(await west.anyone.get(path, params={"retracted": ""})) == ALL - {RETRACTED}
        assert ids(await west.anyone.get(path, params={"retracted": "include"})) == ALL
        assert ids(await west.anyone.get(path, params={"retracted": "only"})) == {RETRACTED}
        assert ids(await west.anyone.get(path, params={"filter": "retracted = true"})) == {RETRACTED}
        refusal = await west.anyone.get(path, params={"retracted": "yes"})
        assert refusal.status_code == 400
        assert "exclude, include, only" in refusal.json()["detail"]


async def test_pystac_client_sees_what_it_asks_for(west: Api) -> None:
    def count(**arguments: Any) -> int | None:
        matched: int | None = Client.open(west.url).search(**arguments).matched()
        return matched

    assert await asyncio.to_thread(count) == len(ALL) - 1
    assert await asyncio.to_thread(count, filter=IN_FALSE, filter_lang="cql2-json") == len(ALL) - 1
    assert await asyncio.to_thread(count, query={"retracted": {"eq": True}}) == 1


async def test_a_token_belongs_to_what_its_search_shows(west: Api) -> None:
    page = (await west.anyone.get("/search", params={"limit": 2, "retracted": "include"})).json()
    href = next(link["href"] for link in page["links"] if link["rel"] == "next")
    assert "retracted=include" in href
    assert (await west.anyone.get(href)).status_code == 200
    assert (await west.anyone.get(href.replace("retracted=include", "retracted=exclude"))).status_code == 400
    assert (await west.anyone.get(href.replace("&retracted=include", ""))).status_code == 400


async def test_its_files_are_for_those_who_could_reinstate_it(west: Api) -> None:
    files = set(ITEMS[0]["assets"])
    conn = await asyncpg.connect(west.settings.dsn)
    try:
        own = await nodes.issue_token(conn, "own", [f"publisher:{INSTITUTION}"])
    finally:
        await conn.close()
    tokens = {**west.tokens, "own": own}
    assert INSTITUTION != "NCAR"
    item, found = f"{PATH}/{RETRACTED}", {"retracted": "only"}
    for token, shown in (("admin", files), ("own", files), ("publisher:NCAR", set()), ("node:east", set())):
        headers = {"Authorization": f"Bearer {tokens[token]}"}
        for path, params in ((item, {}), ("/search", found)):
            plain = await west.anyone.get(path, params=params, headers=headers)
            assert assets(plain) == set()
            assert plain.headers.get("cache-control") in ("no-cache", None)
            full = await west.anyone.get(path, params={**params, "access": "full"}, headers=headers)
            assert assets(full) == shown, token
            assert full.headers["cache-control"] == "private, no-cache"
            assert "Authorization" in full.headers.get_list("vary", split_commas=True)
            assert "wrong forcing" in full.text
    posted = await west.admin.post("/search", json={**found, "access": "full"})
    assert assets(posted) == files
    assert (await west.anyone.get(item, params={"access": "full"})).status_code == 401
    assert (await west.anyone.get("/search", params={"access": "full"})).status_code == 401
    assert (await west.anyone.get(item, params={"access": "all"})).status_code == 400
    tags = [(await west.admin.get(item, params=params)).headers["etag"] for params in ({}, {"access": "full"})]
    assert tags[0] != tags[1]
    same = await west.admin.get(item, params={"access": "full"}, headers={"If-None-Match": tags[1]})
    assert same.status_code == 304


def assets(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    [item] = body.get("features", [body])
    assert item["properties"]["retracted"] is True
    return set(item["assets"])
