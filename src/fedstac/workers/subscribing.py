"""What is done with subscriptions: made, read, acknowledged, sought; and what each gets of a page of the log.

The verbs know no request. `deliveries` is for all who give events out: `next_events` here, webhooks, GET /changes.
An event that the format of its reader cannot write stops nobody: a subscription has it as a dead letter, and a page of
changes says that it is left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import orjson
import structlog

from fedstac.bootstrap import Node
from fedstac.db import feed, nodes, notifications, own_groups, subscriptions
from fedstac.db.connections import Connection
from fedstac.db.sinks import PAGE_EVENTS
from fedstac.db.subscriptions import (
    Lease,
    MissedCounts,
    MissedEvent,
    NewSubscription,
    Postponement,
    PutOutcome,
    Subscription,
)
from fedstac.db.webhook_deliveries import MOST_WAITING
from fedstac.domain import destinations
from fedstac.domain.access import COVERED
from fedstac.domain.destinations import Channel
from fedstac.domain.errors import BadRequest, Conflict, CursorGone, NotFound, Unavailable
from fedstac.domain.events import START, UPDATED, Cursor, EventFormat, LoggedEvent
from fedstac.domain.groups import Identity
from fedstac.domain.model import moment, rfc3339, rfc3339_or_none
from fedstac.domain.policy import Principal
from fedstac.domain.subscriptions import (
    NAME,
    FilterCache,
    LogPage,
    Subscriber,
    SubscriberEvent,
    SubscriptionFilter,
    changes_for,
    departure_id,
)
from fedstac.domain.vocabulary import UnknownVersion
from fedstac.messaging import formats
from fedstac.messaging.formats import Encoder, Unwritable, unwritable
from fedstac.messaging.sinks import OutgoingEvent
from fedstac.runtime import budget
from fedstac.runtime.metrics import UNWRITABLE_EVENTS
from fedstac.runtime.wakeup import Backoff, pause
from fedstac.vocabularies.registry import Vocabularies
from fedstac.workers.reading_rights import ReadersNow

PULL, WEBHOOK = "pull", "webhook"
DELIVERIES: Final = (PULL, WEBHOOK)
MOST_EVENTS: Final = 1000  # of a batch, or a page of changes
LEAST_PAGE: Final = 100  # events that one look reads
LONGEST_FILTER: Final = 65_536
MOST_ATTEMPTS: Final = 10
FIRST_RETRY, LONGEST_RETRY = 5.0, 3600.0  # seconds
LONGEST_SCAN: Final = 5.0  # seconds in which a reader who does not wait passes over what is not for them
WAITS: Final = "waits behind an earlier event of the dataset"
INLINE_CHARACTERS: Final = 256 << 10  # of events that are written in the event loop
log = structlog.get_logger()

T = TypeVar("T")


class RunInThread(Protocol):
    """Runs work beside the event loop."""

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Return the result of the work."""
        ...


async def in_any_thread(work: Callable[[], T]) -> T:
    """Return the result of work of this process's own, for which nothing bounds the threads."""
    return await asyncio.to_thread(work)


