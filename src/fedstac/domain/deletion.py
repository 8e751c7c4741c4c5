"""The rules of deletion: who must do their part before a marked dataset is deleted, and what is still missing. Pure.

A mark opens a deletion with one row a dependency. Each dependency reports for itself. The dataset can be deleted when
every required one has done its part or was waived, and the grace period is over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from fedstac.domain.errors import Finding, StacInvalid

IDENTIFIER_GUARD: Final = "identifier"  # stands for the owner of the identifiers where the rules name none
IDENTIFIER_NAMES: Final = ("pid", "doi")  # properties, also behind a prefix: sci:doi, cmip6:pid
RESOLVERS: Final = re.compile(r"(?i)https?://(?:(?:dx\.)?doi\.org|hdl\.handle\.net)/\S+")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
MOST_DEPENDENCIES, MOST_DAYS, LONGEST_TEXT, LONGEST_CONTACT = 50, 3650.0, 2000, 200
DAY_SECONDS: Final = 86_400.0
GRACE_DAYS, TIMEOUT_DAYS = 30.0, 7.0  # where the rules say nothing
WAIVERS_OF_GUARD: Final = 2  # people who waive the owner of an identifier; one waives any other
FIRST_REMINDER, LONGEST_REMINDER = timedelta(days=1), timedelta(days=16)  # between two reminders


class DependencyState(StrEnum):
    """How far a dependency is with its part of a deletion."""

    PENDING = "pending"
    OK = "ok"
    FAILED = "failed"
    NOTHING_TO_DO = "nothing to do"
    WAIVED = "waived"


REPORTED: Final = (DependencyState.OK, DependencyState.FAILED, DependencyState.NOTHING_TO_DO)
FULFILLED: Final = (DependencyState.OK, DependencyState.NOTHING_TO_DO, DependencyState.WAIVED)


@dataclass(frozen=True, slots=True)
class Dependency:
    """A node or service that does something when a dataset is deleted. `days`: it is late after these."""

    name: str
    required: bool = True
    days: float = TIMEOUT_DAYS
    contact: str | None = None
    owns_identifier: bool = False

    def as_json(self) -> dict[str, object]:
        return {"name": self.name, "required": self.required, "days": self.days, "contact": self.contact,
                "owns_identifier": self.owns_identifier}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeletionRules:
    """The rules of a project: who acknowledges, for how long a mark can be taken back, and who deletes.

    automatic: the schedule deletes what is ready; else somebody does. schedule: "HH:MM" in UTC, from which the
    automatic run begins each day; "" as soon as something is ready. version: 0 where the project has no rules.
    """

    dependencies: tuple[Dependency, ...] = ()
    grace_days: float = GRACE_DAYS
    automatic: bool = False
    schedule: str = ""
    version: int = 0

    def as_json(self) -> dict[str, object]:
        return {"dependencies": [each.as_json() for each in self.dependencies], "grace_days": self.grace_days,
                "automatic": self.automatic, "schedule": self.schedule}  # fmt: skip


NO_RULES: Final = DeletionRules()


def read_rules(value: object, *, version: int = 0) -> DeletionRules:
    """Read rules as `as_json` writes them; what is left out is as in NO_RULES. StacInvalid names what is wrong."""
    members = NO_RULES.as_json().keys()
    if not isinstance(value, dict) or not value.keys() <= members:
        raise _invalid("", f"the rules are a JSON object with some of {', '.join(members)}")
    entries = value.get("dependencies", [])
    if not isinstance(entries, list) or len(entries) > MOST_DEPENDENCIES:
        raise _invalid("/dependencies", f"dependencies are a list of at most {MOST_DEPENDENCIES}")
    dependencies = tuple(_dependency(entry, f"/dependencies/{n}") for n, entry in enumerate(entries))
    names = [each.name for each in dependencies]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise _invalid("/dependencies", f"{twice[0]} is there twice; name each dependency once")
    grace_days = _days(value.get("grace_days", GRACE_DAYS), "/grace_days", least=0.0)
    automatic, schedule = value.get("automatic", False), value.get("schedule", "")
    if type(automatic) is not bool:
        raise _invalid("/automatic", "automatic is true or false")
    if not isinstance(schedule, str) or (schedule and not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", schedule)):
        raise _invalid("/schedule", 'schedule is a time of day in UTC, like "03:30", or "" for as soon as it is ready')
    return DeletionRules(dependencies, grace_days, automatic, schedule, version)


def _dependency(value: object, at: str) -> Dependency:
    members = Dependency("").as_json().keys()
    if not isinstance(value, dict) or not value.keys() <= members:
        raise _invalid(at, f"a dependency is a JSON object with some of {', '.join(members)}")
    name, contact = value.get("name"), value.get("contact")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _invalid(f"{at}/name", "name is that of a node or service: letters, digits, and . _ - / within")
    if name == IDENTIFIER_GUARD:
        raise _invalid(f"{at}/name", f"the name {name} is kept for identifiers that nobody owns; choose another")
    if contact is not None and (not isinstance(contact, str) or not 0 < len(contact) <= LONGEST_CONTACT):
        raise _invalid(f"{at}/contact", f"contact is a text of at most {LONGEST_CONTACT} characters")
    for member in ("required", "owns_identifier"):
        if type(value.get(member, True)) is not bool:
            raise _invalid(f"{at}/{member}", f"{member} is true or false")
    if value.get("owns_identifier", False) and not value.get("required", True):
        raise _invalid(f"{at}/required", "who owns the identifiers is always required")
    days = _days(value.get("days", TIMEOUT_DAYS), f"{at}/days", least=1 / DAY_SECONDS)
    return Dependency(name, value.get("required", True), days, contact, value.get("owns_identifier", False))


def _days(value: object, at: str, *, least: float) -> float:
    if type(value) not in (int, float) or not least <= float(str(value)) <= MOST_DAYS:
        raise _invalid(at, f"{at.rpartition('/')[2]} is a number of days, {MOST_DAYS:.0f} at most")
    return float(str(value))


def _invalid(at: str, message: str) -> StacInvalid:
    return StacInvalid(f"the rules of deletion are not valid: {message}",
                       findings=(Finding("deletion-rules", at, message),))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Waiver:
    """Somebody's decision that a deletion does not wait for a dependency."""

    actor: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class DependencyStatus:
    """How far one dependency is with its part of one deletion."""

    name: str
    required: bool
    owns_identifier: bool
    due: datetime
    contact: str | None = None
    state: DependencyState = DependencyState.PENDING
    comment: str | None = None
    reported_at: datetime | None = None
    reminded_at: datetime | None = None
    reminders: int = 0
    waivers: tuple[Waiver, ...] = ()

    @property
    def is_fulfilled(self) -> bool:
        return self.state in FULFILLED

    def is_late(self, now: datetime) -> bool:
        """Tell whether its part is not done, and was due."""
        return not self.is_fulfilled and now > self.due


