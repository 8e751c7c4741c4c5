"""Acknowledgements over a broker: stored as those over HTTP are, and only the node's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from fedstac.db import nodes
from fedstac.db.connections import Connection
from fedstac.domain import digests
from fedstac.domain.errors import BadRequest, MissingPermission
from fedstac.domain.events import Cursor
from fedstac.messaging import statuses
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.messaging.statuses import StatusSender
from tests.messaging.journeys import HttpRoad, items, journey
from tests.messaging.relaying import add_sink
from tests.support.brokers import fresh_name
from tests.support.nodes import Api
from tests.support.sinks import kafka_topic
from tests.support.waiting import until

BODY = {"node": "east", "epoch": 1, "through": 1, "exceptions": []}


@dataclass
class StatusRoad(HttpRoad):
    """A stream or topic of events with one of acknowledgements beside it."""

    address: str = ""

    def __post_init__(self) -> None:
        self.feed: BrokerAddress | None = BrokerAddress.parse(self.address.replace("partitions=3&", ""))

    @property
    def topic(self) -> BrokerAddress:
        assert self.feed is not None
        address = statuses.status_address(self.feed)
        assert address is not None
        return address

    async def build(self, origin: Connection) -> None:
        await add_sink(origin, self.address)


@pytest.fixture(params=["nats", "kafka"])
async def way(request: pytest.FixtureRequest) -> AsyncIterator[StatusRoad]:
    name = fresh_name()
    if request.param == "nats":
        server = request.getfixturevalue("nats_server")
        yield StatusRoad(f"{server.url}/{name}?status={name}-acks")
    else:
        broker = request.getfixturevalue("kafka_broker")
        yield StatusRoad(f"{kafka_topic(broker).address}&status={name}-acks")


async def reached(conn: Connection) -> dict[str, Cursor]:
    return {row["node"]: Cursor(row["epoch"], row["through"]) for row in await nodes.statuses(conn)}


async def counted(api: Api, outcome: str) -> float:
    """Return how many messages of the topic had an outcome."""
    text = (await api.admin.get("/metrics")).text
    name = f'fedstac_status_messages_total{{outcome="{outcome}"}}'
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


async def test_an_index_node_acknowledges_over_the_broker_and_a_forger_does_not(
    api: Api, conn: Connection, make_database: Callable[[], str], way: StatusRoad
) -> None:
    await way.build(conn)
    async with (
        journey(api, make_database, way, snapshot_first=False) as trip,
        statuses.open_topic(way.topic) as topic,
    ):
        await trip.publish(*items(5))
        head = await trip.head()
        stranger = StatusSender(topic, node="east", token="guessed")
        await stranger.acknowledge(Cursor(head.epoch, head.pos), [])
        own = {role: digests.of_token(token) for role, token in api.tokens.items()}
        forged: list[bytes] = [
            b"", b"hello", b"[]", b"\xff" * 100, orjson.dumps({"status": "{}", "hmac": "00"}),
            statuses.sign({**BODY, "node": "south"}, own["node:east"]),  # in another node's name
            statuses.sign(BODY, own["admin"]), statuses.sign({**BODY, "through": 10**9}, own["node:east"]),
            statuses.sign({**BODY, "epoch": 9}, own["node:east"]),
            statuses.sign({**BODY, "through": "1"}, own["node:east"]),
            statuses.sign({**BODY, "exceptions": [{"outcome": "eaten"}]}, own["node:east"]),
        ]  # fmt: skip
        for value in forged:
            await topic.send(value)

        async def all_are_refused() -> bool:
            return await counted(api, "refused") == len(forged) + 1

        await until(all_are_refused)
        assert await reached(conn) == {}
        async with trip.following():

            async def is_acknowledged() -> bool:
                return (await reached(conn)).get("east") == await trip.head()

            await until(is_acknowledged)
            await trip.publish(*items(8)[5:])
            await until(is_acknowledged)
        assert await counted(api, "refused") == len(forged) + 1

        async def came_by_the_topic() -> bool:
            return await counted(api, "stored") >= 2

        await until(came_by_the_topic)


async def test_reports_on_deletions_come_by_the_topic_and_a_forger_reports_nothing(
    api: Api, conn: Connection, make_database: Callable[[], str], way: StatusRoad
) -> None:
    """The origin is asked over HTTP later whether it has them; only then they are not sent any more."""
    await conn.execute(
        """INSERT INTO fedstac.deletion_configuration (project, version, body, actor)
           VALUES ('CMIP6', 1, '{"dependencies": [{"name": "east"}]}', 'test')"""
    )
    await way.build(conn)
    async with (
        journey(api, make_database, way, snapshot_first=False) as trip,
        statuses.open_topic(way.topic) as topic,
    ):
        [item] = items(1)
        await trip.publish(item)
        answer = await api.admin.delete(f"/collections/CMIP6/items/{item['id']}", headers={"Prefer": "wait=20"})
        assert answer.status_code == 200, answer.text
        report = {"event_id": str(await conn.fetchval("SELECT event_id FROM fedstac.deletion")), "outcome": "ok"}
        own = {role: digests.of_token(token) for role, token in api.tokens.items()}
        body = {**BODY, "through": 0}
        forged = [
            statuses.sign({**body, "reports": [{**report, "name": "south"}]}, own["node:east"]),
            statuses.sign({**body, "node": "south", "reports": [{**report, "name": "east"}]}, own["node:south"]),
            statuses.sign({**body, "reports": [report]}, own["node:south"]),
            statuses.sign({**body, "reports": [{**report, "outcome": "waived"}]}, own["node:east"]),
        ]
        for value in forged:
            await topic.send(value)

        async def all_are_refused() -> bool:
            return await counted(api, "refused") == len(forged)

        await until(all_are_refused)
        query = "SELECT state FROM fedstac.deletion_dependency WHERE name = 'east'"
        assert await conn.fetchval(query) == "pending"
        async with trip.following(), trip.east.pool.acquire() as east:

            async def has_reported() -> bool:
                return str(await conn.fetchval(query)) in ("ok", "nothing to do")

            await until(has_reported)
            actors = await conn.fetch("SELECT actor FROM fedstac.audit WHERE action = 'report-deletion'")
            assert [row["actor"] for row in actors] == ["node:east"]  # over HTTP it is the name of the token

            async def the_origin_has_it() -> bool:
                await east.execute("UPDATE fedstac.own_report SET next_send = now() WHERE sends > 0")
                return not await east.fetchval("SELECT count(*) FROM fedstac.own_report")

            await until(the_origin_has_it)


@pytest.mark.parametrize("value", [b"", b"{}", b"null", b'{"status": 5, "hmac": ""}', b'{"status": "{}", "hmac": ""}'])
def test_what_is_no_acknowledgement_is_not_read(value: bytes) -> None:
    with pytest.raises(BadRequest):
        statuses.read(value)


@pytest.mark.parametrize("change", [
    lambda message: message | {"hmac": message["hmac"][:-1] + "é"}, lambda message: message | {"hmac": ""},
    lambda message: message | {"status": message["status"].replace('"through":1', '"through":2')},
])  # fmt: skip
def test_a_signature_is_of_the_very_text(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    keys = [digests.of_token("another"), digests.of_token("own")]
    message = orjson.loads(statuses.sign(BODY, keys[1]))
    statuses.read(orjson.dumps(message)).require(keys)
    with pytest.raises((BadRequest, MissingPermission)):
        statuses.read(orjson.dumps(change(message))).require(keys)
    with pytest.raises(MissingPermission):
        statuses.read(orjson.dumps(message)).require([])
