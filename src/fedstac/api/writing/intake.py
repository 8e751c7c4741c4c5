"""Intake of a body: one strict scan, then the rules, item by item. It ends with drafts and refused items."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import orjson

from fedstac.api.call import Call, CallProgress, Services
from fedstac.bootstrap import Node
from fedstac.db import records
from fedstac.domain import documents, policy, strict_json, validation
from fedstac.domain.documents import ItemTexts, TextSource
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
from fedstac.domain.policy import Principal
from fedstac.domain.texts import Text
from fedstac.domain.vocabulary import DatasetName, Vocabulary
from fedstac.runtime import budget, metrics
from fedstac.runtime.spool import Spool
from fedstac.settings import Settings

JSON_TYPES = ("", "application/json", "application/geo+json")
LINE_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/geo+json-seq")


IN_THREAD = 8 << 10  # bytes of a body that is judged beside the event loop
LARGE = 64 << 10  # bytes of a body before which its sender has to have some right to publish
WHOLE = 256 << 10  # bytes of a body that is parsed at once; a larger one item by item
BATCH_MEMORY = 16 << 20  # bytes that the work on a batch takes: it is in a file, and so is what comes of it
MOST_FINDINGS = 10_000  # of a batch; an item beyond them gets FEW
FEW = 3
FEW_IDS = 5  # in the row of a refusal


class Documents(Protocol):
    """The items of a body; a large one is parsed while it is iterated."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Submission:
    """The content of a body: one item, or a batch of them, each with its place.

    In place of a line that is not JSON stands its MalformedJson, and of an item that is too large a BodyTooLarge.
    """

    documents: Documents
    is_batch: bool
    prefix: str  # JSON pointer of the list of items in the body
    names: Mapping[str, str] = field(default_factory=dict)  # that the URL gives to items without

    def __iter__(self) -> Iterator[Any]:
        """Yield the items, one after the other, until the request ends that they are judged for."""
        for document in self.documents:
            budget.checkpoint()
            yield addressed(document, **self.names)


@dataclass(frozen=True, slots=True)
class JudgedItem:
    """One item of a submission: valid, or refused by a problem. Its texts may be in a file."""

    id: str  # as the item gives it
    texts: TextSource  # of what was refused the document, if it is JSON
    name: DatasetName | None = None  # of a valid one
    findings: tuple[Finding, ...] = ()
    problem: Problem | None = None

    @property
    def lineage(self) -> str:
        """The lineage of a valid item."""
        assert self.name is not None
        return self.name.lineage

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The errors of a valid item: they refuse it, unless the dataset is stored already and has them too."""
        return errors_in(self.findings)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNING)


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes that are to be published in a collection, read when there is memory for them, and their media type."""

    collection: str
    read: Callable[[], Awaitable[Text]]
    media_type: str
    is_large: bool = False  # its sender needs some right to publish before it is read
    is_surely_batch: bool = False  # as its head says; others may be batches, too


@dataclass(frozen=True, slots=True)
class JudgedBody:
    """The items of a body, judged by a collection's vocabulary."""

    collection: str
    vocabulary: Vocabulary | None
    items: Sequence[JudgedItem]
    is_batch: bool
    prefix: str  # JSON pointer of the list of items in the body

    @property
    def cv_version(self) -> str | None:
        """The version of the vocabulary."""
        return self.vocabulary.version if self.vocabulary else None


async def judge(services: Services, caller: Principal, body: Body, progress: CallProgress) -> JudgedBody:
    """Read a body and judge every item of it, with the vocabulary that is current now.

    `progress` gets the number of items and the first ids, for the row of a refusal.
    """
    node, raw = services.node, await body.read()
    vocabulary = node.checker.vocabularies.current(body.collection)
    judgement = Judgement(node.checker, body.collection, vocabulary, node.policy, caller, node.settings.max_item_bytes)

    def work() -> JudgedBody:
        submission = read(raw, body.media_type, node.settings, collection=body.collection)
        items = check(submission, judgement, TextsFile() if len(raw) > WHOLE else None)
        return JudgedBody(body.collection, vocabulary, items, submission.is_batch, submission.prefix)

    judged_body = await services.threads.run_if(len(raw) > IN_THREAD, work)
    _count_findings(node, judged_body.items)
    progress.items, progress.item_ids = len(judged_body.items), [item.id for item in judged_body.items[:FEW_IDS]]
    return judged_body


