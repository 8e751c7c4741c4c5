"""THE write path: `perform` for what is asked of this node, `apply` for what other nodes announce.

One transaction, each step one set-wise statement: lock the lineages, read them, decide (pure), write records, search
copies, events, audit rows and results. Nothing else in the package changes a record.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Final
from uuid import UUID

import asyncpg
import jsonschema_rs
import orjson
import structlog

from fedstac.db import audit, collections, file_marks, outbox, queue, records
from fedstac.db.connections import Connection, is_refusal
from fedstac.domain import collections as collection_rules
from fedstac.domain import crosschecks, documents, events, versions
from fedstac.domain.actions import Command
from fedstac.domain.actions.flags import Retract
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import may_see_marked
from fedstac.domain.errors import (
    Cancelled,
    CollectionAlreadyExists,
    CollectionNotEmpty,
    Finding,
    ForeignOrigin,
    PreconditionFailed,
    Problem,
    StacInvalid,
)
from fedstac.domain.events import DatasetEvent, Event
from fedstac.domain.identifiers import uuid7
from fedstac.domain.model import Change, Decision, Lineage, Outcome, Receipt, Record, State, World
from fedstac.domain.patching import JsonPatch, MergePatch
from fedstac.domain.policy import Action, Policy, Principal, Touched, Verdict
from fedstac.runtime.failpoints import failpoint

MOST_NAMED: Final = 5  # datasets that share files with one


@dataclass(frozen=True, slots=True)
class Work:
    """A command and where it comes from: its place in the queue, the request, and who asked."""

    command: Command
    actor: str
    action: str
    item: int | None = None
    request: UUID | None = None


Run = Callable[[Callable[[], Decision]], Awaitable[Decision]]


class ClaimLost(Exception):
    """Another worker has the shards now; nothing was written."""


async def perform(
    conn: Connection, world: World, work: Sequence[Work], *, claim: queue.Claim | None = None
) -> list[Receipt]:
    """Runs commands in their order and returns what became of each. A single command is a batch of one.

    A command that is refused refuses only itself. One that the database itself refuses is found by halving the batch.
    ClaimLost if `claim` no longer holds; errors of the connection come as they are, with nothing written.
    """
    try:
        async with conn.transaction():
            if claim and not await queue.hold(conn, claim):
                raise ClaimLost
            return await _perform(conn, world, work)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, UnicodeEncodeError) as error:
        if not is_refusal(error):
            raise
        if len(work) == 1:
            return [await _reject(conn, world, work[0], error, claim)]
    middle = len(work) // 2
    first = await perform(conn, world, work[:middle], claim=claim)
    return first + await perform(conn, world, work[middle:], claim=claim)


async def rehearse(conn: Connection, world: World, work: Sequence[Work]) -> list[Receipt]:
    """What `perform` would do, with nothing left of it: the same statements in a transaction that is taken back."""
    receipts: list[Receipt] = []
    with suppress(_Undo):
        async with conn.transaction():
            receipts = await _perform(conn, world, work)
            raise _Undo
    return receipts


class _Undo(Exception):
    """Ends a rehearsal."""


async def preview(conn: Connection, world: World, command: Command, *, run: Run = asyncio.to_thread) -> Decision:
    """What a command would lead to by what is stored now, without a lock; its Problem is raised.

    `run` decides beside the event loop: a large document takes a second.

    To whom a marked dataset is hidden, one that never was costs as much: the same statements bring the same rows.
    """
    target = command.target
    hidden = None if may_see_marked(target, command.principal, world) else target.id
    lineage = await records.peek(conn, target.lineage, world.origin)
    whole = _promoting([command], world)
    loaded = await records.load(conn, {target.lineage: lineage}, [target.id], whole, hidden=hidden)
    world = replace(world, replacements=await _replacements(conn, [command]))
    return await run(partial(command.decide, loaded[target.lineage], world))


async def _perform(conn: Connection, world: World, work: Sequence[Work]) -> list[Receipt]:
    targets = [entry.command.target for entry in work]
    epoch, now = await outbox.begin(conn)
    policy = _Listening(**{each.name: getattr(world.policy, each.name) for each in fields(Policy)})
    world = replace(world, epoch=epoch, now=now, policy=policy)
    here = await records.hold_leaves(conn, sorted({target.collection for target in targets}))
    locked = await records.lock(conn, {t.lineage: world.origin for t in targets if t.collection in here})
    failpoint("perform.locked")
    whole = _promoting([entry.command for entry in work], world)
    lineages = await records.load(conn, locked, [target.id for target in targets], whole)
    world = replace(world, replacements=await _replacements(conn, [entry.command for entry in work]))

    def decide() -> list[Receipt]:
        return [_decide(entry.command, lineages, world, policy.heard) for entry in work]

    if all(isinstance(entry.command, Publish) for entry in work):  # judged before the 202
        receipts = decide()
    else:
        receipts = await asyncio.to_thread(decide)
    last_events = await _write(conn, world, work, receipts, here)
    receipts = await _compare_files(conn, world, receipts)
    failpoint("perform.written")
    await queue.finish(conn, [
        queue.Result(
            item=entry.item, outcome=receipt.outcome, problem=receipt.problem.name if receipt.problem else None,
            detail=receipt.problem.detail if receipt.problem else None, findings=receipt.findings, last_event=event,
        )
        for entry, receipt, event in zip(work, receipts, last_events, strict=True) if entry.item is not None
    ])  # fmt: skip
    failpoint("perform.finished")
    return receipts


def _promoting(commands: Sequence[Command], world: World) -> list[str]:
    """Keys of the lineages in which a command may make the version before the latest one; it is announced whole."""
    return [
        command.target.lineage for command in commands
        if not isinstance(command, Publish) and world.policy.promotes(command.target.collection)
    ]  # fmt: skip


async def _replacements(conn: Connection, commands: Sequence[Command]) -> Mapping[tuple[str, str], State]:
    """The states of the datasets that retractions name as replacements; no query where none does."""
    named = {
        (command.target.collection, command.retraction["replaced_by"])
        for command in commands if isinstance(command, Retract) and "replaced_by" in command.retraction
    }  # fmt: skip
    return await records.states(conn, sorted(named)) if named else {}


@dataclass(frozen=True)
class _Listening(Policy):
    """The policy, with an ear for the rules by which it allows what a decision asks: the audit log names them."""

    heard: list[str] = field(default_factory=list)

    def require(self, principal: Principal, action: Action, touched: Touched) -> Verdict:
        verdict = super().require(principal, action, touched)
        self.heard.append(verdict.rule)
        return verdict


def _decide(command: Command, lineages: dict[str, Lineage], world: World, heard: list[str]) -> Receipt:
    """One command against the lineage as the commands before it leave it."""
    target = command.target
    lineage = lineages.get(target.lineage)
    heard.clear()
    try:
        if lineage is None:
            raise collection_rules.missing(target.collection)
        decision = command.decide(lineage, world)
    except Problem as problem:
        return Receipt(Outcome.REJECTED, problem=problem, findings=problem.findings)
    lineages[target.lineage] = lineage.after(decision.changes)
    return Receipt(decision.outcome, decision.changes, findings=decision.warnings, rule="; ".join(dict.fromkeys(heard)))


async def _write(
    conn: Connection, world: World, work: Sequence[Work], receipts: Sequence[Receipt], leaves: Mapping[str, str]
) -> list[int | None]:
    """Everything the decisions lead to; for each command the outbox id of its dataset's own event."""
    changes = [change for receipt in receipts for change in receipt.changes]
    if changes:
        await records.write(conn, changes, {change.after.lineage: change.after.seq for change in changes}, leaves)
        failpoint("perform.records")
    entries = [
        _entry(change, world, entry)
        for entry, receipt in zip(work, receipts, strict=True)
        for change in receipt.changes
    ]
    ids = iter(await outbox.append(conn, entries))
    failpoint("perform.events")
    await audit.append(conn, [
        row for entry, receipt in zip(work, receipts, strict=True) for row in _audited(entry, receipt)
    ])  # fmt: skip
    return [_own_event(entry, receipt, ids) for entry, receipt in zip(work, receipts, strict=True)]


