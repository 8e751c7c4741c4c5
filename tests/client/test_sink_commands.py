"""`fedstac sink` and `fedstac dead-letter`: what they show, what they refuse, and how they exit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedstac.bootstrap import Node
from fedstac.db import dead_letters
from fedstac.db.connections import Connection
from fedstac.demo.brokers import NatsServer
from fedstac.domain.errors import BadRequest, Conflict
from fedstac.messaging.sinks import shown_address
from fedstac.workers import sinking
from fedstac.workers.sinking import SinkDescription
from tests.messaging.relaying import add_sink, fill, relaying, sent_through
from tests.support.commands import Fedstac, StartCommand
from tests.support.sinks import ACCEPTED, NatsStream, hook, nats_stream
from tests.support.waiting import until


@pytest.fixture
async def nats(nats_server: NatsServer) -> AsyncIterator[NatsStream]:
    async with nats_stream(nats_server) as stream:
        yield stream


async def test_a_sink_is_added_shown_paused_sought_and_removed(
    node: Node, conn: Connection, dsn: str, fedstac: Fedstac
) -> None:
    await fill(conn, 5)
    own = {"FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west"}
    address = "https://portal.example.org/hook"
    added = await fedstac("sink", "add", "portal", address, "--optional", "--from", "now", "-o", "json", **own)
    assert (added.code, added.stderr) == (0, "")
    sink = json.loads(added.stdout)
    assert (sink["name"], sink["through"], sink["required"], sink["stand"]) == ("portal", "1.5", False, "sending")
    other = await fedstac("sink", "add", "portal", "https://other.example.org", **own)
    assert (other.code, "there is a sink 'portal' already" in other.stderr) == (1, True)
    await fedstac("sink", "pause", "portal", "--reason", "it moves", **own)
    sought = await fedstac("sink", "seek", "portal", "--to", "2", "-o", "json", **own)
    assert json.loads(sought.stdout)["stand"] == "sending"
    listed = await fedstac("sink", "list", **own)
    assert listed.stdout.splitlines()[1].split() == ["portal", "1.5", "0", "sending", address]
    shown = await fedstac("sink", "show", "portal", "--secret", "-o", "json", **own)
    assert json.loads(shown.stdout)["secret"].startswith("whsec_")
    assert (await fedstac("sink", "remove", "portal", **own)).code == 0
    gone = await fedstac("sink", "show", "portal", **own)
    assert (gone.code, "there is no sink 'portal'; see fedstac sink list" in gone.stderr) == (3, True)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "a b"}, "is no name of a sink"),
        ({"address": "ftp://x.example"}, "is no address of a sink; write https://host/path"),
        ({"address": "nats://user:secret@x.example:4222/WEST"}, "no user and no password"),
        ({"address": "https://user:secret@x.example"}, "without a user"),
        ({"address": "https://127.0.0.1/hook", "private": False}, "not of this machine or its network"),
        ({"format": "xml"}, "there are cloudevents, cloudevents-binary, esgf"),
        ({"key_template": "{who}"}, "is no template of a key"),
        ({"start": "then"}, "write start, now, or a position"),
    ],
)
async def test_a_sink_that_is_described_wrongly_is_refused_with_the_remedy(
    node: Node, conn: Connection, values: dict[str, Any], sentence: str
) -> None:
    description: dict[str, Any] = {"name": "x", "address": "https://x.example", "private": True, **values}
    with pytest.raises(BadRequest, match=sentence) as refusal:
        await sinking.add(conn, SinkDescription(**description), node="west", actor="test")
    assert "secret" not in str(refusal.value)


async def test_a_log_has_one_sink_and_a_repeat_says_what_it_does_not_change(node: Node, conn: Connection) -> None:
    archive = SinkDescription(name="archive", address="kafka://a:9092,b:9092/west", private=True)
    await sinking.add(conn, archive, node="west", actor="test")
    for address in ("kafka://b:9092/west", "kafka://b:9092/west?partitions=6"):
        with pytest.raises(Conflict, match=r"the sink 'archive' sends to .* already"):
            await sinking.add(conn, replace(archive, name="other", address=address), node="west", actor="test")
    await sinking.add(conn, replace(archive, name="east", address="kafka://b:9092/east"), node="west", actor="test")
    assert (await sinking.add(conn, archive, node="west", actor="test")).name == "archive"
    with pytest.raises(Conflict, match=r"already, required: .* fedstac sink remove archive"):
        await sinking.add(conn, replace(archive, required=False), node="west", actor="test")


def test_who_may_only_watch_does_not_see_the_path_of_a_webhook() -> None:
    assert shown_address("https://hooks.example/T0/secret?token=secret") == "https://hooks.example"
    assert shown_address("https://hooks.example?token=secret") == "https://hooks.example"
    assert shown_address("kafka://a:9092,b:9092/west?partitions=6") == "kafka://a:9092,b:9092/west?partitions=6"


async def test_what_no_dead_letter_can_be_called_is_not_found(node: Node, dsn: str, fedstac: Fedstac) -> None:
    own = {"FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west"}
    for command in ("show", "redrive", "discard"):
        refused = await fedstac("dead-letter", command, "9" * 20, **own)
        assert (refused.code, "there is no dead letter 999" in refused.stderr) == (3, True)
    assert (await fedstac("dead-letter", "list", "--limit", "9" * 20, "-o", "json", **own)).stdout.strip() == "[]"


async def test_an_audit_finds_what_is_missing_and_has_it_sent_again(
    node: Node, conn: Connection, dsn: str, fedstac: Fedstac, nats: NatsStream
) -> None:
    await fill(conn, 3000)
    own = {"FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west"}
    await add_sink(conn, nats.address, "archive")
    async with relaying(node):
        await sent_through(node, 3000, "archive")
        whole = await fedstac("sink", "audit", "archive", **own)
        assert (whole.code, whole.stdout) == (
            0, "archive has every event through 3000; its own counters prove it\n",
        )  # fmt: skip
        await nats.remove([1, 2])
        listed = await fedstac("sink", "audit", "archive", "--list", **own)
        assert (listed.code, listed.stdout) == (1, "missing 1 to 2\n")
        gone = {1, 2, 700, 701, 702, 1999, 3000}
        await nats.remove([700, 701, 702, 1999, 3000])
        refilled = await fedstac("sink", "audit", "archive", "-o", "json", **own)
        assert refilled.code == 1
        assert json.loads(refilled.stdout)["holes"] == [[1, 2], [700, 702], [1999, 1999], [3000, 3000]]

        async def is_whole() -> bool:
            return {message.pos for message in await nats.messages()} == set(range(1, 3001))

        await until(is_whole)
    assert (await fedstac("sink", "audit", "archive", "--full", **own)).code == 0
    redrives = [message for message in await nats.messages() if message.is_redrive]
    assert {message.pos for message in redrives} == gone


async def test_what_an_operator_passed_over_is_not_missed_until_they_go_back(
    node: Node, conn: Connection, dsn: str, fedstac: Fedstac, nats: NatsStream
) -> None:
    own = {"FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west"}

    async def has(*positions: int) -> bool:
        return sorted({message.pos for message in await nats.messages()}) == list(positions)

    await fill(conn, 10)
    await add_sink(conn, nats.address, "archive")
    async with relaying(node):
        await sent_through(node, 10, "archive")
    await fill(conn, 20, first=11)
    assert (await fedstac("sink", "seek", "archive", "--to", "20", **own)).code == 0
    async with relaying(node):
        await sent_through(node, 30, "archive")
        audit = await fedstac("sink", "audit", "archive", "--full", "-o", "json", **own)
        assert (audit.code, json.loads(audit.stdout)["missing"]) == (0, 0)
        await nats.drop()  # it is filled again without them
        await until(lambda: has(*range(1, 11), *range(21, 31)))
        assert (await fedstac("sink", "seek", "archive", "--to", "15", **own)).code == 0
        await until(lambda: has(*range(1, 11), *range(16, 31)))
        assert (await fedstac("sink", "audit", "archive", "--full", **own)).code == 0


async def test_dead_letters_are_listed_shown_sent_again_and_discarded(
    node: Node, conn: Connection, dsn: str, fedstac: Fedstac
) -> None:
    own = {"FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west"}
    async with hook() as receiver:
        receiver.respond = lambda message: "413 Too Large" if message.pos in (2, 3) else ACCEPTED
        await fill(conn, 5)
        await add_sink(conn, receiver.address, "portal")
        async with relaying(node):
            await sent_through(node, 5, "portal")
            listed = await fedstac("dead-letter", "list", "-o", "ndjson", **own)
            assert [(line["place"], line["reason"]) for line in listed.lines] == [
                ("1.2", "the receiver answered 413"), ("1.3", "the receiver answered 413"),
            ]  # fmt: skip
            first, second = (str(line["id"]) for line in listed.lines)
            shown = await fedstac("dead-letter", "show", first, "-o", "json", **own)
            assert json.loads(shown.stdout)["event"]["data"]["n"] == 2
            receiver.respond = lambda message: ACCEPTED
            assert (await fedstac("dead-letter", "redrive", first, **own)).code == 0
            assert (await fedstac("dead-letter", "discard", second, **own)).code == 0

            async def is_empty() -> bool:
                return not await dead_letters.every(conn, None, None)

            await until(is_empty)
        assert [message.pos for message in receiver.arrivals if message.is_redrive] == [2]
    missing = await fedstac("dead-letter", "redrive", first, **own)
    assert (missing.code, f"there is no dead letter {first}" in missing.stderr) == (3, True)


async def test_a_relay_of_its_own_sends_until_it_is_asked_to_end(
    node: Node, conn: Connection, dsn: str, tmp_path: Path, start_command: StartCommand
) -> None:
    async with hook() as receiver:
        await fill(conn, 5)
        await add_sink(conn, receiver.address, "portal")
        process = await start_command("relay", folder=tmp_path, FEDSTAC_DSN=dsn, FEDSTAC_NODE="west")
        await sent_through(node, 5, "portal")
        process.terminate()
        assert await process.wait() == 0
