"""What a service behind Dapr reads: an id and what became of it, in the envelope that Dapr itself would make.

Who wants more fetches the dataset. Several deletions that follow from one and have the same key can be one message
with `ids` (`batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from fedstac.domain.events import CrudOperation, LoggedEvent
from fedstac.messaging.dialects import JSON_TYPE, Delivery, Json, Operation, WireMessage, parse_event
from fedstac.messaging.dialects.cloudevents import STRUCTURED, envelope

TYPE: Final = "com.dapr.event.sent"  # of what is published through Dapr without an envelope of its own
PUBSUB: Final = "fedstac"


OPERATIONS: Final = {
    Operation.CREATE: CrudOperation.CREATE,
    Operation.UPDATE: CrudOperation.UPDATE,
    Operation.DELETE: CrudOperation.DELETE,
}


def write(event: LoggedEvent, delivery: Delivery) -> WireMessage:
    """Return an event as an id and an operation."""
    change = parse_event(event, delivery)
    data = {"id": change.id, "collection": change.collection, "operation": OPERATIONS[change.operation]}
    return _message(change.envelope, data, delivery)


def batch(events: Sequence[LoggedEvent], delivery: Delivery) -> WireMessage:
    """Return deletions of one `batch_name` as one message; it has the id of the last one."""
    last = parse_event(events[-1], delivery)
    ids = [event.dataset for event in events]
    data = {"ids": ids, "collection": last.collection, "operation": CrudOperation.DELETE}
    return _message({**last.envelope, "subject": last.collection}, data, delivery)


def batch_name(event: LoggedEvent, delivery: Delivery) -> tuple[str, str] | None:
    """Return what the events of one batch have in common: the event that they follow from, and their collection.

    None where an event is no deletion, or follows from none.
    """
    cause = envelope(event.text).get("causationid")
    if cause is None or not parse_event(event, delivery).is_gone:
        return None
    return str(cause), event.collection


def _message(attributes: Json, data: Json, delivery: Delivery) -> WireMessage:
    traceparent = attributes.get("traceparent")
    trace: dict[str, Any] = {"traceid": traceparent, "traceparent": traceparent} if traceparent else {}
    value = {
        "specversion": "1.0",
        "id": attributes["id"],
        "source": attributes["source"],
        "type": TYPE,
        "subject": attributes["subject"],
        "time": attributes["time"],
        "datacontenttype": JSON_TYPE,
        "topic": delivery.topic,
        "pubsubname": PUBSUB,
        **trace,
        "data": data,
    }
    return WireMessage({"content-type": STRUCTURED}, orjson.dumps(value))
