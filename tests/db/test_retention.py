"""Retention: what is dropped of the log, for whom it is kept, and what does not notice that it goes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from fedstac.bootstrap import Node
from fedstac.db import audit, feed, invariants, nodes, outbox, requests, retention, sinks
from fedstac.db.connections import Connection
from fedstac.db.feed import EventFilter
from fedstac.demo import embedded, sample
from fedstac.domain.errors import CursorGone
from fedstac.domain.events import Cursor
from fedstac.runtime.wakeup import Backoff
from fedstac.workers import retention as worker
from tests.db import writing
from tests.db.writing import Connect
from tests.support.databases import name_in
from tests.support.forking import shared
from tests.support.places import REPOSITORY

ITEMS = list(sample.items(60, versions=2))


@pytest.fixture
async def owner(west: Node, cluster: embedded.Cluster) -> AsyncIterator[Connection]:
    """A session that may move the ids of the outbox on, as a million events would, and make events older."""
    conn = await asyncpg.connect(cluster.dsn(name_in(west.settings.dsn)))
    await conn.execute("SET session_replication_role = replica")
    yield conn
    await conn.close()


@pytest.fixture
def keen(west: Node) -> Node:
    """West, which keeps nothing longer than it has to."""
    return replace(west, settings=west.settings.model_copy(update={"keep_events_days": 0}))


async def fill_partition(owner: Connection, number: int) -> None:
    """Let the next event have the first id of a partition."""
    await owner.execute("SELECT setval('fedstac.outbox_id_seq', $1)", number * retention.ROWS_EACH)


async def publish(conn: Connection, owner: Connection) -> int:
    """Publish into three partitions; return the last position of the first one."""
    for number, items in enumerate((ITEMS[:20], ITEMS[20:40], ITEMS[40:])):
        await fill_partition(owner, number) if number else None
        await writing.publish(conn, *items)
        await writing.sequence_all(conn)
        await conn.execute("UPDATE fedstac.told SET pos = (SELECT pos FROM fedstac.feed_state)")
    await outbox.extend(conn)
    return int(await conn.fetchval("SELECT max(pos) FROM fedstac.feed WHERE id <= 1000000"))


async def step(node: Node, conn: Connection) -> None:
    """Do all there is to do."""
    while await worker.step(node, conn, Backoff()) == worker.STEP_SECONDS:
        pass


async def partitions(conn: Connection) -> list[int]:
    rows = await conn.fetch(
        """SELECT substring(c.relname FROM 8)::bigint AS n FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = 'fedstac.outbox'::regclass ORDER BY 1"""
    )
    return [row["n"] for row in rows]


async def test_what_everybody_has_goes_and_the_rest_stays_as_it_was(
    keen: Node, connect: Connect, owner: Connection
) -> None:
    conn = await connect()
    last = await publish(conn, owner)
    head = (await feed.head(conn)).pos
    kept = await feed.page(conn, last, 1000)
    await nodes.acknowledge(conn, "east", Cursor(1, last), [])
    await step(keen, conn)
    assert (await partitions(conn))[0] == 1
    assert await conn.fetchval("SELECT min(pos) FROM fedstac.feed") == last + 1
    assert await feed.page(conn, last, 1000) == kept
    assert await feed.resume(conn, Cursor(1, last)) == Cursor(1, last)
    with pytest.raises(CursorGone) as caught:
        await feed.resume(conn, Cursor(1, last - 1))
    assert caught.value.earliest == f"1.{last}"
    assert (await feed.head(conn)).pos == head
    assert await invariants.check(owner) == []
    action = "SELECT count(*) FROM fedstac.audit WHERE action = 'forget-events'"
    assert await conn.fetchval(action) == 1
    await audit.chain(conn)
    assert await invariants.check(owner) == []  # and the chain with that row is whole
    await writing.publish(conn, writing.titled(ITEMS[0], "another"))  # of a lineage whose events are gone
    await writing.sequence_all(conn)
    assert await invariants.check(owner) == []


@pytest.mark.parametrize("reader", ["a node", "a required sink", "notifications"])
async def test_what_somebody_has_not_got_is_kept(keen: Node, connect: Connect, owner: Connection, reader: str) -> None:
    conn = await connect()
    last = await publish(conn, owner)
    await nodes.acknowledge(conn, "north", Cursor(1, last), [])
    match reader:
        case "a node":
            await nodes.acknowledge(conn, "east", Cursor(1, last - 1), [])
        case "a required sink":
            new = sinks.NewSink(
                "hook", "https://hook.example", "cloudevents", "", required=True, private=False, after=5
            )
            await sinks.add(conn, new, actor="anna")
        case _:
            await conn.execute("UPDATE fedstac.told SET pos = 3")
    await step(keen, conn)
    assert (await partitions(conn))[0] == 0
    assert (await feed.page(conn, 0, 10))[0].pos == 1


async def test_young_events_are_kept_whoever_has_them(west: Node, connect: Connect, owner: Connection) -> None:
    conn = await connect()
    await publish(conn, owner)
    await step(west, conn)
    assert (await partitions(conn))[0] == 0
    await owner.execute("UPDATE fedstac.outbox SET at = at - interval '8 days'")
    await step(west, conn)
    assert (await partitions(conn))[0] == 2  # the one that is written to stays


async def test_a_node_that_is_behind_for_too_long_lapses_and_is_back_when_it_acknowledges(
    keen: Node, connect: Connect, owner: Connection
) -> None:
    conn = await connect()
    last = await publish(conn, owner)
    await nodes.acknowledge(conn, "east", Cursor(1, 4), [])
    await step(keen, conn)
    assert (await partitions(conn))[0] == 0
    await owner.execute("UPDATE fedstac.outbox SET at = at - interval '31 days'")
    await step(keen, conn)
    assert (await partitions(conn))[0] == 2
    alerts = await conn.fetch("SELECT kind, place, what FROM fedstac.trouble")
    assert [tuple(row) for row in alerts] == [("node", "east", "it has lapsed")]
    await step(keen, conn)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.trouble") == 1  # told once
    await nodes.acknowledge(conn, "east", await feed.head(conn), [])
    await step(keen, conn)
    assert [reader.name for reader in await retention.readers(conn)] == ["east", retention.NOTIFICATIONS]
    assert last > 4


async def test_writers_and_readers_do_not_wait_for_a_partition_that_somebody_reads(
    keen: Node, connect: Connect, owner: Connection
) -> None:
    conn, reader = await connect(), await connect()
    last = await publish(conn, owner)
    retries = Backoff(least=0.5, most=8.0)
    async with reader.transaction():  # as a dump does, for hours
        await reader.fetchval("SELECT count(*) FROM fedstac.outbox")
        pauses = [await worker.step(keen, conn, retries) for _ in range(5)]
        assert [seconds for seconds in pauses if seconds >= 0.5][:2] == [0.5, 1.0]  # it tries less and less often
        assert (await partitions(conn))[0] == 0
        dropping = asyncio.create_task(worker.step(keen, conn, retries))
        other = await connect()
        await writing.publish(other, *sample.items(4, seed=9))  # at once, or when the lock times out
        assert len(await feed.page(other, last, 1000)) > 0
        await dropping
        with pytest.raises(CursorGone):
            await feed.resume(other, Cursor(1, 0))
    await step(keen, conn)
    assert (await partitions(conn))[0] == 2


async def test_an_event_of_a_transaction_that_was_slow_is_not_dropped(
    keen: Node, connect: Connect, owner: Connection
) -> None:
    conn, slow = await connect(), await connect()
    await writing.publish(conn, *ITEMS[:10])
    await writing.sequence_all(conn)
    [slow_item] = sample.items(1, seed=5)
    await writing.prepare(slow, slow_item)
    transaction = slow.transaction()
    await transaction.start()
    await writing.publish(slow, slow_item)
    await fill_partition(owner, 1)
    await writing.publish(conn, *ITEMS[20:40])
    await outbox.extend(conn)
    await writing.sequence_all(conn)
    await conn.execute("UPDATE fedstac.told SET pos = (SELECT pos FROM fedstac.feed_state)")
    before = (await feed.head(conn)).pos
    for _ in range(5):
        await worker.step(keen, conn, Backoff())
    assert (await partitions(conn))[0] == 0
    await transaction.commit()
    await writing.sequence_all(conn)
    late = await feed.page(conn, before, 10)
    assert late
    for _ in range(5):  # the notifications have not got it
        await worker.step(keen, conn, Backoff())
    assert await feed.page(conn, before, 10) == late
    await conn.execute("UPDATE fedstac.told SET pos = (SELECT pos FROM fedstac.feed_state)")
    await writing.publish(conn, *ITEMS[40:])
    await writing.sequence_all(conn)
    await step(keen, conn)
    assert (await partitions(conn))[0] == 1
    assert (await feed.resume(conn, Cursor(1, before + len(late)))).pos == before + len(late)
    assert await invariants.check(owner) == []


async def test_a_process_may_die_after_every_step(keen: Node, connect: Connect, owner: Connection) -> None:
    conn = await connect()
    await publish(conn, owner)
    looks = 0
    while (await partitions(conn))[0] < 2:
        await worker.step(keen, await connect(), Backoff())  # each step in a session of its own
        assert await invariants.check(owner) == []
        looks += 1
        assert looks < 20
    assert looks >= 4


RETAIN = """
import asyncio, sys
from fedstac import bootstrap
from fedstac.runtime.wakeup import Backoff
from fedstac.settings import Settings
from fedstac.workers import retention
from tests.support import failpoints

