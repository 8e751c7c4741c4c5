"""Search over HTTP, compared with a plain Python oracle over the same items."""

from __future__ import annotations

import asyncio
import base64
import copy
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import cql2
import httpx
import orjson
import pytest
import pytest_asyncio

from fedstac.api.search import query
from fedstac.demo import embedded, sample
from fedstac.settings import Settings
from fedstac.vocabularies.checker import open_checker
from tests.api import oracle
from tests.api.mutations import mutate
from tests.api.oracle import Json, catalogue, expected, in_order, publish_catalogue
from tests.support import nodes as running_nodes
from tests.support.databases import databases
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

VOCABULARY = open_checker().vocabularies.current("CMIP6")
VERSION = VOCABULARY.version if VOCABULARY else None
PUBLIC = "https://stac.example.org/west"
FILTERS, SEARCHES = 40, 150


@dataclass(frozen=True)
class Site:
    """The catalogue, behind two applications on one database: `bounded` has no columns, and counts exactly up to 50."""

    api: Api
    bounded: Api

    async def post(self, /, **body: Any) -> Json:
        response = await self.api.anyone.post("/search", json=body)
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        return answer

    async def keys(self, /, **body: Any) -> list[tuple[str, str]]:
        """Return (collection, id) of everything that a search finds, which has to fit into one page."""
        page = await self.post(**{"limit": 1000, "fields": {"include": ["id"]}, **body})
        assert page["numberMatched"] == page["numberReturned"] == len(page["features"]) == page["numMatched"]
        return [(feature["collection"], feature["id"]) for feature in page["features"]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(cluster: embedded.Cluster, template: str) -> AsyncIterator[Site]:
    with databases(cluster, template) as make:
        settings = Settings(dsn=make(), node="west", default_wait_seconds=60, _env_file=None)
        bounded = settings.model_copy(update={"columns": False, "matched_exact_to": 50, "public_url": PUBLIC})
        async with running_nodes.running(settings) as api, running_nodes.running(bounded, background=False) as other:
            await publish_catalogue(api)
            yield Site(api, other)


# --- each parameter ---


async def test_ids_and_collections(site: Site) -> None:
    wanted = [catalogue()[n].key for n in (3, 77, 500, 610)]
    ids = [item_id for _, item_id in wanted]
    assert set(await site.keys(ids=ids)) == set(wanted)
    assert set(await site.keys(ids=[*ids, "absent"], collections=["CMIP6"])) == set(wanted[:3])
    assert set(await site.keys(collections=["places"])) == expected(lambda item: item.key[0] == "places")
    assert await site.keys(collections=["absent"]) == []
    assert await site.keys(ids=[]) == await site.keys(collections=[]) == []
    found = await site.api.anyone.get("/search", params={"ids": ",".join(ids), "collections": "CMIP6,absent"})
    assert {feature["id"] for feature in found.json()["features"]} == set(ids[:3])


@pytest.mark.parametrize(
    ("bbox", "boxes"),
    [
        ([-180, -90, 180, 90], [(-180, -90, 180, 90)]),
        ([-10.5, 0, 0, 10], [(-10.5, 0, 0, 10)]),
        ([170, -90, -170, 90], [(170, -90, 180, 90), (-180, -90, -170, 90)]),
        ([190, -60, 215, 60], [(-170, -60, -145, 60)]),
        ([0, -90, 360, 90], [(-180, -90, 180, 90)]),
        ([150, -10, 200, 10], [(150, -10, 180, 10), (-180, -10, -160, 10)]),
        ([-200, -10, -170, 10], [(160, -10, 180, 10), (-180, -10, -170, 10)]),
        ([350, -10, 10, 10], [(-10, -10, 10, 10)]),
        ([0, -10, 180, 10], [(0, -10, 180, 10)]),
        ([-180, -10, 0, 10], [(-180, -10, 0, 10)]),
        ([20, 30, 20, 30], [(20, 30, 20, 30)]),
        ([20, -30, 20, 30], [(20, -30, 20, 30)]),
        ([20, 30, 40, 30], [(20, 30, 40, 30)]),
        ([-75, 58, -100, -10, 84, 9000], [(-75, 58, -10, 84)]),
        ([170, -90, -5, -170, -70, 5], [(170, -90, 180, -70), (-180, -90, -170, -70)]),
    ],
)  # fmt: skip
async def test_a_box_finds_what_touches_it(site: Site, bbox: list[float], boxes: list[oracle.Box]) -> None:
    if len(bbox) == 6 and bbox[0] < bbox[3]:
        bbox = [*bbox[:2], -100, *bbox[3:]]
    wanted = expected(lambda item: oracle.touch(item.boxes, boxes))
    assert set(await site.keys(bbox=bbox)) == wanted
    params = {"bbox": ",".join(map(str, bbox)), "limit": "1000", "fields": "id"}
    found = (await site.api.anyone.get("/search", params=params)).json()["features"]
    assert {(feature["collection"], feature["id"]) for feature in found} == wanted


@pytest.mark.parametrize(
    ("interval", "start", "end"),
    [
        ("2000-02-29T12:00:00Z", "2000-02-29T12:00:00Z", "2000-02-29T12:00:00Z"),
        ("2000-02-29T13:00:00+01:00", "2000-02-29T12:00:00Z", "2000-02-29T12:00:00Z"),
        ("1850-01-01T00:00:00Z/1900-01-01T00:00:00Z", "1850-01-01T00:00:00Z", "1900-01-01T00:00:00Z"),
        ("../1900-01-01T00:00:00Z", None, "1900-01-01T00:00:00Z"),
        ("/1900-01-01T00:00:00Z", None, "1900-01-01T00:00:00Z"),
        ("2100-01-01T00:00:00Z/..", "2100-01-01T00:00:00Z", None),
        ("2100-01-01T00:00:00Z/", "2100-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00Z/0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.9999999Z/..", "9999-12-31T23:59:59.999999Z", None),
        ("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ("0001-01-01T00:00:00Z/9999-12-31T23:59:59Z", None, "9999-12-31T23:59:59Z"),
        ("1850-01-01t00:00:00z/..", "1850-01-01T00:00:00Z", None),
    ],
)
async def test_datetime_finds_what_overlaps_it(site: Site, interval: str, start: str | None, end: str | None) -> None:
    assert set(await site.keys(datetime=interval)) == expected(lambda item: oracle.overlap(item, start, end))


@pytest.mark.parametrize(
    ("geometry", "boxes"),
    [
        ({"type": "Point", "coordinates": [-40, 70]}, [(-40, 70, -40, 70)]),
        ({"type": "Point", "coordinates": [320, 70]}, [(-40, 70, -40, 70)]),
        ({"type": "Point", "coordinates": [-40, 70, 1000]}, [(-40, 70, -40, 70)]),
        (
            {"type": "Polygon", "coordinates": [[[170, 0], [200, 0], [200, 20], [170, 20], [170, 0]]]},
            [(170, 0, 180, 20), (-180, 0, -160, 20)],
        ),
        ({"type": "LineString", "coordinates": [[-30, 60], [-30, 70]]}, [(-30, 60, -30, 70)]),
        (
            {"type": "GeometryCollection", "geometries": [
                {"type": "Point", "coordinates": [5, 5]}, {"type": "Point", "coordinates": [-40, 70]}]},
            [(5, 5, 5, 5), (-40, 70, -40, 70)],
        ),
    ],
)  # fmt: skip
async def test_intersects_finds_what_shares_a_point(site: Site, geometry: Json, boxes: list[oracle.Box]) -> None:
    wanted = expected(lambda item: oracle.touch(item.boxes, boxes))
    assert set(await site.keys(intersects=geometry)) == wanted
    found = await site.api.anyone.get("/search", params={"intersects": orjson.dumps(geometry).decode(), "limit": 1000})
    assert found.json()["numberMatched"] == len(wanted)


async def test_every_spatial_operator_is_evaluated_on_every_footprint(site: Site) -> None:
    polygon = {"type": "Polygon", "coordinates": [[[-20, -40], [60, -40], [60, 40], [-20, 40], [-20, -40]]]}
    counts = {}
    for op in (
        "s_intersects",
        "s_disjoint",
        "s_within",
        "s_contains",
        "s_touches",
        "s_equals",
        "s_overlaps",
        "s_crosses",
    ):
        page = await site.post(filter={"op": op, "args": [{"property": "geometry"}, polygon]}, limit=1)
        counts[op] = page["numberMatched"]
    assert counts["s_intersects"] + counts["s_disjoint"] == len(catalogue())
    assert counts["s_within"] > 0


# --- filters ---


@pytest.mark.parametrize(
    ("text", "judge"),
    [
        ("cmip6:source_id = 'CESM2'", lambda i: i.value("cmip6:source_id") == "CESM2"),
        ("properties.cmip6:source_id = 'CESM2'", lambda i: i.value("cmip6:source_id") == "CESM2"),
        ("\"cmip6:source_id\" <> 'CESM2'", lambda i: i.value("cmip6:source_id") not in (None, "CESM2")),
        ("latest IN (true)", lambda i: i.latest),
        ("latest = false", lambda i: not i.latest),
        ("latest", lambda i: i.latest),
        ("TRUE", lambda i: True),
        ("FALSE OR latest", lambda i: i.latest),
        ("retracted IN (false)", lambda i: True),
        ("retracted = true", lambda i: False),
        ("latest IN (true) AND retracted IN (false) AND collection = 'CMIP6'",
         lambda i: i.latest and i.key[0] == "CMIP6"),
        ("level > 9", lambda i: (i.value("level") or 0) > 9),
        ("level <= 10.25 AND level >= -1.5", lambda i: i.value("level") is not None and i.value("level") <= 10.25),
        ("level BETWEEN 9 AND 100", lambda i: i.value("level") is not None and 9 <= i.value("level") <= 100),
        ("NOT level BETWEEN 9 AND 100", lambda i: i.value("level") is not None and not 9 <= i.value("level") <= 100),
        ("level IS NULL AND collection = 'places'", lambda i: i.value("level") is None and i.key[0] == "places"),
        ("level IS NOT NULL", lambda i: i.value("level") is not None),
        ("name LIKE 'a\\_b'", lambda i: i.value("name") == "a_b"),
        ("name LIKE 'a_b'", lambda i: i.value("name") in ("a_b", "aXb")),
        ("name LIKE '100\\%'", lambda i: i.value("name") == "100%"),
        ("name = 'it''s'", lambda i: i.value("name") == "it's"),
        ("casei(name) = casei('ZEBRA')", lambda i: (i.value("name") or "").lower() == "zebra"),
        ("name IN ('$1 %s', 'semi;colon')", lambda i: i.value("name") in ("$1 %s", "semi;colon")),
        ("datetime < TIMESTAMP('1000-01-01T00:00:00Z')", lambda i: i.start < oracle.moment("1000-01-01T00:00:00Z")),
        ("end_datetime >= DATE('9000-01-01')", lambda i: i.end >= oracle.moment("9000-01-01T00:00:00Z")),
        ("t_intersects(datetime, INTERVAL('1900-01-01T00:00:00Z', '1900-12-31T00:00:00Z'))",
         lambda i: oracle.overlap(i, "1900-01-01T00:00:00Z", "1900-12-31T00:00:00Z")),
        ("t_intersects(datetime, INTERVAL('..', '1000-01-01'))",
         lambda i: oracle.overlap(i, None, "1000-01-01T23:59:59.999999Z")),
        ("s_intersects(geometry, POINT(-40 70))", lambda i: oracle.touch(i.boxes, [(-40, 70, -40, 70)])),
        ("s_intersects(geometry, BBOX(170, -90, -170, 90))",
         lambda i: oracle.touch(i.boxes, [(170, -90, 180, 90), (-180, -90, -170, 90)])),
        ("id LIKE 'place-0%' OR id = 'place-11'", lambda i: i.key[1] == "place-11" or i.key[1].startswith("place-0")),
    ],
)  # fmt: skip
async def test_cql2_text_and_json_say_the_same(site: Site, text: str, judge: Any) -> None:
    wanted = expected(judge)
    params = {"filter": text, "limit": "1000", "fields": "id"}
    answer = await site.api.anyone.get("/search", params=params)
    assert answer.status_code == 200, answer.text
    assert {(f["collection"], f["id"]) for f in answer.json()["features"]} == wanted
    as_json = cql2.parse_text(text).to_json()
    assert set(await site.keys(filter=as_json)) == wanted
    assert set(await site.keys(filter=text, **{"filter-lang": "cql2-text"})) == wanted


async def test_what_the_server_wrote_is_filtered_by_time(site: Site) -> None:
    [first] = (await site.post(limit=1, sortby=[{"field": "updated"}]))["features"]
    at = first["properties"]["updated"]
    for op, count in ((">=", len(catalogue())), ("<", 0)):
        found = await site.post(filter={"op": op, "args": [{"property": "updated"}, {"timestamp": at}]}, limit=1)
        assert found["numberMatched"] == count
    lists = {"op": "a_contains", "args": [{"property": "cmip6:realm"}, ["ocean"]]}
    assert set(await site.keys(filter=lists)) == expected(lambda i: "ocean" in (i.value("cmip6:realm") or []))


async def test_random_filters_find_what_the_oracle_finds(site: Site) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for n in range(FILTERS):
        expression, judge = oracle.random_filter(rng)
        wanted = expected(judge)
        assert set(await site.keys(filter=expression)) == wanted, (seed, expression)
        if n % 3 == 0:
            text = cql2.parse_json(orjson.dumps(expression).decode()).to_text()
            found = await site.api.anyone.get("/search", params={"filter": text, "limit": 1})
            assert found.status_code == 200, (seed, text, found.text)
            assert found.json()["numberMatched"] == len(wanted), (seed, text)


@pytest.mark.parametrize(
    ("query", "judge"),
    [
        ({"cmip6:source_id": {"eq": "CESM2"}}, lambda i: i.value("cmip6:source_id") == "CESM2"),
        ({"level": {"gt": 9, "lte": 100}}, lambda i: i.value("level") is not None and 9 < i.value("level") <= 100),
        ({"properties.level": {"gte": 1e12}}, lambda i: i.value("level") == 1e12),
        ({"name": {"startsWith": "a_"}}, lambda i: i.value("name") == "a_b"),
        ({"name": {"endsWith": "%"}}, lambda i: i.value("name") == "100%"),
        ({"name": {"contains": "\\"}}, lambda i: i.value("name") == "back\\slash"),
        ({"name": {"in": ["zebra", "Zebra"]}, "flag": {"eq": True}},
         lambda i: i.value("name") in ("zebra", "Zebra") and i.value("flag")),
        ({"name": {"neq": "naïve"}}, lambda i: i.value("name") not in (None, "naïve")),
        ({}, lambda i: True),
    ],
)  # fmt: skip
async def test_the_query_extension(site: Site, query: Json, judge: Any) -> None:
    assert set(await site.keys(query=query)) == expected(judge)
    found = await site.api.anyone.get("/search", params={"query": orjson.dumps(query).decode(), "limit": 1})
    assert found.json()["numberMatched"] == len(expected(judge))


async def test_conditions_are_joined(site: Site) -> None:
    wanted = expected(
        lambda i: i.key[0] == "CMIP6" and i.latest and oracle.touch(i.boxes, [(-60, 60, -50, 70)])
        and oracle.overlap(i, "2100-01-01T00:00:00Z", None)
    )  # fmt: skip
    assert wanted
    found = await site.keys(
        collections=["CMIP6"], bbox=[-60, 60, -50, 70], datetime="2100-01-01T00:00:00Z/..",
        filter={"op": "=", "args": [{"property": "latest"}, True]},
    )  # fmt: skip
    assert set(found) == wanted


# --- order, fields, pages ---

ORDERS: list[list[tuple[str, bool]]] = [
    [("id", False)], [("id", True)], [("collection", True), ("id", False)], [("datetime", False)],
    [("properties.level", False)], [("level", True), ("id", False)], [("name", True)], [("flag", False),
    ("level", True)],
    [("size", True)], [("cmip6:source_id", False), ("version", True)], [("end_datetime", True), ("name", False)],
    [("absent", False)], [("latest", False), ("properties.cmip6:variable_id", True)],
]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS, ids=str)
async def test_an_order_holds_over_all_pages(site: Site, order: list[tuple[str, bool]]) -> None:
    sortby = [{"field": name, "direction": "desc" if down else "asc"} for name, down in order]
    wanted = [item.key for item in in_order(order)]
    assert await pages(site.bounded, limit=97, sortby=sortby) == wanted  # PostgreSQL: ties by collection and id
    found_keys = await pages(site.api, limit=97, sortby=sortby)
    assert sorted(found_keys) == sorted(wanted)
    assert oracle.values(found_keys, order) == oracle.values(wanted, order)
    text = ",".join(("-" if down else "+" if n else "") + name for n, (name, down) in enumerate(order))
    found = await site.api.anyone.get("/search", params={"sortby": text, "limit": 1000, "fields": "id"})
    assert [(f["collection"], f["id"]) for f in found.json()["features"]] == found_keys


async def pages(api: Api, **body: Any) -> list[tuple[str, str]]:
    """Return every item of a search, by following the links that the server gives."""
    found: list[tuple[str, str]] = []
    question: Json | None = {"fields": {"include": ["id"]}, **body}
    while question is not None:
        response = await api.anyone.post("/search", json=question)
        assert response.status_code == 200, response.text
        page = response.json()
        found += [(feature["collection"], feature["id"]) for feature in page["features"]]
        question = next((link["body"] for link in page["links"] if link["rel"] == "next"), None)
        assert page["features"] or question is None
    return found


async def test_the_default_order_gives_everything_once_by_get_and_by_collection(site: Site) -> None:
    found: list[str] = []
    url: str | None = f"{site.api.url}/collections/CMIP6/items?limit=101&fields=id"
    while url:
        page = (await site.api.anyone.get(url)).json()
        assert page["numberMatched"] == oracle.SAMPLES
        found += [feature["id"] for feature in page["features"]]
        url = next((link["href"] for link in page["links"] if link["rel"] == "next"), None)
    assert sorted(found) == sorted(item.key[1] for item in catalogue() if item.key[0] == "CMIP6")


async def test_limits_are_kept(site: Site) -> None:
    assert (await site.post())["numberReturned"] == 10
    for limit in (1, 7, 648, 1_000_000_000):
        page = await site.post(limit=limit, fields={"include": ["id"]})
        assert page["numberReturned"] == min(limit, len(catalogue()))
        assert any(link["rel"] == "next" for link in page["links"]) == (limit < len(catalogue()))


@pytest.mark.parametrize("limit", ["99999999999999999999", "9" * 4500, "000000000000000000000000648"])
async def test_a_limit_above_the_most_is_the_most(site: Site, limit: str) -> None:
    page = (await site.api.anyone.get("/search", params={"limit": limit, "fields": "id"})).json()
    assert page["numberReturned"] == len(catalogue())


async def test_an_id_with_a_comma_is_among_those_that_are_searched(site: Site) -> None:
    question = query.from_parameters([("ids", "a,b")], site.api.settings)
    assert question.conditions["ids"] == ["a", "b", "a,b"]


async def test_fields(site: Site) -> None:
    [whole] = (await site.post(limit=1, collections=["CMIP6"]))["features"]
    always = {"type", "id", "collection"}
    for include, exclude, members in (
        (["properties.version"], [], always | {"properties"}),
        (["assets"], [], always | {"assets"}),
        ([], ["assets", "links"], set(whole) - {"assets", "links"}),
        (["properties"], ["properties.version", "id"], always | {"properties"}),
        (["properties.version"], ["properties"], always | {"properties"}),
        (["absent.deeper.still", "a..b", "."], [], always | {"properties"}),
        ([], [], set(whole)),
    ):
        fields = {"include": include, "exclude": exclude}
        [item] = (await site.post(limit=1, ids=[whole["id"]], fields=fields))["features"]
        assert set(item) == members, fields
        assert all(item[name] == whole[name] for name in members - {"properties"})
        properties = item.get("properties", {})
        assert properties.items() <= whole["properties"].items()
        if include[:1] == ["properties.version"]:
            assert set(properties) == {"version"}
        if "properties.version" in exclude:
            assert set(properties) == set(whole["properties"]) - {"version"}
    got = await site.api.anyone.get("/search", params={"limit": 1, "fields": "id,-links,properties.latest"})
    assert set(got.json()["features"][0]) == always | {"properties"}
    assert got.headers["content-type"] == "application/geo+json"


async def test_documents_are_served_whole(site: Site) -> None:
    page = await site.post(limit=1000)
    by_key = {item.key: item for item in catalogue()}
    for feature in page["features"]:
        entry = by_key[feature["collection"], feature["id"]]
        properties = dict(feature["properties"])
        assert properties.pop("latest") is entry.latest
        assert properties.pop("retracted") is False
        assert properties.pop("created") <= properties.pop("updated")
        assert properties.pop("fedstac:state") == "published"
        assert properties.pop("fedstac:cv_version", None) == (VERSION if entry.key[0] == "CMIP6" else None)
        sent = {
            k: v
            for k, v in entry.document["properties"].items()
            if k not in ("latest", "retracted", "created", "updated")
        }
        assert properties == sent
        assert "datetime" in feature["properties"]
        assert feature["geometry"] == entry.document["geometry"]
        assert [link["rel"] for link in feature["links"]][:4] == ["self", "root", "parent", "collection"]
        assert feature["assets"] == entry.document["assets"]


async def test_counts_are_exact_up_to_the_bound_and_marked_beyond(site: Site) -> None:
    async def count(client: httpx.AsyncClient, **body: Any) -> Json:
        answer: Json = (await client.post("/search", json={"limit": 5, **body})).json()
        assert answer["numMatched"] == answer["numberMatched"]
        return answer

    few = {"op": "like", "args": [{"property": "id"}, "place-%"]}
    many = {"op": "=", "args": [{"property": "latest"}, True]}
    exact = await count(site.bounded.anyone, filter=few)
    assert exact["numberMatched"] == 48
    assert "fedstac:number_matched_estimated" not in exact
    there = await count(site.api.anyone, filter=many)
    assert there["numberMatched"] == len(expected(lambda item: item.latest))
    assert "fedstac:number_matched_estimated" not in there
    estimated = await count(site.bounded.anyone, filter=many)
    assert estimated["fedstac:number_matched_estimated"] is True
    assert estimated["numberMatched"] > 50
    body = next(link["body"] for link in estimated["links"] if link["rel"] == "next")
    second = (await site.bounded.anyone.post("/search", json=body)).json()
    assert second["numberMatched"] == estimated["numberMatched"]
    assert second["fedstac:number_matched_estimated"] is True
    assert (await count(site.api.anyone, filter=many))["numberMatched"] == len(expected(lambda i: i.latest))
    total = await count(site.bounded.anyone)
    assert total["numberMatched"] == len(catalogue())
    assert "fedstac:number_matched_estimated" not in total


async def test_links_start_with_the_public_url_whatever_the_client_says(site: Site) -> None:
    evil = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "ftp",
            "Forwarded": "host=evil.example;proto=ftp", "X-Forwarded-Prefix": "/evil",
            "X-Original-URL": "/evil"}  # fmt: skip
    item = catalogue()[0].key[1]
    for api, base in ((site.api, site.api.url), (site.bounded, PUBLIC)):
        for path in ("/", "/collections", "/collections/CMIP6", f"/collections/CMIP6/items/{item}", "/search?limit=2",
                     "/collections/CMIP6/items?limit=2", "/queryables", "/collections/CMIP6/queryables",
                     "/conformance", "/search?limit=none", "/collections/absent"):  # fmt: skip
            response = await api.anyone.get(path, headers=evil)
            assert response.status_code in (200, 400, 404), path
            assert "evil" not in response.text, path
            answer = response.json()
            for link in (*answer.get("links", ()), *(x for f in answer.get("features", ()) for x in f["links"])):
                if link["rel"] not in ("cite-as",):
                    assert link["href"].startswith(base + "/"), link
            if "queryables" in path:
                assert answer["$id"] == base + path


