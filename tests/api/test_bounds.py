"""What a request can take of the server is bounded, whatever it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from fedstac.api.http.bodies import BodyCounter
from fedstac.api.writing import intake
from fedstac.demo import sample
from fedstac.domain.errors import BodyTooLarge, TooManyRequests
from fedstac.domain.policy import Policy, Principal
from fedstac.runtime.budget import Lane
from fedstac.runtime.capacity import Memory, Threads
from fedstac.vocabularies.checker import open_checker
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE

ITEMS = "/collections/CMIP6/items"
JSON, LINES = {"content-type": "application/geo+json"}, {"content-type": "application/x-ndjson"}
ADMIN = Principal("admin", frozenset({"admin"}))
Json = dict[str, Any]


def zigzag(vertices: int) -> Json:
    corners = [[-170 if n % 2 else 170, (n * 37) % 160 - 80] for n in range(vertices)]
    return {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}


# --- what comes in ---


def counted(pieces: Iterator[bytes], headers: dict[str, str], most: int | None) -> int:
    """Return bytes that are read of a body until it is refused."""
    counter = BodyCounter(headers, most)
    try:
        for piece in pieces:
            counter.count(piece)
    except BodyTooLarge:
        return counter.received
    raise AssertionError("it is taken")


def long(start: bytes, piece: bytes) -> Iterator[bytes]:
    yield start
    for _ in range((64 << 20) // len(piece) // 100):
        yield piece * 100


@pytest.mark.parametrize(
    ("pieces", "headers", "most"),
    [
        (long(b"", b"{}\n"), LINES, 5000),
        (long(b"[", b"[],"), JSON, None),
        (long(b"{", b'"a":1,'), JSON, None),
    ],
)
def test_a_body_is_refused_as_soon_as_it_holds_too_much(
    pieces: Iterator[bytes], headers: dict[str, str], most: int | None
) -> None:
    assert counted(pieces, headers, most) < 4 << 20


async def test_a_batch_of_tiny_features_is_refused(api: Api) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"type":"FeatureCollection","features":[{}'
        for _ in range(200):
            yield b",{}" * 20_000

    for path in (ITEMS, "/validate"):
        response = await api.admin.post(path, content=body())
        assert response.status_code == 413
        assert "more than 5000 items" in response.json()["detail"]


def test_a_refused_item_keeps_nothing_of_its_document() -> None:
    document: Json = {"id": "x", "collection": "CMIP6", "links": [{"rel": "related", "href": "https://x.example"}] * 9}
    checker = open_checker()
    judgement = intake.Judgement(
        checker,
        "CMIP6",
        checker.vocabularies.current("CMIP6"),
        Policy(),
        Principal("admin", frozenset({"admin"})),
        1 << 20,
    )
    [entry] = intake.check(intake.Submission([document], is_batch=True, prefix="/features"), judgement)
    assert entry.problem is not None
    assert entry.problem.__traceback__ is None
    assert entry.problem.__context__ is None
    assert entry.problem.__cause__ is None


@pytest.mark.parametrize("form", ["features", "lines"])
async def test_a_large_batch_is_judged_item_by_item(api: Api, form: str) -> None:
    items = list(sample.items(300))
    items[7] = {**items[7], "geometry": zigzag(120)}
    raw = b"\n".join(map(orjson.dumps, items))
    kind = LINES
    if form == "features":
        raw, kind = orjson.dumps({"type": "FeatureCollection", "features": items}), JSON
    assert len(raw) > 1 << 20
    response = await api.admin.post(ITEMS, content=raw, headers=kind)
    assert response.json()["counts"] == {"queued": 0, "done": 299, "rejected": 1, "failed": 0}
    [refused] = response.json()["problems"]
    assert "crosses itself" in str(refused)


async def test_a_fault_deep_in_a_large_batch_has_its_place(api: Api) -> None:
    features = b",\n".join(map(orjson.dumps, sample.items(300)))
    raw = b'{"type":"FeatureCollection","features":[\n' + features + b',\n{"a":1,"a":2}]}'
    response = await api.admin.post(ITEMS, content=raw, headers=JSON)
    assert response.status_code == 400
    assert [error["pointer"] for error in response.json()["errors"]] == ["/features/300/a"]
    cut = await api.admin.post(ITEMS, content=raw[:-3] + b"]}", headers=JSON)
    assert cut.status_code == 400
    assert "line 302" in cut.json()["detail"]


# --- what is asked ---


@pytest.mark.parametrize(
    "search",
    [
        {"filter": "(" * 40 + "id=1", "filter-lang": "cql2-text"},
        {"intersects": zigzag(120)},
        {"intersects": zigzag(9000)},
        {"filter": {"op": "like", "args": [{"property": "title"}, "%a" * 11]}},
        {
            "filter": {
                "op": "or",
                "args": [
                    {"op": "in", "args": [{"property": f"p{n}"}, [str(m) for m in range(1000)]]} for n in range(190)
                ],
            }
        },
    ],
)
async def test_a_search_that_would_take_too_long_is_a_bad_request(api: Api, search: Json) -> None:
    response = await api.anyone.post("/search", json=search)
    assert response.status_code == 400


async def test_a_geometry_is_not_prepared_for_who_may_not_publish(api: Api) -> None:
    item = next(item for item in sample.items(500) if item["properties"]["cmip6:institution_id"] != "NCAR")
    bearer = {"Authorization": f"Bearer {api.tokens['publisher:NCAR']}"}
    response = await api.anyone.post(ITEMS, json={**item, "geometry": zigzag(120)}, headers=bearer)
    assert response.status_code == 403


async def test_a_page_of_large_datasets_ends_early_and_the_next_one_goes_on(api: Api) -> None:
    wanted = set()
    for item in sample.items(5):
        large = {**item, "properties": {**item["properties"], "description": "x" * (1800 << 10)}}
        assert (await api.admin.post(ITEMS, json=large)).status_code == 201
        wanted.add(item["id"])
    found, href = [], "/search?limit=100"
    while href:
        page = (await api.anyone.get(href)).json()
        assert 1 <= len(page["features"]) < 5
        assert page["numberMatched"] == 5
        found += [feature["id"] for feature in page["features"]]
        href = next((link["href"] for link in page["links"] if link["rel"] == "next"), "")
    assert sorted(found) == sorted(wanted)


# --- what goes out ---


async def test_a_client_that_does_not_read_is_given_up_and_its_memory_is_free_again(
    start_api: StartApi, dsn: str
) -> None:
    api = await start_api(dsn=dsn, request_memory_bytes=16 << 20, read_timeout_seconds=1, compress=False)
    for n in range(6):  # together more than the kernel takes off the server's hands
        large = {**sample.collection(f"large-{n}"), "description": "x" * (1900 << 10)}
        assert (await api.admin.post("/collections", json=large)).status_code == 201
    where = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1024)
    writer.write(b"GET /collections HTTP/1.1\r\nHost: west\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        while (await api.anyone.get("/collections")).status_code != 200:  # it waits for memory that the first one has
            pass
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        with suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                length -= len(piece)
        assert length > 0
    writer.close()


# --- memory and threads ---


async def test_large_bodies_share_what_there_is() -> None:
    memory = Memory(64 << 20)
    one, other = memory.share(Lane.WORK), memory.share(Lane.WORK)
    one.require(100 << 20)  # alone it may have more than there is
    with pytest.raises(TooManyRequests):
        other.require(1)
    memory.share(Lane.ANONYMOUS).require(1 << 20)  # of another lane
    one.give_back()
    other.require(30 << 20)


async def test_an_answer_waits_for_memory() -> None:
    memory, order = Memory(64 << 20), []

    async def answer(name: str) -> None:
        async with memory.place(20 << 20):
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    await asyncio.gather(answer("a"), answer("b"))
    assert order == ["a begins", "a ends", "b begins", "b ends"]


async def test_work_in_threads_gives_its_result_or_its_error() -> None:
    threads = Threads()
    try:
        assert await threads.run(lambda: 1 + 1) == 2
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)
        assert await asyncio.gather(*(threads.run(lambda: 1) for _ in range(3))) == [1, 1, 1]
    finally:
        threads.close()
