"""Every checker is shown to catch what it is there for: faults planted in the code, and states broken by hand."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

import asyncpg
import psycopg
import pytest
from typer.testing import CliRunner

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.cli import app
from fedstac.db import feed, invariants
from fedstac.db.connections import Connection
from fedstac.demo import embedded, sample
from fedstac.domain.model import Receipt
from fedstac.settings import Settings
from fedstac.workers import publisher
from tests.db import writing
from tests.db.writing import Connect
from tests.support import failpoints
from tests.support.databases import name_in

Plant = Callable[[str], None]
[ITEM] = sample.items(1)


@pytest.fixture
def as_superuser(cluster: embedded.Cluster, dsn: str) -> Callable[[str], None]:
    """Runs a statement in west's database that fedstac itself could not."""

    def run(statement: str) -> None:
        with psycopg.connect(cluster.dsn(name_in(dsn))) as conn:
            conn.execute(statement.encode())

    return run


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Plants a fault in this process until the test ends."""

    def put(name: str) -> None:
        if name:
            failpoints.plant(name, monkeypatch.setattr)

    return put


async def violated(conn: Connection) -> set[str]:
    return {violation.name for violation in await invariants.check(conn)}


@pytest.mark.parametrize("fault", ["", "naive-cursor"])
async def test_a_cursor_over_ids_loses_what_commits_late(connect: Connect, plant: Plant, fault: str) -> None:
    conn, slow = await connect(), await connect()
    few, one = list(sample.items(3, seed=2)), list(sample.items(1, seed=3))
    await writing.publish(conn, ITEM, *few, *one)  # who makes the code of a value first lets others wait for it
    plant(fault)
    async with slow.transaction():
        await writing.publish(slow, writing.version(ITEM, 20210101))
        await writing.publish(conn, *(writing.version(item, 20220101) for item in few))
        await feed.sequence(conn)
    await feed.sequence(conn)
    await writing.publish(conn, *(writing.version(item, 20230101) for item in one))
    await feed.sequence(conn)
    assert await violated(conn) == ({"I5"} if fault else set())


async def publish_two_at_once(connect: Connect) -> list[Receipt]:
    """Publish two newer versions of one dataset; neither writer writes before both have read."""
    first, second, holder, watcher = [await connect() for _ in range(4)]
    async with holder.transaction():
        await holder.execute("SELECT 1 FROM fedstac.record FOR UPDATE")
        one = asyncio.create_task(writing.publish(first, writing.version(ITEM, 20210101)))
        await writing.is_blocked(watcher, first, holder)
        two = asyncio.create_task(writing.publish(second, writing.version(ITEM, 20220101)))
        await writing.until(watcher, "SELECT pg_blocking_pids($1) <> '{}'", second.get_server_pid())
    receipts = [*await one, *await two]
    await writing.sequence_all(watcher)
    return receipts


@pytest.mark.parametrize("fault", ["", "no-lineage-lock"])
async def test_without_the_lineage_lock_and_the_index_two_are_latest(
    connect: Connect, plant: Plant, as_superuser: Callable[[str], None], fault: str
) -> None:
    conn = await connect()
    await writing.publish(conn, writing.version(ITEM, 20200101))
    as_superuser("DROP INDEX fedstac.record_one_latest")
    plant(fault)
    await publish_two_at_once(connect)
    found = await violated(conn)
    assert found >= {"I6", "I11"} if fault else found == set()


async def test_without_the_lineage_lock_the_index_refuses_the_second_latest(connect: Connect, plant: Plant) -> None:
    conn = await connect()
    await writing.publish(conn, writing.version(ITEM, 20200101))
    plant("no-lineage-lock")
    with pytest.raises(asyncpg.UniqueViolationError):
        await publish_two_at_once(connect)
    await writing.sequence_all(conn)
    assert await violated(conn) == set()


@pytest.mark.parametrize("fault", ["", "event-outside-transaction"])
async def test_an_event_written_after_the_commit_is_missed_when_the_writer_dies(
    connect: Connect, plant: Plant, as_superuser: Callable[[str], None], fault: str
) -> None:
    conn = await connect()
    plant(fault)
    as_superuser("ALTER TABLE fedstac.outbox RENAME COLUMN event TO elsewhere")  # the writer dies when it writes events
    with pytest.raises(asyncpg.UndefinedColumnError):
        await writing.publish(conn, ITEM)
    as_superuser("ALTER TABLE fedstac.outbox RENAME COLUMN elsewhere TO event")
    await writing.sequence_all(conn)
    found = await violated(conn)
    assert found >= {"I4", "I6"} if fault else found == set()


@pytest.mark.parametrize("fault", ["", "requests-out-of-order"])
async def test_requests_of_a_lineage_out_of_order_are_seen(
    west: Node, connect: Connect, plant: Plant, fault: str
) -> None:
    conn = await connect()
    titles = [writing.titled(ITEM, f"title {n}") for n in range(4)]
    await writing.submit(conn, *titles)
    plant(fault)
    while await publisher.work_once(west, conn, "one"):
        continue
    await writing.sequence_all(conn)
    assert await violated(conn) == ({"I2"} if fault else set())
    last = json.loads(await conn.fetchval("SELECT document FROM fedstac.record"))["properties"]["description"]
    assert last == ("title 0" if fault else "title 3")


# States that no code makes: each assertion catches its own

DELETION = """INSERT INTO fedstac.deletion (id, collection, dataset, event_id, state, actor, marked_at, grace_until,
                  automatic, configuration, ended_at, ended_by)
              SELECT '00000000-0000-7000-8000-000000000001', collection, id, '00000000-0000-7000-8000-000000000002',
                  '{state}', 'anna', now() - interval '2 days', now() - interval '1 day', false, 0, {ended}, 'anna'
              FROM fedstac.record WHERE latest LIMIT 1"""
DEPENDENCY = """INSERT INTO fedstac.deletion_dependency (deletion, name, required, owns_identifier, due, state)
                VALUES ('00000000-0000-7000-8000-000000000001', 'east', true, false, now(), '{state}')"""
BROKEN = {
    "an item is gone": ("I1", "DELETE FROM fedstac.request_item WHERE n = 1"),
    "a queued item has no document": (
        "I1", "UPDATE fedstac.request_item SET status = 'queued', finished = NULL, document = NULL, last_event = NULL",
    ),
    "done without an event": ("I2", "UPDATE fedstac.request_item SET last_event = NULL"),
    "rejected with an event": ("I2", "UPDATE fedstac.request_item SET status = 'rejected', outcome = 'rejected'"),
    "done in another order": (
        "I2", "UPDATE fedstac.request_item SET last_event = (SELECT max(id) FROM fedstac.outbox "
              "WHERE dataset = request_item.dataset) WHERE n = 1; UPDATE fedstac.request_item SET last_event = "
              "(SELECT min(id) FROM fedstac.outbox WHERE dataset = request_item.dataset) WHERE n = 2",
    ),
    "an event is gone": ("I4", "DELETE FROM fedstac.outbox WHERE dataset LIKE '%v20210101'"),
    "a record is gone": ("I4", "DELETE FROM fedstac.record WHERE NOT latest"),
    "a record is older than its event": ("I4", "UPDATE fedstac.record SET seq = 1 WHERE latest"),
    "a collection is older than its event": ("I4", "UPDATE fedstac.collection SET seq = 0 WHERE id = 'plain'"),
    "the audit rows are gone": ("I4", "DELETE FROM fedstac.audit"),
    "an audit row without an event": (
        "I4", "INSERT INTO fedstac.audit (actor, action, collection, dataset, outcome, digest_after) "
              "VALUES ('a', 'publish', 'CMIP6', 'x', 'new', '')",
    ),
    "a hole in the feed": ("I5", "DELETE FROM fedstac.feed WHERE pos = 3"),
    "a feed without its beginning": ("I5", "DELETE FROM fedstac.feed WHERE pos = 1"),
    "a position twice as far": ("I5", "UPDATE fedstac.feed_state SET pos = 2 * pos"),
    "a lineage out of order": ("I6", "UPDATE fedstac.outbox SET seq = 10 - seq WHERE key LIKE 'CMIP6/%'"),
    "a lineage counts too many": ("I6", "UPDATE fedstac.lineage SET seq = seq + 1"),
    "an audit row that was written has no place": (
        "I7", "UPDATE fedstac.audit_head SET snap = pg_current_snapshot(), pos = 0",
    ),
    "nothing says who asked": ("I20", "UPDATE fedstac.audit SET request = NULL"),
    "a search copy is gone": ("I8", "DELETE FROM pgstac._items_1"),
    "a search copy of nothing": (
        "I8", "INSERT INTO pgstac._items_1 SELECT 'x', geometry, collection, datetime, end_datetime, content, private "
              "FROM pgstac._items_1 LIMIT 1",
    ),
    "a search copy with another latest": (
        "I8", "UPDATE pgstac._items_1 SET content = jsonb_set(content, '{properties,latest}', 'true')",
    ),
    "a search copy at another time": ("I8", "UPDATE pgstac._items_1 SET datetime = datetime - interval '1 day'"),
    "a row of codes is gone": ("I8", "DELETE FROM fedstac.facet"),
    "a row of codes of nothing": ("I8", "UPDATE fedstac.record SET n = n + 1000"),
    "a row of codes with another code": ("I8", "UPDATE fedstac.facet SET codes[1] = codes[2]"),
    "a row of codes that still shows": ("I8", "UPDATE fedstac.facet SET shown = 5"),
    "a row of codes that counts other files": ("I8", "UPDATE fedstac.facet SET files = files + 1"),
    "a code with another value": ("I8", "UPDATE fedstac.term SET content = '{}'"),
    "a code with another footprint": ("I8", "UPDATE fedstac.footprint SET geometry = 'SRID=4326;POINT(0 0)' "
                                            "WHERE code = (SELECT min(code) FROM fedstac.footprint)"),
    "the feed ends with another state": ("I8", "UPDATE fedstac.outbox SET digest = '' WHERE type LIKE '%superseded%'"),
    "a wrong tally": ("I8", "INSERT INTO fedstac.tally VALUES ('CMIP6', 1)"),
    "another digest": ("I9", "UPDATE fedstac.record SET digest = sha256('x')"),
    "another document": ("I9", "UPDATE fedstac.record SET document = replace(document, '\"gn\"', '\"gr\"')"),
    "a collection's other document": ("I9", "UPDATE fedstac.collection SET document = '{}' WHERE id = 'plain'"),
    "a document that is none": ("I9", "UPDATE fedstac.record SET document = 'x' WHERE latest"),
    "two latest": (
        "I11", "DROP INDEX fedstac.record_one_latest; UPDATE fedstac.record SET latest = true, claims_latest = true",
    ),
    "no latest": ("I11", "UPDATE fedstac.record SET latest = false"),
    "two latest in the feed": (
        "I11", "UPDATE fedstac.outbox SET event = replace(event, '\"latest\":false', '\"latest\":true')",
    ),
    "a deleted dataset is there": ("I14", DELETION.format(state="deleted", ended="now()")),
    "a deleted id has another event": (
        "I14", "UPDATE fedstac.outbox SET type = 'org.fedstac.dataset.deleted.v1' WHERE dataset LIKE '%v20200101'",
    ),
    "a tombstone with more": (
        "I14", "UPDATE fedstac.record SET state = 'purged', document = NULL, latest = false, retraction = '{}'"
    ),
    "what is hidden is found": ("I17", "UPDATE fedstac.record SET state = 'marked' WHERE NOT latest"),
    "what is hidden is the latest": ("I17", "UPDATE fedstac.record SET state = 'quarantined'; DELETE FROM "
                                            "fedstac.facet; DELETE FROM pgstac._items_1"),
    "what is shown has a quarantine": ("I17", "UPDATE fedstac.record SET quarantine = '{}'"),
    "a quarantine without a case": ("I17", "UPDATE fedstac.record SET quarantine = '{}', state = 'marked', "
                                             "latest = false"),
    "deleted before a part was done": (
        "I21", DELETION.format(state="deleted", ended="now()") + "; " + DEPENDENCY.format(state="failed"),
    ),
    "deleted in its grace": ("I21", DELETION.format(state="purged", ended="now() - interval '2 days'")),
    "deleted without a deletion": ("I21", "UPDATE fedstac.outbox SET type = 'org.fedstac.dataset.deleted.v1'"),
    "an open deletion of what is not marked": ("I21", DELETION.format(state="open", ended="NULL")),
    "a deletion that says something else of its parts": (
        "I21", DELETION.format(state="open", ended="NULL") + "; UPDATE fedstac.record SET state = 'marked', "
               "latest = false WHERE latest; UPDATE fedstac.deletion SET has_failed = true",
    ),
    "a report that nobody sent": (
        "I22", DELETION.format(state="open", ended="NULL") + "; " + DEPENDENCY.format(state="ok"),
    ),
    "an event waits": (
        "I23", "DELETE FROM fedstac.feed WHERE id = (SELECT max(id) FROM fedstac.outbox); "
               "UPDATE fedstac.outbox SET at = at - interval '1 hour'",
    ),
    "no partitions ahead": ("I23", "DROP TABLE fedstac.outbox_2"),
    "narrow bounds": (
        "I23", "ALTER TABLE pgstac._items_2 DROP CONSTRAINT _items_2_dt; ALTER TABLE pgstac._items_2 ADD CONSTRAINT "
               "_items_2_dt CHECK (((datetime >= '2020-01-01 00:00:00+00'::timestamp with time zone) AND (datetime <= "
               "'2021-01-01 00:00:00+00'::timestamp with time zone) AND (end_datetime >= '2020-01-01 00:00:00+00'::"
               "timestamp with time zone) AND (end_datetime <= '2021-01-01 00:00:00+00'::timestamp with time zone)))",
    ),
    "a collection that pgstac has not": ("I23", "DELETE FROM pgstac.collections WHERE id = 'plain'"),
    "a function that fails in a restore": ("I1", "ALTER FUNCTION pgstac.collection_geom(jsonb) RESET search_path"),
    "a parked event": (
        "I23", "INSERT INTO fedstac.parked_event VALUES ('index', 'north', 's', 'e', 1, 1, 1, 'd', '{}')"
    ),
    "an origin without a cursor": (
        "I23", "INSERT INTO fedstac.collection SELECT 'theirs', 'north', 1, 1, document, digest, updated "
               "FROM fedstac.collection WHERE id = 'plain'",
    ),
}  # fmt: skip


async def test_every_assertion_catches_its_own(
    west: Node, connect: Connect, cluster: embedded.Cluster, dsn: str
) -> None:
    conn = await connect()
    await writing.submit(
        conn, writing.version(ITEM, 20200101), writing.version(ITEM, 20210101), writing.titled(
            writing.version(ITEM, 20210101), "later")
    )  # fmt: skip
    while await publisher.work_once(west, conn, "one"):
        continue
    await writing.sequence_all(conn)
    assert await violated(conn) == set()
    root = await asyncpg.connect(cluster.dsn(await conn.fetchval("SELECT current_database()")))
    await root.execute("SET search_path = pgstac, public")
    missed = []
    for case, (name, statement) in BROKEN.items():
        trial = root.transaction()
        await trial.start()
        await root.execute("SET LOCAL session_replication_role = replica")  # no foreign keys, no triggers
        await root.execute(statement)
        found = await invariants.check(root)
        if name not in {violation.name for violation in found}:
            missed.append((case, found))
        await trial.rollback()
    await root.close()
    assert missed == []
    assert {name for name, _ in BROKEN.values()} == {invariant.name for invariant in invariants.INVARIANTS}


async def test_an_index_node_is_checked_for_what_it_is(make_database: Callable[[], str]) -> None:
    config = Settings(dsn=make_database(), node="east", _env_file=None)
    async with bootstrap.node(config) as east, east.pool.acquire() as conn:
        assert await invariants.check(conn) == []


async def test_the_command_tells_and_its_exit_code_says_so(west: Node, dsn: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDSTAC_")}

    def run(*arguments: str) -> Any:
        return CliRunner(env=environment).invoke(app, [*arguments, "admin", "check", "--dsn", dsn])

    well = await asyncio.to_thread(run)
    assert well.exit_code == 0, well.output
    assert (well.stdout, well.stderr) == ("", "")
    async with west.pool.acquire() as conn:
        await conn.execute("INSERT INTO fedstac.tally VALUES ('CMIP6', 7)")
    ill = await asyncio.to_thread(run, "-o", "json")
    assert ill.exit_code == 1
    [violation] = json.loads(ill.stdout)["violations"]
    assert (violation["name"], violation["examples"]) == ("I8", ["CMIP6: 0 datasets; the tally says 7"])
    table = await asyncio.to_thread(run)
    assert (table.exit_code, "tally" in table.stdout) == (1, True)
