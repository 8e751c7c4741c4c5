"""Subscriptions that are sent to a webhook: whose turn it is, and what came of a turn.

A subscription is leased to one process at a time, for a few seconds that the process prolongs while it sends. What a
process changes it changes only while the lease is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from fedstac.db import notifications, subscription_events, subscriptions
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

WAITING: Final = 1000  # events of a subscription that wait to be sent again: beyond, none is added
LOST: Final = "the log no longer has it; read the dataset itself"
ACTOR: Final = "fedstac"  # in the audit log: a receiver did it, and this node notes it

# The first event of each dataset that waits is due when its time has come. Others wait behind it.
DUE: Final = """EXISTS (
    SELECT FROM fedstac.subscription_event e
    WHERE e.subscription = s.name AND e.dead_at IS NULL AND e.retry_at <= clock_timestamp() AND NOT EXISTS (
        SELECT FROM fedstac.subscription_event earlier
        WHERE earlier.subscription = e.subscription AND earlier.dead_at IS NULL AND earlier.collection = e.collection
          AND earlier.dataset IS NOT DISTINCT FROM e.dataset AND earlier.pos < e.pos))"""

WAITING: Final = """(
    SELECT count(*) FROM (SELECT FROM fedstac.subscription_event e
                          WHERE e.subscription = s.name AND e.dead_at IS NULL LIMIT $5) e)"""

# As the indexes subscription_sending and subscription_unagreed have it.
SENDING: Final = "s.delivery = 'webhook' AND s.paused_reason IS NULL AND s.ended_reason IS NULL"
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


async def claim(conn: Connection, lease: UUID, seconds: float, *, most: int, most_slow: int) -> list[Turn]:
    """Return subscriptions that have something to send, leased. Where they are too many, the lot decides.

    So nobody waits until those that are far behind have the whole log.
    most: of those that work. most_slow: of those that are slow or fail, which have a share of their own so that they
    hold up nobody else.
    Of subscriptions that have everything none is read: those behind are found by their place, and those with stored
    events one after the other. Both bounds of a place are named, or PostgreSQL takes a third of all to be behind.
    """
    rows = await conn.fetch(
        f"""WITH RECURSIVE stored (name) AS (
                (SELECT subscription FROM fedstac.subscription_event WHERE dead_at IS NULL
                 ORDER BY subscription LIMIT 1)
                UNION ALL
                SELECT (SELECT e.subscription FROM fedstac.subscription_event e
                        WHERE e.dead_at IS NULL AND e.subscription > stored.name ORDER BY e.subscription LIMIT 1)
                FROM stored WHERE stored.name IS NOT NULL),
            ready AS MATERIALIZED (
                {READY} WHERE {SENDING} AND {FREE} AND s.agreed_url IS DISTINCT FROM s.url
                UNION {READY} WHERE {SENDING} AND {FREE} AND {WAITING} < $5
                      AND s.epoch = (SELECT epoch FROM fedstac.feed_state)
                      AND s.pos >= 0 AND s.pos < (SELECT pos FROM fedstac.feed_state)
                UNION {READY} WHERE {SENDING} AND {FREE} AND {WAITING} < $5
                      AND s.epoch >= 0 AND s.epoch < (SELECT epoch FROM fedstac.feed_state)
                UNION {READY} JOIN stored ON stored.name = s.name WHERE {SENDING} AND {FREE} AND {DUE}),
            chosen AS (
                (SELECT name FROM ready WHERE NOT is_hindered ORDER BY random() LIMIT $3)
                UNION ALL (SELECT name FROM ready WHERE is_hindered ORDER BY random() LIMIT $4)),
            locked AS MATERIALIZED (
                SELECT name FROM fedstac.subscription s
                WHERE name IN (SELECT name FROM chosen)
                  AND (s.leased_until IS NULL OR s.leased_until <= clock_timestamp())
                FOR UPDATE SKIP LOCKED)
            UPDATE fedstac.subscription s
            SET lease = $1, leased_epoch = epoch, leased_through = pos,
                leased_until = clock_timestamp() + make_interval(secs => $2)
            WHERE s.name IN (SELECT name FROM locked)
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
        """UPDATE fedstac.subscription s SET leased_until = clock_timestamp() + make_interval(secs => $3)
           FROM unnest($1::text[], $2::uuid[]) l (name, lease) WHERE s.name = l.name AND s.lease = l.lease""",
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


async def note(conn: Connection, turn: Turn, result: DeliveryResult, *, window: float) -> bool:
    """Store what came of events that were sent, in one transaction with what the owner is told of it.

    Return whether the lease is still the turn's; where it is not, nothing is stored. window: seconds within which the
    owner's messages are told together.
    """
    subscription, stop = turn.subscription, result.stop
    name, through = turn.name, result.through or subscription.cursor
    async with conn.transaction():
        is_own = await conn.fetchval(
            """SELECT lease IS NOT DISTINCT FROM $2 AND version = $3 FROM fedstac.subscription
               WHERE name = $1 FOR UPDATE""",
            name, subscription.lease, subscription.version,
        )  # fmt: skip
        if not is_own:
            return False
        if result.settled_positions:
            await subscription_events.settle(conn, name, result.settled_positions)
        if result.lost_positions:
            await subscription_events.bury(conn, name, result.lost_positions, LOST)
        await subscription_events.postpone(conn, name, result.postponements)
        await conn.execute(
            """UPDATE fedstac.subscription
               SET epoch = CASE WHEN ($2, $3) > (epoch, pos) THEN $2 ELSE epoch END,
                   pos = CASE WHEN ($2, $3) > (epoch, pos) THEN $3 ELSE pos END,
                   delivered = delivered + $4,
                   delivered_at = CASE WHEN $4 > 0 THEN clock_timestamp() ELSE delivered_at END,
                   errors = errors + ($5::text IS NOT NULL)::integer, last_error = coalesce($5, last_error),
                   failing_since = CASE WHEN $4 > 0 THEN NULL
                                        WHEN $5 IS NOT NULL THEN coalesce(failing_since, clock_timestamp())
                                        ELSE failing_since END,
                   wait_until = clock_timestamp() + make_interval(secs => $6), waits = $7, is_slow = $8,
                   paused_reason = $9, ended_reason = $10
               WHERE name = $1""",
            name, through.epoch, through.pos, result.taken_count, result.error, stop.seconds, stop.waits,
            result.is_slow, stop.paused_reason, stop.ended_reason,
        )  # fmt: skip
        reason = stop.ended_reason or stop.paused_reason
        if reason is not None:
            action = "end-subscription" if stop.ended_reason is not None else "pause-subscription"
            await subscriptions.write_audit(conn, ACTOR, None, action, name, {"reason": reason})
        if reason is not None or result.dead_count:
            await notifications.tell_owner(conn, subscription.owner, "subscription", [name], after=window)
    return True


async def agree(conn: Connection, turn: Turn, rate: int | None) -> bool:
    """Store that the receiver agreed to get events. Return whether the lease is still the turn's."""
    row = await conn.fetchval(
        """UPDATE fedstac.subscription SET agreed_url = url, allowed_rate = $4, waits = 0, failing_since = NULL
           WHERE name = $1 AND lease = $2 AND version = $3 RETURNING true""",
        turn.name, turn.subscription.lease, turn.subscription.version, rate,
    )  # fmt: skip
    return row is True
