"""Sizes, rates and budgets of a replica policy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

UNITS: Final[Mapping[str, int]] = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGTP", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", start=1)},
}
SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]+)", re.ASCII)
MOST: Final = 1 << 62  # bytes: a bigint holds a sum of two


def read_size(text: str) -> int | None:
    """Return the bytes that a text such as `1.5 TB` or `20 GiB` names; None where it names none or over 2**62."""
    match = SIZE.fullmatch(text.strip())
    if match is None or match[2] not in UNITS:
        return None
    whole, _, fraction = match[1].partition(".")
    unit = UNITS[match[2]]
    size = int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
    return size if 0 < size <= MOST else None


def read_rate(text: str) -> int | None:
    """Return the bytes a second that a text such as `100 MB/s` names; None where it names none."""
    size, slash, second = text.strip().rpartition("/")
    return read_size(size) if slash and second == "s" else None


def written_size(size: int) -> str:
    """Return a size as people read it, as `1.5 TB`."""
    for unit in ("PB", "TB", "GB", "MB", "kB"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:.1f} {unit}"
    return f"{size} B"


@dataclass(frozen=True, slots=True)
class Usage:
    """The bytes that are here or on their way: in all, and by the rule that wants them."""

    total: int = 0
    by_rule: Mapping[str, int] = field(default_factory=dict)

    def plus(self, rule: str, size: int) -> Usage:
        """Return the usage with a dataset more."""
        return Usage(self.total + size, {**self.by_rule, rule: self.by_rule.get(rule, 0) + size})


@dataclass(frozen=True, slots=True)
class Budgets:
    """The most bytes that may be here: in all, and by rule. None and a rule that is not named: no limit."""

    node: int | None = None
    by_rule: Mapping[str, int] = field(default_factory=dict)

    def obstacle(self, usage: Usage, rule: str, size: int) -> str | None:
        """Return why a dataset of that size has to wait; None where it fits."""
        budget = self.full_budget(usage, rule, size)
        return budget.reason(written_size(size)) if budget is not None else None

    def full_budget(self, usage: Usage, rule: str, size: int) -> FullBudget | None:
        """Return the budget that a dataset of that size does not fit into; None where it fits."""
        if self.node is not None and usage.total + size > self.node:
            return FullBudget(None, self.node, usage.total)
        most = self.by_rule.get(rule)
        if most is not None and (bytes_here := usage.by_rule.get(rule, 0)) + size > most:
            return FullBudget(rule, most, bytes_here)
        return None


@dataclass(frozen=True, slots=True)
class FullBudget:
    """A budget that something does not fit into. rule: whose it is; None: the node's. most, taken: in bytes."""

    rule: str | None
    most: int
    taken: int

    @property
    def room(self) -> int:
        """The bytes that are left."""
        return self.most - self.taken

    def reason(self, need: str = "more than is left") -> str:
        """Return why something that needs so much has to wait."""
        whose = "the node" if self.rule is None else f"the rule {self.rule!r}"
        return (
            f"over the budget of {whose}: {written_size(self.taken)} of {written_size(self.most)} are taken, and this"
            f" needs {need}; it goes on when there is room, or with a larger budget in the policy"
        )
