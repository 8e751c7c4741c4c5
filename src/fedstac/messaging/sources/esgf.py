"""A topic of Apache Kafka in ESGF's format as an event source. No node is behind it: there is nobody else to ask.

A page's cursor is the number of messages that were read; the offsets beside it say where each partition goes on
(docs/adr/0026).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import structlog

from fedstac.domain.events import START, Cursor
from fedstac.messaging import kafka
from fedstac.messaging.dialects import esgf
from fedstac.messaging.kafka import Brokers, KafkaAway, KafkaRefused, OwnThread, Range, TopicReader
from fedstac.messaging.sources import NO_OFFSETS, EventPage, Offsets, RawEvent, SourceAway
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.messaging.sources.kafka import as_source_errors

EPOCH: Final = 1  # of the cursors
TOPIC: Final = "topic"  # beside the offsets: which topic they belong to
CHECK_SECONDS: Final = 5.0  # after which the brokers are asked whether the topic is still what it was
log = structlog.get_logger()


class EsgfSource:
    """The messages of a topic, each once, in the order in which the brokers give them."""

    def __init__(self, address: BrokerAddress, origin: str) -> None:
        self._address, self._origin = address, origin
        self._thread = OwnThread()
        self._properties: Mapping[str, Any] = {}
        self._reader: TopicReader | None = None
        self._cursor: Cursor | None = None  # after the last page
        self._offsets: dict[int, int] = {}
        self._topic = 0
        self._checked_at = 0.0  # when they were last asked, by time.monotonic

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.close(self._release)

    async def begin(self, after: Cursor, offsets: Offsets) -> None:
        """Go on at the offsets. SourceRefused where messages in between are gone."""
        with as_source_errors():
            await self._thread.run(self._begin, offsets)
        self._cursor = after

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        """Return the next messages as events, after up to `wait` seconds."""
        if after == START and self._cursor != START:
            await self.begin(START, NO_OFFSETS)
        if after != self._cursor:
            raise SourceAway("the last page was not applied; going back to the place that the database has")
        with as_source_errors():
            events = await self._thread.run(self._receive, after.pos, limit, wait)
        if events:
            self._cursor = Cursor(EPOCH, after.pos + len(events))
        offsets = {str(partition): offset for partition, offset in self._offsets.items()}
        return EventPage(events, self._cursor, {**offsets, TOPIC: self._topic})

    # --- in the thread of the client

    def _begin(self, stored_offsets: Offsets) -> None:
        self._release()
        self._properties = kafka.read_properties(self._address)
        topic = Brokers(self._address, self._properties, self._thread).topic()
        if topic is None:
            raise KafkaAway(f"{self._address}: there is no such topic yet")
        self._topic = int.from_bytes(hashlib.sha256(topic.id.encode()).digest()[:6])
        self._reader = TopicReader(self._address, self._properties, self._thread)
        is_same = stored_offsets.get(TOPIC, self._topic) == self._topic
        if not is_same:
            log.warning("a topic was made anew; it is read from its beginning", topic=str(self._address))
        self._offsets = {
            partition: self._start(partition, limits, stored_offsets.get(str(partition)) if is_same else None)
            for partition, limits in self._reader.ranges(range(topic.partitions)).items()
        }
        self._reader.go_to(self._offsets)
        self._checked_at = time.monotonic()

    def _start(self, partition: int, limits: Range, offset: int | None) -> int:
        """Return where to read on in a partition. KafkaRefused where messages that were not read are gone."""
        if offset is None or offset > limits.high:  # a partition that is new, or lost its end: what comes now is new
            return limits.low
        if offset < limits.low and self._address.options.get("gap") != "accept":
            raise KafkaRefused(
                f"{self._address}: partition {partition} begins with message {limits.low}, and this node has read up "
                f"to {offset}: {limits.low - offset} messages are gone. Nobody else has them; to go on without them, "
                f"add gap=accept to the feed's address"
            )
        return max(offset, limits.low)

    def _receive(self, count: int, limit: int, wait: float) -> list[RawEvent]:
        reader, deadline = self._open_reader(), time.monotonic() + wait
        while True:
            if time.monotonic() > self._checked_at + CHECK_SECONDS:
                self._check_topic(reader)
            batch = reader.read(limit, min(max(deadline - time.monotonic(), 0.0), CHECK_SECONDS))
            if batch.messages:
                break
            if time.monotonic() >= deadline:
                return []
        events = []
        for number, message in enumerate(batch.messages, count + 1):
            partition, offset = message.partition(), message.offset()
            place = f"{self._address.name}/{partition}/{offset}"
            events.append(esgf.raw_event(message.value(), origin=self._origin, place=place, count=number))
            self._offsets[partition] = offset + 1
        return events

    def _check_topic(self, reader: TopicReader) -> None:
        """Raise KafkaAway where no broker answers, or the topic is not the one whose offsets we have."""
        ranges = reader.ranges(self._offsets)
        is_shorter = any(offset > ranges[partition].high for partition, offset in self._offsets.items())
        if is_shorter or reader.number_of_partitions() != len(ranges):
            raise KafkaAway(f"{self._address}: the topic was made anew, or has other partitions; beginning again")
        self._checked_at = time.monotonic()

    def _open_reader(self) -> TopicReader:
        if self._reader is None:
            raise KafkaAway("the client was closed")
        return self._reader

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
