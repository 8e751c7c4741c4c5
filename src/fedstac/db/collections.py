"""Collections: stored as they were written, and made known to pgstac with bounds that never have to move."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from fedstac.db.connections import Connection, Row
from fedstac.domain.events import CollectionEvent

WIDE = "tstzrange('-infinity', 'infinity', '[]')"


@dataclass(frozen=True, slots=True)
class Stored:
    """A collection as it is stored; document None: deleted."""

    id: str
    origin: str
    epoch: int
    seq: int
    document: str | None
    digest: bytes
    updated: datetime


def _stored(row: Row) -> Stored:
    return Stored(**dict(row))


async def lock(conn: Connection, collection: str) -> Stored | None:
    """The collection's row, held until the transaction ends; two that create one wait for each other."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtext('fedstac.collection'), hashtext($1))", collection)
    row = await conn.fetchrow(
        "SELECT id, origin, epoch, seq, document, digest, updated FROM fedstac.collection WHERE id = $1", collection
    )
    return _stored(row) if row else None


async def get(conn: Connection, collection: str) -> Stored | None:
    row = await conn.fetchrow(
        """SELECT id, origin, epoch, seq, document, digest, updated FROM fedstac.collection
           WHERE id = $1 AND document IS NOT NULL""",
        collection,
    )
    return _stored(row) if row else None


async def every(conn: Connection, *, deleted: bool = False) -> list[Stored]:
    """All collections, by id; with `deleted` the tombstones too."""
    rows = await conn.fetch(
        """SELECT id, origin, epoch, seq, document, digest, updated FROM fedstac.collection
           WHERE document IS NOT NULL OR $1 ORDER BY id""",
        deleted,
    )
    return [_stored(row) for row in rows]


async def put(conn: Connection, stored: Stored) -> None:
    """Stores a collection and makes it known to pgstac."""
    await _store(conn, stored)
    await conn.execute("SELECT pgstac.upsert_collection($1::text::jsonb)", stored.document)
    await conn.execute(f"SELECT pgstac.check_partition($1, {WIDE}, {WIDE})", stored.id)


async def remove(conn: Connection, stored: Stored) -> None:
    """Stores a deletion; the tombstone stays."""
    await _store(conn, stored)
    if await conn.fetchval("SELECT 1 FROM pgstac.collections WHERE id = $1 FOR UPDATE", stored.id):
        await conn.execute("SELECT pgstac.delete_collection($1)", stored.id)


async def _store(conn: Connection, stored: Stored) -> None:
    await conn.execute(
        """INSERT INTO fedstac.collection (id, origin, epoch, seq, document, digest, updated)
           VALUES ($1, $2, $3, $4, $5, $6, $7)
           ON CONFLICT (id) DO UPDATE SET origin = EXCLUDED.origin, epoch = EXCLUDED.epoch, seq = EXCLUDED.seq,
                  document = EXCLUDED.document, digest = EXCLUDED.digest, updated = EXCLUDED.updated""",
        stored.id, stored.origin, stored.epoch, stored.seq, stored.document, stored.digest, stored.updated,
    )  # fmt: skip


async def erase(conn: Connection, collection: str) -> None:
    """At a consumer: takes a collection away as if it had never been there."""
    await conn.execute("DELETE FROM fedstac.collection WHERE id = $1", collection)
    if await conn.fetchval("SELECT 1 FROM pgstac.collections WHERE id = $1 FOR UPDATE", collection):
        await conn.execute("SELECT pgstac.delete_collection($1)", collection)


async def hold_empty(conn: Connection, collection: str) -> bool:
    """Whether a collection has no dataset; nobody can publish into it until this transaction ends."""
    await conn.execute("SELECT 1 FROM pgstac.collections WHERE id = $1 FOR UPDATE", collection)
    taken = await conn.fetchval(
        "SELECT EXISTS (SELECT 1 FROM fedstac.record WHERE collection = $1 AND document IS NOT NULL)", collection
    )
    return not taken


async def totals(conn: Connection) -> dict[str, int]:
    """How many datasets are found in each collection: what is marked for deletion is hidden, and not counted."""
    rows = await conn.fetch("SELECT collection, sum(records)::bigint AS n FROM fedstac.tally GROUP BY collection")
    return {row["collection"]: row["n"] for row in rows}


async def sum_up(conn: Connection) -> None:
    """Housekeeping: one tally row a collection instead of one a write."""
    await conn.execute(
        """WITH taken AS (DELETE FROM fedstac.tally WHERE (SELECT count(*) FROM fedstac.tally) > 500
                          RETURNING collection, records)
           INSERT INTO fedstac.tally (collection, records)
           SELECT collection, sum(records) FROM taken GROUP BY collection"""
    )


class Known(Enum):
    """How an announced collection stands to what is stored."""

    OLDER = auto()  # stored was older: applied
    NEWER = auto()  # stored is as new or newer: ignored
    FOREIGN = auto()  # it belongs to another origin


async def apply(conn: Connection, event: CollectionEvent) -> Known:
    """Brings a collection to the state that its origin announced."""
    stored = await lock(conn, event.collection)
    if stored and stored.origin != event.origin:
        return Known.FOREIGN
    if stored and (stored.epoch, stored.seq) >= (event.epoch, event.seq):
        return Known.NEWER
    new = Stored(
        id=event.collection, origin=event.origin, epoch=event.epoch, seq=event.seq, document=event.document,
        digest=event.digest, updated=await conn.fetchval("SELECT clock_timestamp()"),
    )  # fmt: skip
    await (put(conn, new) if event.document is not None else remove(conn, new))
    return Known.OLDER