async def retain():
    settings = Settings(_env_file=None, node="west", dsn=sys.argv[1], keep_events_days=0)
    async with bootstrap.node(settings) as node, node.pool.acquire() as conn:
        while await retention.step(node, conn, Backoff()) == retention.STEP_SECONDS:
            pass

failpoints.install(sys.argv[2])
asyncio.run(retain())
"""


async def test_a_process_that_is_killed_in_a_step_leaves_the_log_sound_and_the_next_one_goes_on(
    keen: Node, connect: Connect, owner: Connection
) -> None:
    conn = await connect()
    await publish(conn, owner)
    for name in ("forgotten", "swept", "dropped"):
        child = await asyncio.create_subprocess_exec(
            *shared().program, "-c", RETAIN, keen.settings.dsn, f"retention.{name}=kill", cwd=REPOSITORY
        )
        assert await child.wait() == -signal.SIGKILL, name
        assert await invariants.check(owner) == []
    assert (await partitions(conn))[0] == 1  # what was dropped when it was killed stays dropped
    await step(keen, conn)
    assert (await partitions(conn))[0] == 2
    assert await invariants.check(owner) == []


async def test_a_reader_that_was_overtaken_is_told_so_and_reads_over_no_hole(
    keen: Node, connect: Connect, owner: Connection
) -> None:
    conn = await connect()
    await publish(conn, owner)
    after = await feed.resume(conn, Cursor(1, 3))
    await step(keen, await connect())
    for event_filter in (EventFilter(), EventFilter(collection="CMIP6"), EventFilter(share=0, shares=2)):
        with pytest.raises(CursorGone):
            await feed.look(conn, after.pos, 10, event_filter)


async def test_a_request_whose_events_are_gone_is_still_known_as_announced(
    keen: Node, connect: Connect, owner: Connection
) -> None:
    conn = await connect()
    request = await writing.submit(conn, *ITEMS[:3])
    last = await publish(conn, owner)
    await conn.execute(
        """UPDATE fedstac.request_item i SET status = 'done', outcome = 'new', document = NULL, finished = now(),
                  last_event = (SELECT max(id) FROM fedstac.outbox o WHERE o.dataset = i.dataset)
           WHERE request = $1""",
        request.id,
    )
    await nodes.acknowledge(conn, "east", Cursor(1, last), [])
    before = await requests.summary(conn, request.id)
    await step(keen, conn)
    after = await requests.summary(conn, request.id)
    assert before is not None
    assert after is not None
    assert before.pos is not None
    assert after.pos == last >= before.pos
    [(node, since)] = await requests.visible(conn, after.pos)
    assert (node, since is not None) == ("east", True)


async def test_a_restored_database_announces_nothing_anew_that_was_forgotten(
    keen: Node, connect: Connect, owner: Connection
) -> None:
    conn = await connect()
    await publish(conn, owner)
    for _ in range(3):  # forgotten and swept, not dropped
        await worker.step(keen, conn, Backoff())
    head = await feed.head(conn)
    await conn.execute("UPDATE fedstac.feed_state SET system_id = '1'")
    epoch = await feed.fork_if_restored(conn)
    assert epoch is not None
    assert await feed.head(conn) == Cursor(epoch, head.pos)
    assert await invariants.check(owner) == []


async def test_old_acknowledgements_go_with_the_log(keen: Node, connect: Connect, owner: Connection) -> None:
    conn = await connect()
    last = await publish(conn, owner)
    for node in ("east", "north"):
        for through in (1, 5, last):
            await nodes.acknowledge(conn, node, Cursor(1, through), [])
    await step(keen, conn)
    rows = await conn.fetch("SELECT node, through FROM fedstac.node_status ORDER BY 1, 2")
    assert [tuple(row) for row in rows] == [("east", last), ("north", last)]


async def test_acknowledgements_of_an_epoch_that_ended_go_with_the_log(
    keen: Node, connect: Connect, owner: Connection
) -> None:
    conn = await connect()
    last = await publish(conn, owner)
    for place in (Cursor(1, 1), Cursor(1, 5), Cursor(2, last)):
        await nodes.acknowledge(conn, "east", place, [])
    await step(keen, conn)
    rows = await conn.fetch("SELECT epoch, through FROM fedstac.node_status")
    assert [tuple(row) for row in rows] == [(2, last)]
