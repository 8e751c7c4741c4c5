"""Writes of items: accepted here, published by the workers."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import orjson
from starlette.responses import Response

from fedstac import publication
from fedstac.api.call import Call
from fedstac.api.http import links, preconditions
from fedstac.api.people import identity, notifications
from fedstac.api.route import DRY_RUN
from fedstac.api.writing import idempotency, intake
from fedstac.api.writing.refusals import FEW
from fedstac.api.writing.requests import request_document
from fedstac.bootstrap import Node
from fedstac.db import audit, records, requests, search
from fedstac.domain import difference, documents
from fedstac.domain.actions.publish import Publish
from fedstac.domain.errors import (
    BadRequest,
    Finding,
    InternalError,
    Problem,
    RequestDoesNotExist,
    Unavailable,
    problems,
)
from fedstac.domain.model import Outcome, Receipt, Record
from fedstac.domain.policy import Action, Principal, Touched
from fedstac.domain.vocabulary import Vocabulary
from fedstac.runtime import budget
from fedstac.runtime.wakeup import Backoff

WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d+)", re.IGNORECASE)
LONGEST_WAIT = 60.0
RETRY_AFTER = "1"
PROBLEMS = {problem.name: problem for problem in problems()}


async def post_items(call: Call) -> Response:
    """POST /collections/{collection_id}/items: an Item, a FeatureCollection or NDJSON → 202 and a request to follow.

    With `?dry_run=true` everything is tried and nothing stored: 200 and what would become of each item.
    """
    node = call.node
    principal = call.caller
    collection = call.path_params["collection_id"]
    body = Body(
        collection, call.body.read, call.headers.get("content-type", ""), only_new=preconditions.wants_new(call.headers)
    )
    return await publish(call, node, principal, body, large=_is_large(call))


@dataclass(frozen=True, slots=True)
class Body:
    """What is to be published in a collection: the bytes, read when there is a place for them, and what they are."""

    collection: str
    read: Callable[[], Awaitable[bytes]]
    media_type: str
    retry_of: UUID | None = None
    only_new: bool = False  # what is there already is refused


async def publish(call: Call, node: Node, principal: Principal, body: Body, *, large: bool) -> Response:
    """Judges what is to be published, makes a request of it and answers; a dry run is answered and nothing kept."""
    await call.services.collections.require(node, body.collection)
    if large and not node.policy.may_somewhere(principal, Action.PUBLISH, body.collection):
        touched = Touched(f"datasets of {body.collection[:128]}", body.collection, None)
        node.policy.require(principal, Action.PUBLISH, touched)  # says why, before anything of the body is read
    everything = call.services.memory.place(node.settings.max_batch_bytes)
    async with (
        everything if body.retry_of else nullcontext()
    ):  # what is read from the database is not counted as it comes
        if is_dry_run(call):
            return await _rehearse(call, node, principal, body)
        key = await idempotency.key_of(call, principal)
        if (before := await idempotency.known(node, key)) is None:
            kept, before, single = await _admit(call, node, principal, body, key)
    call.body.forget()  # whoever waits for a result holds no memory of those who are judged
    if before is not None:
        return await respond_again(call, node, before)
    return await respond(call, node, kept, single=single)


@dataclass(frozen=True, slots=True)
class Kept:
    """A request that is durable: how many items it has, and how many of them were refused before."""

    id: UUID
    total: int
    refused: int

    @classmethod
    def of(cls, accepted: requests.NewRequest) -> Kept:
        return cls(accepted.id, len(accepted.items), sum(item.problem is not None for item in accepted.items))


async def store(call: Call, node: Node, accepted: requests.NewRequest, *, single: bool) -> Response:
    """Makes a request durable and answers; what was accepted under its key meanwhile answers for it."""
    if (before := await _keep(call, node, accepted)) is not None:
        return await respond_again(call, node, before)
    return await respond(call, node, Kept.of(accepted), single=single)


async def _keep(call: Call, node: Node, accepted: requests.NewRequest) -> UUID | None:
    """Makes a request durable; the id of the one that was accepted under its key meanwhile, where there is one."""
    await node.shelf.keep(node.pool, accepted.collection, accepted.cv_version)
    try:
        await notifications.wish(call, accepted.id)
        await call.services.admission.store(accepted)
    except requests.KeyTaken:
        before = await idempotency.known(node, accepted.key)
        if before is None:
            raise Unavailable(
                "the request under this Idempotency-Key is just being stored; try again", retry_after=1
            ) from None
        return before
    return None


async def respond_again(call: Call, node: Node, before: UUID) -> Response:
    """The same handle, or result, as when it was accepted."""
    summary = await _final(node, before, _wait_seconds(call, node))
    if summary.is_final and _wait_seconds(call, node):
        return await _result(call, node, summary, single=summary.total == 1)
    return _accepted(call, before, summary.total, summary.counts.get("rejected", 0))


async def respond(call: Call, node: Node, kept: Kept, *, single: bool) -> Response:
    """202 and a request to follow, or the result where the caller waits for it and it comes in time."""
    call.progress.is_accepted = True  # what is refused from here on is in the audit log already
    seconds = _wait_seconds(call, node)
    if seconds:
        with suppress(Unavailable):  # it is kept: who cannot be told more for now follows it
            summary = await _final(node, kept.id, seconds)
            if summary.is_final:
                return await _result(call, node, summary, single=single)
    return _accepted(call, kept.id, kept.total, kept.refused)


def _is_large(call: Call) -> bool:
    """A body that is worth counting: many of them at once would be all of the memory."""
    length = call.headers.get("content-length", "")
    return not length.isdecimal() or int(length) > intake.LARGE


async def _admit(
    call: Call, node: Node, principal: Principal, body: Body, key: requests.Key | None
) -> tuple[Kept, UUID | None, bool]:
    """Reads, judges and stores a body: what was kept, what answers for it if its key was taken, if it is one item."""
    submission, checked, vocabulary = await _judge(call, node, principal, body)
    accepted = _request(call, principal, body.collection, checked, vocabulary)
    accepted = replace(accepted, key=key, retry_of=body.retry_of, only_new=body.only_new)
    return Kept.of(accepted), await _keep(call, node, accepted), not submission.is_batch


async def _judge(
    call: Call, node: Node, principal: Principal, body: Body, *, settle: bool = True
) -> tuple[intake.Submission, list[intake.Checked], Vocabulary | None]:
    """Reads a body and judges every item of it, with the vocabulary that is current now.

    `settle`: what nothing that is stored can excuse is refused at once.
    """
    raw, collection = await body.read(), body.collection
    vocabulary = node.checker.vocabularies.current(collection)
    judgement = intake.Judgement(
        node.checker, collection, vocabulary, node.policy, principal, node.settings.max_item_bytes
    )

    def judge() -> tuple[intake.Submission, list[intake.Checked]]:
        submission = intake.read(raw, body.media_type, node.settings, collection=collection)
        return submission, intake.check(submission, judgement)

    threads = call.services.threads
    submission, checked = await threads.run(judge) if len(raw) > intake.IN_THREAD else judge()
    call.progress.items, call.progress.item_ids = len(checked), [entry.id for entry in checked[:FEW]]
    if not settle:
        return submission, checked, vocabulary
    held = [entry.draft.id for entry in checked if entry.draft and entry.errors]
    known: set[str] = set()
    if held:
        async with node.pool.acquire() as conn:
            known = await records.stored_ids(conn, collection, held)
    return submission, intake.settle(submission, checked, known), vocabulary


def is_dry_run(call: Call) -> bool:
    """Whether nothing is to be stored. BadRequest where `dry_run` says neither."""
    if not call.query_string:
        return False
    said = call.query_params.get(DRY_RUN, "false").lower()
    if said not in ("true", "false"):
        raise BadRequest(f"dry_run={said[:20]!r} is neither true nor false")
    return said == "true"


async def _rehearse(call: Call, node: Node, principal: Principal, body: Body) -> Response:
    """Judges and decides everything as if it were published, and takes it back."""
    _, checked, vocabulary = await _judge(call, node, principal, body, settle=False)
    version = vocabulary.version if vocabulary else None
    drafts = [entry for entry in checked if entry.draft]
    commands = [
        Publish(entry.draft, principal, version, entry.errors, body.only_new) for entry in drafts if entry.draft
    ]
    work = [publication.Work(command, principal.name, "publish") for command in commands]
    threads = call.services.threads
    entries, tried = iter(drafts), list[Rehearsed]()

    async def describe(receipts: list[Receipt]) -> None:
        part = [(next(entries), receipt) for receipt in receipts]

        def describe_all() -> list[Rehearsed]:
            return [_describe(entry, receipt) for entry, receipt in part]

        is_long = any(_overwritten(receipt) for receipt in receipts)  # documents are compared
        tried.extend(await threads.run(describe_all) if is_long else describe_all())

    async with node.pool.acquire() as conn:
        await publication.rehearse(conn, node.rules, work, describe)
        overwritten = [each.overwritten for each in tried if each.overwritten]
        last = await audit.last_changes(conn, overwritten) if overwritten else {}
    rehearsed = iter(tried)
    items = [(next(rehearsed) if entry.draft else _refused(entry)).as_json(last) for entry in checked]
    valid = all(item["outcome"] != Outcome.REJECTED for item in items)
    answer = {"dry_run": True, "valid": valid, "cv_version": version, "items": items}
    return Response(orjson.dumps(answer), media_type=links.JSON)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What would become of an item; of one that would be updated, what differs and the record that would change."""

    id: str
    outcome: Outcome
    problem: Problem | None
    findings: tuple[Finding, ...]
    overwritten: Record | None = None  # without its document
    changed: Sequence[str] = ()

    def as_json(self, last: Mapping[str, audit.LastChange]) -> dict[str, Any]:
        """`last`: by id, who changed the overwritten records last."""
        members: dict[str, Any] = {"id": self.id, "outcome": self.outcome}
        if self.problem:
            members |= {"problem": self.problem.name, "detail": self.problem.detail}
        if self.overwritten:
            members["changed"] = self.changed
            if self.overwritten.id in last:
                members["last_change"] = asdict(last[self.overwritten.id])
        members["findings"] = [finding.as_json() for finding in dict.fromkeys(self.findings)]
        return members


