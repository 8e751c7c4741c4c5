"""The decision of an action that changes a dataset's state and leaves its document as it is."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from fedstac.domain import documents, versions
from fedstac.domain.errors import Conflict
from fedstac.domain.model import Change, Decision, Draft, Lineage, Outcome, Record, World
from fedstac.domain.policy import Action
from fedstac.domain.vocabulary import DatasetName


@dataclass(frozen=True, slots=True)
class StateChange:
    """How a change of state is announced, and what becomes of the command."""

    action: Action
    event: str
    outcome: Outcome

    def decision(
        self, record: Record, after: Record, lineage: Lineage, world: World, *, reason: str | None = None
    ) -> Decision:
        """Return the change from `record` to `after`, with those of other versions that follow from it.

        Conflict where the document is gone.
        """
        if record.document is None:
            raise Conflict(f"the document of {record.id} is gone; publish a new version instead")
        comes_back = not record.is_found and after.is_found
        draft = search_copy(record, world) if comes_back else None
        change = Change(self.event, record, after, draft, reason=reason, actions=(self.action,))
        return Decision(self.outcome, versions.changes(change, lineage, world))


def search_copy(record: Record, world: World) -> Draft:
    """Return the draft of the stored document: a dataset that comes into search again brings its search copy."""
    vocabulary = world.vocabulary(record.collection, record.cv_version)
    name = DatasetName(record.lineage, record.version)
    return documents.prepare(orjson.loads(record.document or "{}"), name, vocabulary)
