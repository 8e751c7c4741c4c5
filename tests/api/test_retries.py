"""Requests that are taken back while they wait, and refused items that are tried again."""

from __future__ import annotations

import asyncio
import copy
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import orjson
import pytest

from fedstac import bootstrap, publication
from fedstac.api.http import bodies
from fedstac.api.writing import admission
from fedstac.db import connections, invariants, queue
from fedstac.demo import sample
from fedstac.publication import ClaimLost
from fedstac.settings import Settings
from fedstac.workers import publisher
from tests.support.nodes import Api, StartApi
from tests.support.waiting import until

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
GOOD = list(sample.items(30, versions=1))
LATER = {"Prefer": "wait=0"}
POLICY = "version: 1\nbuiltin: true\npromote_previous: [CMIP6]\n"


def spoilt(item: Json) -> Json:
    changed = copy.deepcopy(item)
    changed["properties"]["cmip6:experiment_id"] = "historcal"
    return changed


@pytest.fixture
async def idle(start_api: StartApi, dsn: str) -> Api:
    """A node whose workers do not run: what is accepted waits."""
    started = await start_api(dsn=dsn, background=False)
    response = await started.admin.post("/collections", json=sample.collection())
    assert response.status_code == 201, response.text
    return started


@pytest.fixture
async def node(dsn: str) -> AsyncIterator[bootstrap.Node]:
    """What a worker works with, on the database of `idle`."""
    async with bootstrap.node(Settings(dsn=dsn, node="west", _env_file=None)) as made:
        yield made


async def send(api: Api, *items: Json, **headers: str) -> str:
    body = items[0] if len(items) == 1 else {"type": "FeatureCollection", "features": items}
    response = await api.admin.post(ITEMS, json=body, headers={**LATER, **headers})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def final(api: Api, request: str) -> Json:
    async def look() -> Json:
        found: Json = (await api.admin.get(f"/requests/{request}")).json()
        return found if found["finished"] else {}

    return await until(look)


async def assert_sound(dsn: str) -> None:
    conn = await connections.connect(dsn)
    try:
        assert [found for found in await invariants.check(conn) if found.name != "I23"] == []
    finally:
        await conn.close()


async def test_what_waits_is_cancelled_and_what_is_done_stays_done(idle: Api, dsn: str, node: bootstrap.Node) -> None:
    first, second = await send(idle, *GOOD[:3]), await send(idle, *GOOD[3:6])
    answer = await idle.admin.post(f"/requests/{second}/cancel")
    assert (answer.status_code, answer.json()["cancelled"]) == (200, 3)
    assert answer.json()["status"] == "rejected"
    assert {each["type"] for each in answer.json()["problems"]} == {"cancelled"}
    async with node.pool.acquire() as conn:
        while await publisher.work_once(node, conn, "w"):
            pass
    assert (await final(idle, first))["outcomes"] == {"new": 3}
    again = await idle.admin.post(f"/requests/{first}/cancel")
    assert (again.status_code, again.json()["cancelled"], again.json()["status"]) == (200, 0, "done")
    assert (await idle.admin.get(f"{ITEMS}/{GOOD[3]['id']}")).status_code == 404
    await assert_sound(dsn)


