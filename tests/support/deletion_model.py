"""What has to become of marked datasets, said a second time and in other words than in src/fedstac/domain.

The state-machine tests (tests/domain/test_deletion_states.py, tests/db/test_deletion_stateful.py) tell this model what
was asked. It says what must come of that, and holds the datasets against what it expects after every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import orjson

from fedstac.domain.deletion import Deletion
from fedstac.domain.model import Record
from fedstac.domain.policy import Principal

GUARD: Final = "identifier"
REFUSED, SAME = "refused", "same"  # what comes of a request, beside the names of what it does
DONE: Final = ("ok", "nothing to do")
OF_PUBLISHERS: Final = ("publish", "amend", "retract", "mark", "unmark")  # of their own institution


@dataclass
class PartModel:
    """One dependency of one mark."""

    is_required: bool
    owns_identifier: bool
    state: str = "pending"
    people: set[str] = field(default_factory=set)  # who waived it
    is_done: bool = False

    def report(self, outcome: str) -> None:
        if not self.is_done:
            self.state, self.is_done = outcome, outcome in DONE

    def waive(self, actor: str) -> None:
        if not self.is_done and actor not in self.people:
            self.people.add(actor)
            self.count_people()

    def count_people(self) -> None:
        """Take in who waived it: two people for who owns the identifiers, one for anybody else."""
        self.is_done = self.is_done or len(self.people) >= (2 if self.owns_identifier else 1)


@dataclass
class MarkModel:
    """A mark for deletion, open or ended."""

    dataset: str
    marked_at: datetime
    grace: timedelta
    has_identifier: bool
    is_automatic: bool
    parts: dict[str, PartModel]
    end: str = ""  # unmarked, deleted

    def is_ready(self, now: datetime) -> bool:
        """Return whether the dataset may be deleted: all is done, and the grace is over."""
        guard_is_open = self.has_identifier and not any(
            part.owns_identifier and part.is_done for part in self.parts.values()
        )
        waits = any(part.is_required and not part.is_done for part in self.parts.values())
        return not (guard_is_open or waits or now < self.marked_at + self.grace)

    def revise(self, rules: Mapping[str, Any]) -> None:
        """Take the new rules of a project, as docs/deletion.md says that open deletions take them."""
        parts: dict[str, PartModel] = {}
        wishes = {each["name"]: each for each in rules["dependencies"]}
        for name, part in self.parts.items():
            wish = wishes.pop(name, None)
            if wish is not None and wish["owns_identifier"] and not part.owns_identifier:
                parts[name] = PartModel(wish["required"], owns_identifier=True)
            elif wish is not None:
                part.is_required, part.owns_identifier = wish["required"], wish["owns_identifier"]
                part.count_people()
                parts[name] = part
            elif part.owns_identifier and part.is_done:
                parts[name] = part
            elif name != GUARD and (part.is_done or part.state != "pending"):
                part.is_required = part.owns_identifier = False
                part.count_people()
                parts[name] = part
        for name, wish in wishes.items():
            parts[name] = PartModel(wish["required"], wish["owns_identifier"])
        if self.has_identifier and not any(part.owns_identifier for part in parts.values()):
            parts[GUARD] = self.parts.get(GUARD) or PartModel(is_required=True, owns_identifier=True)
        self.parts = parts
        self.grace, self.is_automatic = timedelta(days=rules["grace_days"]), rules["automatic"]


@dataclass
class DatasetModel:
    """A dataset as its history makes it. The layers lie over each other; each is taken away by itself."""

    document: str | None
    institution: str
    retraction: str | None = None
    quarantine: str | None = None
    mark: MarkModel | None = None  # while it is marked
    end: str = ""  # deleted, purged

    @property
    def state(self) -> str:
        layers = (
            (bool(self.end), self.end), (self.mark is not None, "marked"),
            (self.quarantine is not None, "quarantined"), (self.retraction is not None, "retracted"),
        )  # fmt: skip
        return next((name for is_there, name in layers if is_there), "published")


@dataclass
class DeletionModel:
    """All datasets of a run, and all marks by the event that announced them."""

    rules: Mapping[str, Any]
    datasets: dict[str, DatasetModel] = field(default_factory=dict)
    marks: dict[UUID, MarkModel] = field(default_factory=dict)

    # --- what has to come of a request ---

    def outcome_of(self, action: str, id: str, who: Principal, institution: str, now: datetime, text: str = "") -> str:
        """Return what has to come of a request; what "amend" of a retracted dataset comes to is left open: "any".

        text: the reason of a retraction or a quarantine.
        """
        dataset = self.datasets.get(id)
        if not may(action, who, institution):
            return REFUSED
        if dataset is None:
            return "publish" if action == "publish" else REFUSED
        if dataset.end:
            is_repeat = action == "delete" or (action == "purge" and dataset.end == "purged")
            return SAME if is_repeat else "purge" if action == "purge" else REFUSED
        if action in ("publish", "purge"):
            return ("publish" if dataset.state == "published" else REFUSED) if action == "publish" else REFUSED
        if dataset.quarantine is not None and not who.is_admin:
            return REFUSED
        return self._outcome(action, dataset, now, text)

    def _outcome(self, action: str, dataset: DatasetModel, now: datetime, text: str) -> str:
        is_marked = dataset.mark is not None
        match action:
            case "mark":
                return SAME if is_marked else action
            case "unmark":
                return action if is_marked else SAME
            case "delete":
                return action if dataset.mark is not None and dataset.mark.is_ready(now) else REFUSED
            case "release" if dataset.quarantine is None:
                return SAME
        if is_marked:
            return REFUSED
        match action:
            case "retract":
                return SAME if _reason(dataset.retraction) == text else action
            case "reinstate":
                return SAME if dataset.retraction is None else action
            case "quarantine":
                return SAME if _reason(dataset.quarantine) == text else action
            case "release":
                return action
        return "any"

    def is_hidden_from(self, id: str, who: Principal) -> bool:
        """Return whether a dataset is there, and somebody must not be able to tell it from one that never was."""
        dataset = self.datasets.get(id)
        if dataset is None or not (dataset.end or dataset.mark):
            return False
        return not (may("mark", who, dataset.institution) or may("delete", who, dataset.institution))

    # --- what came of it ---

    def take(self, action: str, id: str, after: Record, now: datetime, event_id: UUID, institution: str) -> None:
        """Take in that a request was done."""
        dataset = self.datasets.get(id)
        if dataset is None:
            assert action == "publish"
            self.datasets[id] = DatasetModel(after.document, institution)
            return
        match action:
            case "publish" | "amend":
                dataset.document = after.document
            case "retract":
                dataset.retraction = after.retraction
            case "reinstate":
                dataset.retraction = None
            case "quarantine":
                dataset.quarantine = after.quarantine
            case "release":
                dataset.quarantine = None
            case "mark":
                dataset.mark = self.marks[event_id] = self._begin(id, dataset, now)
            case "unmark":
                self._end(dataset, "unmarked")
            case "delete":
                self._end(dataset, "deleted")
                dataset.end, dataset.document, dataset.retraction, dataset.quarantine = "deleted", None, None, None
            case "purge":
                dataset.end = "purged"

    def _begin(self, id: str, dataset: DatasetModel, now: datetime) -> MarkModel:
        parts = {each["name"]: PartModel(each["required"], each["owns_identifier"])
                 for each in self.rules["dependencies"]}  # fmt: skip
        has_identifier = "cmip6:pid" in orjson.loads(dataset.document or "{}")["properties"]
        if has_identifier and not any(part.owns_identifier for part in parts.values()):
            parts[GUARD] = PartModel(is_required=True, owns_identifier=True)
        grace = timedelta(days=self.rules["grace_days"])
        return MarkModel(id, now, grace, has_identifier, self.rules["automatic"], parts)

    @staticmethod
    def _end(dataset: DatasetModel, end: str) -> None:
        assert dataset.mark is not None
        dataset.mark.end, dataset.mark = end, None

    def configure(self, rules: Mapping[str, Any], *, is_for_open: bool) -> None:
        self.rules = rules
        for mark in self.open_marks() if is_for_open else ():
            mark.revise(rules)

    def report(self, node: str, name: str, outcome: str, event_id: UUID) -> bool:
        """Take in a report, if the node may make it; return whether it may."""
        if name != node and not name.startswith(node + "/"):
            return False
        mark = self.marks.get(event_id)
        if mark is not None and mark.end != "unmarked" and name in mark.parts:
            mark.parts[name].report(outcome)
        return True

    def open_marks(self) -> Iterator[MarkModel]:
        return (dataset.mark for dataset in self.datasets.values() if dataset.mark is not None)

    # --- what has to be so at every moment ---

    def check(self, records: Mapping[str, Record]) -> None:
        """Hold all records against the model: I14, and every byte of what is covered or came back."""
        assert records.keys() == self.datasets.keys(), "I14: no record goes, none comes by itself"
        latest: dict[str, str] = {}
        for id, dataset in self.datasets.items():
            record = records[id]
            assert record.state == dataset.state, f"{id} is {record.state} and has to be {dataset.state}"
            assert record.document == dataset.document, f"another document: {id}"
            assert record.retraction == dataset.retraction, f"another retraction: {id}"
            assert record.quarantine == dataset.quarantine, f"another quarantine: {id}"
            if record.latest:
                assert latest.setdefault(record.lineage, id) == id, "I11: two are latest"
                assert dataset.state == "published", f"{id} is latest and {dataset.state}"

    def check_parts(self, entries: Sequence[Deletion]) -> None:
        """Hold the deletions against the marks: who has to do what, and who has (I21, I22)."""
        for entry in entries:
            mark = self.marks[entry.event_id]
            assert entry.dataset == mark.dataset
            ends = {"purged": "deleted", "open": ""}
            assert ends.get(entry.state, entry.state) == mark.end, f"{entry.state}, and has to be {mark.end or 'open'}"
            parts = {each.name: (each.required, each.owns_identifier, each.is_fulfilled) for each in entry.dependencies}
            wishes = {name: (part.is_required, part.owns_identifier, part.is_done) for name, part in mark.parts.items()}
            assert parts == wishes, f"{parts} and has to be {wishes}"


def check_restored(before: Record, after: Record, lineage: Mapping[str, Record]) -> None:
    """Check what unmark and release give back: every byte; latest where it is published and nothing newer came."""
    changes: dict[str, Any] = {"seq": after.seq, "epoch": after.epoch, "updated": after.updated, "latest": after.latest,
               "claims_latest": after.claims_latest, "state": after.state, "quarantine": after.quarantine}  # fmt: skip
    assert replace(before, **changes) == after, "a byte is another"
    newest = max(record.version or 0 for record in lineage.values())
    may_be = after.state == "published" and not after.superseded and after.version == newest
    assert (after.latest, after.claims_latest) == (may_be, may_be), f"{after.id} is latest: {after.latest}"


def _reason(layer: str | None) -> str | None:
    return orjson.loads(layer)["reason"] if layer is not None else None


def may(action: str, who: Principal, institution: str) -> bool:
    """Return whether the rules that a node has without a policy file allow it."""
    return who.is_admin or (action in OF_PUBLISHERS and f"publisher:{institution}" in who.roles) or (
        action == "delete" and who.name == "manager:deletions"
    )  # fmt: skip
