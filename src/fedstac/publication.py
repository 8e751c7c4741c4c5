"""THE write path: `perform` for the commands that this node accepted, `apply` for the events of other nodes.

One transaction, each step one set-wise statement: lock the lineages, read them, decide (pure), write records, search
copies, events, audit rows and results. Nothing else in the package changes a record.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import asyncpg
import jsonschema_rs
import orjson
import structlog

from fedstac.db import (
    audit,
    cascades,
    collections,
    deletions,
    facets,
    file_marks,
    file_references,
    grants,
    outbox,
    own_groups,
    purging,
    queue,
    records,
)
from fedstac.db.cascades import CascadeOrder
from fedstac.db.collections import CollectionState
from fedstac.db.connections import Connection
from fedstac.db.records import RecordPlace
from fedstac.domain import cascade, crosschecks, deletion, documents, events, shared_files, versions
from fedstac.domain import collections as collection_rules
from fedstac.domain import grants as grant_rules
from fedstac.domain.access import level_of_draft
from fedstac.domain.actions import Command
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.clear import Clear, Rebuild
from fedstac.domain.actions.delete import Purge
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.retract import Retract
from fedstac.domain.actions.target import Target, may_one_of, may_see_marked, resource_of_document
from fedstac.domain.cascade import Cascade, CascadeState
from fedstac.domain.deletion import Deletion, DeletionRules, DeletionState
from fedstac.domain.errors import (
    Cancelled,
    CollectionAlreadyExists,
    CollectionNotEmpty,
    Conflict,
    Finding,
    ForeignOrigin,
    NotFound,
    PreconditionFailed,
    Problem,
    Severity,
    StacInvalid,
)
from fedstac.domain.events import CollectionEvent, DatasetEvent, Event
from fedstac.domain.identifiers import uuid7
from fedstac.domain.model import (
    NO_CLAIM,
    WITHOUT_DOCUMENT,
    Change,
    Decision,
    Draft,
    Judge,
    LatestClaim,
    Lineage,
    Outcome,
    Receipt,
    Record,
    State,
    World,
)
from fedstac.domain.patching import JsonPatch, MergePatch
from fedstac.domain.policy import READING, Action, Level, Policy, Principal, Resource, Verdict
from fedstac.domain.shared_files import ReleasedFiles
from fedstac.runtime.causes import is_refusal
from fedstac.runtime.failpoints import failpoint
from fedstac.vocabularies.registry import Vocabularies

PART_RECORDS: Final = 5_000  # of an origin that is forgotten, in one transaction
MOST_NAMED: Final = 5  # datasets that share files with one


@dataclass(frozen=True, slots=True)
class NodeRules:
    """What a node decides with: its name, its rules, its policy, and the registry of its vocabularies.

    A decision gets a `World`: of these the rules and the policy, of the vocabularies those that it may ask for.
    """

    origin: str
    judge: Judge
    policy: Policy
    vocabularies: Vocabularies

    def world(self, commands: Sequence[Command]) -> World:
        """Return the world of a decision taken now, with the vocabularies that the commands name."""
        collections = {command.target.collection for command in commands}
        versions = {
            (command.target.collection, command.cv_version)
            for command in map(_writing_of, commands) if command is not None and command.cv_version is not None
        }  # fmt: skip
        vocabularies = self.vocabularies.select(collections, versions)
        return World(datetime.now(UTC), self.origin, self.judge, self.policy, vocabularies=vocabularies)

    def knowing(self, world: World, commands: Sequence[Command], lineages: Mapping[str, Lineage]) -> World:
        """Return the world with the vocabularies of the stored datasets that commands change, too.

        By these it is known whose a dataset is: that decides who may publish it again, and who learns of a mark.
        """
        versions = set(world.vocabularies.versions)
        for command in commands:
            lineage = lineages.get(command.target.lineage)
            record = lineage.records.get(command.target.id) if lineage else None
            if record is not None and record.cv_version is not None:
                versions.add((record.collection, record.cv_version))
        if len(versions) == len(world.vocabularies.versions):
            return world
        return replace(world, vocabularies=self.vocabularies.select(world.vocabularies.newest, versions))


def _writing_of(command: Command) -> Publish | Amend | None:
    """Return the part of a command that brings a document; None of one that brings none."""
    match command:
        case Publish() | Amend():
            return command
        case Rebuild():
            return command.publish
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Work:
    """A command and where it comes from: its actor, its place in the queue, its request, its cause."""

    command: Command
    actor: str
    action: str
    item: int | None = None
    request: UUID | None = None
    traceparent: str | None = None
    causation: UUID | None = None  # the event that this follows from


Run = Callable[[Callable[[], Decision]], Awaitable[Decision]]


class ClaimLost(Exception):
    """Another worker has the shards now; nothing was written."""


async def perform(
    conn: Connection, rules: NodeRules, work: Sequence[Work], *, claim: queue.Claim | None = None
) -> list[Receipt]:
    """Run commands in their order and return the receipt of each. A single command is a batch of one.

    A command that is refused refuses only itself. One that the database itself refuses is found by halving the batch.
    ClaimLost if `claim` no longer holds. Errors of the connection come as they are, with nothing written.
    """
    await facets.prepare(conn, [entry.command.draft for entry in work if isinstance(entry.command, Publish)])
    try:
        async with conn.transaction():
            if claim and not await queue.hold(conn, claim):
                raise ClaimLost
            await _share_rules(conn, work)
            return await _perform(conn, rules, work)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, UnicodeEncodeError) as error:
        if not is_refusal(error):
            raise
        if len(work) == 1:
            return [await _reject(conn, work[0], error, claim)]
    middle = len(work) // 2
    first = await perform(conn, rules, work[:middle], claim=claim)
    return first + await perform(conn, rules, work[middle:], claim=claim)


async def _share_rules(conn: Connection, work: Sequence[Work]) -> None:
    """Keep the rules by which marks open deletions as they are until the transaction ends; no query without a mark.

    This comes before all other locks: who changes rules has this one, and waits for those of open deletions.
    """
    projects = {entry.command.target.collection for entry in work if isinstance(entry.command, Mark)}
    if projects:
        await deletions.share_rules(conn, sorted(projects))


async def rehearse(
    conn: Connection,
    rules: NodeRules,
    targets: Sequence[Target],
    work_on: Callable[[slice], Sequence[Work]],
    see: Callable[[list[Receipt]], Awaitable[object]] | None = None,
    *,
    at_once: int = 250,
) -> None:
    """Try what `perform` does, and leave nothing: the same statements in a transaction that is rolled back.

    `work_on` is asked for the work of `at_once` targets at a time, and `see` gets its receipts: all of them may be more
    than there is memory.
    """
    with suppress(_Undo):
        async with conn.transaction():
            if len(targets) > at_once:  # all locks at once, in the order in which a publication takes them
                await _lock(conn, rules.origin, targets)
            for start in range(0, max(len(targets), 1), at_once):
                receipts = await _perform(conn, rules, work_on(slice(start, start + at_once)))
                if see is not None:
                    await see(receipts)
            raise _Undo


class _Undo(Exception):
    """Ends a rehearsal."""


async def preview(conn: Connection, rules: NodeRules, command: Command, *, run: Run = asyncio.to_thread) -> Decision:
    """Return the decision on a command by what is stored now, without a lock. Its Problem is raised.

    `run` decides beside the event loop: a large document takes a second.

    A caller who may not see marked datasets cannot tell by the time whether one is marked or was never there: the same
    statements bring the same rows.
    """
    target, commands = command.target, [command]
    world = rules.world(commands)
    may_see = may_see_marked(target, command.principal, world)
    may_read = may_one_of(target, command.principal, READING, replace(world, policy=world.policy.without_homes))
    hidden = [state for state, is_shown in (("marked", may_see), ("private", may_read)) if not is_shown]
    lineage = await records.peek(conn, target.lineage, world.origin)
    whole = _promoting(commands, world)
    lineages = await records.load(conn, {target.lineage: lineage}, [target.id], whole, hidden=hidden)
    world = await _informed(conn, rules.knowing(world, commands, lineages), commands, lineages)
    return await run(partial(command.decide, lineages[target.lineage], world))


async def _perform(conn: Connection, rules: NodeRules, work: Sequence[Work]) -> list[Receipt]:
    commands = [entry.command for entry in work]
    targets = [command.target for command in commands]
    epoch, now = await outbox.begin(conn)
    policy = RecordingPolicy(**{each.name: getattr(rules.policy, each.name) for each in fields(Policy)})
    world = replace(rules.world(commands), epoch=epoch, now=now, policy=policy)
    purges = [command.target for command in commands if isinstance(command, Purge)]
    here, locked = await _lock(conn, world.origin, targets, purges=purges)
    failpoint("perform.locked")
    whole = _promoting(commands, world)
    lineages = await records.load(conn, locked, [target.id for target in targets], whole)
    world = await _informed(conn, rules.knowing(world, commands, lineages), commands, lineages, locking=True)

    open_deletions = dict(world.deletions)
    world = replace(world, deletions=open_deletions)

    def decide() -> list[Receipt]:
        return [
            _decide(command, lineages if isinstance(command, Purge) or command.target.collection in here else {},
                    open_deletions, world, policy)
            for command in commands
        ]  # fmt: skip

    if all(isinstance(command, Publish) for command in commands):  # judged before the 202
        receipts = decide()
    else:
        receipts = await asyncio.to_thread(decide)
    last_events = await _write(conn, rules, work, receipts, world=world, leaves=here)
    receipts = await _compare_files(conn, world, receipts)
    receipts = await _tell_of_brokers(conn, receipts)
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


async def _lock(
    conn: Connection, origin: str, targets: Sequence[Target], *, purges: Sequence[Target] = ()
) -> tuple[dict[str, str], dict[str, Lineage]]:
    """Lock what the commands may write. Return the leaf partitions of their collections, and their lineages.

    purges: those of the targets that are purged. A purge writes no search copy: its collection may be gone.
    """
    here = await records.hold_leaves(conn, sorted({target.collection for target in targets}))
    locked = [*(target for target in targets if target.collection in here), *purges]
    return here, await records.lock(conn, {target.lineage: origin for target in locked})


def _promoting(commands: Sequence[Command], world: World) -> list[str]:
    """Return the keys of the lineages in which a command may promote the previous version, whose event is whole."""
    return [
        command.target.lineage for command in commands
        if isinstance(command, Clear)
        or (
            world.policy.promotes(command.target.collection)
            and (not isinstance(command, Publish) or level_of_draft(command.draft, world.policy) is Level.PRIVATE)
        )
    ]  # fmt: skip


async def _informed(
    conn: Connection, world: World, commands: Sequence[Command], lineages: Mapping[str, Lineage], *,
    locking: bool = False,
) -> World:  # fmt: skip
    """Return the world with what the commands need to know beside their lineages."""
    return replace(
        world, replacements=await _replacements(conn, commands),
        deletions=await _deletions(conn, commands, lineages, locking=locking),
        cascades=await cascades.open_of(conn, sorted({command.target.collection for command in commands})),
    )  # fmt: skip


async def _deletions(
    conn: Connection, commands: Sequence[Command], lineages: Mapping[str, Lineage], *, locking: bool
) -> Mapping[tuple[str, str], Deletion]:
    """Return the open deletions of the marked datasets that commands are about; no query where none is marked."""
    marked = {
        (command.target.collection, command.target.id) for command in commands
        if (lineage := lineages.get(command.target.lineage)) is not None
        and (record := lineage.records.get(command.target.id)) is not None and record.state is State.MARKED
    }  # fmt: skip
    return await deletions.open_of(conn, sorted(marked), locking=locking) if marked else {}


async def _replacements(conn: Connection, commands: Sequence[Command]) -> Mapping[tuple[str, str], State]:
    """Return the states of the datasets that retractions name as replacements; no query where none does."""
    replacements = {
        (command.target.collection, command.retraction["replaced_by"])
        for command in commands if isinstance(command, Retract) and "replaced_by" in command.retraction
    }  # fmt: skip
    return await records.states(conn, sorted(replacements)) if replacements else {}


@dataclass(frozen=True)
class RecordingPolicy(Policy):
    """The policy. It records the rules by which it allows what a decision requires: the audit log names them."""

    rule_names: list[str] = field(default_factory=list)

    def require(self, principal: Principal, action: Action, resource: Resource) -> Verdict:
        """Require the permission as Policy does, and record the rule."""
        verdict = super().require(principal, action, resource)
        self.rule_names.append(verdict.rule)
        return verdict


def _decide(
    command: Command, lineages: dict[str, Lineage], open_deletions: dict[tuple[str, str], Deletion], world: World,
    policy: RecordingPolicy,
) -> Receipt:  # fmt: skip
    """Decide one command against the lineage as the commands before it leave it.

    open_deletions: those of the world. A mark that is taken back, or made anew, leaves nothing of the deletion before.
    """
    target = command.target
    lineage = lineages.get(target.lineage)
    policy.rule_names.clear()
    try:
        if lineage is None:
            raise collection_rules.missing(target.collection)
        decision = command.decide(lineage, world)
    except Problem as problem:
        return Receipt(Outcome.REJECTED, problem=problem.without_trace(), findings=problem.findings)
    lineages[target.lineage] = lineage.after(decision.changes)
    for change in decision.changes:
        if change.event_type in (events.MARKED, events.UNMARKED):
            open_deletions.pop((change.after.collection, change.after.id), None)
    rules = "; ".join(dict.fromkeys(policy.rule_names))
    return Receipt(decision.outcome, decision.changes, findings=decision.warnings, rule=rules)


async def _write(
    conn: Connection, rules: NodeRules, work: Sequence[Work], receipts: Sequence[Receipt], *,
    world: World, leaves: Mapping[str, str],
) -> list[int | None]:  # fmt: skip
    """Write everything the decisions lead to; return for each command the outbox id of its dataset's own event."""
    changes = [change for receipt in receipts for change in receipt.changes]
    if changes:
        await records.write(conn, changes, {change.after.lineage: change.after.seq for change in changes}, leaves)
        failpoint("perform.records")
    files = await _release_files(conn, changes)
    announcements = [
        _announcement(change, rules, entry, world.now, files.get((change.after.collection, change.after.id)))
        for entry, receipt in zip(work, receipts, strict=True)
        for change in receipt.changes
    ]
    ids = iter(await outbox.append(conn, announcements))
    failpoint("perform.events")
    await _follow_deletions(conn, work, receipts, announcements, world)
    await _follow_grants(conn, work, receipts, announcements)
    await _redact(conn, changes)
    failpoint("perform.deletions")
    await audit.append(conn, [
        row for entry, receipt in zip(work, receipts, strict=True) for row in _audit_rows(entry, receipt)
    ])  # fmt: skip
    return [_own_event(entry, receipt, ids) for entry, receipt in zip(work, receipts, strict=True)]


