"""The log as subscriptions read it, under leases, and what became of the events that they were given.

A subscription is leased to one reader at a time: to whoever asks for the next events, or to the process that sends them
to its webhook. The lease goes by itself when its time is over; then the events are given out again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

from fedstac.db import feed
from fedstac.db.connections import Connection, Row
from fedstac.db.sinks import PAGE_BYTES, PAGE_EVENTS, logged_event, page_of
from fedstac.db.subscriptions import UNLEASED, write_audit
from fedstac.domain import grant_passages
from fedstac.domain.errors import Conflict, NotFound
from fedstac.domain.events import Cursor, LoggedEvent
from fedstac.domain.grants import PASSAGE

LONGEST_REASON: Final = 500
MOST_DEAD_LETTERS: Final = 10_000  # of a subscription; the oldest go
PREVIOUS_BYTES: Final = 8 << 20  # of the events before those of a page, at once


# --- the log ---


@dataclass(frozen=True, slots=True)
class LogSlice:
    """Events of the collections that a reader wants, and the last place that was looked at for them."""

    events: Sequence[LoggedEvent]
    through: Cursor


async def look(
    conn: Connection, after: Cursor, collections: Iterable[str] | None, limit: int = PAGE_EVENTS
) -> LogSlice:
    """Return the next events of some collections (None: of all), found among the next feed.SCANNED positions.

    CursorGone where the log does not go on after that place. Of large events there are the first few.
    """
    after = await feed.resume(conn, after)
    log_slice = await _read(conn, after, collections, limit)
    await feed.resume(conn, after)  # retention may have come between: it says so before it takes a row away
    return log_slice


async def _read(conn: Connection, after: Cursor, collections: Iterable[str] | None, limit: int) -> LogSlice:
    reach = await conn.fetchrow(
        """SELECT max(pos) AS pos, (SELECT max(n) FROM fedstac.epoch WHERE forked_at_pos < max(scanned.pos)) AS epoch
           FROM (SELECT pos FROM fedstac.feed WHERE pos > $1 ORDER BY pos LIMIT $2) scanned""",
        after.pos, feed.SCANNED,
    )  # fmt: skip
    if reach is None or reach["pos"] is None:
        return LogSlice((), after)
    names = None if collections is None else sorted(collections)
    rows = await conn.fetch(
        page_of(
            """SELECT f.pos, f.id FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
               WHERE f.pos > $1 AND f.pos <= $2 AND ($3::text[] IS NULL OR o.collection = ANY ($3))""",
            limit,
        ),
        after.pos, reach["pos"], names,
    )  # fmt: skip
    events = _of_datasets(rows)
    is_cut = len(events) == limit or sum(len(event.text.encode()) for event in events) >= PAGE_BYTES
    return LogSlice(events, events[-1].cursor if is_cut else Cursor(reach["epoch"], reach["pos"]))


async def previous_events(conn: Connection, page: Sequence[LoggedEvent]) -> dict[int, LoggedEvent | None]:
    """Return the dataset's event before each event of a page, by the latter's position; None where the log has none.

    page: in the order of the log, though not all of it; events of collections and passages of grants have none before.
    The event before is in the page itself or is looked up, for all together. Of large ones there are those of the first
    few of the page.
    """
    previous: dict[int, LoggedEvent | None] = {}
    last: dict[tuple[str, str], LoggedEvent] = {}
    firsts: list[LoggedEvent] = []
    for event in page:
        if event.dataset is None:
            continue
        if event.type == PASSAGE:
            previous[event.cursor.pos] = None  # it is made of the record
            continue
        name = (event.collection, event.dataset)
        if name not in last:
            firsts.append(event)
        previous[event.cursor.pos] = last.get(name)
        last[name] = event
    rows = await conn.fetch(
        """WITH page AS MATERIALIZED (
               SELECT e.pos, f.id, e.key, e.collection, e.dataset
               FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) e (pos, key, collection, dataset)
               JOIN fedstac.feed f ON f.pos = e.pos),
             earlier AS MATERIALIZED (
               SELECT page.pos, max(o.id) AS id FROM page JOIN fedstac.outbox o
                      ON o.key = page.key AND o.collection = page.collection AND o.dataset = page.dataset
                         AND o.id < page.id
               GROUP BY page.pos)
           SELECT before, pos, event_id, key, collection, dataset, seq, type, epoch,
                  CASE WHEN bytes - size < $5 THEN event END AS event
           FROM (SELECT earlier.pos AS before, f.pos, o.event_id::text, o.key, o.collection, o.dataset, o.seq, o.type,
                        (SELECT max(n) FROM fedstac.epoch WHERE forked_at_pos < f.pos) AS epoch, o.event,
                        octet_length(o.event) AS size, sum(octet_length(o.event)) OVER (ORDER BY earlier.pos) AS bytes
                 FROM earlier JOIN fedstac.outbox o ON o.id = earlier.id JOIN fedstac.feed f ON f.id = o.id) sized
           ORDER BY before""",
        [event.cursor.pos for event in firsts], [event.key for event in firsts],
        [event.collection for event in firsts], [event.dataset for event in firsts], PREVIOUS_BYTES,
    )  # fmt: skip
    end = next((row["before"] for row in rows if row["event"] is None), None)
    previous |= {row["before"]: logged_event(row) for row in rows if row["event"] is not None}
    return previous if end is None else {pos: event for pos, event in previous.items() if pos < end}


async def events_at(conn: Connection, positions: Sequence[int]) -> list[LoggedEvent]:
    """Return the events at these positions in the order of the log; of large ones the first few."""
    rows = await conn.fetch(page_of("SELECT pos, id FROM fedstac.feed WHERE pos = ANY ($1::bigint[])"), list(positions))
    return _of_datasets(rows)


def _of_datasets(rows: Sequence[Row]) -> list[LoggedEvent]:
    """Return the events of rows; what is of a dataset stands among the events of that dataset."""
    return [grant_passages.among_its_dataset(logged_event(row)) for row in rows]


# --- leases ---


@dataclass(frozen=True, slots=True)
class Lease:
    """That one reader has events through a place, until a moment."""

    id: UUID
    through: Cursor
    until: datetime


async def lease(conn: Connection, name: str, through: Cursor, seconds: float, *, events: int = 0) -> Lease:
    """Give so many events through a place to one reader for a time. The caller's transaction has the subscription."""
    id = uuid4()
    until = await conn.fetchval(
        """UPDATE fedstac.subscription SET lease = $2, leased_epoch = $3, leased_through = $4,
                  leased_until = clock_timestamp() + make_interval(secs => $5), delivered = delivered + $6,
                  delivered_at = CASE WHEN $6 > 0 THEN clock_timestamp() ELSE delivered_at END
           WHERE name = $1 RETURNING leased_until""",
        name, id, through.epoch, through.pos, seconds, events,
    )  # fmt: skip
    return Lease(id, through, until)


