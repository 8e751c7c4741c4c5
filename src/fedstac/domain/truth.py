"""What a checked filter says of one dataset: true, false or unknown (None).

The meaning is that of db/conditions.py, which says it in SQL: a comparison of a missing property, or of values of
different types, is unknown; a list matches where one of its members does. tests/db/test_truth.py compares the two.

`created`, `updated` and `alternate:name` are written by each node for itself: nothing is promised for them here.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, TypeAlias

import orjson

from fedstac.domain import geometry, model
from fedstac.domain.filters import FUNCTIONS, MOMENTS, SPANS, TEXTS, is_moment

Json = Mapping[str, Any]
Truth: TypeAlias = bool | None

GEOMETRY: Final = "geometry"
INDEX: Final = re.compile(r"-?\d{1,9}", re.ASCII)
EPOCH: Final = datetime(2000, 1, 1)  # noqa: DTZ001  PostgreSQL's; what is counted from it is in UTC
MICROSECOND: Final = timedelta(microseconds=1)
EARLIEST, LATEST = -(2**63), 2**63 - 1  # the open ends of intervals
COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge
}  # fmt: skip
WRITTEN: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ]((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?)\d*"
    r"(?:[Zz]|([+-])((?:[01]\d|2[0-3])):([0-5]\d))?)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What filters ask of a dataset. `values` has the properties that are named, by name (a dot steps into objects).

    `start` and `end` are microseconds since 2000, in UTC. `shape` is the geometry as it is searched, in GeoJSON.
    """

    collection: str
    id: str
    values: Json
    start: int
    end: int
    shape: str = geometry.EMPTY


Test: TypeAlias = Callable[[DatasetFacts], Truth]
_Value: TypeAlias = Callable[[DatasetFacts], Any]  # a JSON value; None where there is none
_Moment: TypeAlias = "int | _Unknown"
_Spans: TypeAlias = Callable[[DatasetFacts], Iterator["tuple[_Moment, _Moment] | Truth"]]


def facts_of(document: Json, names: Iterable[str], *, properties: Json | None = None) -> DatasetFacts:
    """Return what filters with these names ask of a document; `properties` stand in front of the document's own.

    The document is one that a node has checked: its geometry and its moments are of their form.
    """
    own = {**document["properties"], **(properties or {})}
    required = frozenset(names)
    values = {name: _at(own, name) for name in required if name not in TEXTS and name not in MOMENTS}
    start, end = span_of(own)
    shape = geometry.footprint(document.get("geometry")) if GEOMETRY in required else geometry.EMPTY
    return DatasetFacts(document["collection"], document["id"], values, start, end, shape)


def span_of(properties: Json) -> tuple[int, int]:
    """Return the first and the last moment of a dataset, in microseconds since 2000."""
    single = properties.get("datetime")
    start, end = properties.get("start_datetime"), properties.get("end_datetime")
    ends = (start, end) if start is not None and end is not None else (single, single)
    return _required(ends[0]), _required(ends[1])


def compile_filter(expression: Any) -> Test:
    """Return the test that a filter (checked by filters.check) is."""
    if isinstance(expression, bool):
        return lambda facts: expression
    op, args = expression["op"], expression["args"]
    if op in ("and", "or"):
        return _all_or_any(op, [compile_filter(arg) for arg in args])
    if op == "not":
        return _opposite(compile_filter(args[0]))
    if op == "isnull":
        return _is_null(args[0]["property"])
    if op == "<>":
        return _opposite(_comparison("=", *args))
    if op in COMPARE:
        return _comparison(op, *args)
    if op == "between":
        return _between(*args)
    if op == "in":
        return _all_or_any("or", [_comparison("=", args[0], choice) for choice in args[1]])
    if op == "like":
        return _like(*args)
    if op in SPANS:
        return _temporal(op, *args)
    return _array(op, *args) if op.startswith("a_") else _spatial(op, args[1])


