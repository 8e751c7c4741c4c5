"""The files of the datasets that a replica node keeps: where each belongs, and how it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedstac.db.connections import Connection
from fedstac.domain.replication.dataset_files import DatasetFile, digest_of

PLANNING = "SELECT pg_advisory_xact_lock(hashtext('fedstac.replica_paths'))"  # paths are given out by one at a time


@dataclass(frozen=True, slots=True)
class FilePlan:
    """The files that a dataset is to have, and the tier of those that are new.

    keeps_old: a file that was changed stays until the new one takes its place; else it is left over.
    """

    n: int
    tier: str
    files: Sequence[DatasetFile]
    keeps_old: bool = True


async def plan(conn: Connection, plans: Sequence[FilePlan]) -> None:
    """Make the files of locked datasets those of their documents: new ones and changed ones are queued.

    What is no more one of them, or has another name, is left over. A file whose path another dataset has, with another
    checksum, fails with that reason, and its dataset is parked. Of datasets that are planned together, the one with the
    lowest number has the path.
    """
    if not plans:
        return
    await conn.execute(PLANNING)
    numbers = [each.n for each in plans]
    rows = [
        (each.n, file.asset, file.path, each.tier, file.size, file.checksum, file.fault, each.keeps_old)
        for each in plans for file in each.files
    ]  # fmt: skip
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(8)]
    holders = _holders([(n, path, checksum) for n, _, path, _, _, checksum, _, _ in rows])
    await conn.execute(
        """WITH wanted AS MATERIALIZED (
               SELECT * FROM unnest($2::bigint[], $3::text[], $4::text[]) w (n, asset, path)),
           gone AS MATERIALIZED (
               SELECT f.n, f.asset, f.tier, f.path FROM fedstac.replica_file f
               LEFT JOIN wanted w ON w.n = f.n AND w.asset = f.asset AND w.path = f.path
               WHERE f.n = ANY ($1::bigint[]) AND w.n IS NULL),
           kept AS (
               INSERT INTO fedstac.replica_leftover (n, tier, path) SELECT DISTINCT n, tier, path FROM gone
               WHERE path <> '' ON CONFLICT DO NOTHING)
           DELETE FROM fedstac.replica_file f USING gone g WHERE f.n = g.n AND f.asset = g.asset""",
        numbers, *columns[:3],
    )  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.replica_leftover (n, tier, path)
           SELECT DISTINCT f.n, f.tier, f.path
           FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::boolean[])
                w (n, asset, size, checksum, keeps_old)
           JOIN fedstac.replica_file f ON f.n = w.n AND f.asset = w.asset
           WHERE NOT w.keeps_old AND f.path <> '' AND (f.size, f.checksum) IS DISTINCT FROM (w.size, w.checksum)
           ON CONFLICT DO NOTHING""",
        columns[0], columns[1], columns[4], columns[5], columns[7],
    )  # fmt: skip
    await conn.execute(
        """DELETE FROM fedstac.replica_source_fault s
           USING unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[]) w (n, asset, size, checksum),
                 fedstac.replica_file f
           WHERE s.n = w.n AND s.asset = w.asset AND f.n = w.n AND f.asset = w.asset
             AND (f.size, f.checksum) IS DISTINCT FROM (w.size, w.checksum)""",
        columns[0], columns[1], columns[4], columns[5],
    )  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.replica_file AS f (n, asset, path, tier, size, checksum, state, reason)
           SELECT w.n, w.asset, CASE WHEN w.fault = '' AND o.name IS NULL THEN w.path ELSE '' END, w.tier, w.size,
                  w.checksum, CASE WHEN w.fault = '' AND o.name IS NULL THEN 'queued' ELSE 'failed' END,
                  CASE WHEN o.name IS NULL THEN w.fault
                       ELSE w.path || ' is another file here, of ' || o.name END
           FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[],
                       $8::bigint[]) w (n, asset, path, tier, size, checksum, fault, holder)
           LEFT JOIN LATERAL (
               SELECT d.collection || '/' || d.id AS name FROM fedstac.replica_dataset d
               WHERE d.n = coalesce((
                   SELECT f.n FROM fedstac.replica_file f
                   WHERE f.path = w.path AND f.n <> w.n AND f.checksum IS DISTINCT FROM w.checksum AND w.path <> ''
                   LIMIT 1), w.holder)) o ON true
           ON CONFLICT (n, asset) DO UPDATE SET path = EXCLUDED.path, size = EXCLUDED.size,
               checksum = EXCLUDED.checksum, state = EXCLUDED.state, reason = EXCLUDED.reason, attempts = 0,
               next_try = NULL, done_bytes = 0, verified_at = NULL, claim = NULL, claim_until = NULL, href = NULL,
               node = NULL, lane = NULL
           WHERE (f.size, f.checksum) IS DISTINCT FROM (EXCLUDED.size, EXCLUDED.checksum) OR f.state = 'failed'""",
        *columns[:7], holders,
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.replica_dataset d SET files_digest = p.digest, lane = NULL
           FROM unnest($1::bigint[], $2::bytea[]) p (n, digest) WHERE d.n = p.n""",
        numbers, [digest_of(each.files) for each in plans],
    )  # fmt: skip


