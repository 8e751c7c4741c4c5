"""`fedstac doctor` finds what is planted: each check has a fault that it names, with the remedy."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import psycopg
import pytest
from psycopg import sql

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import migrations, nodes, sinks
from fedstac.db.connections import Connection
from fedstac.db.diagnosis import server as server_facts
from fedstac.demo import embedded
from fedstac.demo.brokers import NatsServer
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain import diagnosis
from fedstac.domain.diagnosis import Diagnosis, Grade, LogFacts, OpenTransaction, ServerFacts
from fedstac.domain.events import Cursor
from fedstac.messaging import jetstream
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.settings import Settings
from fedstac.workers import doctor
from tests.support.brokers import fresh_name
from tests.support.commands import Fedstac
from tests.support.databases import name_in
from tests.support.nodes import Api
from tests.support.receivers import listening

NOBODY = "127.0.0.1:9"  # a port at which nobody listens


async def findings(settings: Settings) -> list[Diagnosis]:
    """Return what a doctor finds, without what is well."""
    return [each async for each in doctor.examine(settings) if each.verdict is not Grade.OK]


async def finding(settings: Settings, check: str, thing: str = "") -> Diagnosis:
    """Return the one finding of a check whose thing has this in it. It has a reason and a remedy."""
    every = await findings(settings)
    [one] = [each for each in every if each.check == check and thing in each.thing]
    assert one.why
    assert one.remedy
    return one


@pytest.fixture
def settings(dsn: str) -> Settings:
    return Settings(dsn=dsn, node="west", public_url="https://west.example", _env_file=None)


@pytest.fixture
async def west(settings: Settings) -> AsyncIterator[Node]:
    """A node that has started once and runs nothing."""
    async with bootstrap.node(settings) as node:
        yield node


# --- settings


async def test_settings_that_are_wrong_are_named(dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSTAC_WORKRES", "2")
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 7\n")
    settings = Settings(
        dsn=dsn, node="west", alerts=("mailto:ops@west.example",), issuers="[{}]", policy=str(policy), _env_file=None
    )
    by_thing = {each.thing: each for each in await findings(settings) if each.check == "variables"}
    assert by_thing["FEDSTAC_WORKRES"].remedy == "did you mean FEDSTAC_WORKERS?"
    assert "http://127.0.0.1:8080" in by_thing["FEDSTAC_PUBLIC_URL"].why
    assert "no FEDSTAC_SMTP" in by_thing["FEDSTAC_ALERTS"].why
    assert str(policy) in by_thing["FEDSTAC_POLICY"].why
    assert by_thing["FEDSTAC_ISSUERS"].verdict is Grade.FAULT


async def test_vocabularies_that_are_not_there_are_named(settings: Settings, west: Node, tmp_path: Path) -> None:
    nowhere = settings.model_copy(update={"cv_folder": str(tmp_path / "cv")})
    assert "no folder of vocabulary snapshots" in (await finding(nowhere, "vocabularies")).why
    pinned = settings.model_copy(update={"cv_pins": {"CMIP6": "9.9.9"}})
    assert "9.9.9" in (await finding(pinned, "pins", "CMIP6")).why


async def test_servers_that_do_not_answer_are_named(settings: Settings) -> None:
    issuers = json.dumps([{"issuer": f"http://{NOBODY}", "audience": "x"}])
    away = settings.model_copy(update={"smtp": f"smtp://{NOBODY}", "issuers": issuers})
    assert (await finding(away, "mail server")).thing == NOBODY
    assert (await finding(away, "identity providers")).thing == f"http://{NOBODY}"


# --- the database


async def test_a_database_that_does_not_answer_is_the_one_finding_of_its_kind(settings: Settings) -> None:
    away = settings.model_copy(update={"dsn": f"postgresql://fedstac_writer@{NOBODY}/fedstac"})
    one = await finding(away, "database")
    assert (one.verdict, "no PostgreSQL answers at 127.0.0.1:9" in one.why) == (Grade.FAULT, True)


async def test_settings_of_postgresql_that_lose_data_are_named(settings: Settings, cluster: embedded.Cluster) -> None:
    assert (await finding(settings, "settings of PostgreSQL", "fsync")).verdict is Grade.FAULT  # as tests have it
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        database = sql.Identifier(name_in(settings.dsn))
        conn.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(database))
    one = await finding(settings, "settings of PostgreSQL", "synchronous_commit")
    assert "accepted requests are lost" in one.why


async def test_migrations_that_have_not_run_and_rights_that_are_missing_are_named(
    settings: Settings, cluster: embedded.Cluster
) -> None:
    with psycopg.connect(cluster.dsn(name_in(settings.dsn)), autocommit=True) as conn:
        conn.execute("DELETE FROM fedstac.migration WHERE number = (SELECT max(number) FROM fedstac.migration)")
        assert "1 migrations behind" in (await finding(settings, "migrations")).why
        conn.execute("REVOKE INSERT ON fedstac.sink FROM fedstac_writer")
        assert "INSERT on fedstac.sink is missing" in (await finding(settings, "migrations")).why


GOOD = ServerFacts(
    150_018, False, {"max_connections": "100", "superuser_reserved_connections": "3"}, frozenset(diagnosis.EXTENSIONS),
    migrations.PGSTAC_VERSION, (), 10, 0.0, (),
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "thing"),
    [
        ({"version": 140_001}, "PostgreSQL"),
        ({"is_standby": True}, "PostgreSQL"),
        ({"extensions": frozenset({"postgis", "unaccent"})}, "extension btree_gist"),
        ({"pgstac": "0.9.1"}, "pgstac"),
        ({"pgstac": None}, "pgstac"),
        ({"lacking_roles": ("fedstac_auditor",)}, "role fedstac_auditor"),
        ({"settings": {"full_page_writes": "off"}}, "full_page_writes"),
        ({"settings": {"server_encoding": "LATIN1"}}, "server_encoding"),
        ({"settings": {"default_transaction_read_only": "on"}}, "default_transaction_read_only"),
        ({"settings": {"autovacuum": "off"}}, "autovacuum"),
        ({"settings": {"archive_mode": "off"}}, "archive_mode"),
        ({"settings": {"wal_level": "minimal"}}, "wal_level"),
        ({"settings": {"max_connections": "20", "superuser_reserved_connections": "3"}}, "max_connections"),
        ({"connections": 90}, "max_connections"),
    ],
)
def test_what_a_server_lacks_is_named(facts: dict[str, object], thing: str) -> None:
    def judged(server: ServerFacts) -> list[Diagnosis]:
        return list(diagnosis.judge_server(server, pgstac=migrations.PGSTAC_VERSION, connections_needed=25))

    assert judged(GOOD) == []
    [one] = judged(replace(GOOD, **facts))  # type: ignore[arg-type]
    assert one.thing == thing
    assert one.why
    assert one.remedy


async def test_a_transaction_that_stays_open_is_named_with_its_session(settings: Settings, conn: Connection) -> None:
    async with conn.transaction():
        pid = await conn.fetchval("SELECT pg_backend_pid()")
        other = await asyncpg.connect(settings.dsn)
        try:
            facts = await server_facts(other)
        finally:
            await other.close()
    assert [each.who.startswith(f"session {pid}, ") for each in facts.transactions] == [True]
    [one] = diagnosis.judge_transactions([OpenTransaction("session 7, psql", 700.0), OpenTransaction("x", 500.0)])
    assert (one.thing, "12 min" in one.why) == ("session 7, psql", True)


@pytest.mark.parametrize(
    ("free", "verdict"), [(50, None), (11, None), (9, Grade.WARNING), (2, Grade.FAULT), (0, Grade.FAULT)]
)
def test_a_disk_is_judged_by_its_share(free: int, verdict: Grade | None) -> None:
    assert next((each.verdict for each in diagnosis.judge_disk("/data", 100, free)), None) == verdict


async def test_the_disk_of_the_data_is_looked_at_where_it_can_be_seen(
    settings: Settings, cluster: embedded.Cluster
) -> None:
    unseen = [each for each in await findings(settings) if each.check == "disk"]
    assert [each.verdict for each in unseen] == [Grade.UNKNOWN]  # the writer may not know the folder
    as_superuser = settings.model_copy(update={"dsn": cluster.dsn(name_in(settings.dsn))})
    assert [each for each in await findings(as_superuser) if each.verdict is Grade.UNKNOWN] == []


async def test_a_database_of_another_node_is_named(settings: Settings, west: Node) -> None:
    one = await finding(settings.model_copy(update={"node": "east"}), "name")
    assert one.remedy == "set FEDSTAC_NODE=west"


async def test_a_login_of_another_role_that_fails_is_named(settings: Settings, cluster: embedded.Cluster) -> None:
    wrong = f"postgresql://fedstac_sequencer:wrong@127.0.0.1:{cluster.port}/{name_in(settings.dsn)}"
    one = await finding(settings.model_copy(update={"sequencer_dsn": wrong}), "sequencer login")
    assert one.thing == "FEDSTAC_SEQUENCER_DSN"
    assert "wrong" not in one.why


# --- the node's work


async def test_a_sequencer_that_is_missing_is_named(settings: Settings, west: Node) -> None:
    assert (await finding(settings, "sequencer")).verdict is Grade.FAULT


@pytest.mark.parametrize(
    ("facts", "check"),
    [
        (LogFacts(True, False, None, 0, 0.0, 3), None),
        (LogFacts(False, False, None, 0, 0.0, 3), "sequencer"),
        (LogFacts(True, False, None, 7, 61.0, 3), "sequencer"),
        (LogFacts(True, False, 61.0, 0, 0.0, 3), "workers"),
        (LogFacts(True, True, 61.0, 0, 0.0, 3), None),
        (LogFacts(True, False, None, 0, 0.0, 1), "partitions"),
    ],
)
def test_a_log_that_does_not_move_is_named(facts: LogFacts, check: str | None) -> None:
    assert [each.check for each in diagnosis.judge_log(facts)] == ([check] if check else [])


async def test_a_trouble_of_a_part_in_another_process_is_named(
    settings: Settings, west: Node, conn: Connection
) -> None:
    await conn.execute(
        "INSERT INTO fedstac.part (process, name, wanted, running, restarts, trouble) VALUES "
        "('p', 'notifier', 1, 1, 0, 'mail is refused'), ('p', 'publisher', 2, 1, 0, NULL)"
    )
    assert (await finding(settings, "background parts", "notifier")).why == "mail is refused"
    assert (await finding(settings, "background parts", "publisher")).why == "1 of 2 do not run"


async def add_sink(conn: Connection, address: str, name: str = "archive") -> None:
    new = sinks.NewSink(name, address, "cloudevents", "", required=False, private=True, after=0)
    await sinks.add(conn, new, actor="ops")


async def test_a_sink_that_is_paused_and_whose_receiver_is_away_is_named(
    settings: Settings, west: Node, conn: Connection
) -> None:
    await add_sink(conn, f"http://{NOBODY}/in")
    await sinks.pause(conn, "archive", "the disk is full", actor="ops")
    await conn.execute(
        """INSERT INTO fedstac.dead_letter (sink, epoch, pos, event_id, key, collection, seq, type, reason, attempts,
                                            event) VALUES ('archive', 1, 1, 'e', 'k', 'CMIP6', 1, 't', 'r', 3, '{}')"""
    )
    whys = [each.why for each in await findings(settings) if each.thing == "sink archive"]
    assert [why.partition(":")[0] for why in whys] == [
        "it is paused",
        "it refused 1 events for ever",
        NOBODY.partition(":")[0],
    ]


async def test_a_sink_that_fails_has_its_last_error(settings: Settings, west: Node, conn: Connection) -> None:
    await add_sink(conn, f"http://{NOBODY}/in")
    await sinks.fail(conn, "archive", "no route to host")
    await conn.execute("UPDATE fedstac.sink SET failing_since = now() - interval '2 minutes'")
    whys = [each.why for each in await findings(settings) if each.thing == "sink archive"]
    assert re.fullmatch("it has been failing for 1[2-9][0-9] s: no route to host", whys[0])


async def test_a_broker_that_is_away_is_named(settings: Settings, west: Node, conn: Connection) -> None:
    await add_sink(conn, f"nats://{NOBODY}/WEST")
    one = await finding(settings, "brokers", "sink archive")
    assert (one.verdict, NOBODY in one.why) == (Grade.FAULT, True)


async def test_a_broker_that_says_nothing_keeps_no_other_from_being_named(
    settings: Settings, west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PEER_SECONDS", 0.5)

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(be_silent) as port:
        await add_sink(conn, f"nats://127.0.0.1:{port}/WEST", "first")
        await add_sink(conn, f"nats://{NOBODY}/WEST", "second")
        found = {each.thing: each for each in await findings(settings) if each.thing.startswith("sink ")}
    assert found["sink first"].why == "no answer within 0 s"
    assert NOBODY in found["sink second"].why


async def test_a_stream_that_is_not_set_up_for_events_is_named(
    settings: Settings, west: Node, conn: Connection, nats_server: NatsServer
) -> None:
    stream = fresh_name()
    address = BrokerAddress.parse(f"{nats_server.url}/{stream}")
    connection = jetstream.Connection()
    await connection.open(jetstream.stream_of(address))
    await connection.ask(f"STREAM.CREATE.{stream}", {
        "name": stream, "subjects": [f"{stream}.>"], "storage": "memory", "discard": "new", "max_msg_size": 1000,
    })  # fmt: skip
    await connection.close()
    await add_sink(conn, str(address))
    whys = [each.why for each in await findings(settings) if each.check == "brokers"]
    assert [why.removeprefix(f"the stream {stream} ") for why in whys] == [
        "takes no atomic batches", "takes messages of 1000 bytes only",
        "is in memory: it is empty after a restart, and filled anew each time", "refuses new messages when it is full",
    ]  # fmt: skip


@pytest.mark.kafka
async def test_a_topic_that_is_not_set_up_for_events_is_named(
    settings: Settings, west: Node, conn: Connection, kafka_broker: KafkaBroker
) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = fresh_name()
    admin = AdminClient({"bootstrap.servers": kafka_broker.address})
    new = NewTopic(topic, 1, 1, config={"cleanup.policy": "compact", "max.message.bytes": "1000"})
    await asyncio.to_thread(admin.create_topics([new])[topic].result)
    await add_sink(conn, f"{kafka_broker.url}/{topic}")
    whys = [each.why for each in await findings(settings) if each.check == "brokers"]
    assert [why.partition(":")[0] for why in whys] == [
        f"the topic {topic} takes messages of 1000 bytes only", f"the topic {topic} is compacted",
    ]  # fmt: skip


async def test_parked_events_are_named_with_their_reason(settings: Settings, west: Node, conn: Connection) -> None:
    await conn.execute(
        """INSERT INTO fedstac.parked_event (consumer, origin, subject, event_id, pos, detail, event)
           VALUES ('index', 'north', 'CMIP6/x', 'e', 1, 'its vocabulary is unknown', '{}')"""
    )
    assert (await finding(settings, "parked events", "CMIP6/x of north")).why == "its vocabulary is unknown"


async def test_tokens_that_end_soon_are_named(settings: Settings, west: Node, conn: Connection) -> None:
    soon, past = (datetime.now(UTC) + timedelta(days=days) for days in (3, -1))
    await nodes.issue_token(conn, "east", ["node:east"], expires=soon)
    await nodes.issue_token(conn, "old", ["monitor"], expires=past)
    await nodes.issue_token(conn, "for ever", ["admin"])
    assert (await finding(settings, "tokens", "east")).remedy == "fedstac token issue east --role node:east"
    assert (await finding(settings, "tokens", "old")).why == "it has ended"
    assert len([each for each in await findings(settings) if each.check == "tokens"]) == 2


# --- the sources of an index node


def following(settings: Settings, source: str, token: str = "", feed: str = "") -> Settings:
    return settings.model_copy(update={"source": source, "source_token": token, "source_feed": feed})


async def test_a_source_that_is_away_refuses_us_or_is_none_is_named(
    settings: Settings, api: Api, make_database: Callable[[], str]
) -> None:
    east = settings.model_copy(update={"node": "east", "dsn": make_database()})
    assert (await finding(following(east, f"http://{NOBODY}", "x"), "sources")).verdict is Grade.FAULT
    assert (await finding(following(east, api.url), "sources")).why == "there is no token for it"
    refused = await finding(following(east, api.url, "wrong"), "sources")
    assert refused.why == "it does not take our token"
    assert "wrong" not in refused.remedy
    assert (await finding(following(east, f"{api.url}/problems", "x"), "sources")).why == "it has no feed"
    good = following(east, api.url, api.tokens["node:east"])
    assert [each for each in await findings(good) if each.check in ("sources", "clock")] == []
    by_broker = following(east, api.url, api.tokens["node:east"], f"nats://{NOBODY}/WEST")
    assert (await finding(by_broker, "brokers")).thing == f"nats://{NOBODY}/WEST"


async def test_a_replica_node_has_an_identity_in_place_of_tokens_for_its_sources(
    settings: Settings, api: Api, make_database: Callable[[], str], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"version: 1\nrules: []\nsources: []\ntiers: {{tape: {tmp_path / 'tape'}}}\n")
    for name in ("files", "tape"):
        (tmp_path / name).mkdir()
    east = settings.model_copy(update={
        "node": "east", "dsn": make_database(), "source": api.url, "replica_folder": str(tmp_path / "files"),
        "replica_policy": str(policy), "replica_url": "https://east.example/data",
        "replica_token": api.tokens["node:east"],
    })  # fmt: skip
    looked_at = ("variables", "sources", "clock", "replica node")

    async def faults(**changes: str) -> list[tuple[str, str]]:
        found = await findings(east.model_copy(update=changes))
        return [(each.thing, each.why) for each in found if each.check in looked_at]

    assert await faults() == []
    assert await faults(replica_token="wrong") == [(api.url, "it does not take our token")]
    assert [thing for thing, _ in await faults(source=f"{api.url} http://{NOBODY}")] == [f"http://{NOBODY}"]
    [(thing, why)] = await faults(replica_token="")
    assert (thing, "set FEDSTAC_REPLICA_TOKEN" in why) == ("FEDSTAC_REPLICA_TOKEN", True)
    (tmp_path / "tape").rmdir()
    assert await faults() == [(str(tmp_path / "tape"), f"there is no folder {tmp_path / 'tape'}")]
    policy.write_text("version: 2\nrules: 7\nsources: []\n")
    assert [thing for thing, _ in await faults(replica_url="")] == ["FEDSTAC_REPLICA_URL", str(policy), str(policy)]


async def test_a_topic_of_esgf_is_looked_at_without_a_node_behind_it(settings: Settings, west: Node) -> None:
    topic = following(settings, "", feed=f"kafka://{NOBODY}/esgf?format=esgf&origin=esgf")
    every = await findings(topic)
    assert [each.thing for each in every if each.check == "brokers"] == [
        f"kafka://{NOBODY}/esgf?format=esgf&origin=esgf"
    ]
    assert [each for each in every if each.check in ("sources", "sequencer")] == []


async def test_a_place_that_the_source_has_no_more_is_named(
    settings: Settings, api: Api, make_database: Callable[[], str]
) -> None:
    east = following(
        settings.model_copy(update={"node": "east", "dsn": make_database()}), api.url, api.tokens["node:east"]
    )
    conn = await asyncpg.connect(east.dsn)
    await nodes.move(conn, "index", "west", Cursor(99, 5))
    await conn.close()
    assert "does not go on from 99.5, where the index is" in (await finding(east, "sources")).why


@asynccontextmanager
async def a_node_of_yesterday() -> AsyncIterator[str]:
    """Yield the address of a server whose clock is a day behind."""
    date = (datetime.now(UTC) - timedelta(days=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    body = b'{"origin": "west", "cursor": "1.0", "nodes": []}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    async with listening(answer) as port:
        yield f"http://127.0.0.1:{port}"


async def test_a_clock_that_differs_is_named(settings: Settings) -> None:
    async with a_node_of_yesterday() as address:
        one = await finding(following(settings, address, "x"), "clock", address)
    assert one.why.startswith("its clock is 86")
    assert [each.thing for each in diagnosis.judge_clock("PostgreSQL", 3.0, 2.0)] == ["PostgreSQL"]
    assert list(diagnosis.judge_clock("PostgreSQL", -1.9, 2.0)) == []


# --- the command


async def test_the_command_shows_faults_with_remedies_and_exits_with_1(fedstac: Fedstac, dsn: str) -> None:
    wrong = {"FEDSTAC_DSN": f"postgresql://{NOBODY}/x", "FEDSTAC_NODE": "west"}
    shown = await fedstac("doctor", **wrong)
    assert shown.code == 1
    assert "fault    PostgreSQL: no PostgreSQL answers at 127.0.0.1:9" in shown.stdout
    lines = (await fedstac("doctor", "-o", "ndjson", **wrong)).lines
    assert {"check", "verdict", "thing", "why", "remedy"} == set(lines[0])
    assert "fault" in {line["verdict"] for line in lines}
    good = await fedstac("doctor", "--all", "-o", "ndjson", FEDSTAC_DSN=dsn, FEDSTAC_NODE="west")
    assert {line["thing"] for line in good.lines if line["verdict"] == "fault"} == {"fsync", "full_page_writes"}
    assert {"vocabularies", "tokens"} <= {line["check"] for line in good.lines if line["verdict"] == "ok"}
