"""A topic in ESGF's format on a real broker as an event source, and an index node that follows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain.events import START, Cursor
from fedstac.messaging.formats import EventFormat
from fedstac.messaging.origin import TopicOrigin, origin_of
from fedstac.messaging.sources import EventPage, EventSource, NotServed, SourceAway, SourceRefused, esgf, open_source
from fedstac.messaging.sources.addresses import SourceAddress, SourcesUnclear, read_addresses
from fedstac.workers import following, index_node
from tests.messaging import story
from tests.support.brokers import fresh_name
from tests.support.commands import StartCommand
from tests.support.esgf_messages import ANNOTATE, ERRATA, ID, ITEM, LATER, RETRACT, SUPERSEDE, patch, post, version
from tests.support.failpoints import environment
from tests.support.waiting import PATIENCE, until

Json = dict[str, Any]


class Topic:
    """A topic of a broker, and what ESGF's services do with it."""

    def __init__(self, broker: KafkaBroker, *, partitions: int = 3) -> None:
        self.name = fresh_name()
        self.servers = broker.url.removeprefix("kafka://")
        self.admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        self.producer = Producer({"bootstrap.servers": self.servers, "log_level": 0})
        self.make(partitions)

    def make(self, partitions: int = 3) -> None:
        async_result = self.admin.create_topics([NewTopic(self.name, partitions, 1)])[self.name]
        async_result.result()

    def remove(self) -> None:
        self.admin.delete_topics([self.name])[self.name].result()

    def send(self, *messages: bytes | None, key: str = ID) -> None:
        for message in messages:
            self.producer.produce(self.name, key=key, value=message)
        assert self.producer.flush(PATIENCE) == 0

    def address(self, **options: str) -> SourceAddress:
        more = "".join(f"&{name}={value}" for name, value in options.items())
        [source] = read_addresses("", "", feeds=f"kafka://{self.servers}/{self.name}?format=esgf&origin=esgf{more}")
        return source


@pytest.fixture
def topic(kafka_broker: KafkaBroker) -> Topic:
    return Topic(kafka_broker)


async def receive(source: EventSource, after: Cursor, count: int) -> list[EventPage]:
    """Return pages until they have so many events."""
    pages: list[EventPage] = []
    async with asyncio.timeout(PATIENCE):
        while sum(len(page.events) for page in pages) < count:
            page = await source.receive(pages[-1].cursor if pages else after, limit=500, wait=1)
            if page.events:
                pages.append(page)
    assert sum(len(page.events) for page in pages) == count
    return pages


def ids(pages: Sequence[EventPage]) -> list[str]:
    return [str(event["id"])[-2:] for page in pages for event in page.events]


# --- whom to follow ---


def test_a_topic_stands_for_itself() -> None:
    topic = "kafka://a:1,b:2/t?format=esgf&origin=esgf-east"
    [alone] = read_addresses("", "", feeds=topic)
    assert (alone.address, alone.token, alone.topic_origin) == (str(alone.feed), "", "esgf-east")
    west, beside = read_addresses("https://west.example", "token", feeds=topic)
    assert (west.token, west.feed, west.topic_origin, beside.topic_origin) == ("token", None, None, "esgf-east")
    west, beside = read_addresses("https://west.example", "token", feeds=f"nats://a:1/S {topic}")
    assert (str(west.feed), beside.topic_origin) == ("nats://a:1/S", "esgf-east")
    [west] = read_addresses("https://west.example", "token", ["https://west.example"], feeds=topic)
    assert west.topic_origin is None


@pytest.mark.parametrize(
    ("feeds", "named"),
    [
        ("kafka://a:1/t?format=esgf", "origin=<name>"), ("kafka://a:1/t?format=esgf&origin=A%20b", "origin=<name>"),
        ("nats://a:1/S?format=esgf&origin=x", "one of Kafka"), ("kafka://a:1/t?format=esgf&origin=x&gap=no", "gap"),
    ],
)  # fmt: skip
def test_no_topic_to_follow(feeds: str, named: str) -> None:
    with pytest.raises(SourcesUnclear, match=named):
        read_addresses("", "", feeds=feeds)


def test_two_topics_have_two_origins() -> None:
    topics = "kafka://a:1/t?format=esgf&origin=x kafka://b:1/t?format=esgf&origin={}"
    assert [each.topic_origin for each in read_addresses("", "", feeds=topics.format("y"))] == ["x", "y"]
    with pytest.raises(SourcesUnclear, match="one origin"):
        read_addresses("", "", feeds=topics.format("x"))


