"""Verification of a replica node: what a file on disk, its record and the federation's entry say of each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

DARK_SHARE_BASE: Final = "files on disk"
RECORDED_SHARE_BASE: Final = "files that should be here"


class FileFault(StrEnum):
    """What is the matter with a file or an entry."""

    DARK = "dark"  # on disk, and in no record
    MISSING = "missing"  # recorded as verified, and not on disk
    TRUNCATED = "truncated"  # shorter than its size
    WRONG = "wrong"  # other content: longer, or another checksum
    UNREADABLE = "unreadable"  # the disk does not give its bytes, or what is in its place is no file
    WRONGLY_ANNOUNCED = "wrongly announced"  # the federation's entry names what this node does not have
    UNKNOWN = "unknown"  # of an import: no dataset that this node wants has it
    NOT_ANNOUNCED = "not announced"  # this node announced it, and the federation has no entry


LOST: Final = frozenset({FileFault.MISSING, FileFault.TRUNCATED, FileFault.WRONG})  # their bytes are fetched again
BAD_FILES: Final = (FileFault.MISSING, FileFault.TRUNCATED, FileFault.WRONG, FileFault.UNREADABLE)  # of those recorded


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A file that this node recorded as verified. `size` in bytes, None where the document has none."""

    size: int | None
    checksum: str | None  # multihash, lower-case hexadecimal


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file as it is on disk. `checksum` is None where nobody read the bytes, `trouble` says why one could not.

    What has a trouble may be a good file on a bad cable: nobody deletes it.
    """

    size: int
    checksum: str | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """A fault and the sentence that explains it."""

    fault: FileFault
    detail: str


def judge_file(recorded: RecordedFile, disk: DiskFile | None) -> FileVerdict | None:
    """Return what is wrong with a recorded file; None where the disk has what the record says."""
    if disk is None:
        return FileVerdict(FileFault.MISSING, "it is recorded as verified, and is not on disk")
    if disk.trouble:
        return FileVerdict(FileFault.UNREADABLE, disk.trouble)
    if recorded.size is not None and disk.size != recorded.size:
        fault = FileFault.TRUNCATED if disk.size < recorded.size else FileFault.WRONG
        return FileVerdict(fault, f"{disk.size} bytes on disk, and {recorded.size} in the record")
    if disk.checksum is not None and recorded.checksum is not None and disk.checksum != recorded.checksum:
        return FileVerdict(FileFault.WRONG, f"its checksum is {disk.checksum}, and {recorded.checksum} in the record")
    return None


def judge_entry(href: str | None, expected_href: str | None) -> FileVerdict | None:
    """Return what is wrong with the federation's entry of an asset at this node; None where it is as it should be.

    href: the address in the entry, None without an entry. expected_href: what this node announced, None where it has
    announced nothing of the asset.
    """
    if href == expected_href:
        return None
    if expected_href is None:
        return FileVerdict(FileFault.WRONGLY_ANNOUNCED, f"the federation finds it at {href}, and here is no such copy")
    if href is None:
        return FileVerdict(FileFault.NOT_ANNOUNCED, "this node announced it, and the federation has no entry")
    return FileVerdict(FileFault.WRONGLY_ANNOUNCED, f"the federation finds it at {href}, and it is at {expected_href}")


# --- the brake ---


@dataclass(frozen=True, slots=True)
class VerificationCounts:
    """What a verification looked at and what it found, in files."""

    recorded: int = 0  # that should be here, and were looked at
    on_disk: int = 0  # names that the walk over the tiers met
    bytes: int = 0  # of the files that were read
    faults: Mapping[str, int] = field(default_factory=dict)

    def of(self, fault: FileFault) -> int:
        """Return how many files or entries have a fault."""
        return self.faults.get(fault, 0)


def brake(counts: VerificationCounts, limit_percent: float) -> str | None:
    """Return why nothing may be mended, as a sentence; None where the faults of files are few enough.

    Dark files are counted by themselves, missing ones too, and then all recorded files that are not as they were.
    Many at once are rather a disk that fails or is not mounted, or a database that was restored, than so many single
    faults.
    """
    bad = {fault: counts.of(fault) for fault in BAD_FILES if counts.of(fault)}
    for number, count, base, words in (
        (counts.of(FileFault.DARK), counts.on_disk, DARK_SHARE_BASE, FileFault.DARK),
        (counts.of(FileFault.MISSING), counts.recorded, RECORDED_SHARE_BASE, FileFault.MISSING),
        (sum(bad.values()), counts.recorded, RECORDED_SHARE_BASE, " or ".join(bad)),
    ):
        if number * 100 > limit_percent * count:
            share = 100 * number / count if count else 100.0
            return f"{number} of {count} {base} are {words}, {share:.1f} %, and the limit is {limit_percent:g} %"
    return None


# --- dark files ---


def is_old_enough(seconds: float, least_days: float) -> bool:
    """Return whether a dark file, so many seconds after its last change, may be touched."""
    return seconds >= least_days * 86_400
