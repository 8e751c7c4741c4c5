"""What people do with the deletion manager: over HTTP, in the console, on the command line.

Every verb checks the right of its caller by the stored row. What somebody may not see is not there for them (NotFound).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from fedstac.db import audit, collections, deletion_lists, deletion_rules, deletions, notifications, quarantine_cases
from fedstac.db.audit import NewRow
from fedstac.db.connections import Connection
from fedstac.db.deletion_lists import DeletionFilter, ListOrder, Sight
from fedstac.db.deletion_rules import StoredRules
from fedstac.db.deletions import HistoryEntry, OpenDeletions, Reminder
from fedstac.db.quarantine_cases import StoredCase
from fedstac.domain import collections as collection_rules
from fedstac.domain import deletion as rules_of_deletion
from fedstac.domain import destinations
from fedstac.domain.deletion import (
    Deletion,
    DeletionRules,
    DeletionState,
    DependencyStatus,
    RuleChange,
    Waiver,
)
from fedstac.domain.errors import BadRequest, Conflict, NotFound, PreconditionFailed
from fedstac.domain.model import rfc3339, rfc3339_or_none
from fedstac.domain.policy import Action, Policy, Principal, Resource

EVERYTHING: Final = Resource("the deletions of this node", "*", "*")
READING: Final = (Action.DELETIONS, Action.MARK, Action.UNMARK, Action.DELETE)  # one of these shows a deletion
SHOWN, MOST_PAGE, MOST_VERSIONS = 20, 200, 100
LONGEST_REASON: Final = 2000
REVISED_AT_ONCE: Final = 500
SEE_LIST: Final = "GET /deletions lists those that you may see"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and by which policy. correlation: of the request, for the audit log."""

    principal: Principal
    policy: Policy
    correlation: str | None = None

    @property
    def name(self) -> str:
        return self.principal.name

    def may(self, actions: Sequence[Action], resource: Resource) -> bool:
        return self.policy.may_one_of(self.principal, actions, resource)

    def require_somewhere(self, actions: Sequence[Action], everything: Resource) -> None:
        """Raise MissingPermission unless some rule of the policy gives the caller one of the actions, on whatever."""
        rules = self.policy.rules_of(self.principal)
        if not any(action in rule.actions for rule in rules for action in actions):
            self.require(actions[0], everything)

    def require(self, action: Action, resource: Resource) -> None:
        self.policy.require(self.principal, action, resource)


def _resource(entry: Deletion) -> Resource:
    return Resource(entry.dataset, entry.collection, entry.institution)


# --- reading ---


@dataclass(frozen=True, slots=True)
class DeletionView:
    """A deletion as its reader may see it at a moment, by the clock of the database, which dates marks and grace.

    is_whole: with reasons, people, and what others have to do.
    """

    deletion: Deletion
    is_whole: bool
    at: datetime
    history: Sequence[HistoryEntry] = ()


@dataclass(frozen=True, slots=True)
class DeletionPage:
    """A page of deletions, and the counts of all that the filter chooses but for its state. next: begin after it."""

    entries: Sequence[DeletionView]
    counts: dict[str, int]
    next: UUID | None


async def sight_of(conn: Connection, caller: Caller) -> Sight:
    """Return which deletions a caller may see. MissingPermission for somebody who could never see one."""
    if caller.may((Action.DELETIONS,), EVERYTHING):
        return Sight(sees_all=True)
    if caller.principal.node is None:
        caller.require_somewhere(READING, EVERYTHING)
    places = await deletion_lists.places(conn)
    mine = [place for place in places if caller.may(READING, Resource("a deletion", *place))]
    return Sight(places=tuple(mine), node=caller.principal.node)


async def list_page(
    conn: Connection, caller: Caller, filter: DeletionFilter, *, order: ListOrder = ListOrder.MARKED,
    descending: bool = True, after: UUID | None = None, limit: int = 50,
) -> DeletionPage:  # fmt: skip
    """Return a page of the deletions that a caller may see, and how many there are in each state."""
    sight, now = await sight_of(conn, caller), await deletions.now(conn)
    entries = await deletion_lists.page(
        conn, sight, filter, order=order, descending=descending, after=after, limit=limit + 1, now=now
    )
    counts = await deletion_lists.counts(conn, sight, filter, now=now)
    places = frozenset(sight.places)
    views = [
        DeletionView(each, sight.sees_all or (each.collection, each.institution) in places, now)
        for each in entries[:limit]
    ]
    return DeletionPage(views, counts, entries[limit - 1].id if len(entries) > limit else None)