async def deliveries(
    node: Node, conn: Connection, page: Sequence[LoggedEvent], subscribers: Sequence[Subscriber], *,
    run: RunInThread = in_any_thread,
) -> dict[str, list[SubscriberEvent]]:  # fmt: skip
    """Return what each subscriber gets of a page of the log, by the subscriber's name, in the order of the log.

    page: events in the order of the log, though not all (db/subscriptions.look, events_at). Asks what
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


async def read_page(
    node: Node, conn: Connection, events: Sequence[LoggedEvent], *, run: RunInThread = in_any_thread
) -> LogPage:  # fmt: skip
    """Read events with what each dataset was before; the first few of them where that is large."""
    previous = await subscriptions.previous_events(conn, events)
    is_complete = [event.dataset is None or event.cursor.pos in previous for event in events]
    count = is_complete.index(False) if False in is_complete else len(events)
    return await run(
        partial(LogPage.read, events[:count], previous, partial(_institution_of, node.checker.vocabularies))
    )


async def deliveries_of(
    node: Node, conn: Connection, log_page: LogPage, subscribers: Sequence[Subscriber], *,
    run: RunInThread = in_any_thread,
) -> dict[str, list[SubscriberEvent]]:  # fmt: skip
    """Return what each subscriber gets of a page that was read, as `deliveries`."""
    rights = await ReadersNow.read(conn, node.policy, log_page, subscribers)
    return await run(partial(changes_for, log_page, subscribers, rights, budget.checkpoint))


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
    written = await run(work) if are_large(events) else work()
    if written.unwritable:
        node.metrics.count(UNWRITABLE_EVENTS, encoder.format, by=len(written.unwritable))
    for each in written.unwritable:
        log.error("an event cannot be written", format=encoder.format, event_id=each.event.event_id, reason=each.reason)
    return written


def are_large(events: Sequence[SubscriberEvent]) -> bool:
    """Tell whether work on events would hold up the event loop."""
    return sum(len(each.event.text) for each in events) > INLINE_CHARACTERS


def _write(encoder: Encoder, events: Sequence[SubscriberEvent]) -> WrittenEvents:
    written: list[WrittenEvent] = []
    unwritable_events: list[Unwritable] = []
    for each in events:
        budget.checkpoint()
        try:
            written.append(WrittenEvent(each, encoder.encode_for(each)))
        except Exception as error:
            unwritable_events.append(unwritable(each.source, error))
    return WrittenEvents(written, unwritable_events)


def _institution_of(vocabularies: Vocabularies, data: Mapping[str, Any]) -> str | None:
    """Return whose dataset it is, for the policy; None where that cannot be said."""
    document, cv = data.get("document"), data.get("cv")
    if document is None or not isinstance(cv, Mapping):
        return None
    try:
        vocabulary = vocabularies.at(data["collection"], cv["version"])
    except UnknownVersion:
        return None
    institution = document["properties"].get(vocabulary.institution)
    return institution if isinstance(institution, str) else None


async def owners_of(conn: Connection, rows: Sequence[Subscription]) -> dict[str, Principal]:
    """Return with whose rights stored subscriptions are read whose owners send no token, by the subscription's name.

    Of an owner that an identity provider knows: with groups and entitlements of the last PUT (see `rights_until`). Of
    one with a token of this node: with the roles of the last PUT that a valid token of that name still has; absent
    where there is none. Memberships in own groups are those of now.
    """
    owners = {each.owner for each in rows}
    memberships = await own_groups.memberships(conn, owners)
    token_roles = await nodes.roles_of(conn, {each.owner for each in rows if each.identity is None})
    return {
        each.name: Principal.of_submitter(
            each.owner,
            each.roles if each.identity is not None else token_roles[each.owner].intersection(each.roles),
            each.identity, memberships,
        )
        for each in rows if each.identity is not None or each.owner in token_roles
    }  # fmt: skip


def rights_until(subscription: Subscription, days: int) -> datetime | None:
    """Return until when a webhook is sent with what an identity provider said of its owner; None: it does not say.

    Nobody tells a node what a provider takes away. So the owner comes again in time, with a token of now.
    """
    if subscription.delivery != WEBHOOK or subscription.identity is None:
        return None
    identity = Identity.unpacked(subscription.identity)
    has_rights = bool(subscription.roles or identity.groups or identity.entitlements)
    return subscription.rights_at + timedelta(days=days) if has_rights else None


async def subscribers_of(rows: Sequence[Subscription], owners: Mapping[str, Principal]) -> list[Subscriber]:
    """Return what stored subscriptions want, and with whose rights (`owners_of`). BadRequest where a filter is none."""

    subscribers = list[Subscriber]()
    for each in rows:
        subscribers.append(Subscriber(each.name, filter_of(each), owners[each.name]))
        await asyncio.sleep(0)  # a filter of the longest takes some milliseconds to read
    return subscribers


def filter_of(subscription: Subscription) -> SubscriptionFilter:
    """Return the filter of a stored subscription. Its text says all of it: one of the same text is the same."""
    return _FILTERS.read(subscription.filter)


_FILTERS: Final = FilterCache()


# --- what owners do ---


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionWish:
    """A subscription as somebody describes it. start: head, start or a cursor; it counts for a new one only."""

    name: str
    delivery: str = PULL
    url: str | None = None
    format: str = EventFormat.CLOUDEVENTS
    key_template: str = ""
    filter: Any = field(default_factory=dict)
    batch: int = 100
    start: str = "head"


async def put(
    node: Node, conn: Connection, wish: SubscriptionWish, *, caller: Principal, correlation: str | None = None
) -> PutOutcome:
    """Make a subscription, or change it. BadRequest says what is wrong with it; Conflict: the name is another's."""
    if not NAME.fullmatch(wish.name):
        raise BadRequest(f"{wish.name[:80]!r} is no name of a subscription: 1 to 63 letters, digits, dots, - and _")
    if wish.delivery not in DELIVERIES:
        raise BadRequest(f"delivery is one of {', '.join(DELIVERIES)}, not {wish.delivery[:40]!r}")
    if wish.format not in set(EventFormat):
        raise BadRequest(f"{wish.format[:80]!r} is no format; there are {', '.join(EventFormat)}")
    formats.check_key_template(wish.key_template)
    if wish.delivery == WEBHOOK and Encoder(EventFormat(wish.format), feed_url=node.settings.public_url).lacks_address:
        raise BadRequest(f"messages of the format {wish.format} lead to this node, and its operator sets no public URL")
    if not 0 < wish.batch <= MOST_EVENTS:
        raise BadRequest(f"batch is a number from 1 to {MOST_EVENTS}")
    filter_text = orjson.dumps(wish.filter).decode()
    if len(filter_text) > LONGEST_FILTER:
        raise BadRequest(f"a filter has {LONGEST_FILTER} characters at most; ask for less with it")
    SubscriptionFilter.parse(wish.filter)
    filter_text = orjson.dumps({name: value for name, value in wish.filter.items() if value is not None}).decode()
    networks = destinations.networks_of(node.settings.webhook_networks)
    if (wish.delivery == WEBHOOK) is not (wish.url is not None):
        raise BadRequest("url goes with the delivery webhook, and with no other")
    if wish.url is not None and destinations.parse(wish.url, networks=networks).kind is not Channel.WEBHOOK:
        raise BadRequest("url is the address of a webhook: https://…")
    async with conn.transaction():
        try:
            after = await place_of(conn, wish.start)
        except CursorGone:
            if await subscriptions.find(conn, wish.name) is None:
                raise
            after = START  # of a new one only
        return await subscriptions.put(
            conn,
            NewSubscription(
                name=wish.name, owner=caller, delivery=wish.delivery, url=wish.url,
                format=wish.format, key_template=wish.key_template, filter=filter_text, batch=wish.batch,
                after=after,
            ),
            actor=caller.name, correlation=correlation,
        )  # fmt: skip


