"""What readers get of the log: pages of it for many subscribers, events under a lease, changes since a place.

The verbs know no request. `deliveries` is for all who give events out: `next_events` here, webhooks, GET /changes.
An event that the format of its reader cannot write stops nobody: a subscription has it as a dead letter, and a page of
changes says that it is left out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from fedstac.bootstrap import Node
from fedstac.db import feed, notifications, subscription_events
from fedstac.db.connections import Connection
from fedstac.db.sinks import PAGE_EVENTS
from fedstac.db.subscription_events import Lease, MissedEvent, Postponement
from fedstac.db.subscriptions import Subscription
from fedstac.db.webhook_deliveries import MOST_WAITING
from fedstac.domain.errors import Conflict, CursorGone, NotFound, Unavailable
from fedstac.domain.events import Cursor, LoggedEvent
from fedstac.domain.policy import Principal
from fedstac.domain.subscriptions import (
    LogPage,
    Subscriber,
    SubscriberEvent,
    SubscriptionFilter,
    changes_for,
    departure_id,
)
from fedstac.messaging.formats import Encoder, Unwritable, unwritable
from fedstac.messaging.sinks import OutgoingEvent
from fedstac.runtime import budget
from fedstac.runtime.metrics import UNWRITABLE_EVENTS
from fedstac.runtime.wakeup import Backoff, pause
from fedstac.workers import subscribing
from fedstac.workers.page_cache import PageCache, RunInThread, in_any_thread, read_page
from fedstac.workers.reading_rights import ReadersNow
from fedstac.workers.subscribing import MOST_EVENTS, PULL

LEAST_PAGE: Final = 100  # events that one look reads
MOST_ATTEMPTS: Final = 10
FIRST_RETRY, LONGEST_RETRY = 5.0, 3600.0  # seconds
LONGEST_SCAN: Final = 5.0  # seconds in which a reader who does not wait passes over what is not for them
WAITS: Final = "waits behind an earlier event of the dataset"
INLINE_CHARACTERS: Final = 256 << 10  # of events that are written in the event loop
log = structlog.get_logger()


async def deliveries(
    node: Node, conn: Connection, page: Sequence[LoggedEvent], subscribers: Sequence[Subscriber], *,
    run: RunInThread = in_any_thread,
) -> dict[str, list[SubscriberEvent]]:  # fmt: skip
    """Return what each subscriber gets of a page of the log, by the subscriber's name, in the order of the log.

    page: events in the order of the log, though not all (db/subscription_events.look, events_at). Asks what
    subscribers may read as of now. run: for a request its own share of threads; work for one that ended is given up.
    """
    subscriber_events: dict[str, list[SubscriberEvent]] = {each.name: [] for each in subscribers}
    rest = page
    while rest:
        log_page = await read_page(node, conn, rest, run=run)
        for name, part in (await deliveries_of(node, conn, log_page, subscribers, run=run)).items():
            subscriber_events[name] += part
        rest = rest[len(log_page.events) :]
    return subscriber_events


async def deliveries_of(
    node: Node, conn: Connection, log_page: LogPage, subscribers: Sequence[Subscriber], *,
    run: RunInThread = in_any_thread,
) -> dict[str, list[SubscriberEvent]]:  # fmt: skip
    """Return what each subscriber gets of a page that was read, as `deliveries`."""
    rights = await ReadersNow.read(conn, node.policy, log_page, subscribers)
    return await run(partial(changes_for, log_page, subscribers, rights, budget.checkpoint))


@dataclass(frozen=True, slots=True)
class PageDeliveries:
    """What subscribers get of a page of the log, by the subscriber's name, and the place that the page reaches to."""

    by_name: dict[str, list[SubscriberEvent]]
    through: Cursor


async def next_deliveries(
    pages: PageCache, conn: Connection, after: Cursor, collections: frozenset[str] | None,
    subscribers: Sequence[Subscriber], *, size: int | None = None, run: RunInThread = in_any_thread,
) -> PageDeliveries:  # fmt: skip
    """Return what each subscriber gets of the next events of some collections, of a page that many share.

    CursorGone where the log does not go on there. A page from before a deletion has a text that the log has no more:
    then the log is read again.
    """
    for is_fresh in (False, True):
        begin = pages.now
        page = await pages.read(conn, after, collections, size=size, is_fresh=is_fresh, run=run)
        log_page, through = page.part(after.pos, size)
        rights = await ReadersNow.read(conn, pages.node.policy, log_page, subscribers)
        if page.at >= begin or not rights.outlive(log_page):
            break
    by_name = await run(partial(changes_for, log_page, subscribers, rights, budget.checkpoint))
    return PageDeliveries(by_name, through)