# --- tokens ---


async def first_token(api: Api, **body: Any) -> tuple[Json, str]:
    page = (await api.anyone.post("/search", json={"limit": 5, **body})).json()
    token = next(link["body"]["token"] for link in page["links"] if link["rel"] == "next")
    return page, token


async def test_a_token_goes_with_its_search_only(site: Site) -> None:
    _, token = await first_token(site.api, collections=["CMIP6"])
    for other in (
        {}, {"collections": ["places"]}, {"collections": ["CMIP6"], "sortby": [{"field": "id"}]},
        {"collections": ["CMIP6"], "datetime": "1850-01-01T00:00:00Z/.."},
    ):  # fmt: skip
        response = await site.api.anyone.post("/search", json={"limit": 5, "token": token, **other})
        assert_refused(response, "token")
    longer = await site.api.anyone.post("/search", json={"limit": 50, "token": token, "collections": ["CMIP6"]})
    assert longer.json()["numberReturned"] == 50


async def test_a_token_that_was_changed_is_refused(site: Site) -> None:
    _, token = await first_token(site.api)
    rng = random.Random(1)
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    changed = [token + "A", token[:-1], token[1:], token + "=", " " + token, token[:8] + "\n" + token[8:], token + "é",
               token[:-1] + chr(ord(token[-1]) + 1), "next:" + token, "AAAA", "ü" * 16, "=" * 8,
               "x" * 10_000]  # fmt: skip
    for _ in range(20):
        at = rng.randrange(len(raw))
        flipped = raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
        changed.append(base64.urlsafe_b64encode(flipped).rstrip(b"=").decode())
    for bad in changed:
        assert_refused(await site.api.anyone.post("/search", json={"limit": 5, "token": bad}), "token")


