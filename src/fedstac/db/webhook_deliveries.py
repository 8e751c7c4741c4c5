"""Subscriptions that are sent to a webhook: whose turn it is, and what came of a turn.

A subscription is leased to one process at a time, for a few seconds that the process prolongs while it sends. What a
process changes it changes only while the lease is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from fedstac.db import audit, notifications, subscription_events, subscriptions
from fedstac.db.connections import Connection
from fedstac.db.subscription_events import Postponement
from fedstac.db.subscriptions import UNLEASED, Subscription
from fedstac.domain.events import Cursor

MOST_WAITING: Final = 1000  # events of a subscription that wait to be sent again: beyond, none is added
LOST: Final = "the log no longer has it; read the dataset itself"
ACTOR: Final = "fedstac"  # in the audit log: a receiver did it, and this node notes it

# The first event of each dataset that waits is due when its time has come. Others wait behind it.
DUE: Final = """EXISTS (
    SELECT FROM (
        SELECT DISTINCT ON (e.collection, e.dataset) e.retry_at FROM fedstac.subscription_event e
        WHERE e.subscription = s.name AND e.dead_at IS NULL ORDER BY e.collection, e.dataset, e.pos) first
    WHERE first.retry_at <= clock_timestamp())"""

WAITING: Final = """(
    SELECT count(*) FROM (SELECT FROM fedstac.subscription_event e
                          WHERE e.subscription = s.name AND e.dead_at IS NULL LIMIT $5) e)"""

# As the indexes subscription_sending and subscription_unagreed have it.
SENDING: Final = "s.delivery = 'webhook' AND s.paused_reason IS NULL AND s.ended_reason IS NULL"
UNAGREED: Final = "s.agreed_url IS DISTINCT FROM s.url"
FREE: Final = """(s.leased_until IS NULL OR s.leased_until <= clock_timestamp())
    AND (s.wait_until IS NULL OR s.wait_until <= clock_timestamp())"""
READY: Final = "SELECT s.name, s.is_slow OR s.failing_since IS NOT NULL AS is_hindered FROM fedstac.subscription s"


@dataclass(frozen=True, slots=True)
class Turn:
    """A subscription that is leased to this process.

    agreed_url: whose receiver agreed. waits: in a row, of a receiver that takes nothing. waiting: events that wait to
    be sent again, MOST_WAITING at most. has_stored: there are such events, or dead letters. is_due: some of them are.
    """

    subscription: Subscription
    agreed_url: str | None
    allowed_rate: int | None
    waits: int
    is_slow: bool
    waiting: int
    has_stored: bool
    is_due: bool

    @property
    def name(self) -> str:
        return self.subscription.name

    @property
    def lease(self) -> UUID:
        lease = self.subscription.lease
        assert lease is not None  # it is this process's
        return lease

    @property
    def is_hindered(self) -> bool:
        """Whether it gets its turn among those that are slow or fail."""
        return self.is_slow or self.subscription.failing_since is not None

    @property
    def has_consent(self) -> bool:
        return self.agreed_url == self.subscription.url


# Something to ask a receiver for consent to, something new in the log, or an event that is to be sent again.
ANY_BEHIND: Final = f"""(
    EXISTS (SELECT FROM fedstac.subscription s WHERE {SENDING} AND {UNAGREED})
    OR EXISTS (SELECT FROM fedstac.subscription s WHERE {SENDING}
                 AND s.epoch = (SELECT epoch FROM fedstac.feed_state)
                 AND s.pos >= 0 AND s.pos < (SELECT pos FROM fedstac.feed_state))
    OR EXISTS (SELECT FROM fedstac.subscription s WHERE {SENDING}
                 AND s.epoch >= 0 AND s.epoch < (SELECT epoch FROM fedstac.feed_state))
    OR EXISTS (SELECT FROM fedstac.subscription_event WHERE dead_at IS NULL))"""


async def claim(conn: Connection, lease: UUID, seconds: float, *, most: int, most_slow: int) -> list[Turn]:
    """Return subscriptions that have something to send, leased. Where they are too many, the lot decides.

    So nobody waits until those that are far behind have the whole log.
    most: of those that work. most_slow: of those that are slow or fail, which have a share of their own so that they
    hold up nobody else.
    Of subscriptions that have everything none is read: those behind are found by their place, those with stored events
    and those whose receiver has not agreed one after the other. PostgreSQL takes these to be many, since it has no
    statistics of such conditions; so it would read all. Both bounds of a place are named, and names are in arrays, for
    the same reason.
    """
    rows = await conn.fetch(
        f"""WITH RECURSIVE stored (name) AS (
                (SELECT subscription FROM fedstac.subscription_event WHERE dead_at IS NULL
                 ORDER BY subscription LIMIT 1)
                UNION ALL
                SELECT (SELECT e.subscription FROM fedstac.subscription_event e
                        WHERE e.dead_at IS NULL AND e.subscription > stored.name ORDER BY e.subscription LIMIT 1)
                FROM stored WHERE stored.name IS NOT NULL),
            unagreed (name) AS (
                (SELECT s.name FROM fedstac.subscription s WHERE {SENDING} AND {UNAGREED} ORDER BY s.name LIMIT 1)
                UNION ALL
                SELECT (SELECT s.name FROM fedstac.subscription s
                        WHERE {SENDING} AND {UNAGREED} AND s.name > unagreed.name ORDER BY s.name LIMIT 1)
                FROM unagreed WHERE unagreed.name IS NOT NULL),
            ready AS MATERIALIZED (
                {READY} WHERE {SENDING} AND {FREE} AND s.name = ANY (ARRAY(SELECT name FROM unagreed))
                UNION {READY} WHERE {SENDING} AND {FREE} AND {WAITING} < $5
                      AND s.epoch = (SELECT epoch FROM fedstac.feed_state)
                      AND s.pos >= 0 AND s.pos < (SELECT pos FROM fedstac.feed_state)
                UNION {READY} WHERE {SENDING} AND {FREE} AND {WAITING} < $5
                      AND s.epoch >= 0 AND s.epoch < (SELECT epoch FROM fedstac.feed_state)
                UNION {READY} WHERE {SENDING} AND {FREE} AND {DUE} AND s.name = ANY (ARRAY(SELECT name FROM stored))),
            chosen AS (
                (SELECT name FROM ready WHERE NOT is_hindered ORDER BY random() LIMIT $3)
                UNION ALL (SELECT name FROM ready WHERE is_hindered ORDER BY random() LIMIT $4)),
            locked AS MATERIALIZED (
                SELECT name FROM fedstac.subscription s
                WHERE name = ANY (ARRAY(SELECT name FROM chosen))
                  AND (s.leased_until IS NULL OR s.leased_until <= clock_timestamp())
                FOR UPDATE SKIP LOCKED)
            UPDATE fedstac.subscription s
            SET lease = $1, leased_epoch = epoch, leased_through = pos,
                leased_until = clock_timestamp() + make_interval(secs => $2)
            WHERE s.name = ANY (ARRAY(SELECT name FROM locked))
            RETURNING {subscriptions.COLUMNS}, agreed_url, allowed_rate, waits, is_slow,
                {WAITING} AS waiting,
                EXISTS (SELECT FROM fedstac.subscription_event e WHERE e.subscription = s.name) AS has_stored,
                {DUE} AS is_due""",
        lease, seconds, most, most_slow, MOST_WAITING,
    )  # fmt: skip
    own = ("agreed_url", "allowed_rate", "waits", "is_slow", "waiting", "has_stored", "is_due")
    return [Turn(subscriptions.subscription_of(row), **{name: row[name] for name in own}) for row in rows]


async def prolong(conn: Connection, turns: Iterable[Turn], seconds: float) -> None:
    """Let the leases of turns last for so many seconds from now on, where they still are theirs."""
    leases = {turn.name: turn.lease for turn in turns}
    await conn.execute(
        """WITH locked AS MATERIALIZED (
               SELECT s.name FROM fedstac.subscription s
               JOIN unnest($1::text[], $2::uuid[]) l (name, lease) ON s.name = l.name AND s.lease = l.lease
               FOR UPDATE OF s SKIP LOCKED)  -- what is noted just now waits for nobody, and has its lease for a while
           UPDATE fedstac.subscription SET leased_until = clock_timestamp() + make_interval(secs => $3)
           WHERE name IN (SELECT name FROM locked)""",
        list(leases), list(leases.values()), seconds,
    )  # fmt: skip


async def release(conn: Connection, lease: UUID, names: Sequence[str]) -> None:
    """End the lease of subscriptions, where it still is this one."""
    await conn.execute(
        f"UPDATE fedstac.subscription SET {UNLEASED} WHERE lease = $1 AND name = ANY ($2::text[])", lease, list(names)
    )


async def pass_over(conn: Connection, turns: Sequence[Turn], through: Cursor) -> None:
    """Note that there is nothing for subscriptions through a place, and end their lease.

    One that was put or sought meanwhile stays where it is.
    """
    await conn.execute(
        f"""UPDATE fedstac.subscription s
            SET epoch = CASE WHEN s.version = t.version THEN $4 ELSE s.epoch END,
                pos = CASE WHEN s.version = t.version THEN $5 ELSE s.pos END, {UNLEASED}
            FROM unnest($1::text[], $2::uuid[], $3::integer[]) t (name, lease, version)
            WHERE s.name = t.name AND s.lease = t.lease AND (s.version <> t.version OR (s.epoch, s.pos) <= ($4, $5))""",
        [turn.name for turn in turns], [turn.lease for turn in turns],
        [turn.subscription.version for turn in turns], through.epoch, through.pos,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stop:
    """Whether and for how long nothing is sent to a receiver.

    seconds: it is left in peace. waits: in a row. paused_reason: it refuses this node, and its owner has to see to it.
    ended_reason: it wants nothing any more.
    """

    seconds: float | None = None
    waits: int = 0
    paused_reason: str | None = None
    ended_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryResult:
    """What came of events that were sent.

    through: everything up to here was taken or is stored; None: the cursor stays. settled_positions: of stored events
    that were taken, or are nothing to the subscriber any more. lost_positions: of those that the log no longer has.
    error: of the receiver, or of the last event that failed.
    """

    through: Cursor | None
    taken_count: int
    settled_positions: Sequence[int] = ()
    lost_positions: Sequence[int] = ()
    postponements: Sequence[Postponement] = ()
    error: str | None = None
    stop: Stop = Stop()
    is_slow: bool = False

    @property
    def dead_count(self) -> int:
        """How many events became dead letters."""
        return len(self.lost_positions) + sum(each.seconds is None for each in self.postponements)


@dataclass(frozen=True, slots=True)
class Note:
    """What came of a chunk of a turn."""

    turn: Turn
    result: DeliveryResult

    @property
    def through(self) -> Cursor:
        return self.result.through or self.turn.subscription.cursor


async def note(conn: Connection, notes: Sequence[Note], *, window: float) -> list[Note]:
    """Store what came of chunks of several turns, in one transaction with what their owners are told of it.

    Return those whose lease is still the turn's; of the others nothing is stored. window: seconds within which an
    owner's messages are told together.
    """
    async with conn.transaction():
        rows = await conn.fetch(
            """SELECT s.name, s.lease FROM fedstac.subscription s
               JOIN unnest($1::text[], $2::uuid[], $3::integer[]) t (name, lease, version)
                    ON t.name = s.name AND t.lease = s.lease AND t.version = s.version
               ORDER BY s.name FOR UPDATE OF s""",
            [each.turn.name for each in notes], [each.turn.lease for each in notes],
            [each.turn.subscription.version for each in notes],
        )  # fmt: skip
        leases = {row["name"]: row["lease"] for row in rows}
        own_notes = [each for each in notes if leases.get(each.turn.name) == each.turn.lease]
        await _store_events(conn, own_notes)
        await _store_places(conn, own_notes)
        await _tell(conn, sorted(own_notes, key=lambda each: each.turn.name), window)
    return own_notes


async def _store_events(conn: Connection, notes: Sequence[Note]) -> None:
    """Settle stored events that were taken, bury those that the log lost, and store those that failed."""
    settled_places = [(each.turn.name, pos) for each in notes for pos in each.result.settled_positions]
    lost_places = [(each.turn.name, pos) for each in notes for pos in each.result.lost_positions]
    if settled_places:
        await conn.execute(
            """DELETE FROM fedstac.subscription_event e USING unnest($1::text[], $2::bigint[]) t (name, pos)
               WHERE e.subscription = t.name AND e.pos = t.pos""",
            [name for name, _ in settled_places], [pos for _, pos in settled_places],
        )  # fmt: skip
    if lost_places:
        await subscription_events.bury(conn, lost_places, LOST)
    await subscription_events.postpone_each(
        conn, [(each.turn.name, postponement) for each in notes for postponement in each.result.postponements]
    )


async def _store_places(conn: Connection, notes: Sequence[Note]) -> None:
    """Store how far subscriptions are, what their receivers took, and whether something is sent to them now."""
    results = [each.result for each in notes]
    await conn.execute(
        """UPDATE fedstac.subscription s
           SET epoch = CASE WHEN (n.epoch, n.pos) > (s.epoch, s.pos) THEN n.epoch ELSE s.epoch END,
               pos = CASE WHEN (n.epoch, n.pos) > (s.epoch, s.pos) THEN n.pos ELSE s.pos END,
               delivered = delivered + n.taken,
               delivered_at = CASE WHEN n.taken > 0 THEN clock_timestamp() ELSE delivered_at END,
               errors = errors + (n.error IS NOT NULL)::integer, last_error = coalesce(n.error, last_error),
               failing_since = CASE WHEN n.taken > 0 THEN NULL
                                    WHEN n.error IS NOT NULL THEN coalesce(failing_since, clock_timestamp())
                                    ELSE failing_since END,
               wait_until = clock_timestamp() + make_interval(secs => n.seconds), waits = n.waits, is_slow = n.is_slow,
               paused_reason = n.paused_reason, ended_reason = n.ended_reason
           FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::float8[], $7::integer[],
                       $8::boolean[], $9::text[], $10::text[])
                n (name, epoch, pos, taken, error, seconds, waits, is_slow, paused_reason, ended_reason)
           WHERE s.name = n.name""",
        [each.turn.name for each in notes], [each.through.epoch for each in notes],
        [each.through.pos for each in notes], [each.taken_count for each in results],
        [each.error for each in results], [each.stop.seconds for each in results],
        [each.stop.waits for each in results], [each.is_slow for each in results],
        [each.stop.paused_reason for each in results], [each.stop.ended_reason for each in results],
    )  # fmt: skip


async def _tell(conn: Connection, notes: Sequence[Note], window: float) -> None:
    """Write the rows of stops in the audit log, and tell owners of them and of dead letters."""
    stops = [each for each in notes if _reason(each.result.stop) is not None]
    await audit.append_acts(conn, ACTOR, None, [
        audit.Act(
            "end-subscription" if each.result.stop.ended_reason is not None else "pause-subscription",
            f"subscription/{each.turn.name}", {"reason": _reason(each.result.stop)},
        )
        for each in stops
    ])  # fmt: skip
    about = dict[str, list[str]]()
    for each in notes:
        if _reason(each.result.stop) is not None or each.result.dead_count:
            about.setdefault(each.turn.subscription.owner, []).append(each.turn.name)
    await notifications.tell_owners(conn, "subscription", about, after=window)


def _reason(stop: Stop) -> str | None:
    return stop.ended_reason or stop.paused_reason


async def agree(conn: Connection, turn: Turn, rate: int | None) -> bool:
    """Store that the receiver agreed to get events. Return whether the lease is still the turn's."""
    row = await conn.fetchval(
        """UPDATE fedstac.subscription SET agreed_url = url, allowed_rate = $4, waits = 0, failing_since = NULL
           WHERE name = $1 AND lease = $2 AND version = $3 RETURNING true""",
        turn.name, turn.subscription.lease, turn.subscription.version, rate,
    )  # fmt: skip
    return row is True
