"""What the origins are told of this node's copies: that a dataset is a replica here, or is none any more.

There is one announcement of a dataset, the newest. It is queued, then sent: the request that the origin made of it is
stored before it is followed. One process announces at a time, and what it leaves the next one goes on with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from fedstac.db import troubles
from fedstac.db.connections import Connection
from fedstac.db.troubles import TroubleReport

ANNOUNCER_LOCK = 0x666564_05  # advisory lock of the one process that announces
MOST_REPORTED = 20  # troubles in one transaction
ADD = "add"


ANY_OPEN = "EXISTS (SELECT FROM fedstac.replica_announcement WHERE state IN ('queued', 'sent') AND state <> 'done')"


async def lead(session: Connection) -> bool:
    """Return whether this session is the one that announces. The lock goes with the session."""
    return bool(await session.fetchval("SELECT pg_try_advisory_lock($1)", ANNOUNCER_LOCK))


async def request(conn: Connection, numbers: Sequence[int]) -> None:
    """Queue the announcement that these datasets are replicas here. It replaces what was to be told before."""
    if numbers:
        await conn.execute(
            """INSERT INTO fedstac.replica_announcement AS a (n, kind)
               SELECT n, 'add' FROM unnest($1::bigint[]) n ORDER BY n
               ON CONFLICT (n) DO UPDATE SET kind = 'add', state = 'queued', reason = '', request = NULL,
                      digest = NULL, attempts = 0, conflicts = 0, next_try = NULL, updated = clock_timestamp()""",
            list(numbers),
        )


async def withdraw(conn: Connection, numbers: Sequence[int]) -> None:
    """Queue the announcement that locked datasets are no replicas here, where the origin may have our entry."""
    await conn.execute(
        """INSERT INTO fedstac.replica_announcement AS a (n, kind)
           SELECT d.n, 'remove' FROM fedstac.replica_dataset d
           WHERE d.n = ANY ($1::bigint[])
             AND (d.announced_digest IS NOT NULL
                  OR EXISTS (SELECT FROM fedstac.replica_announcement o WHERE o.n = d.n)) ORDER BY d.n
           ON CONFLICT (n) DO UPDATE SET kind = 'remove', state = 'queued', reason = '', request = NULL,
                  digest = NULL, attempts = 0, conflicts = 0, next_try = NULL, updated = clock_timestamp()
           WHERE a.kind = 'add' OR a.state = 'parked'""",
        list(numbers),
    )


async def drop(conn: Connection, numbers: Sequence[int]) -> None:
    """Forget what was to be told of datasets that the origin has deleted: their entries went with them."""
    await conn.execute("DELETE FROM fedstac.replica_announcement WHERE n = ANY ($1::bigint[])", list(numbers))


@dataclass(frozen=True, slots=True)
class ReplicaAnnouncement:
    """What one origin is to be told of one dataset.

    attempts: failures in all; conflicts: those of them with how things stood there. request: the origin's, where it was
    sent already. digest: of the copies that it was told of; None: of none yet.
    """

    n: int
    kind: str
    origin: str
    collection: str
    id: str
    attempts: int
    conflicts: int
    seq: int
    request: UUID | None
    digest: bytes | None = None


async def due(conn: Connection, state: str, limit: int, *, without: Collection[str] = ()) -> list[ReplicaAnnouncement]:
    """Return announcements in this state whose time has come, but for those of some origins."""
    rows = await conn.fetch(
        """SELECT a.n, a.kind, d.origin, d.collection, d.id, a.attempts, a.conflicts, d.seq, a.request, a.digest
           FROM fedstac.replica_announcement a JOIN fedstac.replica_dataset d USING (n)
           WHERE a.state = $1 AND coalesce(a.next_try, '-infinity') <= clock_timestamp()
             AND d.origin <> ALL ($3::text[])
           ORDER BY a.next_try NULLS FIRST, a.n LIMIT $2""",
        state, limit, list(without),
    )  # fmt: skip
    return [ReplicaAnnouncement(**dict(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file that is here, whole and verified."""

    asset: str
    path: str
    tier: str
    size: int | None
    checksum: str | None


@dataclass(frozen=True, slots=True)
class CopiedDataset:
    """What an announcement says: the files that are here, and the digest of all that identifies them."""

    files: tuple[CopiedFile, ...]
    digest: bytes


