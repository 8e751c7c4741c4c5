"""Back-pressure: too many events that wait are warned of, and then refuse batches; and /livez and /readyz."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import httpx
import pytest

from fedstac.api.nodes import health
from fedstac.api.writing import backlog as backlog_look
from fedstac.db import backlog, outbox, sinks
from fedstac.db.feed import SEQUENCER_LOCK
from fedstac.demo import embedded, sample
from tests.db import writing
from tests.support.databases import name_in
from tests.support.nodes import Api, StartApi
from tests.support.waiting import until

ITEMS = list(sample.items(20, versions=1))
WAIT = {"Prefer": "wait=60"}


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look holds for the moment only."""
    monkeypatch.setattr(backlog_look, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(health, "KEPT_SECONDS", 0.01)
    monkeypatch.setattr(health, "KEPT_BESIDE", 0)


async def send(api: Api, *items: dict[str, Any], lines: bool = False) -> httpx.Response:
    if lines:
        body = b"\n".join(httpx.Request("POST", "http://x", json=item).content for item in items)
        headers = {**WAIT, "Content-Type": "application/x-ndjson"}
        return await api.admin.post("/collections/CMIP6/items", content=body, headers=headers)
    batch = {"type": "FeatureCollection", "features": list(items)}
    return await api.admin.post("/collections/CMIP6/items", json=batch, headers=WAIT)


async def assert_only_batches_are_refused(api: Api, reason: str, first: int) -> None:
    for answer in (await send(api, *ITEMS[first : first + 2]), await send(api, *ITEMS[:2], lines=True)):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, str(backlog_look.RETRY_AFTER))
        assert reason in answer.json()["detail"]
    answer = await api.admin.post("/collections/CMIP6/items", json=ITEMS[first], headers=WAIT)
    assert answer.status_code == 201, answer.text
    tried = await api.admin.post(
        "/collections/CMIP6/items?dry_run=true", json={"type": "FeatureCollection", "features": ITEMS[:2]}
    )
    assert tried.status_code == 200


async def reasons(api: Api) -> str:
    return str((await api.anyone.get("/healthcheck")).json()["reasons"])


@pytest.mark.parametrize("limits", [{"unsent_bytes": 8_000}, {"unsent_seconds": 0.2}], ids=["bytes", "seconds"])
async def test_batches_wait_while_a_required_sink_is_stuck(
    start_api: StartApi, dsn: str, conn: asyncpg.Connection[asyncpg.Record], limits: dict[str, Any]
) -> None:
    api = await start_api(dsn=dsn, **limits)
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    assert (await send(api, *ITEMS[:10])).status_code == 200
    new = sinks.NewSink("hook", "https://sink.invalid/x", "cloudevents", "", required=True, private=True, after=0)
    await sinks.add(conn, new, actor="anna")

    async def is_full() -> bool:
        return (await send(api, ITEMS[10])).status_code == 503

    await until(is_full)
    await assert_only_batches_are_refused(api, "the sink hook", 11)
    assert "events wait for the sink hook" in await reasons(api)
    await sinks.remove(conn, "hook", actor="anna")
    assert (await send(api, *ITEMS[12:14])).status_code == 200
    assert "hook" not in await reasons(api)


async def test_batches_wait_while_the_sequencer_is_stuck(
    start_api: StartApi, dsn: str, conn: asyncpg.Connection[asyncpg.Record], cluster: embedded.Cluster
) -> None:
    leader = await asyncpg.connect(dsn)  # it holds the lock, and sequences nothing
    await leader.fetchval("SELECT pg_advisory_lock($1)", SEQUENCER_LOCK)
    api = await start_api(dsn=dsn, unsent_seconds=0.2)
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201

    async def is_full() -> bool:
        return (await send(api, ITEMS[0])).status_code == 503

    await until(is_full)
    await assert_only_batches_are_refused(api, "the sequencer", 1)
    assert "events wait for the sequencer" in await reasons(api)
    await leader.close()

    async def is_taken() -> bool:
        return (await send(api, *ITEMS[2:4])).status_code == 200

    await until(is_taken)
    await writing.until(
        conn, "SELECT (SELECT count(*) FROM fedstac.outbox) = (SELECT pos FROM fedstac.feed_state)"
    )  # nothing was dropped


async def test_operators_are_told_once_of_a_backlog(conn: asyncpg.Connection[asyncpg.Record]) -> None:
    waiting = backlog.Backlog("the sink hook", 7, 900.0, 3 << 20)
    assert [await backlog.alert(conn, waiting) for _ in range(3)] == [True, False, False]
    [row] = await conn.fetch("SELECT kind, place, detail FROM fedstac.trouble")
    assert tuple(row) == (
        "backlog", "the sink hook", "7 events wait for the sink hook, the oldest for 900 s; about 3.0 MiB"
    )  # fmt: skip


async def checks(api: Api) -> dict[str, bool]:
    answer = await api.anyone.get("/readyz")
    body = answer.json()
    assert (answer.status_code == 200) == (body["status"] == "ready") == all(c["ok"] for c in body["checks"].values())
    return {name: check["ok"] for name, check in body["checks"].items()}


async def test_a_process_is_ready_while_it_can_serve_and_alive_whatever_else(
    start_api: StartApi, dsn: str, cluster: embedded.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "UNLED_SECONDS", 0.3)
    api = await start_api(dsn=dsn, background=False)

    async def is_unled() -> bool:
        return (await checks(api)) == {
            **dict.fromkeys(("database", "parts", "log", "process", "columns"), True),
            "sequencer": False,
        }

    async def is_ready() -> bool:
        return all((await checks(api)).values())

    async def is_away() -> bool:
        return (await checks(api)) == {"database": False, "process": True}

    await until(is_unled)
    await start_api(dsn=dsn)  # it leads
    await until(is_ready)
    admin, name = await asyncpg.connect(cluster.dsn()), name_in(dsn)
    try:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await until(is_away)
        assert (await api.anyone.get("/livez")).json() == {"status": "UP"}
    finally:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()
    await until(is_ready)


async def test_a_leader_that_gives_no_positions_makes_a_node_unready(
    start_api: StartApi, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "STUCK_SECONDS", 0.2)
    leader = await asyncpg.connect(dsn)
    await leader.fetchval("SELECT pg_advisory_lock($1)", SEQUENCER_LOCK)
    api = await start_api(dsn=dsn)
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201

    async def is_unready() -> bool:
        return not (await checks(api))["sequencer"]

    async def is_ready() -> bool:
        return all((await checks(api)).values())

    await until(is_unready)
    await leader.close()
    await until(is_ready)


async def test_partitions_that_run_out_are_warned_of(
    start_api: StartApi, dsn: str, cluster: embedded.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await start_api(dsn=dsn, background=False)  # nobody makes partitions
    owner = await asyncpg.connect(cluster.dsn(name_in(dsn)))
    assert "partitions" not in await reasons(api)
    await owner.execute("SELECT setval('fedstac.outbox_id_seq', 1000001)")
    await asyncio.sleep(0.02)
    assert "the log has 2 partitions ahead" in await reasons(api)
    assert (await checks(api))["log"]
    await owner.execute("SELECT setval('fedstac.outbox_id_seq', 3000001)")
    await asyncio.sleep(0.02)
    assert not (await checks(api))["log"]
    await outbox.extend(owner)
    await asyncio.sleep(0.02)
    assert (await checks(api))["log"]
    await owner.close()
