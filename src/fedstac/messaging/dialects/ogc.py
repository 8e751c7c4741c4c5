"""OGC API Publish-Subscribe (draft 25-030): a CloudEvent whose data is a GeoJSON feature.

An event has the whole new state, so a change is `replace`; `update` would be a part. A deletion has the id as plain
text. `collection` is the extension attribute that eoapi-notifier writes; `operation` and `resourceid` say in a deletion
what the feature's properties say otherwise.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from fedstac.domain import events
from fedstac.domain.events import LoggedEvent
from fedstac.messaging.dialects import (
    JSON_TYPE,
    Delivery,
    Json,
    Operation,
    WireMessage,
    collection_address,
    item_address,
    parse_event,
)
from fedstac.messaging.dialects.cloudevents import STRUCTURED

TYPE: Final = "org.ogc.api.collection"
TEXT_TYPE, GEOJSON = "text/plain", "application/geo+json"
VERBS: Final = {Operation.CREATE: "create", Operation.UPDATE: "replace", Operation.DELETE: "delete"}
OF_COLLECTIONS: Final = {
    events.COLLECTION_CREATED: Operation.CREATE,
    events.COLLECTION_UPDATED: Operation.UPDATE,
    events.COLLECTION_DELETED: Operation.DELETE,
}


def write(event: LoggedEvent, delivery: Delivery) -> WireMessage:
    """Return an event as OGC's readers take it. A feature that is too large for a message is a link to it."""
    attributes, data = _collection(event, delivery) if event.dataset is None else _item(event, delivery)
    value = orjson.dumps({**attributes, "data": data})
    if len(value) > delivery.largest_value:
        rel, media_type = ("collection", JSON_TYPE) if event.dataset is None else ("item", GEOJSON)
        link = {"href": attributes["subject"], "rel": rel, "type": media_type}
        value = orjson.dumps({**attributes, "data": link})
    return WireMessage({"content-type": STRUCTURED}, value)


def _item(event: LoggedEvent, delivery: Delivery) -> tuple[Json, Any]:
    change = parse_event(event, delivery)
    attributes = {
        **_attributes(change.envelope, f"{TYPE}.item", change.operation),
        "source": collection_address(delivery, change.collection),
        "subject": item_address(delivery, change.collection, change.id),
        "collection": change.collection,
        "resourceid": change.id,
    }
    if change.is_gone:
        return attributes, change.id
    about = {"pubtime": change.envelope["time"], "operation": change.operation, "resourceId": change.id}
    item = change.item
    return attributes, {**item, "properties": {**item["properties"], **about}}


def _collection(event: LoggedEvent, delivery: Delivery) -> tuple[Json, Any]:
    envelope = orjson.loads(event.text)
    data = envelope.pop("data")
    operation = OF_COLLECTIONS[event.type]
    attributes = {
        **_attributes(envelope, TYPE, operation),
        "source": f"{delivery.api_url}/collections",
        "subject": collection_address(delivery, event.collection),
        "collection": event.collection,
        "resourceid": event.collection,
    }
    is_gone = operation is Operation.DELETE or data.get("document") is None
    return attributes, event.collection if is_gone else data["document"]


def _attributes(envelope: Json, prefix: str, operation: Operation) -> dict[str, Any]:
    trace = {"traceparent": envelope["traceparent"]} if "traceparent" in envelope else {}
    return {
        "specversion": "1.0",
        "id": envelope["id"],
        "type": f"{prefix}.{VERBS[operation]}",
        "time": envelope["time"],
        "datacontenttype": TEXT_TYPE if operation is Operation.DELETE else JSON_TYPE,
        "operation": operation,
        **trace,
    }
