"""Dialects as others read them: hexkit with GHGA's schemas, from Kafka; the SDK of CloudEvents; WMO's tests of WIS2."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, cast

import orjson
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import sinks
from fedstac.db.connections import Connection
from fedstac.db.sinks import NewSink
from fedstac.demo import sample
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain import strict_json
from fedstac.domain.actions import Work
from fedstac.domain.events import EventFormat
from fedstac.messaging.formats import KAFKA_PREFIX, PREFIX, Encoder
from tests.db import writing
from tests.messaging import story
from tests.messaging.relaying import relaying, sent_through
from tests.support import readers
from tests.support.brokers import fresh_name

pytestmark = pytest.mark.skipif(
    not readers.are_here(),
    reason="the packages of readers are not here: python tools/event_readers.py gets them, or says why it cannot",
)
Json = dict[str, Any]
LOG = [*story.story(), story.left()]
GHGA = (EventFormat.OVERVIEW, EventFormat.RESOURCE)


@pytest.mark.parametrize("form", GHGA)
def test_every_event_is_valid_for_ghgas_schemas(form: EventFormat) -> None:
    messages = story.encoded(form, LOG)
    values = readers.read("ghga", messages)
    assert len(values) == len(messages) == sum(event.dataset is not None for event in LOG)
    for value, message in zip(values, messages, strict=True):
        assert value == json.loads(message.value)  # the models keep what they do not name


@pytest.mark.parametrize("binding", ["kafka", "http"])
@pytest.mark.parametrize("form", [EventFormat.CLOUDEVENTS, EventFormat.CLOUDEVENTS_BINARY, EventFormat.OGC,
                                  EventFormat.CRUD])  # fmt: skip
def test_the_sdk_of_cloudevents_reads_events(form: EventFormat, binding: str) -> None:
    encoder = Encoder(form, header_prefix=KAFKA_PREFIX if binding == "kafka" else PREFIX, feed_url=story.FEED)
    log = [event for event in LOG if encoder.takes(event.type)]
    messages = [encoder.encode(event, 0) for event in log]
    values = readers.read("cloudevents", messages, binding)
    for event, message, value in zip(log, messages, values, strict=True):
        whole = json.loads(event.text)
        assert (value["attributes"]["id"], value["attributes"]["specversion"]) == (event.event_id, "1.0")
        expected = whole["data"] if form is EventFormat.CLOUDEVENTS_BINARY else json.loads(message.value)["data"]
        assert value["data"] == expected
        if form in (EventFormat.CLOUDEVENTS, EventFormat.CLOUDEVENTS_BINARY):
            assert value["attributes"]["subject"] == whole["subject"]
            assert value["attributes"]["type"] == event.type


@pytest.mark.parametrize("form", GHGA)
def test_over_http_overviews_and_resources_are_cloudevents(form: EventFormat) -> None:
    encoder = Encoder(form, feed_url=story.FEED)
    log = [event for event in LOG if encoder.takes(event.type)]
    messages = [encoder.encode(event, 0) for event in log]
    for message, value in zip(messages, readers.read("cloudevents", messages, "http"), strict=True):
        assert value["data"] == json.loads(message.value)
        assert value["attributes"]["type"].endswith(("_upserted", "_deleted"))


def test_wmos_tests_of_notifications_pass() -> None:
    messages = story.encoded(EventFormat.WIS2, LOG)
    for message, value in zip(messages, readers.read("wis2", messages), strict=True):
        assert value["failed"] == []
        assert value["tests"] >= 7
        assert value["link"] == json.loads(message.value)["links"][0]  # the one that its clients follow


@pytest.mark.kafka
@pytest.mark.parametrize("form", GHGA)
async def test_a_service_of_hexkit_follows_the_topic_that_a_relay_writes(
    form: EventFormat, node: Node, conn: Connection, kafka_broker: KafkaBroker
) -> None:
    """Its types, keys and ids are as hexkit wants them; a dataset that was rebuilt is deleted and then there again."""
    await writing.create_collections(node, "CMIP6")
    topic = fresh_name()
    items = [cast("Json", strict_json.parse(orjson.dumps(item))) for item in sample.items(6, versions=2, seed=5)]
    await writing.publish(conn, *items)
    rules = replace(writing.RULES, origin=node.settings.node)
    for command in story.commands():
        [receipt] = await publication.perform(conn, rules, [Work(command, "root", "test")])
        assert not receipt.problem
    await writing.sequence_all(conn)
    head = await conn.fetchval("SELECT pos FROM fedstac.feed_state")
    new = NewSink("ghga", f"{kafka_broker.url}/{topic}?partitions=3", form, "", required=True, private=True, after=0)
    await sinks.add(conn, new, actor="test")
    async with relaying(node):
        await sent_through(node, head, "ghga")

    rows = await conn.fetch("SELECT event_id, type, dataset FROM fedstac.outbox WHERE dataset IS NOT NULL ORDER BY id")
    servers = kafka_broker.url.removeprefix("kafka://")
    consumed: Json = json.loads(await asyncio.to_thread(readers.run, "hexkit", servers, topic, str(len(rows))))
    logged = {str(row["event_id"]): row for row in rows}
    assert {event_id for _, _, event_id, _ in consumed["messages"]} == set(logged)
    for dataset in {row["dataset"] for row in rows}:  # in the order of the log, under one key
        own = [message for message in consumed["messages"] if logged[message[2]]["dataset"] == dataset]
        assert [message[2] for message in own] == [str(row["event_id"]) for row in rows if row["dataset"] == dataset]
        assert len({message[1] for message in own}) == 1
    rebuilt = [message[0] for message in consumed["messages"] if logged[message[2]]["dataset"] == story.FIRST["id"]]
    assert [name.rpartition("_")[2] for name in rebuilt[-4:]] == ["deleted", "upserted", "deleted", "upserted"]
    present = await conn.fetch("SELECT id, encode(digest, 'hex') AS digest, state FROM fedstac.record")
    seen = {row["id"] for row in present if row["state"] in ("published", "retracted")}
    assert {value["accession"] for value in consumed["datasets"].values()} == seen
    if form is EventFormat.OVERVIEW:
        digests = {row["id"]: row["digest"] for row in present}
        assert all(value["digest"] == digests[value["accession"]] for value in consumed["datasets"].values())