def _refused(entry: intake.Checked) -> Rehearsed:
    """Return what becomes of an item that was refused before anything was tried."""
    return Rehearsed(entry.id, Outcome.REJECTED, entry.problem, entry.problem.findings if entry.problem else ())


def _describe(entry: intake.Checked, receipt: Receipt) -> Rehearsed:
    """Return what would become of an item, without the documents."""
    problem = receipt.problem
    findings = (*entry.warnings, *(problem.findings if problem else receipt.findings))
    stored = _overwritten(receipt)
    if stored is None or not stored.document:
        return Rehearsed(entry.id, receipt.outcome, problem, findings)
    after = next(change.after for change in receipt.changes if change.before is stored)
    changed = difference.changed_members(stored.document, after.document or "{}")
    return Rehearsed(entry.id, receipt.outcome, problem, findings, replace(stored, document=None), changed)


def _overwritten(receipt: Receipt) -> Record | None:
    """The stored dataset whose metadata a publication would change; None where it changes none."""
    if receipt.outcome not in (Outcome.UPDATED, Outcome.REPLACED):
        return None
    return next((change.before for change in receipt.changes if change.before and change.draft), None)


def _request(
    call: Call,
    principal: Principal,
    collection: str,
    checked: list[intake.Checked],
    vocabulary: Vocabulary | None,
) -> requests.NewRequest:
    return requests.NewRequest(
        id=uuid4(), collection=collection, action="publish", submitter=principal.name,
        roles=tuple(sorted(principal.roles)), user_agent=call.headers.get("user-agent", "")[:200] or None,
        correlation=call.request_id, cv_version=vocabulary.version if vocabulary else None,
        items=[_new_item(entry) for entry in checked], identity=identity.packed(principal),
    )  # fmt: skip