async def show(conn: Connection, caller: Caller, id: UUID) -> DeletionView:
    """Return one deletion with its history. NotFound where there is none that the caller may see."""
    view = await _visible(conn, caller, id)
    if not view.is_whole:
        return view
    return replace(view, history=await deletions.history(conn, view.deletion))


async def _visible(conn: Connection, caller: Caller, id: UUID, *, locking: bool = False) -> DeletionView:
    """Return a deletion that a caller may see: managers, who may mark the dataset, nodes that have to do their part."""
    entry = await deletions.read(conn, id, locking=locking)
    if entry is not None:
        is_whole = caller.may(READING, _resource(entry))
        if is_whole or any(is_of_node(each.name, caller.principal.node) for each in entry.dependencies):
            return DeletionView(entry, is_whole, await deletions.now(conn))
    raise NotFound(f"there is no deletion {id}; {SEE_LIST}")


def is_of_node(dependency: str, node: str | None) -> bool:
    """Return whether a dependency is a node, or something that runs there: `east`, `east/replica`."""
    return node is not None and (dependency == node or dependency.startswith(f"{node}/"))


async def _managed(conn: Connection, caller: Caller, id: UUID) -> DeletionView:
    """Lock and return an open deletion that a caller manages. Conflict where it has ended."""
    view = await _visible(conn, caller, id, locking=True)
    caller.require(Action.DELETIONS, _resource(view.deletion))
    if view.deletion.state is not DeletionState.OPEN:
        raise Conflict(f"the deletion of {view.deletion.dataset} has ended: it is {view.deletion.state}")
    return view


def _part(entry: Deletion, name: str) -> DependencyStatus:
    part = entry.dependency(name)
    if part is None:
        names = ", ".join(each.name for each in entry.dependencies) or "none"
        raise NotFound(f"{entry.dataset} waits for no dependency {name[:100]!r}; there are: {names}")
    return part


async def deletable(conn: Connection, caller: Caller) -> Sight:
    """Return the deletions whose datasets a caller may delete. MissingPermission for somebody who may delete none."""
    everything, right = replace(EVERYTHING, dataset="datasets"), (Action.DELETE,)
    if caller.may(right, everything):
        return Sight(sees_all=True)
    caller.require_somewhere(right, everything)
    places = await deletion_lists.places(conn)
    return Sight(places=tuple(place for place in places if caller.may(right, Resource("a deletion", *place))))


# --- waivers and reminders ---


async def waive(conn: Connection, caller: Caller, id: UUID, *, name: str, reason: str) -> DeletionView:
    """Let a deletion not wait for a dependency, with a reason; two people do so for one that owns identifiers.

    A second waiver of one person, and one of what is done, change nothing. What the dependency reports later is
    recorded all the same.
    """
    if not isinstance(reason, str) or not 0 < len(reason.strip()) <= LONGEST_REASON:
        raise BadRequest(f"say why: reason is a text of 1 to {LONGEST_REASON} characters")
    async with conn.transaction():
        view = await _managed(conn, caller, id)
        entry = view.deletion
        before = _part(entry, name)
        waiver = Waiver(caller.name, reason.strip(), view.at)
        after = rules_of_deletion.waive(before, waiver)
        if after is before:
            return view
        await deletions.store_waiver(conn, id, after, waiver)
        await _write_down(conn, caller, "waive-deletion", entry, {
            "name": name, "waivers": len(after.waivers), "state": after.state,  # a purge takes the reason away
        })  # fmt: skip
        parts = tuple(after if each is before else each for each in entry.dependencies)
        return replace(view, deletion=replace(entry, dependencies=parts))


