"""What happens when someone retracts a dataset, or takes a retraction back.

The stored document and the files stay as they are. Readers find the dataset with its reason and without its files
(api/http/links.py leaves them out). Which version is the latest then, domain/versions.py says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fedstac.domain import events, retraction, versions
from fedstac.domain.actions.state_change import StateChange
from fedstac.domain.actions.target import QueuedAction, Target, find, resource_of
from fedstac.domain.model import Decision, Lineage, Outcome, State, World
from fedstac.domain.policy import Action, Principal
from fedstac.domain.retraction import Retraction

RETRACTS: Final = StateChange(Action.RETRACT, events.RETRACTED, Outcome.RETRACTED)
REINSTATES: Final = StateChange(Action.REINSTATE, events.REINSTATED, Outcome.REINSTATED)


@dataclass(frozen=True, slots=True)
class Retract:
    """Flag a dataset as one that must not be used. `retraction` says why, and more (domain/retraction.py)."""

    target: Target
    principal: Principal
    retraction: Retraction
    expected: tuple[str, ...] | None = None

    @classmethod
    def read(cls, action: QueuedAction) -> Retract:
        """Read {"retraction": {…}, "expected": […]}."""
        return cls(action.target, action.principal, action.body["retraction"], action.expected)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Retract the dataset. A repeat changes what it names and keeps the rest; it may change nothing."""
        record = find(self.target, self.principal, lineage, world, self.expected)
        world.policy.require(self.principal, Action.RETRACT, resource_of(record, world))
        whole = retraction.completed(record.retraction, self.retraction, record.id)
        doubts = retraction.warnings(self.retraction, record.collection, self._state_of_replacement(lineage, world))
        text = retraction.text_of(whole)
        if record.is_retracted and record.retraction == text:
            return Decision(Outcome.IDENTICAL, warnings=doubts)
        after = versions.retract(record, text)
        decision = RETRACTS.decision(record, after, lineage, world, reason=whole["reason"])
        return replace(decision, warnings=doubts)

    def _state_of_replacement(self, lineage: Lineage, world: World) -> State | None:
        id = self.retraction.get("replaced_by", "")
        version = lineage.records.get(id)
        return version.state if version else world.replacements.get((self.target.collection, id))


@dataclass(frozen=True, slots=True)
class Reinstate:
    """Take a retraction back. Every byte is as it was; the dataset is latest again only if nothing newer ever was.

    A dataset that its publisher had given up as the latest stays given up.
    """

    target: Target
    principal: Principal
    expected: tuple[str, ...] | None = None

    @classmethod
    def read(cls, action: QueuedAction) -> Reinstate:
        """Read {"expected": […]}."""
        return cls(action.target, action.principal, action.expected)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Reinstate the dataset. Nothing changes where it is not retracted."""
        record = find(self.target, self.principal, lineage, world, self.expected)
        world.policy.require(self.principal, Action.REINSTATE, resource_of(record, world))
        if not record.is_retracted:
            return Decision(Outcome.IDENTICAL)
        return REINSTATES.decision(record, versions.reinstate(record, lineage), lineage, world)