async def _compare_files(conn: Connection, world: World, receipts: Sequence[Receipt]) -> list[Receipt]:
    """The receipts with warnings of files that other datasets have too; what the datasets have now is noted.

    Datasets that are hidden are never named, nor other versions of the same one, which may share files.
    """
    changes = [change for receipt in receipts for change in receipt.changes]
    await file_marks.remove(conn, [
        (change.before, crosschecks.marks(change.before.document)) for change in changes
        if change.before and change.before.document and _has_other_files(change)
    ])  # fmt: skip
    new = {
        n: (change.after, crosschecks.marks(change.draft.text))
        for n, receipt in enumerate(receipts) for change in receipt.changes
        if change.draft and _has_other_files(change)
    }  # fmt: skip
    held = await file_marks.holders(conn, {mark for _, marks in new.values() for mark in marks})
    await file_marks.write(conn, list(new.values()), held)
    others: dict[int, list[file_marks.Holder]] = defaultdict(list)
    for holder in held:
        if holder.is_shown:
            others[holder.mark].append(holder)
    last = {(change.after.collection, change.after.id): change.after for change in changes}
    batch = crosschecks.Batch()
    warned = list(receipts)
    for n, (record, marks) in new.items():
        common: dict[str, list[int]] = defaultdict(list)
        for holder in (holder for mark in marks for holder in others.get(mark, ())):
            if holder.lineage != record.lineage:
                common[holder.id].append(holder.mark)
        findings = [crosschecks.shared(marks, theirs, other) for other, theirs in common.items()]
        if last[record.collection, record.id].state in records.SEARCHED:
            findings += batch.compare_files(marks, record.id, record.lineage)
        if findings:
            vocabulary = world.vocabulary(record.collection, record.cv_version)
            wanted = [finding for finding in findings if crosschecks.is_on(finding.rule, vocabulary)][:MOST_NAMED]
            warned[n] = replace(receipts[n], findings=(*receipts[n].findings, *wanted))
    return warned


