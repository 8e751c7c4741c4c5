"""Dialects: every event of a dataset in each, judged by its JSON Schema, and by what its readers are promised."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import jsonschema_rs
import orjson
import pytest

from fedstac.domain import events, identifiers
from fedstac.domain.events import EventFormat, LoggedEvent
from fedstac.messaging.dialects import ABOUT_COLLECTIONS, Operation, wis2
from fedstac.messaging.dialects.overview import extension_of
from fedstac.messaging.formats import DIALECTS, KAFKA_PREFIX, PREFIX, Encoder, schema_of
from fedstac.messaging.sinks import OutgoingEvent
from tests.messaging import story

Json = dict[str, Any]
LOG = story.story()
DATASETS = [event for event in LOG if event.dataset]
FIRST = DATASETS[0]
FEED = "https://west.example/events"
OUTSIDERS = (EventFormat.OGC, EventFormat.WIS2, EventFormat.OVERVIEW, EventFormat.RESOURCE, EventFormat.CRUD)
ABSENT = (events.MARKED, events.QUARANTINED, events.DELETED, events.PURGED, events.CLEARED, events.LEFT)


def written(form: EventFormat, event: LoggedEvent, **values: Any) -> OutgoingEvent:
    """Return an event in a format, as a sink of Kafka gets it."""
    return Encoder(form, header_prefix=KAFKA_PREFIX, feed_url=FEED, **values).encode(event, 0)


def changed(event: LoggedEvent, change: Callable[[Json], object]) -> LoggedEvent:
    """Return an event whose document was changed."""
    whole = json.loads(event.text)
    change(whole["data"]["document"])
    return replace(event, text=orjson.dumps(whole).decode())


@pytest.mark.parametrize("form", EventFormat)
def test_every_event_is_as_the_schema_says(form: EventFormat) -> None:
    jsonschema_rs.meta.validate(schema_of(form))
    validator = jsonschema_rs.validator_for(schema_of(form), validate_formats=True)
    values = [json.loads(event.value) for event in story.encoded(form, [*LOG, story.left()])]
    assert values
    for value in values:
        validator.validate(value)
    assert not validator.is_valid({})


@pytest.mark.parametrize("form", EventFormat)
def test_creation_and_deletion_have_one_key(form: EventFormat) -> None:
    log = (*DATASETS, story.left())
    assert {event.type for event in log} >= {events.PUBLISHED, *ABSENT}
    for dataset in (story.FIRST["id"], story.SECOND["id"]):
        assert len({written(form, event).key for event in log if event.dataset == dataset}) == 1
    template = "dataset_embedded_{id}"
    assert {written(form, event, key_template=template).key for event in DATASETS} == {
        f"dataset_embedded_{story.FIRST['id']}", f"dataset_embedded_{story.SECOND['id']}",
    }  # fmt: skip


@pytest.mark.parametrize("form", EventFormat)
def test_formats_say_nothing_of_a_dataset_that_was_redacted(form: EventFormat) -> None:
    """But the log's own form, whose readers pass over it."""
    whole = json.loads(FIRST.text)
    whole["data"].pop("document")
    blank = replace(FIRST, text=orjson.dumps(whole).decode()[:-2] + events.REDACTED_END)
    assert events.is_left_blank(blank)
    is_native = form in (EventFormat.CLOUDEVENTS, EventFormat.CLOUDEVENTS_BINARY)
    assert Encoder(form).tells(blank) is is_native


def is_gone(form: EventFormat, message: OutgoingEvent) -> bool:
    """Return whether a message in a dialect says that a dataset is gone."""
    value = json.loads(message.value)
    match form:
        case EventFormat.OGC:
            return bool(value["type"] == "org.ogc.api.collection.item.delete" and value["data"] == value["resourceid"])
        case EventFormat.WIS2:
            return [link["rel"] for link in value["links"]] == ["deletion"]
        case EventFormat.CRUD:
            return bool(value["data"]["operation"] == "DELETE")
        case _:
            return message.headers["type"].endswith("_deleted")


@pytest.mark.parametrize("form", OUTSIDERS)
def test_a_dataset_is_gone_where_outsiders_do_not_see_it(form: EventFormat) -> None:
    hidden = False
    for event in (*DATASETS, story.left()):
        data = json.loads(event.text)["data"]
        hidden = event.type in ABSENT or "quarantine" in data
        assert is_gone(form, written(form, event)) is hidden, event.type


