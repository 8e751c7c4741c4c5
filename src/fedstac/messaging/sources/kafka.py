"""Apache Kafka as the log of an event source: all partitions of a topic, no group; the follower keeps the offsets."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Message

from fedstac.domain.events import Cursor
from fedstac.messaging import kafka
from fedstac.messaging.kafka import (
    Brokers,
    KafkaAway,
    KafkaRefused,
    OwnThread,
    Range,
    Topic,
    TopicReader,
    text_headers,
)
from fedstac.messaging.sinks import tail_after
from fedstac.messaging.sources import Offsets, SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.messaging.sources.chain import LogMessage

SILENCE_SECONDS = 5.0  # after which the brokers are asked whether they are there, and the topic what it was
NEAR_ENOUGH = 1000  # messages that are read again rather than searched
AROUND = 200  # messages before and after an offset that is a hint


def open_log(address: BrokerAddress) -> KafkaLog:
    """Return the topic of an address, not yet connected."""
    return KafkaLog(address)


class KafkaLog:
    """The messages of a topic."""

    def __init__(self, address: BrokerAddress) -> None:
        self._address = address
        self._thread = OwnThread()
        self._properties: Mapping[str, Any] = {}
        self._reader: TopicReader | None = None
        self._brokers: Brokers | None = None
        self._topic: Topic | None = None
        self._next_offsets: dict[int, int] = {}  # by partition, where the brokers are read on
        self._checked_at = 0.0  # when the brokers last answered, by time.monotonic

    async def __aenter__(self) -> Self:
        with as_source_errors():
            await self._thread.run(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.close(self._release)

    @property
    def identity(self) -> str:
        """The topic's id."""
        return self._topic.id if self._topic is not None else ""

    async def seek(self, after: Cursor, offsets: Offsets) -> Collection[str]:
        """Go where events after a cursor may begin, and return the names of all partitions."""
        with as_source_errors():
            return await self._thread.run(self._seek, after, offsets)

    async def read(self, limit: int, wait: float, *, without: Collection[str]) -> Sequence[LogMessage]:
        """Return the next messages, after up to `wait` seconds; none of the partitions `without`.

        A topic that was made anew or got partitions is noticed when it has nothing to give, and then is SourceAway.
        """
        with as_source_errors():
            return await self._thread.run(self._read, limit, wait, frozenset(map(int, without)))

    # --- in the thread of the consumer

    def _open(self) -> None:
        self._properties = kafka.read_properties(self._address)
        self._reader = TopicReader(self._address, self._properties, self._thread)

    def _seek(self, after: Cursor, offsets: Offsets) -> list[str]:
        reader = self._open_reader()
        self._brokers = Brokers(self._address, self._properties, self._thread)
        self._topic = self._brokers.topic()
        if self._topic is None:
            raise KafkaAway(f"{self._address}: there is no such topic yet")
        scout = TopicReader(self._address, self._properties, self._thread, looks_around=True)
        try:
            ranges = scout.ranges(range(self._topic.partitions))
            hints = {int(name): offset for name, offset in offsets.items() if name.isdecimal() and int(name) in ranges}
            self._next_offsets = _search(scout, ranges, hints, after)
        finally:
            scout.close()
        reader.go_to(self._next_offsets)
        self._checked_at = time.monotonic()
        return [str(partition) for partition in ranges]

    def _read(self, limit: int, wait: float, without: frozenset[int]) -> list[LogMessage]:
        reader, deadline = self._open_reader(), time.monotonic() + wait
        reader.hold_back(without)
        while True:
            batch = reader.read(limit, min(max(deadline - time.monotonic(), 0.0), SILENCE_SECONDS))
            if batch.messages:
                self._checked_at = time.monotonic()
                self._next_offsets |= {message.partition(): message.offset() + 1 for message in batch.messages}
                return [_log_message(message) for message in batch.messages]
            if time.monotonic() > self._checked_at + SILENCE_SECONDS:
                self._check_topic()
            if time.monotonic() >= deadline:
                return []

    def _check_topic(self) -> None:
        """Raise KafkaAway where no broker answers, or the topic is not the one whose offsets we have."""
        if self._brokers is None or self._brokers.topic() != self._topic:
            raise KafkaAway(f"{self._address}: the topic was made anew, or has other partitions; looking for our place")
        self._checked_at = time.monotonic()

    def _open_reader(self) -> TopicReader:
        if self._reader is None:
            raise KafkaAway("the client was closed")
        return self._reader

    def _release(self) -> None:
        self._brokers = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _search(
    reader: TopicReader, ranges: Mapping[int, Range], hints: Mapping[int, int], after: Cursor
) -> dict[int, int]:
    """Return, by partition, an offset that is at or shortly before the first event after a cursor.

    (epoch, pos) grows within a partition, a redrive counts as the tail that it names. All partitions are searched at
    once, by halves; a hint says where to look first. What is no event of a relay cannot be searched: there the hint
    decides.
    """
    bounds = dict(ranges)  # `low`: a message at or before the cursor, or the beginning; `high`: one after, or the end
    looks = {
        partition: [hint - AROUND, hint + AROUND]
        for partition, hint in hints.items()
        if ranges[partition].low <= hint <= ranges[partition].high
    }
    while True:
        probes = {}
        for partition, limits in bounds.items():
            if limits.high - limits.low <= NEAR_ENOUGH:
                continue
            queue = looks.get(partition, [])
            probe = queue.pop(0) if queue else (limits.low + limits.high) // 2
            probes[partition] = min(max(probe, limits.low + 1), limits.high - 1)
        if not probes:
            return {partition: limits.low for partition, limits in bounds.items()}
        messages = reader.first_messages(probes)
        for partition, probe in probes.items():
            limits, message = bounds[partition], messages.get(partition)
            try:
                is_after = message is None or tail_after(text_headers(message)) > after
            except (LookupError, ValueError):
                start = hints.get(partition, limits.low)
                bounds[partition] = Range(start, start)
                continue
            if message is None or is_after:
                bounds[partition] = Range(limits.low, probe)
            else:
                bounds[partition] = Range(min(message.offset(), limits.high), limits.high)


def _log_message(message: Message) -> LogMessage:
    return LogMessage(str(message.partition()), message.offset(), text_headers(message), message.value() or b"")


@contextmanager
def as_source_errors() -> Iterator[None]:
    """Raise the errors of a client as those of sources."""
    try:
        yield
    except KafkaAway as error:
        raise SourceAway(str(error)) from error
    except KafkaRefused as error:
        raise SourceRefused(str(error)) from error
