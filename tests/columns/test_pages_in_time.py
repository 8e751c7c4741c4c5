"""Paging while others publish, amend, retract and mark: nothing comes twice, and nothing is missed that stayed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fedstac.demo import sample
from tests.support.nodes import Api

ITEMS = "/collections/CMIP6/items"
ORDERS = ("-datetime", "datetime", "end_datetime,-cmip6:variable_id", "-cmip6:source_id", "-cmip6:grid_label,datetime",
          "-version")  # fmt: skip
STAYING, LEAVING, NEW, AT_ONCE = 120, 40, 60, 6
Document = dict[str, Any]


async def publish(api: Api, items: list[Document]) -> None:
    response = await api.admin.post(ITEMS, json={"type": "FeatureCollection", "features": items})
    assert response.json()["counts"]["done"] == len(items), response.text


async def churn(api: Api, leaving: list[Document], new: list[Document], stop: asyncio.Event) -> None:
    """Let datasets leave searches and others come, a few at a time, until `stop`."""
    turn = 0
    while not stop.is_set() and (leaving or new):
        turn += 1
        if new:
            await publish(api, [new.pop() for _ in range(min(AT_ONCE, len(new)))])
        if leaving:
            path = f"{ITEMS}/{leaving.pop()['id']}"
            if turn % 2:
                response = await api.admin.post(f"{path}/retract", json={"reason": "wrong units"})
            else:
                response = await api.admin.delete(path)
            assert response.status_code == 200, response.text


async def pages(api: Api, sortby: str, limit: int) -> AsyncIterator[list[str]]:
    url: str | None = f"{ITEMS}?sortby={sortby}&limit={limit}&fields=id"
    while url:
        response = await api.anyone.get(url)
        assert response.status_code == 200, response.text
        page = response.json()
        yield [feature["id"] for feature in page["features"]]
        url = next((link["href"] for link in page["links"] if link["rel"] == "next"), None)


async def check_pages(api: Api, staying: int, leaving: int, new: int, limit: int) -> None:
    items = list(sample.items(staying + leaving + new, versions=1))
    for start in range(0, staying + leaving, 1000):
        await publish(api, items[start : min(start + 1000, staying + leaving)])
    stop = asyncio.Event()
    others = asyncio.create_task(churn(api, items[staying : staying + leaving], items[staying + leaving :], stop))
    try:
        for sortby in ORDERS:
            found = [item_id async for page in pages(api, sortby, limit) for item_id in page]
            assert len(found) == len(set(found)), sortby
            assert {item["id"] for item in items[:staying]} <= set(found), sortby
        assert not others.done() or others.exception() is None
    finally:
        stop.set()
        await others
    found = [item_id async for page in pages(api, "-datetime", limit) for item_id in page]
    answer = await api.anyone.get(f"{ITEMS}?limit=1")
    assert answer.json()["numberMatched"] == len(found)


async def test_pages_beside_changes(api: Api) -> None:
    await check_pages(api, STAYING, LEAVING, NEW, 9)


@pytest.mark.soak
async def test_pages_of_fifty_thousand_beside_changes(api: Api) -> None:
    await check_pages(api, 48_000, 500, 2_000, 500)


async def test_what_is_marked_or_retracted_is_gone_from_warm_columns_at_once(api: Api) -> None:
    items = list(sample.items(4, versions=1))
    await publish(api, items)
    marked, retracted, *others = (item["id"] for item in items)

    async def found(**body: Any) -> tuple[set[str], int]:
        answer = (await api.anyone.post("/search", json={"limit": 100, **body})).json()
        return {feature["id"] for feature in answer["features"]}, answer["numberMatched"]

    assert await found() == ({item["id"] for item in items}, 4)
    assert (await api.admin.delete(f"{ITEMS}/{marked}")).status_code == 200
    assert (await api.admin.post(f"{ITEMS}/{retracted}/retract", json={"reason": "wrong"})).status_code == 200
    every = {"op": "<>", "args": [{"property": "cmip6:source_id"}, "none"]}
    for body in ({}, {"filter": every}, {"ids": [marked, retracted, *others]}, {"filter": {**every, "op": "="}}):
        wanted = set() if body.get("filter", every) != every else set(others)
        assert await found(**body) == (wanted, len(wanted)), body
        wanted |= {retracted} if wanted else set()
        assert await found(retracted="include", **body) == (wanted, len(wanted)), body
