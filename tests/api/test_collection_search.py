"""The search for collections: by words, place, time and properties, page by page; and the catalogue's children."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import chain
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
EVERYWHERE = [[-180.0, -90.0, 180.0, 90.0]]


def collection(
    name: str, description: str, boxes: list[Any] = EVERYWHERE, start: str | None = None, end: str | None = None,
    **members: Any
) -> Json:  # fmt: skip
    extent = {"spatial": {"bbox": boxes}, "temporal": {"interval": [[start, end]]}}
    return {**sample.collection(name), "description": description, "extent": extent, **members}


COLLECTIONS = (
    collection("alps", "Snow depth in the Alps", [[5, 43, 17, 48]], "1990-01-01T00:00:00Z", "2000-12-31T00:00:00Z",
               keywords=["snow", "Météo-France"], license="CC0-1.0", level=3),
    collection("andes", "Depth of snow, and of ice", [[-80, -55, -62, 10]], "1980-01-01T00:00:00Z", None,
               title="Snow of the Andes", license="CC0-1.0", level=10),
    collection("pacific", "Sea surface temperature", [[150, -60, -80, 60], [150, -60, 180, 60], [-180, -60, -80, 60]],
               None, "1985-01-01T00:00:00Z", keywords=["EC-Earth3", "sea ice"], level=None),
    collection("shifted", "Longitudes from 0 to 360", [[190, -10, 215, 10]], level="high"),
    collection("tall", "With heights: STRASSE", [[0, 0, -5, 10, 10, 5]], keywords=["tower"], level=[1, 2]),
)  # fmt: skip
IDS = [each["id"] for each in COLLECTIONS]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(cluster: embedded.Cluster, template: str) -> AsyncIterator[Api]:
    with databases(cluster, template) as make:
        settings = Settings(dsn=make(), node="west", default_wait_seconds=60, _env_file=None)
        async with running_nodes.running(settings) as running:
            for each in COLLECTIONS:
                answer = await running.admin.post("/collections", json=each)
                assert answer.status_code == 201, answer.text
            yield running


async def found(api: Api, **parameters: str) -> list[str]:
    """Return the ids that a search finds; all of them fit into one page."""
    answer = await api.anyone.get("/collections", params=parameters)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert page["numberMatched"] == page["numberReturned"] == len(page["collections"])
    return [each["id"] for each in page["collections"]]


@pytest.mark.parametrize(
    ("q", "ids"),
    [
        ("snow", ["alps", "andes"]), ("SNOW", ["alps", "andes"]), ("snow depth", ["alps"]),
        ("snow,temperature", ["alps", "andes", "pacific"]), ('"sea ice"', ["pacific"]), ("sea ice", ["pacific"]),
        ("ice sea", []), ("snow AND ice", ["andes"]), ("snow OR tower", ["alps", "andes", "tall"]),
        ("snow NOT ice", ["alps"]), ("snow -ice", ["alps"]), ("-snow", ["pacific", "shifted", "tall"]),
        ("ice +snow", ["alps", "andes"]), ("(snow OR sea) AND ice", ["andes", "pacific"]),
        ("snow AND NOT (ice OR alps)", []), ("ec-earth3", ["pacific"]), ("EC", ["pacific"]), ("eart", []),
        ("Météo", ["alps"]), ("météo-france", ["alps"]), ("straße", ["tall"]), ("andes", ["andes"]),
        ("0 to 360", ["shifted"]), ("snow and ice", []), ("'; DROP TABLE x;", []), ("100%", []),
    ],
)  # fmt: skip
async def test_words_are_looked_for_in_id_title_description_and_keywords(api: Api, q: str, ids: list[str]) -> None:
    assert await found(api, q=q) == ids


@pytest.mark.parametrize(
    "q",
    ["AND", "snow AND", "OR snow", '"snow', "(snow", "snow)", ",", "snow,,ice", '"snow" "ice"', "NOT", "--", "()", "+",
     "x" * 1001, ",".join("abcdefghijklmnopqrstuvwxyz"), "(" * 500],
)  # fmt: skip
async def test_words_that_cannot_be_understood_are_refused(api: Api, q: str) -> None:
    answer = await api.anyone.get("/collections", params={"q": q})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")
    assert answer.json()["detail"].startswith("q ") or answer.json()["detail"].startswith("q:")


@pytest.mark.parametrize(
    ("parameters", "ids"),
    [
        ({"bbox": "6,44,7,45"}, ["alps"]), ({"bbox": "-150,-5,-149,5"}, ["pacific", "shifted"]),
        ({"bbox": "0,70,1,71"}, []), ({"bbox": "170,-5,-175,5"}, ["pacific"]), ({"bbox": "9,9,11,11"}, ["tall"]),
        ({"datetime": "1984-01-01T00:00:00Z"}, ["andes", "pacific", "shifted", "tall"]),
        ({"datetime": "2001-01-01T00:00:00Z/.."}, ["andes", "shifted", "tall"]),
        ({"datetime": "../1979-12-31T00:00:00Z"}, ["pacific", "shifted", "tall"]),
        ({"filter": "license='CC0-1.0'"}, ["alps", "andes"]), ({"filter": "level>=3"}, ["alps", "andes"]),
        ({"filter": "level IS NULL"}, ["pacific"]), ({"filter": "level=2"}, ["tall"]),
        ({"filter": "id IN ('alps','tall','absent')"}, ["alps", "tall"]),
        ({"filter": "title='alps' OR title LIKE 'Snow%'"}, ["alps", "andes"]),
        ({"filter": "a_contains(keywords, ('snow'))"}, ["alps"]), ({"filter": "keywords='tower'"}, ["tall"]),
        ({"filter": "datetime < TIMESTAMP('1985-01-01T00:00:00Z')"}, ["andes", "pacific", "shifted", "tall"]),
        ({"filter": "updated > TIMESTAMP('2020-01-01T00:00:00Z')"}, IDS),
        ({"filter": "s_intersects(geometry, POINT(-70 -20))"}, ["andes"]),
        ({"filter": '{"op":"=","args":[{"property":"license"},"CC0-1.0"]}', "filter-lang": "cql2-json"},
         ["alps", "andes"]),
        ({"query": '{"level":{"gt":3}}'}, ["andes"]), ({"sortby": "-id"}, IDS[::-1]),
        ({"sortby": "-title"}, ["tall", "shifted", "pacific", "alps", "andes"]),
        ({"sortby": "+license,-id"}, ["tall", "shifted", "pacific", "andes", "alps"]),
        ({"q": "snow", "filter": "level>3", "bbox": "-180,-90,180,90"}, ["andes"]),
    ],
)  # fmt: skip
async def test_conditions_and_orders(api: Api, parameters: dict[str, str], ids: list[str]) -> None:
    assert await found(api, **parameters) == ids


@pytest.mark.parametrize(
    "parameters",
    [{"qq": "snow"}, {"collections": "alps"}, {"filter": "level="}, {"filter": "geometry=1"}, {"bbox": "1,2,3"},
     {"datetime": "soon"}, {"sortby": "geometry"}, {"limit": "0"}, {"query": "[]"}, {"filter": "links='x'"},
     {"token": "next:alps", "sortby": "title", "q": "tower"}],
)  # fmt: skip
async def test_what_is_not_understood_is_refused(api: Api, parameters: dict[str, str]) -> None:
    answer = await api.anyone.get("/collections", params=parameters)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-request"), answer.text


@pytest.mark.parametrize(
    "parameters",
    [{}, {"sortby": "-id"}, {"sortby": "level"}, {"sortby": "-level,title"}, {"q": "snow,sea,tower"},
     {"filter": "level IS NOT NULL", "sortby": "license"}, {"path": "/children"}],
)  # fmt: skip
async def test_pages_lead_forwards_and_back(api: Api, parameters: dict[str, str]) -> None:
    path = parameters.get("path", "/collections")
    member = path.removeprefix("/")
    question_parts = {name: value for name, value in parameters.items() if name != "path"}
    everything = [each["id"] for each in (await api.anyone.get(path, params=question_parts)).json()[member]]
    assert len(everything) > 2
    for limit in (1, 2, 4):
        pages: list[list[str]] = []
        question: str | None = str(api.anyone.build_request("GET", path, params={**question_parts, "limit": limit}).url)
        backwards: list[list[str]] = []
        last = ""
        while question:
            page = (await api.anyone.get(question)).json()
            assert page["numberMatched"] == len(everything)
            pages.append([each["id"] for each in page[member]])
            last, question = question, link(page, "next")
        assert list(chain(*pages)) == everything
        question = last
        while question:
            page = (await api.anyone.get(question)).json()
            backwards.append([each["id"] for each in page[member]])
            question = link(page, "prev")
        assert list(chain(*backwards[::-1])) == everything


def link(page: Json, rel: str) -> str | None:
    return next((each["href"] for each in page["links"] if each["rel"] == rel), None)


async def test_fields_select_members(api: Api) -> None:
    page = (await api.anyone.get("/collections", params={"q": "andes", "fields": "title,extent.temporal"})).json()
    [found] = page["collections"]
    assert set(found) == {"type", "id", "title", "extent"}
    assert set(found["extent"]) == {"temporal"}
    page = (await api.anyone.get("/collections", params={"fields": "-links,-description"})).json()
    assert all(not {"links", "description"} & set(each) and each["title"] for each in page["collections"])


async def test_the_children_are_the_collections(api: Api) -> None:
    landing = (await api.anyone.get("/")).json()
    assert link(landing, "children") == f"{api.url}/children"
    page = (await api.anyone.get("/children")).json()
    assert [each["id"] for each in page["children"]] == IDS
    assert [one["href"] for one in landing["links"] if one["rel"] == "child"] == [
        link(each, "self") for each in page["children"]
    ]
    assert (await api.anyone.get("/children?q=snow")).status_code == 400


async def test_what_a_filter_of_collections_can_name_is_listed(api: Api) -> None:
    page = (await api.anyone.get("/collections")).json()
    address = link(page, "http://www.opengis.net/def/rel/ogc/1.0/queryables")
    assert address
    names = (await api.anyone.get(address)).json()["properties"]
    for name in set(names) - {"geometry"}:
        assert set(await found(api, filter=f"{name} IS NOT NULL OR TRUE")) == set(IDS)


async def test_pystac_client_searches_collections(api: Api) -> None:
    def ask() -> dict[str, list[str]]:
        client = Client.open(api.url)
        client_arguments: dict[str, dict[str, Any]] = {
            "words": {"q": "snow"}, "box": {"bbox": [6, 44, 7, 45]}, "time": {"datetime": "2001-01-01T00:00:00Z/.."},
            "filter": {"filter": {"op": "=", "args": [{"property": "license"}, "CC0-1.0"]},
                       "filter_lang": "cql2-json"},
            "all": {"limit": 2}, "order": {"sortby": "-id", "max_collections": 2},
        }  # fmt: skip
        return {
            name: [each.id for each in client.collection_search(**arguments).collections()]
            for name, arguments in client_arguments.items()
        }

    assert await asyncio.to_thread(ask) == {
        "words": ["alps", "andes"], "box": ["alps"], "time": ["andes", "shifted", "tall"], "filter": ["alps", "andes"],
        "all": IDS, "order": ["tall", "shifted"],
    }  # fmt: skip
