"""The AsyncAPI document beside what really goes out: every type of event in every format is the message it promises."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import asyncpg
import jsonschema_rs
import orjson
import pytest

from fedstac import settings
from fedstac.api import app
from fedstac.api.http import asyncapi
from fedstac.demo import sample
from fedstac.domain import events, grants
from fedstac.domain.events import EventFormat
from fedstac.messaging.formats import KAFKA_PREFIX, PREFIX, Encoder
from fedstac.messaging.hubs import read_hubs
from fedstac.settings import Misconfigured, Settings
from tests.messaging.story import left, story
from tests.support import loads
from tests.support.nodes import Api, StartApi

Json = dict[str, Any]
BASE = "https://west.example/stac"
HUBS = "kafka://broker.example:9092/log?format=ogc nats://broker.example:4222/WEST"
DOCUMENT = asyncapi.document(title="fedstac west", version="1", base_url=BASE, hubs=read_hubs(HUBS))
MESSAGES: Json = DOCUMENT["components"]["messages"]
STORY = [*story(), left()]


def resolved(reference: str) -> Any:
    """Return what a reference into the document stands for. KeyError where there is nothing."""
    node: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def references(node: object) -> list[str]:
    """Return all references into the document."""
    if isinstance(node, dict):
        own = [node["$ref"]] if str(node.get("$ref", "")).startswith("#") else []
        return own + [each for value in node.values() for each in references(value)]
    return [each for value in node for each in references(value)] if isinstance(node, list) else []


def payload_findings(message: Json, value: object) -> list[str]:
    """Judge a value by the schema of a message, whose references lead to the schemas that the node serves."""

    def retrieve(uri: str) -> Json:
        return asyncapi.schema(BASE, EventFormat(uri.rpartition("/")[2]))

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **message["payload"]["schema"]}
    validator = jsonschema_rs.Draft202012Validator(schema, retriever=retrieve, validate_formats=True)
    return [f"{finding.instance_path}: {finding.message[:300]}" for finding in validator.iter_errors(value)]


@pytest.mark.parametrize("prefix", [PREFIX, KAFKA_PREFIX])
@pytest.mark.parametrize("form", list(EventFormat))
def test_every_event_of_the_log_is_the_message_of_the_document(form: EventFormat, prefix: str) -> None:
    encoder = Encoder(form, header_prefix=prefix, feed_url=f"{BASE}/events")
    for event in STORY:
        message = MESSAGES[asyncapi.message_of(event.type, form)]
        if form is not EventFormat.CLOUDEVENTS:
            assert (event.type in message["x-fedstac-types"]) is encoder.takes(event.type)
        if not encoder.tells(event):
            continue
        outgoing = encoder.encode(event, event.cursor.pos - 1)
        assert outgoing.headers["content-type"] == message["contentType"], event.type
        assert payload_findings(message, orjson.loads(outgoing.value)) == [], event.type


def test_the_document_has_each_type_and_no_other_event_passes_for_it() -> None:
    """A type that somebody adds is in the document at once; the story has all types but those of grants."""
    types = set(asyncapi.event_types())
    assert types == {event.type for event in STORY} | set(grants.TYPES)
    native = {asyncapi.message_of(each, EventFormat.CLOUDEVENTS) for each in types}
    assert native < MESSAGES.keys()
    first = orjson.loads(Encoder(feed_url=f"{BASE}/events").encode(STORY[0], 0).value)
    wrong = MESSAGES[asyncapi.message_of(events.DELETED, EventFormat.CLOUDEVENTS)]
    assert payload_findings(wrong, first) != []


def test_every_reference_leads_somewhere_and_every_message_is_on_a_channel() -> None:
    assert all(resolved(each) is not None for each in references(DOCUMENT))
    on_channels = {name for channel in DOCUMENT["channels"].values() for name in channel["messages"]}
    assert on_channels == MESSAGES.keys()
    for operation in DOCUMENT["operations"].values():
        channel = resolved(operation["channel"]["$ref"])
        assert len(operation["messages"]) == len(channel["messages"])


def test_hubs_are_servers_with_their_channels_and_the_messages_of_their_format() -> None:
    kafka, nats = DOCUMENT["channels"]["hub-1"], DOCUMENT["channels"]["hub-2"]
    assert (kafka["address"], list(kafka["messages"])) == ("log", ["ogc"])
    assert kafka["bindings"] == {"kafka": {"topic": "log", "bindingVersion": "0.5.0"}}
    assert (nats["address"], "dataset.published" in nats["messages"]) == ("WEST.>", True)
    assert DOCUMENT["servers"]["hub-1"]["host"] == "broker.example:9092"


async def test_events_of_grants_and_of_what_a_load_clears_are_the_messages_of_the_document(api: Api) -> None:
    """They are written by the database, in the transaction of what leads to them."""
    [dataset] = sample.items(1)
    address, wait = f"/collections/CMIP6/items/{dataset['id']}", {"Prefer": "wait=60"}
    lineage = f"CMIP6/{dataset['id'].rpartition('.v')[0]}"
    assert (await api.admin.post("/collections/CMIP6/items", json=dataset, headers=wait)).status_code == 201
    for target in ({"dataset": f"CMIP6/{dataset['id']}"}, {"lineage": lineage}, {"project": "CMIP6"}):
        wish = {"subject": "bert", "valid_until": "2999-01-01T00:00:00Z", **target}
        assert (await api.admin.post("/grants", json=wish)).status_code == 201
    assert (await api.admin.post(f"{address}/retract", json={"reason": "wrong"}, headers=wait)).status_code == 200
    assert (await api.admin.post(f"{address}/reinstate", json={}, headers=wait)).status_code == 200
    assert (await api.admin.delete("/grants?project=CMIP6&reason=over")).json()["withdrawn"] == 1
    assert (await loads.load(api.admin, [dataset], mode="rebuild", confirm="1"))["status"] == "done"
    assert (await loads.load(api.admin, [], confirm="1"))["status"] == "done"
    conn = await asyncpg.connect(api.settings.dsn)
    rows = await conn.fetch("SELECT event FROM fedstac.outbox ORDER BY id")
    await conn.close()
    types = set()
    for pos, row in enumerate(rows, 1):
        event = orjson.loads(events.positioned(row["event"], events.Cursor(1, pos)))
        message = MESSAGES[asyncapi.message_of(event["type"], EventFormat.CLOUDEVENTS)]
        assert payload_findings(message, event) == [], event
        types.add(event["type"])
    assert types >= {*grants.TYPES, events.CLEARED}


async def test_it_is_served_with_its_schemas_and_the_landing_page_leads_there(api: Api) -> None:
    answer = await api.anyone.get("/asyncapi.json")
    assert answer.headers["content-type"] == "application/asyncapi+json"
    again = await api.anyone.get("/asyncapi.json", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    for form in EventFormat:
        schema = await api.anyone.get(f"/schemas/messages/v1/{form}")
        assert schema.headers["content-type"] == "application/schema+json"
        assert schema.json()["$id"] == f"{api.url}/schemas/messages/v1/{form}"
    links = (await api.anyone.get("/")).json()["links"]
    assert {"rel": "hub", "type": "application/json", "title": "Subscriptions", "href": f"{api.url}/subscriptions"} in (
        links
    )
    descriptions = [link for link in links if link["rel"] == "service-desc"]
    assert [link["type"].partition("+")[0] for link in descriptions] == ["application/vnd.oai.openapi",
                                                                         "application/asyncapi"]  # fmt: skip
    for link in links:
        if link["rel"] == "channel":
            url = urlsplit(link["href"])
            assert url.fragment.removeprefix("/channels/") in answer.json()["channels"], link


async def test_brokers_are_known_only_where_the_operator_makes_them_known(start_api: StartApi, dsn: str) -> None:
    api = await start_api(dsn=dsn, hubs=HUBS)
    hubs = [link for link in (await api.anyone.get("/")).json()["links"] if link["rel"] == "hub"]
    assert [(link["href"].removeprefix(api.url), link.get("channel")) for link in hubs] == [
        ("/subscriptions", None), ("kafka://broker.example:9092", "log"), ("nats://broker.example:4222", "WEST.>"),
    ]  # fmt: skip


@pytest.mark.parametrize("hubs", ["mqtt://x:1/y", "kafka://u:secret@x:1/y", "kafka://x:1/y?config=/etc/passwd",
                                  "kafka://x:1/y?format=xml", "kafka://x/y"])  # fmt: skip
def test_a_hub_that_is_none_is_refused_before_anything_runs(hubs: str) -> None:
    with pytest.raises(Misconfigured) as refusal:
        app.create(Settings(node="west", hubs=hubs, _env_file=None), BASE, roles=[])
    assert "FEDSTAC_HUBS" in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_the_page_of_channels_is_of_this_code() -> None:
    page = (settings.folder("docs") / "reference" / "channels.md").read_text()
    assert all(f"`{name}`" in page for name in DOCUMENT["channels"] if not name.startswith("hub-"))
    assert all(f"`{name}`" in page for name in MESSAGES)
