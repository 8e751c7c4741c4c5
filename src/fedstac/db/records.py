"""Lineages and records, and their search copies in pgstac."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import orjson

from fedstac.db.connections import Connection, Row
from fedstac.domain import documents
from fedstac.domain.model import Change, Lineage, Record, State

COLUMNS = """collection, id, lineage, origin, version, state, latest, claims_latest, epoch, seq, created, updated,
             document_digest, files_digest, publisher, cv_version"""


async def lock(conn: Connection, keys: Sequence[str], origin: str) -> dict[str, Lineage]:
    """Locks lineages, new ones made ours, in the order of their keys, so that batches cannot deadlock.

    Reading what they hold is for the next statement: one that locks and reads sees rows as they were before the lock.
    """
    ordered = sorted(set(keys))
    await conn.execute(
        """INSERT INTO fedstac.lineage (key, origin) SELECT key, $2 FROM unnest($1::text[]) key ORDER BY key
           ON CONFLICT DO NOTHING""",
        ordered, origin,
    )  # fmt: skip
    rows = await conn.fetch(
        "SELECT key, origin, seq FROM fedstac.lineage WHERE key = ANY($1::text[]) ORDER BY key FOR UPDATE", ordered
    )
    return {row["key"]: Lineage(row["key"], row["origin"], row["seq"], {}) for row in rows}


async def load(conn: Connection, lineages: Mapping[str, Lineage], ids: Sequence[str]) -> dict[str, Lineage]:
    """The lineages with the heads of all their versions; documents of the latest ones and of `ids`."""
    rows = await conn.fetch(
        f"""SELECT {COLUMNS}, CASE WHEN latest OR id = ANY($2::text[]) THEN document END AS document
            FROM fedstac.record WHERE lineage = ANY($1::text[])""",  # noqa: S608 -- a constant
        list(lineages),
        list(ids),
    )
    records: dict[str, dict[str, Record]] = defaultdict(dict)
    for row in rows:
        records[row["lineage"]][row["id"]] = from_row(row)
    return {key: Lineage(key, held.origin, held.seq, records.get(key, {})) for key, held in lineages.items()}


def from_row(row: Row) -> Record:
    """A record from a row of COLUMNS and `document`."""
    values = dict(row)
    return Record(**{**values, "state": State(values["state"])})


async def write(conn: Connection, changes: Iterable[Change]) -> None:
    """Stores what the changes lead to: each record once, in its last state, those that lose `latest` first."""
    last: dict[tuple[str, str], Change] = {}
    for change in changes:
        earlier = last.get((change.after.collection, change.after.id))
        draft = change.draft or (earlier.draft if earlier else None)
        before = earlier.before if earlier else change.before
        last[change.after.collection, change.after.id] = Change(change.event_type, before, change.after, draft)
    await _upsert(conn, [change for change in last.values() if not change.after.latest])
    await _upsert(conn, [change for change in last.values() if change.after.latest])
    await _count(conn, last.values())
    await _index(conn, list(last.values()))


async def _upsert(conn: Connection, changes: Sequence[Change]) -> None:
    if not changes:
        return
    records = [change.after for change in changes]
    await conn.execute(
        """INSERT INTO fedstac.record (collection, id, lineage, origin, version, state, latest, claims_latest, epoch,
                seq, created, updated, document, document_digest, files_digest, digest, publisher, cv_version)
           SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bool[],
                $8::bool[], $9::bigint[], $10::bigint[], $11::timestamptz[], $12::timestamptz[], $13::text[],
                $14::bytea[], $15::bytea[], $16::bytea[], $17::text[], $18::text[])
           ON CONFLICT (collection, id) DO UPDATE SET
                state = EXCLUDED.state, latest = EXCLUDED.latest, claims_latest = EXCLUDED.claims_latest,
                epoch = EXCLUDED.epoch, seq = EXCLUDED.seq, created = EXCLUDED.created, updated = EXCLUDED.updated,
                document = EXCLUDED.document, document_digest = EXCLUDED.document_digest,
                files_digest = EXCLUDED.files_digest, digest = EXCLUDED.digest, publisher = EXCLUDED.publisher,
                cv_version = EXCLUDED.cv_version""",
        [r.collection for r in records], [r.id for r in records], [r.lineage for r in records],
        [r.origin for r in records], [r.version for r in records], [r.state for r in records],
        [r.latest for r in records], [r.claims_latest for r in records], [r.epoch for r in records],
        [r.seq for r in records], [r.created for r in records], [r.updated for r in records],
        [r.document for r in records], [r.document_digest for r in records], [r.files_digest for r in records],
        [r.digest for r in records], [r.publisher for r in records], [r.cv_version for r in records],
    )  # fmt: skip


async def advance(conn: Connection, seqs: Mapping[str, int]) -> None:
    """Notes how many events the lineages have had."""
    await conn.execute(
        """UPDATE fedstac.lineage l SET seq = s.seq FROM unnest($1::text[], $2::bigint[]) s (key, seq)
           WHERE l.key = s.key""",
        list(seqs), list(seqs.values()),
    )  # fmt: skip


def _exists(record: Record | None) -> bool:
    return record is not None and record.document is not None


async def _count(conn: Connection, changes: Iterable[Change]) -> None:
    tally: dict[str, int] = defaultdict(int)
    for change in changes:
        tally[change.after.collection] += _exists(change.after) - (change.before is not None)
    tally = {collection: count for collection, count in tally.items() if count}
    if tally:
        await conn.execute(
            "INSERT INTO fedstac.tally (collection, records) SELECT * FROM unnest($1::text[], $2::bigint[])",
            list(tally), list(tally.values()),
        )  # fmt: skip


async def _index(conn: Connection, changes: Sequence[Change]) -> None:
    """Brings pgstac's lean copies up to date, straight in the collections' leaf partitions.

    pgstac's own create_items takes a lock per collection until commit, and rebuilds partition bounds (performance.md).
    """
    by_collection: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        by_collection[change.after.collection].append(change)
    leaves = await hold_leaves(conn, sorted(by_collection))
    for collection, group in sorted(by_collection.items()):
        leaf = leaves[collection]
        await _insert_copies(conn, leaf, [change for change in group if change.draft])
        await _update_copies(conn, leaf, [change for change in group if not change.draft and _exists(change.after)])
        gone = [change.after.id for change in group if not _exists(change.after)]
        if gone:
            await conn.execute(f"DELETE FROM {leaf} WHERE id = ANY($1::text[])", gone)  # noqa: S608 -- from a number


async def hold_leaves(conn: Connection, collections: Sequence[str]) -> dict[str, str]:
    """The leaf partitions of collections, which cannot be deleted until this transaction ends."""
    rows = await conn.fetch(
        "SELECT id, key FROM pgstac.collections WHERE id = ANY($1::text[]) ORDER BY id FOR KEY SHARE", collections
    )
    return {row["id"]: f"pgstac._items_{int(row['key'])}" for row in rows}


async def _insert_copies(conn: Connection, leaf: str, changes: Sequence[Change]) -> None:
    if not changes:
        return
    drafts = [change.draft for change in changes if change.draft]
    await conn.execute(
        f"""INSERT INTO {leaf} (id, geometry, collection, datetime, end_datetime, content)
            SELECT c.id, ST_SetSRID(ST_GeomFromGeoJSON(c.geometry), 4326), $2, c.starts::timestamptz,
                   c.ends::timestamptz, jsonb_build_object('properties', c.properties::jsonb || c.state::jsonb)
            FROM unnest($1::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
                 c (id, geometry, starts, ends, properties, state)
            ON CONFLICT (id) DO UPDATE SET geometry = EXCLUDED.geometry, datetime = EXCLUDED.datetime,
                   end_datetime = EXCLUDED.end_datetime, content = EXCLUDED.content""",  # noqa: S608 -- from a number
        [draft.id for draft in drafts], drafts[0].collection, [draft.search.geometry for draft in drafts],
        [draft.search.start for draft in drafts], [draft.search.end for draft in drafts],
        [draft.search.properties for draft in drafts], [_state(change.after) for change in changes],
    )  # fmt: skip


async def _update_copies(conn: Connection, leaf: str, changes: Sequence[Change]) -> None:
    if not changes:
        return
    await conn.execute(
        f"""UPDATE {leaf} i
            SET content = jsonb_set(i.content, '{{properties}}', (i.content->'properties') || c.state::jsonb)
            FROM unnest($1::text[], $2::text[]) c (id, state) WHERE i.id = c.id""",  # noqa: S608 -- from a number
        [change.after.id for change in changes], [_state(change.after) for change in changes],
    )  # fmt: skip


def _state(record: Record) -> str:
    return orjson.dumps(documents.state_of(record)).decode()


async def remove(conn: Connection, origin: str, before_epoch: int) -> int:
    """Removes records of an origin from an epoch before this one, with their search copies; how many."""
    rows = await conn.fetch(
        """DELETE FROM fedstac.record WHERE origin = $1 AND epoch < $2
           RETURNING collection, id, document IS NOT NULL AS counted""",
        origin, before_epoch,
    )  # fmt: skip
    gone: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["counted"]:
            gone[row["collection"]].append(row["id"])
    for collection, leaf in (await hold_leaves(conn, sorted(gone))).items():
        await conn.execute(f"DELETE FROM {leaf} WHERE id = ANY($1::text[])", gone[collection])  # noqa: S608
    await conn.execute(
        "INSERT INTO fedstac.tally (collection, records) SELECT * FROM unnest($1::text[], $2::bigint[])",
        list(gone), [-len(ids) for ids in gone.values()],
    )  # fmt: skip
    return len(rows)
