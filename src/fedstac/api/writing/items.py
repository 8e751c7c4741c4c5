"""Publishing items: the way of a POST, from its bytes to a durable request. The workers publish what waits.

One direction: intake reads and judges, admission stores, answers answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from starlette.responses import Response

from fedstac import publication
from fedstac.api.call import Call, Services
from fedstac.api.writing import admission, answers, idempotency, intake
from fedstac.api.writing.admission import AcceptedRequest, EarlierRequest
from fedstac.api.writing.answers import DryRun
from fedstac.api.writing.options import WriteOptions, options_of
from fedstac.db import audit
from fedstac.domain import difference, documents
from fedstac.domain.actions import Work
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Finding, Problem
from fedstac.domain.model import Outcome, Receipt, Record
from fedstac.domain.policy import Action, Principal, Resource


async def post_items(call: Call) -> Response:
    """Publish an Item, a FeatureCollection or NDJSON: the answer names a request to follow.

    With `dry_run=true` everything is tried and nothing stored: the answer says what would become of each item.
    """
    body = intake.Body(
        collection=call.path_params["collection_id"], read=call.body.text,
        media_type=call.headers.get("content-type", ""), is_large=_is_large(call),
        is_surely_batch=_is_surely_batch(call),
    )  # fmt: skip
    outcome = await publish(call.services, call.caller, body, options_of(call))
    return await answers.answer(call, outcome)


def _is_large(call: Call) -> bool:
    """Tell whether a body is worth counting: many of them at once would be all of the memory."""
    length = call.headers.get("content-length", "")
    return not length.isdecimal() or int(length) > intake.LARGE


def _is_surely_batch(call: Call) -> bool:
    """Tell whether the head says that a body is no single item."""
    kind, length = call.headers.get("content-type", ""), call.headers.get("content-length", "")
    is_long = length.isdecimal() and int(length) > call.node.settings.max_item_bytes
    return is_long or kind.partition(";")[0].strip().lower() in intake.LINE_TYPES


async def publish(
    services: Services, caller: Principal, body: intake.Body, options: WriteOptions
) -> AcceptedRequest | EarlierRequest | DryRun:
    """Judge what a body holds and make a durable request of it. A Problem where nothing of it is accepted."""
    node = services.node
    await services.collections.require(node, body.collection, publishes=True)
    if body.is_large and not node.policy.may_somewhere(caller, Action.PUBLISH, body.collection):
        resource = Resource(f"datasets of {body.collection[:128]}", body.collection, None)
        node.policy.require(caller, Action.PUBLISH, resource)  # says why, before anything of the body is read
    # a body that is read from the database is not counted as it comes
    memory = services.memory.place(intake.BATCH_MEMORY) if options.retry_of else nullcontext()
    async with memory:
        if options.dry_run:
            judged_body = await intake.judge(services, caller, body, options.progress)
            return await _rehearse(services, caller, judged_body, only_new=options.only_new)
        key = await options.find_key()
        if (earlier := await idempotency.earlier(node, key)) is not None:
            return EarlierRequest(earlier)
        if body.is_surely_batch:  # before all of it is read
            await services.backlog.require_room()
        judged_body = await intake.judge(services, caller, body, options.progress)
        if judged_body.is_batch:
            await services.backlog.require_room()
        judged_body = await intake.settle(node, judged_body)
        return await admission.admit_items(services, caller, judged_body, options, key)


async def _rehearse(services: Services, caller: Principal, judged_body: intake.JudgedBody, *, only_new: bool) -> DryRun:
    """Decide everything as if it were published, and roll it back. A batch is described part by part."""
    node, version = services.node, judged_body.cv_version
    valid_items = [item for item in judged_body.items if item.problem is None]
    targets = [Target(judged_body.collection, item.id, item.lineage) for item in valid_items]
    remaining, trials = iter(valid_items), list[Trial]()

    def work_on(part: slice) -> list[Work]:
        commands = [_command(item, judged_body, caller, only_new=only_new) for item in valid_items[part]]
        return [Work(command, caller.name, "publish") for command in commands]

    async def describe(receipts: list[Receipt]) -> None:
        part = [(next(remaining), receipt) for receipt in receipts]

        def describe_all() -> list[Trial]:
            return [_trial(item, receipt) for item, receipt in part]

        is_long = any(_overwritten(receipt) for receipt in receipts)  # documents are compared
        trials.extend(await services.threads.run_if(is_long, describe_all))

    async with node.pool.acquire() as conn:
        await publication.rehearse(conn, node.rules, targets, work_on, describe)
        overwritten = [trial.overwritten for trial in trials if trial.overwritten]
        last = await audit.last_changes(conn, overwritten) if overwritten else {}
    in_order = iter(trials)
    items = [
        (next(in_order) if item.problem is None else _trial_of_refused(item)).as_json(last)
        for item in judged_body.items
    ]
    valid = all(item["outcome"] != Outcome.REJECTED for item in items)
    return DryRun({"dry_run": True, "valid": valid, "cv_version": version, "items": items})


def _command(item: intake.JudgedItem, body: intake.JudgedBody, caller: Principal, *, only_new: bool) -> Publish:
    text, prepared, coded = item.texts.read()
    assert text is not None, "a valid item has all of its texts"
    assert prepared is not None
    assert item.name is not None
    draft, errors = documents.unpacked(text, prepared, coded, body.collection, item.id, item.name)
    return Publish(draft, caller, body.cv_version, errors, only_new)


@dataclass(frozen=True, slots=True)
class Trial:
    """What would become of an item; of one that would be updated, what differs and the record that would change."""

    id: str
    outcome: Outcome
    problem: Problem | None
    findings: tuple[Finding, ...]
    overwritten: Record | None = None  # without its document
    changed_members: Sequence[str] = ()

    def as_json(self, last: Mapping[str, audit.LastChange]) -> dict[str, Any]:
        """Return the trial as it is shown. `last`: by id, who changed the overwritten records last."""
        members: dict[str, Any] = {"id": self.id, "outcome": self.outcome}
        if self.problem:
            members |= {"problem": self.problem.name, "detail": self.problem.detail}
        if self.overwritten:
            members["changed"] = self.changed_members
            if self.overwritten.id in last:
                members["last_change"] = asdict(last[self.overwritten.id])
        members["findings"] = [finding.as_json() for finding in dict.fromkeys(self.findings)]
        return members


def _trial_of_refused(item: intake.JudgedItem) -> Trial:
    """Return what becomes of an item that was refused before anything was tried."""
    return Trial(item.id, Outcome.REJECTED, item.problem, item.problem.findings if item.problem else ())


def _trial(item: intake.JudgedItem, receipt: Receipt) -> Trial:
    """Return what would become of an item, without the documents."""
    problem = receipt.problem
    findings = (*item.warnings, *(problem.findings if problem else receipt.findings))
    record = _overwritten(receipt)
    if record is None or not record.document:
        return Trial(item.id, receipt.outcome, problem, findings)
    after = next(change.after for change in receipt.changes if change.before is record)
    changed_members = difference.changed_members(record.document, after.document or "{}")
    return Trial(item.id, receipt.outcome, problem, findings, replace(record, document=None), changed_members)


def _overwritten(receipt: Receipt) -> Record | None:
    """Return the stored dataset whose metadata a publication would change; None where it changes none."""
    if receipt.outcome not in (Outcome.UPDATED, Outcome.REPLACED):
        return None
    return next((change.before for change in receipt.changes if change.before and change.draft), None)
