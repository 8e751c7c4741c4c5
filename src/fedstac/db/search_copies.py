"""Search copies: what pgstac has of the records that searches find, to filter, sort and page, nothing to serve."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import asyncpg
import orjson

from fedstac.db import binary_copy, facets
from fedstac.db.connections import Connection
from fedstac.domain import documents
from fedstac.domain.facets import NODES
from fedstac.domain.model import Change, Draft, Record
from fedstac.domain.policy import Level

MANY: Final = 50  # copies, from which on COPY is less work than a statement
COLUMNS: Final = ("id", "geometry", "collection", "datetime", "end_datetime", "content")
# of a row of COPY: the number of fields and the length of the first; the length of a field; two moments, and the length
# of a jsonb with the version of its format
HEAD, LENGTH, MOMENTS = struct.Struct(">hi"), struct.Struct(">i"), struct.Struct(">iqiqiB")


async def write(conn: Connection, changes: Sequence[Change], leaves: Mapping[str, str]) -> None:
    """Bring pgstac's lean copies up to date, straight in the collections' leaf partitions.

    pgstac's own create_items takes a lock per collection until commit, and rebuilds partition bounds (performance.md).
    """
    by_collection: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        by_collection[change.after.collection].append(change)
    for collection, group in sorted(by_collection.items()):
        leaf = leaves.get(collection)
        if leaf is None:  # the collection is deleted: tombstones only
            continue
        searchable = [change for change in group if change.after.is_found]
        await _insert_copies(conn, leaf, [change for change in searchable if change.draft])
        await _update_copies(conn, leaf, [change for change in searchable if not change.draft])
        hidden_ids = [change.after.id for change in group if not change.after.is_found]
        if hidden_ids:
            await conn.execute(f"DELETE FROM {leaf} WHERE id = ANY($1::text[])", hidden_ids)


async def _insert_copies(conn: Connection, leaf: str, changes: Sequence[Change]) -> None:
    """Write whole copies: those of many new records by COPY, the others and those with words by a statement.

    Only SQL knows how words for free text are written.
    """
    new: list[tuple[Draft, Record]] = []
    others: list[tuple[Draft, Record]] = []
    for change in changes:
        if change.draft is not None:
            is_plain = change.before is None and not _may_have_words(change.draft, change.after)
            (new if is_plain else others).append((change.draft, change.after))
    if len(new) < MANY or not await _copy(conn, leaf, new):
        others += new
    if others:
        await _put_copies(conn, leaf, others)


async def _copy(conn: Connection, leaf: str, copies: Sequence[tuple[Draft, Record]]) -> bool:
    """Write copies by COPY. Return False, with nothing written, where one is there whose record was lost."""
    schema, table = leaf.split(".")
    try:
        async with conn.transaction():
            await binary_copy.write(conn, schema, table, COLUMNS, [_row(draft, record) for draft, record in copies])
    except asyncpg.UniqueViolationError:
        return False
    return True


def _may_have_words(draft: Draft, record: Record) -> bool:
    """Tell whether fedstac.words_of may return words. Of most datasets the id and the facets tell everything."""
    properties = draft.search.properties
    if record.cv_version is None or '"description":' in properties or '"keywords":' in properties:
        return True
    _, title, rest = properties.partition('"title":')
    if not title:
        return False
    text = rest[1:].partition('"')[0]
    return '"title":' in rest or rest[0] != '"' or "\\" in text or not draft.id.startswith(text)


def _row(draft: Draft, record: Record) -> bytes:
    search = draft.search
    id, collection, content = draft.id.encode(), draft.collection.encode(), _content(draft, record).encode()
    shape = facets.ewkb(search.geometry)
    starts, ends = binary_copy.microseconds(search.start), binary_copy.microseconds(search.end)
    return b"".join((
        HEAD.pack(len(COLUMNS), len(id)), id, LENGTH.pack(len(shape)), shape,
        LENGTH.pack(len(collection)), collection, MOMENTS.pack(8, starts, 8, ends, len(content) + 1, 1), content,
    ))  # fmt: skip


async def _put_copies(conn: Connection, leaf: str, copies: Sequence[tuple[Draft, Record]]) -> None:
    await conn.execute(
        f"""INSERT INTO {leaf} (id, geometry, collection, datetime, end_datetime, content, private)
            SELECT c.id, ST_GeomFromEWKB(c.geometry), $2, c.starts::timestamptz, c.ends::timestamptz, d.content,
                   fedstac.words_of(c.id, d.content -> 'properties', c.has_vocabulary)
            FROM unnest($1::text[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::boolean[])
                 c (id, geometry, starts, ends, content, has_vocabulary),
                 LATERAL (SELECT c.content::jsonb AS content OFFSET 0) d
            ON CONFLICT (id) DO UPDATE SET geometry = EXCLUDED.geometry, datetime = EXCLUDED.datetime,
                   end_datetime = EXCLUDED.end_datetime, content = EXCLUDED.content, private = EXCLUDED.private""",
        [draft.id for draft, _ in copies], copies[0][0].collection,
        [facets.ewkb(draft.search.geometry) for draft, _ in copies], [draft.search.start for draft, _ in copies],
        [draft.search.end for draft, _ in copies],
        [_content(draft, record) for draft, record in copies],
        [record.cv_version is not None for _, record in copies],
    )  # fmt: skip


def _content(draft: Draft, record: Record) -> str:
    """Return the lean copy: the publisher's properties with the nodes that have files and the server's state."""
    nodes = draft.search.facets.get(NODES)
    properties, state = draft.search.properties, _state(record, {} if nodes is None else {NODES: nodes})
    return f'{{"properties":{properties[:-1]}{"," if len(properties) > 2 else ""}{state[1:]}}}'


async def _update_copies(conn: Connection, leaf: str, changes: Sequence[Change]) -> None:
    if not changes:
        return
    await conn.execute(
        f"""UPDATE {leaf} i
            SET content = jsonb_set(i.content, '{{properties}}',
                                    (i.content->'properties') - 'fedstac:retraction' || c.state::jsonb)
            FROM unnest($1::text[], $2::text[]) c (id, state) WHERE i.id = c.id""",
        [change.after.id for change in changes], [_state(change.after) for change in changes],
    )  # fmt: skip


def _state(record: Record, more: Mapping[str, object] = MappingProxyType({})) -> str:
    level = {documents.ACCESS: record.access} if record.access is not Level.OPEN else {}
    return orjson.dumps({**documents.state_of(record), **more, **level}).decode()
