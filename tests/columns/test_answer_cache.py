"""The answers that a process keeps: each answer is the one of a process that keeps none."""

from __future__ import annotations

import httpx

from fedstac.columns.answer_cache import LARGEST_PART, AnswerCache, CachedAnswer
from fedstac.columns.memory import FacetColumns
from fedstac.db.connections import Connection
from fedstac.demo import sample
from tests.columns.tables import PUT
from tests.support.nodes import StartApi

ITEMS = "/collections/CMIP6/items"
PUBLIC_URL = "https://stac.example.org"
WAIT = {"Prefer": "wait=30"}
SIZE = 10_000  # of an answer


def answer(number: int, size: int = SIZE) -> CachedAnswer[str]:
    return CachedAnswer(f"answer {number}", (number,), number, size)


def test_what_was_not_given_for_longest_goes_first_and_the_memory_is_bounded() -> None:
    cache = AnswerCache[str](100 * SIZE)
    for number in range(1000):
        cache.keep(("c", f"d{number}"), answer(number))
        assert cache.find(("c", "d0")) is not None, "it was given just now"
        assert cache.bytes <= 100 * SIZE
    assert cache.find(("c", "d1")) is None
    kept = cache.find(("c", "d999"))
    assert kept is not None
    assert kept.answer == "answer 999"
    cache.drop(range(1000))
    assert cache.find(("c", "d999")) is None
    assert cache.bytes == 0


def test_a_large_answer_is_not_kept_and_its_older_one_goes() -> None:
    cache = AnswerCache[str](100 * SIZE)
    cache.keep(("c", "d1"), answer(1))
    cache.keep(("c", "d1"), answer(1, size=100 * SIZE // LARGEST_PART + 1))
    assert cache.find(("c", "d1")) is None
    assert cache.bytes == 0


def test_a_dataset_that_went_and_came_again_has_one_answer() -> None:
    cache = AnswerCache[str](100 * SIZE)
    for number in (1, 2):
        cache.keep(("c", "d"), answer(number))
    assert cache.bytes == SIZE
    cache.drop((1,))
    assert cache.find(("c", "d")) == answer(2)
    cache.drop((2,))
    assert cache.find(("c", "d")) is None
    assert cache.bytes == 0


def test_without_memory_nothing_is_kept() -> None:
    cache = AnswerCache[str](0)
    cache.keep(("c", "d1"), answer(1))
    assert cache.find(("c", "d1")) is None


async def test_each_answer_is_that_of_a_process_that_keeps_nothing(start_api: StartApi, dsn: str) -> None:
    """Also where only another dataset changes: one that replaces it, or another version of it."""
    warm = await start_api(dsn=dsn, public_url=PUBLIC_URL)
    cold = await start_api(dsn=dsn, public_url=PUBLIC_URL, document_cache_bytes=0)
    await warm.admin.post("/collections", json=sample.collection())
    items = list(sample.items(8, versions=2))
    ids = [item["id"] for item in items]

    async def ask(client: httpx.AsyncClient, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        reply = await client.get(path, headers=headers)
        names = ("etag", "last-modified", "cache-control", "vary", "content-type")
        return reply.status_code, reply.content, {name: reply.headers.get(name, "") for name in names}

    async def check() -> None:
        for item_id in ids:
            path = f"{ITEMS}/{item_id}"
            for _ in range(2):  # the second time it is kept
                shown = await ask(cold.anyone, path)
                reply = await ask(warm.anyone, path)
                assert reply[0] == shown[0], item_id
                assert reply == shown, item_id
                everything = f"{path}?access=full"
                assert await ask(warm.admin, everything) == await ask(cold.admin, everything), item_id
            for tag in (shown[2]["etag"], '"another one"'):
                condition = {"if-none-match": tag}
                reply = await ask(warm.anyone, path, **condition)
                assert reply == await ask(cold.anyone, path, **condition), item_id
                assert (reply[0] == 304) is (tag != '"another one"' and shown[0] == 200), item_id

    async def do(method: str, path: str, body: object = None) -> None:
        reply = await warm.admin.request(method, path, json=body, headers=WAIT)
        assert reply.is_success, reply.text
        await check()

    first, *others = items
    path, second = f"{ITEMS}/{first['id']}", f"{ITEMS}/{items[2]['id']}"
    await do("POST", ITEMS, first)
    for item in others:
        await do("POST", ITEMS, item)
    await do("PATCH", path, {"properties": {"description": "another one"}})
    await do("POST", f"{second}/retract", {"reason": "wrong units", "replaced_by": items[4]["id"]})
    await do("POST", f"{second}/reinstate")
    await do("POST", f"{path}/quarantine", {"reason": "a look at it"})
    await do("POST", f"{path}/release")
    await do("PATCH", path, {"properties": {"fedstac:access": "controlled"}})
    await do("PATCH", path, {"properties": {"fedstac:access": "private"}})
    await do("PATCH", path, {"properties": {"fedstac:access": None}})
    await do("DELETE", second)


async def test_what_changed_leaves_the_memory_though_nobody_asks_for_it(dsn: str, conn: Connection) -> None:
    columns = FacetColumns(dsn, "fedstac test", cache_bytes=100 * SIZE)
    try:
        await columns.look(conn)
        for number in (1, 2):
            columns.answers.keep(("c", f"d{number}"), answer(number))
        await conn.execute(PUT, [1], 1, 0)
        await columns.look(conn)
    finally:
        await columns.close()
    assert columns.answers.find(("c", "d1")) is None
    assert columns.answers.find(("c", "d2")) is not None
