"""How a node's parts stand, as far as a few look-ups tell."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from fedstac.db.connections import Connection
from fedstac.db.feed import SEQUENCER_LOCK
from fedstac.db.nodes import FOLLOWER_KEY, FOLLOWER_LOCK
from fedstac.db.queue import LONGEST_WAIT
from fedstac.db.sinks import SINK_LOCK

LEAST_AHEAD = 3  # partitions of the outbox that are made and not yet written to
KEY = FOLLOWER_KEY.format(consumer="c.consumer", origin="c.origin")


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What runs, on whatever process; workers that find nothing to do leave no trace."""

    sequencer: bool  # somebody leads
    followers: dict[str, dict[str, bool]]  # by consumer and origin: whether it is followed just now
    working: bool  # claims of workers stand
    sinks: dict[str, str]  # by name: sending, failing, paused, lapsed, or absent, where no relay sends to it
    waiting_seconds: float | None  # age of the oldest item that nobody has done; None: there is none


async def parts(conn: Connection) -> NodeParts:
    """Read the parts from the locks that the sequencer, followers and relays hold, and from the queue."""
    row = await conn.fetchrow(
        f"""WITH held AS MATERIALIZED (
               SELECT classid::bigint, objid::bigint, objsubid FROM pg_locks
               WHERE locktype = 'advisory' AND granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
           SELECT EXISTS (SELECT FROM held WHERE classid << 32 | objid = $1 AND objsubid = 1) AS sequencer,
                  (SELECT coalesce(json_object_agg(consumer, origins), '{{}}') FROM (
                      SELECT c.consumer, json_object_agg(c.origin, EXISTS (
                                 SELECT FROM held WHERE classid = $2 AND objsubid = 2
                                   AND objid = hashtext({KEY})::bigint & 4294967295) ORDER BY c.origin) AS origins
                      FROM fedstac.consumer_cursor c GROUP BY c.consumer) consumers) AS followers,
                  (SELECT coalesce(json_object_agg(s.name, CASE
                       WHEN s.lapsed_at IS NOT NULL THEN 'lapsed' WHEN s.paused_at IS NOT NULL THEN 'paused'
                       WHEN s.failing_since IS NOT NULL THEN 'failing'
                       WHEN EXISTS (SELECT FROM held WHERE classid = $3 AND objsubid = 2
                                      AND objid = hashtext(s.name)::bigint & 4294967295) THEN 'sending'
                       ELSE 'absent' END ORDER BY s.name), '{{}}') FROM fedstac.sink s) AS sinks,
                  EXISTS (SELECT FROM fedstac.shard WHERE token IS NOT NULL AND until > clock_timestamp()) AS working,
                  {LONGEST_WAIT} AS waiting_seconds""",
        SEQUENCER_LOCK, FOLLOWER_LOCK, SINK_LOCK,
    )  # fmt: skip
    assert row is not None
    return NodeParts(**{**dict(row), "followers": orjson.loads(row["followers"]), "sinks": orjson.loads(row["sinks"])})


async def partitions_ahead(conn: Connection) -> int:
    """Return how many partitions of the outbox are made and not yet written to."""
    return int(
        await conn.fetchval(
            """SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'fedstac.outbox'::regclass AND substring(c.relname FROM 8)::bigint > (
                   SELECT greatest(coalesce(last_value, 1) - 1, 0) / 1000000 FROM pg_sequences
                   WHERE schemaname = 'fedstac' AND sequencename = 'outbox_id_seq')"""
        )
    )
