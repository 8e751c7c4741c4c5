"""Formats of a sink: what a logged event looks like in a broker's log. The stored text is spliced, not parsed.

CloudEvents 1.0 structured, CloudEvents binary (the attributes are headers, the value is `data`), and ESGF's KafkaEvent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote, unquote

import orjson

from fedstac.domain import events
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import LoggedEvent
from fedstac.messaging import esgf
from fedstac.messaging.sinks import OutgoingEvent

LARGEST_VALUE: Final = 8 << 20  # bytes; brokers are set up for messages a little larger
KAFKA_PREFIX, PREFIX = "ce_", "ce-"  # of the attributes in binary mode: CloudEvents bindings for Kafka; NATS and HTTP
STRUCTURED: Final = "application/cloudevents+json; charset=UTF-8"
JSON: Final = "application/json"
PLACE: Final = ("pos", "epoch")
DATA: Final = ',"data":'
TRACEPARENT: Final = ',"traceparent":"'
PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
PLACEHOLDERS: Final = ("id", "collection", "lineage", "event_id")
LONGEST_KEY: Final = 1000


class EventFormat(StrEnum):
    """How an event is written into a sink."""

    CLOUDEVENTS = "cloudevents"
    CLOUDEVENTS_BINARY = "cloudevents-binary"
    ESGF = "esgf"


@dataclass(frozen=True, slots=True)
class Encoder:
    """How one sink gets its events.

    `key_template`: text with {id}, {collection}, {lineage}, {event_id}; empty: the lineage, or the id in ESGF's format.
    `feed_url`: the public address of GET /events, where an event can be had that is too large for a message.
    """

    format: EventFormat = EventFormat.CLOUDEVENTS
    key_template: str = ""
    header_prefix: str = PREFIX
    feed_url: str = ""
    largest_value: int = LARGEST_VALUE

    def takes(self, event_type: str) -> bool:
        """Return whether the format can tell an event of this type: ESGF knows no events of collections."""
        return self.format is not EventFormat.ESGF or not event_type.startswith(events.COLLECTION_PREFIX)

    def tells(self, event: LoggedEvent) -> bool:
        """Return whether the format can tell this event: ESGF knows none without what it says of its item."""
        is_blank = self.format is EventFormat.ESGF and events.is_left_blank(event)
        return self.takes(event.type) and not is_blank

    def encode(self, event: LoggedEvent, previous_pos: int) -> OutgoingEvent:
        """Return an event that the format takes, as it goes to a broker after the event at `previous_pos`."""
        traceparent = _traceparent(event.text)
        headers = {"traceparent": traceparent} if traceparent else {}
        match self.format:
            case EventFormat.CLOUDEVENTS:
                value = events.positioned(event.text, event.cursor).encode()
                headers["content-type"] = STRUCTURED
            case EventFormat.CLOUDEVENTS_BINARY:
                headers |= self._attributes(event)
                value = _data(event.text).encode()
            case EventFormat.ESGF:
                headers["content-type"] = JSON
                value = esgf.write(event)
        if len(value) > self.largest_value and self.format is not EventFormat.ESGF:
            headers, value = self._reference(event, headers)
        return OutgoingEvent(
            cursor=event.cursor, previous_pos=previous_pos, event_id=event.event_id, key=self._key(event),
            project=event.collection, event_type=event.type, headers=headers, value=value,
        )  # fmt: skip

    def _key(self, event: LoggedEvent) -> str:
        item_id = event.dataset or event.collection
        if not self.key_template:
            return item_id if self.format is EventFormat.ESGF else event.key
        values = {"id": item_id, "collection": event.collection, "lineage": event.key, "event_id": event.event_id}
        return PLACEHOLDER.sub(lambda match: values[match[1]], self.key_template)

    def _attributes(self, event: LoggedEvent) -> dict[str, str]:
        envelope = _envelope(event.text)
        attributes = {name: value for name, value in envelope.items() if name != "datacontenttype"}
        attributes |= {"pos": event.cursor.pos, "epoch": event.cursor.epoch}
        encoded = {f"{self.header_prefix}{name}": self._header(str(value)) for name, value in attributes.items()}
        return {**encoded, "content-type": str(envelope.get("datacontenttype", JSON))}

    def _header(self, value: str) -> str:
        """Return a value as a header takes it: with percent encoding but in Kafka, whose headers are UTF-8."""
        return value if self.header_prefix == KAFKA_PREFIX else quote(value, safe="!#$&'()*+,/:;<=>?@[\\]^_`{|}~")

    def _reference(self, event: LoggedEvent, headers: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
        """Return an event that is too large for a message: without `data`, with the address where its whole is.

        CloudEvents, extension `dataref`: a page of the feed with this event alone. `datadigest` is the sha-256 of the
        text of `data` there.
        """
        before = events.Cursor(event.cursor.epoch, event.cursor.pos - 1)
        reference = {
            "dataref": f"{self.feed_url}?after={before}&limit=1",
            "datadigest": f"sha-256:{hashlib.sha256(_data(event.text).encode()).hexdigest()}",
        }
        if self.format is EventFormat.CLOUDEVENTS_BINARY:
            reference_headers = {f"{self.header_prefix}{name}": self._header(text) for name, text in reference.items()}
            return {**headers, **reference_headers}, b""
        place = {"pos": event.cursor.pos, "epoch": event.cursor.epoch}
        return dict(headers), orjson.dumps({**place, **_envelope(event.text), **reference})


def read(headers: Mapping[str, str], value: bytes) -> dict[str, Any] | None:
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
        return {**attributes, **place, "datacontenttype": headers.get("content-type", JSON), **data}
    except (ValueError, LookupError):
        return None


def check_key_template(template: str) -> str:
    """Return a template of keys. BadRequest where it is none."""
    unknown = [name for name in PLACEHOLDER.findall(template) if name not in PLACEHOLDERS]
    if unknown or set("{}") & set(PLACEHOLDER.sub("", template)):
        names = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise BadRequest(f"{template[:80]!r} is no template of a key; write text with {names}: dataset_embedded_{{id}}")
    if len(template) > LONGEST_KEY:
        raise BadRequest(f"a template of a key has {LONGEST_KEY} characters at most")
    return template


def _envelope(text: str) -> dict[str, Any]:
    """Return the attributes of a stored event: what stands before `data`, the only member that is no plain value.

    No value can hold the text that is looked for: a quotation mark inside of one has a backslash before it.
    """
    envelope: dict[str, Any] = orjson.loads(text[: text.index(DATA)] + "}")
    return envelope


def _traceparent(text: str) -> str | None:
    begin = text.find(TRACEPARENT, 0, text.index(DATA))
    return text[begin + len(TRACEPARENT) : text.index('"', begin + len(TRACEPARENT))] if begin >= 0 else None


def _data(text: str) -> str:
    return text[text.index(DATA) + len(DATA) : -1]
