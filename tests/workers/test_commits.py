"""One look of a process for what others commit: parts that have nothing to do sleep, and wake up for whatever comes."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import pytest

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import waiting
from fedstac.demo import embedded, sample
from fedstac.runtime import commits
from fedstac.runtime.commits import TICK_SECONDS, CommitWatch
from fedstac.runtime.wakeup import Wakeup
from fedstac.workers import roles
from tests.db import writing
from tests.messaging.relaying import add_sink
from tests.support.waiting import until

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
[ITEM] = sample.items(1)
FOREVER = 1e6  # seconds
ALL_CHAINED = "SELECT (SELECT count(*) FROM fedstac.audit) = (SELECT count(*) FROM fedstac.audit_chain)"
LEADER = """
    SELECT a.pid FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'advisory'
    WHERE a.datname = $1 AND a.application_name LIKE '% sequencer'"""
NOTHING = dict.fromkeys(waiting.WORK, False)


@pytest.fixture
def no_other_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks but for a commit, and no heartbeat commits anything."""
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", FOREVER)
    monkeypatch.setattr(bootstrap, "BEAT_SECONDS", FOREVER)


# --- what waits ---


async def test_for_a_node_without_anything_to_do_nothing_waits(node: Node, conn: Session) -> None:
    assert await waiting.read(conn) == NOTHING


SOON, LATER = "clock_timestamp() + interval '30 s'", "clock_timestamp() + interval '1 hour'"
NOTIFICATION = """
    WITH d AS (INSERT INTO fedstac.destination (owner, address, topics, secret)
               VALUES ('somebody', 'mailto:a@example.org', '{}', '') RETURNING id)
    INSERT INTO fedstac.notification (destination, topic, about, due) SELECT id, 'test', '{}', %s FROM d"""
GRANT = """
    INSERT INTO fedstac.access_grant
        (id, subject, collection, scope, target, valid_from, valid_until, given_at, given_by)
    VALUES (gen_random_uuid(), 'somebody', 'CMIP6', 'project', '', '-infinity', %s, clock_timestamp(), 'admin')"""
TROUBLE = "INSERT INTO fedstac.trouble (kind, place, what, detail) VALUES ('sink', 'a', 'b', 'c')"


@pytest.mark.parametrize(
    ("statement", "parts"),
    [
        (TROUBLE, {"notifier"}),
        (NOTIFICATION % SOON, {"notifier"}),
        (NOTIFICATION % LATER, set()),
        (GRANT % SOON, {"grants"}),
        (GRANT % LATER, set()),
    ],
)
async def test_what_waits_or_is_due_soon_is_work_for_its_part(
    node: Node, administrator: Session, statement: str, parts: set[str]
) -> None:
    await administrator.execute(statement)
    assert {part for part, there_is in (await waiting.read(administrator)).items() if there_is} == parts


async def test_a_snapshot_has_another_name_after_each_commit_alone(conn: Session, administrator: Session) -> None:
    before = await waiting.snapshot(conn)
    assert await waiting.snapshot(conn) == before
    async with administrator.transaction():
        await administrator.execute(TROUBLE)
        under_way = await waiting.snapshot(conn)
    after = await waiting.snapshot(conn)
    assert after not in (before, under_way)


# --- who waits ---


async def test_a_part_sleeps_until_something_waits_for_it() -> None:
    watch, stop = CommitWatch(()), asyncio.Event()
    watch.note("1", NOTHING)
    pausing = asyncio.create_task(watch.pause("bulk", stop, 0.0))
    watch.note("2", NOTHING | {"loads": True})
    await asyncio.sleep(0)
    assert not pausing.done()
    watch.note("3", NOTHING | {"bulk": True})
    await asyncio.wait_for(pausing, 60)


