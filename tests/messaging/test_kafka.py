"""Apache Kafka against a real broker: what its errors mean, and what a topic has to be like."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from fedstac.demo import kafka as demo_kafka
from fedstac.demo.brokers import BrokerMissing, free_port
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain.events import START, Cursor
from fedstac.messaging import kafka
from fedstac.messaging.kafka import OwnThread, TopicReader, text_headers
from fedstac.messaging.sinks import (
    Fenced,
    OutgoingEvent,
    PageRefused,
    SinkAway,
    SinkRefused,
    SinkTarget,
    SinkUnclear,
    Tail,
)
from fedstac.messaging.sinks.kafka import KafkaSink, read_address
from fedstac.messaging.sources import SourceAway, SourceRefused
from fedstac.messaging.sources import kafka as source_kafka
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.messaging.sources.chain import LogMessage
from fedstac.messaging.sources.kafka import KafkaLog, open_log
from tests.support.brokers import cut_log, fresh_name
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kafka
PUBLISHED = "org.fedstac.dataset.published.v1"


def event(pos: int, *, key: str = "", epoch: int = 1, size: int = 100, is_redrive: bool = False) -> OutgoingEvent:
    return OutgoingEvent(
        Cursor(epoch, pos), pos - 1, f"id-{pos}", key or f"CMIP6/{pos % 11}", "CMIP6", PUBLISHED, {"kind": "é"},
        b"x" * size, is_redrive,
    )  # fmt: skip


def page(first: int, last: int) -> list[OutgoingEvent]:
    return [event(pos) for pos in range(first, last + 1)]


@pytest.fixture
def address(kafka_broker: KafkaBroker) -> str:
    return f"{kafka_broker.url}/{fresh_name()}?partitions=3"


def sink_of(address: str) -> KafkaSink:
    return KafkaSink(SinkTarget("west", "esgf", address))


def make_topic(address: str, *, partitions: int = 1, **settings: str) -> None:
    place = read_address(address)
    client = AdminClient({"bootstrap.servers": place.servers[0], "log_level": 0})
    config = {name.replace("_", "."): value for name, value in settings.items()}
    futures = client.create_topics([NewTopic(place.name, partitions, 1, config=config)])
    futures[place.name].result()


async def positions(address: str) -> list[int]:
    """Return the positions that consumers see, of all partitions."""
    async with sink_of(address) as sink:
        return sorted([stored.cursor.pos async for stored in sink.stored_events()])


async def test_messages_have_their_place_and_their_key_decides_the_partition(address: str) -> None:
    async with sink_of(address) as sink:
        tail = await sink.publish(page(1, 30), await sink.begin())
        partition_of = {number: sink.partition_of(event(number)) for number in range(1, 31)}
    place, thread = read_address(address), OwnThread()
    reader = TopicReader(place, kafka.read_properties(place), thread)
    reader.go_to(dict.fromkeys(range(3), 0))
    messages: list[Message] = []
    while len(messages) < 30:
        messages += reader.read(100, 10).messages
    reader.close()
    for message in messages:
        headers = text_headers(message)
        number = int(headers["pos"])
        assert headers == {
            "pos": str(number), "epoch": "1", "prev": str(number - 1), "ce-id": f"id-{number}", "kind": "é",
        }  # fmt: skip
        assert (message.key(), str(message.partition())) == (f"CMIP6/{number % 11}".encode(), partition_of[number])
    assert len(set(partition_of.values())) > 1
    assert {name: each.cursor.pos for name, each in tail.partitions.items()} == {
        name: max(number for number, partition in partition_of.items() if partition == name)
        for name in partition_of.values()
    }


async def test_the_partition_is_that_of_kafkas_own_clients(kafka_broker: KafkaBroker, address: str) -> None:
    """librdkafka's partitioner `consistent` is crc32 of the key."""
    async with sink_of(address) as sink:
        await sink.begin()
        partitions: dict[bytes, str] = {}
        client = Producer({"bootstrap.servers": kafka_broker.address, "partitioner": "consistent"})
        for number in range(20):
            client.produce(
                read_address(address).name, key=f"key-{number}",
                on_delivery=lambda _, message: partitions.update({message.key(): str(message.partition())}),
            )  # fmt: skip
        client.flush()
        assert {key: sink.partition_of(event(1, key=key.decode())) for key in partitions} == partitions
        assert len(partitions) == 20


