"""Apache Kafka as an event sink: a page is one transaction, and who begins later fences who began earlier.

A topic carries one feed only. The partition of an event is crc32 of its key, as librdkafka's own clients have it and as
the shards of GET /events.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog
from confluent_kafka import KafkaError, Message, Producer

from fedstac.domain.events import START, Cursor
from fedstac.messaging import kafka
from fedstac.messaging.kafka import (
    SLICE_SECONDS,
    Brokers,
    KafkaAway,
    KafkaRefused,
    OwnThread,
    Range,
    Topic,
    TopicReader,
    error_of,
    text_headers,
)
from fedstac.messaging.sinks import (
    Fenced,
    OutgoingEvent,
    PageRefused,
    PartitionTail,
    SinkAway,
    SinkRefused,
    SinkTarget,
    SinkUnclear,
    StoredEvent,
    Tail,
    TailMoved,
    cursor_of,
    cursors_of,
    is_redrive,
    place_headers,
    tail_after,
)
from fedstac.messaging.sources.addresses import BrokerAddress

T = TypeVar("T")
OPTIONS = ("config", "partitions", "status")  # of an address
MOST_PARTITIONS = 1000
MARK_SECONDS = 2.0  # for the brokers to mark the end of a transaction in all partitions
FENCE_SECONDS, PUBLISH_SECONDS, COMMIT_SECONDS, ABORT_SECONDS = 15.0, 20.0, 10.0, 10.0
POLL_EVENTS = 200  # after how many the outcomes of earlier ones are looked at

# By which the fault is an event's, for ever. All else may pass, or is an operator's.
OF_AN_EVENT = frozenset((KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP))
log = structlog.get_logger()
FENCES = frozenset((KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH))


def read_address(text: str) -> BrokerAddress:
    """Read `kafka://host:port,host:port/topic?partitions=6&config=FILE`. SinkUnclear where it is none."""
    try:
        address = BrokerAddress.parse(text, options=OPTIONS)
    except ValueError as error:
        raise SinkUnclear(str(error)) from None
    partitions = address.options.get("partitions", "1")
    if not partitions.isascii() or not partitions.isdecimal() or not 0 < int(partitions[:9]) <= MOST_PARTITIONS:
        raise SinkUnclear(f"a topic has from 1 to {MOST_PARTITIONS} partitions, not {partitions[:20]!r}")
    return address


class KafkaSink:
    """A topic that takes the events of one feed."""

    def __init__(self, target: SinkTarget) -> None:
        self._address = address = read_address(target.address)
        # of whoever sends this feed to the topic, be it for two sinks: the later one fences the earlier one
        self._transactional_id = f"fedstac/{target.origin}/{address.name}"
        self._thread = OwnThread()
        self._properties: Mapping[str, Any] = {}
        self._producer: Producer | None = None
        self._brokers: Brokers | None = None
        self._topic = Topic(address.name, "", 1)
        self._latest_error: KafkaError | None = None
        self._was_alone = False  # no broker could be reached for a while

    async def __aenter__(self) -> Self:
        with _as_sink_errors():
            self._properties = await self._thread.run(kafka.read_properties, self._address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.close(self._release)

    async def begin(self) -> Tail:
        """Return where the topic ends; make it if it is not there. Relays that began earlier write no more."""
        with _as_sink_errors():
            return await self._thread.run(self._begin)

    async def publish(self, events: Sequence[OutgoingEvent], tail: Tail) -> Tail:
        """Store a page as one transaction, and return the new tail."""
        with _as_sink_errors():
            return await self._thread.run(self._publish, events, tail)

    async def check(self, tail: Tail) -> None:
        """Do nothing if the brokers answer and the topic is the same."""
        with _as_sink_errors():
            await self._thread.run(self._check, tail)

    def partition_of(self, event: OutgoingEvent) -> str:
        """Return the partition of an event's key, in the topic as `begin` saw it."""
        return str(self._partition(event))

    async def is_dense(self, after: int, through: int) -> bool | None:
        """Return None: offsets of Kafka count more than events, so its counters prove nothing."""
        return None

    async def stored_events(self) -> AsyncIterator[StoredEvent]:
        """Read the places of all events of the topic, each with its whole message: Kafka gives no headers alone."""
        thread = OwnThread()
        audit = _Audit(self._address, self._properties, thread)
        with _as_sink_errors():
            try:
                await thread.run(audit.open)
                while events := await thread.run(audit.read):
                    for event in events:
                        yield event
            finally:
                await thread.close(audit.close)

    # --- in the thread of the producer

    def _begin(self) -> Tail:
        brokers = self._brokers = Brokers(self._address, self._properties, self._thread)
        self._topic = brokers.topic() or brokers.make_topic(
            int(self._address.options.get("partitions", kafka.PARTITIONS))
        )
        self._check_topic(brokers)
        self._fence()
        reader = TopicReader(self._address, self._properties, self._thread, looks_around=True)
        try:
            ends = brokers.ends(self._topic.partitions)
            ranges = reader.settled_ranges(ends, MARK_SECONDS)
            if torn := kafka.open_ranges(ranges, ends):
                self._end_torn_transaction(torn, reader.last_messages(ranges))
                ends = brokers.ends(self._topic.partitions)
                ranges = reader.settled_ranges(ends, MARK_SECONDS)
            if kafka.open_ranges(ranges, ends):
                raise SinkAway(
                    f"{self._address}: a transaction of another producer is open in the topic; kafka-transactions.sh "
                    f"find-hanging shows it, and abort ends it"
                )
            last = reader.last_messages(ranges)
        finally:
            reader.close()
        tails = {
            str(partition): PartitionTail(message.offset(), _place(tail_after, message))
            for partition, message in last.items()
        }
        self._open_producer().poll(0)
        self._was_alone = False
        return Tail(self._topic.id, tails)

    def _end_torn_transaction(self, torn: Mapping[int, Range], visible: Mapping[int, Message]) -> None:
        """End what a relay before this one wrote, in the partitions where the brokers never did.

        A broker that is killed right after a commit may come back, take the transaction for complete, and never mark
        it in some partitions: consumers stand still there for ever. The next end of a transaction of the same producer
        is the mark that is missing. If no consumer has seen a part of the page it is given up: the tail lacks it, and
        it is sent again. Else it is committed, for it was.
        """
        first: Cursor | None = None
        last: dict[int, Message] = {}
        reader = TopicReader(self._address, self._properties, self._thread, is_committed=False)
        try:
            for message in reader.messages_in(torn):
                last[message.partition()] = message
                if not is_redrive(text_headers(message)):
                    cursor = _place(cursor_of, message)
                    first = cursor if first is None else min(first, cursor, key=_order)
        finally:
            reader.close()
        was_committed = first is None or any(
            _order(_place(tail_after, message)) > _order(first) for message in visible.values()
        )
        producer = self._open_producer()
        self._call(producer.begin_transaction)
        for partition, message in last.items():  # a transaction has to write something; consumers know it already
            headers = {**text_headers(message), "redrive": "1", "tail": str(_place(tail_after, message))}
            producer.produce(self._topic.name, message.value(), message.key(), partition, headers=headers)
        producer.flush(PUBLISH_SECONDS)
        end = producer.commit_transaction if was_committed else producer.abort_transaction
        self._until_done(end, COMMIT_SECONDS)
        log.warning(
            "a broker had left a transaction without its end; it is ended", topic=self._topic.name,
            partitions=sorted(torn), was_committed=was_committed,
        )  # fmt: skip

    def _check_topic(self, brokers: Brokers) -> None:
        partitions = self._address.options.get("partitions")
        if partitions is not None and int(partitions) != self._topic.partitions:
            raise SinkRefused(
                f"the topic {self._topic.name} has {self._topic.partitions} partitions, and the sink's address says "
                f"{partitions}. With another number the events of a dataset change their partition: name the number "
                f"that the topic has, or another topic"
            )
        policy = brokers.topic_setting("cleanup.policy")
        if policy is not None and "compact" in policy:
            raise SinkRefused(
                f"the topic {self._topic.name} is compacted, so events would be lost: set its cleanup.policy to delete"
            )

    def _fence(self) -> None:
        """Open a producer, which ends what an earlier one of the same id has under way."""
        self._producer = Producer({
            **self._properties,
            "transactional.id": self._transactional_id,
            "transaction.timeout.ms": int(kafka.TRANSACTION_SECONDS * 1000),
            "message.max.bytes": kafka.LARGEST_MESSAGE,
            "linger.ms": 5,
            "error_cb": self._note,
        })  # fmt: skip
        self._until_done(self._producer.init_transactions, FENCE_SECONDS)

    def _publish(self, events: Sequence[OutgoingEvent], tail: Tail) -> Tail:
        producer = self._open_producer()
        self._check_connection(producer)
        cursors = {partition: each.cursor for partition, each in tail.partitions.items()}
        outcomes = _Outcomes()
        self._call(producer.begin_transaction)
        try:
            for number, event in enumerate(events):
                partition = self._partition(event)
                cursor = cursors.setdefault(str(partition), START)
                headers = {**event.headers, **place_headers(event, cursor)}
                producer.produce(
                    self._topic.name, event.value, event.key.encode(), partition, outcomes.note, headers=headers
                )
                if not event.is_redrive:
                    cursors[str(partition)] = event.cursor
                if number % POLL_EVENTS == 0:
                    producer.poll(0)
            deadline = time.monotonic() + PUBLISH_SECONDS
            while not outcomes.errors and producer.flush(SLICE_SECONDS):
                self._thread.check()
                if time.monotonic() > deadline:
                    raise self._silence()
        except kafka.ERRORS as error:
            outcomes.errors.append(error_of(error))
        if outcomes.errors:
            raise self._refusal(producer, outcomes.errors)
        self._until_done(producer.commit_transaction, COMMIT_SECONDS)
        ends = {
            str(partition): PartitionTail(offset, cursors[str(partition)])
            for partition, offset in outcomes.offsets.items()
        }
        return Tail(tail.identity, {**tail.partitions, **ends})

    def _check(self, tail: Tail) -> None:
        if self._brokers is None:
            raise RuntimeError("begin comes before check")
        self._check_connection(self._open_producer())
        topic = self._brokers.topic()
        if topic is None or topic.id != tail.identity:
            raise TailMoved(f"{self._address}: the topic is another one than at the last page")

    def _check_connection(self, producer: Producer) -> None:
        """Raise SinkAway where no broker was there for a while: one that was killed may have torn the last page."""
        producer.poll(0)  # it calls `_note`
        if self._was_alone:
            raise SinkAway(f"{self._address}: all brokers were away since the last page; looking where the topic ends")

    def _refusal(self, producer: Producer, errors: Sequence[KafkaError]) -> Exception:
        """Give the transaction up, and return what that means. The brokers store nothing of it."""
        try:
            self._until_done(producer.abort_transaction, ABORT_SECONDS)
        except (Fenced, SinkAway, SinkRefused, KafkaAway) as error:
            return error
        faults = [self._fault(error) for error in errors]
        of_events = [error for error in errors if error.code() in OF_AN_EVENT]
        for kind in (Fenced, SinkRefused):
            if of_kind := [fault for fault in faults if isinstance(fault, kind)]:
                return of_kind[0]
        # what was in one batch or behind it fails with the event that is at fault, for other reasons
        return PageRefused(f"{self._address}: {of_events[0].str()}") if of_events else faults[0]

    def _until_done(self, call: Callable[[float], object], seconds: float) -> None:
        """Call until it is done. It takes up again what it had not done in its time."""
        deadline = time.monotonic() + seconds
        while True:
            self._thread.check()
            try:
                call(SLICE_SECONDS)
                return
            except kafka.ERRORS as exception:
                error = error_of(exception)
                if (latest := self._latest_error) is not None and latest.code() in kafka.REFUSALS:
                    raise SinkRefused(f"{self._address}: {latest.str()}") from exception
                if not error.retriable():
                    raise self._fault(error) from exception
                if time.monotonic() > deadline:
                    raise self._silence() from exception
                if error.code() != KafkaError._TIMED_OUT:
                    self._thread.pause(0.05)

    def _call(self, call: Callable[[], object]) -> None:
        try:
            call()
        except kafka.ERRORS as error:
            raise self._fault(error_of(error)) from error

    def _fault(self, error: KafkaError) -> Exception:
        if error.code() in FENCES:
            return Fenced(f"{self._address}: {error.str()}")
        fault = kafka.as_fault(error, self._address)
        return SinkRefused(str(fault)) if isinstance(fault, KafkaRefused) else SinkAway(str(fault))

    def _silence(self) -> SinkAway:
        reason = self._latest_error.str() if self._latest_error is not None else "no answer"
        return SinkAway(f"{self._address}: {reason}")

    def _open_producer(self) -> Producer:
        if self._producer is None:
            raise RuntimeError("begin comes before publish, and nothing after the end of the sink")
        return self._producer

    def _partition(self, event: OutgoingEvent) -> int:
        return zlib.crc32(event.key.encode()) % self._topic.partitions

    def _note(self, error: KafkaError) -> None:
        self._latest_error = error
        self._was_alone = self._was_alone or error.code() == KafkaError._ALL_BROKERS_DOWN

    def _release(self) -> None:
        """Let go of the producer, and of what it has not sent.

        An error that somebody still looks at may keep it alive. It would send the page to a broker that comes back,
        where a broker that has lost everything cannot tell it from the one that begins after it. Its `close` would wait
        for an answer to the transaction that it has open.
        """
        producer, self._producer, self._brokers = self._producer, None, None
        if producer is not None:
            producer.purge()


