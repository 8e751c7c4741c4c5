"""What outsiders get of events of datasets that are not open, as a table, in every dialect that is for them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fedstac.domain import events, outsiders
from fedstac.domain.access import RecordAccess
from fedstac.domain.events import Cursor, LoggedEvent
from fedstac.domain.model import State
from fedstac.domain.policy import Level

OPEN = RecordAccess(State.PUBLISHED, Level.OPEN)
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
    assert outsiders.as_told(event, None) is event
    opened = logged(previous_access="private")
    assert outsiders.as_told(opened, OPEN) is opened


def test_a_controlled_dataset_comes_without_the_addresses_of_its_files() -> None:
    event = outsiders.as_told(logged(access="controlled", unreferenced=[{"href": "https://secret.example/a.nc"}]), None)
    assert event is not None
    assert "secret" not in event.text
    assert orjson.loads(event.text)["data"]["document"]["assets"] == {}


@pytest.mark.parametrize("event_type", [events.PUBLISHED, events.UPDATED, events.RETRACTED, events.DELETED])
def test_nothing_is_told_of_a_private_dataset(event_type: str) -> None:
    assert outsiders.as_told(logged(event_type, access="private"), None) is None


def test_one_that_becomes_private_leaves_by_its_name_alone() -> None:
    event = outsiders.as_told(logged(access="private", previous_access="open"), None)
    assert event is not None
    assert event.type == events.LEFT
    assert set(orjson.loads(event.text)["data"]) == {"collection", "id", "base_id", "version", "seq"}
    for now in (OPEN, RecordAccess(State.PUBLISHED, Level.PRIVATE)):
        again = outsiders.as_told(logged(access="private", previous_access="open"), now)
        assert again == event, "the same whenever it is sent"


def test_a_level_that_nobody_knows_is_private() -> None:
    assert outsiders.as_told(logged(access="embargoed"), None) is None


@pytest.mark.parametrize(
    ("state", "level", "shown"),
    [
        (State.PUBLISHED, Level.OPEN, "whole"),
        (State.PUBLISHED, Level.CONTROLLED, "bare"),
        (State.PUBLISHED, Level.PRIVATE, None),
        (State.RETRACTED, Level.OPEN, "bare"),
        (State.QUARANTINED, Level.OPEN, "bare"),
        (State.MARKED, Level.OPEN, None),
        (State.DELETED, Level.PRIVATE, None),
    ],
)
@pytest.mark.parametrize("event_type", [events.PUBLISHED, events.UPDATED, events.REPLACED])
def test_an_event_of_a_time_when_it_was_open_shows_no_more_than_the_dataset_does_now(
    event_type: str, state: State, level: Level, shown: str | None
) -> None:
    event = outsiders.as_told(logged(event_type), RecordAccess(state, level))
    assert (event is None) is (shown is None)
    if event is not None:
        assert ("secret" in event.text) is (shown == "whole")


@pytest.mark.parametrize("state", [State.MARKED, State.QUARANTINED, State.DELETED])
def test_an_event_by_which_a_dataset_goes_is_told_whatever_it_is_now(state: State) -> None:
    """Whoever has it has to learn that it is gone. A dialect tells its name alone."""
    event = outsiders.as_told(logged(state=state), RecordAccess(State.MARKED, Level.PRIVATE))
    assert event is not None


def test_a_departure_that_became_a_dead_letter_is_told_again() -> None:
    departure = outsiders.as_told(logged(access="private", previous_access="open"), OPEN)
    assert departure is not None
    assert outsiders.as_told(departure, RecordAccess(State.PUBLISHED, Level.PRIVATE)) == departure
