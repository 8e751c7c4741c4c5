"""Full-state loads: what a load changes, and when somebody has to confirm it. Pure.

A load states everything that shall exist in a collection. What is here and not stated is removed: cleared, without a
tombstone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson

from fedstac.domain import alternates, documents
from fedstac.domain.access import at_level_of
from fedstac.domain.difference import effect_of
from fedstac.domain.errors import LoadNotConfirmed

MOST: Final = 1_000_000  # datasets that a load states, and changes
MOST_PARTS: Final = 10_000
UNCONFIRMED_SHARE: Final = 0.1  # of the datasets that are here; more of them go only where that is confirmed


class LoadMode(StrEnum):
    """What becomes of datasets that the load states and that are here already."""

    APPLY = "apply"  # they are changed where they differ
    REBUILD = "rebuild"  # each is cleared and published again


class LoadChange(StrEnum):
    """What a load means for one dataset."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    REMOVED = "removed"  # here, and not stated
    HELD = "held"  # stated, and not the load's to change: retracted, marked, under quarantine, deleted, another node's
    INVALID = "invalid"  # stated by a document that is refused; what is here stays


class LoadStep(StrEnum):
    """What is being done with a load, some datasets at a time."""

    STATED = "stated"  # what it states is compared with what is here
    HERE = "here"  # what is here is looked for in what it states
    LIST = "list"  # the datasets are listed for the change of many that applies it
    TRIM = "trim"  # documents are removed that nothing is done with
    EMPTY = "empty"  # it is cancelled: what it states is removed


COMPARING: Final = (LoadStep.STATED, LoadStep.HERE)
MOST_OPEN: Final = 20  # loads of a person that are neither applied nor cancelled
MOST_OPEN_OF_COLLECTION: Final = 100
WORK: Final[Mapping[LoadMode, tuple[LoadChange, ...]]] = {
    LoadMode.APPLY: (LoadChange.NEW, LoadChange.CHANGED, LoadChange.REMOVED),
    LoadMode.REBUILD: (LoadChange.NEW, LoadChange.CHANGED, LoadChange.UNCHANGED, LoadChange.REMOVED),
}
CLEARING: Final[Mapping[LoadMode, tuple[LoadChange, ...]]] = {
    LoadMode.APPLY: (LoadChange.REMOVED,),
    LoadMode.REBUILD: (LoadChange.CHANGED, LoadChange.UNCHANGED, LoadChange.REMOVED),
}


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """What a load would do, counted. current: datasets of this node that searches find in the collection."""

    mode: LoadMode
    counts: Mapping[LoadChange, int]
    current: int

    @property
    def stated(self) -> int:
        """The number of datasets that the load states, valid or not."""
        return sum(self.counts.values()) - self.counts.get(LoadChange.REMOVED, 0)

    @property
    def total(self) -> int:
        """The number of datasets that there is something to do with."""
        return sum(self.counts.get(change, 0) for change in WORK[self.mode])

    @property
    def cleared(self) -> int:
        """The number of datasets that are cleared: removed, or to be published again. Their grants close."""
        return sum(self.counts.get(change, 0) for change in CLEARING[self.mode])

    @property
    def to_confirm(self) -> int | None:
        """The number that has to be confirmed; None where nothing has to."""
        is_empty = self.stated == 0 and self.cleared > 0
        return self.cleared if is_empty or self.cleared > UNCONFIRMED_SHARE * self.current else None

    def require(self, confirmed: int | None) -> None:
        """Raise LoadNotConfirmed where a number has to be confirmed, and another one or none was."""
        number = self.to_confirm
        if number is None and confirmed is None:
            return
        if (number if number is not None else self.cleared) != confirmed:
            what = "the load is empty" if self.stated == 0 else f"of {self.current} datasets {self.cleared} go"
            raise LoadNotConfirmed(
                f"{what}; look at the changes, then say so with confirm={self.cleared}", cleared=self.cleared
            )


def differs(here: str, load_document: Mapping[str, Any]) -> bool:
    """Tell whether a stated document changes the one that is here.

    Replicas that nodes put there are no difference, nor is the level where nothing is said of it.
    """
    before = orjson.loads(here)
    says_level = documents.ACCESS in load_document["properties"]
    document = documents.without_server_members(load_document) if says_level else at_level_of(before, load_document)
    return bool(effect_of(before, alternates.completed(before, alternates.with_alternates(before, document))).actions)
