"""The relay with real sinks: what arrives, whoever is killed, refuses, loses or comes back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.db import dead_letters, sinks
from fedstac.db.connections import Connection
from fedstac.demo import embedded
from fedstac.demo.brokers import NatsServer
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain.errors import Conflict
from fedstac.workers import relay
from tests.db import writing
from tests.messaging.relaying import (
    add_sink,
    fill,
    has_let_go,
    is_chain,
    is_failing,
    is_paused,
    numbers,
    relaying,
    sent_through,
)
from tests.support import failpoints
from tests.support.brokers import fresh_name
from tests.support.commands import StartCommand
from tests.support.receivers import listening
from tests.support.sinks import ACCEPTED, Message, NatsStream, Receiver, hook, kafka_topic, nats_stream
from tests.support.waiting import PATIENCE, until
from tests.workers import things


@pytest.fixture
async def nats(nats_server: NatsServer) -> AsyncIterator[NatsStream]:
    async with nats_stream(nats_server) as log:
        yield log


@pytest.fixture
async def owner(cluster: embedded.Cluster, dsn: str) -> AsyncIterator[Connection]:
    """A session that may do what no role of a node may: it puts the database back to an earlier state."""
    connection = await asyncpg.connect(cluster.dsn(urlsplit(dsn).path.removeprefix("/")))
    yield connection
    await connection.close()


async def arrived(receiver: Receiver, count: int) -> Sequence[Message]:
    """Wait until a receiver has so many messages, and return them."""

    async def look() -> bool:
        return len(await receiver.messages()) >= count

    await until(look)
    return await receiver.messages()


def of_lineages(messages: Sequence[Message]) -> bool:
    """Return whether the events of each lineage are in their order."""
    last: dict[int, int] = {}
    for n in numbers(messages):
        if last.get(n % 10, 0) >= n:
            return False
        last[n % 10] = n
    return True


async def test_every_event_arrives_once_in_its_order_and_names_the_one_before(
    node: Node, conn: Connection, receiver: Receiver
) -> None:
    count = 2500 if receiver.keeps_log else 300
    await fill(conn, count)
    await add_sink(conn, receiver.address)
    async with relaying(node):
        sink = await sent_through(node, count)
        await fill(conn, 30, first=count + 1)
        await arrived(receiver, count + 30)
    assert sink.sent == count
    async with relaying(node):
        await fill(conn, 5, first=count + 31)
        messages = await arrived(receiver, count + 35)
    assert len(messages) == count + 35
    assert of_lineages(messages)
    assert is_chain(messages, count + 35) or not receiver.keeps_log


async def test_what_names_the_event_before_leaves_out_what_was_refused(
    node: Node, conn: Connection, nats: NatsStream
) -> None:
    await fill(conn, 10)
    await add_sink(conn, nats.address)
    async with relaying(node):
        await sent_through(node, 10)
        await nats.limit_messages(2000)
        for first, count, size in ((11, 2, 100), (13, 2, 3000), (15, 2, 100), (17, 1, 3000), (18, 1, 100)):
            await fill(conn, count, first=first, size=size)
        await sent_through(node, 18)
        messages = await arrived(nats, 15)
        await nats.empty()
        await sinks.pause(conn, "one", "a test", actor="test")
        await sinks.resume(conn, "one", actor="test")
        again = await arrived(nats, 15)
    places = [(message.pos, int(message.headers["prev"])) for message in messages]
    assert places[9:] == [(10, 9), (11, 10), (12, 11), (15, 12), (16, 15), (18, 16)]
    assert [(message.pos, int(message.headers["prev"])) for message in again] == places


async def test_what_a_broker_lost_is_sent_again_and_nothing_else(
    node: Node, conn: Connection, nats: NatsStream
) -> None:
    await fill(conn, 1200)
    await add_sink(conn, nats.address)
    async with relaying(node):
        await sent_through(node, 1200)
    for harm in (nats.empty(), nats.remove(range(2303, 2401)), nats.drop()):
        await harm
        async with relaying(node):
            messages = await arrived(nats, 1200)
            await sent_through(node, 1200)
        assert is_chain(messages, 1200)


@pytest.mark.kafka
async def test_what_a_topic_lost_is_sent_again_and_nothing_else(
    node: Node, conn: Connection, kafka_broker: KafkaBroker
) -> None:
    topic = kafka_topic(kafka_broker)
    await fill(conn, 600)
    await add_sink(conn, topic.address)
    async with relaying(node):
        await sent_through(node, 600)
    for harm in (topic.empty(1), topic.empty(0, 2), topic.empty(), topic.drop()):
        await harm
        async with relaying(node):
            messages = await arrived(topic, 600)
            await sent_through(node, 600)
        assert is_chain(messages, 600)


async def test_a_log_that_goes_while_nothing_is_sent_is_filled_again(
    node: Node, conn: Connection, nats: NatsStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CHECK_SECONDS", 0.1)
    await fill(conn, 50)
    await add_sink(conn, nats.address)
    async with relaying(node):
        await sent_through(node, 50)
        await nats.drop()
        messages = await arrived(nats, 50)
    assert is_chain(messages, 50)


@pytest.mark.kafka
async def test_a_topic_that_goes_while_nothing_is_sent_is_filled_again(
    node: Node, conn: Connection, kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CHECK_SECONDS", 0.1)
    topic = kafka_topic(kafka_broker)
    await fill(conn, 50)
    await add_sink(conn, topic.address)
    async with relaying(node):
        await sent_through(node, 50)
        await topic.drop()
        messages = await arrived(topic, 50)
    assert is_chain(messages, 50)


async def test_a_broker_that_goes_away_while_nothing_is_sent_is_noticed(
    node: Node, conn: Connection, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CHECK_SECONDS", 0.1)
    await fill(conn, 5)
    async with nats_stream(own_nats_server) as log:
        await add_sink(conn, log.address)
    async with relaying(node):
        await sent_through(node, 5)
        own_nats_server.process.kill()
        await is_failing(node, "one")


async def test_messages_that_a_stream_lets_go_with_their_age_are_not_sent_again(
    node: Node, conn: Connection, nats: NatsStream
) -> None:
    await fill(conn, 50)
    await add_sink(conn, nats.address)
    async with relaying(node):
        await sent_through(node, 50)
    await nats.let_age(0.2)
    async with relaying(node):
        await fill(conn, 1, first=51)
        await sent_through(node, 51)
    assert await nats.last_sequence() == 51


async def test_an_acknowledgement_that_was_lost_doubles_nothing(node: Node, conn: Connection, nats: NatsStream) -> None:
    await fill(conn, 50)
    await add_sink(conn, nats.address)
    async with relaying(node):
        await sent_through(node, 50)
    await conn.execute("UPDATE fedstac.sink SET pos = 20, previous_pos = 20, partitions = '{\"\": [20, 1, 20]}'")
    async with relaying(node):
        await sent_through(node, 50)
        await fill(conn, 5, first=51)
        messages = await arrived(nats, 55)
    assert is_chain(messages, 55)


async def test_an_event_that_a_sink_refuses_becomes_a_dead_letter_and_the_rest_goes_on(
    node: Node, conn: Connection
) -> None:
    poison = {7, 8, 40}

    def respond(message: Message) -> str:
        return "422 Unprocessable" if set(numbers([message])) & poison else ACCEPTED

    async with hook() as receiver:
        receiver.respond = respond
        await fill(conn, 50)
        await add_sink(conn, receiver.address)
        async with relaying(node):
            await sent_through(node, 50)
            letters = await dead_letters.every(conn, "one", None)
            assert [letter.pos for letter in letters] == [7, 8, 40]
            assert {letter.reason for letter in letters} == {"the receiver answered 422"}
            assert sorted(numbers(receiver.arrivals)) == sorted(set(range(1, 51)) - poison)
            troubles = await conn.fetch("SELECT place FROM fedstac.trouble WHERE kind = 'dead-letter'")
            assert len(troubles) == 3

            poison.clear()
            await dead_letters.redrive(conn, [letters[0].id, letters[2].id], actor="test")
            await arrived(receiver, 49)
            await until(lambda: only_letter(conn, letters[1].id))
        redrives = [message for message in receiver.arrivals if message.is_redrive]
        assert [(m.pos, m.headers["tail"]) for m in sorted(redrives, key=lambda m: m.pos)] == [
            (7, "1.50"),
            (40, "1.50"),
        ]


async def test_events_that_are_too_large_for_a_format_are_dead_letters_and_no_refusals(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstac.workers.relay.MOST_REFUSALS", 1)
    monkeypatch.setattr("fedstac.messaging.formats.LARGEST_VALUE", 4000)
    await writing.create_collections(node, "plain")
    await writing.publish(conn, things.thing(1), things.thing(2, "x" * 4000), things.thing(3))
    await writing.sequence_all(conn)
    async with hook() as receiver:
        await add_sink(conn, receiver.address, format="resource")
        async with relaying(node):
            sink = await sent_through(node, 4)
    [letter] = await dead_letters.every(conn, "one", None)
    assert (letter.dataset, letter.attempts, sink.paused_reason) == ("thing-2", 1, None)
    assert letter.reason.startswith("a message of ")
    assert "has no form by reference; read the dataset itself" in letter.reason
    accessions = [orjson.loads(message.value)["accession"] for message in receiver.arrivals]
    assert sorted(accessions) == ["thing-1", "thing-3"]  # webhooks take datasets at once


async def only_letter(conn: Connection, id: int) -> bool:
    return [letter.id for letter in await dead_letters.every(conn, None, None)] == [id]


async def test_a_dead_letter_of_a_dataset_that_changed_since_is_not_sent_again(node: Node, conn: Connection) -> None:
    async with hook() as receiver:
        receiver.respond = lambda message: "400 Bad" if message.pos == 3 else ACCEPTED
        await fill(conn, 5)
        await add_sink(conn, receiver.address)
        async with relaying(node):
            await sent_through(node, 5)
        letter = (await dead_letters.every(conn, None, None))[0]
        await conn.execute("INSERT INTO fedstac.lineage (key, origin, seq) VALUES ('CMIP6/dataset-3', 'west', 13)")
        await conn.execute(
            """INSERT INTO fedstac.record (collection, id, lineage, origin, state, latest, claims_latest, epoch, seq,
                   created, updated, document, document_digest, files_digest, digest, publisher)
               VALUES ('CMIP6', 'dataset-3', 'CMIP6/dataset-3', 'west', 'published', false, false, 1, 13, now(), now(),
                       '{}', '', '', '', 'anna')"""
        )
        with pytest.raises(Conflict, match="a later event of the same dataset went out since"):
            await dead_letters.redrive(conn, [letter.id], actor="test")
        await dead_letters.discard(conn, [letter.id], actor="test")
        assert await dead_letters.every(conn, None, None) == []


@pytest.mark.parametrize(("refused", "is_stale"), [((1, 3), True), ((2, 3), False)])
async def test_a_dead_letter_is_sent_again_only_where_nothing_later_went_out(
    node: Node, conn: Connection, refused: tuple[int, ...], is_stale: bool
) -> None:
    async with hook() as receiver:
        receiver.respond = lambda message: "400 Bad" if message.pos in refused else ACCEPTED
        await fill(conn, 3, lineages=1)
        await add_sink(conn, receiver.address)
        async with relaying(node):
            await sent_through(node, 3)
    await conn.execute("INSERT INTO fedstac.lineage (key, origin, seq) VALUES ('CMIP6/dataset-0', 'west', 3)")
    await conn.execute(
        """INSERT INTO fedstac.record (collection, id, lineage, origin, state, latest, claims_latest, epoch, seq,
               created, updated, document, document_digest, files_digest, digest, publisher)
           VALUES ('CMIP6', 'dataset-0', 'CMIP6/dataset-0', 'west', 'published', false, false, 1, 3, now(), now(),
                   '{}', '', '', '', 'anna')"""
    )
    earlier = (await dead_letters.every(conn, None, None))[0].id
    if is_stale:
        with pytest.raises(Conflict, match="a later event of the same dataset went out since"):
            await dead_letters.redrive(conn, [earlier], actor="test")
    else:
        assert await dead_letters.redrive(conn, [earlier], actor="test")


async def test_a_sink_that_is_away_or_never_answers_holds_up_no_other(
    node: Node, conn: Connection, nats: NatsStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstac.workers.relay.END_SECONDS", 0.1)
    async with listening(lambda reader, writer: reader.read()) as mute:
        await add_sink(conn, f"http://127.0.0.1:{mute}/mute", "mute")
        await add_sink(conn, "http://127.0.0.1:9/nobody", "dead")
        await add_sink(conn, "nats://127.0.0.1:9/NOBODY", "gone")
        await add_sink(conn, nats.address)
        await fill(conn, 300)
        async with relaying(node):
            await sent_through(node, 300)
            dead = await is_failing(node, "dead")
            await is_failing(node, "gone")
            assert (dead.pos, dead.paused_reason) == (0, None)
            assert (await sinks.read(conn, "mute")).pos == 0
            assert node.parts.troubles() == {}
    assert await conn.fetchval("SELECT count(*) FROM fedstac.dead_letter") == 0


async def test_a_broker_that_comes_back_is_not_kept_waiting(
    node: Node, conn: Connection, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("FIRST_RETRY_SECONDS", "LONGEST_RETRY_SECONDS"):
        monkeypatch.setattr(f"fedstac.workers.relay.{limit}", 3600.0)  # who waits for that does not end in time
    monkeypatch.setattr("fedstac.messaging.probing.KNOCK_SECONDS", 0.1)
    own_nats_server.process.kill()
    await fill(conn, 3)
    await add_sink(conn, f"{own_nats_server.url}/{fresh_name()}")
    async with relaying(node):
        await is_failing(node, errors=1)
        own_nats_server.process.start()
        await sent_through(node, 3)


async def test_a_sink_that_refuses_this_node_is_paused_and_operators_are_told(node: Node, conn: Connection) -> None:
    async with hook() as receiver:
        receiver.respond = lambda message: "403 Forbidden"
        await fill(conn, 5)
        await add_sink(conn, receiver.address)
        async with relaying(node):
            sink = await is_paused(node)
            assert "answered 403" in str(sink.paused_reason)
            trouble = await conn.fetchrow("SELECT kind, place, what FROM fedstac.trouble")
            assert trouble is not None
            assert tuple(trouble) == ("sink", "one", "it is paused")
            receiver.respond = lambda message: ACCEPTED
            await sinks.resume(conn, "one", actor="test")
            await arrived(receiver, 5)


async def test_a_sink_that_refuses_everything_is_paused(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstac.workers.relay.MOST_REFUSALS", 3)
    monkeypatch.setattr("fedstac.workers.relay.TRY_SECONDS", 0)
    async with hook() as receiver:
        receiver.respond = lambda message: "400 Bad"
        await fill(conn, 50)
        await add_sink(conn, receiver.address)
        async with relaying(node):
            sink = await is_paused(node)
    assert "refused 3 events in a row" in str(sink.paused_reason)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.dead_letter") == 3


async def test_a_log_of_another_feed_is_left_alone(
    node: Node, conn: Connection, owner: Connection, nats: NatsStream
) -> None:
    await fill(conn, 20)
    await add_sink(conn, nats.address)
    async with relaying(node):
        await sent_through(node, 20)
    await owner.execute("DELETE FROM fedstac.feed WHERE pos > 10")
    await conn.execute("UPDATE fedstac.feed_state SET pos = 10")
    async with relaying(node):
        sink = await is_paused(node)
    assert "its log ends at 1.20, and this feed at 1.10" in str(sink.paused_reason)
    assert "fedstac admin new-epoch" in str(sink.paused_reason)
    assert len(await nats.messages()) == 20


async def test_after_a_fork_the_log_goes_on_in_the_new_epoch(
    node: Node, conn: Connection, owner: Connection, nats: NatsStream
) -> None:
    await fill(conn, 20)
    await add_sink(conn, nats.address)
    async with relaying(node):
        await sent_through(node, 20)
    await owner.execute("DELETE FROM fedstac.feed WHERE pos > 15")  # a backup of before is what there is now
    await conn.execute("UPDATE fedstac.feed_state SET pos = 15, epoch = 9")
    await conn.execute("INSERT INTO fedstac.epoch (n, forked_at_pos) VALUES (9, 15)")
    await fill(conn, 10, first=101)
    async with relaying(node):
        messages = await arrived(nats, 30)
    assert [(m.headers["epoch"], m.pos, m.headers["prev"]) for m in messages[19:22]] == [
        ("1", 20, "19"), ("9", 16, "15"), ("9", 17, "16"),
    ]  # fmt: skip
    assert numbers(messages)[20:] == list(range(101, 111))


@pytest.mark.long
async def test_a_relay_that_is_killed_anywhere_loses_and_doubles_nothing(
    node: Node, conn: Connection, dsn: str, nats: NatsStream, tmp_path: Path, start_command: StartCommand
) -> None:
    await fill(conn, 600)
    await add_sink(conn, nats.address)
    async with relaying(node):
        await sent_through(node, 600)
    await nats.limit_messages(10_000)
    await fill(conn, 600, first=601)
    await fill(conn, 1, first=1201, size=20_000)
    await fill(conn, 2799, first=1202)
    for words in ("relay.read=kill:2", "relay.published=kill", "relay.buried=kill", "relay.noted=kill"):
        process = await start_command(
            "relay", folder=tmp_path, FEDSTAC_DSN=dsn, FEDSTAC_NODE="west", **failpoints.environment(words)
        )
        await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == -signal.SIGKILL
    async with relaying(node):
        await sent_through(node, 4000)
    [letter] = await dead_letters.every(conn, None, None)
    assert letter.pos == 1201
    places = [(message.pos, int(message.headers["prev"])) for message in await nats.messages()]
    assert places == [(pos, 1200 if pos == 1202 else pos - 1) for pos in range(1, 4001) if pos != 1201]


async def test_of_two_relays_one_sends_and_the_other_takes_over(node: Node, conn: Connection, nats: NatsStream) -> None:
    await add_sink(conn, nats.address)
    async with relaying(node), relaying(node):
        for first in range(1, 1001, 100):
            await fill(conn, 100, first=first)
            await conn.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name = 'fedstac west relay one' AND datname = current_database()"""
            )
            await asyncio.sleep(0)
        messages = await arrived(nats, 1000)
    assert is_chain(messages, 1000)