async def read_copies(conn: Connection, numbers: Sequence[int]) -> Mapping[int, CopiedDataset]:
    """Return those of the datasets that may be announced now: complete, every file verified, none missing.

    The digest of what is going to be told is stored with the announcement. What may not be announced is withdrawn: the
    completion of the dataset will request it anew. Call it in a transaction; the datasets are locked until its end.
    """
    await conn.execute(
        "SELECT FROM fedstac.replica_dataset WHERE n = ANY($1::bigint[]) ORDER BY n FOR UPDATE", list(numbers)
    )
    rows = await conn.fetch(
        """SELECT f.n, f.asset, f.path, f.tier, f.size, f.checksum
           FROM fedstac.replica_dataset d JOIN fedstac.replica_file f USING (n)
           WHERE d.n = ANY($1::bigint[]) AND d.state IN ('complete', 'announced') AND d.tier <> 'restricted'
             AND NOT EXISTS (SELECT FROM fedstac.replica_file o WHERE o.n = d.n AND o.state <> 'verified')
           ORDER BY f.n, f.asset""",
        list(numbers),
    )
    by_dataset: dict[int, list[CopiedFile]] = {}
    digests = {row["n"]: hashlib.sha256() for row in rows}
    for row in rows:
        by_dataset.setdefault(row["n"], []).append(CopiedFile(*tuple(row)[1:]))
        digests[row["n"]].update(repr(tuple(row)[1:]).encode())
    copies = {n: CopiedDataset(tuple(files), digests[n].digest()) for n, files in by_dataset.items()}
    await conn.execute(
        """UPDATE fedstac.replica_announcement a SET digest = c.digest
           FROM unnest($1::bigint[], $2::bytea[]) c (n, digest)
           WHERE a.n = c.n AND a.kind = 'add' AND a.state = 'queued'""",
        list(copies), [each.digest for each in copies.values()],
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.replica_announcement SET state = 'done', reason = 'the dataset is not complete any more'
           WHERE n = ANY($1::bigint[]) AND kind = 'add' AND state = 'queued'""",
        [n for n in numbers if n not in copies],
    )
    return copies


@dataclass(frozen=True, slots=True)
class OriginAnswer:
    """What an origin said to an announcement.

    state: sent (`request` is to be followed), done, queued (tried again after `pause` seconds) or parked. reason: why.
    """

    announcement: ReplicaAnnouncement
    state: str
    request: UUID | None = None
    reason: str = ""
    pause: float = 0.0
    counted: bool = False
    is_conflict: bool = False


async def store(conn: Connection, before: str, answers: Sequence[OriginAnswer]) -> None:
    """Store what origins said to announcements that were in the state `before`; of those that stand as they did.

    One that was requested anew meanwhile has no digest yet: what was said to the old one is no answer to it. A dataset
    whose entry is there is `announced`, if it is what was announced; one that is refused is parked, and operators are
    told. Call it in a transaction.
    """
    if not answers:
        return
    rows = await conn.fetch(
        """WITH answer AS MATERIALIZED (
               SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::float8[],
                                    $7::boolean[], $8::uuid[], $10::bytea[], $11::boolean[])
                             r (n, kind, state, request, reason, pause, counted, earlier, digest, is_conflict)),
           dataset AS MATERIALIZED (
               SELECT d.n FROM fedstac.replica_dataset d WHERE d.n IN (SELECT n FROM answer) ORDER BY d.n FOR UPDATE),
           told AS (
               UPDATE fedstac.replica_announcement a
               SET state = r.state, request = coalesce(r.request, CASE WHEN r.state = 'sent' THEN a.request END),
                   reason = r.reason, attempts = a.attempts + r.counted::integer,
                   conflicts = a.conflicts + r.is_conflict::integer,
                   next_try = clock_timestamp() + make_interval(secs => r.pause), updated = clock_timestamp()
               FROM answer r JOIN dataset USING (n)
               WHERE a.n = r.n AND a.kind = r.kind AND a.state = $9 AND a.request IS NOT DISTINCT FROM r.earlier
                 AND a.digest IS NOT DISTINCT FROM r.digest
               RETURNING a.n, a.kind, a.state, a.reason, a.request, a.digest)
           UPDATE fedstac.replica_dataset d
           SET request = CASE WHEN t.state = 'sent' THEN t.request END,
               announced_digest = CASE WHEN t.state <> 'done' THEN d.announced_digest
                                       WHEN t.kind = 'add' THEN t.digest END,
               state = CASE WHEN d.state <> 'complete' OR t.kind <> 'add' THEN d.state
                            WHEN t.state = 'done' THEN 'announced' WHEN t.state = 'parked' THEN 'parked'
                            ELSE d.state END,
               since = CASE WHEN d.state = 'complete' AND t.kind = 'add' AND t.state IN ('done', 'parked')
                            THEN clock_timestamp() ELSE d.since END,
               reason = CASE WHEN d.state = 'complete' AND t.kind = 'add' THEN t.reason ELSE d.reason END,
               updated = clock_timestamp()
           FROM told t WHERE d.n = t.n
           RETURNING d.id, d.origin, t.kind, t.state, t.reason""",
        [each.announcement.n for each in answers], [each.announcement.kind for each in answers],
        [each.state for each in answers], [each.request for each in answers], [each.reason for each in answers],
        [each.pause for each in answers], [each.counted for each in answers],
        [each.announcement.request for each in answers], before, [each.announcement.digest for each in answers],
        [each.is_conflict for each in answers],
    )  # fmt: skip
    reports = [
        TroubleReport(f"{row['origin']} refuses to {row['kind']} the replica of {row['id']}", row["reason"])
        for row in rows
        if row["state"] == "parked"
    ]
    await troubles.report_all(conn, "replica-parked", place="announcements", reports=reports[:MOST_REPORTED])