def test_operations_tell_what_comes_from_what_changes() -> None:
    operations = [json.loads(written(EventFormat.CRUD, event).value)["data"]["operation"] for event in DATASETS]
    created = {event.type for event, operation in zip(DATASETS, operations, strict=True) if operation == "CREATE"}
    assert created == {events.PUBLISHED, events.UNMARKED, events.RELEASED}
    ogc = {
        json.loads(written(EventFormat.OGC, event).value)["type"].rpartition(".")[2] for event in DATASETS
        if event.type in (events.UPDATED, events.REPLICATED, events.REINSTATED)
    }  # fmt: skip
    assert ogc == {"replace"}  # an event has the whole state


@pytest.mark.parametrize("form", [EventFormat.OVERVIEW, EventFormat.RESOURCE])
def test_hexkit_gets_ascii_alone(form: EventFormat) -> None:
    strange = changed(replace(FIRST, dataset="Ünï %"), lambda document: document["properties"].update(title="Ünï"))
    message = written(form, strange)
    message.value.decode("ascii")
    assert "\\u00dcn" in message.value.decode()
    for text in (message.key, *message.headers.values()):
        assert text.isascii()
    assert message.key.endswith("%C3%9Cn%C3%AF %25")


@pytest.mark.parametrize("form", [EventFormat.OVERVIEW, EventFormat.RESOURCE])
def test_over_http_the_type_is_that_of_a_cloudevent(form: EventFormat) -> None:
    message = Encoder(form, header_prefix=PREFIX, feed_url=FEED).encode(FIRST, 0)
    assert message.headers["ce-type"] == written(form, FIRST).headers["type"]
    assert message.headers["ce-specversion"] == "1.0"
    assert message.headers["ce-id"] == FIRST.event_id


# --- WIS2 ---


def notification(event: LoggedEvent) -> Json:
    """Return an event as a notification, which is never too large."""
    value = written(EventFormat.WIS2, event).value
    assert len(value) <= wis2.LARGEST
    found: Json = json.loads(value)
    return found


@pytest.mark.parametrize("character", ["a", "\u00fc", "\u4e2d", "\U0001f30d", '"'])
@pytest.mark.parametrize("event_type", [events.PUBLISHED, events.DELETED])
def test_a_notification_of_the_longest_id_is_not_too_large(character: str, event_type: str) -> None:
    longest_id = character * identifiers.LONGEST_ID
    whole = json.loads(next(event.text for event in DATASETS if event.type == event_type))
    whole["data"].update(id=longest_id, collection="c" * 128)
    value = notification(replace(FIRST, type=event_type, dataset=longest_id, text=orjson.dumps(whole).decode()))
    relation = "deletion" if event_type == events.DELETED else "canonical"
    assert value["links"][0]["rel"] == relation
    if event_type == events.DELETED or len(value["links"]) == 1:
        assert value["links"][0]["href"].endswith(f"/items/{quote(longest_id, safe='')}")
    jsonschema_rs.validator_for(schema_of(EventFormat.WIS2)).validate(value)


def test_one_dataset_has_one_name_in_notifications() -> None:
    long_id = "\u4e2d" * identifiers.LONGEST_ID
    whole = json.loads(FIRST.text)
    whole["data"]["id"] = long_id
    event = replace(FIRST, dataset=long_id, text=orjson.dumps(whole).decode())
    gone = replace(event, type=events.LEFT)
    names = {notification(each)["properties"]["data_id"] for each in (event, gone)}
    assert len(names) == 1
    assert FIRST.dataset in notification(FIRST)["properties"]["data_id"]


def test_one_file_has_its_checksum_and_several_are_found_by_the_item() -> None:
    message = notification(FIRST)
    [asset] = story.FIRST["assets"].values()
    file, item = message["links"]
    assert (file["rel"], file["href"], file["length"]) == ("canonical", asset["href"], asset["file:size"])
    assert message["properties"]["integrity"]["method"] == "sha256"
    assert item == {
        "href": f"https://west.example/collections/CMIP6/items/{FIRST.dataset}", "rel": "item",
        "type": "application/geo+json",
    }  # fmt: skip
    several = notification(changed(FIRST, lambda document: document["assets"].update(other=asset)))
    assert "integrity" not in several["properties"]
    assert several["links"] == [item | {"rel": "canonical"}, item]
    unreachable = notification(changed(FIRST, lambda document: document["assets"][story.FILE].pop("href")))
    assert unreachable["links"] == several["links"]


def test_a_notification_that_is_sent_again_has_the_time_of_the_change() -> None:
    assert notification(FIRST) == notification(copy.deepcopy(FIRST))
    for event in DATASETS:
        assert notification(event)["properties"]["pubtime"] == json.loads(event.text)["time"]


