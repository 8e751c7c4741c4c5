"""Filters (CQL2 in JSON or text, and the Query extension), checked: operators, their arguments, names, sizes.

What is checked here becomes SQL in db/conditions.py, which also says what a filter means for a list or an odd type.
truth.py beside this says the same of one document in memory.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from fedstac.domain import cql2_text, documents, geometry, model
from fedstac.domain.errors import BadRequest

Json = dict[str, Any]

DEEPEST, MOST_OPERATORS, LONGEST_LIST, LONGEST_TEXT, LONGEST_PATTERN = 16, 200, 1000, 256 * 1024, 1000
MOST_VALUES = 5000  # in all lists of a filter
MOST_WILDCARDS = 10  # % of a pattern: each multiplies the ways to match
TEXTS: Final = ("id", "collection")  # of a dataset, outside its properties
MOMENTS: Final[Mapping[str, str]] = {  # that a dataset always has, and the columns of its search copy
    "datetime": "datetime", "start_datetime": "datetime", "end_datetime": "end_datetime"
}  # fmt: skip
# of two spans, each its first and last moment: what db/conditions.TEMPORAL says in SQL
SPANS: Mapping[str, Callable[[Any, Any, Any, Any], Any]] = {
    "t_before": lambda a, b, c, d: b < c,
    "t_after": lambda a, b, c, d: a > d,
    "t_meets": lambda a, b, c, d: b == c,
    "t_metby": lambda a, b, c, d: a == d,
    "t_overlaps": lambda a, b, c, d: (a < c) & (b > c) & (b < d),
    "t_overlappedby": lambda a, b, c, d: (a > c) & (a < d) & (b > d),
    "t_starts": lambda a, b, c, d: (a == c) & (b < d),
    "t_startedby": lambda a, b, c, d: (a == c) & (b > d),
    "t_during": lambda a, b, c, d: (a > c) & (b < d),
    "t_contains": lambda a, b, c, d: (a < c) & (b > d),
    "t_finishes": lambda a, b, c, d: (a > c) & (b == d),
    "t_finishedby": lambda a, b, c, d: (a < c) & (b == d),
    "t_equals": lambda a, b, c, d: (a == c) & (b == d),
    "t_disjoint": lambda a, b, c, d: (a > d) | (b < c),
    "t_intersects": lambda a, b, c, d: (a <= d) & (b >= c),
}
COMPARISONS = frozenset(("=", "<>", "<", "<=", ">", ">="))
SPATIAL = frozenset(
    ("s_intersects", "s_equals", "s_disjoint", "s_touches", "s_within", "s_overlaps", "s_crosses", "s_contains")
)
SEEN_FROM_THE_OTHER = {"s_within": "s_contains", "s_contains": "s_within"}  # spatial operators with swapped operands
ARRAYS = {  # and what each becomes where the list comes before the property
    "a_equals": "a_equals", "a_contains": "a_containedby", "a_containedby": "a_contains", "a_overlaps": "a_overlaps"
}  # fmt: skip
ACCENTS = re.compile("[\u0300-\u036f]")
# what each function makes of a literal; fedstac.apply_text_function does the same to a stored value
FUNCTIONS: Mapping[str, Callable[[str], str]] = {
    "casei": lambda text: text.lower().upper().lower().replace("ς", "σ"),  # full case folding: ß becomes ss
    "accenti": lambda text: unicodedata.normalize("NFC", ACCENTS.sub("", unicodedata.normalize("NFD", text))),
    "upper": str.upper,
    "lower": str.lower,
}
ARITHMETIC = frozenset(("+", "-", "*", "/", "^", "%", "div"))
OPERATORS = "and or not isNull between in like = <> < <= > >=, and those of CQL2 that begin with s_, t_ and a_"
SPELLINGS = {  # of other languages, and what CQL2 writes
    "==": "=", "eq": "=", "equals": "=", "neq": "<>", "ne": "<>", "lt": "<", "lte": "<=", "le": "<=", "gt": ">",
    "gte": ">=", "ge": ">=", "&&": "and", "||": "or", "!": "not", "ilike": "like with casei(…)",
    "not_in": "not around in", "notin": "not around in", "not_like": "not around like", "is_null": "isNull",
    "isnotnull": "not around isNull", "startswith": "like 'text%'", "endswith": "like '%text'",
    "contains": "like '%text%', or s_contains for a geometry", "anyinteracts": "t_intersects",
    **{name: f"s_{name}" for name in ("intersects", "within", "disjoint", "touches", "overlaps", "crosses")},
    **{name: f"t_{name}" for name in ("before", "after", "during")},
    **{name: f"a_{name[1:]}" for name in ("aequals", "acontains", "acontainedby", "aoverlaps")},
}  # fmt: skip
QUERY = {"eq": "=", "neq": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">=", "in": "in"}
PATTERNS: Mapping[str, Callable[[str], str]] = {
    "startsWith": lambda text: text + "%", "endsWith": lambda text: "%" + text, "contains": lambda text: f"%{text}%"
}  # fmt: skip

NAME = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_@:.-]{0,199}")
NOT_SEARCHED = frozenset(("assets", "links", "bbox", "stac_version", "stac_extensions", "properties"))
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")
OTHER_SPELLING = re.compile(r"==|&&|\|\||\b(?:eq|neq|ne|lte|lt|le|gte|gt|ge|ilike)\b", re.IGNORECASE)


def property_name(name: object, what: str = "filter") -> str:
    """Return the name of a property without `properties.`; BadRequest if nothing can be searched under it."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BadRequest(f"{what}: {str(name)[:80]!r} is not the name of a property")
    while name.startswith("properties."):
        name = name.removeprefix("properties.")
    if not name or name.partition(".")[0] in NOT_SEARCHED or not all(name.split(".")):
        raise BadRequest(f"{what}: {name[:80]!r} is not searched; GET /queryables lists what is")
    return name


