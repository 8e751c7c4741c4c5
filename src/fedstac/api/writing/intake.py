"""From a body to drafts: one strict scan, then the rules; what is wrong with a batch is found item by item."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import orjson

from fedstac.api.call import Call
from fedstac.domain import policy, strict_json, validation
from fedstac.domain.errors import (
    BodyTooLarge,
    Finding,
    MalformedJson,
    Misdirected,
    MissingPermission,
    Problem,
    Severity,
    StacInvalid,
    UnsupportedMediaType,
    errors_in,
)
from fedstac.domain.identifiers import LONGEST_ID
from fedstac.domain.model import Draft
from fedstac.domain.policy import Principal
from fedstac.domain.vocabulary import Vocabulary
from fedstac.runtime import budget
from fedstac.settings import Settings

JSON_TYPES = ("", "application/json", "application/geo+json")
LINE_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/geo+json-seq")


IN_THREAD = 8 << 10  # bytes of a body that is judged beside the event loop
LARGE = 64 << 10  # bytes of a body before which its sender has to have some right to publish
WHOLE = 256 << 10  # bytes of a body that is parsed at once; a larger one item by item
MOST_FINDINGS = 10_000  # of a batch; items beyond them are told a few
FEW = 3


class Documents(Protocol):
    """The items of a body; those of a large one are parsed while one goes through them."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Submission:
    """What a body holds: one item, or a batch of them, each with its place.

    In place of a line that is not JSON stands its MalformedJson.
    """

    documents: Documents
    is_batch: bool
    prefix: str  # JSON pointer of the list of items in the body
    names: Mapping[str, str] = field(default_factory=dict)  # that the URL gives to items without

    def __iter__(self) -> Iterator[Any]:
        """The items, one after the other. Ends where the request has ended that they are judged for."""
        for document in self.documents:
            budget.checkpoint()
            yield addressed(document, **self.names)


@dataclass(frozen=True, slots=True)
class Checked:
    """One item of a submission: a draft with what was found, or the problem that refuses it."""

    id: str  # as the item says
    draft: Draft | None
    findings: tuple[Finding, ...] = ()
    problem: Problem | None = None
    text: str | None = None  # of what was refused

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Errors of a draft: they refuse it, unless the dataset is stored already and has them too."""
        return errors_in(self.findings)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNING)


def read(raw: bytes, media_type: str, limits: Settings, *, collection: str | None = None) -> Submission:
    """Parse a body. MalformedJson, UnsupportedMediaType, BodyTooLarge or StacInvalid where it is none.

    `collection`: the one that the URL names. It is filled in where an item names none.
    """
    kind = media_type.partition(";")[0].strip().lower()
    names = {"collection": collection} if collection is not None else {}
    if kind in LINE_TYPES:
        submission = Submission(_lines(raw, limits), True, "", names)
    elif kind in JSON_TYPES:
        submission = replace(_from_json(raw, limits), names=names)
    else:
        accepted = ", ".join((*JSON_TYPES[1:], *LINE_TYPES))
        raise UnsupportedMediaType(f"{kind!r} is not taken here; send one of {accepted}")
    _check_size(submission, len(raw), limits)
    return submission


def _lines(raw: bytes, limits: Settings) -> Documents:
    if len(raw) > WHOLE:
        return strict_json.Lines(raw)
    return strict_json.parse_lines(raw, most=limits.max_batch_items + 1)


def _from_json(raw: bytes, limits: Settings) -> Submission:
    if len(raw) <= WHOLE:
        return _from_value(strict_json.parse(raw))
    parted = strict_json.part(raw, "features", most=limits.max_batch_items, most_rest=4 * WHOLE)
    if parted is not None and (len(parted) > limits.max_batch_items or parted.rest.get("type") == "FeatureCollection"):
        return Submission(parted, True, "/features")
    if len(raw) > limits.max_item_bytes:
        raise BodyTooLarge(
            f"the body, no FeatureCollection, has {len(raw)} bytes; {limits.max_item_bytes} are the most for an item"
        )
    return _from_value(strict_json.parse(raw))


async def json_of(call: Call) -> Any:
    """The value of a JSON body; a large one is parsed beside the event loop."""
    raw = await call.body.read()
    threads = call.services.threads
    return await threads.run(partial(strict_json.parse, raw)) if len(raw) > IN_THREAD else strict_json.parse(raw)


def addressed(document: Any, **names: str) -> Any:
    """Return a document with the members that the URL names filled in where they are missing or null.

    The STAC API Transaction extension asks for it: `collection` of a POST, `id` and `collection` of a PUT.
    """
    if not isinstance(document, dict):
        return document
    missing = {member: name for member, name in names.items() if document.get(member) is None}
    return {**document, **missing} if missing else document


def _from_value(value: object) -> Submission:
    if isinstance(value, dict) and value.get("type") == "FeatureCollection":
        features = value.get("features")
        if not isinstance(features, list):
            finding = Finding("shape", "/features", "a FeatureCollection needs the list `features`")
            raise StacInvalid("the FeatureCollection has no list of features; put the items there", findings=(finding,))
        return Submission(features, True, "/features")
    if not isinstance(value, dict):
        finding = Finding("shape", "", "an Item or a FeatureCollection is expected, a JSON object")
        raise StacInvalid(
            "the body is neither an Item nor a FeatureCollection; send one of them, or NDJSON", findings=(finding,)
        )
    return Submission([value], False, "")


def _check_size(submission: Submission, size: int, limits: Settings) -> None:
    if not submission.is_batch and size > limits.max_item_bytes:
        raise BodyTooLarge(f"the item has {size} bytes; {limits.max_item_bytes} are the most")
    if submission.is_batch and not submission.documents:
        finding = Finding("shape", submission.prefix, "the batch is empty")
        raise StacInvalid("the batch holds no item; put in one at least", findings=(finding,))
    if len(submission.documents) > limits.max_batch_items:
        raise BodyTooLarge(f"the batch has more than {limits.max_batch_items} items, which are the most: send several")


@dataclass(frozen=True, slots=True)
class Judgement:
    """By what the items of a submission are judged: one collection's rules, and what its caller may do there."""

    checker: validation.Checker
    collection: str
    vocabulary: Vocabulary | None
    permissions: policy.Policy
    principal: Principal
    max_item_bytes: int


