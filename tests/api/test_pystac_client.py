"""pystac-client, as it is installed, against a publishing node and an index node that follows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from pystac_client import Client, ConformanceClasses
from pystac_client.exceptions import APIError

from fedstac.demo import embedded, sample
from fedstac.settings import Settings
from fedstac.vocabularies.checker import stac_schemas
from tests.api import oracle
from tests.api.oracle import catalogue, expected, in_order, publish_catalogue
from tests.support import nodes as running_nodes
from tests.support.databases import databases
from tests.support.nodes import Api
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.asyncio(loop_scope="module")
T = TypeVar("T")
COLLECTIONS = ["CMIP6", "places"]


@dataclass(frozen=True)
class Federation:
    west: Api
    east: Api

    async def on_both(self, ask: Callable[[Client], T]) -> T:
        """Return what a question gives. It is answer_of in a thread of both nodes, which have to agree."""

        def answer_of(node: Api) -> T:
            return ask(Client.open(node.url))

        one, other = [await asyncio.to_thread(answer_of, node) for node in (self.west, self.east)]
        assert one == other
        return one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def federation(cluster: embedded.Cluster, template: str) -> AsyncIterator[Federation]:
    with databases(cluster, template) as make:
        publishing = Settings(dsn=make(), node="west", default_wait_seconds=60, _env_file=None)
        async with running_nodes.running(publishing) as west:
            await publish_catalogue(west)
            following = Settings(
                dsn=make(), node="east", source=west.url, source_token=west.tokens["node:east"], _env_file=None
            )
            async with running_nodes.running(following) as east:
                await caught_up(east)
                yield Federation(west, east)


async def caught_up(east: Api) -> None:
    """Wait until an index node shows the whole catalogue."""
    async with asyncio.timeout(PATIENCE):
        while True:
            page = (await east.anyone.post("/search", json={"limit": 1})).json()
            if page["numberMatched"] == len(catalogue()):
                return
            await asyncio.sleep(0.05)


def keys_of(items: Any) -> list[tuple[str, str]]:
    return [(item.collection_id, item.id) for item in items]


async def test_it_opens_and_knows_what_is_offered(federation: Federation) -> None:
    def ask(client: Client) -> Any:
        for name in ("CORE", "ITEM_SEARCH", "FILTER", "SORT", "FIELDS", "QUERY", "COLLECTIONS", "FEATURES"):
            assert client.conforms_to(ConformanceClasses[name]), name
        assert client.get_search_link()
        return sorted(child.id for child in client.get_children())

    assert await federation.on_both(ask) == COLLECTIONS


async def test_collections_and_items_by_name(federation: Federation) -> None:
    wanted = catalogue()[17]

    def ask(client: Client) -> Any:
        assert sorted(collection.id for collection in client.get_collections()) == COLLECTIONS
        collection = client.get_collection("CMIP6")
        assert collection is not None
        assert collection.description == sample.collection()["description"]
        item = collection.get_item(wanted.key[1])
        assert item is not None
        assert collection.get_item("absent") is None
        assert item.get_collection().id == "CMIP6"
        assert item.get_parent().id == "CMIP6"
        assert sum(1 for _ in client.get_collection("places").get_items()) == 48
        assert client.get_collection("CMIP6").get_queryables()["properties"]
        assert client.get_collection("absent") is None
        assets = {name: asset.href for name, asset in item.assets.items()}
        return item.id, item.properties, item.geometry, assets

    _, properties, geometry, assets = await federation.on_both(ask)
    assert properties["latest"] is wanted.latest
    assert geometry == wanted.document["geometry"]
    assert assets == {name: asset["href"] for name, asset in wanted.document["assets"].items()}


async def test_it_pages_through_everything_once_and_all_of_it_is_valid(federation: Federation) -> None:
    schema, _ = stac_schemas()

    def ask(client: Client) -> Any:
        search = client.search(limit=61)
        items = list(search.items_as_dicts())
        assert search.matched() == len(items) == len(catalogue())
        for item in items:
            schema.validate(item)
            assert "datetime" in item["properties"]
        return sorted((item["collection"], item["id"]) for item in items)  # nodes differ in the order of those alike

    found = await federation.on_both(ask)
    assert found == sorted(item.key for item in catalogue())


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_filters_in_both_languages(federation: Federation, method: str) -> None:
    as_json = {
        "op": "and",
        "args": [
            {"op": "in", "args": [{"property": "properties.cmip6:source_id"}, ["CESM2", "MIROC6", "EC-Earth3"]]},
            {"op": "in", "args": [{"property": "latest"}, [True]]},
            {"op": "in", "args": [{"property": "retracted"}, [False]]},
        ],
    }
    as_text = "cmip6:source_id IN ('CESM2', 'MIROC6', 'EC-Earth3') AND latest = true AND retracted = false"
    wanted = expected(lambda i: i.value("cmip6:source_id") in ("CESM2", "MIROC6", "EC-Earth3") and i.latest)

    def ask(client: Client) -> Any:
        found = []
        for condition, language in ((as_json, "cql2-json"), (as_text, "cql2-text")):
            search = client.search(method=method, filter=condition, filter_lang=language, limit=7)
            assert search.matched() == len(wanted)
            found.append(keys_of(search.items()))
        assert found[0] == found[1]
        return sorted(found[0])  # nodes differ in the order of those alike

    found = await federation.on_both(ask)
    assert len(found) == len(set(found))
    assert set(found) == wanted


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_the_other_parameters(federation: Federation, method: str) -> None:
    wanted = expected(
        lambda i: (
            oracle.touch(i.boxes, [(-60, 60, -50, 70)])
            and oracle.overlap(i, "1850-01-01T00:00:00Z", "1850-12-31T23:59:59Z")
        )
    )
    ids = [item.key[1] for item in catalogue()[40:52]]

    def ask(client: Client) -> Any:
        search = client.search(method=method, bbox=[-60, 60, -50, 70], datetime="1850", limit=50)
        assert search.matched() == len(wanted)
        assert set(keys_of(search.items())) == wanted
        named = client.search(
            method=method, ids=ids, sortby="-id", fields=["id", "properties.version", "geometry", "links"]
        )
        assert [item["id"] for item in named.items_as_dicts()] == sorted(ids, reverse=True)
        queried = client.search(method=method, query={"level": {"gte": 1000}}, collections=["places"])
        assert set(keys_of(queried.items())) == expected(lambda i: (i.value("level") or 0) >= 1000)
        shape = {"type": "Point", "coordinates": [-40, 70]}
        near = client.search(method=method, intersects=shape, limit=100)
        return near.matched(), sum(1 for _ in near.items())

    counted = len(expected(lambda i: oracle.touch(i.boxes, [(-40, 70, -40, 70)])))
    assert await federation.on_both(ask) == (counted, counted)


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_sorting_holds_over_pages(federation: Federation, method: str) -> None:
    order = [("level", True), ("cmip6:source_id", False), ("id", False)]
    sortby = ["-properties.level", "+properties.cmip6:source_id", "id"]

    def ask(client: Client) -> Any:
        return keys_of(client.search(method=method, sortby=sortby, limit=90).items())

    assert await federation.on_both(ask) == [item.key for item in in_order(order)]


async def test_a_mistake_is_told_to_its_user(federation: Federation) -> None:
    def ask(client: Client) -> Any:
        with pytest.raises(APIError) as refused:
            list(client.search(filter="cmip6:source_id = ", filter_lang="cql2-text").items())
        assert "CQL2" in str(refused.value)
        return refused.value.status_code

    assert await federation.on_both(ask) == 400