async def test_a_sink_is_paused_sought_and_removed_while_it_runs(node: Node, conn: Connection) -> None:
    async with hook() as receiver:
        await fill(conn, 10)
        await add_sink(conn, receiver.address, after=5)
        async with relaying(node):
            await arrived(receiver, 5)
            assert sorted(message.pos for message in receiver.arrivals) == [6, 7, 8, 9, 10]
            await sinks.pause(conn, "one", "a test", actor="test")
            await has_let_go(conn, "one")  # a page that was under way may still have been sent
            await fill(conn, 10, first=11)
            with pytest.raises(Conflict, match="the log reaches from 0 to 20; 21 is not in it"):
                await sinks.seek(conn, "one", 21, actor="test")
            receiver.arrivals.clear()
            await sinks.seek(conn, "one", 15, actor="test")
            await arrived(receiver, 5)
            assert {message.pos: message.headers["prev"] for message in receiver.arrivals}[16] == "15"
            await sent_through(node, 20)
            receiver.arrivals.clear()
            await sinks.seek(conn, "one", 2, actor="test")
            await arrived(receiver, 18)
            assert {message.pos for message in receiver.arrivals} == set(range(3, 21))
            assert all(message.is_redrive for message in receiver.arrivals)
            await sinks.remove(conn, "one", actor="test")
    actions = await conn.fetch("SELECT action FROM fedstac.audit WHERE dataset = 'sink/one' ORDER BY id")
    assert [row["action"] for row in actions] == ["add-sink", "pause-sink", "seek-sink", "seek-sink", "remove-sink"]