async def remind(conn: Connection, caller: Caller, id: UUID, names: Sequence[str] | None = None) -> DeletionView:
    """Send reminders to the dependencies of a deletion that have not done their part, or to some of them, now.

    A reminder is a message to the contact, where that is an address, and stands in the deletion for its node to see.
    """
    async with conn.transaction():
        view = await _managed(conn, caller, id)
        entry = view.deletion
        parts = [_part(entry, name) for name in dict.fromkeys(names)] if names is not None else entry.dependencies
        reminders = [
            Reminder(entry.id, entry.collection, entry.dataset, each.name, each.contact, each.due, each.reminders + 1)
            for each in parts if not each.is_fulfilled
        ]  # fmt: skip
        if reminders:
            await send_reminders(conn, reminders, now=view.at)
            names_sent = [each.name for each in reminders]
            await _write_down(conn, caller, "remind-deletion", entry, {"names": names_sent})
        reminded = await deletions.read(conn, id)
        assert reminded is not None
        return replace(view, deletion=reminded)


async def send_reminders(conn: Connection, reminders: Sequence[Reminder], *, now: datetime) -> None:
    """Store reminders and what goes to their contacts. Call it in a transaction that has locked their deletions."""
    await deletions.remind(conn, reminders, now=now)
    contacts = [(address_of(each.contact), f"{each.deletion} {each.name}") for each in reminders]
    await notifications.tell_contacts(conn, [(address, about) for address, about in contacts if address])


def address_of(contact: str | None) -> str | None:
    """Return the address that a contact is; None where no message can be sent to it: a name, a telephone number."""
    if contact is None:
        return None
    text = contact.strip()
    address = f"mailto:{text}" if "@" in text and ":" not in text else text
    try:
        destinations.parse(address, private=False)
    except BadRequest:
        return None
    return address


async def _write_down(
    conn: Connection, caller: Caller, action: str, entry: Deletion, detail: dict[str, object]
) -> None:
    row = NewRow(
        caller.name, action, entry.collection, entry.dataset, None, "done", None, None, correlation=caller.correlation,
        detail=orjson.dumps({"deletion": str(entry.id), **detail}).decode(),
    )  # fmt: skip
    await audit.append(conn, [row])


# --- rules ---


async def rules(conn: Connection, caller: Caller, project: str, version: int | None = None) -> StoredRules:
    """Return the newest rules of a project, or those of a version. NotFound where there are none."""
    caller.require(Action.DELETIONS, Resource.of_collection(project))
    project_rules = await deletion_rules.stored_rules(conn, project, version)
    if project_rules is None:
        if version is not None:
            raise NotFound(f"{project[:100]} has no version {version} of its rules of deletion; ask without a version")
        raise no_rules(project)
    return project_rules


def no_rules(project: str) -> NotFound:
    """Return the refusal that says what holds for a project that has no rules."""
    days = f"{rules_of_deletion.GRACE_DAYS:g}"
    return NotFound(f"{project[:100]} has no rules of deletion; marks wait for nobody, for {days} days")


async def all_rules(conn: Connection, caller: Caller) -> list[StoredRules]:
    """Return the newest rules of all projects that a caller manages."""
    project_rules = await deletion_rules.newest_rules(conn)
    mine = [each for each in project_rules if caller.may((Action.DELETIONS,), Resource.of_collection(each.project))]
    caller.require_somewhere((Action.DELETIONS,), EVERYTHING)
    return mine


async def versions(conn: Connection, caller: Caller, project: str) -> list[StoredRules]:
    """Return the versions of a project's rules, the newest first, MOST_VERSIONS of them."""
    caller.require(Action.DELETIONS, Resource.of_collection(project))
    return await deletion_rules.rules_versions(conn, project, MOST_VERSIONS)


@dataclass(frozen=True, slots=True)
class RuleEffect:
    """What other rules of a project touch: what differs, and its open deletions."""

    before: StoredRules | None
    after: DeletionRules
    changes: tuple[RuleChange, ...]
    open: OpenDeletions
    applies_to_open: bool = False

    @property
    def is_stored(self) -> bool:
        """Return whether the rules are a new version: they say something else than the last one."""
        return bool(self.changes) or self.before is None