async def test_a_part_ends_its_sleep_when_it_stops_or_nobody_looks_any_more() -> None:
    watch, stop = CommitWatch(()), asyncio.Event()
    watch.note("1", NOTHING)
    pausing = asyncio.create_task(watch.pause("bulk", stop, 0.0))
    await asyncio.sleep(0)
    watch.lose()
    await asyncio.wait_for(pausing, 60)
    watch.note("1", NOTHING)
    pausing = asyncio.create_task(watch.pause("bulk", stop, 0.0))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(pausing, 60)


def test_only_who_is_watched_and_has_waited_for_a_while_is_patient() -> None:
    watch = CommitWatch(())
    assert watch.patience(TICK_SECONDS) == TICK_SECONDS  # nobody looks
    watch.note("1", NOTHING | {"publisher": True})
    assert watch.patience(TICK_SECONDS / 2) == TICK_SECONDS / 2
    assert watch.patience(TICK_SECONDS) == commits.PATIENCE_SECONDS
    assert watch.patience(TICK_SECONDS, most=5.0) == 5.0
    assert watch.patience(TICK_SECONDS, part="publisher") == TICK_SECONDS
    assert watch.patience(TICK_SECONDS, part="loads") == commits.PATIENCE_SECONDS


async def test_each_commit_wakes_the_process_and_the_queue_where_something_is_queued() -> None:
    committed, queued = Wakeup(), Wakeup()
    watch = CommitWatch((committed,), by_part={"publisher": queued})
    is_committed, is_queued = committed.next(), queued.next()
    watch.note("1", NOTHING)
    assert await is_committed(60)
    assert not await is_queued(0.0)
    watch.note("2", NOTHING | {"publisher": True})
    assert await is_queued(60)


async def test_the_same_snapshot_is_no_news_until_a_while_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = CommitWatch(())
    assert watch.is_news("1")
    watch.note("1", NOTHING)
    assert not watch.is_news("1")
    assert watch.is_news("2")
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.0)
    assert watch.is_news("1")


# --- a node ---


@pytest.mark.usefixtures("no_other_look")
async def test_what_another_process_stores_is_taken_up_by_parts_that_sleep(node: Node, conn: Session) -> None:
    await writing.create_collections(node, "CMIP6")
    stop = asyncio.Event()
    async with bootstrap.beside(node, roles.PUBLISH.parts(node.settings), stop):

        async def are_asleep() -> bool:
            return not any(map(node.commits.has_work, waiting.WORK))

        await until(are_asleep)
        await asyncio.sleep(4 * TICK_SECONDS)  # until the last of their own looks
        await writing.submit(conn, ITEM)
        await writing.until(conn, "SELECT EXISTS (SELECT FROM fedstac.feed)")
        await writing.until(conn, ALL_CHAINED)
        await writing.until(conn, "SELECT pos = (SELECT max(pos) FROM fedstac.feed) FROM fedstac.told")
        await conn.execute(TROUBLE)
        await writing.until(conn, "SELECT bool_and(told) FROM fedstac.trouble")
        await add_sink(conn, "http://127.0.0.1:9/nobody", "dead")
        await writing.until(conn, "SELECT bool_and(failing_since IS NOT NULL) FROM fedstac.sink")


@pytest.mark.usefixtures("no_other_look")
async def test_a_sequencer_whose_session_ends_notices_though_nothing_is_committed(
    node: Node, cluster: embedded.Cluster, conn: Session
) -> None:
    database = urlsplit(node.settings.dsn).path.lstrip("/")
    stop = asyncio.Event()
    root: Any = await asyncpg.connect(cluster.dsn())
    try:
        async with bootstrap.beside(node, [roles.SEQUENCER], stop):

            async def leader() -> int | None:
                pid: int | None = await root.fetchval(LEADER, database)
                return pid

            pid = await until(leader)
            await asyncio.sleep(4 * TICK_SECONDS)  # until the last of its own looks
            await root.execute("SELECT pg_terminate_backend($1)", pid)

            async def is_another() -> bool:
                return await leader() not in (None, pid)

            await until(is_another)
    finally:
        await root.close()
