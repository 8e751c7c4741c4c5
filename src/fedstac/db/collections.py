"""Collections: stored as each origin wrote them. One of the documents is shown, and pgstac has it.

Several publishing nodes may have the same collection, a project that they share. The document that is shown
follows from the announcements, in whatever order they came: of the origins that have the collection, the first by name.

One transaction at a time writes collections (`hold`): pgstac's upkeep of partitions reads the partitions of all
collections, and fails on those that other transactions are just making.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fedstac.db import conditions, words
from fedstac.db.connections import Connection, Reader, Row
from fedstac.db.search import for_the_caller
from fedstac.domain.events import CollectionEvent
from fedstac.domain.visibility import Visibility

COLUMNS = "id, origin, epoch, seq, document, digest, updated"
PAGE_BYTES = 4 << 20  # of the documents of a page
WIDE = "tstzrange('-infinity', 'infinity', '[]')"  # bounds of a partition that never have to move


@dataclass(frozen=True, slots=True)
class CollectionState:
    """A collection as one origin has it; document None: deleted."""

    id: str
    origin: str
    epoch: int
    seq: int
    document: str | None
    digest: bytes
    updated: datetime


def _from_row(row: Row) -> CollectionState:
    return CollectionState(**dict(row))


async def hold(conn: Connection) -> None:
    """Let no other transaction write collections until this one ends. Take it before the locks of any dataset."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtext('fedstac.collection'))")


async def lock(conn: Connection, collection: str) -> list[CollectionState]:
    """Lock a collection until the transaction ends; return what each origin announced of it, deletions too."""
    await hold(conn)
    rows = await conn.fetch(f"SELECT {COLUMNS} FROM fedstac.collection WHERE id = $1 ORDER BY origin", collection)
    return [_from_row(row) for row in rows]


async def get(conn: Reader, collection: str) -> CollectionState | None:
    """Return the collection as it is shown; None where there is none."""
    row = await conn.fetchrow(
        f"""SELECT {COLUMNS} FROM fedstac.collection WHERE id = $1 AND document IS NOT NULL
            ORDER BY origin COLLATE "C" LIMIT 1""",
        collection,
    )
    return _from_row(row) if row else None


async def was_deleted(conn: Connection, collection: str, origin: str) -> bool:
    """Return whether an origin had a collection and deleted it."""
    return bool(await conn.fetchval(
        "SELECT EXISTS (SELECT FROM fedstac.collection WHERE id = $1 AND origin = $2 AND document IS NULL)",
        collection, origin,
    ))  # fmt: skip


async def every(conn: Connection) -> list[CollectionState]:
    """Return all collections as they are shown, by id."""
    rows = await conn.fetch(
        f"""SELECT DISTINCT ON (id) {COLUMNS} FROM fedstac.collection
            WHERE document IS NOT NULL ORDER BY id, origin COLLATE "C" """
    )
    return [_from_row(row) for row in rows]


async def titles(conn: Connection) -> dict[str, str | None]:
    """Return the title of each collection that is shown, by id; None where its document has none."""
    rows = await conn.fetch(
        f"""SELECT id, document::jsonb ->> 'title' AS title FROM (
                SELECT DISTINCT ON (id) {COLUMNS} FROM fedstac.collection
                WHERE document IS NOT NULL ORDER BY id, origin COLLATE "C") c"""
    )
    return {row["id"]: row["title"] for row in rows}


async def names(conn: Reader) -> list[str]:
    """Return the ids of the collections that are shown."""
    rows = await conn.fetch("SELECT DISTINCT id FROM fedstac.collection WHERE document IS NOT NULL ORDER BY id")
    return [row["id"] for row in rows]


def has_words(expression: Any) -> str:
    """Return SQL that tests the plain text of a collection of SEARCHED for a free text."""
    return words.predicate(expression, lambda args: f"(strpos(words, {conditions.literal(f' {args[0]} ')}) > 0)")


class PlaceIsGone(Exception):
    """A page cannot go on: the collection that it would begin behind is not found any more."""


@dataclass(frozen=True, slots=True)
class CollectionSearch:
    """Conditions and order of a list of collections, as SQL over the columns of SEARCHED."""

    where: str
    order: str
    is_by_id: bool  # the order is that of the ids and of nothing else
    is_descending: bool = False


