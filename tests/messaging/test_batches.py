"""Deletions that follow from one, as one message of `crud`: what arrives, what an audit finds, what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import jsonschema_rs
import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.collection_writing import CollectionWriter
from fedstac.db import dead_letters, sinks
from fedstac.db.cascades import CascadeOrder
from fedstac.db.connections import Connection
from fedstac.db.sinks import NewSink
from fedstac.demo import sample
from fedstac.demo.brokers import NatsServer
from fedstac.domain import events
from fedstac.domain.events import START, Cursor, EventFormat, LoggedEvent
from fedstac.messaging.formats import Encoder, schema_of
from fedstac.messaging.sinks import SinkTarget, cursors_of, open_sink, place_headers
from fedstac.workers import auditing, cascading
from tests.db import writing
from tests.messaging import story
from tests.messaging.relaying import relaying, sent_through
from tests.support.sinks import ACCEPTED, Message, NatsStream, hook, nats_stream
from tests.support.waiting import until

Json = dict[str, Any]
CAUSE, OTHER_CAUSE = str(UUID(int=1)), str(UUID(int=2))
ENCODER = Encoder(EventFormat.CRUD, "{collection}", feed_url=story.FEED)
DATASETS = 40
MARKED = next(event for event in story.story() if event.type == events.MARKED)


def mark(pos: int, cause: str | None = CAUSE, dataset: str = "") -> LoggedEvent:
    """Return the event of a mark that follows from another event."""
    dataset, event_id = dataset or f"dataset-{pos}", str(UUID(int=1000 + pos))
    whole = json.loads(MARKED.text)
    whole["data"]["id"], whole["id"] = dataset, event_id
    whole = {**({"causationid": cause} if cause else {}), **whole}
    return replace(MARKED, cursor=Cursor(1, pos), event_id=event_id, dataset=dataset, text=orjson.dumps(whole).decode())


def batches(log: Sequence[LoggedEvent], encoder: Encoder = ENCODER) -> list[list[str]]:
    """Return the ids of each message."""
    singles = [encoder.encode(event, event.cursor.pos - 1) for event in log]
    messages = encoder.in_batches(singles, {event.event_id: event for event in log})
    validator = jsonschema_rs.validator_for(schema_of(EventFormat.CRUD), validate_formats=True)
    positions: list[int] = []
    ids: list[list[str]] = []
    for message in messages:
        value = json.loads(message.value)
        validator.validate(value)
        ids.append(value["data"].get("ids") or [value["data"]["id"]])
        headers = place_headers(message, START)
        places = [cursor.pos for cursor in cursors_of(headers)]
        assert (len(places), int(headers["prev"])) == (len(ids[-1]), places[0] - 1)
        positions += places
    assert positions == [event.cursor.pos for event in log]  # each event is told once, in the order of the log
    return ids


def test_deletions_of_one_cause_are_one_message_with_the_place_of_the_last() -> None:
    assert batches([mark(pos) for pos in range(5, 9)]) == [["dataset-5", "dataset-6", "dataset-7", "dataset-8"]]


@pytest.mark.parametrize(
    ("log", "sizes"),
    [
        ([mark(1), mark(2), mark(3, OTHER_CAUSE), mark(4, OTHER_CAUSE)], [2, 2]),
        ([mark(1, None), mark(2, None)], [1, 1]),
        ([mark(1), mark(3)], [1, 1]),  # another event is between them
        ([mark(1), replace(mark(2), cursor=Cursor(2, 2))], [1, 1]),
        ([mark(pos) for pos in range(1, 1002)], [500, 500, 1]),
    ],
)
def test_what_does_not_belong_together_stays_apart(log: Sequence[LoggedEvent], sizes: list[int]) -> None:
    assert [len(ids) for ids in batches(log)] == sizes


def test_a_batch_that_is_too_large_is_several_messages() -> None:
    log = [mark(pos) for pos in range(1, 9)]
    [whole] = ENCODER.in_batches(
        [ENCODER.encode(event, event.cursor.pos - 1) for event in log], {event.event_id: event for event in log}
    )
    encoder = replace(ENCODER, largest_value=len(whole.value) - 1)
    assert [len(ids) for ids in batches(log, encoder)] == [4, 4]


def test_events_under_keys_of_their_own_stay_apart() -> None:
    """A consumer would get the deletion of a batch on another partition than the creation."""
    assert [len(ids) for ids in batches([mark(1), mark(2)], Encoder(EventFormat.CRUD))] == [1, 1]
    message = Encoder(EventFormat.OVERVIEW, "{collection}").encode(mark(1), 0)
    assert Encoder(EventFormat.OVERVIEW, "{collection}").in_batches([message], {}) == [message]


@pytest.mark.parametrize("batch", ["5-3", "1-9", "x-2", "1-", "-5-1", "8-9"])
def test_a_batch_that_no_relay_wrote_is_noticed(batch: str) -> None:
    with pytest.raises(ValueError):
        cursors_of({"pos": "7", "epoch": "1", "batch": batch})


# --- with a relay ---


@pytest.fixture
async def nats(nats_server: NatsServer) -> AsyncIterator[NatsStream]:
    async with nats_stream(nats_server) as log:
        yield log


async def publish_datasets(node: Node, conn: Connection) -> int:
    """Publish datasets. Return where the log ends then."""
    await writing.create_collections(node, "CMIP6")
    await writing.publish(conn, *sample.items(DATASETS))
    return await _end_of_log(conn)


async def delete_collection(node: Node, conn: Connection) -> int:
    """Mark all datasets by deleting their collection. Return where the log ends then."""
    writer = CollectionWriter(conn, node.settings.node, "anna", node.collection_schema)
    order = CascadeOrder("anna", ("admin",), None, "the project has ended")
    await writer.begin_cascade("CMIP6", order, confirmed=DATASETS)
    while await cascading.step(node, conn):
        continue
    return await _end_of_log(conn)


async def _end_of_log(conn: Connection) -> int:
    await writing.sequence_all(conn)
    head: int = await conn.fetchval("SELECT pos FROM fedstac.feed_state")
    return head


async def add_sink(conn: Connection, address: str) -> None:
    new = NewSink("crud", address, "crud", "{collection}", required=True, private=True, after=0)
    await sinks.add(conn, new, actor="test")


def present(messages: Sequence[Message]) -> set[str]:
    """Return what a consumer has after messages."""
    ids: set[str] = set()
    for message in messages:
        data = json.loads(message.value)["data"]
        if data["operation"] == "DELETE":
            ids -= set(data.get("ids") or [data["id"]])
        else:
            ids.add(data["id"])
    return ids


async def test_the_datasets_of_a_collection_that_is_deleted_go_as_batches_and_an_audit_misses_none(
    node: Node, conn: Connection, nats: NatsStream
) -> None:
    await publish_datasets(node, conn)
    head = await delete_collection(node, conn)
    await add_sink(conn, nats.address)
    async with relaying(node):
        sink = await sent_through(node, head, "crud")
    messages = await nats.messages()
    deletions = [message for message in messages if b'"DELETE"' in message.value]
    assert sum(len(json.loads(message.value)["data"]["ids"]) for message in deletions) == DATASETS
    assert len(deletions) < DATASETS / 4
    assert present(messages) == set()
    assert json.loads(messages[0].value)["topic"] == nats.stream
    target = SinkTarget(origin=node.settings.node, name="auditor", address=nats.address)
    async with open_sink(target) as broker:
        audit = await auditing.audit(conn, sink, broker, full=True, on_progress=lambda count: None)
    assert (audit.holes, audit.lost, audit.repeats) == ([], [], 0)
    await nats.empty()
    async with relaying(node):

        async def is_filled_again() -> bool:
            return len(await nats.messages()) == len(messages)

        await until(is_filled_again)
    assert [message.value for message in await nats.messages()] == [message.value for message in messages]


async def test_of_a_batch_that_is_refused_only_the_culprit_becomes_a_dead_letter(node: Node, conn: Connection) -> None:
    first_end = await publish_datasets(node, conn)
    culprit = await conn.fetchval("SELECT id FROM fedstac.record ORDER BY id LIMIT 1 OFFSET 7")

    def respond(message: Message) -> str:
        data = json.loads(message.value)["data"]
        is_refused = data["operation"] == "DELETE" and culprit in (data.get("ids") or [data["id"]])
        return "422 Unprocessable" if is_refused else ACCEPTED

    async with hook() as receiver:
        receiver.respond = respond
        await add_sink(conn, receiver.address)
        async with relaying(node):
            await sent_through(node, first_end, "crud")  # a sink that comes later hears nothing of what is marked
            await sent_through(node, await delete_collection(node, conn), "crud")
        letters = await dead_letters.every(conn, "crud", None)
        assert [letter.dataset for letter in letters] == [culprit]
        assert present(receiver.arrivals) == {culprit}