def from_text(text: str) -> object:
    """Read CQL2 text as CQL2 JSON. BadRequest says what is wrong with it, and where."""
    if len(text) > LONGEST_TEXT:
        raise BadRequest(f"the filter has over {LONGEST_TEXT} characters; ask in parts")
    try:
        return cql2_text.parse(text)
    except cql2_text.NotCql2 as error:
        raise BadRequest(f"filter is not CQL2 text: {error}{_spelling_hint(QUOTED.sub('', text))}") from None


def _spelling_hint(text: str) -> str:
    """Return a sentence about the first operator that another language spells so; empty if there is none."""
    spelled = OTHER_SPELLING.search(text)
    return f"; {spelled[0]} is no operator of CQL2: write {SPELLINGS[spelled[0].lower()]}" if spelled else ""


def from_query(query: object) -> Json | None:
    """Return the Query extension's {property: {operator: value}} as CQL2 JSON; None if it asks for nothing."""
    if not isinstance(query, dict) or not all(isinstance(operators, dict) for operators in query.values()):
        raise BadRequest('query is an object of objects: {"property": {"eq": value}}')
    terms = [_query_term(name, op, value) for name, operators in query.items() for op, value in operators.items()]
    return {"op": "and", "args": terms} if terms else None


def _query_term(name: str, op: str, value: object) -> Json:
    if op in PATTERNS:
        if not isinstance(value, str):
            raise BadRequest(f"query: {op} takes a string")
        literal = re.sub(r"([\\%_])", r"\\\1", value)
        return {"op": "like", "args": [{"property": name}, PATTERNS[op](literal)]}
    if op not in QUERY:
        operators = ", ".join((*QUERY, *PATTERNS))
        raise BadRequest(f"query: {op[:40]!r} is no operator; there are {operators}")
    return {"op": QUERY[op], "args": [{"property": name}, value]}


def check(expression: object) -> Any:
    """Return a filter in CQL2 JSON in the form that db/conditions.py reads. BadRequest says what is wrong with it."""
    return _FilterReader().predicate(expression, 1)