async def test_paging_has_no_gap_and_no_repeat_while_others_publish(dsn: str) -> None:
    settings = Settings(dsn=dsn, node="west", default_wait_seconds=60, _env_file=None)
    async with running_nodes.running(settings) as api:
        await page_while_publishing(api)


async def page_while_publishing(api: Api) -> None:
    await api.admin.post("/collections", json=sample.collection())
    old, new = list(sample.items(80)), iter(list(sample.items(200, start=2000)))

    async def publish(*items: Json) -> None:
        body = {"type": "FeatureCollection", "features": items}
        response = await api.admin.post("/collections/CMIP6/items", json=body)
        assert response.json()["status"] == "done", response.text

    await publish(*old)
    for order in ([], [{"field": "id"}], [{"field": "cmip6:source_id", "direction": "desc"}, {"field": "title"}]):
        found: list[str] = []
        question: Json | None = {"limit": 13, "sortby": order}
        while question:
            page = (await api.anyone.post("/search", json=question)).json()
            found += [feature["id"] for feature in page["features"]]
            last = page["features"][-1]  # the token holds its place
            changed = {**last, "properties": {**last["properties"], "note": f"{len(found)} {order}"}}
            await publish(*(next(new) for _ in range(4)), changed)
            question = next((link["body"] for link in page["links"] if link["rel"] == "next"), None)
        assert len(found) == len(set(found))
        assert set(found) >= {item["id"] for item in old}


