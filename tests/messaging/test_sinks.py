"""What a relay relies on, of every kind of sink: a webhook, a stream of NATS and a topic of Kafka."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedstac.domain.events import Cursor
from fedstac.messaging.sinks import (
    EventSink,
    Fenced,
    OutgoingEvent,
    PageRefused,
    SinkAway,
    SinkTarget,
    SinkUnclear,
    Tail,
    TailMoved,
    open_sink,
)
from tests.support.sinks import ACCEPTED, Hook, Receiver

PUBLISHED = "org.fedstac.dataset.published.v1"
TOO_LARGE = 9 << 20  # bytes


def event(pos: int, *, size: int = 100, previous_pos: int | None = None) -> OutgoingEvent:
    return OutgoingEvent(
        Cursor(1, pos), pos - 1 if previous_pos is None else previous_pos, f"id-{pos}", f"CMIP6/{pos % 7}", "CMIP6",
        PUBLISHED, {"content-type": "application/json"}, b"x" * size,
    )  # fmt: skip


def page(first: int, last: int) -> list[OutgoingEvent]:
    return [event(pos) for pos in range(first, last + 1)]


def sink_of(receiver: Receiver, last_tail: Tail | None = None) -> EventSink:
    return open_sink(SinkTarget("west", "one", receiver.address, secret=b"s" * 32, last_tail=last_tail or Tail("")))


async def test_pages_are_stored_whole_with_their_places_and_a_new_sink_finds_the_end(receiver: Receiver) -> None:
    async with sink_of(receiver) as sink:
        first = await sink.begin()
        assert first.cursor is None
        tail = await sink.publish(page(1, 20), first)
        tail = await sink.publish([event(23, previous_pos=20), event(24)], tail)
        assert tail.cursor == Cursor(1, 24)
    async with sink_of(receiver, tail) as another:
        assert await another.begin() == tail
    messages = sorted(await receiver.messages(), key=lambda message: message.pos)
    assert [message.pos for message in messages] == [*range(1, 21), 23, 24]
    headers = messages[20].headers
    assert [headers[name] for name in ("pos", "epoch", "prev", "ce-id", "content-type")] == [
        "23", "1", "20", "id-23", "application/json",
    ]  # fmt: skip
    assert messages[20].value == b"x" * 100


async def test_a_redrive_moves_no_tail_and_says_that_it_is_one(receiver: Receiver) -> None:
    async with sink_of(receiver) as sink:
        tail = await sink.publish(page(1, 20), await sink.begin())
        again = await sink.publish([replace(event(3), is_redrive=True), replace(event(4), is_redrive=True)], tail)
        assert again.cursor == Cursor(1, 20)
        last = await sink.publish([event(21)], again)
    async with sink_of(receiver, last) as another:
        assert (await another.begin()).cursor == Cursor(1, 21)
    redrives = [message for message in await receiver.messages() if message.is_redrive]
    assert sorted(message.pos for message in redrives) == [3, 4]


async def test_only_redrives_in_a_partition_are_no_tail(receiver: Receiver) -> None:
    async with sink_of(receiver) as sink:
        tail = await sink.publish([replace(event(5), is_redrive=True)], await sink.begin())
        assert tail.cursor in (None, Cursor(0, 0))
        tail = await sink.publish(page(6, 7), tail)
        assert tail.cursor == Cursor(1, 7)


async def test_a_page_with_an_event_that_is_refused_leaves_the_sink_of_use(receiver: Receiver) -> None:
    if isinstance(receiver, Hook):
        receiver.respond = lambda message: "413 Too Large" if len(message.value) == TOO_LARGE else ACCEPTED
    async with sink_of(receiver) as sink:
        tail = await sink.begin()
        events = [event(1), event(2, size=TOO_LARGE), event(3)]
        with pytest.raises(PageRefused) as refusal:
            await sink.publish(events, tail)
        assert refusal.value.event_id in (None, "id-2")
        if receiver.keeps_log:
            assert await receiver.messages() == []
        with pytest.raises(PageRefused):
            await sink.publish(events[1:2], tail)
        tail = await sink.publish([event(1), event(3, previous_pos=1)], tail)
    assert sorted(message.pos for message in await receiver.messages()) == [1, 3]


async def test_a_relay_that_is_overtaken_stores_nothing(broker_log: Receiver) -> None:
    async with sink_of(broker_log) as old, sink_of(broker_log) as new:
        old_tail = await old.publish(page(1, 5), await old.begin())
        tail = await new.publish(page(6, 8), await new.begin())
        with pytest.raises((TailMoved, Fenced)):
            await old.publish(page(6, 9), old_tail)
        await new.publish([event(9)], tail)
    assert [message.pos for message in await broker_log.messages()] == list(range(1, 10))


async def test_an_audit_reads_all_places_beside_a_relay(broker_log: Receiver) -> None:
    async with sink_of(broker_log) as sink, sink_of(broker_log) as auditor:
        tail = await sink.publish(page(1, 30), await sink.begin())
        events = [each async for each in auditor.stored_events()]
        assert sorted(each.cursor.pos for each in events) == list(range(1, 31))
        assert all(each.partition == sink.partition_of(event(each.cursor.pos)) for each in events)
        assert await auditor.is_dense(0, 30) in (True, None)
        await sink.publish(page(31, 32), tail)


KAFKA = pytest.param("kafka://127.0.0.1:9/x", marks=pytest.mark.kafka)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x", "nats://127.0.0.1:9/X", KAFKA])
async def test_where_nobody_listens_a_sink_is_away(address: str) -> None:
    with pytest.raises(SinkAway):
        async with open_sink(SinkTarget("west", "one", address)) as sink:
            await sink.publish([event(1)], await sink.begin())


@pytest.mark.parametrize(
    "address", ["", "nats://x", "kafka://x:9092", "ftp://x/y", "https://", "nats://u:secret@x:1/Y"]
)
def test_an_address_that_names_no_sink_is_refused_without_its_secrets(address: str) -> None:
    with pytest.raises(SinkUnclear) as refusal:
        open_sink(SinkTarget("west", "one", address))
    assert "secret" not in str(refusal.value)
