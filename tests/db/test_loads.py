"""Full-state loads in the database: large ones are compared and forgotten without a statement that takes for ever."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Coroutine
from typing import Any
from uuid import UUID, uuid4

import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import bulks, connections, load_comparison, loads
from fedstac.db.connections import Connection
from fedstac.db.loads import Load, LoadPart, NewLoad, StatedDataset
from fedstac.demo import embedded
from fedstac.domain import documents
from fedstac.domain.actions import Work
from fedstac.domain.actions.delete import Purge
from fedstac.domain.actions.target import Target
from fedstac.domain.documents import ItemTexts
from fedstac.domain.errors import BadRequest, Conflict
from fedstac.domain.model import Outcome
from fedstac.domain.reconcile import MOST_OPEN, MOST_OPEN_OF_COLLECTION, LoadChange, LoadMode, LoadStep
from fedstac.runtime import failpoints
from fedstac.workers import bulk_changes, load_steps, loading
from tests.db import writing
from tests.support import plans
from tests.support.databases import name_in
from tests.support.failpoints import once_at


def some_datasets(count: int, prefix: str = "d") -> list[StatedDataset]:
    return [StatedDataset(f"{prefix}{n:06}", f"l{n}", 1, None, None) for n in range(count)]


def some_load(submitter: str, collection: str = "CMIP6") -> NewLoad:
    return NewLoad(
        id=uuid4(), collection=collection, mode=LoadMode.APPLY, override=None, submitter=submitter, roles=[],
        identity=None, correlation="c", traceparent=None,
    )  # fmt: skip


async def new_load(conn: Connection, count: int, *, collection: str = "CMIP6") -> UUID:
    new = some_load("anna", collection)
    async with conn.transaction():
        await loads.create(conn, new)
        await loads.put_part(conn, new.id, LoadPart(1, b"d", count), some_datasets(count))
    return new.id


async def age(conn: Connection, id: UUID) -> None:
    await conn.execute(
        "UPDATE fedstac.load SET created = created - make_interval(days => $2) WHERE id = $1", id, loads.KEPT_DAYS + 1
    )


async def test_an_old_load_is_forgotten_a_part_at_a_time(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "FORGOTTEN_AT_ONCE", 100)
    old, young = await new_load(conn, 250), await new_load(conn, 10)
    await age(conn, old)
    remaining = []
    while await loads.forget_old(conn):
        remaining.append(await conn.fetchval("SELECT count(*) FROM fedstac.load_dataset WHERE load = $1", old))
    assert remaining == [150, 50, 0], "no statement removes all of a load of a million datasets"
    assert await loads.find(conn, old) is None
    assert await conn.fetchval("SELECT count(*) FROM fedstac.load_dataset WHERE load = $1", young) == 10


async def test_what_is_left_of_a_load_that_is_being_forgotten_is_not_applied(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "FORGOTTEN_AT_ONCE", 100)
    id = await new_load(conn, 250)
    await age(conn, id)
    assert await loads.forget_old(conn)
    with pytest.raises(Conflict, match="begin a new one"):
        await loading.compare(west, conn, id)
    with pytest.raises(Conflict, match="begin a new one"):
        await loading.put_part(conn, id, LoadPart(2, b"e", 1), some_datasets(1, "e"), [""])


async def finished(west: Node, conn: Connection) -> int:
    """Do all steps of all loads; return how many there were."""
    count = 0
    while await load_steps.step(west, conn):
        count += 1
    return count


async def found(conn: Connection, id: UUID) -> Load:
    load = await loads.find(conn, id)
    assert load is not None
    return load


async def test_the_settings_of_a_comparison_end_with_its_steps(west: Node, conn: Connection) -> None:
    names = ("enable_hashjoin", "enable_mergejoin", "enable_seqscan", "enable_bitmapscan", "enable_sort", "work_mem")
    id = await new_load(conn, 10)
    before = [await conn.fetchval(f"SHOW {name}") for name in names]
    await loading.compare(west, conn, id)
    await finished(west, conn)
    assert [await conn.fetchval(f"SHOW {name}") for name in names] == before


async def test_a_large_load_is_compared_in_steps_each_of_which_is_stored(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_steps, "AT_ONCE", 10)
    items = [writing.plain(n) for n in range(25)]
    await writing.publish(conn, *items)
    id = await new_load(conn, 35, collection="plain")
    load = await loading.compare(west, conn, id)
    assert (load.is_comparing, load.compared_stated, load.changes) == (True, 30, None), "a request does three steps"

    def die(place: str) -> None:
        if place == "load.step":
            raise ConnectionResetError("killed")

    failpoints.act(die)
    try:
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                await load_steps.step(west, conn)
    finally:
        failpoints.act(None)
    assert (await found(conn, id)).compared_stated == 30, "a step that was killed never was"
    assert await finished(west, conn) == 4
    load = await found(conn, id)
    assert load.changes is not None
    assert (load.changes.counts, load.changes.current) == ({LoadChange.NEW: 35, LoadChange.REMOVED: 25}, 25)
    assert load.examples[LoadChange.REMOVED] == sorted(item["id"] for item in items)[:10]
    rows = await conn.fetch("SELECT change, count(*) FROM fedstac.load_dataset WHERE load = $1 GROUP BY 1", id)
    assert {row["change"]: row["count"] for row in rows} == load.changes.counts
    listed = await load_comparison.datasets(conn, load, change=LoadChange.REMOVED, after="", limit=100)
    assert [each.id for each in listed] == sorted(item["id"] for item in items)


async def test_a_comparison_of_before_a_part_came_does_not_count(west: Node, conn: Connection) -> None:
    item = writing.plain(1)
    await writing.publish(conn, item)
    id = await new_load(conn, 3, collection="plain")
    await loading.compare(west, conn, id)
    dataset = StatedDataset(item["id"], "l", None, None, None)
    await loading.put_part(conn, id, LoadPart(2, b"e", 1), [dataset], [""])
    load = await found(conn, id)
    listed = await load_comparison.datasets(conn, load, change=None, after="", limit=10)
    assert (load.changes, {each.change for each in listed}, len(listed)) == (None, {None}, 4)
    load = await loading.compare(west, conn, id)
    assert load.counts == {LoadChange.NEW: 3, LoadChange.CHANGED: 1}


async def test_what_is_applied_is_what_was_shown_though_another_comparison_goes_on(
    west: Node, conn: Connection, connect: writing.Connect
) -> None:
    """Whoever confirms waits for a comparison that goes on, and then nobody has seen what it found."""
    other, watcher = await connect(), await connect()
    id = await new_load(conn, 3, collection="plain")
    seen = (await loading.compare(west, conn, id)).compared_at

    def apply(conn: Connection) -> Coroutine[Any, Any, Load]:
        return loading.apply(
            west,
            conn,
            writing.ANNA,
            id,
            confirmed=None,
            identity=None,
            correlation="c",
            traceparent=None,
            comparison_time=seen,
        )

    async with conn.transaction():
        await loads.find(conn, id, locking=True)
        late = asyncio.create_task(apply(other))
        await writing.is_blocked(watcher, other, conn)
        await load_comparison.begin_comparison(conn, id)
        while (load := await found(conn, id)).is_comparing:
            await load_steps.advance(west, conn, load)
    with pytest.raises(Conflict, match="compared again since it was shown"):
        await late
    load = await found(conn, id)
    assert load.takes_parts, "nothing was applied"
    seen = load.compared_at
    first, second = await asyncio.gather(apply(conn), apply(other))
    assert first.bulk == second.bulk is not None, "two who saw the same confirm the same"
    seen = load.created
    with pytest.raises(Conflict, match="another comparison than the one that you saw"):
        await apply(conn)


async def test_each_step_reads_its_own_datasets_alone(
    west: Node, cluster: embedded.Cluster, dsn: str, connect: writing.Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner knows nothing of the tables: it would read all of a load for each step."""
    monkeypatch.setattr(load_steps, "AT_ONCE", 50)
    plans.tell_plans(cluster.dsn(), name_in(dsn))
    conn = await connect()
    await writing.publish(conn, *(writing.plain(n) for n in range(200)))
    id = await new_load(conn, 2_000, collection="plain")

    async def all_steps(conn: Connection) -> None:
        await loading.compare(west, conn, id)
        await finished(west, conn)
        await loading.apply(
            west, conn, writing.ANNA, id, confirmed=200, identity=None, correlation="c", traceparent=None
        )
        await finished(west, conn)

    plans_found = await plans.plans_of(conn, all_steps)
    assert len(plans_found) > 100
    for plan in plans_found:
        assert sum(plan.wasted.get(table, 0) for table in ("load_dataset", "record")) <= 50, plan