@contextmanager
def _telling_subscribers() -> Iterator[None]:
    """Say in the refusal of a place what a subscriber does, who has no snapshot."""
    try:
        yield
    except CursorGone as error:
        raise CursorGone(
            "the log no longer has what comes after this place; read everything with a search, and go on from the "
            "place that was `head` before",
            earliest=error.earliest,
        ) from None


async def place_of(conn: Connection, text: str) -> Cursor:
    """Return the place that `head`, `start`, a cursor or a moment names. CursorGone where the log has not got it."""
    match text:
        case "head":
            return await feed.head(conn)
        case "start":
            return await subscriptions.start(conn)
    if (time := moment(text)) is not None:
        return await subscriptions.place_before(conn, time)
    try:
        cursor = Cursor.parse(text)
    except BadRequest:
        raise BadRequest(
            f"{text[:40]!r} is no place in the log; write head, start, a cursor such as 1.4711, or a moment such as "
            f"2026-11-29T10:00:00Z"
        ) from None
    with _telling_subscribers():
        return await feed.resume(conn, cursor)


async def own(conn: Connection, name: str, caller: Principal) -> Subscription:
    """Return a subscription of the caller's, locked for the caller's transaction. NotFound where it is none."""
    subscription = await subscriptions.lock(conn, name)
    if subscription is None or subscription.owner != caller.name:
        raise subscriptions.missing(name)
    return subscription


# --- reading: next, ack, nack ---


@dataclass(frozen=True, slots=True)
class NextEvents:
    """Events that are given out with a lease; without any, the lease that another reader has, or none."""

    events: Sequence[WrittenEvent]
    lease: Lease | None
    cursor: Cursor