async def affected_by(conn: Connection, caller: Caller, project: str, wish: DeletionRules) -> RuleEffect:
    """Return what a change of a project's rules touches. Nothing is stored.

    The rules apply to marks made afterwards; open deletions keep theirs, unless `configure` is asked to change them.
    """
    _require_configuring(caller, project, wish)
    await _require_project(conn, project)
    return await _affected(conn, project, wish)


async def _affected(conn: Connection, project: str, wish: DeletionRules) -> RuleEffect:
    before = await deletion_rules.stored_rules(conn, project)
    last = before.rules if before else rules_of_deletion.NO_RULES
    changes = rules_of_deletion.compare(last, wish)
    version = last.version + 1 if changes or before is None else last.version
    open_deletions = await deletions.open_of_project(conn, project, SHOWN)
    return RuleEffect(before, replace(wish, version=version), changes, open_deletions)


def _require_configuring(caller: Caller, project: str, wish: DeletionRules) -> None:
    """Require the right to change rules; rules by which the schedule deletes need that to delete, too."""
    resource = Resource.of_collection(project)
    caller.require(Action.DELETIONS, resource)
    if wish.automatic:
        caller.require(Action.DELETE, resource)


async def _require_project(conn: Connection, project: str) -> None:
    if await collections.get(conn, project) is None:
        raise collection_rules.missing(project)


async def configure(
    conn: Connection, caller: Caller, project: str, wish: DeletionRules, *, expected: int | None,
    apply_to_open: bool = False,
) -> RuleEffect:  # fmt: skip
    """Store a new version of a project's rules. The same rules again are no new version.

    expected: the version that the caller has read, 0 for none; None: whatever it is. PreconditionFailed where it is
    another one by now. apply_to_open: the open deletions get the new rules too, as domain/deletion.py revises them: a
    few at once, the rest of many by the deletion manager, and none of them is deleted before it has them.
    """
    _require_configuring(caller, project, wish)
    async with conn.transaction():
        await _require_project(conn, project)
        await deletion_rules.hold_rules(conn, project)
        affected = replace(await _affected(conn, project, wish), applies_to_open=apply_to_open)
        last = affected.before.rules.version if affected.before else 0
        if expected is not None and expected != last:
            raise PreconditionFailed(f"the rules of {project} are at version {last} now; read them again")
        now = await deletions.now(conn)
        if affected.is_stored:
            await deletion_rules.store_rules(conn, project, affected.after, actor=caller.name, now=now)
        if apply_to_open and await revise_some(conn, project, affected.after, now):
            await deletion_rules.begin_revision(conn, project, affected.after.version)
        if affected.is_stored or apply_to_open:
            detail = {
                "version": affected.after.version, "changes": [each.as_json() for each in affected.changes],
                "applies_to_open": apply_to_open, "open": affected.open.count,
            }  # fmt: skip
            row = NewRow(
                caller.name, "configure-deletions", project, "", None, "done", None, None,
                correlation=caller.correlation, detail=orjson.dumps(detail).decode(),
            )  # fmt: skip
            await audit.append(conn, [row])
        return affected


async def revise_some(conn: Connection, project: str, wish: DeletionRules, now: datetime) -> bool:
    """Give REVISED_AT_ONCE open deletions of a project other rules; return whether there may be more of them."""
    entries = await deletions.lock_open_before(conn, project, wish.version, limit=REVISED_AT_ONCE)
    await deletions.store_revised(conn, [(each, rules_of_deletion.revise(each, wish, now)) for each in entries])
    return len(entries) == REVISED_AT_ONCE


# --- cases of quarantine ---


async def cases(
    conn: Connection, caller: Caller, *, is_open: bool | None = None, text: str | None = None,
    after: UUID | None = None, limit: int = 50,
) -> list[StoredCase]:  # fmt: skip
    """Return cases of quarantine of the projects where a caller may put datasets under quarantine."""
    right, everything = (Action.QUARANTINE,), Resource("the cases of quarantine", "*", "*")
    projects = None
    if not caller.may(right, everything):
        caller.require_somewhere(right, everything)
        case_projects = await quarantine_cases.case_projects(conn)
        projects = [project for project in case_projects if caller.may(right, Resource.of_collection(project))]
    return await quarantine_cases.cases(conn, projects=projects, is_open=is_open, text=text, after=after, limit=limit)


