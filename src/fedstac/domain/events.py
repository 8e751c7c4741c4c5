"""Events: CloudEvents 1.0 in JSON, written once with the change they announce, and read again by consumers.

The stored text has no position; every delivery splices `pos` and `epoch` in front. Events carry the full new state, not
steps: no consumer ever applies a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from uuid import UUID

import orjson

from fedstac.domain import documents, grants
from fedstac.domain.errors import BadRequest
from fedstac.domain.model import GONE, Change, Draft, Record, State, moment, rfc3339
from fedstac.domain.policy import Level, read_level
from fedstac.domain.shared_files import ReleasedFiles
from fedstac.domain.vocabulary import DatasetName, Vocabulary

PREFIX = "org.fedstac."
COLLECTION_PREFIX = "org.fedstac.collection."
PUBLISHED = "org.fedstac.dataset.published.v1"
UPDATED = "org.fedstac.dataset.updated.v1"
SUPERSEDED = "org.fedstac.dataset.superseded.v1"
REPLACED = "org.fedstac.dataset.replaced.v1"
RETRACTED = "org.fedstac.dataset.retracted.v1"
REINSTATED = "org.fedstac.dataset.reinstated.v1"
REPLICATED = "org.fedstac.dataset.replicated.v1"
ANNOTATED = "org.fedstac.dataset.annotated.v1"
MARKED = "org.fedstac.dataset.marked.v1"
UNMARKED = "org.fedstac.dataset.unmarked.v1"
QUARANTINED = "org.fedstac.dataset.quarantined.v1"
RELEASED = "org.fedstac.dataset.released.v1"
DELETED = "org.fedstac.dataset.deleted.v1"
PURGED = "org.fedstac.dataset.purged.v1"
CLEARED = "org.fedstac.dataset.cleared.v1"  # not there any more; the next event may publish it again
LEFT = "org.fedstac.dataset.left.v1"  # made when it is delivered: the dataset is no more what a subscriber gets
CURRENT = "org.fedstac.dataset.current.v1"  # a snapshot's entry: the state as it is, no change
COLLECTION_CREATED = "org.fedstac.collection.created.v1"
COLLECTION_UPDATED = "org.fedstac.collection.updated.v1"
COLLECTION_CLOSING = "org.fedstac.collection.closing.v1"  # it is being deleted with its datasets
COLLECTION_REOPENED = "org.fedstac.collection.reopened.v1"  # that was cancelled
COLLECTION_DELETED = "org.fedstac.collection.deleted.v1"
COLLECTION_CURRENT = "org.fedstac.collection.current.v1"

SHOWN_TRACES = 5
REDACTED_END = ',"redacted":true}}'  # of the text of an event, as the database writes it (migrations/0056_purge.sql)


class CrudOperation(StrEnum):
    """What became of a dataset, as services behind Dapr say it to each other."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


class EventFormat(StrEnum):
    """How events are written for a sink or a subscription (`fedstac.messaging.formats.DIALECTS`)."""

    CLOUDEVENTS = "cloudevents"
    CLOUDEVENTS_BINARY = "cloudevents-binary"
    ESGF = "esgf"
    OGC = "ogc"
    WIS2 = "wis2"
    OVERVIEW = "overview"
    RESOURCE = "resource"
    CRUD = "crud"


DigestOf = Callable[[str, str], str | None]  # project and version of a vocabulary → the digest of its snapshot


def whole_number(text: str | None) -> int | None:
    """Return the number that ASCII digits write, 18 at most, so that a bigint holds it; None for anything else."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) <= 18 else None


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in a feed: everything up to `pos` of `epoch` was received. Written `epoch.pos`, and ordered so."""

    epoch: int
    pos: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.pos}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read a cursor. BadRequest where the text is none."""
        epoch, _, pos = map(whole_number, text.partition("."))
        if epoch is not None and pos is not None:
            return cls(epoch, pos)
        raise BadRequest(
            f"{text[:40]!r} is no cursor; it looks like 1.4711, as X-Cursor gives it, or 0.0 for the start"
        )


START = Cursor(0, 0)


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event as the log gives it, its text not parsed. The cursor's epoch is that in which it got its place."""

    cursor: Cursor
    event_id: str
    key: str  # of the lineage, or the collection's id
    collection: str
    dataset: str | None
    seq: int  # among the events of the key
    type: str
    text: str