DELETION_STATES: Final = {
    events.UNMARKED: DeletionState.UNMARKED, events.DELETED: DeletionState.DELETED, events.PURGED: DeletionState.PURGED,
}  # fmt: skip


async def _follow_deletions(
    conn: Connection, work: Sequence[Work], receipts: Sequence[Receipt], announcements: Sequence[outbox.Announcement],
    world: World,
) -> None:  # fmt: skip
    """Store what the changes mean for the deletion manager, in their order: entries that begin or end, cases."""
    now = world.now
    changes = [
        (change, entry) for entry, receipt in zip(work, receipts, strict=True) for change in receipt.changes
    ]  # fmt: skip
    steps = [
        (change, entry, announcement.event_id)
        for (change, entry), announcement in zip(changes, announcements, strict=True)
        if change.event_type in (events.MARKED, events.QUARANTINED, events.RELEASED, *DELETION_STATES)
    ]  # fmt: skip
    if not steps:
        return
    projects = sorted({change.after.collection for change, _, _ in steps if change.event_type == events.MARKED})
    rules = await deletions.rules_of(conn, projects) if projects else {}
    for event_type, group in groupby(steps, key=lambda each: each[0].event_type):
        if event_type == events.MARKED:
            await deletions.begin(conn, [
                _deletion_of(
                    change, entry, event_id, rules.get(change.after.collection, deletion.NO_RULES), world
                )
                for change, entry, event_id in group
            ])  # fmt: skip
        elif event_type == events.QUARANTINED:
            await deletions.open_cases(conn, [
                deletions.QuarantineCase(
                    uuid7(now), change.after.collection, change.after.id, event_id, entry.actor,
                    orjson.loads(change.after.quarantine or "{}"),
                )
                for change, entry, event_id in group
            ], now=now)  # fmt: skip
        elif event_type == events.RELEASED:
            await deletions.close_cases(conn, [
                deletions.CaseEnd(change.after.collection, change.after.id, entry.actor, change.reason)
                for change, entry, _ in group
            ], now=now)  # fmt: skip
        else:
            ends = list(group)
            await deletions.end(conn, [
                deletions.DeletionEnd(
                    change.after.collection, change.after.id, DELETION_STATES[event_type], entry.actor
                )
                for change, entry, _ in ends
            ], now=now)  # fmt: skip
            await deletions.close_cases(conn, [
                deletions.CaseEnd(change.after.collection, change.after.id, entry.actor, "the dataset was deleted")
                for change, entry, _ in ends
                if event_type == events.DELETED and change.before is not None and change.before.quarantine is not None
            ], now=now)  # fmt: skip


