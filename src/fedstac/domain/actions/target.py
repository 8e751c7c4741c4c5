"""The dataset that an action is about, and whether it is there to be acted on."""

from __future__ import annotations

from dataclasses import dataclass

from fedstac.domain.errors import Conflict, ForeignOrigin, ItemDoesNotExist, PreconditionFailed
from fedstac.domain.model import Lineage, Record, State, World

GONE = (State.DELETED, State.PURGED)


@dataclass(frozen=True, slots=True)
class Target:
    collection: str
    id: str
    lineage: str  # the lineage's key


def find(
    target: Target, lineage: Lineage, world: World, expected: tuple[str, ...] | None, *, marked: bool = False
) -> Record:
    """The stored record. A Problem where it is not here, not ours, another than `expected`, or marked for deletion."""
    if lineage.origin != world.origin:
        raise ForeignOrigin(f"{target.id} belongs to the node {lineage.origin}; change it there")
    stored = lineage.records.get(target.id)
    if stored is None or stored.state in GONE or stored.document is None:
        raise ItemDoesNotExist(
            f"there is no dataset {target.id!r} in {target.collection}; a search lists those there are"
        )
    if expected is not None and "*" not in expected and stored.digest[:16].hex() not in expected:
        raise PreconditionFailed(f"{target.id} was changed since you read it; read it again")
    if stored.state is State.MARKED and not marked:
        raise Conflict(f"{target.id} is marked for deletion; unmark it first")
    return stored
