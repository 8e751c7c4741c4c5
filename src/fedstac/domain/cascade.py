"""Deleting a collection with its datasets: how far it is, what it affects, and what it refuses. Pure.

It marks every dataset of the collection for deletion. The rules of deletion hold for each of them; the collection goes
when the last one is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from fedstac.domain.errors import CollectionClosing
from fedstac.domain.model import State, rfc3339

LONGEST_REASON: Final = 2000  # characters
TO_MARK: Final = (State.PUBLISHED, State.RETRACTED, State.QUARANTINED)


class CascadeState(StrEnum):
    """How the deletion of a collection stands."""

    MARKING = "marking"  # its datasets, in chunks
    WAITING = "waiting"  # until the last dataset is deleted
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Cascade:
    """The deletion of a collection with its datasets. `id`: of the event that announced it.

    datasets: how many there were when it began. refused: how many could not be marked in the last pass.
    """

    id: UUID
    collection: str
    state: CascadeState
    reason: str
    actor: str
    datasets: int
    begun_at: datetime
    refused: int = 0
    refusal: str | None = None
    ended_at: datetime | None = None
    ended_by: str | None = None

    def as_json(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Return it as it is shown. counts: the datasets of the collection now, by state."""
        return {
            "id": str(self.id), "collection": self.collection, "state": self.state, "reason": self.reason,
            "actor": self.actor, "begun_at": rfc3339(self.begun_at),
            "ended_at": rfc3339(self.ended_at) if self.ended_at else None, "ended_by": self.ended_by,
            "datasets": self.datasets, "to_mark": sum(counts.get(state, 0) for state in TO_MARK),
            "marked": counts.get(State.MARKED, 0),
            "deleted": counts.get(State.DELETED, 0) + counts.get(State.PURGED, 0),
            "refused": self.refused, "refusal": self.refusal,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class CascadeEffects:
    """What the deletion of a collection affects, by level.

    datasets: by state, without those that are deleted. replicas: by node, the datasets of which it has files, and how
    many files. groups and memberships: fedstac's own, for this project. waiting: items of requests that are refused.
    destinations: of publishers who are told of the marks. awaited: results that somebody waits for.
    """

    collection: str
    lineages: int
    datasets: Mapping[str, int]
    files: int
    bytes: int
    replicas: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    groups: int = 0
    memberships: int = 0
    waiting: int = 0
    destinations: int = 0
    awaited: int = 0

    @property
    def total(self) -> int:
        """The number of datasets, which confirms the deletion."""
        return sum(self.datasets.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "dry_run": True, "collection": self.collection, "confirm": self.total, "lineages": self.lineages,
            "datasets": {"total": self.total, "by_state": dict(self.datasets)},
            "files": {"count": self.files, "bytes": self.bytes},
            "replicas": [
                {"node": node, "datasets": datasets, "files": files}
                for node, (datasets, files) in sorted(self.replicas.items())
            ],
            "own_groups": {"groups": self.groups, "memberships": self.memberships},
            "requests": {"waiting_items": self.waiting},
            "notifications": {"destinations": self.destinations, "awaited": self.awaited},
        }  # fmt: skip


def refusal(collection: str, cascade: UUID) -> CollectionClosing:
    """Return the refusal of what is put into a collection that is being deleted."""
    return CollectionClosing(
        f"the collection {collection} is being deleted with its datasets (cascade {cascade}); nothing is put into it "
        f"until that is cancelled: DELETE /collections/{collection}/cascade", collection=collection, cascade=cascade,
    )  # fmt: skip