def _deletion_of(change: Change, work: Work, event_id: UUID, rules: DeletionRules, world: World) -> Deletion:
    """Return the deletion that a mark opens."""
    record, document = change.after, orjson.loads(change.after.document or "{}")
    vocabulary = world.vocabulary(record.collection, record.cv_version)
    return deletion.begin(
        rules, id=uuid7(world.now), event_id=event_id, collection=record.collection, dataset=record.id,
        actor=work.actor, now=world.now, reason=change.reason, request=work.request,
        identifiers=deletion.identifiers_of(document),
        institution=resource_of_document(record, document, vocabulary).institution,
    )  # fmt: skip


async def _follow_grants(
    conn: Connection, work: Sequence[Work], receipts: Sequence[Receipt], announcements: Sequence[outbox.Announcement]
) -> None:
    """Close the grants of datasets that are gone, and announce what is suspended and restored; no query for others."""
    actors = (entry.actor for entry, receipt in zip(work, receipts, strict=True) for _ in receipt.changes)
    changes = (change for receipt in receipts for change in receipt.changes)
    await grants.follow(conn, [
        grants.StateStep(
            event_type, change.after.collection, change.after.id, change.after.lineage, announcement.event_id, actor,
            change.after.state,
        )
        for change, actor, announcement in zip(changes, actors, announcements, strict=True)
        if (event_type := grant_rules.event_of(change.before.state if change.before else None, change.after.state))
    ])  # fmt: skip


