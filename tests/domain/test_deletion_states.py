"""Random actions, reports, waivers, rules and times against the rules themselves: no database, many steps.

Hypothesis draws the steps and shrinks a failure to the few that it takes. The commands, the rules of deletion and those
of reports are the product's. tests/support/deletion_model.py says the same in other words, and both are compared after
every step. tests/db/test_deletion_stateful.py does the like with a node on PostgreSQL.

| | by |
|---|---|
| I14 ids are never used again | `DeletionModel.check`; a publication of what is gone is refused |
| I17 hidden = never existed | `Catalogue.decide`: who may not see it gets the same answer without the record |
| I21 deleted only when all acknowledged or waived | `DeletionModel.outcome_of`, `check_parts` |
| I22 only the node itself acknowledges | `DeletionModel.report` |
| unmark and release give every byte back | `check_restored`, `DeletionModel.check` |
| the events tell everything | `replay` |

`make test` takes 20 000 steps, `make soak BENCH=deletion_states` 1 000 000. FEDSTAC_TEST_SEED draws others.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final
from uuid import UUID, uuid5

import orjson
import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fedstac.domain import actions, deletion, deletion_reports, documents, events, versions
from fedstac.domain.actions import target
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import QueuedAction
from fedstac.domain.deletion import Deletion, DeletionRules, DeletionState, Waiver
from fedstac.domain.errors import MissingPermission, Problem
from fedstac.domain.events import Context, Cursor, DatasetEvent
from fedstac.domain.model import Decision, Draft, Lineage, Outcome, Record, World
from fedstac.domain.policy import DELETION_MANAGER, Principal
from fedstac.domain.vocabulary import DatasetName
from fedstac.vocabularies.checker import open_checker
from tests.support.deletion_model import REFUSED, SAME, DeletionModel, check_restored
from tests.support.deletion_steps import (
    BODIES,
    DAYS,
    DOI,
    EAST,
    INSTITUTIONS,
    NODES,
    PEOPLE,
    RULES,
    WEST_SERVICE,
    item_of,
)

SEED = int(os.environ.get("FEDSTAC_TEST_SEED") or 1)
STEPS, SOAK_STEPS = 20_000, 1_000_000
A_RUN: Final = 100  # steps
DRAWING = settings(
    stateful_step_count=A_RUN, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)  # fmt: skip
CHECKER = open_checker()
CMIP6 = CHECKER.vocabularies.current("CMIP6")
assert CMIP6 is not None
VERSION: Final = CMIP6.version
PARSED = CHECKER.vocabularies.select(["CMIP6"], [("CMIP6", VERSION)])
BEGIN: Final = datetime(2026, 3, 1, tzinfo=UTC)


def draft_of(name: str, day: int, title: str) -> Draft:
    """Return what is prepared of a version of a dataset with a description."""
    item = item_of(name, day)
    item["properties"]["description"] = title
    return documents.prepare(item, DatasetName(item["id"].rpartition(".v")[0], day), CMIP6)


DRAFTS = {
    (name, day, title): draft_of(name, day, title) for name in INSTITUTIONS for day in DAYS for title in ("one", "two")
}
NAMES: Final = [(name, day) for name in INSTITUTIONS for day in DAYS]
MANAGER = Principal(DELETION_MANAGER, frozenset())


@dataclass
class Catalogue:
    """A node in memory: its datasets and deletions, as its rules leave them."""

    lineages: dict[str, Lineage] = field(default_factory=dict)
    rules: DeletionRules = field(default_factory=DeletionRules)
    deletions: dict[UUID, Deletion] = field(default_factory=dict)  # by the event of the mark
    log: list[str] = field(default_factory=list)
    now: datetime = BEGIN
    numbers: Any = field(default_factory=itertools.count)

    def records(self) -> dict[str, Record]:
        return {id: record for lineage in self.lineages.values() for id, record in lineage.records.items()}

    def lineage(self, key: str) -> Lineage:
        return self.lineages.get(key) or Lineage(key, "west", 0, {})

    def open_deletions(self) -> dict[tuple[str, str], Deletion]:
        return {(each.collection, each.dataset): each for each in self.deletions.values()
                if each.state is DeletionState.OPEN}  # fmt: skip

    def decide(self, command: actions.Command, *, hidden: bool) -> Decision:
        """Return the decision on a command. hidden: nobody who asks so may tell the dataset from one that never was."""
        world = World(self.now, "west", CHECKER, vocabularies=PARSED, deletions=self.open_deletions())
        lineage = self.lineage(command.target.lineage)
        if not hidden:
            return command.decide(lineage, world)
        records = {id: record for id, record in lineage.records.items() if id != command.target.id}
        answers = []
        for each in (lineage, replace(lineage, records=records)):
            try:
                command.decide(each, world)
            except Problem as problem:
                answers.append((type(problem), problem.detail, problem.findings))
        assert len(answers) == 2, "I17: it is acted on"
        assert answers[0] == answers[1], "I17: the answer shows that it is there"
        raise Refusal

    def write(self, decision: Decision, target: str, actor: str, request: UUID) -> UUID | None:
        """Store what a decision says, as publication.py does. Return the event of the target's own change."""
        own_event = None
        for change in decision.changes:
            event_id = UUID(int=next(self.numbers) + 1)
            own_event = event_id if change.after.id == target else own_event
            self.lineages[change.after.lineage] = self.lineage(change.after.lineage).after((change,))
            self.log.append(events.dataset_event(change, event_id, Context("west", actor, request), digest_of))
            place = (change.after.collection, change.after.id)
            if change.event_type == events.MARKED:
                self.deletions[event_id] = deletion.begin(
                    self.rules, id=uuid5(event_id, "deletion"), collection=place[0], dataset=place[1],
                    event_id=event_id, actor=actor, now=self.now, reason=change.reason, request=request,
                    identifiers=deletion.identifiers_of(orjson.loads(change.after.document or "{}")),
                )  # fmt: skip
            elif change.event_type in (events.UNMARKED, events.DELETED):
                end = DeletionState.UNMARKED if change.event_type == events.UNMARKED else DeletionState.DELETED
                entry = self.open_deletions()[place]
                self.deletions[entry.event_id] = replace(entry, state=end, ended_at=self.now, ended_by=actor)
        return own_event

    def change_part(self, entry: Deletion, after: deletion.DependencyStatus) -> None:
        parts = tuple(after if each.name == after.name else each for each in entry.dependencies)
        self.deletions[entry.event_id] = replace(entry, dependencies=parts)

    def replay(self, chance: random.Random) -> dict[str, Record]:
        """Return the datasets as an index node has them, which gets every event twice, in any order."""
        page = [events.read(orjson.loads(events.positioned(text, Cursor(1, n + 1))), CMIP6)
                for n, text in enumerate(self.log)]  # fmt: skip
        page *= 2
        chance.shuffle(page)
        replica: dict[str, Record] = {}
        for event in page:
            assert isinstance(event, DatasetEvent)
            there = replica.get(event.record.id)
            if there is None or not there.includes(event.record.epoch, event.record.seq):
                replica[event.record.id] = event.record
        return replica


