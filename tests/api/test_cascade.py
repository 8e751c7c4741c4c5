"""Deleting a collection with its datasets, over HTTP: the dry run, the confirmation, the marks, the end of it all."""

from __future__ import annotations

from collections import Counter
from typing import Any

import asyncpg
import httpx
import orjson
import pytest

from fedstac.db import cascades, invariants, nodes
from fedstac.demo import sample
from fedstac.domain.model import State
from tests.support.nodes import Api
from tests.support.waiting import until

Json = dict[str, Any]
COLLECTION = "/collections/CMIP6"
ITEMS = f"{COLLECTION}/items"
DATASETS: list[Json] = list(sample.items(7))
NEW = next(item for item in sample.items(40) if item["id"] not in {each["id"] for each in DATASETS})
CASCADE = f"{COLLECTION}?cascade=true"


@pytest.fixture
async def west(api: Api) -> Api:
    """With a few datasets, of which one is retracted and one under quarantine, a replica and a group."""
    body = {"type": "FeatureCollection", "features": DATASETS}
    answer = await api.admin.post(ITEMS, json=body, headers={"Prefer": "wait=60"})
    assert answer.json()["counts"]["done"] == len(DATASETS), answer.text
    first, second, third = (f"{ITEMS}/{item['id']}" for item in DATASETS[:3])
    wait = {"Prefer": "wait=60"}
    assert (await api.admin.post(f"{first}/retract", json={"reason": "wrong"}, headers=wait)).status_code == 200
    assert (await api.admin.post(f"{second}/quarantine", json={"reason": "?"}, headers=wait)).status_code == 200
    name = next(key for key, asset in DATASETS[2]["assets"].items() if "file:checksum" in asset)
    replica = {name: {"href": "https://east.example/a.nc"}}
    assert (await api.admin.put(f"{third}/replicas/east", json=replica, headers=wait)).status_code == 200
    group = {"name": "editors", "project": "CMIP6", "institution": "NCAR"}
    assert (await api.admin.post("/groups", json=group)).status_code == 201
    assert (await api.admin.put("/groups/editors/members/anna")).status_code == 204
    return api


async def begin(api: Api, confirm: int = len(DATASETS)) -> httpx.Response:
    return await api.admin.delete(f"{CASCADE}&confirm={confirm}&reason=the project has ended")


async def cascade_of(api: Api) -> Json:
    answer = await api.admin.get(f"{COLLECTION}/cascade")
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    return body


async def wait_for(api: Api, state: str) -> Json:
    async def is_there() -> bool:
        return bool((await cascade_of(api))["state"] == state)

    await until(is_there)
    return await cascade_of(api)


async def events_of(api: Api) -> list[Json]:
    conn = await asyncpg.connect(api.settings.dsn)
    rows = await conn.fetch("SELECT event FROM fedstac.outbox ORDER BY id")
    await conn.close()
    return [orjson.loads(row["event"]) for row in rows]


async def delete_all(api: Api) -> None:
    """Delete every marked dataset, as the manager does when everybody has done their part."""
    conn = await asyncpg.connect(api.settings.dsn)
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    ids = [row["id"] for row in await conn.fetch("SELECT id FROM fedstac.record WHERE state = 'marked'")]
    await conn.close()
    for id in ids:
        answer = await api.admin.post(f"{ITEMS}/{id}/delete", headers={"Prefer": "wait=60"})
        assert answer.status_code == 200, answer.text


async def test_a_dry_run_lists_what_is_affected_and_changes_nothing(west: Api) -> None:
    before = len(await events_of(west))
    answer = await west.admin.delete(f"{CASCADE}&dry_run=true")
    assert answer.status_code == 200, answer.text
    effects = answer.json()
    assert effects["confirm"] == effects["datasets"]["total"] == len(DATASETS)
    assert effects["datasets"]["by_state"] == {"published": len(DATASETS) - 2, "quarantined": 1, "retracted": 1}
    assert effects["lineages"] == len({item["id"].rpartition(".v")[0] for item in DATASETS})
    files = [asset for item in DATASETS for asset in item["assets"].values() if "file:size" in asset]
    assert effects["files"]["bytes"] == sum(asset["file:size"] for asset in files)
    assert effects["replicas"] == [{"node": "east", "datasets": 1, "files": 1}]
    assert effects["own_groups"] == {"groups": 1, "memberships": 1}
    assert len(await events_of(west)) == before
    assert (await west.admin.get(f"{COLLECTION}/cascade")).status_code == 404


