"""What an event is to a subscriber, as tables: entered, changed, left, or nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import orjson
import pytest

from fedstac.domain import events
from fedstac.domain.access import View
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import Cursor, LoggedEvent
from fedstac.domain.subscriptions import (
    DELIVERED_TYPES,
    ChangeKind,
    FilterCache,
    LoggedDataset,
    LogPage,
    Subscriber,
    SubscriberEvent,
    SubscriptionFilter,
    changes_for,
)
from fedstac.runtime.budget import Abandoned

WARM: dict[str, Any] = {"cql2": {"op": "=", "args": [{"property": "variable"}, "tas"]}}


class RightsByState:
    """Shows datasets by their state; published ones wholly."""

    def __init__(self, views: dict[str, View] | None = None) -> None:
        self._views = views or {}

    def view_of(self, subscriber: Subscriber, dataset: LoggedDataset) -> View:
        return self._views.get(dataset.access.state.value, View.FILES)

    view_before = view_now = view_of

    def could_see(self, subscriber: Subscriber, dataset: LoggedDataset) -> bool:
        return self.view_of(subscriber, dataset) is not View.NOTHING

    def view_if(self, subscriber: Subscriber, dataset: LoggedDataset, *, holds_grant: bool) -> View:
        return self.view_of(subscriber, dataset) if holds_grant else View.NOTHING

    def event_for(self, subscriber: Subscriber, event: LoggedEvent) -> LoggedEvent:
        return event


def logged(
    pos: int, event_type: str = events.UPDATED, *, variable: str | None = "tas", state: str = "published",
    previous_state: str | None = "published", lon: float = 1, **data: Any,
) -> LoggedEvent:  # fmt: skip
    """Return an event of the one dataset; without a variable, one whose document is gone."""
    document = {
        "collection": "plain", "id": "thing", "geometry": {"type": "Point", "coordinates": [lon, 0]},
        "properties": {"datetime": "2020-01-01T00:00:00Z", "variable": variable},
        "assets": {"data": {"href": "https://example.org/secret.nc"}},
    }  # fmt: skip
    members = {
        "collection": "plain", "id": "thing", "base_id": "thing", "version": None, "seq": pos, "state": state,
        "latest": True, "created": "2020-01-01T00:00:00Z", "updated": "2020-01-01T00:00:00Z", "cv": None,
        "publisher": "anna", "digest": "00", "previous_state": previous_state, "actor": "anna", **data,
        **({"document": document} if variable else {}),
    }  # fmt: skip
    event_id = str(UUID(int=pos))
    envelope = {
        "specversion": "1.0", "id": event_id, "source": "west", "type": event_type, "time": "2020-01-01T00:00:00Z",
        "datacontenttype": "application/json", "correlationid": "c", "subject": "plain/thing", "sequence": str(pos),
        "partitionkey": "plain/thing", "data": members,
    }  # fmt: skip
    text = orjson.dumps(envelope).decode()
    return LoggedEvent(Cursor(1, pos), event_id, "plain/thing", "plain", "thing", pos, event_type, text)


def one_delivery(
    event: LoggedEvent, before: LoggedEvent | None, views: dict[str, View] | None = None, **conditions: Any
) -> SubscriberEvent | None:
    """Return what the second of two events is to a subscriber."""
    subscriber = Subscriber("s", SubscriptionFilter.parse(conditions))
    page = LogPage.read([event], {event.cursor.pos: before}, lambda data: None)
    got = changes_for(page, [subscriber], RightsByState(views))["s"]
    assert len(got) <= 1
    return got[0] if got else None


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("tas", "tas", ChangeKind.CHANGED),
        ("pr", "tas", ChangeKind.ENTERED),
        ("tas", "pr", ChangeKind.LEFT),
        ("pr", "pr", None),
    ],
)
def test_a_filter_is_asked_before_and_after(before: str, after: str, kind: ChangeKind | None) -> None:
    delivery = one_delivery(logged(2, variable=after), logged(1, variable=before), **WARM)
    assert (delivery and delivery.kind) == kind


@pytest.mark.parametrize(
    ("event", "before", "kind"),
    [
        (logged(2, events.PUBLISHED, previous_state=None), None, ChangeKind.ENTERED),
        (logged(2, events.PUBLISHED, previous_state=None, variable="pr"), None, None),
        # retention dropped what was before: the subscriber may have it
        (logged(2), None, ChangeKind.ENTERED),
        (logged(2, variable="pr"), None, ChangeKind.LEFT),
        # the text before was taken by the deletion: whoever may have it is told
        (logged(2, events.DELETED, variable=None, state="deleted"), logged(1, variable=None), ChangeKind.LEFT),
        (logged(2, events.DELETED, variable=None, state="deleted"), logged(1, variable="pr"), None),
        (logged(3, events.PURGED, variable=None, state="purged"),
         logged(2, events.DELETED, variable=None, state="deleted"), ChangeKind.LEFT),
        # it says nothing any more, and the deletion follows
        (logged(2, variable=None), logged(1), None),
        # after a tombstone everything is new
        (logged(3), logged(2, events.DELETED, variable=None, state="deleted"), ChangeKind.ENTERED),
    ],
)  # fmt: skip
def test_what_the_log_no_longer_says(event: LoggedEvent, before: LoggedEvent | None, kind: ChangeKind | None) -> None:
    delivery = one_delivery(event, before, **WARM)
    assert (delivery and delivery.kind) == kind


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("published", "marked", ChangeKind.LEFT),
        ("marked", "published", ChangeKind.ENTERED),
        ("marked", "marked", None),
        ("published", "retracted", ChangeKind.CHANGED),
    ],
)
def test_what_may_not_be_seen_is_not_there(before: str, after: str, kind: ChangeKind | None) -> None:
    views = {"marked": View.NOTHING, "retracted": View.METADATA}
    delivery = one_delivery(logged(2, state=after), logged(1, state=before), views)
    assert (delivery and delivery.kind) == kind


def test_the_name_of_what_was_perhaps_never_to_be_seen_is_not_told() -> None:
    assert one_delivery(logged(2, state="marked"), None, {"marked": View.NOTHING}) is None
    gone = logged(2, events.DELETED, variable=None, state="deleted")
    assert one_delivery(gone, logged(1, variable=None), {"deleted": View.NOTHING}) is None


@pytest.mark.parametrize(
    ("view", "hidden", "there"),
    [
        (View.METADATA, ("secret.nc", '"actor"'), ("variable",)),
        (View.FILES, ('"actor"',), ("secret.nc",)),
        (View.EVERYTHING, (), ("secret.nc", '"actor"')),
    ],
)
def test_a_reader_gets_what_they_may_see(view: View, hidden: tuple[str, ...], there: tuple[str, ...]) -> None:
    delivery = one_delivery(logged(2), logged(1), {"published": view})
    assert delivery is not None
    assert [word for word in hidden if word in delivery.event.text] == []
    assert [word for word in there if word not in delivery.event.text] == []


def test_work_for_a_request_that_ended_is_given_up() -> None:
    page = LogPage.read([logged(1), logged(2)], {1: None, 2: logged(1)}, lambda data: None)
    calls: list[int] = []

    def checkpoint() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise Abandoned

    with pytest.raises(Abandoned):
        changes_for(page, [Subscriber("s", SubscriptionFilter.parse({}))], RightsByState(None), checkpoint)


def test_left_says_no_more_than_the_name_and_has_an_id_of_its_own() -> None:
    delivery = one_delivery(logged(2, variable="pr"), logged(1), **WARM)
    assert delivery is not None
    event = orjson.loads(delivery.event.text)
    assert (event["type"], event["causationid"]) == (events.LEFT, str(UUID(int=2)))
    assert set(event["data"]) == {"collection", "id", "base_id", "version", "seq"}
    assert delivery.event.event_id == event["id"] != event["causationid"]
    again = one_delivery(logged(2, variable="pr"), logged(1), **WARM)
    assert again == delivery
    assert list(event)[-1] == "data"  # as in every stored event: formats.py cuts there


@pytest.mark.parametrize(
    ("conditions", "is_delivered"),
    [
        ({}, True),
        ({"collections": ["plain"]}, True),
        ({"collections": ["CMIP6"]}, False),
        ({"types": ["dataset.updated"]}, True),
        ({"types": ["org.fedstac.dataset.updated.v1"]}, True),
        ({"types": ["dataset.published"]}, False),
        ({"bbox": [0, -1, 2, 1]}, True),
        ({"bbox": [2, -1, 3, 1]}, False),
        ({"cql2": "variable = 'tas' AND latest = true"}, True),
        ({"cql2": "retracted = true"}, False),
        ({"cql2": "no_such_property = 1"}, False),
    ],
)
def test_conditions(conditions: dict[str, Any], is_delivered: bool) -> None:
    assert (one_delivery(logged(2), logged(1), **conditions) is not None) is is_delivered


@pytest.mark.parametrize(
    "value",
    [
        [], {"type": "x"}, {"collections": []}, {"collections": "plain"}, {"types": ["dataset.changed"]},
        {"cql2": "a ="}, {"cql2": {"op": "?"}}, {"bbox": [1]}, {"cql2": "\"alternate:name\" = 'east'"},
    ],
)  # fmt: skip
def test_a_filter_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(BadRequest):
        SubscriptionFilter.parse(value)


def test_every_type_of_an_event_can_be_wanted() -> None:
    names = {value for value in vars(events).values() if isinstance(value, str) and value.endswith(".v1")}
    assert names - DELIVERED_TYPES == {events.CURRENT, events.COLLECTION_CURRENT}  # of snapshots


def test_filters_of_one_text_are_read_once_and_those_used_last_are_kept() -> None:
    texts = [f'{{"cql2":"size = {number}"}}' for number in range(10, 14)]
    cache = FilterCache(most_characters=3 * len(texts[0]))
    first, second, third = [cache.read(text) for text in texts[:3]]
    assert [cache.read(text) for text in texts[:3]] == [first, second, third]
    assert cache.read(texts[0]) is first
    cache.read(texts[3])
    assert len(cache) == 3
    assert (cache.read(texts[0]), cache.read(texts[1]) is second) == (first, False)
    with pytest.raises(BadRequest):
        cache.read('{"no": "member"}')
    assert len(cache) == 3
    cache.read('{"cql2":"title = \'' + "a" * 200 + "'\"}")  # more than it keeps at all
    assert len(cache) == 0