async def _redact(conn: Connection, changes: Sequence[Change]) -> None:
    """Remove what this node keeps of datasets that were deleted or purged; no query where none was."""
    deleted = [(change.after.collection, change.after.id) for change in changes if change.event_type == events.DELETED]
    purged = [(change.after.collection, change.after.id) for change in changes if change.event_type == events.PURGED]
    if deleted or purged:
        await purging.redact_log(conn, [*deleted, *purged])
        failpoint("perform.redacted")
    if purged:
        await purging.purge(conn, purged)


async def _release_files(conn: Connection, changes: Sequence[Change]) -> dict[tuple[str, str], ReleasedFiles]:
    """Keep the marks of the files of datasets. Return what becomes of those of datasets that go."""
    await file_references.write(conn, {
        (change.after.collection, change.after.id): shared_files.marks_of(change.draft.text)
        for change in changes if change.draft is not None and _has_other_document(change)
    })  # fmt: skip
    last_states = {(change.after.collection, change.after.id): change.after.state for change in changes}
    documents = {
        name: change.before.document
        for change in changes
        if change.event_type in (events.DELETED, events.CLEARED)
        and change.before is not None and change.before.document is not None
        and last_states[name := (change.after.collection, change.after.id)] in WITHOUT_DOCUMENT
    }  # fmt: skip
    if not documents:
        return {}
    names = list(documents)
    marks = {mark for document in documents.values() for each in shared_files.files_of(document) for mark in each.marks}
    others = await file_references.held_beside(conn, marks, names)
    await file_references.remove(conn, names)
    releases = await asyncio.to_thread(shared_files.release, list(documents.values()), others)
    return dict(zip(names, releases, strict=True))


def _has_other_document(change: Change) -> bool:
    return change.before is None or change.before.document_digest != change.after.document_digest


async def _tell_of_brokers(conn: Connection, receipts: list[Receipt]) -> list[Receipt]:
    """Return the receipts; those of purges with a warning for each sink that was sent the datasets' events."""
    if not any(receipt.outcome is Outcome.PURGED for receipt in receipts):
        return receipts
    warnings = tuple(
        Finding("sink", "", f"its events went through the sink {name} to {address}, and stay there until that log's "
                            "own retention; ask who runs it", Severity.WARNING)
        for name, address in await purging.sinks_of(conn)
    )  # fmt: skip
    return [
        replace(receipt, findings=(*receipt.findings, *warnings)) if receipt.outcome is Outcome.PURGED else receipt
        for receipt in receipts
    ]


async def _compare_files(conn: Connection, world: World, receipts: Sequence[Receipt]) -> list[Receipt]:
    """Return the receipts with warnings of files that other datasets have too, and store the marks of the new files.

    Hidden datasets are never named. Nor are other versions of the same dataset: they may share files.
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
    holders = await file_marks.holders(conn, {mark for _, marks in new.values() for mark in marks})
    await file_marks.write(conn, list(new.values()), holders)
    others: dict[int, list[file_marks.Holder]] = defaultdict(list)
    for holder in holders:
        if holder.is_shown:
            others[holder.mark].append(holder)
    last = {(change.after.collection, change.after.id): change.after for change in changes}
    batch = crosschecks.Batch()
    result = list(receipts)
    for n, (record, marks) in new.items():
        common: dict[str, list[int]] = defaultdict(list)
        for holder in (holder for mark in marks for holder in others.get(mark, ())):
            if holder.lineage != record.lineage:
                common[holder.id].append(holder.mark)
        findings = [crosschecks.common_files(marks, theirs, other) for other, theirs in common.items()]
        if last[record.collection, record.id].is_found:
            findings += batch.compare_files(marks, record.id, record.lineage)
        if findings:
            vocabulary = world.vocabulary(record.collection, record.cv_version)
            warnings = [finding for finding in findings if crosschecks.is_on(finding.rule, vocabulary)][:MOST_NAMED]
            result[n] = replace(receipts[n], findings=(*receipts[n].findings, *warnings))
    return result


def _has_other_files(change: Change) -> bool:
    """Tell whether a change gives a dataset other files, its first ones, or takes them away."""
    before, after = change.before, change.after
    return before is None or before.files_digest != after.files_digest or after.state in WITHOUT_DOCUMENT


def _own_event(work: Work, receipt: Receipt, ids: Iterator[int]) -> int | None:
    """Return the event of the command's own dataset: its changes may demote or promote others too."""
    events_of = {change.after.id: next(ids) for change in receipt.changes}
    return events_of.get(work.command.target.id)