# --- what is refused ---

DEEP: Json = {"op": "=", "args": [{"property": "a"}, 1]}
for _ in range(20):
    DEEP = {"op": "not", "args": [DEEP]}
WIDE = {"op": "and", "args": [{"op": "=", "args": [{"property": "a"}, n]} for n in range(201)]}
X = {"property": "x"}
RING = [[0, 0], [1, 0], [1, 1], [0, 0]]

BAD_BODIES: list[tuple[Any, str]] = [
    ([], "object"), ("text", "object"), (1, "object"), (None, "object"), (True, "object"),
    ({"unknown": 1}, "unknown"), ({"bboxes": [1, 2, 3, 4]}, "bboxes"), ({"conf": {"context": "on"}}, "conf"),
    ({"ids": 0}, "ids"), ({"ids": [1]}, "ids"), ({"ids": {}}, "ids"), ({"ids": [["x"]]}, "ids"),
    ({"ids": ["x"] * 10_001}, "ids"), ({"collections": 7}, "collections"),
    ({"collections": [None]}, "collections"),
    ({"bbox": [1, 2, 3]}, "bbox"), ({"bbox": "1,2,3,4"}, "bbox"), ({"bbox": [1, 2, 3, "4"]}, "bbox"),
    ({"bbox": [0, 10, 1, 5]}, "bbox"), ({"bbox": [0, -91, 1, 5]}, "bbox"), ({"bbox": [-400, 0, 1, 5]}, "bbox"),
    ({"bbox": [1, 2, 3, 4, 5]}, "bbox"), ({"bbox": [0, 0, 9, 1, 1, 5]}, "bbox"), ({"bbox": [True, 0, 1, 1]}, "bbox"),
    ({"bbox": []}, "bbox"), ({"bbox": {}}, "bbox"), ({"bbox": [0, 0, 1, 1], "intersects": {}}, "bbox"),
    ({"datetime": "yesterday"}, "datetime"), ({"datetime": "now"}, "datetime"), ({"datetime": "infinity"}, "datetime"),
    ({"datetime": "2000"}, "datetime"), ({"datetime": "2000-01-01"}, "datetime"), ({"datetime": 2000}, "datetime"),
    ({"datetime": ""}, "datetime"), ({"datetime": "/"}, "datetime"), ({"datetime": "../.."}, "datetime"),
    ({"datetime": "2000-01-01T00:00:00"}, "datetime"), ({"datetime": "2000-13-01T00:00:00Z"}, "datetime"),
    ({"datetime": "2000-02-30T00:00:00Z"}, "datetime"), ({"datetime": "0000-01-01T00:00:00Z"}, "datetime"),
    ({"datetime": "10000-01-01T00:00:00Z"}, "datetime"), ({"datetime": "P1D/2000-01-01T00:00:00Z"}, "datetime"),
    ({"datetime": "2001-01-01T00:00:00Z/2000-01-01T00:00:00Z"}, "datetime"),
    ({"datetime": ["2000-01-01T00:00:00Z"]}, "datetime"),
    ({"datetime": "2000-01-01T00:00:00Z/2001-01-01T00:00:00Z/2002-01-01T00:00:00Z"}, "datetime"),
    ({"datetime": "2000-01-01T00:00:00Z'; DROP TABLE x"}, "datetime"), ({"datetime": "/" * 1000}, "datetime"),
    ({"datetime": "2000-01-01T00:00:00+25:00"}, "datetime"), ({"datetime": "٢٠٠٠-01-01T00:00:00Z"}, "datetime"),
    ({"intersects": "POINT(1 2)"}, "intersects"), ({"intersects": []}, "intersects"),
    ({"intersects": {}}, "intersects"),
    ({"intersects": {"type": "Point"}}, "intersects"), ({"intersects": {"type": [], "coordinates": []}}, "intersects"),
    ({"intersects": {"type": "Point", "coordinates": [1000, 0]}}, "intersects"),
    ({"intersects": {"type": "Point", "coordinates": ["1", "2"]}}, "intersects"),
    ({"intersects": {"type": "Polygon", "coordinates": [RING[:3]]}}, "intersects"),
    ({"intersects": {"type": "Polygon", "coordinates": [[*RING, [5, 5]]]}}, "intersects"),
    ({"intersects": {"type": "MultiPolygon", "coordinates": [[RING], []]}}, "intersects"),
    ({"intersects": {"type": "LineString", "coordinates": [[0, 0]]}}, "intersects"),
    ({"intersects": {"type": "GeometryCollection", "geometries": []}}, "intersects"),
    ({"intersects": {"type": "GeometryCollection", "geometries": [None]}}, "intersects"),
    ({"intersects": {"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection"}]}}, "intersects"),
    ({"intersects": {"type": "MultiPoint", "coordinates": [[0, 0]] * 10_001}}, "intersects"),
    ({"intersects": {"type": "Feature", "geometry": None}}, "intersects"),
    ({"limit": -1}, "limit"), ({"limit": 0}, "limit"), ({"limit": "10"}, "limit"), ({"limit": 1.5}, "limit"),
    ({"limit": True}, "limit"), ({"limit": [1]}, "limit"), ({"limit": {}}, "limit"),
    ({"token": 1}, "token"), ({"token": []}, "token"), ({"token": "next:CMIP6:x"}, "token"), ({"token": {}}, "token"),
    ({"sortby": "id"}, "sortby"), ({"sortby": {}}, "sortby"), ({"sortby": ["id"]}, "sortby"), ({"sortby": 0}, "sortby"),
    ({"sortby": [{"field": "id", "direction": "up"}]}, "sortby"), ({"sortby": [{"direction": "asc"}]}, "sortby"),
    ({"sortby": [{"field": 1}]}, "sortby"), ({"sortby": [{"field": "id", "direction": []}]}, "sortby"),
    ({"sortby": [{"field": "a'b"}]}, "sortby"), ({"sortby": [{"field": ""}]}, "sortby"),
    ({"sortby": [{"field": "properties."}]}, "sortby"), ({"sortby": [{"field": "properties"}]}, "sortby"),
    ({"sortby": [{"field": "id"}] * 11}, "sortby"), ({"sortby": [{"field": "assets.x"}]}, "sortby"),
    ({"sortby": [{"field": "x; DROP TABLE y"}]}, "sortby"), ({"sortby": [{"field": "geometry"}]}, "sortby"),
    ({"fields": []}, "fields"), ({"fields": "id"}, "fields"), ({"fields": {"include": "id"}}, "fields"),
    ({"fields": {"include": [1]}}, "fields"), ({"fields": {"includes": ["id"]}}, "fields"),
    ({"fields": {"include": ["x"] * 201}}, "fields"),
    ({"query": []}, "query"), ({"query": "x"}, "query"), ({"query": {"x": 5}}, "query"),
    ({"query": {"x": {"is": 5}}}, "query"),
    ({"query": {"x": {"eq": None}}}, "filter"), ({"query": {"x": {"in": []}}}, "in takes"),
    ({"query": {"x": {"startsWith": 5}}}, "query"),
    ({"query": {"a'b": {"eq": 1}}}, "a'b"), ({"query": {"x": {"eq": 1}}, "filter": {}}, "query"),
    ({"filter-lang": "sql"}, "filter-lang"), ({"filter-lang": []}, "filter-lang"),
    ({"filter-crs": "EPSG:3857"}, "filter-crs"),
    ({"filter": "x = 1"}, "filter"), ({"filter": []}, "filter"), ({"filter": 1}, "filter"),
    ({"filter": DEEP}, "deeper"), ({"filter": WIDE}, "too large"),
    ({"filter": {"op": "in", "args": [X, list(range(1001))]}}, "1000"),
    ({"filter": {"op": "in", "args": [X, []]}}, "in"),
    ({"filter": {"op": "in", "args": [X, "abc"]}}, "in"), ({"filter": {"op": "in", "args": [X, [[1]]]}}, "filter"),
    ({"filter": {"op": "explode", "args": [X, 1]}}, "explode"), ({"filter": {"op": 1, "args": []}}, "op"),
    ({"filter": {"op": "=", "args": [X]}}, "="), ({"filter": {"op": "=", "args": [X, 1, 2]}}, "="),
    ({"filter": {"op": "=", "args": {"property": "x"}}}, "args"), ({"filter": {"op": "=", "args": [X, None]}}, "null"),
    ({"filter": {"op": "=", "args": [X, [1]]}}, "filter"), ({"filter": {"op": "=", "args": [X, {}]}}, "filter"),
    ({"filter": {"op": "and", "args": []}}, "and"), ({"filter": {"op": "and", "args": [1, 2]}}, "filter"),
    ({"filter": {"op": "not", "args": [X, X]}}, "not"), ({"filter": {"op": "isNull", "args": []}}, "isnull"),
    ({"filter": {"op": "isNull", "args": ["x"]}}, "property"),
    ({"filter": {"op": "between", "args": [X, 1]}}, "between"),
    ({"filter": {"op": "like", "args": [X, 5]}}, "filter"),
    ({"filter": {"op": "like", "args": [{"property": "datetime"}, "2%"]}}, "like"),
    ({"filter": {"op": "=", "args": [{"property": "x' OR 1=1 --"}, 1]}}, "property"),
    ({"filter": {"op": "=", "args": [{"property": ["x"]}, 1]}}, "property"),
    ({"filter": {"op": "=", "args": [{"property": ""}, 1]}}, "property"),
    ({"filter": {"op": "=", "args": [{"property": "geometry"}, 1]}}, "geometry"),
    ({"filter": {"op": "=", "args": [{"property": "datetime"}, "soon"]}}, "soon"),
    ({"filter": {"op": "t_after", "args": [{"property": "datetime"}, "2000-01-01"]}}, "filter"),
    ({"filter": {"op": "t_after", "args": [{"property": "datetime"}, {"timestamp": "x"}]}}, "timestamp"),
    ({"filter": {"op": "t_sometime", "args": [X, X]}}, "t_sometime"),
    ({"filter": {"op": "t_during", "args": [{"property": "datetime"}, {"interval": [".."]}]}}, "interval"),
    ({"filter": {"op": "t_during", "args": [{"property": "datetime"}, {"interval": ["2001-01-01", "2000-01-01"]}]}},
     "interval"),
    ({"filter": {"op": "s_intersects", "args": [{"property": "geometry"}, "POINT(1 2)"]}}, "geometry"),
    ({"filter": {"op": "s_intersects", "args": [X, {"type": "Point", "coordinates": [1, 2]}]}}, "geometry"),
    ({"filter": {"op": "s_near", "args": [{"property": "geometry"}, {"type": "Point", "coordinates": [1, 2]}]}},
     "s_near"),
    ({"filter": {"eq": [X, 1]}}, "filter"), ({"filter": {"op": "=", "args": [X, 1], "more": 1}}, "filter"),
    ({"filter": {"op": "=", "args": [{"op": "unaccent", "args": [X]}, "x"]}}, "unaccent"),
    ({"filter": "(" * 5000 + "a=1" + ")" * 5000, "filter-lang": "cql2-text"}, "deeper"),
    ({"filter": "NOT " * 20_000 + "a=1", "filter-lang": "cql2-text"}, "deeper"),
    ({"filter": "a = " + "-" * 50_000 + "1", "filter-lang": "cql2-text"}, "arithmetic"),
    ({"filter": "a IN (" + ",".join(["'x'"] * 1001) + ")", "filter-lang": "cql2-text"}, "1000"),
    ({"filter": "a = 1e400", "filter-lang": "cql2-text"}, "filter"),
    ({"filter": "a = 1; DROP TABLE x", "filter-lang": "cql2-text"}, "CQL2"),
    ({"filter": "", "filter-lang": "cql2-text"}, "CQL2"), ({"filter": "a =", "filter-lang": "cql2-text"}, "CQL2"),
    ({"filter": "a + 1 = 2", "filter-lang": "cql2-text"}, "arithmetic"),
]  # fmt: skip

