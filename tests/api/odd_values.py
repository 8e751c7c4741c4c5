"""Datasets with properties of every JSON type, filters over them, and what each filter is of each dataset."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]
Truth = bool | None  # None: unknown

VALUES: tuple[Any, ...] = (
    "abc", "ABC", "Straße", "STRASSE", "naïve", "naive", "", "a%b", "a_b", "back\\slash", "new\nline", "5", "true",
    "soon", "2020-01-01T00:00:00Z", "2020-01-01", "2020-02-30T00:00:00Z", "2020-01-01T12:00:00+23:59", 5, 5.0, -1.5, 0,
    1e300, 9007199254740991, True, False, None, [], ["abc"], ["abc", 5], [5, 7], [True], [None], [None, "abc"],
    [["abc"]], [["abc"], "x"], {"k": "abc"}, [{"k": 1}], [[]], ["2020-01-01T00:00:00Z", "2031-01-01T00:00:00Z"],
    ["Straße", "x"],
)  # fmt: skip
NAMES = ("x:a", "properties.x:b", "size", "deep.er", "x:absent", "id", "collection")


def documents(collection: str) -> list[Json]:
    """Return a dataset for each value under x:a, with others under other names."""
    return [_document(collection, n) for n in range(len(VALUES))]


def _document(collection: str, n: int) -> Json:
    values = [VALUES[(n * step + step) % len(VALUES)] for step in (5, 7, 11)]
    start = datetime(1990 + n, 1, 1, tzinfo=UTC)
    properties = {
        "datetime": start.isoformat(), "start_datetime": start.isoformat(),
        "end_datetime": (start + timedelta(days=400)).isoformat(),
        "x:a": VALUES[n], "x:b": values[0], "size": values[1], "deep": {"er": values[2]},
    }  # fmt: skip
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": f"odd-{n:02}", "collection": collection, "geometry": None,
        "properties": properties, "links": [], "assets": {},
    }  # fmt: skip


# --- what a filter is of a dataset ---


def judge(expression: Any, document: Json) -> Truth:
    if isinstance(expression, bool):
        return expression
    op, args = expression["op"], expression["args"]
    match op:
        case "and":
            return _not(_any(_not(judge(arg, document)) for arg in args))
        case "or":
            return _any(judge(arg, document) for arg in args)
        case "not":
            return _not(judge(args[0], document))
        case "isNull":
            return _value(args[0], document) is None
        case "<>":
            return _not(judge({"op": "=", "args": args}, document))
        case "=" | "<" | "<=" | ">" | ">=" if any(_is_moment(arg) for arg in args):
            spans = [_spans(arg, document) for arg in args]
            return _of_spans(spans, lambda one, other: COMPARE[op](one[0], other[0]))
        case "=" | "<" | "<=" | ">" | ">=":
            one, other = (_value(arg, document) for arg in args)
            if one is None or other is None:
                return None
            return _any(_compare(op, a, b) for a in _members(one) for b in _members(other))
        case "between":
            return _by_member(
                _value(args[0], document),
                lambda m: _not(_any((_not(_compare(">=", m, args[1])), _not(_compare("<=", m, args[2]))))),
            )
        case "in":
            return _by_member(_value(args[0], document), lambda m: _any(_compare("=", m, c) for c in args[1]))
        case "like":
            return _by_member(_value(args[0], document), lambda m: _like(m, _value(args[1], document)))
        case _ if op.startswith("a_"):
            return _sets(op, _value(args[0], document), args[1])
        case _:
            return _of_spans([_spans(arg, document) for arg in args], SPANS[op])


def _any(truths: Iterable[Truth]) -> Truth:
    all_of_them = list(truths)
    return True if True in all_of_them else None if None in all_of_them else False


def _not(truth: Truth) -> Truth:
    return None if truth is None else not truth


def _members(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _by_member(value: Any, test: Callable[[Any], Truth]) -> Truth:
    return None if value is None else _any(map(test, _members(value)))


def _value(operand: Any, document: Json) -> Any:
    if not isinstance(operand, dict):
        return operand
    if "op" in operand:
        value = _value(operand["args"][0], document)
        changed = [FUNCTIONS[operand["op"]](m) if type(m) is str else m for m in _members(value)]
        return changed if isinstance(value, list) else changed[0]
    name = operand["property"].removeprefix("properties.")
    if name in ("id", "collection"):
        return document[name]
    value = document["properties"]
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}  # fmt: skip


def _kind(value: Any) -> type:
    return float if type(value) in (int, float) else type(value)


def _compare(op: str, one: Any, other: Any) -> Truth:
    if one is None or other is None:  # in a list
        return one is other and op in ("=", "<=", ">=")
    if _kind(one) is not _kind(other) or isinstance(one, list | dict):
        return None
    return COMPARE[op](one, other)


def _like(text: Any, pattern: str) -> Truth:
    if type(text) is not str:
        return False if text is None else None
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    wildcards = {"%": ".*", "_": "."}
    expression = "".join(wildcards.get(part) or re.escape(part[-1]) for part in parts)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def _sets(op: str, value: Any, members: list[Any]) -> Truth:
    if value is None:
        return None
    own = _members(value)
    contains = all(any(_compare("=", m, wanted) for m in own) for wanted in members)
    contained = all(any(_compare("=", m, wanted) for wanted in members) for m in own)
    overlaps = any(_compare("=", m, wanted) for m in own for wanted in members)
    return {"a_contains": contains, "a_containedby": contained, "a_equals": contains and contained}.get(op, overlaps)


FUNCTIONS: dict[str, Callable[[str], str]] = {
    "casei": str.casefold,
    "accenti": lambda text: "".join(
        c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c)
    ),
}  # fmt: skip

# --- moments ---

Span = tuple[datetime, datetime]
FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


def _is_moment(operand: Any) -> bool:
    return isinstance(operand, dict) and ("timestamp" in operand or operand.get("property") in _COLUMNS)


_COLUMNS = ("datetime", "start_datetime", "end_datetime")
DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d))?", re.ASCII)


def _moment(value: Any) -> datetime | None:
    if type(value) is not str or not DATE_TIME.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value if "T" in value else f"{value}T00:00:00Z")
    except ValueError:
        return None


def _spans(operand: Any, document: Json) -> list[Span | Truth] | None:
    """Return the spans of an operand, one for each member of a list; None if it has none."""
    if "interval" in operand:
        start, end = operand["interval"]
        return [(FIRST if start == ".." else _day(start)[0], LAST if end == ".." else _day(end)[1])]
    if "timestamp" in operand or "date" in operand:
        return [_day(operand.get("timestamp") or operand["date"])]
    if operand["property"] in _COLUMNS:
        at = _moment(document["properties"][operand["property"]])
        assert at
        return [(at, at)]
    value = _value(operand, document)
    if value is None:
        return None
    return [False if m is None else (at, at) if (at := _moment(m)) else None for m in _members(value)]


def _day(text: str) -> Span:
    start = _moment(text)
    assert start
    return start, start if "T" in text else start + timedelta(days=1, microseconds=-1)


def _of_spans(spans: Sequence[list[Span | Truth] | None], test: Callable[[Span, Span], bool]) -> Truth:
    one, other = spans
    if one is None or other is None:
        return None
    return _any(
        test(a, b) if isinstance(a, tuple) and isinstance(b, tuple) else False if False in (a, b) else None
        for a in one for b in other
    )  # fmt: skip


SPANS: dict[str, Callable[[Span, Span], bool]] = {
    "t_before": lambda a, b: a[1] < b[0], "t_after": lambda a, b: a[0] > b[1],
    "t_equals": lambda a, b: a == b, "t_intersects": lambda a, b: a[0] <= b[1] and a[1] >= b[0],
    "t_disjoint": lambda a, b: not (a[0] <= b[1] and a[1] >= b[0]),
    "t_during": lambda a, b: a[0] > b[0] and a[1] < b[1],
}  # fmt: skip

# --- filters ---

PROPERTIES = st.sampled_from(NAMES).map(lambda name: {"property": name})
TEXTS = st.sampled_from(
    [value for value in VALUES if type(value) is str and "\n" not in value] + ["x", "odd-07", "strasse"]
)
LITERALS = st.one_of(TEXTS, st.sampled_from([5, 5.0, 0, -1.5, 7, 1e300, 9007199254740991, True, False]))
MOMENTS = st.sampled_from(
    ["2020-01-01T00:00:00Z", "2000-01-01T00:00:00+15:59", "2019-12-31T12:01:00Z", "2031-01-01T00:00:00-23:59"]
)
PATTERNS = st.sampled_from(
    ["abc", "a%", "%b%", "_b_", "a\\%b", "a\\_b", "%\\\\%", "%", "", "str%", "na_ve", "new%", "STR%"]
)


def _operation(op: str, *args: Any) -> Json:
    return {"op": op, "args": list(args)}


@st.composite
def _term(draw: st.DrawFn) -> Any:
    own = draw(PROPERTIES)
    match draw(
        st.sampled_from(["compare", "other", "between", "in", "like", "null", "array", "function", "time", "bare"])
    ):
        case "compare":
            return _operation(draw(st.sampled_from([*COMPARE, "<>"])), own, draw(LITERALS))
        case "other":
            return _operation(draw(st.sampled_from([*COMPARE, "<>"])), own, draw(PROPERTIES))
        case "between":
            return _operation("between", own, draw(LITERALS), draw(LITERALS))
        case "in":
            few = st.lists(LITERALS, min_size=1, max_size=3)
            many = st.sampled_from([[*range(20), 5.0], [f"{n}" for n in range(20)] + ["abc"], [*range(17), "abc"]])
            return _operation("in", own, draw(st.one_of(few, many)))
        case "like":
            return _operation("like", own, draw(PATTERNS))
        case "null":
            return _operation("isNull", own)
        case "array":
            members = draw(st.lists(LITERALS, min_size=1, max_size=3))
            return _operation(
                draw(st.sampled_from(["a_contains", "a_containedby", "a_equals", "a_overlaps"])), own, members
            )
        case "function":
            function = draw(st.sampled_from(sorted(FUNCTIONS)))
            changed = _operation(function, own)
            if draw(st.booleans()):
                return _operation(draw(st.sampled_from(["=", "<>"])), changed, _operation(function, draw(TEXTS)))
            return _operation("like", changed, _operation(function, draw(PATTERNS)))
        case "time":
            return draw(_time(own))
        case _:
            return draw(st.booleans())


@st.composite
def _time(draw: st.DrawFn, own: Json) -> Json:
    named = draw(st.sampled_from([own, {"property": "start_datetime"}, {"property": "end_datetime"}]))
    named = {"property": "x:a"} if named["property"] in ("id", "collection") else named
    if draw(st.booleans()):
        return _operation(draw(st.sampled_from([*COMPARE, "<>"])), named, {"timestamp": draw(MOMENTS)})
    first, last = draw(st.sampled_from([("2000-01-01", "2020-01-01"), ("..", "2020-01-01"), ("2020-01-01", "..")]))
    span = draw(
        st.sampled_from([{"interval": [first, last]}, {"date": "2020-01-01"}, {"timestamp": "2020-01-01T00:00:00Z"}])
    )
    return _operation(draw(st.sampled_from(sorted(SPANS))), named, span)


FILTERS = st.recursive(
    _term(),
    lambda parts: st.one_of(
        st.builds(_operation, st.just("not"), parts),
        st.builds(_operation, st.sampled_from(["and", "or"]), parts, parts),
    ),
    max_leaves=4,
)


def as_text(expression: Any) -> str:
    """Return a filter in CQL2 JSON as CQL2 text."""
    if isinstance(expression, bool):
        return str(expression).upper()
    if isinstance(expression, str):
        return "'" + expression.replace("'", "''") + "'"
    if isinstance(expression, list):
        return "(" + ", ".join(map(as_text, expression)) + ")"
    if not isinstance(expression, dict):
        return repr(expression)
    if "property" in expression:
        return f'"{expression["property"]}"'
    for kind in ("timestamp", "date"):
        if kind in expression:
            return f"{kind.upper()}('{expression[kind]}')"
    if "interval" in expression:
        return "INTERVAL({}, {})".format(*map(as_text, expression["interval"]))
    op, args = expression["op"], [as_text(arg) for arg in expression["args"]]
    match op:
        case "and" | "or":
            return f"({f' {op.upper()} '.join(args)})"
        case "not":
            return f"NOT ({args[0]})"
        case "isNull":
            return f"{args[0]} IS NULL"
        case "between":
            return f"{args[0]} BETWEEN {args[1]} AND {args[2]}"
        case "in" | "like":
            return f"{args[0]} {op.upper()} {args[1]}"
        case _ if op in (*COMPARE, "<>"):
            return f"{args[0]} {op} {args[1]}"
        case _:
            return f"{op}({', '.join(args)})"
