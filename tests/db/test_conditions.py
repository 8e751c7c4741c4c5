"""SQL for conditions: on one document each, and how PostgreSQL goes about it."""

from __future__ import annotations

from typing import Any, TypeAlias

import asyncpg
import orjson
import pytest

from fedstac.db import conditions, search
from fedstac.domain import filters
from fedstac.domain.errors import BadRequest
from fedstac.domain.vocabulary import Kind
from fedstac.vocabularies.checker import open_checker

Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
VOCABULARIES = open_checker().vocabularies
LISTS = [
    (project, name)
    for project in VOCABULARIES.projects()
    if (vocabulary := VOCABULARIES.current(project))
    for name, demand in vocabulary.properties.items() if demand.kind is Kind.STRINGS
]  # fmt: skip


async def truth(conn: Conn, properties: dict[str, Any], text: str) -> bool | None:
    """Return what a filter is of a dataset with these properties."""
    where = conditions.where({"filter": filters.check(filters.from_text(text))})
    content = orjson.dumps({"properties": properties}).decode()
    found: bool | None = await conn.fetchval(f"SELECT {where} FROM (SELECT $1::text::jsonb AS content) items", content)
    return found


@pytest.mark.parametrize(("project", "name"), [*LISTS, ("any", "access"), ("none", "x:free")])
async def test_a_list_is_found_by_a_member_and_left_out_by_its_opposite(conn: Conn, project: str, name: str) -> None:
    has = {name: ["first", "Second"]}
    for text in ("{0} = 'first'", "{0} IN ('Second', 'x')", "{0} LIKE 'f_r%'", "casei({0}) = casei('SECOND')",
                 "casei({0}) LIKE casei('sec%')", "{0} > 'a'", "{0} BETWEEN 'a' AND 'g'",
                 "a_contains({0}, ('first'))", "a_overlaps({0}, ('first', 'x'))"):  # fmt: skip
        text = text.format(f'"{name}"')
        assert await truth(conn, has, text) is True, text
        assert await truth(conn, has, f"NOT ({text})") is False, text
        assert await truth(conn, {}, text) is None, text
        assert await truth(conn, {name: []}, text) is False, text
    assert await truth(conn, has, f"\"{name}\" <> 'first'") is False
    assert await truth(conn, has, f"\"{name}\" NOT IN ('first')") is False
    assert await truth(conn, has, f"\"{name}\" <> 'third'") is True


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        ("abc", "x > 5", None), ("abc", "x <> 5", None), (True, "x > 0", None), (1, "x = true", None),
        ("soon", "x < TIMESTAMP('2020-01-01T00:00:00Z')", None), (20200101, "x < DATE('2030-01-01')", None),
        ("2020-02-30", "x < DATE('2030-01-01')", None), ("2020-02-29", "x < DATE('2030-01-01')", True),
        ("2020-01-01T00:00:00+23:59", "x < TIMESTAMP('2019-12-31T00:01:00.000001Z')", True),
        ("2020-04-31T00:00:00Z", "t_before(x, DATE('2030-01-01'))", None), ({"a": 1}, "x = 'a'", None),
        ({"a": 1}, "x.a = 1.0", True), (1, "x.a = 1", None), ([1, "a"], "x = 2", None), ([1, "a"], "x = 1", True),
        ([[1]], "x = 1", None), ([None], "x = 1", False), (0.1, "x = 0.1", True), (1e300, "x > 1e299", True),
        ("Straße", "casei(x) = casei('STRASSE')", True), ("ΟΔΟΣ", "casei(x) = casei('οδός')", False),
        ("ΟΔΌΣ", "accenti(casei(x)) = accenti(casei('οδος'))", True), ("Zürich", "accenti(x) LIKE 'Zuri%'", True),
        ("a\\b", "x LIKE 'a\\\\b'", True), ("a.b", "x LIKE 'a_b'", True), ("aXb", "x LIKE 'a.b'", False),
        ("'; DROP TABLE x --", "x = '''; DROP TABLE x --'", True), ("{0}$1%s", "x = '{0}$1%s'", True),
    ],
)  # fmt: skip
async def test_a_value_is_compared_with_its_own_type_only(
    conn: Conn, value: Any, text: str, expected: bool | None
) -> None:
    assert await truth(conn, {"x": value}, text) is expected
    assert await truth(conn, {"x": value}, f"NOT ({text})") is (None if expected is None else not expected)


def test_a_refusal_quotes_nothing_that_the_database_says() -> None:
    with pytest.raises(BadRequest) as refused, search.for_the_caller():
        raise asyncpg.InvalidTextRepresentationError('invalid input syntax for type double precision: "secret"')
    assert "secret" not in refused.value.detail
