"""GET /healthcheck."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import asyncpg
import pytest

from fedstac.api.nodes import health
from fedstac.api.nodes.health import Health, HealthLook
from fedstac.db import sinks
from fedstac.demo import embedded
from fedstac.domain.errors import Unavailable
from tests.messaging.relaying import add_sink, fill
from tests.support.nodes import StartApi
from tests.support.waiting import until


async def test_a_node_that_works_is_well(dsn: str, start_api: StartApi) -> None:
    api = await start_api(dsn=dsn)

    async def has_begun() -> bool:
        body = (await api.anyone.get("/healthcheck")).json()
        return bool(body["sequencer"] == "leading" and body["columns"] == "ready")

    await until(has_begun)
    response = await api.anyone.get("/healthcheck")
    assert response.status_code == 200
    runs = {"running": 1, "wanted": 1, "restarts": 0}
    assert response.json() | {"version": ""} == {
        "status": "ok", "node": "west", "version": "", "database": "ok", "sequencer": "leading", "workers": "idle",
        "deletions": "running",
        "reasons": [], "columns": "ready",
        "parts": {
            "columns": runs, "heartbeat": runs, "notifier": runs,
            "publisher": {"running": 2, "wanted": 2, "restarts": 0},
            "outages": runs, "refusals": runs, "relay": runs, "retention": runs, "sequencer": runs,
            "vocabularies": runs, "statuses": runs, "bulk": runs, "loads": runs, "cascades": runs, "deletions": runs,
            "subscriptions": runs, "grants": runs, "commits": runs,
        },
    }  # fmt: skip
    assert (await api.anyone.get("/readiness")).json() == response.json()


async def test_a_node_tells_how_its_sinks_stand_and_is_ready_without_them(
    dsn: str, start_api: StartApi, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_api(dsn=dsn)
    await add_sink(conn, "http://127.0.0.1:9/nobody", "dead")
    await add_sink(conn, "http://127.0.0.1:9/nobody", "quiet")
    await fill(conn, 3, sequences=False)
    await sinks.pause(conn, "quiet", "a test", actor="test")

    async def is_told() -> bool:
        body = (await api.anyone.get("/healthcheck")).json()
        return bool(body.get("sinks") == {"dead": "failing", "quiet": "paused"} and body["relay"] == "idle")

    await until(is_told)
    assert (await api.anyone.get("/readiness")).status_code == 200


async def test_a_node_without_workers_says_so(
    dsn: str, start_api: StartApi, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_api(dsn=dsn, background=False)
    await conn.execute(
        """WITH made AS (
               INSERT INTO fedstac.request (id, collection, action, total, submitter, roles, correlation, created)
               VALUES (gen_random_uuid(), 'CMIP6', 'publish', 1, 'anna', '{}', 'x', now() - interval '1 hour')
               RETURNING id)
           INSERT INTO fedstac.request_item (request, n, shard, dataset) SELECT id, 0, 7, 'x' FROM made"""
    )
    body = (await api.anyone.get("/healthcheck")).json()
    assert (body["status"], body["sequencer"], body["workers"]) == ("degraded", "absent", "absent")
    readiness = await api.anyone.get("/readiness")
    assert readiness.status_code == 503
    expected = "the node does not work as it should: sequencer: absent; workers: absent; deletions: absent"
    assert readiness.json()["detail"] == expected


async def test_without_its_database_it_says_so_and_nothing_of_the_inside(
    dsn: str, start_api: StartApi, cluster: embedded.Cluster
) -> None:
    api = await start_api(dsn=dsn, background=False)
    name = dsn.rpartition("/")[2].partition("?")[0]
    admin = await asyncpg.connect(cluster.dsn())
    try:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)

        async def is_away() -> bool:  # a backend ends a moment after it was told to
            return (await api.anyone.get("/healthcheck")).status_code == 503

        await until(is_away)
        response = await api.anyone.get("/healthcheck")
        assert response.status_code == 503
        assert response.json()["detail"] == "the database does not answer; try again"
        assert name not in response.text
    finally:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()


async def test_nobody_waits_for_a_look_at_a_busy_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "KEPT_SECONDS", 0.001)
    monkeypatch.setattr(health, "KEPT_BESIDE", 100_000)
    look, gate, looks = HealthLook(cast(Any, None), (), None), asyncio.Event(), list[int]()
    outcomes: list[Health | Exception] = []

    async def read(_: HealthLook) -> Health:
        looks.append(1)
        await gate.wait()
        outcome = outcomes[-1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def is_told(outcome: Health | Exception) -> bool:
        try:
            return await look.health() is outcome
        except Unavailable as problem:
            return problem is outcome

    monkeypatch.setattr(HealthLook, "_look", read)
    first, away, back = Health({}, ()), Unavailable("the database does not answer"), Health({}, ())
    outcomes.append(first)
    waiting = [asyncio.create_task(look.health()) for _ in range(5)]

    async def looks_begun() -> int:
        return len(looks)

    assert await until(looks_begun) == 1
    assert not any(task.done() for task in waiting)  # nothing is known yet
    gate.set()
    assert await asyncio.gather(*waiting) == [first] * 5
    for before, outcome in ((first, away), (away, back)):
        gate, count = asyncio.Event(), len(looks)
        outcomes.append(outcome)
        while len(looks) == count:  # until a new look is under way, and beside it
            assert await is_told(before)
            await asyncio.sleep(0)
        assert [await is_told(before) for _ in range(20)] == [True] * 20
        assert len(looks) == count + 1
        gate.set()
        await until(partial(is_told, outcome))
