"""What a sink's formats make of every event: golden files, nothing lost, ESGF's patches that end in the same items."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pytest

from fedstac.domain import events
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import LoggedEvent
from fedstac.messaging.dialects.cloudevents import read
from fedstac.messaging.formats import (
    KAFKA_PREFIX,
    PREFIX,
    Encoder,
    EventFormat,
    TooLarge,
    check_key_template,
    unwritable,
)
from fedstac.messaging.sinks import OutgoingEvent, place_headers
from tests.messaging import story
from tests.messaging.story import encoded, golden, golden_file

Json = dict[str, Any]
LOG = story.story()
EVENT = next(event for event in LOG if event.dataset)
FEED = "https://west.example/events"
TYPES = {
    value for name, value in vars(events).items()
    if isinstance(value, str) and value.endswith(".v1") and not name.endswith(("CURRENT", "LEFT"))
}  # fmt: skip


def test_the_log_has_every_type_of_event() -> None:
    assert {event.type for event in LOG} >= TYPES


@pytest.mark.parametrize("form", EventFormat)
def test_golden_files(form: EventFormat) -> None:
    """If a difference is wanted: python -m tests.messaging.story."""
    assert golden(form) == json.loads(golden_file(form).read_text())


@pytest.mark.parametrize("form", EventFormat)
def test_a_rebuild_takes_a_dataset_away_and_brings_it_again_under_one_key(form: EventFormat) -> None:
    cleared = max(place for place, event in enumerate(LOG) if event.type == events.CLEARED)
    gone, back = encoded(form, LOG[cleared : cleared + 2])
    assert (gone.event_type, back.event_type) == (events.CLEARED, events.PUBLISHED)
    assert gone.key == back.key
    assert gone.cursor < back.cursor


@pytest.mark.parametrize("event", LOG, ids=lambda event: event.type)
@pytest.mark.parametrize("prefix", [PREFIX, KAFKA_PREFIX])
def test_the_binary_form_has_all_of_the_structured_one(event: LoggedEvent, prefix: str) -> None:
    whole = json.loads(Encoder().encode(event, 0).value)
    binary = Encoder(EventFormat.CLOUDEVENTS_BINARY, header_prefix=prefix).encode(event, 0)
    attributes = {name: value for name, value in whole.items() if name != "data"}
    content_type = attributes.pop("datacontenttype")
    headers = dict(binary.headers)
    assert headers.pop("content-type") == content_type
    decode = str if prefix == KAFKA_PREFIX else unquote
    assert {name.removeprefix(prefix): decode(value) for name, value in headers.items()} == {
        name: str(value) for name, value in attributes.items()
    }
    assert json.loads(binary.value) == whole["data"]


def test_http_and_nats_headers_are_ascii() -> None:
    strange = replace(EVENT, text=EVENT.text.replace('"subject":"', '"subject":"Ü "', 1).replace('Ü "', "Ü %", 1))
    headers = Encoder(EventFormat.CLOUDEVENTS_BINARY, header_prefix=PREFIX).encode(strange, 0).headers
    assert headers["ce-subject"].startswith("%C3%9C%20%25")


def test_esgf_is_told_nothing_of_collections() -> None:
    encoding = Encoder(EventFormat.ESGF)
    assert {event.type for event in LOG if not encoding.takes(event.type)} == {
        events.COLLECTION_CREATED, events.COLLECTION_UPDATED, events.COLLECTION_CLOSING, events.COLLECTION_REOPENED,
        events.COLLECTION_DELETED,
    }  # fmt: skip
    native = (Encoder(EventFormat.CLOUDEVENTS), Encoder(EventFormat.CLOUDEVENTS_BINARY))
    assert all(encoder.takes(event.type) for event in LOG for encoder in native)


# --- ESGF's consumers ---


def apply(items: dict[str, Json], event: OutgoingEvent) -> None:
    """Do what a consumer does that knows STAC and RFC 6902, and nothing of us."""
    payload = json.loads(event.value)["data"]["payload"]
    if payload["method"] == "POST":
        assert payload["item"]["id"] == event.key
        items[event.key] = payload["item"]
        return
    assert payload["item_id"] == event.key
    for operation in payload["patch"]:
        *parents, last = [
            step.replace("~1", "/").replace("~0", "~") for step in operation["path"].removeprefix("/").split("/")
        ]
        target: Any = items[event.key]
        for step in parents:
            target = target[step]
        if operation["op"] != "add":
            assert last in target
        if operation["op"] == "remove":
            del target[last]
        else:
            target[last] = copy.deepcopy(operation["value"])


def expected(log: Sequence[LoggedEvent]) -> dict[str, Json]:
    """Return the items as their last events have them."""
    items: dict[str, Json] = {}
    for event in log:
        if event.dataset is None:
            continue
        data = json.loads(event.text)["data"]
        is_usable = data["state"] == "published" and "document" in data
        state = {"latest": data["latest"], "retracted": not is_usable, "created": data["created"],
                 "updated": data["updated"]}  # fmt: skip
        document = data.get("document") or items[event.dataset]
        items[event.dataset] = {
            **document, "properties": {**document["properties"], **state},
            "assets": document["assets"] if is_usable else {},
        }  # fmt: skip
    return items


@pytest.mark.parametrize("times", [1, 2])
def test_a_consumer_of_esgf_has_the_same_item_after_every_event_also_if_it_comes_twice(times: int) -> None:
    items: dict[str, Json] = {}
    outgoing = {event.event_id: event for event in encoded(EventFormat.ESGF, LOG)}
    for n, logged in enumerate(LOG):
        if logged.event_id in outgoing:
            for _ in range(times):
                apply(items, outgoing[logged.event_id])
        assert items == expected(LOG[: n + 1]), logged.type


def test_a_lost_change_of_files_is_made_good_by_the_next() -> None:
    items: dict[str, Json] = {}
    outgoing = encoded(EventFormat.ESGF, LOG)
    replicas = [n for n, event in enumerate(outgoing) if event.event_type == events.REPLICATED]
    for event in outgoing[: replicas[0]] + outgoing[replicas[0] + 1 : replicas[1] + 1]:
        apply(items, event)
    assert items == expected(LOG[: replicas[1] + 2])  # one event of a collection is before them


def test_nothing_of_an_event_but_why_it_is_under_quarantine_is_lost_in_esgfs_format() -> None:
    for event in LOG:
        if event.dataset is None:
            continue
        whole = json.loads(event.text)
        metadata = json.loads(Encoder(EventFormat.ESGF).encode(event, 0).value)["metadata"]
        assert metadata["fedstac"].pop("epoch") == event.cursor.epoch
        facts = {**metadata["fedstac"], **{name: metadata[name] for name in ("cv", "seq", "digest", "state")}}
        beside = {"actor": metadata["auth"]["requester_data"]["sub"], "id": event.dataset, "collection": "CMIP6"}
        is_hiding = event.type in (events.QUARANTINED, events.RELEASED)
        secret = ("document", "quarantine", "reason") if is_hiding else ("document", "quarantine")
        assert {name: value for name, value in whole["data"].items() if name not in secret} == {
            name: value for name, value in (facts | beside).items() if name not in ("type", "source", "lineage")
        }
        assert (metadata["event_id"], metadata["request_id"]) == (
            event.event_id.replace("-", ""), whole["correlationid"],
        )  # fmt: skip


# --- keys, trace, size ---


@pytest.mark.parametrize(
    ("form", "template", "key"),
    [
        (EventFormat.CLOUDEVENTS, "", EVENT.key),
        (EventFormat.CLOUDEVENTS_BINARY, "", EVENT.key),
        (EventFormat.ESGF, "", EVENT.dataset),
        (EventFormat.CLOUDEVENTS, "dataset_embedded_{id}", f"dataset_embedded_{EVENT.dataset}"),
        (EventFormat.ESGF, "{collection}:{lineage}:{event_id}", f"CMIP6:{EVENT.key}:{EVENT.event_id}"),
    ],
)
def test_keys(form: EventFormat, template: str, key: str) -> None:
    assert Encoder(form, check_key_template(template)).encode(EVENT, 0).key == key


@pytest.mark.parametrize("template", ["{}", "{ID}", "{id.__class__}", "{id", "id}", "{0}", "x" * 1001])
def test_no_template_of_a_key(template: str) -> None:
    with pytest.raises(BadRequest):
        check_key_template(template)


@pytest.mark.parametrize("form", EventFormat)
def test_the_trace_goes_along(form: EventFormat) -> None:
    traced = replace(EVENT, text=EVENT.text.replace('"datacontenttype"', f'"traceparent":"{story.TRACE}",'
                                                    '"datacontenttype"', 1))  # fmt: skip
    assert Encoder(form).encode(traced, 0).headers["traceparent"] == story.TRACE
    assert "traceparent" not in Encoder(form).encode(EVENT, 0).headers


@pytest.mark.parametrize("form", [EventFormat.CLOUDEVENTS, EventFormat.CLOUDEVENTS_BINARY])
def test_an_event_that_is_too_large_says_where_its_whole_is(form: EventFormat) -> None:
    outgoing = Encoder(form, feed_url=FEED, largest_value=1500).encode(EVENT, 0)
    assert len(outgoing.value) <= 1500
    event = read(outgoing.headers, outgoing.value)
    assert event is not None
    assert "data" not in event  # by which a consumer knows that it has to fetch it
    assert (event["pos"], event["epoch"], event["id"]) == (EVENT.cursor.pos, 1, EVENT.event_id)
    assert event["dataref"] == f"{FEED}?after=1.{EVENT.cursor.pos - 1}&limit=1"
    text = EVENT.text[EVENT.text.index(',"data":') + 8 : -1]
    assert event["datadigest"] == "sha-256:" + hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("form", [EventFormat.ESGF, EventFormat.OVERVIEW, EventFormat.RESOURCE, EventFormat.CRUD])
def test_a_format_without_a_form_by_reference_says_what_to_do_with_an_event_that_is_too_large(
    form: EventFormat,
) -> None:
    size = len(Encoder(form, feed_url=FEED).encode(EVENT, 0).value)
    assert len(Encoder(form, feed_url=FEED, largest_value=size).encode(EVENT, 0).value) == size
    with pytest.raises(TooLarge) as refusal:
        Encoder(form, feed_url=FEED, largest_value=size - 1).encode(EVENT, 0)
    sentence = unwritable(EVENT, refusal.value).reason
    assert sentence.startswith(f"a message of {size} bytes is too large: {size - 1} are the most here")
    assert "read the dataset itself" in sentence


@pytest.mark.parametrize("prefix", [PREFIX, KAFKA_PREFIX])
@pytest.mark.parametrize("form", [EventFormat.CLOUDEVENTS, EventFormat.CLOUDEVENTS_BINARY])
def test_a_consumer_reads_the_event_of_either_form(form: EventFormat, prefix: str) -> None:
    for event in LOG:
        outgoing = Encoder(form, header_prefix=prefix).encode(event, 0)
        headers = {**outgoing.headers, **place_headers(outgoing, events.START)}
        assert read(headers, outgoing.value) == {"pos": event.cursor.pos, "epoch": 1, **json.loads(event.text)}


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        ({}, b"["), ({}, b"7"), ({}, b""), ({"ce_specversion": "1.0"}, b"{}"),
        ({"ce_specversion": "1.0", "ce_pos": "x", "ce_epoch": "1"}, b"{}"),
        ({"ce-specversion": "1.0", "ce-pos": "1", "ce-epoch": "1"}, b"{"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_none(headers: dict[str, str], value: bytes) -> None:
    assert read(headers, value) is None