async def test_who_begins_later_reads_the_tail_and_fences_the_earlier(address: str) -> None:
    async with sink_of(address) as old, sink_of(address) as new:
        tail = await old.publish(page(1, 20), await old.begin())
        assert await new.begin() == tail
        with pytest.raises(Fenced):
            await old.publish(page(21, 40), tail)
        await new.publish(page(21, 30), tail)
    assert await positions(address) == list(range(1, 31))


async def test_a_fence_that_the_client_forgets_to_tell_is_told_by_what_is_called_next(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen of `flush` on a busy machine: the exception of a callback is lost before the method returns."""
    async with sink_of(address) as old, sink_of(address) as new:
        tail = await old.publish(page(1, 20), await old.begin())
        await new.begin()
        open_producer = old._open_producer
        monkeypatch.setattr(old, "_open_producer", lambda: Forgetful(open_producer()))
        with pytest.raises(Fenced):
            await old.publish(page(21, 40), tail)


class Forgetful:
    """A producer whose `flush` loses its exception."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> object:
        return getattr(self._producer, name)

    def flush(self, seconds: float) -> int:
        with suppress(KafkaException, SystemError):
            self._producer.flush(seconds)
        raise SystemError("<method 'flush' of 'cimpl.Producer' objects> returned NULL without setting an exception")


async def test_what_a_dead_relay_had_under_way_is_never_seen(address: str) -> None:
    async with sink_of(address) as old, sink_of(address) as new:
        tail = await old.publish(page(1, 5), await old.begin())
        producer = old._producer
        assert producer is not None
        producer.begin_transaction()
        for _ in range(300):  # more than one look back at the tail
            producer.produce(read_address(address).name, b"half a page", b"CMIP6/1", 1)
        producer.flush()
        assert await new.begin() == tail
        await new.publish(page(6, 9), tail)
    assert await positions(address) == list(range(1, 10))


async def test_an_event_above_the_limit_stores_nothing_of_its_page(address: str) -> None:
    async with sink_of(address) as sink:
        tail = await sink.publish(page(1, 3), await sink.begin())
        with pytest.raises(PageRefused, match="too large"):
            await sink.publish([event(4), event(5, size=kafka.LARGEST_MESSAGE), event(6)], tail)
    assert await positions(address) == [1, 2, 3]


async def test_what_the_brokers_refuse_for_ever_stores_nothing_of_its_page(address: str) -> None:
    make_topic(address, partitions=3, max_message_bytes="4000")
    async with sink_of(address) as sink:
        tail = await sink.publish(page(1, 3), await sink.begin())
        with pytest.raises(PageRefused):
            await sink.publish([event(4), event(5, size=5000), event(6)], tail)
    async with sink_of(address) as sink:
        await sink.publish([event(4), event(6)], await sink.begin())
    assert await positions(address) == [1, 2, 3, 4, 6]


async def test_an_event_of_eight_megabytes_goes_through(address: str) -> None:
    async with sink_of(address) as sink:
        tail = await sink.publish([event(1, size=8 << 20)], await sink.begin())
        assert tail.cursor == Cursor(1, 1)


async def test_a_redrive_moves_no_tail(address: str) -> None:
    async with sink_of(address) as sink:
        tail = await sink.publish([event(pos, key="one") for pos in (1, 3)], await sink.begin())
        after = await sink.publish([event(2, key="one", is_redrive=True)], tail)
        assert after.cursor == Cursor(1, 3)
    async with sink_of(address) as sink:
        assert await sink.begin() == after
        alone = await sink.publish([event(1, key="other", is_redrive=True)], Tail(after.identity))
        assert alone.cursor == START


async def test_a_topic_of_somebody_else_is_refused(kafka_broker: KafkaBroker, address: str) -> None:
    make_topic(address, partitions=3)
    client = Producer({"bootstrap.servers": kafka_broker.address})
    client.produce(read_address(address).name, b"hello")
    client.flush()
    async with sink_of(address) as sink:
        with pytest.raises(SinkRefused, match="no relay wrote"):
            await sink.begin()


async def test_another_number_of_partitions_is_refused(address: str) -> None:
    make_topic(address, partitions=2)
    async with sink_of(address) as sink:
        with pytest.raises(SinkRefused, match="has 2 partitions, and the sink's address says 3"):
            await sink.begin()
    async with sink_of(address.partition("?")[0]) as sink:  # none named: as it is
        await sink.publish(page(1, 9), await sink.begin())
        assert {sink.partition_of(each) for each in page(1, 9)} == {"0", "1"}


async def test_a_compacted_topic_is_refused(address: str) -> None:
    make_topic(address, partitions=3, cleanup_policy="compact")
    async with sink_of(address) as sink:
        with pytest.raises(SinkRefused, match="is compacted"):
            await sink.begin()


async def test_a_broker_that_is_killed_is_away_and_one_that_lost_all_begins_anew(own_kafka_broker: KafkaBroker) -> None:
    address = f"{own_kafka_broker.url}/{fresh_name()}?partitions=3"
    async with sink_of(address) as sink:
        tail = await sink.publish(page(1, 20), await sink.begin())
        own_kafka_broker.process.kill()
        under_way = asyncio.create_task(sink.publish(page(21, 30), tail))
        await asyncio.sleep(0)
    with pytest.raises(SinkAway):  # `async with` has ended it, long before its time was up
        await under_way
    own_kafka_broker.process.start()
    async with sink_of(address) as sink:
        # a broker that was killed may have lost the end of the transaction; then nobody has seen it, and it is given up
        assert await sink.begin() in (tail, Tail(tail.identity))
        own_kafka_broker.process.kill()
        own_kafka_broker.process.start()
        with pytest.raises(SinkAway, match="were away since the last page"):
            await sink.publish(page(21, 30), tail)
    assert await positions(address) in (list(range(1, 21)), [])
    own_kafka_broker.process.kill()
    own_kafka_broker.empty()
    own_kafka_broker.process.start()
    async with sink_of(address) as sink:
        anew = await sink.begin()
        assert (anew.partitions, anew.identity != tail.identity) == ({}, True)
        await sink.publish(page(1, 20), anew)
    assert await positions(address) == list(range(1, 21))


async def test_a_transaction_that_a_killed_broker_never_marked_is_ended(own_kafka_broker: KafkaBroker) -> None:
    """What consumers have seen a part of stays; what nobody has seen is given up, and sent again."""
    partitions_torn = {fresh_name(): torn for torn in ((0,), (0, 2), (0, 1, 2))}
    tails: dict[str, list[Tail]] = {}
    for topic in partitions_torn:
        async with sink_of(f"{own_kafka_broker.url}/{topic}?partitions=3") as sink:
            tail = await sink.publish(page(1, 20), await sink.begin())
            tails[topic] = [tail, await sink.publish(page(21, 40), tail)]
            assert len([stored async for stored in sink.stored_events()]) == 40  # so every end is marked
    own_kafka_broker.process.kill()
    for topic, partitions in partitions_torn.items():
        for partition in partitions:
            cut_log(own_kafka_broker, topic, partition, batches=1)
    own_kafka_broker.process.start()
    for topic, partitions in partitions_torn.items():
        async with sink_of(f"{own_kafka_broker.url}/{topic}?partitions=3") as sink:
            anew = await sink.begin()
            is_kept = len(partitions) < 3
            assert cursors_of(anew) == cursors_of(tails[topic][is_kept])
            await sink.publish(page(41 if is_kept else 21, 60), anew)
            stored_positions = [stored.cursor.pos async for stored in sink.stored_events()]
        assert set(stored_positions) == set(range(1, 61))
        assert len(stored_positions) == 60 + is_kept * len(partitions)  # a redrive in each that lacked its mark


def cursors_of(tail: Tail) -> dict[str, Cursor]:
    return {name: each.cursor for name, each in tail.partitions.items()}


async def test_nobody_there_is_away() -> None:
    async with sink_of("kafka://127.0.0.1:9/feed") as sink:
        with pytest.raises(SinkAway, match=r"127\.0\.0\.1:9"):
            await sink.begin()


async def test_a_file_of_properties_says_how_to_log_in_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    place = read_address(f"kafka://127.0.0.1:9/feed?config={file}")
    file.write_text("# who we are\nsecurity.protocol = SASL_SSL\n\nsasl.password = a=b\n")
    assert kafka.read_properties(place).items() >= {"security.protocol": "SASL_SSL", "sasl.password": "a=b"}.items()
    for text in ("transactional.id=mine", "sasl.password", "plugin.library.paths=evil", "secret"):
        file.write_text(f"sasl.username=me\n{text}\n")
        with pytest.raises(kafka.KafkaRefused, match="line 2") as refusal:
            kafka.read_properties(place)
        assert text not in str(refusal.value)
    file.write_text("security.protocol=SSL\nssl.ca.location=/nowhere/ca.pem\n")
    async with sink_of(str(place)) as sink:
        with pytest.raises(SinkRefused, match=r"ssl\.ca\.location"):
            await sink.begin()
    file.unlink()
    with pytest.raises(SinkRefused, match="cannot be read: No such file"):
        async with sink_of(str(place)):
            pass


async def test_relays_log_in_over_tls_and_a_refusal_is_an_operators(
    own_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    port, topic = free_port(), fresh_name()
    certificate = open_login(own_kafka_broker, port, {"west": "wonderland", "east": "elsewhere"}, superuser="west")

    def address_for(user: str, password: str) -> str:
        file = tmp_path / f"{user}-{password}.properties"
        file.write_text(
            f"security.protocol=SASL_SSL\nsasl.mechanism=PLAIN\nsasl.username={user}\nsasl.password={password}\n"
            f"ssl.ca.location={certificate}\n"
        )
        return f"kafka://127.0.0.1:{port}/{topic}?partitions=3&config={file}"

    async with sink_of(address_for("west", "wonderland")) as sink:
        await sink.publish(page(1, 20), await sink.begin())
        assert len([stored async for stored in sink.stored_events()]) == 20
    async with sink_of(address_for("west", "rabbithole")) as sink:
        with pytest.raises(SinkRefused, match=r"[Aa]uthentication") as refusal:
            await sink.begin()
        assert "rabbithole" not in str(refusal.value).partition("config=")[2].partition(":")[2]
    async with sink_of(address_for("east", "elsewhere")) as sink:
        with pytest.raises(SinkRefused, match=r"[Aa]uthorization"):
            await sink.begin()
    untrusted = address_for("west", "wonderland")
    (tmp_path / "west-wonderland.properties").write_text("security.protocol=SSL\n")
    async with sink_of(untrusted) as sink:
        with pytest.raises(SinkRefused, match=r"(?i)ssl.*certificate"):
            await sink.begin()
    log_address = address_for("east", "elsewhere").replace("partitions=3&", "")
    async with open_log(BrokerAddress.parse(log_address)) as log:
        with pytest.raises(SourceRefused, match=r"[Aa]uthorization"):
            await log.seek(START, {})


def open_login(broker: KafkaBroker, port: int, users: Mapping[str, str], *, superuser: str) -> Path:
    """Start a broker again with a port where clients log in over TLS; return the file of its certificate."""
    broker.process.kill()
    store, certificate = broker.folder / "tls.p12", broker.folder / "tls.pem"
    keytool = ["keytool", "-storetype", "PKCS12", "-keystore", str(store), "-storepass", "changeit", "-alias", "broker"]
    names = ["-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1"]
    subprocess.run([*keytool, "-genkeypair", "-keyalg", "EC", *names], check=True, capture_output=True)
    subprocess.run([*keytool, "-exportcert", "-rfc", "-file", str(certificate)], check=True, capture_output=True)
    file = broker.folder / "server.properties"
    lines = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line and line[0] != "#")
    place = f",SASL_SSL://127.0.0.1:{port}"
    passwords = " ".join(f'user_{user}="{password}"' for user, password in users.items())
    lines |= {
        "listeners": lines["listeners"] + place,
        "advertised.listeners": lines["advertised.listeners"] + place,
        "listener.security.protocol.map": lines["listener.security.protocol.map"] + ",SASL_SSL:SASL_SSL",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config":
            f"org.apache.kafka.common.security.plain.PlainLoginModule required {passwords};",
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.location": str(store),
        "ssl.keystore.password": "changeit",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:ANONYMOUS;User:{superuser}",
    }  # fmt: skip
    file.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    broker.process.start()
    return certificate


def test_jars_that_are_not_those_of_the_list_are_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = demo_kafka.install()
    monkeypatch.setattr(demo_kafka, "jars_folder", lambda: tmp_path / "libs")
    shutil.copytree(jars, tmp_path / "libs")
    assert demo_kafka.install() == tmp_path / "libs"
    jar = tmp_path / "libs" / "slf4j-simple-1.7.36.jar"
    jar.unlink()
    jar.write_bytes((jars / jar.name).read_bytes()[:-1] + b"x")
    with pytest.raises(BrokerMissing, match=r"not those of .*libs\.sha256: slf4j-simple-1\.7\.36\.jar"):
        demo_kafka.install()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("kafka://host:9092", "names no stream or topic"),
        ("kafka://host/topic", "for host:port"),
        ("kafka://me:secret@host:9092/topic", r"no user and no password"),
        ("kafka://host:9092/topic?partitions=0", "from 1 to 1000 partitions"),
        ("kafka://host:9092/topic?partitions=many", "from 1 to 1000 partitions"),
        ("kafka://host:9092/topic?acks=0", "the option 'acks'"),
    ],
)
def test_an_address_says_what_is_wrong(address: str, reason: str) -> None:
    with pytest.raises(SinkUnclear, match=reason) as refusal:
        read_address(address)
    assert "secret" not in str(refusal.value)


