"""The write path under concurrency: nothing lost, nothing blocked, one latest, search equal to the fold of the feed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from fedstac import applying, bootstrap, publication
from fedstac.bootstrap import Node
from fedstac.db import collections, feed, invariants, nodes, queue, requests
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain import events
from fedstac.domain.events import CollectionEvent, Cursor, DatasetEvent, Event
from fedstac.domain.model import Change, Draft, Outcome, State
from fedstac.domain.visibility import Visibility
from fedstac.publication import ClaimLost
from fedstac.settings import Settings
from fedstac.workers import publisher
from tests.db import writing
from tests.db.writing import Connect
from tests.support.forking import shared
from tests.support.waiting import PATIENCE

SEED = 20260
[ITEM] = sample.items(1)
[OTHER] = sample.items(1, seed=9)


async def test_eight_writers_over_the_same_lineages_lose_nothing(west: Node, dsn: str, connect: Connect) -> None:
    seed, batches = SEED, 2
    print(f"seed {seed}")
    conn = await connect()
    before = await deadlocks(conn)
    done = asyncio.Event()
    sequencing = asyncio.create_task(sequence_until(done, await connect()))
    elsewhere = [
        await asyncio.create_subprocess_exec(
            *shared().program,
            "-m",
            "tests.db.writing",
            dsn,
            str(seed),
            str(n),
            str(batches),
            stdout=asyncio.subprocess.PIPE,
        )
        for n in (6, 7)
    ]
    receipts = await asyncio.gather(*(writing.write(dsn, seed, n, batches) for n in range(6)))
    outputs = [(await process.communicate())[0].split() for process in elsewhere]
    assert [process.returncode for process in elsewhere] == [0, 0]
    done.set()
    await sequencing
    await writing.sequence_all(conn)

    changes = sum(len(receipt.changes) for some in receipts for receipt in some) + sum(
        int(words[1]) for words in outputs
    )
    log = await writing.whole_feed(conn)
    assert changes == sum(isinstance(event, DatasetEvent) for event in log)
    outcomes = {receipt.outcome for some in receipts for receipt in some}
    assert outcomes == {Outcome.NEW, Outcome.NEWER, Outcome.OLDER, Outcome.UPDATED, Outcome.IDENTICAL}
    folded = writing.fold(log)
    assert await writing.stored(conn) == folded
    assert await writing.searched(conn) == {name: latest for name, (_, latest) in folded.items()}
    assert await invariants.check(conn) == []
    assert await deadlocks(conn) == before


async def deadlocks(conn: Connection) -> int:
    return int(await conn.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))


async def sequence_until(done: asyncio.Event, conn: Connection) -> None:
    while not done.is_set():
        await feed.sequence(conn)
        await asyncio.sleep(0.01)


async def test_footprints_of_every_collection_have_a_coarse_histogram(west: Node, connect: Connect) -> None:
    conn = await connect()
    targets = await conn.fetch(
        """SELECT c.id, a.attstattarget AS target FROM pgstac.collections c
           JOIN pg_attribute a ON a.attrelid = to_regclass('pgstac._items_' || c.key) AND a.attname = 'geometry'"""
    )
    assert {row["id"]: row["target"] for row in targets} == dict.fromkeys((row["id"] for row in targets), 10)
    assert targets


@pytest.mark.parametrize(
    "items",
    [[writing.version(ITEM, 20300101)], [OTHER], [writing.plain(1)]],
    ids=["a known lineage", "a new lineage", "another collection"],
)
async def test_an_open_transaction_holds_up_its_own_lineages_only(
    west: Node, connect: Connect, items: list[writing.Item]
) -> None:
    first, second, third, watcher = [await connect() for _ in range(4)]
    [item] = sample.items(1, seed=5)
    await writing.publish(first, item, ITEM)
    async with first.transaction():
        await writing.publish(first, writing.version(item, 20310101))
        [receipt] = await asyncio.wait_for(writing.publish(second, *items), PATIENCE)
        assert receipt.outcome in (Outcome.NEW, Outcome.NEWER)
        same = asyncio.create_task(writing.publish(third, writing.version(item, 20320101)))
        await writing.is_blocked(watcher, third, first)
        assert not await watcher.fetchval("SELECT pg_blocking_pids($1) <> '{}'", second.get_server_pid())
    [last] = await asyncio.wait_for(same, PATIENCE)
    assert [change.event_type for change in last.changes] == [events.SUPERSEDED, events.PUBLISHED]
    await writing.sequence_all(watcher)
    assert await invariants.check(watcher) == []


async def test_two_versions_in_one_batch_fold(west: Node, connect: Connect) -> None:
    conn = await connect()
    old, new = writing.version(ITEM, 20200101), writing.version(ITEM, 20210101)
    receipts = await writing.publish(conn, old, new, writing.titled(old, "later"), new)
    assert [receipt.outcome for receipt in receipts] == [
        Outcome.NEW, Outcome.NEWER, Outcome.UPDATED, Outcome.IDENTICAL,
    ]  # fmt: skip
    rows = await conn.fetch("SELECT seq, type, dataset FROM fedstac.outbox WHERE dataset IS NOT NULL ORDER BY id")
    assert [tuple(row) for row in rows] == [
        (1, events.PUBLISHED, old["id"]),
        (2, events.SUPERSEDED, old["id"]),
        (3, events.PUBLISHED, new["id"]),
        (4, events.UPDATED, old["id"]),
    ]
    assert await writing.searched(conn) == {old["id"]: False, new["id"]: True}
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []


def with_times(item: writing.Item, start: str) -> Draft:
    good = writing.draft(item)
    return replace(good, search=replace(good.search, start=start))


POISON = {
    "no time": with_times(ITEM, "garbage"),
    "a time out of range": with_times(ITEM, "294277-01-01T00:00:00Z"),
    "NUL in a property": replace(
        writing.draft(ITEM), search=replace(writing.draft(ITEM).search, properties='{"a":"\\u0000"}')
    ),
    "NUL in the text": replace(writing.draft(ITEM), text='{"links":[],"a":"\0","properties":{}}'),
    "a lone surrogate": replace(writing.draft(ITEM), text='{"links":[],"a":"\ud800","properties":{}}'),
}


async def test_what_the_database_refuses_is_found_and_the_rest_is_published(west: Node, connect: Connect) -> None:
    conn, poison = await connect(), POISON["no time"]
    later = writing.version(ITEM, 20400101)  # of the same lineage, after the poison
    items = [*sample.items(48, seed=3), later]
    request = await writing.submit(conn, *items[:30], ITEM, *items[30:])
    queued = await everything_queued(conn)
    work = writing.work(*items[:30], poison, *items[30:])
    work = [replace(entry, item=one.id, request=one.request) for entry, one in zip(work, queued, strict=True)]
    receipts = await publication.perform(conn, writing.RULES, work)
    assert len(receipts) == 50
    assert [n for n, receipt in enumerate(receipts) if receipt.outcome is Outcome.REJECTED] == [30]
    [finding] = receipts[30].findings
    assert (finding.rule, "SQLSTATE" in finding.message) == ("database", True)
    rows = await conn.fetch("SELECT n, status, problem, findings FROM fedstac.request_item ORDER BY n")
    assert [row["n"] for row in rows if row["status"] == "rejected"] == [30]
    assert json.loads(rows[30]["findings"])[0]["rule"] == "database"
    assert await conn.fetchval("SELECT bool_and(status = 'done') FROM fedstac.request_item WHERE n <> 30")
    performed = await conn.fetch(
        "SELECT dataset FROM fedstac.outbox WHERE type = $1 ORDER BY id", events.PUBLISHED
    )  # fmt: skip
    assert [row["dataset"] for row in performed] == [item["id"] for item in items]
    assert await conn.fetchval(
        "SELECT count(*) = 1 FROM fedstac.audit WHERE outcome = 'rejected' AND request = $1", request.id
    )
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []


async def test_every_kind_of_poison_is_found(west: Node, connect: Connect) -> None:
    conn, good = await connect(), list(sample.items(len(POISON), seed=3))
    pairs = [one for pair in zip(good, POISON.values(), strict=True) for one in pair]
    receipts = await writing.publish(conn, *pairs)
    assert [receipt.outcome is Outcome.REJECTED for receipt in receipts] == [False, True] * len(POISON)
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []


async def everything_queued(conn: Connection) -> list[queue.QueuedItem]:
    everything = queue.Claim(uuid4(), tuple(range(queue.SHARDS)), 0)
    return await queue.read(conn, [one.id for one in await queue.waiting(conn, everything, 10_000)])


async def test_a_claim_lost_in_between_writes_nothing(west: Node, connect: Connect) -> None:
    conn, thief = await connect(), await connect()
    await writing.submit(conn, ITEM)
    mine = await queue.claim(conn, "slow", uuid4(), 0)
    assert mine is not None
    [item] = await queue.read(conn, [one.id for one in await queue.waiting(conn, mine, 10)])
    theirs = await queue.claim(thief, "quick", uuid4(), 3600)
    assert theirs is not None
    assert (theirs.shards, theirs.deaths) == (mine.shards, 1)
    work = [replace(writing.work(ITEM)[0], item=item.id, request=item.request)]
    with pytest.raises(ClaimLost):
        await publication.perform(conn, writing.RULES, work, claim=mine)
    for table in ("record", "audit WHERE dataset <> collection", "outbox WHERE dataset IS NOT NULL", "lineage"):
        assert await conn.fetchval(f"SELECT count(*) FROM fedstac.{table}") == 0, table
    assert await conn.fetchval("SELECT status FROM fedstac.request_item") == "queued"
    assert not await queue.renew(conn, mine, 3600)
    await queue.release(conn, mine)  # of somebody else's claim: nothing
    [receipt] = await publication.perform(thief, writing.RULES, work, claim=theirs)
    assert receipt.outcome is Outcome.NEW
    assert await queue.waiting(thief, theirs, 10) == []


async def test_a_claim_lost_while_halving_writes_no_more(west: Node, connect: Connect) -> None:
    conn, thief = await connect(), await connect()
    await writing.submit(conn, *sample.items(1), ITEM)
    mine = queue.Claim(uuid4(), tuple(range(queue.SHARDS)), 0)
    await thief.execute("UPDATE fedstac.shard SET token = $1", mine.token)
    work = [
        replace(entry, item=one.id, request=one.request)
        for entry, one in zip(writing.work(POISON["no time"], OTHER), await everything_queued(conn), strict=True)
    ]
    async with thief.transaction():
        await thief.execute("UPDATE fedstac.shard SET token = gen_random_uuid() WHERE n = 0")
        failing = asyncio.create_task(publication.perform(conn, writing.RULES, work, claim=mine))
    with pytest.raises(ClaimLost):
        await failing
    assert await writing.stored(conn) == {}


async def test_a_claim_that_holds_is_not_taken_over(west: Node, connect: Connect) -> None:
    first, second = await connect(), await connect()
    await writing.submit(first, *sample.items(400))  # in more shards than one claim takes
    claims: list[queue.Claim] = []
    while claim := await queue.claim(first, "one", uuid4(), 3600):
        claims.append(claim)
    assert len(claims) > 1
    assert await queue.claim(second, "two", uuid4(), 3600) is None
    await queue.release(first, claims[0])
    again = await queue.claim(second, "two", uuid4(), 3600)
    assert again is not None
    assert (set(again.shards) <= set(claims[0].shards), again.deaths) == (True, 0)


async def test_two_workers_keep_the_order_of_each_lineage(west: Node, dsn: str, connect: Connect) -> None:
    conn, chance = await connect(), random.Random(SEED)
    print(f"seed {SEED}")
    names = list(sample.items(12, versions=1))
    wanted: dict[str, list[str]] = {item["id"]: [] for item in names}
    for n in range(12):
        for item in chance.sample(names, len(names)):
            await writing.submit(conn, writing.titled(item, f"title {n}"))
            wanted[item["id"]].append(f"title {n}")
    config = Settings(dsn=dsn, node="west", batch=7, _env_file=None)
    async with bootstrap.node(config) as small:
        await asyncio.gather(drain(small, "one"), drain(small, "two"))
    events_by_name: dict[str, list[str]] = {name: [] for name in wanted}
    for row in await conn.fetch("SELECT dataset, event FROM fedstac.outbox WHERE dataset IS NOT NULL ORDER BY id"):
        events_by_name[row["dataset"]].append(json.loads(row["event"])["data"]["document"]["properties"]["description"])
    assert events_by_name == wanted
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []


async def drain(node: Node, name: str) -> None:
    """Work as long as anything is queued, also while another worker holds it."""
    async with node.pool.acquire() as conn:
        while await conn.fetchval("SELECT EXISTS (SELECT 1 FROM fedstac.request_item WHERE status = 'queued')"):
            await publisher.work_once(node, conn, name)


async def test_roles_are_kept_as_they_were(west: Node, connect: Connect) -> None:
    conn = await connect()
    request = replace(
        requests.NewRequest(uuid4(), "CMIP6", "publish", "eve", (), None, "test", None, []),
        roles=("publisher:two words admin", "node:x"),
    )  # fmt: skip
    await requests.create(conn, [request])
    assert await conn.fetchval("SELECT roles FROM fedstac.request") == ["publisher:two words admin", "node:x"]


# What consumers do with the feed (I10, C1)


@pytest.fixture
async def log(west: Node, connect: Connect) -> list[Event]:
    """The feed of a node: 40 lineages, versions in disorder, metadata changed in between."""
    conn, chance = await connect(), random.Random(SEED)
    items = list(sample.items(90, versions=4, seed=SEED))
    for _ in range(8):
        some = chance.sample(items, 40)
        await writing.publish(conn, *(writing.titled(i, f"title {chance.randrange(9)}") for i in some), *some[:5])
    await writing.sequence_all(conn)
    return await writing.whole_feed(conn)


@pytest.fixture
async def east(make_database: Callable[[], str]) -> AsyncIterator[Connection]:
    """The database of an index node that follows west."""
    config = Settings(dsn=make_database(), node="east", _env_file=None)
    async with bootstrap.node(config) as running, running.pool.acquire() as conn:
        yield conn


async def deliver(conn: Connection, page: list[Event]) -> applying.PageResult:
    async with conn.transaction():
        return await applying.apply(conn, page)


async def test_a_replay_is_equal_and_a_second_one_changes_nothing(
    log: list[Event], east: Connection, connect: Connect
) -> None:
    origin = await connect()
    for start in range(0, len(log), 100):
        applied = await deliver(east, log[start : start + 100])
        assert (applied.ignored_count, applied.foreign) == (0, ())
    await nodes.move(east, nodes.INDEX, "west", Cursor(1, len(log)))
    assert await writing.stored(east) == await writing.stored(origin)
    assert await feed.digests(east, "west") == await feed.digests(origin, "west")
    assert await invariants.check(east) == []
    again = await deliver(east, log)
    assert (again.applied_count, again.ignored_count, again.foreign) == (0, len(log), ())
    assert await invariants.check(east) == []
    assert await invariants.check(origin) == []


async def test_every_order_of_delivery_gives_the_same(log: list[Event], east: Connection, connect: Connect) -> None:
    origin = await connect()
    wanted, found = await writing.stored(origin), await writing.searched(origin)
    datasets = [event for event in log if isinstance(event, DatasetEvent)]
    await deliver(east, [event for event in log if not isinstance(event, DatasetEvent)])
    await nodes.move(east, nodes.INDEX, "west", Cursor(1, len(log)))
    for seed in range(SEED, SEED + 12):
        print(f"seed {seed}")
        chance = random.Random(seed)
        trial = east.transaction()
        await trial.start()
        for page in shuffled(datasets, chance):
            await deliver(east, page)
        assert await writing.stored(east) == wanted
        assert await writing.searched(east) == found
        if seed == SEED:
            assert await invariants.check(east) == []
        await trial.rollback()


def shuffled(log: list[DatasetEvent], chance: random.Random) -> list[list[Event]]:
    """Return all events in some order, a third of them again, cut into pages of any size."""
    some: list[Event] = [*log, *chance.sample(log, len(log) // 3)]
    chance.shuffle(some)
    pages = []
    while some:
        size = chance.choice((1, 7, 60, 300))
        pages.append(some[:size])
        some = some[size:]
    return pages


async def test_latest_is_one_after_every_single_event(log: list[Event], east: Connection) -> None:
    datasets = [event for event in log if isinstance(event, DatasetEvent)]
    chance = random.Random(SEED)
    chance.shuffle(datasets)
    await deliver(east, [event for event in log if not isinstance(event, DatasetEvent)])
    for count, event in enumerate(datasets[:150], 1):
        await deliver(east, [event])
        assert await writing.stored(east) == writing.fold(datasets[:count])


async def test_a_version_is_not_latest_again_when_the_demotion_of_a_newer_one_comes_early(
    east: Connection, west: Node, connect: Connect
) -> None:
    origin = await connect()
    for day in (20200101, 20210101, 20220101):
        await writing.publish(origin, writing.version(ITEM, day))
    await writing.sequence_all(origin)
    log = await writing.whole_feed(origin)
    collections_, [first, _, second, demoted, third] = log[:2], log[2:]
    for page in (collections_, [second], [first], [demoted]):
        assert (await deliver(east, page)).applied_count == len(page)
    assert list((await writing.searched(east)).values()) == [False, False]
    await deliver(east, [third, *log])
    assert await writing.stored(east) == await writing.stored(origin)


async def test_events_of_a_foreign_origin_are_reported(log: list[Event], east: Connection) -> None:
    await deliver(east, log)
    before = await writing.stored(east)
    event = next(event for event in log if isinstance(event, DatasetEvent))
    stolen = foreign(event, "south", seq=99)
    created = next(event for event in log if isinstance(event, CollectionEvent))
    page: list[Event] = [stolen, replace(created, origin="south", seq=99), event]
    applied = await deliver(east, page)  # a collection may have several origins, a lineage one
    assert (applied.applied_count, applied.ignored_count, applied.foreign) == (1, 1, (stolen,))
    assert await writing.stored(east) == before


def foreign(event: DatasetEvent, origin: str, *, seq: int) -> DatasetEvent:
    return replace(event, record=replace(event.record, origin=origin, seq=seq))


async def test_a_foreign_event_takes_no_lineage_but_its_own(log: list[Event], east: Connection) -> None:
    """An event of another origin at the head of a page says nothing about the lineages of the rest."""
    created, datasets = log[:2], [event for event in log if isinstance(event, DatasetEvent)]
    other = next(event for event in datasets if event.record.lineage != datasets[0].record.lineage)
    await deliver(east, list(created))
    applied = await deliver(east, [foreign(other, "south", seq=1), datasets[0]])
    assert (applied.applied_count, applied.foreign) == (2, ())
    assert await east.fetchval(
        "SELECT origin FROM fedstac.lineage WHERE key = $1", datasets[0].record.lineage
    ) == "west"  # fmt: skip


async def test_an_event_whose_collection_is_not_here_is_reported(log: list[Event], east: Connection) -> None:
    datasets = [event for event in log if isinstance(event, DatasetEvent)]
    applied = await deliver(east, list(datasets[:3]))
    assert (applied.applied_count, len(applied.foreign)) == (0, 3)


async def test_a_tombstone_stays_and_nothing_brings_the_dataset_back(log: list[Event], east: Connection) -> None:
    event = next(event for event in reversed(log) if isinstance(event, DatasetEvent))
    await deliver(east, log)
    await nodes.move(east, nodes.INDEX, "west", Cursor(1, len(log)))
    for seq, state in ((1000, State.DELETED), (1001, State.PURGED)):
        gone = replace(
            event.record, state=state, latest=False, claims_latest=False, seq=seq, document=None,
            document_digest=b"", files_digest=b"",
        )  # fmt: skip
        text = events.dataset_event(
            Change(events.PREFIX + f"dataset.{state}.v1", event.record, gone),
            uuid4(),
            events.Context("west", "x", None),
            writing.CHECKER.vocabularies.digest_of,
        )
        event_read = events.read(json.loads(events.positioned(text, Cursor(1, 9999))), writing.CMIP6)
        assert (await deliver(east, [event_read])).applied_count == 1
        assert event.record.id not in await writing.searched(east)
        assert await invariants.check(east) == []
    assert (await deliver(east, log)).applied_count == 0
    assert (await collections.totals(east, Visibility.INCLUDE))["CMIP6"] == len(await writing.searched(east))
