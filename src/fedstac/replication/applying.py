"""Another policy: what it changes in the catalogue, and doing it.

`apply_policy` is one function for both. A plan judges every dataset and changes nothing. A reload does the same in
steps, each in a transaction of its own; each dataset remembers the policy that it was decided by, so a process that
dies goes on where it was.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fedstac.db.connections import Connection
from fedstac.db.replica import catalogue, datasets
from fedstac.db.replica.catalogue import CatalogueRow
from fedstac.db.replica.datasets import DatasetKey, NewestEvent
from fedstac.domain.geometry import footprint
from fedstac.domain.model import State
from fedstac.domain.replication.planning import PlanEffect, PolicyPlan, plan_effect
from fedstac.domain.replication.policy import ReplicaPolicy, stated_properties
from fedstac.domain.replication.reacting import EventState, Here
from fedstac.domain.replication.states import DatasetState
from fedstac.domain.truth import GEOMETRY, DatasetFacts, span_of
from fedstac.replication import intake
from fedstac.replication.intake import JudgedEvent
from fedstac.runtime.failpoints import failpoint

PLANNED_AT_ONCE: Final = 10_000  # datasets
APPLIED_AT_ONCE: Final = 500  # in one transaction
MOST_KEPT: Final = 50_000  # decisions that are remembered for datasets with the same facts


async def apply_policy(conn: Connection, policy: ReplicaPolicy, *, perform: bool) -> PolicyPlan:
    """Return what a policy changes of all datasets. `perform`: change it too; what it has judged before stays.

    With `perform`, call it outside of a transaction. It may be cancelled, or killed, at any time.
    """
    plan, after = PolicyPlan(), 0
    judge = _Judge(policy)
    count = APPLIED_AT_ONCE if perform else PLANNED_AT_ONCE
    while rows := await catalogue.page(
        conn, policy.names, after=after, count=count, digest=policy.digest, is_due=perform
    ):
        after = rows[-1].n
        changed_rows = [row for row in rows if judge.changes(row)]
        plan.looked_at += len(rows)
        plan.unchanged += len(rows) - len(changed_rows)
        if not perform:
            await _foresee(conn, judge, changed_rows, plan)
            continue
        changed_numbers = {row.n for row in changed_rows}
        async with conn.transaction():
            await catalogue.mark(conn, [row for row in rows if row.n not in changed_numbers], policy.digest)
            await _perform(conn, policy, changed_rows, plan)
        failpoint("replica.policy_applied")
    return plan


async def _foresee(conn: Connection, judge: _Judge, rows: Sequence[CatalogueRow], plan: PolicyPlan) -> None:
    """Count what would become of datasets."""
    with_files = [row.n for row in rows if not row.is_bare]
    events = await catalogue.newest_events(conn, with_files, locking=False) if with_files else {}
    sizes = await catalogue.bytes_here(conn, with_files) if with_files else {}
    datasets_here = {each.n: each for each in await datasets.read(conn, with_files)} if with_files else {}
    for row in rows:
        here = datasets_here.get(row.n)
        if here is None:
            plan.add(judge.effect_on_nothing(row), judge.event_of(row).decision.rule or "", row.size)
            continue
        event = intake.as_ordered(judge.event_of(row), here)
        has_others = here.files_digest != events[row.n].digest
        reaction = intake.reaction_to(event, here.here, has_other_files=has_others)
        effect, size = plan_effect(here.here, reaction, size=row.size, bytes_here=sizes.get(row.n, 0))
        plan.add(effect, event.decision.rule or "", size)


async def _perform(conn: Connection, policy: ReplicaPolicy, rows: Sequence[CatalogueRow], plan: PolicyPlan) -> None:
    """Store what becomes of datasets, as they are now."""
    events = await catalogue.newest_events(conn, [row.n for row in rows], locking=True)
    sizes = await catalogue.bytes_here(conn, list(events))
    consequences = {n: _judge_event(policy, event) for n, event in events.items()}
    outcomes = await intake.reconsider(conn, list(consequences.values()), policy_digest=policy.digest)
    for n, (here, reaction) in outcomes.items():
        effect, size = plan_effect(here, reaction, size=events[n].size, bytes_here=sizes.get(n, 0))
        plan.add(effect, consequences[n].decision.rule or "", size)


def _judge_event(policy: ReplicaPolicy, event: NewestEvent) -> JudgedEvent:
    document: Mapping[str, Any] = orjson.loads(event.document or "{}")
    state = state_of(event.state, event.retraction)
    return intake.judge(event, policy.decide(document, event.key.collection, state, latest=event.latest))


def state_of(state: EventState, retraction: object) -> State:
    """Return the state that rules are asked about; a quarantine stands beside it."""
    if state is EventState.QUARANTINED:
        return State.RETRACTED if retraction is not None else State.PUBLISHED
    return State(state.value)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a policy makes of all datasets with the same facts. after: as the catalogue's `before` has it."""

    event: JudgedEvent
    after: list[Any]


