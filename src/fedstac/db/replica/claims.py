"""The queue of a replica node: whose turn it is, who fetches which files, and what became of them.

A dataset is placed first: each of its files gets the source that it is fetched from next. Workers then claim files of
one dataset and source at a time, and settle them. All statements are set-wise. The order of locks is claim, dataset,
files; whoever changes files of a dataset locks the dataset first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from fedstac.db import troubles
from fedstac.db.connections import Connection
from fedstac.db.replica import announcements
from fedstac.db.troubles import TroubleReport
from fedstac.domain.replication.budgets import Usage
from fedstac.domain.replication.placing import Closures, Obstacle, Placement
from fedstac.domain.replication.sharing import BATCH_FILES, QueuedDataset

ADMITTING = "SELECT pg_advisory_xact_lock(hashtext('fedstac.replica_admitting'))"  # into the budgets, one at a time
TAKING = "SELECT pg_advisory_xact_lock(hashtext('fedstac.replica_taking'))"  # caps are counted by one at a time
PLACED_AT_ONCE = 8  # datasets; their documents are read for it
MOVED_AT_ONCE = 200  # datasets of a source that is not asked any more
LISTED_OF_A_LANE = 64
TRANSFER = "transfer"
OPEN = Closures()
# A dataset that files are fetched for: its wait is over, or it does not wait.
WORKED_ON = """(d.state IN ('queued', 'transferring')
                OR d.state = 'waiting' AND coalesce(d.until, '-infinity') <= clock_timestamp())"""
CLAIMABLE = """f.state = 'queued' AND f.href IS NOT NULL AND coalesce(f.next_try, '-infinity') <= clock_timestamp()"""
# PostgreSQL would read all files at once for EXISTS.
HAS_UNPLACED = """((SELECT true FROM fedstac.replica_file f WHERE f.n = d.n AND f.state = 'queued' LIMIT 1) IS TRUE
    OR (SELECT true FROM fedstac.replica_file f WHERE f.n = d.n AND f.state = 'transferring' LIMIT 1) IS NULL)"""
# A dataset whose bytes count for the budget: they are here, or on their way.
ADMITTED = """(d.lane IS NOT NULL OR d.turn IS NOT NULL AND d.state IN ('waiting', 'parked')
               OR d.state IN ('transferring', 'checking', 'complete', 'announced', 'moving', 'removing',
                              'restricted'))"""
MOST_REPORTED = 20  # troubles in one transaction


class TransferLost(Exception):
    """Another process, or an event, has taken what this worker held."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that transfers. Its claims end when its database session ends."""

    name: str
    backend: int
    backend_start: datetime | None


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


# --- where files come from ---


@dataclass(frozen=True, slots=True)
class UnplacedDataset:
    """A dataset with files that have no source yet.

    assets: those files. faults: why a host is not asked for a file, by asset and host. placed_counts: how many files
    have a copy chosen, by lane.
    """

    n: int
    origin: str
    collection: str
    id: str
    tier: str
    rule: str
    size: int
    document: Mapping[str, Any]
    is_admitted: bool
    assets: tuple[str, ...]
    faults: Mapping[tuple[str, str], Obstacle]
    placed_counts: Mapping[str, int]


