"""Searches from memory, from pgstac's tables, and as plain Python has them: all three find the same."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
import hypothesis
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from fedstac.api.search import query
from fedstac.columns import dictionaries, memory
from fedstac.columns.memory import FacetColumns, Found, PageQuestion
from fedstac.db import conditions, connections, search
from fedstac.db.search import Anchor
from fedstac.demo import embedded, sample
from fedstac.runtime.capacity import Threads
from fedstac.settings import Settings
from tests.api import odd_values
from tests.api.odd_values import Json, Truth, judge
from tests.support import nodes as running_nodes
from tests.support.databases import databases

pytestmark = pytest.mark.asyncio(loop_scope="module")

Key = tuple[str, str]
EXAMPLES, MANY_EXAMPLES = 150, 5_000
COLLECTIONS = ("odd", "turned", "lost")
LONG = "long " * 200  # too long for a code: its property has none in that collection any more
RETRACTED_EVERY = 7
EVERYTHING = {"retracted": "include", "limit": 1000}


def documents(collection: str) -> list[Json]:
    """Return datasets with values of every type; those of `turned` have their properties the other way round."""
    documents = copy.deepcopy(odd_values.documents(collection))
    for n, document in enumerate(documents):
        if n % 5:
            document["geometry"] = {"type": "Point", "coordinates": [n * 8 - 170, n * 4 - 85]}
            document["bbox"] = document["geometry"]["coordinates"] * 2
        if collection == "turned":
            document["properties"] = dict(reversed(document["properties"].items()))
    if collection == "lost":
        documents[3]["properties"]["x:a"] = LONG
    return documents


DOCUMENTS = [document for collection in COLLECTIONS for document in documents(collection)]
BY_KEY = {(document["collection"], document["id"]): document for document in DOCUMENTS}


def is_retracted(document: Json) -> bool:
    return int(document["id"].removeprefix("odd-")) % RETRACTED_EVERY == 0


@dataclass
class Site:
    """A catalogue, its columns, and a connection to its database."""

    conn: asyncpg.Connection[asyncpg.Record]
    columns: FacetColumns
    settings: Settings
    threads: Threads

    async def from_memory(
        self, question: query.Query, anchor: Anchor | None = None, *, whole: bool = True
    ) -> Found | None:
        wanted = PageQuestion(question.conditions, question.order, question.limit, anchor)
        return await self.columns.page(self.conn, self.threads, wanted, whole=whole)

    async def from_pgstac(self, question: query.Query) -> list[Key]:
        where = conditions.where(question.conditions)
        page = await search.page(self.conn, where, search.order(question.order), question.limit, None)
        return keys(page.items)


def keys(items: Any) -> list[Key]:
    return [(item.collection, item.id) for item in items]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(cluster: embedded.Cluster, template: str) -> AsyncIterator[Site]:
    with databases(cluster, template) as make:
        settings = Settings(dsn=make(), node="west", default_wait_seconds=60, columns=False, _env_file=None)
        async with running_nodes.running(settings) as api:
            for name in COLLECTIONS:
                assert (await api.admin.post("/collections", json=sample.collection(name))).status_code == 201
                items = documents(name)
                body = {"type": "FeatureCollection", "features": items}
                response = await api.admin.post(f"/collections/{name}/items", json=body)
                assert response.json()["counts"]["done"] == len(items), response.text
                for item in filter(is_retracted, items):
                    path = f"/collections/{name}/items/{item['id']}/retract"
                    response = await api.admin.post(path, json={"reason": "wrong units"})
                    assert response.status_code == 200, response.text
        conn = await connections.connect(settings.dsn)
        columns = FacetColumns(settings.dsn, "fedstac west")
        await columns.catch_up()
        threads = Threads()
        try:
            yield Site(conn, columns, settings, threads)
        finally:
            threads.close()
            await columns.close()
            await conn.close()


# --- random searches ---

BOXES = st.tuples(st.integers(-180, 170), st.integers(-90, 80), st.integers(1, 180), st.integers(1, 90)).map(
    lambda box: [box[0], box[1], min(box[0] + box[2], 180), min(box[1] + box[3], 90)]
)
MOMENTS = st.integers(1988, 2035).map(lambda year: f"{year}-01-01T00:00:00Z")
SPATIAL = st.tuples(st.sampled_from(("s_intersects", "s_disjoint")), BOXES).map(
    lambda leaf: {"op": leaf[0], "args": [{"property": "geometry"}, {"bbox": leaf[1]}]}
)
FLAGS = st.one_of(
    st.builds(
        lambda name, op, value: {"op": op, "args": [{"property": name}, value]},
        st.sampled_from(("latest", "retracted")),
        st.sampled_from(("=", "<>", "<")),
        st.sampled_from((True, False, "true", 1)),
    ),
    st.sampled_from(("latest", "retracted")).map(lambda name: {"op": "isNull", "args": [{"property": name}]}),
)
LEAVES = st.one_of(odd_values.FILTERS, SPATIAL, FLAGS)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda parts, op: {"op": op, "args": parts}, st.lists(inner, min_size=2, max_size=3),
                  st.sampled_from(("and", "or"))),
        inner.map(lambda part: {"op": "not", "args": [part]}),
    ),
    max_leaves=4,
)  # fmt: skip
SEARCHES = st.fixed_dictionaries(
    {"filter": FILTERS},
    optional={
        "collections": st.lists(st.sampled_from((*COLLECTIONS, "absent")), min_size=1, unique=True),
        "ids": st.lists(st.sampled_from(("odd-00", "odd-07", "odd-30", "odd-39", "absent")), min_size=1, unique=True),
        "bbox": BOXES,
        "datetime": st.one_of(MOMENTS, MOMENTS.map(lambda start: f"{start}/.."), MOMENTS.map(lambda end: f"../{end}")),
    },
)


def truth(expression: Json, document: Json) -> Truth:
    """Return what a filter is of a dataset."""
    match expression:
        case {"op": "and", "args": parts}:
            truths = [truth(part, document) for part in parts]
            return False if False in truths else None if None in truths else True
        case {"op": "or", "args": parts}:
            truths = [truth(part, document) for part in parts]
            return True if True in truths else None if None in truths else False
        case {"op": "not", "args": [part]}:
            inner = truth(part, document)
            return None if inner is None else not inner
        case {"op": "s_intersects" | "s_disjoint" as op, "args": [_, {"bbox": box}]}:
            return is_inside(document, box) is (op == "s_intersects")  # no geometry is an empty one
        case {"op": op, "args": [{"property": "latest" | "retracted" as name}, *values]}:
            own = is_retracted(document) is (name == "retracted")
            if op == "isNull":
                return False
            if type(values[0]) is not bool:
                return None
            return bool(own < values[0]) if op == "<" else (own is values[0]) is (op == "=")
    return judge(expression, document)


def is_inside(document: Json, box: list[float]) -> bool:
    if document["geometry"] is None:
        return False
    x, y = document["geometry"]["coordinates"]
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def is_found(question: Mapping[str, Any], document: Json) -> bool:
    start, _, end = question.get("datetime", "../..").partition("/")
    end = end or start
    own = document["properties"]
    year = own["start_datetime"][:4], own["end_datetime"][:10]
    return (
        truth(question["filter"], document) is True
        and document["collection"] in question.get("collections", COLLECTIONS)
        and document["id"] in question.get("ids", (document["id"],))
        and ("bbox" not in question or is_inside(document, question["bbox"]))
        and (start == ".." or year[1] >= start[:10])
        and (end == ".." or year[0] <= end[:4])
    )


async def compare(site: Site, body: Json) -> None:
    question = query.from_body(body | EVERYTHING, site.settings)
    wanted = sorted(key for key, document in BY_KEY.items() if is_found(body, document))
    assert sorted(await site.from_pgstac(question)) == wanted, body
    found = await site.from_memory(question)
    assert found is not None
    assert sorted(keys(found.page.items)) == wanted, body
    assert found.matched == len(wanted)


async def in_a_thread(check: Callable[[], None]) -> None:
    await asyncio.to_thread(check)


def checked(site: Site, examples: int) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    @hypothesis.settings(max_examples=examples, suppress_health_check=list(hypothesis.HealthCheck))
    @given(SEARCHES)
    def check(body: Json) -> None:
        asyncio.run_coroutine_threadsafe(compare(site, body), loop).result()

    return check


async def test_any_search_finds_in_memory_what_it_means(site: Site) -> None:
    await in_a_thread(checked(site, EXAMPLES))


@pytest.mark.soak
async def test_thousands_of_searches_find_in_memory_what_they_mean(site: Site) -> None:
    await in_a_thread(checked(site, MANY_EXAMPLES))


async def test_what_memory_cannot_tell_of_too_many_goes_to_postgresql(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST_DOUBTFUL", 10)
    lost = {"filter": {"op": "=", "args": [{"property": "x:a"}, LONG]}}
    assert await site.from_memory(query.from_body(lost | EVERYTHING, site.settings)) is None
    narrow = query.from_body({**lost, "datetime": "1993-01-01T00:00:00Z"} | EVERYTHING, site.settings)
    found = await site.from_memory(narrow)
    assert found is not None
    assert keys(found.page.items) == [("lost", "odd-03")]


async def test_a_thread_finds_the_same(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "INLINE", 0)
    like = {"op": "like", "args": [{"property": "x:b"}, "a%"]}
    await compare(site, {"filter": {"op": "not", "args": [like]}, "bbox": [0, 0, 180, 90]})
    await compare(site, {"filter": like, "ids": ["odd-00", "odd-07", "odd-30"]})


async def test_postgresql_is_asked_about_so_many_entries(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "MOST_QUESTIONS", 5)
    body = {"filter": {"op": ">", "args": [{"property": "x:b"}, 4.25]}}
    await compare(site, body)  # the datasets are asked themselves
    monkeypatch.setattr(memory, "MOST_DOUBTFUL", 5)
    assert await site.from_memory(query.from_body(body | EVERYTHING, site.settings)) is None


async def test_answers_are_kept_within_a_bound(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "MOST_KEPT_BYTES", 5_000)
    for n in range(50):
        await compare(site, {"filter": {"op": "<", "args": [{"property": "x:b"}, n + 0.5]}})
        assert 0 < site.columns.dictionaries._others.bytes <= 5_000


ORDERS = (
    "datetime", "-datetime", "-updated", "x:b,-datetime", "-collection,end_datetime", "latest,-x:b", "-x:absent",
    "retracted,-collection,x:b",
)  # fmt: skip


@pytest.mark.parametrize("sortby", ORDERS)
@pytest.mark.parametrize("limit", [1, 17, 60, 1000])
async def test_pages_follow_each_other_forwards_and_back(site: Site, sortby: str, limit: int) -> None:
    parameters = [("sortby", sortby), ("retracted", "include"), ("collections", "odd,turned"), ("limit", str(limit))]
    question = query.from_parameters(parameters, site.settings)
    every = query.from_parameters([*parameters[:3], ("limit", "1000")], site.settings)
    whole = await page(site, every)
    assert sorted(keys(whole.items)) == sorted(key for key in BY_KEY if key[0] != "lost")
    forwards = [await page(site, question)]
    while forwards[-1].after is not None:
        forwards.append(await page(site, question, forwards[-1].after))
    assert [key for each in forwards for key in keys(each.items)] == keys(whole.items)
    back = [forwards[-1]]
    while back[0].before is not None:
        back.insert(0, await page(site, question, back[0].before))
    assert [keys(each.items) for each in back if each.items] == [keys(each.items) for each in forwards]
    large = await site.from_memory(question, forwards[0].after, whole=False)
    assert large is not None
    places = [search.unpacked(each)[0] for each in large.page.rest]
    assert places == keys(forwards[1 if len(forwards) > 1 else 0].items)
    if "x:b" not in sortby and "updated" not in sortby:
        from_pgstac = await site.from_pgstac(every)
        names = [name.lstrip("-") for name in sortby.split(",")]
        assert [values(key, names) for key in from_pgstac] == [values(key, names) for key in keys(whole.items)]


async def page(site: Site, question: query.Query, anchor: Anchor | None = None) -> search.ItemPage:
    found = await site.from_memory(question, anchor)
    assert found is not None
    return found.page


def values(key: Key, names: list[str]) -> list[Any]:
    document = BY_KEY[key]
    own = {**document["properties"], "collection": key[0], "retracted": is_retracted(document)}
    own["latest"] = not own["retracted"]
    return [own.get(name) for name in names]
