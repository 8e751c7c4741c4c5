"""What services made with GHGA's hexkit have in common: how a message tells its type, and that all of it is ASCII.

In Kafka the headers `type`, `event_id` and `correlation_id` are hexkit's. Over HTTP and in NATS, where it reads
nothing, a message is a CloudEvent in binary mode with the same type.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any
from uuid import UUID

from fedstac.messaging.dialects import JSON_TYPE, Delivery, Json, ParsedEvent, WireMessage, cloudevent_headers


def message(change: ParsedEvent, event_type: str, value: Json, delivery: Delivery) -> WireMessage:
    """Return a message of a type. The value is ASCII: hexkit reads nothing else."""
    body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    return WireMessage({**_headers(change.envelope, event_type, delivery), "content-type": JSON_TYPE}, body)


def _headers(envelope: Json, event_type: str, delivery: Delivery) -> dict[str, str]:
    if delivery.is_kafka:
        correlation = _random_looking(str(envelope.get("correlationid", envelope["id"])))
        return {"type": event_type, "event_id": str(envelope["id"]), "correlation_id": str(correlation)}
    names = ("specversion", "id", "source", "time", "subject", "partitionkey")
    attributes: dict[str, Any] = {name: envelope[name] for name in names if name in envelope}
    return cloudevent_headers({**attributes, "type": event_type}, delivery)


def _random_looking(text: str) -> UUID:
    """Return an id of version 4 for a text, always the same: hexkit takes no other version of a correlation id."""
    return UUID(bytes=sha256(text.encode()).digest()[:16], version=4)
