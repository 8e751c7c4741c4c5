"""Reports of dependencies on PostgreSQL: late, twice, out of order, and beside marks, waivers and ends."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.db import deletion_reports, deletions, nodes
from fedstac.db.connections import Connection
from fedstac.db.deletions import DeletionEnd
from fedstac.db.status_topics import StatusSource
from fedstac.domain import deletion, digests
from fedstac.domain.deletion import DeletionState, Dependency, DependencyState
from fedstac.domain.deletion_reports import DependencyReport, ReportResult
from fedstac.messaging import statuses as messages
from fedstac.messaging.sources.chain import LogMessage
from fedstac.workers import statuses
from tests.db.writing import Connect

NOW = datetime(2026, 11, 29, tzinfo=UTC)
RULES = deletion.DeletionRules((Dependency("east"), Dependency("south/replica"), Dependency("ark", required=False)))
NAMES = ("east", "south/replica", "ark", "nobody")
OUTCOMES = (DependencyState.OK, DependencyState.FAILED, DependencyState.NOTHING_TO_DO)
DONE = ("ok", "nothing to do", "waived")


async def mark(conn: Connection, dataset: str, *, now: datetime = NOW) -> UUID:
    """Open a deletion as a mark does. Return the id of the event."""
    event_id = uuid4()
    async with conn.transaction():
        await deletions.begin(conn, [deletion.begin(
            RULES, id=uuid4(), collection="c", dataset=dataset, event_id=event_id, actor="anna", now=now, reason=None,
            request=None, identifiers=(),
        )])  # fmt: skip
    return event_id


async def end(conn: Connection, dataset: str, state: DeletionState) -> None:
    async with conn.transaction():
        await deletions.end(conn, [DeletionEnd("c", dataset, state, "anna")], now=NOW)


async def send(conn: Connection, *reports: DependencyReport) -> list[ReportResult]:
    async with conn.transaction():
        answers = await deletion_reports.store(conn, reports, actor="node:x")
    return [each.result for each in answers]


async def states(conn: Connection, event_id: UUID) -> dict[str, tuple[str, str | None]]:
    rows = await conn.fetch(
        """SELECT name, p.state, comment FROM fedstac.deletion_dependency p
           JOIN fedstac.deletion d ON d.id = p.deletion WHERE event_id = $1""",
        event_id,
    )
    return {row["name"]: (row["state"], row["comment"]) for row in rows}


async def audited(conn: Connection) -> int:
    return int(await conn.fetchval("SELECT count(*) FROM fedstac.audit WHERE action = 'report-deletion'"))


async def test_one_body_has_reports_of_several_deletions_and_each_has_its_answer(conn: Connection) -> None:
    first, second = await mark(conn, "a"), await mark(conn, "b")
    ok, failed, nothing = OUTCOMES
    assert await send(
        conn, DependencyReport("east", failed, first, comment="the disk is away"), DependencyReport("east", ok, first),
        DependencyReport("ark", nothing, None, "c", "b"), DependencyReport("nobody", ok, first),
        DependencyReport("east", ok, uuid4()), DependencyReport("east", ok, None, "c", "unknown"),
        DependencyReport("east", ok, first),
    ) == ["stored", "stored", "stored", "not asked", "not asked", "not asked", "unchanged"]  # fmt: skip
    assert (await states(conn, first))["east"] == ("ok", None)
    assert (await states(conn, second))["ark"] == ("nothing to do", None)
    rows = await conn.fetch("SELECT dataset, detail, actor FROM fedstac.audit WHERE action = 'report-deletion'")
    assert [(row["dataset"], orjson.loads(row["detail"])["outcome"]) for row in rows] == [
        ("a", "failed"), ("a", "ok"), ("b", "nothing to do")
    ]  # fmt: skip
    assert {row["actor"] for row in rows} == {"node:x"}
    assert await conn.fetchval("SELECT count(*) FROM fedstac.deletion_dependency WHERE remind_next IS NULL") == 2


async def test_nobody_reports_for_the_owner_of_identifiers_that_the_rules_do_not_name(conn: Connection) -> None:
    event_id = uuid4()
    await deletions.begin(conn, [deletion.begin(
        RULES, id=uuid4(), collection="c", dataset="a", event_id=event_id, actor="anna", now=NOW, reason=None,
        request=None, identifiers=("hdl:21.14100/1",),
    )])  # fmt: skip
    guard = deletion.IDENTIFIER_GUARD
    assert await send(conn, DependencyReport(guard, DependencyState.OK, event_id)) == ["not asked"]
    assert (await states(conn, event_id))[guard] == ("pending", None)


async def test_a_mark_that_was_taken_back_takes_no_report_and_the_next_mark_waits_for_a_new_one(
    conn: Connection,
) -> None:
    before = await mark(conn, "a")
    await end(conn, "a", DeletionState.UNMARKED)
    ok = DependencyState.OK
    assert await send(conn, DependencyReport("east", ok, before), DependencyReport("east", ok, None, "c", "a")) == [
        "too late",
        "too late",
    ]
    again = await mark(conn, "a", now=NOW + timedelta(hours=1))
    assert await send(conn, DependencyReport("east", ok, before)) == ["too late"]
    assert (await states(conn, again))["east"][0] == "pending"
    assert await send(conn, DependencyReport("east", ok, None, "c", "a")) == ["stored"]
    assert [(await states(conn, each))["east"][0] for each in (before, again)] == ["pending", "ok"]


async def test_who_reports_after_the_deletion_is_shown_as_late_and_changes_nothing_else(conn: Connection) -> None:
    event_id = await mark(conn, "a")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived' WHERE required")
    await end(conn, "a", DeletionState.DELETED)
    ok, failed, _ = OUTCOMES
    assert await send(conn, DependencyReport("ark", ok, event_id), DependencyReport("east", failed, event_id)) == [
        "stored",
        "unchanged",
    ]
    assert await send(conn, DependencyReport("east", ok, None, "c", "a")) == ["stored"]
    assert await states(conn, event_id) == {
        "ark": ("ok", None), "east": ("ok", None), "south/replica": ("waived", None)
    }  # fmt: skip


async def test_after_the_purge_no_comment_is_kept(conn: Connection) -> None:
    event_id = await mark(conn, "a")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived' WHERE required")
    await end(conn, "a", DeletionState.DELETED)
    await end(conn, "a", DeletionState.PURGED)
    ok, failed, _ = OUTCOMES
    failure = DependencyReport("ark", failed, event_id, comment="a word of it")
    assert await send(conn, failure, failure) == ["stored", "unchanged"]
    assert (await states(conn, event_id))["ark"] == ("failed", None)
    assert await send(conn, DependencyReport("ark", ok, event_id, comment="a word of it")) == ["stored"]
    assert (await states(conn, event_id))["ark"] == ("ok", None)


@dataclass
class Model:
    """What the table has to hold, kept by hand: of each mark the state and comment of each dependency."""

    parts: dict[UUID, dict[str, tuple[str, str | None]]] = field(default_factory=dict)
    unmarked: set[UUID] = field(default_factory=set)

    def report(self, report: DependencyReport, event_id: UUID) -> str:
        parts = self.parts[event_id]
        if report.name not in parts:
            return "not asked"
        if event_id in self.unmarked:
            return "too late"
        state, comment = parts[report.name]
        new = report.outcome.value
        if state in ("ok", "nothing to do") or (state == "waived" and new == "failed"):
            return "unchanged"
        if (state, comment) == (new, report.comment):
            return "unchanged"
        parts[report.name] = (new, report.comment)
        return "stored"


@pytest.mark.parametrize("seed", range(6))
async def test_any_order_of_reports_leaves_what_a_small_model_says(
    connect: Connect, conn: Connection, seed: int
) -> None:
    print("seed", seed)
    chance, model, stored = random.Random(seed), Model(), 0
    current: dict[str, UUID] = {}
    sent: list[tuple[DependencyReport, UUID]] = []
    for step in range(60):
        dataset = chance.choice("ab")
        match chance.randrange(8):
            case 0 if dataset not in current:
                current[dataset] = await mark(conn, dataset, now=NOW + timedelta(seconds=step))
                model.parts[current[dataset]] = dict.fromkeys(("east", "south/replica", "ark"), ("pending", None))
            case 1 if dataset in current and chance.random() < 0.5:
                await end(conn, dataset, DeletionState.UNMARKED)
                model.unmarked.add(current.pop(dataset))
            case 2 if dataset in current and chance.random() < 0.3:
                await conn.execute(
                    """UPDATE fedstac.deletion_dependency SET state = 'waived' WHERE name = 'east' AND deletion =
                       (SELECT id FROM fedstac.deletion WHERE event_id = $1) AND state IN ('pending', 'failed')""",
                    current[dataset],
                )
                state, comment = model.parts[current[dataset]]["east"]
                if state not in DONE:
                    model.parts[current[dataset]]["east"] = ("waived", comment)
            case _ if model.parts:
                batch = [_report(chance, model, current, sent) for _ in range(chance.randint(1, 5))]
                want = [model.report(report, event_id) for report, event_id in batch]
                assert await send(conn, *(report for report, _ in batch)) == want
                stored += want.count("stored")
    for event_id, parts in model.parts.items():
        assert await states(conn, event_id) == parts
    assert await audited(conn) == stored


def _report(
    chance: random.Random, model: Model, current: dict[str, UUID], sent: list[tuple[DependencyReport, UUID]]
) -> tuple[DependencyReport, UUID]:
    """Return a report and the mark that it is about: a new one, or one that was sent before."""
    if sent and chance.random() < 0.4:
        return chance.choice(sent)  # twice, late, out of order
    comment = chance.choice((None, "x", "y"))
    name, outcome = chance.choice(NAMES), chance.choice(OUTCOMES)
    if current and chance.random() < 0.3:
        dataset = chance.choice(sorted(current))
        return DependencyReport(name, outcome, None, "c", dataset, comment), current[dataset]
    event_id = chance.choice(list(model.parts))
    sent.append((DependencyReport(name, outcome, event_id, comment=comment), event_id))
    return sent[-1]


async def test_reports_of_many_at_once_wait_for_one_another(connect: Connect, conn: Connection) -> None:
    """Several connections send the same reports in different orders: each changes its row once, and nobody is stuck."""
    events = [await mark(conn, f"d{n}") for n in range(20)]
    others = [await connect() for _ in range(4)]
    chance = random.Random(3)

    async def tell(own: Connection) -> int:
        reports = [DependencyReport(name, DependencyState.OK, event) for event in events for name in ("east", "ark")]
        chance.shuffle(reports)
        results = [result for n in range(0, 40, 10) for result in await send(own, *reports[n : n + 10])]
        return results.count(ReportResult.STORED)

    assert sum(await asyncio.gather(*(tell(own) for own in others))) == 40 == await audited(conn)


@dataclass
class StatusLog:
    """A topic of acknowledgements as a process reads it from the beginning at each of its starts."""

    node: Node
    key: bytes
    values: list[bytes] = field(default_factory=list)

    def send(self, *reports: dict[str, object]) -> None:
        body = {"node": "east", "epoch": 1, "through": 0, "exceptions": [], "reports": list(reports)}
        self.values.append(messages.sign(body, self.key))

    async def read_from_start(self, identity: str = "made-first") -> None:
        for offset, value in enumerate(self.values):
            topic = StatusSource("kafka://broker/acks", identity)
            await statuses.take(self.node, LogMessage("0", offset, {}, value), topic)


@pytest.fixture
async def topic(node: Node, conn: Connection) -> StatusLog:
    token = await nodes.issue_token(conn, "east", ["node:east"])
    return StatusLog(node, digests.of_token(token))


async def test_an_old_report_in_a_topic_fulfils_no_new_duty(topic: StatusLog, conn: Connection) -> None:
    """Neither that of an earlier mark, nor, after a restart, one whose part began anew with other rules."""
    await mark(conn, "a")
    topic.send({"collection": "c", "dataset": "a", "outcome": "ok"})
    await end(conn, "a", DeletionState.UNMARKED)
    second = await mark(conn, "a", now=NOW + timedelta(days=1))
    await topic.read_from_start()
    assert (await states(conn, second))["east"] == ("pending", None)

    topic.send({"event_id": str(second), "outcome": "ok", "comment": "gone"})
    await topic.read_from_start()
    assert (await states(conn, second))["east"] == ("ok", "gone")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'pending', comment = NULL")  # as new rules do
    await topic.read_from_start()
    assert (await states(conn, second))["east"] == ("pending", None)
    topic.send({"event_id": str(second), "outcome": "failed"})
    await topic.read_from_start()
    assert (await states(conn, second))["east"] == ("failed", None)


async def test_a_topic_that_was_made_anew_is_read_from_its_beginning(topic: StatusLog, conn: Connection) -> None:
    event_id = await mark(conn, "a")
    topic.values = [b"", b"none"]
    await topic.read_from_start()
    topic.values = []
    topic.send({"event_id": str(event_id), "outcome": "ok"})
    await topic.read_from_start(identity="made-anew")
    assert (await states(conn, event_id))["east"] == ("ok", None)


async def test_two_processes_take_a_message_once(topic: StatusLog, conn: Connection) -> None:
    topic.send({"event_id": str(await mark(conn, "a")), "outcome": "ok"})
    await asyncio.gather(topic.read_from_start(), topic.read_from_start())
    assert await audited(conn) == 1
