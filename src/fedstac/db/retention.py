"""Retention: how long the log is kept, for whom, and how it goes, a partition of the outbox at a time.

A partition is forgotten first: from then on nobody begins to read in it. Then its rows of the feed go, a few at a time,
and at last the partition itself, under a lock that writers do not wait for longer than an instant. Each step may be the
last one of a process; the next process goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import asyncpg
import orjson

from fedstac.db import audit, connections, sinks, troubles
from fedstac.db.connections import Connection
from fedstac.runtime.failpoints import failpoint

RETENTION_LOCK = 0x666564_04  # advisory lock of whoever drops
ROWS_EACH = 1_000_000  # ids of a partition, as extend_outbox has it
SWEPT_AT_ONCE = 10_000  # rows of the feed
NOTIFICATIONS = "notifications"  # the name under which this node's own notifications are behind
LAPSED = "it was behind for too long, and the log is no longer kept for it; it has to take a snapshot"


@dataclass(frozen=True, slots=True)
class LogStart:
    """After what the log begins: a position in the feed, and an id in the outbox."""

    pos: int
    id: int


@dataclass(frozen=True, slots=True)
class OldPartition:
    """The oldest partition of the outbox, which is no longer written to."""

    number: int
    last_pos: int  # the highest position of its events

    @property
    def last_id(self) -> int:
        return (self.number + 1) * ROWS_EACH


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody for whom the log is kept, and through which position they have it."""

    name: str
    pos: int


def leading(conn: Connection) -> AbstractAsyncContextManager[bool]:
    """Return a context: whether this session is the one that drops; nobody else does until it ends."""
    return connections.leading(conn, RETENTION_LOCK)


async def log_start(conn: Connection) -> LogStart:
    """Return after what the log begins."""
    row = await conn.fetchrow("SELECT pos, id FROM fedstac.forgotten")
    assert row is not None  # made with the table
    return LogStart(row["pos"], row["id"])


# --- for whom the log is kept ---

# Everybody who ever acknowledged, and the notifications of this node. A place in an epoch that has ended counts as far
# as the log went on from it.
READERS = f"""
    WITH RECURSIVE last AS (
        (SELECT node, epoch, through FROM fedstac.node_status ORDER BY node DESC, epoch DESC, through DESC LIMIT 1)
        UNION ALL
        SELECT s.* FROM last l CROSS JOIN LATERAL (
            SELECT node, epoch, through FROM fedstac.node_status n WHERE n.node < l.node
            ORDER BY node DESC, epoch DESC, through DESC LIMIT 1) s),
    reader AS (
        SELECT node AS name,
               least(through, (SELECT min(forked_at_pos) FROM fedstac.epoch e WHERE e.n > last.epoch)) AS pos FROM last
        UNION ALL SELECT '{NOTIFICATIONS}', pos FROM fedstac.told)"""


async def readers(conn: Connection) -> list[Reader]:
    """Return for whom the log is kept: nodes, notifications and required sinks that have not lapsed."""
    rows = await conn.fetch(
        f"""{READERS} SELECT name, pos FROM reader r
            WHERE NOT EXISTS (SELECT FROM fedstac.lapse l WHERE l.name = r.name) ORDER BY name"""
    )
    lowest = await sinks.lowest_required(conn)
    required = [] if lowest is None else [Reader("required sinks", lowest)]
    return [*(Reader(row["name"], row["pos"]) for row in rows), *required]


async def lapse(conn: Connection, days: float) -> list[str]:
    """Let readers lapse whose next event is older than this; tell operators. Return their names.

    Who acknowledges more than before the lapse is back.
    """
    async with conn.transaction():
        await conn.execute(
            f"""{READERS} DELETE FROM fedstac.lapse l USING reader r WHERE r.name = l.name AND r.pos > l.pos"""
        )
        rows = await conn.fetch(
            f"""{READERS}
                INSERT INTO fedstac.lapse (name, pos)
                SELECT r.name, r.pos FROM reader r, fedstac.feed_state s
                WHERE r.pos < s.pos AND EXISTS (
                    SELECT FROM (SELECT id FROM fedstac.feed f WHERE f.pos > r.pos ORDER BY f.pos LIMIT 1) next
                    JOIN fedstac.outbox o ON o.id = next.id
                    WHERE o.at < clock_timestamp() - make_interval(secs => $1 * 86400))
                ON CONFLICT DO NOTHING RETURNING name""",
            days,
        )
        names = [row["name"] for row in rows]
        for name in names:
            await troubles.report(conn, "node", place=name, what="it has lapsed", detail=LAPSED)
        return names


