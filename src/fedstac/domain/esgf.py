"""ESGF's events as a consumer reads them: steps that lead from one state of an item to the next (docs/adr/0026).

A POST brings the item, a PATCH changes it. Events of one item come in their order. Between items nothing says which
came first, and clocks decide nothing. So a place is the number of messages that this node has read, below the version
in the id: of a lineage's versions that claim it, the highest is the latest, in whatever order they came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import orjson

from fedstac.domain import alternates, documents, patching, retraction, validation
from fedstac.domain.access import at_level_of, level_of
from fedstac.domain.actions.amend import check_identity, shaped
from fedstac.domain.errors import BadRequest, Finding, StacInvalid, errors_in
from fedstac.domain.model import WITHOUT_DOCUMENT, Draft, Judge, Record, State, moment
from fedstac.domain.patching import Edit, Whole
from fedstac.domain.policy import Level, read_level
from fedstac.domain.validation import is_fixed
from fedstac.domain.vocabulary import DatasetName, Vocabulary, name_of

Json = Mapping[str, Any]
EPOCH: Final = 0  # of all places but those that a fedstac node gave: its epochs begin with 1
COUNT_BITS: Final = 36  # of a place; above them is the version
HIGHEST_VERSION: Final = (1 << 26) - 1
VERSION: Final = re.compile(r"\.v(\d{8})\Z", re.ASCII)
UNKNOWN_PUBLISHER: Final = "esgf"
LONGEST_NAME: Final = 650


@dataclass(frozen=True, slots=True)
class StepPlace:
    """The place of an event among those of its lineage."""

    epoch: int
    seq: int


def place_of(message: Json, item_id: str, count: int) -> StepPlace:
    """Return the place of a message, the `count`-th that this node reads: the one that a fedstac node gave it, or ours.

    LookupError, TypeError, ValueError or AttributeError where the message is no event.
    """
    own = message["metadata"].get("fedstac")
    if isinstance(own, dict):
        place = StepPlace(own["epoch"], message["metadata"]["seq"])
        if not all(type(number) is int and 0 < number < 1 << 62 for number in (place.epoch, place.seq)):
            raise ValueError("epoch and seq are whole numbers")
        return place
    version = VERSION.search(item_id)
    highest = min(int(version[1]), HIGHEST_VERSION) if version else 0
    return StepPlace(EPOCH, highest << COUNT_BITS | count)


@dataclass(frozen=True, slots=True)
class OriginFacts:
    """What a fedstac node adds to an event in ESGF's format, so that a record here has its digest."""

    state: State
    digest: str
    created: datetime
    updated: datetime
    publisher: str
    retraction: str | None
    superseded: bool
    access: Level
    excuses: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ItemStep:
    """An event of ESGF that was read: the item as a whole (POST), or an edit of it."""

    event_id: str
    collection: str
    item_id: str
    epoch: int
    seq: int  # with the epoch its place among the events of its lineage
    at: datetime
    actor: str
    item: Json | None = None
    edit: Edit | None = None
    facts: OriginFacts | None = None

    @property
    def deletes(self) -> bool:
        """Return whether the dataset is gone at its origin; only a fedstac node says so."""
        return self.facts is not None and self.facts.state in WITHOUT_DOCUMENT


@dataclass(frozen=True, slots=True)
class DatasetEdition:
    """A dataset after a step; `draft` where its document is another one."""

    record: Record
    draft: Draft | None = field(default=None)


