"""What a database tells of the whole node: its queue, its log, its sinks and consumers, its notifications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedstac.db import deletion_lists, health, nodes, subscriptions
from fedstac.db.connections import Connection
from fedstac.db.deletion_lists import DeletionFigures
from fedstac.db.replica import figures as replica_figures
from fedstac.db.replica.figures import ReplicaNodeFigures

MOST_COUNTED = 100_000  # of what waits: counting more would cost more than knowing it brings
MOST_LOOKED_AT = 5_000  # of waiting items, for the requests that they are of


@dataclass(frozen=True, slots=True)
class ConsumerLag:
    """How far a consumer is behind this node's log."""

    reporter: str
    epoch: int
    through: int  # everything up to this position is acknowledged
    events: int
    seconds: float  # age of the oldest event that it has not acknowledged
    silent_seconds: float  # since it last acknowledged more than before


@dataclass(frozen=True, slots=True)
class SinkLag:
    """How far a sink is behind this node's log, and what ails it."""

    name: str
    address: str
    required: bool
    epoch: int
    position: int
    events: int
    seconds: float  # age of the oldest event that it has not got
    sent: int
    errors: int
    dead_letters: int  # at most MOST_COUNTED
    failing_seconds: float  # 0 while it takes events
    last_error: str | None
    paused_reason: str | None
    has_lapsed: bool


@dataclass(frozen=True, slots=True)
class SubscriptionsLag:
    """Subscriptions of one delivery and stand: how many, and how far the last of them is behind this node's log.

    Without names: there may be thousands, and they are their owners' own.
    """

    delivery: str
    stand: str
    count: int
    events: int
    seconds: float  # age of the oldest event that it has not got


@dataclass(frozen=True, slots=True)
class MissedEvents:
    """Events that subscriptions did not take, each at most MOST_COUNTED."""

    waiting: int
    dead: int


@dataclass(frozen=True, slots=True)
class ConsumerPlace:
    """Where a consumer of this node is in the log of an origin."""

    consumer: str
    origin: str
    epoch: int
    position: int
    parked: int
    idle_seconds: float  # since the last page that it applied


