"""What outsiders get of events of datasets that are not open, as a table, in every dialect that is for them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fedstac.domain import events, outsiders
from fedstac.domain.events import Cursor, LoggedEvent

EVENT_ID = "00000000-0000-0000-0000-000000000001"


def logged(event_type: str = events.UPDATED, **data: Any) -> LoggedEvent:
    document = {"id": "thing", "properties": {}, "assets": {"data": {"href": "https://secret.example/a.nc"}}}
    members = {"collection": "plain", "id": "thing", "base_id": "thing", "version": None, "seq": 2,
               "state": "published", **data, "digest": "00", "previous_state": "published",
               "document": document}  # fmt: skip
    body = {"specversion": "1.0", "id": EVENT_ID, "type": event_type, "data": members}
    text = orjson.dumps(body).decode()
    return LoggedEvent(Cursor(1, 2), EVENT_ID, "plain/thing", "plain", "thing", 2, event_type, text)


def test_an_event_of_an_open_dataset_is_the_very_same() -> None:
    event = logged()
    assert outsiders.as_told(event) is event
    opened = logged(previous_access="private")
    assert outsiders.as_told(opened) is opened


def test_a_controlled_dataset_comes_without_the_addresses_of_its_files() -> None:
    event = outsiders.as_told(logged(access="controlled", unreferenced=[{"href": "https://secret.example/a.nc"}]))
    assert event is not None
    assert "secret" not in event.text
    assert orjson.loads(event.text)["data"]["document"]["assets"] == {}


@pytest.mark.parametrize("event_type", [events.PUBLISHED, events.UPDATED, events.RETRACTED, events.DELETED])
def test_nothing_is_told_of_a_private_dataset(event_type: str) -> None:
    assert outsiders.as_told(logged(event_type, access="private")) is None


def test_one_that_becomes_private_leaves_by_its_name_alone() -> None:
    event = outsiders.as_told(logged(access="private", previous_access="open"))
    assert event is not None
    assert event.type == events.LEFT
    assert set(orjson.loads(event.text)["data"]) == {"collection", "id", "base_id", "version", "seq"}
    assert outsiders.as_told(logged(access="private", previous_access="open")) == event, "the same whenever it is sent"


def test_a_level_that_nobody_knows_is_private() -> None:
    assert outsiders.as_told(logged(access="embargoed")) is None
