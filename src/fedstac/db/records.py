"""Lineages and records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from fedstac.db import facets, search_copies
from fedstac.db.connections import Connection, Row
from fedstac.domain.access import RecordAccess
from fedstac.domain.deletion import has_identifier
from fedstac.domain.facets import PLACES
from fedstac.domain.model import WITHOUT_DOCUMENT, Change, LatestClaim, Lineage, Record, State
from fedstac.domain.policy import Level

COLUMNS = """collection, id, lineage, origin, version, state, latest, claims_latest, epoch, seq, created, updated,
             document_digest, files_digest, publisher, cv_version, cv_excused, retraction, replicas,
             superseded, quarantine, access"""
A_DAY = 86_400.0  # seconds: no limit, for what is as long as the catalogue


async def lock(conn: Connection, origins: Mapping[str, str]) -> dict[str, Lineage]:
    """Lock lineages in the order of their keys, so that batches cannot deadlock. New ones get the origin given here.

    Their records are for the next statement: one that locks and reads sees rows as they were before the lock.
    """
    keys = list(origins)
    await conn.execute(
        """INSERT INTO fedstac.lineage (key, origin) SELECT * FROM unnest($1::text[], $2::text[]) l (key, origin)
           ORDER BY key ON CONFLICT DO NOTHING""",
        keys, list(origins.values()),
    )  # fmt: skip
    return await lock_present(conn, keys)


async def lock_present(conn: Connection, keys: Sequence[str]) -> dict[str, Lineage]:
    """Lock lineages that are here, as `lock` does."""
    rows = await conn.fetch(
        """SELECT key, origin, seq, claim_epoch, claim_seq FROM fedstac.lineage
           WHERE key = ANY($1::text[]) ORDER BY key FOR UPDATE""",
        keys,
    )
    return {
        row["key"]: Lineage(
            row["key"], row["origin"], row["seq"], {}, LatestClaim(row["claim_epoch"], row["claim_seq"])
        )
        for row in rows
    }


async def hand_over(conn: Connection, origins: Mapping[str, str]) -> None:
    """Give locked lineages without records to other origins."""
    await conn.execute(
        """UPDATE fedstac.lineage l SET origin = o.origin FROM unnest($1::text[], $2::text[]) o (key, origin)
           WHERE l.key = o.key""",
        list(origins), list(origins.values()),
    )  # fmt: skip


async def begin_lineages(conn: Connection, lineages: Sequence[Lineage]) -> set[str]:
    """Insert lineages with their numbers and claims, in the order of their keys; return the keys of the new ones.

    Those that are here already stay as they are.
    """
    ordered = sorted(lineages, key=attrgetter("key"))
    rows = await conn.fetch(
        """INSERT INTO fedstac.lineage (key, origin, seq, claim_epoch, claim_seq)
           SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
           ON CONFLICT DO NOTHING RETURNING key""",
        [one.key for one in ordered], [one.origin for one in ordered], [one.seq for one in ordered],
        [one.claim.epoch for one in ordered], [one.claim.seq for one in ordered],
    )  # fmt: skip
    return {row["key"] for row in rows}


async def peek(conn: Connection, key: str, origin: str) -> Lineage:
    """Return a lineage as it stands, neither locked nor loaded; a new one where there is none."""
    row = await conn.fetchrow("SELECT key, origin, seq FROM fedstac.lineage WHERE key = $1", key)
    return Lineage(row["key"], row["origin"], row["seq"], {}) if row else Lineage(key, origin, 0, {})


async def load(
    conn: Connection, lineages: Mapping[str, Lineage], ids: Sequence[str], whole: Sequence[str] = (), *,
    hidden: Sequence[str] = (),
) -> dict[str, Lineage]:  # fmt: skip
    """Return the lineages with the heads of all their versions, and documents of the latest ones and of `ids`.

    Those that are not open come with their documents too: a new version has the level that the one before states.
    `whole`: keys of lineages of which every published version comes with its document. `hidden`: `marked`, `private`
    or both, which are left out of `ids`.
    """
    rows = await conn.fetch(
        f"""SELECT {COLUMNS}, CASE WHEN latest OR access <> 'open' OR id = ANY($2::text[])
                                     OR state = 'published' AND lineage = ANY($3::text[]) THEN document END AS document
            FROM fedstac.record WHERE lineage = ANY($1::text[])
            AND NOT (id = ANY($2::text[]) AND (state = ANY ($4::text[]) OR access = ANY ($4::text[])))""",
        list(lineages), list(ids), list(whole), list(hidden),
    )  # fmt: skip
    records: dict[str, dict[str, Record]] = defaultdict(dict)
    for row in rows:
        records[row["lineage"]][row["id"]] = from_row(row)
    return {key: replace(lineage, records=records.get(key, {})) for key, lineage in lineages.items()}


async def stored_ids(conn: Connection, collection: str, ids: Sequence[str]) -> set[str]:
    """Return those of the ids that have a document here."""
    rows = await conn.fetch(
        "SELECT id FROM fedstac.record WHERE collection = $1 AND id = ANY($2::text[]) AND document IS NOT NULL",
        collection, ids,
    )  # fmt: skip
    return {row["id"] for row in rows}


async def used_ids(conn: Connection, collection: str, ids: Sequence[str]) -> set[str]:
    """Return those of the ids that are of datasets that were deleted or purged: they are never used again."""
    rows = await conn.fetch(
        """SELECT id FROM fedstac.record
           WHERE collection = $1 AND id = ANY($2::text[]) AND state IN ('deleted', 'purged')""",
        collection, ids,
    )  # fmt: skip
    return {row["id"] for row in rows}


@dataclass(frozen=True, slots=True)
class RecordLevel:
    """The access level of a record, and the one that its document states; None where it states none."""

    id: str
    lineage: str
    level: Level
    of_document: str | None


async def levels_after(conn: Connection, collection: str, origin: str, after: str, limit: int) -> list[RecordLevel]:
    """Return the levels of an origin's datasets that are not gone, in the order of their ids, behind one of them."""
    rows = await conn.fetch(
        """SELECT id, lineage, access, document::jsonb #>> '{properties,fedstac:access}' AS of_document
           FROM fedstac.record
           WHERE collection = $1 AND id > $3 AND origin = $2 AND document IS NOT NULL ORDER BY id LIMIT $4""",
        collection, origin, after, limit,
    )  # fmt: skip
    return [RecordLevel(row["id"], row["lineage"], Level(row["access"]), row["of_document"]) for row in rows]


