"""The outbox: events, written with the changes they announce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from uuid import UUID

from fedstac.db.connections import Connection


@dataclass(frozen=True, slots=True)
class Announcement:
    """One event on its way into the log."""

    event_id: UUID
    key: str  # of the lineage, or the collection's id
    collection: str
    dataset: str | None
    seq: int
    type: str
    digest: bytes
    event: str


async def append(conn: Connection, announcements: Sequence[Announcement]) -> list[int]:
    """Store events in their order and returns their ids. Call it under the locks of their lineages."""
    if not announcements:
        return []
    rows = await conn.fetch(
        "SELECT nextval('fedstac.outbox_id_seq') AS id FROM generate_series(1, $1)", len(announcements)
    )
    ids = [row["id"] for row in rows]
    await conn.copy_records_to_table(
        "outbox", schema_name="fedstac", columns=("id", *COLUMNS),
        records=((id, *_row(one)) for id, one in zip(ids, announcements, strict=True)),
    )  # fmt: skip
    return ids


COLUMNS = ("event_id", "key", "collection", "dataset", "seq", "type", "digest", "event")
_row = attrgetter(*COLUMNS)


async def begin(conn: Connection) -> tuple[int, datetime]:
    """Return the feed's epoch and the database's time, and keep the rest of this transaction to indexes.

    Else a plan that was made while a table was small, or before it was analysed, reads all of it.
    """
    row = await conn.fetchrow(
        "SELECT epoch, clock_timestamp() AS now FROM fedstac.feed_state, set_config('enable_seqscan', 'off', true)"
    )
    assert row is not None  # made at a node's first start
    return row["epoch"], row["now"]


async def extend(conn: Connection) -> int:
    """Make partitions ahead of the ids, one more than is asked for anywhere; return how many were made."""
    return int(await conn.fetchval("SELECT fedstac.extend_outbox(ahead => 4)") or 0)