@dataclass(frozen=True, slots=True)
class WrittenEvent:
    """An event as one subscriber gets it, and its message in the subscriber's format."""

    delivery: SubscriberEvent
    message: OutgoingEvent


@dataclass(frozen=True, slots=True)
class WrittenEvents:
    """Events in the format of a reader, in their order, and those that the format cannot write."""

    events: Sequence[WrittenEvent] = ()
    unwritable: Sequence[Unwritable] = ()


async def write(
    node: Node, encoder: Encoder, events: Sequence[SubscriberEvent], *, run: RunInThread = in_any_thread
) -> WrittenEvents:  # fmt: skip
    """Write events in the format of their reader, beside the event loop where they are large."""
    work = partial(_write, encoder, events)
    outcome = await run(work) if are_large(events) else work()
    if outcome.unwritable:
        node.metrics.count(UNWRITABLE_EVENTS, encoder.format, by=len(outcome.unwritable))
    for each in outcome.unwritable:
        log.error("an event cannot be written", format=encoder.format, event_id=each.event.event_id, reason=each.reason)
    return outcome


def are_large(events: Sequence[SubscriberEvent]) -> bool:
    """Tell whether work on events would hold up the event loop."""
    return sum(len(each.event.text) for each in events) > INLINE_CHARACTERS


def _write(encoder: Encoder, events: Sequence[SubscriberEvent]) -> WrittenEvents:
    messages: list[WrittenEvent] = []
    unwritable_events: list[Unwritable] = []
    for each in events:
        budget.checkpoint()
        try:
            messages.append(WrittenEvent(each, encoder.encode_for(each)))
        except Exception as error:
            unwritable_events.append(unwritable(each.source, error))
    return WrittenEvents(messages, unwritable_events)


@dataclass(frozen=True, slots=True)
class NextEvents:
    """Events that are given out with a lease; without any, the lease that another reader has, or none."""

    events: Sequence[WrittenEvent]
    lease: Lease | None
    cursor: Cursor


async def next_events(
    pages: PageCache, name: str, *, caller: Principal, limit: int | None, lease_seconds: float, wait: float,
    feed_url: str, run: RunInThread = in_any_thread,
) -> NextEvents:  # fmt: skip
    """Give out the next events of a subscription; wait for some for so many seconds.

    What was not taken and is due comes before what is new. While another reader has a lease there is nothing.
    feed_url: the address of GET /events as the reader knows it.
    CursorGone where the subscription is behind what the log keeps: it is sought anew.
    """
    node, deadline, backoff = pages.node, time.monotonic() + wait, Backoff()
    while True:
        sequenced = node.sequenced.next()
        async with node.pool.acquire() as conn:
            look = await _look(
                pages, conn, name, caller=caller, limit=limit, lease_seconds=lease_seconds, feed_url=feed_url, run=run
            )
        seconds = deadline - time.monotonic()
        may_look_on = look.has_more and seconds > -LONGEST_SCAN
        if look.answer.events or (seconds <= 0 and not may_look_on) or node.stopping.is_set():
            return look.answer
        if look.has_more:
            await pause(node.stopping, 0)
        else:
            await sequenced(min(backoff.pause(), seconds))


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look brought, and whether the next one may bring more at once."""

    answer: NextEvents
    has_more: bool = False


async def _look(
    pages: PageCache, conn: Connection, name: str, *, caller: Principal, limit: int | None, lease_seconds: float,
    feed_url: str, run: RunInThread,
) -> _Look:  # fmt: skip
    async with conn.transaction():
        subscription = await subscribing.own(conn, name, caller)
        if subscription.delivery != PULL:
            raise Conflict(f"the events of {name} are sent to its webhook; they are not pulled")
        encoder = subscribing.encoder_of(subscription, feed_url)
        if await subscription_events.seconds_leased(conn, name) > 0:
            return _Look(NextEvents((), None, subscription.cursor))
        most = min(limit or subscription.batch, MOST_EVENTS)
        subscriber = Subscriber(name, subscribing.filter_of(subscription), caller)
        due = await _due(pages.node, conn, subscription, subscriber, encoder, most, run)
        if due.positions:
            if not due.events:
                return _Look(NextEvents((), None, subscription.cursor), has_more=True)
            lease = await subscription_events.lease(
                conn, name, subscription.cursor, lease_seconds, events=len(due.events)
            )  # fmt: skip
            positions = [each.delivery.source.cursor.pos for each in due.events]
            await subscription_events.give_out(conn, name, positions, lease.id)
            return _Look(NextEvents(due.events, lease, lease.through))
        if await subscription_events.has_waiting(conn, name, MOST_WAITING):  # it takes none of these: none is added
            return _Look(NextEvents((), None, subscription.cursor))
        return await _new(pages, conn, subscription, subscriber, encoder, most, lease_seconds, run)


@dataclass(frozen=True, slots=True)
class DueEvents:
    """Stored events whose time has come: their positions, and those that are still something to the subscriber."""

    positions: Sequence[int]
    events: Sequence[WrittenEvent]


async def _due(
    node: Node, conn: Connection, subscription: Subscription, subscriber: Subscriber, encoder: Encoder, most: int,
    run: RunInThread,
) -> DueEvents:  # fmt: skip
    """Return what is due, and settle what is nothing to the subscriber any more. For the caller's transaction."""
    await subscription_events.bury_forgotten(conn, subscription.name)
    rows = await subscription_events.due(conn, subscription.name, most)
    page = await subscription_events.events_at(conn, [row.pos for row in rows])
    events = (await deliveries(node, conn, page, [subscriber], run=run))[subscriber.name]
    events = [each for each in events if encoder.tells(each.event)]
    positions = [event.cursor.pos for event in page]
    await subscription_events.settle(
        conn, subscription.name, sorted(set(positions) - {each.source.cursor.pos for each in events})
    )
    return DueEvents(positions, await _write_or_bury(node, conn, subscription, encoder, events, run))


