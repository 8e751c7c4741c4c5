"""Destinations of notifications: callers register them, and a header of a write names one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store
from fedstac.bootstrap import Node
from fedstac.db import notifications
from fedstac.db.connections import Connection
from fedstac.db.notifications import OPERATORS, Destination
from fedstac.domain import destinations, strict_json
from fedstac.domain.destinations import TOPICS, Address, Channel
from fedstac.domain.errors import BadRequest, NotFound, TooManyRequests
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import Principal
from fedstac.settings import Settings

HEADER = "fedstac-notify"
MOST_NAMED, MOST_DESTINATIONS, CONFIRMATIONS_PER_HOUR = 5, 50, 5


async def wish(node: Node, caller: Principal, names: Sequence[str], request: UUID) -> None:
    """Store the destinations that get the result of a request, just before the request is stored.

    A name is the id of a destination, or an address: one that the caller has registered, or one that needs no
    confirmation. BadRequest for any other one: a header alone never makes this node send something.
    """
    if not names:
        return
    if len(names) > MOST_NAMED:
        raise BadRequest(f"Fedstac-Notify is there over {MOST_NAMED} times; name fewer destinations")
    async with node.pool.acquire() as conn, conn.transaction():
        for text in names:
            destination = await _destination_of(conn, node.settings, caller, text.strip())
            if not await notifications.hold(conn, destination.id):
                raise _missing_name(destination.id)
            await notifications.wish(conn, request, destination.id)


async def _destination_of(conn: Connection, settings: Settings, principal: Principal, text: str) -> Destination:
    """Return the caller's destination that a value of the header names."""
    if (number := _uuid(text)) is not None:
        destination = await notifications.destination(conn, number)
        if destination is None or destination.owner != principal.name:
            raise _missing_name(number)
    else:
        address = _address(settings, text)
        destination = await notifications.find(conn, principal.name, str(address))
        if destination is None or destination.confirmed is None:
            if not _needs_no_confirmation(settings, principal, address):
                raise BadRequest(
                    f"Fedstac-Notify: {address.host} is not a host that this node sends to unasked; register the "
                    "address first: POST /notifications, or fedstac notifications add"
                )
            await notifications.hold_owner(conn, principal.name)
            destination = await notifications.find(conn, principal.name, str(address))
            if destination is None:
                await _require_room(conn, principal)
            topics = destination.topics if destination else ()
            destination, _ = await notifications.register(conn, principal.name, str(address), topics, confirmed=True)
    if destination.confirmed is None:
        raise BadRequest(
            f"Fedstac-Notify: the destination {destination.id} is not confirmed yet; its code was sent to it"
        )
    return destination


def _missing_name(id: UUID) -> BadRequest:
    return BadRequest(f"Fedstac-Notify: you have no destination {id}; see GET /notifications")


def _address(settings: Settings, text: str) -> Address:
    address = destinations.parse(text, private=settings.notify_private)
    if address.kind is Channel.MAIL and not settings.smtp:
        raise BadRequest("this node sends no mail; name a webhook instead: https://… or slack+https://…")
    return address


def _needs_no_confirmation(settings: Settings, principal: Principal, address: Address) -> bool:
    """Return whether an address is used without a code sent to it first.

    It is so for hosts that the operator allows, and for the mailbox that the caller's identity provider vouches for.
    """
    own = principal.identity.email if principal.identity else None
    is_own = address.kind is Channel.MAIL and own is not None and own.lower() == address.target.lower()
    return is_own or destinations.allows(settings.notify_hosts, address.host)


async def _require_room(conn: Connection, principal: Principal) -> None:
    if len(await notifications.destinations(conn, principal.name)) >= MOST_DESTINATIONS:
        raise BadRequest(f"you have {MOST_DESTINATIONS} destinations, which is the most; remove one first")


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


# --- routes ---


async def get_destinations(call: Call) -> Response:
    """List the caller's destinations. Administrators get those of the operators too."""
    async with call.node.pool.acquire() as conn:
        own = await notifications.destinations(conn, call.caller.name)
        own += await notifications.destinations(conn, OPERATORS) if call.caller.is_admin else []
    body = {"destinations": [_document(each, secret=False) for each in own]}
    return no_store.answer(body)


