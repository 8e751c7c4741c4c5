"""A replica node's looks at its disk: how far they are, and what they found. One at a time.

Findings are stored in the transaction that moves the look on, so a look that is interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from fedstac.db import troubles
from fedstac.db.connections import Connection
from fedstac.db.replica import announcements
from fedstac.domain.errors import Conflict
from fedstac.domain.replication.verification import FileFault

LOOK_LOCK = 0x666564_07  # advisory lock of the process that looks
STALE_DAYS = 7  # after which an interrupted look is not gone on with
KEPT_LOOKS = 20
VERIFY, IMPORT = "verify", "import"


@dataclass(frozen=True, slots=True)
class DiskLook:
    """A look at the disk: what it compares, and its place."""

    id: int
    kind: str
    by_checksum: bool
    sample_percent: float
    folder: str
    phase: str  # files, entries, disk, done
    after_n: int
    after_asset: str
    after_tier: str | None
    after_path: str
    files: int
    on_disk: int
    bytes: int
    entries: int
    adopted: int
    brake: str
    started: datetime
    finished_at: datetime | None


COLUMNS = """id, kind, by_checksum, sample_percent, folder, phase, after_n, after_asset, after_tier, after_path, files,
             on_disk, bytes, entries, adopted, brake, started, finished_at"""


async def begin(
    conn: Connection, kind: str, *, by_checksum: bool, sample_percent: float = 100.0, folder: str = "",
    afresh: bool = False,
) -> DiskLook:  # fmt: skip
    """Return a look to go on with: the last of this kind, if it was interrupted and compares the same, or a new one.

    Conflict where another process looks at the disk now. The lock goes with the session.
    """
    if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", LOOK_LOCK):
        raise Conflict("another fedstac replica verify or import runs on this node; wait for its end")
    row = await conn.fetchrow(
        f"""SELECT {COLUMNS} FROM fedstac.replica_look
            WHERE kind = $1 AND by_checksum = $2 AND sample_percent = $3 AND folder = $4 AND finished_at IS NULL
              AND updated > clock_timestamp() - make_interval(days => $5) AND NOT $6
              AND id = (SELECT max(id) FROM fedstac.replica_look WHERE kind = $1)""",
        kind, by_checksum, sample_percent, folder, STALE_DAYS, afresh,
    )  # fmt: skip
    if row is None:
        async with conn.transaction():
            await conn.execute(
                """DELETE FROM fedstac.replica_look WHERE id <= (
                       SELECT id FROM fedstac.replica_look ORDER BY id DESC OFFSET $1 LIMIT 1)""",
                KEPT_LOOKS,
            )
            row = await conn.fetchrow(
                f"""INSERT INTO fedstac.replica_look (kind, by_checksum, sample_percent, folder)
                    VALUES ($1, $2, $3, $4) RETURNING {COLUMNS}""",
                kind, by_checksum, sample_percent, folder,
            )  # fmt: skip
    assert row is not None
    return DiskLook(**dict(row))


async def read(conn: Connection, id: int) -> DiskLook:
    """Return a look as it stands."""
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM fedstac.replica_look WHERE id = $1", id)
    assert row is not None
    return DiskLook(**dict(row))


async def enter_phase(conn: Connection, id: int, phase: str) -> None:
    """Begin the next phase of a look at its beginning. `done` finishes it."""
    await conn.execute(
        """UPDATE fedstac.replica_look
           SET phase = $2, after_n = 0, after_asset = '', after_tier = NULL, after_path = '',
               updated = clock_timestamp(), finished_at = CASE WHEN $2 = 'done' THEN clock_timestamp() END
           WHERE id = $1""",
        id, phase,
    )  # fmt: skip


# --- recorded files ---


@dataclass(frozen=True, slots=True)
class FileToVerify:
    """A file that is recorded as verified."""

    n: int
    asset: str
    path: str
    tier: str
    size: int | None
    checksum: str | None
    verified_at: datetime


async def recorded_files(conn: Connection, look: DiskLook, limit: int) -> list[FileToVerify]:
    """Return the next files of a look that should be on the disk; of a sample, those that chance has drawn for it."""
    rows = await conn.fetch(
        """SELECT n, asset, path, tier, size, checksum, verified_at FROM fedstac.replica_file
           WHERE (n, asset) > ($1, $2) AND state = 'verified' AND verified_at IS NOT NULL
             AND ($3 >= 100 OR abs(hashtextextended(asset, n * 1000003 + $4) % 1000000) < $3 * 10000)
           ORDER BY n, asset LIMIT $5""",
        look.after_n, look.after_asset, look.sample_percent, look.id, limit,
    )  # fmt: skip
    return [FileToVerify(**dict(row)) for row in rows]


async def tiers_with_files(conn: Connection) -> list[str]:
    """Return the tiers that have files of datasets."""
    rows = await conn.fetch("SELECT DISTINCT tier FROM fedstac.replica_file WHERE state = 'verified' ORDER BY tier")
    return [row["tier"] for row in rows]


async def count_recorded(conn: Connection) -> int:
    """Return how many files should be on the disk."""
    return int(await conn.fetchval("SELECT count(*) FROM fedstac.replica_file WHERE state = 'verified'"))


@dataclass(frozen=True, slots=True)
class FoundFault:
    """What is wrong with a file or an entry. `changed_at`: of the file on disk, in seconds since the epoch."""

    fault: FileFault
    detail: str
    n: int | None = None
    asset: str | None = None
    tier: str = ""
    path: str = ""
    size: int | None = None
    changed_at: float | None = None
    verified_at: datetime | None = None


async def store_files(
    conn: Connection, id: int, last: FileToVerify, faults: Sequence[FoundFault], *, files: int, bytes: int
) -> int:
    """Store what is wrong with files, and move the look on behind `last`. Return how many faults are new.

    A file that was replaced or moved since it was read from the database is no fault.
    """
    async with conn.transaction():
        rows = await conn.fetch(
            """INSERT INTO fedstac.replica_finding (look, fault, n, asset, tier, path, size, changed_at, detail)
               SELECT $1, p.fault, p.n, p.asset, p.tier, p.path, p.size, p.changed_at, p.detail
               FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::float8[],
                           $9::text[], $10::timestamptz[])
                    p (fault, n, asset, tier, path, size, changed_at, detail, verified_at)
               JOIN fedstac.replica_file f ON f.n = p.n AND f.asset = p.asset AND f.state = 'verified'
                AND f.verified_at = p.verified_at AND f.path = p.path AND f.tier = p.tier
               RETURNING id""",
            id, *_columns(faults),
        )  # fmt: skip
        await conn.execute(
            """UPDATE fedstac.replica_look SET after_n = $2, after_asset = $3, files = files + $4, bytes = bytes + $5,
                      updated = clock_timestamp() WHERE id = $1""",
            id, last.n, last.asset, files, bytes,
        )  # fmt: skip
    return len(rows)


def _columns(faults: Sequence[FoundFault]) -> list[list[Any]]:
    return [
        [getattr(each, name) for each in faults]
        for name in ("fault", "n", "asset", "tier", "path", "size", "changed_at", "detail", "verified_at")
    ]


# --- the federation's entries ---


@dataclass(frozen=True, slots=True)
class CopyPlace:
    """Where a file is: its path below the folder of a tier."""

    path: str
    tier: str


@dataclass(frozen=True, slots=True)
class DatasetEntries:
    """A dataset as the federation has it, and as it is here.

    hrefs: this node's addresses in the newest document, by asset. copies: the files that are verified here, of
    a dataset that is announced.
    """

    n: int
    hrefs: Mapping[str, str]
    copies: Mapping[str, CopyPlace]


async def entries(
    conn: Connection, look: DiskLook, node: str, limit: int, grace_seconds: float
) -> list[DatasetEntries]:
    """Return the next datasets of a look that are announced, or that the federation finds at this node.

    Those with an announcement under way, or one of the last `grace_seconds`, have no faults of interest: their event is
    on its way here. They come with empty mappings.
    """
    rows = await conn.fetch(
        """WITH page AS MATERIALIZED (
               SELECT d.n, d.announced_digest IS NOT NULL AS is_announced, d.document
               FROM fedstac.replica_dataset d WHERE d.n > $1 ORDER BY d.n LIMIT $3),
           entry AS MATERIALIZED (
               SELECT p.n, json_object_agg(a.key, a.value #>> ARRAY['alternate', $2, 'href']) AS hrefs
               FROM page p CROSS JOIN LATERAL jsonb_each(p.document -> 'assets') a
               WHERE jsonb_typeof(a.value #> ARRAY['alternate', $2, 'href']) = 'string' GROUP BY p.n),
           settled AS MATERIALIZED (
               SELECT p.n FROM page p WHERE (p.is_announced OR EXISTS (SELECT FROM entry e WHERE e.n = p.n))
                 AND NOT EXISTS (SELECT FROM fedstac.replica_announcement a WHERE a.n = p.n
                                 AND (a.state IN ('queued', 'sent')
                                      OR a.updated > clock_timestamp() - make_interval(secs => $4))))
           SELECT p.n, s.n IS NOT NULL AS is_settled, coalesce(e.hrefs, '{}')::text AS hrefs,
                  coalesce((SELECT json_object_agg(f.asset, json_build_array(f.path, f.tier))
                            FROM fedstac.replica_file f
                            WHERE f.n = s.n AND f.state = 'verified' AND p.is_announced), '{}')::text AS copies
           FROM page p LEFT JOIN entry e USING (n) LEFT JOIN settled s USING (n) ORDER BY p.n""",
        look.after_n, node, limit, grace_seconds,
    )  # fmt: skip
    return [
        DatasetEntries(
            row["n"], orjson.loads(row["hrefs"]) if row["is_settled"] else {},
            {asset: CopyPlace(*place) for asset, place in orjson.loads(row["copies"]).items()},
        )
        for row in rows
    ]  # fmt: skip


async def store_entries(conn: Connection, id: int, last: int, faults: Sequence[FoundFault], *, entries: int) -> None:
    """Store what is wrong with entries, and move the look on behind the dataset `last`."""
    async with conn.transaction():
        await store(conn, id, faults)
        await conn.execute(
            """UPDATE fedstac.replica_look SET after_n = $2, entries = entries + $3, updated = clock_timestamp()
               WHERE id = $1""",
            id, last, entries,
        )  # fmt: skip


async def store(conn: Connection, id: int, faults: Sequence[FoundFault]) -> None:
    """Store what a look found. Call it in the transaction that moves the look on."""
    if faults:
        await conn.execute(
            """INSERT INTO fedstac.replica_finding (look, fault, n, asset, tier, path, size, changed_at, detail)
               SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bigint[],
                                        $8::float8[], $9::text[])""",
            id, *_columns(faults)[:-1],
        )  # fmt: skip


# --- the disk ---


async def unrecorded(conn: Connection, tier: str, paths: Sequence[str]) -> set[str]:
    """Return those of the paths in a tier that no record names, be it of a file that is to be removed."""
    rows = await conn.fetch(
        """SELECT p.path FROM unnest($2::text[]) p (path)
           WHERE NOT EXISTS (SELECT FROM fedstac.replica_file f WHERE f.path = p.path AND f.tier = $1)
             AND NOT EXISTS (SELECT FROM fedstac.replica_leftover l WHERE l.path = p.path AND l.tier = $1)
             AND NOT EXISTS (SELECT FROM fedstac.replica_file f JOIN fedstac.replica_removal r USING (n)
                             WHERE f.path = p.path AND r.state <> 'done')""",
        tier, list(paths),
    )  # fmt: skip
    return {row["path"] for row in rows}


async def store_disk(
    conn: Connection, id: int, tier: str, last: str, faults: Sequence[FoundFault], *, on_disk: int
) -> None:
    """Store the dark files of a stretch of the walk, and move the look on behind the path `last` of a tier."""
    async with conn.transaction():
        await store(conn, id, faults)
        await conn.execute(
            """UPDATE fedstac.replica_look SET after_tier = $2, after_path = $3, on_disk = on_disk + $4,
                      updated = clock_timestamp() WHERE id = $1""",
            id, tier, last, on_disk,
        )  # fmt: skip


# --- findings ---


@dataclass(frozen=True, slots=True)
class FindingRow:
    """A finding of a look: what it is about, and what became of it (open, mended, left)."""

    id: int
    fault: str
    n: int | None
    dataset: str | None
    asset: str | None
    tier: str
    path: str
    size: int | None
    changed_at: float | None
    detail: str
    outcome: str
    note: str


async def count_faults(conn: Connection, id: int, *, open_only: bool = False) -> dict[str, int]:
    """Return how many findings a look has of each fault."""
    rows = await conn.fetch(
        """SELECT fault, count(*) FROM fedstac.replica_finding
           WHERE look = $1 AND (outcome <> 'mended' OR NOT $2) GROUP BY fault ORDER BY fault""",
        id, open_only,
    )  # fmt: skip
    return {row["fault"]: row["count"] for row in rows}


async def findings(
    conn: Connection, id: int, *, after: int = 0, faults: Sequence[str] = tuple(FileFault), limit: int = 1000,
    open_only: bool = False,
) -> list[FindingRow]:  # fmt: skip
    """Return findings of a look behind one, in the order in which they were found."""
    rows = await conn.fetch(
        """SELECT f.id, f.fault, f.n, d.id AS dataset, f.asset, f.tier, f.path, f.size, f.changed_at, f.detail,
                  f.outcome, f.note
           FROM fedstac.replica_finding f LEFT JOIN fedstac.replica_dataset d USING (n)
           WHERE f.look = $1 AND f.id > $2 AND f.fault = ANY ($3::text[]) AND (f.outcome = 'open' OR NOT $4)
           ORDER BY f.id LIMIT $5""",
        id, after, [str(each) for each in faults], open_only, limit,
    )  # fmt: skip
    return [FindingRow(**dict(row)) for row in rows]


async def store_brake(conn: Connection, look: DiskLook, reason: str) -> None:
    """Store why a look mends nothing, and tell operators of it, once for each look."""
    async with conn.transaction():
        is_new = await conn.fetchval(
            "UPDATE fedstac.replica_look SET brake = $2 WHERE id = $1 AND brake = '' AND $2 <> '' RETURNING true",
            look.id, reason,
        )  # fmt: skip
        if is_new:
            await troubles.report(conn, "replica-verify", place="verify", what="nothing is mended", detail=reason)


async def store_outcomes(conn: Connection, ids: Sequence[int], outcome: str, note: str) -> None:
    """Store what became of findings."""
    await conn.execute(
        "UPDATE fedstac.replica_finding SET outcome = $2, note = $3 WHERE id = ANY ($1::bigint[])",
        list(ids), outcome, note,
    )  # fmt: skip


# --- mending ---

# Datasets whose files are wanted here and stay where they are.
KEEPS = ("queued", "transferring", "waiting", "checking", "complete", "announced", "parked")


async def fetch_again(conn: Connection, rows: Sequence[FindingRow]) -> list[int]:
    """Declare files that are lost: their entries go, and they are queued again. Return the findings that this mends.

    In one transaction: the files are not verified any more, their datasets are incomplete, and the origin is told. A
    file of a dataset of which nothing is fetched any more is failed, and its dataset parked. Datasets whose files leave
    their place are left.
    """
    if not rows:
        return []
    async with conn.transaction():
        await conn.execute(
            "SELECT FROM fedstac.replica_dataset WHERE n = ANY ($1::bigint[]) ORDER BY n FOR UPDATE",
            [row.n for row in rows],
        )
        files = await conn.fetch(
            """UPDATE fedstac.replica_file f
               SET state = CASE WHEN d.goal = 'serve' THEN 'queued' ELSE 'failed' END,
                   reason = 'verification: ' || p.detail, verified_at = NULL, done_bytes = 0,
                   attempts = 0, next_try = NULL, href = NULL, lane = NULL, claim = NULL, claim_until = NULL
               FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[])
                    p (id, n, asset, tier, path, detail), fedstac.replica_dataset d
               WHERE f.n = p.n AND f.asset = p.asset AND f.tier = p.tier AND f.path = p.path AND f.state = 'verified'
                 AND d.n = f.n AND d.state = ANY ($7::text[]) AND d.goal IN ('serve', 'hold')
               RETURNING p.id, f.n, f.asset""",
            [row.id for row in rows], [row.n for row in rows], [row.asset for row in rows], [row.tier for row in rows],
            [row.path for row in rows], [row.detail for row in rows], list(KEEPS),
        )  # fmt: skip
        numbers = sorted({row["n"] for row in files})
        await conn.execute(
            """UPDATE fedstac.replica_dataset
               SET state = CASE WHEN goal <> 'serve' THEN 'parked'
                                WHEN state IN ('checking', 'complete', 'announced') THEN 'queued' ELSE state END,
                   since = CASE WHEN goal <> 'serve' OR state IN ('checking', 'complete', 'announced')
                                THEN clock_timestamp() ELSE since END,
                   reason = CASE WHEN goal <> 'serve' THEN 'verification found lost files, and the policy fetches none'
                                 WHEN state = 'parked' THEN reason
                                 ELSE 'verification found files that are not as they were' END,
                   lane = NULL, until = NULL, updated = clock_timestamp()
               WHERE n = ANY ($1::bigint[])""",
            numbers,
        )
        await announcements.withdraw(conn, numbers)
        mended = [row["id"] for row in files]
        await store_outcomes(
            conn, mended, "mended", "its entry goes; it is fetched again, if the policy wants it still"
        )
    return mended


async def mend_entries(conn: Connection, rows: Sequence[FindingRow]) -> None:
    """Tell the origin anew what is here of the datasets with wrong entries: all files, or none."""
    if not rows:
        return
    numbers = sorted({row.n for row in rows if row.n is not None})
    async with conn.transaction():
        await conn.execute(
            "SELECT FROM fedstac.replica_dataset WHERE n = ANY ($1::bigint[]) ORDER BY n FOR UPDATE", numbers
        )
        complete = [
            row["n"]
            for row in await conn.fetch(
                """SELECT d.n FROM fedstac.replica_dataset d
                   WHERE d.n = ANY ($1::bigint[]) AND d.state IN ('complete', 'announced') AND d.tier <> 'restricted'
                     AND EXISTS (SELECT FROM fedstac.replica_file f WHERE f.n = d.n)
                     AND NOT EXISTS (SELECT FROM fedstac.replica_file f WHERE f.n = d.n AND f.state <> 'verified')""",
                numbers,
            )
        ]
        await announcements.request(conn, complete)
        await _revoke(conn, [n for n in numbers if n not in complete])
        await store_outcomes(conn, [row.id for row in rows], "mended", "the origin is told anew")


async def _revoke(conn: Connection, numbers: Sequence[int]) -> None:
    """Queue the announcement that datasets are no replicas here, though nothing here says that they ever were."""
    await conn.execute(
        """INSERT INTO fedstac.replica_announcement AS a (n, kind)
           SELECT n, 'remove' FROM unnest($1::bigint[]) n ORDER BY n
           ON CONFLICT (n) DO UPDATE SET kind = 'remove', state = 'queued', reason = '', request = NULL,
                  digest = NULL, attempts = 0, conflicts = 0, next_try = NULL, updated = clock_timestamp()""",
        list(numbers),
    )
