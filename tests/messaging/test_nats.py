"""The NATS sink against a real server: what its answers mean, and what a stream has to be like."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from fedstac.demo import brokers
from fedstac.demo.brokers import NatsServer
from fedstac.domain.events import Cursor
from fedstac.messaging import jetstream
from fedstac.messaging.jetstream import AddressUnclear, Connection
from fedstac.messaging.sinks import OutgoingEvent, PageRefused, SinkAway, SinkRefused, TailMoved
from fedstac.messaging.sinks.nats import NatsSink
from tests.support.brokers import broker_folder, fresh_name
from tests.support.places import REPOSITORY

PUBLISHED = "org.fedstac.dataset.published.v1"


def event(pos: int, *, epoch: int = 1, size: int = 100, previous_pos: int | None = None) -> OutgoingEvent:
    previous = pos - 1 if previous_pos is None else previous_pos
    return OutgoingEvent(Cursor(epoch, pos), previous, f"id-{pos}", "CMIP6/a", "CMIP6", PUBLISHED, {}, b"x" * size)


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[Connection]:
    connection = Connection()
    try:
        await connection.open(jetstream.read_address(f"{server.url}/ANY"))
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def address(nats_server: NatsServer) -> str:
    return f"{nats_server.url}/{fresh_name()}"


def sink_of(address: str) -> NatsSink:
    return NatsSink(jetstream.read_address(address))


async def test_messages_have_their_place_and_a_subject_by_project_and_type(
    nats_server: NatsServer, address: str
) -> None:
    async with sink_of(address) as sink:
        await sink.publish([event(1), event(2)], await sink.begin())
    stream = jetstream.read_address(address).stream
    async with connected(nats_server) as connection:
        answer = await connection.ask(f"STREAM.MSG.GET.{stream}", {"seq": 2})
        assert answer["message"]["subject"] == f"{stream}.CMIP6.{PUBLISHED}"
        message = await jetstream.stored_message(connection, stream, {"seq": 2})
        configuration = (await connection.ask(f"STREAM.INFO.{stream}"))["config"]
    assert message is not None
    assert {name: message.headers[name] for name in ("pos", "epoch", "prev", "ce-id")} == {
        "pos": "2", "epoch": "1", "prev": "1", "ce-id": "id-2",
    }  # fmt: skip
    assert (configuration["storage"], configuration["max_msg_size"]) == ("file", jetstream.LARGEST_MESSAGE)


async def test_a_relay_whose_tail_is_old_stores_nothing(address: str) -> None:
    async with sink_of(address) as old, sink_of(address) as new:
        tail = await old.begin()
        newer = await new.publish([event(1), event(2)], await new.begin())
        with pytest.raises(TailMoved):
            await old.publish([event(1), event(2), event(3)], tail)
        assert await old.begin() == newer


async def test_an_event_above_the_limit_stores_nothing_and_is_named(nats_server: NatsServer, address: str) -> None:
    async with sink_of(address) as sink, connected(nats_server) as connection:
        tail = await sink.publish([event(1)], await sink.begin())
        with pytest.raises(PageRefused, match=r"id-3 has 8912896 bytes"):
            await sink.publish([event(2), event(3, size=jetstream.LARGEST_MESSAGE)], tail)
        stream = jetstream.read_address(address).stream
        configuration = (await connection.ask(f"STREAM.INFO.{stream}"))["config"]
        await connection.ask(f"STREAM.UPDATE.{stream}", configuration | {"max_msg_size": 1000})
        with pytest.raises(PageRefused, match=r"id-3 has 2000 bytes"):  # the relay had read the limit before
            await sink.publish([event(2), event(3, size=2000), event(4)], tail)
        assert await sink.begin() == tail


async def test_an_event_of_eight_megabytes_goes_through(address: str) -> None:
    async with sink_of(address) as sink:
        tail = await sink.publish([event(1, size=8 << 20)], await sink.begin())
        assert tail.cursor == Cursor(1, 1)


async def test_a_full_page_is_one_batch(address: str) -> None:
    async with sink_of(address) as sink:
        tail = await sink.publish([event(pos) for pos in range(1, 1001)], await sink.begin())
        assert tail == await sink.begin()
        assert tail.cursor == Cursor(1, 1000)


async def test_a_purged_stream_takes_everything_again(nats_server: NatsServer, address: str) -> None:
    async with sink_of(address) as sink, connected(nats_server) as connection:
        events = [event(pos) for pos in range(1, 4)]
        await sink.publish(events, await sink.begin())
        await connection.ask(f"STREAM.PURGE.{jetstream.read_address(address).stream}")
        tail = await sink.begin()
        assert tail.cursor is None
        assert (await sink.publish(events, tail)).cursor == Cursor(1, 3)
        assert await sink.is_dense()


async def test_a_removed_message_is_found(nats_server: NatsServer, address: str) -> None:
    async with sink_of(address) as sink, connected(nats_server) as connection:
        await sink.publish([event(pos) for pos in range(1, 6)], await sink.begin())
        assert await sink.is_dense() is True
        await connection.ask(f"STREAM.MSG.DELETE.{jetstream.read_address(address).stream}", {"seq": 3})
        assert await sink.is_dense() is False
        assert [stored.cursor.pos async for stored in sink.stored_events()] == [1, 2, 4, 5]


async def test_a_tail_that_was_removed_is_sent_again(nats_server: NatsServer, address: str) -> None:
    async with sink_of(address) as sink, connected(nats_server) as connection:
        await sink.publish([event(pos) for pos in range(1, 4)], await sink.begin())
        await connection.ask(f"STREAM.MSG.DELETE.{jetstream.read_address(address).stream}", {"seq": 3})
        tail = await sink.begin()
        assert tail.cursor == Cursor(1, 2)
        assert (await sink.publish([event(3)], tail)).cursor == Cursor(1, 3)


async def test_what_was_never_sent_is_no_proof_of_a_hole(address: str) -> None:
    async with sink_of(address) as sink:
        await sink.publish([event(1), event(3, previous_pos=1)], await sink.begin())
        assert await sink.is_dense() is None


async def test_a_stream_of_somebody_else_is_refused(nats_server: NatsServer, address: str) -> None:
    stream = jetstream.read_address(address).stream
    async with connected(nats_server) as connection, sink_of(address) as sink:
        await connection.ask(f"STREAM.CREATE.{stream}", {"name": stream, "subjects": [f"{stream}.>"]})
        with pytest.raises(SinkRefused, match="--allow-batch"):
            await sink.begin()
        await connection.ask(
            f"STREAM.UPDATE.{stream}", {"name": stream, "subjects": [f"{stream}.>"], "allow_atomic": True}
        )
        await connection.request(f"{stream}.a", b"hello")
        with pytest.raises(SinkRefused, match="no relay wrote"):
            await sink.begin()


async def test_a_killed_server_is_away_and_what_it_stored_stays(own_nats_server: NatsServer) -> None:
    address = f"{own_nats_server.url}/KILLED"
    async with sink_of(address) as sink:
        tail = await sink.publish([event(1), event(2)], await sink.begin())
        own_nats_server.process.kill()
        with pytest.raises(SinkAway):
            await sink.publish([event(3)], tail)
    with pytest.raises(SinkAway, match="cannot be reached"):
        await sink_of(address).__aenter__()
    own_nats_server.process.start()
    async with sink_of(address) as sink:
        assert await sink.begin() == tail
    own_nats_server.process.kill()
    own_nats_server.empty()
    own_nats_server.process.start()
    async with sink_of(address) as sink:
        emptied = await sink.begin()
        assert emptied.cursor is None
        assert emptied.identity != tail.identity


ACCOUNTS = """
authorization {
  users = [
    { user: relay, password: right }
    { user: reader, password: right, permissions: { publish: ["$JS.API.>"], subscribe: [">"] } }
  ]
}
"""


async def test_credentials_come_from_a_file_and_are_never_shown(tmp_path: Path) -> None:
    context = tmp_path / "context.json"
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(broker_folder())
        server = stack.enter_context(brokers.nats_server(folder, more=ACCOUNTS))
        address = f"{server.url}/GUARDED"
        with pytest.raises(SinkRefused, match="does not let this node in"):
            await sink_of(address).__aenter__()
        context.write_text(json.dumps({"user": "relay", "password": "right"}))
        async with sink_of(f"{address}?context={context}") as sink:
            tail = await sink.publish([event(1)], await sink.begin())
        context.write_text(json.dumps({"user": "reader", "password": "right"}))
        async with sink_of(f"{address}?context={context}") as sink:
            assert await sink.begin() == tail
            with pytest.raises(SinkRefused, match=r"(?i)permissions violation"):
                await sink.publish([event(2)], tail)
        context.write_text('{"password": "secret"')
        with pytest.raises(SinkRefused) as refusal:
            await sink_of(f"{address}?context={context}").__aenter__()
        assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(("address", "reason"), [
    ("nats://broker.example.org", "looks like"),
    ("nats://broker.example.org/A.B", "letters, digits"),
    ("nats:///STREAM", "looks like"),
    ("nats://broker.example.org:x/STREAM", "no address"),
    ("nats://broker.example.org/STREAM?replicas=3", "no option 'replicas'"),
    ("nats://relay:secret@broker.example.org/STREAM", "into a file"),
    ("nats://relay:secret@broker.example.org:x/STREAM", "into a file"),
])  # fmt: skip
def test_an_address_that_is_none_is_refused_with_a_reason(address: str, reason: str) -> None:
    with pytest.raises(AddressUnclear, match=reason) as refusal:
        jetstream.read_address(address)
    assert "secret" not in str(refusal.value)


def test_the_configuration_for_operators_is_valid_and_says_what_the_demonstration_says(tmp_path: Path) -> None:
    file = REPOSITORY / "docker" / "nats" / "nats-server.conf"
    for path in (file, tmp_path / "users.conf"):
        lines = file.read_text().splitlines()
        if path != file:  # with the users that it suggests
            start = lines.index("# authorization {")
            lines[start:] = [line.removeprefix("# ") for line in lines[start:]]
            path.write_text("\n".join(lines))
        checked = subprocess.run(
            [brokers.nats_program(), "-t", "--config", path], capture_output=True, text=True,
            env={"RELAY_PASSWORD": "a", "EAST_PASSWORD": "b"}, check=False,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stderr
    needed = [line.split("  #")[0].strip() for line in brokers.NATS_CONFIGURATION.splitlines()]
    for setting in ("max_payload: {largest}", "sync_interval: always"):
        assert setting in needed
        assert setting.format(largest=brokers.LARGEST_MESSAGE) in file.read_text()
    assert brokers.LARGEST_MESSAGE == jetstream.LARGEST_MESSAGE
