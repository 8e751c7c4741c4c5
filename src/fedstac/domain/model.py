"""The values everything is decided on: records, lineages, changes, decisions, the world. No I/O, no clock."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from fedstac.domain.deletion import Deletion
from fedstac.domain.errors import Finding, Problem
from fedstac.domain.policy import ROLES, Level, Policy
from fedstac.domain.vocabulary import ParsedVocabularies, Vocabulary


class State(StrEnum):
    """Superseded is not a state: it is `latest` = false."""

    PUBLISHED = "published"
    RETRACTED = "retracted"
    QUARANTINED = "quarantined"
    MARKED = "marked"
    DELETED = "deleted"
    PURGED = "purged"
    CLEARED = "cleared"  # by a full-state load; without a tombstone, and the id may be published again


SEARCHED = (State.PUBLISHED, State.RETRACTED)  # states in which searches find a dataset
GONE = (State.DELETED, State.PURGED)  # a tombstone is left
WITHOUT_DOCUMENT = (*GONE, State.CLEARED)


class Outcome(StrEnum):
    """The result of one command."""

    NEW = "new"  # the first version of its lineage
    NEWER = "newer"  # a later version; the old latest was demoted
    OLDER = "older"  # an earlier version than one that is there; stored, not latest
    UPDATED = "updated"  # the same version with the same files, other metadata
    REPLACED = "replaced"  # the same version with other files, by an exemption
    SUPERSEDED = "superseded"  # given up as the latest
    RETRACTED = "retracted"
    REINSTATED = "reinstated"
    REPLICATED = "replicated"  # entries of nodes
    ANNOTATED = "annotated"  # links
    MARKED = "marked"  # for deletion
    UNMARKED = "unmarked"
    QUARANTINED = "quarantined"
    RELEASED = "released"  # from quarantine
    DELETED = "deleted"
    PURGED = "purged"
    CLEARED = "cleared"
    REBUILT = "rebuilt"  # cleared, and published again
    IDENTICAL = "identical"  # nothing changed, nothing was announced
    REJECTED = "rejected"
    FAILED = "failed"


@lru_cache(maxsize=4096)  # a batch shares its moments
def rfc3339(moment: datetime) -> str:
    """Spell an aware datetime as RFC 3339 in UTC with microseconds: one form in documents, events and digests."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[: -len("+00:00")] + "Z"


def rfc3339_or_none(moment: datetime | None) -> str | None:
    """Spell a datetime as `rfc3339` does; None stays None."""
    return rfc3339(moment) if moment is not None else None


LONGEST_MOMENT = 4096  # characters: what is kept has to be small, and nobody writes a fraction of this length
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.IGNORECASE | re.ASCII)


def moment(value: object) -> datetime | None:
    """Return a date and time that is written as in RFC 3339, in UTC within years 1 to 9999; None where it is not."""
    return _moment(value) if isinstance(value, str) else None


@lru_cache(maxsize=4096)  # the files of a dataset share their moments
def _moment(value: str) -> datetime | None:
    if len(value) > LONGEST_MOMENT or not RFC3339.fullmatch(value):
        return None
    try:
        moment = datetime.fromisoformat(value.upper())
        moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment


@dataclass(frozen=True)
class Record:
    """One dataset as it is stored here: the publisher's document and the server's state beside it.

    `document` is None where it was not loaded (the digests are always there). `claims_latest` comes from the last
    event, `latest` is what searches show: at a consumer they may differ for a moment (rule C1), at the origin never.
    """

    collection: str
    id: str
    lineage: str
    origin: str
    version: int | None
    state: State
    latest: bool
    claims_latest: bool
    epoch: int
    seq: int
    created: datetime
    updated: datetime
    document: str | None
    document_digest: bytes
    files_digest: bytes
    publisher: str
    cv_version: str | None  # of the vocabulary that the document was judged with
    cv_excused: str | None = None  # errors that it may keep, as JSON text: [[rule, pointer], …]
    replicas: str | None = None  # JSON text, by node, as the document's alternates say
    retraction: str | None = None  # JSON text: reason, errata, replaced_by, data; also while it is marked
    superseded: bool = False  # given up by its publisher, not by a newer version: never latest again by itself
    quarantine: str | None = None  # JSON text: reason, case, contact, links; also while it is marked
    access: Level = Level.OPEN  # who may have it; of a tombstone: who might have had it

    @cached_property
    def digest(self) -> bytes:
        """The sha-256 over the document's digest and the server's state; equal on every node that shows the same.

        The document goes in by its own digest, so that a change of state alone needs no document (docs/adr/0002).
        """
        state = "\n".join(
            (
                self.collection,
                self.id,
                self.state.value,
                "latest" if self.claims_latest else "",
                rfc3339(self.created),
                rfc3339(self.updated),
                *([self.retraction] if self.retraction is not None else []),
                *(["superseded"] if self.superseded else []),
                *([f"quarantine {self.quarantine}"] if self.quarantine is not None else []),
                *([f"access {self.access}"] if self.access is not Level.OPEN else []),
            )
        )
        return hashlib.sha256(self.document_digest + state.encode()).digest()

    @property
    def is_retracted(self) -> bool:
        """Whether it must not be used; a quarantine stands beside that."""
        return self.state is State.RETRACTED or (self.state is State.QUARANTINED and self.retraction is not None)

    @property
    def is_found(self) -> bool:
        """Whether searches find it."""
        return self.state in SEARCHED and self.access is not Level.PRIVATE

    @property
    def claim(self) -> LatestClaim | None:
        """Its claim to be the latest; None where its last event makes none."""
        return LatestClaim(self.epoch, self.seq) if self.claims_latest else None

    def includes(self, epoch: int, seq: int) -> bool:
        """Tell whether an event is already in this state. Clocks decide nothing."""
        return (self.epoch, self.seq) >= (epoch, seq)


