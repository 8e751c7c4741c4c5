"""The audit log: one row for every accepted write, in the transaction of the write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


async def append(conn: Connection, entries: Sequence[Entry]) -> None:
    if entries:
        await conn.execute(
            """INSERT INTO fedstac.audit (actor, action, collection, dataset, request, outcome, digest_before,
                   digest_after)
               SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::text[], $7::bytea[],
                                    $8::bytea[])""",
            [e.actor for e in entries], [e.action for e in entries], [e.collection for e in entries],
            [e.dataset for e in entries], [e.request for e in entries], [e.outcome for e in entries],
            [e.before for e in entries], [e.after for e in entries],
        )  # fmt: skip
