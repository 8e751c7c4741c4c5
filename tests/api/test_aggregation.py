"""Aggregation over HTTP, compared with plain counts over the same items, and with what ESGF's clients send."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
import pytest
import pytest_asyncio
from pystac_client import ItemSearch

from fedstac.api.search import queryables
from fedstac.api.search.aggregation import MOST_AGGREGATIONS
from fedstac.db import aggregation
from fedstac.demo import embedded
from fedstac.domain.model import rfc3339
from fedstac.runtime.capacity import Threads
from fedstac.settings import Settings
from tests.api import oracle
from tests.api.oracle import Json, Known, catalogue, publish_catalogue
from tests.support import nodes as running_nodes
from tests.support.databases import databases
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACETS = (
    "cmip6:activity_id", "cmip6:experiment_id", "cmip6:frequency", "cmip6:grid_label", "cmip6:institution_id",
    "cmip6:nominal_resolution", "cmip6:realm", "cmip6:source_id", "cmip6:source_type", "cmip6:table_id",
    "cmip6:variable_id", "level", "flag", "name",
)  # fmt: skip
FILTERS = 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def paths(cluster: embedded.Cluster, template: str) -> AsyncIterator[dict[str, Api]]:
    """Two applications on one catalogue: one counts in memory, the other in PostgreSQL."""
    with databases(cluster, template) as make:
        settings = Settings(dsn=make(), node="west", default_wait_seconds=60, _env_file=None)
        without = settings.model_copy(update={"columns": False})
        async with (
            running_nodes.running(settings) as memory,
            running_nodes.running(without, background=False) as postgresql,
        ):
            await publish_catalogue(memory)
            yield {"memory": memory, "PostgreSQL": postgresql}


@pytest.fixture(params=["memory", "PostgreSQL"])
def api(paths: dict[str, Api], request: pytest.FixtureRequest) -> Api:
    return paths[request.param]


async def aggregate(api: Api, /, path: str = "/aggregate", **body: Any) -> dict[str, Json]:
    """Return the aggregations of an answer by their names."""
    response = await api.anyone.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    assert answer["type"] == "AggregationCollection"
    return {each["name"]: each for each in answer["aggregations"]}


def name_of(facet: str) -> str:
    return facet.replace(":", "_") + "_frequency"


def buckets(aggregation: Json) -> dict[str, int]:
    found = {bucket["key"]: bucket["frequency"] for bucket in aggregation["buckets"]}
    assert len(found) == len(aggregation["buckets"])
    return found


def counted(items: Iterable[Known], facet: str) -> Counter[str]:
    """Count the values of a facet, as the keys of buckets have them."""
    counts: Counter[str] = Counter()
    for item in items:
        value = item.value(facet)
        members = value if isinstance(value, list) else [] if value is None else [value]
        counts.update({each if isinstance(each, str) else _spelled(each) for each in members})
    return counts


def _spelled(value: float | bool) -> str:
    return orjson.dumps(int(value) if value == 1e12 else value).decode()


def shown(aggregation: Json) -> tuple[dict[str, int], int]:
    return buckets(aggregation), aggregation["overflow"]


def wanted(items: list[Known], facet: str) -> tuple[dict[str, int], int]:
    """Return what the buckets of a facet have to be, and how many items are in none."""
    return dict(counted(items, facet)), sum(not counted([item], facet) for item in items)


async def test_everything_is_counted_where_nothing_is_asked_for(api: Api) -> None:
    found = await aggregate(api)
    everything = list(catalogue())
    assert found["total_count"]["value"] == len(everything)
    assert found["datetime_min"]["value"] == rfc3339(min(item.start for item in everything))
    assert found["datetime_max"]["value"] == rfc3339(max(item.end for item in everything))
    years = Counter(f"{item.start.year:04}-01-01T00:00:00Z" for item in everything)
    assert buckets(found["datetime_frequency"]) == years
    assert buckets(found["collection_frequency"]) == Counter(item.key[0] for item in everything)
    assets = [asset for item in everything for asset in item.document["assets"].values()]
    sizes = [asset["file:size"] for asset in assets if "file:size" in asset]
    assert (found["byte_count"]["value"], found["file_count"]["value"]) == (sum(sizes), len(sizes))
    for facet in FACETS:
        assert shown(found[name_of(facet)]) == wanted(everything, facet), facet


async def compare_random_filters(api: Api, seed: int, count: int) -> None:
    """Fail where the counts of random filters are not those of the items that they are true of."""
    rng = random.Random(seed)
    everything = list(catalogue())
    for n in range(count):
        expression, judge = oracle.random_filter(rng)
        facets = rng.sample(FACETS, 4)
        names = ["total_count", *map(name_of, facets)]
        found = await aggregate(api, filter=expression, aggregations=names)
        items = [item for item in everything if judge(item) is True]
        assert found["total_count"]["value"] == len(items), (seed, n, expression)
        for facet in facets:
            assert shown(found[name_of(facet)]) == wanted(items, facet), (seed, n, expression, facet)


async def test_counts_of_random_filters_are_those_of_the_items(api: Api) -> None:
    await compare_random_filters(api, 23, FILTERS)


@pytest.mark.soak
async def test_counts_of_two_thousand_random_filters_are_those_of_the_items(api: Api) -> None:
    await compare_random_filters(api, 24, 2_000)


async def test_a_facet_leaves_its_own_conditions_out_where_that_is_asked_for(api: Api) -> None:
    rng = random.Random(29)
    everything = list(catalogue())
    facets = ("cmip6:source_id", "cmip6:frequency", "cmip6:realm", "level")
    for n in range(12):
        chosen = {
            facet: sorted(counted(everything, facet))[:: rng.randint(2, 5)] for facet in rng.sample(facets, 2 + n % 2)
        }
        parts = [
            {"op": "in", "args": [{"property": facet}, [orjson.loads(v) if facet == "level" else v for v in values]]}
            for facet, values in chosen.items()
        ]

        def meets(item: Known, left_out: str | None = None, *, chosen: dict[str, list[str]] = chosen) -> bool:
            return all(
                facet == left_out or counted([item], facet).keys() & set(values) for facet, values in chosen.items()
            )

        body: Json = {
            "filter": {"op": "and", "args": [{"op": "and", "args": parts[:1]}, *parts[1:]]},
            "multi_select": True,
        }
        found = await aggregate(api, "/aggregate", **body)
        assert found["total_count"]["value"] == sum(meets(item) for item in everything)
        for facet in facets:
            items = [item for item in everything if meets(item, facet)]
            assert shown(found[name_of(facet)]) == wanted(items, facet), (facet, chosen)


async def test_a_collection_counts_its_own(api: Api) -> None:
    places = [item for item in catalogue() if item.key[0] == "places"]
    found = await aggregate(api, "/collections/places/aggregate", aggregations=["total_count", "flag_frequency"])
    assert list(found) == ["total_count", "flag_frequency"]
    assert found["total_count"]["value"] == len(places)
    assert shown(found["flag_frequency"]) == wanted(places, "flag")
    assert {bucket["data_type"] for bucket in found["flag_frequency"]["buckets"]} == {"boolean"}
    assert (await api.anyone.get("/collections/absent/aggregate")).status_code == 404
    assert (await api.anyone.get("/collections/absent/aggregations")).status_code == 404


@pytest.mark.parametrize(
    "path", ["/aggregations", "/collections/CMIP6/aggregations", "/collections/places/aggregations"]
)
async def test_what_is_listed_can_be_asked_for_and_agrees_with_the_queryables(api: Api, path: str) -> None:
    listed = (await api.anyone.get(path)).json()["aggregations"]
    names = [each["name"] for each in listed]
    assert len(names) == len(set(names))
    assert {"total_count", "datetime_min", "datetime_max", "datetime_frequency", "alternate_name_frequency"} <= set(
        names
    )
    answer = await aggregate(api, path.replace("aggregations", "aggregate"), aggregations=names)
    assert list(answer) == names
    schemas: Json = {}
    for collection in ("CMIP6", "places"):
        schemas |= (await api.anyone.get(f"/collections/{collection}/queryables")).json()["properties"]
    for each in listed:
        own = answer[each["name"]]
        assert own["data_type"] == each["data_type"]
        assert ("buckets" in own) == (each["data_type"] == "frequency_distribution") == ("value" not in own)
        if each["name"] == "alternate_name_frequency" or "property" not in each:
            continue
        schema = schemas[each["property"]]
        assert each["title"] == schema["title"]
        terms = schema.get("enum") or schema.get("items", {}).get("enum")
        assert terms is None or {bucket["key"] for bucket in own["buckets"]} <= set(terms)


async def test_links_lead_to_the_counts(api: Api) -> None:
    for path in ("/", "/collections/CMIP6"):
        links = (await api.anyone.get(path)).json()["links"]
        found = {
            (link["rel"], link.get("method")): link["href"] for link in links if link["rel"].startswith("aggregat")
        }
        assert found.keys() == {("aggregate", "GET"), ("aggregate", "POST"), ("aggregations", None)}
        for href in found.values():
            assert (await api.anyone.get(href)).status_code == 200
    assert "https://api.stacspec.org/v0.3.0/aggregation" in (await api.anyone.get("/conformance")).json()["conformsTo"]


BEYOND = ("0001-01-01T00:30:00+01:00", "9999-12-31T23:30:00-01:00")  # they are in no year that Python knows


@pytest.mark.parametrize("moment", BEYOND)
async def test_a_moment_beyond_the_calendar_is_refused(paths: dict[str, Api], moment: str) -> None:
    document: Json = orjson.loads(orjson.dumps(next(each.document for each in catalogue() if each.key[0] == "places")))
    document |= {"id": "beyond"}
    document["properties"] = {"datetime": moment}
    refusal = await paths["memory"].admin.post("/collections/places/items", json=document)
    assert refusal.status_code == 400, refusal.text
    assert "/properties/datetime" in refusal.text


async def test_moments_beyond_the_calendar_that_are_stored_count_as_its_ends(paths: dict[str, Api]) -> None:
    threads = Threads()
    conn = await asyncpg.connect(paths["memory"].settings.dsn)
    try:
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(f"""UPDATE fedstac.facet SET starts = '{BEYOND[0]}', ends = '{BEYOND[1]}'
                               WHERE n = (SELECT min(n) FROM fedstac.facet WHERE shown > 0)""")
        every = await aggregation.count(conn, threads, {}, {}, [])
        await transaction.rollback()
    finally:
        threads.close()
        await conn.close()
    assert (every.first, every.last) == (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    assert every.years[1] == sum(each.start.year == 1 for each in catalogue()) + 1


async def test_a_property_that_only_hidden_datasets_have_is_named_nowhere(
    paths: dict[str, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queryables, "FRESH_SECONDS", 0.0)  # a sample is not to outlast what it is of
    secret = "secret_campaign_frequency"
    questions = [
        f"{collection}/{rest}" for collection in ("", "/collections/places")
        for rest in ("aggregations", "aggregate", f"aggregate?aggregations={secret}",
                     f"aggregate?aggregations={secret.replace('ai', 'ia')}")
    ]  # fmt: skip

    async def answers(path: str) -> list[str]:
        every = [await paths[path].anyone.get(question) for question in questions]
        return [answer.text.replace(answer.headers["x-request-id"], "") for answer in every]

    before = {path: await answers(path) for path in paths}
    document: Json = orjson.loads(orjson.dumps(next(each.document for each in catalogue() if each.key[0] == "places")))
    document |= {"id": "hidden"}
    document["properties"]["secret:campaign"] = "alpha"
    admin = paths["memory"].admin
    (await admin.post("/collections/places/items", json=document)).raise_for_status()
    for path in paths:
        assert all(secret in text for text in await answers(path)), path
    (await admin.delete("/collections/places/items/hidden")).raise_for_status()
    for path in paths:
        assert await answers(path) == before[path], path


# --- ESGF's clients ---


async def test_the_requests_of_esgfs_own_tests_are_answered(api: Api) -> None:
    scenario = {"args": [{"property": "cmip6:activity_id"}, "ScenarioMIP"], "op": "="}
    names = ["cmip6_source_id_frequency", "cmip6_table_id_frequency"]
    found = await aggregate(api, collections=["CMIP6"], filter_exp=scenario, aggregations=names)
    items = [item for item in catalogue() if "ScenarioMIP" in (item.value("cmip6:activity_id") or [])]
    assert {name: buckets(found[name]) for name in names} == {
        name_of(facet): counted(items, facet) for facet in ("cmip6:source_id", "cmip6:table_id")
    }
    # as they made the address of a GET from that of a search by pystac-client
    search = ItemSearch("https://node.example/search", method="GET", collections=["CMIP6"], filter=scenario)
    url = search.url_with_parameters().replace("search?", f"aggregate?aggregations={','.join(names)}&")
    answer = (await api.anyone.get(url.removeprefix("https://node.example"))).json()
    assert {each["name"]: buckets(each) for each in answer["aggregations"]} == {
        name: buckets(found[name]) for name in names
    }


async def test_facets_that_a_client_asks_of_every_project_are_answered_with_no_buckets(api: Api) -> None:
    names = [f"cmip6_{name}_frequency" for name in ("further_info_url", "mip_era", "data_node", "pid", "variant_label")]
    found = await aggregate(api, collections=["CMIP6"], aggregations=names, limit=0, sortby=[], fields={})
    assert list(found) == names
    assert found["cmip6_mip_era_frequency"]["buckets"] == found["cmip6_pid_frequency"]["buckets"] == []
    assert found["cmip6_pid_frequency"]["overflow"] == oracle.SAMPLES


# --- refusals ---


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"aggregations": ["cmip6_source_id_frequenzy"]}, "did you mean `cmip6_source_id_frequency`?"),
        ({"aggregations": ["x"]}, "GET /aggregations lists them"),
        ({"aggregations": ["x_source_id_frequency"]}, "did you mean"),
        ({"aggregations": "total_count"}, "aggregations is a list of strings"),
        ({"aggregations": ["total_count"] * (MOST_AGGREGATIONS + 1)}, f"{MOST_AGGREGATIONS} are the most"),
        ({"multi_select": 1}, "multi_select is true or false"),
        ({"datetime_frequency_interval": "month"}, "datetime_frequency_interval is year"),
        ({"filter": True, "filter_exp": True}, "leave one out"),
        ({"agregations": []}, "is not known here"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ([], "a question for counts is one"),
    ],
)
async def test_what_is_not_understood_is_refused_with_what_to_do(api: Api, body: Any, words: str) -> None:
    for path in ("/aggregate", "/collections/CMIP6/aggregate"):
        response = await api.anyone.post(path, json=body)
        assert response.status_code == 400, response.text
        assert words in response.json()["detail"]


async def test_an_unknown_name_is_warned_about(api: Api) -> None:
    filter = {"op": "=", "args": [{"property": "cmip6:sourse_id"}, "x"]}
    answer = (await api.anyone.post("/collections/CMIP6/aggregate", json={"filter": filter})).json()
    assert answer["fedstac:warnings"][0]["suggestion"] == "cmip6:source_id"