@dataclass(frozen=True, slots=True)
class Outbox:
    """The log itself: what has no position yet, and how much of it is kept."""

    unsequenced: int  # at most MOST_COUNTED
    unsequenced_seconds: float  # age of the oldest of them
    earliest: int  # the first position that is kept; 0: none is
    earliest_seconds: float  # its age
    partitions_ahead: int  # that are made, and not yet written to


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a node as of one moment."""

    queued: int  # at most MOST_COUNTED
    oldest_seconds: float
    waiting_requests: int  # of the first MOST_LOOKED_AT waiting items; their first item waits
    begun_requests: int  # and those whose first item is done
    epoch: int
    position: int  # the last of the feed
    outbox: Outbox
    lags: Sequence[ConsumerLag]
    sinks: Sequence[SinkLag]
    subscriptions: Sequence[SubscriptionsLag]
    missed_events: MissedEvents
    places: Sequence[ConsumerPlace]
    notifications: int  # not yet delivered
    notification_seconds: float  # how long the oldest of them is due
    transaction_seconds: float  # age of the oldest transaction that this role may see
    deletions: DeletionFigures
    replica: ReplicaNodeFigures | None  # of a replica node that has this database


async def read(conn: Connection) -> Figures:
    """Read the numbers. Every statement is bounded."""
    row = await conn.fetchrow(
        """SELECT s.epoch, s.pos, q.requests, q.begun, n.open, n.late,
                  (SELECT count(*) FROM (
                      SELECT FROM fedstac.request_item WHERE status = 'queued'
                      ORDER BY shard, id LIMIT $1) waiting) AS queued,
                  (SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8
                   FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()) AS oldest
           FROM fedstac.feed_state s, (
               SELECT count(*) AS requests, count(*) FILTER (WHERE first.status <> 'queued') AS begun
               FROM (SELECT DISTINCT request FROM (
                         SELECT request FROM fedstac.request_item WHERE status = 'queued'
                         ORDER BY shard, id LIMIT $2) waiting) each
               CROSS JOIN LATERAL (SELECT status FROM fedstac.request_item i
                                   WHERE i.request = each.request ORDER BY n LIMIT 1) first) q, (
               SELECT count(*) AS open,
                      coalesce(greatest(extract(epoch FROM clock_timestamp() - min(due)), 0), 0)::float8 AS late
               FROM (SELECT due FROM fedstac.notification WHERE finished IS NULL ORDER BY due LIMIT $1) waiting) n""",
        MOST_COUNTED, MOST_LOOKED_AT,
    )  # fmt: skip
    assert row is not None  # made at a node's first start
    parts = await health.parts(conn)
    return Figures(
        queued=row["queued"], oldest_seconds=parts.waiting_seconds or 0.0,
        waiting_requests=row["requests"] - row["begun"], begun_requests=row["begun"], epoch=row["epoch"],
        position=row["pos"], outbox=await _outbox(conn), lags=await _lags(conn, row["pos"]),
        sinks=await _sinks(conn, row["pos"]), subscriptions=await _subscriptions(conn, row["pos"]),
        missed_events=await _missed_events(conn), places=await places(conn), notifications=row["open"],
        notification_seconds=row["late"], transaction_seconds=row["oldest"],
        deletions=await deletion_lists.figures(conn), replica=await replica_figures.read(conn),
    )  # fmt: skip


async def _outbox(conn: Connection) -> Outbox:
    row = await conn.fetchrow(
        r"""WITH prev AS MATERIALIZED (SELECT snap FROM fedstac.feed_state),
                 fresh AS MATERIALIZED (
                    (SELECT at FROM fedstac.outbox WHERE xid >= (SELECT pg_snapshot_xmax(snap) FROM prev)
                     ORDER BY xid LIMIT $1)
                    UNION ALL
                    (SELECT at FROM fedstac.outbox WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(snap) FROM prev))
                     LIMIT $1)),
                 first AS MATERIALIZED (SELECT pos, id FROM fedstac.feed ORDER BY pos LIMIT 1)
            SELECT (SELECT count(*) FROM fresh) AS unsequenced,
                   (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8 FROM fresh)
                       AS unsequenced_seconds,
                   coalesce((SELECT pos FROM first), 0) AS earliest,
                   coalesce((SELECT extract(epoch FROM clock_timestamp() - o.at) FROM first f
                             JOIN fedstac.outbox o ON o.id = f.id), 0)::float8 AS earliest_seconds,
                   (SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                    WHERE i.inhparent = 'fedstac.outbox'::regclass
                      AND substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \(''?(\d+)')::bigint > coalesce(
                          pg_sequence_last_value('fedstac.outbox_id_seq'), 0)) AS partitions_ahead""",
        MOST_COUNTED,
    )
    assert row is not None
    return Outbox(**dict(row))


async def _ages(conn: Connection, positions: Sequence[int]) -> dict[int, float]:
    """Return the ages of the events at these positions, of those that there are."""
    rows = await conn.fetch(
        """SELECT f.pos, extract(epoch FROM clock_timestamp() - o.at)::float8 AS age
           FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id WHERE f.pos = ANY ($1::bigint[])""",
        positions,
    )
    return {row["pos"]: row["age"] for row in rows}


async def _lags(conn: Connection, head: int) -> list[ConsumerLag]:
    statuses = await nodes.statuses(conn)
    ages = await _ages(conn, [row["through"] + 1 for row in statuses])
    now = await conn.fetchval("SELECT clock_timestamp()")
    return [
        ConsumerLag(
            row["node"], row["epoch"], row["through"], max(head - row["through"], 0),
            ages.get(row["through"] + 1, 0.0), max((now - row["at"]).total_seconds(), 0.0),
        )
        for row in statuses
    ]  # fmt: skip


async def _sinks(conn: Connection, head: int) -> list[SinkLag]:
    rows = await conn.fetch(
        """SELECT s.name, s.address, s.required, s.epoch, s.pos AS position, s.sent, s.errors,
                  (SELECT count(*) FROM (SELECT FROM fedstac.dead_letter d WHERE d.sink = s.name LIMIT $1) letters)
                      AS dead_letters,
                  coalesce(extract(epoch FROM clock_timestamp() - s.failing_since), 0)::float8 AS failing_seconds,
                  s.last_error, s.paused_reason, s.lapsed_at IS NOT NULL AS has_lapsed
           FROM fedstac.sink s ORDER BY s.name""",
        MOST_COUNTED,
    )
    ages = await _ages(conn, [row["position"] + 1 for row in rows])
    return [
        SinkLag(
            **dict(row), events=max(head - row["position"], 0), seconds=ages.get(row["position"] + 1, 0.0)
        )
        for row in rows
    ]  # fmt: skip


async def _subscriptions(conn: Connection, head: int) -> list[SubscriptionsLag]:
    rows = await conn.fetch(
        f"""SELECT s.delivery, {subscriptions.STAND} AS stand, count(*) AS count, min(s.pos) AS position
            FROM fedstac.subscription s GROUP BY 1, 2 ORDER BY 1, 2"""
    )
    ages = await _ages(conn, [row["position"] + 1 for row in rows])
    return [
        SubscriptionsLag(
            row["delivery"], row["stand"], row["count"], max(head - row["position"], 0),
            ages.get(row["position"] + 1, 0.0),
        )
        for row in rows
    ]  # fmt: skip


async def _missed_events(conn: Connection) -> MissedEvents:
    row = await conn.fetchrow(
        """SELECT (SELECT count(*) FROM (SELECT FROM fedstac.subscription_event
                                         WHERE dead_at IS NULL LIMIT $1) waiting) AS waiting,
                  (SELECT count(*) FROM (SELECT FROM fedstac.subscription_event
                                         WHERE dead_at IS NOT NULL LIMIT $1) dead) AS dead""",
        MOST_COUNTED,
    )
    assert row is not None
    return MissedEvents(**dict(row))


async def places(conn: Connection) -> list[ConsumerPlace]:
    """Return where the consumers of this node are."""
    rows = await conn.fetch(
        """SELECT c.consumer, c.origin, c.epoch, c.pos AS position,
                  (SELECT count(*) FROM (SELECT FROM fedstac.parked_event p
                      WHERE p.consumer = c.consumer AND p.origin = c.origin LIMIT $1) parked) AS parked,
                  extract(epoch FROM clock_timestamp() - c.updated)::float8 AS idle_seconds
           FROM fedstac.consumer_cursor c ORDER BY 1, 2""",
        MOST_COUNTED,
    )
    return [ConsumerPlace(**dict(row)) for row in rows]
