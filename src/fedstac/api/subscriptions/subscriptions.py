"""Subscriptions over HTTP: a cursor that the server keeps, with a filter. Each belongs to who made it.

Who may manage messaging sees those of others, seeks them and removes them. Nobody but the owner reads their events.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, numbers
from fedstac.api.nodes.sinks import path_id
from fedstac.db import subscription_events, subscriptions
from fedstac.db.connections import Connection
from fedstac.db.subscription_events import MissedCounts
from fedstac.db.subscriptions import Subscription
from fedstac.domain import destinations
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import Cursor
from fedstac.domain.model import rfc3339, rfc3339_or_none
from fedstac.domain.policy import Action, Principal, Resource
from fedstac.runtime import budget
from fedstac.workers import delivering, subscribing
from fedstac.workers.delivering import WrittenEvent
from fedstac.workers.subscribing import SubscriptionWish

NO_STORE: Final = {"Cache-Control": "private, no-store"}
EVERY: Final = Resource("the subscriptions of this node", "*", "*")
PAGE, MOST_SHOWN = 100, 1000
LEASE_SECONDS, LONGEST_LEASE = 60, 3600
LONGEST_WAIT: Final = 60
LONGEST_RETRY: Final = 86_400.0
MEMBERS: Final = {  # of a body, and the members of a wish
    "delivery": "delivery", "url": "url", "format": "format", "key": "key_template", "filter": "filter",
    "batch": "batch", "from": "start",
}  # fmt: skip


def _answer(body: object, status: int = 200, **headers: str) -> Response:
    return Response(orjson.dumps(body), status, {**NO_STORE, **headers}, links.JSON)


def _manages(call: Call) -> bool:
    caller: Principal = call.caller
    return call.node.policy.verdict(caller, Action.MESSAGING, EVERY).allowed


async def _visible(call: Call, conn: Connection) -> Subscription:
    """Return the subscription that the path names. NotFound where it is none that the caller may see."""
    name = call.path_params["subscription"]
    subscription = await subscriptions.find(conn, name)
    if subscription is None or (subscription.owner != call.caller.name and not _manages(call)):
        raise subscriptions.missing(name)
    return subscription


async def _document(call: Call, conn: Connection, subscription: Subscription) -> dict[str, Any]:
    [document] = await _documents(call, conn, [subscription])
    return document


async def _documents(call: Call, conn: Connection, rows: Sequence[Subscription]) -> list[dict[str, Any]]:
    counts = await subscription_events.missed_counts(conn, [row.name for row in rows])
    days = call.node.settings.webhook_rights_days
    return [
        subscribing.document_of(
            row, counts.get(row.name, MissedCounts()), reader=call.caller.name, rights_days=days
        )
        for row in rows
    ]  # fmt: skip


async def get_subscriptions(call: Call) -> Response:
    """List the caller's subscriptions by name; with `all`, those of everybody, for whoever may manage messaging."""
    sees_all = call.query_params.get("all") == "true"
    if sees_all:
        call.node.policy.require(call.caller, Action.MESSAGING, EVERY)
    limit = max(numbers.whole(call.query_params, "limit", default=PAGE, most=MOST_SHOWN), 1)
    after = call.query_params.get("after", "")
    async with call.node.pool.acquire() as conn:
        rows = await subscriptions.every(
            conn, owner=None if sees_all else call.caller.name, after=after, limit=limit + 1
        )
        shown_rows = rows[:limit]
        documents = await _documents(call, conn, shown_rows)
    following = {"limit": limit, "after": shown_rows[-1].name, **({"all": "true"} if sees_all else {})} if (
        len(rows) > limit
    ) else None  # fmt: skip
    return _answer(
        {
            "subscriptions": documents,
            "links": links.of_page(f"{call.base_url}/subscriptions", following),
        }
    )


