"""The names of properties: what is offered, which short names are understood, and what is said of unknown ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import pytest_asyncio

from fedstac.api.search.queryables import QueryableNames
from fedstac.demo import embedded, sample
from fedstac.domain.vocabulary import Kind, Vocabulary
from fedstac.settings import Settings
from fedstac.vocabularies.checker import open_checker
from fedstac.vocabularies.registry import Vocabularies
from tests.support import nodes as running_nodes
from tests.support.databases import databases
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
VOCABULARIES = open_checker().vocabularies
PROJECTS = VOCABULARIES.projects()
ITEMS = list(sample.items(30))
FREE = [
    {"x:n": 9, "x:tags": ["a"], "size": "big", "x:when": "2020-01-01T00:00:00Z", "source_id": "S"},
    {"x:n": "nine", "x:tags": [], "x:flag": True, "x:when": None},
]


def vocabulary(project: str) -> Vocabulary:
    current = VOCABULARIES.current(project)
    assert current
    return current


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(cluster: embedded.Cluster, template: str) -> AsyncIterator[Api]:
    """The collections of all projects, one of them with datasets, and one without a project."""
    with databases(cluster, template) as make:
        settings = Settings(dsn=make(), node="west", default_wait_seconds=60, _env_file=None)
        async with running_nodes.running(settings) as running:
            for name in (*PROJECTS, "free"):
                assert (await running.admin.post("/collections", json=sample.collection(name))).status_code == 201
            await publish(running, "CMIP6", ITEMS)
            await publish(running, "free", [free(f"free-{n}", each) for n, each in enumerate(FREE)])
            yield running


def free(name: str, properties: Json) -> Json:
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": name, "collection": "free", "geometry": None, "links": [],
        "assets": {}, "properties": {"datetime": "2000-01-01T00:00:00Z", **properties},
    }  # fmt: skip


async def publish(api: Api, collection: str, items: list[Any]) -> None:
    body = {"type": "FeatureCollection", "features": items}
    response = await api.admin.post(f"/collections/{collection}/items", json=body)
    assert response.json()["counts"]["done"] == len(items), response.text


async def queryables(api: Api, path: str) -> Json:
    response = await api.anyone.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/schema+json"
    body: Json = response.json()
    assert body["additionalProperties"] is True
    properties: Json = body["properties"]
    return properties


async def search(api: Api, **parameters: Any) -> Json:
    response = await api.anyone.get("/search", params={"limit": 100, **parameters})
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


# --- what is offered ---


@pytest.mark.parametrize("project", PROJECTS)
async def test_a_project_offers_its_properties_with_their_terms(api: Api, project: str) -> None:
    offered = await queryables(api, f"/collections/{project}/queryables")
    for name, demand in vocabulary(project).properties.items():
        schema = offered[name]
        assert schema["title"]
        if demand.kind is Kind.STRINGS:
            assert schema["type"] == "array"
            schema = schema["items"]
        assert schema["type"] in ("string", "number", "integer", "boolean")
        assert ("enum" in schema) == (demand.terms is not None and demand.pattern is None)
        assert set(schema.get("enum", ())) <= set(demand.terms or ())
    for name in ("latest", "retracted", "version", "size", "created", "updated", "title", "datetime", "geometry", "id"):
        assert name in offered


async def test_a_collection_without_a_project_offers_what_its_datasets_have(api: Api) -> None:
    offered = await queryables(api, "/collections/free/queryables")
    assert offered["x:n"]["type"] == ["string", "number"]
    assert offered["x:tags"] | {"title": ""} == {"title": "", "type": "array", "items": {"type": "string"}}
    assert offered["size"]["type"] == "string"
    assert offered["x:when"]["format"] == "date-time"
    assert offered["x:flag"]["type"] == "boolean"
    assert "version" not in offered


async def test_what_all_collections_have_is_offered_at_the_root(api: Api) -> None:
    offered = await queryables(api, "/queryables")
    assert {"id", "collection", "datetime", "geometry", "latest", "updated"} <= set(offered)
    assert not any(name.startswith("cmip6:") for name in offered)
    assert offered["geometry"] == {"title": "Footprint", "format": "geometry-any"}


@pytest.mark.parametrize("path", ["/queryables", "/collections/CMIP6/queryables", "/collection-queryables"])
async def test_nothing_has_to_be_fetched_to_understand_queryables(api: Api, path: str) -> None:
    assert "$ref" not in (await api.anyone.get(path)).text


async def test_queryables_are_not_sent_again_to_whoever_has_them(api: Api) -> None:
    first = await api.anyone.get("/collections/CMIP6/queryables")
    again = await api.anyone.get("/collections/CMIP6/queryables", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await api.anyone.get("/collections/absent/queryables")).status_code == 404


# --- lists of every project ---


@pytest.mark.parametrize("name", [name for name, p in vocabulary("CMIP6").properties.items() if p.kind is Kind.STRINGS])
async def test_a_list_of_the_project_is_found_by_its_members(api: Api, name: str) -> None:
    await agree(api, name)


async def test_the_ways_to_the_files_are_found_by_each(api: Api) -> None:
    await agree(api, "access")


async def agree(api: Api, name: str) -> None:
    """Check that each way to ask for a member finds the same datasets, and its opposite all others with a value."""
    lists = {item["id"]: item["properties"][name] for item in ITEMS if name in item["properties"]}
    for member in sorted({member for members in lists.values() for member in members}):
        wanted = {id for id, members in lists.items() if member in members}
        own = f'"{name}"'
        for text in (f"{own} = '{member}'", f"{own} IN ('{member}', 'x')", f"{own} LIKE '{member}'",
                     f"casei({own}) = casei('{member.swapcase()}')", f"a_contains({own}, ('{member}'))",
                     f"{own} BETWEEN '{member}' AND '{member}'"):  # fmt: skip
            assert await ids(api, filter=text) == wanted, text
            assert await ids(api, filter=f"NOT {text}") == set(lists) - wanted, text
        assert await ids(api, filter=f"{own} <> '{member}'") == set(lists) - wanted
        for op, operand in (("eq", member), ("in", [member]), ("contains", member)):
            query = orjson.dumps({name: {op: operand}}).decode()
            assert await ids(api, query=query) >= wanted
        assert await ids(api, query=orjson.dumps({name: {"neq": member}}).decode()) == set(lists) - wanted


async def ids(api: Api, **parameters: Any) -> set[str]:
    return {feature["id"] for feature in (await search(api, collections="CMIP6", **parameters))["features"]}


# --- short and unknown names ---


async def test_a_name_without_its_prefix_is_understood_where_one_collection_is_searched(api: Api) -> None:
    source = ITEMS[0]["properties"]["cmip6:source_id"]
    whole = await search(api, collections="CMIP6", filter=f"cmip6:source_id = '{source}'")
    short = await search(api, collections="CMIP6", filter=f"source_id = '{source}'", sortby="-source_id")
    assert short["numberMatched"] == whole["numberMatched"] > 0
    assert "fedstac:warnings" not in short
    path = await api.anyone.get("/collections/CMIP6/items", params={"filter": f"source_id = '{source}'", "limit": 100})
    assert path.json()["numberMatched"] == whole["numberMatched"]


async def test_pages_of_a_search_by_a_short_name_follow_on(api: Api) -> None:
    found: list[str] = []
    body: Json | None = {
        "collections": ["CMIP6"], "limit": 7, "sortby": [{"field": "variable_id", "direction": "asc"}],
        "filter": {"op": "<>", "args": [{"property": "source_id"}, "x"]},
    }  # fmt: skip
    while body:
        page = (await api.anyone.post("/search", json=body)).json()
        found += [feature["properties"]["cmip6:variable_id"] for feature in page["features"]]
        body = next((link["body"] for link in page["links"] if link["rel"] == "next"), None)
    assert len(found) == len(ITEMS)
    assert found == sorted(found)


async def test_a_short_name_is_taken_as_it_is_where_datasets_have_it(api: Api) -> None:
    answer = await search(api, collections="free", filter="source_id = 'S'")
    assert answer["numberMatched"] == 1
    assert "fedstac:warnings" not in answer


@pytest.mark.parametrize(
    ("parameters", "suggestion"),
    [
        ({"filter": "cmip6:sourceid = 'CESM2'", "collections": "CMIP6"}, "cmip6:source_id"),
        ({"filter": "cmip6:sourceid = 'CESM2'"}, "cmip6:source_id"),
        ({"filter": "sourceid = 'CESM2'", "collections": "CMIP6"}, "cmip6:source_id"),
        ({"filter": "x:tagz = 1", "collections": "free"}, "x:tags"),
        ({"filter": "latest AND NOT t_after(updatd, DATE('2000-01-01'))"}, "updated"),
        ({"sortby": "-nope", "collections": "CMIP6"}, None),
        ({"query": '{"cmip6:realn": {"eq": "atmos"}}', "collections": "CMIP6"}, "cmip6:realm"),
        ({"collections": "CMIP66"}, "CMIP6"),
        ({"collections": "NOPE,CMIP6"}, None),
    ],
)
async def test_an_unknown_name_is_answered_with_a_warning(
    api: Api, parameters: dict[str, str], suggestion: str | None
) -> None:
    [warning] = (await search(api, **parameters))["fedstac:warnings"]
    assert warning["severity"] == "warning"
    assert warning.get("suggestion") == suggestion
    assert suggestion is None or suggestion in warning["message"]
    assert any(
        part in warning["message"] for part in ("sourceid", "x:tagz", "updatd", "nope", "realn", "CMIP66", "NOPE")
    )


@pytest.mark.parametrize(
    "filter",
    ["cmip6:source_id = 'x'", "x:n = 9 OR cmip7:realm = 'x'", "size > 100", "title LIKE '%'", "x:tags IS NULL",
     "start_datetime > DATE('2000-01-01')", "s_intersects(geometry, POINT(1 2))"],
)  # fmt: skip
async def test_a_known_name_is_answered_without(api: Api, filter: str) -> None:
    assert "fedstac:warnings" not in await search(api, filter=filter)


async def test_a_size_that_is_no_number_fails_no_search_over_all_collections(api: Api) -> None:
    assert (await search(api, filter="size > 100"))["numberMatched"] == len(ITEMS)
    assert (await search(api, filter="size = 'big'"))["numberMatched"] == 1
    assert (await search(api, filter="x:n > 5", collections="free"))["features"][0]["id"] == "free-0"


# --- fields ---


async def test_fields_are_named_with_and_without_properties(api: Api) -> None:
    for name in ("title", "properties.title"):
        answer = await api.anyone.post(
            "/search", json={"collections": ["CMIP6"], "limit": 1, "fields": {"include": [name]}}
        )
        assert set(answer.json()["features"][0]["properties"]) == {"title"}


@pytest.mark.parametrize("name", ["source_id", "properties.source_id", "cmip6:source_id"])
async def test_fields_take_a_name_without_its_prefix_where_one_collection_is_searched(api: Api, name: str) -> None:
    included = await search(api, collections="CMIP6", limit=1, fields=name)
    assert set(included["features"][0]["properties"]) == {"cmip6:source_id"}
    excluded = await search(api, collections="CMIP6", limit=1, fields=f"-{name}")
    assert "cmip6:source_id" not in excluded["features"][0]["properties"]
    assert "cmip6:variable_id" in excluded["features"][0]["properties"]
    assert not {"fedstac:warnings"} & (included.keys() | excluded.keys())


@pytest.mark.parametrize(
    ("fields", "collections", "suggestion"),
    [
        ("cmip6:sourceid", "CMIP6", "cmip6:source_id"),
        ("properties.sourceid", "CMIP6", "cmip6:source_id"),
        ("-sourceid,id", "CMIP6", "cmip6:source_id"),
        ("x:tagz", "free", "x:tags"),
        ("asset", "CMIP6", None),
        ("fedstac:replica", "free", "fedstac:replicas"),
    ],
)
async def test_an_unknown_field_is_answered_with_a_warning(
    api: Api, fields: str, collections: str, suggestion: str | None
) -> None:
    [warning] = (await search(api, collections=collections, fields=fields))["fedstac:warnings"]
    assert warning["severity"] == "warning"
    assert fields.split(",")[0].lstrip("-").removeprefix("properties.") in warning["message"]
    assert suggestion is None or warning["suggestion"] == suggestion


async def test_a_known_field_is_answered_without(api: Api) -> None:
    for fields in ("id,properties,assets.data,-links", "fedstac:retraction,fedstac:replicas,fedstac:state,title", ""):
        assert "fedstac:warnings" not in await search(api, collections="CMIP6", fields=fields)


# --- newer vocabularies ---


async def test_a_newer_vocabulary_offers_its_own_terms_at_once() -> None:
    old, *_, new = VOCABULARIES.of("CMIP6")
    at_hand = Vocabularies([old])
    node: Any = SimpleNamespace(checker=SimpleNamespace(vocabularies=at_hand))
    names = QueryableNames(node)
    before = names.declared("CMIP6")
    assert names.declared("CMIP6") is before
    at_hand.install(new)
    after = names.declared("CMIP6")
    for name in ("cmip6:source_id", "cmip6:institution_id"):
        assert after[name]["enum"] == sorted(vocabulary("CMIP6").properties[name].terms or ())
    assert after != before
