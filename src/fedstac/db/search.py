"""Search: the order, keyset paging and counts, and the stored documents of the page. conditions.py has the WHERE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import asyncpg
import orjson

from fedstac.db import conditions
from fedstac.db.connections import Connection, Reader, Row
from fedstac.domain.errors import BadRequest
from fedstac.domain.policy import Level
from fedstac.domain.visibility import Visibility
from fedstac.runtime.causes import Cause, cause_of

ITEM_COLUMNS = (
    "r.collection, r.id, r.state, r.latest, r.created, r.updated, r.cv_version, r.retraction, r.replicas, r.access"
)
STATE_COLUMNS = f"{ITEM_COLUMNS}, r.document"
PAGE_BYTES = 4 << 20  # of the documents of a page
# SQLSTATE: data exception, program limit, not supported. What is missing (a table, a right) is no searcher's doing.
SEARCHERS_STATES = ("22", "54", "0A000")
POSTGIS_FILES = ("lwgeom", "gserialized", "geography")  # PostGIS has no states of its own: XX000, as for any fault
STATES_FOUND = {
    Visibility.EXCLUDE: ("published",),
    Visibility.INCLUDE: ("published", "retracted"),
    Visibility.ONLY: ("retracted",),
}
MOST_REPLACED = 100  # links from one dataset to those that it replaces
SAMPLE = 250  # datasets from each end of a collection that its properties are learnt from
MOST_SAMPLED_PROPERTIES = 500
LARGEST_SAMPLED = 64 * 1024  # bytes as stored; what is larger is left out


@dataclass(frozen=True, slots=True)
class SortKey:
    """One key of the order; `expression` is SQL for the value of a property."""

    expression: str
    descending: bool
    nullable: bool


@dataclass(frozen=True, slots=True)
class ServedItem:
    """What is needed to serve one dataset."""

    collection: str
    id: str
    state: str
    latest: bool
    created: datetime
    updated: datetime
    cv_version: str | None
    retraction: str | None
    replicas: str | None
    document: str
    access: Level = Level.OPEN
    versions: tuple[str | None, str | None, str | None] = (None, None, None)  # predecessor, successor, latest
    replaced_by: str | None = None  # of a retracted dataset: the one to use instead, if that can be seen
    replaces: tuple[str, ...] = ()  # retracted datasets that name this one as their replacement
    quarantine: str | None = None  # JSON; searches find none that is under quarantine
    texts: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    # as everybody gets it, by the address of the API: written once, however many pages show it

    @property
    def has_hidden_files(self) -> bool:
        """Whether its files are shown to some readers only."""
        return self.state != "published" or self.access is not Level.OPEN

    @property
    def without_mark(self) -> ServedItem:
        """The dataset in the state that a mark for deletion covers, which says who sees its files; else as it is."""
        if self.state != "marked":
            return self
        covered = "quarantined" if self.quarantine is not None else "retracted" if self.retraction else "published"
        return replace(self, state=covered)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A place in an order that a page is beside. It needs no item there: the one that it came from may be gone.

    values: the sort values of the place, as text; in the columns' order, which has other values, as they have them.
    is_before: the page is in front of the place, else behind it.
    includes: an item with just these values is on the page.
    in_memory: it is a place in the order of the columns.
    """

    values: tuple[Any, ...]
    is_before: bool = False
    includes: bool = False
    in_memory: bool = False


@dataclass(frozen=True, slots=True)
class ItemPage:
    """A page of a search; `before` and `after` are the anchors of the pages beside it, where there are some.

    rest: of a large page what comes behind `items`, as `packed` has it; the documents are still to be read.
    in_memory: its places are those of the columns.
    """

    items: tuple[ServedItem, ...]
    before: Anchor | None
    after: Anchor | None
    rest: tuple[bytes, ...] = ()
    in_memory: bool = False


def from_row(row: Row) -> ServedItem:
    return ServedItem(
        row["collection"], row["id"], row["state"], row["latest"], row["created"], row["updated"], row["cv_version"],
        row["retraction"], row["replicas"], row["document"], Level(row["access"]),
    )  # fmt: skip


