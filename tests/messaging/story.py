"""Every event that a dataset and its collection can have, as the log gives them; and their golden files.

`python -m tests.messaging.story` writes the golden files anew: look at the difference before you commit it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import orjson

from fedstac import __version__
from fedstac.demo import sample
from fedstac.domain import documents, events, patching, shared_files, strict_json
from fedstac.domain.actions import Command
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.clear import Clear, Rebuild
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.quarantine import Quarantine, Release
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.events import Context, Cursor, LoggedEvent
from fedstac.domain.model import Change, Lineage, State
from fedstac.messaging.formats import KAFKA_PREFIX, Encoder, EventFormat
from fedstac.messaging.sinks import OutgoingEvent
from tests.support.amending import CHECKER, ITEM, ROOT, VERSION, VOCABULARY, WORLD

Json = dict[str, Any]
GOLDEN = Path(__file__).with_name("golden")
REQUEST = UUID("018f7f00-0000-7000-8000-000000000001")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NODE = "dkrz.example"
FEED = "https://west.example/events"
FILE = next(key for key, asset in ITEM["assets"].items() if "file:checksum" in asset)
FIRST: Json = {**cast("Json", strict_json.parse(orjson.dumps(ITEM))), "assets": {FILE: ITEM["assets"][FILE]}}
SECOND: Json = {**copy.deepcopy(FIRST), "id": f"{FIRST['id'].rpartition('.v')[0]}.v20300101"}
SECOND["properties"]["version"] = "20300101"
SECOND["assets"][FILE]["file:checksum"] = f"1220{7:064}"
OTHER_FILES: Json = copy.deepcopy(FIRST)
OTHER_FILES["assets"][FILE]["file:checksum"] = f"1220{8:064}"
REPLICA = {"href": "https://dkrz.example/f.nc", "description": "HTTPServer Link", "roles": ["data"]}
AGGREGATION = {
    "href": "https://dkrz.example/r.json", "type": "application/json", "roles": ["reference"], "protocol": "kerchunk",
    "alternate:name": NODE, "description": "Aggregation", "created": "2026-01-01T00:00:00Z",
    "updated": "2026-01-01T00:00:00Z",
}  # fmt: skip
ERRATA = {"rel": "related", "href": "https://errata.esgf.io/1", "title": "Errata issue", "type": "text/html"}
PATCHES: Sequence[Any] = (
    [{"op": "add", "path": f"/assets/{FILE}/alternate/{NODE}", "value": REPLICA}],
    [{"op": "remove", "path": f"/assets/{FILE}/alternate/{NODE}"}],
    [{"op": "add", "path": "/assets/reference_file", "value": AGGREGATION}],
    [{"op": "remove", "path": "/assets/reference_file"}],
    [{"op": "add", "path": "/links/-", "value": ERRATA}],
    [{"op": "add", "path": "/properties/description", "value": "Ünïcödé, and \"quotes\" with ,\"data\":{ inside"}],
    {"properties": {"description": None}},
)  # fmt: skip


def commands() -> Iterator[Command]:
    """Give everything that publishers, nodes and administrators do to two versions of a dataset."""
    target = Target("CMIP6", str(FIRST["id"]), _draft(FIRST).lineage)
    later = replace(target, id=str(SECOND["id"]))
    yield Publish(_draft(FIRST), ROOT, VERSION)
    for patch in PATCHES:
        yield Amend(target, ROOT, patching.read(patch), VERSION)
    yield Amend(target, ROOT, patching.Whole(OTHER_FILES), VERSION, override="a file was broken")
    yield Publish(_draft(SECOND), ROOT, VERSION)
    yield Retract(later, ROOT, {"reason": "wrong units", "data": "keep"})
    yield Reinstate(later, ROOT)
    yield Mark(later, ROOT, "a mistake")
    yield Unmark(later, ROOT)
    yield Amend(later, ROOT, patching.read([{"op": "replace", "path": "/properties/latest", "value": False}]), VERSION)
    quarantine = {"reason": "personal data?", "case": "T-17", "contact": "data@west.example"}
    yield Quarantine(later, ROOT, quarantine)
    yield Retract(later, ROOT, {"reason": "wrong units"})
    yield Release(later, ROOT, "there is none")
    yield Clear(target, ROOT, reason="a full-state load does not state it")
    yield Publish(_draft(FIRST), ROOT, VERSION)
    yield Rebuild(Clear(target, ROOT, reason="a full-state load rebuilds it"), Publish(_draft(FIRST), ROOT, VERSION))


def changes() -> Iterator[Change]:
    """Give the changes that the commands lead to, and what becomes of a dataset that is deleted."""
    lineage = Lineage(_draft(FIRST).lineage, "west", 0, {})
    for minute, command in enumerate(commands()):
        decision = command.decide(lineage, replace(WORLD, now=WORLD.now + timedelta(minutes=minute)))
        yield from decision.changes
        lineage = lineage.after(decision.changes)
    last = lineage.records[str(SECOND["id"])]
    gone = replace(
        last, state=State.DELETED, latest=False, claims_latest=False, document=None, document_digest=b"",
        files_digest=b"", retraction=None, superseded=False, seq=lineage.seq + 1,
    )  # fmt: skip
    yield Change("org.fedstac.dataset.deleted.v1", last, gone)
    purged = replace(gone, state=State.PURGED, seq=gone.seq + 1)
    yield Change("org.fedstac.dataset.purged.v1", gone, purged)


def story() -> list[LoggedEvent]:
    """Return the log: the collection's events around those of its datasets."""
    document = orjson.dumps(sample.collection("CMIP6")).decode()
    digest = documents.digest(orjson.loads(document))
    context = Context("west", "person:0123abcd", REQUEST)

    def collection(event_type: str, number: int, text: str | None) -> LoggedEvent:
        event_id = _event_id(number)
        event = events.collection_event(
            event_type, "CMIP6", number, document=text, digest=digest if text else b"", at=WORLD.now,
            event_id=event_id, context=context,
        )  # fmt: skip
        return LoggedEvent(Cursor(1, number), str(event_id), "CMIP6", "CMIP6", None, number, event_type, event)

    log = [collection(events.COLLECTION_CREATED, 1, document)]
    for change in changes():
        pos = len(log) + 1
        before = change.before.document if change.before and change.event_type == events.DELETED else None
        files = shared_files.release([before], ())[0] if before else None
        text = events.dataset_event(change, _event_id(pos), context, CHECKER.vocabularies.digest_of, files)
        record = change.after
        log.append(LoggedEvent(
            Cursor(1, pos), str(_event_id(pos)), record.lineage, record.collection, record.id, record.seq,
            change.event_type, text,
        ))  # fmt: skip
    log.append(collection(events.COLLECTION_UPDATED, len(log) + 1, document))
    log.append(collection(events.COLLECTION_CLOSING, len(log) + 1, document))
    log.append(collection(events.COLLECTION_REOPENED, len(log) + 1, document))
    log.append(collection(events.COLLECTION_DELETED, len(log) + 1, None))
    return log