BAD_TEXTS: list[tuple[bytes, str]] = [
    (b"", "empty"), (b"{", "JSON"), (b'{"limit": NaN}', "NaN"), (b'{"bbox": [1e999, 0, 1, 1]}', "1e999"),
    (b'{"ids": ["a\\u0000b"]}', "U+0000"), (b'{"ids": ["\\ud800"]}', "surrogate"),
    (b'{"limit": 1, "limit": 2}', "more than once"),
    (b'{"limit": 99999999999999999999}', "double"), (b"[" * 100 + b"]" * 100, "deeper"), (b"\xff", "UTF-8"),
]  # fmt: skip

BAD_PARAMETERS: list[tuple[str, str]] = [
    ("limit=-1", "limit"), ("limit=abc", "limit"), ("limit=1e9", "limit"), ("limit=0", "limit"), ("limit=1_0", "limit"),
    ("limit=1.5", "limit"), ("limit=%D9%A3", "limit"),
    ("bbox=1_0,0,11,1", "bbox"), ("bbox=%D9%A3,0,11,1", "bbox"),
    ("bbox=1,2,3", "bbox"), ("bbox=a,b,c,d", "bbox"),
    ("bbox=nan,0,1,1", "bbox"), ("bbox=inf,0,inf,1", "bbox"), ("bbox=,,,", "bbox"), ("bbox=0,10,10,0", "bbox"),
    ("datetime=never", "datetime"), ("datetime=2000-01-01", "datetime"), ("datetime=../..", "datetime"),
    ("intersects=POINT(1%202)", "intersects"), ("intersects=%7B%7D", "intersects"), ("intersects=null", "intersects"),
    ("query=%7B", "query"), ("query=" + "[" * 3000 + "]" * 3000, "query"), ("sortby=-", "sortby"),
    ("sortby=,", "sortby"),
    ("sortby=a'b", "sortby"), ("sortby=%2B%2D%2Dx%27", "sortby"), ("token=abc", "token"), ("token=%C3%BC", "token"),
    ("filter=a%20%3D", "CQL2"), ("filter=" + "(" * 5000 + "a=1" + ")" * 5000, "deeper"),
    ("filter=%F0%9F%92%A9", "CQL2"),
    ("filter=x&filter-lang=cql2-json", "filter"),
    ("filter-lang=x", "filter-lang"), ("unknown=1", "unknown"), ("limit=1&limit=2", "more than once"),
    ("ids=a&ids=b", "more than once"), ("fields=" + ",".join("abcdefghij" for _ in range(300)), "fields"),
    ("filter=a%20%3D%20%27%00%27", "control"), ("q=temperature%20AND", "q"),
]  # fmt: skip


