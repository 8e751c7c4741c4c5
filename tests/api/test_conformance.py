"""Every conformance class that a node advertises is probed: its table fails for a class that has no probe."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import orjson
import pytest
import pytest_asyncio

from fedstac.api.app import CAPABILITIES
from fedstac.demo import embedded, sample
from tests.support import nodes as running_nodes
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")
Json = dict[str, Any]
Probe = Callable[[Api], Awaitable[None]]
CLASSES = [uri for capability in CAPABILITIES for uri in capability.conformance_classes]
ITEMS = "/collections/CMIP6/items"
FREE = "/collections/free/items"
STAC = "https://api.stacspec.org"
FEATURES, CQL2 = "http://www.opengis.net/spec/ogcapi-features-", "http://www.opengis.net/spec/cql2/1.0/conf/"
NUMBERS = itertools.count()
SAMPLES = list(sample.items(12))
SOURCE = SAMPLES[0]["properties"]["cmip6:source_id"]


def free_item(name: str, **properties: Any) -> Json:
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": name, "collection": "free", "links": [], "assets": {},
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]]},
        "bbox": [0, 0, 2, 2], "properties": {"datetime": "2020-01-01T00:00:00Z", **properties},
    }  # fmt: skip


FREE_ITEMS = (
    free_item("one", word="Straße", accent="été", number=5, other=5, tags=["a", "b"]),
    free_item("two", word="other", accent="hiver", number=7, other=9, tags=["b"]),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(cluster: embedded.Cluster, template: str) -> AsyncIterator[Api]:
    async with running_nodes.publishing(cluster, template, {"CMIP6": SAMPLES, "free": FREE_ITEMS}) as running:
        yield running


async def get(api: Api, path: str, **parameters: str) -> Json:
    answer = await api.anyone.get(path, params=parameters or None)
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    return body


async def post(api: Api, **body: Any) -> Json:
    answer = await api.anyone.post("/search", json=body)
    assert answer.status_code == 200, answer.text
    page: Json = answer.json()
    return page


def rels(document: Json) -> dict[str, str]:
    return {link["rel"]: link["href"] for link in document["links"]}


def ids(page: Json) -> list[str]:
    return [feature["id"] for feature in page["features"]]


# --- probes ---


async def channels(api: Api) -> None:
    """Follow the links from the landing page to the AsyncAPI document and its channels, and from each channel back."""
    landing = await get(api, "/")
    [description] = [each["href"] for each in landing["links"] if each.get("type") == "application/asyncapi+json"
                     and each["rel"] == "service-desc"]  # fmt: skip
    document = await get(api, description)
    assert document["asyncapi"] == "3.0.0"
    for channel in (each["href"] for each in landing["links"] if each["rel"] == "channel"):
        address, _, pointer = channel.partition("#/channels/")
        assert (address, pointer in document["channels"]) == (description, True)
    for described in document["channels"].values():
        assert (await api.anyone.get(described["x-ogc-link"]["href"])).status_code == 200
    assert rels(landing)["hub"]


async def core(api: Api) -> None:
    landing = await get(api, "/")
    assert landing["type"] == "Catalog"
    assert set(rels(landing)) >= {"self", "root", "service-desc", "service-doc", "child"}
    for rel in ("self", "root", "service-desc", "service-doc", "child"):
        assert (await api.anyone.get(rels(landing)[rel])).status_code == 200


async def list_of_collections(api: Api) -> None:
    page = await get(api, rels(await get(api, "/"))["data"])
    assert [each["id"] for each in page["collections"]] == ["CMIP6", "free"]
    for each in page["collections"]:
        assert (await get(api, rels(each)["self"]))["id"] == each["id"]


async def features(api: Api) -> None:
    landing, page = await get(api, "/"), await get(api, ITEMS, limit="5")
    assert (await get(api, rels(landing)["conformance"]))["conformsTo"] == landing["conformsTo"]
    assert len(page["features"]) == 5
    following = await get(api, rels(page)["next"])
    assert not set(ids(page)) & set(ids(following))
    assert (await get(api, f"{ITEMS}/{ids(page)[0]}"))["id"] == ids(page)[0]
    west = await get(api, FREE, bbox="0,0,1,1", datetime="2020-01-01T00:00:00Z")
    assert sorted(ids(west)) == ["one", "two"]
    assert (await get(api, FREE, bbox="3,3,4,4"))["features"] == []


async def geojson(api: Api) -> None:
    for path in (ITEMS, f"{ITEMS}/{SAMPLES[0]['id']}", "/search"):
        assert (await api.anyone.get(path)).headers["content-type"] == "application/geo+json"


async def item_search(api: Api) -> None:
    everything = len(SAMPLES) + len(FREE_ITEMS)
    assert (await get(api, "/search"))["numberMatched"] == (await post(api))["numberMatched"] == everything
    assert ids(await get(api, "/search", ids=SAMPLES[3]["id"])) == [SAMPLES[3]["id"]]
    assert (await post(api, collections=["free"]))["numberMatched"] == len(FREE_ITEMS)
    shape = {"type": "Point", "coordinates": [1, 1]}
    assert sorted(ids(await post(api, intersects=shape, collections=["free"]))) == ["one", "two"]
    searches = [link for link in (await get(api, "/"))["links"] if link["rel"] == "search"]
    assert {link["method"] for link in searches} == {"GET", "POST"}


async def sort(api: Api) -> None:
    for path in ("/search", FREE):
        assert ids(await get(api, path, collections="free", sortby="-number")) == ["two", "one"]
    body = {"collections": ["free"], "sortby": [{"field": "properties.number", "direction": "asc"}]}
    assert ids(await post(api, **body)) == ["one", "two"]


async def fields(api: Api) -> None:
    for path in ("/search", FREE):
        for each in (await get(api, path, collections="free", fields="id,properties.number"))["features"]:
            assert set(each["properties"]) == {"number"}
            assert "geometry" not in each
    [each, _] = (await post(api, collections=["free"], fields={"exclude": ["geometry"]}))["features"]
    assert "geometry" not in each
    assert each["properties"]["word"]


async def query(api: Api) -> None:
    condition = {"number": {"gte": 5, "lt": 7}, "word": {"startsWith": "Str", "endsWith": "ße", "contains": "a"}}
    assert ids(await post(api, query=condition)) == ["one"]
    for path in ("/search", FREE):
        assert ids(await get(api, path, query=orjson.dumps(condition).decode())) == ["one"]


def finds(*expressions: tuple[str, Any]) -> Probe:
    """Return a probe: each expression, as text and as JSON, finds the first free dataset and not the second one."""

    async def probe(api: Api) -> None:
        for text, as_json in expressions:
            assert ids(await get(api, FREE, filter=text)) == ["one"], text
            assert ids(await get(api, "/search", filter=text, **{"filter-lang": "cql2-text"})) == ["one"], text
            assert ids(await post(api, filter=as_json, collections=["free"])) == ["one"], as_json

    return probe


def op(name: str, *args: Any) -> Json:
    return {"op": name, "args": list(args)}


async def free_text(api: Api) -> None:
    for path in ("/search", FREE):
        assert ids(await get(api, path, q="strasse,nothing")) == ["one"]
    assert ids(await post(api, q=["nothing", "straße"])) == ["one"]
    assert (await get(api, ITEMS, q=SOURCE))["numberMatched"] == sum(
        item["properties"]["cmip6:source_id"] == SOURCE for item in SAMPLES
    )


NUMBER, WORD, TAGS, OTHER = ({"property": name} for name in ("number", "word", "tags", "other"))
SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
FIVE = op("=", NUMBER, 5)


async def queryables(api: Api) -> None:
    for path in ("/", "/collections/CMIP6", "/collections/free"):
        address = rels(await get(api, path))["http://www.opengis.net/def/rel/ogc/1.0/queryables"]
        answer = await api.anyone.get(address)
        assert answer.headers["content-type"] == "application/schema+json"
        assert answer.json()["$id"] == address
        assert "datetime" in answer.json()["properties"]
    assert SOURCE in (await get(api, "/collections/CMIP6/queryables"))["properties"]["cmip6:source_id"]["enum"]


async def children(api: Api) -> None:
    page = await get(api, rels(await get(api, "/"))["children"])
    assert [each["id"] for each in page["children"]] == ["CMIP6", "free"]
    assert {"self", "root"} <= set(rels(page))


def collections_by(**parameters: str) -> Probe:
    """Return a probe: a search for collections finds `free` and not CMIP6."""

    async def probe(api: Api) -> None:
        page = await get(api, "/collections", **parameters)
        assert [each["id"] for each in page["collections"]] == ["free"]
        assert page["numberMatched"] == 1

    return probe


async def simple_query(api: Api) -> None:
    for parameters in ({"bbox": "0,0,1,1"}, {"datetime": "2020-01-01T00:00:00Z"}, {"limit": "10"}):
        assert (await get(api, "/collections", **parameters))["numberMatched"] == 2
    page = await get(api, "/collections", limit="1")
    assert (page["numberMatched"], page["numberReturned"]) == (2, 1)
    assert (await get(api, rels(page)["next"]))["collections"][0]["id"] == "free"


async def order_of_collections(api: Api) -> None:
    page = await get(api, "/collections", sortby="-id")
    assert [each["id"] for each in page["collections"]] == ["free", "CMIP6"]


async def fields_of_collections(api: Api) -> None:
    for each in (await get(api, "/collections", fields="title"))["collections"]:
        assert set(each) == {"type", "id", "title"}


async def transactions(api: Api) -> None:
    made = free_item(f"made-{next(NUMBERS)}")
    assert (await api.admin.post(FREE, json=made)).status_code == 201
    path = f"{FREE}/{made['id']}"
    changed = {**made, "properties": {**made["properties"], "number": 1}}
    assert (await api.admin.put(path, json=changed)).status_code == 200
    assert (await api.admin.patch(path, json={"properties": {"number": 2}})).status_code == 200
    assert (await get(api, path))["properties"]["number"] == 2
    assert (await api.admin.delete(path, params={"reason": "a probe"})).status_code == 200
    assert (await api.anyone.get(path)).status_code == 404


async def transactions_of_collections(api: Api) -> None:
    made = sample.collection("made")
    assert (await api.admin.post("/collections", json=made)).status_code == 201
    path = "/collections/made"
    assert (await api.admin.put(path, json={**made, "title": "Made"})).status_code == 200
    assert (await api.admin.patch(path, json={"description": "new"})).status_code == 200
    assert (await get(api, path))["description"] == "new"
    assert (await api.admin.delete(path)).status_code == 204
    assert (await api.anyone.get(path)).status_code == 404


async def counts(api: Api, **conditions: str) -> dict[str, Any]:
    """Return by name what `total_count` and the sources' frequencies are in a collection."""
    names = [each["name"] for each in (await get(api, "/collections/CMIP6/aggregations"))["aggregations"]]
    assert {"total_count", "cmip6_source_id_frequency"} <= set(names)
    parameters = {"aggregations": "total_count,cmip6_source_id_frequency", **conditions}
    answer = await get(api, "/collections/CMIP6/aggregate", **parameters)
    return {each["name"]: each for each in answer["aggregations"]}