def left() -> LoggedEvent:
    """Return what a subscriber gets of a dataset that it gets no more: it says no more than which one."""
    name = f"CMIP6/{SECOND['id']}"
    envelope = {
        "specversion": "1.0", "id": str(_event_id(999)), "source": "west", "type": events.LEFT,
        "time": "2026-03-01T01:00:00.000000Z", "datacontenttype": "application/json", "subject": name,
        "partitionkey": _draft(SECOND).lineage, "data": {"collection": "CMIP6", "id": SECOND["id"]},
    }  # fmt: skip
    return LoggedEvent(
        Cursor(1, 999), str(_event_id(999)), _draft(SECOND).lineage, "CMIP6", str(SECOND["id"]), 999, events.LEFT,
        orjson.dumps(envelope).decode(),
    )  # fmt: skip


def encoded(form: EventFormat, log: Sequence[LoggedEvent]) -> list[OutgoingEvent]:
    """Return the events of a log that a format takes, as a relay sends them one after the other."""
    encoding = Encoder(form, header_prefix=KAFKA_PREFIX, feed_url=FEED)
    outgoing: list[OutgoingEvent] = []
    for event in log:
        if encoding.takes(event.type):
            outgoing.append(encoding.encode(event, outgoing[-1].cursor.pos if outgoing else 0))
    return outgoing


def golden(form: EventFormat) -> list[Json]:
    """Return what a golden file has of a format, whatever our version is."""
    version = b'"package":"fedstac","version":"%s"' % __version__.encode()
    return [
        {
            "type": event.event_type, "key": event.key, "previous_pos": event.previous_pos,
            "headers": dict(event.headers),
            "value": json.loads(event.value.replace(version, b'"package":"fedstac","version":"*"')),
        }
        for event in encoded(form, [*story(), left()])
    ]  # fmt: skip


def golden_file(form: EventFormat) -> Path:
    return GOLDEN / f"{form}.json"


def _draft(item: Json) -> Any:
    return CHECKER.draft(item, "CMIP6", VOCABULARY)[0]


def _event_id(number: int) -> UUID:
    return UUID(f"018f7f00-0000-7000-8000-{number:012}")


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for form in EventFormat:
        golden_file(form).write_text(json.dumps(golden(form), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
