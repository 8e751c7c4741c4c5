"""How datasets and files stand at a replica node. The texts are those of the tables."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class DatasetState(StrEnum):
    """How a dataset stands. Its reason says why, and what ends it."""

    CATALOGUED = "catalogued"  # known, and not fetched
    QUEUED = "queued"
    TRANSFERRING = "transferring"
    WAITING = "waiting"  # for a time, a source, room on the disk or in the budget
    CHECKING = "checking"  # all files are here; the command of its rule looks at them
    COMPLETE = "complete"  # all files are here and verified; not announced yet
    ANNOUNCED = "announced"
    PARKED = "parked"  # until somebody acts
    MOVING = "moving"  # its files go to another tier, or back into the served tree
    REMOVING = "removing"  # its files go out of the served tree
    RESTRICTED = "restricted"  # its files are kept where nobody is served
    REMOVED = "removed"  # its files were here, and are no more


class FileState(StrEnum):
    """How a file stands."""

    QUEUED = "queued"
    TRANSFERRING = "transferring"
    VERIFIED = "verified"
    FAILED = "failed"


class RemovalKind(StrEnum):
    """What happens to files that have to leave their place."""

    PURGE = "purge"  # deleted
    RESTRICT = "restrict"  # moved to where nobody is served
    TIER = "tier"  # moved to another tier
    RESTORE = "restore"  # moved back into the served tree
    TRIM = "trim"  # those are deleted that are no more part of the dataset


OUT_OF_SIGHT: Final = (RemovalKind.PURGE, RemovalKind.RESTRICT)  # removals of what nobody shall be served any more
SERVED_TIER: Final = ""  # FEDSTAC_REPLICA_FOLDER
RESTRICTED_TIER: Final = "restricted"  # the tier that is not served
FETCHED: Final = (DatasetState.QUEUED, DatasetState.TRANSFERRING, DatasetState.WAITING)  # files are under way, or due
