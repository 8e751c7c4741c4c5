"""The numbers of a replica node for metrics and /healthcheck. Every statement is bounded by what is not settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fedstac.db.connections import Connection


@dataclass(frozen=True, slots=True)
class StateFigures:
    """Datasets of one state, and their bytes."""

    state: str
    datasets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ReplicaNodeFigures:
    """The numbers of a replica node as of one moment.

    open_files: files that are not verified, by state. announcements: those that are not done, by state. findings: what
    the last verification left open, by fault; verified_seconds: its age, None without one. progress_seconds: since a
    file was last verified, None where none ever was.
    """

    states: Sequence[StateFigures]
    open_files: Mapping[str, int]
    removals: int
    announcements: Mapping[str, int]
    findings: Mapping[str, int]
    verified_seconds: float | None
    progress_seconds: float | None
    free_bytes: Mapping[str, int | None]  # by tier


NO_REPLICA_NODE: Final = ReplicaNodeFigures((), {}, 0, {}, {}, None, None, {})


async def read(conn: Connection) -> ReplicaNodeFigures | None:
    """Read the numbers. None at a node that is no replica node: no feed has named a dataset for it."""
    if not await conn.fetchval("SELECT EXISTS (SELECT FROM fedstac.replica_dataset)"):
        return None
    states = await conn.fetch(
        """SELECT state, count(*) AS datasets, coalesce(sum(size), 0)::bigint AS bytes FROM fedstac.replica_dataset
           GROUP BY state ORDER BY state"""
    )
    counts = await conn.fetch(
        """SELECT 'file' AS what, state, count(*) FROM fedstac.replica_file WHERE state <> 'verified' GROUP BY state
           UNION ALL
           SELECT 'announcement', state, count(*) FROM fedstac.replica_announcement WHERE state <> 'done' GROUP BY state
           UNION ALL
           SELECT 'removal', '', count(*) FROM fedstac.replica_removal WHERE state <> 'done'
           UNION ALL
           SELECT 'finding', fault, count(*) FROM fedstac.replica_finding
           WHERE outcome <> 'mended' AND look = (
               SELECT max(id) FROM fedstac.replica_look WHERE kind = 'verify' AND finished_at IS NOT NULL)
           GROUP BY fault"""
    )
    row = await conn.fetchrow(
        """SELECT extract(epoch FROM clock_timestamp() - (SELECT max(finished_at) FROM fedstac.replica_look
                                                          WHERE kind = 'verify'))::float8 AS verified_seconds,
                  extract(epoch FROM clock_timestamp() - (SELECT max(verified_at) FROM fedstac.replica_file))::float8
                      AS progress_seconds"""
    )
    assert row is not None

    def counts_of(what: str) -> dict[str, int]:
        return {each["state"]: each["count"] for each in counts if each["what"] == what}

    return ReplicaNodeFigures(
        [StateFigures(**dict(each)) for each in states], counts_of("file"), counts_of("removal").get("", 0),
        counts_of("announcement"), counts_of("finding"), row["verified_seconds"], row["progress_seconds"],
        await _free_bytes(conn),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReplicaStand:
    """How a replica node stands, in short: for /healthcheck."""

    parked: int
    waiting: int
    refused_announcements: int
    under_way: int  # datasets that go on by themselves
    away_hosts: Sequence[str]  # that are not asked at the moment
    free_bytes: Mapping[str, int | None]  # by tier; None: its folder is not there
    last_progress: datetime | None


async def stand(conn: Connection) -> ReplicaStand:
    """Read how a replica node stands."""
    row = await conn.fetchrow(
        """SELECT count(*) FILTER (WHERE state = 'parked') AS parked,
                  count(*) FILTER (WHERE state = 'waiting') AS waiting,
                  count(*) FILTER (WHERE state IN ('queued', 'transferring', 'checking')) AS under_way,
                  (SELECT max(verified_at) FROM fedstac.replica_file) AS last_progress,
                  (SELECT count(*) FROM fedstac.replica_announcement WHERE state = 'parked') AS refused_announcements
           FROM fedstac.replica_dataset WHERE state IN ('parked', 'waiting', 'queued', 'transferring', 'checking')"""
    )
    assert row is not None
    hosts = await conn.fetch("SELECT host FROM fedstac.replica_host WHERE away_until > clock_timestamp() ORDER BY host")
    disks = await _free_bytes(conn)
    return ReplicaStand(
        row["parked"], row["waiting"], row["refused_announcements"], row["under_way"],
        [each["host"] for each in hosts], disks, row["last_progress"],
    )  # fmt: skip


async def _free_bytes(conn: Connection) -> dict[str, int | None]:
    rows = await conn.fetch("SELECT tier, free_bytes FROM fedstac.replica_disk ORDER BY tier")
    return {row["tier"]: row["free_bytes"] for row in rows}
