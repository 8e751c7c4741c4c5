"""Access levels that a changed policy file asks for, brought to the datasets that are stored: part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedstac import publication
from fedstac.db import records
from fedstac.db.connections import Connection
from fedstac.domain.actions import Work
from fedstac.domain.actions.level import ApplyLevel
from fedstac.domain.actions.target import Target
from fedstac.domain.model import Outcome
from fedstac.domain.policy import Principal, read_level
from fedstac.publication import NodeRules

PART: Final = 250  # datasets in one transaction


@dataclass(frozen=True, slots=True)
class LevelCounts:
    """How many datasets were looked at, how many have another level now, and how many could not be changed."""

    datasets: int = 0
    changed: int = 0
    refused: int = 0


async def apply_levels(
    conn: Connection, rules: NodeRules, project: str, principal: Principal, *, is_rehearsal: bool,
    say: Callable[[LevelCounts], None] = lambda counts: None,
) -> LevelCounts:  # fmt: skip
    """Bring every dataset of a project that is this node's own to the level that it ought to have.

    Each part is one transaction, with events and audit rows. Killed anywhere, it is done by calling it again: what is
    right is left alone. is_rehearsal: only count what would be changed.
    """
    asked_level, counts, after = rules.policy.level_of(project), LevelCounts(), ""
    while rows := await records.levels_after(conn, project, rules.origin, after, PART):
        after = rows[-1].id
        wrong = [row for row in rows if row.level is not read_level(row.of_document).stricter(asked_level)]
        change_count, refusal_count = len(wrong), 0
        if wrong and not is_rehearsal:
            receipts = await publication.perform(conn, rules, [
                Work(ApplyLevel(Target(project, row.id, row.lineage), principal), principal.name, "set-level")
                for row in wrong
            ])  # fmt: skip
            change_count = sum(receipt.outcome is Outcome.UPDATED for receipt in receipts)
            refusal_count = sum(receipt.problem is not None for receipt in receipts)
        counts = LevelCounts(counts.datasets + len(rows), counts.changed + change_count, counts.refused + refusal_count)
        say(counts)
    return counts
