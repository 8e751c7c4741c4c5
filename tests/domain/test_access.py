"""Who may read what of a dataset, as tables, and what an event says to them."""

from __future__ import annotations

from typing import Any

import pytest

from fedstac.domain import access, documents, events
from fedstac.domain.access import DatasetAccess, DatasetReader, View
from fedstac.domain.model import State
from fedstac.domain.policy import ROLES, Home, Level, Policy, Principal, ProjectLevel, Resource

DATASET = Resource("CMIP6.a", "CMIP6", "NCAR")
EVERY = frozenset(("*",))


def view(role: str | None, state: State, level: Level, *, holds_grant: bool = False, policy: Policy = ROLES) -> View:
    caller = Principal("somebody", frozenset((role,))) if role is not None else None
    return DatasetReader(policy, caller).view_of(DatasetAccess(DATASET, state, level), holds_grant=holds_grant)


@pytest.mark.parametrize(
    ("role", "opened", "controlled", "private"),
    [
        (None, View.FILES, View.METADATA, View.NOTHING),
        ("publisher:IPSL", View.FILES, View.METADATA, View.NOTHING),
        ("publisher:NCAR", View.EVERYTHING, View.EVERYTHING, View.EVERYTHING),
        ("node:east", View.FILES, View.FILES, View.FILES),
        ("admin", View.EVERYTHING, View.EVERYTHING, View.EVERYTHING),
    ],
)
def test_what_a_level_shows_to_whom(role: str | None, opened: View, controlled: View, private: View) -> None:
    views = [view(role, State.PUBLISHED, level) for level in Level]
    assert views == [opened, controlled, private]


def test_a_grant_opens_the_files_and_nothing_else() -> None:
    assert view("member", State.PUBLISHED, Level.CONTROLLED, holds_grant=True) is View.FILES
    assert view("member", State.PUBLISHED, Level.PRIVATE, holds_grant=True) is View.FILES
    assert view("member", State.RETRACTED, Level.CONTROLLED, holds_grant=True) is View.METADATA
    assert view("member", State.QUARANTINED, Level.PRIVATE, holds_grant=True) is View.METADATA
    assert view("member", State.MARKED, Level.CONTROLLED, holds_grant=True) is View.NOTHING


@pytest.mark.parametrize(
    ("role", "retracted", "quarantined", "marked", "deleted"),
    [
        (None, View.METADATA, View.METADATA, View.NOTHING, View.FILES),
        ("publisher:NCAR", View.EVERYTHING, View.METADATA, View.EVERYTHING, View.EVERYTHING),
        ("admin", View.EVERYTHING, View.EVERYTHING, View.EVERYTHING, View.EVERYTHING),
    ],
)
def test_what_a_state_shows_to_whom(
    role: str | None, retracted: View, quarantined: View, marked: View, deleted: View
) -> None:
    states = (State.RETRACTED, State.QUARANTINED, State.MARKED, State.DELETED)
    assert [view(role, state, Level.OPEN) for state in states] == [retracted, quarantined, marked, deleted]


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("role", [None, "publisher:IPSL", "member", "monitor"])
def test_what_is_private_is_nothing_to_strangers_in_every_state(role: str | None, state: State) -> None:
    assert view(role, state, Level.PRIVATE) is View.NOTHING


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("holds_grant", [False, True])
@pytest.mark.parametrize("role", [None, "publisher:IPSL", "publisher:NCAR", "node:east", "admin"])
def test_a_stricter_level_never_shows_more(role: str | None, state: State, level: Level, holds_grant: bool) -> None:
    assert view(role, state, level, holds_grant=holds_grant) <= view(role, state, Level.OPEN, holds_grant=holds_grant)


def test_a_home_elsewhere_does_not_stop_a_publisher_from_reading() -> None:
    policy = Policy(homes=(Home(EVERY, EVERY, "west", "https://west.test"),), here="east")
    assert view("publisher:NCAR", State.PUBLISHED, Level.PRIVATE, policy=policy) is View.EVERYTHING


@pytest.mark.parametrize(
    ("value", "level"),
    [(None, Level.OPEN), ("open", Level.OPEN), ("controlled", Level.CONTROLLED), ("private", Level.PRIVATE),
     ("secret", Level.PRIVATE), (True, Level.PRIVATE), ([], Level.PRIVATE)],
)  # fmt: skip
def test_a_level_that_nobody_knows_is_private(value: object, level: Level) -> None:
    assert access.level_of({documents.ACCESS: value}) is level


def test_the_strictest_entry_for_a_project_counts() -> None:
    of_all = ProjectLevel(EVERY, Level.CONTROLLED)
    of_one = ProjectLevel(frozenset(("CMIP6",)), Level.PRIVATE)
    policy = Policy(levels=(of_one, of_all))
    assert (policy.level_of("CMIP6"), policy.level_of("CMIP7")) == (Level.PRIVATE, Level.CONTROLLED)
    assert ROLES.level_of("CMIP6") is Level.OPEN


def event(kind: str = events.PUBLISHED, **data: Any) -> dict[str, Any]:
    of_all = {"collection": "CMIP6", "id": "CMIP6.a", "state": "published", "actor": "ncar", "previous_state": None}
    document = {"id": "CMIP6.a", "assets": {"a": {"href": "https://a.test/secret.nc"}}, "properties": {"title": "A"}}
    return {"type": kind, "data": {**of_all, "document": document, **data}}


def test_an_event_says_no_more_than_the_view_allows() -> None:
    unmarked = event(events.UNMARKED, previous_state="marked", reason="a mistake", access="controlled")
    assert access.event_for(unmarked, View.NOTHING) is None
    assert access.event_for(unmarked, View.EVERYTHING) == unmarked
    files, metadata = (access.event_for(unmarked, each) for each in (View.FILES, View.METADATA))
    assert files is not None
    assert metadata is not None
    assert files["type"] == metadata["type"] == events.UPDATED
    for member in access.INTERNAL:
        assert member not in files["data"]
        assert member not in metadata["data"]
    assert files["data"]["document"] == unmarked["data"]["document"]
    assert "secret" not in str(metadata)
    assert metadata["data"]["document"]["properties"] == {"title": "A"}
    assert unmarked["data"]["document"]["assets"], "the event that is given stays as it is"


def test_the_files_of_a_deletion_and_the_reason_of_a_quarantine_are_for_insiders() -> None:
    href = [{"key": "a", "href": "https://a.test/secret.nc"}]
    deleted = event(events.DELETED, document=None, unreferenced=href, still_referenced=href)
    quarantined = event(events.QUARANTINED, quarantine={"reason": "a secret", "case": "7", "contact": "a@b"})
    for each in (deleted, quarantined):
        assert "secret" not in str(access.event_for(each, View.METADATA))
    assert "secret" not in str(access.event_for(deleted, View.FILES)), "a hidden dataset may have the same file"
    assert access.event_for(deleted, View.EVERYTHING) == deleted
    notice = access.event_for(quarantined, View.METADATA)
    assert notice is not None
    assert notice["data"]["quarantine"] == {"case": "7", "contact": "a@b"}


def test_the_access_of_an_event_has_its_level() -> None:
    dataset = access.access_of(event(access="controlled")["data"], "NCAR")
    assert dataset == DatasetAccess(DATASET, State.PUBLISHED, Level.CONTROLLED)
    assert access.needing_grants([dataset, DatasetAccess(DATASET, State.PUBLISHED)]) == {("CMIP6", "CMIP6.a")}
