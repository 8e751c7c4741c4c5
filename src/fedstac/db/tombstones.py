"""Tombstones: what stays of datasets that are deleted. Their ids are never used again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from fedstac.db.connections import Connection, Row

COLUMNS = """r.collection, r.id, r.state, r.access, r.origin, r.updated, coalesce(d.ended_at, r.updated) AS deleted_at,
             d.ended_by AS deleted_by, d.id AS deletion, d.institution"""
OF_DELETION = """LEFT JOIN LATERAL (
                     SELECT d.* FROM fedstac.deletion d WHERE d.collection = r.collection AND d.dataset = r.id
                     AND d.state IN ('deleted', 'purged') ORDER BY d.marked_at DESC LIMIT 1) d ON true"""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deleted or purged dataset. What its deletion says, only the node knows that deleted it.

    updated: when the record last changed; a purge changes it too. institution: whose dataset it was.
    """

    collection: str
    id: str
    state: str
    access: str
    origin: str
    updated: datetime
    deleted_at: datetime
    deleted_by: str | None
    deletion: UUID | None
    institution: str | None


@dataclass(frozen=True, slots=True)
class TombstonePlace:
    """A place in the list of tombstones."""

    updated: datetime
    collection: str
    id: str


async def read(conn: Connection, collection: str, id: str) -> Tombstone | None:
    """Return the tombstone of a dataset; None where it is here, or never was."""
    row = await conn.fetchrow(
        f"""SELECT {COLUMNS} FROM fedstac.record r {OF_DELETION}
            WHERE r.collection = $1 AND r.id = $2 AND r.state IN ('deleted', 'purged')""",
        collection, id,
    )  # fmt: skip
    return _tombstone(row) if row else None


async def page(
    conn: Connection, *, collection: str | None, since: datetime | None, after: TombstonePlace | None, limit: int
) -> list[Tombstone]:
    """Return tombstones, those that changed last first. since: that changed then or later. after: behind that place."""
    rows = await conn.fetch(
        f"""SELECT {COLUMNS} FROM (
                SELECT * FROM fedstac.record WHERE state IN ('deleted', 'purged')
                AND ($1::text IS NULL OR collection = $1) AND updated >= coalesce($2::timestamptz, '-infinity')
                AND ($3::timestamptz IS NULL OR (updated, collection, id) < ($3, $4, $5))
                ORDER BY updated DESC, collection DESC, id DESC LIMIT $6) r {OF_DELETION}
            ORDER BY r.updated DESC, r.collection DESC, r.id DESC""",
        collection, since, after.updated if after else None, after.collection if after else "",
        after.id if after else "", limit,
    )  # fmt: skip
    return [_tombstone(row) for row in rows]


def _tombstone(row: Row) -> Tombstone:
    return Tombstone(**dict(row))
