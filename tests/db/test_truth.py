"""What a filter says of a dataset in memory is what it says in a search: both are asked of the same documents."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import asyncpg
import orjson
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from fedstac.db import conditions
from fedstac.domain import filters
from fedstac.domain.truth import compile_filter, facts_of

Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
SEED: Final = 20261129
MOST_PAIRS: Final = 1000
VALUES: Final = [
    None, True, False, 0, 1, 1.0, -2.5, 1e300, "", "a", "A", "abc", "a_c", "a%c", "Straße", "ΟΔΟΣ", "1", "true",
    "2020-01-01", "2020-02-30", "2020-01-01T00:00:00Z", "2020-01-01T12:00:00.123456789+01:00", "0001-01-01",
    "2020-01-01 12:00:00", {"a": 1}, {"a": None}, [], ["a"], ["a", 1], [None], ["a", None], [["a"]], [{"a": 1}],
    ["2020-01-01", "2021-06-01T00:00:00Z"], ["2020-01-01", 5], ["abc", "x", "b"], [1, 2, 3], [True],
]  # fmt: skip
LITERALS: Final = ["'a'", "'abc'", "''", "'strasse'", "1", "0", "-2.5", "TRUE", "FALSE", "'1'", "'2020-01-01'"]
MOMENTS: Final = ["TIMESTAMP('2020-01-01T00:00:00Z')", "DATE('2020-01-01')", "DATE('2021-06-01')"]
SPANS: Final = [
    *MOMENTS, "INTERVAL('2019-01-01','2020-06-01')", "INTERVAL('..','2020-01-01T00:00:00Z')", "INTERVAL(x,'..')",
    "INTERVAL(x,y)", "INTERVAL('2020-01-01',end_datetime)", "datetime", "x",
]  # fmt: skip
PATTERNS: Final = ["a%", "%c", "a_c", "a\\_c", "%b%", "%", "", "a%b%c", "_"]
POINT, BOX = "POINT(10 50)", "POLYGON((5 45,15 45,15 55,5 55,5 45))"

name = st.sampled_from(["x", "y", "x.a", "x.0", "missing"])
compare = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])
literal = st.sampled_from(LITERALS)
moment = st.sampled_from(MOMENTS)
timed = st.sampled_from(["datetime", "start_datetime", "end_datetime", "x", "y"])
of_lists = st.sampled_from(sorted(set(filters.ARRAYS)))
listed = st.lists(literal, min_size=1, max_size=3).map(", ".join)
leaf = st.one_of(
    st.builds("{} {} {}".format, name, compare, st.one_of(literal, name, literal)),
    st.builds("{} {} {}".format, literal, compare, name),
    st.builds("{}({}) {} {}".format, st.sampled_from(["casei", "accenti", "upper", "lower"]), name, compare, literal),
    st.builds("{} {} {}".format, timed, compare, moment),
    st.builds("{} BETWEEN {} AND {}".format, name, literal, literal),
    st.builds("{} BETWEEN {} AND {}".format, timed, moment, moment),
    st.builds("{} IN ({})".format, name, listed),
    st.builds("{} IN ({})".format, name, st.just(", ".join(f"'{n}'" for n in range(20)))),
    st.builds("{} NOT IN ({})".format, name, listed),
    st.builds("{} LIKE '{}'".format, name, st.sampled_from(PATTERNS)),
    st.builds("{} IS NULL".format, st.one_of(name, timed)),
    st.builds("{}({}, ({}))".format, of_lists, name,
              listed),
    st.builds("{}({}, {})".format, of_lists, name, name),
    st.builds("{}({}, {})".format, st.sampled_from(sorted(filters.SPANS)), st.sampled_from(SPANS),
              st.sampled_from(SPANS)),
    st.builds("{}(geometry, {})".format, st.sampled_from(sorted(filters.SPATIAL)), st.sampled_from([POINT, BOX])),
    st.sampled_from(["collection = 'CMIP7'", "collection LIKE 'CM%'", "id IN ('one', 'two')", "id = 5", "id > 'a'",
                     "collection <> 'CMIP7'", "id BETWEEN 'a' AND 'z'", "casei(id) = casei('ONE')"]),
)  # fmt: skip
text_of_filter = st.recursive(
    leaf,
    lambda part: st.one_of(
        st.builds("({} AND {})".format, part, part), st.builds("({} OR {})".format, part, part),
        st.builds("NOT ({})".format, part),
    ),
    max_leaves=4,
)  # fmt: skip
documents = st.builds(
    lambda x, y, timed, shape: {
        "id": "one", "collection": "CMIP7", "geometry": shape,
        "properties": {**({"x": x} if x != "absent" else {}), "y": y, **timed},
    },
    st.sampled_from([*VALUES, "absent"]), st.sampled_from(VALUES),
    st.sampled_from([
        {"datetime": "2020-01-01T00:00:00Z"},
        {"datetime": None, "start_datetime": "2019-06-01T00:00:00Z", "end_datetime": "2020-06-01T00:00:00.5Z"},
    ]),
    st.sampled_from([{"type": "Point", "coordinates": [10, 50]},
                     {"type": "Polygon", "coordinates": [[[170, 0], [190, 0], [190, 10], [170, 10], [170, 0]]]},
                     {"type": "Polygon", "coordinates": [[[0, 40], [12, 40], [12, 60], [0, 60], [0, 40]]]}]),
)  # fmt: skip

STATEMENT = """SELECT {where} FROM (
    SELECT $1::text::jsonb AS content, $1::text::jsonb ->> 'id' AS id, $1::text::jsonb ->> 'collection' AS collection,
        $2::text::timestamptz AS datetime, $3::text::timestamptz AS end_datetime,
        ST_GeomFromGeoJSON($4::text) AS geometry) items"""


async def test_a_filter_says_in_memory_what_it_says_in_a_search(conn: Conn) -> None:
    pairs: list[tuple[str, dict[str, Any]]] = []

    @seed(SEED)
    @settings(max_examples=MOST_PAIRS, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(text_of_filter, documents), min_size=1, max_size=1))
    def collect(drawn: list[tuple[str, dict[str, Any]]]) -> None:
        pairs.extend(drawn)

    collect()
    different, truths = [], {True: 0, False: 0, None: 0}
    for text, document in pairs:
        expression = filters.check(filters.from_text(text))
        facts = facts_of(document, filters.names_in(expression) | {"geometry"})
        own = compile_filter(expression)(facts)
        times = document["properties"]
        start = times.get("start_datetime") or times["datetime"]
        end = times.get("end_datetime") or times["datetime"]
        found = await conn.fetchval(
            STATEMENT.format(where=conditions.predicate(expression)), orjson.dumps(document).decode(), start, end,
            facts.shape,
        )  # fmt: skip
        truths[found] += 1
        if found is not own:
            different.append((text, document, found, own))
    assert not different, different[:5]
    assert min(truths.values()) > len(pairs) / 20, truths


@pytest.mark.parametrize("pattern", ["%a%b%c%d%e%f%g%h%i%j", "a%" * 10, "_%_%_%_%_%_%_%_%_%_"])
def test_a_pattern_takes_no_longer_for_an_odd_text(pattern: str) -> None:
    test = compile_filter({"op": "like", "args": [{"property": "x"}, pattern]})
    document = {"id": "one", "collection": "c", "properties": {"datetime": "2020-01-01T00:00:00Z", "x": "ab" * 50_000}}
    assert test(facts_of(document, ["x"])) in (True, False)
