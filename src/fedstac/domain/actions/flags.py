"""What happens when someone retracts, reinstates, marks or unmarks a dataset. Files and documents stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import orjson

from fedstac.domain import documents, events, retraction, versions
from fedstac.domain.actions.amend import flagged
from fedstac.domain.actions.target import Target, find, touched
from fedstac.domain.errors import Conflict
from fedstac.domain.model import Change, Decision, Lineage, Outcome, Record, State, World
from fedstac.domain.policy import Action, Principal
from fedstac.domain.retraction import Retraction
from fedstac.domain.vocabulary import DatasetName


@dataclass(frozen=True, slots=True)
class Retract:
    """Flag a dataset as one that must not be used. `retraction` says why, and more (domain/retraction.py)."""

    target: Target
    principal: Principal
    retraction: Retraction
    expected: tuple[str, ...] | None = None

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Retract it. A repeat changes what it names, keeps what it does not name, and may change nothing."""
        stored = find(self.target, self.principal, lineage, world, self.expected)
        world.policy.require(self.principal, Action.RETRACT, touched(stored, world))
        whole = retraction.completed(stored.retraction, self.retraction, stored.id)
        doubts = retraction.warnings(self.retraction, stored.collection, self._state_of_replacement(lineage, world))
        if stored.state is State.RETRACTED and stored.retraction == retraction.text_of(whole):
            return Decision(Outcome.IDENTICAL, warnings=doubts)
        flagged_record = flagged(stored, lineage, frozenset((Action.RETRACT,)))
        after = replace(flagged_record, retraction=retraction.text_of(whole))
        decision = _decision(
            events.RETRACTED, Outcome.RETRACTED, stored, after, lineage, world, whole["reason"], Action.RETRACT
        )
        return replace(decision, warnings=doubts)

    def _state_of_replacement(self, lineage: Lineage, world: World) -> State | None:
        id = self.retraction.get("replaced_by", "")
        version = lineage.records.get(id)
        return version.state if version else world.replacements.get((self.target.collection, id))


@dataclass(frozen=True, slots=True)
class Reinstate:
    """Takes a retraction back: every byte is as it was; latest again only if nothing newer ever was.

    One that its publisher had given up as the latest stays given up.
    """

    target: Target
    principal: Principal
    expected: tuple[str, ...] | None = None

    def decide(self, lineage: Lineage, world: World) -> Decision:
        stored = find(self.target, self.principal, lineage, world, self.expected)
        world.policy.require(self.principal, Action.REINSTATE, touched(stored, world))
        if stored.state is State.PUBLISHED:
            return Decision(Outcome.IDENTICAL)
        after = flagged(stored, lineage, frozenset((Action.REINSTATE,)))
        return _decision(events.REINSTATED, Outcome.REINSTATED, stored, after, lineage, world, None, Action.REINSTATE)


@dataclass(frozen=True, slots=True)
class Mark:
    """Marks a dataset for deletion: hidden, not to be changed, until it is unmarked or deleted."""

    target: Target
    principal: Principal
    reason: str | None = None
    expected: tuple[str, ...] | None = None

    def decide(self, lineage: Lineage, world: World) -> Decision:
        stored = find(self.target, self.principal, lineage, world, self.expected, marked=True)
        world.policy.require(self.principal, Action.MARK, touched(stored, world))
        if stored.state is State.MARKED:
            return Decision(Outcome.IDENTICAL)
        after = replace(stored, state=State.MARKED, latest=False, claims_latest=False)
        return _decision(events.MARKED, Outcome.MARKED, stored, after, lineage, world, self.reason, Action.MARK)


@dataclass(frozen=True, slots=True)
class Unmark:
    """The dataset is again what it was before it was marked."""

    target: Target
    principal: Principal
    expected: tuple[str, ...] | None = None

    def decide(self, lineage: Lineage, world: World) -> Decision:
        stored = find(self.target, self.principal, lineage, world, self.expected, marked=True)
        world.policy.require(self.principal, Action.UNMARK, touched(stored, world))
        if stored.state is not State.MARKED:
            return Decision(Outcome.IDENTICAL)
        if stored.retraction is not None:
            after = replace(stored, state=State.RETRACTED)
        else:
            after = flagged(stored, lineage, frozenset((Action.REINSTATE,)))
        return _decision(events.UNMARKED, Outcome.UNMARKED, stored, after, lineage, world, None, Action.UNMARK)


def _decision(
    event: str, outcome: Outcome, stored: Record, after: Record, lineage: Lineage, world: World, reason: str | None,
    action: Action,
) -> Decision:  # fmt: skip
    """The change. What comes into search again brings its search copy: the draft of the stored document."""
    if stored.document is None:
        raise Conflict(f"the document of {stored.id} is gone; publish a new version instead")
    draft = None
    if stored.state is State.MARKED:
        vocabulary = world.vocabulary(stored.collection, stored.cv_version)
        name = DatasetName(stored.lineage, stored.version)
        draft = documents.prepare(orjson.loads(stored.document), name, vocabulary)
    change = Change(event, stored, after, draft, reason=reason, actions=(action,))
    return Decision(outcome, versions.changes(change, lineage, world))
