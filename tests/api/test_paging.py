"""Pages in both directions, while others publish, retract and mark: nothing twice, nothing missed that stays."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from fedstac.api.search import pages, reading
from fedstac.db import search
from fedstac.demo import sample
from fedstac.settings import Settings
from tests.support import nodes as running_nodes
from tests.support.nodes import Api
from tests.support.waiting import until

Json = dict[str, Any]
PATH = "/collections/places/items"
TEXTS = ("a,b", "a", ",", 'quo"te', "it's", "", "ä")
BATCH = 1000
ORDERS: tuple[tuple[tuple[str, bool], ...], ...] = (
    (),
    (("id", False),),
    (("level", False),),  # numbers, nulls, and absent
    (("level", True), ("name", False)),
    (("name", True), ("datetime", False)),
    (("updated", False), ("id", True)),
)


def place(n: int, rng: random.Random) -> Json:
    properties: Json = {"datetime": f"2{n % 1000:03}-01-01T00:00:00Z"}
    if n % 3:
        properties["level"] = rng.choice((None, 1, 1.5, -2, 10, 100))
    if n % 4:
        properties["name"] = rng.choice(TEXTS)
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": f"p{n:06}", "collection": "places", "links": [],
        "geometry": {"type": "Point", "coordinates": [n % 90, 1]}, "bbox": [n % 90, 1, n % 90, 1],
        "properties": properties, "assets": {"data": {"href": f"https://example.org/{n}.nc"}},
    }  # fmt: skip


@dataclass
class Writer:
    """Changes datasets of a collection while others read it. Those whose number is even stay as they are."""

    api: Api
    next: int
    rng: random.Random
    retracted: list[int] = field(default_factory=list)
    rounds: int = 0

    async def publish(self, *documents: Json) -> None:
        for start in range(0, len(documents), BATCH):
            body = {"type": "FeatureCollection", "features": documents[start : start + BATCH]}
            answer = await self.api.admin.post(PATH, json=body, headers={"Prefer": "wait=60"}, timeout=120)
            assert answer.json().get("status", "done") == "done", answer.text

    async def change(self) -> None:
        """Publish two datasets; retract, reinstate and mark one each."""
        new = [place(2 * self.next + 1 + 2 * n, self.rng) for n in range(2)]
        self.next += 2
        await self.publish(*new)
        odd = 2 * self.rng.randrange(self.next - 2) + 1
        answer = await self.api.admin.post(f"{PATH}/p{odd:06}/retract", json={"reason": "wrong"})
        if answer.status_code == 200:
            self.retracted.append(odd)
        if len(self.retracted) > 3:
            await self.api.admin.post(f"{PATH}/p{self.retracted.pop(0):06}/reinstate")
        await self.api.admin.delete(f"{PATH}/p{2 * self.rng.randrange(self.next - 2) + 1:06}")
        self.rounds += 1

    async def change_until(self, stopped: asyncio.Event) -> None:
        while not stopped.is_set():
            await self.change()


@asynccontextmanager
async def writing(writer: Writer) -> AsyncIterator[None]:
    stopped = asyncio.Event()
    task = asyncio.create_task(writer.change_until(stopped))
    try:
        yield
    finally:
        stopped.set()
        await task


async def walk(api: Api, page: Json, rel: str) -> tuple[list[Json], Json]:
    """Follow a link to its end. Return the pages on the way, and the last one."""
    found = []
    while (link := next((each for each in page["links"] if each["rel"] == rel), None)) is not None:
        response = (
            await api.anyone.post("/search", json=link["body"]) if link["method"] == "POST"
            else await api.anyone.get(link["href"])
        )  # fmt: skip
        assert response.status_code == 200, response.text
        page = response.json()
        found.append(page)
    return found, page


def ids_of(page: Json) -> list[str]:
    return [feature["id"] for feature in page["features"]]


def sort_body(order: tuple[tuple[str, bool], ...]) -> list[Json]:
    return [{"field": name, "direction": "desc" if down else "asc"} for name, down in order]


def sort_text(order: tuple[tuple[str, bool], ...]) -> str:
    return ",".join(("-" if down else "") + name for name, down in order)


def check_once(pages: Sequence[Json], order: tuple[tuple[str, bool], ...]) -> None:
    """Check that nothing comes twice. By `updated`, a dataset comes again when it was changed after it was shown."""
    features = [feature for page in pages for feature in page["features"]]
    names = [(each["id"], each["properties"]["updated"] if ("updated", False) in order else "") for each in features]
    twice = [name for name, count in Counter(names).items() if count > 1]
    assert not twice, f"twice on the way: {order}"


async def check_order(api: Api, order: tuple[tuple[str, bool], ...], limit: int, staying: set[str]) -> None:
    """Go through all pages and back, by POST and GET."""
    posted = await api.anyone.post("/search", json={"limit": limit, "sortby": sort_body(order)})
    params = {"limit": limit} | ({"sortby": sort_text(order)} if order else {})
    for first in (posted, await api.anyone.get(PATH, params=params)):
        page = first.json()
        assert "prev" not in [link["rel"] for link in page["links"]]
        others, last = await walk(api, page, "next")
        check_once((page, *others), order)
        forward = [id for each in (page, *others) for id in ids_of(each)]
        assert set(forward) >= staying, f"missed on the way: {order}"
        others, _ = await walk(api, last, "prev")
        check_once((*reversed(others), last), order)
        backward = [id for each in (*reversed(others), last) for id in ids_of(each)]
        assert set(backward) >= staying, f"missed on the way back: {order}"
        kept = [id for id in forward if id in staying]
        assert kept == [id for id in backward if id in staying]


@pytest.mark.parametrize(
    ("size", "limit"), [(300, 37), pytest.param(50_000, 1000, marks=pytest.mark.soak)], ids=["small", "large"]
)
async def test_six_orders_forwards_and_back_while_others_write(dsn: str, size: int, limit: int) -> None:
    seed = 11
    rng = random.Random(seed)
    print("seed", seed)
    settings = Settings(dsn=dsn, node="west", default_wait_seconds=60, _env_file=None)
    async with running_nodes.running(settings) as api:
        (await api.admin.post("/collections", json=sample.collection("places"))).raise_for_status()
        writer = Writer(api, size // 2, rng)
        await writer.publish(*(place(n, rng) for n in range(size)))
        staying = {f"p{n:06}" for n in range(0, size, 2)}
        async with writing(writer):
            for order in ORDERS:
                await check_order(api, order, limit, staying)
        assert writer.rounds >= len(ORDERS)


# --- what is at the ends


@pytest.fixture
async def ten(dsn: str) -> AsyncIterator[Api]:
    """A node with ten places."""
    settings = Settings(dsn=dsn, node="west", default_wait_seconds=60, _env_file=None)
    async with running_nodes.running(settings) as api:
        (await api.admin.post("/collections", json=sample.collection("places"))).raise_for_status()
        await Writer(api, 5, random.Random(1)).publish(*(place(n, random.Random(1)) for n in range(10)))
        yield api


async def test_tokens_outlive_the_datasets_around_them(ten: Api) -> None:
    first = (await ten.anyone.get("/search", params={"limit": 5, "sortby": "id"})).json()
    [second], _ = await walk(ten, first, "next")
    assert ids_of(second) == [f"p{n:06}" for n in range(5, 10)]
    for n in range(4, 10):
        assert (await ten.admin.delete(f"{PATH}/p{n:06}")).status_code == 200
    [emptied], _ = await walk(ten, first, "next")
    assert (ids_of(emptied), emptied["numberReturned"]) == ([], 0)
    [again], _ = await walk(ten, emptied, "prev")
    assert ids_of(again) == [f"p{n:06}" for n in range(4)]
    before, _ = await walk(ten, second, "prev")
    assert [ids_of(page) for page in before] == [[f"p{n:06}" for n in range(4)]]
    for n in range(4):
        assert (await ten.admin.delete(f"{PATH}/p{n:06}")).status_code == 200
    [gone], _ = await walk(ten, second, "prev")
    assert ids_of(gone) == []
    assert [link["rel"] for link in gone["links"] if link["rel"] in ("prev", "next")] == ["next"]


async def test_a_page_waits_for_the_standby_that_it_began_at(ten: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def second() -> httpx.Response | None:
        first = (await ten.anyone.get("/search", params={"limit": 5})).json()
        following = next(link["href"] for link in first["links"] if link["rel"] == "next")
        with monkeypatch.context() as patch:
            patch.setattr(reading, "is_of_columns", lambda node, conn: False)
            answer = await ten.anyone.get(following)
        return None if answer.status_code == 200 else answer  # the first page was not from memory yet

    answer = await until(second)
    assert answer is not None
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, "5")


# --- large pages


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pages are read a few datasets at a time."""
    monkeypatch.setattr(pages, "FEW_ITEMS", 2)
    monkeypatch.setattr("fedstac.api.search.reading.FEW_ITEMS", 2)
    monkeypatch.setattr(pages, "READ_ITEMS", 3)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("coding", ["identity", "gzip", "br"])