async def test_a_large_load_is_listed_for_its_application_by_the_workers(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, versions of a dataset in their order, though their ids are not. A chunk that is killed never was."""
    id = await new_load(conn, 8)
    await conn.execute(
        """UPDATE fedstac.load_dataset l SET lineage = 'l' || n % 3, version = CASE WHEN n > 2 THEN 9 - n END
           FROM (SELECT dataset, right(dataset, 1)::int AS n FROM fedstac.load_dataset) each
           WHERE l.dataset = each.dataset"""
    )
    await loading.compare(west, conn, id)
    await finished(west, conn)
    monkeypatch.setattr(load_steps, "AT_ONCE", 3)
    load = await loading.apply(
        west, conn, writing.ANNA, id, confirmed=None, identity=None, correlation="c", traceparent=None
    )
    assert load.bulk is not None
    assert await load_steps.step(west, conn)

    def die(place: str) -> None:
        if place == "load.step":
            raise ConnectionResetError("killed")

    failpoints.act(die)
    try:
        with pytest.raises(ConnectionResetError):
            await load_steps.step(west, conn)
    finally:
        failpoints.act(None)
    listed = "SELECT n, lineage, right(dataset, 1)::int AS number FROM fedstac.bulk_dataset WHERE bulk = $1 ORDER BY n"
    assert len(await conn.fetch(listed, load.bulk)) == 3
    assert not await bulks.are_open(conn), "nobody begins with a part of it"
    assert await finished(west, conn) == 5, "two that list, three that trim"
    assert await bulks.are_open(conn)
    rows = await conn.fetch(listed, load.bulk)
    assert [row["n"] for row in rows] == list(range(1, 9))
    assert [(row["lineage"], row["number"]) for row in rows] == [
        ("l0", 0), ("l0", 6), ("l0", 3), ("l1", 1), ("l1", 7), ("l1", 4), ("l2", 2), ("l2", 5)
    ]  # fmt: skip


async def test_a_load_whose_change_is_cancelled_is_listed_no_further(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = await new_load(conn, 8)
    await loading.compare(west, conn, id)
    monkeypatch.setattr(load_steps, "AT_ONCE", 3)
    load = await loading.apply(
        west, conn, writing.ANNA, id, confirmed=None, identity=None, correlation="c", traceparent=None
    )
    assert load.bulk is not None
    assert await load_steps.step(west, conn)
    assert await bulks.cancel(conn, load.bulk, "anna")
    await finished(west, conn)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.bulk_dataset WHERE bulk = $1", load.bulk) == 3
    assert (await found(conn, id)).step is None


async def test_a_load_with_nothing_to_do_is_closed_when_it_is_applied(west: Node, conn: Connection) -> None:
    id = await new_load(conn, 0)
    await loading.compare(west, conn, id)
    for _ in range(2):
        load = await loading.apply(
            west, conn, writing.ANNA, id, confirmed=None, identity=None, correlation="c", traceparent=None
        )
        assert (load.bulk, load.takes_parts) == (None, False)
    count = await loads.count_open(conn, "anna", "CMIP6")
    assert (count.of_person, count.of_collection) == (0, 0)


async def test_what_a_cancelled_load_states_is_removed_in_steps(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "FORGOTTEN_AT_ONCE", 100)
    id = await new_load(conn, 250)
    load = await loading.cancel(conn, id, "anna", correlation="c")
    assert await load_comparison.datasets(conn, load, change=None, after="", limit=10) == []
    assert await conn.fetchval("SELECT count(*) FROM fedstac.load_dataset") == 250, "no request removes a million rows"
    assert await finished(west, conn) == 3
    assert await conn.fetchval("SELECT count(*) FROM fedstac.load_dataset") == 0


async def test_a_person_and_a_collection_have_so_many_open_loads(west: Node, conn: Connection) -> None:
    first = await new_load(conn, 0)
    for _ in range(MOST_OPEN - 1):
        await new_load(conn, 0)
    with pytest.raises(Conflict, match=f"the oldest is {first}"):
        await loading.begin(conn, some_load("anna"))
    await loading.cancel(conn, first, "anna", correlation="c")
    await loading.begin(conn, some_load("anna"))
    for n in range(MOST_OPEN_OF_COLLECTION - MOST_OPEN):
        await loading.begin(conn, some_load(f"person-{n}"))
    with pytest.raises(Conflict, match="loads of CMIP6 are open"):
        await loading.begin(conn, some_load("somebody"))


async def test_a_load_goes_on_when_what_it_cleared_is_purged_meanwhile(
    west: Node, conn: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_changes, "PART", 1)
    await writing.publish(conn, *(writing.plain(n) for n in range(3)))
    drafts = [writing.draft({**writing.plain(n, "another"), "bbox": [n, n, n, n]}) for n in (1, 2)]
    datasets_of_part = [
        StatedDataset(
            each.id, each.lineage, None, None,
            ItemTexts(each.text, documents.packed(each), documents.packed_facets(each)),
        )
        for each in drafts
    ]  # fmt: skip
    new = some_load("anna", "plain")
    await loading.begin(conn, new)
    await loading.put_part(conn, new.id, LoadPart(1, b"d", 2), datasets_of_part, ["1", "2"])
    await loading.compare(west, conn, new.id)
    load = await loading.apply(
        west, conn, writing.ANNA, new.id, confirmed=1, identity=None, correlation="c", traceparent=None
    )
    assert load.bulk is not None

    async def purge() -> None:
        other = await connections.connect(dsn)
        command = Purge(Target("plain", "thing-0", "plain/thing-0"), writing.ANNA)
        [receipt] = await publication.perform(other, writing.RULES, [Work(command, "anna", "purge")])
        assert receipt.outcome is Outcome.PURGED, receipt.problem
        await other.close()

    with once_at("bulk.committed", purge):
        assert await bulk_changes.work_off(west, conn, asyncio.Event())
    job = await bulks.find(conn, load.bulk)
    assert job is not None
    assert (job.status, job.done_count, job.failed_count) == ("done", 3, 0)
    assert new.collection in job.selection


async def test_a_load_changes_no_more_than_a_change_of_many_datasets_may(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "MOST", 9)
    id = await new_load(conn, 10)
    await loading.compare(west, conn, id)
    with pytest.raises(BadRequest, match="10 datasets change, and 9 at most may"):
        await loading.apply(
            west, conn, writing.ANNA, id, confirmed=None, identity=None, correlation="c", traceparent=None
        )


@pytest.mark.soak
async def test_three_hundred_thousand_datasets_are_compared_in_steps_of_bounded_memory(
    west: Node, conn: Connection, administrator: Connection
) -> None:
    """Half of them are here already, and as many that the load does not state."""
    count, part = 300_000, 5_000
    await administrator.execute(
        """INSERT INTO fedstac.lineage (key, origin, seq)
           SELECT 'plain/l' || n, 'west', 1 FROM generate_series(0, $1) n""",
        count - 1,
    )
    await administrator.execute(
        """INSERT INTO fedstac.record (collection, id, lineage, origin, state, latest, claims_latest, epoch, seq,
                                       created, updated, document, document_digest, files_digest, digest, publisher)
           SELECT 'plain', CASE n % 2 WHEN 0 THEN 'd' ELSE 'e' END || lpad(n::text, 6, '0'), 'plain/l' || n, 'west',
                  'published', true, true, 1, 1, now(), now(), '{}', '', '', '', 'anna'
           FROM generate_series(0, $1) n""",
        count - 1,
    )
    new = some_load("anna", "plain")
    datasets = some_datasets(count)
    async with conn.transaction():
        await loads.create(conn, new)
        for n in range(count // part):
            rows = datasets[n * part : (n + 1) * part]
            await loads.put_part(conn, new.id, LoadPart(n + 1, b"d", part), rows)
    del datasets
    seconds, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    await loading.compare(west, conn, new.id)
    print(f"the request: {time.perf_counter() - started:.2f} s")
    while True:
        started = time.perf_counter()
        if not await load_steps.step(west, conn):
            break
        seconds.append(time.perf_counter() - started)
    load = await found(conn, new.id)
    assert load.counts == {LoadChange.CHANGED: 150_000, LoadChange.NEW: 150_000, LoadChange.REMOVED: 150_000}
    started = time.perf_counter()
    await loading.apply(
        west, conn, writing.ANNA, new.id, confirmed=150_000, identity=None, correlation="c", traceparent=None
    )
    print(f"apply: {time.perf_counter() - started:.2f} s")
    listing_seconds = []
    while (await found(conn, new.id)).step is LoadStep.LIST:
        started = time.perf_counter()
        assert await load_steps.step(west, conn)
        listing_seconds.append(time.perf_counter() - started)
    print(f"listing: {len(listing_seconds)} steps, {sum(listing_seconds):.1f} s, {max(listing_seconds):.2f} s at most")
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{len(seconds)} steps, {sum(seconds):.1f} s, {min(seconds):.2f} to {max(seconds):.2f} s; {more} KB more")