async def item(
    conn: Connection, collection: str, item_id: str, *, with_private: bool = True
) -> tuple[ServedItem, bytes] | None:
    """Return a dataset as it is served, with links to other versions, and its digest; None where it is not here.

    It may be private: then the caller of this function decides who gets it.
    """
    row = await item_row(conn, collection, item_id, with_private=with_private)
    return item_of(row) if row is not None else None


async def item_row(
    conn: Connection, collection: str, item_id: str, *, with_private: bool, with_marked: bool = False,
    before: tuple[object, ...] | None = None,
) -> Row | None:  # fmt: skip
    """Return a dataset's row, with what others say of it, for `item_of`; None where it is not here.

    For whom no private or marked dataset can be, it is not even read, so that the time tells nothing. No link leads to
    either. before: the row as it was, of `without_document`; the document is left out where the same transaction wrote
    it.
    """
    return await conn.fetchrow(
        f"""SELECT r.xmin AS version, r.n, {ITEM_COLUMNS}, r.digest, r.quarantine,
                   (SELECT o.id FROM fedstac.record o WHERE o.lineage = r.lineage AND o.version < r.version
                    AND o.state IN ('published', 'retracted') AND o.access <> 'private'
                    ORDER BY o.version DESC LIMIT 1) AS predecessor,
                   (SELECT o.id FROM fedstac.record o WHERE o.lineage = r.lineage AND o.version > r.version
                    AND o.state IN ('published', 'retracted') AND o.access <> 'private'
                    ORDER BY o.version LIMIT 1) AS successor,
                   (SELECT o.id FROM fedstac.record o WHERE o.lineage = r.lineage AND o.latest) AS latest_id,
                   (SELECT o.id FROM fedstac.record o WHERE r.retraction IS NOT NULL AND o.collection = r.collection
                    AND o.id = r.retraction::jsonb->>'replaced_by' AND o.state IN ('published', 'retracted')
                    AND o.access <> 'private'
                   ) AS replaced_by,
                   ARRAY(SELECT o.id FROM fedstac.record o WHERE o.retraction IS NOT NULL
                         AND o.collection = r.collection AND o.retraction::jsonb->>'replaced_by' = r.id
                         AND o.state || '' = 'retracted'  -- not by the index of all retracted ones
                         AND o.access <> 'private'
                         ORDER BY o.id LIMIT {MOST_REPLACED}) AS replaces,
                   CASE WHEN r.xmin = $4::xid THEN NULL ELSE r.document END AS document
            FROM fedstac.record r WHERE r.collection = $1 AND r.id = $2
              AND (r.state IN ('published', 'retracted', 'quarantined') OR ($5 AND r.state = 'marked'))
              AND r.document IS NOT NULL AND ($3 OR r.access <> 'private')""",
        collection, item_id, with_private, before[0] if before is not None else None, with_marked,
    )  # fmt: skip


def without_document(row: Row) -> tuple[object, ...]:
    """Return all of a dataset's row but the document: first the transaction that wrote it."""
    values: tuple[object, ...] = row[:-1]
    return values


def item_of(row: Row) -> tuple[ServedItem, bytes]:
    """Return the dataset that a row with its document is of, and its digest."""
    versions = (row["predecessor"], row["successor"], row["latest_id"])
    linked = replace(
        from_row(row), versions=versions, replaced_by=row["replaced_by"], replaces=tuple(row["replaces"]),
        quarantine=row["quarantine"],
    )  # fmt: skip
    return linked, row["digest"]


def order(fields: Sequence[tuple[str, bool]]) -> tuple[SortKey, ...]:
    """Return the sort keys of properties, given as (name, descending); ends with collection and id: the order is total.

    Values are compared as JSON: numbers by value; collections by their characters, as the columns compare them.
    """
    names = {name for name, _ in fields}
    count = len(fields)
    fields = [*fields, *((key, fields[-1][1]) for key in ("collection", "id") if key not in names)]
    keys = []
    for place, (name, descending) in enumerate(fields):
        expression, nullable = conditions.column_or_path(name)
        if name == "collection" and place < count:  # as the last keys they follow the index
            expression += ' COLLATE "C"'
        keys.append(SortKey(expression, descending, nullable))
    return tuple(keys)