def _count_findings(node: Node, items: Sequence[JudgedItem]) -> None:
    """Count what validation found, warnings too."""
    counts = Counter(
        (finding.rule, finding.severity.value)
        for item in items
        for finding in (*item.findings, *(item.problem.findings if item.problem else ()))
    )
    for (rule, severity), count in counts.items():
        node.metrics.count(metrics.FINDINGS, rule, severity, by=count)


async def settle(node: Node, body: JudgedBody) -> JudgedBody:
    """Refuse now the items whose errors no stored dataset can excuse.

    A single item's problem is raised; a batch's is raised only if no item is left.
    """
    body = await refuse(node, body)
    refusals = [(n, item.problem) for n, item in enumerate(body.items) if item.problem]
    if len(refusals) == len(body.items):
        raise _all_refused(body, refusals)
    return body


async def refuse(node: Node, body: JudgedBody) -> JudgedBody:
    """Return the body, with the items refused whose errors no stored dataset can excuse."""
    ids = [item.id for item in body.items if item.problem is None and item.errors]
    stored_ids: Collection[str] = ()
    if ids:
        async with node.pool.acquire() as conn:
            stored_ids = await records.stored_ids(conn, body.collection, ids)
    return replace(body, items=[_without_excuse(item, stored_ids) for item in body.items])


def _without_excuse(item: JudgedItem, stored_ids: Collection[str]) -> JudgedItem:
    """Return the item, refused where it has errors and is not among the stored ones."""
    if item.problem is not None or not item.errors or item.id in stored_ids:
        return item
    return replace(item, problem=validation.refusal_of(item.id, item.findings))


def read(raw: Text, media_type: str, limits: Settings, *, collection: str | None = None) -> Submission:
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
        types = ", ".join((*JSON_TYPES[1:], *LINE_TYPES))
        raise UnsupportedMediaType(f"{kind!r} is not taken here; send one of {types}")
    _check_size(submission, len(raw), limits)
    return submission


def _lines(raw: Text, limits: Settings) -> Documents:
    if len(raw) > WHOLE or not isinstance(raw, bytes):
        return strict_json.Lines(raw, limits.max_item_bytes)
    return strict_json.parse_lines(raw, most=limits.max_batch_items + 1)


def _from_json(raw: Text, limits: Settings) -> Submission:
    if len(raw) <= WHOLE:
        return _from_value(strict_json.parse(raw[:]))
    parted = strict_json.part(
        raw, "features", most=limits.max_batch_items, most_rest=4 * WHOLE, most_bytes=limits.max_item_bytes
    )
    if parted is not None and (len(parted) > limits.max_batch_items or parted.rest.get("type") == "FeatureCollection"):
        return Submission(parted, True, "/features")
    if len(raw) > limits.max_item_bytes:
        raise BodyTooLarge(
            f"the body, no FeatureCollection, has {len(raw)} bytes; {limits.max_item_bytes} are the most for an item"
        )
    return _from_value(strict_json.parse(raw[:]))


async def json_of(call: Call) -> Any:
    """Return the value of a JSON body; a large one is parsed beside the event loop."""
    raw = await call.body.read()
    threads = call.services.threads
    return await threads.run_if(len(raw) > IN_THREAD, partial(strict_json.parse, raw))


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
    count = len(submission.documents)
    if submission.is_batch and not count:
        finding = Finding("shape", submission.prefix, "the batch is empty")
        raise StacInvalid("the batch holds no item; put in one at least", findings=(finding,))
    if count > limits.max_batch_items:
        raise BodyTooLarge(f"the batch has more than {limits.max_batch_items} items, which are the most: send several")


@dataclass(frozen=True, slots=True)
class Judgement:
    """How the items of a submission are judged: by one collection's rules, and by its caller's permissions there."""

    checker: validation.Checker
    collection: str
    vocabulary: Vocabulary | None
    permissions: policy.Policy
    principal: Principal
    max_item_bytes: int


