"""NATS JetStream as an event sink: a page is one atomic batch that expects the stream's last sequence number.

A stream carries one feed only. Its name is the first part of the subjects: NAME.<project>.<event type>.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

import nats.errors

from fedstac.domain.events import START
from fedstac.messaging import jetstream
from fedstac.messaging.jetstream import ApiFault, Connection, ServerAway, ServerRefused, StreamReader
from fedstac.messaging.sinks import (
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
PARTITION = ""  # a stream has one
OPTIONS = ("config", "status")  # of an address
ORIGIN = "fedstac.origin"  # says in a stream's metadata whose feed it has
AUDIT_MESSAGES = 1000  # for one request
MOST_HEADERS = 65536  # bytes; only of larger values it matters how large the headers are
OVERHEAD = 100  # bytes, more than the first line of the headers and what a batch adds to them


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """A message of a batch."""

    subject: str
    headers: dict[str, str]
    value: bytes
    event_id: str

    @property
    def headers_size(self) -> int:
        """The bytes of the headers as they are sent, at most."""
        return OVERHEAD + sum(len(name.encode()) + len(value.encode()) + 4 for name, value in self.headers.items())


class NatsSink:
    """A stream that takes the events of one feed."""

    def __init__(self, target: SinkTarget) -> None:
        try:
            self._address = jetstream.stream_of(BrokerAddress.parse(target.address, options=OPTIONS))
        except ValueError as error:
            raise SinkUnclear(str(error)) from None
        self._stream, self._origin = self._address.stream, target.origin
        self._last_tail = target.last_tail
        self._connection = Connection()
        self._last_sequence = 0  # of an empty stream, which has no tail to name it
        self._largest = jetstream.LARGEST_MESSAGE

    async def __aenter__(self) -> Self:
        try:
            with _as_sink_errors():
                await self._connection.open(self._address)
        except BaseException:
            await self._connection.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def begin(self) -> Tail:
        """Return where the stream ends; make it if it is not there."""
        with _as_sink_errors():
            info = await self._info() or await self._make()
            configuration = info["config"]
            if not configuration.get("allow_atomic"):
                raise SinkRefused(
                    f"the stream {self._stream} takes no atomic batches: nats stream edit {self._stream} --allow-batch"
                )
            origin = configuration.get("metadata", {}).get(ORIGIN, self._origin)
            if origin != self._origin:
                raise SinkRefused(
                    f"the stream {self._stream} has the events of {origin}; a stream has those of one node, so name "
                    f"another one for {self._origin}"
                )
            self._set_largest(configuration)
            state = info["state"]
            self._last_sequence = state["last_seq"]
            headers = await self._headers({"last_by_subj": f"{self._stream}.>"}) if state["messages"] else None
        if headers is None:
            noted_end = self._last_tail.partitions.get(PARTITION)
            has_aged = configuration.get("max_age") and self._last_tail.identity == info["created"]
            if has_aged and noted_end is not None and noted_end.offset == self._last_sequence:
                return self._last_tail  # an operator wants old messages to go: nothing is lost
            return Tail(info["created"])
        return Tail(info["created"], {PARTITION: PartitionTail(state["last_seq"], self._place(tail_after, headers))})

    async def publish(self, events: Sequence[OutgoingEvent], tail: Tail) -> Tail:
        """Store a page as one batch after a tail, and return the new one."""
        end = tail.partitions.get(PARTITION, PartitionTail(self._last_sequence, START))
        messages = self._messages(events, end, secrets.token_hex(16))
        self._refuse_too_large(messages)
        with _as_sink_errors():
            try:
                for message in messages[:-1]:
                    await self._connection.client.publish(message.subject, message.value, headers=message.headers)
            except nats.errors.Error as error:
                self._connection.check()
                raise ServerAway(str(error)) from error
            last = messages[-1]
            answer = await self._connection.request(last.subject, last.value, headers=last.headers)
            try:
                sequence = int(jetstream.read_answer(answer.data)["seq"])
            except ApiFault as fault:
                raise await self._refusal(messages, fault) from fault
        place = next((event.cursor for event in reversed(events) if not event.is_redrive), end.cursor)
        return replace(tail, partitions={PARTITION: PartitionTail(sequence, place)})

    async def check(self, tail: Tail) -> None:
        """Do nothing if the stream is the same and ends at a tail."""
        with _as_sink_errors():
            info = await self._info()
        end = tail.partitions.get(PARTITION, PartitionTail(self._last_sequence, START))
        if info is None or (info["created"], info["state"]["last_seq"]) != (tail.identity, end.offset):
            raise TailMoved(f"the stream {self._stream} is another one, or ends elsewhere, than after the last page")

    def partition_of(self, event: OutgoingEvent) -> str:
        """Return the one partition of a stream."""
        return PARTITION

    async def is_dense(self, after: int, through: int) -> bool | None:
        """Return whether the stream's counters prove that no event is missing after a position, through another.

        None where they cannot tell: after a fork, a redrive, or an event that was never sent; and where the stream
        begins or ends elsewhere.
        """
        with _as_sink_errors():
            info = await self._info()
            if info is None or not info["state"]["messages"]:
                return None
            state = info["state"]
            first = await self._headers({"seq": state["first_seq"], "next_by_subj": f"{self._stream}.>"})
            last = await self._headers({"seq": state["last_seq"]})  # of this moment: a relay may go on beside
        if state.get("num_deleted"):
            return False
        if first is None or last is None:
            return None
        begin, end = self._place(cursor_of, first), self._place(tail_after, last)
        if begin.pos > after + 1 or end.pos < through:
            return None
        if begin.epoch != end.epoch or end.pos - begin.pos != state["last_seq"] - state["first_seq"]:
            return None
        return True

    async def stored_events(self) -> AsyncIterator[StoredEvent]:
        """Read the places of all messages, without their values."""
        with _as_sink_errors():
            info = await self._info()
            if info is None or not info["state"]["messages"]:
                return
            last = info["state"]["last_seq"]
            reader = StreamReader(self._connection, self._stream)
            await reader.open(first=1, headers_only=True)
            try:
                while messages := await reader.receive(limit=AUDIT_MESSAGES, wait=jetstream.ANSWER_SECONDS):
                    for message in messages:
                        for place in self._place(cursors_of, message.headers):
                            yield StoredEvent(PARTITION, message.sequence, place, is_redrive(message.headers))
                    if messages[-1].sequence >= last or not messages[-1].pending:
                        return
                raise ServerAway(f"the server stopped sending the stream {self._stream} before its end")
            finally:
                await reader.close()

    def _messages(self, events: Sequence[OutgoingEvent], end: PartitionTail, batch: str) -> list[BatchMessage]:
        """Return the messages of a batch that is stored after `end`."""
        messages, place = [], end.cursor
        for number, event in enumerate(events, 1):
            headers = {**event.headers, **place_headers(event, place)}
            headers |= {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            subject = _subject(self._stream, event.project, event.event_type)
            messages.append(BatchMessage(subject, headers, event.value, event.event_id))
            place = place if event.is_redrive else event.cursor
        messages[0].headers["Nats-Expected-Last-Sequence"] = str(end.offset)
        messages[-1].headers["Nats-Batch-Commit"] = "1"
        return messages

    def _refuse_too_large(self, messages: Sequence[BatchMessage]) -> None:
        for message in messages:
            size = len(message.value)
            if size > self._largest - MOST_HEADERS and size + message.headers_size > self._largest:
                raise PageRefused(
                    f"the event {message.event_id} has {len(message.value)} bytes, and the stream {self._stream} takes "
                    f"messages of {self._largest}",
                    event_id=message.event_id,
                )

    async def _refusal(self, messages: Sequence[BatchMessage], fault: ApiFault) -> Exception:
        """Return what a refused batch means. A limit that somebody lowered meanwhile shows as an incomplete batch."""
        match fault.code:
            case jetstream.WRONG_LAST_SEQUENCE | jetstream.DUPLICATE:
                return TailMoved(f"{self._stream}: {fault}")
            case jetstream.NO_BATCHES | jetstream.BATCH_TOO_LARGE:
                return SinkRefused(
                    f"the stream {self._stream} does not take batches of {len(messages)} events: {fault}"
                )
        if (info := await self._info()) is not None:
            self._set_largest(info["config"])
            self._refuse_too_large(messages)
        return SinkAway(f"{self._stream}: {fault}")

    async def _info(self) -> dict[str, Any] | None:
        """Return the stream's configuration and state; None where there is no such stream."""
        try:
            return await self._connection.ask(f"STREAM.INFO.{self._stream}")
        except ApiFault as fault:
            if fault.code == jetstream.STREAM_MISSING:
                return None
            raise

    async def _make(self) -> dict[str, Any]:
        """Make the stream and return what `_info` returns."""
        return await self._connection.ask(f"STREAM.CREATE.{self._stream}", {
            "name": self._stream, "subjects": [f"{self._stream}.>"], "storage": "file", "retention": "limits",
            "discard": "old", "max_msg_size": jetstream.LARGEST_MESSAGE, "allow_atomic": True, "allow_direct": True,
            "metadata": {ORIGIN: self._origin},
        })  # fmt: skip

    async def _headers(self, which: Mapping[str, object]) -> Mapping[str, str] | None:
        """Return the headers of a stored message; None where there is none."""
        message = await jetstream.stored_message(self._connection, self._stream, which)
        return message.headers if message is not None else None

    def _set_largest(self, configuration: Mapping[str, Any]) -> None:
        limit = configuration.get("max_msg_size", -1)
        self._largest = min(self._connection.client.max_payload, limit if limit > 0 else jetstream.LARGEST_MESSAGE)

    def _place(self, read: Callable[[Mapping[str, str]], T], headers: Mapping[str, str]) -> T:
        try:
            return read(headers)
        except (LookupError, ValueError) as error:
            raise SinkRefused(
                f"the stream {self._stream} has a message that no relay wrote; it has to have the events of one feed "
                f"and nothing else: name another stream, or remove the message"
            ) from error


@cache
def _subject(stream: str, project: str, event_type: str) -> str:
    return ".".join([stream, *map(jetstream.subject_token, (project, *event_type.split(".")))])


@contextmanager
def _as_sink_errors() -> Iterator[None]:
    """Raise the errors of a connection as those of sinks."""
    try:
        yield
    except (ServerAway, ApiFault) as error:
        raise SinkAway(str(error)) from error
    except ServerRefused as error:
        raise SinkRefused(str(error)) from error