async def page(conn: Connection, where: str, keys: Sequence[SortKey], limit: int, anchor: Anchor | None) -> ItemPage:
    """Return the documents of one page; of large ones only the first few."""
    way = _way(keys, anchor)
    names = ", ".join(f"k{n}" for n in range(len(keys)))
    statement = f"""
        WITH page AS MATERIALIZED (
            SELECT collection, id, {way.columns} FROM pgstac.items
            WHERE ({where}){way.condition} ORDER BY {way.order} LIMIT {limit + 1}),
        numbered AS (SELECT *, row_number() OVER () AS n, count(*) OVER () AS matching FROM page),
        sized AS (
            SELECT {STATE_COLUMNS}, p.*, sum(octet_length(r.document)) OVER (ORDER BY p.n) - octet_length(r.document)
                   AS before
            FROM (SELECT n, matching, collection AS k_collection, id AS k_id, {names} FROM numbered) p
            JOIN fedstac.record r ON r.collection = p.k_collection AND r.id = p.k_id)
        SELECT {STATE_COLUMNS.replace("r.", "")}, n, matching, {names} FROM sized
        WHERE n <= {limit} AND before < {PAGE_BYTES} ORDER BY n"""
    with for_the_caller():
        rows = await conn.fetch(statement)
    has_more = bool(rows) and rows[-1]["matching"] > rows[-1]["n"]
    if _is_before(anchor):
        rows.reverse()
    values = [tuple(row[f"k{n}"] for n in range(len(keys))) for row in (rows[:1] + rows[-1:])]
    return ItemPage(tuple(from_row(row) for row in rows), *anchors(values, anchor, has_more=has_more))


async def large_page(
    conn: Connection, where: str, keys: Sequence[SortKey], limit: int, anchor: Anchor | None
) -> ItemPage:
    """Return a page none of whose documents is read yet: all of it is `rest`."""
    way = _way(keys, anchor)
    statement = f"""SELECT collection, id, {way.columns} FROM pgstac.items
                    WHERE ({where}){way.condition} ORDER BY {way.order} LIMIT {limit + 1}"""
    with for_the_caller():
        rows = await conn.fetch(statement)
    has_more = len(rows) > limit
    places = [packed(*row) for row in rows[:limit]]
    if _is_before(anchor):
        places.reverse()
    values = [unpacked(place)[1] for place in (places[:1] + places[-1:])]
    return ItemPage((), *anchors(values, anchor, has_more=has_more), tuple(places))


def packed(collection: str, id: str, *values: str | int | None) -> bytes:
    """Return the place of an item with its sort values, in a tenth of the memory of a row."""
    return orjson.dumps([collection, id, *values])


def unpacked(place: bytes) -> tuple[tuple[str, str], tuple[Any, ...]]:
    """Return the (collection, id) and the sort values of a packed place."""
    collection, id, *values = orjson.loads(place)
    return (collection, id), tuple(values)


async def read(
    conn: Connection, keys: Sequence[tuple[str, str]], visibility: Visibility, *, most_bytes: int
) -> tuple[list[ServedItem], int]:
    """Return datasets by (collection, id), and how many of the keys are done with: the next call goes on behind them.

    What the search does not find any more is left out. The documents have `most_bytes` and the one that goes beyond.
    """
    rows = await conn.fetch(
        f"""WITH sized AS (
                SELECT p.n, {STATE_COLUMNS}, count(*) OVER () AS there,
                       sum(octet_length(r.document)) OVER (ORDER BY p.n) - octet_length(r.document) AS before
                FROM unnest($1::text[], $2::text[]) WITH ORDINALITY p (collection, id, n)
                JOIN fedstac.record r ON r.collection = p.collection AND r.id = p.id AND r.state = ANY ($3::text[])
                     AND r.access <> 'private')
            SELECT {STATE_COLUMNS.replace("r.", "")}, n, there FROM sized WHERE before < $4 ORDER BY n""",
        [collection for collection, _ in keys], [id for _, id in keys], STATES_FOUND[visibility], most_bytes,
    )  # fmt: skip
    is_cut = bool(rows) and rows[0]["there"] > len(rows)
    return [from_row(row) for row in rows], rows[-1]["n"] if is_cut else len(keys)


