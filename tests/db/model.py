"""What is known of a catalogue from what it said of itself, and what has to hold of each thing that it says.

`Model.follow` takes the results of steps and the events that they led to. Everything asserted here is a promise of
design/publication.md or an invariant (design/limits-and-faults.md), which the docstrings name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

import orjson

from fedstac.db.requests import NewRequest
from fedstac.domain import documents, events, versions
from fedstac.domain.actions import Command
from fedstac.domain.errors import problems
from fedstac.domain.model import Outcome, Record, State
from fedstac.domain.policy import Action, Principal
from tests.db.edits import Item
from tests.db.writing import CHECKER

PROBLEMS: Final = {problem.name for problem in problems()}
BECOMES: Final = {  # the state that an event leads to; others but unmarked leave it as it is
    events.RETRACTED: State.RETRACTED, events.REINSTATED: State.PUBLISHED, events.MARKED: State.MARKED,
}  # fmt: skip
WRITE: Final = {Action.UPDATE, Action.REPLACE, Action.REPLICATE, Action.ANNOTATE}  # the document


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and the request that asks for it. `repeatable`: said again it succeeds and changes nothing."""

    accepted: NewRequest
    command: Command
    principal: Principal
    repeatable: bool

    @property
    def has_reason(self) -> bool:
        """For other files under the same version."""
        return bool(getattr(self.command, "override", None))

    def __str__(self) -> str:
        return f"{self.principal.name}: {self.accepted.action} {self.command.target.id}"


@dataclass(frozen=True, slots=True)
class Result:
    """What the queue says of a step's one item."""

    status: str
    outcome: str
    problem: str | None
    detail: str | None
    last_event: int | None


@dataclass(frozen=True, slots=True)
class AnnouncedChange:
    """An event that a step led to, as it was read from the log, and the record before it, as the model has it."""

    step: Step
    id: int
    type: str
    data: Mapping[str, Any]
    before: Record | None
    after: Record

    @property
    def actions(self) -> Sequence[str]:
        return tuple(self.data.get("actions", ()))