async def test_a_place_that_is_sought_while_a_page_is_sent_stays(node: Node, conn: Connection) -> None:
    async with hook() as receiver:
        await fill(conn, 3000)
        await add_sink(conn, receiver.address)
        async with relaying(node):
            await arrived(receiver, 1)
            await sinks.seek(conn, "one", 3000, actor="test")
            await fill(conn, 1, first=3001)
            await sent_through(node, 3001)
    arrived_positions = {message.pos for message in receiver.arrivals}
    assert arrived_positions <= {*range(1, 1001), 3001}
    assert 3001 in arrived_positions


async def test_a_sink_that_replaces_another_of_its_name_gets_everything(node: Node, conn: Connection) -> None:
    async with hook() as former, hook() as receiver:
        await fill(conn, 2000)
        await add_sink(conn, former.address)
        async with relaying(node):
            await arrived(former, 1)
            await sinks.remove(conn, "one", actor="test")
            await add_sink(conn, receiver.address)
            await arrived(receiver, 2000)
    assert {message.pos for message in receiver.arrivals} == set(range(1, 2001))
    assert len(former.arrivals) <= 1000


async def test_a_webhook_that_fails_over_one_event_gets_the_others_once(node: Node, conn: Connection) -> None:
    async with hook() as receiver:
        receiver.respond = lambda message: "500 Broken" if message.pos == 150 else ACCEPTED
        await fill(conn, 200, lineages=200)
        await add_sink(conn, receiver.address)
        async with relaying(node):
            await is_failing(node, "one")
            receiver.respond = lambda message: ACCEPTED
            await sent_through(node, 200)
    assert sorted(message.pos for message in receiver.arrivals) == list(range(1, 201))


