"""Grants: who may have the files of a controlled dataset, and until when. Pure.

A grant is for a dataset, a lineage (all versions of a dataset) or a project (all datasets of a collection). It opens a
dataset while it is valid, not closed, and the dataset is published. So a retraction, a quarantine and a mark suspend it
for that dataset, and what undoes them restores it: nothing about that is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from fedstac.domain.model import State

GIVEN: Final = "org.fedstac.grant.given.v1"
SUSPENDED: Final = "org.fedstac.grant.suspended.v1"
RESTORED: Final = "org.fedstac.grant.restored.v1"
WITHDRAWN: Final = "org.fedstac.grant.withdrawn.v1"
TYPES: Final = (GIVEN, SUSPENDED, RESTORED, WITHDRAWN)
PREFIX: Final = "org.fedstac.grant."
OPENING: Final = (State.PUBLISHED,)  # states in which grants open a dataset


class GrantScope(StrEnum):
    """What a grant is for."""

    DATASET = "dataset"
    LINEAGE = "lineage"
    PROJECT = "project"


class GrantStand(StrEnum):
    """How a grant stands at a moment, but for the state of its datasets."""

    AHEAD = "ahead"  # its time has not come
    VALID = "valid"
    EXPIRED = "expired"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class GrantTarget:
    """What a grant is for. `name`: the dataset's id, the lineage's key, or "" for the whole project."""

    collection: str
    scope: GrantScope
    name: str = ""

    @property
    def key(self) -> str:
        """The key of the events about its grants (fedstac.grant_key in migrations/0071_grants.sql)."""
        match self.scope:
            case GrantScope.DATASET:
                return f"grant:dataset:{self.collection}/{self.name}"
            case GrantScope.LINEAGE:
                return f"grant:lineage:{self.name}"
            case GrantScope.PROJECT:
                return f"grant:project:{self.collection}"

    @property
    def lineage(self) -> str | None:
        """The lineage's name without its collection; None where the grant is for something else."""
        return self.name.removeprefix(f"{self.collection}/") if self.scope is GrantScope.LINEAGE else None

    @property
    def dataset(self) -> str | None:
        """The dataset's id; None where the grant is for something else."""
        return self.name if self.scope is GrantScope.DATASET else None

    def covers(self, collection: str, dataset: str, lineage: str) -> bool:
        """Tell whether a dataset is of this target. lineage: its key."""
        names = {GrantScope.DATASET: dataset, GrantScope.LINEAGE: lineage, GrantScope.PROJECT: ""}
        return collection == self.collection and self.name == names[self.scope]


@dataclass(frozen=True, slots=True)
class AccessGrant:
    """A grant as it is stored. subject: a name as in the logs. It holds from valid_from to before valid_until."""

    id: UUID
    subject: str
    target: GrantTarget
    valid_from: datetime
    valid_until: datetime
    given_at: datetime
    given_by: str
    closed_at: datetime | None = None
    closed_by: str | None = None
    closed_why: str | None = None
    cause: UUID | None = None  # the event that closed it

    def stand(self, now: datetime) -> GrantStand:
        """Return how it stands."""
        if self.closed_at is not None:
            return GrantStand.CLOSED
        if now < self.valid_from:
            return GrantStand.AHEAD
        return GrantStand.VALID if now < self.valid_until else GrantStand.EXPIRED

    def opens(self, collection: str, dataset: str, lineage: str, state: State, now: datetime) -> bool:
        """Tell whether it opens a dataset now. lineage: the key of the dataset's lineage."""
        is_valid = self.stand(now) is GrantStand.VALID
        return is_valid and state in OPENING and self.target.covers(collection, dataset, lineage)