def assert_refused(response: httpx.Response, named: str) -> None:
    assert response.status_code == 400, (response.status_code, response.text[:500])
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == 400
    assert problem["title"]
    assert problem["type"].endswith(f"/problems/{problem['code']}")
    assert problem["instance"].startswith("/")
    assert named in problem["detail"], problem["detail"]
    assert "pgstac." not in response.text
    assert len(problem["detail"]) < 1000


@pytest.mark.parametrize(("body", "named"), BAD_BODIES, ids=[str(n) for n in range(len(BAD_BODIES))])
async def test_a_bad_search_is_a_bad_request(site: Site, body: Any, named: str) -> None:
    assert_refused(await site.api.anyone.post("/search", content=orjson.dumps(body)), named)


@pytest.mark.parametrize(("text", "named"), BAD_TEXTS, ids=[str(n) for n in range(len(BAD_TEXTS))])
async def test_a_body_that_is_no_json_is_a_bad_request(site: Site, text: bytes, named: str) -> None:
    assert_refused(await site.api.anyone.post("/search", content=text), named)


@pytest.mark.parametrize(("query", "named"), BAD_PARAMETERS, ids=[str(n) for n in range(len(BAD_PARAMETERS))])
async def test_a_bad_parameter_is_a_bad_request(site: Site, query: str, named: str) -> None:
    assert_refused(await site.api.anyone.get(f"/search?{query}"), named)
    assert_refused(await site.api.anyone.get(f"/collections/CMIP6/items?{query}"), named)