def _announcement(
    change: Change, rules: NodeRules, work: Work, now: datetime, files: ReleasedFiles | None = None
) -> outbox.Announcement:
    record, event_id = change.after, uuid7(now)
    context = events.Context(rules.origin, work.actor, work.request, work.traceparent, work.causation)
    event = events.dataset_event(change, event_id, context, rules.vocabularies.digest_of, files)
    return outbox.Announcement(
        event_id=event_id, key=record.lineage, collection=record.collection, dataset=record.id, seq=record.seq,
        type=change.event_type, digest=record.digest, event=event,
    )  # fmt: skip


def _audit_rows(work: Work, receipt: Receipt) -> list[audit.NewRow]:
    """Return a row for each change of a command: of its dataset, and of other versions. One for none."""
    rule = receipt.problem.name if receipt.problem else receipt.rule
    target = work.command.target
    own = audit.NewRow(
        actor=work.actor, action=work.action, collection=target.collection, dataset=target.id, request=work.request,
        outcome=receipt.outcome, before=None, after=None, rule=rule,
    )  # fmt: skip
    rows = []
    for change in receipt.changes:
        before, after = change.before, change.after
        action = work.action if after.id == target.id else versions.action_of(change)
        rows.append(replace(
            own, dataset=after.id, action=action, before=before.digest if before else None, after=after.digest
        ))  # fmt: skip
    return rows if any(row.dataset == target.id for row in rows) else [own, *rows]


async def _reject(conn: Connection, work: Work, error: Exception, claim: queue.Claim | None) -> Receipt:
    """Refuse an item for good that the database itself refused, with a finding that shows nothing of the inside."""
    state = getattr(error, "sqlstate", None) or "22000"
    finding = Finding("database", "", f"the database cannot hold this document (SQLSTATE {state}); check its values")
    problem = StacInvalid(f"{work.command.target.id} cannot be stored: {finding.message}", findings=(finding,))
    receipt = Receipt(Outcome.REJECTED, problem=problem, findings=(finding,))
    async with conn.transaction():
        if claim and not await queue.hold(conn, claim):
            raise ClaimLost
        await audit.append(conn, _audit_rows(work, receipt))
        if work.item is not None:
            result = queue.Result(work.item, Outcome.REJECTED, problem.name, problem.detail, (finding,), None)
            await queue.finish(conn, [result])
    return receipt


async def cancel(conn: Connection, request: UUID, actor: str) -> int:
    """Make the waiting items of a request final, as cancelled; return how many they were. What is done stays done.

    The claims of workers on these items are taken away first: a worker that has read an item can no longer perform it.
    """
    async with conn.transaction():
        detail = f"cancelled by {actor} before it was worked on; POST /requests/{request}/retry sends it again"
        cancelled = await queue.take_back(conn, request, Cancelled.name, detail)
        await audit.append(conn, [
            audit.NewRow(
                actor=actor, action="cancel", collection=item.collection, dataset=item.dataset, request=request,
                outcome=Outcome.REJECTED, before=None, after=None, rule=Cancelled.name,
            )
            for item in cancelled
        ])  # fmt: skip
        failpoint("cancel.written")
    failpoint("cancel.committed")
    return len(cancelled)


@dataclass(frozen=True, slots=True)
class PageResult:
    """The result of a page of events at a consumer."""

    applied_count: int
    ignored_count: int  # here already, or older than what is here
    foreign: tuple[Event, ...] = ()  # for lineages of another origin, or a collection that is not here


async def apply(conn: Connection, page: Sequence[Event]) -> PageResult:
    """Apply what an origin announced; join the consumer's transaction, which also moves its cursor.

    Each event counts once: one that is not newer by (epoch, seq) than the stored state is dropped, and so is one that
    was redacted since, whose dataset is deleted further on. A lineage's latest is derived from the last claim of any of
    its versions (C1), so no order of arrival and no event that is missing can show two, or one that was demoted.
    """
    count = 0
    foreign: list[Event] = []
    datasets: list[DatasetEvent] = []
    if any(isinstance(event, CollectionEvent) for event in page):
        await collections.hold(conn)
    for event in page:  # a collection's event is rare, and ends a run of datasets
        if isinstance(event, DatasetEvent):
            datasets.append(event)
        elif isinstance(event, CollectionEvent):
            count += await _apply_datasets(conn, datasets, foreign)
            datasets = []
            count += await collections.apply(conn, event)
    count += await _apply_datasets(conn, datasets, foreign)
    return PageResult(count, len(page) - count - len(foreign), tuple(foreign))


