"""How PostgreSQL executes the product's statements among 200 000 datasets: by index, and with few pages read.

Each case calls the product's function, as the writer's role and with the settings of the product's sessions. Both kinds
of plan are tried: PostgreSQL changes from a plan for the parameters to one for any after five calls of a statement.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from fedstac.db import (
    audit,
    backlog,
    bulks,
    columns,
    conditions,
    connections,
    dead_letters,
    esgf,
    feed,
    file_marks,
    health,
    metrics,
    nodes,
    notifications,
    own_groups,
    parked,
    people,
    queue,
    records,
    requests,
    retention,
    search,
    sinks,
    subscription_events,
    subscriptions,
)
from fedstac.db.bulks import DatasetChoice
from fedstac.db.connections import Connection
from fedstac.db.esgf import WaitingPatch
from fedstac.db.feed import EventFilter
from fedstac.db.parked import ParkedEvent, SubjectPlace
from fedstac.db.queue import Claim
from fedstac.db.sinks import PartitionEnd, SinkPlace, Stretch
from fedstac.demo import embedded, sample
from fedstac.domain import filters
from fedstac.domain.bulk import BulkAction
from fedstac.domain.documents import ItemTexts
from fedstac.domain.events import Cursor
from fedstac.domain.groups import Identity
from fedstac.domain.model import Outcome
from fedstac.domain.policy import Principal
from tests.db import writing
from tests.support import large, plans
from tests.support.databases import databases
from tests.support.large import dataset_id, lineage_key, request_id

pytestmark = [pytest.mark.xdist_group("plans"), pytest.mark.long]  # one process: the database is made once

FEW = 1_100  # rows of a table that a statement may read for nothing; a count ends at 1 001
LINEAGES = {lineage_key(n): "west" for n in range(5_000, 5_100)}
DATASETS = [dataset_id(n) for n in range(10_000, 10_200)]
LAST_REQUEST = request_id(large.REQUESTS - 1)  # of which everything is queued
CLAIM = Claim(UUID(int=1), tuple(range(queue.FEW)), 0)
ITEMS = list(sample.items(50, versions=2))

Run = Callable[[Connection], Awaitable[object]]


# --- what is asked of the database


async def load(conn: Connection) -> None:
    lineages = await records.lock(conn, LINEAGES)
    await records.load(conn, lineages, DATASETS, list(lineages))


async def publish(conn: Connection) -> None:
    """Publish new datasets, the same again, and other documents of them."""
    await writing.publish(conn, *ITEMS)
    await writing.publish(conn, *ITEMS)
    await writing.publish(conn, *(writing.titled(item, "another") for item in ITEMS))


async def sequence(conn: Connection) -> None:
    """Give positions to what 50 new datasets announce, in the feed and in the audit chain."""
    assert await feed.sequence(conn)
    assert await audit.chain(conn)


async def look_for_changes(conn: Connection) -> None:
    """Ask, as before each search in memory, what was committed: nothing, and then fifty datasets."""
    before, _ = await columns.snapshot(conn)
    await columns.changes(conn, before)
    await writing.publish(conn, *(writing.titled(item, str(uuid4())) for item in ITEMS))
    await columns.changes(conn, before)


async def claim(conn: Connection) -> None:
    claimed = await queue.claim(conn, "worker", CLAIM.token, 30)
    assert claimed
    assert await queue.hold(conn, claimed)
    assert await queue.renew(conn, claimed, 30)
    waiting = await queue.waiting(conn, claimed, 200)
    assert len(waiting) == 200
    assert await queue.is_waiting(conn, lineage_key(large.DATASETS // 2 - 1))
    assert await queue.begin_attempt(conn, claimed, waiting[0].id)
    assert await queue.read(conn, [item.id for item in waiting])
    await queue.origin(conn, waiting[0].id)
    done = [queue.Result(item.id, Outcome.NEW, None, None, (), 1) for item in waiting[2:]]
    await queue.finish(conn, done)
    await queue.rest(conn, claimed, waiting[0], 1)
    await queue.release_uncounted(conn, claimed, waiting[1].id)
    await queue.release(conn, claimed)
    assert await queue.take_back(conn, LAST_REQUEST, "cancelled", "by its submitter")


async def accept(conn: Connection) -> None:
    key = requests.Key("submitter-1", "POST /collections/CMIP6/items", str(uuid4()), b"")
    items = [requests.NewItem(lineage_key(n), dataset_id(2 * n), ItemTexts("{}")) for n in range(200)]
    new = requests.NewRequest(uuid4(), "CMIP6", "publish", "submitter-1", (), None, "", None, items, key=key)
    await requests.create(conn, [new])
    singles = [
        requests.NewRequest(uuid4(), "CMIP6", "publish", "submitter-1", (), None, "", None, [item]) for item in items
    ]
    await requests.create_singles(conn, singles)
    assert await requests.under_key(conn, key)


async def follow_a_request(conn: Connection) -> None:
    for request in (request_id(17), LAST_REQUEST):
        await requests.summary(conn, request)
        await requests.results(conn, request, status="done", after=0, limit=100)
        [item async for item in requests.refused_items(conn, request)]
    await requests.visible(conn, large.ACKNOWLEDGED // 2)


async def ask_for_own_requests(conn: Connection) -> None:
    for after in (None, request_id(17 + 50 * large.SUBMITTERS)):
        assert len(await requests.of_submitter(conn, "submitter-17", after=after, limit=20)) == 20
    await requests.last_identity(conn, "submitter-17")


async def read_the_feed(conn: Connection) -> None:
    for after in (0, large.DATASETS // 2, large.DATASETS - 10):
        await feed.resume(conn, Cursor(1, after))
        assert await feed.page(conn, after, 500)


async def read_for_subscribers(conn: Connection) -> None:
    """Read pages for subscribers with what their datasets were before, and keep what one of them refuses."""
    new = subscriptions.NewSubscription(
        name="maps", owner=Principal("anna", frozenset()), delivery="pull", url=None, format="cloudevents",
        key_template="", filter="{}", batch=100, after=Cursor(1, 100),
    )  # fmt: skip
    await subscriptions.put(conn, new, actor="anna")
    for after in (0, large.DATASETS // 2, large.DATASETS - 500):
        page = (await subscription_events.look(conn, Cursor(1, after), {"CMIP6"}, 200)).events
        assert page
        assert await subscription_events.previous_events(conn, page)
        assert not (await subscription_events.held_back(conn, "maps", page)).positions
    await subscription_events.postpone(
        conn, "maps", [subscription_events.Postponement(event, "full", 0) for event in page]
    )
    due = await subscription_events.due(conn, "maps", 100)
    assert await subscription_events.events_at(conn, [each.pos for each in due])
    await subscription_events.bury_forgotten(conn, "maps")
    assert (await subscription_events.missed_counts(conn, ["maps"]))["maps"].waiting == len(page)
    await subscription_events.place_before(conn, datetime(2026, 1, 1, tzinfo=UTC))


async def look_for_few_events(conn: Connection) -> None:
    """Look for what a filter takes: a share, a collection. Of what it does not take, SCANNED rows are read at most."""
    for after in (0, large.DATASETS // 2, large.DATASETS - 1_000):
        assert (await feed.look(conn, after, 100, EventFilter(share=1, shares=8))).entries
        assert (await feed.look(conn, after, 100, EventFilter(collection="CMIP6"))).entries


async def look_what_can_go(conn: Connection) -> None:
    """Look for whom the log is kept, what is old, and what waits for a sink."""
    new = sinks.NewSink("hook", "https://sink.example", "cloudevents", "", required=True, private=False, after=100)
    await sinks.add(conn, new, actor="anna")
    assert await retention.oldest_partition(conn, 7) is None
    await retention.lapse(conn, 30)
    await retention.readers(conn)
    await backlog.read(conn)
    await retention.sweep_acknowledgements(conn)


async def relay(conn: Connection) -> None:
    """Read pages for a sink, what it gets once more, and its dead letters; note how far it has come."""
    new = sinks.NewSink("archive", "https://sink.example", "cloudevents", "", required=True, private=False, after=100)
    sink = await sinks.add(conn, new, actor="anna")
    for after in (0, large.DATASETS // 2, large.DATASETS - 10):
        events = await sinks.events_after(conn, after)
    place = SinkPlace(Cursor(1, 200), 200, "log", {"": PartitionEnd(100, Cursor(1, 200))}, 100)
    assert await sinks.move(conn, sink, place) == sink.version
    stretches = [Stretch(n * 100, n * 100 + 2) for n in range(300)]
    await sinks.refill(conn, "archive", stretches, actor="anna")
    due = await sinks.next_resends(conn, "archive")
    assert len(await sinks.events_in(conn, due)) == 600
    await sinks.shorten(conn, "archive", 1_000)
    for event in events:
        await dead_letters.keep(conn, "archive", event, reason="too large", attempts=3)
    assert await dead_letters.positions(conn, "archive", large.DATASETS - 10, large.DATASETS)
    letters = await dead_letters.every(conn, "archive", 100)
    await dead_letters.redrive(conn, [letter.id for letter in letters], actor="anna")
    assert await dead_letters.next_redrives(conn, "archive", 100)
    assert await sinks.lowest_required(conn) is not None
    await sinks.lapse(conn, 30)


async def take_a_snapshot(conn: Connection) -> None:
    for after in (("", ""), ("CMIP6", dataset_id(100_000))):
        assert len(await feed.snapshot_page(conn, "west", after, 500)) == 500


async def consume(conn: Connection) -> None:
    """Move the cursor of a consumer, and set aside what it cannot apply."""
    await nodes.progress(conn, "index", "south")
    await nodes.move(conn, "index", "south", Cursor(1, 17))
    broken = [ParkedEvent(f"new-{n}", f"s{n}", 1, 2, "unknown", "{}") for n in range(990, 1_010)]
    await parked.park(conn, "index", "south", 6_000, broken)
    await parked.unpark(conn, "index", "south", [SubjectPlace(f"s{n}", 1, 3) for n in range(100)])
    assert await parked.exceptions(conn, "index", "south")
    assert not await parked.requeued_events(conn, "index", "south")


async def follow_a_topic(conn: Connection) -> None:
    """Take a page of a topic in ESGF's format: what came already, what waits, what is kept of it."""
    repeats = {hashlib.md5(str(n).encode()).hexdigest(): f"e{n}" for n in range(50_000, 50_200)}
    new = {f"new {n}": 100_000 + n for n in range(500)}
    assert len(await esgf.find_repeats(conn, "index", "esgf", {**repeats, **dict.fromkeys(new, "e")})) == 200
    subjects = [f"s{n}" for n in range(200)]
    assert len(await esgf.waiting(conn, "index", "esgf", subjects)) == 400
    await esgf.remember(conn, "index", "esgf", new)
    await esgf.wait(conn, "index", "esgf", [WaitingPatch(f"s{n}", f"new {n}", 1, "{}") for n in range(100)])
    await esgf.end_waiting(conn, "index", "esgf", subjects)


