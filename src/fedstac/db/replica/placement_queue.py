"""Where the files of a replica node come from next, and which datasets wait for room or for a source."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from fedstac.db.connections import Connection
from fedstac.db.replica import claims, settling
from fedstac.domain.replication.budgets import Usage
from fedstac.domain.replication.placing import Closures, Obstacle, Placement

ADMITTING = "SELECT pg_advisory_xact_lock(hashtext('fedstac.replica_admitting'))"  # into the budgets, one at a time
PLACED_AT_ONCE = 8  # datasets; their documents are read for it
MOVED_AT_ONCE = 200  # datasets of a source that is not asked any more
OPEN = Closures()
# PostgreSQL would read all files at once for EXISTS.
HAS_UNPLACED = """((SELECT true FROM fedstac.replica_file f WHERE f.n = d.n AND f.state = 'queued' LIMIT 1) IS TRUE
    OR (SELECT true FROM fedstac.replica_file f WHERE f.n = d.n AND f.state = 'transferring' LIMIT 1) IS NULL)"""
# A dataset whose bytes count for the budget: they are here, or on their way.
ADMITTED = """(d.lane IS NOT NULL OR d.turn IS NOT NULL AND d.state IN ('waiting', 'parked')
               OR d.state IN ('transferring', 'checking', 'complete', 'announced', 'moving', 'removing',
                              'restricted'))"""


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
            WHERE d.n = ANY(ARRAY(SELECT n FROM next)) AND d.lane IS NULL AND {claims.WORKED_ON}
            ORDER BY d.priority DESC, d.turn NULLS FIRST, d.n LIMIT $1 FOR UPDATE SKIP LOCKED""",
        PLACED_AT_ONCE, claims.LISTED_OF_A_LANE,
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
    await settling.finish_datasets(conn, list(placements))


async def hold_larger(conn: Connection, room: int, rule: str | None, reason: str, seconds: float) -> None:
    """Let all datasets wait that have no place yet and are larger than the room of a budget: of a rule, or of all.

    Call it under ADMITTING. Those that another process places now are left alone.
    """
    await conn.execute(
        f"""WITH larger AS MATERIALIZED (
                SELECT d.n FROM fedstac.replica_dataset d
                WHERE d.lane IS NULL AND {claims.WORKED_ON} AND NOT ({ADMITTED})
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
                SELECT d.n FROM fedstac.replica_dataset d WHERE d.lane = ANY($1::text[]) AND {claims.WORKED_ON}
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
