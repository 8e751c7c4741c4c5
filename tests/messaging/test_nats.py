"""The NATS sink against a real server: what its answers mean, and what a stream has to be like."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from nats.aio.msg import Msg

from fedstac.demo import brokers
from fedstac.demo.brokers import NatsServer
from fedstac.domain.events import Cursor
from fedstac.messaging import jetstream, statuses
from fedstac.messaging.jetstream import Connection, StreamAddress
from fedstac.messaging.sinks import OutgoingEvent, PageRefused, SinkAway, SinkRefused, SinkTarget, TailMoved
from fedstac.messaging.sinks.nats import NatsSink
from fedstac.messaging.sources import SourceAway
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.messaging.sources.nats import NatsLog, open_log
from tests.support.brokers import broker_folder, fresh_name
from tests.support.places import REPOSITORY
from tests.support.waiting import PATIENCE

PUBLISHED = "org.fedstac.dataset.published.v1"


def event(
    pos: int, *, epoch: int = 1, size: int = 100, previous_pos: int | None = None, redrive: bool = False
) -> OutgoingEvent:
    previous = pos - 1 if previous_pos is None else previous_pos
    return OutgoingEvent(
        Cursor(epoch, pos), previous, f"id-{pos}", "CMIP6/a", "CMIP6", PUBLISHED, {}, b"x" * size, is_redrive=redrive
    )


def stream_of(address: str) -> StreamAddress:
    return jetstream.stream_of(BrokerAddress.parse(address))


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[Connection]:
    connection = Connection()
    try:
        await connection.open(stream_of(f"{server.url}/ANY"))
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def address(nats_server: NatsServer) -> str:
    return f"{nats_server.url}/{fresh_name()}"


def sink_of(address: str, origin: str = "west") -> NatsSink:
    return NatsSink(SinkTarget(origin, "stream", address))


async def test_messages_have_their_place_and_a_subject_by_project_and_type(
    nats_server: NatsServer, address: str
) -> None:
    async with sink_of(address) as sink:
        await sink.publish([event(1), event(2)], await sink.begin())
    stream = stream_of(address).stream
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


async def test_a_relay_that_stops_in_the_middle_of_a_batch_stores_nothing_of_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sink_of(address) as old, sink_of(address) as new:
        tail = await old.begin()
        request, is_stopped, may_go_on = Connection.request, asyncio.Event(), asyncio.Event()

        async def stop(connection: Connection, *arguments: Any, **options: Any) -> Msg:
            if connection is old._connection:
                is_stopped.set()
                await may_go_on.wait()
            return await request(connection, *arguments, **options)

        monkeypatch.setattr(Connection, "request", stop)
        publishing = asyncio.create_task(old.publish([event(pos) for pos in range(1, 11)], tail))
        await is_stopped.wait()  # all but the last message are at the server
        newer = await new.publish([event(1), event(2)], await new.begin())
        may_go_on.set()
        with pytest.raises(TailMoved):
            await publishing
        assert await new.begin() == newer
        assert await new.is_dense(0, 2)


async def test_a_stream_whose_file_was_cut_takes_the_rest_again(own_nats_server: NatsServer) -> None:
    address = f"{own_nats_server.url}/CUT"
    await fill(address, *(event(pos, size=1000) for pos in range(1, 501)))
    own_nats_server.process.kill()
    [block] = own_nats_server.folder.glob("store/**/CUT/msgs/*.blk")
    with block.open("rb+") as file:
        file.truncate(block.stat().st_size // 2)
    own_nats_server.process.start()
    async with sink_of(address) as sink:
        tail = await sink.begin()
        assert tail.cursor is not None
        first = tail.cursor.pos + 1
        assert 200 < first < 300
        await sink.publish([event(pos, size=1000) for pos in range(first, 501)], tail)
        assert [stored.cursor.pos async for stored in sink.stored_events()] == [*range(1, 501)]


async def test_an_event_above_the_limit_stores_nothing_and_is_named(nats_server: NatsServer, address: str) -> None:
    async with sink_of(address) as sink, connected(nats_server) as connection:
        tail = await sink.publish([event(1)], await sink.begin())
        with pytest.raises(PageRefused, match="has 8912896 bytes") as refusal:
            await sink.publish([event(2), event(3, size=jetstream.LARGEST_MESSAGE)], tail)
        assert refusal.value.event_id == "id-3"
        stream = stream_of(address).stream
        configuration = (await connection.ask(f"STREAM.INFO.{stream}"))["config"]
        await connection.ask(f"STREAM.UPDATE.{stream}", configuration | {"max_msg_size": 1000})
        with pytest.raises(PageRefused, match="has 2000 bytes"):  # the relay had read the limit before
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
        await connection.ask(f"STREAM.PURGE.{stream_of(address).stream}")
        tail = await sink.begin()
        assert tail.cursor is None
        assert (await sink.publish(events, tail)).cursor == Cursor(1, 3)
        assert await sink.is_dense(0, 3)


async def test_a_removed_message_is_found(nats_server: NatsServer, address: str) -> None:
    async with sink_of(address) as sink, connected(nats_server) as connection:
        await sink.publish([event(pos) for pos in range(1, 6)], await sink.begin())
        assert await sink.is_dense(0, 5) is True
        await connection.ask(f"STREAM.MSG.DELETE.{stream_of(address).stream}", {"seq": 3})
        assert await sink.is_dense(0, 5) is False
        assert [stored.cursor.pos async for stored in sink.stored_events()] == [1, 2, 4, 5]


async def test_a_stream_that_begins_or_ends_elsewhere_proves_nothing(nats_server: NatsServer, address: str) -> None:
    async with sink_of(address) as sink, connected(nats_server) as connection:
        await sink.publish([event(pos) for pos in range(1, 6)], await sink.begin())
        assert await sink.is_dense(0, 6) is None
        await connection.ask(f"STREAM.MSG.DELETE.{stream_of(address).stream}", {"seq": 1})
        assert await sink.is_dense(0, 5) is None
        assert await sink.is_dense(1, 5) is True


async def test_a_tail_that_was_removed_is_sent_again(nats_server: NatsServer, address: str) -> None:
    async with sink_of(address) as sink, connected(nats_server) as connection:
        await sink.publish([event(pos) for pos in range(1, 4)], await sink.begin())
        await connection.ask(f"STREAM.MSG.DELETE.{stream_of(address).stream}", {"seq": 3})
        tail = await sink.begin()
        assert tail.cursor == Cursor(1, 2)
        assert (await sink.publish([event(3)], tail)).cursor == Cursor(1, 3)


async def test_what_was_never_sent_is_no_proof_of_a_hole(address: str) -> None:
    async with sink_of(address) as sink:
        await sink.publish([event(1), event(3, previous_pos=1)], await sink.begin())
        assert await sink.is_dense(0, 3) is None


async def test_a_stream_of_somebody_else_is_refused(nats_server: NatsServer, address: str) -> None:
    stream = stream_of(address).stream
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


async def test_a_stream_with_the_feed_of_another_node_is_refused(address: str) -> None:
    async with sink_of(address) as sink, sink_of(address, "north") as other:
        await sink.begin()
        with pytest.raises(SinkRefused, match="has the events of west"):
            await other.begin()


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


NKEY = "UBNBG7O3EX6C6BGYX6DT57EYQNFDPVAYFWNOP2LILNDJRVJVLEZZJHQY"  # somebody's public key
ACCOUNTS = """
authorization {
  users = [
    { user: relay, password: right }
    { user: reader, password: right, permissions: { publish: ["$JS.API.>"], subscribe: [">"] } }
  ]
}
"""


async def test_credentials_come_from_a_file_and_are_never_shown(tmp_path: Path) -> None:
    config = tmp_path / "credentials.json"
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(broker_folder())
        server = stack.enter_context(brokers.nats_server(folder, more=ACCOUNTS))
        address = f"{server.url}/GUARDED"
        with pytest.raises(SinkRefused, match="does not let this node in"):
            await sink_of(address).__aenter__()
        config.write_text(json.dumps({"user": "relay", "password": "right"}))
        async with sink_of(f"{address}?config={config}") as sink:
            tail = await sink.publish([event(1)], await sink.begin())
        config.write_text(json.dumps({"user": "reader", "password": "right"}))
        async with sink_of(f"{address}?config={config}") as sink:
            assert await sink.begin() == tail
            with pytest.raises(SinkRefused, match=r"(?i)permissions violation"):
                await sink.publish([event(2)], tail)
        config.write_text('{"password": "secret"')
        with pytest.raises(SinkRefused) as refusal:
            await sink_of(f"{address}?config={config}").__aenter__()
        assert "secret" not in str(refusal.value)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Return a certificate of 127.0.0.1 and its key, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "broker.pem", folder / "broker.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


async def test_a_server_with_tls_and_keys_is_reached_with_a_file_that_names_them(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    (tmp_path / "relay.nk").write_bytes(seed)
    more = (
        f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\nauthorization {{ users = [ {{ nkey: {public} }} ] }}'
    )
    config = tmp_path / "credentials.json"
    with broker_folder() as folder, brokers.nats_server(folder, more=more) as server:
        address = f"{server.url}/TLS?config={config}"
        for refused in ({"nkey": str(tmp_path / "relay.nk")}, {"ca": str(certificate)}):
            config.write_text(json.dumps(refused))
            with pytest.raises(SinkRefused, match="does not let this node in"):
                await sink_of(address).__aenter__()
        config.write_text(json.dumps({"ca": str(certificate), "nkey": str(tmp_path / "relay.nk")}))
        async with sink_of(address) as sink:
            assert (await sink.publish([event(1)], await sink.begin())).cursor == Cursor(1, 1)


@pytest.mark.parametrize("config", [
    '{"password": "hidden"', "[1]", '{"user": 5}', '{"nkey": 5}', '{"nkey": "/nowhere"}', '{"creds": "/nowhere"}',
    '{"ca": "/nowhere"}', '{"nkey": "FOLDER/wrong"}', '{"creds": "FOLDER/wrong"}', '{"cert": "FOLDER/wrong"}',
])  # fmt: skip
async def test_credentials_that_cannot_be_used_are_refused_and_not_shown(tmp_path: Path, config: str) -> None:
    (tmp_path / "wrong").write_text("hidden")
    (tmp_path / "credentials.json").write_text(config.replace("FOLDER", str(tmp_path)))
    with (
        broker_folder() as folder,
        brokers.nats_server(folder, more=f"authorization {{ users = [ {{ nkey: {NKEY} }} ] }}") as server,
    ):
        with pytest.raises(SinkRefused, match=r"file of credentials .* cannot be used") as refusal:
            await sink_of(f"{server.url}/GUARDED?config={tmp_path}/credentials.json").__aenter__()
        assert "hidden" not in str(refusal.value)


CONFIGURATION = REPOSITORY / "docker" / "nats" / "nats-server.conf"
PASSWORDS = {"RELAY_PASSWORD": "right", "EAST_PASSWORD": "right"}


def suggested_users() -> str:
    """Return the users that the configuration for operators has as a comment."""
    lines = CONFIGURATION.read_text().splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines[lines.index("# authorization {") :])


def test_the_configuration_for_operators_is_valid_and_says_what_the_demonstration_says() -> None:
    command = [brokers.nats_program(), "-t", "--config", str(CONFIGURATION)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    needed = [line.split("  #")[0].strip() for line in brokers.NATS_CONFIGURATION.splitlines()]
    for setting in ("max_payload: {largest}", "sync_interval: always"):
        assert setting in needed
        assert setting.format(largest=brokers.LARGEST_MESSAGE) in CONFIGURATION.read_text()
    assert brokers.LARGEST_MESSAGE == jetstream.LARGEST_MESSAGE


def stream_named(name: str, address: str) -> BrokerAddress:
    return replace(BrokerAddress.parse(address), name=name)


async def test_the_users_suggested_to_operators_may_do_what_they_need_and_no_more(tmp_path: Path) -> None:
    users = suggested_users()
    for name, password in PASSWORDS.items():
        users = users.replace(f"${name}", password)
    for user in ("relay", "east"):
        (tmp_path / user).write_text(json.dumps({"user": user, "password": "right"}))
    with broker_folder() as folder, brokers.nats_server(folder, more=users) as server:
        address = f"{server.url}/WEST?config={tmp_path}"
        async with sink_of(f"{address}/relay") as sink:
            tail = await sink.publish([event(1), event(2)], await sink.begin())
            assert await sink.is_dense(0, 2)
            assert [stored.cursor.pos async for stored in sink.stored_events()] == [1, 2]
        async with open_log(BrokerAddress.parse(f"{address}/east")) as log:
            await log.seek(Cursor(1, 1), {})
            assert await positions(log) == [2]
        async with statuses.open_topic(stream_named("WEST-STATUS", f"{address}/east")) as topic:
            await topic.send(b"done")
        async with open_log(stream_named("WEST-STATUS", f"{address}/relay")) as log:
            await log.seek(Cursor(1, 0), {})
            assert [message.value for message in await log.read(10, PATIENCE, without=())] == [b"done"]
        async with sink_of(f"{address}/east") as stranger:
            with pytest.raises(SinkRefused, match=r"(?i)permissions violation"):
                await stranger.publish([event(3)], tail)


# --- the stream as a source


async def positions(log: NatsLog, *, limit: int = 1000) -> list[int]:
    """Return the positions of what the log gives until it has no more."""
    found: list[int] = []
    while messages := await log.read(limit, 0.2, without=()):
        found += [int(message.headers.get("pos", "0")) for message in messages]
    return found


async def fill(address: str, *events: OutgoingEvent) -> None:
    async with sink_of(address) as sink:
        await sink.publish(events, await sink.begin())


@pytest.mark.parametrize(("after", "offset", "first"), [
    (Cursor(1, 0), None, 1), (Cursor(1, 4), None, 5), (Cursor(1, 4), 5, 5), (Cursor(1, 4), 9, 5), (Cursor(1, 4), 99, 5),
    (Cursor(1, 4), 3, 3), (Cursor(1, 9), None, 8), (Cursor(2, 9), None, None),
    (Cursor(1, 6), None, 7), (Cursor(2, 8), 9, 9),
])  # fmt: skip
async def test_a_source_goes_on_after_its_cursor_whatever_it_noted(
    address: str, after: Cursor, offset: int | None, first: int | None
) -> None:
    """The stream has 1 to 5, 7, and of the next epoch 8, then 3 again, and 9."""
    await fill(
        address, *map(event, range(1, 6)), event(7, previous_pos=5), event(8, epoch=2, previous_pos=7),
        event(3, epoch=1, redrive=True), event(9, epoch=2),
    )  # fmt: skip
    async with open_log(BrokerAddress.parse(address)) as log:
        await log.seek(after, {} if offset is None else {"": offset})
        found = await positions(log)
    assert found[:1] == ([] if first is None else [first])


async def test_messages_of_nobody_hide_no_place(nats_server: NatsServer, address: str) -> None:
    await fill(address, event(1), event(2))
    stream = stream_of(address).stream
    async with connected(nats_server) as connection:
        for _ in range(30):
            await connection.request(f"{stream}.a", b"hello")
    async with open_log(BrokerAddress.parse(address)) as log:
        await log.seek(Cursor(1, 1), {})
        assert await positions(log) == [2, *[0] * 30]


async def test_a_source_reads_what_comes_while_it_waits(address: str) -> None:
    await fill(address, event(1))
    async with open_log(BrokerAddress.parse(address)) as log, sink_of(address) as sink:
        await log.seek(Cursor(1, 1), {"": 2})
        reading = asyncio.create_task(log.read(1000, PATIENCE, without=()))
        await sink.publish([event(2)], await sink.begin())
        assert [message.offset for message in await reading] == [2]


async def test_large_messages_come_some_at_a_time(address: str) -> None:
    async with sink_of(address) as sink:
        tail = await sink.begin()
        for pos in range(1, 6):
            tail = await sink.publish([event(pos, size=8 << 20)], tail)
    async with open_log(BrokerAddress.parse(address)) as log:
        await log.seek(Cursor(1, 0), {})
        sizes = [len(messages) for _ in range(5) if (messages := await log.read(1000, PATIENCE, without=()))][:5]
    assert sum(sizes) == 5
    assert max(sizes) < 3


async def test_a_source_goes_on_after_its_server_was_killed_and_emptied(
    own_nats_server: NatsServer,
) -> None:
    address = f"{own_nats_server.url}/KILLED"
    async with open_log(BrokerAddress.parse(address)) as log:
        with pytest.raises(SourceAway, match="stream not found"):
            await log.seek(Cursor(1, 0), {})
        await fill(address, *map(event, range(1, 6)))
        await log.seek(Cursor(1, 0), {})
        assert await positions(log) == [1, 2, 3, 4, 5]
        own_nats_server.process.kill()
        with pytest.raises(SourceAway):
            await log.read(1000, PATIENCE, without=())
        with pytest.raises(SourceAway, match="cannot be reached"):
            await log.seek(Cursor(1, 5), {"": 6})
        own_nats_server.empty()
        own_nats_server.process.start()
        await fill(address, *(event(pos) for pos in range(4, 8)))
        await log.seek(Cursor(1, 5), {"": 6})
        assert await positions(log) == [6, 7]


async def test_a_stream_that_is_removed_under_a_reader_is_away(nats_server: NatsServer, address: str) -> None:
    await fill(address, event(1))
    async with open_log(BrokerAddress.parse(address)) as log, connected(nats_server) as connection:
        await log.seek(Cursor(1, 1), {})
        reading = asyncio.create_task(log.read(1000, PATIENCE, without=()))
        await asyncio.sleep(0)
        await connection.ask(f"STREAM.DELETE.{stream_of(address).stream}")
        with pytest.raises(SourceAway):
            await reading


async def test_a_silent_server_is_away(own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{own_nats_server.url}/SILENT"
    await fill(address, event(1))
    monkeypatch.setattr(jetstream, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(jetstream, "SILENCE_SECONDS", 0.6)
    async with open_log(BrokerAddress.parse(address)) as log:
        await log.seek(Cursor(1, 1), {})
        assert await log.read(1000, 1.0, without=()) == []  # heartbeats keep it alive
        own_nats_server.process.freeze()
        with pytest.raises(SourceAway, match="silent"):
            await log.read(1000, PATIENCE, without=())
        own_nats_server.process.thaw()