async def test_a_large_page_is_streamed(ten: Api, coding: str) -> None:
    headers = {"Accept-Encoding": coding}
    for limit, expected in ((100, 10), (10, 10), (9, 9), (4, 4)):
        answer = await ten.anyone.get("/search", params={"limit": limit, "sortby": "-id"}, headers=headers)
        assert "content-length" not in answer.headers
        page = answer.json()
        assert ids_of(page) == [f"p{n:06}" for n in range(9, 9 - expected, -1)]
        assert (page["numberReturned"], page["numberMatched"]) == (expected, 10)
        others, last = await walk(ten, page, "next")
        assert sum(each["numberReturned"] for each in (page, *others)) == 10
        others, _ = await walk(ten, last, "prev")
        assert ids_of(last)[-1] == "p000000"
        assert sum(each["numberReturned"] for each in (last, *others)) == 10
    short = await ten.anyone.get("/search", params={"limit": 3}, headers=headers)
    assert "content-length" in short.headers  # one read is enough


@pytest.mark.usefixtures("small_parts")
async def test_what_becomes_hidden_while_a_page_is_sent_is_not_on_it(ten: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark a dataset, retract another, when the first part is read."""
    read, calls = search.read, 0

    async def read_late(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert (await ten.admin.delete(f"{PATH}/p000007")).status_code == 200
            assert (await ten.admin.post(f"{PATH}/p000008/retract", json={"reason": "x"})).status_code == 200
        return await read(*arguments, **options)

    monkeypatch.setattr(search, "read", read_late)
    page = (await ten.anyone.get("/search", params={"limit": 10, "sortby": "id"})).json()
    assert ids_of(page) == [f"p{n:06}" for n in (0, 1, 2, 3, 4, 5, 6, 9)]
    assert page["numberReturned"] == 8


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("bound", "value"), [("MOST_BYTES", 1000), ("SENDING_SHARE", 0.0)])
async def test_a_large_page_ends_at_a_bound_and_goes_on(
    bound: str, value: float, ten: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, bound, value)
    page = (await ten.anyone.get("/search", params={"limit": 10, "sortby": "id"})).json()
    others, _ = await walk(ten, page, "next")
    assert others
    assert [id for each in (page, *others) for id in ids_of(each)] == [f"p{n:06}" for n in range(10)]


@pytest.mark.usefixtures("small_parts")
async def test_a_fault_cuts_a_page_that_has_begun(ten: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes a part for the whole; a fault before the first byte is a problem."""
    read, calls = search.read, 0

    async def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise RuntimeError("planted")
        return await read(*arguments, **options)

    monkeypatch.setattr(search, "read", fail)
    failing = 1
    assert (await ten.anyone.get("/search", params={"limit": 10})).status_code == 500
    calls, failing = 0, 2
    with pytest.raises(httpx.RemoteProtocolError):
        await ten.anyone.get("/search", params={"limit": 10})
    assert (await ten.anyone.get("/search", params={"limit": 2})).status_code == 200
