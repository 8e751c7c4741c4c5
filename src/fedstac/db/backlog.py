"""The backlog: events that are stored and have not reached everybody who has to have them."""

from __future__ import annotations

from dataclasses import dataclass

from fedstac.db import troubles
from fedstac.db.connections import Connection

SAMPLE = 100  # events from which the size of the others is estimated
SEQUENCER = "the sequencer"  # a place
KIND = "backlog"  # of a trouble
TOLD_EVERY_HOURS = 6
WARNING_SHARE = 0.1  # of the bounds, from which on health warns and operators are told


@dataclass(frozen=True, slots=True)
class Backlog:
    """Events that wait, at one place: without a position, or for a required sink."""

    place: str
    events: int
    seconds: float  # age of the oldest
    bytes: int  # about as much as they take in the database

    def describe(self) -> str:
        """Return the backlog in words."""
        size = f"{self.bytes / 2**20:.1f} MiB" if self.bytes < 2**30 else f"{self.bytes / 2**30:.1f} GiB"
        return f"{self.events} events wait for {self.place}, the oldest for {self.seconds:.0f} s; about {size}"

    def fills(self, seconds: float, size: int) -> float:
        """Return how much of these bounds is used; 1.0 and more is too much."""
        return max(self.seconds / seconds, self.bytes / size)


async def read(conn: Connection) -> list[Backlog]:
    """Return what waits for the sequencer, and for the required sink that is the furthest behind."""
    rows = await conn.fetch(
        f"""WITH state AS MATERIALIZED (SELECT pos, snap FROM fedstac.feed_state),
                slowest AS MATERIALIZED (
                    SELECT name, pos, waits_since FROM fedstac.sink
                    WHERE required AND lapsed_at IS NULL ORDER BY pos LIMIT 1),
                next AS MATERIALIZED (
                    SELECT f.id FROM slowest s
                    CROSS JOIN LATERAL (SELECT id FROM fedstac.feed f WHERE f.pos > s.pos ORDER BY f.pos LIMIT $1) f),
                unsent AS MATERIALIZED (
                    SELECT o.at, pg_column_size(o.event) AS size FROM next n JOIN fedstac.outbox o ON o.id = n.id),
                unsequenced AS MATERIALIZED (
                    (SELECT at, pg_column_size(event) AS size FROM fedstac.outbox
                     WHERE xid >= (SELECT pg_snapshot_xmax(snap) FROM state) ORDER BY xid LIMIT $1)
                    UNION ALL
                    (SELECT at, pg_column_size(event) FROM fedstac.outbox
                     WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(snap) FROM state)) LIMIT $1)),
                drawn AS (SELECT greatest(
                    (SELECT coalesce(last_value, 0) FROM pg_sequences
                     WHERE schemaname = 'fedstac' AND sequencename = 'outbox_id_seq')
                    - (SELECT coalesce(max(id), 0) FROM fedstac.feed), 0) AS ids)
           SELECT '{SEQUENCER}' AS place, greatest((SELECT ids FROM drawn), count(*)) AS events,
                  coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8 AS seconds,
                  (greatest((SELECT ids FROM drawn), count(*)) * coalesce(avg(size), 0))::bigint AS bytes
           FROM unsequenced HAVING count(*) > 0
           UNION ALL
           SELECT 'the sink ' || s.name, t.pos - s.pos,
                  coalesce(extract(epoch FROM clock_timestamp()
                                               - greatest((SELECT min(at) FROM unsent), s.waits_since)), 0)::float8,
                  ((t.pos - s.pos) * coalesce((SELECT avg(size) FROM unsent), 0))::bigint
           FROM slowest s, state t WHERE t.pos > s.pos""",
        SAMPLE,
    )
    return [Backlog(**dict(row)) for row in rows]


async def alert(conn: Connection, backlog: Backlog) -> bool:
    """Tell operators of a backlog, unless they were told of it within the last hours. Return whether they are told."""
    async with conn.transaction():
        if await conn.fetchval(
            f"""SELECT EXISTS (SELECT FROM fedstac.trouble WHERE kind = $1 AND place = $2
                               AND at > clock_timestamp() - interval '{TOLD_EVERY_HOURS} hours')""",
            KIND, backlog.place,
        ):  # fmt: skip
            return False
        await troubles.report(conn, KIND, place=backlog.place, what="events wait", detail=backlog.describe())
        return True