# --- how it goes ---


async def oldest_partition(conn: Connection, days: float) -> OldPartition | None:
    """Return the oldest partition if all of its events are so old; None while it is the one that is written to."""
    number = await conn.fetchval(
        """WITH oldest AS MATERIALIZED (
               SELECT substring(c.relname FROM 8)::bigint AS number
               FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'fedstac.outbox'::regclass ORDER BY 1 LIMIT 1),
           state AS (SELECT coalesce(last_value, 0) AS last_id FROM pg_sequences
                     WHERE schemaname = 'fedstac' AND sequencename = 'outbox_id_seq')
           SELECT number FROM oldest, state WHERE last_id > (number + 1) * $1
             AND coalesce((SELECT at FROM fedstac.outbox WHERE id <= (number + 1) * $1 ORDER BY id DESC LIMIT 1),
                          '-infinity') <= clock_timestamp() - make_interval(secs => $2 * 86400)""",
        ROWS_EACH, days,
    )  # fmt: skip
    if number is None:
        return None
    last_pos = await conn.fetchval("SELECT max(pos) FROM fedstac.feed WHERE id <= $1", (number + 1) * ROWS_EACH)
    return OldPartition(number, last_pos or 0)


async def forget(conn: Connection, partition: OldPartition, *, actor: str, readers: Sequence[Reader]) -> bool:
    """Let nobody begin to read in a partition any more. False where it has events without a position."""
    async with conn.transaction():
        last_pos = await conn.fetchval("SELECT fedstac.forget_outbox($1)", partition.number)
        if last_pos is None:
            return False
        if last_pos > partition.last_pos:  # an event came late: look again who has it
            raise PartitionChanged
        detail = {"through": last_pos, "readers": {reader.name: reader.pos for reader in readers}}
        await audit.append(conn, [audit.NewRow(
            actor=actor, action="forget-events", collection="", dataset=f"outbox_{partition.number}", request=None,
            outcome="done", before=None, after=None, detail=orjson.dumps(detail).decode(),
        )])  # fmt: skip
        failpoint("retention.forgotten")
    return True


class PartitionChanged(Exception):
    """A partition has more than it had a moment ago."""


async def sweep(conn: Connection) -> bool:
    """Delete a few rows of the feed that are forgotten. Return whether there are more."""
    count = await conn.fetchval("SELECT fedstac.sweep_feed($1)", SWEPT_AT_ONCE)
    failpoint("retention.swept")
    return bool(count == SWEPT_AT_ONCE)


async def drop(conn: Connection, partition: OldPartition) -> bool:
    """Drop a partition that is forgotten and swept. False where somebody holds it, or it is still needed."""
    try:
        is_gone = bool(await conn.fetchval("SELECT fedstac.drop_outbox($1)", partition.number))
    except asyncpg.LockNotAvailableError:
        return False
    failpoint("retention.dropped")
    return is_gone


async def sweep_acknowledgements(conn: Connection) -> int:
    """Delete a few acknowledgements of what is forgotten, but for the last of each consumer. Return how many."""
    status = await conn.execute(
        f"""{READERS} DELETE FROM fedstac.node_status s USING (
                SELECT l.node, n.epoch, n.through FROM last l CROSS JOIN fedstac.forgotten g CROSS JOIN LATERAL (
                    SELECT epoch, through FROM fedstac.node_status n
                    WHERE n.node = l.node AND (n.epoch, n.through) < (l.epoch, l.through) AND n.through < g.pos
                    ORDER BY n.through LIMIT $1) n) old
            WHERE (s.node, s.epoch, s.through) = (old.node, old.epoch, old.through)""",
        SWEPT_AT_ONCE,
    )
    return int(status.rpartition(" ")[2])