async def acknowledge(conn: Connection) -> None:
    await nodes.acknowledge(conn, "east", Cursor(1, large.ACKNOWLEDGED + 1), [])
    await nodes.acknowledge(conn, "east", Cursor(1, 17), [])
    assert len(await nodes.statuses(conn)) == 3


async def identify(conn: Connection) -> None:
    await nodes.principal(conn, "17")
    nobody: frozenset[str] = frozenset()
    await people.pseudonym(conn, Identity("https://login.example", "p17", "", None, "", nobody, (), nobody))
    await own_groups.memberships(conn, ["person:17"])


async def look_at_health(conn: Connection) -> None:
    await health.parts(conn)


async def read_the_figures(conn: Connection) -> None:
    """Read the numbers of the whole node, of which 100 000 waiting items are counted."""
    figures = await metrics.read(conn)
    assert figures.queued
    assert figures.outbox.partitions_ahead


async def notify(conn: Connection) -> None:
    """Look for events, failed items and requests that became final."""
    destination, _ = await notifications.register(
        conn, "submitter-17", "https://a.example", ["dataset"], confirmed=True
    )
    await notifications.wish(conn, request_id(17), destination.id)
    await conn.execute("UPDATE fedstac.told SET pos = pos - 500")
    await notifications.gather(conn, 0)
    await notifications.take(conn, 20, lease=60, per_hour=20)