def names_in(expression: object) -> frozenset[str]:
    """Return the properties that a checked filter names."""
    if isinstance(expression, list):
        return frozenset().union(*map(names_in, expression))
    if not isinstance(expression, dict):
        return frozenset()
    if isinstance(name := expression.get("property"), str):
        return frozenset((name,))
    return names_in(expression.get("args") or expression.get("interval"))


def with_names(expression: Any, names: Mapping[str, str]) -> Any:
    """Return a checked filter with other names of properties."""
    if isinstance(expression, list):
        return [with_names(part, names) for part in expression]
    if not isinstance(expression, dict):
        return expression
    if "property" in expression:
        return {"property": names.get(expression["property"], expression["property"])}
    return {key: with_names(part, names) if key in ("args", "interval") else part for key, part in expression.items()}


class _FilterReader:
    """One walk over a filter; counts its operators."""

    def __init__(self) -> None:
        self._operators = 0
        self._values = 0  # in lists
        self._vertices = 0

    def predicate(self, expression: object, depth: int) -> Any:
        """Return what is true or false of an item."""
        if isinstance(expression, bool):
            return expression
        if expression == {}:  # what ESGF's downloader sends where it has no condition
            return True
        if isinstance(expression, dict) and set(expression) == {"property"}:
            return self._comparison("=", [expression, True], depth)
        op, args = self._operation(expression, depth)
        if op in ("and", "or"):
            if not args:
                raise BadRequest(f"filter: {op} has no arguments; give it one at least")
            return {"op": op, "args": [self.predicate(arg, depth + 1) for arg in args]}
        if op == "not":
            return {"op": op, "args": [self.predicate(_only(op, args), depth + 1)]}
        if op == "isnull":
            return {"op": op, "args": [self._property(_only(op, args))]}
        if op in COMPARISONS:
            return self._comparison(op, args, depth)
        if op == "between":
            if len(args) == 2 and isinstance(args[1], list):  # as drafts of CQL2 had it
                args = [args[0], *args[1]]
            scalars = [self._scalar(arg, depth) for arg in _exactly(op, args, 3)]
            return {"op": op, "args": _comparable(scalars)}
        if op == "in":
            return self._in(args, depth)
        if op == "like":
            value, pattern = _exactly(op, args, 2)
            return {"op": op, "args": [self._text(op, value, depth), _pattern(self._scalar(pattern, depth))]}
        if op in SPATIAL:
            return self._spatial(op, args)
        if op in SPANS:
            return {"op": op, "args": [self._temporal(arg) for arg in _exactly(op, args, 2)]}
        if op in ARRAYS:
            return self._array(op, args)
        raise BadRequest(f"filter: {op[:40]!r} is no operator here; {_instead(op)}")

    def _operation(self, expression: object, depth: int) -> tuple[str, list[Any]]:
        if not isinstance(expression, dict) or set(expression) != {"op", "args"}:
            raise BadRequest(f"filter: {_brief(expression)} is not CQL2 in JSON, {_form(expression)}")
        op, args = expression["op"], expression["args"]
        if not isinstance(op, str) or not isinstance(args, list):
            raise BadRequest(f"filter: {_brief(expression)} needs a string `op` and a list `args`")
        self._count(1)
        if depth > DEEPEST:
            raise BadRequest(f"the filter is nested deeper than {DEEPEST}; write it flatter")
        return "<>" if op == "!=" else op.lower(), args

    def _count(self, operators: int) -> None:
        self._operators += operators
        if self._operators > MOST_OPERATORS:
            raise _too_large()

    def _comparison(self, op: str, args: list[Any], depth: int) -> Json:
        return {"op": op, "args": _comparable([self._scalar(arg, depth) for arg in _exactly(op, args, 2)])}

    def _in(self, args: list[Any], depth: int) -> Json:
        value, choices = _exactly("in", args, 2)
        scalar = self._scalar(value, depth)
        scalars = [self._scalar(choice, depth) for choice in self._members("in", choices)]
        if not any(isinstance(operand, dict) for operand in scalars) and not is_moment(scalar):
            return {"op": "in", "args": [scalar, scalars]}
        self._count(len(scalars))
        return {"op": "or", "args": [{"op": "=", "args": _comparable([scalar, choice])} for choice in scalars]}

    def _members(self, op: str, value: object) -> list[Any]:
        members = _list(op, value)
        self._values += len(members)
        if self._values > MOST_VALUES:
            raise _too_large()
        return members

    def _array(self, op: str, args: list[Any]) -> Json:
        value, members = _exactly(op, args, 2)
        if isinstance(value, list):
            op, value, members = ARRAYS[op], members, value
        if isinstance(members, dict):
            return {"op": op, "args": [self._property(value), self._property(members)]}
        return {"op": op, "args": [self._property(value), [_literal(member) for member in self._members(op, members)]]}

    def _scalar(self, value: object, depth: int) -> Any:
        if isinstance(value, dict):
            if set(value) == {"property"}:
                return self._property(value)
            if set(value) in ({"timestamp"}, {"date"}):
                return _instant(value)
            op, args = self._operation(value, depth + 1)
            if op in ARITHMETIC:
                raise BadRequest(f"filter: arithmetic ({op}) is not supported; compare the property itself")
            if op not in FUNCTIONS:
                raise BadRequest(f"filter: {op[:40]!r} is no function here; there are {', '.join(sorted(FUNCTIONS))}")
            text = self._text(op, _only(op, args), depth + 1)
            return FUNCTIONS[op](text) if isinstance(text, str) else {"op": op, "args": [text]}
        return _literal(value)

    def _text(self, op: str, value: object, depth: int) -> Any:
        text = self._scalar(value, depth) if isinstance(value, str | dict) else None
        if isinstance(text, str) or (isinstance(text, dict) and not is_moment(text)):
            return text
        raise BadRequest(f"filter: {op} takes a string or a property that may hold one, not {_brief(value)}")

    def _property(self, value: object) -> Json:
        if not isinstance(value, dict) or set(value) != {"property"}:
            raise BadRequest(f'filter: {_brief(value)} is not a property, {{"property": "name"}}')
        name = property_name(value["property"])
        if name == "geometry":
            raise BadRequest("filter: geometry goes with the spatial operators only")
        return {"property": name}

    def _spatial(self, op: str, args: list[Any]) -> Json:
        own, other = _exactly(op, args, 2)
        if _is_geometry(other) and not _is_geometry(own):
            op, own, other = SEEN_FROM_THE_OTHER.get(op, op), other, own
        if not _is_geometry(own):
            raise BadRequest(f'filter: {op} takes {{"property": "geometry"}} and a geometry')
        if _is_geometry(other):
            return {"op": op, "args": [{"property": "geometry"}, {"property": "geometry"}]}
        if isinstance(other, dict) and set(other) == {"bbox"}:
            shape = box(other["bbox"], "filter")
        else:
            shape = searched_geometry(other, "filter")
            self._vertices += geometry.vertices(other)
            if self._vertices > geometry.MAX_VERTICES:
                raise BadRequest(f"filter: its geometries have over {geometry.MAX_VERTICES} vertices; simplify them")
        if shape["type"] == "GeometryCollection":
            raise BadRequest(f"filter: {op} takes no GeometryCollection; ask for its parts")
        return {"op": op, "args": [{"property": "geometry"}, shape]}

    def _temporal(self, value: object) -> Json:
        """Return a moment or a span; `datetime` is the span that a dataset covers."""
        if not isinstance(value, dict):
            raise BadRequest(f"filter: {_brief(value)} is neither a timestamp, a date, an interval nor a property")
        if set(value) == {"interval"}:
            ends = _exactly("interval", value["interval"], 2)
            if ends == ["..", ".."]:
                raise BadRequest("filter: an interval is open at one end at most")
            return {"interval": _in_order([self._end(end) for end in ends])}
        if set(value) in ({"timestamp"}, {"date"}):
            return _instant(value, whole_day=True)
        operand = self._property(value)
        if operand["property"] in TEXTS:
            raise BadRequest(
                f"filter: {operand['property']} is no moment; the operators t_… take timestamps and intervals"
            )
        if operand == {"property": "datetime"}:
            return {"interval": [{"property": "start_datetime"}, {"property": "end_datetime"}]}
        return operand

    def _end(self, end: object) -> Any:
        if end == "..":
            return end
        if isinstance(end, str):
            return _instant({"date" if DAY.fullmatch(end) else "timestamp": end}, whole_day=True)
        if isinstance(end, dict) and set(end) in ({"timestamp"}, {"date"}):
            return _instant(end, whole_day=True)
        return self._property(end)


