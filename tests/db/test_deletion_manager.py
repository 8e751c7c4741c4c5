"""The deletion manager on PostgreSQL: reminders, alerts, the automatic run; two managers, and managers that die."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import deletion_lists, deletion_rules, deletions
from fedstac.db.connections import Connection
from fedstac.db.deletion_lists import DeletionFilter, ListOrder, OpenStand, Sight
from fedstac.domain import deletion
from fedstac.domain.actions import Work
from fedstac.domain.actions.delete import Delete
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.quarantine import Quarantine
from fedstac.domain.actions.target import Target
from fedstac.domain.deletion_reports import DependencyReport
from fedstac.domain.errors import DeletionNotReady
from fedstac.domain.model import Outcome
from fedstac.domain.policy import DELETION_MANAGER, Policy, Principal
from fedstac.workers import deleting, publisher, statuses
from fedstac.workers import deletions as manager
from fedstac.workers.deleting import Caller
from tests.db import writing
from tests.db.writing import ANNA, Connect
from tests.support import clocks
from tests.support.forking import shared

REPOSITORY = Path(__file__).resolve().parents[2]
CALLER = Caller(ANNA, Policy())
EVERY = Sight(sees_all=True)
NO_GRACE = {"dependencies": [{"name": "east", "contact": "east@east.example"}, {"name": "north"}], "grace_days": 0}
IDS = [f"thing-{number}" for number in range(6)]


@pytest.fixture
async def conn(west: Node, connect: Connect) -> Connection:
    """A connection to west, whose collection `plain` has six datasets and rules with two dependencies."""
    connection: Connection = await connect()
    await writing.publish(connection, *(writing.plain(number) for number in range(len(IDS))))
    await configure(connection, NO_GRACE)
    return connection


async def configure(conn: Connection, rules: object) -> None:
    await deleting.configure(conn, CALLER, "plain", deletion.read_rules(rules), expected=None)


async def mark(conn: Connection, *ids: str) -> None:
    targets = [Target("plain", id, f"plain/{id}") for id in ids]
    await publication.perform(conn, writing.RULES, [Work(Mark(each, ANNA), ANNA.name, "mark") for each in targets])


async def settle(conn: Connection, *ids: str, state: str = "ok") -> None:
    await conn.execute(
        """UPDATE fedstac.deletion_dependency SET state = $2, reported_at = clock_timestamp()
           WHERE deletion IN (SELECT id FROM fedstac.deletion WHERE dataset = ANY ($1::text[]))""",
        list(ids), state,
    )  # fmt: skip
    await conn.execute(  # as if they had reported it
        """INSERT INTO fedstac.audit (actor, action, collection, dataset, outcome, detail)
           SELECT p.name, 'report-deletion', d.collection, d.dataset, 'done',
                  jsonb_build_object('deletion', d.id, 'name', p.name, 'outcome', p.state)::text
           FROM fedstac.deletion_dependency p JOIN fedstac.deletion d ON d.id = p.deletion
           WHERE d.dataset = ANY ($1::text[]) AND p.state IN ('ok', 'failed', 'nothing to do')""",
        list(ids),
    )


async def work_off(node: Node, conn: Connection) -> None:
    while await publisher.work_once(node, conn, "worker"):
        pass


async def states(conn: Connection) -> dict[str, str]:
    rows = await conn.fetch("SELECT dataset, state FROM fedstac.deletion ORDER BY marked_at")
    return {row["dataset"]: row["state"] for row in rows}


async def count(conn: Connection, table: str, condition: str = "true") -> int:
    return int(await conn.fetchval(f"SELECT count(*) FROM fedstac.{table} WHERE {condition}"))


async def test_the_list_chooses_as_the_rules_say(west: Node, conn: Connection) -> None:
    """`ready`, `waiting`, `late` and `failed` of SQL are those of domain/deletion.py, for states drawn at random."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    await mark(conn, *IDS)
    for _ in range(12):
        for id in IDS:
            await conn.execute(
                """UPDATE fedstac.deletion SET grace_until = clock_timestamp() + $2, identifiers = $3
                   WHERE dataset = $1""",
                id, timedelta(hours=draw.choice((-1, 1))), draw.choice(([], ["hdl:1/2"])),
            )  # fmt: skip
            for name in ("east", "north"):
                await conn.execute(
                    """UPDATE fedstac.deletion_dependency SET state = $3, required = $4, owns_identifier = $5, due = $6
                       WHERE name = $2 AND deletion IN (SELECT id FROM fedstac.deletion WHERE dataset = $1)""",
                    id, name, draw.choice(list(deletion.DependencyState)), draw.random() < 0.7, draw.random() < 0.3,
                    await deletions.now(conn) + timedelta(hours=draw.choice((-1, 1))),
                )  # fmt: skip
        now = await deletions.now(conn)
        every = await page(conn, DeletionFilter())
        expected = {
            OpenStand.WAITING: [each for each in every if each.missing(now)],
            OpenStand.READY: [each for each in every if not each.missing(now)],
            OpenStand.LATE: [each for each in every if any(part.is_late(now) for part in each.dependencies)],
            OpenStand.FAILED: [each for each in every if any(part.state == "failed" for part in each.dependencies)],
        }
        counts = await deletion_lists.counts(conn, EVERY, DeletionFilter(), now=now)
        figures = await deletion_lists.figures(conn)
        for stand, entries in expected.items():
            assert await page(conn, DeletionFilter(stand=stand)) == entries, stand
            assert counts[stand] == len(entries) == getattr(figures, stand)