async def seconds_leased(conn: Connection, name: str) -> float:
    """Return for how many seconds a subscription is leased; 0 for one that is free."""
    return float(await conn.fetchval(
        """SELECT coalesce(greatest(extract(epoch FROM leased_until - clock_timestamp()), 0), 0)
           FROM fedstac.subscription WHERE name = $1""",
        name,
    ) or 0)  # fmt: skip


async def advance(
    conn: Connection, name: str, through: Cursor, *, delivered: int = 0, releases: bool = True
) -> None:  # fmt: skip
    """Note that everything through a place was taken or is stored as waiting. Never back. `releases` ends the lease."""
    release = f", {UNLEASED}" if releases else ""
    await conn.execute(
        f"""UPDATE fedstac.subscription
            SET epoch = CASE WHEN $3 > pos THEN $2 ELSE epoch END, pos = greatest(pos, $3), delivered = delivered + $4,
                delivered_at = CASE WHEN $4 > 0 THEN clock_timestamp() ELSE delivered_at END{release}
            WHERE name = $1""",
        name, through.epoch, through.pos, delivered,
    )  # fmt: skip


async def place_at(conn: Connection, pos: int) -> Cursor:
    """Return the place of a position, with the epoch in which its event got it."""
    epoch = await conn.fetchval("SELECT coalesce(max(n), 0) FROM fedstac.epoch WHERE forked_at_pos < $1", pos)
    return Cursor(int(epoch), pos)


