"""What owners do with subscriptions: put, sought, shown; and with whose rights each is read.

The verbs know no request. What a subscription gets of the log is in `delivering`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from fedstac.bootstrap import Node
from fedstac.db import feed, nodes, own_groups, subscription_events, subscriptions
from fedstac.db.connections import Connection
from fedstac.db.subscription_events import MissedCounts, MissedEvent
from fedstac.db.subscriptions import NewSubscription, PutOutcome, Subscription
from fedstac.domain import destinations
from fedstac.domain.access import COVERED
from fedstac.domain.destinations import Channel
from fedstac.domain.errors import BadRequest, CursorGone
from fedstac.domain.events import START, UPDATED, Cursor, EventFormat
from fedstac.domain.grants import PASSAGE
from fedstac.domain.groups import Identity
from fedstac.domain.model import moment, rfc3339, rfc3339_or_none
from fedstac.domain.policy import Principal
from fedstac.domain.subscriptions import (
    NAME,
    FilterCache,
    Subscriber,
    SubscriptionFilter,
)
from fedstac.messaging import formats
from fedstac.messaging.formats import Encoder

PULL, WEBHOOK = "pull", "webhook"
DELIVERIES: Final = (PULL, WEBHOOK)
MOST_EVENTS: Final = 1000  # of a batch, or a page of changes
LONGEST_FILTER: Final = 65_536


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


async def filters_of_owner(conn: Connection, owner: str) -> list[SubscriptionFilter]:
    """Return what somebody wants by subscriptions, each once; what is no filter by the rules of now is left out."""
    filters = list[SubscriptionFilter]()
    for text in await subscriptions.filters_of(conn, owner):
        with suppress(BadRequest):
            filters.append(_FILTERS.read(text))
        await asyncio.sleep(0)  # a filter of the longest takes some milliseconds to read
    return filters


_FILTERS: Final = FilterCache()


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
    filter_text = _filter_text(wish.filter)
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


def _filter_text(condition: Any) -> str:
    """Return a filter as it is stored: without members that say nothing. BadRequest says what is wrong with it."""
    is_object = isinstance(condition, Mapping)
    members = {name: value for name, value in condition.items() if value is not None} if is_object else condition
    text = orjson.dumps(members).decode()
    if len(text) > LONGEST_FILTER:
        raise BadRequest(f"a filter has {LONGEST_FILTER} characters at most; ask for less with it")
    SubscriptionFilter.parse(condition)
    return text


@contextmanager
def telling_subscribers() -> Iterator[None]:
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
            return await subscription_events.start(conn)
    if (time := moment(text)) is not None:
        return await subscription_events.place_before(conn, time)
    try:
        cursor = Cursor.parse(text)
    except BadRequest:
        raise BadRequest(
            f"{text[:40]!r} is no place in the log; write head, start, a cursor such as 1.4711, or a moment such as "
            f"2026-11-29T10:00:00Z"
        ) from None
    with telling_subscribers():
        return await feed.resume(conn, cursor)


async def own(conn: Connection, name: str, caller: Principal) -> Subscription:
    """Return a subscription of the caller's, locked for the caller's transaction. NotFound where it is none."""
    subscription = await subscriptions.lock(conn, name)
    if subscription is None or subscription.owner != caller.name:
        raise subscriptions.missing(name)
    return subscription


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
        "type": UPDATED if event.type in (*COVERED, PASSAGE) else event.type,
        "collection": event.collection,
        "dataset": event.dataset,
        "reason": event.reason,
        "attempts": event.attempts,
        "retry_at": rfc3339_or_none(event.retry_at) if event.dead_at is None else None,
        "dead_at": rfc3339_or_none(event.dead_at),
    }
