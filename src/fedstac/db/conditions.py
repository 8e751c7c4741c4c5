"""SQL for the conditions of a search, over the columns of pgstac.items.

A filter comes checked from domain/filters.py and is CQL2 JSON. Its truth has three values, as in SQL:

- A property that is missing or null is unknown, and so is every comparison of it.
- A comparison of values of different types is unknown. No stored value makes a search fail.
- A list matches where one of its members does. It is unknown where none does and one is of another type, and an empty
  list matches nothing. So `<>` and NOT IN are the opposite of `=` and IN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from fedstac.db import words
from fedstac.domain.filters import MOMENTS, TEXTS, is_moment
from fedstac.domain.visibility import Visibility

MOST_IN_A_PATH = 16  # choices of IN that are compared one after the other; more are looked up by their hash
WRITTEN_BY_US = ("created", "updated")  # in the content: always a moment, whatever a publisher sends
IS_SHOWN = "(content #> '{properties,retracted}') IS DISTINCT FROM 'true'"
IS_RETRACTED = "(collection, id) IN (SELECT collection, id FROM fedstac.record WHERE state = 'retracted')"
FLIPPED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
TEMPORAL = {
    "t_before": "{left_end} < {right_start}",
    "t_after": "{left_start} > {right_end}",
    "t_meets": "{left_end} = {right_start}",
    "t_metby": "{left_start} = {right_end}",
    "t_overlaps": "{left_start} < {right_start} AND {left_end} > {right_start} AND {left_end} < {right_end}",
    "t_overlappedby": "{left_start} > {right_start} AND {left_start} < {right_end} AND {left_end} > {right_end}",
    "t_starts": "{left_start} = {right_start} AND {left_end} < {right_end}",
    "t_startedby": "{left_start} = {right_start} AND {left_end} > {right_end}",
    "t_during": "{left_start} > {right_start} AND {left_end} < {right_end}",
    "t_contains": "{left_start} < {right_start} AND {left_end} > {right_end}",
    "t_finishes": "{left_start} > {right_start} AND {left_end} = {right_end}",
    "t_finishedby": "{left_start} < {right_start} AND {left_end} = {right_end}",
    "t_equals": "{left_start} = {right_start} AND {left_end} = {right_end}",
    "t_disjoint": "NOT ({left_start} <= {right_end} AND {left_end} >= {right_start})",
    "t_intersects": "{left_start} <= {right_end} AND {left_end} >= {right_start}",
}


def where(conditions: Mapping[str, Any]) -> str:
    """Return SQL that selects from pgstac.items what the conditions of a search name."""
    parts = []
    if "ids" in conditions:
        parts.append(f"id = ANY ({array(conditions['ids'], 'text')})")
    if "collections" in conditions:
        parts.append(f"collection = ANY ({array(conditions['collections'], 'text')})")
    if "datetime" in conditions:
        start, _, end = conditions["datetime"].partition("/")
        ends = (("end_datetime >=", start), ("datetime <=", end if "/" in conditions["datetime"] else start))
        parts += [f"{column} {literal(end)}::timestamptz" for column, end in ends if end not in ("", "..")]
    if "intersects" in conditions:
        parts.append(f"st_intersects(geometry, {_geometry(conditions['intersects'])})")
    if "filter" in conditions:
        parts.append(f"({predicate(conditions['filter'])})")
    if "retracted" in conditions:
        parts.append(IS_RETRACTED if conditions["retracted"] == Visibility.ONLY else IS_SHOWN)
    if "q" in conditions:
        parts.append(words.predicate(conditions["q"], _has_words))
    return " AND ".join(parts) or "TRUE"


def _has_words(args: Sequence[Any]) -> str:
    """Return SQL that tests a dataset for words: (plain, as the text has them, a filter of facets that have them)."""
    plain, text, facets = args
    own = f"to_tsvector('simple', private ->> 'words') @@ phraseto_tsquery('simple', {literal(plain)})"
    return f"(id = {literal(text)} OR coalesce({predicate(facets)}, false) OR (private IS NOT NULL AND {own}))"


def column_or_path(name: str) -> tuple[str, bool]:
    """Return SQL for the value of a property, and whether it may be null."""
    if name in MOMENTS:
        return MOMENTS[name], False
    if name in TEXTS:
        return name, False
    path = array(["properties", *name.split(".")], "text")
    return f"NULLIF(content #> {path}, 'null')", True


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def array(texts: Sequence[str], type: str) -> str:
    """Return texts as an SQL literal of an array of that type."""
    quoted = ",".join('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return f"{literal('{' + quoted + '}')}::{type}[]"


def predicate(expression: Any) -> str:
    """Return SQL for a filter: true, false or null of an item."""
    if isinstance(expression, bool):
        return "TRUE" if expression else "FALSE"
    op, args = expression["op"], expression["args"]
    if op in ("and", "or"):
        return "(" + f" {op.upper()} ".join(predicate(arg) for arg in args) + ")"
    if op == "not":
        return f"(NOT {predicate(args[0])})"
    if op == "isnull":
        return f"({column_or_path(args[0]['property'])[0]} IS NULL)"
    if op == "<>":
        return f"(NOT {_comparison('=', *args)})"
    if op in FLIPPED:
        return _comparison(op, *args)
    if op == "between":
        return _between(*args)
    if op == "in":
        return _in(*args)
    if op == "like":
        return _like(*args)
    if op in TEMPORAL:
        return _temporal(op, *args)
    if op.startswith("a_"):
        return _array_predicate(op, *args)
    other = "geometry" if "property" in args[1] else _geometry(args[1])
    return f"st_{op.removeprefix('s_')}(geometry, {other})"


def _geometry(geojson: Mapping[str, Any]) -> str:
    return f"st_geomfromgeojson({literal(orjson.dumps(geojson).decode())})"


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _is_literal(operand: Any) -> bool:
    return not isinstance(operand, Mapping)


def _value(operand: Any) -> str:
    """Return SQL for an operand as JSON."""
    if _is_literal(operand):
        return f"{literal(_json(operand))}::jsonb"
    if "op" in operand:
        return f"fedstac.apply_text_function({literal(operand['op'])}, {_value(operand['args'][0])})"
    expression, _ = column_or_path(operand["property"])
    return f"to_jsonb({expression})" if operand["property"] in TEXTS else expression


def _by_member(value: str, test: Callable[[str], str], name: str = "member") -> str:
    """Return SQL that tests a JSON value, or each member of a list: null for a value that cannot be compared."""
    of_member = f"CASE jsonb_typeof({name}) WHEN 'array' THEN NULL WHEN 'null' THEN false ELSE {test(name)} END"
    of_list = f"true = ANY (ARRAY(SELECT {of_member} FROM jsonb_array_elements({value}) {name}))"
    return f"(CASE jsonb_typeof({value}) WHEN 'array' THEN {of_list} ELSE {test(value)} END)"


def _path_test(value: str, path: str, others: Sequence[Any]) -> str:
    """Return SQL for a predicate in PostgreSQL's JSON path language; `{0}` in it is the first of the other operands.

    The language has the truth that we want: it goes through the members of a list, and types that differ are unknown.
    """
    if all(map(_is_literal, others)):
        return f"({value} @@ {literal(path.format(*map(_json, others)))}::jsonpath)"
    names = [f"other{n}" for n in range(len(others))]
    values = {name: _value(other) for name, other in zip(names, others, strict=True)}
    variables = ", ".join(f"'{name}', {value}" for name, value in values.items())
    match = (
        f"jsonb_path_match({value}, {literal(path.format(*('$' + name for name in names)))},"
        f" jsonb_build_object({variables}), true)"
    )
    present = " AND ".join(f"{value} IS NOT NULL" for value in values.values())
    return f"(CASE WHEN {present} THEN {match} END)"


def _comparison(op: str, left: Any, right: Any) -> str:
    if is_moment(left) or is_moment(right):
        return _of_moments(left, right, lambda one, other: f"({one} {op} {other})")
    if _is_literal(left) and not _is_literal(right):
        op, left, right = FLIPPED[op], right, left
    if op == "=" and _is_text_column(left) and isinstance(right, str):
        return f"({left['property']} = {literal(right)})"
    return _path_test(_value(left), f"$ {'==' if op == '=' else op} {{0}}", [right])


def _between(value: Any, low: Any, high: Any) -> str:
    if any(map(is_moment, (value, low, high))):

        def test(value: str) -> str:
            return _of_moments(low, high, lambda first, last: f"({value} BETWEEN {first} AND {last})")

        return _each_moment(value, "tested", test)
    return _by_member(_value(value), lambda member: _path_test(member, "$ >= {0} && $ <= {1}", [low, high]))


def _in(value: Any, choices: Sequence[Any]) -> str:
    if _is_text_column(value) and all(isinstance(choice, str) for choice in choices):
        return f"({value['property']} = ANY ({array(choices, 'text')}))"
    if len(choices) <= MOST_IN_A_PATH:
        path = " || ".join(f"$ == {{{n}}}" for n in range(len(choices)))
        return _path_test(_value(value), path, choices)
    any_of = f"= ANY ({array([_json(choice) for choice in choices], 'jsonb')})"
    types = {_type(choice) for choice in choices}

    def test(member: str) -> str:
        if len(types) > 1:  # a value that is none of them cannot be compared with some
            return f"NULLIF({member} {any_of}, false)"
        return _of_type(member, next(iter(types)), f"{member} {any_of}")

    return _by_member(_value(value), test)


def _type(value: Any) -> str:
    """Return the type of a literal as jsonb_typeof names it."""
    return "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"


def _like(value: Any, pattern: str) -> str:
    if _is_text_column(value):
        return f"({value['property']} LIKE {literal(pattern)})"

    def test(member: str) -> str:
        return _of_type(member, "string", f"{member} #>> '{{}}' LIKE {literal(pattern)}")

    return _for_few(_by_member(_value(value), test))


def _of_type(member: str, type: str, test: str) -> str:
    """Return SQL that tests a value of that type; one of another type is unknown."""
    return f"CASE jsonb_typeof({member}) WHEN '{type}' THEN {test} END"


def _for_few(test: str) -> str:
    """Return the same test as an equality: of a bare CASE the planner expects that half of all datasets pass."""
    return f"({test}::int = 1)"


def _is_text_column(operand: Any) -> bool:
    return isinstance(operand, Mapping) and operand.get("property") in TEXTS


def _array_predicate(op: str, value: Any, members: Any) -> str:
    """Return SQL that compares lists as sets; a value that is no list counts as a list of one."""
    if isinstance(members, Mapping):
        return f"fedstac.compare_sets({literal(op)}, {_value(value)}, {_value(members)})"
    own, each = _value(value), array([_json(member) for member in members], "jsonb")
    contains = f"{own} @> ALL ({each})"
    contained = f"{own} <@ {literal(_json(members))}::jsonb"
    match op:
        case "a_contains":
            return f"({contains})"
        case "a_containedby":
            return f"({contained})"
        case "a_equals":
            return f"({contains} AND {contained})"
        case _:
            return f"({own} @> ANY ({each}))"


def _of_moments(left: Any, right: Any, test: Callable[[str, str], str]) -> str:
    """Return SQL that tests two moments; one that a property has is read from it, member by member."""
    return _each_moment(left, "one", lambda one: _each_moment(right, "other", lambda other: test(one, other)))


def _each_moment(operand: Any, name: str, test: Callable[[str], str]) -> str:
    if "timestamp" in operand:
        return test(f"{literal(operand['timestamp'])}::timestamptz")
    if operand["property"] in MOMENTS:
        return test(MOMENTS[operand["property"]])
    if operand["property"] in WRITTEN_BY_US:
        return test(f"({_value(operand)} ->> 0)::timestamptz")
    return _by_member(_value(operand), lambda member: test(f"fedstac.moment({member})"), name)


def _temporal(op: str, left: Any, right: Any) -> str:
    def test(left_start: str, left_end: str, right_start: str, right_end: str) -> str:
        ends = {"left_start": left_start, "left_end": left_end, "right_start": right_start, "right_end": right_end}
        return f"({TEMPORAL[op].format(**ends)})"

    return _each_span(left, "one", lambda *one: _each_span(right, "other", lambda *other: test(*one, *other)))


def _each_span(operand: Any, name: str, test: Callable[[str, str], str]) -> str:
    """Return SQL that tests the first and the last moment of an operand: an interval, a day, a moment or a property."""
    if "interval" in operand:
        start, end = operand["interval"]
        return test(_end(start, first=True), _end(end, first=False))
    if "date" in operand:
        return test(_end(operand, first=True), _end(operand, first=False))
    return _each_moment(operand, name, lambda moment: test(moment, moment))


def _end(end: Any, *, first: bool) -> str:
    """Return SQL for an end of an interval: open, a whole day, a moment, or a property that has one."""
    if end == "..":
        return f"'{'-' if first else ''}infinity'::timestamptz"
    if "date" in end:
        return f"'{end['date']}T{'00:00:00' if first else '23:59:59.999999'}Z'::timestamptz"
    if "timestamp" in end:
        return f"{literal(end['timestamp'])}::timestamptz"
    name = end["property"]
    return MOMENTS.get(name) or f"fedstac.moment({_value(end)})"