async def start(conn: Connection) -> Cursor:
    """Return the place before the first event that the log has."""
    return await place_at(conn, int(await conn.fetchval("SELECT pos FROM fedstac.forgotten") or 0))


async def place_before(conn: Connection, moment: datetime) -> Cursor:
    """Return a place after which everything was written at this moment or later, but for writes that overtook others.

    The log is in the order of commits, and a time is that of the write: what was not committed at that moment may lie
    before the place. Only a cursor is exact.
    """
    pos = await conn.fetchval(
        """WITH RECURSIVE search (low, high) AS (
               SELECT coalesce((SELECT pos FROM fedstac.forgotten), 0), (SELECT pos FROM fedstac.feed_state)
               UNION ALL
               SELECT CASE WHEN middle.is_before THEN middle.pos ELSE low END,
                      CASE WHEN middle.is_before THEN high ELSE middle.pos - 1 END
               FROM search CROSS JOIN LATERAL (
                   SELECT f.pos, o.at < $1 AS is_before FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
                   WHERE f.pos = (low + high + 1) / 2) middle
               WHERE low < high)
           SELECT min(high) FROM search""",
        moment,
    )
    return await place_at(conn, int(pos or 0))


# --- events that the cursor has passed and that were not taken ---

EVENT_COLUMNS = (
    "id, epoch, pos, event_id, key, collection, dataset, type, attempts, reason, retry_at, lease, dead_at, at"
)


@dataclass(frozen=True, slots=True)
class MissedEvent:
    """An event that a subscription did not take yet, or (`dead_at`) never. event_id: that of the log."""

    id: int
    epoch: int
    pos: int
    event_id: str
    key: str
    collection: str
    dataset: str | None
    type: str
    attempts: int
    reason: str
    retry_at: datetime
    lease: UUID | None
    dead_at: datetime | None
    at: datetime


def _missed_event(row: Row) -> MissedEvent:
    return MissedEvent(**dict(row))


@dataclass(frozen=True, slots=True)
class Postponement:
    """An event of the log that is to be given again: after so many seconds, or never (None: it is dead).

    event: as it stands in the log, not as `left`. attempts: 1 where it was tried, 0 where it waits behind another one.
    """

    event: LoggedEvent
    reason: str
    seconds: float | None
    attempts: int = 1


async def postpone(conn: Connection, name: str, postponements: Sequence[Postponement]) -> None:
    """Store events that were not taken; of one that is stored already the attempts add up, and its lease ends."""
    await postpone_each(conn, [(name, each) for each in postponements])