async def page(conn: Connection, filter: DeletionFilter) -> list[deletion.Deletion]:
    now = await deletions.now(conn)
    return await deletion_lists.page(
        conn, EVERY, filter, order=ListOrder.DATASET, descending=False, after=None, limit=100, now=now
    )


async def test_reminders_are_sent_once_when_due_and_again_after_a_day(west: Node, conn: Connection) -> None:
    await mark(conn, *IDS[:2])
    await settle(conn, IDS[1])
    await manager.step(west, conn)
    assert await count(conn, "notification", "topic = 'deletion'") == 0  # none is due
    await conn.execute("UPDATE fedstac.deletion_dependency SET remind_next = clock_timestamp() - interval '1 minute'")
    await manager.step(west, conn)
    await manager.step(west, conn)
    rows = await conn.fetch(
        "SELECT name, state, reminders, remind_next - reminded_at AS pause FROM fedstac.deletion_dependency"
    )
    assert sorted((row["name"], row["reminders"]) for row in rows if row["state"] == "pending") == [
        ("east", 1), ("north", 1),
    ]  # fmt: skip
    assert {row["pause"] for row in rows if row["reminders"]} == {timedelta(days=1)}
    assert all(row["reminders"] == 0 for row in rows if row["state"] == "ok")
    [about] = await conn.fetch("SELECT about FROM fedstac.notification WHERE topic = 'deletion'")
    assert [each.split(" ")[1] for each in about["about"]] == ["east"]  # north has no contact
    assert await count(conn, "audit", f"action = 'remind-deletion' AND actor = '{DELETION_MANAGER}'") == 2


async def test_reminders_of_the_manager_and_of_a_person_at_once_both_count(
    west: Node, conn: Connection, connect: Connect
) -> None:
    await mark(conn, IDS[0])
    id: UUID = await conn.fetchval("SELECT id FROM fedstac.deletion")
    person, watcher = await connect(), await connect()
    async with conn.transaction():
        now = await deletions.now(conn) + timedelta(days=8)
        await deleting.send_reminders(conn, await deletions.due_reminders(conn, now=now, limit=9), now=now)
        reminder = asyncio.create_task(deleting.remind(person, CALLER, id, ["east"]))
        await writing.is_blocked(watcher, person, conn)
    await reminder
    rows = await conn.fetch("SELECT name, reminders FROM fedstac.deletion_dependency ORDER BY name")
    assert [tuple(row) for row in rows] == [("east", 2), ("north", 1)]