@dataclass(frozen=True, slots=True)
class Context:
    """Where an event comes from: the node, who caused it, by which request, and which event it follows from."""

    origin: str
    actor: str
    request: UUID | None
    traceparent: str | None = None  # of the request (W3C Trace Context)
    causation: UUID | None = None  # of the parent event


def dataset_event(
    change: Change, event_id: UUID, context: Context, digest_of: DigestOf, files: ReleasedFiles | None = None
) -> str:
    """Return the text of a change's event. The record's document has to be loaded, unless it is gone.

    files: what becomes of the files of a dataset that is deleted.
    """
    record = change.after
    data = _data(record, digest_of) | ({"reason": change.reason} if change.reason else {})
    data |= {"actions": change.actions} if change.actions else {}
    data |= files.as_json() if files is not None else {}
    data |= {"previous_state": change.before.state if change.before else None, "actor": context.actor}
    if change.before is not None and change.before.access is not record.access:
        data["previous_access"] = change.before.access
    envelope = _envelope(change.event_type, event_id, context, record.updated)
    envelope |= {"subject": f"{record.collection}/{record.id}", "sequence": str(record.seq)}
    return _with_document(envelope | {"partitionkey": record.lineage, "data": data}, record.document)


def collection_event(
    event_type: str, collection: str, seq: int, *, document: str | None, digest: bytes, at: datetime,
    event_id: UUID, context: Context, more: Mapping[str, object] = MappingProxyType({}),
) -> str:  # fmt: skip
    """Return the text of the event of a collection's change. more: members of its data beside those that all have."""
    envelope = _envelope(event_type, event_id, context, at)
    envelope |= {"subject": collection, "sequence": str(seq), "partitionkey": collection}
    data = {"collection": collection, "seq": seq, "digest": digest.hex(), "actor": context.actor, **more}
    return _with_document(envelope | {"data": data}, document)


def current(record: Record, epoch: int, digest_of: DigestOf) -> str:
    """Return a snapshot's entry, of the same form as an event, so that one reader takes both.

    It has the feed's epoch, not the record's: after a fork it overrides events from the log that was lost.
    """
    envelope = {"type": CURRENT, "source": record.origin, "epoch": epoch, "partitionkey": record.lineage}
    return _with_document(envelope | {"data": _data(record, digest_of)}, record.document)


def current_collection(
    collection: str, origin: str, epoch: int, seq: int, *, document: str | None, digest: bytes
) -> str:
    """Return a snapshot's entry for a collection."""
    event_type = COLLECTION_CURRENT if document is not None else COLLECTION_DELETED
    data = {"collection": collection, "seq": seq, "digest": digest.hex()}
    return _with_document({"type": event_type, "source": origin, "epoch": epoch, "data": data}, document)


def positioned(text: str, cursor: Cursor) -> str:
    """Return an event's text with its place in the feed in front."""
    return f'{{"pos":{cursor.pos},"epoch":{cursor.epoch},{text[1:]}'


def traces_of(traceparents: Iterable[object]) -> list[str]:
    """Return the ids of the first few traces, each once, for a line of a log."""
    ids = (text[3:35] for text in traceparents if isinstance(text, str))
    return list(islice(dict.fromkeys(ids), SHOWN_TRACES))


def _envelope(event_type: str, event_id: UUID, context: Context, at: datetime) -> dict[str, object]:
    cause = {"correlationid": str(context.request)} if context.request else {}
    cause |= {"causationid": str(context.causation)} if context.causation else {}
    cause |= {"traceparent": context.traceparent} if context.traceparent else {}
    return {
        "specversion": "1.0",
        "id": str(event_id),
        "source": context.origin,
        "type": event_type,
        "time": rfc3339(at),
        "datacontenttype": "application/json",
        **cause,
    }