async def postpone_each(conn: Connection, postponements: Sequence[tuple[str, Postponement]]) -> None:
    """Store events that subscriptions did not take, each with its subscription's name, as `postpone` does."""
    if not postponements:
        return
    events = [each.event for _, each in postponements]
    await conn.execute(
        """INSERT INTO fedstac.subscription_event AS e
                  (subscription, epoch, pos, event_id, key, collection, dataset, type, attempts, reason, retry_at,
                   dead_at)
           SELECT p.subscription, p.epoch, p.pos, p.event_id, p.key, p.collection, p.dataset, p.type, p.attempts,
                  p.reason, clock_timestamp() + make_interval(secs => coalesce(p.seconds, 0)),
                  CASE WHEN p.seconds IS NULL THEN clock_timestamp() END
           FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
                       $8::text[], $9::integer[], $10::text[], $11::float8[])
                p (subscription, epoch, pos, event_id, key, collection, dataset, type, attempts, reason, seconds)
           ON CONFLICT (subscription, pos) DO UPDATE
           SET attempts = e.attempts + EXCLUDED.attempts, reason = EXCLUDED.reason, retry_at = EXCLUDED.retry_at,
               dead_at = EXCLUDED.dead_at, lease = NULL, at = clock_timestamp()
           WHERE EXCLUDED.attempts > 0""",
        [name for name, _ in postponements], [each.cursor.epoch for each in events],
        [each.cursor.pos for each in events], [each.event_id for each in events], [each.key for each in events],
        [each.collection for each in events], [each.dataset for each in events], [each.type for each in events],
        [each.attempts for _, each in postponements],
        [each.reason[:LONGEST_REASON] for _, each in postponements], [each.seconds for _, each in postponements],
    )  # fmt: skip
    await _drop_oldest_letters(conn, {name for name, each in postponements if each.seconds is None})


async def _drop_oldest_letters(conn: Connection, names: Collection[str]) -> None:
    """Leave subscriptions, by their names, the newest MOST_DEAD_LETTERS of their dead letters."""
    if not names:
        return
    await conn.execute(
        """DELETE FROM fedstac.subscription_event e
           USING unnest($1::text[]) AS s (name)
           CROSS JOIN LATERAL (
               SELECT o.id FROM fedstac.subscription_event o WHERE o.subscription = s.name AND o.dead_at IS NOT NULL
               ORDER BY o.id DESC OFFSET $2 LIMIT 1) newest_to_go
           WHERE e.subscription = s.name AND e.dead_at IS NOT NULL AND e.id <= newest_to_go.id""",
        sorted(names), MOST_DEAD_LETTERS,
    )  # fmt: skip


