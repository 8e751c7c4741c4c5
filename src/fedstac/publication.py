"""THE write path: `perform` runs the commands that this node accepted.

One transaction, each step one set-wise statement: lock the lineages, read them, decide (pure), write records, search
copies, events, audit rows and results. What follows a change beside its record is in consequences.py. Events of other
nodes come in by applying.py, collections by collection_writing.py. Nothing else in the package changes a record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

import asyncpg

from fedstac import consequences
from fedstac.db import audit, cascades, deletion_rules, deletions, facets, outbox, queue, records
from fedstac.db.connections import Connection
from fedstac.domain import collections as collection_rules
from fedstac.domain import events, versions
from fedstac.domain.access import level_of_draft
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.clear import Clear, Rebuild
from fedstac.domain.actions.delete import Purge
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.retract import Retract
from fedstac.domain.actions.target import Target, may_one_of, may_see_marked
from fedstac.domain.deletion import Deletion
from fedstac.domain.errors import Cancelled, Finding, Problem, StacInvalid
from fedstac.domain.identifiers import uuid7
from fedstac.domain.model import Change, Decision, Judge, Lineage, Outcome, Receipt, State, World
from fedstac.domain.policy import READING, Action, Level, Policy, Principal, Resource, Verdict
from fedstac.domain.shared_files import ReleasedFiles
from fedstac.runtime.causes import is_refusal
from fedstac.runtime.failpoints import failpoint
from fedstac.vocabularies.registry import Vocabularies


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
        await deletion_rules.share_rules(conn, sorted(projects))


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
    if world.deletions:  # grace ends by the clock that dates marks
        world = replace(world, now=await deletions.now(conn))
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
    receipts = await consequences.compare_files(conn, world, receipts)
    receipts = await consequences.tell_of_brokers(conn, receipts)
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
    files = await consequences.release_files(conn, changes)
    announcements = [
        _announcement(change, rules, entry, world.now, files.get((change.after.collection, change.after.id)))
        for entry, receipt in zip(work, receipts, strict=True)
        for change in receipt.changes
    ]
    ids = iter(await outbox.append(conn, announcements))
    failpoint("perform.events")
    await consequences.follow_deletions(conn, work, receipts, announcements, world)
    await consequences.follow_grants(conn, work, receipts, announcements)
    await consequences.redact(conn, changes)
    failpoint("perform.deletions")
    await audit.append(conn, [
        row for entry, receipt in zip(work, receipts, strict=True) for row in _audit_rows(entry, receipt)
    ])  # fmt: skip
    return [_own_event(entry, receipt, ids) for entry, receipt in zip(work, receipts, strict=True)]


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
