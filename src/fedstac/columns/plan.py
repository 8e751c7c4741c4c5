"""The planner: checked conditions of a search as a tree of what memory can tell and what it cannot (docs/adr/0030).

It is a pure function. The tree has no values of rows: selection.py evaluates it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from fedstac.columns.dictionaries import Leaf
from fedstac.columns.table import RETRACTED
from fedstac.db.columns import COLLECTION, FLAGS, FOOTPRINT, TERM
from fedstac.db.conditions import TEMPORAL
from fedstac.domain import model
from fedstac.domain.facets import may_have_place
from fedstac.domain.filters import MOMENTS, SPANS, is_moment

COLUMN_OF = {"datetime": "starts", "start_datetime": "starts", "end_datetime": "ends", "updated": "updated"}
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL
EARLIEST, LATEST_MOMENT = -(2**63), 2**63 - 1  # infinities, as PostgreSQL sends them
COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "<>": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge
}  # fmt: skip
assert SPANS.keys() == TEMPORAL.keys()

Moment = int | str  # microseconds since 2000, or the column of rows that has them


@dataclass(frozen=True, slots=True)
class Visible:
    """Searches may find the dataset, and its collection is one that is searched."""


@dataclass(frozen=True, slots=True)
class Constant:
    value: bool


@dataclass(frozen=True, slots=True)
class CodeTest:
    """What an entry of a dictionary is. `property` is the one whose codes are looked at; empty for other columns."""

    leaf: Leaf
    property: str


@dataclass(frozen=True, slots=True)
class TimeTest:
    """A test of moments; never unknown, because every row has its moments."""

    test: Callable[..., Any]
    moments: tuple[Moment, ...]


@dataclass(frozen=True, slots=True)
class BitTest:
    """The row has a bit of `shown`, or does not have it."""

    bit: int
    is_set: bool


@dataclass(frozen=True, slots=True)
class IdTest:
    """The dataset has one of these ids."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ItemTest:
    """What only the item itself can tell."""

    expression: Any


@dataclass(frozen=True, slots=True)
class Not:
    part: Node


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Node, ...]


Node = Visible | Constant | CodeTest | TimeTest | BitTest | IdTest | ItemTest | Not | All | AnyOf


@dataclass(frozen=True, slots=True)
class Plan:
    """All of the parts have to be true; `collections` are the names of those that are searched, None for all."""

    parts: tuple[Node, ...]
    collections: frozenset[str] | None

    @property
    def leaves(self) -> set[Leaf]:
        """The conditions on entries of dictionaries."""
        return {node.leaf for node in self.nodes() if isinstance(node, CodeTest)}

    @property
    def ids(self) -> set[str]:
        return {each for node in self.nodes() if isinstance(node, IdTest) for each in node.ids}

    @property
    def starts(self) -> tuple[int, int]:
        """Return between which moments, with both, all that is found starts."""
        least, most = EARLIEST, LATEST_MOMENT
        for part in self.parts:
            match part:
                case TimeTest(test, ("starts", int() as moment)) if test in (operator.le, operator.lt):
                    most = min(most, moment)
                case TimeTest(test, ("starts", int() as moment)) if test in (operator.ge, operator.gt):
                    least = max(least, moment)
        return least, most

    def nodes(self) -> Iterator[Node]:
        """Go through all nodes."""
        yield from walk(self.parts)


def walk(nodes: Sequence[Node]) -> Iterator[Node]:
    """Go through nodes, and through all that are in them."""
    for node in nodes:
        yield node
        match node:
            case All(parts) | AnyOf(parts):
                yield from walk(parts)
            case Not(part):
                yield from walk((part,))


def plan(conditions: Mapping[str, Any]) -> Plan:
    """Return the plan of a search."""
    parts: list[Node] = []
    if "retracted" in conditions:
        parts.append(BitTest(RETRACTED, is_set=conditions["retracted"] == "only"))
    collections = frozenset(conditions["collections"]) if "collections" in conditions else None
    if "ids" in conditions:
        parts.append(IdTest(tuple(conditions["ids"])))
    if "datetime" in conditions:
        start, _, end = conditions["datetime"].partition("/")
        end = end if "/" in conditions["datetime"] else start
        parts += [
            TimeTest(compare, (column, microseconds(text)))
            for compare, column, text in ((operator.ge, "ends", start), (operator.le, "starts", end))
            if text not in ("", "..")
        ]
    if "intersects" in conditions:
        touches = {"op": "s_intersects", "args": [{"property": "geometry"}, conditions["intersects"]]}
        parts.append(_coded((FOOTPRINT, ""), touches))
    if "q" in conditions:
        parts.append(ItemTest(conditions["q"]))
    if "filter" in conditions:
        parts += _conjuncts(_node(conditions["filter"]))
    for part in parts:
        names_of_part = _collections_of(part)
        if names_of_part is not None:
            collections = names_of_part if collections is None else collections & names_of_part
    return Plan(tuple(parts), collections)


