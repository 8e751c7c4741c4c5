"""What another policy changes: pure sums of what would be copied, moved, and taken away, by rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fedstac.domain.replication.reacting import Here, Reaction
from fedstac.domain.replication.states import FETCHED, DatasetState, RemovalKind


class PlanEffect(StrEnum):
    """What happens to a dataset when the policy changes."""

    COPY = "copy"  # its files are fetched
    STOP = "stop"  # its files are fetched no more
    PURGE = "purge"
    RESTRICT = "restrict"  # its files leave the served tree and stay
    MOVE = "move"  # to another tier, or back into the served tree
    NOTE = "note"  # another rule, priority or check counts; no byte moves


EFFECTS: Mapping[RemovalKind, PlanEffect] = {
    RemovalKind.PURGE: PlanEffect.PURGE, RemovalKind.RESTRICT: PlanEffect.RESTRICT, RemovalKind.TIER: PlanEffect.MOVE,
    RemovalKind.RESTORE: PlanEffect.MOVE, RemovalKind.TRIM: PlanEffect.PURGE,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlanLine:
    """What a rule does: how many datasets, of how many bytes. An empty rule: no rule fits them."""

    effect: PlanEffect
    rule: str
    datasets: int
    bytes: int


@dataclass(slots=True)
class PolicyPlan:
    """What a policy changes in the catalogue; `looked_at` datasets were judged by it, `unchanged` of them stay."""

    looked_at: int = 0
    unchanged: int = 0
    sums: dict[tuple[PlanEffect, str], tuple[int, int]] = field(default_factory=dict)

    def add(self, effect: PlanEffect, rule: str, bytes: int) -> None:
        """Count a dataset. A note moves no bytes, whatever its size."""
        bytes = 0 if effect is PlanEffect.NOTE else bytes
        count, total = self.sums.get((effect, rule), (0, 0))
        self.sums[effect, rule] = count + 1, total + bytes

    @property
    def lines(self) -> list[PlanLine]:
        """The sums, in the order of the effects and then of the rules' names."""
        order = list(PlanEffect)
        lines = [PlanLine(effect, rule, *pair) for (effect, rule), pair in self.sums.items()]
        return sorted(lines, key=lambda line: (order.index(line.effect), line.rule))

    def total(self, effects: Iterable[PlanEffect]) -> tuple[int, int]:
        """Return how many datasets and bytes some effects have together."""
        of_them = set(effects)
        lines = [line for line in self.lines if line.effect in of_them]
        return sum(line.datasets for line in lines), sum(line.bytes for line in lines)


def plan_effect(here: Here, reaction: Reaction, *, size: int, bytes_here: int) -> tuple[PlanEffect, int]:
    """Return what a reaction means for the files of a dataset, and for how many bytes."""
    if reaction.removal is not None:
        return EFFECTS[reaction.removal], bytes_here
    if reaction.state is DatasetState.QUEUED and here.state not in FETCHED:
        return PlanEffect.COPY, max(size - bytes_here, 0)
    if here.state in FETCHED and reaction.state not in FETCHED:
        return PlanEffect.STOP, max(size - bytes_here, 0)
    return PlanEffect.NOTE, 0
