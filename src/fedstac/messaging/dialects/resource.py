"""Resources for services that search: GHGA's SearchableResource and its kind, with the dataset's item as content."""

from __future__ import annotations

from typing import Final

from fedstac.domain.events import LoggedEvent
from fedstac.messaging.dialects import Delivery, WireMessage, parse_event
from fedstac.messaging.dialects.ghga import message

UPSERTED, DELETED = "searchable_resource_upserted", "searchable_resource_deleted"
CLASS_NAME: Final = "DatasetEmbedded"
KEY: Final = "dataset_embedded_{id}"


def write(event: LoggedEvent, delivery: Delivery) -> WireMessage:
    """Return an event as a service reads it that searches."""
    change = parse_event(event, delivery)
    resource = {"accession": change.id, "class_name": CLASS_NAME}
    if change.is_gone:
        return message(change, DELETED, resource, delivery)
    return message(change, UPSERTED, {**resource, "content": change.item}, delivery)
