"""Who is told: destinations that callers register, and the header of a write that names one."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import orjson
from starlette.requests import Request
from starlette.responses import Response

from fedstac.api.http import links
from fedstac.api.people import identity
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
NO_STORE = {"Cache-Control": "no-store"}


async def wish(request: Request, accepted: UUID) -> None:
    """Notes what `Fedstac-Notify` of a write asks for; call it just before the request `accepted` is stored.

    Its values are a destination's id, or an address: one that the caller has registered, or one that needs no
    confirmation. BadRequest for any other; nothing is ever sent somewhere because a header says so.
    """
    named = request.headers.getlist(HEADER)
    if not named:
        return
    if len(named) > MOST_NAMED:
        raise BadRequest(f"Fedstac-Notify is there over {MOST_NAMED} times; name fewer destinations")
    node: Node = request.app.state.node
    principal = await identity.principal(request)
    async with node.pool.acquire() as conn:
        for text in named:
            found = await _named(conn, node.settings, principal, text.strip())
            await notifications.wish(conn, accepted, found.id)


async def _named(conn: Connection, settings: Settings, principal: Principal, text: str) -> Destination:
    """The caller's destination that a header means."""
    if (number := _uuid(text)) is not None:
        found = await notifications.destination(conn, number)
        if found is None or found.owner != principal.name:
            raise BadRequest(f"Fedstac-Notify: you have no destination {number}; see GET /notifications")
    else:
        address = _address(settings, text)
        found = await notifications.find(conn, principal.name, str(address))
        if found is None or found.confirmed is None:
            if not _needs_no_confirmation(settings, principal, address):
                raise BadRequest(
                    f"Fedstac-Notify: {address.host} is not a host that this node sends to unasked; register the "
                    "address first: POST /notifications, or fedstac notifications add"
                )
            await _require_room(conn, principal)
            topics = found.topics if found else ()
            found, _ = await notifications.register(conn, principal.name, str(address), topics, confirmed=True)
    if found.confirmed is None:
        raise BadRequest(f"Fedstac-Notify: the destination {found.id} is not confirmed yet; its code was sent to it")
    return found


def _address(settings: Settings, text: str) -> Address:
    address = destinations.parse(text, private=settings.notify_private)
    if address.kind is Channel.MAIL and not settings.smtp:
        raise BadRequest("this node sends no mail; name a webhook instead: https://… or slack+https://…")
    return address


def _needs_no_confirmation(settings: Settings, principal: Principal, address: Address) -> bool:
    """Hosts that the operator allows, and the mailbox that the caller's identity provider vouches for."""
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


async def get_destinations(request: Request) -> Response:
    """GET /notifications: the caller's destinations; for administrators the operators' too."""
    principal = await identity.principal(request)
    async with request.app.state.node.pool.acquire() as conn:
        found = await notifications.destinations(conn, principal.name)
        found += await notifications.destinations(conn, OPERATORS) if principal.is_admin else []
    body = {"destinations": [_document(each, secret=False) for each in found]}
    return Response(orjson.dumps(body), media_type=links.JSON, headers=NO_STORE)


async def post_destination(request: Request) -> Response:
    """POST /notifications {address, on}: register a mailbox or a webhook; a code is sent there where that is needed.

    `on`: "request", whenever a request of the caller's is final; "dataset", when somebody else changes a dataset of
    theirs; nothing: only where Fedstac-Notify names it. The same again changes nothing and sends nothing.
    """
    principal = await identity.principal(request)
    node: Node = request.app.state.node
    if node.settings.source:
        raise BadRequest("this node publishes nothing and tells nothing; register at the node where you publish")
    address, topics = _read(node.settings, strict_json.parse(await request.body()))
    trusted = _needs_no_confirmation(node.settings, principal, address)
    async with node.pool.acquire() as conn, conn.transaction():
        known = await notifications.find(conn, principal.name, str(address))
        if known is None:
            await _require_room(conn, principal)
        asks = not trusted and known is None
        if asks and await notifications.confirmations(conn, principal.name) >= CONFIRMATIONS_PER_HOUR:
            raise TooManyRequests("you have asked for many confirmations; try again in an hour", retry_after=3600)
        found, made = await notifications.register(conn, principal.name, str(address), topics, confirmed=trusted)
        if asks:
            await notifications.ask_confirmation(conn, principal.name, found.id)
    location = {"Location": f"{request.app.state.base_url}/notifications/{found.id}"}
    return Response(orjson.dumps(_document(found, secret=True)), 201 if made else 200, location | NO_STORE, links.JSON)


