"""CQL2 text is read as the cql2 package reads it, in a time that nobody can stretch."""

from __future__ import annotations

import re
from typing import Any

import cql2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstac.domain import cql2_text

NAMES = st.sampled_from(("a", "eo:cloud_cover", "properties.x", '"quoted name"', "between", "date", "é"))
NUMBERS = st.one_of(st.integers(-(10**6), 10**6).map(str), st.sampled_from(("1.5", "-2.25e3", "+7", "1.")))
TEXTS = st.text("ab'%_ (é", max_size=6).map(lambda text: "'" + text.replace("'", "''") + "'")
INSTANTS = st.sampled_from(("DATE('2020-01-01')", "timestamp('2020-01-01T00:00:00Z')"))
SCALARS = st.one_of(NUMBERS, TEXTS, st.sampled_from(("true", "FALSE")))
INTERVALS = st.sampled_from(("INTERVAL('2020-01-01', '..')", "interval(start_datetime, end_datetime)"))
GEOMETRIES = st.sampled_from(
    ("POINT(1 2)", "POINT Z (1 2 3)", "linestring(1 2, 3 4)", "POLYGON((0 0, 1 0, 1 1, 0 0), (0 0, 1 0, 1 1, 0 0))",
     "MULTIPOINT(1 2, 3 4)", "MULTIPOINT((1 2), (3 4))", "MULTIPOLYGON(((0 0, 1 0, 1 1, 0 0)))", "BBOX(1, 2, 3, 4)",
     "GEOMETRYCOLLECTION(POINT(1 2), LINESTRING(1 2, 3 4))")
)  # fmt: skip


def joined(*parts: Any) -> st.SearchStrategy[str]:
    return st.tuples(*(st.just(part) if isinstance(part, str) else part for part in parts)).map("".join)


def several(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values, min_size=1, max_size=4).map(lambda members: "(" + ", ".join(members) + ")")


OPERANDS = st.one_of(NAMES, joined(st.sampled_from(("casei(", "upper(")), NAMES, ")"))
NEGATED = st.sampled_from((" ", " not ", " NOT "))
PREDICATES = st.one_of(
    joined(OPERANDS, st.sampled_from((" = ", "<>", " < ", ">=", " != ")), st.one_of(SCALARS, INSTANTS, OPERANDS)),
    joined(OPERANDS, NEGATED, st.sampled_from(("like ", "LIKE ")), TEXTS),
    joined(OPERANDS, NEGATED, "in ", several(SCALARS)),
    joined(OPERANDS, NEGATED, "between ", NUMBERS, " and ", NUMBERS),
    joined(NAMES, st.sampled_from((" is null", " IS NOT NULL"))),
    joined(st.sampled_from(("S_INTERSECTS(", "s_within(")), "geometry, ", GEOMETRIES, ")"),
    joined("T_INTERSECTS(datetime, ", st.one_of(INTERVALS, INSTANTS), ")"),
    joined("A_CONTAINS(", NAMES, ", ", several(TEXTS), ")"),
    NAMES,
)
FILTERS = st.recursive(
    PREDICATES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(" and ".join),
        st.lists(inner, min_size=2, max_size=3).map(" OR ".join),
        joined("not ", inner), joined("(", inner, ")"),
    ),
    max_leaves=5,
).filter(lambda text: text.count("(") < 9)  # theirs takes ages for more  # fmt: skip


def in_floats(value: Any) -> Any:
    """Return the value with all its numbers as floats."""
    if isinstance(value, dict):
        return {name: in_floats(member) for name, member in value.items()}
    if isinstance(value, list):
        return [in_floats(member) for member in value]
    return float(value) if type(value) is int else value


@given(FILTERS)
def test_a_filter_is_read_as_the_package_reads_it(text: str) -> None:
    assert in_floats(cql2_text.parse(text)) == cql2.parse_text(text).to_json()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(" * 40 + "id=1", "the parenthesis at character 40 is not closed"),
        ("id=1)", "')' at character 5: expected"),
        ("", "ends too early"),
        ("a = ", "ends too early"),
        ("a = 'x", "the quote at character 5 is not closed"),
        ("a + 1 = 2", "arithmetic is not taken"),
        ("a == 1", "'=' at character 4"),
        ("a in ()", "')' at character 7"),
        ("a in 1", "expected '('"),
        ("a between 1 or 2", "expected `and`"),
        ("a = 1 b = 2", "'b' at character 7"),
        ("S_INTERSECTS(geometry, POINT(1))", "two or three numbers"),
        ("S_INTERSECTS(geometry, GEOMETRYCOLLECTION(1))", "expected a geometry"),
        ("a = 1;", "';' at character 6 is not understood"),
    ],
)
def test_what_is_no_filter_is_told_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(cql2_text.NotCql2, match=re.escape(reason)):
        cql2_text.parse(text)


@pytest.mark.parametrize("part", ["(", "not ", "f(", "POINT(", "a_x((", "INTERVAL("])
def test_what_is_nested_too_deep_is_refused(part: str) -> None:
    with pytest.raises(cql2_text.NotCql2):
        cql2_text.parse(part * 20_000)
