"""Passages: what the log says of a dataset that a grant begins, or ceases, to open. Pure.

A grant may open all of a project at once, and none of its datasets changes. So subscriptions of whoever has the grant
would learn of each with its next change, or never. A passage is an event of one dataset for one person: it names both,
and the change that the dataset was at. What the person gets of it is made of the record when it is delivered
(domain/subscriptions.py). Where the dataset changed since, the event of that change tells them all that the passage
would: then they get nothing of the passage.

Passages are for subscriptions alone. No feed, sink or list shows them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from fedstac.domain.events import UPDATED, LoggedEvent
from fedstac.domain.grants import PASSAGE
from fedstac.domain.model import Record, rfc3339

Json = Mapping[str, Any]
ENVELOPE: Final = ("specversion", "id", "source", "time", "datacontenttype", "subject")


@dataclass(frozen=True, slots=True)
class GrantPassage:
    """Whose grant begins or ends to open a dataset. seq: of the dataset's last change then."""

    subject: str
    begins: bool
    collection: str
    dataset: str
    seq: int


@dataclass(frozen=True, slots=True)
class PassageText:
    """The text of a passage, and the digest of what it says."""

    text: str
    digest: bytes


def write(
    record: Record, *, subject: str, grant: UUID, begins: bool, event_id: UUID, origin: str, at: datetime, number: int
) -> PassageText:
    """Return the passage of a dataset as it is logged. number: among those of one beginning or end of the grant."""
    data = {
        "collection": record.collection, "id": record.id, "base_id": record.lineage.partition("/")[2],
        "version": record.version, "seq": record.seq, "state": record.state, "access": record.access,
        "subject": subject, "grant": str(grant), "begins": begins,
    }  # fmt: skip
    body = {
        "specversion": "1.0", "id": str(event_id), "source": origin, "type": PASSAGE, "time": rfc3339(at),
        "datacontenttype": "application/json", "subject": f"{record.collection}/{record.id}", "sequence": str(number),
        "partitionkey": record.lineage, "data": data,
    }  # fmt: skip
    return PassageText(orjson.dumps(body).decode(), hashlib.sha256(orjson.dumps(data)).digest())


def read(event: LoggedEvent) -> GrantPassage:
    """Return what a passage says."""
    data = orjson.loads(event.text)["data"]
    return GrantPassage(data["subject"], data["begins"], data["collection"], data["id"], data["seq"])


def among_its_dataset(event: LoggedEvent) -> LoggedEvent:
    """Return a logged event as subscriptions order it: a passage stands among the events of its dataset."""
    if event.type != PASSAGE:
        return event
    body = orjson.loads(event.text)
    return replace(event, key=body["partitionkey"], dataset=body["data"]["id"])


def with_state(body: Json, current: Json) -> dict[str, Any]:
    """Return a passage, parsed, as an event of its dataset. current: the dataset as a snapshot has it (events.current).

    It says nothing of the grant, and tells no change: the state before was the same.
    """
    data = {**current["data"], "previous_state": current["data"]["state"]}
    return {
        **{name: body[name] for name in ENVELOPE}, "type": UPDATED, "sequence": str(data["seq"]),
        "partitionkey": current["partitionkey"], "data": data,
    }  # fmt: skip
