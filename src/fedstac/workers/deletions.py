"""The deletion manager's own work: it reminds who has not done their part, alerts, and deletes by the schedule.

One leader at a time, by an advisory lock. It holds no state of its own: each step is one transaction that locks what it
touches, so that two leaders by mistake, and one that dies anywhere, do everything once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import orjson
import structlog

from fedstac.bootstrap import Node
from fedstac.db import audit, deletion_lists, deletion_rules, deletions, requests, troubles
from fedstac.db.audit import NewRow
from fedstac.db.connections import Connection
from fedstac.db.deletion_lists import AutomaticRules, ReadyDeletion, ScheduleInputs, Sight
from fedstac.db.deletions import LateDependency, Reminder
from fedstac.db.requests import NewItem, NewRequest
from fedstac.domain import deletion
from fedstac.domain.documents import ItemTexts
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import DELETION_MANAGER
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint
from fedstac.workers import deleting

PART: Final = "deletions"
LOOK_SECONDS: Final = 5.0
RELOOK: Final = timedelta(minutes=1)  # at all that the schedule may delete, where nothing changed
AT_ONCE: Final = 500  # reminders, alerts, or datasets of one request
NAMED: Final = 5  # datasets in a row of the audit log that stands for many
log = structlog.get_logger()


async def run(node: Node, stop: asyncio.Event) -> None:
    """Work until `stop`, whenever this process is the leader."""

    watch = ScheduleWatch()

    async def look() -> None:
        async with node.pool.acquire() as conn:
            more = await step(node, conn, watch)
        if not more:
            await node.commits.pause(PART, stop, LOOK_SECONDS)

    await supervision.keep_trying(node.parts, PART, look, stop, commits=node.commits)


async def step(node: Node, conn: Connection, watch: ScheduleWatch | None = None) -> bool:
    """Do what is due, some of each; return whether there may be more at once. Nothing where another one leads.

    watch: of the steps before in this process; None: look at everything.
    """
    async with deletions.leading(conn) as is_leader:
        if not is_leader:
            return False
        watch = watch or ScheduleWatch()
        is_revising = await _revise(conn)
        counts = (await _remind(conn), await _alert(conn), await _delete_by_schedule(node, conn, watch))
        return is_revising or max(counts) >= AT_ONCE


# --- other rules for open deletions ---


async def _revise(conn: Connection) -> bool:
    """Give some open deletions the rules that they are about to get; return whether there may be more.

    A deletion that has them is of their version. So whoever goes on after a kill finds the others.
    """
    is_more = False
    for project_rules in await deletion_rules.revisions(conn):
        project, rules = project_rules.project, project_rules.rules
        async with conn.transaction():
            if await deleting.revise_some(conn, project, rules, await deletions.now(conn)):
                is_more = True
            else:
                await deletion_rules.end_revision(conn, project, rules.version)
                log.info("all open deletions have other rules", project=project, version=rules.version)
            failpoint("deletions.revising")
        failpoint("deletions.revised")
    return is_more


# --- reminders and alerts ---


async def _remind(conn: Connection) -> int:
    """Send the reminders that are due; return how many."""
    async with conn.transaction():
        now = await deletions.now(conn)
        due = await deletions.due_reminders(conn, now=now, limit=AT_ONCE)
        if due:
            await deleting.send_reminders(conn, due, now=now)
            failpoint("deletions.reminding")
            await audit.append(conn, _reminder_rows(due))
    if due:
        failpoint("deletions.reminded")
        log.info("dependencies are reminded", reminders=len(due))
    return len(due)


def _reminder_rows(reminders: Sequence[Reminder]) -> list[NewRow]:
    """Return a row of the audit log for each dependency of each project; each deletion has its reminder itself."""
    groups: dict[tuple[str, str], list[Reminder]] = {}
    for each in reminders:
        groups.setdefault((each.collection, each.name), []).append(each)
    return [
        NewRow(
            DELETION_MANAGER, "remind-deletion", project, "", None, "done", None, None, items=len(group),
            detail=orjson.dumps({"name": name, "datasets": [each.dataset for each in group[:NAMED]]}).decode(),
        )
        for (project, name), group in groups.items()
    ]  # fmt: skip


async def _alert(conn: Connection) -> int:
    """Tell operators of dependencies that are late, each once; return of how many."""
    async with conn.transaction():
        late = await deletions.alert_late(conn, now=await deletions.now(conn), limit=AT_ONCE)
        for project in sorted({each.project for each in late}):
            reports = [_report_of(each) for each in late if each.project == project]
            await troubles.report_all(conn, "deletion", place=project, reports=reports)
        failpoint("deletions.alerting")
    for each in late:
        log.warning("a dependency is late with deletions", dependency=each.name, project=each.project, count=each.count)
    return sum(each.count for each in late)


def _report_of(late: LateDependency) -> troubles.TroubleReport:
    others = f", and {late.count - 1} more" if late.count > 1 else ""
    return troubles.TroubleReport(
        f"{late.name} is late", f"it was due {rfc3339(late.due)} with {late.first}{others}"
    )  # fmt: skip


# --- deleting ---


@dataclass(frozen=True, slots=True)
class Submitter:
    """In whose name datasets are deleted: as a request has them."""

    name: str
    roles: tuple[str, ...] = ()
    identity: str | None = None  # packed
    user_agent: str | None = None
    correlation: str = ""
    traceparent: str | None = None


MANAGER: Final = Submitter(DELETION_MANAGER, user_agent="fedstac deletion manager")


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """A request that was made to delete datasets that are ready."""

    id: UUID
    project: str
    total: int


@dataclass(slots=True)
class ScheduleWatch:
    """What the schedule last looked at where it found nothing to delete: looking at all that is blocked costs much.

    It is looked at again when a mark, a report, a waiver or rules were stored, a period of grace has ended, or a
    schedule has begun; and once in RELOOK, for what was locked, was committed late, or was refused a day ago.
    """

    inputs: ScheduleInputs | None = None
    rules: Sequence[AutomaticRules] = ()
    runs: Sequence[datetime] = ()  # when the schedule of each of the rules last began
    at: datetime | None = None

    def is_unchanged(self, inputs: ScheduleInputs, now: datetime) -> bool:
        """Return whether another look finds nothing either. After a step back of the clock nobody knows."""
        is_recent = self.at is not None and self.at <= now < self.at + RELOOK
        return is_recent and self.inputs == inputs and self.runs == _runs(self.rules, now)


def _runs(rules: Sequence[AutomaticRules], now: datetime) -> list[datetime]:
    """Return when the schedules last began; without one there is nothing to wait for."""
    return [deletion.last_run(each.schedule, now) for each in rules if each.schedule]


async def _delete_by_schedule(node: Node, conn: Connection, watch: ScheduleWatch) -> int:
    """Ask for the deletion of what was ready when the schedule last began; return of the most of one project."""
    now = await deletions.now(conn)
    inputs = await deletion_lists.schedule_inputs(conn, now=now)
    if watch.is_unchanged(inputs, now):
        return 0
    rules = await deletion_lists.automatic_rules(conn)
    most = 0
    for project in dict.fromkeys(each.project for each in rules):
        moments = {each.version: deletion.last_run(each.schedule, now) for each in rules if each.project == project}
        request = await ask_to_delete(node, conn, MANAGER, Sight(sees_all=True), project, moments=moments)
        most = max(most, request.total if request else 0, await _leave_to_people(conn, project, now))
    watch.inputs, watch.rules, watch.runs, watch.at = inputs, rules, _runs(rules, now), None if most else now
    return most


async def _leave_to_people(conn: Connection, project: str, now: datetime) -> int:
    """Tell operators, once, of what is ready and is under quarantine; return of how many.

    Who may quarantine deletes it. The schedule may not: it would be refused each day.
    """
    async with conn.transaction():
        ids = await deletion_lists.note_quarantined(conn, project, now=now, limit=AT_ONCE)
        if ids:
            report = troubles.TroubleReport(f"{len(ids)} under quarantine wait for somebody", f"the first is {ids[0]}")
            await troubles.report_all(conn, "deletion-quarantined", place=project, reports=[report])
    return len(ids)


async def ask_to_delete(
    node: Node, conn: Connection, submitter: Submitter, sight: Sight, project: str, *,
    moments: Mapping[int, datetime] | None = None, asked_before: datetime | None = None,
) -> DeleteRequest | None:  # fmt: skip
    """Make a request to delete up to AT_ONCE datasets that are ready; None where none is.

    The workers decide each anew, under its lock. `moments` and `asked_before` are as take_ready has them.
    """
    vocabulary = node.checker.vocabularies.current(project)
    version = vocabulary.version if vocabulary else None
    await node.vocabulary_store.keep(node.pool, project, version)
    async with conn.transaction():
        now = await deletions.now(conn)
        ready = await deletion_lists.take_ready(
            conn, sight, project, moments=moments, now=now, limit=AT_ONCE, asked_before=asked_before
        )
        if not ready:
            return None
        request = NewRequest(
            id=uuid4(), collection=project, action="delete", submitter=submitter.name, roles=submitter.roles,
            user_agent=submitter.user_agent, correlation=submitter.correlation or f"deletions-{uuid4().hex[:12]}",
            cv_version=version, items=[_delete_item(each, automatic=moments is not None) for each in ready],
            identity=submitter.identity, traceparent=submitter.traceparent,
        )  # fmt: skip
        await requests.create(conn, [request])
        failpoint("deletions.asking")
        await deletion_lists.ask(conn, [each.id for each in ready], request.id, now=now)
        retries = [each for each in ready if each.earlier_request is not None]
        if retries and moments is not None:
            first = f"the first is {retries[0].dataset}, request {retries[0].earlier_request}"
            report = troubles.TroubleReport(f"{len(retries)} were refused, and are asked for again", first)
            await troubles.report_all(conn, "deletion-refused", place=project, reports=[report])
    failpoint("deletions.asked")
    node.queued.wake()
    log.info("datasets are to be deleted", project=project, datasets=len(ready), request=str(request.id))
    return DeleteRequest(request.id, project, len(ready))


def _delete_item(ready: ReadyDeletion, *, automatic: bool) -> NewItem:
    """Return the item that deletes the dataset of a deletion, as long as that one is open."""
    body = {"expected": None, "deletion": str(ready.id), "automatic": automatic}
    return NewItem(ready.lineage, ready.dataset, ItemTexts(orjson.dumps(body).decode()))