def _has_other_files(change: Change) -> bool:
    """Whether a change gives a dataset other files, its first ones, or none any more."""
    before, after = change.before, change.after
    return before is None or before.files_digest != after.files_digest or after.state in records.GONE


def _own_event(work: Work, receipt: Receipt, ids: Iterator[int]) -> int | None:
    """Of the events of a command's changes, the one of its own dataset: beside it others may be demoted or promoted."""
    events_of = {change.after.id: next(ids) for change in receipt.changes}
    return events_of.get(work.command.target.id)


def _entry(change: Change, world: World, work: Work) -> outbox.Entry:
    record, event_id = change.after, uuid7(world.now)
    context = events.Context(origin=world.origin, actor=work.actor, request=work.request)
    event = events.dataset_event(change, event_id, context, world.judge.vocabularies)
    return outbox.Entry(
        event_id=event_id, key=record.lineage, collection=record.collection, dataset=record.id, seq=record.seq,
        type=change.event_type, digest=record.digest, event=event,
    )  # fmt: skip


def _audited(work: Work, receipt: Receipt) -> list[audit.Entry]:
    """A row for what was asked, and one for each other version that it demoted or promoted."""
    rule = receipt.problem.name if receipt.problem else receipt.rule
    target = work.command.target
    asked = audit.Entry(
        actor=work.actor, action=work.action, collection=target.collection, dataset=target.id, request=work.request,
        outcome=receipt.outcome, before=None, after=None, rule=rule,
    )  # fmt: skip
    rows = {target.id: asked}
    for change in receipt.changes:
        before, after = change.before, change.after
        row = rows.get(after.id) or replace(asked, dataset=after.id, action=versions.action_of(change))
        rows[after.id] = replace(row, before=before.digest if before else None, after=after.digest)
    return list(rows.values())


async def _reject(conn: Connection, world: World, work: Work, error: Exception, claim: queue.Claim | None) -> Receipt:
    """The database itself refused the item: final, with a finding that shows nothing of the inside."""
    state = getattr(error, "sqlstate", None) or "22000"
    finding = Finding("database", "", f"the database cannot hold this document (SQLSTATE {state}); check its values")
    problem = StacInvalid(f"{work.command.target.id} cannot be stored: {finding.message}", findings=(finding,))
    receipt = Receipt(Outcome.REJECTED, problem=problem, findings=(finding,))
    async with conn.transaction():
        if claim and not await queue.hold(conn, claim):
            raise ClaimLost
        await audit.append(conn, _audited(work, receipt))
        if work.item is not None:
            refused = queue.Result(work.item, Outcome.REJECTED, problem.name, problem.detail, (finding,), None)
            await queue.finish(conn, [refused])
    return receipt