async def test_a_webhook_that_is_away_is_not_tried_with_every_event(node: Node, conn: Connection) -> None:
    attempts: list[int] = []

    def refuse(message: Message) -> str:
        attempts.append(message.pos)
        return "503 Away"

    async with hook() as receiver:
        receiver.respond = refuse
        await fill(conn, 200, lineages=200)
        await add_sink(conn, receiver.address)
        async with relaying(node):
            sink = await is_failing(node, "one")
    assert len(attempts) <= 16 * (sink.errors + 2)  # one more attempt may begin before the relay ends


async def test_a_required_sink_that_is_dead_lapses(node: Node, conn: Connection, administrator: Connection) -> None:
    await fill(conn, 10)
    await add_sink(conn, "http://127.0.0.1:9/nobody", "dead")
    await add_sink(conn, "http://127.0.0.1:9/nobody", "optional", required=False)
    assert await sinks.lowest_required(conn) == 0
    assert await sinks.lapse(conn, 1) == []
    await administrator.execute("UPDATE fedstac.outbox SET at = at - interval '2 days'")
    assert await sinks.lapse(conn, 1) == []  # it has as long from when it was added
    await conn.execute("UPDATE fedstac.sink SET waits_since = waits_since - interval '2 days'")
    assert await sinks.lapse(conn, 1) == ["dead"]
    assert await sinks.lapse(conn, 1) == []
    assert await sinks.lowest_required(conn) is None
    with pytest.raises(Conflict, match="fedstac sink seek dead --to"):
        await sinks.resume(conn, "dead", actor="test")
    await sinks.seek(conn, "dead", 0, actor="test")
    assert await sinks.lapse(conn, 1) == []
    await sinks.seek(conn, "dead", 10, actor="test")
    assert await sinks.lowest_required(conn) == 10


async def test_a_log_that_is_older_than_sinks_may_be_behind_goes_to_new_ones_and_to_a_broker_that_lost_everything(
    node: Node, conn: Connection, administrator: Connection, nats: NatsStream
) -> None:
    await fill(conn, 2500)
    await administrator.execute("UPDATE fedstac.outbox SET at = at - interval '30 days'")
    await add_sink(conn, nats.address)
    async with relaying(node):
        await sent_through(node, 2500)
    await conn.execute("UPDATE fedstac.sink SET waits_since = waits_since - interval '30 days'")
    await nats.drop()
    async with relaying(node):
        await arrived(nats, 2500)
        assert await sinks.lapse(conn, node.settings.sink_lapse_days) == []
