"""The dataset that an action is about, and whether it is there to be acted on."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from fedstac.domain.errors import Conflict, ForeignOrigin, ItemDoesNotExist, PreconditionFailed
from fedstac.domain.model import Lineage, Record, State, World
from fedstac.domain.policy import Action, Principal, Touched

GONE = (State.DELETED, State.PURGED)


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


def _is_hidden(stored: Record, principal: Principal, world: World) -> bool:
    if stored.state is not State.MARKED:
        return False
    what = touched(stored, world)
    return not any(world.policy.verdict(principal, action, what).allowed for action in (Action.MARK, Action.UNMARK))


def touched(stored: Record, world: World) -> Touched:
    """A stored dataset as the policy sees it, with the institution that its document names."""
    vocabulary = world.vocabulary(stored.collection, stored.cv_version)
    institution = None
    if vocabulary is not None:
        institution = orjson.loads(stored.document or "{}")["properties"].get(vocabulary.institution)
    return Touched(stored.id, stored.collection, institution if isinstance(institution, str) else None)
