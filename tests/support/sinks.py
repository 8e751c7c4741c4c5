"""Receivers of events for tests of sinks and relays: a webhook, and what tests do to a broker's log behind its back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from confluent_kafka import OFFSET_END, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from fedstac.demo.brokers import NatsServer
from fedstac.demo.kafka import KafkaBroker
from fedstac.messaging import jetstream
from fedstac.messaging.jetstream import Connection, StreamReader
from fedstac.messaging.kafka import Brokers, OwnThread, TopicReader, read_properties, text_headers
from fedstac.messaging.sinks.kafka import read_address
from fedstac.messaging.sources.addresses import BrokerAddress
from tests.support.brokers import fresh_name
from tests.support.receivers import listening
from tests.support.waiting import PATIENCE, until

ACCEPTED = "204 No Content"


@dataclass(frozen=True, slots=True)
class Message:
    """A message as a consumer gets it; the names of the headers are those of `place_headers`."""

    headers: Mapping[str, str]
    value: bytes

    @property
    def pos(self) -> int:
        return int(self.headers["pos"])

    @property
    def is_redrive(self) -> bool:
        return "redrive" in self.headers


class Receiver(Protocol):
    """Where a sink of a test sends to, and what it has."""

    address: str
    keeps_log: bool  # it tells where its log ends

    async def messages(self) -> Sequence[Message]:
        """Return everything that it has, in its order."""
        ...


@dataclass
class Hook:
    """An HTTP server of a few lines that keeps connections, and answers as `respond` says."""

    address: str = ""
    keeps_log: bool = False
    respond: Callable[[Message], str] = lambda message: ACCEPTED
    arrivals: list[Message] = field(default_factory=list)

    async def messages(self) -> Sequence[Message]:
        return self.arrivals

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                _, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                value = await reader.readexactly(int(fields.get("content-length", 0)))
                message = Message({name.removeprefix("fedstac-"): text for name, text in fields.items()}, value)
                answer = self.respond(message)
                if answer == ACCEPTED:
                    self.arrivals.append(message)
                writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()


@asynccontextmanager
async def hook() -> AsyncIterator[Hook]:
    """Serve a webhook on a free port."""
    receiver = Hook()
    async with listening(receiver.serve) as port:
        receiver.address = f"http://127.0.0.1:{port}/events"
        yield receiver


@dataclass
class NatsStream:
    """A stream of a NATS server."""

    address: str
    stream: str
    connection: Connection
    keeps_log: bool = True

    async def messages(self) -> Sequence[Message]:
        info = await self._info()
        if not info or not info["state"]["messages"]:
            return []
        reader = StreamReader(self.connection, self.stream)
        await reader.open(first=1)
        received: list[Message] = []
        try:
            while len(received) < info["state"]["messages"]:
                for each in await reader.receive(limit=1000, wait=5):
                    received.append(Message(each.headers, each.data))
        finally:
            await reader.close()
        return received

    async def _info(self) -> dict[str, Any] | None:
        try:
            return await self.connection.ask(f"STREAM.INFO.{self.stream}")
        except jetstream.ApiFault:
            return None

    async def empty(self) -> None:
        """Remove all messages; the stream stays the same."""
        await self.connection.ask(f"STREAM.PURGE.{self.stream}", {})

    async def limit_messages(self, size: int) -> None:
        """Let the stream refuse messages above a size."""
        configuration = (await self.connection.ask(f"STREAM.INFO.{self.stream}"))["config"]
        await self.connection.ask(f"STREAM.UPDATE.{self.stream}", {**configuration, "max_msg_size": size})

    async def let_age(self, seconds: float) -> None:
        """Let messages go after so long, and wait until all are gone."""
        configuration = (await self.connection.ask(f"STREAM.INFO.{self.stream}"))["config"]
        aging = {**configuration, "max_age": int(seconds * 1e9), "duplicate_window": int(seconds * 1e9)}
        await self.connection.ask(f"STREAM.UPDATE.{self.stream}", aging)

        async def are_gone() -> bool:
            info = await self._info()
            return info is not None and not info["state"]["messages"]

        await until(are_gone)

    async def last_sequence(self) -> int:
        """Return the number of the last message that was ever stored."""
        return int((await self.connection.ask(f"STREAM.INFO.{self.stream}"))["state"]["last_seq"])

    async def drop(self) -> None:
        """Remove the stream; whoever makes it again makes another one."""
        await self.connection.ask(f"STREAM.DELETE.{self.stream}")

    async def remove(self, sequences: Sequence[int]) -> None:
        """Remove single messages."""
        for sequence in sequences:
            await self.connection.ask(f"STREAM.MSG.DELETE.{self.stream}", {"seq": sequence, "no_erase": True})


@asynccontextmanager
async def nats_stream(server: NatsServer) -> AsyncIterator[NatsStream]:
    """Open a stream of its own for a test."""
    stream = fresh_name()
    address = f"{server.url}/{stream}"
    connection = Connection()
    try:
        await connection.open(jetstream.stream_of(BrokerAddress.parse(address)))
        yield NatsStream(address, stream, connection)
    finally:
        await connection.close()


@dataclass
class KafkaTopic:
    """A topic of a Kafka broker, with three partitions."""

    address: str
    keeps_log: bool = True

    def __post_init__(self) -> None:
        self.place = read_address(self.address)
        self.client = AdminClient({"bootstrap.servers": self.place.servers[0], "logger": logging.Logger("quiet", 100)})

    async def messages(self) -> Sequence[Message]:
        """Return everything that it has in the order of the feed, redrives last; the topic's own is by partition."""
        received = await asyncio.to_thread(self._read)
        return sorted(received, key=lambda each: (each.is_redrive, int(each.headers["epoch"]), each.pos))

    def _read(self) -> list[Message]:
        thread, properties = OwnThread(), read_properties(self.place)
        brokers, reader = Brokers(self.place, properties, thread), TopicReader(self.place, properties, thread)
        try:
            topic = brokers.topic()
            ranges = reader.settled_ranges(brokers.ends(topic.partitions), PATIENCE) if topic else {}
            ranges = {partition: each for partition, each in ranges.items() if each.high > each.low}
            return [Message(text_headers(each), each.value() or b"") for each in reader.messages_in(ranges)]
        finally:
            reader.close()

    async def empty(self, *partitions: int) -> None:
        """Remove all messages, or those of some partitions; the topic stays the same."""
        places = [TopicPartition(self.place.name, number, OFFSET_END) for number in partitions or range(3)]
        for future in self.client.delete_records(places).values():
            await asyncio.wrap_future(future)

    async def drop(self) -> None:
        """Remove the topic; whoever makes it again makes another one."""
        [future] = self.client.delete_topics([self.place.name]).values()
        await asyncio.wrap_future(future)

    async def exists(self) -> bool:
        return self.place.name in (await asyncio.to_thread(self.client.list_topics)).topics

    async def put(self, headers: Mapping[str, str], value: bytes, partition: int) -> None:
        """Write a message as somebody who is no relay."""
        producer = Producer({"bootstrap.servers": self.place.servers[0]})
        producer.produce(self.place.name, value, partition=partition, headers=dict(headers))
        assert await asyncio.to_thread(producer.flush, PATIENCE) == 0


def kafka_topic(broker: KafkaBroker) -> KafkaTopic:
    """Return a topic of its own for a test; the relay makes it."""
    return KafkaTopic(f"{broker.url}/{fresh_name()}?partitions=3")