async def test_a_cascade_needs_its_number_a_reason_and_the_rights(west: Api) -> None:
    assert (await west.admin.delete(f"{CASCADE}&reason=over")).status_code == 400
    assert (await west.admin.delete(f"{CASCADE}&confirm=7")).status_code == 400
    wrong = await begin(west, confirm=6)
    assert wrong.status_code == 412
    assert "has 7 datasets, and 6 were confirmed" in wrong.json()["detail"]
    assert (await west.admin.delete(f"{COLLECTION}?dry_run=true")).status_code == 400
    assert (await west.admin.delete(COLLECTION)).status_code == 409
    conn = await asyncpg.connect(west.settings.dsn)
    token = await nodes.issue_token(conn, "pat", ["publisher:NCAR"])
    await conn.close()
    theirs = {"Authorization": f"Bearer {token}"}
    for path in (f"{CASCADE}&dry_run=true", f"{CASCADE}&confirm=7&reason=x", f"{COLLECTION}/cascade"):
        assert (await west.anyone.delete(path, headers=theirs)).status_code == 403
    assert (await west.anyone.get(f"{COLLECTION}/cascade", headers=theirs)).status_code == 403


async def test_everything_is_marked_in_its_name_and_the_collection_goes_with_the_last_dataset(west: Api) -> None:
    answer = await begin(west)
    assert answer.status_code == 202, answer.text
    cascade = answer.json()
    assert answer.headers["location"].endswith(f"{COLLECTION}/cascade")
    assert (await begin(west)).json()["code"] == "collection-closing"
    waiting = await wait_for(west, "waiting")
    assert (waiting["marked"], waiting["to_mark"], waiting["refused"]) == (len(DATASETS), 0, 0)

    refusal = await west.admin.post(ITEMS, json=NEW)
    assert (refusal.status_code, refusal.json()["code"]) == (409, "collection-closing")
    assert cascade["id"] in refusal.json()["detail"]
    assert refusal.json()["cascade"].endswith(f"{COLLECTION}/cascade")
    unmark = await west.admin.post(f"{ITEMS}/{DATASETS[0]['id']}/unmark")
    assert (unmark.status_code, unmark.json()["code"]) == (409, "collection-closing")

    log = await events_of(west)
    [parent] = [event for event in log if event["type"] == "org.fedstac.collection.closing.v1"]
    assert parent["id"] == cascade["id"]
    assert (parent["data"]["reason"], parent["data"]["datasets"]) == ("the project has ended", len(DATASETS))
    marks = [event for event in log if event["type"] == "org.fedstac.dataset.marked.v1"]
    assert Counter(event["data"]["id"] for event in marks) == Counter(item["id"] for item in DATASETS)
    assert {event["causationid"] for event in marks} == {cascade["id"]}
    assert {event["data"]["reason"] for event in marks} == {"the project has ended"}

    assert (await west.anyone.get(COLLECTION)).status_code == 200
    await delete_all(west)
    done = await wait_for(west, "done")
    assert (done["deleted"], done["marked"]) == (len(DATASETS), 0)
    assert (await west.anyone.get(COLLECTION)).status_code == 404
    [gone] = [event for event in await events_of(west) if event["type"] == "org.fedstac.collection.deleted.v1"]
    assert gone["causationid"] == cascade["id"]
    assert (await west.admin.get("/groups/editors")).status_code == 404
    conn = await asyncpg.connect(west.settings.dsn)
    assert await invariants.check(conn) == []
    actions = {row["action"] for row in await conn.fetch("SELECT action FROM fedstac.audit")}
    assert {"closing", "mark", "delete", "deleted", "delete-group"} <= actions
    await conn.close()


