"""Taking events in: what a replica node stores of a page of events, in the transaction that moves the cursor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import orjson

from fedstac.db.connections import Connection
from fedstac.db.replica import announcements, datasets, files, removals
from fedstac.db.replica.datasets import Consequence, DatasetKey, KnownDataset, NewestEvent
from fedstac.db.replica.files import FilePlan
from fedstac.db.replica.removals import NewRemoval
from fedstac.domain.replication.dataset_files import files_of
from fedstac.domain.replication.policy import ReplicaDecision
from fedstac.domain.replication.reacting import (
    ENTRY_GONE,
    NOTHING,
    EventState,
    Goal,
    GoalKind,
    Here,
    Reaction,
    goal_of,
    react,
)
from fedstac.domain.replication.states import FETCHED, RESTRICTED_TIER, DatasetState

GONE = "the origin does not list it any more; its files are kept, and not served"


@dataclass(frozen=True, slots=True)
class JudgedEvent:
    """An event that was read, and what follows from it and the policy. is_ordered: a person ordered its goal."""

    newest: NewestEvent
    decision: ReplicaDecision
    goal: Goal
    is_ordered: bool = False


@dataclass(frozen=True, slots=True)
class Intake:
    """What became of events: how many changed something, how many are here already, and whose dataset is not theirs."""

    applied_count: int
    ignored_count: int
    foreign: Sequence[NewestEvent]


def judge(newest: NewestEvent, decision: ReplicaDecision) -> JudgedEvent:
    """Return what follows from an event and what the policy says. ValueError where its retraction is none."""
    goal = goal_of(newest.state, decision, latest=newest.latest, retraction=newest.retraction)
    if not newest.files and goal.kind in (GoalKind.SERVE, GoalKind.HOLD):
        goal = Goal(GoalKind.IGNORE, "it has no file with a checksum", goal.tier)
    return JudgedEvent(newest, decision, goal)


async def take(conn: Connection, events: Sequence[JudgedEvent], *, policy_digest: str) -> Intake:
    """Store the newest events of datasets, how these stand then, and which files have to be fetched, moved or deleted.

    Joins the caller's transaction. What is here already, or newer, stays as it is.
    """
    newest = _newest_of_each(events)
    before = await datasets.lock_all(conn, list(newest))
    cleared = _without_entry(events, before)
    before = {**before, **cleared}
    foreign = [each.newest for each in events if _is_foreign(each.newest, before.get(each.newest.key))]
    due = [
        as_ordered(each, here) for name, each in newest.items()
        if (here := before.get(name)) is None
        or (here.origin == each.newest.origin and not here.includes(each.newest.epoch, each.newest.seq))
    ]  # fmt: skip
    reactions = [(each, before.get(each.newest.key), reaction_of(each, before.get(each.newest.key))) for each in due]
    numbers = await datasets.store(
        conn,
        [(each.newest, Consequence(each.decision, each.goal, reaction)) for each, _, reaction in reactions],
        policy_digest=policy_digest,
    ) if reactions else {}  # fmt: skip
    entries = [(numbers[each.newest.key], each, here, reaction)
              for each, here, reaction in reactions if each.newest.key in numbers]  # fmt: skip
    foreign += [each.newest for each, _, _ in reactions if each.newest.key not in numbers]
    await _follow_up(conn, entries)
    await announcements.request(
        conn, [n for n, each, _, reaction in entries
               if each.newest.key in cleared and reaction.state is DatasetState.COMPLETE]
    )  # fmt: skip
    return Intake(len(entries), len(events) - len(entries) - len(foreign), foreign)


async def reconsider(
    conn: Connection, events: Sequence[JudgedEvent], *, policy_digest: str
) -> dict[int, tuple[Here, Reaction]]:
    """Store what another policy makes of the newest events of datasets, and what follows from that.

    Joins the caller's transaction. Return what was here of each dataset, and what becomes of it, by number.
    """
    before = await datasets.lock_all(conn, [each.newest.key for each in events])
    entries = [
        (here.n, ordered := as_ordered(each, here), here, reaction_of(ordered, here))
        for each in events if (here := before.get(each.newest.key)) is not None
        and (here.epoch, here.seq) == (each.newest.epoch, each.newest.seq)
    ]  # fmt: skip
    if entries:
        await datasets.store(
            conn,
            [(each.newest, Consequence(each.decision, each.goal, reaction)) for _, each, _, reaction in entries],
            policy_digest=policy_digest,
        )
        await _follow_up(conn, entries)
    return {n: (here.here, reaction) for n, _, here, reaction in entries}


async def restrict_unlisted(conn: Connection, origin: str, *, before_epoch: int, pos: int) -> int:
    """Let what the snapshot of a newer epoch did not list be served no more. Return how many datasets that are.

    Its files are kept: the origin may have lost what it does not list, and this may be the last copy.
    """
    goal = Goal(GoalKind.RESTRICT, GONE, RESTRICTED_TIER, is_told=False)
    before = [each for each in await datasets.unlisted(conn, origin, before_epoch=before_epoch) if each.goal != goal]
    reactions = [(each, react(each.here, goal, has_other_files=False)) for each in before]
    await datasets.redirect(conn, [(each.n, goal, reaction) for each, reaction in reactions])
    await removals.order(
        conn,
        [NewRemoval(each.n, origin, before_epoch, pos, "", reaction.removal, goal.reason)
         for each, reaction in reactions if reaction.removal is not None],
    )  # fmt: skip
    return len(before)


def _newest_of_each(events: Sequence[JudgedEvent]) -> dict[DatasetKey, JudgedEvent]:
    newest: dict[DatasetKey, JudgedEvent] = {}
    for each in events:
        other = newest.get(each.newest.key)
        if other is None or (other.newest.epoch, other.newest.seq) < (each.newest.epoch, each.newest.seq):
            newest[each.newest.key] = each
    return newest


def _without_entry(
    events: Sequence[JudgedEvent], before: Mapping[DatasetKey, KnownDataset]
) -> dict[DatasetKey, KnownDataset]:
    """Return datasets that events clear, without our entry: it went with the document, whatever came back since."""
    cleared = {
        each.newest.key: here for each in events
        if each.newest.state is EventState.CLEARED and (here := before.get(each.newest.key)) is not None
        and not here.includes(each.newest.epoch, each.newest.seq)
    }  # fmt: skip
    return {key: replace(here, here=replace(here.here, is_announced=False)) for key, here in cleared.items()}


def _is_foreign(event: NewestEvent, before: KnownDataset | None) -> bool:
    return before is not None and before.origin != event.origin


def as_ordered(event: JudgedEvent, before: KnownDataset | None) -> JudgedEvent:
    """Return what follows from an event where a person has ordered a purge: it goes on unless files are wanted."""
    if before is None or not before.is_to_be_purged or event.goal.kind is not GoalKind.IGNORE:
        return event
    return replace(event, goal=Goal(GoalKind.PURGE, before.goal.reason, is_told=event.goal.is_told), is_ordered=True)


def reaction_of(event: JudgedEvent, before: KnownDataset | None) -> Reaction:
    """Return what an event makes of a dataset. Without a document it names no other files."""
    has_others = before is not None and event.newest.document is not None and before.files_digest != event.newest.digest
    return reaction_to(event, before.here if before else NOTHING, has_other_files=has_others)


def reaction_to(event: JudgedEvent, here: Here, *, has_other_files: bool) -> Reaction:
    """Return what an event makes of what is here. `has_other_files`: the event names others than are here."""
    return react(replace(here, has_check=bool(event.decision.check)), event.goal, has_other_files=has_other_files)


Stored = tuple[int, JudgedEvent, KnownDataset | None, Reaction]


async def _follow_up(conn: Connection, entries: Sequence[Stored]) -> None:
    """Write what follows from reactions: files that are to be fetched, removals, announcements."""
    await removals.order(
        conn,
        [NewRemoval(n, each.newest.origin, each.newest.epoch, each.newest.pos,
                    "" if each.is_ordered else each.newest.event_id, reaction.removal, reaction.reason)
         for n, each, _, reaction in entries if reaction.removal is not None],
    )  # fmt: skip
    await removals.overtake(
        conn,
        [n for n, each, _, reaction in entries
         if reaction.removal is None and each.goal.kind not in (GoalKind.RESTRICT, GoalKind.PURGE)],
    )  # fmt: skip
    plans = [
        FilePlan(n, each.goal.tier, files_of(orjson.loads(each.newest.document)))
        for n, each, here, reaction in entries
        if reaction.state is DatasetState.QUEUED and each.newest.document is not None
        and not (here is not None and here.here.tiers and here.here.state in FETCHED)
    ]  # fmt: skip
    await files.try_again(
        conn, [n for n, _, here, reaction in entries if reaction.state in FETCHED and here is not None]
    )
    await files.plan(conn, plans)
    await files.park_the_impossible(conn, [each.n for each in plans])
    await announcements.request(
        conn,
        [n for n, _, here, reaction in entries
         if reaction.state is DatasetState.COMPLETE
         and (here is None or here.here.state is not DatasetState.COMPLETE)],
    )  # fmt: skip
    await announcements.drop(conn, [n for n, each, _, _ in entries if each.newest.state in ENTRY_GONE])
