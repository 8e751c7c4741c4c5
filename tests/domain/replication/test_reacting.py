"""What a replica node does with each event, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from fedstac.domain.replication.policy import NO_RULE, OnRetracted, OnSuperseded, ReplicaAction, ReplicaDecision
from fedstac.domain.replication.reacting import NOTHING, EventState, Goal, GoalKind, Here, goal_of, react
from fedstac.domain.replication.states import DatasetState, RemovalKind

KEEP = ReplicaDecision(ReplicaAction.REPLICATE, "keep", on_retracted=OnRetracted.KEEP)
COOL = ReplicaDecision(ReplicaAction.REPLICATE, "cool", on_superseded=OnSuperseded.TIER, superseded_tier="cold")
DROP = ReplicaDecision(
    ReplicaAction.REPLICATE, "drop", on_superseded=OnSuperseded.PURGE, on_retracted=OnRetracted.PURGE
)
HIDE = ReplicaDecision(ReplicaAction.RESTRICT, "hide")
SERVED = Here(DatasetState.ANNOUNCED, tiers=frozenset({KEEP.tier}), is_whole=True, is_announced=True)
RESTRICTED = Here(DatasetState.RESTRICTED, tiers=frozenset({"restricted"}), is_whole=True)
P, R, M = EventState.PUBLISHED, EventState.RETRACTED, EventState.MARKED


@pytest.mark.parametrize(
    ("state", "decision", "latest", "retraction", "kind", "tier"),
    [
        (P, KEEP, True, None, GoalKind.SERVE, ""),
        (P, COOL, False, None, GoalKind.SERVE, "cold"),
        (P, DROP, False, None, GoalKind.PURGE, ""),
        (P, HIDE, True, None, GoalKind.RESTRICT, "restricted"),
        (P, NO_RULE, True, None, GoalKind.IGNORE, ""),
        (R, KEEP, False, {}, GoalKind.HOLD, ""),
        (R, KEEP, False, {"data": "restrict"}, GoalKind.RESTRICT, "restricted"),
        (R, KEEP, False, {"data": "purge"}, GoalKind.PURGE, ""),
        (R, DROP, False, {"data": "keep"}, GoalKind.PURGE, ""),
        (R, NO_RULE, False, {"data": "keep"}, GoalKind.RESTRICT, "restricted"),
        (M, KEEP, False, None, GoalKind.RESTRICT, "restricted"),
        (M, KEEP, False, {"data": "purge"}, GoalKind.PURGE, ""),
        (EventState.QUARANTINED, KEEP, True, None, GoalKind.RESTRICT, "restricted"),
        (EventState.DELETED, KEEP, False, None, GoalKind.PURGE, ""),
        (EventState.CLEARED, KEEP, False, None, GoalKind.RESTRICT, "restricted"),
    ],
)
def test_the_stricter_of_event_and_policy_decides(
    state: EventState, decision: ReplicaDecision, latest: bool, retraction: dict[str, Any] | None, kind: GoalKind,
    tier: str,
) -> None:  # fmt: skip
    goal = goal_of(state, decision, latest=latest, retraction=retraction)
    assert (goal.kind, goal.tier) == (kind, tier)
    assert goal.is_told is (state in (P, R))


def goal(kind: GoalKind, tier: str = "", *, is_told: bool = True) -> Goal:
    return Goal(kind, "because", tier, is_told)


@pytest.mark.parametrize(
    ("here", "wanted", "others", "state", "removal"),
    [
        (NOTHING, goal(GoalKind.SERVE), False, DatasetState.QUEUED, None),
        (NOTHING, goal(GoalKind.PURGE), False, DatasetState.CATALOGUED, None),
        (NOTHING, goal(GoalKind.HOLD), False, DatasetState.CATALOGUED, None),
        (SERVED, goal(GoalKind.SERVE), False, DatasetState.ANNOUNCED, None),
        (SERVED, goal(GoalKind.SERVE), True, DatasetState.MOVING, RemovalKind.TRIM),
        (SERVED, goal(GoalKind.SERVE, "cold"), False, DatasetState.MOVING, RemovalKind.TIER),
        (SERVED, goal(GoalKind.HOLD, "cold"), False, DatasetState.ANNOUNCED, None),
        (SERVED, goal(GoalKind.RESTRICT, "restricted"), False, DatasetState.REMOVING, RemovalKind.RESTRICT),
        (SERVED, goal(GoalKind.PURGE), False, DatasetState.REMOVING, RemovalKind.PURGE),
        (SERVED, goal(GoalKind.IGNORE), False, DatasetState.ANNOUNCED, None),
        (RESTRICTED, goal(GoalKind.RESTRICT, "restricted"), False, DatasetState.RESTRICTED, None),
        (RESTRICTED, goal(GoalKind.SERVE), False, DatasetState.MOVING, RemovalKind.RESTORE),
        (RESTRICTED, goal(GoalKind.HOLD), False, DatasetState.MOVING, RemovalKind.RESTORE),
        (RESTRICTED, goal(GoalKind.IGNORE), False, DatasetState.RESTRICTED, None),
        (RESTRICTED, goal(GoalKind.PURGE), False, DatasetState.REMOVING, RemovalKind.PURGE),
    ],
)
def test_what_is_here_is_compared_with_what_shall_be(
    here: Here, wanted: Goal, others: bool, state: DatasetState, removal: RemovalKind | None
) -> None:
    reaction = react(here, wanted, has_other_files=others)
    assert (reaction.state, reaction.removal) == (state, removal)


def test_an_entry_that_stayed_while_the_dataset_was_marked_goes_once_the_origin_takes_that() -> None:
    marked = Here(DatasetState.RESTRICTED, tiers=frozenset({"restricted"}), is_whole=True, is_announced=True)
    assert react(marked, goal(GoalKind.RESTRICT, "restricted", is_told=False), has_other_files=False).removal is None
    reaction = react(marked, goal(GoalKind.RESTRICT, "restricted"), has_other_files=False)
    assert reaction.removal is RemovalKind.RESTRICT


def test_a_transfer_under_way_goes_on_with_an_event_that_changes_no_file() -> None:
    waiting = Here(DatasetState.WAITING, "the source is closed", frozenset({""}))
    reaction = react(waiting, goal(GoalKind.SERVE), has_other_files=False)
    assert (reaction.state, reaction.reason) == (DatasetState.WAITING, "the source is closed")