class Refusal(Exception):
    """A command was refused, as it had to be."""


def digest_of(project: str, version: str) -> str | None:
    return CHECKER.vocabularies.digest_of(project, version)


WHO = st.sampled_from(("root", "root", "root", "eve", "ada", "bob", "nobody"))
NTH = st.integers(0, 3 * len(NAMES) - 1)
TEXT = st.sampled_from(("wrong units", "wrong forcing"))
ACTION = st.sampled_from((
    "mark", "mark", "mark", "delete", "delete", "delete", "unmark", "retract", "reinstate", "quarantine", "release",
    "amend", "give up", "publish", "publish", "purge",
))  # fmt: skip


IN_STATES: Final[Mapping[str, tuple[str, ...]]] = {  # where an action has something to do
    "retract": ("published", "quarantined"), "reinstate": ("retracted",), "unmark": ("marked",), "delete": ("marked",),
    "quarantine": ("published", "retracted"), "release": ("quarantined",), "purge": ("deleted",),
    "mark": ("published", "retracted", "quarantined"),
}  # fmt: skip


class States(RuleBasedStateMachine):
    """Steps of people, nodes and time."""

    steps: ClassVar[int] = 0
    ends: ClassVar[Counter[str]] = Counter()

    @initialize(which=st.integers(0, len(RULES) - 1))
    def begin(self, which: int) -> None:
        self.node, self.model = Catalogue(), DeletionModel(RULES[which])
        self.node.rules = deletion.read_rules(RULES[which], version=1)
        for name, day in (("A", DAYS[0]), ("A", DAYS[1]), ("B", DAYS[0])):
            self._perform("publish", (name, day), "root", "one")

    @rule(action=ACTION, nth=NTH, who=WHO, text=TEXT, fate=st.sampled_from(("", "", "", "dies", "dry")))
    def act(self, action: str, nth: int, who: str, text: str, fate: str) -> None:
        """Let somebody do something. dies: the worker is killed, and does it again; dry: nothing is to stay."""
        name = self._choose(action, nth)
        if fate:
            before = (self.node.records(), dict(self.node.deletions))
            self._perform(action, name, who, text, keep=False)
            assert (self.node.records(), self.node.deletions) == before
        if fate != "dry":
            self._perform(action, name, who, text)
        self._check()

    @rule(
        action=st.sampled_from(("mark", "mark", "delete", "delete", "delete", "unmark", "quarantine", "release")),
        nth=st.integers(len(NAMES), 3 * len(NAMES) - 1),
    )
    def administer(self, action: str, nth: int) -> None:
        """Let an administrator do something with a dataset that it fits."""
        self._perform(action, self._choose(action, nth), "root", "wrong units")
        self._check()

    @rule(
        nth=st.integers(0, 4),
        node=st.sampled_from((*NODES, "")),
        name=st.sampled_from((*NODES, WEST_SERVICE, deletion.IDENTIFIER_GUARD, "")),
        outcome=st.sampled_from(("ok", "ok", "failed", "nothing to do")),
    )
    def report(self, nth: int, node: str, name: str, outcome: str) -> None:
        """Report on one of the last marks; maybe under another's name. "": each node of all its parts."""
        for each in (EAST, WEST_SERVICE, DOI, "south") if not name or not node else (name,):
            self._report(nth, node if node and name else each.partition("/")[0], each, outcome)
        self._check()

    @rule(nth=NTH, who=st.sampled_from(("root", "eve")), name=st.sampled_from((EAST, DOI, deletion.IDENTIFIER_GUARD)))
    def waive(self, nth: int, who: str, name: str) -> None:
        """Let an administrator waive a dependency; twice does not count as two people."""
        self._count("waive")
        marks = [each for each in self.node.deletions.values() if each.state is DeletionState.OPEN]
        entry = marks[nth % len(marks)] if marks else None
        status = entry.dependency(name) if entry else None
        if entry is not None and status is not None:
            self.node.change_part(entry, deletion.waive(status, Waiver(who, "a reason", self.node.now)))
            self.model.marks[entry.event_id].parts[name].waive(who)
        self._check()

    @rule(
        what=st.sampled_from(("configure", "wait", "wait", "run", "replay")), n=st.integers(0, 99), flag=st.booleans()
    )
    def meanwhile(self, what: str, n: int, flag: bool) -> None:
        """Change the rules, maybe for open deletions too; let time pass, the manager run, a node read it all."""
        self._count(what)
        match what:
            case "configure":
                self._configure(RULES[n % len(RULES)], is_for_open=flag)
            case "wait":
                self.node.now += timedelta(hours=(1, 12, 24, 24 * 31)[n % 4])
            case "run":
                self._run()
            case "replay" if n < 10:  # it takes as long as many other steps
                replica, records = self.node.replay(random.Random(n)), self.node.records()
                shown = {id: (record.digest, record.state, record.document) for id, record in records.items()}
                assert {id: (one.digest, one.state, one.document) for id, one in replica.items()} == shown
        self._check()

    # --- how ---

    def _count(self, what: str) -> None:
        type(self).steps += 1
        note(what)

    def _check(self) -> None:
        self.model.check(self.node.records())
        self.model.check_parts(list(self.node.deletions.values()))

    def _configure(self, rules: Mapping[str, Any], *, is_for_open: bool) -> None:
        self.node.rules = deletion.read_rules(dict(rules), version=self.node.rules.version + 1)
        self.model.configure(rules, is_for_open=is_for_open)
        for entry in self.node.open_deletions().values() if is_for_open else ():
            self.node.deletions[entry.event_id] = deletion.revise(entry, self.node.rules, self.node.now)

    def _run(self) -> None:
        """Delete all that is ready and may be deleted by itself, as the schedule does, and nothing else."""
        now = self.node.now
        due = {mark.dataset for mark in self.model.open_marks() if mark.is_automatic and mark.is_ready(now)}
        ready = [each for each in self.node.open_deletions().values() if each.automatic and not each.missing(now)]
        assert {each.dataset for each in ready} == due
        for entry in ready:
            name = next(name for name in NAMES if DRAFTS[*name, "one"].id == entry.dataset)
            self._perform("delete", name, DELETION_MANAGER, "")

    def _choose(self, action: str, nth: int) -> tuple[str, int]:
        """Return a dataset; two times of three one with which the action has something to do, if there is any."""
        states = IN_STATES.get(action, ()) if nth >= len(NAMES) else ()
        ids = {name: DRAFTS[*name, "one"].id for name in NAMES}
        fitting = [name for name, id in ids.items()
                   if id in self.model.datasets and self.model.datasets[id].state in states]  # fmt: skip
        return (fitting or NAMES)[nth % len(fitting or NAMES)]

    def _perform(self, action: str, name: tuple[str, int], who: str, text: str, *, keep: bool = True) -> None:
        """Do it, and compare what comes of it with what has to come; keep: else only see what would come."""
        self._count(f"{who}: {action} {name} {text}")
        draft = DRAFTS[*name, "one" if text in ("one", "wrong units") else "two"]
        principal = MANAGER if who == DELETION_MANAGER else PEOPLE[who]
        command = command_of(action, draft, principal, text)
        verb, institution = "amend" if action == "give up" else action, INSTITUTIONS[name[0]]
        expected = self.model.outcome_of(verb, draft.id, principal, institution, self.node.now, text)
        hidden = self.model.is_hidden_from(draft.id, principal)
        try:
            decision = self.node.decide(command, hidden=hidden)
        except (Problem, Refusal):
            assert expected in (REFUSED, "any"), f"{action} by {who} was refused"
            return
        assert expected != REFUSED, f"{action} by {who} is {decision.outcome}"
        if expected == SAME:
            assert decision.outcome is Outcome.IDENTICAL
        if not keep or not decision.changes:
            assert bool(decision.changes) is (expected not in (SAME, "any")) or expected in ("any", "publish")
            return
        before = self.node.records().get(draft.id)
        event_id = self.node.write(decision, draft.id, who, UUID(int=7))
        assert event_id is not None
        after = self.node.records()[draft.id]
        self.model.take(verb, draft.id, after, self.node.now, event_id, institution)
        if verb in ("unmark", "release") and before is not None:
            check_restored(before, after, self.node.lineages[after.lineage].records)
        type(self).ends[decision.outcome] += 1

    def _report(self, nth: int, node: str, name: str, outcome: str) -> None:
        self._count(f"{node} reports {outcome} for {name}")
        marks = list(self.node.deletions.values())
        event_id = marks[-1 - nth].event_id if nth < len(marks) else UUID(int=10**6)
        body = [{"event_id": str(event_id), "name": name, "outcome": outcome}]
        may = self.model.report(node, name, outcome, event_id)
        try:
            [report] = deletion_reports.read(body, node)
        except MissingPermission:
            assert not may, f"{node} may not report for {name}"
            return
        assert may, f"I22: {node} reports for {name}"
        entry = self.node.deletions.get(event_id)
        status = entry.dependency(name) if entry else None
        _, changed = deletion_reports.judge(entry, status, report, now=self.node.now)
        if entry is not None and changed is not None:
            self.node.change_part(entry, changed)


