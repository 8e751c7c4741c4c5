"""The feed: positions given by the sequencer, read by consumers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedstac.db import audit, queue, records
from fedstac.db.connections import Connection, Row
from fedstac.domain import grants
from fedstac.domain.errors import CursorGone
from fedstac.domain.events import Cursor
from fedstac.domain.model import Record

PAGE_BYTES = 4 << 20  # of the texts of a page; its answer takes as much again three times while it is made
SCANNED = 10_000  # positions that one look passes in search of events that a filter takes
SEQUENCER_LOCK = 0x666564_01  # advisory lock of the one sequencer

# Rows that became visible since the last look: those of transactions that had not begun then, and those of transactions
# that were under way. Two branches, so that the index on xid serves both (1.6 ms instead of 13). A row id says nothing:
# ids are drawn before commits become visible, and reading on from the highest id seen lost 14 % of the events.
SEQUENCE = """
    WITH prev AS MATERIALIZED (SELECT snap, pos FROM fedstac.feed_state),
         fresh AS MATERIALIZED (
            SELECT id FROM fedstac.outbox WHERE xid >= (SELECT pg_snapshot_xmax(snap) FROM prev)
            UNION ALL
            SELECT id FROM fedstac.outbox WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(snap) FROM prev))),
         put AS (
            INSERT INTO fedstac.feed (pos, id)
            SELECT (SELECT pos FROM prev) + row_number() OVER (ORDER BY id), id FROM fresh RETURNING pos)
    UPDATE fedstac.feed_state SET snap = pg_current_snapshot(), pos = pos + (SELECT count(*) FROM put)
    WHERE EXISTS (SELECT 1 FROM fresh) RETURNING (SELECT count(*) FROM put)"""

RESTORED = """
    SELECT NOT (system_id = system_identifier::text AND timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8)
                AND pg_snapshot_xmax(snap) <= pg_snapshot_xmax(pg_current_snapshot()))
    FROM fedstac.feed_state, pg_control_system()"""


async def lead(conn: Connection) -> bool:
    """Return whether this session is the sequencer now; the lock goes with the session."""
    return bool(await conn.fetchval("SELECT pg_try_advisory_lock($1)", SEQUENCER_LOCK))


async def sequence(conn: Connection) -> int:
    """Give positions to the events that became visible; return how many. Write nothing when there are none."""
    async with conn.transaction(isolation="repeatable_read"):
        return int(await conn.fetchval(SEQUENCE) or 0)


async def establish(conn: Connection, origin: str, signing_key: bytes) -> str:
    """Make the feed's one row at the first start, and return the node's name as the database has it."""
    await conn.execute(
        """INSERT INTO fedstac.feed_state (origin, epoch, system_id, timeline, snap, pos, signing_key)
           SELECT $1, 1, system_identifier::text, left(pg_walfile_name(pg_current_wal_lsn()), 8),
                  pg_current_snapshot(), 0, $2
           FROM pg_control_system() ON CONFLICT DO NOTHING""",
        origin, signing_key,
    )  # fmt: skip
    await conn.execute("INSERT INTO fedstac.epoch (n, forked_at_pos) VALUES (1, 0) ON CONFLICT DO NOTHING")
    return str(await conn.fetchval("SELECT origin FROM fedstac.feed_state"))


async def fork_if_restored(conn: Connection) -> int | None:
    """Start a new epoch where this database is a restored or promoted copy; return its number, else None.

    The signs are another cluster id, another timeline, or a stored snapshot that lies ahead of now. Retained events
    keep their positions. Events without a position get one after the fork, in the order of their ids.
    """
    if not await conn.fetchval(RESTORED):
        return None
    async with conn.transaction():
        # who writes reads the epoch first: once this lock is ours no event is on its way, and none in the old epoch
        await conn.execute("LOCK TABLE fedstac.feed_state IN ACCESS EXCLUSIVE MODE", timeout=records.A_DAY)
        if not await conn.fetchval(RESTORED):
            return None
        fork = int(await conn.fetchval("SELECT pos FROM fedstac.feed_state"))
        await conn.execute(
            """INSERT INTO fedstac.feed (pos, id)
               SELECT $1 + row_number() OVER (ORDER BY o.id), o.id FROM fedstac.outbox o
               WHERE o.id > (SELECT id FROM fedstac.forgotten)
                 AND NOT EXISTS (SELECT 1 FROM fedstac.feed f WHERE f.id = o.id)""",
            fork, timeout=records.A_DAY,
        )  # fmt: skip
        # only what a later look could take for new: the rest lies below every snapshot to come
        await conn.execute(
            "UPDATE fedstac.outbox SET xid = '0'::xid8 WHERE xid >= pg_snapshot_xmin(pg_current_snapshot())",
            timeout=records.A_DAY,
        )
        # what lies ahead of now would be read again by each search
        await conn.execute(
            "UPDATE fedstac.facet SET changed = '0'::xid8 WHERE changed >= pg_snapshot_xmin(pg_current_snapshot())",
            timeout=records.A_DAY,
        )
        # what processes have in memory may have been lost with the database before: they load everything again
        await conn.execute("UPDATE fedstac.facet_removed SET through = pg_current_xact_id()")
        await conn.execute(
            """UPDATE fedstac.feed_state SET system_id = system_identifier::text,
                      timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8), snap = pg_current_snapshot(),
                      pos = greatest(pos, (SELECT max(pos) FROM fedstac.feed))
               FROM pg_control_system()"""
        )
        await audit.chain_restored(conn)
        return await _begin_epoch(conn, fork)


async def start_epoch(conn: Connection) -> int:
    """Start a new epoch in which no earlier cursor goes on; return its number. Every consumer takes a snapshot.

    For a database whose disk was put back to an earlier state. No sign in it says so, and nobody knows where the fork
    is.
    """
    async with conn.transaction():
        await conn.execute("LOCK TABLE fedstac.feed_state IN ACCESS EXCLUSIVE MODE")
        return await _begin_epoch(conn, 0)


async def _begin_epoch(conn: Connection, fork: int) -> int:
    """Begin an epoch after a position and return its number.

    The number is the time in seconds, or one more than the last. Counting alone would give two restores of one backup
    the same number, and a consumer of the first would go on in the second (ADR 14).
    """
    number = int(
        await conn.fetchval(
            """UPDATE fedstac.feed_state
               SET epoch = greatest(epoch + 1, floor(extract(epoch FROM clock_timestamp()))::bigint) RETURNING epoch"""
        )
    )
    await conn.execute("INSERT INTO fedstac.epoch (n, forked_at_pos) VALUES ($1, $2)", number, fork)
    return number


async def head(conn: Connection) -> Cursor:
    """Return the last position of the feed."""
    row = await conn.fetchrow("SELECT epoch, pos FROM fedstac.feed_state")
    return Cursor(row["epoch"], row["pos"]) if row else Cursor(1, 0)


async def signing_key(conn: Connection) -> bytes:
    return bytes(await conn.fetchval("SELECT signing_key FROM fedstac.feed_state"))


async def resume(conn: Connection, after: Cursor) -> Cursor:
    """Return where a consumer with this cursor reads on. CursorGone where it has to take a snapshot.

    A cursor of an earlier epoch goes on if it lies before every fork since; what lies beyond was not kept. An epoch
    that this log never had is that of another restored copy.
    """
    state = await conn.fetchrow(
        """SELECT epoch, pos, (SELECT pos FROM fedstac.forgotten) AS earliest,
                  (SELECT min(forked_at_pos) FROM fedstac.epoch WHERE n > $1) AS fork,
                  $1 = 0 OR EXISTS (SELECT 1 FROM fedstac.epoch WHERE n = $1) AS ours FROM fedstac.feed_state""",
        after.epoch,
    )
    assert state is not None
    now = Cursor(state["epoch"], after.pos)
    beyond = after.pos > state["pos"] or not state["ours"]
    forked_away = after.epoch and state["fork"] is not None and after.pos > state["fork"]
    if beyond or forked_away or after.pos < state["earliest"]:
        earliest = Cursor(state["epoch"], state["earliest"])
        raise CursorGone(
            f"the feed cannot go on after {after}: it reaches from {earliest} to {state['epoch']}.{state['pos']}; "
            f"take GET /snapshot and go on from its cursor",
            earliest=str(earliest),
        )
    return now


async def lags_behind(conn: Connection, cursor: Cursor) -> bool:
    """Tell whether this is a standby that has not come to a place yet, which the other server gave."""
    return bool(await conn.fetchval(
        "SELECT pg_is_in_recovery() AND (epoch, pos) < ($1, $2) FROM fedstac.feed_state", cursor.epoch, cursor.pos
    ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    epoch: int  # in which the event got its place: a replay across a fork must not make the old look new
    pos: int
    key: str
    collection: str
    type: str
    event: str


async def page(conn: Connection, after: int, limit: int, *, most_bytes: int = PAGE_BYTES) -> list[Entry]:
    """Return events after a position, in the order of the log; of large ones only the first few.

    CursorGone where events after the position were dropped a moment ago.
    """
    rows = await conn.fetch(
        """SELECT epoch, pos, key, collection, type, event FROM (
               SELECT *, sum(octet_length(event)) OVER (ORDER BY pos) - octet_length(event) AS before FROM (
                   SELECT (SELECT max(n) FROM fedstac.epoch WHERE forked_at_pos < f.pos) AS epoch,
                          f.pos, o.key, o.collection, o.type, o.event
                   FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
                   WHERE f.pos > $1 ORDER BY f.pos LIMIT $2) limited) sized
           WHERE before < $3 ORDER BY pos""",
        after, limit, most_bytes,
    )  # fmt: skip
    entries = [Entry(**dict(row)) for row in rows]
    if entries:
        _check_dense(after, entries[0].pos)
    return entries


def _check_dense(after: int, first: int) -> None:
    """Refuse a page that does not begin right after a position: retention came between two statements."""
    if first != after + 1:
        raise CursorGone(
            f"the events from {after + 1} to {first - 1} were dropped; take GET /snapshot and go on from its cursor"
        )


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a reader wants: of a collection, of a type, of a share of the lineages.

    grants: whether those about grants are for this reader.
    """

    collection: str | None = None
    type: str | None = None
    share: int = 0
    shares: int = 1
    grants: bool = False

    @property
    def takes_all(self) -> bool:
        """Return whether it leaves nothing out."""
        return self.collection is None and self.type is None and self.shares == 1

    def takes_lineage(self, key: str) -> bool:
        """Return whether a lineage belongs to the share."""
        return queue.key_hash(key) % self.shares == self.share


