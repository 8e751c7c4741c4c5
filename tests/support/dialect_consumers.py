"""Consumers of dialects that keep what their messages say, as services do. They take a message twice without harm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fedstac.domain.events import EventFormat
from fedstac.messaging.sinks import OutgoingEvent

Json = dict[str, Any]
FULL_STATE: Final = (EventFormat.CLOUDEVENTS, EventFormat.OGC, EventFormat.OVERVIEW, EventFormat.RESOURCE)
BY_REFERENCE: Final = (EventFormat.WIS2, EventFormat.CRUD)
HIDDEN: Final = ("quarantined", "marked", "deleted", "purged", "cleared")


@dataclass
class DialectConsumer:
    """A service that reads one dialect: what it has by id. By reference it has addresses, which it fetches."""

    form: EventFormat
    datasets: dict[str, Any] = field(default_factory=dict)

    def take(self, message: OutgoingEvent) -> None:
        """Bring what it has up to date with a message of Kafka."""
        value = json.loads(message.value)
        name, state = self._read(value, message.headers)
        if state is None:
            self.datasets.pop(name, None)
        else:
            self.datasets[name] = state

    def _read(self, value: Json, headers: Mapping[str, str]) -> tuple[str, Any]:
        match self.form:
            case EventFormat.CLOUDEVENTS:
                data = value["data"]
                is_gone = "document" not in data or data["state"] in HIDDEN or "quarantine" in data
                return data["id"], None if is_gone else data
            case EventFormat.OGC:
                is_gone = value["type"].endswith(".delete")
                return value["resourceid"], None if is_gone else value["data"]
            case EventFormat.OVERVIEW | EventFormat.RESOURCE:
                is_gone = headers["type"].endswith("_deleted")
                return value["accession"], None if is_gone else value
            case EventFormat.WIS2:
                links = {link["rel"]: link["href"] for link in value["links"]}
                return value["properties"]["data_id"].partition("/")[2], links.get("item")
            case EventFormat.CRUD:
                data = value["data"]
                address = f"/collections/{data['collection']}/items/{data['id']}"
                return data["id"], None if data["operation"] == "DELETE" else address
            case _:
                raise AssertionError(f"nobody reads {self.form} here")
