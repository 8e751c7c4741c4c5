"""What operators are told of once while it lasts: a full or broken disk, a reached budget, a source that stays away."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class AlarmKind(StrEnum):
    """What lasts. The text is that of the trouble that operators read."""

    DISK = "replica-disk"
    BROKEN_DISK = "replica-disk-broken"
    BUDGET = "replica-budget"
    POLICY = "replica-policy"
    SOURCE = "replica-away"


# What the reason of a dataset that waits begins with.
REASONS: Final = {
    AlarmKind.DISK: "disk full", AlarmKind.BROKEN_DISK: "disk refuses", AlarmKind.BUDGET: "over the budget",
}  # fmt: skip
AWAY_SECONDS: Final = 3600.0  # so long a host may be away before anybody is told


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that lasts: of which thing, and its explanation."""

    kind: AlarmKind
    thing: str
    detail: str


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """The room on the disk of a tier. free_bytes: None where the folder is not there."""

    tier: str
    folder: str
    free_bytes: int | None
