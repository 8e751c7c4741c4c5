"""Several commands on one dataset in one batch; requests and rules that meet a mark that is newer than they know."""

from __future__ import annotations

import asyncio

import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import deletion_rules, deletions, invariants
from fedstac.db.connections import Connection
from fedstac.domain import deletion
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.delete import Delete
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.quarantine import Quarantine, Release
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Conflict, DeletionNotReady
from fedstac.domain.model import Outcome, Receipt
from fedstac.domain.policy import Policy
from fedstac.workers import deleting, publisher
from fedstac.workers import deletions as manager
from fedstac.workers.deleting import Caller
from tests.db import writing
from tests.db.writing import ANNA, Connect

CALLER = Caller(ANNA, Policy())
A, B = (Target("plain", f"thing-{number}", f"plain/thing-{number}") for number in range(2))
UNMARK, MARK, DELETE = Unmark(A, ANNA), Mark(A, ANNA), Delete(A, ANNA)
AUTOMATIC = {"grace_days": 0, "automatic": True}


@pytest.fixture
async def conn(west: Node, connect: Connect) -> Connection:
    """A connection to west, whose collection `plain` has two datasets; the grace of the first one's mark is over."""
    connection: Connection = await connect()
    await writing.publish(connection, writing.plain(0), writing.plain(1))
    await configure(connection, AUTOMATIC)
    await perform(connection, MARK)
    return connection


async def configure(conn: Connection, rules: object, *, apply_to_open: bool = False) -> None:
    wish = deletion.read_rules(rules)
    await deleting.configure(conn, CALLER, "plain", wish, expected=None, apply_to_open=apply_to_open)


async def perform(conn: Connection, *commands: Command) -> list[Receipt]:
    return await publication.perform(conn, writing.RULES, [
        Work(command, ANNA.name, type(command).__name__.lower()) for command in commands
    ])  # fmt: skip


async def states(conn: Connection, dataset: str = A.id) -> list[str]:
    """Return the states of the deletions of a dataset, the open one last."""
    rows = await conn.fetch(
        "SELECT state FROM fedstac.deletion WHERE dataset = $1 ORDER BY state = 'open', marked_at", dataset
    )
    return [row["state"] for row in rows]


async def work_off(node: Node, conn: Connection) -> None:
    while await publisher.work_once(node, conn, "worker"):
        pass


@pytest.mark.parametrize(
    ("commands", "outcomes", "entries"),
    [
        ((UNMARK, MARK, DELETE), (Outcome.UNMARKED, Outcome.MARKED, DeletionNotReady), ["unmarked", "open"]),
        ((UNMARK, DELETE), (Outcome.UNMARKED, Conflict), ["unmarked"]),
        ((DELETE, UNMARK, DELETE), (Outcome.DELETED, None, Outcome.IDENTICAL), ["deleted"]),
        ((MARK, DELETE), (Outcome.IDENTICAL, Outcome.DELETED), ["deleted"]),
        (
            (UNMARK, MARK, UNMARK, MARK, DELETE),
            (Outcome.UNMARKED, Outcome.MARKED, Outcome.UNMARKED, Outcome.MARKED, DeletionNotReady),
            ["unmarked", "unmarked", "open"],
        ),
    ],
)
async def test_a_command_sees_no_deletion_of_a_mark_that_an_earlier_one_of_its_batch_took_back(
    conn: Connection, commands: tuple[Command, ...], outcomes: tuple[Outcome | type[Conflict] | None, ...],
    entries: list[str],
) -> None:  # fmt: skip
    receipts = await perform(conn, *commands)
    for receipt, outcome in zip(receipts, outcomes, strict=True):
        if isinstance(outcome, Outcome):
            assert receipt.outcome is outcome, receipt.problem
        elif outcome is not None:
            assert type(receipt.problem) is outcome
        else:
            assert receipt.problem is not None
    assert await states(conn) == entries
    assert await invariants.check(conn) == []


async def test_quarantines_of_one_dataset_in_one_batch_are_one_case(conn: Connection) -> None:
    reasons = [Quarantine(B, ANNA, {"reason": reason}) for reason in ("personal data?", "yes")]
    receipts = await perform(conn, *reasons, Release(B, ANNA, "they were removed"), reasons[0])
    assert [receipt.problem for receipt in receipts] == [None] * 4
    events = await conn.fetch("SELECT event_id FROM fedstac.outbox WHERE type LIKE '%.quarantined.v1' ORDER BY id")
    first, _, last = (row["event_id"] for row in events)
    cases = await conn.fetch(
        "SELECT event_id, reason, decision FROM fedstac.quarantine_case ORDER BY opened_at, closed_at"
    )
    assert [tuple(row) for row in cases] == [(first, "yes", "they were removed"), (last, "personal data?", None)]


async def test_the_schedule_does_not_delete_a_mark_that_was_made_after_it_asked(west: Node, conn: Connection) -> None:
    await manager.step(west, conn)
    await perform(conn, UNMARK)
    await perform(conn, MARK)
    await work_off(west, conn)
    assert await states(conn) == ["unmarked", "open"]
    await manager.step(west, conn)  # the new mark is ready as well, and has a request of its own
    await work_off(west, conn)
    assert await states(conn) == ["unmarked", "deleted"]


async def test_the_schedule_does_not_delete_where_other_rules_hold_since_it_asked(west: Node, conn: Connection) -> None:
    await manager.step(west, conn)
    await configure(conn, {"grace_days": 0}, apply_to_open=True)
    await work_off(west, conn)
    assert await states(conn) == ["open"]


async def test_rules_for_open_deletions_wait_for_a_mark_that_is_under_way(conn: Connection, connect: Connect) -> None:
    administrator, watcher = await connect(), await connect()
    async with conn.transaction():
        await perform(conn, Mark(B, ANNA))
        change = asyncio.create_task(configure(administrator, {"grace_days": 9}, apply_to_open=True))
        await writing.is_blocked(watcher, administrator, conn)
    await change
    versions = await conn.fetch("SELECT configuration, grace_until > marked_at AS has_grace FROM fedstac.deletion")
    assert [tuple(row) for row in versions] == [(2, True)] * 2


async def test_a_mark_waits_for_rules_before_it_locks_anything_that_they_need(
    conn: Connection, connect: Connect
) -> None:
    worker, watcher = await connect(), await connect()
    async with conn.transaction():
        await deletion_rules.hold_rules(conn, "plain")
        work = asyncio.create_task(perform(worker, UNMARK, Mark(B, ANNA)))
        await writing.is_blocked(watcher, worker, conn)
        assert len(await deletions.lock_open_before(conn, "plain", 2, limit=9)) == 1
    assert [receipt.outcome for receipt in await work] == [Outcome.UNMARKED, Outcome.MARKED]


async def test_a_mark_ends_the_deletion_that_an_older_process_left_open(conn: Connection) -> None:
    await perform(conn, UNMARK)
    await conn.execute("UPDATE fedstac.deletion SET state = 'open', ended_at = NULL, ended_by = NULL")
    [receipt] = await perform(conn, MARK)
    assert receipt.outcome is Outcome.MARKED
    assert await states(conn) == ["unmarked", "open"]
    assert await invariants.check(conn) == []
