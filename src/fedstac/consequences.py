"""What follows the changes of datasets beside their records, in the transaction of `publication.perform`.

Deletions begin and end, cases open and close, grants follow; what is deleted is taken out of the log; files that are
held by nobody any more are named, and those that others have too are warned of.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final
from uuid import UUID

import orjson

from fedstac.db import deletion_rules, deletions, file_marks, file_references, grants, outbox, purging, quarantine_cases
from fedstac.db.connections import Connection
from fedstac.db.quarantine_cases import CaseEnd, QuarantineCase
from fedstac.domain import crosschecks, deletion, events, shared_files
from fedstac.domain import grants as grant_rules
from fedstac.domain.actions import Work
from fedstac.domain.actions.target import resource_of_document
from fedstac.domain.deletion import Deletion, DeletionRules, DeletionState
from fedstac.domain.errors import Finding, Severity
from fedstac.domain.identifiers import uuid7
from fedstac.domain.model import WITHOUT_DOCUMENT, Change, Outcome, Receipt, World
from fedstac.domain.shared_files import ReleasedFiles
from fedstac.runtime.failpoints import failpoint

MOST_NAMED: Final = 5  # datasets that share files with one
DELETION_STATES: Final = {
    events.UNMARKED: DeletionState.UNMARKED, events.DELETED: DeletionState.DELETED, events.PURGED: DeletionState.PURGED,
}  # fmt: skip


async def follow_deletions(
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
    rules = await deletion_rules.rules_of(conn, projects) if projects else {}
    for event_type, group in groupby(steps, key=lambda each: each[0].event_type):
        if event_type == events.MARKED:
            await deletions.begin(conn, [
                _deletion_of(
                    change, entry, event_id, rules.get(change.after.collection, deletion.NO_RULES), world
                )
                for change, entry, event_id in group
            ])  # fmt: skip
        elif event_type == events.QUARANTINED:
            await quarantine_cases.open_cases(conn, [
                QuarantineCase(
                    uuid7(now), change.after.collection, change.after.id, event_id, entry.actor,
                    orjson.loads(change.after.quarantine or "{}"),
                )
                for change, entry, event_id in group
            ], now=now)  # fmt: skip
        elif event_type == events.RELEASED:
            await quarantine_cases.close_cases(conn, [
                CaseEnd(change.after.collection, change.after.id, entry.actor, change.reason)
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
            await quarantine_cases.close_cases(conn, [
                CaseEnd(change.after.collection, change.after.id, entry.actor, "the dataset was deleted")
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


async def follow_grants(
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


async def redact(conn: Connection, changes: Sequence[Change]) -> None:
    """Remove what this node keeps of datasets that were deleted or purged; no query where none was."""
    deleted = [(change.after.collection, change.after.id) for change in changes if change.event_type == events.DELETED]
    purged = [(change.after.collection, change.after.id) for change in changes if change.event_type == events.PURGED]
    if deleted or purged:
        await purging.redact_log(conn, [*deleted, *purged])
        failpoint("perform.redacted")
    if purged:
        await purging.purge(conn, purged)


async def release_files(conn: Connection, changes: Sequence[Change]) -> dict[tuple[str, str], ReleasedFiles]:
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


async def tell_of_brokers(conn: Connection, receipts: list[Receipt]) -> list[Receipt]:
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


async def compare_files(conn: Connection, world: World, receipts: Sequence[Receipt]) -> list[Receipt]:
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