def _holders(files: Sequence[tuple[int, str, str]]) -> list[int | None]:
    """Return for each file (n, path, checksum) the dataset that has its path with another checksum; None: no other."""
    first: dict[str, tuple[int, str]] = {}
    for n, path, checksum in sorted(files):
        first.setdefault(path, (n, checksum))
    return [first[path][0] if path and first[path][1] != checksum else None for _, path, checksum in files]


async def try_again(conn: Connection, numbers: Sequence[int]) -> None:
    """Queue the files of locked datasets that failed and have a path: an event or a policy may have a source for it."""
    await conn.execute(
        """UPDATE fedstac.replica_file SET state = 'queued', attempts = 0, next_try = NULL, href = NULL, lane = NULL
           WHERE n = ANY ($1::bigint[]) AND state = 'failed' AND path <> ''""",
        list(numbers),
    )


async def park_the_impossible(conn: Connection, numbers: Sequence[int]) -> None:
    """Park locked datasets that have a file which cannot be stored. Call it after `plan`, and after their states."""
    await conn.execute(
        """UPDATE fedstac.replica_dataset d
           SET state = 'parked', reason = f.reason, until = NULL, since = clock_timestamp(), updated = clock_timestamp()
           FROM (SELECT DISTINCT ON (n) n, asset || ': ' || reason AS reason FROM fedstac.replica_file
                 WHERE n = ANY ($1::bigint[]) AND state = 'failed' AND path = '' ORDER BY n, asset) f
           WHERE d.n = f.n AND d.state = 'queued'""",
        list(numbers),
    )  # fmt: skip


# --- files that are not where they belong ---


@dataclass(frozen=True, slots=True)
class MisplacedFile:
    """A file that has to leave its place.

    asset: None of what is left over. target: the tier that it belongs to; None: it is deleted. checksum: names its
    part. is_shared: another dataset has the very file there; it stays for that. is_here: it was verified once.
    shared_tiers: where other datasets have a file of that path.
    """

    asset: str | None
    tier: str
    path: str
    target: str | None
    checksum: str | None
    size: int | None
    is_shared: bool
    is_here: bool
    shared_tiers: frozenset[str] = frozenset()


