"""A sink in a dialect for services gets what outsiders may see: no files of controlled datasets, no private ones."""

from __future__ import annotations

import json
from typing import Any

from fedstac.bootstrap import Node
from fedstac.db import sinks
from fedstac.db.connections import Connection
from fedstac.db.sinks import NewSink
from fedstac.demo import sample
from fedstac.domain.events import EventFormat
from fedstac.messaging.formats import DIALECTS, Encoder
from tests.messaging.relaying import is_paused, relaying, sent_through_pos
from tests.support.nodes import Api
from tests.support.sinks import Message, hook
from tests.support.waiting import until

Json = dict[str, Any]
OPEN, CONTROLLED, PRIVATE, LATER, CLOSED, MARKED = sample.items(6)
PLACE = "https://secret.example/place-of-files"
SERVICES = [form for form in EventFormat if not DIALECTS[form].is_for_nodes]


def at_level(item: Json, level: str) -> Json:
    return {**item, "properties": {**item["properties"], "fedstac:access": level}}


def linked(item: Json) -> Json:
    """Return the item with links and a property that lead to its files by another way than its assets."""
    links = [{"rel": rel, "href": f"{PLACE}/{rel}"} for rel in ("enclosure", "data", "item", "via")]
    described = {"rel": "about", "href": "https://about.example", "alternate": {"east": {"href": PLACE}}}
    properties = {**item["properties"], "alternate": {"east": {"href": PLACE}}}
    return {**item, "links": [*item["links"], *links, described], "properties": properties}


async def change(api: Api, method: str, path: str, **request: Any) -> None:
    answer = await api.admin.request(method, f"/collections/CMIP6/items{path}", **request)
    assert answer.status_code in (200, 201, 202, 204), answer.text


def text_of(messages: list[Message], datasets: Json) -> str:
    """Return what messages say that name a dataset, with their headers."""
    texts = [f"{dict(message.headers)} {message.value.decode()}" for message in messages]
    return "\n".join(text for text in texts if datasets["id"] in text)


async def test_no_dialect_tells_outsiders_of_private_datasets_or_of_controlled_files(
    start_api: Any, dsn: str, conn: Connection
) -> None:
    """Their deletions included; whoever saw a dataset before it became private learns that it left."""
    api: Api = await start_api(dsn=dsn, public_url="https://west.example")
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    controlled = linked(at_level(CONTROLLED, "controlled"))
    for item in (OPEN, controlled, at_level(PRIVATE, "private"), LATER, linked(CLOSED), MARKED):
        await change(api, "POST", "", json=item)
    await change(api, "PATCH", f"/{CLOSED['id']}", json={"properties": {"fedstac:access": "controlled"}})
    await change(api, "DELETE", f"/{MARKED['id']}")
    await change(api, "PUT", f"/{LATER['id']}", json=at_level(LATER, "private"))
    described = at_level(PRIVATE, "private")
    described["properties"]["description"] = "still private"
    await change(api, "PUT", f"/{PRIVATE['id']}", json=described)
    for item in (PRIVATE, LATER):
        await change(api, "DELETE", f"/{item['id']}")

    async def is_sequenced() -> bool:
        return bool(await conn.fetchval(
            "SELECT (SELECT pos FROM fedstac.feed_state) = (SELECT count(*) FROM fedstac.outbox)"
        ))  # fmt: skip

    await until(is_sequenced)
    head = await conn.fetchval("SELECT pos FROM fedstac.feed_state")
    for form in SERVICES:
        async with hook() as receiver:
            new = NewSink(form, receiver.address, form, "", required=True, private=True, after=0)
            await sinks.add(conn, new, actor="test")
            await sent_through_pos(conn, head, form)
            await sinks.remove(conn, form, actor="test")
        messages = receiver.arrivals
        assert text_of(messages, PRIVATE) == "", form
        assert "https://" in text_of(messages, OPEN) or form is EventFormat.CRUD
        for item in (CONTROLLED, CLOSED):
            text = text_of(messages, item)
            assert item["id"] in text
            assert PLACE not in text, form
            assert not any(asset["href"] in text for asset in item["assets"].values()), form
        assert text_of(messages, LATER).count("\n") == 0, form  # that it left alone
        assert text_of(messages, MARKED).count("\n") == 0, form  # the mark alone, by which it is gone
        last = json.loads([message for message in messages if LATER["id"] in message.value.decode()][-1].value)
        assert "still private" not in json.dumps(last)
        assert "1220" not in json.dumps(last)  # no checksum


def test_a_format_that_leads_to_this_node_needs_its_address() -> None:
    assert Encoder(EventFormat.WIS2, feed_url="/events").lacks_address
    assert not Encoder(EventFormat.WIS2, feed_url="https://west.example/events").lacks_address
    assert not Encoder(EventFormat.OVERVIEW, feed_url="/events").lacks_address


async def test_a_sink_whose_messages_would_lead_nowhere_is_paused(node: Node, conn: Connection) -> None:
    new = NewSink("wis2", "http://127.0.0.1:9/hook", "wis2", "", required=True, private=True, after=0)
    await sinks.add(conn, new, actor="test")
    async with relaying(node):
        sink = await is_paused(node, "wis2")
    assert "set FEDSTAC_PUBLIC_URL" in (sink.paused_reason or "")
