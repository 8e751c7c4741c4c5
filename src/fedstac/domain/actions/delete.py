"""What happens when a marked dataset is deleted, and when its last traces are purged.

A tombstone stays: the id is never used again. What is still missing before a deletion, domain/deletion.py says.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from fedstac.domain import events, versions
from fedstac.domain.actions.target import QueuedAction, Target, find, resource_of, without_document
from fedstac.domain.errors import Conflict, DeletionNotReady, ForeignOrigin, ItemDoesNotExist, MarkedForDeletion
from fedstac.domain.model import GONE, WITHOUT_DOCUMENT, Change, Decision, Lineage, Outcome, Record, State, World
from fedstac.domain.policy import Action, Principal, Resource


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a marked dataset: the record becomes a tombstone.

    deletion: the one that was asked for; None: whichever is open. automatic: it was asked for because the rules of that
    deletion let the schedule delete.
    """

    target: Target
    principal: Principal
    expected: tuple[str, ...] | None = None
    deletion: UUID | None = None
    automatic: bool = False

    @classmethod
    def read(cls, action: QueuedAction) -> Delete:
        """Read {"expected": […], "deletion": "…", "automatic": true}; each may be left out."""
        automatic = bool(action.body.get("automatic", False))
        return cls(action.target, action.principal, action.expected, action.deletion, automatic)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Delete the dataset. DeletionNotReady names all that is missing. Nothing changes where it is deleted."""
        tombstone = lineage.records.get(self.target.id)
        if tombstone is not None and tombstone.state in GONE:
            _require(self.principal, Action.DELETE, tombstone, world)
            return Decision(Outcome.IDENTICAL)
        record = find(self.target, self.principal, lineage, world, self.expected, marked=True)
        world.policy.require(self.principal, Action.DELETE, resource_of(record, world))
        if record.state is not State.MARKED:
            raise Conflict(f"{record.id} is {record.state}; only what is marked for deletion is deleted: mark it first")
        deletion = world.deletions.get((record.collection, record.id))
        if deletion is None:
            raise DeletionNotReady(f"{record.id} was marked a moment ago; send this again")
        if self.deletion is not None and deletion.id != self.deletion:
            detail = f"{record.id} was marked again since then; look at its new deletion, and delete that"
            raise DeletionNotReady(detail, deletion=deletion.id)
        if self.automatic and not deletion.automatic:
            detail = (
                f"{record.id} is not deleted by the schedule any more, as other rules hold for it; delete it by hand"
            )
            raise DeletionNotReady(detail, deletion=deletion.id)
        if missing := deletion.missing(world.now):
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            detail = f"{record.id} cannot be deleted yet: {missing[0].message}{more}"
            raise DeletionNotReady(detail, deletion=deletion.id, findings=missing)
        change = Change(events.DELETED, record, without_document(record, State.DELETED), reason=deletion.reason,
                        actions=(Action.DELETE,))  # fmt: skip
        return Decision(Outcome.DELETED, versions.changes(change, lineage, world))


@dataclass(frozen=True, slots=True)
class Purge:
    """Purge a dataset that is deleted or cleared: what this server still has of it in its log, requests and messages is
    redacted.

    A tombstone stays, of a cleared dataset too: its id is never used again.
    """

    target: Target
    principal: Principal

    @classmethod
    def read(cls, action: QueuedAction) -> Purge:
        """Read {}."""
        return cls(action.target, action.principal)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Remove what is left of the dataset. Conflict where it is still here; nothing changes where it is purged."""
        record = lineage.records.get(self.target.id)
        if record is None or record.state not in WITHOUT_DOCUMENT:
            here = find(self.target, self.principal, lineage, world, None, marked=True)
            world.policy.require(self.principal, Action.PURGE, resource_of(here, world))
            deletion = world.deletions.get((here.collection, here.id))
            detail = f"{self.target.id} is not deleted; only what is deleted can be purged, or was cleared"
            raise MarkedForDeletion(detail, deletion=deletion.id) if deletion else Conflict(detail)
        _require(self.principal, Action.PURGE, record, world)
        if record.origin != world.origin:
            raise ForeignOrigin(f"{record.id} belongs to the node {record.origin}; purge it there")
        if record.state is State.PURGED:
            return Decision(Outcome.IDENTICAL)
        change = Change(events.PURGED, record, without_document(record, State.PURGED), actions=(Action.PURGE,))
        return Decision(Outcome.PURGED, versions.changes(change, lineage, world))


def _require(principal: Principal, action: Action, tombstone: Record, world: World) -> None:
    """Require a right on a tombstone, of which no institution is known: one that holds for all of them."""
    resource = Resource(tombstone.id, tombstone.collection, "*")
    if not world.policy.may_one_of(principal, (action,), resource):
        raise ItemDoesNotExist(
            f"there is no dataset {tombstone.id!r} in {tombstone.collection}; a search lists those there are"
        )
