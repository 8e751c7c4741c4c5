"""The mark of a tier: a file in its folder, which an empty mount point has not.

Without it a disk that is not mounted looks like an empty one: a purge finds nothing to delete and is acknowledged, and
transfers fill the disk below the mount point.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from fedstac.db.connections import Connection
from fedstac.db.replica import marks
from fedstac.domain.replication.paths import MARK
from fedstac.domain.replication.policy import DEFAULT_TIER


class TierAway(Exception):
    """A folder is not the one of its tier, as far as its mark says; the text names both, and what to ask."""


class Marks:
    """The marks of a node's tiers."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._recorded: set[str] = set()  # tiers that are recorded, as last seen
        self._new: set[str] = set()

    async def require(self, conn: Connection, folders: Mapping[str, Path]) -> None:
        """Refuse folders, by tier, that have not their mark: TierAway. A tier that is used first gets it."""
        if not folders.keys() <= self._recorded:
            await self.load(conn)
        await asyncio.to_thread(self._check_all, folders)
        await self.store(conn)

    def _check_all(self, folders: Mapping[str, Path]) -> None:
        for tier, folder in folders.items():
            self.check(tier, folder)

    async def load(self, conn: Connection) -> None:
        """Read which tiers are recorded."""
        self._recorded = await marks.tiers(conn)

    def is_used(self, tier: str, folder: Path) -> bool:
        """Return whether a tier may have files: its mark is recorded, or who made the mark died before. Blocks."""
        return tier in self._recorded or (folder / MARK).is_file()

    def check(self, tier: str, folder: Path) -> None:
        """Refuse a folder that has not its mark, or make the mark where none is recorded. TierAway. Blocks."""
        check(folder, self._node, tier, makes=tier not in self._recorded)
        if tier not in self._recorded:
            self._new.add(tier)

    async def store(self, conn: Connection) -> None:
        """Record the tiers that have got their mark."""
        if self._new:
            await marks.store(conn, self._new)
            self._new = set()


def check_all(folders: Mapping[str, Path], node: str, tiers: Collection[str]) -> None:
    """Refuse the folders of these tiers that have not their mark. TierAway. Blocks."""
    for tier in sorted(folders.keys() & tiers):
        check(folders[tier], node, tier, makes=False)


def check(folder: Path, node: str, tier: str, *, makes: bool) -> None:
    """Refuse a folder that has not the mark of a tier, or make the mark. TierAway. Blocks."""
    name, text = tier or DEFAULT_TIER, f"{node} {tier or DEFAULT_TIER}\n"
    try:
        try:
            there = (folder / MARK).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            if not makes:
                raise TierAway(
                    f"the folder of the tier {name} has not its mark {MARK}: is its disk mounted? ({folder})"
                ) from None
            _write(folder, text)
            return
    except OSError as error:
        raise TierAway(f"the mark {folder / MARK} of the tier {name}: {error.strerror}") from error
    if there != text:
        raise TierAway(f"{folder / MARK} says {there[:200].strip()!r}, not {text.strip()!r}: is another disk mounted?")


def _write(folder: Path, text: str) -> None:
    """Write a mark, whole or not at all."""
    draft = folder / f"{MARK}.{os.getpid()}"
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MARK)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