async def tell_who_changed(conn: Connection) -> None:
    lineage = await records.peek(conn, lineage_key(5_000), "west")
    loaded = await records.load(conn, {lineage.key: lineage}, [])
    stored = list(loaded[lineage.key].records.values())
    await audit.last_changes(conn, stored)


async def read_the_audit_log(conn: Connection) -> None:
    """Read the newest rows, and those of today."""
    assert len([row async for row in audit.rows(conn, audit.RowFilter(limit=100))]) == 100
    assert await audit.at(conn, 1_000)


async def compare_files(conn: Connection) -> None:
    assert len(await file_marks.holders(conn, range(100))) == 100
    await records.states(conn, [("CMIP6", id) for id in DATASETS])
    await records.stored_ids(conn, "CMIP6", DATASETS)


async def get_an_item(conn: Connection) -> None:
    for number in (10_000, 10_001, 500):
        assert await search.item(conn, "CMIP6", dataset_id(number))


def page(question: dict[str, object], *, after: bool = False) -> Run:
    """Return a page of ten in the order that a search has by itself, and how many datasets match."""
    keys = search.order([("datetime", True)])

    async def run(conn: Connection) -> None:
        where = conditions.where(question)
        first = await search.page(conn, where, keys, 10, None)
        assert first.items
        if after:
            assert (await search.page(conn, where, keys, 10, first.after)).items
        await search.matched(conn, where, 1_000)

    return run


def choose(action: BulkAction, ids: list[str] | None = None, **question: object) -> Run:
    """Count what a change of many datasets chooses, by ids or by a filter."""
    choice = DatasetChoice(action, ids, question, {})

    async def run(conn: Connection) -> None:
        await bulks.expect(conn, choice, "west")
        groups = await bulks.groups_of(conn, choice, "west")
        assert sum(group.count for group in groups) > 50

    return run


