"""The queue of a replica node: whose turn it is, and who fetches which files.

A dataset is placed first (placement_queue.py): each of its files gets the source that it is fetched from next. Workers
then claim files of one dataset and source at a time, and settle them (settling.py). Datasets whose files are all here
are checked (check_queue.py). All statements are set-wise. The order of locks is claim, dataset, files; whoever changes
files of a dataset locks the dataset first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from fedstac.db.connections import Connection
from fedstac.domain.replication.sharing import BATCH_FILES, QueuedDataset

TAKING = "SELECT pg_advisory_xact_lock(hashtext('fedstac.replica_taking'))"  # caps are counted by one at a time
LISTED_OF_A_LANE = 64
TRANSFER = "transfer"
# A dataset that files are fetched for: its wait is over, or it does not wait.
WORKED_ON = """(d.state IN ('queued', 'transferring')
                OR d.state = 'waiting' AND coalesce(d.until, '-infinity') <= clock_timestamp())"""
CLAIMABLE = """f.state = 'queued' AND f.href IS NOT NULL AND coalesce(f.next_try, '-infinity') <= clock_timestamp()"""


class TransferLost(Exception):
    """Another process, or an event, has taken what this worker held."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that transfers. Its claims end when its database session ends."""

    name: str
    backend: int
    backend_start: datetime | None


# Claims count as long as they are there: whose worker died are to be released.
ANY_WORK = """(
    EXISTS (SELECT FROM fedstac.replica_claim)
    OR EXISTS (SELECT FROM fedstac.replica_dataset
               WHERE state IN ('queued', 'transferring', 'waiting', 'checking')))"""


async def enter(session: Connection, name: str) -> Worker:
    """Return the worker of a session, a connection of its own that is kept open as long as the worker lives."""
    row = await session.fetchrow("SELECT pid, backend_start FROM pg_stat_get_activity(pg_backend_pid())")
    assert row is not None
    return Worker(name, row["pid"], row["backend_start"])


async def release_dead(conn: Connection) -> int:
    """Release what workers held that have died, or that have not renewed their lease. Return how many claims."""
    rows = await conn.fetch(
        """WITH session AS MATERIALIZED (SELECT pid, backend_start FROM pg_stat_activity),
           dead AS MATERIALIZED (
               SELECT token FROM fedstac.replica_claim c
               WHERE until < clock_timestamp() OR NOT EXISTS (
                   SELECT FROM session s WHERE s.pid = c.backend
                     AND coalesce(s.backend_start = c.backend_start, true))
               ORDER BY token FOR UPDATE SKIP LOCKED),
           datasets AS MATERIALIZED (
               SELECT d.n FROM fedstac.replica_dataset d
               WHERE d.n IN (SELECT c.n FROM fedstac.replica_claim c JOIN dead USING (token))
               ORDER BY d.n FOR UPDATE),
           released AS (
               UPDATE fedstac.replica_file f SET state = 'queued', claim = NULL, claim_until = NULL
               FROM dead WHERE f.claim = dead.token AND f.n IN (SELECT n FROM datasets))
           DELETE FROM fedstac.replica_claim c USING dead WHERE c.token = dead.token RETURNING c.token"""
    )
    return len(rows)


async def transfers_by_lane(conn: Connection) -> Counter[str]:
    """Return how many transfers are under way in each lane, in all processes."""
    rows = await conn.fetch("SELECT lane, count(*) FROM fedstac.replica_claim WHERE kind = $1 GROUP BY lane", TRANSFER)
    return Counter({row["lane"]: row["count"] for row in rows})


# --- taking ---


async def line_up(conn: Connection, lanes: Collection[str]) -> list[QueuedDataset]:
    """Return which datasets come next in each of these lanes, in the order in which they are served."""
    rows = await conn.fetch(
        f"""SELECT d.n, d.lane, d.priority, files.count
            FROM unnest($1::text[]) s (lane)
            CROSS JOIN LATERAL (
                SELECT d.n, d.lane, d.priority, d.turn FROM fedstac.replica_dataset d
                WHERE d.lane = s.lane AND {WORKED_ON}
                  AND EXISTS (SELECT FROM fedstac.replica_file f
                              WHERE f.n = d.n AND f.lane = d.lane AND {CLAIMABLE})
                ORDER BY d.priority DESC, d.turn NULLS FIRST, d.n LIMIT $2) d
            CROSS JOIN LATERAL (
                SELECT count(*) FROM (SELECT FROM fedstac.replica_file f
                                      WHERE f.n = d.n AND f.lane = d.lane AND {CLAIMABLE} LIMIT $3) file) files
            ORDER BY d.lane, d.priority DESC, d.turn NULLS FIRST, d.n""",
        list(lanes), LISTED_OF_A_LANE, LISTED_OF_A_LANE,
    )  # fmt: skip
    return [QueuedDataset(row["n"], row["lane"], row["priority"], row["count"]) for row in rows]


@dataclass(frozen=True, slots=True)
class QueuedFile:
    """A file to be fetched: whose copy of which host, where to, and what it has to be.

    `done_bytes` of it may be here already.
    """

    asset: str
    href: str
    node: str
    source: str
    path: str
    tier: str
    size: int | None
    checksum: str | None
    attempts: int
    done_bytes: int


@dataclass(frozen=True, slots=True)
class ClaimableDataset:
    """The next files of a dataset, locked for this transaction."""

    n: int
    collection: str
    id: str
    lane: str
    files: tuple[QueuedFile, ...]