async def unplaced(conn: Connection, closures: Closures = OPEN) -> list[UnplacedDataset]:
    """Return the next datasets to be placed, locked; those of the highest priority whose turn was longest ago.

    Their files that would come from where nothing is asked for now are to be placed again.
    """
    rows = await conn.fetch(
        f"""WITH next AS MATERIALIZED (
                (SELECT d.n FROM fedstac.replica_dataset d
                 WHERE d.lane IS NULL AND d.state IN ('queued', 'transferring') AND {HAS_UNPLACED}
                 ORDER BY d.priority DESC, d.turn NULLS FIRST, d.n LIMIT $2)
                UNION ALL
                (SELECT d.n FROM fedstac.replica_dataset d
                 WHERE d.lane IS NULL AND d.state = 'waiting'
                   AND coalesce(d.until, '-infinity'::timestamptz) <= statement_timestamp() AND {HAS_UNPLACED}
                 ORDER BY d.priority DESC, d.turn NULLS FIRST, d.n LIMIT $2))
            SELECT d.n, d.origin, d.collection, d.id, d.tier, d.rule, d.size, d.document,
                   {ADMITTED} AS is_admitted
            FROM fedstac.replica_dataset d
            WHERE d.n = ANY(ARRAY(SELECT n FROM next)) AND d.lane IS NULL AND {WORKED_ON}
            ORDER BY d.priority DESC, d.turn NULLS FIRST, d.n LIMIT $1 FOR UPDATE SKIP LOCKED""",
        PLACED_AT_ONCE, LISTED_OF_A_LANE,
    )  # fmt: skip
    numbers = [row["n"] for row in rows]
    if not numbers:
        return []
    if closures.lanes or closures.hosts:
        await conn.execute(
            """UPDATE fedstac.replica_file SET href = NULL
               WHERE n = ANY($1::bigint[]) AND state = 'queued' AND href IS NOT NULL
                 AND (lane = ANY($2::text[]) OR source = ANY($3::text[]))""",
            numbers, list(closures.lanes), list(closures.hosts),
        )  # fmt: skip
    assets: dict[int, list[str]] = {n: [] for n in numbers}
    placed_counts: dict[int, dict[str, int]] = {n: {} for n in numbers}
    for row in await conn.fetch(
        """SELECT n, CASE WHEN href IS NOT NULL THEN lane END AS lane, count(*),
                  array_agg(asset ORDER BY asset) FILTER (WHERE href IS NULL) AS assets
           FROM fedstac.replica_file WHERE n = ANY($1::bigint[]) AND state = 'queued' GROUP BY 1, 2""",
        numbers,
    ):
        if row["lane"] is None:
            assets[row["n"]] = row["assets"]
        else:
            placed_counts[row["n"]][row["lane"]] = row["count"]
    faults: dict[int, dict[tuple[str, str], Obstacle]] = {n: {} for n in numbers}
    for row in await conn.fetch(
        """SELECT n, asset, host, reason, until FROM fedstac.replica_source_fault
           WHERE n = ANY($1::bigint[]) AND coalesce(until, 'infinity') > clock_timestamp()""",
        numbers,
    ):
        faults[row["n"]][row["asset"], row["host"]] = Obstacle(row["reason"], row["until"])
    return [
        UnplacedDataset(
            row["n"], row["origin"], row["collection"], row["id"], row["tier"], row["rule"], row["size"],
            orjson.loads(row["document"]), row["is_admitted"], tuple(assets[row["n"]]), faults[row["n"]],
            placed_counts[row["n"]],
        )
        for row in rows
    ]  # fmt: skip


async def usage(conn: Connection) -> Usage:
    """Return the bytes that count for the budgets."""
    rows = await conn.fetch(
        f"SELECT d.rule, sum(d.size)::bigint AS size FROM fedstac.replica_dataset d WHERE {ADMITTED} GROUP BY d.rule"
    )
    sizes = {row["rule"]: row["size"] for row in rows}
    return Usage(sum(sizes.values()), sizes)


async def write_places(conn: Connection, placements: Mapping[int, Placement]) -> None:
    """Store where files come from next, which wait, and which have failed. Call it in the transaction of `unplaced`."""
    changes = [
        *((n, each.asset, "queued", each.host, each.href, each.node, each.lane, None, None)
          for n, placement in placements.items() for each in placement.places),
        *((n, each.asset, "queued", None, None, None, None, each.reason, each.until)
          for n, placement in placements.items() for each in placement.waiting),
        *((n, each.asset, "failed", None, None, None, None, each.reason, None)
          for n, placement in placements.items() for each in placement.failed),
    ]  # fmt: skip
    if changes:
        await conn.execute(
            """UPDATE fedstac.replica_file f
               SET state = p.state, source = coalesce(p.source, f.source), href = p.href, node = p.node, lane = p.lane,
                   reason = coalesce(p.reason, f.reason), next_try = p.next_try
               FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                           $8::text[], $9::timestamptz[])
                    p (n, asset, state, source, href, node, lane, reason, next_try)
               WHERE f.n = p.n AND f.asset = p.asset AND f.state = 'queued'""",
            *map(list, zip(*changes, strict=True)),
        )  # fmt: skip
    obstacles = {n: placement.obstacle for n, placement in placements.items()}
    await conn.execute(
        """UPDATE fedstac.replica_dataset d
           SET lane = p.lane,
               state = CASE WHEN p.lane IS NOT NULL AND d.state = 'waiting' THEN 'queued'
                            WHEN p.waits THEN 'waiting' ELSE d.state END,
               reason = CASE WHEN p.lane IS NOT NULL THEN '' ELSE coalesce(p.reason, d.reason) END,
               until = p.until,
               since = CASE WHEN p.waits = (d.state = 'waiting') THEN d.since ELSE clock_timestamp() END,
               updated = clock_timestamp()
           FROM unnest($1::bigint[], $2::text[], $3::text[], $4::timestamptz[], $5::boolean[])
                p (n, lane, reason, until, waits) WHERE d.n = p.n""",
        list(placements), [placement.lane for placement in placements.values()],
        [obstacle.reason if obstacle else None for obstacle in obstacles.values()],
        [obstacle.until if obstacle else None for obstacle in obstacles.values()],
        [obstacle is not None and obstacle.until is not None for obstacle in obstacles.values()],
    )  # fmt: skip
    await finish_datasets(conn, list(placements))


async def hold(conn: Connection, obstacles: Mapping[int, Obstacle]) -> None:
    """Let datasets wait that cannot go on now: the budget, the disk. Call it in the transaction that locked them."""
    await conn.execute(
        """UPDATE fedstac.replica_dataset d
           SET since = CASE WHEN d.state = 'waiting' AND d.reason = p.reason THEN d.since ELSE clock_timestamp() END,
               state = 'waiting', reason = p.reason, until = p.until, updated = clock_timestamp()
           FROM unnest($1::bigint[], $2::text[], $3::timestamptz[]) p (n, reason, until)
           WHERE d.n = p.n AND d.state IN ('queued', 'transferring', 'waiting')""",
        list(obstacles), [each.reason for each in obstacles.values()], [each.until for each in obstacles.values()],
    )  # fmt: skip


async def hold_larger(conn: Connection, room: int, rule: str | None, reason: str, seconds: float) -> None:
    """Let all datasets wait that have no place yet and are larger than the room of a budget: of a rule, or of all.

    Call it under ADMITTING. Those that another process places now are left alone.
    """
    await conn.execute(
        f"""WITH larger AS MATERIALIZED (
                SELECT d.n FROM fedstac.replica_dataset d
                WHERE d.lane IS NULL AND {WORKED_ON} AND NOT ({ADMITTED})
                  AND d.size > $1 AND d.rule = coalesce($2, d.rule)
                ORDER BY d.n FOR UPDATE SKIP LOCKED)
            UPDATE fedstac.replica_dataset d
            SET since = CASE WHEN d.state = 'waiting' AND d.reason = $3 THEN d.since ELSE clock_timestamp() END,
                state = 'waiting', reason = $3, until = clock_timestamp() + make_interval(secs => $4),
                updated = clock_timestamp()
            FROM larger l WHERE d.n = l.n""",
        room, rule, reason, seconds,
    )  # fmt: skip


async def leave_lanes(conn: Connection, lanes: Collection[str]) -> int:
    """Take the next files of lanes that are closed back to those to be placed; return of how many datasets."""
    rows = await conn.fetch(
        f"""WITH left_over AS MATERIALIZED (
                SELECT d.n FROM fedstac.replica_dataset d WHERE d.lane = ANY($1::text[]) AND {WORKED_ON}
                ORDER BY d.lane, d.priority DESC, d.turn NULLS FIRST LIMIT $2 FOR UPDATE SKIP LOCKED),
            files AS (
                UPDATE fedstac.replica_file f SET href = NULL FROM left_over l
                WHERE f.n = l.n AND f.state = 'queued' AND f.lane = ANY($1::text[]))
            UPDATE fedstac.replica_dataset d SET lane = NULL FROM left_over l WHERE d.n = l.n RETURNING d.n""",
        list(lanes), MOVED_AT_ONCE,
    )  # fmt: skip
    return len(rows)


async def lanes(conn: Connection) -> set[str]:
    """Return the lanes that datasets wait in. It looks at all that are under way; ask when the policy has changed."""
    rows = await conn.fetch(
        """SELECT DISTINCT lane FROM fedstac.replica_dataset
           WHERE lane IS NOT NULL AND state IN ('queued', 'transferring', 'waiting')"""
    )
    return {row["lane"] for row in rows}


async def leave_hosts(conn: Connection, hosts: Collection[str]) -> int:
    """Take the next files of hosts that are away back to those to be placed; return of how many datasets."""
    rows = await conn.fetch(
        """WITH left_over AS MATERIALIZED (
               SELECT d.n FROM fedstac.replica_dataset d
               WHERE d.n = ANY(ARRAY(
                   SELECT f.n FROM unnest($1::text[]) h (host)
                   CROSS JOIN LATERAL (
                       SELECT DISTINCT f.n FROM fedstac.replica_file f
                       WHERE f.source = h.host AND f.state = 'queued' AND f.href IS NOT NULL ORDER BY f.n LIMIT $2) f))
               ORDER BY d.n FOR UPDATE SKIP LOCKED),
           files AS (
               UPDATE fedstac.replica_file f SET href = NULL FROM left_over l
               WHERE f.n = l.n AND f.state = 'queued' AND f.href IS NOT NULL AND f.source = ANY($1::text[]))
           UPDATE fedstac.replica_dataset d SET lane = NULL FROM left_over l WHERE d.n = l.n RETURNING d.n""",
        list(hosts), MOVED_AT_ONCE,
    )  # fmt: skip
    return len(rows)


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


# --- settling ---


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of a file.

    state: verified, queued or failed. counted: the attempt is one of those a file has. keeps_source: the next attempt
    goes to the same source. pause: seconds before it. fault_seconds: how long this source is not asked for the file;
    None: it may be, infinite: never again. is_wrong: the source has another content. bytes: how many of it are here.
    """

    asset: str
    state: str
    bytes: int
    reason: str = ""
    node: str = ""  # whose copy it was
    source: str = ""  # the host
    counted: bool = False
    progressed: bool = False
    keeps_source: bool = True
    pause: float = 0.0
    fault_seconds: float | None = None
    is_wrong: bool = False


async def settle(
    conn: Connection, transfer: Transfer, results: Sequence[FileResult], *, ends: bool, waits: Obstacle | None = None
) -> None:
    """Store what became of files of a claim, and finish the dataset if they were its last. TransferLost.

    ends: the claim is over; files that have no result are queued as they were. waits: why the dataset cannot go on.
    """
    async with conn.transaction():
        if not await conn.fetchval(
            "SELECT true FROM fedstac.replica_claim WHERE token = $1 FOR UPDATE", transfer.token
        ):
            raise TransferLost
        await conn.execute("SELECT FROM fedstac.replica_dataset WHERE n = $1 FOR UPDATE", transfer.n)
        await _write_results(conn, transfer, results)
        await _write_faults(conn, transfer, results)
        if ends:
            await conn.execute(
                """UPDATE fedstac.replica_file SET state = 'queued', claim = NULL, claim_until = NULL
                   WHERE n = $1 AND claim = $2""",
                transfer.n, transfer.token,
            )  # fmt: skip
            await conn.execute("DELETE FROM fedstac.replica_claim WHERE token = $1", transfer.token)
        if waits is not None:
            await hold(conn, {transfer.n: waits})
        await finish_datasets(conn, [transfer.n])


async def _write_results(conn: Connection, transfer: Transfer, results: Sequence[FileResult]) -> None:
    if not results:
        return
    await conn.execute(
        """UPDATE fedstac.replica_file f
           SET state = r.state, reason = r.reason, done_bytes = r.bytes, claim = NULL, claim_until = NULL,
               attempts = CASE WHEN r.progressed THEN 0 ELSE f.attempts END + r.counted::integer,
               href = CASE WHEN r.keeps_source THEN f.href END,
               next_try = CASE WHEN r.pause > 0 THEN clock_timestamp() + make_interval(secs => r.pause) END,
               verified_at = CASE WHEN r.state = 'verified' THEN clock_timestamp() END
           FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[], $7::boolean[], $8::boolean[], $9::boolean[],
                       $10::float8[]) r (asset, state, reason, bytes, progressed, counted, keeps_source, pause)
           WHERE f.n = $1 AND f.claim = $2 AND f.asset = r.asset""",
        transfer.n, transfer.token, [each.asset for each in results], [each.state for each in results],
        [each.reason for each in results], [each.bytes for each in results], [each.progressed for each in results],
        [each.counted for each in results], [each.keeps_source for each in results], [each.pause for each in results],
    )  # fmt: skip


async def _write_faults(conn: Connection, transfer: Transfer, results: Sequence[FileResult]) -> None:
    """Store which source is not asked for which file, and tell operators of those that have another content."""
    faults = [each for each in results if each.fault_seconds is not None]
    if not faults:
        return
    await conn.execute(
        """INSERT INTO fedstac.replica_source_fault AS s (n, asset, node, host, reason, until)
           SELECT $1, f.asset, f.node, f.host, f.reason,
                  CASE WHEN f.seconds < 'infinity' THEN clock_timestamp() + make_interval(secs => f.seconds) END
           FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::float8[])
                f (asset, node, host, reason, seconds)
           ON CONFLICT (n, asset, node) DO UPDATE SET host = EXCLUDED.host, reason = EXCLUDED.reason, at = now(),
                  until = CASE WHEN s.until IS NULL THEN NULL ELSE EXCLUDED.until END""",
        transfer.n, [each.asset for each in faults], [each.node for each in faults], [each.source for each in faults],
        [each.reason for each in faults], [each.fault_seconds for each in faults],
    )  # fmt: skip
    wrong = [each for each in faults if each.is_wrong]
    await troubles.report_all(
        conn, "replica-source", place=transfer.lane,
        reports=[TroubleReport(f"{transfer.id}, {each.asset}: the file at {each.source} is wrong", each.reason)
                 for each in wrong[:MOST_REPORTED]],
    )  # fmt: skip


async def finish_datasets(conn: Connection, numbers: Sequence[int]) -> None:
    """Complete the datasets whose last file is verified, and park those that nothing more can be done for.

    Call it in a transaction, in a statement after the one that locked them. A dataset whose files have another source
    now is placed anew. Operators are told of what is parked.
    """
    endings = await conn.fetch(
        """WITH files AS MATERIALIZED (
               SELECT d.n,
                      EXISTS (SELECT FROM fedstac.replica_file f
                              WHERE f.n = d.n AND f.state IN ('queued', 'transferring')) AS is_open,
                      EXISTS (SELECT FROM fedstac.replica_file f WHERE f.n = d.n AND f.state = 'queued') AS has_queued,
                      EXISTS (SELECT FROM fedstac.replica_file f WHERE f.n = d.n AND f.state = 'queued'
                                AND f.href IS NOT NULL AND f.lane = d.lane) AS has_placed,
                      (SELECT f.asset || ': ' || coalesce(f.reason, '') FROM fedstac.replica_file f
                       WHERE f.n = d.n AND f.state = 'failed' ORDER BY f.asset LIMIT 1) AS failure
               FROM fedstac.replica_dataset d
               WHERE d.n = ANY($1::bigint[]) AND d.state IN ('queued', 'transferring', 'waiting')),
           placed_anew AS (
               UPDATE fedstac.replica_dataset d SET lane = NULL FROM files f
               WHERE d.n = f.n AND f.has_queued AND NOT f.has_placed AND d.lane IS NOT NULL)
           UPDATE fedstac.replica_dataset d
           SET state = CASE WHEN f.failure IS NOT NULL THEN 'parked'
                            WHEN coalesce(d."check", '') <> '' THEN 'checking' ELSE 'complete' END,
               reason = coalesce(f.failure, ''), until = NULL, lane = NULL, since = clock_timestamp(),
               updated = clock_timestamp(), next_try = NULL, attempts = 0
           FROM files f WHERE d.n = f.n AND NOT f.is_open
           RETURNING d.n, d.id, d.state, d.reason""",
        list(numbers),
    )
    await announcements.request(conn, [row["n"] for row in endings if row["state"] == "complete"])
    reports = [TroubleReport(f"{row['id']} is parked", row["reason"]) for row in endings if row["state"] == "parked"]
    await troubles.report_all(conn, "replica-parked", place="transfers", reports=reports[:MOST_REPORTED])


# --- checking ---


@dataclass(frozen=True, slots=True)
class QueuedCheck:
    """A dataset whose files are all here, and the command that looks at them; None: its rule has none any more.

    attempts: how often the command was interrupted. files: tier and path of each.
    """

    token: UUID
    n: int
    collection: str
    id: str
    command: str | None
    attempts: int
    files: tuple[tuple[str, str], ...]


async def take_checks(
    conn: Connection, worker: Worker, tokens: Sequence[UUID], lease_seconds: float
) -> list[QueuedCheck]:
    """Claim datasets that are to be checked, at most one for each token. Call it in a transaction."""
    rows = await conn.fetch(
        """WITH due AS MATERIALIZED (
               SELECT d.n, row_number() OVER () AS place FROM (
                   SELECT d.n FROM fedstac.replica_dataset d
                   WHERE d.state = 'checking' AND coalesce(d.next_try, '-infinity') <= clock_timestamp()
                     AND NOT EXISTS (SELECT FROM fedstac.replica_claim c WHERE c.n = d.n)
                   ORDER BY d.priority DESC, d.since LIMIT cardinality($1::uuid[]) FOR UPDATE SKIP LOCKED) d),
           claim AS (
               INSERT INTO fedstac.replica_claim (token, n, kind, worker, backend, backend_start, until)
               SELECT ($1::uuid[])[due.place], due.n, 'check', $2, $3, $4,
                      clock_timestamp() + make_interval(secs => $5) FROM due RETURNING token, n)
           SELECT claim.token, claim.n, d.collection, d.id, d."check" AS command, d.attempts FROM claim
           JOIN fedstac.replica_dataset d USING (n)""",
        list(tokens), worker.name, worker.backend, worker.backend_start, lease_seconds,
    )  # fmt: skip
    files: dict[int, list[tuple[str, str]]] = {row["n"]: [] for row in rows}
    if rows:
        for row in await conn.fetch(
            "SELECT n, tier, path FROM fedstac.replica_file WHERE n = ANY($1::bigint[]) ORDER BY n, path", list(files)
        ):
            files[row["n"]].append((row["tier"], row["path"]))
    return [QueuedCheck(**dict(row), files=tuple(files[row["n"]])) for row in rows]


async def settle_check(conn: Connection, check: QueuedCheck, *, passes: bool, reason: str) -> None:
    """Complete a dataset that passed, or park it with what the command said; operators are told. TransferLost."""
    async with conn.transaction():
        await _end_check(conn, check)
        state = await conn.fetchval(
            """UPDATE fedstac.replica_dataset
               SET state = CASE WHEN $2 THEN 'complete' ELSE 'parked' END, reason = $3, next_try = NULL, attempts = 0,
                   since = clock_timestamp(), updated = clock_timestamp()
               WHERE n = $1 AND state = 'checking' RETURNING state""",
            check.n, passes, reason,
        )  # fmt: skip
        if state == "complete":
            await announcements.request(conn, [check.n])
        elif state == "parked":
            report = TroubleReport(f"{check.id} is parked", reason)
            await troubles.report_all(conn, "replica-parked", place="checks", reports=[report])


async def put_off_check(
    conn: Connection, check: QueuedCheck, *, reason: str, pause: float, counted: bool = False
) -> None:
    """Release a dataset that could not be checked by no fault of its own; it is checked after a pause. TransferLost."""
    async with conn.transaction():
        await _end_check(conn, check)
        await conn.execute(
            """UPDATE fedstac.replica_dataset
               SET reason = $2, next_try = clock_timestamp() + make_interval(secs => $3),
                   attempts = attempts + $4::boolean::integer, updated = clock_timestamp()
               WHERE n = $1 AND state = 'checking'""",
            check.n, reason, pause, counted,
        )  # fmt: skip


async def _end_check(conn: Connection, check: QueuedCheck) -> None:
    deleted = await conn.fetchval("DELETE FROM fedstac.replica_claim WHERE token = $1 RETURNING true", check.token)
    if not deleted:
        raise TransferLost
    await conn.execute("SELECT FROM fedstac.replica_dataset WHERE n = $1 FOR UPDATE", check.n)
