"""Grants: who may have the files of a controlled dataset, and until when. Pure.

A grant is for a dataset, a lineage (all versions of a dataset) or a project (all datasets of a collection). It opens a
dataset while it is valid, not closed, and the dataset is published. So a retraction, a quarantine and a mark suspend it
for that dataset, and what undoes them restores it: nothing about that is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from fedstac.domain.errors import BadRequest, ForeignOrigin, ItemDeleted, ItemDoesNotExist, MarkedForDeletion, Problem
from fedstac.domain.identifiers import COLLECTION_ID
from fedstac.domain.model import WITHOUT_DOCUMENT, State

GIVEN: Final = "org.fedstac.grant.given.v1"
SUSPENDED: Final = "org.fedstac.grant.suspended.v1"
RESTORED: Final = "org.fedstac.grant.restored.v1"
WITHDRAWN: Final = "org.fedstac.grant.withdrawn.v1"
TYPES: Final = (GIVEN, SUSPENDED, RESTORED, WITHDRAWN)
PREFIX: Final = "org.fedstac.grant."
PASSAGE: Final = "org.fedstac.grant.passage.v1"  # of one dataset, for subscriptions alone (domain/grant_passages.py)
OPENING: Final = (State.PUBLISHED,)  # states in which grants open a dataset
LONGEST_NAME: Final = 600


def event_of(before: State | None, after: State) -> str | None:
    """Return the type of the event about a dataset's grants that follows a change of its state; None where none does.

    What is gone, and what a full-state load clears, has no grants: they are closed.
    """
    if before is None or before in WITHOUT_DOCUMENT:
        return None
    if after in WITHOUT_DOCUMENT:
        return WITHDRAWN
    if (before in OPENING) is (after in OPENING):
        return None
    return RESTORED if after in OPENING else SUSPENDED


def for_holder(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an event about grants, parsed, as whoever has one of them gets it.

    It does not say how many others have one, nor who retracted, marked or deleted the dataset or withdrew the grant.
    What suspends a grant may be a mark, of which it says nothing either.
    """
    event_type, data = event["type"], event["data"]
    hidden = {"grants"} if data.get("subject") is None else set()
    hidden |= {"actor"} if event_type != GIVEN else set()
    hidden |= {"reason"} if event_type in (SUSPENDED, RESTORED) else set()
    return {**event, "data": {name: value for name, value in data.items() if name not in hidden}}


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

    @classmethod
    def parse(cls, scope: GrantScope, text: str) -> GrantTarget:
        """Read a target: CMIP6/id of a dataset, CMIP6/name of a lineage, CMIP6 of a project.

        BadRequest where the text is none.
        """
        collection, slash, name = text.partition("/")
        is_project = scope is GrantScope.PROJECT
        is_name = not name if is_project else 0 < len(name) <= LONGEST_NAME and "\0" not in name
        if not (COLLECTION_ID.fullmatch(collection) and is_name):
            example = "CMIP6" if is_project else "CMIP6/CMIP6.CMIP.NCAR.…"
            raise BadRequest(f"{text[:80]!r} is no {scope}; it looks like {example}")
        if is_project and slash:
            raise BadRequest(f"{text[:80]!r} is no project; it looks like CMIP6")
        return cls(collection, scope, text if scope is GrantScope.LINEAGE else name)

    def __str__(self) -> str:
        match self.scope:
            case GrantScope.DATASET:
                return f"{self.collection}/{self.name}"
            case GrantScope.LINEAGE:
                return self.name
            case GrantScope.PROJECT:
                return self.collection

    @property
    def lineage(self) -> str | None:
        """The lineage's name without its collection; None where the grant is for something else."""
        return self.name.removeprefix(f"{self.collection}/") if self.scope is GrantScope.LINEAGE else None

    @property
    def dataset(self) -> str | None:
        """The dataset's id; None where the grant is for something else."""
        return self.name if self.scope is GrantScope.DATASET else None


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


@dataclass(frozen=True, slots=True)
class TargetState:
    """What a target is at this node: the states of its datasets, whose it is, and which node has it.

    origin None: there is no such thing here.
    """

    origin: str | None = None
    states: tuple[State, ...] = ()
    institution: str | None = None
    marked: str | None = None  # the id of one of its marked datasets
    deletion: UUID | None = None  # the open deletion of that one

    def refusal(self, target: GrantTarget, here: str) -> Problem | None:
        """Return why no grant of it is given at this node; None where one may be.

        What is retracted or in quarantine may have one: it opens nothing until that is over.
        """
        if self.origin is None:
            return ItemDoesNotExist(f"there is no {target.scope} {target} here; a search lists what there is")
        if self.origin != here:
            return ForeignOrigin(f"{target} belongs to the node {self.origin}; grants of it are given there")
        if target.scope is GrantScope.PROJECT:
            return None
        present = [state for state in self.states if state not in WITHOUT_DOCUMENT]
        if not present and State.CLEARED in self.states:
            return ItemDoesNotExist(f"there is no {target.scope} {target} here; a search lists what there is")
        if not present:
            return ItemDeleted(f"{target} was deleted; nobody gets a grant of it any more")
        if all(state is State.MARKED for state in present):
            return MarkedForDeletion(
                f"{self.marked or target} is marked for deletion; unmark it first", deletion=self.deletion
            )
        return None