def _instead(op: str) -> str:
    """Return what to write in place of an operator that is none."""
    return f"write {SPELLINGS[op]}" if op in SPELLINGS else f"there are {OPERATORS}"


def _form(expression: object) -> str:
    """Return what CQL2 JSON looks like; of CQL1's {"eq": […]}, how CQL2 writes it."""
    name = next(iter(expression)) if isinstance(expression, dict) and len(expression) == 1 else None
    op = str(name).lower()
    if name is not None and (
        op in SPELLINGS or op in COMPARISONS or op in ("and", "or", "not", "in", "like", "between")
    ):
        return f'but CQL1: write {{"op": "{SPELLINGS.get(op, op)}", "args": […]}}'
    return "an object with `op` and `args`"


def is_moment(operand: Any) -> bool:
    """Tell whether an operand of a filter is a moment: a timestamp, or a property that has one."""
    return isinstance(operand, Mapping) and ("timestamp" in operand or operand.get("property") in MOMENTS)


def _is_geometry(operand: object) -> bool:
    return operand in ({"property": "geometry"}, {"property": "properties.geometry"})


def _comparable(operands: list[Any]) -> list[Any]:
    """Return the operands of a comparison; beside a moment, texts are read as moments."""
    if not any(map(is_moment, operands)):
        return operands
    return [_as_moment(operand) for operand in operands]