@dataclass(frozen=True, slots=True)
class Way:
    """SQL for how a page is read: the columns of its sort values, what its anchor asks for, and the order."""

    columns: str
    condition: str
    order: str


def _way(keys: Sequence[SortKey], anchor: Anchor | None) -> Way:
    columns = ", ".join(f"({key.expression})::text AS k{n}" for n, key in enumerate(keys))
    order = ", ".join(
        f"{key.expression} {'DESC' if key.descending else 'ASC'}"
        for key in (_reversed(keys) if _is_before(anchor) else keys)
    )
    return Way(columns, f" AND {_beside(keys, anchor)}" if anchor else "", order)


def _is_before(anchor: Anchor | None) -> bool:
    return anchor is not None and anchor.is_before


def _reversed(keys: Sequence[SortKey]) -> list[SortKey]:
    return [replace(key, descending=not key.descending) for key in keys]


def _beside(keys: Sequence[SortKey], anchor: Anchor) -> str:
    """Return SQL for "is on that side of the anchor"."""
    if anchor.includes:  # it is not on the other side
        return f"({_beyond(keys if anchor.is_before else _reversed(keys), anchor.values)} IS NOT TRUE)"
    return _beyond(_reversed(keys) if anchor.is_before else keys, anchor.values)


def anchors(
    values: Sequence[tuple[Any, ...]], anchor: Anchor | None, *, has_more: bool, in_memory: bool = False
) -> tuple[Anchor | None, Anchor | None]:
    """Return the anchors of the pages before and after one with these first and last sort values.

    has_more: whether there is something beyond it, on the way from its own anchor.
    """
    if not values:
        if anchor is None:
            return None, None
        other_side = replace(anchor, is_before=not anchor.is_before, includes=not anchor.includes)
        return (None, other_side) if anchor.is_before else (other_side, None)
    is_before = _is_before(anchor)
    has_before, has_after = (has_more, True) if is_before else (anchor is not None, has_more)
    before, after = Anchor(values[0], is_before=True, in_memory=in_memory), Anchor(values[-1], in_memory=in_memory)
    return before if has_before else None, after if has_after else None


def _beyond(keys: Sequence[SortKey], after: Sequence[str | None]) -> str:
    """Return SQL for "comes after these values", in PostgreSQL's order of nulls: last ascending, first descending."""
    if len({key.descending for key in keys}) == 1 and not any(key.nullable for key in keys):
        names = ", ".join(key.expression for key in keys)
        values = ", ".join(_literal(value) for value in after)
        return f"({names}) {'<' if keys[0].descending else '>'} ({values})"
    alternatives, equal = [], ""
    for key, value in zip(keys, after, strict=True):
        alternatives.append(f"({equal}{_past(key, value)})")
        equal += f"{key.expression} {'IS NULL' if value is None else '= ' + _literal(value)} AND "
    return f"({' OR '.join(alternatives)})"


def _past(key: SortKey, value: str | None) -> str:
    if value is None:
        return f"{key.expression} IS NOT NULL" if key.descending else "false"
    if key.descending or not key.nullable:
        return f"{key.expression} {'<' if key.descending else '>'} {_literal(value)}"
    return f"({key.expression} > {_literal(value)} OR {key.expression} IS NULL)"


def _literal(value: str | None) -> str:
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