# What each may read, in pages of 8 kB: several times what it takes. Whoever reads a table from end to end reads
# thousands.
CASES: dict[str, tuple[Run, int]] = {
    "lock and load 100 lineages": (load, 3_000),
    "publish 50 datasets": (publish, 5_000),
    "claim": (claim, 8_000),
    "accept": (accept, 6_000),
    "a look for changes": (look_for_changes, 8_000),
    "a request": (follow_a_request, 200),
    "own requests": (ask_for_own_requests, 500),
    "feed": (read_the_feed, 5_000),
    "retention": (look_what_can_go, 3_000),
    "relay": (relay, 6_000),
    "subscriptions": (read_for_subscribers, 30_000),
    "feed, filtered": (look_for_few_events, 60_000),
    "snapshot": (take_a_snapshot, 3_000),
    "consume": (consume, 1_000),
    "follow a topic of ESGF": (follow_a_topic, 6_000),
    "acknowledge": (acknowledge, 200),
    "identify": (identify, 100),
    "health": (look_at_health, 500),
    "metrics": (read_the_figures, 5_000),
    "notify": (notify, 5_000),
    "last changes": (tell_who_changed, 1_000),
    "audit": (read_the_audit_log, 1_000),
    "files": (compare_files, 2_000),
    "item": (get_an_item, 100),
    "a change of many: ids": (choose(BulkAction.MARK, DATASETS), 4_000),
    "a change of many: ids in a collection": (
        choose(BulkAction.UNMARK, [dataset_id(n) for n in range(2, 100_000, 1_000)], collections=["CMIP6"]),
        4_000,
    ),
    "a change of many: what is marked": (choose(BulkAction.UNMARK), 4_000),
    "a change of many: what is marked, filtered": (
        choose(
            BulkAction.UNMARK,
            collections=["CMIP6"],
            filter=filters.check(filters.from_text("created > TIMESTAMP('2020-01-02T00:00:00Z')")),
        ),
        4_000,
    ),
    "search: everything": (page({}, after=True), 2_000),
    "search: a collection, page after page": (page({"collections": ["CMIP6"]}, after=True), 2_000),
    "search: ids": (page({"ids": DATASETS[:20]}), 500),
    "search: datetime": (page({"datetime": "1850-01-03T00:00:00Z/1850-01-04T00:00:00Z"}), 2_000),
    "search: a day": (
        page({"filter": filters.check(filters.from_text("t_intersects(datetime, DATE('1850-02-01'))"))}),
        2_000,
    ),
    "search: a small box": (page({"collections": ["plain"], "intersects": filters.box([0, 0, 3, 3])}), 500),
    "search: an id in a filter": (page({"filter": filters.check(filters.from_text(f"id = '{DATASETS[0]}'"))}), 100),
    "search: a box of everything": (page({"intersects": filters.box([-180, -90, 180, 90])}, after=True), 2_000),
}


# --- the tests


@pytest.fixture(scope="session")
def large_database(cluster: embedded.Cluster, template: str) -> Iterator[str]:
    """The writer's DSN of a database of 200 000 datasets whose sessions tell their plans."""
    with databases(cluster, template) as make:
        writer = make()
        name = writer.partition("?")[0].rpartition("/")[2]
        large.fill(cluster.dsn(name), writer)
        plans.tell_plans(cluster.dsn(), name)
        yield writer


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
async def connection(large_database: str, request: pytest.FixtureRequest) -> AsyncIterator[Connection]:
    """A session like the product's, for one kind of plan."""
    conn = await connections.connect(large_database)
    await conn.execute(f"SET plan_cache_mode = {request.param}")
    yield conn
    await conn.close()


def check(found: list[plans.Plan], most_blocks: int) -> None:
    assert found
    for plan in found:
        assert max(plan.wasted.values(), default=0) <= FEW, plan
        assert plan.blocks <= most_blocks, plan


@pytest.mark.parametrize("case", CASES)
async def test_a_statement_is_executed_by_index(connection: Connection, case: str) -> None:
    run, most_blocks = CASES[case]
    transaction = connection.transaction()
    await transaction.start()
    try:
        found = await plans.plans_of(connection, run)
    finally:
        await transaction.rollback()
    check(found, most_blocks)


async def test_the_sequencer_reads_what_is_new(connection: Connection) -> None:
    """Outside of a transaction: it has its own, and what it did stays."""
    await writing.publish(connection, *(writing.titled(item, str(uuid4())) for item in ITEMS))
    check(await plans.plans_of(connection, sequence), 3_000)