class _Judge:
    """Judges datasets by what the catalogue says of them; those with the same facts once."""

    def __init__(self, policy: ReplicaPolicy) -> None:
        self._policy = policy
        self._names = catalogue.names_of_key(policy.names)
        self._verdicts: dict[str, _Verdict] = {}
        self._before: dict[str, list[Any]] = {}
        self._effects: dict[tuple[str, str], PlanEffect] = {}

    def changes(self, row: CatalogueRow) -> bool:
        """Tell whether the policy says something else of a dataset than was decided last, or may help one."""
        if row.is_parked:
            return True
        before = self._before.get(row.before)
        if before is None:
            before = _remember(self._before, row.before, orjson.loads(row.before))
        return before != self._verdict(row).after

    def event_of(self, row: CatalogueRow) -> JudgedEvent:
        """Return the newest event of a dataset as far as the catalogue tells, and what follows from it."""
        return self._verdict(row).event

    def effect_on_nothing(self, row: CatalogueRow) -> PlanEffect:
        """Return what happens to a dataset of which no file is or was planned here."""
        effect = self._effects.get((row.key, row.state))
        if effect is None:
            here = Here(DatasetState(row.state))
            reaction = intake.reaction_to(self.event_of(row), here, has_other_files=False)
            effect, _ = plan_effect(here, reaction, size=row.size, bytes_here=0)
            _remember(self._effects, (row.key, row.state), effect)
        return effect

    def _verdict(self, row: CatalogueRow) -> _Verdict:
        verdict = self._verdicts.get(row.key)
        return verdict if verdict is not None else _remember(self._verdicts, row.key, self._judge(row.key))

    def _judge(self, key: str) -> _Verdict:
        event_state, latest, retraction, has_files, collection, id, geometry, *values = orjson.loads(key)
        event = NewestEvent(
            DatasetKey(collection, id or ""), "", "", 0, 0, 0, "", EventState(event_state), latest, retraction, None, 0,
            int(has_files), None,
        )  # fmt: skip
        by_name = dict(zip(self._names, values, strict=True))
        by_name |= stated_properties(state_of(event.state, retraction), latest=latest)
        start, end = span_of(by_name) if "datetime" in by_name else (0, 0)
        shape = footprint(geometry) if GEOMETRY in self._policy.names else ""
        facts = DatasetFacts(collection, id or "", by_name, start, end, shape)
        decision = self._policy.decide_facts(facts)
        consequence = intake.judge(event, decision)
        goal = consequence.goal
        after = [
            decision.action, decision.rule or "", decision.priority, shlex.join(decision.check),
            decision.on_superseded, decision.on_retracted, goal.kind, goal.tier, goal.is_told,
        ]  # fmt: skip
        return _Verdict(consequence, after)


def _remember(memory: dict[Any, Any], key: object, value: Any) -> Any:
    """Keep a value, and not too many of them."""
    if len(memory) >= MOST_KEPT:
        memory.clear()
    memory[key] = value
    return value