async def matched(conn: Connection, where: str, exact_to: int) -> tuple[int, bool]:
    """Count the items that a search matches: exactly up to a bound, above it by the planner's estimate.

    Return the number, and whether it is exact.
    """
    with for_the_caller():
        count = await conn.fetchval(
            f"SELECT count(*) FROM (SELECT 1 FROM pgstac.items WHERE {where} LIMIT {exact_to + 1}) bounded"
        )
        if count <= exact_to:
            return count, True
        plan = await conn.fetchval(f"EXPLAIN (FORMAT JSON) SELECT 1 FROM pgstac.items WHERE {where}")
    return max(int(orjson.loads(plan)[0]["Plan"]["Plan Rows"]), count), False


@contextmanager
def for_the_caller() -> Iterator[None]:
    """Turn what the database cannot evaluate into a refusal. Its own words stay out: they may quote a dataset."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if not _is_searchers(error):
            raise
        raise BadRequest(
            "the search cannot be evaluated: it is too complex, or a geometry in it cannot be compared with those of"
            " the datasets; make it simpler"
        ) from error


def _is_searchers(error: asyncpg.PostgresError) -> bool:
    """Tell whether something in the search causes the error."""
    if error.sqlstate == "XX000":
        return str(error.server_source_filename or "").startswith(POSTGIS_FILES)
    return (error.sqlstate or "").startswith(SEARCHERS_STATES) and cause_of(error) is not Cause.CONFLICT


@dataclass(frozen=True, slots=True)
class SampledProperty:
    """A property that datasets of a sample have: the JSON types of its values, and of the first members of lists."""

    name: str
    types: tuple[str, ...]
    member_types: tuple[str, ...]
    moments: bool  # every value is a moment


@dataclass(frozen=True, slots=True)
class PropertySample:
    """What some datasets of a collection have; `ids` are theirs."""

    ids: tuple[str, ...]
    properties: tuple[SampledProperty, ...]


async def sample_of_properties(conn: Reader, collection: str) -> PropertySample:
    """Return the properties of the newest and the oldest datasets of a collection, the most frequent first."""
    rows = await conn.fetch(
        """WITH sample AS MATERIALIZED (
               (SELECT id, content FROM pgstac.items WHERE collection = $1 ORDER BY datetime DESC LIMIT $2)
               UNION ALL (SELECT id, content FROM pgstac.items WHERE collection = $1 ORDER BY datetime LIMIT $2))
           SELECT 0 AS n, '' AS name, coalesce(array_agg(DISTINCT id), '{}') AS types, '{}' AS member_types,
                  false AS moments FROM sample
           UNION ALL
           (SELECT row_number() OVER (ORDER BY count(*) DESC, key), key, array_agg(DISTINCT jsonb_typeof(value)),
                   coalesce(array_agg(DISTINCT jsonb_typeof(value->0))
                            FILTER (WHERE jsonb_typeof(value) = 'array' AND value <> '[]'), '{}'),
                   coalesce(bool_and(value #>> '{}' LIKE '____-__-__%' AND fedstac.moment(value) IS NOT NULL)
                            FILTER (WHERE value <> 'null'), false)
            FROM sample, jsonb_each(content->'properties') WHERE pg_column_size(content) < $4
            GROUP BY key ORDER BY 1 LIMIT $3)
           ORDER BY n""",
        collection, SAMPLE, MOST_SAMPLED_PROPERTIES, LARGEST_SAMPLED,
    )  # fmt: skip
    ids, *properties = rows
    return PropertySample(tuple(ids["types"]), tuple(
        SampledProperty(row["name"], tuple(row["types"]), tuple(row["member_types"]), row["moments"])
        for row in properties
    ))  # fmt: skip


async def are_shown(conn: Reader, collection: str, ids: Sequence[str]) -> bool:
    """Tell whether searches find all of these datasets."""
    shown: bool = await conn.fetchval(
        """SELECT count(*) = cardinality($2::text[]) FROM fedstac.record
           WHERE collection = $1 AND id = ANY ($2::text[]) AND state IN ('published', 'retracted')
             AND access <> 'private'""",
        collection, ids,
    )  # fmt: skip
    return shown