def command_of(action: str, draft: Draft, principal: Principal, text: str) -> actions.Command:
    if action == "publish":
        return Publish(draft, principal, VERSION)
    body = BODIES[action](text)
    queued = QueuedAction(
        draft.collection, draft.id, DatasetName(draft.lineage, draft.version), principal, "{}", body, vocabulary=CMIP6
    )
    return actions.command_of("amend" if action == "give up" else action, queued)


def run(steps: int, *, phases: Sequence[Phase] = (Phase.generate, Phase.shrink)) -> type[States]:
    """Take so many steps, or more, with the seeds from SEED on."""

    class Here(States):
        steps, ends = 0, Counter()

    for number in itertools.count(SEED):
        runs = max(1, (steps - Here.steps) // A_RUN)
        run_state_machine_as_test(
            seed(number)(Here), settings=settings(DRAWING, phases=phases, max_examples=min(runs, 1000))
        )
        if Here.steps >= steps:
            return Here
    raise AssertionError


@pytest.mark.parametrize("steps", [STEPS, pytest.param(SOAK_STEPS, marks=pytest.mark.soak)])
def test_nothing_is_deleted_early_and_every_byte_comes_back(steps: int) -> None:
    began = time.process_time()
    done = run(steps)
    print(f"FEDSTAC_TEST_SEED={SEED} {done.steps} steps {time.process_time() - began:.0f} s {dict(done.ends)}")
    assert {"marked", "unmarked", "quarantined", "released", "deleted", "purged", "retracted"} <= done.ends.keys()


# --- faults that the machine has to find ---


def _skip(rule_name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a fault: a deletion does not look at one of its conditions."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        whole = Deletion.missing
        patch.setattr(Deletion, "missing", lambda self, now: tuple(
            finding for finding in whole(self, now) if finding.rule != rule_name
        ))  # fmt: skip

    plant.__name__ = f"skip {rule_name}"
    return plant


def _waive_twice(patch: pytest.MonkeyPatch) -> None:
    """Count each waiver, whoever it is from."""

    def waive(status: deletion.DependencyStatus, waiver: Waiver) -> deletion.DependencyStatus:
        if status.is_fulfilled:
            return status
        waivers = (*status.waivers, waiver)
        is_enough = len(waivers) >= deletion.waivers_needed(status)
        return replace(
            status, waivers=waivers, state=deletion.DependencyState.WAIVED if is_enough else status.state
        )  # fmt: skip

    patch.setattr(deletion, "waive", waive)


def _lose_retraction(patch: pytest.MonkeyPatch) -> None:
    """Let what comes back be published, also where it was retracted."""
    restore = versions.restore
    patch.setattr(versions, "restore", lambda record, lineage: restore(replace(record, retraction=None), lineage))


def _always_latest(patch: pytest.MonkeyPatch) -> None:
    """Let what comes back be latest, also where a newer version came."""
    patch.setattr(versions, "may_be_latest", lambda record, lineage: True)


def _undo_done(patch: pytest.MonkeyPatch) -> None:
    """Let a late report of a failure undo what was done or waived."""
    patch.setattr(deletion_reports, "state_after", lambda before, report: report)


def _report_for_others(patch: pytest.MonkeyPatch) -> None:
    """Let a node report in the name of another one."""
    read = deletion_reports.read
    patch.setattr(deletion_reports, "read", lambda value, node: read(value, value[0]["name"].partition("/")[0]))


def _keep_done_of_owner(patch: pytest.MonkeyPatch) -> None:
    """Let who becomes the owner of identifiers begin with what it did before."""
    revise = deletion.revise

    def keep(entry: Deletion, rules: DeletionRules, now: datetime) -> Deletion:
        after = revise(entry, rules, now)
        states = {each.name: each.state for each in entry.dependencies}
        parts = tuple(replace(each, state=states.get(each.name, each.state)) for each in after.dependencies)
        return replace(after, dependencies=parts)

    patch.setattr(deletion, "revise", keep)


def _use_ids_again(patch: pytest.MonkeyPatch) -> None:
    """Publish without seeing tombstones."""
    decide = Publish.decide

    def forget(self: Publish, lineage: Lineage, world: World) -> Decision:
        records = {id: record for id, record in lineage.records.items() if record.document is not None}
        return decide(self, replace(lineage, records=records), world)

    patch.setattr(Publish, "decide", forget)


def _change_marked(patch: pytest.MonkeyPatch) -> None:
    """Retract without seeing that the dataset is marked."""
    patch.setattr("fedstac.domain.actions.retract.find", lambda *given: target.find(*given, marked=True))


def _show_hidden(patch: pytest.MonkeyPatch) -> None:
    """Tell everybody that a dataset is marked."""
    patch.setattr(target, "is_hidden", lambda record, principal, world: False)


def _drop_guard(patch: pytest.MonkeyPatch) -> None:
    """Let nobody guard the identifiers."""
    begin = deletion.begin
    patch.setattr(deletion, "begin", lambda rules, **given: begin(rules, **{**given, "identifiers": ()}))


def _keep_document(patch: pytest.MonkeyPatch) -> None:
    """Keep the document in the tombstone."""
    patch.setattr("fedstac.domain.actions.delete.without_document", lambda record, state: replace(
        record, state=state, latest=False, claims_latest=False
    ))  # fmt: skip


@pytest.mark.parametrize("plant", [
    _skip("dependency"), _skip("grace"), _drop_guard, _waive_twice, _lose_retraction, _always_latest, _undo_done,
    _report_for_others, _keep_done_of_owner, _use_ids_again, _change_marked, _show_hidden, _keep_document,
], ids=lambda plant: plant.__name__)  # fmt: skip
def test_a_planted_fault_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        run(STEPS, phases=(Phase.generate,))


@pytest.mark.parametrize(
    "document",
    [
        {"properties": {"sci:doi": "10.5072/x"}, "links": []},
        {"properties": {"cmip6:pid": "hdl:21.14100/x", "other:pid": ""}, "links": []},
        {"properties": {"x:PID": "hdl:21.14100/x"}, "links": []},
        {"properties": {}, "links": [{"rel": "cite-as", "href": "https://doi.org/10.5072/x"}]},
        {"properties": {"pid": ""}, "links": [{"rel": "cite-as", "href": "https://elsewhere.example/x"}]},
        {"properties": {"title": "a doi"}, "links": []},
    ],
)
def test_the_text_of_a_document_tells_whether_it_has_an_identifier(document: dict[str, Any]) -> None:
    text = orjson.dumps(document).decode()
    assert deletion.has_identifier(text) is bool(deletion.identifiers_of(document))