def _read(settings: Settings, body: object) -> tuple[Address, list[str]]:
    if not isinstance(body, dict) or not isinstance(body.get("address"), str):
        raise BadRequest('send {"address": "mailto:… or https://… or slack+https://…", "on": ["request", "dataset"]}')
    topics = body.get("on", ["request"])
    if not isinstance(topics, list) or not all(topic in TOPICS for topic in topics):
        raise BadRequest(f"on is a list of {', '.join(TOPICS)}")
    return _address(settings, body["address"]), list(dict.fromkeys(topics))


async def get_destination(request: Request) -> Response:
    """GET /notifications/{destination_id}: one destination, with the secret that its webhooks are signed with."""
    found = await _own(request)
    return Response(orjson.dumps(_document(found, secret=True)), media_type=links.JSON, headers=NO_STORE)


async def delete_destination(request: Request) -> Response:
    """DELETE /notifications/{destination_id}: nothing more is sent there."""
    found = await _own(request)
    async with request.app.state.node.pool.acquire() as conn:
        await notifications.remove(conn, found.id)
    return Response(status_code=204)


async def post_confirmation(request: Request) -> Response:
    """POST /notifications/{destination_id}/confirm {code}: the code arrived."""
    found = await _own(request)
    body = strict_json.parse(await request.body())
    code = body.get("code") if isinstance(body, dict) else None
    if not isinstance(code, str) or code.strip().upper() != destinations.confirmation_code(found.secret):
        raise BadRequest('send {"code": …} with the code that was sent to this destination')
    async with request.app.state.node.pool.acquire() as conn:
        await notifications.confirm(conn, found.id)
        found = await notifications.destination(conn, found.id) or found
    return Response(orjson.dumps(_document(found, secret=True)), media_type=links.JSON, headers=NO_STORE)


async def post_test(request: Request) -> Response:
    """POST /notifications/{destination_id}/test: a message that says nothing."""
    found = await _own(request)
    if found.confirmed is None:
        raise BadRequest("this destination is not confirmed yet; its code was sent to it")
    async with request.app.state.node.pool.acquire() as conn:
        await notifications.tell(conn, found.id, "test", ["test"])
    return Response(orjson.dumps({"status": "queued"}), 202, media_type=links.JSON)


async def _own(request: Request) -> Destination:
    """The destination, if it is the caller's, or the operators' and the caller an administrator; else there is none."""
    principal = await identity.principal(request)
    number = _uuid(request.path_params["destination_id"])
    found = None
    if number is not None:
        async with request.app.state.node.pool.acquire() as conn:
            found = await notifications.destination(conn, number)
    is_own = found is not None and (found.owner == principal.name or (found.owner == OPERATORS and principal.is_admin))
    if found is None or not is_own:
        raise NotFound("there is no such destination of yours; see GET /notifications")
    return found


def _document(found: Destination, *, secret: bool) -> dict[str, Any]:
    address = destinations.parse(found.address, private=True)
    body: dict[str, Any] = {
        "id": str(found.id),
        "address": found.address,
        "kind": address.kind,
        "on": found.topics,
        "confirmed": rfc3339(found.confirmed) if found.confirmed else None,
        "created": rfc3339(found.created),
        "owner": "operators" if found.owner == OPERATORS else found.owner,
    }
    if secret and found.confirmed and address.kind is not Channel.MAIL:
        body["secret"] = destinations.shown_secret(found.secret)
    return body