async def next_events(
    node: Node, name: str, *, caller: Principal, limit: int | None, lease_seconds: float, wait: float, feed_url: str,
    run: RunInThread = in_any_thread,
) -> NextEvents:  # fmt: skip
    """Give out the next events of a subscription; wait for some for so many seconds.

    What was not taken and is due comes before what is new. While another reader has a lease there is nothing.
    feed_url: the address of GET /events as the reader knows it.
    CursorGone where the subscription is behind what the log keeps: it is sought anew.
    """
    deadline, backoff = time.monotonic() + wait, Backoff()
    while True:
        sequenced = node.sequenced.next()
        async with node.pool.acquire() as conn:
            look = await _look(
                node, conn, name, caller=caller, limit=limit, lease_seconds=lease_seconds, feed_url=feed_url, run=run
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
    node: Node, conn: Connection, name: str, *, caller: Principal, limit: int | None, lease_seconds: float,
    feed_url: str, run: RunInThread,
) -> _Look:  # fmt: skip
    async with conn.transaction():
        subscription = await own(conn, name, caller)
        if subscription.delivery != PULL:
            raise Conflict(f"the events of {name} are sent to its webhook; they are not pulled")
        encoder = encoder_of(subscription, feed_url)
        if await subscriptions.seconds_leased(conn, name) > 0:
            return _Look(NextEvents((), None, subscription.cursor))
        most = min(limit or subscription.batch, MOST_EVENTS)
        subscriber = Subscriber(name, filter_of(subscription), caller)
        due = await _due(node, conn, subscription, subscriber, encoder, most, run)
        if due.positions:
            if not due.events:
                return _Look(NextEvents((), None, subscription.cursor), has_more=True)
            lease = await subscriptions.lease(
                conn, name, subscription.cursor, lease_seconds, events=len(due.events)
            )  # fmt: skip
            positions = [each.delivery.source.cursor.pos for each in due.events]
            await subscriptions.give_out(conn, name, positions, lease.id)
            return _Look(NextEvents(due.events, lease, lease.through))
        if await subscriptions.has_waiting(conn, name, MOST_WAITING):  # it takes none of these: nothing new is added
            return _Look(NextEvents((), None, subscription.cursor))
        return await _new(node, conn, subscription, subscriber, encoder, most, lease_seconds, run)


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
    await subscriptions.bury_forgotten(conn, subscription.name)
    rows = await subscriptions.due(conn, subscription.name, most)
    page = await subscriptions.events_at(conn, [row.pos for row in rows])
    events = (await deliveries(node, conn, page, [subscriber], run=run))[subscriber.name]
    events = [each for each in events if encoder.tells(each.event)]
    positions = [event.cursor.pos for event in page]
    await subscriptions.settle(
        conn, subscription.name, sorted(set(positions) - {each.source.cursor.pos for each in events})
    )
    return DueEvents(positions, await _write_or_bury(node, conn, subscription, encoder, events, run))


async def _write_or_bury(
    node: Node, conn: Connection, subscription: Subscription, encoder: Encoder, events: Sequence[SubscriberEvent],
    run: RunInThread,
) -> Sequence[WrittenEvent]:  # fmt: skip
    """Write events, and make dead letters of those that the format cannot write. For the caller's transaction."""
    written = await write(node, encoder, events, run=run)
    if written.unwritable:
        letters = [Postponement(each.event, each.reason, seconds=None) for each in written.unwritable]
        await subscriptions.postpone(conn, subscription.name, letters)
        window = node.settings.notify_window_seconds
        await notifications.tell_owner(conn, subscription.owner, "subscription", [subscription.name], after=window)
    return written.events


