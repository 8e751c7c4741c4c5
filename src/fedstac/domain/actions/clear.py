"""What happens when a full-state load clears a dataset: because it is not in the load, or to be published again.

Nobody has to acknowledge it, and no tombstone stays: only a deletion is final (docs/services.md, "Full-state loads").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import orjson

from fedstac.domain import alternates, events, versions
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import QueuedAction, Target, find, refusal_of_files, resource_of, without_document
from fedstac.domain.difference import effect_of
from fedstac.domain.errors import Conflict
from fedstac.domain.model import SEARCHED, Change, Decision, Lineage, Outcome, Record, State, World
from fedstac.domain.policy import Action, Principal


@dataclass(frozen=True, slots=True)
class Clear:
    """Clear a dataset: its document goes, and its id may be published again."""

    target: Target
    principal: Principal
    expected: tuple[str, ...] | None = None
    reason: str | None = None

    @classmethod
    def read(cls, action: QueuedAction) -> Clear:
        """Read {"expected": […], "reason": "…"}; each may be left out."""
        return cls(action.target, action.principal, action.expected, action.body.get("reason"))

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Clear the dataset. Nothing changes where it is cleared; Conflict where it is marked or under quarantine."""
        present = lineage.records.get(self.target.id)
        if present is not None and present.state is State.CLEARED:
            return Decision(Outcome.IDENTICAL)
        record = self.find(lineage, world)
        change = self.change(record)
        return Decision(Outcome.CLEARED, versions.changes(change, lineage, world))

    def find(self, lineage: Lineage, world: World) -> Record:
        """Return the stored record, which the caller may clear. Problems as those of target.find."""
        record = find(self.target, self.principal, lineage, world, self.expected)
        world.policy.require(self.principal, Action.DELETE, resource_of(record, world))
        if record.state not in SEARCHED:
            raise Conflict(f"{record.id} is {record.state}; a load leaves it as it is")
        return record

    def change(self, record: Record) -> Change:
        """Return the change that clears a record."""
        return Change(events.CLEARED, record, without_document(record, State.CLEARED), reason=self.reason,
                      actions=(Action.DELETE,))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Clear a dataset and publish it again, in one step: two events, one after the other, and no moment without it.

    Its place among the versions stays: whether it is the latest, and whether its publisher gave it up. override: the
    reason for other files under the same version.
    """

    clear: Clear
    publish: Publish
    override: str | None = None

    @property
    def target(self) -> Target:
        return self.clear.target

    @property
    def principal(self) -> Principal:
        return self.clear.principal

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Do both, or nothing where one of them is refused. No other version is promoted in between."""
        record = self.clear.find(lineage, world)
        if record.document_digest != self.publish.draft.document_digest:
            self._permit_files(record, world)
        clearing = versions.alone(self.clear.change(record), lineage, world)
        decision = replace(self.publish, rebuilt=record).decide(lineage.after((clearing,)), world)
        return Decision(Outcome.REBUILT, (clearing, *decision.changes), decision.warnings)

    def _permit_files(self, record: Record, world: World) -> None:
        """Require a reason and the right for other files: a rebuild is no way around them. Errors as of Amend."""
        before, document = orjson.loads(record.document or "{}"), orjson.loads(self.publish.draft.text)
        effect = effect_of(before, alternates.completed(before, alternates.with_alternates(before, document)))
        if Action.REPLACE not in effect.actions:
            return
        resource = replace(resource_of(record, world), nodes=effect.nodes_of(Action.REPLACE))
        world.policy.require(self.principal, Action.REPLACE, resource)
        if not self.override:
            raise refusal_of_files(record.id)