async def _apply_datasets(conn: Connection, page: Sequence[DatasetEvent], foreign: list[Event]) -> int:
    here = await records.hold_leaves(conn, sorted({event.record.collection for event in page}))
    foreign += [event for event in page if event.draft and event.record.collection not in here]
    page = [event for event in page if not event.draft or event.record.collection in here]
    if not page:
        return 0
    new_lineages = await _begin_lineages(conn, page)
    lineages = await _lineages_of(conn, page, new_lineages)
    before = {key: dict(lineage.records) for key, lineage in lineages.items()}
    drafts: dict[tuple[str, str], DatasetEvent] = {}
    claims: dict[str, LatestClaim] = {}
    count = 0
    for event in page:
        lineage, record = lineages[event.record.lineage], event.record
        if lineage.origin != record.origin:
            foreign.append(event)
            continue
        claim = lineage.claim
        if record.claim is not None and record.claim > claim:  # also where the dataset is further already
            claim = claims[lineage.key] = record.claim
        present = lineage.records.get(record.id)
        if present is not None and present.includes(record.epoch, record.seq):
            if claim is not lineage.claim:
                lineages[lineage.key] = replace(lineage, claim=claim)
            continue
        lineages[lineage.key] = Lineage(
            lineage.key, lineage.origin, max(lineage.seq, record.seq), {**lineage.records, record.id: record}, claim
        )
        drafts[record.collection, record.id] = event
        count += 1
    changes = [change for key in lineages for change in _with_latest(before[key], lineages[key], drafts)]
    if changes or claims:
        seqs = {key: lineage.seq for key, lineage in lineages.items() if not _is_as(new_lineages.get(key), lineage)}
        await records.write(conn, changes, seqs, here, claims=claims)
    purged: dict[str, list[tuple[str, str]]] = {}  # by origin: one, as a page is of one
    for each in changes:
        if each.after.state is State.PURGED:
            purged.setdefault(each.after.origin, []).append((each.after.collection, each.after.id))
    for origin, names in purged.items():
        await purging.purge_copies(conn, names, origin=origin)
    return count


async def load(conn: Connection, origin: str, datasets: Sequence[tuple[Record, Draft | None]]) -> PageResult:
    """Store datasets of a snapshot as they are; join the consumer's transaction.

    What its origin judged is not judged again. The lineages that nobody announced here yet are written at once; the
    others take the way of events.
    """
    seqs: dict[str, int] = {}
    claims: dict[str, LatestClaim] = {}
    for record, _ in datasets:
        key, claim = record.lineage, record.claim
        seqs[key] = max(seqs.get(key, 0), record.seq)
        if claim is not None:
            claims[key] = max(claims.get(key, NO_CLAIM), claim)
    lineages = [Lineage(key, origin, seq, {}, claims.get(key, NO_CLAIM)) for key, seq in seqs.items()]
    here = await records.hold_leaves(conn, sorted({record.collection for record, _ in datasets}))
    new_keys = await records.begin_lineages(conn, lineages)
    changes: list[Change] = []
    others: list[DatasetEvent] = []
    for record, draft in datasets:
        if record.lineage in new_keys and (draft is None or record.collection in here):
            latest = record.claim is not None and record.claim == claims[record.lineage]
            after = record if record.latest is latest else replace(record, latest=latest)
            changes.append(Change(events.CURRENT, None, after, draft=draft))
        else:
            others.append(DatasetEvent("", None, record, draft))
    await records.write(conn, changes, {}, here)
    foreign: list[Event] = []
    count = len(changes) + (await _apply_datasets(conn, others, foreign) if others else 0)
    return PageResult(count, len(datasets) - count - len(foreign), tuple(foreign))


async def _begin_lineages(conn: Connection, page: Sequence[DatasetEvent]) -> dict[str, Lineage]:
    """Insert the lineages that nobody announced here yet, and return them as they are stored.

    They have the number and the claim that the page leads to, as a rule, so that they are written once.
    """
    origins = {event.record.lineage: event.record.origin for event in reversed(page)}
    seqs = dict.fromkeys(origins, 0)
    claims = dict.fromkeys(origins, NO_CLAIM)
    for record in (event.record for event in page):
        key = record.lineage
        if record.origin != origins[key]:
            continue
        if record.seq > seqs[key]:
            seqs[key] = record.seq
        if record.claim is not None and record.claim > claims[key]:
            claims[key] = record.claim
    lineages = {key: Lineage(key, origin, seqs[key], {}, claims[key]) for key, origin in origins.items()}
    new_keys = await records.begin_lineages(conn, list(lineages.values()))
    return {key: lineage for key, lineage in lineages.items() if key in new_keys}


def _is_as(row: Lineage | None, lineage: Lineage) -> bool:
    """Tell whether a lineage is stored with its number and its claim already."""
    return row is not None and (row.seq, row.claim) == (lineage.seq, lineage.claim)


async def _lineages_of(
    conn: Connection, page: Sequence[DatasetEvent], new_lineages: Mapping[str, Lineage]
) -> dict[str, Lineage]:
    """Return the lineages of a page, locked and loaded. A lineage without records belongs to its first announcer.

    new_lineages: those that are new here; they begin with nothing.
    """
    new = {key: replace(lineage, seq=0, claim=NO_CLAIM) for key, lineage in new_lineages.items()}
    first = {event.record.lineage: event.record.origin for event in reversed(page) if event.record.lineage not in new}
    if not first:
        return new
    lineages = await records.load(conn, await records.lock_present(conn, list(first)), ())
    empty = {key: first[key] for key, one in lineages.items() if not one.records and one.origin != first[key]}
    if empty:  # their origin was restored to before them, or is just taken anew
        await records.hand_over(conn, empty)
    lineages |= {key: replace(lineages[key], origin=origin) for key, origin in empty.items()}
    return new | {key: replace(lineage, claim=_claim_of(lineage)) for key, lineage in lineages.items()}


def _claim_of(lineage: Lineage) -> LatestClaim:
    """Return the last claim in a lineage. One whose datasets are forgotten has none: it is told anew."""
    claims = [record.claim for record in lineage.records.values() if record.latest and record.claim]
    return max([lineage.claim, *claims]) if lineage.records else NO_CLAIM


def _with_latest(
    before: Mapping[str, Record], lineage: Lineage, drafts: Mapping[tuple[str, str], DatasetEvent]
) -> list[Change]:
    """Return the lineage's changes with its one latest derived (C1): who made the last claim and still makes it."""
    changes = []
    latest = max((record.id for record in lineage.records.values() if record.claim == lineage.claim), default=None)
    for record in lineage.records.values():
        is_latest = record.id == latest
        after = record if record.latest is is_latest else replace(record, latest=is_latest)
        if after == before.get(record.id):
            continue
        event = drafts.get((record.collection, record.id))
        changes.append(Change(events.CURRENT, before.get(record.id), after, draft=event.draft if event else None))
    return changes