def _as_moment(operand: Any) -> Json:
    if is_moment(operand) or (isinstance(operand, dict) and "property" in operand and operand["property"] not in TEXTS):
        return dict(operand)
    if isinstance(operand, str) and (DAY.fullmatch(operand) or model.moment(operand)):
        return _instant({"date" if DAY.fullmatch(operand) else "timestamp": operand})
    raise BadRequest(
        f"filter: {_brief(operand)} is compared with a moment, and is no moment; write TIMESTAMP('…') or DATE('…')"
    )


def _pattern(pattern: object) -> str:
    """Return the pattern of LIKE: % is any text, _ any character, a backslash takes the meaning from the next
    character.
    """
    if not isinstance(pattern, str):
        raise BadRequest(f"filter: the pattern of like is a string, not {_brief(pattern)}")
    if len(pattern) > LONGEST_PATTERN:
        raise BadRequest(f"filter: the pattern of like has {len(pattern)} characters; {LONGEST_PATTERN} are the most")
    if pattern.count("%") > MOST_WILDCARDS:
        raise BadRequest(
            f"filter: the pattern of like has over {MOST_WILDCARDS} %, the most; ask for parts of it with and"
        )
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise BadRequest(
            f"filter: the pattern {_brief(pattern)} of like ends with a backslash, which has nothing to escape;"
            " write it twice to match a backslash"
        )
    return pattern


def _in_order(ends: list[Any]) -> list[Any]:
    """Return the ends of an interval. BadRequest if it ends before it starts, as far as that can be seen."""
    texts = [
        end.get("timestamp") or (f"{end['date']}T{time}Z" if "date" in end else None)
        for end, time in zip(ends, ("00:00:00", "23:59:59.999999"), strict=True) if isinstance(end, dict)
    ]  # fmt: skip
    start, end = (*texts, None, None)[:2]
    if len(texts) == 2 and start and end and model.moment(start) > model.moment(end):  # type: ignore[operator]
        raise BadRequest(f"filter: the interval {start}/{end} ends before it starts; swap its ends")
    return ends


