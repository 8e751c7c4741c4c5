"""ESGF's format as others read it: the models of esgf-core-utils take every event; a consumer made with them, and an
index node, follow the topic that a relay writes, and both agree with the source.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from fedstac import bootstrap, publication
from fedstac.bootstrap import Node
from fedstac.db import sinks
from fedstac.db.connections import Connection
from fedstac.db.sinks import NewSink
from fedstac.demo import sample
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain import strict_json
from fedstac.domain.actions import Work
from fedstac.messaging.formats import EventFormat
from fedstac.messaging.sources.addresses import read_addresses
from fedstac.settings import Settings
from fedstac.workers import following, index_node
from tests.db import writing
from tests.messaging import story
from tests.messaging.relaying import relaying, sent_through
from tests.support.brokers import fresh_name
from tests.support.places import REPOSITORY
from tests.support.waiting import PATIENCE, until

ENVIRONMENT = Path(os.environ.get("FEDSTAC_ESGCET") or REPOSITORY / ".venv-esgcet")
PYTHON, MARK = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
CONSUMER = REPOSITORY / "tests" / "support" / "esgf_consumer.py"
needs_esgf = pytest.mark.skipif(
    not (MARK.is_file() and "esgf-core-utils" in MARK.read_text()) and not os.environ.get("CI"),
    reason="ESGF's packages are not here: python tools/esgf_publisher.py gets them, or says why it cannot",
)
Json = dict[str, Any]


def run(*arguments: str, given: bytes = b"") -> str:
    """Return what the consumer prints."""
    result = subprocess.run(
        [PYTHON, CONSUMER, *arguments], input=given, capture_output=True, timeout=PATIENCE, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


@needs_esgf
def test_every_event_is_a_kafka_event() -> None:
    values = [event.value for event in story.encoded(EventFormat.ESGF, [*story.story(), story.left()])]
    assert run("validate", given=b"\n".join(values)).strip() == str(len(values))


@needs_esgf
@pytest.mark.kafka
async def test_a_consumer_of_esgfs_and_an_index_node_agree_with_the_source(
    west: Node, conn: Connection, east: Node, kafka_broker: KafkaBroker
) -> None:
    topic = fresh_name()
    items = [cast("Json", strict_json.parse(orjson.dumps(item))) for item in sample.items(12, versions=3, seed=5)]
    receipts = await writing.publish(conn, *items)
    assert not [receipt.problem for receipt in receipts if receipt.problem]
    rules = replace(writing.RULES, origin=west.settings.node)
    for command in story.commands():
        done = await publication.perform(conn, rules, [Work(command, "root", "test")])
        assert not done[0].problem
    await writing.sequence_all(conn)
    head = await conn.fetchval("SELECT pos FROM fedstac.feed_state")
    count = await conn.fetchval("SELECT count(*) FROM fedstac.outbox WHERE dataset IS NOT NULL")
    new = NewSink("esgf", f"{kafka_broker.url}/{topic}?partitions=3", "esgf", "", required=True, private=True, after=0)
    await sinks.add(conn, new, actor="test")
    async with relaying(west):
        await sent_through(west, head, "esgf")

    servers = kafka_broker.url.removeprefix("kafka://")
    consumed: Json = json.loads(await asyncio.to_thread(run, "follow", servers, topic, str(count)))
    rows = await conn.fetch(
        """SELECT id, document, state, claims_latest, encode(digest, 'hex') AS digest, latest FROM fedstac.record"""
    )
    assert set(consumed) == {row["id"] for row in rows}
    for row in rows:
        document, item = json.loads(row["document"]), consumed[row["id"]]
        flags = {name: item["properties"].pop(name) for name in ("latest", "retracted", "created", "updated")}
        assert (flags["latest"], flags["retracted"]) == (row["latest"], row["state"] != "published")
        assert item["properties"] == document["properties"]
        assert item["assets"] == (document["assets"] if row["state"] == "published" else {})

    [source] = read_addresses("", "", feeds=f"kafka://{servers}/{topic}?format=esgf&origin=west")
    stop = asyncio.Event()
    task = asyncio.create_task(following.follow(east, stop, source=source, make_handler=index_node.index_handler))
    async with east.pool.acquire() as there:

        async def is_there() -> bool:
            return bool(await there.fetchval("SELECT max(pos) FROM fedstac.consumer_cursor") == count)

        await until(is_there)
        stop.set()
        await asyncio.wait_for(task, PATIENCE)
        followed = await there.fetch("SELECT id, encode(digest, 'hex') AS digest, latest FROM fedstac.record")
        assert await there.fetchval("SELECT count(*) FROM fedstac.parked_event") == 0
    assert {(row["id"], row["digest"], row["latest"]) for row in followed} == {
        (row["id"], row["digest"], row["latest"]) for row in rows
    }


@pytest.fixture
async def west(node: Node) -> Node:
    """The node that publishes, with a collection."""
    await writing.create_collections(node, "CMIP6")
    return node


@pytest.fixture
async def east(make_database: Any) -> Any:
    """An index node."""
    config = Settings(dsn=make_database(), node="east", _env_file=None)
    async with bootstrap.node(config) as running:
        yield running
