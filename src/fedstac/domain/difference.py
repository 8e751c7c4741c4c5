"""How two documents of one dataset differ: the actions that lead from one to the other, and the members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fedstac.domain import documents
from fedstac.domain.alternates import FILE, alternates_of, less_alternates
from fedstac.domain.errors import pointer
from fedstac.domain.policy import Action

Json = Mapping[str, Any]
MOST: Final = 50  # pointers; a document that differs in more is another document


@dataclass(frozen=True, slots=True)
class Effect:
    """What an edit does: the actions, the nodes whose entries it changes, and the nodes that hold changed assets.

    adds_entries: an entry is new, or another one than it was; where it is False, entries are taken away only.
    """

    actions: frozenset[Action]
    nodes: frozenset[str] = frozenset()
    holders: frozenset[str] = frozenset()
    adds_entries: bool = False

    def nodes_of(self, action: Action) -> frozenset[str]:
        """Return the nodes on which one of the actions needs the right too, where rights are given by node."""
        if action is Action.REPLICATE:
            return self.nodes
        return self.holders if action in (Action.UPDATE, Action.REPLACE) else frozenset()


def effect_of(before: Json, after: Json) -> Effect:
    """Return what leads from one document to the other."""
    if not _differ(before, after):
        return Effect(frozenset())
    actions, nodes, holders, adds_entries = set(), set(), set[str](), False
    for key in before["assets"].keys() | after["assets"].keys():
        old, new = before["assets"].get(key), after["assets"].get(key)
        if not _differ(old, new):
            continue
        old_entries, new_entries = alternates_of(old), alternates_of(new)
        every = old_entries.keys() | new_entries.keys()
        adds_entries |= any(_differ(old_entries.get(node), entry) for node, entry in new_entries.items())
        if old is None or new is None:
            nodes |= every
        else:
            nodes |= {node for node in every if _differ(old_entries.get(node), new_entries.get(node))}
        if _differ(_file(old), _file(new)):
            actions.add(Action.REPLACE)
        if _differ(less_alternates(old), less_alternates(new)):
            actions.add(Action.UPDATE)
            holders |= _holder(old) | _holder(new)
    if nodes:
        actions.add(Action.REPLICATE)
    if _differ(before["links"], after["links"]):
        actions.add(Action.ANNOTATE)
    if _differ({**before, "assets": None, "links": None}, {**after, "assets": None, "links": None}):
        actions.add(Action.UPDATE)
    return Effect(frozenset(actions), frozenset(nodes), frozenset(holders), adds_entries)


def changed_members(before: str, after: str) -> tuple[str, ...]:
    """Return the members that differ between two documents, given as JSON text: at most MOST, in their order.

    A member is a JSON pointer. Properties are named one by one, assets by asset and member, other members as a whole.
    """
    places = _between(orjson.loads(before), orjson.loads(after))
    return tuple(place for place, _ in zip(places, range(MOST), strict=False))


def _between(before: Json, after: Json, *steps: str) -> Iterator[str]:
    for name in dict.fromkeys((*before, *after)):
        one, other = before.get(name), after.get(name)
        if not _differ(one, other) and (name in before) == (name in after):
            continue
        is_opened = steps == ("assets",) or (not steps and name in ("properties", "assets"))
        if is_opened and isinstance(one, dict) and isinstance(other, dict):
            yield from _between(one, other, *steps, name)
        else:
            yield pointer(*steps, name)


def _differ(one: object, other: object) -> bool:
    """Compare two values by their JSON, as digests do: to Python 1, 1.0 and true are the same."""
    if one is other:
        return False
    sort = orjson.OPT_SORT_KEYS
    return orjson.dumps(one, option=sort) != orjson.dumps(other, option=sort)


def _holder(asset: Json | None) -> frozenset[str]:
    """Return the node that an asset names as its own."""
    node = asset.get("alternate:name") if asset else None
    return frozenset((node,)) if isinstance(node, str) else frozenset()


def _file(asset: Json | None) -> tuple[object, ...] | None:
    """Return what identifies a file; None for an aggregation (kerchunk), which is made of files and is none."""
    if asset is None or documents.is_aggregation(asset):
        return None
    identity = (*(asset.get(name) for name in FILE), documents.tracking_id(asset))
    return identity if any(identity) else None
