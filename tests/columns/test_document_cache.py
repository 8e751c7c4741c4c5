"""The datasets that a process keeps: each page is the one that a process has that keeps none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from fedstac.columns import document_cache
from fedstac.columns.document_cache import DocumentCache
from fedstac.db.columns import DatasetRow
from fedstac.db.search import ServedItem
from fedstac.demo import sample
from tests.support.nodes import Api, StartApi

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
PUBLIC_URL = "https://stac.example.org"
WAIT = {"Prefer": "wait=30"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIZE = 10_000  # of a document


def row(number: int, changed: int = 1, size: int = SIZE) -> DatasetRow:
    item = ServedItem("c", f"d{number}", "published", True, NOW, NOW, None, None, None, "x" * size)
    return DatasetRow(number, changed, size, item)


def test_a_dataset_is_found_only_as_the_transaction_left_it_that_the_page_was_chosen_by() -> None:
    cache = DocumentCache(100 * SIZE)
    cache.keep([row(1, changed=7)])
    found = cache.find(1, 7)
    assert found is not None
    assert found.id == "d1"
    assert cache.find(1, 8) is None
    assert cache.find(2, 7) is None
    assert (cache.hits, cache.misses) == (1, 2)


def test_the_memory_is_bounded_and_what_is_shown_again_and_again_stays() -> None:
    cache = DocumentCache(100 * SIZE)
    lost = 0
    for number in range(1000):
        cache.keep([row(number)])
        assert cache.bytes <= 100 * SIZE
        assert cache.find(number, 1) is not None
        if cache.find(0, 1) is None:
            lost += 1
            cache.keep([row(0)])
    assert lost < 10, "of two that are drawn the one goes that was shown longer ago"
    cache.drop(range(1000))
    assert cache.bytes == 0


def test_a_walk_in_turns_through_some_more_than_fit_finds_many_of_them() -> None:
    cache = DocumentCache(100 * SIZE)
    fit = 100 * SIZE // (2 * SIZE + document_cache.BESIDE)
    for _ in range(20):
        for number in range(fit + 5):
            if cache.find(number, 1) is None:
                cache.keep([row(number)])
    assert cache.hits > cache.misses


def test_a_dataset_that_changed_goes_and_the_others_stay() -> None:
    cache = DocumentCache(100 * SIZE)
    cache.keep([row(number) for number in range(20)])
    cache.drop([3, 19, 0, 3, 77])
    kept = {number for number in range(20) if cache.find(number, 1) is not None}
    assert kept == set(range(20)) - {0, 3, 19}
    assert cache.bytes == 17 * row_size()
    cache.keep([row(5, changed=2)])
    assert cache.find(5, 1) is None
    assert cache.find(5, 2) is not None
    assert cache.bytes == 17 * row_size()


def row_size() -> int:
    return 2 * sys.getsizeof("x" * SIZE) + document_cache.BESIDE


def test_a_large_dataset_does_not_drive_out_the_others() -> None:
    cache = DocumentCache(100 * SIZE)
    cache.keep([row(1), row(2, size=100 * SIZE // document_cache.LARGEST_PART)])
    assert cache.find(1, 1) is not None
    assert cache.find(2, 1) is None


def test_without_memory_nothing_is_kept() -> None:
    cache = DocumentCache(0)
    cache.keep([row(1)])
    assert cache.find(1, 1) is None
    assert cache.bytes == 0


def amended(item: Json, **properties: object) -> Json:
    return {**item, "properties": {**item["properties"], **properties}}


async def test_each_page_is_that_of_a_process_that_keeps_nothing(start_api: StartApi, dsn: str) -> None:
    warm = await start_api(dsn=dsn, public_url=PUBLIC_URL)
    cold = await start_api(dsn=dsn, public_url=PUBLIC_URL, document_cache_bytes=0)
    await warm.admin.post("/collections", json=sample.collection())
    items = list(sample.items(8, versions=1))
    published = await warm.admin.post(ITEMS, json={"type": "FeatureCollection", "features": items})
    assert published.json()["counts"]["done"] == len(items), published.text
    path, other = (f"{ITEMS}/{item['id']}" for item in items[:2])

    async def look(api: Api, client: httpx.AsyncClient, body: Mapping[str, Any]) -> bytes:
        answer = await client.post("/search", json=body)
        assert answer.status_code == 200, answer.text
        return answer.content.replace(api.url.encode(), b"")

    async def check() -> None:
        for body in (
            {"limit": 100}, {"limit": 3}, {"limit": 100, "retracted": "include"},
            {"limit": 100, "retracted": "include", "access": "full"},
            {"limit": 5, "fields": {"include": ["properties.latest", "id"]}},
        ):  # fmt: skip
            for warm_client, cold_client in ((warm.anyone, cold.anyone), (warm.admin, cold.admin)):
                if "access" in body and warm_client is warm.anyone:
                    continue
                assert await look(warm, warm_client, body) == await look(cold, cold_client, body), body

    async def do(method: str, path: str, body: object = None) -> None:
        answer = await warm.admin.request(method, path, json=body, headers=WAIT)
        assert answer.is_success, answer.text
        await check()

    await check()
    await check()
    await do("PATCH", path, {"properties": {"description": "another one"}})
    await do("PUT", path, amended(items[0], description="a third one"))
    await do("POST", f"{path}/retract", {"reason": "wrong units"})
    await do("POST", f"{path}/reinstate")
    await do("POST", f"{path}/quarantine", {"reason": "a look at it"})
    await do("POST", f"{path}/release")
    await do("DELETE", path)
    await do("POST", f"{path}/unmark")
    await do("PATCH", other, {"properties": {"fedstac:access": "controlled"}})
    await do("PATCH", other, {"properties": {"fedstac:access": "private"}})
    await do("PATCH", other, {"properties": {"fedstac:access": None}})
    metrics = await warm.admin.get("/metrics")
    looks = {
        line.split()[0]: float(line.split()[1])
        for line in metrics.text.splitlines() if line.startswith("fedstac_document_cache")
    }  # fmt: skip
    assert looks['fedstac_document_cache_looks_total{result="hit"}'] > 100
    assert 0 < looks["fedstac_document_cache_bytes"] <= warm.settings.document_cache_bytes


@pytest.mark.parametrize("page_bytes", [1, 20_000])
async def test_a_page_that_does_not_fit_ends_where_it_does_without_the_cache(
    start_api: StartApi, dsn: str, monkeypatch: pytest.MonkeyPatch, page_bytes: int
) -> None:
    monkeypatch.setattr("fedstac.columns.memory.PAGE_BYTES", page_bytes)
    monkeypatch.setattr("fedstac.db.columns.PAGE_BYTES", page_bytes)
    warm = await start_api(dsn=dsn, public_url=PUBLIC_URL)
    cold = await start_api(dsn=dsn, public_url=PUBLIC_URL, document_cache_bytes=0)
    await warm.admin.post("/collections", json=sample.collection())
    items = list(sample.items(12, versions=1))
    await warm.admin.post(ITEMS, json={"type": "FeatureCollection", "features": items})
    for limit in (1, 2, 12, 5, 12):
        pages = [(await api.anyone.post("/search", json={"limit": limit})).json() for api in (warm, cold)]
        assert pages[0]["features"] == pages[1]["features"], limit
        assert pages[0]["features"]