# --- as the log of a source


def log_of(address: str) -> KafkaLog:
    return open_log(BrokerAddress.parse(address.partition("?")[0]))


async def read_until(log: KafkaLog, wanted: set[int]) -> list[LogMessage]:
    """Read until the messages of these positions are here."""
    messages: list[LogMessage] = []
    async with asyncio.timeout(PATIENCE):
        while wanted - set(positions_of(messages)):
            messages += await log.read(100, 5, without=())
    return messages


def positions_of(messages: Sequence[LogMessage]) -> list[int]:
    return sorted(int(message.headers["pos"]) for message in messages)


async def fill(address: str, pages: int, *, size: int = 100, first: int = 1) -> None:
    """Publish pages of events, with an aborted transaction between."""
    async with sink_of(address) as sink:
        tail = await sink.begin()
        producer = sink._producer
        assert producer is not None
        for number in range(pages):
            start = first + number * size
            tail = await sink.publish(page(start, start + size - 1), tail)
            producer.begin_transaction()
            for partition in range(3):
                producer.produce(read_address(address).name, b"never", None, partition)
            producer.flush()
            producer.abort_transaction()


def offsets_at(messages: list[LogMessage], pos: int) -> dict[str, int]:
    """Return the offsets to read on at after a position."""
    return {each.partition: each.offset + 1 for each in messages if int(each.headers["pos"]) <= pos}