async def cancel(conn: Connection, request: UUID, actor: str) -> int:
    """Makes what still waits of a request final, as cancelled; how many items it was. What is done stays done.

    The claims of workers on these items are taken away first: what one of them has read it can perform no more.
    """
    async with conn.transaction():
        said = f"cancelled by {actor} before it was worked on; POST /requests/{request}/retry sends it again"
        taken_back = await queue.take_back(conn, request, Cancelled.name, said)
        await audit.append(conn, [
            audit.Entry(
                actor=actor, action="cancel", collection=item.collection, dataset=item.dataset, request=request,
                outcome=Outcome.REJECTED, before=None, after=None, rule=Cancelled.name,
            )
            for item in taken_back
        ])  # fmt: skip
        failpoint("cancel.written")
    failpoint("cancel.committed")
    return len(taken_back)


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a page of events at a consumer."""

    applied: int
    ignored: int  # already known, or older than what is known
    foreign: tuple[Event, ...] = ()  # for lineages of another origin, or a collection that is not here


async def apply(conn: Connection, page: Sequence[Event]) -> Applied:
    """Applies what an origin announced; joins the consumer's transaction, which also moves its cursor.

    Each event counts once: what is not newer by (epoch, seq) than what is stored is dropped. A lineage's latest is
    derived from all of its versions (C1), so no order of arrival can show two.
    """
    applied = 0
    foreign: list[Event] = []
    datasets: list[DatasetEvent] = []
    if any(not isinstance(event, DatasetEvent) for event in page):
        await collections.hold(conn)
    for event in page:  # a collection's event is rare, and ends a run of datasets
        if isinstance(event, DatasetEvent):
            datasets.append(event)
            continue
        applied += await _apply_datasets(conn, datasets, foreign)
        datasets = []
        applied += await collections.apply(conn, event)
    applied += await _apply_datasets(conn, datasets, foreign)
    return Applied(applied, len(page) - applied - len(foreign), tuple(foreign))


async def _apply_datasets(conn: Connection, page: Sequence[DatasetEvent], foreign: list[Event]) -> int:
    here = await records.hold_leaves(conn, sorted({event.record.collection for event in page}))
    foreign += [event for event in page if event.draft and event.record.collection not in here]
    page = [event for event in page if not event.draft or event.record.collection in here]
    if not page:
        return 0
    lineages = await _claimed(conn, page)
    before = {key: dict(lineage.records) for key, lineage in lineages.items()}
    drafts: dict[tuple[str, str], DatasetEvent] = {}
    applied = 0
    for event in page:
        lineage, record = lineages[event.record.lineage], event.record
        if lineage.origin != record.origin:
            foreign.append(event)
            continue
        known = lineage.records.get(record.id)
        if known is not None and known.includes(record.epoch, record.seq):
            continue
        lineages[lineage.key] = replace(
            lineage, seq=max(lineage.seq, record.seq), records={**lineage.records, record.id: record}
        )
        drafts[record.collection, record.id] = event
        applied += 1
    changes = [change for key in lineages for change in _settled(before[key], lineages[key], drafts)]
    if changes:
        await records.write(conn, changes, {key: lineage.seq for key, lineage in lineages.items()}, here)
    return applied


async def _claimed(conn: Connection, page: Sequence[DatasetEvent]) -> dict[str, Lineage]:
    """The lineages of a page, locked and loaded; those of which nothing is here are for who announces them first."""
    first = {event.record.lineage: event.record.origin for event in reversed(page)}
    lineages = await records.load(conn, await records.lock(conn, first), ())
    left = {key: first[key] for key, held in lineages.items() if not held.records and held.origin != first[key]}
    if left:  # their origin was restored to before them, or is just taken anew
        await records.hand_over(conn, left)
    return lineages | {key: replace(lineages[key], origin=origin) for key, origin in left.items()}


def _settled(
    before: Mapping[str, Record], lineage: Lineage, drafts: Mapping[tuple[str, str], DatasetEvent]
) -> list[Change]:
    """The lineage's changes with its one latest derived (C1): of those that claim it, the newest by (epoch, seq)."""
    claiming = [record for record in lineage.records.values() if record.claims_latest]
    winner = max(claiming, key=lambda record: (record.epoch, record.seq), default=None)
    changes = []
    for record in lineage.records.values():
        shown = replace(record, latest=winner is not None and record.id == winner.id)
        if shown == before.get(record.id):
            continue
        event = drafts.get((record.collection, record.id))
        changes.append(Change(events.CURRENT, before.get(record.id), shown, draft=event.draft if event else None))
    return changes


async def forget(conn: Connection, origin: str, *, before_epoch: int) -> int:
    """At a consumer: removes what an origin no longer has, that is, what its snapshot of a newer epoch did not list.

    With an epoch beyond all, everything of that origin goes, collections too: the start of a rebuild.
    """
    if before_epoch <= 1:
        return 0
    async with conn.transaction():
        leaving = [said.id for said in await collections.announced(conn, origin) if said.epoch < before_epoch]
        if leaving:
            await collections.hold(conn)
        removed = await records.remove(conn, origin, before_epoch)
        for collection in leaving:
            await collections.erase(conn, collection, origin)
        return removed


@dataclass(frozen=True, slots=True)
class WrittenCollection:
    """A collection after a write, and warnings about what the write changed in the document that was sent."""

    stored: collections.Stored
    warnings: tuple[Finding, ...]