async def _write_or_bury(
    node: Node, conn: Connection, subscription: Subscription, encoder: Encoder, events: Sequence[SubscriberEvent],
    run: RunInThread,
) -> Sequence[WrittenEvent]:  # fmt: skip
    """Write events, and make dead letters of those that the format cannot write. For the caller's transaction."""
    outcome = await write(node, encoder, events, run=run)
    if outcome.unwritable:
        letters = [Postponement(each.event, each.reason, seconds=None) for each in outcome.unwritable]
        await subscription_events.postpone(conn, subscription.name, letters)
        window = node.settings.notify_window_seconds
        await notifications.tell_owners(conn, "subscription", {subscription.owner: [subscription.name]}, after=window)
    return outcome.events


async def _new(
    pages: PageCache, conn: Connection, subscription: Subscription, subscriber: Subscriber, encoder: Encoder, most: int,
    lease_seconds: float, run: RunInThread,
) -> _Look:  # fmt: skip
    name = subscription.name
    size = min(max(2 * most, LEAST_PAGE), PAGE_EVENTS)
    with subscribing.telling_subscribers():
        page = await next_deliveries(
            pages, conn, subscription.cursor, subscriber.filter.collections, [subscriber], size=size, run=run
        )
    fitting, through = page.by_name[name], page.through
    fitting = [each for each in fitting if encoder.tells(each.event)]
    blocked = await subscription_events.held_back(conn, name, [each.source for each in fitting])
    events: list[SubscriberEvent] = []
    behind: list[Postponement] = []
    for each in fitting:
        if len(events) == most:
            through = events[-1].source.cursor
            break
        if each.source.cursor.pos in blocked.positions:
            continue
        if (each.source.collection, each.source.dataset) in blocked.datasets:
            behind.append(Postponement(each.source, WAITS, 0, attempts=0))
        else:
            events.append(each)
    await subscription_events.postpone(conn, name, behind)
    written_events = await _write_or_bury(pages.node, conn, subscription, encoder, events, run)
    if written_events:
        lease = await subscription_events.lease(conn, name, through, lease_seconds, events=len(written_events))
        return _Look(NextEvents(written_events, lease, through))
    await subscription_events.advance(conn, name, through)
    return _Look(NextEvents((), None, through), has_more=through.pos > subscription.pos)


async def ack(
    conn: Connection, name: str, cursor: Cursor, *, caller: Principal, lease: UUID | None
) -> Subscription:  # fmt: skip
    """Note that everything through a place of what was given out is taken. The same again changes nothing.

    Conflict where it was not given out, or the lease is over and others have the events.
    """
    async with conn.transaction():
        subscription = await subscribing.own(conn, name, caller)
        is_done = cursor.pos <= subscription.pos
        leased = subscription.leased_cursor
        holds_lease = leased is not None and lease in (None, subscription.lease)
        try:
            await feed.resume(conn, cursor)
        except CursorGone:
            raise Conflict(f"{cursor} is no place of this log any more; ask for the next events again") from None
        if not (holds_lease and leased is not None and cursor.pos <= leased.pos):
            if is_done:
                return subscription
            raise Conflict(f"{cursor} was not given out by a lease that you have; ask for the next events again")
        is_whole = cursor.pos == leased.pos and (lease is not None or leased.pos > subscription.pos)
        if is_whole and subscription.lease is not None:
            await subscription_events.settle_lease(conn, name, subscription.lease)
        await subscription_events.advance(conn, name, cursor, releases=is_whole)
        return await subscribing.own(conn, name, caller)


