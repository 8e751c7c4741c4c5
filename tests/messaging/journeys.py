"""What the conformance of event sources is shown with: a publishing node, an index node, and what lies between."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import asyncpg
import orjson
import pytest

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import nodes
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.demo.brokers import NatsServer
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain.events import Cursor
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources.addresses import BrokerAddress, SourceAddress
from fedstac.settings import Settings
from fedstac.workers import following, verifying
from fedstac.workers.index_node import IndexHandler
from tests.messaging.relaying import add_sink
from tests.support.nodes import Api
from tests.support.sinks import kafka_topic, nats_stream
from tests.support.waiting import until

Json = dict[str, Any]
BROKERS = {"nats": "nats_server", "kafka": "kafka_broker"}  # and their fixtures; each has its line in `road`
ROADS = ["http", "nats", pytest.param("kafka", marks=pytest.mark.kafka)]


class Road(Protocol):
    """What brings the events of a publishing node to an index node."""

    name: str
    feed: BrokerAddress | None

    async def build(self, origin: Connection) -> None:
        """Begin to send the log."""
        ...

    async def litter(self) -> int:
        """Put messages into it that no relay wrote; return how many of them are parked."""
        ...

    async def lose(self) -> None:
        """Remove everything that it keeps."""
        ...


class HttpRoad:
    """The publishing node's own feed. Nobody can put anything into it, and what it loses nobody has."""

    name = "http"
    feed: BrokerAddress | None = None

    async def build(self, origin: Connection) -> None:
        pass

    async def litter(self) -> int:
        return 0

    async def lose(self) -> None:
        pass


JUNK: tuple[tuple[dict[str, str], bytes], ...] = (
    ({}, b"hello"),
    ({"pos": "x", "epoch": "1", "prev": "0"}, b"{}"),
    ({"pos": "9" * 40, "epoch": "1", "prev": "0"}, b""),
    ({"pos": "3", "epoch": "1", "prev": "2", "redrive": "1", "tail": "1.3"}, b"\xff\xfe"),
    ({"pos": "-1", "epoch": "1", "prev": "0"}, b"\x00" * 1000),
)  # a forged place in the log is another matter: the relay pauses its sink then (test_relay.py, test_chain.py)


@dataclass
class NatsRoad:
    """A stream of NATS."""

    server: NatsServer
    name: str = "nats"

    def __post_init__(self) -> None:
        self._opening = nats_stream(self.server)

    async def open(self) -> None:
        self.stream = await self._opening.__aenter__()
        self.feed: BrokerAddress | None = BrokerAddress.parse(self.stream.address)

    async def close(self) -> None:
        await self._opening.__aexit__(None, None, None)

    async def build(self, origin: Connection) -> None:
        await add_sink(origin, self.stream.address)

        async def is_built() -> bool:
            return await self.stream._info() is not None

        await until(is_built)

    async def litter(self) -> int:
        for headers, value in JUNK:
            await self.stream.connection.request(f"{self.stream.stream}.junk", value, headers=headers or None)
        return len(JUNK)

    async def lose(self) -> None:
        await self.stream.empty()


@dataclass
class KafkaRoad:
    """A topic of Kafka."""

    broker: KafkaBroker
    name: str = "kafka"

    def __post_init__(self) -> None:
        self.topic = kafka_topic(self.broker)
        self.feed: BrokerAddress | None = BrokerAddress.parse(self.topic.address.partition("?")[0])

    async def build(self, origin: Connection) -> None:
        await add_sink(origin, self.topic.address)
        await until(self.topic.exists)

    async def litter(self) -> int:
        for number, (headers, value) in enumerate(JUNK):
            await self.topic.put(headers, value, number % 3)
        return len(JUNK)

    async def lose(self) -> None:
        await self.topic.empty()


@asynccontextmanager
async def road(kind: str, broker: NatsServer | KafkaBroker | None) -> AsyncIterator[Road]:
    """Open what brings events: `http`, or a stream or topic of its own at a broker."""
    match broker:
        case NatsServer():
            nats = NatsRoad(broker)
            await nats.open()
            try:
                yield nats
            finally:
                await nats.close()
        case KafkaBroker():
            yield KafkaRoad(broker)
        case _:
            yield HttpRoad()


@dataclass
class Journey:
    """A publishing node, an index node that follows it, and the road between."""

    west: Api
    east: Node
    road: Road

    @property
    def source(self) -> SourceAddress:
        return SourceAddress(self.west.url, self.west.tokens["node:east"], self.road.feed)

    async def publish(self, *items: Json) -> None:
        """Publish datasets, and wait until their events have positions."""
        body = {"type": "FeatureCollection", "features": list(items)}
        response = await self.west.admin.post("/collections/CMIP6/items", content=orjson.dumps(body))
        assert response.status_code in (200, 201), response.text
        conn = await asyncpg.connect(self.west.settings.dsn)

        async def all_have_positions() -> bool:
            return not await conn.fetch(
                "SELECT FROM fedstac.outbox o LEFT JOIN fedstac.feed f USING (id) WHERE f.id IS NULL LIMIT 1"
            )

        try:
            await until(all_have_positions)
        finally:
            await conn.close()

    async def head(self) -> Cursor:
        async with Origin(self.source) as origin:
            return (await origin.head())[1]

    async def cursor(self) -> Cursor:
        async with self.east.pool.acquire() as conn:
            place = await nodes.progress(conn, nodes.INDEX, "west")
        return place.cursor if place and place.snapshot is None else Cursor(0, 0)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow until the end of the block."""
        stop = asyncio.Event()
        task = asyncio.create_task(
            following.follow(self.east, stop, source=self.source, make_handler=IndexHandler, name="follower")
        )
        try:
            yield
        finally:
            stop.set()
            await task

    async def arrive(self) -> float:
        """Wait until the index node has what the publishing node has announced by now. Return the seconds it took."""
        start, head = time.monotonic(), await self.head()

        async def is_there() -> bool:
            cursor = await self.cursor()
            return cursor >= head

        await until(is_there)
        return time.monotonic() - start

    async def differences(self) -> list[str]:
        """Return the datasets on which the two nodes do not agree."""
        async with Origin(self.source) as origin:
            comparison = await verifying.verify(self.east, origin)
        return [each.id for each in comparison.differences]

    async def outcomes(self) -> dict[str, float]:
        """Return how many events had each outcome at the index node."""
        from fedstac.runtime.metrics import CONSUMED

        return {labels[2]: count for labels, count in self.east.metrics._counts[CONSUMED].items()}


@asynccontextmanager
async def journey(west: Api, make_database: Callable[[], str], way: Road, **values: Any) -> AsyncIterator[Journey]:
    """Open an index node `east` beside a publishing node. `values`: settings of the index node."""
    settings = Settings(**{"dsn": make_database(), "node": "east", "_env_file": None, **values})
    async with bootstrap.node(settings) as east:
        yield Journey(west, east, way)


def items(count: int) -> list[Json]:
    return [copy.deepcopy(dict(item)) for item in sample.items(count, versions=1)]
