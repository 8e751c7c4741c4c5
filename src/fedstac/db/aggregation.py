"""Counts of what a search finds, in PostgreSQL: over the coded rows (fedstac.facet) of what pgstac's items match.

It is the path for filters that memory cannot decide. It takes one pass over the datasets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson

from fedstac.db import conditions, search
from fedstac.db.connections import Connection, Row
from fedstac.domain import aggregating
from fedstac.domain.aggregating import Counts
from fedstac.runtime import budget
from fedstac.runtime.capacity import Threads

INLINE: Final = 2_000  # counts that the event loop puts together by itself; more are for a thread


@dataclass(frozen=True, slots=True)
class FacetSlot:
    """The place that a property has in the codes of a collection's datasets."""

    collection: str
    property: str
    slot: int  # from 0 on


async def slots(conn: Connection, collections: Sequence[str]) -> list[FacetSlot]:
    """Return the facets of collections."""
    rows = await conn.fetch(
        """SELECT collection, property, slot FROM fedstac.facet_slot
           WHERE collection = ANY ($1::text[]) ORDER BY collection, slot""",
        collections,
    )
    return [FacetSlot(row["collection"], row["property"], row["slot"]) for row in rows]


async def properties_shown(conn: Connection, collections: Sequence[str]) -> frozenset[tuple[str, str]]:
    """Return the facets of which a dataset that searches may find has a value, as (collection, property)."""
    rows = await conn.fetch(
        """SELECT s.collection, s.property FROM fedstac.facet_slot s JOIN pgstac.collections c ON c.id = s.collection
           CROSS JOIN LATERAL (SELECT FROM fedstac.facet f
                               WHERE f.collection = c.key AND f.shown > 0 AND f.codes[s.slot + 1] <> 0 LIMIT 1) f
           WHERE s.collection = ANY ($1::text[])""",
        collections,
    )
    return frozenset((row["collection"], row["property"]) for row in rows)


async def count(
    conn: Connection,
    threads: Threads,
    common: Mapping[str, Any],
    own: Mapping[str, Any],
    facets: Sequence[FacetSlot],
) -> Counts:
    """Count what meets all conditions, and the values of each facet.

    own: filters by the property that they are about: the counts of that facet leave them out. Every other condition is
    in `common`. BadRequest where PostgreSQL cannot evaluate the search.
    """
    properties = sorted(own)
    tests = [f"({conditions.predicate(own[name])}) IS NOT TRUE" for name in properties]
    missed = " + ".join(f"({test})::int" for test in tests) or "0"
    first = "".join(f" WHEN {test} THEN {n}" for n, test in enumerate(tests, 1))
    statement = f"""
        WITH tested AS MATERIALIZED (
            SELECT collection AS k_collection, id AS k_id, {missed} AS missed,
                   {f"CASE{first} ELSE 0 END" if first else "0"} AS missing
            FROM pgstac.items WHERE {conditions.where(common)}),
        matched AS MATERIALIZED (
            SELECT r.collection, f.starts, f.ends, f.size, f.files, f.codes, t.missing
            FROM tested t JOIN fedstac.record r ON r.collection = t.k_collection AND r.id = t.k_id
            JOIN fedstac.facet f ON f.n = r.n WHERE t.missed <= 1 AND f.shown > 0),
        wanted AS (
            SELECT * FROM unnest($1::text[], $2::int[], $3::int[]) w (collection, slot, own)),
        coded AS (
            SELECT w.collection, w.slot, m.codes[w.slot + 1] AS code, count(*) AS n
            FROM matched m JOIN wanted w ON w.collection = m.collection AND m.missing IN (0, w.own) GROUP BY 1, 2, 3)
        SELECT 'all' AS part, NULL AS collection, NULL::int AS place, NULL::jsonb AS content, count(*) AS n,
               coalesce(sum(files), 0)::bigint AS files, coalesce(sum(size), 0)::bigint AS bytes,
               min(greatest(starts, '0001-01-01 00:00Z')) AS starts,
               max(least(ends, '9999-12-31 23:59:59.999999Z')) AS ends FROM matched WHERE missing = 0
        UNION ALL SELECT 'collection', collection, NULL, NULL, count(*), 0, 0, NULL, NULL
                  FROM matched WHERE missing = 0 GROUP BY collection
        UNION ALL SELECT 'missing', NULL, missing, NULL, count(*), 0, 0, NULL, NULL FROM matched GROUP BY missing
        UNION ALL SELECT 'year', NULL, least(greatest(extract(year FROM starts), 1), 9999)::int, NULL, count(*),
                         0, 0, NULL, NULL
                  FROM matched WHERE missing = 0 GROUP BY 3
        UNION ALL SELECT 'value', c.collection, c.slot, t.content, c.n, 0, 0, NULL, NULL
                  FROM coded c LEFT JOIN fedstac.term t ON t.code = c.code"""
    with search.for_the_caller():
        rows = await conn.fetch(
            statement, [each.collection for each in facets], [each.slot for each in facets],
            [properties.index(each.property) + 1 if each.property in own else 0 for each in facets],
        )  # fmt: skip
    if len(rows) <= INLINE:
        return _counts(rows, facets, properties)
    return await threads.run(partial(_counts, rows, facets, properties))


def _counts(rows: Sequence[Row], facets: Sequence[FacetSlot], own: Sequence[str]) -> Counts:
    by_part: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_part[row["part"]].append(row)
    names = {(each.collection, each.slot): each.property for each in facets}
    values: dict[str, list[tuple[Any, int]]] = {each.property: [] for each in facets}
    for n, row in enumerate(by_part["value"]):
        if not n % INLINE:
            budget.checkpoint()
        name = names[row["collection"], row["place"]]
        content = orjson.loads(row["content"]) if row["content"] else {}
        values[name].append((content.get("properties", {}).get(name), row["n"]))
    total = by_part["all"][0]
    missing = {row["place"]: row["n"] for row in by_part["missing"]}
    others = {name: missing.get(n, 0) for n, name in enumerate(own, 1)}
    return Counts(
        datasets=total["n"], files=total["files"], bytes=total["bytes"], first=total["starts"], last=total["ends"],
        years={row["place"]: row["n"] for row in by_part["year"]},
        collections={row["collection"]: row["n"] for row in by_part["collection"]},
        facets={
            name: aggregating.facet_counts(whole, total["n"] + others.get(name, 0))
            for name, whole in values.items()
        },
    )  # fmt: skip