def _data(record: Record, digest_of: DigestOf) -> dict[str, object]:
    return {
        "collection": record.collection,
        "id": record.id,
        "base_id": record.lineage.partition("/")[2],
        "version": record.version,
        "seq": record.seq,
        "state": record.state,
        "latest": record.claims_latest,
        "created": rfc3339(record.created),
        "updated": rfc3339(record.updated),
        "cv": _cv(record, digest_of) if record.cv_version else None,
        "publisher": record.publisher,
        **({"retraction": orjson.loads(record.retraction)} if record.retraction is not None else {}),
        **({"superseded": True} if record.superseded else {}),
        **({"quarantine": orjson.loads(record.quarantine)} if record.quarantine is not None else {}),
        **({"access": record.access} if record.access is not Level.OPEN else {}),
        "digest": record.digest.hex(),
    }


def _cv(record: Record, digest_of: DigestOf) -> dict[str, object]:
    """Return what the document was judged with, so that a consumer can judge it again with that very version."""
    digest = digest_of(record.collection, record.cv_version or "")
    excused = {"excused": orjson.loads(record.cv_excused)} if record.cv_excused else {}
    return {"version": record.cv_version, **({"digest": digest} if digest else {}), **excused}


def _with_document(event: Mapping[str, object], document: str | None) -> str:
    text = orjson.dumps(event).decode()
    return text if document is None else f'{text[:-2]},"document":{document}}}}}'


@dataclass(frozen=True, slots=True)
class DatasetEvent:
    """An event as a consumer has it: the new state of one dataset, and the document made ready."""

    event_id: str
    cursor: Cursor | None  # None in a snapshot
    record: Record
    draft: Draft | None


@dataclass(frozen=True, slots=True)
class CollectionEvent:
    """An event of a collection: its new document, or that it was deleted."""

    event_id: str
    cursor: Cursor | None
    change: Literal["set", "deleted"]
    collection: str
    origin: str
    epoch: int
    seq: int
    document: str | None
    digest: bytes


@dataclass(frozen=True, slots=True)
class RedactedEvent:
    """An event that says nothing to a consumer of datasets.

    One of a dataset that was deleted since, without what it said: the deletion follows it in the log. Or one about
    grants, which stay at their node.
    """

    event_id: str
    cursor: Cursor | None


Event = DatasetEvent | CollectionEvent | RedactedEvent


def is_left_blank(event: LoggedEvent) -> bool:
    """Tell whether an event says nothing any more. That of a deletion still says that the dataset is gone."""
    return event.text.endswith(REDACTED_END) and event.type not in (DELETED, PURGED)


def read(event: Mapping[str, Any], vocabulary: Vocabulary | None) -> Event:
    """Read an event or a snapshot's entry. BadRequest where it is none, or its digest does not fit its content.

    `vocabulary` is the one that the event names (`vocabulary_named`).
    """
    try:
        if event["type"].startswith(grants.PREFIX):
            return RedactedEvent(event.get("id", ""), _cursor(event))
        numbers = (event["epoch"], event["data"]["seq"])
        if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
            raise ValueError("epoch and seq are whole numbers")
        if event["type"].startswith(COLLECTION_PREFIX):
            return _read_collection(event)
        return _read_dataset(event, vocabulary)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadRequest(f"event {event.get('id')} cannot be read: {error!r}") from error


def _cursor(event: Mapping[str, Any]) -> Cursor | None:
    return Cursor(event["epoch"], event["pos"]) if "pos" in event else None


class VocabularyName(NamedTuple):
    """The vocabulary that judged a dataset, as an event names it."""

    project: str
    version: str
    digest: str | None


