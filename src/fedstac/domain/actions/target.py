"""The dataset that an action is about, and whether it is there to be acted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final
from uuid import UUID

import orjson

from fedstac.domain.errors import (
    Conflict,
    ForeignOrigin,
    ItemDoesNotExist,
    MarkedForDeletion,
    PreconditionFailed,
    UnderQuarantine,
)
from fedstac.domain.explaining import institution_of
from fedstac.domain.model import GONE, Lineage, Record, State, World
from fedstac.domain.policy import READING, Action, Level, Principal, Resource
from fedstac.domain.vocabulary import DatasetName, Vocabulary

EMPTY: Final = b""  # digest of a document that is gone, as consumers have it
SEEING_MARKED = (Action.MARK, Action.UNMARK, Action.DELETE)


@dataclass(frozen=True, slots=True)
class Target:
    """The dataset that a command is about. `lineage` is the lineage's key."""

    collection: str
    id: str
    lineage: str


@dataclass(frozen=True)
class QueuedAction:
    """An accepted action as it waits in the queue, for the parsers of the table of actions.

    `text` is the stored body: JSON. `body` is the same text parsed; a caller who has the value gives it as `value`.
    """

    collection: str
    dataset: str
    name: DatasetName
    principal: Principal
    text: str
    value: Mapping[str, Any] | None = None
    prepared: str | None = None  # of a publication: what documents.packed made of its document
    coded: str | None = None  # and documents.packed_facets
    vocabulary: Vocabulary | None = None  # the newest when the request was accepted
    only_new: bool = False  # If-None-Match: *

    @cached_property
    def body(self) -> Mapping[str, Any]:
        body: Mapping[str, Any] = self.value if self.value is not None else orjson.loads(self.text)
        return body

    @property
    def target(self) -> Target:
        return Target(self.collection, self.dataset, self.name.lineage)

    @property
    def cv_version(self) -> str | None:
        return self.vocabulary.version if self.vocabulary else None

    @property
    def expected(self) -> tuple[str, ...] | None:
        """The entity tags of If-Match; None without the header."""
        tags = self.body.get("expected")
        return tuple(tags) if tags is not None else None

    @property
    def deletion(self) -> UUID | None:
        """The deletion that the action is about; None: whichever is open when the action runs."""
        text = self.body.get("deletion")
        return UUID(text) if text is not None else None


def find(
    target: Target, principal: Principal, lineage: Lineage, world: World, expected: tuple[str, ...] | None, *,
    marked: bool = False,
) -> Record:  # fmt: skip
    """Return the stored record of the target.

    ItemDoesNotExist where it is not here. A marked dataset is not here for a caller who may neither mark, unmark nor
    delete it, and a private one for whoever may not read it: nobody else may learn that it exists. ForeignOrigin where
    it is another node's, PreconditionFailed where it is another state than `expected`. MarkedForDeletion where it is
    marked; `marked` allows that. UnderQuarantine where it is in quarantine, for everybody who could not put it there.
    """
    record = lineage.records.get(target.id)
    if record is None or record.state in GONE or record.document is None or is_hidden(record, principal, world):
        raise ItemDoesNotExist(
            f"there is no dataset {target.id!r} in {target.collection}; a search lists those there are"
        )
    if lineage.origin != world.origin:
        raise ForeignOrigin(f"{target.id} belongs to the node {lineage.origin}; change it there")
    if expected is not None and "*" not in expected and record.digest[:16].hex() not in expected:
        raise PreconditionFailed(f"{target.id} was changed since you read it; read it again")
    if record.state is State.MARKED and not marked:
        raise refusal_of_marked(record, world)
    if record.quarantine is not None:
        may = world.policy.may_one_of(principal, (Action.QUARANTINE,), resource_of(record, world))
        if not may:
            raise UnderQuarantine(f"{target.id} is under quarantine; the administrators of this node decide about it")
    return record


def refusal_of_marked(record: Record, world: World) -> MarkedForDeletion:
    """Return the refusal of what cannot be done with a marked dataset, with the id of its deletion."""
    deletion = world.deletions.get((record.collection, record.id))
    return MarkedForDeletion(
        f"{record.id} is marked for deletion; unmark it first", deletion=deletion.id if deletion else None
    )


def without_document(record: Record, state: State) -> Record:
    """Return what stays of a record that goes: its place in its lineage, and nothing that was written about it."""
    return replace(
        record, state=state, latest=False, claims_latest=False, document=None, document_digest=EMPTY,
        files_digest=EMPTY, cv_version=None, cv_excused=None, replicas=None, retraction=None, superseded=False,
        quarantine=None,
    )  # fmt: skip


def refusal_of_files(id: str) -> Conflict:
    """Return the problem of other files under a version that is here, for which nobody gave a reason."""
    return Conflict(
        f"other files for {id}: files never change under a version; publish a new version, or say why in the header "
        "Fedstac-Override"
    )


def may_see_marked(target: Target, principal: Principal, world: World) -> bool:
    """Tell whether a caller may see a dataset that is marked for deletion. True where its id does not name its
    institution.

    The question is asked of every dataset, before anything is read. So the time of an answer does not tell whether a
    dataset is marked or never was there.
    """
    return may_one_of(target, principal, SEEING_MARKED, world)


def may_one_of(target: Target, principal: Principal, actions: Sequence[Action], world: World) -> bool:
    """Tell whether a caller may do one of the actions. True where the dataset's id does not hold the institution."""
    vocabulary = world.vocabularies.current(target.collection)
    if vocabulary is not None and vocabulary.institution not in vocabulary.id_template.names:
        return True
    institution = institution_of(target.id, vocabulary) if vocabulary else None
    return world.policy.may_one_of(principal, actions, Resource(target.id, target.collection, institution))


def is_hidden(record: Record, principal: Principal, world: World) -> bool:
    """Tell whether a stored dataset is marked or private, and hidden from a caller. Its document says whose it is."""
    if record.access is Level.PRIVATE and not world.policy.without_homes.may_one_of(
        principal, READING, resource_of(record, world)
    ):
        return True
    if record.state is not State.MARKED:
        return False
    return not world.policy.may_one_of(principal, SEEING_MARKED, resource_of(record, world))


def resource_of(record: Record, world: World) -> Resource:
    """Return a stored dataset as the policy sees it, with the institution that its document names."""
    vocabulary = world.vocabulary(record.collection, record.cv_version)
    return resource_of_document(record, orjson.loads(record.document or "{}") if vocabulary else {}, vocabulary)


def resource_of_document(record: Record, document: Mapping[str, Any], vocabulary: Vocabulary | None) -> Resource:
    """Return the same of a document that is parsed already."""
    institution = document["properties"].get(vocabulary.institution) if vocabulary else None
    return Resource(record.id, record.collection, institution if isinstance(institution, str) else None)
