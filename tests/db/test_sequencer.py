"""The sequencer: nothing lost, no lineage misordered, positions dense; and a new epoch where the past was restored."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest

from fedstac import publication
from fedstac.db import feed, invariants, metrics
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.errors import CursorGone
from fedstac.domain.events import Cursor, DatasetEvent
from tests.db import writing
from tests.db.writing import Connect

SEED = 4711
[ITEM] = sample.items(1)


async def positions(conn: Connection) -> list[int]:
    """Return the outbox ids in the order of the feed, after looking that positions are dense."""
    rows = await conn.fetch("SELECT pos, id FROM fedstac.feed ORDER BY pos")
    assert [row["pos"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["id"] for row in rows]


async def sequence_badly(conn: Connection, done: asyncio.Event) -> None:
    """Sequence without knowing of another sequencer: what is lost to it is tried again."""
    while not done.is_set():
        try:
            await feed.sequence(conn)
        except (asyncpg.SerializationError, asyncpg.UniqueViolationError):
            continue


class Undone(Exception):
    """Rolls back."""


async def write_and_roll_back(conn: Connection, seed: int) -> int:
    """Publish versions of shared lineages; a third of it is rolled back. Return the number of committed events."""
    chance = random.Random(f"{SEED}/{seed}")
    written = 0
    for _ in range(12):
        items = chance.sample(list(sample.items(60, versions=4)), 12)
        try:
            async with conn.transaction():
                receipts = await writing.publish(conn, *items, writing.titled(items[0], str(chance.random())))
                if chance.random() < 0.35:
                    raise Undone
        except Undone:
            continue
        written += sum(len(receipt.changes) for receipt in receipts)
    return written


async def test_two_sequencers_at_once_lose_and_misorder_nothing(connect: Connect) -> None:
    print(f"seed {SEED}")
    conn, done = await connect(), asyncio.Event()
    both = [asyncio.create_task(sequence_badly(await connect(), done)) for _ in range(2)]
    writers = [await connect() for _ in range(4)]
    written = sum(await asyncio.gather(*(write_and_roll_back(writer, n) for n, writer in enumerate(writers))))
    done.set()
    await asyncio.gather(*both)
    await writing.sequence_all(conn)
    log = await writing.whole_feed(conn)
    assert sum(isinstance(event, DatasetEvent) for event in log) == written
    assert await invariants.check(conn) == []


async def test_events_without_a_position_are_counted_with_their_age(connect: Connect) -> None:
    conn = await connect()
    await writing.sequence_all(conn)
    await writing.publish(conn, *sample.items(3, versions=1))
    waiting = (await metrics.read(conn)).outbox
    await writing.sequence_all(conn)
    after = (await metrics.read(conn)).outbox
    assert (waiting.unsequenced, after.unsequenced, after.unsequenced_seconds) == (3, 0, 0.0)
    assert waiting.unsequenced_seconds > 0


async def test_a_transaction_that_stays_open_holds_up_nothing_and_loses_nothing(connect: Connect) -> None:
    conn, slow = await connect(), await connect()
    later = list(sample.items(30, seed=2, versions=1))
    await writing.prepare(slow, ITEM)
    async with slow.transaction():
        await writing.publish(slow, ITEM)
        drawn = await slow.fetchval("SELECT max(id) FROM fedstac.outbox")
        for item in later:
            await writing.publish(conn, item)
            await feed.sequence(conn)
        before = await positions(conn)
        assert len(before) == len(later) + 2  # and two collections
        assert drawn not in before
        assert max(before) > drawn
    await feed.sequence(conn)
    assert await positions(conn) == [*before, drawn]
    assert await feed.sequence(conn) == 0
    assert await invariants.check(conn) == []


async def test_a_lineage_stays_in_order_while_another_transaction_is_open(connect: Connect) -> None:
    conn, slow, watcher = await connect(), await connect(), await connect()
    async with slow.transaction():
        await writing.publish(slow, writing.version(ITEM, 20200101))
        waiting = asyncio.create_task(writing.publish(conn, writing.version(ITEM, 20210101)))
        await writing.is_blocked(watcher, conn, slow)
        await writing.sequence_all(watcher)
    await waiting
    await writing.sequence_all(watcher)
    rows = await watcher.fetch(
        "SELECT o.seq FROM fedstac.feed f JOIN fedstac.outbox o USING (id) WHERE dataset IS NOT NULL ORDER BY f.pos"
    )
    assert [row["seq"] for row in rows] == [1, 2, 3]
    assert await invariants.check(watcher) == []


async def test_a_sequencer_killed_in_the_middle_is_gone_on_with(connect: Connect) -> None:
    first, second, holder = await connect(), await connect(), await connect()
    assert await feed.lead(first)
    assert not await feed.lead(second)
    await writing.publish(holder, *sample.items(20, versions=1))
    async with holder.transaction():
        await holder.execute("SELECT 1 FROM fedstac.feed_state FOR UPDATE")
        killed = asyncio.create_task(feed.sequence(first))
        await writing.is_blocked(second, first, holder)
        await second.execute("SELECT pg_terminate_backend($1)", first.get_server_pid())
        with pytest.raises((asyncpg.AdminShutdownError, asyncpg.InterfaceError, ConnectionError)):
            await killed
    assert await positions(second) == []
    await writing.until(second, f"SELECT pg_try_advisory_lock({feed.SEQUENCER_LOCK})")
    assert await feed.sequence(second) == 22
    assert await invariants.check(second) == []


async def test_nothing_new_writes_nothing(connect: Connect) -> None:
    conn = await connect()
    await writing.sequence_all(conn)
    state = await conn.fetchrow("SELECT xmin, ctid, * FROM fedstac.feed_state")
    assert await feed.sequence(conn) == 0
    assert await conn.fetchrow("SELECT xmin, ctid, * FROM fedstac.feed_state") == state


# A new epoch

RESTORED = {
    "another cluster": "UPDATE fedstac.feed_state SET system_id = 'another'",
    "another timeline": "UPDATE fedstac.feed_state SET timeline = '0000FFFF'",
    "a snapshot ahead of now": "UPDATE fedstac.feed_state SET snap = '999999999:999999999:'",
}


async def test_a_database_that_goes_on_keeps_its_epoch(connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, ITEM)
    await writing.sequence_all(conn)
    assert await feed.fork_if_restored(conn) is None
    assert await feed.head(conn) == Cursor(1, 3)


@pytest.mark.parametrize("sign", RESTORED)
async def test_a_restored_database_starts_an_epoch_and_loses_nothing(connect: Connect, sign: str) -> None:
    conn = await connect()
    [old, *some] = sample.items(6, seed=8, versions=1)
    await writing.publish(conn, old)
    await writing.sequence_all(conn)
    before = await positions(conn)
    fork = len(before)
    await writing.publish(conn, *some)  # without positions when the backup was taken
    await conn.execute(RESTORED[sign])

    epoch = await feed.fork_if_restored(conn)
    assert epoch is not None
    after = await positions(conn)
    assert after[:fork] == before
    assert after[fork:] == sorted(after[fork:])
    assert len(after) == fork + len(some)
    assert await feed.head(conn) == Cursor(epoch, len(after))
    rows = await conn.fetch("SELECT n, forked_at_pos FROM fedstac.epoch ORDER BY n")
    assert [tuple(row) for row in rows] == [(1, 0), (epoch, fork)]
    assert await feed.sequence(conn) == 0
    assert await feed.fork_if_restored(conn) is None

    [receipt] = await writing.publish(conn, writing.version(old, 20400101))
    assert {change.after.epoch for change in receipt.changes} == {epoch}
    assert await feed.sequence(conn) == 2
    assert await invariants.check(conn) == []


async def test_a_cursor_up_to_the_fork_goes_on_and_one_beyond_is_gone(connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, *sample.items(4))
    await writing.sequence_all(conn)
    fork = (await feed.head(conn)).pos
    await writing.publish(conn, *sample.items(4, seed=3))
    await conn.execute(RESTORED["another cluster"])
    epoch = await feed.fork_if_restored(conn)
    assert epoch is not None
    head = await feed.head(conn)
    for pos in (0, 1, fork):
        assert await feed.resume(conn, Cursor(1, pos)) == Cursor(epoch, pos)
    for pos in (fork, head.pos):
        assert await feed.resume(conn, Cursor(epoch, pos)) == Cursor(epoch, pos)
    for gone in (Cursor(1, fork + 1), Cursor(1, head.pos), Cursor(epoch, head.pos + 1), Cursor(epoch + 1, 1)):
        with pytest.raises(CursorGone):
            await feed.resume(conn, gone)


async def test_a_second_fork_counts_for_cursors_of_the_first_epoch(connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, *sample.items(4))
    await writing.sequence_all(conn)
    for n in (1, 2):
        await conn.execute(RESTORED["another cluster"])
        assert await feed.fork_if_restored(conn) is not None
        await writing.publish(conn, *sample.items(4, seed=n))
        await writing.sequence_all(conn)
    (old, first), (new, second) = await conn.fetch("SELECT n, forked_at_pos FROM fedstac.epoch WHERE n > 1 ORDER BY n")
    assert await feed.resume(conn, Cursor(1, first)) == Cursor(new, first)
    assert await feed.resume(conn, Cursor(old, second)) == Cursor(new, second)
    for gone in (Cursor(1, first + 1), Cursor(1, second), Cursor(old, second + 1)):
        with pytest.raises(CursorGone):
            await feed.resume(conn, gone)


async def test_a_fork_waits_for_whoever_has_read_the_epoch(connect: Connect) -> None:
    """A writer that waits for a lineage has read the epoch already, and has written no event yet."""
    conn, holder, writer, watcher = [await connect() for _ in range(4)]
    await writing.publish(conn, ITEM)
    await writing.sequence_all(conn)
    await conn.execute(RESTORED["another cluster"])
    async with holder.transaction():
        await holder.execute("SELECT 1 FROM fedstac.lineage FOR UPDATE")
        writing_on = asyncio.create_task(writing.publish(writer, writing.version(ITEM, 20400101)))
        await writing.is_blocked(watcher, writer, holder)
        forking = asyncio.create_task(feed.fork_if_restored(conn))
        await writing.is_blocked(watcher, conn, writer)
    [receipt] = await writing_on
    epoch = await forking
    assert {change.after.epoch for change in receipt.changes} == {1}
    [receipt] = await writing.publish(writer, writing.version(ITEM, 20410101))
    assert {change.after.epoch for change in receipt.changes} == {epoch}
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []


async def test_a_writer_that_comes_during_the_fork_has_the_new_epoch(connect: Connect) -> None:
    conn, holder, writer, watcher = [await connect() for _ in range(4)]
    await conn.execute(RESTORED["another cluster"])
    await writing.prepare(holder, ITEM)
    async with holder.transaction():
        await publication.perform(holder, writing.RULES, writing.work(ITEM))
        forking = asyncio.create_task(feed.fork_if_restored(conn))
        await writing.is_blocked(watcher, conn, holder)
        late = asyncio.create_task(writing.publish(writer, *sample.items(1, seed=5)))
        await writing.is_blocked(watcher, writer, conn)
    epoch = await forking
    [receipt] = await late
    assert {change.after.epoch for change in receipt.changes} == {epoch}
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []


async def test_two_restores_of_one_backup_have_epochs_of_their_own(connect: Connect) -> None:
    """The database is put back to its first epoch, as a backup does that was taken before the first restore."""
    conn = await connect()
    await writing.publish(conn, ITEM)
    await writing.sequence_all(conn)
    fork = (await feed.head(conn)).pos
    await conn.execute(RESTORED["another cluster"])
    first = await feed.fork_if_restored(conn)
    assert first is not None
    await conn.execute("DELETE FROM fedstac.epoch WHERE n > 1")
    await conn.execute("UPDATE fedstac.feed_state SET epoch = 1")
    await conn.execute(RESTORED["another timeline"])
    # the clock gives the number; two restores within one second are not what this is about
    await conn.execute("SELECT pg_sleep_until(to_timestamp($1::bigint + 1))", first)
    second = await feed.fork_if_restored(conn)
    assert second is not None
    assert second > first
    for pos in (0, fork):
        assert await feed.resume(conn, Cursor(1, pos)) == Cursor(second, pos)
        with pytest.raises(CursorGone):
            await feed.resume(conn, Cursor(first, pos))


async def test_an_epoch_that_an_operator_starts_lets_no_cursor_go_on_but_the_start(connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, ITEM)
    await writing.sequence_all(conn)
    head = await feed.head(conn)
    epoch = await feed.start_epoch(conn)
    assert await feed.head(conn) == Cursor(epoch, head.pos)
    assert await feed.resume(conn, Cursor(0, 0)) == Cursor(epoch, 0)
    for pos in (1, head.pos):
        with pytest.raises(CursorGone):
            await feed.resume(conn, Cursor(1, pos))
    assert {entry.epoch for entry in await feed.page(conn, 0, 100)} == {epoch}
    await writing.publish(conn, *sample.items(2, seed=3))
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []
