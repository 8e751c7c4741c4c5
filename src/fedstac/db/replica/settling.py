"""What becomes of the files that a worker has claimed, and of their dataset once there are no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedstac.db import troubles
from fedstac.db.connections import Connection
from fedstac.db.replica import announcements
from fedstac.db.replica.claims import Transfer, TransferLost
from fedstac.db.troubles import TroubleReport
from fedstac.domain.replication.placing import Obstacle

MOST_REPORTED = 20  # troubles in one transaction


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