def _order(cursor: Cursor) -> tuple[int, int]:
    return cursor.epoch, cursor.pos


class _Outcomes:
    """What became of the messages of a transaction. offsets: of the last one, by partition."""

    def __init__(self) -> None:
        self.errors: list[KafkaError] = []
        self.offsets: dict[int, int] = {}

    def note(self, error: KafkaError | None, message: Message) -> None:
        """Take the outcome of a message; those of a partition come in their order."""
        if error is not None:
            self.errors.append(error)
        else:
            self.offsets[message.partition()] = message.offset()


class _Audit:
    """Reads a topic from its beginning to where it ends now. To be used in one thread."""

    def __init__(self, address: BrokerAddress, properties: Mapping[str, Any], thread: OwnThread) -> None:
        self._address, self._properties, self._thread = address, properties, thread
        self._reader: TopicReader | None = None
        self._messages: Iterator[Message] = iter(())

    def open(self) -> None:
        """Find out where the topic ends, and begin to read."""
        brokers = Brokers(self._address, self._properties, self._thread)
        topic = brokers.topic()
        if topic is None:
            return
        self._reader = TopicReader(self._address, self._properties, self._thread)
        ends = brokers.ends(topic.partitions)
        ranges = self._reader.settled_ranges(ends, kafka.TRANSACTION_SECONDS + MARK_SECONDS)
        if kafka.open_ranges(ranges, ends):
            raise KafkaAway(
                f"{self._address}: a transaction in the topic does not come to its end; a relay that starts ends it"
            )
        self._messages = self._reader.messages_in(
            {partition: each for partition, each in ranges.items() if each.high > each.low}
        )

    def close(self) -> None:
        """Let go of the connection."""
        if self._reader is not None:
            self._reader.close()

    def read(self) -> list[StoredEvent]:
        """Return the next events; none at the end."""
        return [
            StoredEvent(
                str(message.partition()),
                message.offset(),
                place,
                is_redrive=is_redrive(text_headers(message)),
            )
            for message in islice(self._messages, kafka.AT_ONCE)
            for place in _place(cursors_of, message)
        ]


def _place(read: Callable[[Mapping[str, str]], T], message: Message) -> T:
    try:
        return read(text_headers(message))
    except (LookupError, ValueError):
        raise SinkRefused(
            f"the topic {message.topic()} has a message that no relay wrote (partition {message.partition()}, offset "
            f"{message.offset()}); it has to have the events of one feed and nothing else: name another topic"
        ) from None


@contextmanager
def _as_sink_errors() -> Iterator[None]:
    """Raise the errors of a client as those of sinks."""
    try:
        yield
    except KafkaAway as error:
        raise SinkAway(str(error)) from error
    except KafkaRefused as error:
        raise SinkRefused(str(error)) from error