@dataclass(frozen=True, slots=True)
class CollectionPage:
    """Some of the collections by id, how many there are, and whether there are others before and behind these."""

    collections: tuple[CollectionState, ...]
    total: int
    has_before: bool
    has_behind: bool


# A collection with the columns that conditions.py and search.py know of an item: its members are its properties.
SEARCHED = """SELECT s.*, s.id AS collection, jsonb_build_object('properties', (s.json - '{created,updated}'::text[])
                       || jsonb_strip_nulls(jsonb_build_object('title', coalesce(s.json -> 'title', to_jsonb(s.id)),
                          'created', fedstac.moment(s.json -> 'created'), 'updated', s.updated))) AS content,
                   fedstac.footprint_of_collection(s.json) AS geometry,
                   coalesce(fedstac.moment(s.json #> '{extent,temporal,interval,0,0}'), '-infinity') AS datetime,
                   coalesce(fedstac.moment(s.json #> '{extent,temporal,interval,0,1}'), 'infinity') AS end_datetime,
                   fedstac.plain(concat_ws(' . ', s.id, s.json ->> 'title', s.json ->> 'description',
                                 s.json ->> 'keywords')) AS words
            FROM (SELECT *, document::jsonb AS json FROM shown) s"""


async def page(
    conn: Connection, *, after: str | None, before: str | None, limit: int, search: CollectionSearch | None = None
) -> CollectionPage:
    """Return collections as they are shown: those behind the id `after`, or the last ones before `before`.

    A page has at most PAGE_BYTES of documents and the one that goes beyond. Without a search it has all of them, by id.
    PlaceIsGone where what the search finds has the collection no more that the page would begin behind.
    """
    anchor, by_id = after if before is None else before, search is None or search.is_by_id
    where, order = ("TRUE", "id") if search is None else (search.where, search.order)
    beyond = f"n {'>' if before is None else '<'} (SELECT n FROM numbered WHERE id = $1)"
    if by_id:  # the place stays where it was, whether the collection is still there or not
        beyond = f"id {'>' if (before is None) == (search is None or not search.is_descending) else '<'} $1"
    numbered = f"""
        WITH shown AS (
            SELECT DISTINCT ON (id) {COLUMNS} FROM fedstac.collection
            WHERE document IS NOT NULL ORDER BY id, origin COLLATE "C"),
        searched AS ({SEARCHED if search else "SELECT * FROM shown"}),
        numbered AS MATERIALIZED (
            SELECT {COLUMNS}, row_number() OVER (ORDER BY {order}) AS n, count(*) OVER () AS total
            FROM searched WHERE {where})"""
    with for_the_caller():
        rows = await conn.fetch(
            f"""{numbered},
            picked AS (
                SELECT *, {"n" if before is None else "-n"} AS place FROM numbered
                WHERE $1::text IS NULL OR {beyond} ORDER BY place LIMIT $2),
            sized AS (
                SELECT *, sum(octet_length(document)) OVER (ORDER BY place) - octet_length(document) AS bytes_before
                FROM picked)
            SELECT {COLUMNS}, n, total FROM sized WHERE bytes_before < {PAGE_BYTES} ORDER BY n""",
            anchor, limit,
        )  # fmt: skip
        if not rows:
            [all_of_them] = await conn.fetch(
                f"{numbered} SELECT count(*) AS total, coalesce(bool_or(id = $1), false) AS has_anchor FROM numbered",
                anchor,
            )
    if not rows:
        if anchor is not None and not by_id and not all_of_them["has_anchor"]:
            raise PlaceIsGone(anchor)
        return CollectionPage((), all_of_them["total"], has_before=False, has_behind=False)
    states = tuple(CollectionState(**{name: row[name] for name in COLUMNS.split(", ")}) for row in rows)
    total = rows[0]["total"]
    return CollectionPage(states, total, has_before=rows[0]["n"] > 1, has_behind=rows[-1]["n"] < total)


async def of_origin(conn: Connection, origin: str) -> list[CollectionState]:
    """Return an origin's states of its collections, deletions too."""
    rows = await conn.fetch(f"SELECT {COLUMNS} FROM fedstac.collection WHERE origin = $1 ORDER BY id", origin)
    return [_from_row(row) for row in rows]