EVERYTHING = EventFilter()


@dataclass(frozen=True, slots=True)
class FeedSlice:
    """Events that a reader wants, and the last position that was looked at for them."""

    entries: Sequence[Entry]
    through: int


async def look(
    conn: Connection, after: int, limit: int, event_filter: EventFilter = EVERYTHING, *, most_bytes: int = PAGE_BYTES
) -> FeedSlice:
    """Return the events after a position that a filter takes, found among the next SCANNED positions.

    CursorGone as of `page`.
    """
    if event_filter.takes_all:
        entries = await page(conn, after, limit, most_bytes=most_bytes)
        readable = [each for each in entries if _is_readable(each.type, event_filter)]
        if readable or not entries:
            return FeedSlice(readable, entries[-1].pos if entries else after)
    row = await conn.fetchrow(
        """WITH scanned AS MATERIALIZED (SELECT pos, id FROM fedstac.feed WHERE pos > $1 ORDER BY pos LIMIT $2),
                reach AS MATERIALIZED (
                    SELECT min(pos) AS first, max(pos) AS last, min(id) AS lowest, max(id) AS highest FROM scanned)
           SELECT first, last, positions, keys, sizes FROM reach CROSS JOIN (
               SELECT array_agg(s.pos ORDER BY s.pos) AS positions, array_agg(o.key ORDER BY s.pos) AS keys,
                      array_agg(octet_length(o.event) ORDER BY s.pos) AS sizes
               FROM scanned s JOIN fedstac.outbox o ON o.id = s.id
               WHERE o.id >= (SELECT lowest FROM reach) AND o.id <= (SELECT highest FROM reach)
                 AND ($3::text IS NULL OR o.collection = $3) AND ($4::text IS NULL OR o.type = $4)
                 AND ($5 AND o.type <> 'org.fedstac.grant.passage.v1' OR o.type NOT LIKE 'org.fedstac.grant.%')
           ) matching""",
        after, SCANNED, event_filter.collection, event_filter.type, event_filter.grants,
    )  # fmt: skip
    assert row is not None  # it is one of aggregates
    if row["first"] is None:
        return FeedSlice((), after)
    _check_dense(after, row["first"])
    positions, size = list[int](), 0
    for pos, key, event_size in zip(row["positions"] or (), row["keys"] or (), row["sizes"] or (), strict=True):
        if event_filter.takes_lineage(key):
            if len(positions) == limit or size >= most_bytes:
                return FeedSlice(await _entries(conn, positions), positions[-1])
            positions.append(pos)
            size += event_size
    return FeedSlice(await _entries(conn, positions) if positions else (), row["last"])


