"""The list of deletions, its counts and its figures: as the rules say for everybody, and cheap where many are open."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest

from fedstac.bootstrap import Node
from fedstac.db import deletion_lists, deletion_reports, deletion_rules, deletions, invariants
from fedstac.db.connections import Connection
from fedstac.db.deletion_lists import DeletionFilter, ListOrder, OpenStand, Sight
from fedstac.db.deletions import DeletionEnd
from fedstac.demo import embedded
from fedstac.domain import deletion
from fedstac.domain.deletion import (
    Deletion,
    DeletionRules,
    DeletionState,
    Dependency,
    DependencyState,
    DependencyStatus,
    Waiver,
)
from fedstac.domain.deletion_reports import DependencyReport
from fedstac.workers.deleting import is_of_node
from tests.db import writing
from tests.support import plans
from tests.support.databases import name_in

EVERY = Sight(sees_all=True)
HOURS = (-2, -1, 1, 2)
NAMES = ("east", "east/replica", "easter", "desk", "identifier")
PLACES: tuple[tuple[str, str | None], ...] = (("plain", None), ("plain", "a"), ("CMIP6", "a"), ("CMIP6", "b"))
SIGHTS = (
    EVERY, Sight(), Sight(places=PLACES[:1]), Sight(places=PLACES[1:3]), Sight(node="east"), Sight(node="nobody"),
    Sight(places=PLACES[2:], node="east"),
)  # fmt: skip
FILTERS = (
    DeletionFilter(), DeletionFilter(project="plain"), DeletionFilter(dependency="east"), DeletionFilter(text="ANNA"),
    DeletionFilter(text="thing-1"), DeletionFilter(dependency="desk", text="mistake"),
)  # fmt: skip
STATES = (None, *DeletionState)


# --- as the rules say ---


def drawn(draw: random.Random, n: int, now: datetime) -> Deletion:
    """Return a deletion that a mark could open."""
    project, institution = draw.choice(PLACES)
    parts = tuple(
        DependencyStatus(name, draw.random() < 0.7, draw.random() < 0.2, now + timedelta(hours=draw.choice(HOURS)))
        for name in draw.sample(NAMES, draw.randrange(len(NAMES)))
    )
    return Deletion(
        uuid4(), project, f"thing-{n}", uuid4(), now + timedelta(minutes=draw.randrange(3)),
        now + timedelta(hours=draw.choice(HOURS)), draw.choice(("anna", "boris")),
        draw.choice((None, "by mistake")), identifiers=draw.choice(((), ("hdl:1/2",))), dependencies=parts,
        institution=institution, rules=draw.randrange(3),
    )  # fmt: skip


async def every(conn: Connection) -> list[Deletion]:
    rows = await conn.fetch(f"SELECT {deletions.COLUMNS} FROM fedstac.deletion d")
    return await deletions.with_dependencies(conn, rows)


async def act(conn: Connection, draw: random.Random, now: datetime) -> None:
    """Do something with open deletions that is drawn."""
    entries = [each for each in await every(conn) if each.state == "open"]
    chosen = draw.sample(entries, min(5, len(entries)))
    parts = [(each, part) for each in chosen for part in each.dependencies]
    async with conn.transaction():
        match draw.randrange(6):
            case 0:
                await deletions.begin(conn, [drawn(draw, draw.randrange(30), now)])
            case 1 | 2:
                outcomes = [DependencyState.OK, DependencyState.FAILED, DependencyState.NOTHING_TO_DO]
                reports = [DependencyReport(part.name, draw.choice(outcomes), event_id=e.event_id) for e, part in parts]
                await deletion_reports.store(conn, reports, actor="east")
            case 3:
                for entry, part in parts[:2]:
                    waiver = Waiver(draw.choice(("anna", "boris")), "gone", now)
                    after = deletion.waive(part, waiver)
                    if after is not part:
                        await deletions.store_waiver(conn, entry.id, after, waiver)
            case 4:
                names = draw.sample(NAMES[:4], 2)
                rules = DeletionRules(
                    tuple(Dependency(name, draw.random() < 0.5, draw.choice((0.01, 9))) for name in names),
                    grace_days=draw.choice((0, 9)), version=3,
                )  # fmt: skip
                await deletions.store_revised(conn, [(each, deletion.revise(each, rules, now)) for each in chosen])
            case _:
                states = [DeletionState.UNMARKED, DeletionState.DELETED]
                endings = [DeletionEnd(e.collection, e.dataset, draw.choice(states), "anna") for e in chosen[:1]]
                await deletions.end(conn, endings, now=now)


def is_whole(sight: Sight, entry: Deletion) -> bool:
    return sight.sees_all or (entry.collection, entry.institution) in sight.places


def seen(sight: Sight, filter: DeletionFilter, entry: Deletion) -> Deletion | None:
    """Return a deletion with what somebody sees of it; None where they do not, or the filter leaves it out."""
    if not is_whole(sight, entry):
        own = tuple(part for part in entry.dependencies if is_of_node(part.name, sight.node))
        if not own:
            return None
        entry = replace(entry, dependencies=own, identifiers=(), reason="", actor="")
    texts = (entry.dataset, entry.reason or "", entry.actor)
    is_chosen = (
        filter.project in (None, entry.collection)
        and (filter.dependency is None or entry.dependency(filter.dependency) is not None)
        and (filter.text is None or any(filter.text.lower() in text.lower() for text in texts))
    )
    return entry if is_chosen else None


def stands(entry: Deletion, now: datetime) -> set[OpenStand]:
    """Return how an open deletion stands."""
    found = {OpenStand.WAITING if entry.missing(now) else OpenStand.READY}
    found |= {OpenStand.LATE} if any(part.is_late(now) for part in entry.dependencies) else set()
    return found | ({OpenStand.FAILED} if any(part.state == "failed" for part in entry.dependencies) else set())


def ids(entries: Iterable[Deletion]) -> list[UUID]:
    return [each.id for each in entries]


async def check_lists(conn: Connection, now: datetime) -> None:
    """Compare what the lists and counts say to everybody with what the rules say of each deletion."""
    entries = await every(conn)
    for sight in SIGHTS:
        for filter in FILTERS:
            shown = {each.id: part for each in entries if (part := seen(sight, filter, each)) is not None}
            stands_by_id = {id: stands(each, now) for id, each in shown.items() if each.state == "open"}
            numbers = await deletion_lists.counts(conn, sight, filter, now=now)
            assert numbers == {
                **{state.value: sum(each.state == state for each in shown.values()) for state in DeletionState},
                **{stand.value: sum(stand in each for each in stands_by_id.values()) for stand in OpenStand},
            }, (sight, filter)
            for stand in (None, *OpenStand):
                wanted = {id for id in shown if stand is None or stand in stands_by_id.get(id, ())}
                listed = await page(conn, sight, replace(filter, stand=stand), now)
                assert set(ids(listed)) == wanted, (sight, filter, stand)
            for state in DeletionState:
                listed = await page(conn, sight, replace(filter, state=state), now)
                assert set(ids(listed)) == {id for id, each in shown.items() if each.state == state}, (sight, filter)
    figures = await deletion_lists.figures(conn)
    assert figures.open == sum(each.state == "open" for each in entries)
    assert figures.waiting + figures.ready == figures.open


async def page(
    conn: Connection, sight: Sight, filter: DeletionFilter, now: datetime, *, order: ListOrder = ListOrder.DATASET,
    descending: bool = False, after: UUID | None = None, limit: int = 1000,
) -> list[Deletion]:  # fmt: skip
    return await deletion_lists.page(
        conn, sight, filter, order=order, descending=descending, after=after, limit=limit, now=now
    )


async def test_everybody_gets_the_list_and_the_counts_that_the_rules_say_whatever_happened(
    west: Node, connect: writing.Connect
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    conn = await connect()
    now = await deletions.now(conn)
    async with conn.transaction():
        await deletions.begin(conn, [drawn(draw, n, now) for n in range(30)])
    [summed_up] = [each for each in invariants.INVARIANTS if "for lists and counts" in each.statement]
    for step in range(60):
        await act(conn, draw, now)
        assert await conn.fetch(summed_up.query) == [], f"step {step}"
        if step % 20 == 19:
            await check_lists(conn, now)
    await deletion_rules.store_rules(conn, "plain", DeletionRules(version=2), actor="anna", now=now)
    await deletion_rules.begin_revision(conn, "plain", 2)
    await check_lists(conn, now)


async def test_a_mark_says_what_its_parts_come_to_and_nothing_is_summed_up_again(
    west: Node, connect: writing.Connect
) -> None:
    draw, conn = random.Random(3), await connect()
    now = await deletions.now(conn)
    part = DependencyStatus("east", True, False, now + timedelta(hours=1))
    entries = [replace(drawn(draw, n, now), dependencies=(part,)) for n in range(20)]
    async with conn.transaction():
        await deletions.begin(conn, entries)
        updated = await conn.fetchval("SELECT n_tup_upd FROM pg_stat_xact_user_tables WHERE relname = 'deletion'")
    assert updated == 0
    assert [(each.is_blocked, each.late_after) for each in entries] == [(True, part.due)] * len(entries)


async def test_parts_that_come_in_several_statements_of_the_mark_are_summed_up(
    west: Node, connect: writing.Connect
) -> None:
    conn = await connect()
    now = await deletions.now(conn)
    bare = replace(drawn(random.Random(3), 1, now), dependencies=(), identifiers=())
    async with conn.transaction():  # as the release before does it: a mark says nothing of its parts
        await deletions.begin(conn, [bare])
        for name, required, hours in (("desk", False, 2), ("east", True, 1), ("easter", False, 3)):
            await conn.execute(
                """INSERT INTO fedstac.deletion_dependency (deletion, name, required, owns_identifier, due)
                   VALUES ($1, $2, $3, false, $4)""",
                bare.id, name, required, now + timedelta(hours=hours),
            )  # fmt: skip
    row = await conn.fetchrow("SELECT is_blocked, has_failed, late_after FROM fedstac.deletion WHERE id = $1", bare.id)
    assert tuple(row) == (True, False, now + timedelta(hours=1))


@pytest.mark.parametrize("order", ListOrder)
@pytest.mark.parametrize("descending", [False, True])
async def test_pages_of_the_list_follow_each_other_in_every_order(
    west: Node, connect: writing.Connect, order: ListOrder, descending: bool
) -> None:
    draw, conn = random.Random(7), await connect()
    now = await deletions.now(conn)
    async with conn.transaction():
        await deletions.begin(conn, [drawn(draw, n, now) for n in range(25)])
    whole = await page(conn, EVERY, DeletionFilter(), now, order=order, descending=descending)
    keys = [(getattr(each, order), each.id) for each in whole]
    if order is not ListOrder.DATASET:  # whose order is the database's
        assert keys == sorted(keys, reverse=descending)
    parts: list[Deletion] = []
    while more := await page(
        conn, EVERY, DeletionFilter(), now, order=order, descending=descending, limit=4,
        after=parts[-1].id if parts else None,
    ):  # fmt: skip
        parts += more
    assert parts == whole


# --- at a size where a wrong plan shows ---

COUNT = 6_000  # that are open, and as many that have ended
RARE_PLACES = (3, 200, 400)
FEW = 1_000  # rows that a statement may read for nothing
FILL = """
    INSERT INTO fedstac.deletion (id, collection, dataset, event_id, state, actor, reason, marked_at, grace_until,
                                  automatic, configuration, institution, ended_at)
    SELECT gen_random_uuid(), 'plain', 'thing-' || n, gen_random_uuid(),
           CASE WHEN n > $1 THEN 'deleted' ELSE 'open' END, 'anna', 'mistake ' || n,
           now() - n * interval '1 second', now() + interval '1 day' - n * interval '1 second', false, 1,
           'institution-' || n % 50, CASE WHEN n > $1 THEN now() END
    FROM generate_series(1, 2 * $1) n"""
FILL_PARTS = """
    INSERT INTO fedstac.deletion_dependency (deletion, name, required, owns_identifier, due, state)
    SELECT d.id, name, true, false, now() + interval '1 day',
           CASE WHEN d.state = 'deleted' THEN 'ok' ELSE 'pending' END
    FROM fedstac.deletion d CROSS JOIN unnest(ARRAY['east', 'north', 'desk']) name"""
RARE = """
    UPDATE fedstac.deletion_dependency p SET state = $1, due = now() - interval '1 hour'
    FROM fedstac.deletion d WHERE d.id = p.deletion AND d.dataset = ANY ($2::text[])"""


@pytest.fixture
async def many(
    west: Node, cluster: embedded.Cluster, dsn: str, connect: writing.Connect, administrator: Connection
) -> Connection:
    """A connection to a node with COUNT open deletions; three of them have a failure, three are ready, three late."""
    plans.tell_plans(cluster.dsn(), name_in(dsn))
    conn: Connection = await connect()
    await conn.execute(FILL, COUNT)
    await conn.execute(FILL_PARTS)
    for n, state in enumerate(("failed", "ok", "pending")):
        await conn.execute(RARE, state, [f"thing-{10 * place + n}" for place in RARE_PLACES])
    await conn.execute(
        "UPDATE fedstac.deletion SET grace_until = now() - interval '1 day' WHERE NOT is_blocked AND state = 'open'"
    )
    await administrator.execute("VACUUM ANALYZE fedstac.deletion, fedstac.deletion_dependency")
    return conn


async def check_plans(
    conn: Connection, run: Callable[[Connection], Awaitable[object]], *, wasted: int = FEW
) -> Sequence[plans.Plan]:
    plans_found = await plans.plans_of(conn, run)
    assert plans_found
    for plan in plans_found:
        assert plan.wasted.get("deletion", 0) <= wasted, str(plan)[:3000]
        assert plan.wasted.get("deletion_dependency", 0) <= wasted, plan
    return plans_found


async def test_a_page_of_the_list_reads_that_page(many: Connection) -> None:
    now = await deletions.now(many)
    first: list[Deletion] = []
    for order in ListOrder:
        for state in (DeletionState.OPEN, *(() if order is ListOrder.GRACE else (None,))):
            for descending in (False, True):
                ask = partial(
                    page, sight=EVERY, filter=DeletionFilter(state=state), now=now, order=order, descending=descending,
                    limit=50,
                )  # fmt: skip
                first = await ask(many)
                more = await ask(many, after=first[-1].id)
                assert len({*ids(first), *ids(more)}) == 100
                await check_plans(many, ask)
                await check_plans(many, partial(ask, after=first[-1].id))


async def test_the_few_that_are_ready_late_or_failed_are_found_among_many(many: Connection) -> None:
    now = await deletions.now(many)
    for stand, numbers in ((OpenStand.FAILED, (0,)), (OpenStand.READY, (1,)), (OpenStand.LATE, (0, 2))):
        ask = partial(page, sight=EVERY, filter=DeletionFilter(stand=stand), now=now, order=ListOrder.MARKED, limit=50)
        names = {f"thing-{10 * place + n}" for place in RARE_PLACES for n in numbers}
        assert {each.dataset for each in await ask(many)} == names
        await check_plans(many, ask)


@pytest.mark.parametrize("sight", [EVERY, Sight(places=(("plain", "institution-7"), ("plain", None)))])
async def test_counts_read_no_part_and_ask_once_for_each_place(many: Connection, sight: Sight) -> None:
    now = await deletions.now(many)
    numbers: dict[str, int] = {}

    async def ask(conn: Connection) -> None:
        numbers.update(await deletion_lists.counts(conn, sight, DeletionFilter(), now=now))

    [plan] = await check_plans(many, ask, wasted=4 * COUNT)  # a few passes; at this size not by an index
    assert "deletion_dependency" not in {node.get("Relation Name") for node in plan.nodes()}, plan
    if sight.sees_all:
        assert numbers == {
            "open": COUNT, "waiting": COUNT - 3, "ready": 3, "late": 6, "failed": 3, "unmarked": 0, "deleted": COUNT,
            "purged": 0,
        }  # fmt: skip
    else:
        assert (numbers["open"], numbers["deleted"]) == (COUNT // 50, COUNT // 50)


async def test_the_manager_finds_the_few_that_are_ready_among_many(many: Connection) -> None:
    now = await deletions.now(many)

    async def ask(conn: Connection) -> None:
        assert await deletion_lists.ready_projects(conn, EVERY, project=None, now=now) == {"plain": 3}
        assert await deletion_lists.ready_projects(conn, EVERY, project="plain", now=now) == {"plain": 3}
        assert (
            await deletion_lists.take_ready(conn, EVERY, "plain", moments=None, now=now, limit=500) == []
        )  # no records

    async with many.transaction():
        await check_plans(many, ask)