async def post_destination(call: Call) -> Response:
    """Register a mailbox or a webhook. Where a confirmation is needed, a code is sent to it.

    With "request" in `on` the destination is told when a request of the caller is final. With "dataset" it is told
    when somebody else changes a dataset of the caller. Without any of them it is told where Fedstac-Notify names it.
    A repeat changes nothing and sends nothing.
    """
    node, caller = call.node, call.caller
    if not call.services.publishes:
        raise BadRequest("this node publishes nothing and tells nothing; register at the node where you publish")
    address, topics = _read(node.settings, strict_json.parse(await call.body.read()))
    trusted = _needs_no_confirmation(node.settings, caller, address)
    async with node.pool.acquire() as conn, conn.transaction():
        await notifications.hold_owner(conn, caller.name)
        before = await notifications.find(conn, caller.name, str(address))
        if before is None:
            await _require_room(conn, caller)
        asks = not trusted and before is None
        if asks and await notifications.confirmations(conn, caller.name) >= CONFIRMATIONS_PER_HOUR:
            raise TooManyRequests("you have asked for many confirmations; try again in an hour", retry_after=3600)
        destination, is_new = await notifications.register(conn, caller.name, str(address), topics, confirmed=trusted)
        if asks:
            await notifications.ask_confirmation(conn, caller.name, destination.id)
    place = f"{call.base_url}/notifications/{destination.id}"
    return no_store.answer(_document(destination, secret=True), 201 if is_new else 200, Location=place)


def _read(settings: Settings, body: object) -> tuple[Address, list[str]]:
    if not isinstance(body, dict) or not isinstance(body.get("address"), str):
        raise BadRequest('send {"address": "mailto:… or https://… or slack+https://…", "on": ["request", "dataset"]}')
    topics = body.get("on", ["request"])
    if not isinstance(topics, list) or not all(topic in TOPICS for topic in topics):
        raise BadRequest(f"on is a list of {', '.join(TOPICS)}")
    return _address(settings, body["address"]), list(dict.fromkeys(topics))


async def get_destination(call: Call) -> Response:
    """Return one destination, with the secret that its webhooks are signed with."""
    destination = await _own(call)
    return no_store.answer(_document(destination, secret=True))


async def delete_destination(call: Call) -> Response:
    """Remove a destination. Nothing more is sent to it."""
    destination = await _own(call)
    async with call.node.pool.acquire() as conn:
        await notifications.remove(conn, destination.id)
    return Response(status_code=204)


async def post_confirmation(call: Call) -> Response:
    """Confirm a destination with the code that was sent to it."""
    destination = await _own(call)
    body = strict_json.parse(await call.body.read())
    code = body.get("code") if isinstance(body, dict) else None
    if not isinstance(code, str) or code.strip().upper() != destinations.confirmation_code(destination.secret):
        raise BadRequest('send {"code": …} with the code that was sent to this destination')
    async with call.node.pool.acquire() as conn:
        await notifications.confirm(conn, destination.id)
        destination = await notifications.destination(conn, destination.id) or destination
    return no_store.answer(_document(destination, secret=True))


async def post_test(call: Call) -> Response:
    """Send a test message to a destination."""
    destination = await _own(call)
    if destination.confirmed is None:
        raise BadRequest("this destination is not confirmed yet; its code was sent to it")
    async with call.node.pool.acquire() as conn, conn.transaction():
        if not await notifications.hold(conn, destination.id):
            raise _missing()
        await notifications.tell(conn, destination.id, "test", ["test"])
    return Response(orjson.dumps({"status": "queued"}), 202, media_type=links.JSON)


async def _own(call: Call) -> Destination:
    """Return the destination that the path names, if it belongs to the caller; else NotFound.

    Those of the operators belong to every administrator.
    """
    caller, number = call.caller, _uuid(call.path_params["destination_id"])
    destination = None
    if number is not None:
        async with call.node.pool.acquire() as conn:
            destination = await notifications.destination(conn, number)
    owners = (caller.name, OPERATORS) if caller.is_admin else (caller.name,)
    if destination is None or destination.owner not in owners:
        raise _missing()
    return destination


def _missing() -> NotFound:
    return NotFound("there is no such destination of yours; see GET /notifications")


def _document(destination: Destination, *, secret: bool) -> dict[str, Any]:
    address = destinations.parse(destination.address, private=True)
    body: dict[str, Any] = {
        "id": str(destination.id),
        "address": destination.address,
        "kind": address.kind,
        "on": destination.topics,
        "confirmed": rfc3339(destination.confirmed) if destination.confirmed else None,
        "created": rfc3339(destination.created),
        "owner": "operators" if destination.owner == OPERATORS else destination.owner,
    }
    if secret and destination.confirmed and address.kind is not Channel.MAIL:
        body["secret"] = destinations.shown_secret(destination.secret)
    return body