async def put_subscription(call: Call) -> Response:
    """Make a subscription, or change one of the caller's.

    A new one begins `from` the `head` of the log, its `start`, a cursor or a moment; one that is there keeps its place.
    The answer to a new webhook has the secret that signs what it gets.
    """
    body = await call.body.read_object(*MEMBERS)
    if body.get("url", "") is None:
        del body["url"]
    texts = {name: body[name] for name in ("delivery", "url", "format", "key", "from") if name in body}
    if wrong := [name for name, value in texts.items() if not isinstance(value, str)]:
        raise BadRequest(f"{wrong[0]} is a text")
    if type(body.get("batch", 1)) is not int:
        raise BadRequest("batch is a whole number")
    wish = SubscriptionWish(
        name=call.path_params["subscription"], **{MEMBERS[name]: value for name, value in body.items()}
    )
    async with call.node.pool.acquire() as conn:
        outcome = await subscribing.put(call.node, conn, wish, caller=call.caller, correlation=call.request_id)
        document = await _document(call, conn, outcome.subscription)
    if outcome.is_new_webhook:
        document["secret"] = destinations.shown_secret(outcome.subscription.secret)
    return _answer(
        document, 201 if outcome.is_new else 200,
        Location=f"{call.base_url}/subscriptions/{outcome.subscription.name}",
    )  # fmt: skip


async def get_subscription(call: Call) -> Response:
    """Return one subscription: how far it is, and what it has not taken."""
    async with call.node.pool.acquire() as conn:
        return _answer(await _document(call, conn, await _visible(call, conn)))


async def delete_subscription(call: Call) -> Response:
    """Remove a subscription with its place and its dead letters."""
    async with call.node.pool.acquire() as conn, conn.transaction():
        subscription = await _visible(call, conn)
        await subscriptions.remove(conn, subscription.name, actor=call.caller.name, correlation=call.request_id)
    return Response(status_code=204)


async def get_next(call: Call) -> Response:
    """Give out the next events of a subscription, and lease them to the caller for so many seconds.

    Nobody else gets events of it until the lease is over or everything is acknowledged; what was not acknowledged then
    is given out again. With `wait` an answer without events comes only when the time is up.
    """
    if call.method == "HEAD":  # takes nothing
        async with call.node.pool.acquire() as conn:
            await _visible(call, conn)
        return _answer({})
    parameters = call.query_params
    limit = numbers.whole(parameters, "limit", default=0, most=subscribing.MOST_EVENTS)
    lease = numbers.whole(parameters, "lease", default=LEASE_SECONDS, most=LONGEST_LEASE)
    wait = numbers.whole(parameters, "wait", default=0, most=LONGEST_WAIT)
    budget.extend(wait)
    page = await delivering.next_events(
        call.services.pages, call.path_params["subscription"], caller=call.caller, limit=limit or None,
        lease_seconds=max(lease, 1), wait=wait, feed_url=f"{call.base_url}/events", run=call.services.threads.run,
    )  # fmt: skip
    head: dict[str, Any] = {"cursor": str(page.cursor)}
    if page.lease is not None:
        head |= {"lease": str(page.lease.id), "leased_until": rfc3339(page.lease.until)}
    return await events_answer(call, head, "events", page.events)


async def events_answer(
    call: Call, head: dict[str, Any], member: str, events: Sequence[WrittenEvent]
) -> Response:  # fmt: skip
    """Answer with events as a subscriber gets them, each with its value as the format has it, which is not parsed."""
    work = partial(_text_of, head, member, events)
    is_large = delivering.are_large([each.delivery for each in events])
    text = await call.services.threads.run_if(is_large, work)
    return Response(text, 200, NO_STORE, links.JSON)


def _text_of(head: dict[str, Any], member: str, events: Sequence[WrittenEvent]) -> bytes:
    texts = []
    for each in events:
        event, message = each.delivery.event, each.message
        fields = orjson.dumps({
            "cursor": str(event.cursor), "event_id": event.event_id, "kind": each.delivery.kind,
            "type": event.type, "key": message.key, "headers": dict(message.headers),
        })  # fmt: skip
        texts.append(fields[:-1] + b',"value":' + (message.value or b"null") + b"}")
    envelope = orjson.dumps(head)[:-1] + b',"' + member.encode() + b'":['
    return envelope + b",".join(texts) + b"]}"