async def store(conn: Connection, state: CollectionState) -> None:
    """Store an origin's state of a collection, which is locked. Of a deletion the tombstone stays."""
    before = await get(conn, state.id)
    await conn.execute(
        """INSERT INTO fedstac.collection (id, origin, epoch, seq, document, digest, updated)
           VALUES ($1, $2, $3, $4, $5, $6, $7)
           ON CONFLICT (id, origin) DO UPDATE SET epoch = EXCLUDED.epoch, seq = EXCLUDED.seq,
                  document = EXCLUDED.document, digest = EXCLUDED.digest, updated = EXCLUDED.updated""",
        state.id, state.origin, state.epoch, state.seq, state.document, state.digest, state.updated,
    )  # fmt: skip
    await _show(conn, state.id, before)


async def erase(conn: Connection, collection: str, origin: str) -> None:
    """Remove at a consumer an origin's state of a collection, as if it had never been announced."""
    await lock(conn, collection)
    before = await get(conn, collection)
    await conn.execute("DELETE FROM fedstac.collection WHERE id = $1 AND origin = $2", collection, origin)
    await _show(conn, collection, before)


async def _show(conn: Connection, collection: str, before: CollectionState | None) -> None:
    """Give pgstac the document that is shown now. The partition goes with the last origin and the last dataset."""
    document = await get(conn, collection)
    if document is None:
        if await hold_empty(conn, collection):
            await conn.execute("SELECT pgstac.delete_collection(id) FROM pgstac.collections WHERE id = $1", collection)
    elif before is None or before.document != document.document:
        await conn.execute("SELECT pgstac.upsert_collection($1::text::jsonb)", document.document)
        await conn.execute(f"SELECT pgstac.check_partition($1, {WIDE}, {WIDE})", collection)
        await conn.execute("SELECT fedstac.tune_partition($1)", collection)


async def hold_closed(conn: Connection, collection: str) -> None:
    """Wait for whoever just publishes into a collection; nobody else begins until this transaction ends."""
    await conn.execute("SELECT 1 FROM pgstac.collections WHERE id = $1 FOR UPDATE", collection)


async def hold_empty(conn: Connection, collection: str) -> bool:
    """Tell whether a collection has no dataset; nobody can publish into it until this transaction ends."""
    await hold_closed(conn, collection)
    has_datasets = await conn.fetchval(
        "SELECT EXISTS (SELECT 1 FROM fedstac.record WHERE collection = $1 AND document IS NOT NULL)", collection
    )
    return not has_datasets


OF_TALLY = "SELECT collection, records AS n FROM fedstac.tally"
OF_RETRACTED = """SELECT collection, {} FROM fedstac.record
                  WHERE state = 'retracted' AND access <> 'private' GROUP BY collection"""
COUNTED = {
    Visibility.INCLUDE: OF_TALLY,
    Visibility.EXCLUDE: f"{OF_TALLY} UNION ALL {OF_RETRACTED.format('-count(*)')}",
    Visibility.ONLY: OF_RETRACTED.format("count(*) AS n"),
}


async def totals(conn: Connection, retracted: Visibility) -> dict[str, int]:
    """Count the datasets that searches find in each collection. One that is marked for deletion is not counted."""
    rows = await conn.fetch(
        f"SELECT collection, sum(n)::bigint AS n FROM ({COUNTED[retracted]}) counted GROUP BY collection"
    )
    return {row["collection"]: row["n"] for row in rows}


async def sum_up(conn: Connection) -> None:
    """Sum up the tally: one row a collection instead of one a write."""
    await conn.execute(
        """WITH taken AS (DELETE FROM fedstac.tally WHERE (SELECT count(*) FROM fedstac.tally) > 500
                          RETURNING collection, records)
           INSERT INTO fedstac.tally (collection, records)
           SELECT collection, sum(records) FROM taken GROUP BY collection"""
    )


async def apply(conn: Connection, event: CollectionEvent) -> bool:
    """Bring a collection to the state that an origin announced; return False where it is as new here, or newer."""
    present = next((state for state in await lock(conn, event.collection) if state.origin == event.origin), None)
    if present and (present.epoch, present.seq) >= (event.epoch, event.seq):
        return False
    now = await conn.fetchval("SELECT clock_timestamp()")
    new = CollectionState(event.collection, event.origin, event.epoch, event.seq, event.document, event.digest, now)
    await store(conn, new)
    return True
