"""Vocabulary snapshots that are kept for good: installed, fetched from their origin, or used here for judging."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import NamedTuple

from fedstac.db.connections import Connection


class SnapshotKey(NamedTuple):
    """A version with its content: it never changes."""

    project: str
    version: str
    digest: str  # sha-256, hexadecimal


async def insert(conn: Connection, key: SnapshotKey, raw: bytes, source: str) -> None:
    """Store a snapshot; the same again changes nothing."""
    await conn.execute(
        """INSERT INTO fedstac.vocabulary (project, version, digest, snapshot, source) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT DO NOTHING""",
        key.project, key.version, bytes.fromhex(key.digest), raw, source,
    )  # fmt: skip


async def digest(conn: Connection, project: str, version: str) -> str | None:
    """Return the sha-256 of the version that is stored here."""
    return await conn.fetchval(  # type: ignore[no-any-return]
        "SELECT encode(digest, 'hex') FROM fedstac.vocabulary WHERE project = $1 AND version = $2", project, version
    )


async def beyond(conn: Connection, present: Collection[SnapshotKey]) -> list[tuple[SnapshotKey, bytes]]:
    """Return the snapshots that are stored here and not among `present`, as they were stored: they may be broken."""
    keys = sorted(present)
    rows = await conn.fetch(
        """SELECT project, version, encode(digest, 'hex') AS digest, snapshot FROM fedstac.vocabulary v
           WHERE NOT EXISTS (SELECT FROM unnest($1::text[], $2::text[], $3::text[]) k (project, version, digest)
                             WHERE k.project = v.project AND k.version = v.version
                               AND k.digest = encode(v.digest, 'hex'))
           ORDER BY installed""",
        [key.project for key in keys], [key.version for key in keys], [key.digest for key in keys],
    )  # fmt: skip
    return [(SnapshotKey(row["project"], row["version"], row["digest"]), bytes(row["snapshot"])) for row in rows]


async def documents(conn: Connection, project: str, *, page: int = 500) -> AsyncIterator[tuple[str, str]]:
    """Yield id and stored text of all datasets of a project, by id."""
    after = ""
    while True:
        rows = await conn.fetch(
            """SELECT id, document FROM fedstac.record
               WHERE collection = $1 AND id > $2 AND document IS NOT NULL ORDER BY id LIMIT $3""",
            project, after, page,
        )  # fmt: skip
        for row in rows:
            yield row["id"], row["document"]
        if len(rows) < page:
            return
        after = rows[-1]["id"]