def test_what_is_too_large_for_a_notification_is_left_out() -> None:
    def grow(document: Json) -> None:
        ring = [[n / 10, (n % 7) / 10] for n in range(2000)]
        document["geometry"] = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        document["assets"][story.FILE]["href"] = f"https://west.example/{'f' * 9000}"

    message = notification(changed(FIRST, grow))
    assert [link["rel"] for link in message["links"]] == ["canonical", "item"]
    box = notification(changed(FIRST, lambda document: document.update(geometry={"type": "MultiPolygon"})))
    assert box["geometry"]["coordinates"][0][2] == story.FIRST["bbox"][2:]
    crossing = {"geometry": {"type": "MultiPolygon"}, "bbox": [170, -10, -170, 10]}
    assert notification(changed(FIRST, lambda document: document.update(crossing)))["geometry"] is None


@pytest.mark.parametrize(
    ("properties", "times"),
    [
        ({"datetime": "2000-01-01T01:00:00+01:00"}, {"datetime": "2000-01-01T00:00:00.000000Z"}),
        ({"datetime": None}, {"datetime": None}),
        ({"datetime": "never"}, {"datetime": None}),
        (
            {"datetime": "2000-01-01T00:00:00Z", "start_datetime": "2000-01-01T00:00:00Z",
             "end_datetime": "2001-01-01T00:00:00Z"},
            {"start_datetime": "2000-01-01T00:00:00.000000Z", "end_datetime": "2001-01-01T00:00:00.000000Z"},
        ),
    ],
)  # fmt: skip
def test_times_of_a_notification(properties: Json, times: Json) -> None:
    found = notification(changed(FIRST, lambda document: document.update(properties=properties)))["properties"]
    assert {name: value for name, value in found.items() if name.endswith("datetime")} == times


# --- other dialects ---


def test_ogc_tells_of_collections_that_come_change_and_go() -> None:
    encoder = Encoder(EventFormat.OGC)
    assert {event.type for event in LOG if not event.dataset and encoder.takes(event.type)} == set(ABOUT_COLLECTIONS)
    for form, dialect in ((form, each) for form, each in DIALECTS.items() if not each.is_native):
        taken = {event.type for event in LOG if event.dataset is None and Encoder(form).takes(event.type)}
        assert taken == dialect.collections


def test_an_item_that_is_too_large_for_a_message_is_a_link_to_it() -> None:
    message = json.loads(written(EventFormat.OGC, FIRST, largest_value=1500).value)
    assert message["data"] == {"href": message["subject"], "rel": "item", "type": "application/geo+json"}
    assert jsonschema_rs.validator_for(schema_of(EventFormat.OGC)).is_valid(message)


def test_a_dataset_that_is_retracted_has_no_files_to_hand_out() -> None:
    retracted = next(event for event in DATASETS if event.type == events.RETRACTED)
    overview = json.loads(written(EventFormat.OVERVIEW, retracted).value)
    assert (overview["state"], overview["files"]) == ("retracted", [])
    content = json.loads(written(EventFormat.RESOURCE, retracted).value)["content"]
    assert (content["properties"]["retracted"], content["assets"]) == (True, {})


@pytest.mark.parametrize(
    ("address", "extension"),
    [
        ("https://a.example/d/tas_1850.nc", ".nc"), ("https://a.example/x.tar.gz?y=/z.w", ".tar.gz"),
        ("https://a.example/v1.2.nc", ".nc"), ("https://a.example/README", ""), ("https://a.example/", ""),
        ("https://a.example/.hidden", ""), ("reference_file", ""), ("https://[", ""), ("a.b.ünï", ""),
        ("x.nc.GZ", ".nc.GZ"),
    ],
)  # fmt: skip
def test_extensions(address: str, extension: str) -> None:
    assert extension_of(address) == extension


def test_crud_is_in_daprs_envelope_with_the_topic_of_the_sink() -> None:
    message = json.loads(written(EventFormat.CRUD, FIRST, topic="west").value)
    assert (message["topic"], message["type"]) == ("west", "com.dapr.event.sent")
    assert message["data"] == {"id": FIRST.dataset, "collection": "CMIP6", "operation": "CREATE"}


def test_an_event_is_what_it_is_to_its_reader() -> None:
    """A dataset that enters what a subscription follows is created there, whatever it is to others."""
    updated = next(event for event in DATASETS if event.type == events.UPDATED)
    gone = next(event for event in DATASETS if event.type == events.DELETED)
    encoder = Encoder(EventFormat.CRUD)
    operations = [
        json.loads(encoder.encode(event, 0, operation).value)["data"]["operation"]
        for event, operation in ((updated, None), (updated, Operation.CREATE), (gone, Operation.CREATE))
    ]
    assert operations == ["UPDATE", "CREATE", "DELETE"]


@pytest.mark.parametrize("form", EventFormat)
def test_events_about_grants_are_in_the_logs_own_form_alone(form: EventFormat) -> None:
    assert Encoder(form).takes("org.fedstac.grant.given.v1") is DIALECTS[form].is_native
