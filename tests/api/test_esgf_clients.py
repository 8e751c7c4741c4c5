"""What ESGF's clients send to a search and read from its answers: our own requests in the forms that theirs have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from pystac_client import Client

from fedstac.demo import embedded, sample
from fedstac.settings import Settings
from tests.support import nodes as running_nodes
from tests.support.databases import databases
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")
Json = dict[str, Any]
SAMPLES = list(sample.items(80))
GONE = SAMPLES[0]["id"]  # is retracted
COPIED = SAMPLES[1]  # has a replica


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(cluster: embedded.Cluster, template: str) -> AsyncIterator[Api]:
    with databases(cluster, template) as make:
        settings = Settings(dsn=make(), node="west", default_wait_seconds=60, _env_file=None)
        async with running_nodes.running(settings) as running:
            untitled = {name: value for name, value in sample.collection().items() if name != "title"}
            assert (await running.admin.post("/collections", json=untitled)).status_code == 201
            body = {"type": "FeatureCollection", "features": SAMPLES}
            answer = await running.admin.post("/collections/CMIP6/items", json=body)
            assert answer.json()["counts"]["done"] == len(SAMPLES), answer.text
            path = f"/collections/CMIP6/items/{GONE}/retract"
            assert (await running.admin.post(path, json={"reason": "wrong units"})).status_code == 200
            yield running


def op(name: str, *args: Any) -> Json:
    return {"op": name, "args": list(args)}


def facet(name: str, prefix: str = "properties.cmip6:") -> Json:
    return {"property": prefix + name}


def having(name: str, *values: Any) -> set[str]:
    def members(item: Json) -> list[Any]:
        value = item["properties"][f"cmip6:{name}"]
        return value if isinstance(value, list) else [value]

    return {item["id"] for item in SAMPLES if item["id"] != GONE and set(values) & set(members(item))}


ALL = {item["id"] for item in SAMPLES} - {GONE}
SOURCE, VARIABLE = (SAMPLES[5]["properties"][f"cmip6:{name}"] for name in ("source_id", "variable_id"))
NOT_RETRACTED = op("=", {"property": "properties.retracted"}, False)
IN_NOT_RETRACTED = op("in", facet("retracted"), [False])
FORMS: dict[str, tuple[Json, set[str]]] = {
    # a downloader: = or like for each value, or between values, and between facets; retracted as a truth value
    "one value": (op("and", op("=", facet("source_id"), SOURCE), NOT_RETRACTED), having("source_id", SOURCE)),
    "a list facet as a scalar": (op("=", facet("activity_id"), "ScenarioMIP"), having("activity_id", "ScenarioMIP")),
    "several values": (
        op("or", op("=", facet("activity_id"), "CMIP"), op("=", facet("activity_id"), "ScenarioMIP")),
        having("activity_id", "CMIP", "ScenarioMIP")),
    "a star": (
        op("like", facet("source_id"), SOURCE[:3] + "%"),
        having("source_id", *(source for item in SAMPLES
                              if (source := item["properties"]["cmip6:source_id"]).startswith(SOURCE[:3])))),
    "a star in a list": (op("like", facet("realm"), "atm%"), having("realm", "atmos", "atmosChem")),
    "an exclamation mark": (op("not", op("=", facet("source_id"), SOURCE)), ALL - having("source_id", SOURCE)),
    "no condition": (op("and", {}, NOT_RETRACTED), ALL),
    "nothing at all": ({}, ALL),
    # a catalogue: each facet with in
    "in": (op("and", op("in", facet("source_id"), [SOURCE]), op("in", facet("variable_id"), [VARIABLE]),
              IN_NOT_RETRACTED), having("source_id", SOURCE) & having("variable_id", VARIABLE)),
    "in of a list facet": (op("in", facet("activity_id"), ["ScenarioMIP"]), having("activity_id", "ScenarioMIP")),
    "retracted with a prefix": (op("and", IN_NOT_RETRACTED), ALL),
    # a portal: without `properties.`, latest and retracted with in
    "latest": (op("and", op("in", facet("realm", "cmip6:"), ["ocean"]), op("in", {"property": "latest"}, [True, False]),
                  op("in", {"property": "retracted"}, [False])), having("realm", "ocean")),
    "only retracted": (op("in", {"property": "retracted"}, [True]), {GONE}),
    "without any prefix": (op("=", facet("source_id", ""), SOURCE), having("source_id", SOURCE)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
async def test_a_filter_in_the_form_of_a_client_finds_what_it_means(api: Api, form: str) -> None:
    filter, wanted = FORMS[form]
    assert wanted
    for collections in (["CMIP6"], ["cmip6"], "CMIP6"):
        body = {"collections": collections, "filter-lang": "cql2-json", "filter": filter, "limit": 9999}
        answer = await api.anyone.post("/search", json=body)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert {feature["id"] for feature in page["features"]} == wanted
        assert page["numMatched"] == page["numberMatched"] == page["numReturned"] == len(wanted)


async def test_pystac_client_sends_them_too(api: Api) -> None:
    def ask() -> dict[str, tuple[int | None, set[str]]]:
        client = Client.open(api.url)
        found = {}
        for form, (filter, _) in FORMS.items():
            search = client.search(collections="CMIP6", filter=filter, limit=50, max_items=200)
            found[form] = search.matched(), {item["id"] for item in search.items_as_dicts()}
        return found

    found = await asyncio.to_thread(ask)
    assert found == {form: (len(wanted), wanted) for form, (_, wanted) in FORMS.items()}


async def test_the_publisher_finds_the_version_before(api: Api) -> None:
    base_id = SAMPLES[5]["properties"]["base_id"]
    filter = op("and", op("=", {"property": "properties.title"}, base_id),
                op("=", {"property": "properties.latest"}, True))  # fmt: skip
    page = (await api.anyone.post("/search", json={"filter-lang": "cql2-json", "filter": filter})).json()
    assert page["numMatched"] == 1
    assert page["features"][0]["properties"]["base_id"] == base_id


@pytest.mark.parametrize(
    "interval",
    [["1850-01-01T00:00:00Z", "2100-12-31T00:00:00Z"], ["1850-01-01", ".."], ["..", "2100-12-31"],
     ["1850-01-01T00:00:00Z", "2100-12-31"]],
)  # fmt: skip
async def test_the_ends_of_an_interval_are_texts(api: Api, interval: list[str]) -> None:
    filter = op("t_intersects", {"property": "datetime"}, {"interval": interval})
    page = (await api.anyone.post("/search", json={"filter": filter, "collections": ["CMIP6"], "limit": 1})).json()
    first, last = interval[0].replace("..", "0000"), interval[1].replace("..", "9999")
    wanted = [
        item for item in SAMPLES
        if item["id"] in ALL and item["properties"]["start_datetime"] <= last + "~"
        and item["properties"]["end_datetime"] >= first
    ]  # fmt: skip
    assert page["numberMatched"] == len(wanted) > 0


async def test_a_downloader_reads_the_first_alternate_alone(api: Api) -> None:
    path = f"/collections/CMIP6/items/{COPIED['id']}"
    operations = [
        {"op": "add", "path": f"/assets/{key}/alternate/east", "value": {
            "href": f"https://east.example/{key}", "alternate:name": "east", "roles": ["data"],
            "description": "HTTPServer Link"}}
        for key, asset in COPIED["assets"].items() if "file:checksum" in asset
    ]  # fmt: skip
    answer = await api.admin.patch(path, json=operations)
    assert answer.status_code == 200, answer.text
    page = (await api.anyone.get("/search", params={"ids": COPIED["id"]})).json()
    read = 0
    for asset in page["features"][0]["assets"].values():
        if "file:checksum" not in asset:
            continue
        alternate = next(iter(asset["alternate"].values()))
        for name in ("file:size", "file:checksum", "file:local_path", "type"):
            assert alternate[name] == asset[name]
        assert (alternate["alternate:name"], alternate["description"]) == ("east", "HTTPServer Link")
        read += 1
    assert read == len(operations) > 0


async def test_the_title_of_a_collection_is_the_name_of_the_project(api: Api) -> None:
    [listed] = (await api.anyone.get("/collections")).json()["collections"]
    [child] = [link for link in (await api.anyone.get("/")).json()["links"] if link["rel"] == "child"]
    assert (await api.anyone.get("/collections/CMIP6")).json()["title"] == listed["title"] == child["title"] == "CMIP6"