async def test_a_log_is_read_on_after_a_place_with_and_without_offsets(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_kafka, "NEAR_ENOUGH", 10)
    monkeypatch.setattr(source_kafka, "AROUND", 4)
    await fill(address, 10)
    async with log_of(address) as log:
        assert set(await log.seek(START, {})) == {"0", "1", "2"}
        everything = await read_until(log, set(range(1, 1001)))
        assert positions_of(everything) == list(range(1, 1001))
        for after in (1, 137, 500, 999, 1000):
            due = set(range(after + 1, 1001))
            wrong = {"0": 0, "1": 10**9, "7": 3}
            for offsets in ({}, offsets_at(everything, after), offsets_at(everything, 1000), wrong):
                await log.seek(Cursor(1, after), offsets)
                messages = await read_until(log, due or {1000})
                assert len(messages) <= len(due) + 40  # some are read again, few


async def test_partitions_that_are_ahead_are_left_alone_and_lose_nothing(address: str) -> None:
    await fill(address, 3)
    async with log_of(address) as log:
        await log.seek(START, {})
        first = await log.read(20, 5, without=("1", "2"))
        assert {message.partition for message in first} == {"0"}
        rest = await read_until(log, set(range(1, 301)) - set(positions_of(first)))
        assert positions_of([*first, *rest]) == list(range(1, 301))


