"""What a replica node does with each event: how a dataset's files shall be, and what has to happen for that.

An event carries the whole state, and what is here is compared with it. So the order of events, and how often one comes,
makes no difference: the newest one of a dataset says how it shall be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fedstac.domain.replication.policy import OnSuperseded, ReplicaAction, ReplicaDecision
from fedstac.domain.replication.states import FETCHED, RESTRICTED_TIER, DatasetState, RemovalKind
from fedstac.domain.retraction import Data


class EventState(StrEnum):
    """The state that an event gives a dataset."""

    PUBLISHED = "published"
    RETRACTED = "retracted"
    MARKED = "marked"
    QUARANTINED = "quarantined"
    DELETED = "deleted"
    PURGED = "purged"
    CLEARED = "cleared"


class GoalKind(StrEnum):
    """How the files of a dataset shall be."""

    SERVE = "serve"  # all here, verified and announced
    HOLD = "hold"  # what is here is served, where it was; nothing is fetched
    IGNORE = "ignore"  # what is here stays where it is; nothing is fetched
    RESTRICT = "restrict"  # what is here is kept where nobody is served
    PURGE = "purge"  # nothing is here


@dataclass(frozen=True, slots=True)
class Goal:
    """How the files of a dataset shall be, and why.

    tier: where they belong, if they are kept. is_told: the origin takes a change of our entry; of a dataset that is
    marked, quarantined or deleted it takes none.
    """

    kind: GoalKind
    reason: str
    tier: str = ""
    is_told: bool = True


@dataclass(frozen=True, slots=True)
class Here:
    """What is here of a dataset.

    tiers: of its files, whether they are verified or not. is_whole: all are verified. has_leftovers: files are here
    that are none of its own any more. is_announced: the origin has our entry. has_check: its rule names a command.
    is_disturbed: a removal has begun, and files may be gone that are stored as verified.
    """

    state: DatasetState
    reason: str = ""
    tiers: frozenset[str] = frozenset()
    is_whole: bool = False
    has_leftovers: bool = False
    is_announced: bool = False
    has_check: bool = False
    is_disturbed: bool = False

    @property
    def has_files(self) -> bool:
        """Whether anything of it may be on the disk."""
        return bool(self.tiers) or self.has_leftovers


NOTHING = Here(DatasetState.CATALOGUED)


@dataclass(frozen=True, slots=True)
class Reaction:
    """How a dataset stands after an event, and which files have to leave their place before it stands otherwise."""

    state: DatasetState
    reason: str
    removal: RemovalKind | None = None


STRICTNESS = {Data.KEEP: 0, Data.RESTRICT: 1, Data.PURGE: 2}
TAKEN_AWAY = {GoalKind.RESTRICT: RemovalKind.RESTRICT, GoalKind.PURGE: RemovalKind.PURGE}
ENTRY_STAYS = (EventState.MARKED, EventState.QUARANTINED, EventState.DELETED, EventState.PURGED, EventState.CLEARED)
ENTRY_GONE = (EventState.DELETED, EventState.PURGED, EventState.CLEARED)  # it went with the document


def goal_of(
    state: EventState, decision: ReplicaDecision, *, latest: bool, retraction: Mapping[str, object] | None
) -> Goal:
    """Return how the files of a dataset shall be. The stricter of event and policy decides."""
    is_told = state not in ENTRY_STAYS
    if state in (EventState.DELETED, EventState.PURGED):
        return Goal(GoalKind.PURGE, "deleted by its publisher", is_told=False)
    if state is EventState.CLEARED:  # a full-state load may bring it back with the same files
        return Goal(GoalKind.RESTRICT, "cleared by a full-state load", RESTRICTED_TIER, is_told=False)
    data, reasons = Data.KEEP, []
    if retraction is not None or state is EventState.RETRACTED:
        own = Data(str((retraction or {}).get("data", Data.KEEP)))
        data = max(own, Data(decision.on_retracted), key=STRICTNESS.__getitem__)
        reasons.append(f"retracted: {_text(data)}, as {'the retraction' if data is own else _rule(decision)} says")
    if state is EventState.MARKED:
        data = max(data, Data.RESTRICT, key=STRICTNESS.__getitem__)
        reasons.append("marked for deletion")
    if state is EventState.QUARANTINED:
        data = max(data, Data.RESTRICT, key=STRICTNESS.__getitem__)
        reasons.append("under quarantine")
    is_superseded = state is EventState.PUBLISHED and not latest
    if is_superseded and decision.action is ReplicaAction.REPLICATE and decision.on_superseded is OnSuperseded.PURGE:
        data = Data.PURGE
        reasons.append(f"superseded: its files are purged, as {_rule(decision)} says")
    if decision.action is ReplicaAction.RESTRICT and data is Data.KEEP:
        data = Data.RESTRICT
        reasons.append(f"{_rule(decision)} restricts it")
    reason = "; ".join(reasons)
    if data is Data.PURGE:
        return Goal(GoalKind.PURGE, reason, is_told=is_told)
    if data is Data.RESTRICT:
        return Goal(GoalKind.RESTRICT, reason, RESTRICTED_TIER, is_told)
    if decision.action is ReplicaAction.IGNORE:
        return Goal(GoalKind.IGNORE, "; ".join([*reasons, _unwanted(decision)]), decision.tier)
    goes_down = not latest and decision.on_superseded is OnSuperseded.TIER
    tier = (decision.superseded_tier if goes_down else None) or decision.tier
    return Goal(GoalKind.HOLD if state is EventState.RETRACTED else GoalKind.SERVE, reason, tier)


def react(here: Here, goal: Goal, *, has_other_files: bool) -> Reaction:
    """Return what an event makes of a dataset. `has_other_files`: its document has other files than are here."""
    removal = _removal(here, goal, has_other_files=has_other_files and goal.kind is not GoalKind.PURGE)
    if removal is None:
        return standing(here, goal)
    is_going = removal in (RemovalKind.PURGE, RemovalKind.RESTRICT)
    reason = goal.reason or (
        "its files have changed" if removal is RemovalKind.TRIM else f"its files go to {goal.tier or 'the served tree'}"
    )
    return Reaction(DatasetState.REMOVING if is_going else DatasetState.MOVING, reason, removal)


def standing(here: Here, goal: Goal) -> Reaction:
    """Return how a dataset stands once all its files are where they shall be."""
    match goal.kind:
        case GoalKind.PURGE:
            was_here = here.state in (DatasetState.REMOVING, DatasetState.REMOVED)
            return Reaction(DatasetState.REMOVED if was_here else DatasetState.CATALOGUED, goal.reason)
        case GoalKind.RESTRICT:
            return Reaction(DatasetState.RESTRICTED if here.tiers else DatasetState.CATALOGUED, goal.reason)
        case GoalKind.HOLD | GoalKind.IGNORE:
            return _at_rest(here, goal)
        case GoalKind.SERVE:
            return _to_serve(here, goal)


def _removal(here: Here, goal: Goal, *, has_other_files: bool) -> RemovalKind | None:
    """Return what has to leave its place, or be told to be gone; None where nothing has."""
    if goal.kind in TAKEN_AWAY and goal.is_told and here.is_announced:
        return TAKEN_AWAY[goal.kind]
    if not here.has_files:
        return None
    if goal.kind is GoalKind.IGNORE and here.tiers == {RESTRICTED_TIER} and goal.is_told and here.is_announced:
        return RemovalKind.RESTRICT  # its entry stayed while the origin took no change of it
    if goal.kind is GoalKind.PURGE:
        return RemovalKind.PURGE
    match goal.kind:
        case GoalKind.HOLD:
            is_elsewhere = RESTRICTED_TIER in here.tiers
        case GoalKind.IGNORE:  # half of it may be where nobody is served
            is_elsewhere = RESTRICTED_TIER in here.tiers and len(here.tiers) > 1
        case _:
            is_elsewhere = bool(here.tiers - {goal.tier})
    if is_elsewhere and goal.kind is GoalKind.RESTRICT:
        return RemovalKind.RESTRICT
    if is_elsewhere:
        return RemovalKind.RESTORE if RESTRICTED_TIER in here.tiers else RemovalKind.TIER
    if has_other_files or here.has_leftovers:
        return RemovalKind.TRIM
    if here.is_disturbed and goal.kind is not GoalKind.RESTRICT:
        return RemovalKind.RESTORE
    return None


def _at_rest(here: Here, goal: Goal) -> Reaction:
    """Return how a dataset stands of which nothing is fetched, and nothing taken away."""
    if here.tiers == {RESTRICTED_TIER}:
        return Reaction(DatasetState.RESTRICTED, goal.reason)
    if here.is_whole and here.is_announced:
        return Reaction(DatasetState.ANNOUNCED, goal.reason)
    if here.state is DatasetState.REMOVED:
        return Reaction(DatasetState.REMOVED, here.reason)
    return Reaction(DatasetState.CATALOGUED, goal.reason)


def _to_serve(here: Here, goal: Goal) -> Reaction:
    """Return how a dataset stands that is wanted. One that is parked is tried again: the reason may be gone."""
    if not here.is_whole:
        goes_on = bool(here.tiers) and here.state in FETCHED
        return Reaction(here.state, here.reason) if goes_on else Reaction(DatasetState.QUEUED, goal.reason)
    is_checked = here.state is DatasetState.CHECKING and here.has_check
    if here.state in (*FETCHED, DatasetState.COMPLETE) or is_checked:
        return Reaction(here.state, here.reason)
    if here.is_announced and here.state not in (DatasetState.PARKED, DatasetState.CHECKING):
        return Reaction(DatasetState.ANNOUNCED, goal.reason)
    return Reaction(DatasetState.CHECKING if here.has_check else DatasetState.COMPLETE, goal.reason)


def _text(data: Data) -> str:
    texts = {
        Data.KEEP: "its files are kept",
        Data.RESTRICT: "its files are not served",
        Data.PURGE: "its files are purged",
    }
    return texts[data]


def _rule(decision: ReplicaDecision) -> str:
    return f"the rule {decision.rule!r}" if decision.rule else "the policy"


def _unwanted(decision: ReplicaDecision) -> str:
    return f"the rule {decision.rule!r} ignores it" if decision.rule else "no rule of the policy fits it"
