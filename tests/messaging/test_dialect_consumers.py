"""Mixed changes of many datasets in every dialect: all are valid, and consumers end where the catalogue is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import jsonschema_rs
import orjson
import pytest

from fedstac import publication
from fedstac.db import sinks
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain import patching, strict_json
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.clear import Clear, Rebuild
from fedstac.domain.actions.delete import Delete, Purge
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.quarantine import Quarantine, Release
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.events import EventFormat, LoggedEvent
from fedstac.messaging.formats import KAFKA_PREFIX, Encoder, schema_of
from fedstac.messaging.sinks import OutgoingEvent
from tests.db import writing
from tests.db.writing import ANNA
from tests.messaging.story import ERRATA
from tests.support import readers
from tests.support.dialect_consumers import BY_REFERENCE, FULL_STATE, DialectConsumer
from tests.support.nodes import Api

Json = dict[str, Any]
log = logging.getLogger(__name__)
SEED = 20261129
AT_ONCE = 2000  # messages that a library is given
FEW = 1000  # events: test_readers.py has them read by others
VERSION = writing.CMIP6.version if writing.CMIP6 else ""
QUARANTINE = {"reason": "personal data?", "case": "T-17", "contact": "data@west.example"}
CLOUDEVENTS = (EventFormat.CLOUDEVENTS, EventFormat.CLOUDEVENTS_BINARY, EventFormat.OGC, EventFormat.CRUD)
LIBRARIES = {  # what reads a format beside its schema
    **dict.fromkeys(CLOUDEVENTS, "cloudevents"), EventFormat.OVERVIEW: "ghga", EventFormat.RESOURCE: "ghga",
    EventFormat.WIS2: "wis2",
}  # fmt: skip


def command(random: Random, item: Json) -> Command:
    """Return something that somebody does to a dataset; much of it is refused in the state that it has."""
    draft = writing.draft(item)
    target = Target("CMIP6", draft.id, draft.lineage)
    match random.choices(range(11), (40, 25, 8, 6, 6, 5, 4, 4, 4, 5, 5))[0]:
        case 0:
            return Publish(draft, ANNA, VERSION)
        case 1:
            text = f"Ünï {random.random()}"
            return Amend(target, ANNA, patching.read([
                {"op": "add", "path": "/properties/description", "value": text},
            ]), VERSION)  # fmt: skip
        case 2:
            return Amend(target, ANNA, patching.read([{"op": "add", "path": "/links/-", "value": ERRATA}]), VERSION)
        case 3:
            return Retract(target, ANNA, {"reason": "wrong units", "data": "keep"})
        case 4:
            return Reinstate(target, ANNA)
        case 5:
            return Mark(target, ANNA, "a mistake")
        case 6:
            return Unmark(target, ANNA)
        case 7:
            return Quarantine(target, ANNA, QUARANTINE)
        case 8:
            return Release(target, ANNA, "there is none")
        case 9:
            return Clear(target, ANNA, reason="not in the load")
        case _:
            return Rebuild(Clear(target, ANNA, reason="a load rebuilds it"), Publish(draft, ANNA, VERSION))


async def perform(conn: Connection, commands: Sequence[Command]) -> int:
    """Do what is not refused. Return how much that was."""
    receipts = await publication.perform(conn, writing.RULES, [Work(each, "anna", "test") for each in commands])
    return sum(receipt.problem is None for receipt in receipts)


async def delete_some(conn: Connection, random: Random) -> None:
    """Delete half of what is marked, and purge half of that; everybody has done their part."""
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    rows = await conn.fetch("SELECT id, lineage FROM fedstac.record WHERE state = 'marked' ORDER BY id")
    targets = [Target("CMIP6", row["id"], row["lineage"]) for row in random.sample(rows, len(rows) // 2)]
    assert await perform(conn, [Delete(target, ANNA) for target in targets]) == len(targets)
    assert await perform(conn, [Purge(target, ANNA) for target in targets[::2]]) == len(targets[::2])


async def change_much(conn: Connection, count: int) -> AsyncIterator[list[LoggedEvent]]:
    """Change datasets until the log has so many events. Yield what is new in it, as a relay that keeps up reads it."""
    random = Random(SEED)
    items = [
        cast("Json", strict_json.parse(orjson.dumps(item)))
        for item in sample.items(max(count // 12, 30), versions=2, seed=SEED)
    ]
    pos = 0
    while pos < count:
        await perform(conn, [command(random, random.choice(items)) for _ in range(100)])
        if random.random() < 0.2:
            await delete_some(conn, random)
        await writing.sequence_all(conn)
        while page := await sinks.events_after(conn, pos):
            yield page
            pos = page[-1].cursor.pos


@dataclass
class FormatReading:
    """What is done with the messages of one format: they are judged, and a consumer takes them."""

    form: EventFormat
    encoder: Encoder
    validator: Any
    consumer: DialectConsumer | None
    for_library: list[OutgoingEvent] | None  # that reads the format beside its schema, where it is here
    count: int = 0
    seconds: float = 0.0  # of processor time, to write, judge and take

    def take(self, page: Sequence[LoggedEvent]) -> None:
        """Write, judge and take what the format tells of a page."""
        began = time.thread_time()
        messages = [self.encoder.encode(event, event.cursor.pos - 1) for event in page if self.encoder.tells(event)]
        for message in messages:
            self.validator.validate(orjson.loads(message.value))
            if self.consumer is not None and message.event_type.startswith("org.fedstac.dataset."):
                self.consumer.take(message)
        self.count += len(messages)
        self.seconds += time.thread_time() - began
        if self.for_library is not None:
            self.for_library += messages
            if len(self.for_library) > AT_ONCE:
                self.end()

    def end(self) -> None:
        """Let the library read what it has not read yet."""
        if self.for_library:
            assert len(readers.read(LIBRARIES[self.form], self.for_library)) == len(self.for_library)
            self.for_library.clear()


def plain(item: Json) -> Json:
    """Return an item without what a node adds when it serves it."""
    server = ("self", "root", "parent", "collection", "predecessor-version", "successor-version", "latest-version")
    added = ("fedstac:cv_version", "fedstac:replicas", "pubtime", "operation", "resourceId")
    return {
        **item,
        "stac_extensions": [uri for uri in item["stac_extensions"] if "/extensions/fedstac/" not in uri],
        "links": [link for link in item["links"] if link["rel"] not in server],
        "properties": {name: value for name, value in item["properties"].items() if name not in added},
    }


def as_served(form: EventFormat, state: Any) -> Any:
    """Return what a consumer of full state has of a dataset, as the catalogue would say it."""
    match form:
        case EventFormat.RESOURCE:
            return plain(state["content"])
        case EventFormat.OGC:
            return plain(state)
        case EventFormat.OVERVIEW:
            return {file["name"]: file["url"] for file in state["files"]}
        case _:
            return {"digest": state["digest"], "latest": state["latest"]}


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.soak)])
async def test_consumers_of_every_dialect_reach_the_state_of_the_catalogue(
    count: int, start_api: Any, dsn: str, conn: Connection
) -> None:
    api: Api = await start_api(dsn=dsn, background=False)
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    consumers = {form: DialectConsumer(form) for form in (*FULL_STATE, *BY_REFERENCE)}
    readings = [
        FormatReading(
            form, Encoder(form, header_prefix=KAFKA_PREFIX, feed_url=f"{api.url}/events"),
            jsonschema_rs.validator_for(schema_of(form), validate_formats=True), consumers.get(form),
            [] if count > FEW and form in LIBRARIES and readers.are_here() else None,
        )
        for form in EventFormat
    ]  # fmt: skip
    kinds = Counter[str]()
    async for page in change_much(conn, count):
        kinds.update(event.type.removeprefix("org.fedstac.").removesuffix(".v1") for event in page)
        for reading in readings:
            await asyncio.to_thread(reading.take, page)
    log.info("seed %s: %s events, %s", SEED, kinds.total(), dict(kinds))
    for reading in readings:
        await asyncio.to_thread(reading.end)
        log.info("%s: %s messages, %.1f s of processor time", reading.form, reading.count, reading.seconds)
    assert kinds.total() >= count
    assert len(kinds) >= (12 if count < FEW else 14)

    rows = await conn.fetch("SELECT id, state, encode(digest, 'hex') AS digest, latest FROM fedstac.record")
    present = {row["id"]: row for row in rows if row["state"] in ("published", "retracted")}
    assert len(present) < len(rows)
    for form, consumer in consumers.items():
        assert set(consumer.datasets) == set(present), form
    for name, row in present.items():
        [item_address] = {consumers[form].datasets[name].removeprefix(api.url) for form in BY_REFERENCE}  # one place
        item = (await api.anyone.get(item_address)).raise_for_status().json()
        assert (item["properties"]["fedstac:state"], item["properties"]["latest"]) == (row["state"], row["latest"])
        expected = {
            EventFormat.RESOURCE: plain(item), EventFormat.OGC: plain(item),
            EventFormat.OVERVIEW: {key: asset["href"] for key, asset in item["assets"].items()},
            EventFormat.CLOUDEVENTS: {"digest": row["digest"], "latest": row["latest"]},
        }  # fmt: skip
        for form in FULL_STATE:
            assert as_served(form, consumers[form].datasets[name]) == expected[form], (form, name)
    for row in rows:
        if row["state"] in ("marked", "deleted", "purged", "cleared"):
            answer = await api.anyone.get(f"/collections/CMIP6/items/{row['id']}")
            assert answer.status_code in (404, 410), row