def _new_item(entry: intake.Checked) -> requests.NewItem:
    if entry.draft:
        return requests.NewItem(
            entry.draft.lineage,
            entry.draft.id,
            entry.draft.text,
            documents.packed(entry.draft, entry.errors),
            findings=entry.warnings,
        )
    problem = entry.problem
    assert problem is not None
    return requests.NewItem(entry.id, entry.id, entry.text, None, problem.name, problem.detail, problem.findings)


def _wait_seconds(call: Call, node: Node) -> float:
    """`Prefer: wait=N` (RFC 7240), else the setting."""
    asked = WAIT.search(call.headers.get("prefer", ""))
    return min(float(asked[1]), LONGEST_WAIT) if asked else node.settings.default_wait_seconds


async def _final(node: Node, request: UUID, seconds: float) -> requests.Summary:
    """The request once it is final, or as it stands when the time is up."""
    budget.extend(seconds)
    deadline, backoff = time.monotonic() + seconds, Backoff(least=0.02)
    while True:
        settled = node.settled.next()
        async with node.pool.acquire() as conn:
            summary = await requests.summary(conn, request)
        if summary is None:
            raise RequestDoesNotExist(f"the request {request} is gone; send it again")
        left = deadline - time.monotonic()
        if summary.is_final or left <= 0 or node.stopping.is_set():
            return summary
        await settled(min(backoff.pause(), left))