async def test_a_topic_has_nothing_but_events() -> None:
    [source] = read_addresses("", "", feeds="kafka://a:1/t?format=esgf&origin=esgf")
    async with origin_of(source) as origin:
        assert isinstance(origin, TopicOrigin)
        assert (await origin.head())[0] == "esgf"
        await origin.acknowledge(Cursor(1, 7), [])
        for refused in (origin.snapshot(None, limit=1), origin.digests(), origin.vocabulary("CMIP6", "1")):
            with pytest.raises(NotServed, match="esgf is a topic"):
                await refused


# --- reading ---


@pytest.mark.kafka
async def test_pages_go_on_where_the_last_one_ended(topic: Topic) -> None:
    topic.send(*[patch(ANNOTATE, n) for n in range(1, 6)], key="a")
    topic.send(*[patch(ANNOTATE, n) for n in range(6, 10)], key="b")
    async with open_source(topic.address()) as source:
        await source.begin(START, {})
        pages = await receive(source, START, 9)
        assert sorted(ids(pages)) == [f"{n:02x}" for n in range(1, 10)]
        assert pages[-1].cursor == Cursor(1, 9)
        with pytest.raises(SourceAway, match="not applied"):
            await source.receive(Cursor(1, 5), limit=1, wait=0)
        topic.send(None, b"[", key="a")
        [page] = await receive(source, pages[-1].cursor, 2)
    assert [event["fault"] for event in page.events]
    async with open_source(topic.address()) as source:  # another process
        await source.begin(pages[-1].cursor, pages[-1].offsets)
        assert len(await receive(source, pages[-1].cursor, 2)) == 1
        assert (await source.receive(Cursor(1, 11), limit=9, wait=0)).events == []


@pytest.mark.kafka
async def test_a_topic_that_is_made_anew_is_read_from_its_beginning(topic: Topic) -> None:
    topic.send(*[patch(ANNOTATE, n) for n in range(1, 4)])
    async with open_source(topic.address()) as source:
        await source.begin(START, {})
        [*_, before] = await receive(source, START, 3)
    topic.remove()

    async def is_made() -> bool:
        try:
            topic.make()
        except KafkaException:  # the old one is not gone yet
            return False
        return True

    await until(is_made)
    topic.send(*[patch(ANNOTATE, n) for n in range(10, 16)])  # more than there were
    async with open_source(topic.address()) as source:
        await source.begin(before.cursor, before.offsets)
        assert ids(await receive(source, before.cursor, 6)) == [f"{n:02x}" for n in range(10, 16)]