async def nack(
    conn: Connection, name: str, event_id: str, *, caller: Principal, reason: str, retry_in: float | None
) -> MissedEvent:  # fmt: skip
    """Store an event that was given out and not taken: it is given again, after so many seconds at the earliest.

    Later events of its dataset wait behind it, also those of the same batch; others go on. Without `retry_in` the time
    grows with the attempts.
    After MOST_ATTEMPTS it is a dead letter. NotFound where no event of that id is given out now.
    """
    async with conn.transaction():
        subscription = await subscribing.own(conn, name, caller)
        place = await _given_out(conn, subscription, event_id)
        if place is None:
            raise NotFound(f"no event {event_id[:64]!r} of {name} is given out now; ask for the next events")
        page = await subscription_events.events_at(conn, [place.pos])
        attempts = place.attempts + 1
        seconds = retry_in if retry_in is not None else min(FIRST_RETRY * 2 ** (attempts - 1), LONGEST_RETRY)
        postponements = [Postponement(event, reason, seconds if attempts < MOST_ATTEMPTS else None) for event in page]
        await subscription_events.postpone(conn, name, postponements)
        if place.attempts == 0:  # of the stored ones a lease gives out the first of each dataset only
            for event in page:
                await subscription_events.postpone_followers(conn, name, event, subscription.leased_through or 0, WAITS)
        return await subscription_events.missed_event(conn, name, place.pos)


@dataclass(frozen=True, slots=True)
class _Place:
    pos: int
    attempts: int


async def _given_out(conn: Connection, subscription: Subscription, event_id: str) -> _Place | None:
    """Return where an event is that the present lease gave out: of the log, or made of it as `left`."""
    if subscription.lease is None or subscription.leased_through is None:
        return None
    rows = await subscription_events.given_out(conn, subscription.name, subscription.lease)
    places = {row.event_id: _Place(row.pos, row.attempts) for row in rows}
    if not places:
        ids = await subscription_events.event_ids(conn, subscription.pos, subscription.leased_through)
        places = {id: _Place(pos, 0) for pos, id in ids.items()}
    if event_id in places:
        return places[event_id]
    departures = ((departure_id(id, subscription.name), place) for id, place in places.items())
    return next((place for id, place in departures if id == event_id), None)


@asynccontextmanager
async def _telling_of_lag(conn: Connection, place: str) -> AsyncIterator[None]:
    """Refuse with Unavailable a place that a standby has not come to yet: nothing of it is lost."""
    try:
        with subscribing.telling_subscribers():
            yield
    except CursorGone:
        if await feed.lags_behind(conn, Cursor.parse(place)):
            raise Unavailable("the standby that answers has not come to this place yet", retry_after=2) from None
        raise


@dataclass(frozen=True, slots=True)
class ChangesPage:
    """Changes after a place, the place to go on from, and whether the log has more after it.

    unwritable: changes that the format cannot write, which are left out.
    """

    events: Sequence[WrittenEvent]
    unwritable: Sequence[Unwritable]
    cursor: Cursor
    has_more: bool


async def changes_since(
    pages: PageCache, since: str, condition: SubscriptionFilter, *, reader: Principal | None, encoder: Encoder,
    limit: int, wait: float, run: RunInThread = in_any_thread,
) -> ChangesPage:  # fmt: skip
    """Return what changed after a place (`place_of`), as a reader may see it; wait for something for so many seconds.

    Exact: each event that was committed comes once on the way from cursor to cursor, whatever is written meanwhile.
    pages: the log, which many readers share.
    """
    node, size = pages.node, min(max(2 * limit, LEAST_PAGE), PAGE_EVENTS)
    subscriber = Subscriber("", condition, reader)
    deadline, backoff = time.monotonic() + wait, Backoff()
    async with node.search_pool.acquire() as conn, _telling_of_lag(conn, since):
        after = await subscribing.place_of(conn, since)
    while True:
        sequenced = node.sequenced.next()
        async with node.search_pool.acquire() as conn:
            async with _telling_of_lag(conn, str(after)):
                page = await next_deliveries(
                    pages, conn, after, condition.collections, [subscriber], size=size, run=run
                )
            events, through = page.by_name[subscriber.name], page.through
            head = await feed.head(conn)
        events = [each for each in events if encoder.tells(each.event)]
        advance = through.pos - after.pos
        after = events[limit - 1].source.cursor if len(events) > limit else through
        seconds = deadline - time.monotonic()
        if events or seconds <= 0 or node.stopping.is_set():
            outcome = await write(node, encoder, events[:limit], run=run)
            return ChangesPage(outcome.events, outcome.unwritable, after, after.pos < head.pos)
        if advance:
            await pause(node.stopping, 0)
        else:
            await sequenced(min(backoff.pause(), seconds))