class DeletionState(StrEnum):
    """How a deletion stands."""

    OPEN = "open"
    UNMARKED = "unmarked"
    DELETED = "deleted"
    PURGED = "purged"


@dataclass(frozen=True, slots=True)
class Deletion:
    """A mark for deletion, and what has to happen before the dataset is deleted. event_id: of the mark.

    awaits_rules: other rules for open deletions are being applied, and this one does not have them yet.
    """

    id: UUID
    collection: str
    dataset: str
    event_id: UUID
    marked_at: datetime
    grace_until: datetime
    actor: str
    reason: str | None = None
    request: UUID | None = None
    automatic: bool = False
    rules: int = 0  # version of the project's rules
    identifiers: tuple[str, ...] = ()
    dependencies: tuple[DependencyStatus, ...] = field(default=())
    state: DeletionState = DeletionState.OPEN
    ended_at: datetime | None = None
    ended_by: str | None = None
    institution: str | None = None
    awaits_rules: bool = False

    def dependency(self, name: str) -> DependencyStatus | None:
        """Return the dependency of a name; None where there is none."""
        return next((each for each in self.dependencies if each.name == name), None)

    @property
    def is_blocked(self) -> bool:
        """Whether a required part is not done, or nobody owns its identifiers."""
        is_owned = any(each.owns_identifier for each in self.dependencies)
        is_open = any(each.required and not each.is_fulfilled for each in self.dependencies)
        return is_open or (bool(self.identifiers) and not is_owned)

    @property
    def late_after(self) -> datetime | None:
        """When the first of the parts that are not done is due; None where all are done."""
        return min((each.due for each in self.dependencies if not each.is_fulfilled), default=None)

    def missing(self, now: datetime) -> tuple[Finding, ...]:
        """Return what has to happen before the dataset can be deleted; nothing where it can be."""
        missing = [
            Finding("dependency", f"/dependencies/{each.name}", _missing_part(each))
            for each in self.dependencies if each.required and not each.is_fulfilled
        ]  # fmt: skip
        if self.identifiers and not any(each.owns_identifier for each in self.dependencies):
            missing.append(Finding("identifier", "/identifiers", "nobody owns the identifiers; mark it again"))
        if self.awaits_rules:
            missing.append(Finding("rules", "/rules", "it is about to get other rules; look again in a moment"))
        if now < self.grace_until:
            until = self.grace_until.isoformat(timespec="seconds").replace("+00:00", "Z")
            missing.append(Finding("grace", "/grace_until", f"the grace period lasts until {until}; wait for its end"))
        return tuple(missing)