def _accepted(call: Call, accepted: UUID, total: int, refused: int) -> Response:
    url = links.request_url(call.base_url, accepted)
    body = {
        "id": str(accepted),
        "status": "queued",
        "total": total,
        "rejected": refused,
        "links": [
            {"rel": "self", "type": links.JSON, "href": url},
            {"rel": "items", "type": links.JSON, "href": url + "/items"},
        ],
    }
    return Response(orjson.dumps(body), 202, {"Location": url, "Retry-After": RETRY_AFTER}, media_type=links.JSON)


async def _result(call: Call, node: Node, summary: requests.Summary, *, single: bool) -> Response:
    """The final answer that `Prefer: wait` asked for."""
    base = call.base_url
    url = links.request_url(base, summary.id)
    applied = {"Preference-Applied": "wait", "Link": f'<{url}>; rel="monitor"'}
    async with node.pool.acquire() as conn:
        if not single:
            body = await request_document(conn, base, summary)
            return Response(orjson.dumps(body), 200, applied | {"Content-Location": url}, media_type=links.JSON)
        [result] = await requests.results(conn, summary.id, status=None, after=-1, limit=1)
        if result.problem:
            raise _stored_problem(result)
        found = await search.item(conn, summary.collection, result.dataset)
        if found is None:  # marked for deletion: hidden
            body = await request_document(conn, base, summary)
            return Response(orjson.dumps(body), 200, applied | {"Content-Location": url}, media_type=links.JSON)
    created = result.outcome in (Outcome.NEW, Outcome.NEWER, Outcome.OLDER)
    location = links.item_url(base, summary.collection, result.dataset)
    text = links.item_text(base, found[0])
    return Response(text, 201 if created else 200, applied | {"Location": location}, media_type=links.GEOJSON)


def _stored_problem(result: requests.ItemResult) -> Problem:
    return PROBLEMS.get(result.problem or "", InternalError)(result.detail or "", findings=result.findings_read())