def _instant(value: Mapping[str, object], *, whole_day: bool = False) -> Json:
    [(kind, text)] = value.items()
    at_midnight = f"{text}T00:00:00Z"
    if kind == "timestamp" and isinstance(text, str) and model.moment(text):
        return {"timestamp": documents.to_microseconds(text)}
    if kind == "date" and isinstance(text, str) and DAY.fullmatch(text) and model.moment(at_midnight):
        return {"date": text} if whole_day else {"timestamp": at_midnight}
    raise BadRequest(f"filter: {_brief(text)} is no {kind} as in RFC 3339")


def _literal(value: object) -> Any:
    if isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    if value is None:
        raise BadRequest("filter: null is compared with isNull only")
    raise BadRequest(f"filter: {_brief(value)} is neither a string, a number nor true or false")


def _list(op: str, value: object) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise BadRequest(f"filter: {op} takes a value and a list of values")
    if len(value) > LONGEST_LIST:
        raise BadRequest(f"filter: {op} takes {LONGEST_LIST} values at most, not {len(value)}")
    return value


def _exactly(op: str, args: object, count: int) -> list[Any]:
    if not isinstance(args, list) or len(args) != count:
        raise BadRequest(f"filter: {op} takes {count} arguments")
    return args


def _only(op: str, args: list[Any]) -> Any:
    return _exactly(op, args, 1)[0]


def _too_large() -> BadRequest:
    return BadRequest(
        f"the filter is too large: {MOST_OPERATORS} operators, {LONGEST_LIST} values in a list and {MOST_VALUES} in all"
        " lists are the most; ask in parts"
    )


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def searched_geometry(value: object, what: str) -> Json:
    """Return a GeoJSON geometry as it is compared with the index: two dimensions, longitudes −180..180."""
    if not isinstance(value, dict):
        raise BadRequest(f"{what}: {_brief(value)} is not a GeoJSON geometry")
    finding = next(geometry.check(value), None)
    if finding:
        raise BadRequest(f"{what}: {finding.message}")
    try:
        plain: Json = orjson.loads(geometry.searchable(value))
    except geometry.TooComplex as error:
        raise BadRequest(f"{what}: {error}") from None
    return plain


def box(value: object, what: str = "bbox") -> Json:
    """Return a box as a geometry, in two parts where it crosses the antimeridian; heights do not matter."""
    if not isinstance(value, list) or len(value) not in (4, 6) or not all(type(n) in (int, float) for n in value):
        raise BadRequest(f"{what}: a box is four numbers (west, south, east, north), or six with heights")
    half = len(value) // 2
    west, south, east, north = value[0], value[1], value[half], value[half + 1]
    if not (-90 <= south <= north <= 90 and -360 <= west <= 360 and -360 <= east <= 360):
        raise BadRequest(f"{what}: the box {value} does not run from south-west to north-east in degrees")
    if half == 3 and not value[2] <= value[5]:
        raise BadRequest(f"{what}: the lowest height of the box {value} is above the highest; swap them")
    parts = [_rectangle(w, south, e, north) for w, e in _spans(west, east)]
    if len(parts) == 1:
        return parts[0]
    return {"type": "Multi" + parts[0]["type"], "coordinates": [part["coordinates"] for part in parts]}


def _spans(west: float, east: float) -> list[tuple[float, float]]:
    """Return the spans from west eastwards to east, in longitudes −180..180."""
    if east - west >= 360:
        return [(-180, 180)]
    while east < west:
        east += 360
    worlds = [(max(west, turn - 180) - turn, min(east, turn + 180) - turn) for turn in (-360, 0, 360, 720)]
    spans = [(w, e) for w, e in worlds if w < e]
    return spans or [(w, e) for w, e in worlds if w == e][:1]


def _rectangle(west: float, south: float, east: float, north: float) -> Json:
    """Return a polygon; a line or a point for a box without width or height, whose polygon would be invalid."""
    if west < east and south < north:
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        return {"type": "Polygon", "coordinates": [ring]}
    if west < east or south < north:
        return {"type": "LineString", "coordinates": [[west, south], [east, north]]}
    return {"type": "Point", "coordinates": [west, south]}
