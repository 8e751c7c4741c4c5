"""Every refused write is in the audit log, once, with the name of the problem, and never with the document."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import asyncpg
import httpx
import orjson
import pytest

from fedstac.db import audit, invariants
from fedstac.demo import sample
from fedstac.domain.audit import Row
from fedstac.settings import Settings
from tests.support.nodes import Api, running
from tests.support.waiting import PATIENCE

ITEMS = list(sample.items(8))
[ITEM, OTHER, *_] = ITEMS
PLACE = "/collections/CMIP6/items"
HERE = f"{PLACE}/{ITEM['id']}"
SECRET = "what nobody wants in a log"


def batch(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items)}


def broken(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "geometry": {"type": "Point", "coordinates": [SECRET]}}


async def refused(dsn: str) -> list[Row]:
    """Return rows of refusals, oldest first."""
    conn = await asyncpg.connect(dsn)
    try:
        return [row async for row in audit.rows(conn, audit.RowFilter(outcome="rejected"))][::-1]
    finally:
        await conn.close()


REFUSALS: dict[str, tuple[str, dict[str, Any], str, str, str, str, str]] = {
    # who, request, status and problem, action, collection, dataset
    "no token": ("", {"method": "POST", "url": PLACE, "json": ITEM}, "unauthenticated", "anonymous", "publish",
                 "CMIP6", ""),
    "a wrong token": ("wrong", {"method": "PATCH", "url": HERE, "json": {}}, "unauthenticated", "anonymous", "amend",
                      "CMIP6", str(ITEM["id"])),
    "no permission": ("node:east", {"method": "POST", "url": PLACE, "json": ITEM}, "missing-permission", "node:east",
                      "publish", "CMIP6", str(ITEM["id"])),
    "an unknown collection": ("admin", {"method": "POST", "url": "/collections/none/items", "json": ITEM},
                              "collection-does-not-exist", "admin", "publish", "none", ""),
    "not valid": ("admin", {"method": "POST", "url": PLACE, "json": broken(ITEM)}, "stac-validation", "admin",
                  "publish", "CMIP6", str(ITEM["id"])),
    "no JSON": ("admin", {"method": "POST", "url": PLACE, "content": b"{"}, "malformed-json", "admin", "publish",
                "CMIP6", ""),
    "another media type": ("admin", {"method": "POST", "url": PLACE, "content": b"x",
                                     "headers": {"content-type": "text/plain"}}, "unsupported-media-type", "admin",
                           "publish", "CMIP6", ""),
    "too large": ("admin", {"method": "POST", "url": PLACE, "json": {**ITEM, "x": "y" * (5 << 20)}}, "body-too-large",
                  "admin", "publish", "CMIP6", ""),
    "a patch of nothing": ("admin", {"method": "PATCH", "url": HERE, "json": {"properties": {"title": SECRET}}},
                           "item-does-not-exist", "admin", "amend", "CMIP6", str(ITEM["id"])),
    "a retraction of nothing": ("admin", {"method": "POST", "url": f"{HERE}/retract", "json": {}},
                                "item-does-not-exist", "admin", "retract", "CMIP6", str(ITEM["id"])),
    "a deletion of nothing": ("admin", {"method": "DELETE", "url": HERE}, "item-does-not-exist", "admin", "mark",
                              "CMIP6", str(ITEM["id"])),
    "a member of no group": ("admin", {"method": "PUT", "url": "/groups/none/members/eve"}, "not-found", "admin",
                             "PUT /groups/{group}/members/{principal:path}", "", "none/eve"),
    "a retry of no request": ("admin", {"method": "POST", "url": "/requests/none/retry"}, "request-does-not-exist",
                              "admin", "POST /requests/{request_id}/retry", "", "none"),
    "a collection only to try": ("admin", {"method": "PATCH", "url": "/collections/CMIP6?dry_run=true"}, "bad-request",
                                 "admin", "update", "CMIP6", ""),
    "a collection by no administrator": ("publisher:NCAR", {"method": "POST", "url": "/collections", "json": {}},
                                         "missing-permission", "publisher:NCAR", "create", "", ""),
    "a collection that is there": ("admin", {"method": "POST", "url": "/collections", "json": sample.collection()},
                                   "collection-already-exists", "admin", "create", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_has_one_row_that_says_why(api: Api, dsn: str, case: str) -> None:
    who, sent, problem, *expected = REFUSALS[case]
    bearer = {"Authorization": f"Bearer {api.tokens.get(who, who)}"} if who else {}
    headers = {**sent.get("headers", {}), **bearer, "X-Request-Id": "asked-1"}
    async with httpx.AsyncClient(base_url=api.url, timeout=PATIENCE, trust_env=False) as client:
        answer = await client.request(**{**sent, "headers": headers})
    assert answer.json()["code"] == problem, answer.text
    [row] = await refused(dsn)
    assert [row.actor, row.action, row.collection, row.dataset] == expected
    assert (row.rule, row.decision, row.correlation, row.items) == (problem, "refused", "asked-1", 1)
    assert (row.request, row.before, row.after) == (None, None, None)
    assert SECRET not in orjson.dumps(row.as_json()).decode()


async def test_a_refused_batch_has_one_row_with_the_first_few(api: Api, dsn: str) -> None:
    answer = await api.admin.post(PLACE, json=batch(*map(broken, ITEMS)))
    assert answer.status_code == 400
    [row] = await refused(dsn)
    assert (row.items, row.dataset, row.rule) == (8, "", "stac-validation")
    assert row.detail is not None
    assert orjson.loads(row.detail) == {"datasets": [item["id"] for item in ITEMS[:5]]}
    assert SECRET not in row.detail


async def test_items_refused_at_the_door_of_an_accepted_batch_have_one_row(api: Api, dsn: str) -> None:
    answer = await api.admin.post(PLACE, json=batch(ITEM, broken(OTHER), *map(broken, ITEMS[3:6])))
    request = answer.json()["id"]
    [row] = await refused(dsn)
    assert (row.items, row.request, row.actor) == (4, request, "admin")
    assert row.detail is not None
    assert orjson.loads(row.detail)["problems"] == {"stac-validation": 4}
    conn = await asyncpg.connect(dsn)
    assert await invariants.check(conn) == []
    await conn.close()


async def test_what_a_worker_refuses_has_one_row_although_the_caller_waited(api: Api, dsn: str) -> None:
    assert (await api.admin.post(PLACE, json=ITEM)).status_code == 201
    other = orjson.loads(orjson.dumps(ITEM))
    for asset in other["assets"].values():
        asset["file:checksum"] = "1220" + "0" * 64
    answer = await api.admin.post(PLACE, json=other)
    assert answer.status_code == 409
    [row] = await refused(dsn)
    assert (row.rule, row.dataset, row.request is not None) == ("item-already-exists", ITEM["id"], True)
    assert row.correlation == answer.headers["x-request-id"]


async def test_what_is_no_write_has_no_row(api: Api, dsn: str) -> None:
    for answer in (
        await api.admin.post("/search", json={"limit": "many"}),
        await api.admin.get("/collections/none"),
        await api.admin.post(PLACE + "?dry_run=true", json=broken(ITEM)),
        await api.admin.post("/collections/none/items?dry_run=true", json=ITEM),
        await api.anyone.get("/events"),
    ):
        assert answer.status_code in (200, 400, 401, 404)
    assert await refused(dsn) == []


async def test_a_flood_of_refusals_is_counted(dsn: str) -> None:
    """Some rows at once, and the others in few rows that count them, at the latest when the node stops."""
    async with running(Settings(dsn=dsn, node="west", _env_file=None), background=False) as api:
        places = asyncio.Semaphore(20)  # so many find a connection in time on any machine

        async def send(asking: Awaitable[httpx.Response]) -> httpx.Response:
            async with places:
                return await asking

        floods = [api.admin.post("/collections/none/items", json=ITEM) for _ in range(300)]
        floods += [api.anyone.delete(f"/collections/c{n % 100}/items/x") for n in range(300)]
        answers = await asyncio.gather(*map(send, floods))
        assert {answer.status_code for answer in answers} == {404, 401}
        assert 100 < len(await refused(dsn)) < 200
    rows = await refused(dsn)
    assert len(rows) < 250
    assert [sum(row.items for row in rows if row.actor == who) for who in ("admin", "anonymous")] == [300, 300]
    summaries = [row for row in rows if row.items > 1]
    assert all(row.detail and 0 < len(orjson.loads(row.detail)["correlations"]) <= 5 for row in summaries)