def check(submission: Submission, judgement: Judgement) -> list[Checked]:
    """Every item by itself: permitted, judged, and not too large."""
    left = MOST_FINDINGS
    checked = []
    for document in submission:
        entry = _check_one(document, judgement)
        if (found := len(entry.findings) + (len(entry.problem.findings) if entry.problem else 0)) > left:
            entry = _shortened(entry)
        left -= min(found, left)
        checked.append(entry)
    return checked


def _shortened(entry: Checked) -> Checked:
    """An item of a batch in which too much was found already."""
    if entry.problem is not None:
        entry.problem.findings = entry.problem.findings[:FEW]
    elif entry.draft is not None and entry.errors:
        problem = validation.refusal_of(entry.draft.id, entry.errors[:FEW])
        return replace(entry, draft=None, findings=(), problem=problem, text=entry.draft.text)
    return replace(entry, findings=entry.findings[:FEW])


def claimed_id(document: object) -> str:
    """What a document calls itself, however broken it is."""
    claimed = document.get("id") if isinstance(document, dict) else None
    return claimed[:LONGEST_ID] if isinstance(claimed, str) else ""


def settle(submission: Submission, checked: Sequence[Checked], known: Collection[str]) -> list[Checked]:
    """Refuses what is held against items that are not among the `known` ids, the stored ones.

    A single item's problem is raised; a batch's is raised only if no item is left.
    """
    checked = [
        replace(entry, draft=None, problem=validation.refusal_of(entry.draft.id, entry.findings), text=entry.draft.text)
        if entry.draft and entry.errors and entry.draft.id not in known
        else entry
        for entry in checked
    ]
    refused = [(n, entry.problem) for n, entry in enumerate(checked) if entry.problem]
    if len(refused) == len(checked):
        raise _all_refused(submission, [(n, problem) for n, problem in refused])
    return checked


def _check_one(document: Any, by: Judgement) -> Checked:
    if isinstance(document, MalformedJson):
        return Checked("", None, problem=document)
    try:
        if (claim := _claim(document, by.vocabulary)) is not None:  # nothing is judged for who may not publish it
            by.permissions.require(by.principal, policy.Action.PUBLISH, claim)
        draft, findings = by.checker.draft(document, by.collection, by.vocabulary)
        touched = policy.Touched(draft.id, draft.collection, draft.institution, frozenset(draft.nodes))
        by.permissions.require(by.principal, policy.Action.PUBLISH, touched)
        if len(draft.text.encode()) > by.max_item_bytes:
            raise BodyTooLarge(f"{draft.id} has over {by.max_item_bytes} bytes, the most for an item")
    except Problem as problem:
        return Checked(claimed_id(document), None, problem=problem, text=orjson.dumps(document).decode())
    return Checked(draft.id, draft, findings)


def _claim(document: Any, vocabulary: Vocabulary | None) -> policy.Touched | None:
    """What a document says it is of, before it is judged; None where it says too little for that."""
    if not isinstance(document, dict) or not isinstance(document.get("collection"), str):
        return None
    properties, assets = document.get("properties"), document.get("assets")
    if not isinstance(properties, dict) or not isinstance(assets, dict):
        return None
    institution = properties.get(vocabulary.institution) if vocabulary else None
    if vocabulary is not None and not isinstance(institution, str):
        return None
    names = (asset.get("alternate:name") for asset in assets.values() if isinstance(asset, dict))
    nodes = frozenset(name for name in names if isinstance(name, str))
    return policy.Touched(claimed_id(document), document["collection"], institution, nodes)


def _all_refused(submission: Submission, refused: Sequence[tuple[int, Problem]]) -> Problem:
    first = refused[0][1]
    if not submission.is_batch or all(
        isinstance(problem, MissingPermission | Misdirected) and type(problem) is type(first) for _, problem in refused
    ):
        return first
    findings = [
        Finding(f.rule, f"{submission.prefix}/{n}{f.pointer}", f.message, f.severity, f.suggestion)
        for n, problem in refused
        for f in (problem.findings or (Finding(problem.name, "", problem.detail),))
    ]
    detail = f"none of the {len(refused)} items is valid; the first: {first.detail}"
    kind = MalformedJson if all(isinstance(problem, MalformedJson) for _, problem in refused) else StacInvalid
    return kind(detail, findings=findings[:1000])
