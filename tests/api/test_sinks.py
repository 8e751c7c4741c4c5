"""Sinks and dead letters over HTTP: what the routes do, refuse and never show."""

from __future__ import annotations

from typing import Any

import pytest

from fedstac.api.nodes import sinks as routes
from fedstac.db import sinks
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.demo.brokers import NatsServer
from fedstac.workers import sinking
from tests.messaging.relaying import add_sink, sent_through_pos
from tests.support.nodes import Api, StartApi
from tests.support.receivers import listening
from tests.support.sinks import ACCEPTED, hook, nats_stream
from tests.support.waiting import until


@pytest.fixture
async def api(start_api: StartApi, dsn: str) -> Api:
    """A node with the collection CMIP6 that lets sinks lead anywhere."""
    started = await start_api(dsn=dsn, notify_private=True)
    assert (await started.admin.post("/collections", json=sample.collection())).status_code == 201
    return started


async def test_a_sink_gets_the_log_and_its_dead_letters_are_sent_again(api: Api, conn: Connection) -> None:
    async with hook() as receiver:
        receiver.respond = lambda message: "422 Unprocessable"
        body = {"name": "portal", "address": receiver.address}
        created = await api.admin.post("/sinks", json=body)
        assert (created.status_code, created.headers["Location"]) == (201, f"{api.url}/sinks/portal")
        assert created.json()["secret"].startswith("whsec_")
        assert (await api.admin.post("/sinks", json=body)).status_code == 200
        assert (await api.admin.post("/sinks", json={**body, "format": "esgf"})).status_code == 409
        await sent_through_pos(conn, 1, "portal")
        [letter] = (await api.admin.get("/dead-letters?sink=portal")).json()["dead_letters"]
        whole = (await api.admin.get(f"/dead-letters/{letter['id']}")).json()
        assert whole["event"]["type"] == "org.fedstac.collection.created.v1"
        receiver.respond = lambda message: ACCEPTED
        redriven = await api.admin.post("/dead-letters/redrive", json={"ids": [letter["id"]]})
        assert redriven.json()["dead_letters"][0]["redrive_at"] is not None

        async def is_empty() -> bool:
            return bool((await api.admin.get("/dead-letters")).json() == {"dead_letters": []})

        await until(is_empty)
        assert [message.pos for message in receiver.arrivals] == [1]
    shown = (await api.admin.get("/sinks/portal")).json()
    assert (shown["through"], "secret" in shown) == ("1.1", False)
    assert (await api.admin.post("/sinks/portal/pause", json={"reason": "it moves"})).json()["paused"] == "it moves"
    assert (await api.admin.post("/sinks/portal/resume")).json()["paused"] is None
    assert (await api.admin.post("/sinks/portal/seek", json={"to": 0})).status_code == 200
    assert (await api.admin.post("/sinks/portal/seek", json={"to": 99})).status_code == 409
    audit = await api.admin.post("/sinks/portal/audit")
    assert (audit.status_code, audit.json()["detail"]) == (
        409, "the sink portal is a webhook, which tells nothing of what it has",
    )  # fmt: skip
    assert (await api.admin.delete("/sinks/portal")).status_code == 204
    assert (await api.admin.get("/sinks/portal")).status_code == 404


async def test_an_audit_proves_a_stream_whole(api: Api, conn: Connection, nats_server: NatsServer) -> None:
    async with nats_stream(nats_server) as stream:
        await add_sink(conn, stream.address, "archive")
        await sent_through_pos(conn, 1, "archive")
        result = (await api.admin.post("/sinks/archive/audit", json={"full": True})).json()
    assert (result["missing"], result["messages"], result["proof"]) == (0, 1, "messages")


async def test_an_audit_over_http_takes_a_bounded_time_and_one_is_made_at_once(
    api: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "AUDIT_SECONDS", 0.2)
    async with listening(lambda reader, writer: reader.read()) as mute:
        await add_sink(conn, f"nats://127.0.0.1:{mute}/MUTE", "mute")
        late = await api.admin.post("/sinks/mute/audit")
        async with routes._auditing:
            second = await api.admin.post("/sinks/mute/audit")
        await sinks.remove(conn, "mute", actor="test")
    assert (late.status_code, "fedstac sink audit" in late.json()["detail"]) == (409, True), late.text
    assert (second.status_code, "another sink is audited" in second.json()["detail"]) == (503, True), second.text


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("/sinks", {"name": 7, "address": "https://x.example"}, "name is a text"),
    ("/sinks", {"name": "x", "address": "https://u:pw@x.example"}, "without a user"),
    ("/sinks", {"name": "x", "address": "gopher://x.example"}, "is no address of a sink"),
    ("/sinks", {"name": "x", "address": "https://x.example", "required": "yes"}, "required is true or false"),
    ("/sinks", {"name": "x", "address": "https://x.example", "colour": "red"}, "send a JSON object with some of"),
    ("/sinks/x/seek", {"to": 1.5}, "or a position"),
    ("/sinks/x/pause", {"reason": ""}, "reason is a text of 1 to 500 characters"),
    ("/sinks/x/audit", {"full": 1}, "full and list are true or false"),
    ("/dead-letters/redrive", {"ids": []}, "at most 1000"),
    ("/dead-letters/discard", {"ids": [True]}, "at most 1000"),
)


async def test_what_cannot_be_is_refused_with_the_remedy(api: Api) -> None:
    for path, body, detail in REFUSED:
        response = await api.admin.post(path, json=body)
        assert (response.status_code, detail in response.json()["detail"]) == (400, True), response.text
        assert "pw" not in response.text


async def test_a_private_address_is_not_for_whoever_calls(start_api: StartApi, dsn: str, conn: Connection) -> None:
    api = await start_api(dsn=dsn)
    for address in ("http://127.0.0.1/hook", "https://10.0.0.7/hook", "nats://broker.example:4222/WEST"):
        assert (await api.admin.post("/sinks", json={"name": "x", "address": address})).status_code == 400
    assert await sinks.every(conn) == []


async def test_only_so_many_sinks_are_taken(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinking, "MOST_SINKS", 1)
    body = {"name": "one", "address": "https://hooks.example/1"}
    assert (await api.admin.post("/sinks", json=body)).status_code == 201
    assert (await api.admin.post("/sinks", json=body)).status_code == 200
    refused = await api.admin.post("/sinks", json={**body, "name": "two"})
    assert (refused.status_code, "1 sinks" in refused.json()["detail"]) == (409, True)


async def test_no_file_of_the_node_is_named_over_http(api: Api) -> None:
    body = {"name": "one", "address": "nats://127.0.0.1:4222/STREAM?config=/etc/secret.json"}
    refused = await api.admin.post("/sinks", json=body)
    assert (refused.status_code, "command line" in refused.json()["detail"]) == (400, True)


@pytest.mark.parametrize("address", ["nats://127.0.0.1:4222", "kafka://127.0.0.1:9092/t?color=red", "nats://:/"])
async def test_an_address_that_is_none_is_said_to_be(api: Api, address: str) -> None:
    refused = await api.admin.post("/sinks", json={"name": "one", "address": address})
    assert refused.status_code == 400, refused.text