def _missing_part(each: DependencyStatus) -> str:
    how = "has not reported" if each.state is DependencyState.PENDING else "reports a failure"
    if each.name == IDENTIFIER_GUARD:
        return "the identifiers are registered, and no dependency owns them; two people can waive that"
    remedy = "two people can waive it" if each.owns_identifier else "remind it, or waive it with a reason"
    return f"{each.name} {how}; {remedy}"


def begin(
    rules: DeletionRules, *, id: UUID, collection: str, dataset: str, event_id: UUID, actor: str, now: datetime,
    reason: str | None, request: UUID | None, identifiers: Sequence[str], institution: str | None = None,
) -> Deletion:  # fmt: skip
    """Return the deletion that a mark opens under a project's rules.

    Where the dataset has registered identifiers, their owner is among the dependencies, whether the rules name one or
    not.
    """
    dependencies = [
        DependencyStatus(each.name, each.required, each.owns_identifier, now + timedelta(days=each.days), each.contact)
        for each in rules.dependencies
    ]
    if identifiers and not any(each.owns_identifier for each in dependencies):
        due = now + timedelta(days=TIMEOUT_DAYS)
        dependencies.append(DependencyStatus(IDENTIFIER_GUARD, required=True, owns_identifier=True, due=due))
    return Deletion(
        id, collection, dataset, event_id, now, now + timedelta(days=rules.grace_days), actor, reason, request,
        rules.automatic, rules.version, tuple(identifiers), tuple(dependencies), institution=institution,
    )  # fmt: skip


def revise(deletion: Deletion, rules: DeletionRules, now: datetime) -> Deletion:
    """Return an open deletion as it is under other rules of its project.

    A dependency that has reported or was waived keeps its state; where the rules name it no longer, it is not required
    any more. One that has not reported is left out with the rules' name for it. Where one owned the identifiers and
    does so no longer, the waiver of one person is enough: that person could not waive it again. Who becomes the owner
    of the identifiers begins anew: what it did before was not about them. An owner that the rules name no longer still
    counts if its part is done, or was waived by two people; else the new owner has to do it, or the guard stands in.
    """
    wishes = {each.name: each for each in rules.dependencies}
    revised: list[DependencyStatus] = []
    for each in deletion.dependencies:
        wish = wishes.pop(each.name, None)
        if wish is not None:
            after = replace(
                each, required=wish.required, owns_identifier=wish.owns_identifier, contact=wish.contact,
                due=deletion.marked_at + timedelta(days=wish.days),
            )  # fmt: skip
            if wish.owns_identifier and not each.owns_identifier:
                after = DependencyStatus(each.name, wish.required, True, now + timedelta(days=wish.days), wish.contact)
            revised.append(_with_waivers_counted(after))
        elif each.owns_identifier and each.is_fulfilled:
            revised.append(each)
        elif each.state is not DependencyState.PENDING and each.name != IDENTIFIER_GUARD:
            revised.append(_with_waivers_counted(replace(each, required=False, owns_identifier=False)))
    revised += [
        DependencyStatus(each.name, each.required, each.owns_identifier, now + timedelta(days=each.days), each.contact)
        for each in wishes.values()
    ]  # fmt: skip
    if deletion.identifiers and not any(each.owns_identifier for each in revised):
        before = deletion.dependency(IDENTIFIER_GUARD)
        due = now + timedelta(days=TIMEOUT_DAYS)
        revised.append(before or DependencyStatus(IDENTIFIER_GUARD, required=True, owns_identifier=True, due=due))
    revised.sort(key=lambda each: (not each.required, each.name))
    return replace(
        deletion, dependencies=tuple(revised), automatic=rules.automatic, rules=rules.version, awaits_rules=False,
        grace_until=deletion.marked_at + timedelta(days=rules.grace_days),
    )  # fmt: skip