async def test_a_worker_that_had_read_it_performs_it_no_more_and_keeps_no_shard(
    idle: Api, dsn: str, node: bootstrap.Node, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    cancelled, kept = await send(idle, GOOD[0]), await send(idle, *GOOD[1:9])
    worker = await connections.connect(dsn)
    claim = await queue.claim(worker, "w", UUID(int=1), 30)
    assert claim is not None
    items = await queue.read(worker, [one.id for one in await queue.waiting(worker, claim, 100)])
    assert len(items) == 9
    assert (await idle.admin.post(f"/requests/{cancelled}/cancel")).json()["cancelled"] == 1
    with pytest.raises(ClaimLost):
        await publisher._perform(node, worker, items, claim)
    await queue.release_uncounted(
        worker, claim, None
    )  # as work_once does: the others are free at once, not when the lease ends
    assert await conn.fetchval("SELECT count(*) FROM fedstac.shard WHERE token IS NOT NULL") == 0
    while await publisher.work_once(node, worker, "w"):
        pass
    await worker.close()
    assert (await final(idle, kept))["outcomes"] == {"new": 8}
    assert (await final(idle, cancelled))["outcomes"] == {"cancelled": 1}
    assert (await idle.admin.get(f"{ITEMS}/{GOOD[0]['id']}")).status_code == 404
    await assert_sound(dsn)


async def test_cancelling_waits_for_the_batch_that_is_being_performed(
    idle: Api, dsn: str, node: bootstrap.Node
) -> None:
    sent = await send(idle, GOOD[0])
    worker = await connections.connect(dsn)
    claim = await queue.claim(worker, "w", UUID(int=1), 30)
    assert claim is not None
    items = await queue.read(worker, [one.id for one in await queue.waiting(worker, claim, 100)])
    work, _ = await publisher._work(node, items, await publisher._submitters(worker, items))
    async with worker.transaction():
        await publication.perform(worker, node.rules, work, claim=claim)
        cancelling = asyncio.create_task(idle.admin.post(f"/requests/{sent}/cancel"))
        await blocked(dsn)
    assert (await cancelling).json()["cancelled"] == 0
    assert (await final(idle, sent))["outcomes"] == {"new": 1}
    await worker.close()
    await assert_sound(dsn)


async def blocked(dsn: str) -> None:
    """Wait until a session waits for another one's lock."""
    watching = await asyncpg.connect(dsn)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid() AND locktype <> 'advisory'"
    await until(lambda: watching.fetchval(waiting))
    await watching.close()


async def test_what_is_cancelled_at_any_moment_is_either_done_or_never_happened(
    api: Api, dsn: str, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Two workers perform what is cancelled at the same time; each item has its event, or is refused and not there."""
    chance = random.Random(5)
    batches = [list(part) for part in zip(*[sample.items(400, versions=3)] * 5, strict=False)]

    async def send_and_cancel(batch: list[Json]) -> str:
        sent = await send(api, *batch)
        await asyncio.sleep(chance.random() * 0.2)
        assert (await api.admin.post(f"/requests/{sent}/cancel")).status_code == 200
        return sent

    for at in range(0, len(batches), 16):
        await asyncio.gather(*map(send_and_cancel, batches[at : at + 16]))
    await until(lambda: conn.fetchval("SELECT NOT EXISTS (SELECT FROM fedstac.request_item WHERE status = 'queued')"))
    rows = await conn.fetch(
        """SELECT i.problem, i.last_event IS NOT NULL AS told, r.id IS NOT NULL AS there
           FROM fedstac.request_item i LEFT JOIN fedstac.record r ON r.id = i.dataset"""
    )
    assert len(rows) == 400
    seen = Counter((row["problem"], row["told"], row["there"]) for row in rows)
    assert set(seen) == {(None, True, True), ("cancelled", False, False)}, seen
    claimed_shards = "SELECT count(*) FROM fedstac.shard WHERE token IS NOT NULL"
    assert await until(lambda: conn.fetchval(f"SELECT ({claimed_shards}) = 0"))
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await conn.fetchval(deadlocks) == 0
    await assert_sound(dsn)


async def test_who_waits_for_a_cancelled_request_is_told(idle: Api) -> None:
    waiting = asyncio.create_task(idle.admin.post(ITEMS, json=GOOD[0], headers={"Prefer": "wait=20"}))

    async def listed() -> list[Json]:
        found: list[Json] = (await idle.admin.get("/requests")).json()["requests"]
        return found

    [one] = await until(listed)
    await idle.admin.post(f"/requests/{one['id']}/cancel")
    answer = await waiting
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (409, "cancelled")
    retry = f"POST /requests/{one['id']}/retry"
    assert answer.json()["detail"] == f"cancelled by admin before it was worked on; {retry} sends it again"


async def test_what_was_refused_is_tried_again_as_a_request_of_its_own(api: Api, dsn: str) -> None:
    sent = await send(api, GOOD[0], spoilt(GOOD[1]), GOOD[2])
    assert (await final(api, sent))["status"] == "partly"
    refused = await api.admin.post(f"/requests/{sent}/retry")
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["pointer"] == "/0/properties/cmip6:experiment_id"

    conn = await asyncpg.connect(dsn)  # as if the vocabulary had got the term meanwhile
    await conn.execute(
        "UPDATE fedstac.request_item SET document = $1 WHERE request = $2 AND n = 1",
        orjson.dumps(GOOD[1]).decode(), UUID(sent),
    )  # fmt: skip
    await conn.close()
    answer = await api.admin.post(f"/requests/{sent}/retry", headers={**LATER, "Idempotency-Key": "once"})
    assert answer.status_code == 202
    again = await final(api, answer.json()["id"])
    assert (again["retry_of"], again["total"], again["outcomes"]) == (sent, 1, {"new": 1})
    assert (await final(api, sent))["status"] == "partly"
    same = await api.admin.post(f"/requests/{sent}/retry", headers={**LATER, "Idempotency-Key": "once"})
    assert same.json()["id"] == answer.json()["id"]
    await assert_sound(dsn)


async def test_a_change_that_was_refused_is_tried_again_with_its_conditions(idle: Api, node: bootstrap.Node) -> None:
    await send(idle, GOOD[0])
    path = f"{ITEMS}/{GOOD[0]['id']}"
    change = await idle.admin.patch(path, json={"properties": {"description": "x"}}, headers=LATER)
    assert change.status_code == 202  # the dataset may be there by then: something waits for its lineage
    sent = change.json()["id"]
    assert (await idle.admin.post(f"/requests/{sent}/cancel")).json()["cancelled"] == 1
    running = await idle.admin.post(f"/requests/{sent}/retry", headers=LATER)
    assert running.status_code == 202
    async with node.pool.acquire() as conn:
        while await publisher.work_once(node, conn, "w"):
            pass
    again = await final(idle, running.json()["id"])
    assert (again["retry_of"], again["action"], again["outcomes"]) == (sent, "amend", {"updated": 1})
    assert (await idle.admin.get(path)).json()["properties"]["description"] == "x"


async def test_what_was_for_a_collection_that_is_gone_is_not_accepted_again(
    idle: Api, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "KNOWN_SECONDS", 0.0)
    publishing, change = await send(idle, GOOD[0], GOOD[1]), await send(idle, GOOD[2])
    for sent in (publishing, change):
        await idle.admin.post(f"/requests/{sent}/cancel")
    assert (await idle.admin.delete("/collections/CMIP6")).status_code == 204
    for sent in (publishing, change):
        answer = await idle.admin.post(f"/requests/{sent}/retry", headers=LATER)
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (404, "collection-does-not-exist")
    await assert_sound(dsn)


async def test_a_retry_that_may_only_be_new_says_so_itself_or_by_the_first_request(
    idle: Api, node: bootstrap.Node
) -> None:
    firsts = [await send(idle, GOOD[0], **{"If-None-Match": "*"}), await send(idle, GOOD[1])]
    for sent in firsts:
        await idle.admin.post(f"/requests/{sent}/cancel")
    await send(idle, *GOOD[:2])
    retried = [
        (await idle.admin.post(f"/requests/{firsts[0]}/retry", headers=LATER)).json()["id"],
        (await idle.admin.post(f"/requests/{firsts[1]}/retry", headers=LATER | {"If-None-Match": "*"})).json()["id"],
    ]
    async with node.pool.acquire() as conn:
        while await publisher.work_once(node, conn, "w"):
            pass
    for sent in retried:
        assert [each["type"] for each in (await final(idle, sent))["problems"]] == ["precondition-failed"]


async def test_there_has_to_be_something_to_try_again(api: Api) -> None:
    done = await send(api, GOOD[0])
    await final(api, done)
    nothing = await api.admin.post(f"/requests/{done}/retry")
    assert (nothing.status_code, nothing.json()["detail"].partition(": ")[2]) == (409, "there is nothing to try again")


@pytest.mark.parametrize("verb", ["cancel", "retry"])
async def test_what_cannot_be_rehearsed_is_not_done_for_a_dry_run(verb: str, idle: Api) -> None:
    sent = await send(idle, GOOD[0])
    if verb == "retry":
        await idle.admin.post(f"/requests/{sent}/cancel")
    before = (await idle.admin.get("/requests")).json()
    answer = await idle.admin.post(f"/requests/{sent}/{verb}?dry_run=true")
    assert (answer.status_code, "leave dry_run out to do it" in answer.json()["detail"]) == (400, True)
    assert (await idle.admin.get("/requests")).json() == before


async def test_a_request_that_runs_is_not_tried_again(idle: Api) -> None:
    sent = await send(idle, GOOD[0])
    early = await idle.admin.post(f"/requests/{sent}/retry")
    assert early.status_code == 409
    assert "wait until it is final, or cancel it first" in early.json()["detail"]


async def test_somebody_elses_request_is_as_if_there_were_none(api: Api) -> None:
    sent = await send(api, GOOD[0])
    bearer = {"Authorization": f"Bearer {api.tokens['publisher:NCAR']}"}
    async with httpx.AsyncClient(base_url=api.url, headers=bearer, trust_env=False) as other:
        for verb in ("cancel", "retry"):
            answer = await other.post(f"/requests/{sent}/{verb}")
            assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (404, "request-does-not-exist")
            assert (await other.post(f"/requests/nonsense/{verb}")).status_code == 404


async def test_the_item_of_a_retraction_names_its_own_event_not_the_promotion(
    start_api: StartApi, dsn: str, tmp_path: Any
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    api = await start_api(dsn=dsn, policy=str(policy))
    await api.admin.post("/collections", json=sample.collection())
    versions = [version_of(GOOD[0], day) for day in ("20200101", "20210101")]
    for item in versions:
        assert (await api.admin.post(ITEMS, json=item)).status_code == 201
    answer = await api.admin.post(f"{ITEMS}/{versions[1]['id']}/retract", json={"reason": "wrong units"})
    assert answer.status_code == 200, answer.text
    old = (await api.anyone.get(f"{ITEMS}/{versions[0]['id']}")).json()
    assert old["properties"]["latest"] is True
    assert (await api.anyone.get("/search", params={"filter": "latest = true"})).json()["numberMatched"] == 1
    await assert_sound(dsn)


def version_of(item: Json, day: str) -> Json:
    changed = copy.deepcopy(item)
    changed["id"] = f"{item['id'].rpartition('.v')[0]}.v{day}"
    changed["properties"]["version"] = day
    return changed


async def test_a_request_without_a_body_may_ask_for_it_late(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    rejected = await send(idle, GOOD[0])
    await idle.admin.post(f"/requests/{rejected}/cancel")
    monkeypatch.setattr(bodies, "WATCH_SECONDS", 0.0)  # its client is watched before the body is asked for
    answer = await idle.admin.post(
        f"/requests/{rejected}/retry", headers={"Idempotency-Key": "late", "Prefer": "wait=0"}
    )
    assert answer.status_code == 202, answer.text
