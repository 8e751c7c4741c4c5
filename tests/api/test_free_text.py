"""Free text over datasets, compared with a plain reading of the same documents."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from fedstac.db import words
from fedstac.demo import embedded, sample
from tests.support import nodes as running_nodes
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")
Json = dict[str, Any]
FREE = "/collections/free/items"


def free_item(name: str, **properties: Any) -> Json:
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": name, "collection": "free", "geometry": None, "links": [],
        "assets": {}, "properties": {"datetime": "2020-01-01T00:00:00Z", **properties},
    }  # fmt: skip


FREE_ITEMS = (
    free_item("glacier-1", title="Mass of a glacier", keywords=["ice", "Météo"], level=5),
    free_item("glacier-2", description="Ice, seen from the Straße", deep={"er": ["sea ice"]}),
    free_item("forest", title="Leaf area 100%", source="EC-Earth3", note="x" * 5000 + " last"),
    free_item("empty"),
)
SAMPLES = list(sample.items(60))
SAMPLES[0]["properties"]["description"] = "Reprocessed after the power cut"
SAMPLES[1]["properties"]["keywords"] = ["reprocessed", "Carbon cycle"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(cluster: embedded.Cluster, template: str) -> AsyncIterator[Api]:
    async with running_nodes.publishing(cluster, template, {"CMIP6": SAMPLES, "free": FREE_ITEMS}) as running:
        yield running


async def found(api: Api, path: str = "/search", **parameters: str) -> set[str]:
    answer = await api.anyone.get(path, params={**parameters, "limit": "1000", "fields": "id"})
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert page["numberMatched"] == len(page["features"])
    return {feature["id"] for feature in page["features"]}


def having(words: str) -> set[str]:
    """Return the samples that have the words side by side in a value of a facet, or in title, keywords, description."""

    def plain(text: str) -> str:
        return " " + re.sub(r"[\W_]+", " ", text.casefold()).strip() + " "

    def texts(item: Json) -> list[str]:
        values = [value for name, value in item["properties"].items()
                  if name.startswith("cmip6:") or name in ("description", "keywords")]  # fmt: skip
        return [text for value in values for text in (value if isinstance(value, list) else [value])
                if isinstance(text, str)]  # fmt: skip

    return {item["id"] for item in SAMPLES if any(plain(words) in plain(text) for text in texts(item))}


@pytest.mark.parametrize(
    ("q", "ids"),
    [
        ("glacier", {"glacier-1", "glacier-2"}), ("GLACIER-1", {"glacier-1"}), ("mass of a glacier", {"glacier-1"}),
        ("glacier mass", set()), ("glacier AND mass", {"glacier-1"}), ("ice", {"glacier-1", "glacier-2"}),
        ('"sea ice"', {"glacier-2"}), ("ice -sea", {"glacier-1"}), ("météo", {"glacier-1"}), ("strasse", {"glacier-2"}),
        ("ec earth3", {"forest"}), ("100", {"forest"}), ("last", {"forest"}), ("NOT (ice OR leaf)", {"empty"}),
        ("mass,leaf", {"glacier-1", "forest"}), ("glaci", set()), ("it's; DROP", set()),
    ],
)  # fmt: skip
async def test_every_text_of_a_dataset_without_a_vocabulary_is_searched(api: Api, q: str, ids: set[str]) -> None:
    assert await found(api, q=q, collections="free") == await found(api, FREE, q=q) == ids
    answer = await api.anyone.post("/search", json={"q": q, "collections": ["free"], "fields": {"include": ["id"]}})
    assert {feature["id"] for feature in answer.json()["features"]} == ids


def words_of_samples() -> list[str]:
    facets = ("source_id", "variable_id", "experiment_id", "institution_id", "frequency", "variant_label")
    values = [SAMPLES[n * 7]["properties"][f"cmip6:{name}"] for n, name in enumerate(facets)]
    return [*values, "CMIP", "atmos", "AOGCM", "reprocessed", "carbon cycle", "power cut", "nothing at all", "km"]


@pytest.mark.parametrize("words", words_of_samples())
async def test_facets_title_description_and_keywords_of_a_project_are_searched(api: Api, words: str) -> None:
    assert await found(api, "/collections/CMIP6/items", q=f'"{words}"') == having(words)


async def test_the_case_of_words_does_not_matter(api: Api) -> None:
    source = SAMPLES[5]["properties"]["cmip6:source_id"]
    assert await found(api, q=source.swapcase()) == having(source)


async def test_words_are_joined_with_other_conditions(api: Api) -> None:
    source, variable = (SAMPLES[5]["properties"][f"cmip6:{name}"] for name in ("source_id", "variable_id"))
    wanted = having(source) & having(variable)
    assert SAMPLES[5]["id"] in wanted
    assert await found(api, q=f"{source} AND {variable}") == wanted
    assert await found(api, q=source, filter=f"cmip6:variable_id = '{variable}'", collections="CMIP6") == wanted
    assert await found(api, q=SAMPLES[5]["id"]) == {SAMPLES[5]["id"]}
    assert await found(api, q="glacier,reprocessed") == {"glacier-1", "glacier-2"} | having("reprocessed")


async def test_words_follow_the_dataset(api: Api) -> None:
    changed = {"properties": {"title": "Heft eines Gletschers", "description": None}}
    assert (await api.admin.post(FREE, json=free_item("moved", title="walrus"))).status_code == 201
    assert await found(api, q="walrus") == {"moved"}
    assert (await api.admin.patch(f"{FREE}/moved", json=changed)).status_code == 200
    assert await found(api, q="walrus") == set()
    assert await found(api, q="gletschers") == {"moved"}
    assert (await api.admin.delete(f"{FREE}/moved", params={"reason": "a test"})).status_code == 200
    assert await found(api, q="gletschers") == set()
    retraction = {"reason": "wrong"}
    assert (await api.admin.post(f"{FREE}/empty/retract", json=retraction)).status_code == 200
    assert await found(api, q="empty") == set()
    assert await found(api, q="empty", retracted="include") == {"empty"}


async def test_pages_of_a_free_text_lead_to_the_end(api: Api) -> None:
    wanted, question = having("CMIP"), f"{api.url}/search?q=CMIP&limit=7"
    pages: list[str] = []
    while question:
        page = (await api.anyone.get(question)).json()
        pages += [feature["id"] for feature in page["features"]]
        question = next((link["href"] for link in page["links"] if link["rel"] == "next"), "")
    assert sorted(pages) == sorted(wanted)


async def test_a_dataset_of_a_project_with_nothing_to_say_has_no_words_of_its_own(api: Api) -> None:
    """What free text costs a write of such a dataset is one function that answers null."""
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        rows = await conn.fetch("SELECT id FROM pgstac.items WHERE private IS NOT NULL AND collection = 'CMIP6'")
        assert {row["id"] for row in rows} == {SAMPLES[0]["id"], SAMPLES[1]["id"]}
        await conn.execute("SET enable_seqscan = off")
        plan = await conn.fetchval(
            "EXPLAIN (FORMAT JSON) SELECT id FROM pgstac.items WHERE private IS NOT NULL"
            " AND to_tsvector('simple', private ->> 'words') @@ phraseto_tsquery('simple', 'power cut')"
        )
        assert "Bitmap Index Scan" in plan
    finally:
        await conn.close()


async def test_many_datasets_with_the_words_are_found_all_the_same(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = await found(api, q="glacier,reprocessed -ice")
    monkeypatch.setattr(words, "MOST_KEYS", 1)
    assert await found(api, q="glacier,reprocessed -ice") == by_name >= having("reprocessed")
    assert await found(api, q="ice") == {"glacier-1", "glacier-2"}


@pytest.mark.parametrize("value", [5, [], [5], {}, "", "AND", "x" * 1001, ["a"] * 21, "(a"])
async def test_what_is_no_free_text_is_refused(api: Api, value: Any) -> None:
    answer = await api.anyone.post("/search", json={"q": value})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-request"), answer.text