async def test_what_was_deleted_with_its_collection_can_be_purged(west: Api) -> None:
    await begin(west)
    await wait_for(west, "waiting")
    await delete_all(west)
    await wait_for(west, "done")
    path, wait = f"{ITEMS}/{DATASETS[0]['id']}", {"Prefer": "wait=60"}
    answer = await west.admin.post(f"{path}/purge", headers=wait)
    assert (answer.status_code, answer.json()["outcomes"]) == (200, {"purged": 1}), answer.text
    assert (await west.admin.post(f"{path}/purge", headers=wait)).status_code == 200, "and once more is no change"
    assert (await west.admin.post(f"{ITEMS}/{NEW['id']}/purge")).status_code == 404
    assert (await west.admin.post(f"{path}/retract", json={"reason": "x"})).status_code == 404
    conn = await asyncpg.connect(west.settings.dsn)
    query = "SELECT state FROM fedstac.record WHERE id = $1"
    assert await conn.fetchval(query, DATASETS[0]["id"]) == "purged"
    assert await invariants.check(conn) == []
    await conn.close()


async def test_no_dataset_is_deleted_before_its_dependencies_are_done(west: Api) -> None:
    await begin(west)
    await wait_for(west, "waiting")
    answer = await west.admin.post(f"{ITEMS}/{DATASETS[3]['id']}/delete")
    assert (answer.status_code, answer.json()["code"]) == (409, "deletion-not-ready")
    assert (await west.admin.delete(COLLECTION)).json()["code"] == "collection-not-empty"


async def test_a_cancelled_cascade_lets_publish_again_and_leaves_the_marks(west: Api) -> None:
    await begin(west)
    await wait_for(west, "waiting")
    cancelled = (await west.admin.delete(f"{COLLECTION}/cascade")).json()
    assert (cancelled["state"], cancelled["ended_by"], cancelled["marked"]) == ("cancelled", "admin", len(DATASETS))
    assert (await west.admin.delete(f"{COLLECTION}/cascade")).status_code == 404
    [reopened] = [event for event in await events_of(west) if event["type"] == "org.fedstac.collection.reopened.v1"]
    assert reopened["causationid"] == cancelled["id"]
    assert (await west.admin.post(ITEMS, json=NEW)).status_code == 201
    unmark = await west.admin.post(f"{ITEMS}/{DATASETS[0]['id']}/unmark", headers={"Prefer": "wait=60"})
    assert unmark.status_code == 200
    after = (await west.anyone.get(f"{ITEMS}/{DATASETS[0]['id']}")).json()
    assert after["properties"]["fedstac:state"] == State.RETRACTED


async def test_an_empty_collection_that_somebody_deletes_ends_its_cascade_and_can_be_made_again(api: Api) -> None:
    conn = await asyncpg.connect(api.settings.dsn)
    await conn.execute("SELECT pg_advisory_lock($1)", cascades.CASCADE_LOCK)  # no worker is at it
    assert (await begin(api, confirm=0)).status_code == 202
    assert (await api.admin.delete(COLLECTION)).status_code == 204
    assert (await cascade_of(api))["state"] == "done"
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    await conn.execute("SELECT pg_advisory_unlock($1)", cascades.CASCADE_LOCK)
    await conn.close()
    assert (await api.admin.post(ITEMS, json=NEW)).status_code == 201


async def test_a_collection_whose_datasets_are_all_deleted_counts_as_empty(west: Api) -> None:
    for item in DATASETS:
        await west.admin.delete(f"{ITEMS}/{item['id']}", headers={"Prefer": "wait=60"})
    await delete_all(west)
    effects = (await west.admin.delete(f"{CASCADE}&dry_run=true")).json()
    assert effects["confirm"] == 0
    assert (await west.admin.delete(COLLECTION)).status_code == 204
    assert (await west.anyone.get(COLLECTION)).status_code == 404
