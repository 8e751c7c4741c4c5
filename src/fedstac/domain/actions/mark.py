"""What happens when someone marks a dataset for deletion, or takes the mark back. Nothing is erased."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from fedstac.domain import cascade, events, versions
from fedstac.domain.actions.state_change import StateChange
from fedstac.domain.actions.target import QueuedAction, Target, find, resource_of
from fedstac.domain.errors import Conflict, MarkedForDeletion
from fedstac.domain.model import Decision, Lineage, Outcome, State, World
from fedstac.domain.policy import Action, Principal

MARKS: Final = StateChange(Action.MARK, events.MARKED, Outcome.MARKED)
UNMARKS: Final = StateChange(Action.UNMARK, events.UNMARKED, Outcome.UNMARKED)


@dataclass(frozen=True, slots=True)
class Mark:
    """Mark a dataset for deletion: it is hidden and cannot be changed, until it is unmarked or deleted.

    cascade: the deletion of its collection that marks it, if one does.
    """

    target: Target
    principal: Principal
    reason: str | None = None
    expected: tuple[str, ...] | None = None
    cascade: UUID | None = None

    @classmethod
    def read(cls, action: QueuedAction) -> Mark:
        """Read {"reason": "…", "expected": […]}."""
        return cls(action.target, action.principal, action.body.get("reason"), action.expected)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Mark the dataset. Nothing changes where it is marked already; refused to a cascade that has ended."""
        record = find(self.target, self.principal, lineage, world, self.expected, marked=True)
        world.policy.require(self.principal, Action.MARK, resource_of(record, world))
        if self.cascade is not None and world.cascades.get(record.collection) != self.cascade:
            raise Conflict(f"the deletion of the collection {record.collection} ({self.cascade}) was cancelled")
        if record.state is State.MARKED:
            return Decision(Outcome.IDENTICAL)
        after = replace(record, state=State.MARKED, latest=False, claims_latest=False)
        return MARKS.decision(record, after, lineage, world, reason=self.reason)


@dataclass(frozen=True, slots=True)
class Unmark:
    """Take a mark for deletion back: the dataset is again what it was before.

    deletion: the one that the mark opened; None: whichever is open.
    """

    target: Target
    principal: Principal
    expected: tuple[str, ...] | None = None
    deletion: UUID | None = None

    @classmethod
    def read(cls, action: QueuedAction) -> Unmark:
        """Read {"expected": […], "deletion": "…"}; each may be left out."""
        return cls(action.target, action.principal, action.expected, action.deletion)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Take the mark back. Nothing changes where it is not marked; refused while its collection is being deleted."""
        record = find(self.target, self.principal, lineage, world, self.expected, marked=True)
        world.policy.require(self.principal, Action.UNMARK, resource_of(record, world))
        if record.state is not State.MARKED:
            return Decision(Outcome.IDENTICAL)
        present = world.deletions.get((record.collection, record.id))
        if self.deletion is not None and (present is None or present.id != self.deletion):
            raise MarkedForDeletion(
                f"{record.id} was marked again since then; look at its new deletion, and unmark that",
                deletion=present.id if present else None,
            )
        if (open_cascade := world.cascades.get(record.collection)) is not None:
            raise cascade.refusal(record.collection, open_cascade)
        return UNMARKS.decision(record, versions.restore(record, lineage), lineage, world)
