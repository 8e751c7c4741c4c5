"""A trace goes from the request through its event and a broker to the log of the node that applies it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from fedstac import bootstrap
from fedstac.api.http.tracing import traceparent_of
from fedstac.db import sinks
from fedstac.db.sinks import NewSink
from fedstac.demo import sample
from fedstac.demo.brokers import NatsServer
from fedstac.messaging.sources.addresses import BrokerAddress, SourceAddress
from fedstac.settings import Settings
from fedstac.workers import following, index_node
from tests.support.nodes import Api
from tests.support.sinks import nats_stream
from tests.support.waiting import PATIENCE, until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (f"00-{TRACE}-{PARENT}-01", "01"), (f"00-{TRACE}-{PARENT}-00", "00"), (f"00-{TRACE}-{PARENT}-ff", "01"),
        (f"01-{TRACE}-{PARENT}-01", "01"), (f"cc-{TRACE}-{PARENT}-00-what-the-future-will-be", "00"),
    ],
)  # fmt: skip
def test_a_trace_goes_on(header: str, flags: str) -> None:
    version, trace, parent, ours = traceparent_of(header.encode()).split("-")
    assert (version, trace, ours) == ("00", TRACE, flags)
    assert parent not in (PARENT, "0" * 16)
    assert len(parent) == 16


@pytest.mark.parametrize(
    "header",
    [
        "", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-01-more", f"00-{TRACE.upper()}-{PARENT}-01", f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}", f"00-{TRACE}-{PARENT}-1", f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01", "x\n",
        f"01-{TRACE}-{PARENT}-01.x",
    ],
)  # fmt: skip
def test_a_trace_begins_where_there_is_none(header: str) -> None:
    version, trace, parent, flags = traceparent_of(header.encode()).split("-")
    assert (version, len(trace), len(parent), flags) == ("00", 32, 16, "01")
    assert trace != TRACE
    assert traceparent_of(header.encode())[3:35] != trace


async def test_from_the_request_to_the_node(api: Api, make_database: Any, nats_server: NatsServer) -> None:
    traced, untraced = sample.items(2)
    async with nats_stream(nats_server) as stream:
        conn = await asyncpg.connect(api.settings.dsn)
        new = NewSink("nats", stream.address, "cloudevents", "", required=True, private=True, after=0)
        await sinks.add(conn, new, actor="test")
        await conn.close()
        with capture_logs() as lines:
            for item, headers in ((traced, {"traceparent": f"00-{TRACE}-{PARENT}-01"}), (untraced, {})):
                answer = await api.admin.post(
                    "/collections/CMIP6/items", json=item, headers={"Prefer": "wait=60", **headers}
                )
                assert answer.status_code == 201, answer.text

            async def messages() -> Any:
                found = await stream.messages()
                return found if len(found) == 3 else None  # one is the collection's

            collection, *of_items = await until(messages)
            config = Settings(dsn=make_database(), node="east", snapshot_first=False, _env_file=None)
            async with bootstrap.node(config) as east:
                source = SourceAddress(api.url, api.tokens["node:east"], BrokerAddress.parse(stream.address))
                stop = asyncio.Event()
                task = asyncio.create_task(
                    following.follow(east, stop, source=source, make_handler=index_node.index_handler)
                )

                async def is_logged() -> bool:
                    return any(TRACE in line.get("traces", ()) for line in lines if line["event"] == "applied")

                await until(is_logged)
                stop.set()
                await asyncio.wait_for(task, PATIENCE)
    events = {event["subject"].partition("/")[2]: event for event in map(json.loads, (m.value for m in of_items))}
    first, second = events[traced["id"]]["traceparent"], events[untraced["id"]]["traceparent"]
    assert first[3:35] == TRACE
    assert second[3:35] != TRACE
    assert json.loads(collection.value)["traceparent"] == collection.headers["traceparent"]
    assert [message.headers["traceparent"] for message in of_items] == [first, second]
    for step in ("request", "published", "applied"):
        assert any(TRACE in (line.get("trace"), *line.get("traces", ())) for line in lines if line["event"] == step)
