"""Random actions, reports, waivers, rules and deaths on PostgreSQL keep the promises of docs/deletion.md.

The write path, the deletion manager and the reports are the product's; a worker dies between two of its durable steps.
tests/support/deletion_model.py says what has to come of each step. An index node reads the log at the end of each run,
and `fedstac admin check` looks at everything. tests/domain/test_deletion_states.py takes a thousand times as many steps
against the rules alone.

`make test` takes 250 steps, `make soak BENCH=deletion_stateful` 20 000. FEDSTAC_TEST_SEED draws others.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fedstac import publication
from fedstac.db import deletions
from fedstac.domain import actions, deletion, deletion_reports
from fedstac.domain.actions import Work
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import QueuedAction
from fedstac.domain.deletion import Deletion, DeletionState
from fedstac.domain.errors import MissingPermission
from fedstac.domain.model import Draft, Outcome, Record
from fedstac.domain.policy import Policy, Principal
from fedstac.domain.vocabulary import DatasetName
from fedstac.runtime import failpoints
from fedstac.workers import deleting, statuses
from fedstac.workers import deletions as manager
from tests.db import catalogue, writing
from tests.db.catalogue import Ground
from tests.db.writing import CMIP6
from tests.support.deletion_model import REFUSED, SAME, DeletionModel, check_restored
from tests.support.deletion_steps import BODIES, DOI, EAST, NODES, PEOPLE, RULES, WEST_SERVICE, item_of

SEED = int(os.environ.get("FEDSTAC_TEST_SEED") or 1)
STEPS, SOAK_STEPS = 250, 20_000
A_RUN: Final = 30
PLACES: Final = tuple(
    f"perform.{place}" for place in ("locked", "records", "events", "deletions", "written", "finished")
)
NAMES: Final = [(name, day) for day in (20200101, 20210101, 20220101) for name in ("A", "B")]
ANYBODY = st.sampled_from(("root", "root", "root", "eve", "ada", "bob"))
ACTION = st.sampled_from((
    "mark", "mark", "mark", "delete", "delete", "unmark", "quarantine", "release", "retract", "reinstate", "amend",
    "purge", "publish",
))  # fmt: skip
NTH = st.integers(0, len(NAMES) - 1)


class Died(Exception):
    """The worker was killed here."""


class Deletions(RuleBasedStateMachine):
    """Steps of people, nodes, time and workers that die."""

    ground: ClassVar[Ground]
    steps: ClassVar[int] = 0
    ends: ClassVar[Counter[str]] = Counter()

    @initialize(which=st.integers(0, len(RULES) - 1))
    def begin(self, which: int) -> None:
        """Begin with rules, and with datasets of this run's own."""
        self.catalogue, self.model = self.ground.begin(promoting=False), DeletionModel(RULES[which])
        self.drafts = {name: writing.draft(item_of(*name, self.ground.runs)) for name in NAMES}
        self._configure(which, is_for_open=False)
        for name in NAMES[:5]:
            self._perform("publish", name, "root", "", "")

    @rule(
        action=ACTION,
        name=st.sampled_from(NAMES),
        who=ANYBODY,
        text=st.sampled_from(("wrong units", "wrong forcing")),
        place=st.sampled_from(("", "", *PLACES)),
    )
    def act(self, action: str, name: tuple[str, int], who: str, text: str, place: str) -> None:
        """Let somebody do something; at a place the worker dies first, and does it again."""
        self._perform(action, name, who, text, place)

    @rule(name=st.sampled_from(NAMES[:2]), text=st.sampled_from(("wrong units", "wrong forcing")))
    def mark_and_delete(self, name: tuple[str, int], text: str) -> None:
        """Mark a dataset, let all report and the time pass, and delete it."""
        self._perform("mark", name, "root", text, "")
        for each in (EAST, WEST_SERVICE, DOI, "south"):
            self._report(0, each.partition("/")[0], each, "ok")
        self._wait(31 * 24)
        self._perform("delete", name, "eve", "", "")

    @rule(
        nth=NTH,
        node=st.sampled_from(NODES),
        name=st.sampled_from((*NODES, WEST_SERVICE, deletion.IDENTIFIER_GUARD)),
        outcome=st.sampled_from(("ok", "ok", "failed", "nothing to do")),
    )
    def report(self, nth: int, node: str, name: str, outcome: str) -> None:
        """Report on one of the last marks; maybe under another's name."""
        self._report(nth, node, name, outcome)

    @rule(nth=NTH, who=st.sampled_from(("root", "eve")), name=st.sampled_from((EAST, DOI, deletion.IDENTIFIER_GUARD)))
    def waive(self, nth: int, who: str, name: str) -> None:
        """Let an administrator waive a dependency; twice does not count as two people."""
        self._count(f"{who} waives {name}")
        entries = [each for each in self._entries() if each.state is DeletionState.OPEN and each.dependency(name)]
        if entries:
            entry = entries[nth % len(entries)]
            caller = deleting.Caller(PEOPLE[who], Policy())
            self._run(deleting.waive(self.catalogue.conn, caller, entry.id, name=name, reason="a reason"))
            self.model.marks[entry.event_id].parts[name].waive(who)
        self._check()

    @rule(what=st.sampled_from(("configure", "wait", "run")), n=st.integers(0, 99), flag=st.booleans())
    def meanwhile(self, what: str, n: int, flag: bool) -> None:
        """Change the rules, let time pass, let the manager run."""
        self._count(what)
        match what:
            case "configure":
                self._configure(n % len(RULES), is_for_open=flag)
            case "wait":
                self._wait((1, 12, 24, 24 * 31)[n % 4])
            case "run":
                self._let_manager_run()
        self._check()

    def teardown(self) -> None:
        failpoints.act(None)
        if not hasattr(self, "catalogue"):
            return
        self._run(self._compare())

    # --- how ---

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.ground.run(work)

    def _count(self, what: str) -> None:
        type(self).steps += 1
        note(what)

    def _records(self) -> dict[str, Record]:
        lineages = {draft.lineage: 0 for draft in self.drafts.values()}
        records: dict[str, Record] = self._run(catalogue.stored(self.catalogue.conn, lineages))
        return records

    def _entries(self) -> list[Deletion]:
        async def read() -> list[Deletion]:
            rows = await self.catalogue.conn.fetch(
                f"SELECT {deletions.COLUMNS} FROM fedstac.deletion d WHERE dataset = ANY ($1) ORDER BY marked_at, id",
                [draft.id for draft in self.drafts.values()],
            )
            return await deletions.with_dependencies(self.catalogue.conn, rows)

        entries: list[Deletion] = self._run(read())
        return entries

    def _check(self) -> None:
        self.model.check(self._records())
        entries = self._entries()
        assert {entry.event_id for entry in entries} == self.model.marks.keys()
        self.model.check_parts(entries)

    def _perform(self, action: str, name: tuple[str, int], who: str, text: str, place: str) -> None:
        self._count(f"{who}: {action} {name} {text} {place}")
        draft, principal = self.drafts[name], PEOPLE[who]
        institution = str(draft.institution)
        expected = self.model.outcome_of(action, draft.id, principal, institution, datetime.now(UTC), text)
        work = [Work(command_of(action, draft, principal, text), who, action)]
        before = (self._records(), self._entries())
        if place:
            failpoints.act(lambda passed: die() if passed == place else None)
            try:
                [receipt] = self._run(publication.perform(self.catalogue.conn, self.catalogue.node.rules, work))
            except Died:
                assert (self._records(), self._entries()) == before, f"something is left of what died at {place}"
                place = ""
            finally:
                failpoints.act(None)
        if not place:
            [receipt] = self._run(publication.perform(self.catalogue.conn, self.catalogue.node.rules, work))
        if receipt.outcome is Outcome.REJECTED:
            assert expected in (REFUSED, "any"), f"{action} by {who} was refused: {receipt.problem}"
        else:
            assert expected != REFUSED, f"{action} by {who} is {receipt.outcome}"
            assert expected in ("any", "publish") or (receipt.outcome is Outcome.IDENTICAL) == (expected == SAME)
        if receipt.changes:
            self._take(action, draft, institution, before[0].get(draft.id))
        type(self).ends[receipt.outcome] += 1
        self._check()

    def _take(self, action: str, draft: Draft, institution: str, before: Record | None) -> None:
        async def read() -> Any:
            return await self.catalogue.conn.fetchrow(
                "SELECT event_id FROM fedstac.outbox WHERE dataset = $1 ORDER BY id DESC LIMIT 1", draft.id
            )

        event_id: UUID = UUID(str(self._run(read())["event_id"]))
        records = self._records()
        after = records[draft.id]
        self.model.take(action, draft.id, after, after.updated, event_id, institution)
        if action in ("unmark", "release") and before is not None:
            siblings = {id: record for id, record in records.items() if record.lineage == after.lineage}
            check_restored(before, after, siblings)

    def _report(self, nth: int, node: str, name: str, outcome: str) -> None:
        self._count(f"{node} reports {outcome} for {name}")
        marks = self._entries()
        event_id = marks[-1 - nth].event_id if nth < len(marks) else UUID(int=1)
        may = self.model.report(node, name, outcome, event_id)
        try:
            reports = deletion_reports.read([{"event_id": str(event_id), "name": name, "outcome": outcome}], node)
        except MissingPermission:
            assert not may, f"{node} may not report for {name}"
            return
        assert may, f"I22: {node} reports for {name}"
        self._run(statuses.report(self.catalogue.conn, reports, actor=node))
        self._check()

    def _configure(self, which: int, *, is_for_open: bool) -> None:
        caller, rules = deleting.Caller(PEOPLE["root"], Policy()), deletion.read_rules(dict(RULES[which]))
        self._run(deleting.configure(
            self.catalogue.conn, caller, "CMIP6", rules, expected=None, apply_to_open=is_for_open
        ))  # fmt: skip
        self.model.configure(RULES[which], is_for_open=is_for_open)

    def _wait(self, hours: int) -> None:
        """Let the marks of this run be older by so many hours: the database has the clock of the machine."""
        for mark in self.model.marks.values():
            mark.marked_at -= timedelta(hours=hours)
        self._run(self.catalogue.conn.execute(
            """UPDATE fedstac.deletion
               SET marked_at = marked_at - $2::interval, grace_until = grace_until - $2::interval
               WHERE dataset = ANY ($1)""",
            [draft.id for draft in self.drafts.values()], timedelta(hours=hours),
        ))  # fmt: skip

    def _let_manager_run(self) -> None:
        """Let the schedule delete: all that is ready, automatic and not under quarantine."""
        now = datetime.now(UTC)
        due = {mark.dataset for mark in self.model.open_marks() if mark.is_automatic and mark.is_ready(now)}
        due = {id for id in due if self.model.datasets[id].quarantine is None}
        self._run(manager.step(self.catalogue.node, self.catalogue.conn))
        self._run(self.catalogue.work())
        gone = {id for id, record in self._records().items() if record.document is None}
        before = {id for id, dataset in self.model.datasets.items() if dataset.end}
        assert gone - before == due, f"{gone - before} went, and {due} were ready"
        for draft in self.drafts.values():
            if draft.id in due:
                self._take("delete", draft, str(draft.institution), None)

    async def _compare(self) -> None:
        """Check that an index node has the same of the log, and that every invariant holds."""
        await self.catalogue.follow(random.Random(0))
        lineages = {draft.lineage: 0 for draft in self.drafts.values()}
        west = await catalogue.stored(self.catalogue.conn, lineages)
        east = await catalogue.stored(self.catalogue.east, lineages)
        assert {id: shown(record) for id, record in east.items()} == {id: shown(record) for id, record in west.items()}
        violations = await self.catalogue.check()
        assert violations == [], "\n".join(map(str, violations))