def counts_of_source(**conditions: str) -> Probe:
    async def probe(api: Api) -> None:
        wanted = [item for item in SAMPLES if not conditions or item["properties"]["cmip6:source_id"] == SOURCE]
        found = await counts(api, **conditions)
        assert found["total_count"]["value"] == len(wanted)
        frequencies = {each["key"]: each["frequency"] for each in found["cmip6_source_id_frequency"]["buckets"]}
        assert frequencies[SOURCE] == sum(item["properties"]["cmip6:source_id"] == SOURCE for item in SAMPLES)

    return probe


in_both_languages = finds(("number = 5", FIVE))
PROBES: Mapping[str, Probe] = {
    "https://www.opengis.net/spec/ogcapi-pubsub-1/1.0/conf/discovery": channels,
    f"{STAC}/v1.0.0/core": core, f"{STAC}/v1.0.0/collections": list_of_collections,
    f"{STAC}/v1.0.0/ogcapi-features": features, f"{STAC}/v1.0.0/item-search": item_search,
    f"{STAC}/v1.0.0/item-search#filter": in_both_languages, f"{STAC}/v1.0.0/children": children,
    **{f"{STAC}/{version}/{scope}#sort": sort for version in ("v1.0.0", "v1.1.0")
       for scope in ("item-search", "ogcapi-features")},
    **{f"{STAC}/v1.0.0/{scope}#fields": fields for scope in ("item-search", "ogcapi-features")},
    **{f"{STAC}/v1.0.0/{scope}#query": query for scope in ("item-search", "ogcapi-features")},
    **{f"{STAC}/v1.0.0-rc.1/{scope}#free-text": free_text for scope in ("item-search", "ogcapi-features")},
    f"{STAC}/v1.0.0-rc.1/collection-search": simple_query,
    "http://www.opengis.net/spec/ogcapi-common-2/1.0/conf/simple-query": simple_query,
    f"{STAC}/v1.0.0-rc.1/collection-search#free-text": collections_by(q="free"),
    f"{STAC}/v1.0.0-rc.1/collection-search#filter": collections_by(filter="id = 'free'"),
    f"{STAC}/v1.0.0-rc.1/collection-search#query": collections_by(query='{"id":{"eq":"free"}}'),
    f"{STAC}/v1.0.0-rc.1/collection-search#fields": fields_of_collections,
    f"{STAC}/v1.0.0-rc.1/collection-search#sort": order_of_collections,
    f"{STAC}/v1.1.0/collection-search#sort": order_of_collections,
    f"{STAC}/v0.3.0/aggregation": counts_of_source(),
    f"{STAC}/v0.3.0/aggregation#filter": counts_of_source(filter=f"cmip6:source_id = '{SOURCE}'"),
    f"{STAC}/v0.3.0/aggregation#query": counts_of_source(query=f'{{"cmip6:source_id":{{"eq":"{SOURCE}"}}}}'),
    f"{STAC}/v1.0.0/collections/extensions/transaction": transactions_of_collections,
    f"{STAC}/v1.0.0/ogcapi-features/extensions/transaction": transactions,
    f"{FEATURES}1/1.0/conf/core": features, f"{FEATURES}1/1.0/conf/geojson": geojson,
    f"{FEATURES}3/1.0/conf/filter": in_both_languages, f"{FEATURES}3/1.0/conf/features-filter": in_both_languages,
    f"{FEATURES}3/1.0/conf/queryables": queryables, f"{FEATURES}4/1.0/conf/simpletx": transactions,
    f"{CQL2}cql2-text": in_both_languages, f"{CQL2}cql2-json": in_both_languages,
    f"{CQL2}basic-cql2": finds(
        ("number < 6 AND NOT (word IS NULL OR word <> 'Straße')",
         op("and", op("<", NUMBER, 6), op("not", op("or", op("isNull", WORD), op("<>", WORD, "Straße"))))),
    ),
    f"{CQL2}advanced-comparison-operators": finds(
        ("word LIKE 'Str%'", op("like", WORD, "Str%")), ("number BETWEEN 4 AND 6", op("between", NUMBER, 4, 6)),
        ("number IN (1, 5)", op("in", NUMBER, [1, 5])),
    ),
    f"{CQL2}case-insensitive-comparison": finds(
        ("CASEI(word) = CASEI('STRASSE')", op("=", op("casei", WORD), op("casei", "STRASSE"))),
    ),
    f"{CQL2}accent-insensitive-comparison": finds(
        ("ACCENTI(accent) = ACCENTI('ete')", op("=", op("accenti", {"property": "accent"}), op("accenti", "ete"))),
    ),
    f"{CQL2}basic-spatial-functions": finds(
        ("S_INTERSECTS(geometry, POINT(1 1)) AND number = 5",
         op("and", op("s_intersects", {"property": "geometry"}, {"type": "Point", "coordinates": [1, 1]}), FIVE)),
    ),
    f"{CQL2}basic-spatial-functions-plus": finds(
        ("S_INTERSECTS(geometry, POLYGON((0 0, 1 0, 1 1, 0 1, 0 0))) AND number = 5",
         op("and", op("s_intersects", {"property": "geometry"}, SQUARE), FIVE)),
    ),
    f"{CQL2}spatial-functions": finds(*(
        (f"{name}(geometry, POLYGON((0 0, 1 0, 1 1, 0 1, 0 0))) AND number = 5",
         op("and", op(name, {"property": "geometry"}, SQUARE), FIVE))
        for name in ("s_intersects", "s_contains")
    )),
    f"{CQL2}temporal-functions": finds(
        ("T_DURING(datetime, INTERVAL('2019-01-01', '2021-01-01')) AND number = 5",
         op("and", op("t_during", {"property": "datetime"}, {"interval": ["2019-01-01", "2021-01-01"]}), FIVE)),
    ),
    f"{CQL2}array-functions": finds(
        ("A_CONTAINS(tags, ('a'))", op("a_contains", TAGS, ["a"])),
        ("A_EQUALS(tags, ('b', 'a'))", op("a_equals", TAGS, ["b", "a"])),
        ("A_OVERLAPS(tags, ('a', 'x'))", op("a_overlaps", TAGS, ["a", "x"])),
        ("NOT A_CONTAINEDBY(tags, ('b', 'x'))", op("not", op("a_containedby", TAGS, ["b", "x"]))),
    ),
    f"{CQL2}property-property": finds(("number = other", op("=", NUMBER, OTHER))),
}  # fmt: skip


@pytest.mark.parametrize("uri", CLASSES)
async def test_what_is_advertised_works(api: Api, uri: str) -> None:
    assert uri in PROBES, "write a probe for the class"
    await PROBES[uri](api)


async def test_no_class_is_probed_and_not_advertised(api: Api) -> None:
    assert sorted(PROBES) == sorted(CLASSES)
    assert (await get(api, "/conformance"))["conformsTo"] == CLASSES
    assert len(set(CLASSES)) == len(CLASSES)