# --- JSON ---


def _document_of(view: DeletionView) -> dict[str, Any]:
    entry, now = view.deletion, view.at
    is_open = entry.state is DeletionState.OPEN
    missing = entry.missing(now) if is_open else ()
    return {
        "id": str(entry.id),
        "collection": entry.collection,
        "dataset": entry.dataset,
        "event_id": str(entry.event_id),
        "state": entry.state,
        "ready": is_open and not missing,
        "late": is_open and any(each.is_late(now) for each in entry.dependencies),
        "reason": entry.reason,
        "actor": entry.actor,
        "marked_at": rfc3339(entry.marked_at),
        "grace_until": rfc3339(entry.grace_until),
        "automatic": entry.automatic,
        "rules": entry.rules,
        "identifiers": list(entry.identifiers),
        "ended_at": rfc3339_or_none(entry.ended_at),
        "ended_by": entry.ended_by,
        "dependencies": [_part_as_json(each, now, is_open=is_open) for each in entry.dependencies],
        "missing": [finding.as_json() for finding in missing],
        "history": [
            {"at": rfc3339(each.at), "actor": each.actor, "action": each.action, "outcome": each.outcome,
             "detail": {name: value for name, value in each.detail.items() if name != "deletion"}}
            for each in view.history
        ],
    }  # fmt: skip


def _part_as_json(each: DependencyStatus, now: datetime, *, is_open: bool) -> dict[str, Any]:
    return {
        "name": each.name, "required": each.required, "owns_identifier": each.owns_identifier, "state": each.state,
        "comment": each.comment, "contact": each.contact, "due": rfc3339(each.due),
        "late": is_open and each.is_late(now), "reported_at": rfc3339_or_none(each.reported_at),
        "reminded_at": rfc3339_or_none(each.reminded_at), "reminders": each.reminders,
        "waivers": [{"actor": w.actor, "reason": w.reason, "at": rfc3339(w.at)} for w in each.waivers],
    }  # fmt: skip


def document_for(view: DeletionView, caller: Caller) -> dict[str, Any]:
    """Return a deletion in JSON for a reader, with what is missing before the dataset can be deleted.

    A node sees what it has to do itself, and nobody's names or reasons.
    """
    if view.is_whole:
        return _document_of(view)
    entry = view.deletion
    own = tuple(each for each in entry.dependencies if is_of_node(each.name, caller.principal.node))
    own_view = replace(view, deletion=replace(entry, dependencies=own, identifiers=()), history=())
    own_document = _document_of(own_view)
    return {
        **own_document, "reason": None, "actor": None, "ended_by": None, "missing": [],
        "dependencies": [{**each, "contact": None, "waivers": []} for each in own_document["dependencies"]],
    }  # fmt: skip


def rules_document(project_rules: StoredRules) -> dict[str, Any]:
    """Return rules in JSON, with their version, who stored them, and when."""
    return {
        "project": project_rules.project, "version": project_rules.rules.version, "actor": project_rules.actor,
        "at": rfc3339(project_rules.at),
        "rules": project_rules.rules.as_json(),
    }  # fmt: skip


def affected_document(affected: RuleEffect, project: str) -> dict[str, Any]:
    """Return in JSON what other rules touch."""
    return {
        "project": project, "version": affected.after.version, "rules": affected.after.as_json(),
        "changes": [each.as_json() for each in affected.changes],
        "open": affected.open.count, "applies_to_open": affected.applies_to_open,
        "first": [{"id": str(id), "dataset": dataset} for id, dataset in affected.open.first],
    }  # fmt: skip


def case_document(case: StoredCase) -> dict[str, Any]:
    """Return a case of quarantine in JSON."""
    return {
        "id": str(case.id), "collection": case.collection, "dataset": case.dataset, "reason": case.reason,
        "case": case.reference, "contact": case.contact, "links": list(case.links),
        "opened_at": rfc3339(case.opened_at), "opened_by": case.opened_by, "decision": case.decision,
        "closed_at": rfc3339_or_none(case.closed_at), "closed_by": case.closed_by,
    }  # fmt: skip