def waive(dependency: DependencyStatus, waiver: Waiver) -> DependencyStatus:
    """Return a dependency after somebody waived it. Twice by one person, and of what is done, changes nothing."""
    if dependency.is_fulfilled or any(each.actor == waiver.actor for each in dependency.waivers):
        return dependency
    return _with_waivers_counted(replace(dependency, waivers=(*dependency.waivers, waiver)))


def _with_waivers_counted(dependency: DependencyStatus) -> DependencyStatus:
    """Return a dependency, waived where as many people as it needs have waived it and its part is not done."""
    people = {each.actor for each in dependency.waivers}
    if dependency.is_fulfilled or len(people) < waivers_needed(dependency):
        return dependency
    return replace(dependency, state=DependencyState.WAIVED)


def next_reminder(now: datetime, reminders: int) -> datetime:
    """Return when a dependency is reminded again after so many reminders: after 1 day, 2, 4, 8, then every 16."""
    doublings = min(max(reminders - 1, 0), 10)
    return now + min(FIRST_REMINDER * (1 << doublings), LONGEST_REMINDER)


def last_run(schedule: str, now: datetime) -> datetime:
    """Return the last moment at which the automatic run began, for a schedule of DeletionRules; now without one."""
    if not schedule:
        return now
    hour, minute = (int(part) for part in schedule.split(":"))
    today = datetime.combine(now.astimezone(UTC).date(), time(hour, minute), UTC)
    return today if today <= now else today - timedelta(days=1)


@dataclass(frozen=True, slots=True)
class RuleChange:
    """What becomes of a dependency, or of another rule, with other rules: `was` and `will` in JSON."""

    what: str  # dependency, grace_days, automatic, schedule
    name: str
    was: object
    will: object

    def as_json(self) -> dict[str, object]:
        return {"what": self.what, "name": self.name, "was": self.was, "will": self.will}


def compare(before: DeletionRules, after: DeletionRules) -> tuple[RuleChange, ...]:
    """Return what differs between two sets of rules; nothing where they say the same."""
    was = {each.name: each.as_json() for each in before.dependencies}
    will = {each.name: each.as_json() for each in after.dependencies}
    changes = [
        RuleChange("dependency", name, was.get(name), will.get(name))
        for name in sorted(was.keys() | will.keys()) if was.get(name) != will.get(name)
    ]  # fmt: skip
    old, new = before.as_json(), after.as_json()
    changes += [
        RuleChange(name, "", old[name], new[name])
        for name in ("grace_days", "automatic", "schedule") if old[name] != new[name]
    ]  # fmt: skip
    return tuple(changes)


def identifiers_of(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the persistent identifiers of a dataset: handles, DOIs, what it is cited as, in a fixed order."""
    properties, links = document.get("properties", {}), document.get("links", [])
    values = [
        value for name, value in properties.items()
        if name.rpartition(":")[2].lower() in IDENTIFIER_NAMES and isinstance(value, str) and value.strip()
    ]  # fmt: skip
    values += [
        link["href"] for link in links
        if link.get("rel") == "cite-as" and isinstance(link.get("href"), str) and RESOLVERS.fullmatch(link["href"])
    ]  # fmt: skip
    return tuple(sorted({value[:LONGEST_TEXT] for value in values}))


def has_identifier(text: str | None) -> bool:
    """Tell whether a stored document seems to name a persistent identifier, without parsing it, for a count of many.

    It may see one where `identifiers_of` sees none, as in a nested member; never the other way round.
    """
    if text is None:
        return False
    lowered = text.lower()
    for name in IDENTIFIER_NAMES:
        member = f'{name}":"'
        at = lowered.find(member)
        while at >= 0:
            if lowered[at + len(member)] != '"':
                return True
            at = lowered.find(member, at + 1)
    return '"rel":"cite-as"' in text and RESOLVERS.search(text) is not None


def state_after(before: DependencyState, report: DependencyState) -> DependencyState:
    """Return the state of a dependency after a report. Done stays done, and a waiver holds, whatever comes late."""
    if before in FULFILLED and not (before is DependencyState.WAIVED and report in FULFILLED):
        return before
    return report


def waivers_needed(dependency: DependencyStatus) -> int:
    """Return how many different people have to waive a dependency."""
    return WAIVERS_OF_GUARD if dependency.owns_identifier else 1