def _all_or_any(op: str, tests: Sequence[Test]) -> Test:
    decisive = op == "or"  # what one part decides alone

    def test(facts: DatasetFacts) -> Truth:
        truth: Truth = not decisive
        for part in tests:
            truth_of_part = part(facts)
            if truth_of_part is decisive:
                return decisive
            if truth_of_part is None:
                truth = None
        return truth

    return test


def _opposite(test: Test) -> Test:
    def opposite(facts: DatasetFacts) -> Truth:
        value = test(facts)
        return None if value is None else not value

    return opposite


def _is_null(name: str) -> Test:
    if name in TEXTS or name in MOMENTS:
        return lambda facts: False
    return lambda facts: facts.values.get(name) is None


# --- values ---


def _at(properties: Json, name: str) -> Any:
    """Return the value of a property; a dot steps into an object, or to a member of a list by its number."""
    value: Any = properties
    for step in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and INDEX.fullmatch(step) and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _value(operand: Any) -> _Value:
    if not isinstance(operand, Mapping):
        return lambda facts: operand
    if "op" in operand:
        return _function(operand["op"], _value(operand["args"][0]))
    name = operand["property"]
    if name == "id":
        return lambda facts: facts.id
    if name == "collection":
        return lambda facts: facts.collection
    if name in MOMENTS:  # as PostgreSQL writes it nowhere in a filter: it is compared as a moment
        raise ValueError(f"{name} has no value but a moment")
    return lambda facts: facts.values.get(name)


def _function(name: str, value: _Value) -> _Value:
    apply = FUNCTIONS[name]

    def applied(facts: DatasetFacts) -> Any:
        own = value(facts)
        if isinstance(own, str):
            return apply(own)
        if isinstance(own, list):
            return [apply(member) if isinstance(member, str) else member for member in own]
        return own

    return applied


def _members(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "null" if value is None else "other"


def _any(truths: Iterable[Truth]) -> Truth:
    """Return true where one is true; else unknown where one is unknown."""
    truth: Truth = False
    for each in truths:
        if each:
            return True
        if each is None:
            truth = None
    return truth


def _compare(compare: Callable[[Any, Any], bool], left: Any, right: Any) -> Truth:
    """Compare two values that are no lists, as PostgreSQL's JSON paths do."""
    type = _type(left)
    other = _type(right)
    if type == "other" or other == "other":
        return None
    if type != other:
        return False if "null" in (type, other) else None
    return compare(left is None, right is None) if type == "null" else compare(left, right)


def _comparison(op: str, left: Any, right: Any) -> Test:
    compare = COMPARE[op]
    if is_moment(left) or is_moment(right):
        return _of_moments((left, right), lambda moments: compare(*moments))
    one, other = _value(left), _value(right)

    def test(facts: DatasetFacts) -> Truth:
        left, right = one(facts), other(facts)
        if left is None or right is None:
            return None
        if isinstance(left, str) and isinstance(right, str):  # nearly always
            return compare(left, right)
        return _any(_compare(compare, *pair) for pair in _pairs(left, right))

    return test


def _pairs(left: Any, right: Any) -> Iterator[tuple[Any, Any]]:
    return ((one, other) for one in _members(left) for other in _members(right))


def _between(value: Any, low: Any, high: Any) -> Test:
    if any(map(is_moment, (value, low, high))):
        return _of_moments((value, low, high), lambda moments: (moments[0] >= moments[1]) & (moments[0] <= moments[2]))
    subject, first, last = _value(value), _value(low), _value(high)

    def test_member(member: Any, low: Any, high: Any) -> Truth:
        if member is None:
            return False
        if isinstance(member, list):
            return None
        if low is None or high is None:
            return None
        above = _any(_compare(operator.ge, *pair) for pair in _pairs(member, low))
        below = _any(_compare(operator.le, *pair) for pair in _pairs(member, high))
        return False if above is False or below is False else None if above is None or below is None else True

    def test(facts: DatasetFacts) -> Truth:
        own, low, high = subject(facts), first(facts), last(facts)
        if isinstance(own, list):
            return _any(test_member(member, low, high) for member in own)
        return None if own is None else test_member(own, low, high)

    return test


def _like(value: Any, pattern: str) -> Test:
    subject, matches = _value(value), _pattern(pattern)

    def test_member(member: Any) -> Truth:
        return matches(member) if isinstance(member, str) else False if member is None else None

    def test(facts: DatasetFacts) -> Truth:
        own = subject(facts)
        return None if own is None else _any(map(test_member, _members(own)))

    return test


def _pattern(pattern: str) -> Callable[[str], bool]:
    """Return the test of LIKE. Its time grows with the text times the pattern, and no faster."""
    parts, escaped = [""], False
    for character in pattern:
        if escaped or character not in "\\%_":
            parts[-1] += re.escape(character)
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "_":
            parts[-1] += "."
        else:
            parts.append("")
    first, *middle = [re.compile(part, re.DOTALL) for part in parts]
    if not middle:
        return lambda text: first.fullmatch(text) is not None
    last = re.compile(parts[-1] + r"\Z", re.DOTALL)
    shortest = len(_unescaped(parts[-1]))

    def matches(text: str) -> bool:
        match = first.match(text)
        for part in middle[:-1]:
            match = part.search(text, match.end()) if match else None
        return match is not None and last.match(text, max(match.end(), len(text) - shortest)) is not None

    return matches


def _unescaped(part: str) -> str:
    return re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL)