async def _new(
    node: Node, conn: Connection, subscription: Subscription, subscriber: Subscriber, encoder: Encoder, most: int,
    lease_seconds: float, run: RunInThread,
) -> _Look:  # fmt: skip
    name = subscription.name
    with _telling_subscribers():
        log_slice = await subscriptions.look(
            conn, subscription.cursor, subscriber.filter.collections, min(max(2 * most, LEAST_PAGE), PAGE_EVENTS)
        )
    fitting = (await deliveries(node, conn, log_slice.events, [subscriber], run=run))[name]
    fitting = [each for each in fitting if encoder.tells(each.event)]
    blocked = await subscriptions.held_back(conn, name, [each.source for each in fitting])
    events: list[SubscriberEvent] = []
    behind: list[Postponement] = []
    through = log_slice.through
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
    await subscriptions.postpone(conn, name, behind)
    written_events = await _write_or_bury(node, conn, subscription, encoder, events, run)
    if written_events:
        lease = await subscriptions.lease(conn, name, through, lease_seconds, events=len(written_events))
        return _Look(NextEvents(written_events, lease, through))
    await subscriptions.advance(conn, name, through)
    return _Look(NextEvents((), None, through), has_more=through.pos > subscription.pos)


async def ack(
    conn: Connection, name: str, cursor: Cursor, *, caller: Principal, lease: UUID | None
) -> Subscription:  # fmt: skip
    """Note that everything through a place of what was given out is taken. The same again changes nothing.

    Conflict where it was not given out, or the lease is over and others have the events.
    """
    async with conn.transaction():
        subscription = await own(conn, name, caller)
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
            await subscriptions.settle_lease(conn, name, subscription.lease)
        await subscriptions.advance(conn, name, cursor, releases=is_whole)
        return await own(conn, name, caller)


async def nack(
    conn: Connection, name: str, event_id: str, *, caller: Principal, reason: str, retry_in: float | None
) -> MissedEvent:  # fmt: skip
    """Store an event that was given out and not taken: it is given again, after so many seconds at the earliest.

    Later events of its dataset wait behind it, also those of the same batch; others go on. Without `retry_in` the time
    grows with the attempts.
    After MOST_ATTEMPTS it is a dead letter. NotFound where no event of that id is given out now.
    """
    async with conn.transaction():
        subscription = await own(conn, name, caller)
        place = await _given_out(conn, subscription, event_id)
        if place is None:
            raise NotFound(f"no event {event_id[:64]!r} of {name} is given out now; ask for the next events")
        page = await subscriptions.events_at(conn, [place.pos])
        attempts = place.attempts + 1
        seconds = retry_in if retry_in is not None else min(FIRST_RETRY * 2 ** (attempts - 1), LONGEST_RETRY)
        postponements = [Postponement(event, reason, seconds if attempts < MOST_ATTEMPTS else None) for event in page]
        await subscriptions.postpone(conn, name, postponements)
        if place.attempts == 0:  # of the stored ones a lease gives out the first of each dataset only
            for event in page:
                await subscriptions.postpone_followers(conn, name, event, subscription.leased_through or 0, WAITS)
        return await subscriptions.missed_event(conn, name, place.pos)


@dataclass(frozen=True, slots=True)
class _Place:
    pos: int
    attempts: int


async def _given_out(conn: Connection, subscription: Subscription, event_id: str) -> _Place | None:
    """Return where an event is that the present lease gave out: of the log, or made of it as `left`."""
    if subscription.lease is None or subscription.leased_through is None:
        return None
    rows = await subscriptions.given_out(conn, subscription.name, subscription.lease)
    places = {row.event_id: _Place(row.pos, row.attempts) for row in rows}
    if not places:
        ids = await subscriptions.event_ids(conn, subscription.pos, subscription.leased_through)
        places = {id: _Place(pos, 0) for pos, id in ids.items()}
    if event_id in places:
        return places[event_id]
    departures = ((departure_id(id, subscription.name), place) for id, place in places.items())
    return next((place for id, place in departures if id == event_id), None)


async def seek(
    conn: Connection, name: str, to: str, *, actor: str, correlation: str | None = None
) -> Subscription:  # fmt: skip
    """Let a subscription go on after `head`, `start`, a cursor or a moment. What waits to be given again is dropped."""
    async with conn.transaction():
        if await subscriptions.lock(conn, name) is None:
            raise subscriptions.missing(name)
        return await subscriptions.seek(conn, name, await place_of(conn, to), actor=actor, correlation=correlation)


def encoder_of(subscription: Subscription, feed_url: str) -> Encoder:
    """Return how a subscription gets its events. feed_url: the address of GET /events as its reader knows it."""
    return Encoder(EventFormat(subscription.format), subscription.key_template, feed_url=feed_url)