async def misplaced(
    conn: Connection, n: int, *, target: str | None, purges: bool, keeps_own: bool, restores: bool, limit: int
) -> list[MisplacedFile]:
    """Return and lock the next files of a locked dataset that have to leave their place.

    target: the tier that its files belong to; None: they stay where they are. restores: but for restricted ones, which
    go back to where they were. purges: all of them are deleted.
    keeps_own: what is left over at the place of a file that is to be fetched stays; it may be the very file.
    """
    rows = await conn.fetch(
        """SELECT NULL AS asset, tier, path, NULL AS target, NULL AS checksum, NULL::bigint AS size, true AS is_here
           FROM fedstac.replica_leftover WHERE n = $1
           UNION ALL
           SELECT asset, tier, path, CASE WHEN NOT $3 THEN coalesce($2::text, home, '') END, checksum, size,
                  state = 'verified'
           FROM fedstac.replica_file
           WHERE n = $1 AND ($3 OR tier <> $2 OR $5 AND tier = 'restricted')
           LIMIT $4""",
        n, target, purges, limit, restores,
    )  # fmt: skip
    shared = await conn.fetch(
        """SELECT tier, path, n = $2 AS is_own, state FROM fedstac.replica_file WHERE path = ANY ($1::text[])
           ORDER BY path, n, asset FOR UPDATE""",
        [row["path"] for row in rows], n,
    )  # fmt: skip
    others = {(row["tier"], row["path"]) for row in shared if not row["is_own"]}
    tiers: dict[str, set[str]] = {}
    for tier, path in others:
        tiers.setdefault(path, set()).add(tier)
    own = {(row["tier"], row["path"]) for row in shared if row["is_own"] and (keeps_own or row["state"] == "verified")}
    return [
        MisplacedFile(
            **dict(row), is_shared=place in others or (row["asset"] is None and not purges and place in own),
            shared_tiers=frozenset(tiers.get(row["path"], ())),
        )
        for row in rows
        for place in [(row["tier"], row["path"])]
    ]  # fmt: skip


async def settle_places(conn: Connection, n: int, files: Sequence[MisplacedFile]) -> None:
    """Store that misplaced files have left their places. Call it in the transaction of `misplaced`."""
    leftovers = [file for file in files if file.asset is None]
    await conn.execute(
        """DELETE FROM fedstac.replica_leftover l USING unnest($2::text[], $3::text[]) g (tier, path)
           WHERE l.n = $1 AND l.tier = g.tier AND l.path = g.path""",
        n, [file.tier for file in leftovers], [file.path for file in leftovers],
    )  # fmt: skip
    deleted = [file.asset for file in files if file.asset is not None and file.target is None]
    await conn.execute("DELETE FROM fedstac.replica_file WHERE n = $1 AND asset = ANY ($2::text[])", n, deleted)
    if deleted:
        await conn.execute("UPDATE fedstac.replica_dataset SET files_digest = NULL WHERE n = $1", n)
    relocations = [file for file in files if file.asset is not None and file.target is not None]
    await conn.execute(
        """UPDATE fedstac.replica_file f
           SET tier = m.tier, home = CASE WHEN m.tier = 'restricted' THEN f.tier END,
               done_bytes = CASE WHEN f.state = 'verified' THEN f.done_bytes ELSE 0 END
           FROM unnest($2::text[], $3::text[]) m (asset, tier) WHERE f.n = $1 AND f.asset = m.asset""",
        n, [file.asset for file in relocations], [file.target for file in relocations],
    )  # fmt: skip


async def verified(conn: Connection, n: int) -> list[tuple[str, str, str]]:
    """Return asset, tier and path of each file of a dataset that is here."""
    rows = await conn.fetch(
        "SELECT asset, tier, path FROM fedstac.replica_file WHERE n = $1 AND state = 'verified' ORDER BY asset", n
    )
    return [(row["asset"], row["tier"], row["path"]) for row in rows]


async def lose(conn: Connection, n: int, assets: Sequence[str], reason: str) -> None:
    """Store that verified files of a locked dataset are not where they were: they are fetched anew."""
    await conn.execute(
        """UPDATE fedstac.replica_file SET state = 'queued', reason = $3, href = NULL, lane = NULL, done_bytes = 0,
                  verified_at = NULL
           WHERE n = $1 AND asset = ANY ($2::text[])""",
        n, list(assets), reason,
    )  # fmt: skip
    if assets:
        await conn.execute("UPDATE fedstac.replica_dataset SET lane = NULL WHERE n = $1", n)
