"""Subscriptions and changes, as exchanges: make a subscription, take its events, say what was taken or not.

    client.put_subscription("maps", {"filter": {"collections": ["CMIP6"], "cql2": "variable_id = 'tas'"}})
    while True:
        batch = client.next_events("maps", wait=20)
        for event in batch["events"]:
            take(event["kind"], event["value"])
        if batch["events"]:
            client.ack_events("maps", batch["cursor"], batch["lease"])

Client and AsyncClient are made of these functions, as of those in client/changes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson

from fedstac.client.transport import JSON_BODY, Exchange, ServerCall, object_of

PAGE = 1000

Json = Mapping[str, Any]


def put_subscription(name: str, wish: Json) -> Exchange[dict[str, Any]]:
    """Make a subscription, or change one of one's own. A new webhook comes with its secret.

    Conflict where the name is somebody else's.
    """
    return (yield from object_of(ServerCall("PUT", _path(name), content=orjson.dumps(wish), headers=JSON_BODY)))


def subscription(name: str) -> Exchange[dict[str, Any]]:
    """Return a subscription as it stands. NotFound where there is none, or it is somebody else's."""
    return (yield from object_of(ServerCall("GET", _path(name))))


def subscriptions(*, everybodys: bool = False) -> Exchange[list[dict[str, Any]]]:
    """Return one's subscriptions by name; those of everybody, for who may manage messaging."""
    rows: list[dict[str, Any]] = []
    while True:
        params: dict[str, Any] = {"limit": PAGE, **({"all": "true"} if everybodys else {})}
        params |= {"after": rows[-1]["name"]} if rows else {}
        page = (yield from object_of(ServerCall("GET", "/subscriptions", params)))["subscriptions"]
        rows += page
        if len(page) < PAGE:
            return rows


def delete_subscription(name: str) -> Exchange[None]:
    """Remove a subscription with its place and its dead letters."""
    yield ServerCall("DELETE", _path(name))


def next_events(
    name: str, *, limit: int | None = None, lease: int | None = None, wait: int = 0
) -> Exchange[dict[str, Any]]:  # fmt: skip
    """Take the next events under a lease; wait so many seconds for some, 60 at most.

    `cursor` and `lease` are for `ack_events`. What is not acknowledged when the lease is over is given out again.
    """
    params = {"limit": limit, "lease": lease, "wait": wait}
    given_params = {key: value for key, value in params.items() if value is not None}
    return (yield from object_of(ServerCall("GET", _path(name) + "/next", given_params, wait=wait)))


def ack_events(name: str, cursor: str, lease: str | None = None) -> Exchange[dict[str, Any]]:
    """Say that everything through a cursor was taken. A repeat changes nothing.

    Conflict where others have the events meanwhile.
    """
    body = {"cursor": cursor, **({"lease": lease} if lease else {})}
    return (
        yield from object_of(ServerCall("POST", _path(name) + "/ack", content=orjson.dumps(body), headers=JSON_BODY))
    )


def nack_event(name: str, event_id: str, reason: str, *, retry_in: float | None = None) -> Exchange[dict[str, Any]]:
    """Say that an event could not be taken. It is given again after so many seconds, and its dataset waits for it."""
    body = {"event_id": event_id, "reason": reason, **({"retry_in": retry_in} if retry_in is not None else {})}
    return (
        yield from object_of(ServerCall("POST", _path(name) + "/nack", content=orjson.dumps(body), headers=JSON_BODY))
    )


def seek_subscription(name: str, *, cursor: str = "", time: str = "") -> Exchange[dict[str, Any]]:
    """Let a subscription go on after a cursor (also `start` and `head`), or after a moment."""
    body = {"cursor": cursor} if cursor else {"time": time}
    return (
        yield from object_of(ServerCall("POST", _path(name) + "/seek", content=orjson.dumps(body), headers=JSON_BODY))
    )


def subscription_dead_letters(name: str, *, after: int = 0) -> Exchange[list[dict[str, Any]]]:
    """Return the next dead letters of a subscription after an id, the oldest first."""
    call = ServerCall("GET", _path(name) + "/dead-letters", {"limit": PAGE, "after": after})
    return list((yield from object_of(call))["dead_letters"])


def redrive_dead_letter(name: str, id: int) -> Exchange[dict[str, Any]]:
    """Let the server give a dead letter out again. Conflict where its dataset changed again since."""
    return (yield from object_of(ServerCall("POST", f"{_path(name)}/dead-letters/{id}/redrive")))


def changes_since(since: str, conditions: Json | None = None, *, wait: int = 0) -> Exchange[dict[str, Any]]:
    """Return a page of what changed after a cursor, `start`, `head` or a moment; go on from its `cursor`.

    conditions: parameters of GET /changes: filter, collections, types, bbox, format, limit.
    """
    params = {**(conditions or {}), "since": since, **({"wait": wait} if wait else {})}
    return (yield from object_of(ServerCall("GET", "/changes", params, wait=wait)))


def _path(name: str) -> str:
    return f"/subscriptions/{quote(name, safe='')}"
