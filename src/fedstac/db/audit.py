"""The audit log: one row for every accepted write, in the transaction of the write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from uuid import UUID

from fedstac.db.connections import Connection


@dataclass(frozen=True, slots=True)
class Entry:
    actor: str
    action: str
    collection: str
    dataset: str
    request: UUID | None
    outcome: str
    before: bytes | None
    after: bytes | None


COLUMNS = ("actor", "action", "collection", "dataset", "request", "outcome", "digest_before", "digest_after")
_row = attrgetter("actor", "action", "collection", "dataset", "request", "outcome", "before", "after")


async def append(conn: Connection, entries: Sequence[Entry]) -> None:
    if entries:
        await conn.copy_records_to_table("audit", schema_name="fedstac", columns=COLUMNS, records=map(_row, entries))
