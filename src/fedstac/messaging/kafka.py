"""Apache Kafka, as sinks, sources and status topics use it: properties of a client, a topic, and a reader of it.

A client is used in one thread of its own. What it does there ends within seconds once the client is closed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from fedstac.messaging.sources.addresses import BrokerAddress

LARGEST_MESSAGE = 8_912_896  # bytes: an event of 8 MiB and its headers
ANSWER_SECONDS, SLICE_SECONDS = 5.0, 0.5
DOWN_SECONDS = 2.0  # that an answer is waited for while all brokers are down
TRANSACTION_SECONDS = 30.0  # after which the brokers end one whose relay is gone
AT_ONCE = 1000  # messages
QUEUE_KILOBYTES = 16 << 10  # that a reader fetches ahead
FETCH_BYTES = 16 << 20  # of all partitions at once
LOOK_BYTES = 1 << 20  # of a partition for each look; one larger message is fetched, too
PARTITIONS = 6  # of a topic that is made, where the address names none
ERRORS = (KafkaException, BufferError, SystemError)  # that the client raises, as `error_of` reads them
AWAY = frozenset((KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._TIMED_OUT))
REFUSALS = frozenset((
    KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM, KafkaError.UNSUPPORTED_VERSION, KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_PARTITIONS, KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_TRANSACTION_TIMEOUT, KafkaError._AUTHENTICATION, KafkaError._SSL,
    KafkaError._UNSUPPORTED_FEATURE, KafkaError._INVALID_ARG,
))  # fmt: skip
# Of a broker that has just started, and learns what it leads.
STARTING = frozenset((
    KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.OFFSET_NOT_AVAILABLE,
))  # fmt: skip
# What a file of properties may set: how to reach a broker and who we are. The rest is what the guarantees stand on.
PROPERTIES = ("broker.", "client.", "enable.ssl.", "reconnect.", "sasl.", "security.", "socket.", "ssl.")
LARGEST_FILE = 64 << 10
T = TypeVar("T")

LOST = "returned NULL without setting an exception"  # of a method of the client, in which a callback failed
_QUIET = logging.Logger("kafka", logging.CRITICAL + 1)


class KafkaAway(Exception):
    """The brokers do not answer, or fail for the moment."""


class KafkaRefused(Exception):
    """The brokers refuse this client, or are not set up for it: an operator has to see to it."""


def error_of(exception: BaseException) -> KafkaError:
    """Return what an exception of the client is about.

    A fatal error that comes while it calls us back is the cause of a SystemError, or is lost: the next call tells it.
    Any other SystemError is raised.
    """
    if isinstance(exception, SystemError) and LOST in str(exception):
        return KafkaError(KafkaError._FATAL, str(exception))
    cause = exception.__cause__ if isinstance(exception, SystemError) else exception
    if isinstance(cause, BufferError):
        return KafkaError(KafkaError._QUEUE_FULL)
    if not isinstance(cause, KafkaException):
        raise exception
    error: KafkaError = cause.args[0]
    return error


def as_fault(error: KafkaError, address: BrokerAddress) -> KafkaAway | KafkaRefused:
    """Return an error of the client as one of ours."""
    text = f"{address}: {error.str()}"
    return KafkaRefused(text) if error.code() in REFUSALS else KafkaAway(text)


def read_properties(address: BrokerAddress) -> dict[str, Any]:
    """Return the properties of a client of the address's brokers, with those of the file that `config` names.

    KafkaRefused where the file cannot be read or sets what is not its to set; its values are never shown.
    """
    properties: dict[str, Any] = {
        "client.id": "fedstac",
        "logger": _QUIET,  # what fails is raised
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
    }
    if file := address.options.get("config"):
        properties |= _read_file(Path(file))
    return properties | {"bootstrap.servers": ",".join(address.servers)}


def _read_file(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8") as file:
            lines = file.read(LARGEST_FILE).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KafkaRefused(f"the file of Kafka's properties {path} cannot be read: {_reason(error)}") from None
    properties = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, separator, value = (part.strip() for part in line.partition("="))
        if not separator or not name.startswith(PROPERTIES):
            raise KafkaRefused(
                f"line {number} of {path} is no property=value that it may set: those of librdkafka that begin with "
                f"{', '.join(PROPERTIES)}"
            )
        properties[name] = value
    return properties


def _reason(error: Exception) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else "it is no text"


class OwnThread:
    """The one thread in which a client is used. `check` tells it to come to an end."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kafka")
        self._closing = threading.Event()

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    async def run(self, work: Callable[..., T], *arguments: object, **options: object) -> T:
        """Return the outcome of some work. Cancelled, the work itself goes on until it looks at `check`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(work, *arguments, **options))

    async def close(self, release: Callable[[], object]) -> None:
        """End what is under way, and let go of the client there."""
        self._closing.set()
        try:
            await asyncio.shield(self.run(release))
        finally:
            self._executor.shutdown(wait=False)

    def check(self) -> None:
        """Raise KafkaAway if the client is closed."""
        if self._closing.is_set():
            raise KafkaAway("the client was closed")

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until the client is closed."""
        self._closing.wait(seconds)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as its broker describes it. `id` changes when it is made anew."""

    name: str
    id: str
    partitions: int


class Brokers:
    """What is asked of the brokers about a topic. To be used in one thread."""

    def __init__(self, address: BrokerAddress, properties: Mapping[str, Any], thread: OwnThread) -> None:
        self._address, self._thread = address, thread
        self._latest_error: KafkaError | None = None
        self._client = self._make_client(lambda: AdminClient({**properties, "error_cb": self._note}))

    def topic(self) -> Topic | None:
        """Return the topic; None where there is none. Wait until each partition has a leader."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            futures = self._client.describe_topics(
                TopicCollection([self._address.name]), request_timeout=ANSWER_SECONDS
            )
            try:
                description = self._result(futures[self._address.name])
            except KafkaException as error:
                if error_of(error).code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    return None
                raise self._fault(error) from error
            partitions = description.partitions
            if partitions and all(partition.leader is not None for partition in partitions):
                return Topic(self._address.name, str(description.topic_id), len(partitions))
            if time.monotonic() > deadline:
                raise KafkaAway(f"{self._address}: a partition of the topic has no leader")
            self._thread.pause(0.05)

    def make_topic(self, partitions: int) -> Topic:
        """Make the topic, if nobody has meanwhile, and return it."""
        topic = NewTopic(
            self._address.name, num_partitions=partitions, replication_factor=-1,
            config={
                "cleanup.policy": "delete",
                "max.message.bytes": str(LARGEST_MESSAGE),
                "retention.ms": "-1",  # an audit takes for lost what is not there, and sends it again
                "message.timestamp.type": "LogAppendTime",  # so that no clock of ours decides anything
            },
        )  # fmt: skip
        futures = self._client.create_topics([topic], operation_timeout=ANSWER_SECONDS, request_timeout=ANSWER_SECONDS)
        try:
            self._result(futures[self._address.name])
        except KafkaException as error:
            if error_of(error).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise self._fault(error) from error
        deadline = time.monotonic() + ANSWER_SECONDS
        while (made_topic := self.topic()) is None:  # the brokers tell each other
            if time.monotonic() > deadline:
                raise KafkaAway(f"{self._address}: the topic was made, and does not show up")
            self._thread.pause(0.05)
        return made_topic

    def ends(self, partitions: int) -> dict[int, int]:
        """Return where each partition ends, with what open transactions have written."""
        places = [TopicPartition(self._address.name, partition) for partition in range(partitions)]
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            futures = self._client.list_offsets(
                dict.fromkeys(places, OffsetSpec.latest()), isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=ANSWER_SECONDS,
            )  # fmt: skip
            try:
                return {place.partition: int(self._result(future).offset) for place, future in futures.items()}
            except KafkaException as error:
                if error_of(error).code() not in STARTING or time.monotonic() > deadline:
                    raise self._fault(error) from error
                self._thread.pause(0.05)

    def topic_setting(self, name: str) -> str | None:
        """Return a setting of the topic; None where we may not ask."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, self._address.name)
        futures = self._client.describe_configs([resource], request_timeout=ANSWER_SECONDS)
        try:
            settings = self._result(futures[resource])
        except KafkaException as error:
            if isinstance(self._fault(error), KafkaRefused):
                return None
            raise self._fault(error) from error
        return str(settings[name].value) if name in settings else None

    def _result(self, future: Future[Any]) -> Any:
        begin = time.monotonic()
        while True:
            self._thread.check()
            self._client.poll(0)  # it calls `_note`
            try:
                return future.result(timeout=SLICE_SECONDS)
            except TimeoutError:
                error, seconds = self._latest_error, time.monotonic() - begin
                if error is not None and (
                    error.code() in REFUSALS or (error.code() in AWAY and seconds > DOWN_SECONDS)
                ):
                    raise as_fault(error, self._address) from None
                if seconds > ANSWER_SECONDS + 1:
                    raise KafkaAway(f"{self._address}: no answer") from None

    def _fault(self, exception: KafkaException) -> KafkaAway | KafkaRefused:
        """Return what an error means; one that says only that time ran out, by what the connection said before."""
        error = error_of(exception)
        if error.code() in AWAY and self._latest_error is not None:
            error = self._latest_error
        return as_fault(error, self._address)

    def _note(self, error: KafkaError) -> None:
        self._latest_error = error

    def _make_client(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except KafkaException as error:  # a property that librdkafka does not know, a file that is not there
            raise KafkaRefused(f"{self._address}: {error_of(error).str()}") from error


@dataclass(frozen=True, slots=True)
class Range:
    """The offsets that a partition has: from `low` to before `high`."""

    low: int
    high: int


def open_ranges(ranges: Mapping[int, Range], ends: Mapping[int, int]) -> dict[int, Range]:
    """Return the offsets from the first open transaction on, of the partitions that have one."""
    return {
        partition: Range(each.high, ends[partition])
        for partition, each in ranges.items()
        if each.high < ends[partition]
    }


@dataclass(frozen=True, slots=True)
class MessageBatch:
    """Messages in their order within each partition, and the partitions that had no more."""

    messages: Sequence[Message]
    ended: frozenset[int] = field(default_factory=frozenset)


class TopicReader:
    """Reads messages from chosen offsets, without a group. To be used in one thread.

    Nothing is stored at the broker: who reads keeps the offsets. `looks_around`: it will read a message here and one
    there, so it fetches little and the brokers do not wait for more. `is_committed`: False shows what open and aborted
    transactions have written, too.
    """

    def __init__(
        self, address: BrokerAddress, properties: Mapping[str, Any], thread: OwnThread, *,
        looks_around: bool = False, is_committed: bool = True,
    ) -> None:  # fmt: skip
        self._address, self._thread = address, thread
        self._paused: frozenset[int] = frozenset()
        self._partitions: frozenset[int] = frozenset()
        self.latest_error: KafkaError | None = None
        try:
            self._consumer: Consumer | None = Consumer({
                **properties,
                "group.id": "fedstac",  # wanted by the client, not used
                "isolation.level": "read_committed" if is_committed else "read_uncommitted",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",  # an offset that is not there is ours to deal with
                "enable.partition.eof": True,
                "fetch.message.max.bytes": LOOK_BYTES if looks_around else LARGEST_MESSAGE,
                "fetch.max.bytes": FETCH_BYTES,
                "fetch.wait.max.ms": 1 if looks_around else 100,
                "fetch.error.backoff.ms": 50,
                "queued.max.messages.kbytes": QUEUE_KILOBYTES,
                "error_cb": self._note,
            })  # fmt: skip
        except KafkaException as error:
            raise KafkaRefused(f"{address}: {error_of(error).str()}") from error

    def ranges(self, partitions: Collection[int]) -> dict[int, Range]:
        """Return the offsets that each partition has, up to the first transaction that is still open."""
        return {partition: self._range(partition) for partition in partitions}

    def _range(self, partition: int) -> Range:
        place = TopicPartition(self._address.name, partition)
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            self._thread.check()
            try:
                offsets = self._client.get_watermark_offsets(place, timeout=ANSWER_SECONDS)
            except KafkaException as error:
                if error_of(error).code() not in STARTING or time.monotonic() > deadline:
                    raise as_fault(error_of(error), self._address) from error
                self._thread.pause(0.05)
                continue
            if offsets is None:
                raise KafkaAway(f"{self._address}: no answer")
            return Range(*offsets)

    def settled_ranges(self, ends: Mapping[int, int], seconds: float) -> dict[int, Range]:
        """Return the offsets of each partition, when every transaction that wrote before these ends is over.

        A transaction whose end was acknowledged is marked so in the partitions a moment later. After `seconds` return
        what there is: `high` is before the end where a transaction is open.
        """
        deadline = time.monotonic() + seconds
        while True:
            ranges = self.ranges(ends)
            if not open_ranges(ranges, ends) or time.monotonic() > deadline:
                return ranges
            self._thread.pause(0.02)

    def number_of_partitions(self) -> int:
        """Return how many partitions the topic has; 0 where there is no topic."""
        try:
            topic = self._client.list_topics(self._address.name, timeout=ANSWER_SECONDS).topics[self._address.name]
        except KafkaException as error:
            raise as_fault(error_of(error), self._address) from error
        if topic.error is not None and topic.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise as_fault(topic.error, self._address)
        return len(topic.partitions)

    def go_to(self, offsets: Mapping[int, int]) -> None:
        """Read on at these offsets, of these partitions only."""
        self.hold_back(frozenset())  # the client would go on holding back what it is given again
        self._partitions = frozenset(offsets)
        self._call(
            lambda client: client.assign(
                [TopicPartition(self._address.name, partition, offset) for partition, offset in offsets.items()]
            )
        )

    def hold_back(self, partitions: frozenset[int]) -> None:
        """Read nothing of these partitions until they are not among those held back."""
        begins, ends = partitions - self._paused, (self._paused - partitions) & self._partitions
        if begins:
            self._call(lambda client: client.pause(self._places(begins)))
        if ends:
            self._call(lambda client: client.resume(self._places(ends)))
        self._paused = partitions

    def read(self, limit: int, seconds: float) -> MessageBatch:
        """Return the next messages as soon as there is one, or a partition ends; none after `seconds`."""
        deadline = time.monotonic() + seconds
        messages: list[Message] = []
        ended: set[int] = set()
        while not messages and not ended:
            self._thread.check()
            remaining = deadline - time.monotonic()
            first = self._client.poll(max(min(remaining, SLICE_SECONDS), 0))
            rest = self._client.consume(limit - 1, timeout=0) if first is not None and limit > 1 else []
            for message in ([first] if first is not None else []) + rest:
                error = message.error()
                if error is None:
                    messages.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
                elif error.code() not in AWAY:
                    raise as_fault(error, self._address)
            if remaining <= 0:
                break
        return MessageBatch(messages, frozenset(ended))

    def first_messages(self, offsets: Mapping[int, int]) -> dict[int, Message]:
        """Return the first message at or after an offset of each partition; none of those that have none there."""
        self.go_to(offsets)
        return self._until_ended(frozenset(offsets), is_first_enough=True)

    def last_messages(self, ranges: Mapping[int, Range]) -> dict[int, Message]:
        """Return the last message of each partition that has one.

        What ends a transaction has an offset, too, and an aborted one has many: look further and further back.
        """
        messages: dict[int, Message] = {}
        pending = {partition: each for partition, each in ranges.items() if each.high > each.low}
        back = 2
        while pending:
            self.go_to({partition: max(each.low, each.high - back) for partition, each in pending.items()})
            messages |= self._until_ended(frozenset(pending), is_first_enough=False)
            pending = {
                partition: each
                for partition, each in pending.items()
                if partition not in messages and each.high - back > each.low
            }
            back *= 16
        return messages

    def messages_in(self, ranges: Mapping[int, Range]) -> Iterator[Message]:
        """Read the messages of these offsets."""
        self.go_to({partition: each.low for partition, each in ranges.items()})
        open_partitions = set(ranges)
        deadline = time.monotonic() + ANSWER_SECONDS
        while open_partitions:
            batch = self.read(AT_ONCE, SLICE_SECONDS)
            for message in batch.messages:
                high = ranges[message.partition()].high
                if message.offset() < high:
                    yield message
                if message.offset() >= high - 1:
                    open_partitions.discard(message.partition())
            open_partitions -= batch.ended
            if batch.messages or batch.ended:
                deadline = time.monotonic() + ANSWER_SECONDS
            elif time.monotonic() > deadline:
                raise self.silence()

    def _until_ended(self, partitions: frozenset[int], *, is_first_enough: bool) -> dict[int, Message]:
        """Return the first or the last message of each partition from where it is to its end."""
        messages: dict[int, Message] = {}
        open_partitions = set(partitions)
        deadline = time.monotonic() + ANSWER_SECONDS
        while open_partitions:
            batch = self.read(100, deadline - time.monotonic())
            for message in batch.messages:
                if is_first_enough:
                    messages.setdefault(message.partition(), message)
                    open_partitions.discard(message.partition())
                else:
                    messages[message.partition()] = message
            open_partitions -= batch.ended
            if batch.messages or batch.ended:
                deadline = time.monotonic() + ANSWER_SECONDS
            elif time.monotonic() > deadline:
                raise self.silence()
            if is_first_enough:
                self.hold_back(partitions - open_partitions)
        return messages

    def silence(self) -> KafkaAway | KafkaRefused:
        """Return what it means that nothing comes."""
        if self.latest_error is not None:
            return as_fault(self.latest_error, self._address)
        return KafkaAway(f"{self._address}: no answer")

    def close(self) -> None:
        """Let go of the connection."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    @property
    def _client(self) -> Consumer:
        if self._consumer is None:
            raise KafkaAway("the client was closed")
        return self._consumer

    def _places(self, partitions: Collection[int]) -> list[TopicPartition]:
        return [TopicPartition(self._address.name, partition) for partition in partitions]

    def _call(self, call: Callable[[Consumer], object]) -> None:
        try:
            call(self._client)
        except KafkaException as error:
            raise as_fault(error_of(error), self._address) from error

    def _note(self, error: KafkaError) -> None:
        self.latest_error = error


def text_headers(message: Message) -> dict[str, str]:
    """Return the headers of a message as text; of several with one name the last."""
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value or ""
        for name, value in message.headers() or ()
    }
