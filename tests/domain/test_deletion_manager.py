"""The rules of the deletion manager: waivers, other rules for open deletions, reminders, the schedule."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from fedstac.domain import deletion
from fedstac.domain.deletion import (
    IDENTIFIER_GUARD,
    Deletion,
    DeletionRules,
    Dependency,
    DependencyState,
    DependencyStatus,
    Waiver,
)
from fedstac.domain.errors import StacInvalid

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
OWNER = Dependency("doi-desk", owns_identifier=True)
EAST, WEST = Dependency("east"), Dependency("west", required=False)
OK, FAILED, PENDING = DependencyState.OK, DependencyState.FAILED, DependencyState.PENDING


def begun(*dependencies: Dependency, identifiers: tuple[str, ...] = ("hdl:1/2",), grace: float = 0) -> Deletion:
    return deletion.begin(
        DeletionRules(dependencies, grace_days=grace, version=1), id=UUID(int=1), collection="CMIP6", dataset="d",
        event_id=UUID(int=2), actor="anna", now=NOW, reason=None, request=None, identifiers=identifiers,
    )  # fmt: skip


def with_state(entry: Deletion, **states: DependencyState) -> Deletion:
    parts = (
        replace(each, state=states.get(each.name.replace("-", "_"), each.state)) for each in entry.dependencies
    )  # fmt: skip
    return replace(entry, dependencies=tuple(parts))


def named(entry: Deletion) -> dict[str, tuple[bool, bool, str]]:
    return {each.name: (each.required, each.owns_identifier, each.state) for each in entry.dependencies}


def waiver(actor: str) -> Waiver:
    return Waiver(actor, "it is gone", NOW)


def waive(status: DependencyStatus, *actors: str) -> DependencyStatus:
    for actor in actors:
        status = deletion.waive(status, waiver(actor))
    return status


@pytest.mark.parametrize(
    ("dependency", "actors", "state"),
    [
        (EAST, ("anna",), "waived"), (OWNER, ("anna",), "pending"), (OWNER, ("anna", "anna"), "pending"),
        (OWNER, ("anna", "boris"), "waived"), (OWNER, ("anna", "anna", "boris"), "waived"),
    ],
)  # fmt: skip
def test_as_many_people_waive_as_are_needed(dependency: Dependency, actors: tuple[str, ...], state: str) -> None:
    status = begun(dependency).dependencies[0]
    assert waive(status, *actors).state == state


def test_a_waiver_of_what_is_done_or_waived_changes_nothing() -> None:
    [status] = begun(OWNER).dependencies
    done = replace(status, state=OK)
    assert deletion.waive(done, waiver("anna")) is done
    once = waive(status, "anna")
    assert deletion.waive(once, waiver("anna")) is once
    both = waive(once, "boris")
    assert deletion.waive(both, waiver("carla")) is both


def test_a_failure_that_is_waived_no_longer_blocks() -> None:
    entry = with_state(begun(EAST, identifiers=()), east=FAILED)
    assert [each.rule for each in entry.missing(NOW)] == ["dependency"]
    assert not replace(entry, dependencies=(waive(entry.dependencies[0], "anna"),)).missing(NOW)


def revised(entry: Deletion, *dependencies: Dependency, grace: float = 0) -> dict[str, tuple[bool, bool, str]]:
    rules = DeletionRules(dependencies, grace_days=grace, automatic=True, version=2)
    after = deletion.revise(entry, rules, NOW + DAY)
    assert (after.rules, after.automatic, after.grace_until) == (2, True, NOW + grace * DAY)
    return named(after)


def test_who_has_reported_keeps_their_state_and_who_has_not_leaves_with_the_rule() -> None:
    entry = with_state(begun(EAST, WEST, OWNER), east=FAILED)
    assert revised(entry, OWNER, Dependency("north")) == {
        "doi-desk": (True, True, "pending"), "north": (True, False, "pending"), "east": (False, False, "failed"),
    }  # fmt: skip
    assert revised(with_state(entry, east=OK), EAST, OWNER)["east"] == (True, False, "ok")


def test_identifiers_never_lose_their_guard() -> None:
    entry = begun(EAST, OWNER)
    guard = (True, True, "pending")
    assert revised(entry, EAST)[IDENTIFIER_GUARD] == guard
    assert revised(with_state(entry, doi_desk=FAILED), EAST)[IDENTIFIER_GUARD] == guard
    assert revised(with_state(entry, doi_desk=OK), EAST) == {
        "doi-desk": (True, True, "ok"),
        "east": (True, False, "pending"),
    }
    unguarded = begun(EAST)
    assert named(unguarded)[IDENTIFIER_GUARD] == guard
    assert IDENTIFIER_GUARD not in revised(unguarded, EAST, OWNER)  # the owner stands in its place
    assert IDENTIFIER_GUARD not in revised(begun(EAST, identifiers=()), EAST)


@pytest.mark.parametrize("state", [OK, DependencyState.NOTHING_TO_DO, DependencyState.WAIVED, FAILED])
def test_who_becomes_the_owner_of_the_identifiers_begins_anew(state: DependencyState) -> None:
    """What it did before was not about the identifiers: two people, not one, waive an owner."""
    entry = with_state(begun(EAST), east=state)
    east = replace(entry.dependencies[0], waivers=(waiver("anna"),))
    entry = replace(entry, dependencies=(east, *entry.dependencies[1:]))
    after = deletion.revise(entry, DeletionRules((replace(EAST, owns_identifier=True),), version=2), NOW)
    [only] = after.dependencies
    assert (only.name, only.state, only.waivers, only.owns_identifier) == ("east", "pending", (), True)


def test_a_guard_that_one_person_waived_keeps_that_over_other_rules() -> None:
    entry = begun(EAST)
    parts = tuple(waive(each, "anna") if each.name == IDENTIFIER_GUARD else each for each in entry.dependencies)
    after = deletion.revise(replace(entry, dependencies=parts), DeletionRules((), version=2), NOW)
    [guard] = after.dependencies
    assert [each.actor for each in guard.waivers] == ["anna"]


@pytest.mark.parametrize(("wish", "required"), [(replace(OWNER, owns_identifier=False), True), (None, False)])
def test_one_waiver_is_enough_for_who_owns_the_identifiers_no_longer(wish: Dependency | None, required: bool) -> None:
    """Who waived it could not waive it again, and no second person is needed for it any more."""
    entry = with_state(begun(OWNER, identifiers=()), doi_desk=FAILED if wish is None else PENDING)
    entry = replace(entry, dependencies=(waive(entry.dependencies[0], "anna"),))
    assert entry.missing(NOW)
    after = deletion.revise(entry, DeletionRules((wish,) if wish else (), version=2), NOW)
    [part] = after.dependencies
    assert (part.required, part.owns_identifier, part.state) == (required, False, "waived")
    assert [each.actor for each in part.waivers] == ["anna"]


def test_reminders_come_after_days_that_double_up_to_sixteen() -> None:
    days = [(deletion.next_reminder(NOW, n) - NOW).days for n in range(1, 9)]
    assert days == [1, 2, 4, 8, 16, 16, 16, 16]


@pytest.mark.parametrize(
    ("schedule", "hours"),
    [("", 0), ("12:00", 0), ("11:30", -0.5), ("12:01", 1 / 60 - 24), ("00:00", -12), ("23:59", -12 - 1 / 60)],
)
def test_the_schedule_began_last_today_or_yesterday(schedule: str, hours: float) -> None:
    assert deletion.last_run(schedule, NOW) == NOW + timedelta(hours=hours)


def test_a_comparison_names_each_rule_that_differs() -> None:
    before = DeletionRules((EAST, WEST), version=1)
    after = DeletionRules((EAST, OWNER), grace_days=1, automatic=True, schedule="03:30", version=2)
    assert [(each.what, each.name) for each in deletion.compare(before, after)] == [
        ("dependency", "doi-desk"), ("dependency", "west"), ("grace_days", ""), ("automatic", ""), ("schedule", ""),
    ]  # fmt: skip
    assert deletion.compare(before, replace(before, version=7)) == ()


@pytest.mark.parametrize(
    "schedule",
    [
        "24:00",
        "3:30",
        "03:60",
        "03:30\n",
        "0\N{ARABIC-INDIC DIGIT THREE}:30",
        "03:3\N{ARABIC-INDIC DIGIT ZERO}",
        "03.30",
        " 03:30",
    ],
)
def test_a_schedule_is_a_time_of_day_in_the_digits_that_everybody_reads(schedule: str) -> None:
    with pytest.raises(StacInvalid, match="schedule is a time of day in UTC"):
        deletion.read_rules({"schedule": schedule})
    assert deletion.read_rules({"schedule": "03:30"}).schedule == "03:30"