def read(event: Json) -> ItemStep:
    """Read an event of a topic. BadRequest where its message is no KafkaEvent, StacInvalid where its patch is none."""
    message, epoch, seq = event["message"], event["epoch"], event["data"]["seq"]
    try:
        payload, metadata = message["data"]["payload"], message["metadata"]
        method, collection = payload["method"], payload["collection_id"]
        at = moment(metadata["time"])
        requester = metadata.get("auth", {}).get("requester_data", {})
        item = payload["item"] if method == "POST" else None
        item_id = payload["item"]["id"] if method == "POST" else payload["item_id"]
        actor = requester.get("sub") or UNKNOWN_PUBLISHER
        if not all(isinstance(text, str) for text in (collection, item_id, actor)):
            raise TypeError("collection_id, the item's id and sub are texts")
        if at is None:
            raise ValueError("metadata.time is no date and time as in RFC 3339")
        if method not in ("POST", "PUT", "PATCH"):
            raise ValueError(f"the method {str(method)[:20]!r} is not one of POST, PUT, PATCH")
        step = ItemStep(
            str(event["id"]), collection, item_id, epoch, seq, at, actor[:LONGEST_NAME], item, facts=_facts(metadata)
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadRequest(f"this is no event of ESGF: {error!r}"[:300]) from error
    if method == "POST":
        return step
    if method == "PATCH":
        return replace(step, edit=patching.read(payload.get("patch")))
    if not isinstance(payload.get("item"), dict):
        raise BadRequest("this is no event of ESGF: a PUT has an item")
    members = {name: value for name, value in payload["item"].items() if value is not None or name == "geometry"}
    return replace(step, edit=Whole(members))


def _facts(metadata: Json) -> OriginFacts | None:
    """Return what a fedstac node says under `metadata`; None where another program wrote the event."""
    own = metadata.get("fedstac")
    if not isinstance(own, dict):
        return None
    created, updated = moment(own["created"]), moment(own["updated"])
    if created is None or updated is None or not isinstance(own["publisher"], str):
        raise ValueError("metadata.fedstac is not as a fedstac node writes it")
    reasons = own.get("retraction")
    excused_pairs = (metadata.get("cv") or {}).get("excused") or ()
    return OriginFacts(
        state=State(metadata["state"]), digest=str(metadata["digest"]), created=created, updated=updated,
        publisher=own["publisher"],
        retraction=orjson.dumps(dict(reasons), option=orjson.OPT_SORT_KEYS).decode() if reasons is not None else None,
        superseded=own.get("superseded") is True, access=read_level(own.get("access")),
        excuses=frozenset((str(rule), str(at)) for rule, at in excused_pairs),
    )  # fmt: skip


def name(step: ItemStep, vocabulary: Vocabulary | None) -> DatasetName:
    """Return the lineage and version of a step's item. BadRequest where its id is none of the project's."""
    result = name_of(step.collection, step.item_id, vocabulary)
    if not isinstance(result, DatasetName):
        raise BadRequest(f"{result.pointer}: {result.message}")
    return result


def publish(step: ItemStep, judge: Judge, vocabulary: Vocabulary | None, origin: str) -> DatasetEdition:
    """Return the dataset that a POST brings. StacInvalid where its item is not valid here."""
    item = shaped(step.item)
    draft, findings = judge.draft(item, step.collection, vocabulary)
    errors = errors_in(findings)
    if refused_for := _not_excused(errors, step):
        raise validation.refusal_of(draft.id, refused_for)
    record = Record(
        collection=draft.collection, id=draft.id, lineage=draft.lineage, origin=origin, version=draft.version,
        state=State.PUBLISHED, latest=False, claims_latest=True, epoch=EPOCH, seq=0, created=step.at, updated=step.at,
        document=draft.text, document_digest=draft.document_digest, files_digest=draft.files_digest,
        publisher=step.actor, cv_version=vocabulary.version if vocabulary else None, replicas=draft.replicas,
        cv_excused=validation.excusal(errors),
    )  # fmt: skip
    if step.facts is not None:
        record = replace(record, created=step.facts.created, publisher=step.facts.publisher)
    return DatasetEdition(_at_level(_with_flags(record, item["properties"], step), step), draft)


def tombstone(step: ItemStep, vocabulary: Vocabulary | None, origin: str) -> DatasetEdition:
    """Return what is here of a dataset whose deletion is the first that this node reads of it."""
    facts = step.facts
    assert facts is not None  # only a fedstac node says that a dataset is gone
    place = name(step, vocabulary)
    return DatasetEdition(Record(
        collection=step.collection, id=step.item_id, lineage=place.lineage, origin=origin, version=place.version,
        state=facts.state, latest=False, claims_latest=False, epoch=step.epoch, seq=step.seq, created=facts.created,
        updated=facts.updated, document=None, document_digest=b"", files_digest=b"", publisher=facts.publisher,
        cv_version=None, retraction=facts.retraction, superseded=facts.superseded,
        access=facts.access,
    ))  # fmt: skip


def amend(record: Record, step: ItemStep, judge: Judge, vocabulary: Vocabulary | None) -> DatasetEdition:
    """Return a dataset after a PATCH or a PUT. StacInvalid where that leaves no valid item, or another one.

    A retraction empties ESGF's items; here the files stay known.
    """
    assert step.edit is not None
    if step.deletes:
        tombstone = _with_flags(record, {"latest": False}, step)
        return DatasetEdition(replace(tombstone, document=None, document_digest=b"", files_digest=b"", replicas=None))
    before: Json = orjson.loads(record.document or "{}")
    state = documents.state_of(record) | {"latest": record.claims_latest}
    edited = shaped(step.edit.apply({**before, "properties": {**before["properties"], **state}}))
    after = _with_flags(record, edited["properties"], step)
    if not edited["assets"] and after.state is not State.PUBLISHED:
        edited = {**edited, "assets": before["assets"]}
    completed = alternates.completed(before, alternates.without_contradictions(edited))
    document = documents.without_server_members(completed)
    if step.facts is None and not patching.names(step.edit, "properties", documents.ACCESS):
        document = {**at_level_of(before, document)}
    check_identity(before, document, vocabulary)
    if documents.digest(document) == record.document_digest:
        return DatasetEdition(_at_level(after, step))
    draft, findings = judge.draft(document, record.collection, vocabulary)
    errors = errors_in(findings)
    validation.excuse(_not_excused(errors, step), record, vocabulary, judge)
    amended_record = replace(
        after, document=draft.text, document_digest=draft.document_digest, files_digest=draft.files_digest,
        replicas=draft.replicas, cv_version=vocabulary.version if vocabulary else None,
        cv_excused=validation.excusal(errors),
    )  # fmt: skip
    return DatasetEdition(_at_level(amended_record, step), draft)


def _not_excused(errors: Sequence[Finding], step: ItemStep) -> list[Finding]:
    """Return the errors that refuse a document: a fedstac node says which ones it may keep, but for fixed rules."""
    excuses = step.facts.excuses if step.facts else frozenset()
    return [error for error in errors if is_fixed(error) or (error.rule, error.pointer) not in excuses]


def _with_flags(record: Record, properties: Json, step: ItemStep) -> Record:
    """Return the record with the state that an item's flags say, as a step's event. A flag of null says nothing."""
    is_retracted = _flag(properties, "retracted", record.state is not State.PUBLISHED)
    claims_latest = _flag(properties, "latest", record.claims_latest) and not is_retracted
    if (facts := step.facts) is not None:
        return replace(
            record, claims_latest=claims_latest, epoch=step.epoch, seq=step.seq, state=facts.state,
            updated=facts.updated, retraction=facts.retraction, superseded=facts.superseded,
        )  # fmt: skip
    after = replace(record, claims_latest=claims_latest, seq=max(step.seq, record.seq + 1))
    if not is_retracted:
        return replace(after, state=State.PUBLISHED, updated=step.at, retraction=None)
    reasons = record.retraction if record.retraction is not None else retraction.WITHOUT_REASON
    return replace(after, state=State.RETRACTED, updated=step.at, retraction=reasons)


def _at_level(record: Record, step: ItemStep) -> Record:
    """Return the record with its access level: a fedstac node's, or that of another program's document."""
    if step.facts is not None:
        level = step.facts.access
    else:
        level = level_of(orjson.loads(record.document or "{}").get("properties", {}))
    if level is Level.PRIVATE:
        return replace(record, access=level, latest=False, claims_latest=False)
    return replace(record, access=level)


def _flag(properties: Json, name: str, value_before: bool) -> bool:
    value = properties.get(name)
    if not isinstance(value, bool | None):
        raise StacInvalid(f"`{name}` is true or false, and not {str(value)[:80]!r}")
    return value_before if value is None else value
