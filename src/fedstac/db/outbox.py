"""The outbox: events, written with the changes they announce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from fedstac.db.connections import Connection


@dataclass(frozen=True, slots=True)
class Entry:
    """One event on its way into the log."""

    event_id: UUID
    key: str  # of the lineage, or the collection's id
    collection: str
    dataset: str | None
    seq: int
    type: str
    digest: bytes
    event: str


async def append(conn: Connection, entries: Sequence[Entry]) -> list[int]:
    """Stores events in their order and returns their ids. Call it under the locks of their lineages."""
    if not entries:
        return []
    rows = await conn.fetch(
        """INSERT INTO fedstac.outbox (event_id, key, collection, dataset, seq, type, digest, event)
           SELECT event_id, key, collection, dataset, seq, type, digest, event
           FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bytea[],
                       $8::text[])
                WITH ORDINALITY e (event_id, key, collection, dataset, seq, type, digest, event, n)
           ORDER BY n RETURNING id""",
        [e.event_id for e in entries], [e.key for e in entries], [e.collection for e in entries],
        [e.dataset for e in entries], [e.seq for e in entries], [e.type for e in entries],
        [e.digest for e in entries], [e.event for e in entries],
    )  # fmt: skip
    return [row["id"] for row in rows]


async def epoch(conn: Connection) -> int:
    """The feed's epoch, held until this transaction ends: a new one starts only with all writers out."""
    value = await conn.fetchval("SELECT epoch FROM fedstac.feed_state")
    return int(value or 1)


async def extend(conn: Connection) -> int:
    """Makes partitions ahead of the ids; how many were made."""
    return int(await conn.fetchval("SELECT fedstac.extend_outbox()") or 0)


async def partitions_ahead(conn: Connection) -> int:
    """How many empty partitions lie ahead of the last id."""
    value = await conn.fetchval(
        """SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = 'fedstac.outbox'::regclass AND substring(c.relname from 8)::bigint >
                 (SELECT coalesce(max(id), 1) - 1 FROM fedstac.outbox) / 1000000"""
    )
    return int(value or 0)
