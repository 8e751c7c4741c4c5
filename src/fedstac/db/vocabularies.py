"""Vocabulary snapshots beyond those that ship with the package."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence

from fedstac.db.connections import Connection
from fedstac.domain.vocabulary import Snapshot, snapshot_of


async def install(conn: Connection, raw: bytes, source: str) -> Snapshot:
    """Keeps a snapshot; the same again changes nothing. VocabularyBroken where the bytes are none.

    Whether a version is here with other content is for `domain.vocabulary.Vocabularies.install` to say.
    """
    snapshot = snapshot_of(raw)
    await conn.execute(
        """INSERT INTO fedstac.vocabulary (project, version, digest, snapshot, source) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT DO NOTHING""",
        snapshot.project, snapshot.version, bytes.fromhex(snapshot.digest), raw, source,
    )  # fmt: skip
    return snapshot


async def beyond(conn: Connection, known: Collection[tuple[str, str]]) -> list[bytes]:
    """The snapshots that are kept here and not known yet."""
    pairs: Sequence[tuple[str, str]] = sorted(known)
    rows = await conn.fetch(
        """SELECT snapshot FROM fedstac.vocabulary v
           WHERE NOT EXISTS (SELECT FROM unnest($1::text[], $2::text[]) k (project, version)
                             WHERE k.project = v.project AND k.version = v.version)
           ORDER BY installed""",
        [project for project, _ in pairs], [version for _, version in pairs],
    )  # fmt: skip
    return [bytes(row["snapshot"]) for row in rows]


async def documents(conn: Connection, project: str, *, page: int = 500) -> AsyncIterator[tuple[str, str]]:
    """Id and stored text of all datasets of a project, by id."""
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
