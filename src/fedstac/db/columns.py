"""What the columns in memory read: rows of fedstac.facet, their dictionaries, and the documents of a page."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fedstac.db import conditions, search
from fedstac.db.connections import Connection, Reader
from fedstac.db.search import PAGE_BYTES, STATE_COLUMNS, ServedItem
from fedstac.domain.geometry import Rectangle

PLACES = 24  # of codes in a row
ROW = "n, changed, collection, shown, starts, ends, updated, footprint, size, files, codes"
FEW = 4_000  # changed rows that come in one answer; more come by COPY
FLAGS = ("latest", "retracted")
TERM, FOOTPRINT, COLLECTION = "term", "footprint", "collection"
VALUES = {FOOTPRINT: "geometry", COLLECTION: "collection"}  # what filters read of an entry; of others: content
A_DAY = 86_400.0  # seconds: no limit, for what is as long as the catalogue


Output = Callable[[bytes], Coroutine[Any, Any, None]]  # takes the pieces of a COPY


# Which history of the catalogue a server has: transaction ids mean nothing in another one. It is another one from the
# promotion of a standby on, and after each restore; a standby sees it when the sequencer has begun an epoch. The first
# epoch is that of the time before it.
HISTORY = """concat_ws(' ', (SELECT coalesce(max(n), 1) FROM fedstac.epoch),
    (SELECT system_identifier FROM pg_control_system()),
    CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END)"""


# The look before each search is planned once: its plan takes longer than the look itself, and never depends on a value.
SETTINGS: Final = {"plan_cache_mode": "force_generic_plan"}


async def snapshot(conn: Connection) -> tuple[str, str]:
    """Return what is visible now, and the history that this is of."""
    row = await conn.fetchrow(f"SELECT pg_current_snapshot()::text AS snapshot, {HISTORY} AS history")
    assert row is not None
    return row["snapshot"], row["history"]


@dataclass(frozen=True, slots=True)
class Changes:
    """What became visible since a snapshot. `rows`: as record_send writes them; None where they are too many."""

    snapshot: str
    history: str
    rows: bytes | None
    places: tuple[int, int] | None  # another pair when a property gained or lost its place; None without rows
    removed_through: int  # rows that this transaction or one before it changed may have been removed
    may_lack_removals: bool  # the snapshot is from before that


async def changes(conn: Connection, since: str) -> Changes:
    """Return the rows that became visible since a snapshot, in one statement and so of one snapshot.

    A standby's snapshot does not list the transactions that are under way: there, all rows from the oldest one on come.
    """
    row = await conn.fetchrow(
        f"""SELECT pg_current_snapshot()::text AS snapshot, {HISTORY} AS history, f.count, f.rows,
                   CASE WHEN f.count > 0 THEN (SELECT count(*) FROM fedstac.facet_slot) END AS slots,
                   CASE WHEN f.count > 0 THEN (SELECT count(*) FROM fedstac.facet_lost) END AS lost,
                   r.through::text::bigint AS through, r.through >= pg_snapshot_xmin($1::text::pg_snapshot) AS is_late
            FROM fedstac.facet_removed r,
                 (SELECT count(*) AS count, string_agg(record_send(c), ''::bytea) AS rows
                  FROM (SELECT {ROW} FROM fedstac.facet WHERE {_since("$1::text")}
                        ORDER BY changed LIMIT {FEW + 1}) c) f""",
        since,
    )
    assert row is not None
    return Changes(
        row["snapshot"], row["history"], (row["rows"] or b"") if row["count"] <= FEW else None,
        (row["slots"], row["lost"]) if row["count"] else None, row["through"], row["is_late"],
    )  # fmt: skip


def _since(text: str) -> str:
    return (
        f"changed >= pg_snapshot_xmin({text}::pg_snapshot)"
        f" AND (pg_is_in_recovery() OR NOT pg_visible_in_snapshot(changed, {text}::pg_snapshot))"
    )


async def is_filled(conn: Connection) -> bool:
    """Return whether all datasets have rows. After an upgrade those that were here before get theirs bit by bit."""
    filled: bool = await conn.fetchval("SELECT NOT EXISTS (SELECT FROM fedstac.record WHERE n IS NULL)")
    return filled


async def removed_through(conn: Connection) -> int:
    """Return the transaction up to which rows may have been removed."""
    through: int = await conn.fetchval("SELECT through::text::bigint FROM fedstac.facet_removed")
    return through


async def number_count(conn: Connection) -> int:
    """Return how many numbers datasets have, with those between them that none has."""
    count: int = await conn.fetchval("SELECT coalesce(max(n), -1) + 1 FROM fedstac.facet")
    return count


async def copy(conn: Connection, output: Output, since: str | None = None, *, limit: int | None = None) -> None:
    """Write all rows, or those that became visible since a snapshot, in the binary format of COPY."""
    where = f"WHERE {_since(conditions.literal(since))}" if since else ""
    query = f"SELECT {ROW} FROM fedstac.facet {where} LIMIT {'ALL' if limit is None else limit}"
    await conn.copy_from_query(query, output=output, format="binary", timeout=A_DAY)


@dataclass(frozen=True, slots=True)
class Term:
    code: int
    property: str
    value: str  # JSON


async def terms(conn: Connection, codes: Sequence[int] | None = None) -> list[Term]:
    """Return the terms of these codes, or all of them."""
    which = "code = ANY ($1::int4[])" if codes is not None else "true"
    rows = await conn.fetch(
        f"SELECT code, facet, (content->'properties'->facet)::text AS value FROM fedstac.term WHERE {which}",
        *([codes] if codes is not None else []), timeout=A_DAY,
    )  # fmt: skip
    return [Term(row["code"], row["facet"], row["value"]) for row in rows]


async def rectangles(conn: Connection, codes: Sequence[int] | None = None) -> dict[int, list[Rectangle]]:
    """Return those of these footprints, or of all, that consist of rectangles along the axes, lines and points too.

    A footprint without any point consists of none.
    """
    which = "code = ANY ($1::int4[])" if codes is not None else "true"
    rows = await conn.fetch(
        f"""SELECT code, array_agg(ARRAY[st_xmin(part), st_ymin(part), st_xmax(part), st_ymax(part)])
                         FILTER (WHERE part IS NOT NULL) AS corners
            FROM fedstac.footprint LEFT JOIN LATERAL (SELECT (st_dump(geometry)).geom AS part) parts ON true
            WHERE {which} GROUP BY code HAVING coalesce(bool_and(
                st_orderingequals(st_normalize(st_force2d(part)), st_normalize(st_envelope(part)))), true)""",
        *([codes] if codes is not None else []), timeout=A_DAY,
    )  # fmt: skip
    return {row["code"]: [Rectangle(*corners) for corners in row["corners"] or ()] for row in rows}


async def collections(conn: Connection) -> dict[str, int]:
    """Return the keys of all collections by their names."""
    return {row["id"]: row["key"] for row in await conn.fetch("SELECT id, key::int4 FROM pgstac.collections")}


async def slots(conn: Connection) -> list[tuple[str, str, int]]:
    """Return which place of `codes` holds which property: (collection, property, place); -1 where it was lost."""
    rows = await conn.fetch(
        """SELECT collection, property, slot FROM fedstac.facet_slot
           UNION ALL SELECT collection, property, -1 FROM fedstac.facet_lost"""
    )
    return [(row["collection"], row["property"], row["slot"]) for row in rows]


# --- what conditions are of a dictionary's entries ---


async def truths(
    conn: Reader, dictionary: tuple[str, str], predicates: Sequence[Any], codes: Sequence[int]
) -> dict[int, list[bool | None]]:
    """Return what each filter is of each entry of a dictionary, by code; code 0 is an item without the property.

    dictionary: (TERM, property), (FOOTPRINT, ""), (COLLECTION, "") or ("latest" or "retracted", "").
    """
    tests = ", ".join(f"({conditions.predicate(predicate)})" for predicate in predicates)
    parameters = () if dictionary[0] in FLAGS else (codes,)
    with search.for_the_caller():
        rows = await conn.fetch(
            f"SELECT code, ARRAY[{tests}]::bool[] AS truths FROM ({_entries(*dictionary)}) items"
            f" (code, {VALUES.get(dictionary[0], 'content')})",
            *parameters,
        )
    return {row["code"]: row["truths"] for row in rows}


def _entries(kind: str, name: str) -> str:
    """Return SQL for the entries of a dictionary, each with the columns of an item that its filters read."""
    match kind:
        case "term":
            return f"""SELECT code, content FROM fedstac.term WHERE facet = {conditions.literal(name)}
                       AND code = ANY ($1::int4[]) UNION ALL SELECT 0, '{{"properties": {{}}}}'"""
        case "footprint":
            return """SELECT code, geometry FROM fedstac.footprint WHERE code = ANY ($1::int4[])
                      UNION ALL SELECT 0, NULL"""
        case "collection":
            return "SELECT key::int4, id FROM pgstac.collections WHERE key::int4 = ANY ($1::int4[])"
        case _:
            values = ((code, orjson.dumps({"properties": {kind: bool(code)}}).decode()) for code in (0, 1))
            return "VALUES " + ", ".join(f"({code}, {conditions.literal(text)}::jsonb)" for code, text in values)


async def ranks(conn: Reader, name: str, codes: Sequence[int]) -> dict[int, int | None]:
    """Return the place of each term of a property in its order; None for null, which comes after all others."""
    value, _ = conditions.column_or_path(name)
    rows = await conn.fetch(
        f"""SELECT code, CASE WHEN value IS NOT NULL THEN dense_rank() OVER (ORDER BY value) END AS rank
            FROM (SELECT code, {value} AS value FROM fedstac.term
                  WHERE facet = {conditions.literal(name)} AND code = ANY ($1::int4[])) v""",
        codes,
    )  # fmt: skip
    return {row["code"]: row["rank"] for row in rows}


# --- datasets by their numbers ---


async def numbers(conn: Reader, collections: Sequence[str], ids: Sequence[str]) -> dict[str, list[int]]:
    """Return the numbers of datasets by id, in these collections."""
    rows = await conn.fetch(
        "SELECT id, n FROM fedstac.record WHERE collection = ANY ($1::text[]) AND id = ANY ($2::text[])",
        collections, ids,
    )  # fmt: skip
    by_id: dict[str, list[int]] = {}
    for row in rows:
        by_id.setdefault(row["id"], []).append(row["n"])
    return by_id


async def matching(conn: Reader, where: str, among: Sequence[int]) -> list[int]:
    """Return those of the numbers whose datasets meet the conditions."""
    with search.for_the_caller():
        rows = await conn.fetch(
            f"""SELECT n FROM (SELECT r.n, i.* FROM unnest($1::bigint[]) u (n) JOIN fedstac.record r USING (n)
                               JOIN pgstac.items i ON i.collection = r.collection AND i.id = r.id) items
                WHERE {where}""",
            among,
        )
    return [row["n"] for row in rows]


async def names(conn: Reader, of: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return collection and id of datasets by their numbers."""
    rows = await conn.fetch("SELECT n, collection, id FROM fedstac.record WHERE n = ANY ($1::bigint[])", of)
    return {row["n"]: (row["collection"], row["id"]) for row in rows}


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """A dataset of a page, the transaction that last changed its row, and the bytes of the documents up to its own."""

    number: int
    changed: int
    through: int
    item: ServedItem


async def documents(conn: Reader, of: Sequence[int]) -> list[DatasetRow]:
    """Return datasets in the order of these numbers, without hidden ones; of large ones only the first few."""
    rows = await conn.fetch(
        f"""SELECT n, changed, through, {STATE_COLUMNS.replace("r.", "")} FROM (
                SELECT u.n, u.place, f.changed::text::bigint AS changed, {STATE_COLUMNS},
                       sum(octet_length(r.document)) OVER (ORDER BY u.place) AS through
                FROM unnest($1::bigint[]) WITH ORDINALITY u (n, place) JOIN fedstac.record r USING (n)
                JOIN fedstac.facet f USING (n) WHERE r.state IN ('published', 'retracted')
                  AND r.access <> 'private') sized
            WHERE through - octet_length(document) < {PAGE_BYTES} ORDER BY place""",
        of,
    )
    return [DatasetRow(row["n"], row["changed"], row["through"], search.from_row(row)) for row in rows]
