"""What a database tells of the whole node: its queue, its log, its consumers, its notifications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedstac.db import health, nodes
from fedstac.db.connections import Connection

MOST_COUNTED = 100_000  # of what waits: counting more would cost more than knowing it brings


@dataclass(frozen=True, slots=True)
class ConsumerLag:
    """How far a consumer is behind this node's log."""

    reporter: str
    events: int
    seconds: float  # age of the oldest event that it has not acknowledged


@dataclass(frozen=True, slots=True)
class ConsumerPlace:
    """Where a consumer of this node is in the log of an origin."""

    consumer: str
    origin: str
    position: int
    parked: int
    idle_seconds: float  # since the last page that it applied


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a node as of one moment."""

    queued: int  # at most MOST_COUNTED
    oldest_seconds: float
    epoch: int
    position: int  # the last of the feed
    lags: Sequence[ConsumerLag]
    places: Sequence[ConsumerPlace]
    notifications: int  # not yet delivered
    notification_seconds: float  # how long the oldest of them is due


async def read(conn: Connection) -> Figures:
    """Read the numbers. Every statement is bounded."""
    row = await conn.fetchrow(
        """SELECT s.epoch, s.pos,
                  (SELECT count(*) FROM (
                      SELECT FROM fedstac.request_item WHERE status = 'queued'
                      ORDER BY shard, id LIMIT $1) waiting) AS queued,
                  n.open, n.late
           FROM fedstac.feed_state s, (
               SELECT count(*) AS open,
                      coalesce(greatest(extract(epoch FROM clock_timestamp() - min(due)), 0), 0)::float8 AS late
               FROM (SELECT due FROM fedstac.notification WHERE finished IS NULL ORDER BY due LIMIT $1) waiting) n""",
        MOST_COUNTED,
    )
    assert row is not None  # made at a node's first start
    parts = await health.parts(conn)
    return Figures(
        queued=row["queued"], oldest_seconds=parts.waiting_seconds or 0.0, epoch=row["epoch"], position=row["pos"],
        lags=await _lags(conn, row["pos"]), places=await _places(conn), notifications=row["open"],
        notification_seconds=row["late"],
    )  # fmt: skip


async def _lags(conn: Connection, head: int) -> list[ConsumerLag]:
    statuses = {row["node"]: min(row["through"], head) for row in await nodes.statuses(conn)}
    rows = await conn.fetch(
        """SELECT f.pos, extract(epoch FROM clock_timestamp() - o.at)::float8 AS age
           FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id WHERE f.pos = ANY ($1::bigint[])""",
        [through + 1 for through in statuses.values()],
    )
    ages = {row["pos"]: row["age"] for row in rows}
    return [ConsumerLag(reporter, head - through, ages.get(through + 1, 0.0)) for reporter, through in statuses.items()]


async def _places(conn: Connection) -> list[ConsumerPlace]:
    rows = await conn.fetch(
        """SELECT c.consumer, c.origin, c.pos AS position,
                  (SELECT count(*) FROM (SELECT FROM fedstac.parked_event p
                      WHERE p.consumer = c.consumer AND p.origin = c.origin LIMIT $1) parked) AS parked,
                  extract(epoch FROM clock_timestamp() - c.updated)::float8 AS idle_seconds
           FROM fedstac.consumer_cursor c ORDER BY 1, 2""",
        MOST_COUNTED,
    )
    return [ConsumerPlace(**dict(row)) for row in rows]
