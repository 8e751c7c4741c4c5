"""Files that are adopted: on the disk already, with the checksum of a dataset that this node wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedstac.db.connections import Connection
from fedstac.db.replica import looks, settling
from fedstac.db.replica.looks import FoundFault


@dataclass(frozen=True, slots=True)
class ImportCandidate:
    """A file that a dataset has, or will have, at a path of a tier."""

    n: int
    asset: str
    path: str
    tier: str
    size: int | None
    checksum: str | None
    is_verified: bool


async def candidates(conn: Connection, tier: str, paths: Sequence[str]) -> dict[str, ImportCandidate]:
    """Return the recorded files of these paths in a tier, by path; of two, the one that is verified, then the first."""
    rows = await conn.fetch(
        """SELECT DISTINCT ON (f.path) f.n, f.asset, f.path, f.tier, f.size, f.checksum,
                  f.state = 'verified' AS is_verified
           FROM unnest($2::text[]) p (path) JOIN fedstac.replica_file f ON f.path = p.path AND f.tier = $1
           ORDER BY f.path, f.state <> 'verified', f.n""",
        tier, list(paths),
    )  # fmt: skip
    return {row["path"]: ImportCandidate(**dict(row)) for row in rows}


async def store(
    conn: Connection, look: int, tier: str, last: str, adopted_files: Sequence[ImportCandidate],
    faults: Sequence[FoundFault], *, on_disk: int, bytes: int,
) -> None:  # fmt: skip
    """Adopt files, store what was not adopted, and move the import on behind the path `last`, in one transaction.

    Datasets that are whole by it are finished as after a transfer. A file that a worker copies at the moment is left
    to it: the worker finds it whole.
    """
    async with conn.transaction():
        count = 0
        if adopted_files:
            await conn.execute(
                "SELECT FROM fedstac.replica_dataset WHERE n = ANY ($1::bigint[]) ORDER BY n FOR UPDATE",
                [each.n for each in adopted_files],
            )
            rows = await conn.fetch(
                """UPDATE fedstac.replica_file f
                   SET state = 'verified', reason = '', source = NULL, done_bytes = coalesce(f.size, 0), attempts = 0,
                       next_try = NULL, href = NULL, lane = NULL, verified_at = clock_timestamp()
                   FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[])
                        p (n, asset, tier, path, checksum)
                   WHERE f.n = p.n AND f.asset = p.asset AND f.tier = p.tier AND f.path = p.path
                     AND f.checksum = p.checksum AND f.state IN ('queued', 'failed')
                   RETURNING f.n""",
                [each.n for each in adopted_files], [each.asset for each in adopted_files],
                [each.tier for each in adopted_files], [each.path for each in adopted_files],
                [each.checksum for each in adopted_files],
            )  # fmt: skip
            count = len(rows)
            numbers = sorted({row["n"] for row in rows})
            await conn.execute(  # parked for a file that was here all the time
                """UPDATE fedstac.replica_dataset d SET state = 'queued', reason = '', since = clock_timestamp()
                   WHERE d.n = ANY ($1::bigint[]) AND d.state = 'parked' AND d.goal = 'serve'
                     AND NOT EXISTS (SELECT FROM fedstac.replica_file f WHERE f.n = d.n AND f.state = 'failed')""",
                numbers,
            )
            await settling.finish_datasets(conn, numbers)
        await looks.store(conn, look, faults)
        await conn.execute(
            """UPDATE fedstac.replica_look SET after_tier = $2, after_path = $3, on_disk = on_disk + $4,
                      adopted = adopted + $5, bytes = bytes + $6, updated = clock_timestamp() WHERE id = $1""",
            look, tier, last, on_disk, count, bytes,
        )  # fmt: skip
