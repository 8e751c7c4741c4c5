"""Publishing through a Dapr sidecar: with one that a test plays, and with a real daprd where there is one."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.demo import dapr
from fedstac.demo.dapr import IN_MEMORY
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain.events import Cursor
from fedstac.messaging.formats import Encoder, EventFormat
from fedstac.messaging.sinks import (
    OutgoingEvent,
    PageRefused,
    SinkAway,
    SinkRefused,
    SinkTarget,
    SinkUnclear,
    open_sink,
    shown_address,
)
from fedstac.messaging.sinks.dapr import DaprSink
from tests.messaging.relaying import add_sink, fill, relaying, sent_through
from tests.messaging.story import story
from tests.support.brokers import fresh_name
from tests.support.dapr import TOPIC, application, sidecar
from tests.support.garbage import objects_of, uncollected

TOKEN = "of-the-sidecar"
STRUCTURED = "application/cloudevents+json; charset=UTF-8"
EVENT = OutgoingEvent(
    Cursor(1, 7), 6, "id-7", "CMIP6/a b&c", "CMIP6", "org.fedstac.dataset.deleted.v1",
    {"content-type": "application/json"}, b'{"id":"a","operation":"DELETE"}',
)  # fmt: skip


def sink_of(port: int, path: str = f"{dapr.PUBSUB}/{TOPIC}") -> DaprSink:
    target = SinkTarget("west", "one", f"dapr+http://127.0.0.1:{port}/{path}", secret=b"s" * 32, sidecar_token=TOKEN)
    sink = open_sink(target)
    assert isinstance(sink, DaprSink)
    return sink


async def test_each_event_goes_to_the_topic_with_its_key_and_its_attributes() -> None:
    """An envelope of CloudEvents stays as it is; for any other value Dapr is told what it writes into its own."""
    whole = replace(EVENT, event_id="id-8", headers={"content-type": STRUCTURED}, value=b'{"id":"id-8"}')
    binary = replace(
        EVENT, event_id="id-9",
        headers={"content-type": "application/json", "ce-id": "id-9", "ce-source": "we%20st", "ce-type": "a.type",
                 "traceparent": "00-aa-bb-01"},
    )  # fmt: skip
    async with application() as app, sink_of(app.port) as sink:
        await sink.publish([EVENT, whole, binary], await sink.begin())
    urls = [urlsplit(post.path) for post in app.posts]
    assert {url.path for url in urls} == {f"/v1.0/publish/{dapr.PUBSUB}/{TOPIC}"}
    assert [parse_qs(url.query) for url in urls] == [
        {"metadata.partitionKey": ["CMIP6/a b&c"], "metadata.cloudevent.id": ["id-7"],
         "metadata.cloudevent.source": ["west"], "metadata.cloudevent.type": ["org.fedstac.dataset.deleted.v1"]},
        {"metadata.partitionKey": ["CMIP6/a b&c"]},
        {"metadata.partitionKey": ["CMIP6/a b&c"], "metadata.cloudevent.id": ["id-9"],
         "metadata.cloudevent.source": ["we st"], "metadata.cloudevent.type": ["a.type"],
         "metadata.cloudevent.traceparent": ["00-aa-bb-01"]},
    ]  # fmt: skip
    assert [post.headers["content-type"] for post in app.posts] == ["application/json", STRUCTURED, "application/json"]
    assert {post.headers["dapr-api-token"] for post in app.posts} == {TOKEN}


@pytest.mark.parametrize(("status", "failure"), [
    (400, SinkRefused), (403, SinkRefused), (404, SinkRefused), (302, SinkRefused), (413, PageRefused),
    (431, PageRefused), (500, SinkAway), (503, SinkAway),
])  # fmt: skip
async def test_what_a_sidecar_refuses_stops_the_sink_and_what_it_cannot_do_just_now_is_tried_again(
    status: int, failure: type[Exception]
) -> None:
    """A component that is missing must not make dead letters of events, one after the other."""
    async with application() as app, sink_of(app.port) as sink:
        app.respond = lambda call: (status, {})
        with pytest.raises(failure) as refusal:
            await sink.publish([EVENT], await sink.begin())
    assert TOKEN not in str(refusal.value)


@pytest.mark.parametrize("address", [
    "dapr+http://127.0.0.1:3500", "dapr+http://127.0.0.1:3500/pubsub", "dapr+http://127.0.0.1:3500/pubsub/",
    "dapr+http://127.0.0.1:3500//topic", "dapr+http://127.0.0.1:3500/pubsub/a/../../../b",
    "dapr+http://127.0.0.1:3500/pubsub/a%0d%0ab", "dapr+http://127.0.0.1:3500/pubsub/topic?metadata.rawPayload=true",
    "dapr+http://user:secret@127.0.0.1:3500/pubsub/topic", "dapr+ftp://127.0.0.1/pubsub/topic", "dapr://x/pubsub/topic",
])  # fmt: skip
def test_an_address_that_names_no_topic_of_a_sidecar_is_refused(address: str) -> None:
    with pytest.raises(SinkUnclear):
        open_sink(SinkTarget("west", "one", address))


def test_a_sidecar_elsewhere_gets_no_token_and_none_on_a_private_address_is_taken_from_a_client() -> None:
    """The token is what a sidecar on this machine asks for; an address is named by whoever manages messaging."""
    elsewhere = SinkTarget("west", "one", "dapr+https://sidecar.example.org/pubsub/topic", sidecar_token=TOKEN)
    assert DaprSink(elsewhere)._token == ""
    assert DaprSink(replace(elsewhere, address="dapr+http://localhost:3500/pubsub/topic"))._token == TOKEN
    with pytest.raises(SinkUnclear):
        open_sink(SinkTarget("west", "one", "dapr+https://127.0.0.1:3500/pubsub/topic", private=False))
    assert shown_address("dapr+http://127.0.0.1:3500/pubsub/topic") == "dapr+http://127.0.0.1:3500"


async def test_where_no_sidecar_listens_the_sink_is_away() -> None:
    async with sink_of(9) as sink:
        with pytest.raises(SinkAway):
            await sink.publish([EVENT], await sink.begin())


async def test_a_page_that_fails_is_kept_by_nothing() -> None:
    """It is thousands of events, and comes again a second later: none of them may wait for the garbage collector."""
    async with sink_of(9) as sink:
        with uncollected():
            with suppress(SinkAway):  # pytest would keep it
                await sink.publish([replace(EVENT, event_id="id-of-a-page-that-fails")], await sink.begin())
            await asyncio.sleep(0)  # the loop has done what it had at hand
            assert "id-of-a-page-that-fails" not in {event.event_id for event in objects_of(OutgoingEvent)}


@pytest.mark.dapr
async def test_a_service_gets_every_event_through_a_sidecar_as_it_was_written(node: Node, conn: Connection) -> None:
    """The sidecar keeps id and source, and the events of one key come in their order."""
    await fill(conn, 40)
    async with application() as app, sidecar(IN_MEMORY, app_port=app.port, api_token=TOKEN) as running:
        await add_sink(conn, f"{running.url.replace('http', 'dapr+http')}/{dapr.PUBSUB}/{TOPIC}")
        async with relaying(replace(node, settings=node.settings.model_copy(update={"dapr_api_token": TOKEN}))):
            await sent_through(node, 40)
            events = await app.has(40)
    logged = {str(row["event_id"]) for row in await conn.fetch("SELECT event_id FROM fedstac.outbox")}
    assert {event["id"] for event in events} == logged
    assert {(event["source"], event["pubsubname"], event["topic"]) for event in events} == {
        ("west", dapr.PUBSUB, TOPIC)
    }  # fmt: skip
    assert sorted(event["pos"] for event in events) == list(range(1, 41))


@pytest.mark.dapr
async def test_a_value_without_an_envelope_gets_one_of_dapr_with_the_id_and_type_of_the_event() -> None:
    async with application() as app, sidecar(IN_MEMORY, app_port=app.port, api_token=TOKEN) as running:
        async with sink_of(running.process.port) as sink:
            await sink.publish([EVENT], await sink.begin())
            [event] = await app.has(1)
        async with sink_of(running.process.port, "another/topic") as sink:
            with pytest.raises(SinkRefused):
                await sink.publish([EVENT], await sink.begin())
    assert (event["id"], event["source"], event["type"]) == ("id-7", "west", EVENT.event_type)
    assert event["data"] == {"id": "a", "operation": "DELETE"}


@pytest.mark.dapr
async def test_a_service_behind_a_sidecar_gets_every_format_with_the_ids_of_the_events() -> None:
    """Dapr leaves an envelope as it is, and puts any other value into one of its own, byte for byte the same JSON."""
    log = [each for each in story() if each.dataset is not None]
    async with application() as app, sidecar(IN_MEMORY, app_port=app.port) as running:
        count = 0
        for form in EventFormat:
            encoder = Encoder(form, feed_url="https://west.example/events")
            outgoing = [encoder.encode(event, event.cursor.pos - 1) for event in log if encoder.tells(event)]
            async with sink_of(running.process.port) as sink:
                await sink.publish(outgoing, await sink.begin())
            count += len(outgoing)
            arrivals = {event["id"]: event for event in (await app.has(count))[-len(outgoing) :]}
            assert arrivals.keys() == {event.event_id for event in outgoing}, form
            for event in outgoing:
                value, arrival = orjson.loads(event.value), arrivals[event.event_id]
                is_whole = "data" in value and "specversion" in value
                kept = {name: arrival[name] for name in value} if is_whole else arrival["data"]
                names = {"topic", "pubsubname"}  # which Dapr knows better
                assert _without(kept, names) == _without(value, names), form
                event_type = event.headers.get("ce-type", event.event_type)  # overview and resource have their own
                assert is_whole or (arrival["source"], arrival["type"]) == ("west", event_type), form


def _without(value: Any, names: set[str]) -> Any:
    return {name: each for name, each in value.items() if name not in names} if isinstance(value, dict) else value


@pytest.mark.dapr
@pytest.mark.kafka
async def test_over_kafka_the_events_of_one_key_come_in_their_order(
    node: Node, conn: Connection, kafka_broker: KafkaBroker
) -> None:
    """One sidecar publishes, another one feeds the service, which asks for one event again."""
    topic, count = fresh_name(), 60
    client = AdminClient({"bootstrap.servers": kafka_broker.address, "logger": logging.Logger("quiet", 100)})
    [future] = client.create_topics([NewTopic(topic, 3)]).values()
    await asyncio.wrap_future(future)
    await fill(conn, count)
    component = dapr.kafka_component(kafka_broker.address, group=topic)
    async with application(topic) as app:
        refusals = [{"status": "RETRY"}]
        app.respond = lambda call: (200, refusals.pop() if refusals else {"status": "SUCCESS"})
        async with sidecar(component) as publisher, sidecar(component, app_port=app.port):
            await add_sink(conn, f"{publisher.url.replace('http', 'dapr+http')}/{dapr.PUBSUB}/{topic}")
            async with relaying(node):
                await sent_through(node, count)
                events = await app.has(count + 1)
    numbers = [event["data"]["n"] for event in events]
    assert set(numbers) == set(range(1, count + 1))
    for lineage in range(10):
        own = [n for n in numbers if n % 10 == lineage]
        assert list(dict.fromkeys(own)) == sorted(set(own))