async def access_of(conn: Connection, datasets: Collection[tuple[str, str]]) -> dict[tuple[str, str], RecordAccess]:
    """Return who may read datasets as of now, by collection and id; without those that are not here."""
    names = list(datasets)
    rows = await conn.fetch(
        """SELECT r.collection, r.id, r.state, r.access FROM unnest($1::text[], $2::text[]) d (collection, id)
           JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id""",
        [collection for collection, _ in names], [id for _, id in names],
    )  # fmt: skip
    return {(row["collection"], row["id"]): RecordAccess(State(row["state"]), Level(row["access"])) for row in rows}


async def lineages_of(conn: Connection, collection: str, ids: Sequence[str]) -> list[str]:
    """Return the keys of the lineages that datasets belong to."""
    rows = await conn.fetch(
        "SELECT DISTINCT lineage FROM fedstac.record WHERE collection = $1 AND id = ANY ($2::text[])", collection, ids
    )
    return [row["lineage"] for row in rows]


async def states(conn: Connection, datasets: Sequence[tuple[str, str]]) -> dict[tuple[str, str], State]:
    """Return the states of datasets, given as collection and id; without those that are not here, gone, or private."""
    rows = await conn.fetch(
        """SELECT r.collection, r.id, r.state FROM fedstac.record r
           JOIN unnest($1::text[], $2::text[]) d (collection, id) ON r.collection = d.collection AND r.id = d.id
           WHERE r.document IS NOT NULL AND r.access <> 'private'""",
        [collection for collection, _ in datasets], [id for _, id in datasets],
    )  # fmt: skip
    return {(row["collection"], row["id"]): State(row["state"]) for row in rows}


def from_row(row: Row | Mapping[str, Any]) -> Record:
    """Return a record from a row of COLUMNS and `document`."""
    values = dict(row)
    return Record(**{**values, "state": State(values["state"]), "access": Level(values["access"])})