def vocabulary_named(event: Mapping[str, Any]) -> VocabularyName | None:
    """Return the vocabulary that judged the event's dataset; None where the event names none."""
    data = event.get("data")
    cv = data.get("cv") if isinstance(data, dict) else None
    if not isinstance(cv, dict) or not isinstance(data, dict):
        return None
    project, version, digest = data.get("collection"), cv.get("version"), cv.get("digest")
    if not isinstance(project, str) or not isinstance(version, str):
        return None
    return VocabularyName(project, version, digest if isinstance(digest, str) else None)


def _read_collection(event: Mapping[str, Any]) -> CollectionEvent:
    data = event["data"]
    document = data.get("document")
    if not isinstance(data["collection"], str) or (document is not None and document["id"] != data["collection"]):
        raise ValueError("the document is another collection's")
    return CollectionEvent(
        event_id=event.get("id", ""),
        cursor=_cursor(event),
        change="deleted" if event["type"] == COLLECTION_DELETED else "set",
        collection=data["collection"],
        origin=event["source"],
        epoch=event["epoch"],
        seq=data["seq"],
        document=orjson.dumps(document).decode() if document is not None else None,
        digest=bytes.fromhex(data["digest"]),
    )


def _read_dataset(event: Mapping[str, Any], vocabulary: Vocabulary | None) -> DatasetEvent | RedactedEvent:
    data = event["data"]
    document = data.get("document")
    if data.get("redacted") is True and document is None and State(data["state"]) not in GONE:
        if not all(isinstance(data[name], str) for name in ("collection", "id")):
            raise TypeError("a member is of another type")
        return RedactedEvent(event.get("id", ""), _cursor(event))
    cv = data.get("cv") or {}
    texts = (event["partitionkey"], data["collection"], data["id"], data["publisher"], *([cv["version"]] if cv else []))
    if not all(isinstance(text, str) for text in texts) or type(data["latest"]) is not bool:
        raise TypeError("a member is of another type")
    name = DatasetName(lineage=event["partitionkey"], version=_version(data["version"]))
    draft = documents.prepare(document, name, vocabulary) if document is not None else None
    if draft is not None and (draft.collection, draft.id) != (data["collection"], data["id"]):
        raise ValueError("the document is another dataset's")
    record = Record(
        collection=data["collection"],
        id=data["id"],
        lineage=name.lineage,
        origin=event["source"],
        version=name.version,
        state=State(data["state"]),
        latest=data["latest"],
        claims_latest=data["latest"],
        epoch=event["epoch"],
        seq=data["seq"],
        created=_moment(data["created"]),
        updated=_moment(data["updated"]),
        document=draft.text if draft else None,
        document_digest=draft.document_digest if draft else b"",
        files_digest=draft.files_digest if draft else b"",
        publisher=data["publisher"],
        cv_version=cv.get("version"),
        replicas=draft.replicas if draft else None,
        retraction=_object(data.get("retraction")),
        quarantine=_object(data.get("quarantine")),
        access=read_level(data.get("access")),
        superseded=data.get("superseded") is True,
        cv_excused=_excused(cv.get("excused")),
    )
    if record.access is Level.PRIVATE and record.latest:
        raise ValueError("a private dataset is never the latest")
    if record.digest.hex() != data["digest"]:
        raise BadRequest(f"event {event.get('id')}: the digest of {record.id} does not fit its content")
    return DatasetEvent(event_id=event.get("id", ""), cursor=_cursor(event), record=record, draft=draft)


def _version(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < 1 << 62):
        raise ValueError("a version is a whole number")
    return value


def _moment(value: Any) -> datetime:
    instant = moment(value)
    if instant is None:
        raise ValueError("a moment is written as in RFC 3339")
    return instant


def _object(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise TypeError("a retraction and a quarantine are objects")
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _excused(pairs: Any) -> str | None:
    if not pairs:
        return None
    if not all(isinstance(part, str) for rule, pointer in pairs for part in (rule, pointer)):
        raise TypeError("excused errors are a list of pairs of a rule and a pointer")
    return orjson.dumps(pairs).decode()
