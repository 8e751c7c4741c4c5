"""CloudEvents 1.0: the native event with its place in the log. Structured, or binary with the attributes as headers.

The stored text is spliced, not parsed.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final
from urllib.parse import unquote

import orjson

from fedstac.domain import events
from fedstac.domain.events import LoggedEvent
from fedstac.messaging.dialects import (
    JSON_TYPE,
    KAFKA_PREFIX,
    PREFIX,
    Delivery,
    Json,
    WireMessage,
    cloudevent_headers,
)

STRUCTURED: Final = "application/cloudevents+json; charset=UTF-8"
PLACE: Final = ("pos", "epoch")
DATA: Final = ',"data":'


def write_structured(event: LoggedEvent, delivery: Delivery) -> WireMessage:
    """Return an event as JSON: all of it."""
    headers = {"content-type": STRUCTURED}
    value = events.positioned(event.text, event.cursor).encode()
    if len(value) <= delivery.largest_value:
        return WireMessage(headers, value)
    return WireMessage(headers, orjson.dumps({**_place(event), **envelope(event.text), **_reference(event, delivery)}))


def write_binary(event: LoggedEvent, delivery: Delivery) -> WireMessage:
    """Return an event whose value is `data` alone."""
    attributes = {**envelope(event.text), **_place(event)}
    content_type = str(attributes.pop("datacontenttype", JSON_TYPE))
    value = _data(event.text).encode()
    if len(value) > delivery.largest_value:
        attributes, value = attributes | _reference(event, delivery), b""
    return WireMessage({**cloudevent_headers(attributes, delivery), "content-type": content_type}, value)


def _place(event: LoggedEvent) -> dict[str, Any]:
    return {"pos": event.cursor.pos, "epoch": event.cursor.epoch}


def _reference(event: LoggedEvent, delivery: Delivery) -> dict[str, str]:
    """Return where an event is that is too large for a message, which then has no `data`.

    CloudEvents, extension `dataref`: a page of the feed with this event alone. `datadigest` is the sha-256 of the text
    of `data` there.
    """
    before = events.Cursor(event.cursor.epoch, event.cursor.pos - 1)
    return {
        "dataref": f"{delivery.api_url}/events?after={before}&limit=1",
        "datadigest": f"sha-256:{hashlib.sha256(_data(event.text).encode()).hexdigest()}",
    }


def envelope(text: str) -> dict[str, Any]:
    """Return the attributes of a stored event: what stands before `data`, the only member that is no plain value.

    No value can hold the text that is looked for: a quotation mark inside of one has a backslash before it.
    """
    attributes: dict[str, Any] = orjson.loads(text[: text.index(DATA)] + "}")
    return attributes


def _data(text: str) -> str:
    return text[text.index(DATA) + len(DATA) : -1]


def read(headers: Json, value: bytes) -> dict[str, Any] | None:
    """Return the event of a message in one of CloudEvents' forms; None where it has none. One too large has no `data`.

    A message without such headers is one in the structured form.
    """
    prefix = next((prefix for prefix in (KAFKA_PREFIX, PREFIX) if f"{prefix}specversion" in headers), None)
    try:
        if prefix is None:
            event = orjson.loads(value)
            return event if isinstance(event, dict) else None
        attributes: dict[str, Any] = {
            name.removeprefix(prefix): text if prefix == KAFKA_PREFIX else unquote(text)
            for name, text in headers.items() if name.startswith(prefix)
        }  # fmt: skip
        place = {name: int(attributes[name]) for name in PLACE}
        data = {"data": orjson.loads(value)} if value else {}
        return {**attributes, **place, "datacontenttype": headers.get("content-type", JSON_TYPE), **data}
    except (ValueError, LookupError):
        return None