def _is_readable(event_type: str, event_filter: EventFilter) -> bool:
    """Tell whether a reader may have events of a type: those about grants by a right, passages of grants never."""
    return not event_type.startswith(grants.PREFIX) or (event_filter.grants and event_type != grants.PASSAGE)


async def _entries(conn: Connection, positions: Sequence[int]) -> list[Entry]:
    rows = await conn.fetch(
        """SELECT (SELECT max(n) FROM fedstac.epoch WHERE forked_at_pos < f.pos) AS epoch,
                  f.pos, o.key, o.collection, o.type, o.event
           FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id WHERE f.pos = ANY ($1::bigint[]) ORDER BY f.pos""",
        positions,
    )
    if len(rows) != len(positions):
        raise CursorGone("these events were dropped a moment ago; take GET /snapshot and go on from its cursor")
    return [Entry(**dict(row)) for row in rows]


async def snapshot_page(conn: Connection, origin: str, after: tuple[str, str], limit: int) -> list[Record]:
    """Return the current state of what this node is the origin of, tombstones included, by collection and id.

    Empty at the end only: of large documents a page has the first few.
    """
    rows = await conn.fetch(
        f"""SELECT {records.COLUMNS}, document FROM (
                SELECT *, sum(size) OVER (ORDER BY collection, id) - size AS before FROM (
                    SELECT *, coalesce(octet_length(document), 0) AS size FROM fedstac.record
                    WHERE origin = $1 AND (collection, id) > ($2, $3) ORDER BY collection, id LIMIT $4) limited) sized
            WHERE before < $5 ORDER BY collection, id""",
        origin, *after, limit, PAGE_BYTES,
    )  # fmt: skip
    return [records.from_row(row) for row in rows]