WHOLE: Json = {
    "ids": ["place-01", "place-02"], "collections": ["places"], "bbox": [-180, -90, 180, 90], "limit": 5,
    "datetime": "0001-01-01T00:00:00Z/..", "sortby": [{"field": "level", "direction": "desc"}, {"field": "id"}],
    "fields": {"include": ["properties.level"], "exclude": ["links"]}, "filter-lang": "cql2-json",
    "filter": {"op": "or", "args": [
        {"op": "in", "args": [{"property": "name"}, ["a", "b"]]},
        {"op": "not", "args": [{"op": "like", "args": [{"op": "casei", "args": [{"property": "name"}]}, "x%"]}]},
        {"op": "between", "args": [{"property": "level"}, 1, 5]}, {"op": "isNull", "args": [{"property": "flag"}]},
        {"op": "t_during", "args": [{"property": "datetime"}, {"interval": ["2000-01-01", "2001-01-01T00:00:00Z"]}]},
        {"op": ">", "args": [{"property": "updated"}, {"timestamp": "2000-01-01T00:00:00Z"}]},
        {"op": "s_within", "args": [{"property": "geometry"}, {"type": "Polygon", "coordinates": [RING]}]},
        {"op": "a_overlaps", "args": [{"property": "cmip6:realm"}, ["ocean", "atmos"]]},
    ]},
}  # fmt: skip