async def post_ack(call: Call) -> Response:
    """Acknowledge what was given out, through a cursor: that of the answer, or of one of its events.

    With the last cursor the lease ends. The same again changes nothing. Of events that are given again, `lease` is
    needed: their answer has the cursor at which the subscription is.
    """
    body = await call.body.read_object("cursor", "lease")
    if not isinstance(body.get("cursor"), str):
        raise BadRequest('send {"cursor": "1.4711", "lease": "…"}, as GET …/next answered')
    lease = _lease(body.get("lease"))
    async with call.node.pool.acquire() as conn:
        subscription = await delivering.ack(
            conn, call.path_params["subscription"], Cursor.parse(body["cursor"]), caller=call.caller, lease=lease
        )
    return _answer({"cursor": str(subscription.cursor), "leased_until": rfc3339_or_none(subscription.leased_until)})


def _lease(text: object) -> UUID | None:
    if text is None:
        return None
    try:
        return UUID(text if isinstance(text, str) else "")
    except ValueError:
        raise BadRequest("lease is the one that GET …/next answered with") from None


async def post_nack(call: Call) -> Response:
    """Say that an event that was given out could not be taken, and why.

    It is given again after `retry_in` seconds, and later events of its dataset after it; other datasets go on. After
    ten attempts it is a dead letter.
    """
    body = await call.body.read_object("event_id", "reason", "retry_in")
    event_id, reason, retry_in = body.get("event_id"), body.get("reason", ""), body.get("retry_in")
    if not isinstance(event_id, str) or not isinstance(reason, str):
        raise BadRequest('send {"event_id": "…", "reason": "…", "retry_in": 60}')
    if len(reason) > subscription_events.LONGEST_REASON:
        raise BadRequest(f"reason has {subscription_events.LONGEST_REASON} characters at most")
    if retry_in is not None and not (type(retry_in) in (int, float) and 0 <= retry_in <= LONGEST_RETRY):
        raise BadRequest(f"retry_in is a number of seconds, {LONGEST_RETRY:.0f} at most")
    async with call.node.pool.acquire() as conn:
        event = await delivering.nack(
            conn, call.path_params["subscription"], event_id, caller=call.caller,
            reason=reason or "refused without a reason", retry_in=retry_in,
        )  # fmt: skip
    return _answer(subscribing.letter_of(event))


async def post_seek(call: Call) -> Response:
    """Let a subscription go on after another place: a `cursor` (also `head` and `start`), or a `time`.

    What waits to be given again is dropped, and the lease ends. So are dead letters after the place, which come again.
    A time is no exact place: what was written before it and committed after it may lie before the place.
    """
    body = await call.body.read_object("cursor", "time")
    if len(body) != 1 or not all(isinstance(value, str) for value in body.values()):
        raise BadRequest('send {"cursor": "1.4711"}, {"cursor": "start"} or {"time": "2026-11-29T10:00:00Z"}')
    async with call.node.pool.acquire() as conn:
        name = (await _visible(call, conn)).name
        subscription = await subscribing.seek(
            conn, name, *body.values(), actor=call.caller.name, correlation=call.request_id
        )
        return _answer(await _document(call, conn, subscription))


async def get_dead_letters(call: Call) -> Response:
    """List what a subscription refused for good, the oldest first, and why."""
    limit = max(numbers.whole(call.query_params, "limit", default=PAGE, most=MOST_SHOWN), 1)
    after = numbers.whole(call.query_params, "after", default=0, most=2**62)
    async with call.node.pool.acquire() as conn:
        subscription = await _visible(call, conn)
        rows = await subscription_events.dead_letters(conn, subscription.name, after=after, limit=limit + 1)
    own = f"{call.base_url}/subscriptions/{subscription.name}/dead-letters"
    following = {"limit": limit, "after": rows[limit - 1].id} if len(rows) > limit else None
    letters = [subscribing.letter_of(row) for row in rows[:limit]]
    return _answer({"dead_letters": letters, "links": links.of_page(own, following)})


async def post_redrive(call: Call) -> Response:
    """Give a dead letter out again. Refused where its dataset changed again since: the later event says more."""
    id = path_id(call, "letter", "dead letter", "fedstac subscription dead-letters")
    async with call.node.pool.acquire() as conn, conn.transaction():
        subscription = await _visible(call, conn)
        await subscriptions.lock(conn, subscription.name)
        event = await subscription_events.redrive(
            conn, subscription.name, id, actor=call.caller.name, correlation=call.request_id
        )
    return _answer(subscribing.letter_of(event))
