"""Sources of a replica node: the shared cap of each, and hosts that are away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from fedstac.db.connections import Connection

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 600.0  # seconds for which a host that fails is left alone


@dataclass(frozen=True, slots=True)
class AwayHost:
    """A host that failed: how often in a row, until when it is left alone, and why."""

    host: str
    failures: int
    until: datetime
    reason: str


async def take_bytes(conn: Connection, source: str, count: int, rate: int, *, burst_seconds: float) -> float:
    """Take bytes of a source's cap. Return the seconds after which they may have come; 0 or less: now.

    rate: bytes a second; a debt of an older rate is paid at this one. A source that was idle may be ahead by
    `burst_seconds`.
    """
    seconds: float = await conn.fetchval(
        """INSERT INTO fedstac.replica_source AS s (source, free_at, rate)
           VALUES ($1, clock_timestamp() + make_interval(secs => $2::float8 / $3::bigint - $4), $3)
           ON CONFLICT (source) DO UPDATE SET rate = $3, free_at = make_interval(secs => $2::float8 / $3)
               + greatest(clock_timestamp() - make_interval(secs => $4),
                          clock_timestamp() + (s.free_at - clock_timestamp()) * (s.rate::float8 / $3))
           RETURNING extract(epoch FROM free_at - clock_timestamp())::float8""",
        source, count, rate, burst_seconds,
    )  # fmt: skip
    return seconds


async def note_failure(conn: Connection, host: str, reason: str, pause: float) -> None:
    """Note that a host is away: for `pause` seconds at least, and longer each time.

    What other workers see of the same outage, while the host is left alone, counts once.
    """
    await conn.execute(
        """INSERT INTO fedstac.replica_host AS h (host, failures, away_until, reason)
           VALUES ($1, 1, clock_timestamp() + make_interval(secs => greatest($3::float8, $4::float8)), $2)
           ON CONFLICT (host) DO UPDATE SET
               reason = $2,
               failures = least(h.failures + (h.away_until <= clock_timestamp())::int, 1000),
               away_until = CASE WHEN h.away_until > clock_timestamp()
                   THEN greatest(h.away_until, clock_timestamp() + make_interval(secs => $3::float8))
                   ELSE clock_timestamp() + make_interval(
                       secs => greatest($3::float8, least($4::float8 * 2 ^ least(h.failures, 20), $5::float8))) END""",
        host, reason, pause, FIRST_PAUSE, LONGEST_PAUSE,
    )  # fmt: skip


async def note_success(conn: Connection, host: str) -> None:
    """Note that a host gave a file."""
    await conn.execute("DELETE FROM fedstac.replica_host WHERE host = $1", host)


async def away_hosts(conn: Connection) -> Sequence[AwayHost]:
    """Return the hosts that failed and have not given a file since, with those whose pause is over."""
    rows = await conn.fetch("SELECT host, failures, away_until, reason FROM fedstac.replica_host ORDER BY host")
    return [AwayHost(row["host"], row["failures"], row["away_until"], row["reason"]) for row in rows]