def stand_of(subscription: Subscription) -> str:
    """Return in one word how a subscription stands."""
    if subscription.ended_reason is not None:
        return "ended"
    if subscription.paused_reason is not None:
        return "paused"
    return "failing" if subscription.failing_since is not None else "active"


def document_of(
    subscription: Subscription, counts: MissedCounts, *, reader: str, rights_days: int
) -> dict[str, Any]:  # fmt: skip
    """Return a subscription in JSON; its secret is not in it. rights_days: as for `rights_until`.

    Others than its owner see of a webhook's address only the host: the rest is often a secret.
    """
    url = subscription.url
    if url is not None and subscription.owner != reader:
        url = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}/…"
    return {
        "name": subscription.name,
        "owner": subscription.owner,
        "delivery": subscription.delivery,
        "url": url,
        "format": subscription.format,
        "key": subscription.key_template,
        "filter": orjson.loads(subscription.filter),
        "batch": subscription.batch,
        "cursor": str(subscription.cursor),
        "stand": stand_of(subscription),
        "leased_until": rfc3339_or_none(subscription.leased_until),
        "waiting": counts.waiting,
        "dead_letters": counts.dead,
        "delivered": subscription.delivered,
        "delivered_at": rfc3339_or_none(subscription.delivered_at),
        "errors": subscription.errors,
        "failing_since": rfc3339_or_none(subscription.failing_since),
        "last_error": subscription.last_error,
        "reason": subscription.ended_reason or subscription.paused_reason,
        "created": rfc3339(subscription.created),
        "updated": rfc3339(subscription.updated),
        "rights_until": rfc3339_or_none(rights_until(subscription, rights_days)),
    }


def letter_of(event: MissedEvent) -> dict[str, Any]:
    """Return a missed event in JSON. Who may not know of a mark learns nothing of it here."""
    return {
        "id": event.id,
        "place": f"{event.epoch}.{event.pos}",
        "event_id": event.event_id,
        "type": UPDATED if event.type in COVERED else event.type,
        "collection": event.collection,
        "dataset": event.dataset,
        "reason": event.reason,
        "attempts": event.attempts,
        "retry_at": rfc3339_or_none(event.retry_at) if event.dead_at is None else None,
        "dead_at": rfc3339_or_none(event.dead_at),
    }


# --- changes, read once ---


@asynccontextmanager
async def _telling_of_lag(conn: Connection, place: str) -> AsyncIterator[None]:
    """Refuse with Unavailable a place that a standby has not come to yet: nothing of it is lost."""
    try:
        with _telling_subscribers():
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
    node: Node, since: str, condition: SubscriptionFilter, *, reader: Principal | None, encoder: Encoder, limit: int,
    wait: float, run: RunInThread = in_any_thread,
) -> ChangesPage:  # fmt: skip
    """Return what changed after a place (`place_of`), as a reader may see it; wait for something for so many seconds.

    Exact: each event that was committed comes once on the way from cursor to cursor, whatever is written meanwhile.
    """
    subscriber = Subscriber("", condition, reader)
    deadline, backoff = time.monotonic() + wait, Backoff()
    async with node.search_pool.acquire() as conn, _telling_of_lag(conn, since):
        after = await place_of(conn, since)
    while True:
        sequenced = node.sequenced.next()
        async with node.search_pool.acquire() as conn:
            async with _telling_of_lag(conn, str(after)):
                log_slice = await subscriptions.look(
                    conn, after, condition.collections, min(max(2 * limit, LEAST_PAGE), PAGE_EVENTS)
                )
            events = (await deliveries(node, conn, log_slice.events, [subscriber], run=run))[subscriber.name]
            head = await feed.head(conn)
        events = [each for each in events if encoder.tells(each.event)]
        advance = log_slice.through.pos - after.pos
        after = events[limit - 1].source.cursor if len(events) > limit else log_slice.through
        seconds = deadline - time.monotonic()
        if events or seconds <= 0 or node.stopping.is_set():
            written = await write(node, encoder, events[:limit], run=run)
            return ChangesPage(written.events, written.unwritable, after, after.pos < head.pos)
        if advance:
            await pause(node.stopping, 0)
        else:
            await sequenced(min(backoff.pause(), seconds))