# --- lists as sets ---


def _key(value: Any) -> Any:
    """Return what two equal JSON values have in common, and no others."""
    if isinstance(value, list):
        return ("array", tuple(map(_key, value)))
    if isinstance(value, Mapping):
        return ("object", frozenset((name, _key(each)) for name, each in value.items()))
    return (_type(value), value)


def _array(op: str, value: Any, members: Any) -> Test:
    own, other = _value(value), _value(members)

    def test(facts: DatasetFacts) -> Truth:
        one, two = own(facts), other(facts)
        if one is None or two is None:
            return None
        left, right = set(map(_key, _members(one))), set(map(_key, _members(two)))
        match op:
            case "a_contains":
                return left >= right
            case "a_containedby":
                return left <= right
            case "a_equals":
                return left == right
            case _:
                return bool(left & right)

    return test


# --- moments ---


class _Unknown:
    """A moment or a truth that is not known: what is compared with it is not known either."""

    def _is_unknown(self, other: object) -> Any:
        return self

    __lt__ = __le__ = __gt__ = __ge__ = _is_unknown

    def __eq__(self, other: object) -> Any:
        return self

    def __hash__(self) -> int:
        return 0

    def __and__(self, other: object) -> Any:
        return False if other is False else self

    def __or__(self, other: object) -> Any:
        return True if other is True else self

    __rand__, __ror__ = __and__, __or__


UNKNOWN: Final = _Unknown()


def microseconds(text: str) -> int | None:
    """Return a stored moment or date as fedstac.moment reads it, in microseconds since 2000; None if it is neither."""
    match = WRITTEN.fullmatch(text)
    if match is None:
        return None
    day, time, sign, hours, minutes = match.groups()
    try:
        local = datetime.fromisoformat(f"{day}T{time or '00:00:00'}" + ("" if not time or "." in time else ".0"))
    except ValueError:
        return None
    offset = timedelta(hours=int(hours), minutes=int(minutes)) if sign else timedelta()
    since = local - EPOCH
    return (since + offset if sign == "-" else since - offset) // MICROSECOND


def _required(text: object) -> int:
    moment = model.moment(text)
    if moment is None:
        raise ValueError("a dataset has a moment, or a first and a last one")
    return (moment.astimezone(UTC).replace(tzinfo=None) - EPOCH) // MICROSECOND