class LatestClaim(NamedTuple):
    """The event by which a version said that it is the latest; a later one is greater."""

    epoch: int
    seq: int


NO_CLAIM = LatestClaim(0, 0)


@dataclass(frozen=True, slots=True)
class Lineage:
    """All versions of one dataset name, locked for the transaction that holds this value.

    `claim`: at a consumer, the newest claim of any version to be the latest. A version with an older claim is not.
    """

    key: str
    origin: str
    seq: int
    records: Mapping[str, Record]
    claim: LatestClaim = NO_CLAIM

    @property
    def latest(self) -> Record | None:
        return next((record for record in self.records.values() if record.latest), None)

    def after(self, changes: Sequence[Change]) -> Lineage:
        """Return the lineage as the next command of the same batch sees it."""
        if not changes:
            return self
        records = {**self.records, **{change.after.id: change.after for change in changes}}
        return replace(self, seq=changes[-1].after.seq, records=records)


@dataclass(frozen=True, slots=True)
class SearchCopy:
    """A dataset as pgstac has it: enough to filter, sort and page, nothing to serve."""

    geometry: str  # GeoJSON text, longitudes -180..180, two dimensions
    start: str  # RFC 3339, as PostgreSQL reads it
    end: str
    properties: str  # JSON text of the publisher's properties
    facets: Mapping[str, Any] = field(default_factory=dict)  # that may be coded; the first has the best claim
    size: int = 0  # bytes of its files
    files: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """A document made ready: everything that follows from it alone, computed once."""

    collection: str
    id: str
    lineage: str
    version: int | None
    institution: str | None
    text: str
    document_digest: bytes
    files_digest: bytes
    search: SearchCopy
    replicas: str | None = None  # JSON text, by node
    nodes: tuple[str, ...] = ()  # that the assets name as theirs
    states_level: bool = False  # whether it says `fedstac:access`, `open` too, which is not stored


@dataclass(frozen=True, slots=True)
class Change:
    """One committed change of one dataset; exactly one event."""

    event_type: str
    before: Record | None
    after: Record
    draft: Draft | None = None  # where the document itself is new, or comes into search again
    reason: str | None = None
    actions: tuple[str, ...] = ()  # all that it does, where that is more than its event's name says


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of a command: its outcome, the changes in their order, and warnings for the caller."""

    outcome: Outcome
    changes: tuple[Change, ...] = ()
    warnings: tuple[Finding, ...] = ()


class Judge(Protocol):
    """The rules, as a decision needs them. domain/validation.py implements them."""

    def draft(
        self, document: object, collection: str, vocabulary: Vocabulary | None
    ) -> tuple[Draft, tuple[Finding, ...]]: ...

    def findings_of_stored(self, text: str, collection: str, vocabulary: Vocabulary | None) -> tuple[Finding, ...]: ...


@dataclass(frozen=True, slots=True)
class World:
    """All that a rule may know beside the lineage and the command."""

    now: datetime
    origin: str  # this node's name
    judge: Judge
    policy: Policy = ROLES
    epoch: int = 1  # of this node's feed, read again under the locks
    # states of the datasets that retractions name as replacements, by collection and id
    replacements: Mapping[tuple[str, str], State] = field(default_factory=dict)
    # open deletions of the marked datasets that commands are about, by collection and id
    deletions: Mapping[tuple[str, str], Deletion] = field(default_factory=dict)
    # collections among those of the commands that are being deleted, each with the id of its cascade
    cascades: Mapping[str, UUID] = field(default_factory=dict)
    vocabularies: ParsedVocabularies = field(default_factory=ParsedVocabularies)

    def vocabulary(self, collection: str, version: str | None) -> Vocabulary | None:
        """Return one version of a collection's vocabulary; None without one. UnknownVersion where it was not loaded."""
        return self.vocabularies.at(collection, version) if version is not None else None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of one command of a batch."""

    outcome: Outcome
    changes: tuple[Change, ...] = ()
    problem: Problem | None = None
    findings: tuple[Finding, ...] = ()
    rule: str | None = None  # of the policy, by which it was allowed
