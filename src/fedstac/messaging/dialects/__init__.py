"""Dialects: what a logged event looks like to the programs that a sink or a subscription has. One module for each.

Each is made from the native event when it is delivered. Creation and deletion of a dataset have one key; the type tells
them apart. A dataset is gone for the readers of a dialect when it is for outsiders: deleted, purged, cleared, marked
for deletion, under quarantine, or no more theirs (`left`). `fedstac.messaging.formats` has the table of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

import orjson

from fedstac.domain import documents, events
from fedstac.domain.events import LoggedEvent
from fedstac.domain.model import WITHOUT_DOCUMENT, State

Json = Mapping[str, Any]
JSON_TYPE: Final = "application/json"
KAFKA_PREFIX, PREFIX = "ce_", "ce-"  # of the attributes in binary mode: CloudEvents bindings for Kafka; NATS and HTTP
SERVED_FILES: Final = (State.PUBLISHED,)  # in another state a dataset has no files for programs that hand them out
HIDDEN: Final = (*WITHOUT_DOCUMENT, State.MARKED, State.QUARANTINED)
HEADER_CHARACTERS: Final = "!#$&'()*+,/:;<=>?@[\\]^_`{|}~"  # that a header takes as they are, beside letters and digits
DATASET_PREFIX: Final = "org.fedstac.dataset."
ABOUT_COLLECTIONS: Final = (events.COLLECTION_CREATED, events.COLLECTION_UPDATED, events.COLLECTION_DELETED)


class TooLarge(ValueError):
    """A message is larger than its receiver takes, and its format has no form by reference."""


class Operation(StrEnum):
    """What an event is to somebody who sees a catalogue as an outsider does."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a dialect has to know of where its messages go.

    api_url: the public address of this node, without a slash at the end. topic: as the receiver knows it.
    header_prefix: of the attributes of CloudEvents in headers. largest_value: in bytes. operation: what the event is to
    this reader, where it is something else to an outsider.
    """

    api_url: str
    topic: str
    header_prefix: str
    largest_value: int
    operation: Operation | None = None

    @property
    def is_kafka(self) -> bool:
        return self.header_prefix == KAFKA_PREFIX


@dataclass(frozen=True, slots=True)
class WireMessage:
    """A message without its key: its headers and its value."""

    headers: Mapping[str, str]
    value: bytes


@dataclass(frozen=True, slots=True)
class Dialect:
    """How events are written for one kind of program.

    key: the template of its keys. schema: name of the JSON Schema of its values. content_type: of its values.
    is_native: it tells every event as it was written. Another one tells those of datasets, without such as say nothing
    any more (`events.is_left_blank`). is_for_nodes: a sink of it gets the whole log, and others what outsiders may read
    (domain/outsiders.py). collections: types of collections' events that it tells too. has_ascii_keys: its readers take
    no other characters in a key. names_addresses: its messages lead to addresses of this node.
    """

    write: Callable[[LoggedEvent, Delivery], WireMessage]
    key: str
    schema: str
    is_native: bool = False
    is_for_nodes: bool = False
    collections: frozenset[str] = field(default_factory=frozenset)
    has_ascii_keys: bool = False
    content_type: str = JSON_TYPE
    names_addresses: bool = False

    def takes(self, event_type: str) -> bool:
        """Return whether events of a type can be told."""
        return self.is_native or event_type.startswith(DATASET_PREFIX) or event_type in self.collections

    def tells(self, event: LoggedEvent) -> bool:
        """Return whether an event can be told."""
        return self.takes(event.type) and (self.is_native or not events.is_left_blank(event))


@dataclass(frozen=True, slots=True)
class ParsedEvent:
    """A dataset's event, parsed: its attributes, its data, and what it is to an outsider."""

    envelope: Json
    data: Json
    operation: Operation

    @property
    def collection(self) -> str:
        return str(self.data["collection"])

    @property
    def id(self) -> str:
        return str(self.data["id"])

    @property
    def is_gone(self) -> bool:
        return self.operation is Operation.DELETE

    @property
    def item(self) -> Json:
        """The item with its state as it is served; without its files where it is not to be used."""
        data = self.data
        document = data["document"] if data["state"] in SERVED_FILES else documents.without_files(data["document"])
        retraction = {"fedstac:retraction": data["retraction"]} if "retraction" in data else {}
        properties = {**document["properties"], **flags(data), "fedstac:state": data["state"], **retraction}
        return {**document, "properties": properties}


def parse_event(event: LoggedEvent, delivery: Delivery) -> ParsedEvent:
    """Return a dataset's event, parsed."""
    envelope = orjson.loads(event.text)
    data = envelope.pop("data")
    operation = operation_of(event.type, data)
    if delivery.operation is not None and operation is not Operation.DELETE:
        operation = delivery.operation
    return ParsedEvent(envelope, data, operation)


def operation_of(event_type: str, data: Json) -> Operation:
    """Return what a dataset's event is to an outsider."""
    if event_type == events.LEFT or data.get("document") is None or _is_hidden(data):
        return Operation.DELETE
    came_back = event_type in (events.PUBLISHED, events.RELEASED) or data.get("previous_state") in HIDDEN
    return Operation.CREATE if came_back else Operation.UPDATE


def _is_hidden(data: Json) -> bool:
    return data["state"] in HIDDEN or "quarantine" in data


def flags(data: Json) -> dict[str, Any]:
    """Return the properties that tell a dataset's state as ESGF's items have them."""
    return {
        "latest": data["latest"],
        "retracted": data["state"] not in SERVED_FILES,
        "created": data["created"],
        "updated": data["updated"],
    }


def served_assets(data: Json) -> Json:
    """Return the files of a dataset that may be handed out."""
    assets: Json = data["document"]["assets"] if data["state"] in SERVED_FILES else {}
    return assets


def item_address(delivery: Delivery, collection: str, dataset: str) -> str:
    """Return where a dataset is read."""
    return f"{collection_address(delivery, collection)}/items/{quote(dataset, safe='')}"


def collection_address(delivery: Delivery, collection: str) -> str:
    """Return where a collection is read."""
    return f"{delivery.api_url}/collections/{quote(collection, safe='')}"


def ascii_text(text: str) -> str:
    """Return a text with percent encoding of what is no printable ASCII."""
    return quote(text, safe=HEADER_CHARACTERS + '" ')


def cloudevent_headers(attributes: Json, delivery: Delivery) -> dict[str, str]:
    """Return the attributes of a CloudEvent as headers: with percent encoding but in Kafka, whose headers are UTF-8."""
    prefix = delivery.header_prefix
    return {
        f"{prefix}{name}": str(value) if delivery.is_kafka else quote(str(value), safe=HEADER_CHARACTERS)
        for name, value in attributes.items()
    }