@pytest.mark.kafka
async def test_partitions_that_a_topic_gets_later_are_read_too(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    topic.send(patch(ANNOTATE, 1))
    async with open_source(topic.address()) as source:
        await source.begin(START, {})
        [page] = await receive(source, START, 1)
        topic.admin.create_partitions([NewPartitions(topic.name, 4)])[topic.name].result()

        async def is_sent() -> bool:
            try:
                topic.producer.produce(topic.name, patch(ANNOTATE, 2), partition=3)
            except KafkaException:  # it does not know of the partition yet
                topic.producer.list_topics(topic.name, timeout=PATIENCE)
                return False
            return bool(topic.producer.flush(PATIENCE) == 0)

        await until(is_sent)
        monkeypatch.setattr(esgf, "CHECK_SECONDS", 0)
        with pytest.raises(SourceAway, match="beginning again"):
            await source.receive(page.cursor, limit=1, wait=0)
        await source.begin(page.cursor, page.offsets)
        assert ids(await receive(source, page.cursor, 1)) == ["02"]


@pytest.mark.kafka
async def test_messages_that_are_gone_stop_the_follower_until_an_operator_accepts_it(topic: Topic) -> None:
    topic.send(*[patch(ANNOTATE, n) for n in range(1, 6)])
    async with open_source(topic.address()) as source:
        await source.begin(START, {})
        page = (await receive(source, START, 5))[-1]
    partition = next(int(name) for name, offset in page.offsets.items() if offset == 5)
    offsets = {**page.offsets, str(partition): 2}
    topic.admin.delete_records([TopicPartition(topic.name, partition, 4)])
    async with open_source(topic.address()) as source:

        async def is_refused() -> str:
            try:
                await source.begin(Cursor(1, 2), offsets)
            except SourceRefused as error:
                return str(error)
            return ""

        message = await until(is_refused)
    assert "2 messages are gone" in message
    assert "gap=accept" in message
    async with open_source(topic.address(gap="accept")) as source:
        await source.begin(Cursor(1, 2), offsets)
        assert ids(await receive(source, Cursor(1, 2), 1)) == ["05"]


# --- an index node ---


@asynccontextmanager
async def following_topic(node: Node, source: SourceAddress) -> AsyncIterator[None]:
    """Let a node follow a topic as its role does."""
    stop = asyncio.Event()
    task = asyncio.create_task(following.follow(node, stop, source=source, make_handler=index_node.index_handler))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


@pytest.mark.kafka
async def test_an_index_node_follows_what_esgfs_publisher_sends(node: Node, conn: Connection, topic: Topic) -> None:
    async def states() -> dict[str, tuple[str, bool]]:
        rows = await conn.fetch("SELECT id, state, latest FROM fedstac.record")
        return {row["id"]: (row["state"], row["latest"]) for row in rows}

    topic.send(post(ITEM, 1), patch(ANNOTATE, 2))
    async with following_topic(node, topic.address()):
        await until(lambda: _holds(states(), {ID: ("published", True)}))
    topic.send(post(LATER, 3), key=LATER["id"])
    topic.send(patch(SUPERSEDE, 4), b"no JSON")
    async with following_topic(node, topic.address()):  # a second process
        await until(lambda: _holds(states(), {ID: ("published", False), LATER["id"]: ("published", True)}))
        topic.send(patch(RETRACT, 5, LATER["id"]), key=LATER["id"])
        await until(lambda: _holds(states(), {ID: ("published", False), LATER["id"]: ("retracted", False)}))
        await until(lambda: conn.fetchval("SELECT count(*) FROM fedstac.parked_event"))
    document = json.loads(await conn.fetchval("SELECT document FROM fedstac.record WHERE id = $1", ID))
    assert ERRATA in document["links"]
    [source] = await conn.fetch("SELECT origin, pos FROM fedstac.consumer_cursor")
    assert (source["origin"], source["pos"]) == ("esgf", 6)


async def _holds(states: Any, expected: object) -> bool:
    return bool(await states == expected)


@pytest.mark.long
@pytest.mark.kafka
async def test_an_index_node_is_made_anew_from_the_topic(node: Node, conn: Connection, topic: Topic) -> None:
    log = [event for event in story.story() if event.dataset]
    for event in story.encoded(EventFormat.ESGF, log):
        topic.send(event.value, key=event.key)
    digests = {event.dataset: json.loads(event.text)["data"]["digest"] for event in log}
    address = topic.address()
    for _ in range(2):  # the second time over what is there
        async with origin_of(address) as origin, open_source(address) as source:
            cursor = await index_node.rebuild(node, origin, source, from_snapshot=False, on_page=lambda size: None)
        assert cursor == Cursor(1, len(log))
        rows = await conn.fetch("SELECT id, encode(digest, 'hex') AS digest FROM fedstac.record")
        assert {row["id"]: row["digest"] for row in rows} == digests


@pytest.mark.long
@pytest.mark.kafka
async def test_an_index_node_that_is_killed_again_and_again_goes_on(
    make_database: Callable[[], str], topic: Topic, tmp_path: Path, start_command: StartCommand
) -> None:
    """The process ends in the middle of a page, then by -9 while it waits; nothing is lost or doubled."""
    dsn = make_database()
    variables = {
        "FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "east", "FEDSTAC_PORT": "0", "FEDSTAC_SOURCE_FEED": topic.address().address,
    }  # fmt: skip
    items = [version(20300101 + n) for n in range(20)]
    conn = await asyncpg.connect(dsn)

    async def through(pos: int) -> None:
        await until(lambda: conn.fetchval("SELECT pos >= $1 FROM fedstac.consumer_cursor WHERE origin = 'esgf'", pos))

    try:
        for n, failpoint in enumerate(["index.written=kill", "index.applied=kill", ""]):
            for item in items[n::3]:
                topic.send(post(item, n), patch(ANNOTATE, n, item["id"]), key=item["id"])
            deadly = environment(failpoint) if failpoint else {}
            process = await start_command("index-node", folder=tmp_path, **variables, **deadly)
            if failpoint:
                await asyncio.wait_for(process.communicate(), PATIENCE)
                continue
            await through(40)
            process.kill()
            await process.communicate()
        process = await start_command("index-node", folder=tmp_path, **variables)
        topic.send(patch(RETRACT, 9, items[-1]["id"]), key=items[-1]["id"])
        await through(41)
        process.terminate()
        await asyncio.wait_for(process.communicate(), PATIENCE)
        rows = await conn.fetch("SELECT id, state, latest, document FROM fedstac.record ORDER BY id")
        assert [row["id"] for row in rows] == [item["id"] for item in items]
        assert {row["state"] for row in rows[:-1]} == {"published"}
        assert (rows[-1]["state"], any(row["latest"] for row in rows)) == ("retracted", False)
        assert all(json.loads(row["document"])["links"].count(ERRATA) == 1 for row in rows)
        assert await conn.fetchval("SELECT count(*) FROM fedstac.parked_event") == 0
    finally:
        await conn.close()
