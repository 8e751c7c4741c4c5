"""Formats of a sink or a subscription: what a logged event looks like where it goes. `DIALECTS` is their table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final

import orjson

from fedstac.domain.errors import BadRequest
from fedstac.domain.events import EventFormat, LoggedEvent
from fedstac.domain.subscriptions import ChangeKind, SubscriberEvent
from fedstac.messaging import dialects
from fedstac.messaging.dialects import (
    JSON_TYPE,
    KAFKA_PREFIX,
    PREFIX,
    Delivery,
    Dialect,
    Operation,
    TooLarge,
    ascii_text,
    cloudevents,
    crud,
    esgf,
    ogc,
    overview,
    resource,
    wis2,
)
from fedstac.messaging.sinks import OutgoingEvent

__all__ = [
    "DIALECTS", "KAFKA_PREFIX", "PREFIX", "Encoder", "EventFormat", "TooLarge", "Unwritable", "check_key_template",
    "schema_of", "unwritable",
]  # fmt: skip

LARGEST_VALUE: Final = 8 << 20  # bytes; brokers are set up for messages a little larger
TRACEPARENT: Final = ',"traceparent":"'
PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
PLACEHOLDERS: Final = ("id", "collection", "lineage", "event_id")
LONGEST_KEY: Final = 1000
LINEAGE: Final = "{lineage}"
ID: Final = "{id}"
DATASETS: Final = "datasets"
MOST_IN_BATCH: Final = 500
NATIVE: Final = Dialect(
    cloudevents.write_structured, LINEAGE, "cloudevents", is_native=True, is_for_nodes=True,
    content_type=cloudevents.STRUCTURED,
)  # fmt: skip
DIALECTS: Final = {
    EventFormat.CLOUDEVENTS: NATIVE,
    EventFormat.CLOUDEVENTS_BINARY: replace(
        NATIVE, write=cloudevents.write_binary, schema="cloudevents-binary", content_type=JSON_TYPE
    ),
    EventFormat.ESGF: Dialect(esgf.write, ID, "esgf", is_for_nodes=True),
    EventFormat.OGC: Dialect(
        ogc.write,
        LINEAGE,
        "ogc",
        collections=frozenset(dialects.ABOUT_COLLECTIONS),
        names_addresses=True,
        content_type=cloudevents.STRUCTURED,
    ),
    EventFormat.WIS2: Dialect(wis2.write, LINEAGE, "wis2", names_addresses=True, content_type=ogc.GEOJSON),
    EventFormat.OVERVIEW: Dialect(overview.write, ID, "overview", has_ascii_keys=True),
    EventFormat.RESOURCE: Dialect(resource.write, resource.KEY, "resource", has_ascii_keys=True),
    EventFormat.CRUD: Dialect(crud.write, ID, "crud", content_type=cloudevents.STRUCTURED),
}


@dataclass(frozen=True, slots=True)
class Unwritable:
    """An event of the log that a format cannot write, and why: it is too large, or fedstac has a fault."""

    event: LoggedEvent
    reason: str


def unwritable(event: LoggedEvent, error: Exception) -> Unwritable:
    """Return what is told of an event whose writing raised an error."""
    fault = str(error) if isinstance(error, TooLarge) else f"a fault in fedstac, {type(error).__name__}: {error}"
    return Unwritable(event, fault)


@dataclass(frozen=True, slots=True)
class Encoder:
    """How one sink or subscription gets its events.

    `key_template`: text with {id}, {collection}, {lineage}, {event_id}; empty: the format's own.
    `feed_url`: the public address of GET /events, where an event can be had that is too large for a message; it stands
    for the address of this node. `topic`: as the receiver knows it, for formats that name it.
    """

    format: EventFormat = EventFormat.CLOUDEVENTS
    key_template: str = ""
    header_prefix: str = PREFIX
    feed_url: str = ""
    largest_value: int = LARGEST_VALUE
    topic: str = DATASETS

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.format]

    def takes(self, event_type: str) -> bool:
        """Return whether the format can tell an event of this type: most know no events of collections."""
        return self.dialect.takes(event_type)

    def tells(self, event: LoggedEvent) -> bool:
        """Return whether the format can tell this event: most know none without what it says of its dataset."""
        return self.dialect.tells(event)

    def encode(self, event: LoggedEvent, previous_pos: int, operation: Operation | None = None) -> OutgoingEvent:
        """Return an event that the format tells, as it goes out after the event at `previous_pos`.

        operation: what it is to this reader, if they do not see what an outsider does: CREATE where a dataset enters
        what they follow. An event of the type `events.LEFT` needs no more in its data than `collection` and `id`.
        TooLarge where the message is larger than `largest_value`, and the format has no form by reference.
        """
        traceparent = _traceparent(event.text)
        headers = {"traceparent": traceparent} if traceparent else {}
        message = self.dialect.write(event, self._delivery(operation))
        if len(message.value) > self.largest_value:
            raise TooLarge(
                f"a message of {len(message.value)} bytes is too large: {self.largest_value} are the most here, and "
                f"the format {self.format} has no form by reference; read the dataset itself, or follow in the format "
                f"{EventFormat.CLOUDEVENTS}"
            )
        return OutgoingEvent(
            cursor=event.cursor, previous_pos=previous_pos, event_id=event.event_id, key=self.key_of(event),
            project=event.collection, event_type=event.type, headers={**headers, **message.headers},
            value=message.value,
        )  # fmt: skip

    def encode_for(self, subscriber_event: SubscriberEvent) -> OutgoingEvent:
        """Return an event that the format tells, as a subscriber gets it."""
        event = subscriber_event.event
        operation = Operation.CREATE if subscriber_event.kind is ChangeKind.ENTERED else None
        return self.encode(event, event.cursor.pos - 1, operation)

    @property
    def lacks_address(self) -> bool:
        """Whether messages lead to addresses of this node, and nobody said what they are."""
        return self.dialect.names_addresses and not self.feed_url.startswith(("http://", "https://"))

    def key_of(self, event: LoggedEvent) -> str:
        """Return the key of an event's message: the same for a dataset's creation and its deletion."""
        item_id = event.dataset or event.collection
        values = {"id": item_id, "collection": event.collection, "lineage": event.key, "event_id": event.event_id}
        key = PLACEHOLDER.sub(lambda match: values[match[1]], self.key_template or self.dialect.key)
        return ascii_text(key) if self.dialect.has_ascii_keys else key

    def in_batches(
        self, outgoing_events: Sequence[OutgoingEvent], logged: Mapping[str, LoggedEvent]
    ) -> list[OutgoingEvent]:
        """Return events with those in one message that follow from one cause and come one after the other.

        Only in `crud`, and only under one key: so no reader gets a deletion before the creation. logged: by event id.
        """
        if self.format is not EventFormat.CRUD:
            return list(outgoing_events)
        delivery = self._delivery()
        batches: list[list[OutgoingEvent]] = []
        last_name = None
        for event in outgoing_events:
            name = crud.batch_name(logged[event.event_id], delivery)
            if name is not None and name == last_name and _follows(event, batches[-1]):
                batches[-1].append(event)
            else:
                batches.append([event])
            last_name = name
        return [message for batch in batches for message in self._as_one(batch, logged)]

    def _as_one(self, batch: Sequence[OutgoingEvent], logged: Mapping[str, LoggedEvent]) -> list[OutgoingEvent]:
        """Return a batch as one message, or as several where one is too large."""
        first, last = batch[0], batch[-1]
        if first is last:
            return [first]
        message = crud.batch([logged[event.event_id] for event in batch], self._delivery())
        if len(message.value) > self.largest_value:
            middle = len(batch) // 2
            return self._as_one(batch[:middle], logged) + self._as_one(batch[middle:], logged)
        return [
            replace(
                last, previous_pos=first.previous_pos, value=message.value,
                batch=tuple(event.cursor.pos for event in batch[:-1]),
            )
        ]  # fmt: skip

    def _delivery(self, operation: Operation | None = None) -> Delivery:
        api_url = self.feed_url.removesuffix("/events")
        return Delivery(api_url, self.topic, self.header_prefix, self.largest_value, operation)


def _follows(event: OutgoingEvent, batch: Sequence[OutgoingEvent]) -> bool:
    """Return whether an event may go with a batch: nothing is between them, and they have one key."""
    last = batch[-1]
    is_next = event.previous_pos == last.cursor.pos and event.cursor.epoch == last.cursor.epoch
    return is_next and event.key == last.key and len(batch) < MOST_IN_BATCH


@cache
def schema_of(form: EventFormat) -> dict[str, Any]:
    """Return the JSON Schema of the values of a format's messages."""
    folder = resources.files(dialects) / "schemas"
    schema: dict[str, Any] = orjson.loads((folder / f"{DIALECTS[form].schema}.json").read_bytes())
    return schema


def check_key_template(template: str) -> str:
    """Return a template of keys. BadRequest where it is none."""
    unknown = [name for name in PLACEHOLDER.findall(template) if name not in PLACEHOLDERS]
    if unknown or set("{}") & set(PLACEHOLDER.sub("", template)):
        names = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise BadRequest(f"{template[:80]!r} is no template of a key; write text with {names}: dataset_embedded_{{id}}")
    if len(template) > LONGEST_KEY:
        raise BadRequest(f"a template of a key has {LONGEST_KEY} characters at most")
    return template


def _traceparent(text: str) -> str | None:
    begin = text.find(TRACEPARENT, 0, text.index(cloudevents.DATA))
    return text[begin + len(TRACEPARENT) : text.index('"', begin + len(TRACEPARENT))] if begin >= 0 else None