@dataclass
class Model:
    """The catalogue by its events. `promoting`: the version before is latest again when the latest is taken away."""

    promoting: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    before_retraction: dict[str, Record] = field(default_factory=dict)
    before_mark: dict[str, Record] = field(default_factory=dict)
    previous: dict[str, tuple[Step, Result]] = field(default_factory=dict)  # the last step of each lineage
    outcomes: Counter[str] = field(default_factory=Counter)

    def follow(self, steps: Sequence[tuple[Step, Result]], rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in what became of steps, and the rows of the outbox that they led to, both in their order."""
        by_request = {step.accepted.id: step for step, _ in steps}
        led_to: dict[UUID, int] = {}
        for row in rows:
            change = self._announced_change(row, by_request)
            if change.after.id == change.step.command.target.id:  # not another version that it brought along
                led_to[change.step.accepted.id] = change.id
            self._check(change)
            self._take(change)
        for step, result in steps:
            self._check_result(step, result, led_to.get(step.accepted.id))
            self._check_repeat(step, result)
            self.outcomes[result.outcome] += 1

    def _announced_change(self, row: Mapping[str, Any], by_request: Mapping[UUID, Step]) -> AnnouncedChange:
        """Return an event against docs/events.md: the full new state, and nothing of the inside."""
        text = row["event"]
        event = orjson.loads(events.positioned(text, events.Cursor(1, 7)))
        data, named = event["data"], events.vocabulary_named(event)
        read = events.read(event, CHECKER.vocabularies.at(named[0], named[1]) if named else None)
        assert isinstance(read, events.DatasetEvent)
        after, step = read.record, by_request[UUID(event["correlationid"])]
        assert (row["key"], row["collection"], row["dataset"]) == (after.lineage, after.collection, after.id)
        assert (row["seq"], row["type"], row["digest"]) == (after.seq, event["type"], after.digest)
        assert text.endswith(f'"document":{after.document}}}}}')
        assert (event["specversion"], event["source"], event["id"]) == ("1.0", "west", str(row["event_id"]))
        assert (event["subject"], event["partitionkey"]) == (f"{after.collection}/{after.id}", after.lineage)
        assert event["sequence"] == str(after.seq)
        before = self.records.get(after.id)
        assert data["previous_state"] == (before.state if before else None)
        assert data["actor"] == step.principal.name
        return AnnouncedChange(step, row["id"], event["type"], data, before, after)

    def _check_result(self, step: Step, result: Result, last_event: int | None) -> None:
        """Check I2: final, in one way; done if and only if its events exist or it is recorded as unchanged."""
        refused = result.outcome == Outcome.REJECTED
        assert result.status == ("rejected" if refused else "done"), f"{step}: {result}"
        assert (result.problem in PROBLEMS and bool(result.detail)) if refused else result.problem is None
        assert result.last_event == last_event
        assert (last_event is None) == (result.outcome in (Outcome.REJECTED, Outcome.IDENTICAL)), f"{step}: {result}"

    def _check_repeat(self, step: Step, result: Result) -> None:
        """Check that a repeat succeeds, changes nothing and announces nothing."""
        before, self.previous[step.command.target.lineage] = (
            self.previous.get(step.command.target.lineage), (step, result)
        )  # fmt: skip
        if before is None or before[0].command is not step.command or not step.repeatable:
            return
        again = Outcome.REJECTED if before[1].outcome == Outcome.REJECTED else Outcome.IDENTICAL
        assert result.outcome == again, f"said twice, {step}: {result}"

    def _check(self, change: AnnouncedChange) -> None:
        before, after = change.before, change.after
        assert after.seq == self.seqs.get(after.lineage, 0) + 1, "I6: without gaps"
        if before is None:
            assert (change.type, after.state) == (events.PUBLISHED, State.PUBLISHED)
        else:
            assert _bare(before) != _bare(after), f"{change.step} announces what changed nothing"
            assert (before.created, before.lineage, before.version) == (after.created, after.lineage, after.version)
        brought = versions.PROMOTE in change.actions
        assert after.id == change.step.command.target.id or change.type == events.SUPERSEDED or brought
        self._check_rights(change)
        self._check_state(change)
        self._check_latest(change)
        self._check_restored(change)

    def _check_rights(self, change: AnnouncedChange) -> None:
        """Check I15, I16: nobody writes what is another's; publishers their institution's, nodes their own entries."""
        roles = change.step.principal.roles
        if "admin" in roles:
            return
        old, new = entries(change.before), entries(change.after)
        resource = {node for key, node in old.keys() | new.keys() if old.get((key, node)) != new.get((key, node))}
        assert resource <= {role.removeprefix("node:") for role in roles}, f"{change.step}: {resource}"
        if change.type != events.REPLICATED:
            for record in (change.before or change.after, change.after):  # by the old values and by the new ones
                assert f"publisher:{institution_of(record)}" in roles, f"{change.step}: {change.type}"
        assert change.type not in (events.REPLACED, events.REINSTATED), "for administrators"

    def _check_state(self, change: AnnouncedChange) -> None:
        """Check I12: retract, reinstate, mark and unmark change the state, and nothing else. I13: files keep theirs."""
        before, after = change.before, change.after
        if before is None:
            return
        if change.type in BECOMES:
            assert after.state is BECOMES[change.type]
        elif change.type == events.UNMARKED:
            assert (before.state, after.state) == (State.MARKED, self.before_mark[after.id].state)
        else:
            assert after.state is before.state
        assert before.state is not State.MARKED or change.type == events.UNMARKED, "what is marked is not changed"
        if after.files_digest != before.files_digest:
            assert Action.REPLACE in change.actions
            assert change.step.has_reason
            assert change.data["reason"]
        if after.document != before.document:
            assert change.type == events.UPDATED or WRITE & set(change.actions)

    def _check_latest(self, change: AnnouncedChange) -> None:
        """Check I11: which version is latest follows from the versions and from what was given up."""
        before, after = change.before, change.after
        siblings = [record for record in self.records.values() if record.lineage == after.lineage]
        newest = all((after.version or 0) >= (record.version or 0) for record in siblings)
        if Action.SUPERSEDE in change.actions:
            self.given_up.add(after.id)
        assert after.superseded == (after.id in self.given_up)
        if versions.PROMOTE in change.actions:
            assert self.promoting
            open_to_it = [r for r in siblings if r.state is State.PUBLISHED and r.id not in self.given_up]
            assert after.id == max(open_to_it, key=lambda record: record.version or 0).id
            expected = True
        elif after.state is not State.PUBLISHED or change.type == events.SUPERSEDED or after.id in self.given_up:
            expected = False
        elif change.type in (events.PUBLISHED, events.REINSTATED, events.UNMARKED):
            expected = newest
        else:
            expected = bool(before and before.latest) and Action.SUPERSEDE not in change.actions
        assert after.latest is expected, f"{change.step}: {after.id} is latest: {after.latest}"
        others = [record.id for record in siblings if record.latest and record.id != after.id]
        assert not (after.latest and others), f"{others} are latest beside {after.id}"

    def _check_restored(self, change: AnnouncedChange) -> None:
        """Check that reinstating and unmarking restore every byte."""
        after = change.after
        if change.type == events.REINSTATED:
            assert after.retraction is None
            if (was := self.before_retraction.get(after.id)) and not WRITE & set(change.actions):
                assert (after.document, after.replicas) == (was.document, was.replicas)
        if change.type == events.UNMARKED:
            was = replace(self.before_mark.pop(after.id), latest=after.latest, claims_latest=after.latest)
            assert _bare(after) == _bare(was)

    def _take(self, change: AnnouncedChange) -> None:
        before, after = change.before, change.after
        if change.type == events.RETRACTED and before is not None and before.state is State.PUBLISHED:
            self.before_retraction[after.id] = before
        elif after.state is State.PUBLISHED or change.type == events.ANNOTATED:
            self.before_retraction.pop(after.id, None)
        if change.type == events.MARKED and before is not None:
            self.before_mark[after.id] = before
        self.records[after.id] = after
        self.seqs[after.lineage] = after.seq

    def served(self, dataset: str) -> Item:
        """Return what is served of a dataset, as somebody sees it who edits it."""
        record = self.records[dataset]
        document: Item = orjson.loads(record.document or "{}")
        document["properties"] |= documents.state_of(record)
        return document


def institution_of(record: Record) -> str | None:
    found = orjson.loads(record.document or "{}")["properties"].get("cmip6:institution_id")
    return found if isinstance(found, str) else None


def entries(record: Record | None) -> dict[tuple[str, str], bytes]:
    """Return each node's entry under each asset, byte by byte."""
    if record is None or record.document is None or '"alternate":' not in record.document:
        return {}
    assets = orjson.loads(record.document)["assets"]
    return {
        (key, node): orjson.dumps(entry)
        for key, asset in assets.items() if isinstance(asset.get("alternate"), dict)
        for node, entry in asset["alternate"].items()
    }  # fmt: skip


def _bare(record: Record) -> Record:
    """Return a record less what says only that something changed; without its text, which has a digest."""
    return replace(record, document=None, seq=0, epoch=0, updated=record.created)