@dataclass(frozen=True, slots=True)
class RepairOrder:
    """Datasets of one collection and origin that a consumer has wrong: the state they ought to have.

    surplus: what the origin does not have, as it was seen here.
    """

    origin: str
    collection: str
    entries: Sequence[DatasetEvent]
    surplus: Sequence[RecordPlace] = ()
    lineages: Sequence[str] = ()  # of the surplus


@dataclass(frozen=True, slots=True)
class RepairResult:
    """The ids of datasets that are as they ought to be now."""

    applied_ids: frozenset[str]
    removed_ids: frozenset[str]


async def mend(conn: Connection, order: RepairOrder) -> RepairResult:
    """Put datasets at a consumer into the state that their origin says, whatever is here; join the transaction.

    What became newer here since the origin was asked is left as it is.
    """
    here = await records.hold_leaves(conn, [order.collection])
    keys = {event.record.lineage for event in order.entries} | set(order.lineages)
    await records.lock(conn, dict.fromkeys(sorted(keys), order.origin))
    wrong = [RecordPlace(event.record.id, event.record.epoch, event.record.seq) for event in order.entries]
    removed_ids = await records.remove_some(
        conn, order.origin, order.collection, [*wrong, *order.surplus], leaf=here.get(order.collection)
    )
    result = await apply(conn, order.entries)
    foreign_ids = {event.record.id for event in result.foreign if isinstance(event, DatasetEvent)}
    applied_ids = {event.record.id for event in order.entries} - foreign_ids
    surplus_ids = {place.id for place in order.surplus}
    return RepairResult(frozenset(applied_ids), frozenset(removed_ids & surplus_ids))


async def forget(conn: Connection, origin: str, *, before_epoch: int) -> int:
    """Remove at a consumer what an origin no longer has: what its snapshot of a newer epoch did not list.

    With an epoch beyond all, everything of that origin goes, collections too: the start of a rebuild.
    """
    if before_epoch <= 1:
        return 0
    async with conn.transaction():
        leaving = [one.id for one in await collections.of_origin(conn, origin) if one.epoch < before_epoch]
        if leaving:
            await collections.hold(conn)
        removed = await records.remove(conn, origin, before_epoch)
        for collection in leaving:
            await collections.erase(conn, collection, origin)
        return removed


async def forget_in_parts(conn: Connection, origin: str, *, before_epoch: int) -> None:
    """Remove at a consumer the datasets of an origin, about PART_RECORDS of them in one transaction.

    A long transaction is looked behind by every search at each of its looks for changes. `forget` removes the rest.
    """
    removed = -1
    while removed:
        async with conn.transaction():
            removed = await records.remove(conn, origin, before_epoch, most=PART_RECORDS)