class TextsFile:
    """Holds the texts of judged items in a file until they are stored: they are longer than the body."""

    def __init__(self) -> None:
        self._spool = Spool()

    def put(self, texts: ItemTexts) -> TextSource:
        encoded = [text.encode() if text is not None else None for text in texts]
        start = self._spool.append(b"".join(text for text in encoded if text is not None))
        return _Place(self._spool, start, tuple(len(text) if text is not None else None for text in encoded))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the texts of an item are; None for one that it lacks."""

    spool: Spool
    start: int
    sizes: tuple[int | None, ...]

    def read(self) -> ItemTexts:
        raw = io.BytesIO(self.spool.read(self.start, sum(filter(None, self.sizes))))
        return ItemTexts(*(raw.read(size).decode() if size is not None else None for size in self.sizes))


def check(submission: Submission, judgement: Judgement, file: TextsFile | None = None) -> list[JudgedItem]:
    """Check every item by itself: whether it is permitted, valid, and not too large."""
    findings_left = MOST_FINDINGS
    items = []
    for document in submission:
        item = _check_one(document, judgement)
        count = len(item.findings) + (len(item.problem.findings) if item.problem else 0)
        if count > findings_left:
            item = _shorten(item)
        findings_left -= min(count, findings_left)
        items.append(replace(item, texts=file.put(item.texts.read())) if file else item)
    return items


def _shorten(item: JudgedItem) -> JudgedItem:
    """Return an item with few findings, in a batch that has too many already."""
    if item.problem is not None:
        item.problem.findings = item.problem.findings[:FEW]
    elif item.errors:
        return replace(item, findings=(), problem=validation.refusal_of(item.id, item.errors[:FEW]))
    return replace(item, findings=item.findings[:FEW])


def claimed_id(document: object) -> str:
    """Return the id that a document gives itself, however broken it is."""
    id = document.get("id") if isinstance(document, dict) else None
    return id[:LONGEST_ID] if isinstance(id, str) else ""


def _check_one(document: Any, by: Judgement) -> JudgedItem:
    if isinstance(document, Problem):
        return JudgedItem("", ItemTexts(None), problem=document)
    try:
        if (claim := _claim(document, by.vocabulary)) is not None:  # nothing is judged for who may not publish it
            by.permissions.require(by.principal, policy.Action.PUBLISH, claim)
        draft, findings = by.checker.draft(document, by.collection, by.vocabulary)
        resource = policy.Resource(draft.id, draft.collection, draft.institution, frozenset(draft.nodes))
        by.permissions.require(by.principal, policy.Action.PUBLISH, resource)
        if len(draft.text.encode()) > by.max_item_bytes:
            raise BodyTooLarge(f"{draft.id} has over {by.max_item_bytes} bytes, the most for an item")
    except Problem as problem:
        problem = problem.without_trace()
        return JudgedItem(claimed_id(document), ItemTexts(orjson.dumps(document).decode()), problem=problem)
    texts = documents.texts_of(draft, errors_in(findings))
    return JudgedItem(draft.id, texts, DatasetName(draft.lineage, draft.version), findings)


def _claim(document: Any, vocabulary: Vocabulary | None) -> policy.Resource | None:
    """Return what a document names as its collection, institution and nodes, before it is judged; None without them."""
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
    return policy.Resource(claimed_id(document), document["collection"], institution, nodes)


def _all_refused(body: JudgedBody, refusals: Sequence[tuple[int, Problem]]) -> Problem:
    """Return the problem of a body of which every item is refused."""
    first = refusals[0][1]
    if not body.is_batch or all(
        isinstance(problem, MissingPermission | Misdirected) and type(problem) is type(first) for _, problem in refusals
    ):
        return first
    findings = [
        Finding(f.rule, f"{body.prefix}/{n}{f.pointer}", f.message, f.severity, f.suggestion)
        for n, problem in refusals
        for f in (problem.findings or (Finding(problem.name, "", problem.detail),))
    ]
    detail = f"none of the {len(refusals)} items is valid; the first: {first.detail}"
    kind = MalformedJson if all(isinstance(problem, MalformedJson) for _, problem in refusals) else StacInvalid
    return kind(detail, findings=findings[:1000])