async def postpone_followers(conn: Connection, name: str, event: LoggedEvent, through: int, reason: str) -> None:
    """Store what the log has of an event's dataset after it, through a position: it was given out, and waits for it."""
    await conn.execute(
        """INSERT INTO fedstac.subscription_event
                  (subscription, epoch, pos, event_id, key, collection, dataset, type, attempts, reason)
           SELECT $1, (SELECT max(n) FROM fedstac.epoch WHERE forked_at_pos < f.pos), f.pos, o.event_id::text, o.key,
                  o.collection, o.dataset, o.type, 0, $7
           FROM fedstac.outbox o JOIN fedstac.feed f ON f.id = o.id
           WHERE o.key = $2 AND o.collection = $3 AND o.dataset IS NOT DISTINCT FROM $4 AND f.pos > $5 AND f.pos <= $6
           ON CONFLICT DO NOTHING""",
        name, event.key, event.collection, event.dataset, event.cursor.pos, through, reason,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class HeldBack:
    """What may not be given out of a page: positions that are stored already, and datasets with an earlier event."""

    positions: frozenset[int]
    datasets: frozenset[tuple[str, str | None]]


async def held_back(conn: Connection, name: str, page: Sequence[LoggedEvent]) -> HeldBack:
    """Return what of a page is not to be given out now, as it is stored or waits behind what is stored."""
    rows = await conn.fetch(
        """SELECT e.collection, e.dataset, e.pos, e.dead_at IS NULL AS waits FROM fedstac.subscription_event e
           WHERE e.subscription = $1 AND (
               e.pos = ANY ($2::bigint[])
               OR e.dead_at IS NULL AND (e.collection, e.dataset) IN (SELECT * FROM unnest($3::text[], $4::text[]))
               OR e.dead_at IS NULL AND e.dataset IS NULL AND e.collection = ANY ($5::text[]))""",
        name, [event.cursor.pos for event in page], [event.collection for event in page],
        [event.dataset for event in page], [event.collection for event in page if event.dataset is None],
    )  # fmt: skip
    return HeldBack(
        frozenset(row["pos"] for row in rows),
        frozenset((row["collection"], row["dataset"]) for row in rows if row["waits"]),
    )


async def due(conn: Connection, name: str, limit: int) -> list[MissedEvent]:
    """Return the events whose time has come: of each dataset the first that waits, in the order of the log."""
    rows = await conn.fetch(
        f"""SELECT {EVENT_COLUMNS} FROM (
                SELECT DISTINCT ON (collection, dataset) * FROM fedstac.subscription_event
                WHERE subscription = $1 AND dead_at IS NULL ORDER BY collection, dataset, pos) first
            WHERE retry_at <= clock_timestamp() ORDER BY pos LIMIT $2""",
        name, limit,
    )  # fmt: skip
    return [_missed_event(row) for row in rows]


async def give_out(conn: Connection, name: str, positions: Sequence[int], lease_id: UUID) -> None:
    """Note that stored events are given out with a lease."""
    await conn.execute(
        "UPDATE fedstac.subscription_event SET lease = $3 WHERE subscription = $1 AND pos = ANY ($2::bigint[])",
        name, list(positions), lease_id,
    )  # fmt: skip


async def event_ids(conn: Connection, after: int, through: int) -> dict[int, str]:
    """Return the ids of the events of datasets in a stretch of the log, by position."""
    rows = await conn.fetch(
        """SELECT f.pos, o.event_id::text AS event_id FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
           WHERE f.pos > $1 AND f.pos <= $2""",
        after, through,
    )  # fmt: skip
    return {row["pos"]: row["event_id"] for row in rows}


async def given_out(conn: Connection, name: str, lease_id: UUID) -> list[MissedEvent]:
    """Return the stored events that a lease gave out."""
    rows = await conn.fetch(
        f"""SELECT {EVENT_COLUMNS} FROM fedstac.subscription_event
            WHERE subscription = $1 AND lease = $2 AND dead_at IS NULL ORDER BY pos""",
        name, lease_id,
    )  # fmt: skip
    return [_missed_event(row) for row in rows]


async def settle(conn: Connection, name: str, positions: Sequence[int]) -> None:
    """Delete stored events that were taken, or that are nothing to the subscriber any more."""
    await conn.execute(
        "DELETE FROM fedstac.subscription_event WHERE subscription = $1 AND pos = ANY ($2::bigint[])",
        name, list(positions),
    )  # fmt: skip


async def settle_lease(conn: Connection, name: str, lease_id: UUID) -> None:
    """Delete the stored events that a lease gave out: they were taken, but those that were refused meanwhile."""
    await conn.execute(
        "DELETE FROM fedstac.subscription_event WHERE subscription = $1 AND lease = $2 AND dead_at IS NULL",
        name, lease_id,
    )  # fmt: skip


async def missed_event(conn: Connection, name: str, pos: int) -> MissedEvent:
    """Return the stored event at a position."""
    row = await conn.fetchrow(
        f"SELECT {EVENT_COLUMNS} FROM fedstac.subscription_event WHERE subscription = $1 AND pos = $2", name, pos
    )
    assert row is not None  # stored in the caller's transaction
    return _missed_event(row)


async def bury(conn: Connection, places: Sequence[tuple[str, int]], reason: str) -> None:
    """Make dead letters of stored events, given as the name of their subscription and their position."""
    await conn.execute(
        """UPDATE fedstac.subscription_event e SET dead_at = clock_timestamp(), reason = $3, lease = NULL
           FROM unnest($1::text[], $2::bigint[]) t (name, pos) WHERE e.subscription = t.name AND e.pos = t.pos""",
        [name for name, _ in places], [pos for _, pos in places], reason[:LONGEST_REASON],
    )  # fmt: skip
    await _drop_oldest_letters(conn, {name for name, _ in places})


async def bury_forgotten(conn: Connection, name: str) -> None:
    """Make dead letters of waiting events that the log no longer has."""
    await conn.execute(
        """UPDATE fedstac.subscription_event SET dead_at = clock_timestamp(), lease = NULL,
                  reason = 'the log no longer has the event'
           WHERE subscription = $1 AND dead_at IS NULL AND pos <= (SELECT pos FROM fedstac.forgotten)""",
        name,
    )


async def has_waiting(conn: Connection, name: str, most: int) -> bool:
    """Tell whether so many events of a subscription, or more, wait to be given again."""
    return bool(await conn.fetchval(
        """SELECT count(*) >= $2 FROM (
               SELECT FROM fedstac.subscription_event WHERE subscription = $1 AND dead_at IS NULL LIMIT $2) waiting""",
        name, most,
    ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class MissedCounts:
    """How many events of a subscription wait to be given again, and how many are dead."""

    waiting: int = 0
    dead: int = 0


async def missed_counts(conn: Connection, names: Sequence[str]) -> dict[str, MissedCounts]:
    """Return what subscriptions have not taken, by name; without those that have taken everything."""
    rows = await conn.fetch(
        """SELECT subscription, count(*) FILTER (WHERE dead_at IS NULL) AS waiting,
                  count(*) FILTER (WHERE dead_at IS NOT NULL) AS dead
           FROM fedstac.subscription_event WHERE subscription = ANY ($1::text[]) GROUP BY subscription""",
        list(names),
    )
    return {row["subscription"]: MissedCounts(row["waiting"], row["dead"]) for row in rows}


async def dead_letters(conn: Connection, name: str, *, after: int, limit: int) -> list[MissedEvent]:
    """Return the dead letters of a subscription after an id, the oldest first."""
    rows = await conn.fetch(
        f"""SELECT {EVENT_COLUMNS} FROM fedstac.subscription_event
            WHERE subscription = $1 AND dead_at IS NOT NULL AND id > $2 ORDER BY id LIMIT $3""",
        name, after, limit,
    )  # fmt: skip
    return [_missed_event(row) for row in rows]


async def redrive(
    conn: Connection, name: str, id: int, *, actor: str, correlation: str | None = None
) -> MissedEvent:  # fmt: skip
    """Let a dead letter be given again. Join a transaction that has locked the subscription.

    NotFound where there is none. Conflict where its dataset changed again since, or the log no longer has the event.
    """
    row = await conn.fetchrow(
        f"""SELECT {EVENT_COLUMNS} FROM fedstac.subscription_event
            WHERE subscription = $1 AND id = $2 AND dead_at IS NOT NULL""",
        name, id,
    )  # fmt: skip
    if row is None:
        raise NotFound(f"the subscription {name} has no dead letter {id}; see fedstac subscription dead-letters {name}")
    letter = _missed_event(row)
    place = await conn.fetchrow(
        """SELECT EXISTS (SELECT FROM fedstac.feed WHERE pos = $1) AS is_kept,
                  EXISTS (SELECT FROM fedstac.outbox o JOIN fedstac.feed f ON f.id = o.id
                          WHERE o.key = $2 AND o.collection = $3 AND o.dataset IS NOT DISTINCT FROM $4 AND f.pos > $1)
                      AS is_stale""",
        letter.pos, letter.key, letter.collection, letter.dataset,
    )  # fmt: skip
    assert place is not None
    if not place["is_kept"]:
        raise Conflict(f"the log no longer has the event of dead letter {id}; read the dataset itself")
    if place["is_stale"]:
        raise Conflict(f"{letter.dataset or letter.collection} changed again since dead letter {id}, which says more")
    revived = await conn.fetchrow(
        f"""UPDATE fedstac.subscription_event SET dead_at = NULL, attempts = 0, retry_at = clock_timestamp(),
                   lease = NULL
            WHERE subscription = $1 AND id = $2 RETURNING {EVENT_COLUMNS}""",
        name, id,
    )  # fmt: skip
    assert revived is not None
    await write_audit(conn, actor, correlation, "redrive-subscription", name, {"event": letter.event_id})
    return _missed_event(revived)