@dataclass(frozen=True, slots=True)
class WrittenCollection:
    """A collection after a write, and warnings about what the write changed in the document that was sent."""

    state: CollectionState
    warnings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class CollectionWriter:
    """The writes of collections at one node, by one actor. Each is one transaction, with its event and audit row."""

    conn: Connection
    origin: str
    actor: str
    schema: jsonschema_rs.Validator  # of a STAC collection
    traceparent: str | None = None  # of the request

    async def create(self, document: object) -> WrittenCollection:
        """Create a collection. CollectionAlreadyExists where there is one."""
        collection = await asyncio.to_thread(collection_rules.check, document, self.schema, None)
        name = collection.document["id"]
        async with self.conn.transaction():
            state = self._own(await collections.lock(self.conn, name))
            if state is not None and state.document is not None:
                raise CollectionAlreadyExists(
                    f"there is a collection {name} already; change it with PUT /collections/{name}"
                )
            created = await self._announce(events.COLLECTION_CREATED, name, state, collection.document)
            return WrittenCollection(created, collection.warnings)

    async def replace(self, name: str, document: object, *, expected: Sequence[str] | None = None) -> WrittenCollection:
        """Store another document of a collection. The same document again changes nothing."""
        collection = await asyncio.to_thread(collection_rules.check, document, self.schema, name)
        async with self.conn.transaction():
            state = await self._update(await self._existing(name, expected), collection.document)
            return WrittenCollection(state, collection.warnings)

    async def patch(
        self, name: str, edit: JsonPatch | MergePatch, *, expected: Sequence[str] | None = None
    ) -> WrittenCollection:
        """Apply a patch to a collection under its lock. A patch without effect changes nothing."""
        async with self.conn.transaction():
            state = await self._existing(name, expected)

            def check() -> collection_rules.CheckedCollection:
                document = collection_rules.patched(orjson.loads(state.document or "{}"), edit)
                return collection_rules.check(document, self.schema, name)

            collection = await asyncio.to_thread(check)
            return WrittenCollection(await self._update(state, collection.document), collection.warnings)

    async def delete(self, name: str, *, expected: Sequence[str] | None = None) -> None:
        """Delete an empty collection. CollectionNotEmpty while there are datasets."""
        async with self.conn.transaction():
            state = await self._existing(name, expected)
            if not await collections.hold_empty(self.conn, name):
                raise CollectionNotEmpty(f"the collection {name} has datasets; delete them first")
            if (present := (await cascades.open_of(self.conn, [name])).get(name)) is not None:
                await cascades.end(self.conn, present, CascadeState.DONE, self.actor)
            await self._announce(events.COLLECTION_DELETED, name, state, None)

    async def begin_cascade(
        self, name: str, order: CascadeOrder, *, confirmed: int, expected: Sequence[str] | None = None
    ) -> Cascade:
        """Begin to delete a collection with its datasets. From here on nothing is published into it.

        confirmed: how many datasets it has, as the caller was told. PreconditionFailed where that is not so.
        CollectionClosing where it is being deleted already, Conflict where another node has datasets in it.
        """
        async with self.conn.transaction():
            state = await self._existing(name, expected)
            if (present := (await cascades.open_of(self.conn, [name])).get(name)) is not None:
                raise cascade.refusal(name, present)
            await collections.hold_closed(self.conn, name)
            other = await cascades.foreign_origin(self.conn, name, self.origin)
            if other is not None:
                raise Conflict(f"the node {other} has datasets in {name}; they have to be deleted there first")
            datasets = await cascades.count(self.conn, name)
            if datasets != confirmed:
                raise PreconditionFailed(
                    f"the collection {name} has {datasets} datasets, and {confirmed} were confirmed; look at the dry "
                    "run again"
                )
            event_id = uuid7(datetime.now(UTC))
            after = await self._announce(
                events.COLLECTION_CLOSING, name, state, orjson.loads(state.document or "{}"), event_id=event_id,
                more={"reason": order.reason, "datasets": datasets},
            )  # fmt: skip
            failpoint("cascade.begun")
            return await cascades.begin(
                self.conn, event_id, name, order, datasets=datasets, now=after.updated, traceparent=self.traceparent
            )

    async def cancel_cascade(self, name: str) -> Cascade:
        """Let a collection be published into again. NotFound where it is not being deleted.

        What is marked by then stays marked.
        """
        async with self.conn.transaction():
            state = await self._existing(name, None)
            present = (await cascades.open_of(self.conn, [name])).get(name)
            if present is None:
                raise NotFound(f"the collection {name} is not being deleted; there is nothing to cancel")
            await collections.hold_closed(self.conn, name)
            await self._announce(
                events.COLLECTION_REOPENED, name, state, orjson.loads(state.document or "{}"), causation=present
            )
            await cascades.end(self.conn, present, CascadeState.CANCELLED, self.actor)
            after = await cascades.newest(self.conn, name)
            assert after is not None
            return after

    async def end_cascade(self, name: str, cascade_id: UUID) -> bool:
        """Delete a collection whose last dataset is deleted, and the groups of its project; end its cascade.

        Return False, with nothing written, where a dataset is left.
        """
        async with self.conn.transaction():
            state = self._own(await collections.lock(self.conn, name))
            if not await collections.hold_empty(self.conn, name):
                return False
            if (await cascades.open_of(self.conn, [name])).get(name) != cascade_id:
                return True  # it was cancelled, or has ended, a moment ago
            if state is not None and state.document is not None:  # else somebody deleted the empty collection
                await self._announce(events.COLLECTION_DELETED, name, state, None, causation=cascade_id)
            groups = await own_groups.delete_of_project(self.conn, name)
            await audit.append(self.conn, [
                audit.NewRow(self.actor, "delete-group", name, f"group/{group}", None, "done", None, None,
                             rule=f"cascade {cascade_id}")
                for group in groups
            ])  # fmt: skip
            failpoint("cascade.ending")
            await cascades.end(self.conn, cascade_id, CascadeState.DONE, self.actor)
            return True

    async def _existing(self, name: str, expected: Sequence[str] | None) -> CollectionState:
        """Lock and return a collection of this node. CollectionDoesNotExist, or PreconditionFailed in another state."""
        state = self._own(await collections.lock(self.conn, name))
        if state is None or state.document is None:
            raise collection_rules.missing(name)
        if expected is not None and "*" not in expected and state.digest[:16].hex() not in expected:
            raise PreconditionFailed(f"the collection {name} was changed since you read it; read it again")
        return state

    async def _update(self, state: CollectionState, document: Mapping[str, Any]) -> CollectionState:
        if state.digest == documents.digest(document):
            return state
        return await self._announce(events.COLLECTION_UPDATED, state.id, state, document)

    def _own(self, states: Sequence[CollectionState]) -> CollectionState | None:
        """Return this node's state of a collection. ForeignOrigin where another node has it."""
        others = ", ".join(each.origin for each in states if each.origin != self.origin)
        if others:
            raise ForeignOrigin(f"the collection {states[0].id} belongs to the node {others}; change it there")
        return states[0] if states else None

    async def _announce(
        self, event_type: str, name: str, before: CollectionState | None, document: Mapping[str, Any] | None, *,
        event_id: UUID | None = None, causation: UUID | None = None,
        more: Mapping[str, object] = MappingProxyType({}),
    ) -> CollectionState:  # fmt: skip
        """Write a collection's new state with its event and audit row. Without a document it is deleted."""
        epoch, now = await outbox.begin(self.conn)
        event_id, seq = event_id or uuid7(now), (before.seq if before else 0) + 1
        text = orjson.dumps(document).decode() if document is not None else None
        digest = documents.digest(document) if document is not None else b""
        after = CollectionState(name, self.origin, epoch, seq, text, digest, now)
        await collections.store(self.conn, after)
        event = events.collection_event(
            event_type, name, seq, document=text, digest=digest, at=now, event_id=event_id,
            context=events.Context(self.origin, self.actor, None, self.traceparent, causation), more=more,
        )  # fmt: skip
        announcement = outbox.Announcement(event_id, name, name, None, seq, event_type, digest, event)
        await outbox.append(self.conn, [announcement])
        if document is None:
            await grants.close_of_collection(self.conn, name, actor=self.actor, cause=event_id)
        row = audit.NewRow(
            self.actor, event_type.split(".")[-2], name, name, None, "done", before.digest if before else None, digest,
            correlation=structlog.contextvars.get_contextvars().get("request_id"),
            detail=orjson.dumps(dict(more)).decode() if more else None,
        )  # fmt: skip
        await audit.append(self.conn, [row])
        return after
