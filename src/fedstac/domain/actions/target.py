"""The dataset that an action is about, and whether it is there to be acted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from fedstac.domain.errors import Conflict, ForeignOrigin, ItemDoesNotExist, PreconditionFailed
from fedstac.domain.explaining import institution_of
from fedstac.domain.model import Lineage, Record, State, World
from fedstac.domain.policy import Action, Principal, Touched
from fedstac.domain.vocabulary import Vocabulary

GONE = (State.DELETED, State.PURGED)
MARKING = (Action.MARK, Action.UNMARK)


@dataclass(frozen=True, slots=True)
class Target:
    collection: str
    id: str
    lineage: str  # the lineage's key


def find(
    target: Target, principal: Principal, lineage: Lineage, world: World, expected: tuple[str, ...] | None, *,
    marked: bool = False,
) -> Record:  # fmt: skip
    """The stored record. A Problem where it is not here, not ours, another than `expected`, or marked for deletion.

    A marked one is not there at all for whoever may neither mark nor unmark it (I17).
    """
    stored = lineage.records.get(target.id)
    if stored is None or stored.state in GONE or stored.document is None or _is_hidden(stored, principal, world):
        raise ItemDoesNotExist(
            f"there is no dataset {target.id!r} in {target.collection}; a search lists those there are"
        )
    if lineage.origin != world.origin:
        raise ForeignOrigin(f"{target.id} belongs to the node {lineage.origin}; change it there")
    if expected is not None and "*" not in expected and stored.digest[:16].hex() not in expected:
        raise PreconditionFailed(f"{target.id} was changed since you read it; read it again")
    if stored.state is State.MARKED and not marked:
        raise Conflict(f"{target.id} is marked for deletion; unmark it first")
    return stored


def may_see_marked(target: Target, principal: Principal, world: World) -> bool:
    """Whether a caller may know of a dataset that is marked for deletion, as far as its id tells; else True.

    It is asked before anything is read, of every dataset: so nobody can tell by the time that an answer takes whether a
    dataset is marked or never was (I17).
    """
    return may_one_of(target, principal, MARKING, world)


def may_one_of(target: Target, principal: Principal, actions: Sequence[Action], world: World) -> bool:
    """Whether a caller may do one of the actions, as far as the dataset's id tells the institution; else True."""
    vocabulary = world.judge.vocabularies.current(target.collection)
    if vocabulary is not None and vocabulary.institution not in vocabulary.id_template.names:
        return True
    institution = institution_of(target.id, vocabulary) if vocabulary else None
    return world.policy.may_one_of(principal, actions, Touched(target.id, target.collection, institution))


def _is_hidden(stored: Record, principal: Principal, world: World) -> bool:
    if stored.state is not State.MARKED:
        return False
    return not world.policy.may_one_of(principal, MARKING, touched(stored, world))


def touched(stored: Record, world: World) -> Touched:
    """A stored dataset as the policy sees it, with the institution that its document names."""
    vocabulary = world.vocabulary(stored.collection, stored.cv_version)
    return touched_by(stored, orjson.loads(stored.document or "{}") if vocabulary else {}, vocabulary)


def touched_by(stored: Record, document: Mapping[str, Any], vocabulary: Vocabulary | None) -> Touched:
    """The same, of a document that is parsed already."""
    institution = document["properties"].get(vocabulary.institution) if vocabulary else None
    return Touched(stored.id, stored.collection, institution if isinstance(institution, str) else None)
