"""The order of a search in PostgreSQL."""

from __future__ import annotations

from fedstac.db import search
from fedstac.db.connections import Connection


async def test_collections_are_ordered_by_their_characters_whatever_the_collation(conn: Connection) -> None:
    """As the columns order them: a search may begin in memory at one node, and in PostgreSQL at another."""
    names = ["a", "B", "_c", "A", "b", "Z"]
    assert await conn.fetchval("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'")
    for descending in (False, True):
        keys = search.order([("collection", descending)])
        order = ", ".join(f"{key.expression} {'DESC' if key.descending else 'ASC'}" for key in keys)
        rows = await conn.fetch(
            f"""SELECT collection FROM (SELECT name COLLATE "und-x-icu" AS collection, name AS id
                FROM unnest($1::text[]) name) items ORDER BY {order}""",
            names,
        )
        assert [row["collection"] for row in rows] == sorted(names, reverse=descending)