async def test_a_log_without_its_topic_is_away(address: str) -> None:
    async with log_of(address) as log:
        with pytest.raises(SourceAway, match="no such topic yet"):
            await log.seek(START, {})


async def test_a_broker_that_was_killed_or_emptied_is_read_on(
    own_kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_kafka, "SILENCE_SECONDS", 0.5)
    address = f"{own_kafka_broker.url}/{fresh_name()}?partitions=3"
    await fill(address, 1)
    async with log_of(address) as log:
        await log.seek(START, {})
        messages = await read_until(log, set(range(1, 101)))
        own_kafka_broker.process.kill()
        with pytest.raises(SourceAway):
            await log.read(100, 60, without=())
        own_kafka_broker.process.start()
        await fill(address, 1, first=101)
        assert positions_of(await read_until(log, set(range(101, 201)))) == list(range(101, 201))
        own_kafka_broker.process.kill()
        own_kafka_broker.empty()
        own_kafka_broker.process.start()
        await fill(address, 1)
        with pytest.raises(SourceAway):
            await log.read(100, 60, without=())
        await log.seek(Cursor(1, 90), offsets_at(messages, 90))
        await read_until(log, set(range(91, 101)))


def test_the_errors_that_park_an_event_are_few() -> None:
    from fedstac.messaging.sinks.kafka import FENCES, OF_AN_EVENT

    assert {KafkaError(code).name() for code in OF_AN_EVENT} == {
        "MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "INVALID_TIMESTAMP",
    }  # fmt: skip
    assert not OF_AN_EVENT & (FENCES | kafka.REFUSALS)