@pytest.mark.parametrize("days", [-30, 30])
async def test_the_clock_of_a_process_decides_nothing(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Marks, grace, reports and waivers are dated and compared by the clock of the database."""
    clocks.shift(monkeypatch, timedelta(days=days))
    await configure(conn, {**NO_GRACE, "automatic": True})
    await mark(conn, *IDS[:2])
    first, second = [row["id"] for row in await conn.fetch("SELECT id FROM fedstac.deletion ORDER BY dataset")]
    document = deleting.document_for(await deleting.show(conn, CALLER, first), CALLER)
    assert (document["late"], {each["rule"] for each in document["missing"]}) == (False, {"dependency"})
    await deleting.remind(conn, CALLER, first)
    await statuses.report(conn, [
        DependencyReport(name, deletion.DependencyState.OK, None, "plain", IDS[0]) for name in ("east", "north")
    ], actor="east")  # fmt: skip
    for name in ("east", "north"):
        view = await deleting.waive(conn, CALLER, second, name=name, reason="it is gone")
    assert deleting.document_for(view, CALLER)["ready"]
    listed = await deleting.list_page(conn, CALLER, DeletionFilter())
    assert [deleting.document_for(each, CALLER)["ready"] for each in listed.entries] == [True, True]
    target = Target("plain", IDS[0], f"plain/{IDS[0]}")
    assert (await publication.preview(conn, writing.RULES, Delete(target, ANNA))).outcome is Outcome.DELETED
    moments = """SELECT reminded_at AS at FROM fedstac.deletion_dependency WHERE reminded_at IS NOT NULL
                 UNION ALL SELECT reported_at FROM fedstac.deletion_dependency WHERE reported_at IS NOT NULL
                 UNION ALL SELECT at FROM fedstac.deletion_waiver
                 UNION ALL SELECT at FROM fedstac.deletion_configuration"""
    others = await conn.fetch(
        f"SELECT at FROM ({moments}) m WHERE abs(extract(epoch FROM clock_timestamp() - at)) > 1e5"
    )
    assert others == []
    await manager.step(west, conn)
    await work_off(west, conn)
    assert set((await states(conn)).values()) == {"deleted"}


async def test_reminders_of_what_a_process_of_the_release_before_ended_are_forgotten(
    west: Node, conn: Connection
) -> None:
    await mark(conn, *IDS[:2])
    await conn.execute(
        "UPDATE fedstac.deletion SET state = 'unmarked', ended_at = now(), ended_by = 'anna' WHERE dataset = $1", IDS[0]
    )
    await conn.execute("UPDATE fedstac.deletion_dependency SET remind_next = clock_timestamp() - interval '1 minute'")
    due = await deletions.due_reminders(conn, now=await deletions.now(conn), limit=100)
    assert {each.dataset for each in due} == {IDS[1]}
    rows = await conn.fetch(
        """SELECT DISTINCT d.dataset, p.remind_next IS NULL AS is_forgotten, p.alerted_at = p.due AS is_known_late
           FROM fedstac.deletion_dependency p JOIN fedstac.deletion d ON d.id = p.deletion ORDER BY 1"""
    )
    assert [tuple(row) for row in rows] == [(IDS[0], True, True), (IDS[1], False, None)]


async def test_operators_hear_of_a_late_dependency_once(west: Node, conn: Connection) -> None:
    await mark(conn, *IDS[:3])
    await conn.execute(
        "UPDATE fedstac.deletion_dependency SET due = clock_timestamp() - interval '1 minute' WHERE name = 'north'"
    )
    for _ in range(2):
        await manager.step(west, conn)
    [trouble] = await conn.fetch("SELECT kind, place, what, detail FROM fedstac.trouble")
    assert (trouble["kind"], trouble["place"], trouble["what"]) == ("deletion", "plain", "north is late")
    assert trouble["detail"].endswith("with thing-0, and 2 more")


async def test_the_schedule_deletes_what_is_ready_and_nothing_else(west: Node, conn: Connection) -> None:
    await mark(conn, IDS[0])
    await configure(conn, {**NO_GRACE, "automatic": True})
    await mark(conn, *IDS[1:5])
    await settle(conn, *IDS[:3])
    await settle(conn, IDS[3], state="failed")
    await manager.step(west, conn)
    await manager.step(west, conn)  # asks for nothing twice
    assert await count(conn, "request") == 1
    await work_off(west, conn)
    assert await states(conn) == {  # thing-0 is of rules by which somebody deletes
        "thing-0": "open", "thing-1": "deleted", "thing-2": "deleted", "thing-3": "open", "thing-4": "open",
    }  # fmt: skip
    row = await conn.fetchrow("SELECT * FROM fedstac.audit WHERE action = 'delete' AND dataset = 'thing-1'")
    assert row is not None
    assert (row["actor"], row["rule"]) == (DELETION_MANAGER, "builtin: deletion manager")
    await settle(conn, *IDS[3:5])
    await manager.step(west, conn)
    await work_off(west, conn)
    assert list((await states(conn)).values()) == ["open", *["deleted"] * 4]
    assert await writing.violations(conn) == []


async def test_a_schedule_of_the_day_waits_for_its_time(west: Node, conn: Connection) -> None:
    soon = await deletions.now(conn) + timedelta(minutes=10)
    await configure(conn, {**NO_GRACE, "automatic": True, "schedule": f"{soon:%H:%M}"})
    await mark(conn, *IDS[:2])
    await settle(conn, *IDS[:2])
    await manager.step(west, conn)
    assert await count(conn, "request") == 0  # it began last yesterday, before they were ready
    await conn.execute(
        """UPDATE fedstac.deletion SET marked_at = marked_at - interval '2 days',
                  grace_until = grace_until - interval '2 days' WHERE dataset = $1""",
        IDS[0],
    )
    await conn.execute("UPDATE fedstac.deletion_dependency SET reported_at = reported_at - interval '1 day'")
    await manager.step(west, conn)
    await work_off(west, conn)
    assert await states(conn) == {"thing-0": "deleted", "thing-1": "open"}


async def test_all_that_is_blocked_is_looked_at_again_only_when_something_changed(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    take_ready = deletion_lists.take_ready

    async def counted(conn: Connection, sight: Sight, project: str, **options: Any) -> Any:
        looks.append(project)
        return await take_ready(conn, sight, project, **options)

    monkeypatch.setattr(deletion_lists, "take_ready", counted)
    await configure(conn, {**NO_GRACE, "automatic": True})
    await mark(conn, *IDS[:2])
    watch = manager.ScheduleWatch()

    async def looks_of_two_steps() -> int:
        before = len(looks)
        await manager.step(west, conn, watch)
        await manager.step(west, conn, watch)
        return len(looks) - before

    assert await looks_of_two_steps() == 1
    await mark(conn, IDS[2])
    assert await looks_of_two_steps() == 1
    await settle(conn, IDS[0], state="failed")
    assert await looks_of_two_steps() == 1
    await settle(conn, IDS[0])
    assert await looks_of_two_steps() == 2, "after it found one it looks for more"
    assert await count(conn, "request") == 1
    assert await looks_of_two_steps() == 0
    later = await deletions.now(conn) + timedelta(milliseconds=300)
    await conn.execute("UPDATE fedstac.deletion SET grace_until = $2 WHERE dataset = $1", IDS[1], later)
    assert await looks_of_two_steps() == 1, "the moment at which a period of grace ends is new"
    await conn.fetchval("SELECT pg_sleep_until($1)", later)
    assert await looks_of_two_steps() == 1
    assert watch.at is not None
    watch.at -= manager.RELOOK
    assert await looks_of_two_steps() == 1
    watch.at += timedelta(hours=1)
    assert await looks_of_two_steps() == 1, "the clock stepped back: what is newer is not the newest"


async def test_what_was_refused_is_asked_for_again_when_something_changed_and_operators_hear_of_it(
    west: Node, conn: Connection
) -> None:
    await configure(conn, {**NO_GRACE, "automatic": True})
    await mark(conn, IDS[0])
    await settle(conn, IDS[0])
    await manager.step(west, conn)
    await settle(conn, IDS[0], state="failed")  # between the request and the worker
    await work_off(west, conn)
    assert await states(conn) == {IDS[0]: "open"}
    await manager.step(west, conn)
    assert await count(conn, "request") == 1
    await settle(conn, IDS[0])
    await manager.step(west, conn)
    await work_off(west, conn)
    assert await states(conn) == {IDS[0]: "deleted"}
    assert await count(conn, "trouble", "kind = 'deletion-refused'") == 1


async def test_who_deletes_all_that_is_ready_asks_for_each_once_whatever_is_refused_meanwhile(
    west: Node, conn: Connection
) -> None:
    await mark(conn, *IDS[:2])
    await settle(conn, *IDS[:2])
    begun = await deletions.now(conn)
    bert = manager.Submitter("bert")  # may delete nothing: the workers refuse it

    async def ask(since: datetime) -> int:
        request = await manager.ask_to_delete(west, conn, bert, EVERY, "plain", asked_before=since)
        await work_off(west, conn)
        return request.total if request else 0

    assert [await ask(begun) for _ in range(2)] == [2, 0]
    assert await states(conn) == {IDS[0]: "open", IDS[1]: "open"}
    assert await ask(await deletions.now(conn)) == 2, "later it is asked for again"
    await mark(conn, IDS[2])
    await settle(conn, IDS[2])
    async with conn.transaction():
        [first] = await deletion_lists.take_ready(
            conn, EVERY, "plain", moments=None, now=await deletions.now(conn), limit=1
        )
    assert first.dataset == IDS[2], "nobody has asked for it yet"


async def test_the_schedule_leaves_what_is_under_quarantine_to_people_who_are_told_once(
    west: Node, conn: Connection
) -> None:
    await configure(conn, {**NO_GRACE, "automatic": True})
    target = Target("plain", IDS[0], f"plain/{IDS[0]}")
    quarantine = Quarantine(target, ANNA, {"reason": "personal data?"})
    [receipt] = await publication.perform(conn, writing.RULES, [Work(quarantine, ANNA.name, "quarantine")])
    assert receipt.problem is None
    await mark(conn, *IDS[:2])
    await settle(conn, IDS[1])
    await manager.step(west, conn)
    assert await count(conn, "trouble", "kind = 'deletion-quarantined'") == 0  # it is not ready
    await settle(conn, IDS[0])
    for _ in range(2):
        await manager.step(west, conn)
        await work_off(west, conn)
    assert await states(conn) == {IDS[0]: "open", IDS[1]: "deleted"}
    await conn.execute("UPDATE fedstac.deletion SET delete_asked_at = delete_asked_at - interval '2 days'")
    await manager.step(west, conn)
    assert await count(conn, "request") == 1  # about the other one
    [trouble] = await conn.fetch("SELECT place, what, detail FROM fedstac.trouble WHERE kind LIKE 'deletion-%'")
    assert tuple(trouble.values()) == ("plain", "1 under quarantine wait for somebody", f"the first is {IDS[0]}")
    [receipt] = await publication.perform(conn, writing.RULES, [Work(Delete(target, ANNA), ANNA.name, "delete")])
    assert receipt.problem is None
    assert await writing.violations(conn) == []


async def test_the_owner_that_one_person_waived_is_waived_when_it_owns_the_identifiers_no_longer(
    west: Node, conn: Connection
) -> None:
    await configure(conn, {"dependencies": [{"name": "doi", "owns_identifier": True}], "grace_days": 0})
    await mark(conn, IDS[0])
    id: UUID = await conn.fetchval("SELECT id FROM fedstac.deletion")
    view = await deleting.waive(conn, CALLER, id, name="doi", reason="it is gone")
    assert view.deletion.missing(view.at)
    rules = deletion.read_rules({"dependencies": [{"name": "doi"}], "grace_days": 0})
    await deleting.configure(conn, CALLER, "plain", rules, expected=None, apply_to_open=True)
    entry = await deletions.read(conn, id)
    assert entry is not None
    assert entry.missing(await deletions.now(conn)) == ()
    assert [(part.state, len(part.waivers)) for part in entry.dependencies] == [("waived", 1)]
    assert await deletions.due_reminders(conn, now=entry.marked_at + timedelta(days=99), limit=9) == []


async def test_two_managers_by_mistake_ask_for_each_dataset_once(
    west: Node, conn: Connection, connect: Connect
) -> None:
    await mark(conn, *IDS)
    await settle(conn, *IDS)
    others: Sequence[Connection] = [await connect() for _ in range(3)]
    made = await asyncio.gather(
        *(manager.ask_to_delete(west, each, manager.MANAGER, EVERY, "plain") for each in others)
    )
    assert sum(request.total for request in made if request) == len(IDS)
    async with deletions.leading(others[0]) as first, deletions.leading(others[1]) as second:
        assert (first, second) == (True, False)
        assert await manager.step(west, others[2]) is False
    await work_off(west, conn)
    assert set((await states(conn)).values()) == {"deleted"}
    assert await count(conn, "outbox", "type LIKE '%.deleted.v1'") == len(IDS)


MANAGE = """
import asyncio, sys
from fedstac import bootstrap
from fedstac.settings import Settings
from fedstac.workers import deleting, deletions
from tests.support import failpoints

async def manage():
    settings = Settings(_env_file=None, node="west", dsn=sys.argv[1])
    async with bootstrap.node(settings) as node, node.pool.acquire() as conn:
        while True:  # the session of the one that was killed before may still lead
            await deletions.step(node, conn)
            await asyncio.sleep(0.05)

deleting.REVISED_AT_ONCE = int(sys.argv[3])
failpoints.install(sys.argv[2])
asyncio.run(manage())
"""


async def die(west: Node, words: str, *, revised_at_once: int = 500) -> None:
    """Run a manager that is killed at a failpoint."""
    child = await asyncio.create_subprocess_exec(
        *shared().program, "-c", MANAGE, west.settings.dsn, f"deletions.{words}", str(revised_at_once), cwd=REPOSITORY
    )
    assert await child.wait() == -signal.SIGKILL, words


async def test_a_manager_that_is_killed_in_a_step_does_everything_once_all_the_same(
    west: Node, conn: Connection
) -> None:
    await configure(conn, {**NO_GRACE, "automatic": True})
    await mark(conn, *IDS)
    await settle(conn, *IDS[1:])
    await conn.execute(
        """UPDATE fedstac.deletion_dependency SET remind_next = clock_timestamp() - interval '1 minute',
                  due = clock_timestamp() - interval '1 minute' WHERE state = 'pending'"""
    )
    for name in ("reminding", "reminded", "alerting", "asking", "asked"):
        await die(west, f"{name}=kill")
        assert await writing.violations(conn) == []
    await manager.step(west, conn)
    await work_off(west, conn)
    assert await states(conn) == {"thing-0": "open", **dict.fromkeys(IDS[1:], "deleted")}
    assert await count(conn, "outbox", "type LIKE '%.deleted.v1'") == len(IDS) - 1
    assert await count(conn, "request_item", "dataset <> 'thing-0'") == len(IDS) - 1
    assert await count(conn, "deletion_dependency", "reminders = 1") == 2
    assert await count(conn, "trouble", "kind = 'deletion'") == 2


async def test_rules_for_open_deletions_change_all_of_them_or_none(west: Node, conn: Connection) -> None:
    await mark(conn, *IDS)
    await settle(conn, IDS[0], state="failed")
    [entry] = [each for each in await page(conn, DeletionFilter()) if each.dataset == IDS[1]]
    wish = deletion.read_rules({"dependencies": [{"name": "north", "days": 3}, {"name": "desk"}], "grace_days": 5})
    before = await deleting.affected_by(conn, CALLER, "plain", wish)
    assert (before.open.count, before.after.version) == (len(IDS), 2)
    await deleting.configure(conn, CALLER, "plain", wish, expected=1, apply_to_open=True)
    after = {each.dataset: each for each in await page(conn, DeletionFilter())}
    assert {each.rules for each in after.values()} == {2}
    assert [part.name for part in after[IDS[1]].dependencies] == ["desk", "north"]
    assert [(part.name, part.required) for part in after[IDS[0]].dependencies] == [
        ("desk", True), ("north", True), ("east", False),
    ]  # fmt: skip
    expected = deletion.revise(entry, before.after, await deletions.now(conn))
    assert after[IDS[1]].grace_until == expected.grace_until == entry.marked_at + timedelta(days=5)
    assert await count(conn, "audit", "action = 'configure-deletions'") == 2
    await deleting.configure(conn, CALLER, "plain", wish, expected=2, apply_to_open=True)  # once more: no new version
    assert {each.rules for each in await page(conn, DeletionFilter())} == {2}


async def test_rules_for_many_open_deletions_are_applied_in_parts_and_none_is_deleted_before_it_has_them(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await configure(conn, {**NO_GRACE, "automatic": True})
    await mark(conn, *IDS)
    await settle(conn, *IDS)
    monkeypatch.setattr(deleting, "REVISED_AT_ONCE", 2)
    wish = deletion.read_rules({**NO_GRACE, "automatic": True, "dependencies": [{"name": "east"}, {"name": "desk"}]})
    effect = await deleting.configure(conn, CALLER, "plain", wish, expected=None, apply_to_open=True)
    newest = effect.after.version
    now = await deletions.now(conn)
    waiting = [each for each in await page(conn, DeletionFilter()) if each.rules < newest]
    assert len(waiting) == len(IDS) - 2
    assert {each.missing(now)[0].rule for each in waiting} == {"rules"}
    assert (await deletion_lists.counts(conn, EVERY, DeletionFilter(), now=now))["ready"] == 0
    assert await page(conn, DeletionFilter(stand=OpenStand.READY)) == []
    target = Target("plain", waiting[0].dataset, f"plain/{waiting[0].dataset}")
    [receipt] = await publication.perform(conn, writing.RULES, [Work(Delete(target, ANNA), ANNA.name, "delete")])
    assert isinstance(receipt.problem, DeletionNotReady)
    await manager.step(west, conn)
    assert await count(conn, "request") == 0
    later = {**NO_GRACE, "automatic": True, "grace_days": 3}
    await configure(conn, later)  # for marks made from now on
    while await manager.step(west, conn):
        pass
    entries = await page(conn, DeletionFilter())
    assert {each.rules for each in entries} == {newest}
    assert {tuple(part.name for part in each.dependencies if part.required) for each in entries} == {("desk", "east")}
    assert await count(conn, "deletion_revision") == 0
    assert await writing.violations(conn) == []


async def test_rules_that_are_applied_in_parts_survive_a_kill_between_any_two_of_them(
    west: Node, conn: Connection
) -> None:
    await mark(conn, *IDS)
    rules = deletion.read_rules({"dependencies": [{"name": "desk"}], "grace_days": 5})
    effect = await deleting.configure(conn, CALLER, "plain", rules, expected=None)
    await deletion_rules.begin_revision(conn, "plain", effect.after.version)
    for words, revised in (("revising=kill", 0), ("revised=kill", 2), ("revised=kill:2", 6), ("revising=kill", 6)):
        await die(west, words, revised_at_once=2)
        assert await count(conn, "deletion", f"configuration = {effect.after.version}") == revised, words
    assert await manager.step(west, conn) is False
    assert await count(conn, "deletion_revision") == 0


async def test_two_people_at_once_make_two_waivers_of_the_guard(west: Node, conn: Connection, connect: Connect) -> None:
    await mark(conn, IDS[0])
    await conn.execute("UPDATE fedstac.deletion_dependency SET owns_identifier = true WHERE name = 'east'")
    id: UUID = await conn.fetchval("SELECT id FROM fedstac.deletion")
    callers = [Caller(Principal(name, frozenset({"admin"})), Policy()) for name in ("anna", "anna", "boris")]
    others = [await connect() for _ in callers]
    await asyncio.gather(*(
        deleting.waive(each, caller, id, name="east", reason="it is gone")
        for each, caller in zip(others, callers, strict=True)
    ))  # fmt: skip
    assert await count(conn, "deletion_waiver") == 2
    assert await conn.fetchval("SELECT state FROM fedstac.deletion_dependency WHERE name = 'east'") == "waived"
    assert await count(conn, "audit", "action = 'waive-deletion'") == 2