def shown(record: Record) -> tuple[object, ...]:
    return record.digest, record.state, record.latest, record.document


def die() -> None:
    raise Died


def command_of(action: str, draft: Draft, principal: Principal, text: str) -> actions.Command:
    assert CMIP6 is not None
    if action == "publish":
        return Publish(draft, principal, CMIP6.version)
    name = DatasetName(draft.lineage, draft.version)
    body = BODIES[action](text)
    return actions.command_of(
        action, QueuedAction(draft.collection, draft.id, name, principal, "{}", body, vocabulary=CMIP6)
    )


def run(ground: Ground, steps: int) -> type[Deletions]:
    class Here(Deletions):
        steps, ends = 0, Counter()

    Here.ground = ground
    drawing = settings(
        stateful_step_count=A_RUN, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate], report_multiple_bugs=False, max_examples=max(2, steps // A_RUN),
    )  # fmt: skip
    for number in itertools.count(SEED):
        run_state_machine_as_test(seed(number)(Here), settings=drawing)
        if Here.steps >= steps:
            return Here
    raise AssertionError


@pytest.mark.long
@pytest.mark.parametrize("steps", [STEPS, pytest.param(SOAK_STEPS, marks=pytest.mark.soak)])
def test_nothing_is_deleted_early_whoever_dies(ground: Ground, steps: int) -> None:
    done = run(ground, steps)
    print(f"FEDSTAC_TEST_SEED={SEED} {done.steps} steps {dict(done.ends)}")
    assert {"marked", "deleted"} <= done.ends.keys()


@pytest.mark.long
def test_a_deletion_that_looks_at_no_dependency_is_caught(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Deletion.missing
    monkeypatch.setattr(Deletion, "missing", lambda self, now: tuple(
        finding for finding in whole(self, now) if finding.rule == "grace"
    ))  # fmt: skip
    with pytest.raises(AssertionError, match=r"is deleted|deleted only when"):
        run(ground, 10 * STEPS)