async def test_a_search_changed_at_random_is_answered_or_refused(site: Site) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(SEARCHES):
        body = copy.deepcopy(WHOLE)
        for name in rng.sample(sorted(body), rng.randrange(len(body))):
            del body[name]
        for _ in range(rng.choice([1, 1, 2, 3]) if body else 0):
            mutate(body, rng)
        response = await site.api.anyone.post("/search", content=orjson.dumps(body))
        if response.status_code != 200:
            assert_refused(response, "")


async def test_a_collections_items_are_that_collections(site: Site) -> None:
    assert_refused(await site.api.anyone.get("/collections/CMIP6/items?collections=places"), "collections")
    assert (await site.api.anyone.get("/collections/CMIP6/items?collections=CMIP6&limit=1")).status_code == 200
    assert (await site.api.anyone.get("/collections/absent/items?limit=1")).status_code == 404


async def test_searches_at_once_do_not_mix(site: Site) -> None:
    sources = sorted({item.value("cmip6:source_id") for item in catalogue() if item.key[0] == "CMIP6"})
    bodies = [{"op": "=", "args": [{"property": "cmip6:source_id"}, source]} for source in sources]
    found = await asyncio.gather(*(site.keys(filter=body) for body in bodies))
    for source, keys in zip(sources, found, strict=True):
        assert set(keys) == expected(lambda item, source=source: item.value("cmip6:source_id") == source)