async def write(
    conn: Connection, changes: Iterable[Change], seqs: Mapping[str, int], leaves: Mapping[str, str], *,
    claims: Mapping[str, LatestClaim] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Store the changes: each record once, in its last state, those that lose `latest` first.

    `seqs` are the lineages' numbers of events after it, `leaves` the partitions that `hold_leaves` gave, `claims` those
    of lineages whose last claim is another one.
    """
    last: dict[tuple[str, str], Change] = {}
    for change in changes:
        earlier = last.get((change.after.collection, change.after.id))
        draft = change.draft or (earlier.draft if earlier else None)
        before = earlier.before if earlier else change.before
        last[change.after.collection, change.after.id] = Change(change.event_type, before, change.after, draft)
    new = [change.after for change in last.values() if change.before is None]
    numbers = dict(zip(((each.collection, each.id) for each in new), await facets.draw(conn, len(new)), strict=True))
    for latest in (False, True):
        group = [change for change in last.values() if change.after.latest is latest]
        await _store(conn, [change for change in group if not _keeps_document(change)], numbers)
        await _restate(conn, [change for change in group if _keeps_document(change)])
    await _advance(conn, seqs, last.values(), claims)
    await search_copies.write(conn, list(last.values()), leaves)
    await facets.write(conn, list(last.values()), numbers, leaves)


def _keeps_document(change: Change) -> bool:
    return change.before is not None and change.draft is None and _exists(change.after)


async def _store(conn: Connection, changes: Sequence[Change], numbers: Mapping[tuple[str, str], int]) -> None:
    """Insert new records by COPY and update the others. Nobody else can have made one: the lineages are locked.

    What searches no longer find is not shown by its row of codes, which says nothing of what is gone.
    """
    new = [(change.after, _whose(change)) for change in changes if change.before is None]
    if new:
        await conn.copy_records_to_table(
            "record", schema_name="fedstac", columns=(*STORED, "n", "has_identifier", "institution"),
            records=[
                (*_row(record), numbers[record.collection, record.id], has_identifier(record.document), institution)
                for record, institution in new
            ],
        )  # fmt: skip
    old_changes = [change for change in changes if change.before is not None]
    old = [change.after for change in old_changes]
    if old:
        await conn.execute(
            f"""WITH stored AS (
               UPDATE fedstac.record r SET state = c.state, latest = c.latest, claims_latest = c.claims_latest,
                      epoch = c.epoch, seq = c.seq, created = c.created, updated = c.updated, document = c.document,
                      document_digest = c.document_digest, files_digest = c.files_digest, digest = c.digest,
                      publisher = c.publisher, cv_version = c.cv_version, cv_excused = c.cv_excused,
                      retraction = c.retraction, replicas = c.replicas, superseded = c.superseded,
                      quarantine = c.quarantine, has_identifier = c.has_identifier, access = c.access,
                      institution = c.institution
               FROM unnest($1::text[], $2::text[], $3::text[], $4::bool[], $5::bool[], $6::bigint[], $7::bigint[],
                           $8::timestamptz[], $9::timestamptz[], $10::text[], $11::bytea[], $12::bytea[], $13::bytea[],
                           $14::text[], $15::text[], $16::text[], $17::text[], $18::text[], $19::bool[], $20::text[],
                           $21::bool[], $22::text[], $23::text[])
                    c (collection, id, state, latest, claims_latest, epoch, seq, created, updated, document,
                       document_digest, files_digest, digest, publisher, cv_version, cv_excused, retraction,
                       replicas, superseded, quarantine, has_identifier, access, institution)
               WHERE r.collection = c.collection AND r.id = c.id
               RETURNING r.n, r.updated, r.document IS NULL AS is_gone, r.state, r.access)
               UPDATE fedstac.facet f SET shown = 0, updated = stored.updated, changed = pg_current_xact_id(),
                      size = CASE WHEN stored.is_gone THEN 0 ELSE f.size END,
                      files = CASE WHEN stored.is_gone THEN 0 ELSE f.files END,
                      codes = CASE WHEN stored.is_gone THEN array_fill(0, '{{{PLACES}}}') ELSE f.codes END
               FROM stored WHERE f.n = stored.n
                 AND (stored.state NOT IN ('published', 'retracted') OR stored.access = 'private')""",
            [r.collection for r in old], [r.id for r in old], [r.state for r in old],
            [r.latest for r in old], [r.claims_latest for r in old], [r.epoch for r in old],
            [r.seq for r in old], [r.created for r in old], [r.updated for r in old],
            [r.document for r in old], [r.document_digest for r in old], [r.files_digest for r in old],
            [r.digest for r in old], [r.publisher for r in old], [r.cv_version for r in old],
            [r.cv_excused for r in old], [r.retraction for r in old], [r.replicas for r in old],
            [r.superseded for r in old], [r.quarantine for r in old], [has_identifier(r.document) for r in old],
            [r.access for r in old], [_whose(change) for change in old_changes],
        )  # fmt: skip


def _whose(change: Change) -> str:
    """Return the institution of a dataset as `private.places` asks for it; "" where its document names none."""
    return (change.draft.institution or "") if change.draft is not None else ""


async def _restate(conn: Connection, changes: Sequence[Change]) -> None:
    """Update the state alone: the document stays as it is stored, whether it was loaded or not."""
    if not changes:
        return
    records = [change.after for change in changes]
    await conn.execute(
        """WITH restated AS (
           UPDATE fedstac.record r SET state = c.state, latest = c.latest, claims_latest = c.claims_latest,
                  epoch = c.epoch, seq = c.seq, updated = c.updated, digest = c.digest, retraction = c.retraction,
                  superseded = c.superseded, quarantine = c.quarantine, access = c.access
           FROM unnest($1::text[], $2::text[], $3::text[], $4::bool[], $5::bool[], $6::bigint[], $7::bigint[],
                       $8::timestamptz[], $9::bytea[], $10::text[], $11::bool[], $12::int2[], $13::text[],
                       $14::text[])
                c (collection, id, state, latest, claims_latest, epoch, seq, updated, digest, retraction, superseded,
                   shown, quarantine, access)
           WHERE r.collection = c.collection AND r.id = c.id RETURNING r.n, r.updated, c.shown)
           UPDATE fedstac.facet f SET shown = restated.shown, updated = restated.updated, changed = pg_current_xact_id()
           FROM restated WHERE f.n = restated.n""",
        [r.collection for r in records], [r.id for r in records], [r.state for r in records],
        [r.latest for r in records], [r.claims_latest for r in records], [r.epoch for r in records],
        [r.seq for r in records], [r.updated for r in records], [r.digest for r in records],
        [r.retraction for r in records], [r.superseded for r in records], [facets.shown(r) for r in records],
        [r.quarantine for r in records], [r.access for r in records],
    )  # fmt: skip


STORED = (
    "collection", "id", "lineage", "origin", "version", "state", "latest", "claims_latest", "epoch", "seq", "created",
    "updated", "document", "document_digest", "files_digest", "digest", "publisher", "cv_version", "cv_excused",
    "retraction", "replicas", "superseded", "quarantine", "access",
)  # fmt: skip
_row = attrgetter(*STORED)


async def _advance(
    conn: Connection, seqs: Mapping[str, int], changes: Iterable[Change], claims: Mapping[str, LatestClaim]
) -> None:
    """Set the lineages' numbers of events and claims, and count how many more datasets their collections show."""
    tally: dict[str, int] = defaultdict(int)
    for change in changes:
        tally[change.after.collection] += _is_found(change.after) - _is_found(change.before)
    tally = {collection: count for collection, count in tally.items() if count}
    await conn.execute(
        """WITH tallied AS (
               INSERT INTO fedstac.tally (collection, records) SELECT * FROM unnest($3::text[], $4::bigint[]))
           UPDATE fedstac.lineage l SET seq = s.seq, claim_epoch = coalesce(s.claim_epoch, l.claim_epoch),
                  claim_seq = coalesce(s.claim_seq, l.claim_seq)
           FROM unnest($1::text[], $2::bigint[], $5::bigint[], $6::bigint[]) s (key, seq, claim_epoch, claim_seq)
           WHERE l.key = s.key""",
        list(seqs), list(seqs.values()), list(tally), list(tally.values()),
        [claims[key].epoch if key in claims else None for key in seqs],
        [claims[key].seq if key in claims else None for key in seqs],
    )  # fmt: skip


def _is_found(record: Record | None) -> bool:
    return record is not None and record.is_found


def _exists(record: Record | None) -> bool:
    return record is not None and record.state not in WITHOUT_DOCUMENT


async def hold_leaves(conn: Connection, collections: Sequence[str]) -> dict[str, str]:
    """Return the leaf partitions of collections, which cannot be deleted until this transaction ends."""
    rows = await conn.fetch(
        "SELECT id, key FROM pgstac.collections WHERE id = ANY($1::text[]) ORDER BY id FOR KEY SHARE", collections
    )
    return {row["id"]: f"pgstac._items_{int(row['key'])}" for row in rows}


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """A record, and how new it is."""

    id: str
    epoch: int
    seq: int


async def remove_some(
    conn: Connection, origin: str, collection: str, places: Sequence[RecordPlace], *, leaf: str | None
) -> set[str]:
    """Remove records that are no newer than these places, with their search copies; return their ids.

    Their lineages have to be locked. `leaf`: the partition of the collection, if it is here.
    """
    rows = await conn.fetch(
        """WITH gone AS (DELETE FROM fedstac.record r USING unnest($3::text[], $4::bigint[], $5::bigint[])
                              p (id, epoch, seq)
                         WHERE r.origin = $1 AND r.collection = $2 AND r.id = p.id
                           AND (r.epoch, r.seq) <= (p.epoch, p.seq)
                         RETURNING r.id, r.n, r.state IN ('published', 'retracted') AND r.access <> 'private'
                                   AS counted),
                unseen AS (UPDATE fedstac.facet f SET shown = 0, changed = pg_current_xact_id()
                           FROM gone WHERE f.n = gone.n),
                less AS (INSERT INTO fedstac.tally (collection, records)
                         SELECT $2, -count(*) FROM gone WHERE counted HAVING count(*) > 0)
           SELECT id FROM gone""",
        origin, collection, [place.id for place in places], [place.epoch for place in places],
        [place.seq for place in places],
    )  # fmt: skip
    removed_ids = [row["id"] for row in rows]
    if removed_ids and leaf is not None:
        await conn.execute(f"DELETE FROM {leaf} WHERE id = ANY ($1::text[])", removed_ids)
    return set(removed_ids)


async def remove(conn: Connection, origin: str, before_epoch: int, *, most: int | None = None) -> int:
    """Remove records of an origin from an epoch before this one, with their search copies; return how many.

    Call it in a transaction. Whoever else announces one of their lineages waits, and finds nothing of it.
    `most`: it removes the lineages of so many records only; the next call goes on.
    """
    row = await conn.fetchrow(
        """SELECT count(*) AS count, CASE WHEN $3::bigint IS NOT NULL THEN array_agg(key) END AS keys FROM (
               SELECT key FROM fedstac.lineage
               WHERE key IN (SELECT lineage FROM fedstac.record WHERE origin = $1 AND epoch < $2
                             ORDER BY lineage LIMIT $3)
               ORDER BY key FOR UPDATE) locked""",
        origin, before_epoch, most, timeout=A_DAY,
    )  # fmt: skip
    assert row is not None
    if not row["count"]:
        return 0
    collections = await conn.fetch("SELECT id FROM pgstac.collections ORDER BY id")
    for collection, leaf in (await hold_leaves(conn, [each["id"] for each in collections])).items():
        await conn.execute(
            f"""DELETE FROM {leaf} i USING fedstac.record r
                WHERE r.collection = $1 AND r.id = i.id AND r.origin = $2 AND r.epoch < $3
                  AND ($4::text[] IS NULL OR r.lineage = ANY ($4))""",
            collection, origin, before_epoch, row["keys"], timeout=A_DAY,
        )  # fmt: skip
    removed = await conn.fetchval(
        """WITH gone AS (DELETE FROM fedstac.record WHERE origin = $1 AND epoch < $2
                           AND ($3::text[] IS NULL OR lineage = ANY ($3))
                         RETURNING collection, n, state IN ('published', 'retracted') AND access <> 'private'
                                   AS counted),
                unseen AS (UPDATE fedstac.facet f SET shown = 0, changed = pg_current_xact_id()
                           FROM gone WHERE f.n = gone.n),
                less AS (INSERT INTO fedstac.tally (collection, records)
                         SELECT collection, -count(*) FROM gone WHERE counted GROUP BY collection)
           SELECT count(*) FROM gone""",
        origin, before_epoch, row["keys"], timeout=A_DAY,
    )  # fmt: skip
    return int(removed)
