"""Faults of the operator and of the database: nothing that is queued fails for them, and no caller is blamed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
import structlog

from fedstac import bootstrap, publication
from fedstac.bootstrap import Node
from fedstac.db import queue
from fedstac.demo import embedded, sample
from fedstac.runtime.causes import OperatorsFault
from fedstac.settings import Settings
from fedstac.workers import publisher
from tests.db import writing
from tests.support.nodes import Api, StartApi
from tests.support.waiting import until

Lines = list[Any]
[ITEM] = sample.items(1)
STATES = "SELECT status, attempts FROM fedstac.request_item"
FAULTS = {
    "a table is renamed": (
        "ALTER TABLE fedstac.audit RENAME TO audit_away", "ALTER TABLE fedstac.audit_away RENAME TO audit",
        "the table fedstac.audit is missing",
    ),
    "a right is revoked": (
        "REVOKE INSERT ON fedstac.record FROM fedstac_writer", "GRANT INSERT ON fedstac.record TO fedstac_writer",
        "the right to INSERT on fedstac.record is missing",
    ),
}  # fmt: skip


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The lines that are logged."""
    with structlog.testing.capture_logs() as entries:
        yield entries


AsOwner = Callable[[str], Awaitable[object]]


@pytest.fixture
def as_owner(cluster: embedded.Cluster, dsn: str) -> AsOwner:
    """Runs a statement as the superuser in the test's database.

    It waits for transactions of the node, which goes on meanwhile: it has the same event loop.
    """

    async def run(statement: str) -> None:
        conn = await asyncpg.connect(cluster.dsn(urlsplit(dsn).path.lstrip("/")))
        try:
            await conn.execute(statement)
        finally:
            await conn.close()

    return run


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_missing_in_the_database_fails_nothing_and_is_shown_with_its_reason(
    api: Api, dsn: str, as_owner: AsOwner, lines: Lines, fault: str
) -> None:
    breaks, mends, reason = FAULTS[fault]
    await as_owner(breaks)
    answer = await api.admin.post("/collections/CMIP6/items", json=ITEM, headers={"Prefer": "wait=0"})
    if answer.status_code != 202:  # storing the request may need what is missing
        assert answer.status_code in (500, 503), answer.text

    async def is_shown() -> bool:
        readiness = await api.anyone.get("/readiness")
        return readiness.status_code == 503 and reason in readiness.json()["detail"]

    async def is_told() -> bool:
        return any(line.get("part") == "publisher" and line["log_level"] == "error" for line in lines)

    await until(is_shown)
    await until(is_told)
    [log_line] = [line for line in lines if line.get("part") == "publisher"]
    assert log_line["event"] == "a part fails; it tries again"
    assert "fedstac" in log_line["statement"]
    assert not [line for line in lines if "away" in line["event"]]
    await as_owner(mends)
    conn = await asyncpg.connect(dsn)
    try:
        await writing.until(conn, "SELECT bool_and(status = 'done') FROM fedstac.request_item")
        assert [tuple(row) for row in await conn.fetch(STATES)] == [("done", 0)]
    finally:
        await conn.close()


@pytest.mark.parametrize(("breaks", "reason"), [
    ("ALTER TABLE fedstac.record RENAME TO record_away", "UndefinedTableError (42P01)"),
    ("REVOKE SELECT ON fedstac.record FROM fedstac_writer", "InsufficientPrivilegeError (42501)"),
])  # fmt: skip
async def test_a_search_that_lacks_something_is_no_fault_of_the_searcher_and_logged_once(
    api: Api, as_owner: AsOwner, lines: Lines, breaks: str, reason: str
) -> None:
    await as_owner(breaks)
    answers = [await api.anyone.get("/search?limit=1&sortby=id") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["retry-after"] for answer in answers} == {"30"}
    line = next(line for line in lines if line.get("part") == "api")
    assert reason in line["reason"]
    assert "fedstac.record" in line["statement"]
    assert [line["reason"].partition(":")[0] for line in lines if line.get("part") == "api"].count(reason) == 1


