"""Tombstones for those who may delete, and what is told of a dataset while it is under quarantine."""

from __future__ import annotations

from typing import Any

import asyncpg
import httpx
import pytest

from fedstac.db import nodes
from fedstac.demo import sample
from tests.support.nodes import Api

Json = Any
ITEMS = "/collections/CMIP6/items"
DATASETS = list(sample.items(3, versions=1))
FIRST, SECOND, THIRD = (str(item["id"]) for item in DATASETS)
WAIT = {"Prefer": "wait=20"}


@pytest.fixture
async def west(api: Api) -> Api:
    """With three datasets."""
    answer = await api.admin.post(ITEMS, json={"type": "FeatureCollection", "features": DATASETS})
    assert answer.json()["counts"]["done"] == len(DATASETS), answer.text
    return api


async def act(api: Api, id: str, *actions: str) -> None:
    for action in actions:
        if action == "mark":
            answer = await api.admin.delete(f"{ITEMS}/{id}", headers=WAIT)
            await execute(api, "UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
            await execute(api, "UPDATE fedstac.deletion_dependency SET state = 'waived'")
        else:
            body = {"reason": "to be looked at"} if action in ("quarantine", "retract") else {}
            answer = await api.admin.post(f"{ITEMS}/{id}/{action}", json=body, headers=WAIT)
        assert answer.status_code == 200, answer.text


async def execute(api: Api, statement: str) -> None:
    conn = await asyncpg.connect(api.settings.dsn)
    await conn.execute(statement)
    await conn.close()


async def bearer(api: Api, role: str) -> dict[str, str]:
    conn = await asyncpg.connect(api.settings.dsn)
    token = await nodes.issue_token(conn, role, [role])
    await conn.close()
    return {"Authorization": f"Bearer {token}"}


async def tombstones(api: Api, query: str = "") -> list[str]:
    """Return the ids of all tombstones, page by page."""
    ids: list[str] = []
    href: str | None = f"/admin/tombstones?limit=1{query}"
    while href is not None:
        answer = await api.admin.get(href)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        ids += [each["id"] for each in page["tombstones"]]
        href = next((link["href"] for link in page["links"]), None)
    return ids


async def test_a_tombstone_says_when_and_by_whom_to_those_who_may_delete(west: Api) -> None:
    await act(west, FIRST, "mark", "delete")
    path = f"{ITEMS}/{FIRST}?deleted=include"
    gone = await west.anyone.get(f"{ITEMS}/{FIRST}")
    assert (gone.status_code, (await west.anyone.get(path)).status_code) == (410, 401)
    for role in ("publisher:NCAR", "node:east", "observer"):
        answer = await west.anyone.get(path, headers=await bearer(west, role))
        assert (answer.status_code, answer.json()["detail"]) == (410, gone.json()["detail"])
    answer = await west.admin.get(path)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "private, no-store"
    tombstone = answer.json()
    [entry] = (await west.admin.get("/deletions?state=deleted")).json()["deletions"]
    assert (tombstone["id"], tombstone["state"], tombstone["deletion"]) == (FIRST, "deleted", entry["id"])
    assert tombstone["deleted_by"] == "admin"
    assert tombstone["deleted_at"] in gone.json()["detail"]

    await act(west, FIRST, "purge")
    purged = (await west.admin.get(path)).json()
    assert purged["state"] == "purged"
    assert purged["updated"] > tombstone["updated"]
    assert (purged["deleted_at"], purged["deleted_by"]) == (tombstone["deleted_at"], tombstone["deleted_by"])
    assert (await west.anyone.get(f"{ITEMS}/{FIRST}")).json()["detail"] == gone.json()["detail"]


async def test_what_is_marked_or_never_was_has_no_tombstone(west: Api) -> None:
    await act(west, FIRST, "mark")
    for id in (FIRST, "nothing"):
        path = f"{ITEMS}/{id}?deleted=include"
        assert (await west.admin.get(path)).status_code == 404
        assert (await west.anyone.get(path)).status_code == 401
    assert (await west.admin.get(f"{ITEMS}/{SECOND}?deleted=include")).json()["id"] == SECOND
    assert (await west.anyone.get(f"{ITEMS}/{SECOND}?deleted=all")).status_code == 400
    assert await tombstones(west) == []


async def test_tombstones_are_listed_page_by_page_those_that_changed_last_first(west: Api) -> None:
    for id in (FIRST, SECOND, THIRD):
        await act(west, id, "mark", "delete")
    second = (await west.admin.get(f"{ITEMS}/{SECOND}?deleted=include")).json()
    assert await tombstones(west) == [THIRD, SECOND, FIRST]
    assert await tombstones(west, "&collection=CMIP6") == [THIRD, SECOND, FIRST]
    assert await tombstones(west, "&collection=CMIP7") == []
    assert await tombstones(west, f"&since={second['updated']}") == [THIRD, SECOND]
    await act(west, FIRST, "purge")
    assert await tombstones(west, f"&since={second['updated']}") == [FIRST, THIRD, SECOND]


@pytest.mark.parametrize("query", ["since=yesterday", "after=1", "after=2026-11-29T00:00:00Z/CMIP6", "limit=x"])
async def test_a_list_of_tombstones_refuses_what_it_does_not_understand(west: Api, query: str) -> None:
    assert (await west.admin.get(f"/admin/tombstones?{query}")).status_code == 400


async def test_the_list_is_for_those_who_may_delete(west: Api) -> None:
    assert (await west.anyone.get("/admin/tombstones")).status_code == 401
    answer = await west.anyone.get("/admin/tombstones", headers=await bearer(west, "publisher:NCAR"))
    assert answer.status_code == 403


async def history(api: Api, id: str, client: httpx.AsyncClient | None = None) -> Json:
    answer = await (client or api.anyone).get(f"{ITEMS}/{id}/history")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_history_of_a_quarantined_dataset_is_there_and_its_quarantine_for_managers_alone(west: Api) -> None:
    before = await history(west, FIRST)
    await act(west, FIRST, "quarantine")
    meanwhile = await history(west, FIRST)
    assert [each["state"] for each in meanwhile["versions"]] == ["quarantined"]
    assert meanwhile["events"] == before["events"]
    assert [each["type"] for each in (await history(west, FIRST, west.admin))["events"]] == ["quarantined", "published"]
    await act(west, FIRST, "retract", "release", "reinstate")
    outcome = await history(west, FIRST)
    states = [(each["type"], each["state"], each["previous_state"]) for each in outcome["events"]]
    assert states == [
        ("reinstated", "published", "retracted"), ("retracted", "retracted", "published"),
        ("published", "published", None),
    ]  # fmt: skip
    assert "quarantine" not in str(outcome)
    whole = await history(west, FIRST, west.admin)
    assert [each["state"] for each in whole["events"]][1:4] == ["retracted", "quarantined", "quarantined"]


async def test_a_status_says_that_a_dataset_is_under_quarantine(west: Api) -> None:
    await act(west, FIRST, "quarantine")
    await act(west, SECOND, "mark")
    answer = await west.anyone.post("/datasets/status", json=[FIRST, SECOND, THIRD])
    states = {each["id"]: each["state"] for each in answer.json()["datasets"]}
    assert states == {FIRST: "quarantined", SECOND: "unknown", THIRD: "published"}
    assert "to be looked at" not in answer.text
