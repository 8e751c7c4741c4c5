"""Filters over datasets of every type of value, compared with a plain evaluation of the same filters in Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import hypothesis
import pytest
import pytest_asyncio
from hypothesis import given

from fedstac.demo import embedded, sample
from fedstac.settings import Settings
from tests.api import odd_values
from tests.api.odd_values import Json, as_text, judge
from tests.support import nodes as running_nodes
from tests.support.databases import databases
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

ODD = odd_values.documents("odd")
EXAMPLES = 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(cluster: embedded.Cluster, template: str) -> AsyncIterator[Api]:
    with databases(cluster, template) as make:
        settings = Settings(dsn=make(), node="west", default_wait_seconds=60, _env_file=None)
        async with running_nodes.running(settings) as running:
            for name in ("odd", "CMIP6"):
                assert (await running.admin.post("/collections", json=sample.collection(name))).status_code == 201
            for name, items in (("odd", ODD), ("CMIP6", list(sample.items(40)))):
                body = {"type": "FeatureCollection", "features": items}
                response = await running.admin.post(f"/collections/{name}/items", json=body)
                assert response.json()["counts"]["done"] == len(items), response.text
            yield running


def expected(expression: Any) -> set[str]:
    return {document["id"] for document in ODD if judge(expression, document)}


async def test_any_filter_finds_in_json_and_in_text_what_it_means(api: Api) -> None:
    with httpx.Client(base_url=api.url) as client:

        @hypothesis.settings(max_examples=EXAMPLES)
        @given(odd_values.FILTERS)
        def check(expression: Any) -> None:
            wanted = expected(expression)
            body = {"collections": ["odd"], "limit": 100, "fields": {"include": ["id"]}, "filter": expression}
            assert ids(client.post("/search", json=body)) == wanted
            text = {"filter": as_text(expression), "limit": "100", "fields": "id"}
            assert ids(client.get("/collections/odd/items", params=text)) == wanted

        await asyncio.to_thread(check)


def ids(response: httpx.Response) -> set[str]:
    assert response.status_code == 200, response.text
    return {feature["id"] for feature in response.json()["features"]}


# --- what is refused, and what stands for something else ---


@pytest.mark.parametrize(
    ("op", "write"),
    [("==", "="), ("eq", "="), ("neq", "<>"), ("&&", "and"), ("||", "or"), ("gte", ">="), ("ilike", "like"),
     ("startsWith", "like"), ("anyinteracts", "t_intersects"), ("before", "t_before"), ("intersects", "s_intersects")],
)  # fmt: skip
async def test_an_operator_of_another_language_is_refused_with_that_of_cql2(api: Api, op: str, write: str) -> None:
    filters = ({"op": op, "args": [{"property": "x:a"}, 5]}, {op: [{"property": "x:a"}, 5]})
    for filter in filters:
        response = await api.anyone.post("/search", json={"filter": filter})
        assert response.status_code == 400
        assert f"write {write}" in response.json()["detail"] or f'"op": "{write}' in response.json()["detail"]


@pytest.mark.parametrize(
    ("text", "write"),
    [("x == 5", "write ="), ("x = 5 && y = 6", "write and"), ("x eq 5", "write ="), ("x + 1 = 2", "arithmetic")],
)
async def test_so_it_is_in_text(api: Api, text: str, write: str) -> None:
    response = await api.anyone.get("/search", params={"filter": text})
    assert response.status_code == 400
    assert write in response.json()["detail"]


async def test_unequal_is_spelt_in_two_ways(api: Api) -> None:
    filter = {"op": "!=", "args": [{"property": "x:a"}, "abc"]}
    wanted = expected({**filter, "op": "<>"})
    assert wanted
    assert await found(api, filter) == wanted
    assert ids(await api.anyone.get("/search", params={"filter": "\"x:a\" != 'abc'", "limit": 100})) == wanted


async def test_in_takes_moments_and_functions(api: Api) -> None:
    own = {"property": "x:a"}
    moments = {"op": "in", "args": [own, [{"timestamp": "2020-01-01T00:00:00Z"}, {"date": "2031-01-01"}]]}
    assert await found(api, moments) == {
        document["id"] for document in ODD
        if {"2020-01-01T00:00:00Z", "2020-01-01", "2031-01-01T00:00:00Z"} & set(texts(document))
    }  # fmt: skip
    folded = {"op": "in", "args": [{"op": "casei", "args": [own]}, [{"op": "casei", "args": ["strasse"]}]]}
    assert await found(api, folded) == {
        document["id"] for document in ODD if {"STRASSE", "Straße"} & set(texts(document))
    }


def texts(document: Json) -> list[str]:
    value = document["properties"]["x:a"]
    return [member for member in (value if isinstance(value, list) else [value]) if isinstance(member, str)]


async def test_a_list_may_stand_before_the_property(api: Api) -> None:
    filter = {"op": "a_contains", "args": [["abc", 5, "x"], {"property": "x:a"}]}
    wanted = expected({"op": "a_containedby", "args": [{"property": "x:a"}, ["abc", 5, "x"]]})
    assert await found(api, filter) == wanted


async def test_a_number_in_a_list_is_the_same_in_every_spelling(api: Api) -> None:
    wanted = expected({"op": "a_contains", "args": [{"property": "x:a"}, [5]]})
    assert wanted
    for text in ("5", "5.0", "0.5e1"):
        response = await api.anyone.get("/search", params={"filter": f'a_contains("x:a", ({text}))', "limit": 100})
        assert ids(response) == wanted


@pytest.mark.parametrize("pattern", ["%\\", "\\", "a\\\\\\"])
async def test_a_pattern_that_ends_with_a_backslash_is_refused_whatever_is_stored(api: Api, pattern: str) -> None:
    for params in ({}, {"collections": "CMIP6"}, {"collections": "absent"}):
        response = await api.anyone.get("/search", params={"filter": f"title LIKE '{pattern}'", **params})
        assert response.status_code == 400
        assert "backslash" in response.json()["detail"]


@pytest.mark.parametrize(
    ("name", "value"), [("datetime", 5), ("end_datetime", "soon"), ("updated", {"timestamp": "2020-01-01T00:00:00Z"})]
)
async def test_a_moment_is_compared_with_moments_only(api: Api, name: str, value: Any) -> None:
    other = {"property": name} if name != "updated" else {"op": "casei", "args": [{"property": name}]}
    response = await api.anyone.post("/search", json={"filter": {"op": "<", "args": [other, value]}})
    assert response.status_code == 400
    assert "moment" in response.json()["detail"]


async def test_offsets_are_those_of_rfc_3339(api: Api) -> None:
    start = ODD[30]["properties"]["datetime"].replace("T00:00:00+00:00", "T23:59:00+23:59")
    response = await api.anyone.get("/search", params={"datetime": start, "limit": 100})
    assert ODD[30]["id"] in ids(response)


@pytest.mark.parametrize("value", ["abc", 5, True, ["abc"], {"k": "abc"}, None])
async def test_the_query_extension_is_fed_by_odd_values_too(api: Api, value: Any) -> None:
    for op in ("eq", "neq", "lt", "gte", "in", "startsWith", "contains"):
        operand = ["abc", 5] if op == "in" else "abc"
        response = await api.anyone.post("/search", json={"query": {"x:a": {op: operand}, "size": {"lt": 1e9}}})
        assert response.status_code == 200


async def found(api: Api, filter: Any) -> set[str]:
    return ids(await api.anyone.post("/search", json={"collections": ["odd"], "limit": 100, "filter": filter}))