def _conjuncts(node: Node) -> tuple[Node, ...]:
    return node.parts if isinstance(node, All) else (node,)


def _collections_of(part: Node) -> frozenset[str] | None:
    """Return the collections that a condition leaves, where it names them."""
    if not isinstance(part, CodeTest) or part.leaf.place[0] != COLLECTION:
        return None
    expression = part.leaf.expression
    match expression:
        case {"op": "=", "args": [{"property": _}, str() as name]}:
            return frozenset((name,))
        case {"op": "in", "args": [{"property": _}, [*names]]}:
            return frozenset(name for name in names if isinstance(name, str))
    return None


def _node(expression: Any) -> Node:
    if isinstance(expression, bool):
        return Constant(expression)
    op, args = expression["op"], expression["args"]
    if op == "and":
        return All(tuple(part for arg in args for part in _conjuncts(_node(arg))))
    if op == "or":
        return AnyOf(tuple(_node(arg) for arg in args))
    if op == "not":
        return Not(_node(args[0]))
    if op.startswith("s_"):
        return _coded((FOOTPRINT, ""), expression)
    names = _names(args)
    if names <= COLUMN_OF.keys():
        timed = _timed(op, args)
        if timed is not None:
            return timed
    if len(names) != 1:
        return ItemTest(expression)
    return _of_property(next(iter(names)), expression)


def _of_property(name: str, expression: Any) -> Node:
    """Return a condition on one property."""
    if name in FLAGS:
        return _coded((name, ""), expression)
    if name == COLLECTION:
        return _coded((COLLECTION, ""), expression)
    if name == "id":
        match expression:
            case {"op": "=", "args": [{"property": _}, str() as one]}:
                return IdTest((one,))
            case {"op": "in", "args": [{"property": _}, [*ids]]} if all(isinstance(each, str) for each in ids):
                return IdTest(tuple(ids))
        return ItemTest(expression)
    if name in MOMENTS:
        return Constant(False) if expression["op"] == "isnull" else ItemTest(expression)
    return _coded((TERM, name), expression) if is_coded(name) else ItemTest(expression)


def is_coded(name: str) -> bool:
    """Return whether rows have codes of a property, unless its collection lost them. A name with a dot is a path."""
    return "." not in name and not name.startswith("fedstac:") and may_have_place(name)


def _coded(place: tuple[str, str], expression: Any) -> CodeTest:
    return CodeTest(Leaf(place, orjson.dumps(expression)), place[1])


def _names(operands: Any) -> frozenset[str]:
    """Return the properties that operands name."""
    if isinstance(operands, list):
        return frozenset().union(*map(_names, operands))
    if not isinstance(operands, dict):
        return frozenset()
    if "property" in operands:
        return frozenset((operands["property"],))
    return _names(operands.get("args") or operands.get("interval"))


# --- moments ---


def microseconds(text: str) -> int:
    """Return a moment as PostgreSQL counts it."""
    moment = model.moment(text)
    assert moment is not None, f"{text!r} was checked to be a moment"
    return (moment - EPOCH) // timedelta(microseconds=1)


def _timed(op: str, args: Sequence[Any]) -> TimeTest | None:
    """Return a test of moments of rows and of literals; None if it is none."""
    if op in SPANS:
        spans = [_span(arg) for arg in args]
        if None in spans:
            return None
        return TimeTest(SPANS[op], tuple(end for span in spans if span for end in span))
    if op not in (*COMPARE, "between") or not any(is_moment(arg) for arg in args):
        return None
    moments = [_moment(arg) for arg in args]
    if any(moment is None for moment in moments):
        return None
    return TimeTest(COMPARE.get(op, _is_between), tuple(moment for moment in moments if moment is not None))


def _is_between(value: Any, low: Any, high: Any) -> Any:
    return (value >= low) & (value <= high)


def _moment(operand: Any) -> Moment | None:
    if not isinstance(operand, dict):
        return None
    if "timestamp" in operand:
        return microseconds(operand["timestamp"])
    return COLUMN_OF.get(operand.get("property", ""))


def _span(operand: Any) -> tuple[Moment, Moment] | None:
    """Return the first and the last moment of an operand."""
    if not isinstance(operand, dict):
        return None
    if "date" in operand:
        return _end(operand, first=True), _end(operand, first=False)
    if "interval" not in operand:
        moment = _moment(operand)
        return None if moment is None else (moment, moment)
    ends = [_end_or_column(end, first=first) for end, first in zip(operand["interval"], (True, False), strict=True)]
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def _end_or_column(end: Any, *, first: bool) -> Moment | None:
    if end == "..":
        return EARLIEST if first else LATEST_MOMENT
    if "property" in end:
        return COLUMN_OF.get(end["property"])
    return _end(end, first=first)


def _end(end: Mapping[str, str], *, first: bool) -> int:
    if "date" in end:
        return microseconds(f"{end['date']}T{'00:00:00' if first else '23:59:59.999999'}Z")
    return microseconds(end["timestamp"])