async def changed_since(conn: Connection, cursor: Cursor, most: int) -> list[tuple[str, str]] | None:
    """Return the datasets that events after a cursor are about, by collection and id.

    None where the log does not reach back to it, or they are more than `most`.
    """
    try:
        await resume(conn, cursor)
    except CursorGone:
        return None
    rows = await conn.fetch(
        """SELECT DISTINCT o.collection, o.dataset FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
           WHERE f.pos > $1 AND o.dataset IS NOT NULL ORDER BY 1, 2 LIMIT $2""",
        cursor.pos, most + 1, timeout=records.A_DAY,
    )  # fmt: skip
    return [(row["collection"], row["dataset"]) for row in rows] if len(rows) <= most else None


async def current_of(conn: Connection, origin: str, collection: str, ids: Sequence[str]) -> list[Record]:
    """Return the current state of the named datasets that this node is the origin of, tombstones included."""
    rows = await conn.fetch(
        f"""SELECT {records.COLUMNS}, document FROM fedstac.record
            WHERE origin = $1 AND collection = $2 AND id = ANY ($3::text[]) ORDER BY id""",
        origin, collection, ids,
    )  # fmt: skip
    return [records.from_row(row) for row in rows]


async def digests(conn: Connection, origin: str) -> list[Row]:
    """Return the fingerprint of each collection and bucket of ids: count and exclusive or of the records' digests."""
    return await conn.fetch(
        """SELECT collection, hashtext(id) & 255 AS bucket, count(*) AS n,
                  bit_xor(('x' || encode(substring(digest FOR 8), 'hex'))::bit(64)::bigint)::text AS digest
           FROM fedstac.record WHERE origin = $1 GROUP BY 1, 2 ORDER BY 1, 2""",
        origin,
    )


async def bucket(conn: Connection, origin: str, collection: str, number: int) -> list[Row]:
    """Return the records of one bucket, from which a difference in `digests` comes."""
    return await conn.fetch(
        """SELECT id, epoch, seq, encode(digest, 'hex') AS digest FROM fedstac.record
           WHERE origin = $1 AND collection = $2 AND hashtext(id) & 255 = $3 ORDER BY id""",
        origin, collection, number,
    )  # fmt: skip