async def test_a_fault_in_the_schema_counts_no_attempt_and_another_does(
    node: Node, conn: Any, as_owner: AsOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writing.create_collections(node, "CMIP6")
    await writing.submit(conn, ITEM)

    async def wrong(*arguments: object, **named: object) -> None:
        raise asyncpg.UndefinedTableError('relation "fedstac.nowhere" does not exist')

    monkeypatch.setattr(publication, "perform", wrong)
    async with node.pool.acquire() as worker:
        await as_owner("ALTER TABLE fedstac.told RENAME TO told_away")
        with pytest.raises(OperatorsFault, match=r"the table fedstac\.told is missing.*nowhere"):
            await publisher.work_once(node, worker, "w")
        assert tuple(await conn.fetchrow(STATES)) == ("queued", 0)
        await as_owner("ALTER TABLE fedstac.told_away RENAME TO told")
        await publisher.work_once(node, worker, "w")
        assert tuple(await conn.fetchrow(STATES)) == ("queued", 1)


async def test_while_a_migration_runs_nothing_counts(
    node: Node, conn: Any, cluster: embedded.Cluster, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writing.create_collections(node, "CMIP6")
    await writing.submit(conn, ITEM)

    async def wrong(*arguments: object, **named: object) -> None:
        raise asyncpg.UndefinedColumnError("column does not exist")

    monkeypatch.setattr(publication, "perform", wrong)
    await conn.execute("SELECT pg_advisory_lock($1)", 0x666564_00)
    async with node.pool.acquire() as worker:
        with pytest.raises(OperatorsFault, match="is being migrated"):
            await publisher.work_once(node, worker, "w")
    assert tuple(await conn.fetchrow(STATES)) == ("queued", 0)


async def test_a_worker_that_is_cancelled_lets_go_of_its_claim(
    node: Node, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writing.create_collections(node, "CMIP6")
    await writing.submit(conn, ITEM)
    begun = asyncio.Event()

    async def endless(*arguments: object, **named: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(publication, "perform", endless)
    async with node.pool.acquire() as worker:
        working = asyncio.create_task(publisher.work_once(node, worker, "w"))
        await begun.wait()
        assert await queue.claim(conn, "other", uuid4(), 60) is None
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        claim = await queue.claim(conn, "other", uuid4(), 60)
        assert claim is not None
        assert claim.deaths == 0


async def test_workers_of_another_process_are_alive_for_a_minute_after_their_last_report(
    start_api: StartApi, dsn: str, conn: Any
) -> None:
    api = await start_api(dsn=dsn, background=False)

    async def workers() -> str:
        return str((await api.anyone.get("/healthcheck")).json()["workers"])

    async def are(wanted: str) -> bool:
        return await workers() == wanted

    assert await workers() == "absent"
    config = Settings(dsn=dsn, node="west", _env_file=None)
    stop = asyncio.Event()
    async with bootstrap.node(config) as other, bootstrap.beside(other, [], stop):
        other.parts.state("publisher").running = other.parts.state("publisher").wanted = 1
        other.parts.changed.wake()
        await until(lambda: are("idle"))
        stop.set()
        await conn.execute("UPDATE fedstac.part SET seen = seen - interval '61 seconds'")
        await until(lambda: are("absent"))


async def test_sessions_that_are_ended_are_no_fault_of_ours(
    api: Api, dsn: str, cluster: embedded.Cluster, lines: Lines
) -> None:
    chance, statuses, done = random.Random(7), set(), asyncio.Event()
    items = iter(sample.items(1000))

    async def client() -> None:
        while not done.is_set():
            if chance.random() < 0.5:
                body = {"type": "FeatureCollection", "features": [next(items) for _ in range(3)]}
                answer = await api.admin.post("/collections/CMIP6/items", json=body, headers={"Prefer": "wait=0"})
            else:
                answer = await api.anyone.get("/search?limit=5")
            statuses.add(answer.status_code)

    async def end_sessions() -> None:
        admin = await asyncpg.connect(cluster.dsn())
        for _ in range(40):
            await admin.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = $1 AND backend_type = 'client backend' AND random() < 0.7""",
                urlsplit(dsn).path.lstrip("/"),
            )
            await asyncio.sleep(0.05)
        await admin.close()
        done.set()

    await asyncio.gather(end_sessions(), *(client() for _ in range(6)))
    failures = [line["reason"] for line in lines if line["event"] == "request failed"]
    assert statuses <= {200, 202, 503}, failures
    conn = await asyncpg.connect(dsn)
    try:
        settled = "SELECT NOT EXISTS (SELECT FROM fedstac.request_item WHERE status = 'queued')"
        await writing.until(conn, settled)
        assert await conn.fetchval("SELECT count(*) FROM fedstac.request_item WHERE status <> 'done'") == 0
    finally:
        await conn.close()
