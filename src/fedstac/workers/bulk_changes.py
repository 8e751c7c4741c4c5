"""Changes of many datasets: what is shown before, what begins them, and the part that works them off.

They have a table and a part of their own, not the queue of requests. There the items of a lineage's shard are worked on
in the order in which they came, so that 100 000 of them would hold up every publication for minutes; and a request
carries a document an item. Here a publication passes by: a part is small, and a pause follows it.

A part is one transaction: the datasets' new states, events, audit rows and results, and how far the change has come.
Whoever is killed leaves a part that never was. One process of a node works at a time; its lock goes with its session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import structlog

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import audit, bulks, connections, own_groups, queue
from fedstac.db.bulks import Bulk, BulkResult, DatasetChoice, NewBulk, WaitingDataset
from fedstac.db.connections import Connection
from fedstac.domain import bulk
from fedstac.domain.actions import Work, command_of
from fedstac.domain.actions.target import QueuedAction
from fedstac.domain.bulk import MOST, BulkAction, BulkPreview, BulkWish, GroupKey, ShownDigest
from fedstac.domain.errors import BadRequest, Conflict, Finding, InternalError, ItemDoesNotExist
from fedstac.domain.identifiers import uuid7
from fedstac.domain.model import Outcome, Receipt, rfc3339
from fedstac.domain.policy import Principal
from fedstac.domain.vocabulary import DatasetName
from fedstac.runtime import supervision
from fedstac.runtime.causes import blames_nobody, was_ended_in_order
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.outages import reason_of
from fedstac.runtime.wakeup import pause
from fedstac.workers import loading
from fedstac.workers.loading import DatasetCommand

LOOK_SECONDS = 1.0  # between looks for a change that somebody asked for
PART = 128  # datasets of a part: other work of this process waits no longer than for their events
ALONE = 4  # attempts after which a dataset is tried alone
ATTEMPTS = 5  # of a dataset, alone, after which it is given up
SHARE, SHARE_BESIDE_OTHERS = 0.9, 0.8  # of the time, that parts take; less while publications wait
SHARE_BEFORE_OTHERS = 0.5  # and less again while one has waited for longer than LONG_WAIT_SECONDS
LONG_WAIT_SECONDS = 1.0
LONGEST_PAUSE = 2.0
EVERYWHERE = "*"  # in an audit row: of more than one collection
DOCUMENT_GONE = Receipt(
    Outcome.REJECTED, problem=ItemDoesNotExist("its document was removed from the load; it was deleted meanwhile")
)
SETTLED = {Outcome.REJECTED: "rejected", Outcome.FAILED: "failed"}  # every other outcome is `done`
log = structlog.get_logger()


# --- what somebody asks for ---


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """What somebody wants to do with which datasets.

    ids: of any number up to MOST; None where the conditions of a search choose. numbers: of the records that meet the
    conditions, if the columns of this process can tell. description: how they were chosen.
    """

    wish: BulkWish
    ids: Sequence[str] | None
    conditions: Mapping[str, Any]
    description: Mapping[str, Any]
    warnings: Sequence[Finding] = field(default=())
    numbers: Sequence[int] | None = None


async def preview(node: Node, conn: Connection, caller: Principal, request: BulkRequest) -> BulkPreview:
    """Return what a change would do. Nothing is stored.

    BadRequest where there are more than MOST datasets, MissingPermission where the caller may not change one of them.
    """
    async with conn.transaction(readonly=True):
        look, _ = await _look(node, conn, caller, request)
    return look


async def _look(
    node: Node, conn: Connection, caller: Principal, request: BulkRequest, since: datetime | None = None
) -> tuple[BulkPreview, list[GroupKey]]:
    """Return what a change would do, and the keys of the groups that the caller may not know of."""
    choice, now = await asyncio.to_thread(_selection, node, request), datetime.now(UTC)
    await bulks.expect(conn, choice, node.settings.node)
    groups = await bulks.groups_of(conn, choice, node.settings.node, since=since)
    is_too_much = sum(group.count for group in groups) > MOST
    named = request.ids is not None
    groups_of_caller, hidden = bulk.permit(groups, request.wish.action, caller, node.policy, named=named)
    if is_too_much:
        raise BadRequest(f"these are more than {MOST} datasets; choose fewer, by a narrower filter or in several turns")
    asked_count = len(set(request.ids)) if request.ids is not None else None
    return BulkPreview(request.wish, groups_of_caller, now, asked_count, tuple(request.warnings)), hidden


def _selection(node: Node, request: BulkRequest) -> DatasetChoice:
    """Return how the datasets are chosen. A vocabulary is parsed when it is first asked for."""
    vocabularies = node.checker.vocabularies
    naming = {
        (snapshot.project, snapshot.version): vocabularies.at(snapshot.project, snapshot.version).institution
        for snapshot in vocabularies
    }  # fmt: skip
    return DatasetChoice(request.wish.action, request.ids, request.conditions, naming, request.numbers)


async def start(
    node: Node, conn: Connection, caller: Principal, request: BulkRequest, digest: object, *, identity: str | None,
    correlation: str, traceparent: str | None,
) -> tuple[Bulk, bool]:  # fmt: skip
    """Begin a change that was shown before. Return it, and whether it is new: the same again is the same.

    BulkChanged where the datasets are no longer those that were shown; else as `preview`.
    """
    previous = ShownDigest.read(digest)
    before = await bulks.asked_before(conn, caller.name, previous.set_digest)
    wish = request.wish
    if before is not None and (before.action, before.body) == (wish.action, wish.text):
        return before, False
    try:
        job = await _store(node, conn, caller, request, previous, identity=identity, correlation=correlation,
                           traceparent=traceparent)  # fmt: skip
    except bulks.AskedMeanwhile:
        before = await bulks.asked_before(conn, caller.name, previous.set_digest)
        if before is None:
            raise Conflict("the same change was asked for and ended just now; look at the preview again") from None
        return before, False
    log.info("a change of many datasets begins", bulk=str(job.id), action=job.action, datasets=job.total,
             actor=caller.name)  # fmt: skip
    return job, True


async def _store(
    node: Node, conn: Connection, caller: Principal, request: BulkRequest, previous: ShownDigest, *,
    identity: str | None, correlation: str, traceparent: str | None,
) -> Bulk:  # fmt: skip
    """Store a change with its datasets: counted and chosen in the same snapshot."""
    wish = request.wish
    async with conn.transaction(isolation="repeatable_read"):
        look, hidden = await _look(node, conn, caller, request, since=previous.at)
        previous.require(look)
        if not look.total:
            raise Conflict("there is no dataset to change; the preview says which ones a filter finds")
        new = NewBulk(
            id=uuid7(datetime.now(UTC)), action=wish.action, body=wish.text,
            selection=orjson.dumps(request.description).decode(), digest=previous.set_digest, submitter=caller.name,
            roles=tuple(sorted(caller.roles)), identity=identity, correlation=correlation, traceparent=traceparent,
            total=look.total,
        )  # fmt: skip
        await bulks.store(conn, new, _selection(node, request), node.settings.node, hidden=hidden)
        await audit.append(conn, [_audit_row(new.id, f"bulk {new.action}", look, caller, correlation)])
        job = await bulks.find(conn, new.id)
        assert job is not None
        failpoint("bulk.accepted")
    return job


def _audit_row(id: UUID, action: str, look: BulkPreview, caller: Principal, correlation: str) -> audit.NewRow:
    """Return the row of a change that begins. Each dataset has its own row beside."""
    collections = {group.key.collection for group in look.groups}
    [collection] = collections if len(collections) == 1 else [EVERYWHERE]
    return audit.NewRow(
        actor=caller.name, action=action, collection=collection, dataset=EVERYWHERE, request=id, outcome="accepted",
        before=None, after=None, correlation=correlation, items=look.total,
    )  # fmt: skip


async def cancel(conn: Connection, job: Bulk, actor: str, *, correlation: str) -> Bulk:
    """End a change where it stands; what is done stays done. Conflict where it is finished."""
    async with conn.transaction():
        if not await bulks.cancel(conn, job.id, actor):
            raise Conflict("it is finished already; what it changed can be taken back by a change of its own")
        now = await bulks.find(conn, job.id)
        assert now is not None
        row = audit.NewRow(
            actor=actor, action="cancel", collection=EVERYWHERE, dataset=EVERYWHERE, request=job.id,
            outcome="cancelled", before=None, after=None, correlation=correlation, items=now.counts["cancelled"],
        )  # fmt: skip
        await audit.append(conn, [row])
    log.info("a change of many datasets is cancelled", bulk=str(job.id), actor=actor)
    return now


def document_of(job: Bulk) -> dict[str, Any]:
    """Return a change as it is shown: how far it is, how fast, and how long it will take."""
    waiting = job.counts["waiting"]
    rate = job.rate
    return {
        "id": str(job.id),
        "action": job.action.value,
        "status": job.status,
        **{name: value for name, value in orjson.loads(job.body).items() if value is not None},
        "selection": orjson.loads(job.selection),
        "total": job.total,
        "counts": job.counts,
        "rate": round(rate, 1) if rate is not None else None,
        "seconds_left": round(waiting / rate, 1) if rate and job.finished_at is None else None,
        "submitter": job.submitter,
        "created": rfc3339(job.created),
        "finished": rfc3339(job.finished_at) if job.finished_at else None,
        "cancelled_by": job.cancelled_by,
    }


# --- the part that works them off ---


async def run(node: Node, stop: asyncio.Event) -> None:
    """Work until `stop`, whenever there is a change and no other process works on it."""

    async def step() -> bool:
        async with node.pool.acquire() as conn:
            is_working = await bulks.are_open(conn) and await work_off(node, conn, stop)
        if not is_working:
            await node.commits.pause("bulk", stop, LOOK_SECONDS)
        return is_working

    await supervision.keep_trying(node.parts, "bulk", step, stop, commits=node.commits)


async def work_off(node: Node, conn: Connection, stop: asyncio.Event) -> bool:
    """Work on open changes, a part of each in turn, until none is left; return False where another process does."""
    async with bulks.leading(conn) as is_leader:
        while is_leader and not stop.is_set():
            started = time.perf_counter()
            job = await bulks.begin_attempt(conn)
            if job is None:
                return True
            await _attempt(node, conn, job)
            seconds = time.perf_counter() - started
            share = share_beside(await queue.longest_wait(conn))
            await pause(stop, supervision.rest_seconds(seconds, share))
    return is_leader


def share_beside(waiting_seconds: float | None) -> float:
    """Return the share of the time that parts take while the oldest publication waits for so long, or none does."""
    if waiting_seconds is None:
        return SHARE
    return SHARE_BESIDE_OTHERS if waiting_seconds < LONG_WAIT_SECONDS else SHARE_BEFORE_OTHERS


async def _attempt(node: Node, conn: Connection, job: Bulk) -> None:
    """Work on the next part of a change. Each attempt without a result makes the next one smaller, down to one dataset.

    One that was tried alone ATTEMPTS times fails, and the rest goes on.
    """
    size = max(PART >> 2 * (job.attempts - 1), 1)
    failpoint("bulk.begun")
    try:
        if job.attempts > ALONE + ATTEMPTS:
            await _give_up(node, conn, job)
            return
        await _perform(node, conn, job, size)
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) or blames_nobody(error):
            if connections.is_open(conn):
                await bulks.withdraw_attempt(conn, job.id)
            elif was_ended_in_order(error):  # where the session vanished it counts: a dataset may have crashed it
                # where that fails the attempt counts; a part that succeeds takes two back
                await node.pool.try_elsewhere(lambda conn: bulks.withdraw_attempt(conn, job.id))
            raise
        log.warning("a part of a change of many datasets failed", bulk=str(job.id), datasets=size,
                    attempts=job.attempts, reason=reason_of(error))  # fmt: skip
        await pause(node.stopping, min(0.1 * 2.0**job.attempts, LONGEST_PAUSE))


async def _perform(node: Node, conn: Connection, job: Bulk, size: int) -> None:
    caller = await _submitter(conn, job)
    body = orjson.loads(job.body)
    async with conn.transaction():
        datasets = await bulks.take(conn, job.id, size)
        if not datasets:  # it was cancelled since the attempt began
            return
        if job.action is BulkAction.RECONCILE:
            commands = await loading.commands(node, conn, job, caller, body, datasets)
        else:
            commands = [_command(job, caller, body, dataset) for dataset in datasets]
        work = [
            Work(each.command, job.submitter, each.action, request=job.id, traceparent=job.traceparent)
            for each in commands if each.command is not None
        ]  # fmt: skip
        receipts = await publication.perform(conn, node.rules, work)
        failpoint("bulk.performed")
        remaining = iter(receipts)
        await bulks.finish(conn, job.id, [
            _result(dataset, next(remaining) if each.command is not None else DOCUMENT_GONE)
            for dataset, each in zip(datasets, commands, strict=True)
        ])  # fmt: skip
        if job.action is BulkAction.RECONCILE:
            await loading.forget_documents(conn, job, datasets)
    failpoint("bulk.committed")
    node.committed.wake()
    node.metrics.count_items(receipt.outcome for receipt in receipts)


async def _submitter(conn: Connection, job: Bulk) -> Principal:
    """Return who asked: with the roles and groups of then, and the memberships in own groups of now."""
    memberships = await own_groups.memberships(conn, {job.submitter})
    return Principal.of_submitter(job.submitter, job.roles, job.identity, memberships)


def _command(job: Bulk, caller: Principal, body: Mapping[str, Any], dataset: WaitingDataset) -> DatasetCommand:
    """Return the command of one dataset: it holds for the state that was shown alone."""
    value = {**body, "expected": [dataset.digest[:16].hex()]}
    name = DatasetName(dataset.lineage, None)
    action = QueuedAction(dataset.collection, dataset.dataset, name, caller, "", value)
    return DatasetCommand(command_of(job.action, action), job.action)


def _result(dataset: WaitingDataset, receipt: Receipt) -> BulkResult:
    problem = receipt.problem
    return BulkResult(
        dataset.n, SETTLED.get(receipt.outcome, "done"), receipt.outcome, problem.name if problem else None,
        problem.detail if problem else None,
    )  # fmt: skip


async def _give_up(node: Node, conn: Connection, job: Bulk) -> None:
    """Make the next dataset of a change `failed`, which says that the fault is ours; the rest goes on."""
    async with conn.transaction():
        datasets = await bulks.take(conn, job.id, 1)
        for dataset in datasets:
            log.error("a dataset of a change of many is given up", bulk=str(job.id), dataset=dataset.dataset)
            detail = "the server could not process it; its operators are told"
            await bulks.finish(
                conn, job.id, [BulkResult(dataset.n, "failed", Outcome.FAILED, InternalError.name, detail)]
            )
            await audit.append(conn, [audit.NewRow(
                actor=job.submitter, action=job.action, collection=dataset.collection, dataset=dataset.dataset,
                request=job.id, outcome=Outcome.FAILED, before=None, after=None, rule=InternalError.name,
            )])  # fmt: skip
    node.metrics.count_items(Outcome.FAILED for _ in datasets)