async def next_files(conn: Connection, transfers: Mapping[int, int]) -> list[ClaimableDataset]:
    """Return and lock the next files of each dataset, as many as so many transfers can take at most."""
    rows = await conn.fetch(
        f"""WITH due AS MATERIALIZED (
                SELECT d.n, d.collection, d.id, d.lane, w.transfers
                FROM unnest($1::bigint[], $2::integer[]) w (n, transfers)
                JOIN fedstac.replica_dataset d ON d.n = w.n
                WHERE {WORKED_ON} ORDER BY d.n FOR UPDATE OF d SKIP LOCKED)
            SELECT due.n, due.collection, due.id, due.lane, f.asset, f.href, f.node, f.source, f.path, f.tier, f.size,
                   f.checksum, f.attempts, f.done_bytes
            FROM due CROSS JOIN LATERAL (
                SELECT * FROM fedstac.replica_file f WHERE f.n = due.n AND f.lane = due.lane AND {CLAIMABLE}
                ORDER BY f.asset LIMIT due.transfers * $3 FOR UPDATE OF f SKIP LOCKED) f
            ORDER BY due.n, f.asset""",
        list(transfers), list(transfers.values()), BATCH_FILES,
    )  # fmt: skip
    by_dataset: dict[int, list[Any]] = {}
    for row in rows:
        by_dataset.setdefault(row["n"], []).append(row)
    return [
        ClaimableDataset(
            n, files[0]["collection"], files[0]["id"], files[0]["lane"],
            tuple(QueuedFile(*(row[name] for name in QueuedFile.__slots__)) for row in files),
        )
        for n, files in by_dataset.items()
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one worker fetches: some files of one dataset, in one lane."""

    token: UUID
    n: int
    collection: str
    id: str
    lane: str
    files: tuple[QueuedFile, ...]


async def claim(conn: Connection, worker: Worker, transfers: Sequence[Transfer], lease_seconds: float) -> None:
    """Store that a worker fetches these files. Call it in the transaction of `next_files`, under TAKING."""
    await conn.execute(
        """INSERT INTO fedstac.replica_claim (token, n, kind, lane, worker, backend, backend_start, until)
           SELECT token, n, 'transfer', lane, $4, $5, $6, clock_timestamp() + make_interval(secs => $7)
           FROM unnest($1::uuid[], $2::bigint[], $3::text[]) t (token, n, lane)""",
        [each.token for each in transfers], [each.n for each in transfers], [each.lane for each in transfers],
        worker.name, worker.backend, worker.backend_start, lease_seconds,
    )  # fmt: skip
    pairs = [(each.token, each.n, file.asset) for each in transfers for file in each.files]
    await conn.execute(
        """UPDATE fedstac.replica_file f
           SET state = 'transferring', claim = c.token, claim_until = clock_timestamp() + make_interval(secs => $4)
           FROM unnest($1::uuid[], $2::bigint[], $3::text[]) c (token, n, asset)
           WHERE f.n = c.n AND f.asset = c.asset""",
        *map(list, zip(*pairs, strict=True)), lease_seconds,
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.replica_dataset
           SET since = CASE WHEN state = 'transferring' THEN since ELSE clock_timestamp() END,
               state = 'transferring', reason = '', until = NULL, turn = clock_timestamp(), updated = clock_timestamp()
           WHERE n = ANY($1::bigint[])""",
        list({each.n for each in transfers}),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How many bytes of a file are here."""

    token: UUID
    n: int
    asset: str
    bytes: int


async def renew(
    conn: Connection, tokens: Collection[UUID], progress: Sequence[FileProgress], lease_seconds: float
) -> set[UUID]:
    """Extend claims and store their progress. Return those that still stand; who held the others stops.

    The claims of a dataset whose files have to go (an event said so) stand no more.
    """
    rows = await conn.fetch(
        """UPDATE fedstac.replica_claim SET until = clock_timestamp() + make_interval(secs => $2)
           WHERE token IN (SELECT c.token FROM fedstac.replica_claim c JOIN fedstac.replica_dataset d USING (n)
                           WHERE c.token = ANY($1::uuid[])
                             AND d.state IN ('queued', 'transferring', 'waiting', 'checking')
                           ORDER BY c.token FOR UPDATE OF c) RETURNING token""",
        list(tokens), lease_seconds,
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.replica_file f
           SET done_bytes = p.bytes, claim_until = clock_timestamp() + make_interval(secs => $5)
           FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bigint[]) p (token, n, asset, bytes)
           WHERE f.n = p.n AND f.asset = p.asset AND f.claim = p.token""",
        [each.token for each in progress], [each.n for each in progress], [each.asset for each in progress],
        [each.bytes for each in progress], lease_seconds,
    )  # fmt: skip
    return {row["token"] for row in rows}


async def stands(conn: Connection, transfer: Transfer) -> bool:
    """Tell whether a worker still has a transfer: nobody released it, and its lease has not ended."""
    return bool(await conn.fetchval(
        "SELECT true FROM fedstac.replica_claim WHERE token = $1 AND until > clock_timestamp()", transfer.token
    ))  # fmt: skip


async def lacking_before(conn: Connection, token: UUID, tier: str) -> int:
    """Return the bytes that transfers which began before this one still lack in a tier. They become fewer only."""
    return int(
        await conn.fetchval(
            """SELECT coalesce(sum(greatest(f.size - f.done_bytes, 0)), 0)
               FROM fedstac.replica_claim own JOIN fedstac.replica_claim c ON (c.at, c.token) < (own.at, own.token)
               JOIN fedstac.replica_file f ON f.claim = c.token
               WHERE own.token = $1 AND f.tier = $2 AND f.state = 'transferring'""",
            token, tier,
        )
    )  # fmt: skip