async def put_collection(
    conn: Connection, world: World, actor: str, document: object, *, schema: jsonschema_rs.Validator,
    named: str | None, expected: Sequence[str] | None = None,
) -> WrittenCollection:  # fmt: skip
    """Create a collection, or change the `named` one, with its event. The same document again changes nothing."""
    checked = await asyncio.to_thread(collection_rules.check, document, schema, named)
    name = checked.document["id"]
    async with conn.transaction():
        if named is not None:
            stored = await _replace(conn, world, actor, await _existing(conn, world, named, expected), checked.document)
            return WrittenCollection(stored, checked.warnings)
        before = _own(await collections.lock(conn, name), world)
        if before is not None and before.document is not None:
            raise CollectionAlreadyExists(
                f"there is a collection {name} already; change it with PUT /collections/{name}"
            )
        text, digest = orjson.dumps(checked.document).decode(), documents.digest(checked.document)
        stored = await _announce(conn, world, actor, events.COLLECTION_CREATED, name, before, text, digest)
        return WrittenCollection(stored, checked.warnings)


async def patch_collection(
    conn: Connection, world: World, actor: str, edit: JsonPatch | MergePatch, *, schema: jsonschema_rs.Validator,
    named: str, expected: Sequence[str] | None = None,
) -> WrittenCollection:  # fmt: skip
    """Apply a patch to a collection under its lock, with its event. A patch without effect changes nothing."""
    async with conn.transaction():
        before = await _existing(conn, world, named, expected)

        def check() -> collection_rules.CheckedCollection:
            changed = collection_rules.patched(orjson.loads(before.document or "{}"), edit)
            return collection_rules.check(changed, schema, named)

        checked = await asyncio.to_thread(check)
        stored = await _replace(conn, world, actor, before, checked.document)
        return WrittenCollection(stored, checked.warnings)


async def _existing(conn: Connection, world: World, named: str, expected: Sequence[str] | None) -> collections.Stored:
    """A collection of this node, locked. CollectionDoesNotExist without one, PreconditionFailed for another state."""
    stored = _own(await collections.lock(conn, named), world)
    if stored is None or stored.document is None:
        raise collection_rules.missing(named)
    if expected is not None and "*" not in expected and stored.digest[:16].hex() not in expected:
        raise PreconditionFailed(f"the collection {named} was changed since you read it; read it again")
    return stored


async def _replace(
    conn: Connection, world: World, actor: str, stored: collections.Stored, kept: Mapping[str, Any]
) -> collections.Stored:
    """Stores another document of a collection, unless it is the same one."""
    text, digest = orjson.dumps(kept).decode(), documents.digest(kept)
    if stored.digest == digest:
        return stored
    return await _announce(conn, world, actor, events.COLLECTION_UPDATED, stored.id, stored, text, digest)


async def delete_collection(
    conn: Connection, world: World, actor: str, collection: str, *, expected: Sequence[str] | None = None
) -> None:
    """Deletes an empty collection, with its event. CollectionNotEmpty while there are datasets."""
    async with conn.transaction():
        stored = await _existing(conn, world, collection, expected)
        if not await collections.hold_empty(conn, collection):
            raise CollectionNotEmpty(f"the collection {collection} has datasets; delete them first")
        await _announce(conn, world, actor, events.COLLECTION_DELETED, collection, stored, None, b"")


def _own(said: Sequence[collections.Stored], world: World) -> collections.Stored | None:
    """What this node said of a collection. ForeignOrigin where another node has it."""
    others = ", ".join(each.origin for each in said if each.origin != world.origin)
    if others:
        raise ForeignOrigin(f"the collection {said[0].id} belongs to the node {others}; change it there")
    return said[0] if said else None


async def _announce(
    conn: Connection, world: World, actor: str, event_type: str, collection: str,
    before: collections.Stored | None, text: str | None, digest: bytes,
) -> collections.Stored:  # fmt: skip
    """Writes a collection's new state with its event and audit row."""
    epoch, now = await outbox.begin(conn)
    event_id, seq = uuid7(now), (before.seq if before else 0) + 1
    after = collections.Stored(collection, world.origin, epoch, seq, text, digest, now)
    await collections.put(conn, after)
    event = events.collection_event(
        event_type, collection, seq, document=text, digest=digest, at=now, event_id=event_id,
        context=events.Context(world.origin, actor, None),
    )  # fmt: skip
    await outbox.append(conn, [outbox.Entry(event_id, collection, collection, None, seq, event_type, digest, event)])
    await audit.append(conn, [
        audit.Entry(actor, event_type.split(".")[-2], collection, collection, None, "done",
                    before.digest if before else None, digest,
                    correlation=structlog.contextvars.get_contextvars().get("request_id"))
    ])  # fmt: skip
    return after