def _moment(value: Any) -> _Moment:
    moment = microseconds(value) if isinstance(value, str) else None
    return UNKNOWN if moment is None else moment


def _truth(truth: Any) -> Truth:
    return None if truth is UNKNOWN else truth


def _moments_of(operand: Any) -> Callable[[DatasetFacts], list[_Moment | Truth]]:
    """Return what reads the moments of an operand, one for each member of a list; a truth is that of a bad member."""
    if "timestamp" in operand:
        fixed: list[_Moment | Truth] = [_required(operand["timestamp"])]
        return lambda facts: fixed
    name = operand["property"]
    if name in MOMENTS:
        return (lambda facts: [facts.end]) if name == "end_datetime" else (lambda facts: [facts.start])
    value = _value(operand)

    def read(facts: DatasetFacts) -> list[_Moment | Truth]:
        own = value(facts)
        if not isinstance(own, list):
            return [_moment(own)]
        return [False if member is None else None if isinstance(member, list) else _moment(member) for member in own]

    return read


def _of_moments(operands: Sequence[Any], test: Callable[[Sequence[Any]], Any]) -> Test:
    """Return the test of moments: of each member of the first with each of the second, and so on."""
    readers = [_moments_of(operand) for operand in operands]

    def of(facts: DatasetFacts, moments: tuple[Any, ...], readers: Sequence[Any]) -> Truth:
        if not readers:
            return _truth(test(moments))
        return _any(
            each if each is None or isinstance(each, bool) else of(facts, (*moments, each), readers[1:])
            for each in readers[0](facts)
        )

    return lambda facts: of(facts, (), readers)


def _temporal(op: str, left: Any, right: Any) -> Test:
    compare, one, other = SPANS[op], _spans_of(left), _spans_of(right)

    def test(facts: DatasetFacts) -> Truth:
        return _any(
            own if own is None or isinstance(own, bool) else _any(
                each if each is None or isinstance(each, bool) else _truth(compare(*own, *each))
                for each in other(facts)
            )
            for own in one(facts)
        )  # fmt: skip

    return test


def _spans_of(operand: Any) -> _Spans:
    if "interval" in operand:
        first, last = (_end(end, first=first) for end, first in zip(operand["interval"], (True, False), strict=True))
        return lambda facts: iter([(first(facts), last(facts))])
    if "date" in operand:
        span = (_day_end(operand["date"], first=True), _day_end(operand["date"], first=False))
        return lambda facts: iter([span])
    read = _moments_of(operand)

    def spans(facts: DatasetFacts) -> Iterator[tuple[_Moment, _Moment] | Truth]:
        for each in read(facts):
            yield each if each is None or isinstance(each, bool) else (each, each)

    return spans


def _end(end: Any, *, first: bool) -> Callable[[DatasetFacts], _Moment]:
    if end == "..":
        return lambda facts: EARLIEST if first else LATEST
    if "date" in end or "timestamp" in end:
        fixed = _day_end(end["date"], first=first) if "date" in end else _required(end["timestamp"])
        return lambda facts: fixed
    name = end["property"]
    if name in MOMENTS:
        return (lambda facts: facts.end) if name == "end_datetime" else (lambda facts: facts.start)
    value = _value(end)
    return lambda facts: _moment(value(facts))


def _day_end(day: str, *, first: bool) -> int:
    return _required(f"{day}T{'00:00:00' if first else '23:59:59.999999'}Z")


# --- places ---


@lru_cache(maxsize=1024)  # datasets share few footprints
def _shape(geojson: str) -> geometry.Shape:
    import shapely  # the server's

    return shapely.from_geojson(geojson)


def _spatial(op: str, other: Json) -> Test:
    fixed = None if "property" in other else orjson.dumps(other).decode()
    name = op.removeprefix("s_")

    def test(facts: DatasetFacts) -> Truth:
        own = _shape(facts.shape)
        return bool(getattr(own, name)(_shape(fixed) if fixed is not None else own))

    return test
