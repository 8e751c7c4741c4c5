"""Verification of a replica node: its disk, its own records and the federation's entries, compared and mended.

A look goes through the recorded files, then through the federation's entries, then through the disk itself, and stores
what it finds as it goes. What is interrupted goes on at its place. Nothing is mended before all of it was looked at,
and nothing above the brake (domain/replication/verification.py) unless a person forces it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from fedstac.db.connections import Connection
from fedstac.db.replica import looks
from fedstac.db.replica import marks as marked_tiers
from fedstac.db.replica.looks import DatasetEntries, DiskLook, FileToVerify, FindingRow, FoundFault
from fedstac.domain.replication import verification
from fedstac.domain.replication.verification import LOST, FileFault, RecordedFile, VerificationCounts
from fedstac.replication import marks, surveying
from fedstac.replication.marks import TierAway
from fedstac.replication.surveying import DiskAway, DiskReading, SurveyedFile
from fedstac.runtime.failpoints import failpoint

PAGE: Final = 1000  # files or names that one statement reads
STRETCH_FILES, STRETCH_BYTES = 256, 16 << 30  # that are read between two moves of a look's place
DATASETS_PAGE: Final = 200  # their documents are read
MENDED_AT_ONCE: Final = 500
UNREADABLE: Final = "nothing is deleted: see to the disk; a file that is lost is fetched again when you deleted it"
ENTRY_FAULTS: Final = (FileFault.WRONGLY_ANNOUNCED, FileFault.NOT_ANNOUNCED)


@dataclass(frozen=True, slots=True)
class Tiers:
    """The folders of a replica node by the name of their tier, and where its files are found from outside.

    href_of: the address that a file of a path and a tier is announced with.
    """

    folders: Mapping[str, Path]
    href_of: Callable[[str, str], str]

    def folder(self, tier: str) -> Path:
        """Return the folder of a tier. DiskAway where no setting names it, or it is not there."""
        folder = self.folders.get(tier)
        if folder is None:
            raise DiskAway(f"there are files of the tier {tier}, and the policy names no folder of it")
        if not folder.is_dir():
            raise DiskAway(
                f"there is no folder {folder}: mount it, or change FEDSTAC_REPLICA_FOLDER or the policy's tiers"
            )
        return folder


@dataclass(frozen=True, slots=True)
class VerificationLimits:
    """What stops the mending: dark or bad files over `brake_percent`, unless `is_forced`.

    Dark files are removed only if that is asked for (`removes_dark`), and not before `dark_days` after their last
    change. grace_seconds: how long the event of an announcement may be on its way back here.
    """

    brake_percent: float = 1.0
    is_forced: bool = False
    removes_dark: bool = False
    dark_days: float = 28.0
    grace_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class LookProgress:
    """How far a look is."""

    phase: str
    files: int
    bytes: int


@dataclass(slots=True)
class Verifier:
    """Looks at the disk of a node by several threads. `now`: seconds since the epoch, for the age of dark files."""

    conn: Connection
    node: str
    tiers: Tiers
    limits: VerificationLimits = VerificationLimits()
    threads: int = max(2, os.cpu_count() or 2)
    on_progress: Callable[[LookProgress], None] = lambda progress: None
    now: Callable[[], float] = time.time
    _is_stopping: bool = field(default=False, init=False)

    # --- looking ---

    async def look(self, look: DiskLook) -> DiskLook:
        """Go on with a look to its end, and return it. DiskAway where a folder is not there or may not be read."""
        for tier in await looks.tiers_with_files(self.conn):
            self.tiers.folder(tier)
        await self._check_marks()
        while look.phase != "done":
            match look.phase:
                case "files":
                    await self._look_at_files(look)
                    following = "entries"
                case "entries":
                    await self._look_at_entries(look)
                    # a sample of the records says nothing of what has none
                    following = "disk" if look.sample_percent >= 100 else "done"
                case _:
                    await self._look_at_disk(look)
                    following = "done"
            await looks.enter_phase(self.conn, look.id, following)
            look = await looks.read(self.conn, look.id)
        return look

    async def _look_at_files(self, look: DiskLook) -> None:
        self._is_stopping = False
        with ThreadPoolExecutor(self.threads, thread_name_prefix="verify") as pool:
            try:
                while files := await looks.recorded_files(self.conn, look, PAGE):
                    for stretch in _stretches(files):
                        await self._look_at_stretch(pool, look, stretch)
                    look = await looks.read(self.conn, look.id)
            finally:
                self._is_stopping = True  # threads that still read a large file end

    async def _check_marks(self) -> None:
        """Refuse a disk that is not mounted: DiskAway."""
        try:
            tiers = await marked_tiers.tiers(self.conn)
            await asyncio.to_thread(marks.check_all, self.tiers.folders, self.node, tiers)
        except TierAway as error:
            raise DiskAway(str(error)) from None

    async def _look_at_stretch(self, pool: ThreadPoolExecutor, look: DiskLook, files: Sequence[FileToVerify]) -> None:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(
            *(loop.run_in_executor(pool, self._read, file, look.by_checksum) for file in files)
        )
        await self._check_marks()  # a disk that went meanwhile has lost no file
        faults = [
            FoundFault(
                verdict.fault, verdict.detail, file.n, file.asset, file.tier, file.path,
                result.file.size if result.file else None, result.changed_at if result.file else None, file.verified_at,
            )
            for file, result in zip(files, results, strict=True)
            if (verdict := verification.judge_file(RecordedFile(file.size, file.checksum), result.file)) is not None
        ]  # fmt: skip
        size = sum(result.file.size for result in results if result.file) if look.by_checksum else 0
        await looks.store_files(self.conn, look.id, files[-1], faults, files=len(files), bytes=size)
        failpoint("replica.looked")
        self.on_progress(LookProgress("files", len(files), sum(file.size or 0 for file in files)))

    def _read(self, file: FileToVerify, by_checksum: bool) -> DiskReading:
        checksum = file.checksum if by_checksum else None
        folder = self.tiers.folder(file.tier)
        return surveying.look(folder, file.path, checksum, should_go_on=lambda: not self._is_stopping)

    async def _look_at_entries(self, look: DiskLook) -> None:
        while datasets := await looks.entries(self.conn, look, self.node, DATASETS_PAGE, self.limits.grace_seconds):
            faults = [fault for dataset in datasets for fault in self._faults_of(dataset)]
            count = sum(len(dataset.hrefs) for dataset in datasets)
            await looks.store_entries(self.conn, look.id, datasets[-1].n, faults, entries=count)
            self.on_progress(LookProgress("entries", count, 0))
            look = await looks.read(self.conn, look.id)

    def _faults_of(self, dataset: DatasetEntries) -> Iterator[FoundFault]:
        """Yield what is wrong with the federation's entries of a dataset."""
        for asset in sorted({*dataset.hrefs, *dataset.copies}):
            copy = dataset.copies.get(asset)
            expected_href = self.tiers.href_of(copy.path, copy.tier) if copy else None
            verdict = verification.judge_entry(dataset.hrefs.get(asset), expected_href)
            if verdict is not None:
                path, tier = (copy.path, copy.tier) if copy else ("", "")
                yield FoundFault(verdict.fault, verdict.detail, dataset.n, asset, tier, path)

    async def _look_at_disk(self, look: DiskLook) -> None:
        tiers = sorted(self.tiers.folders)
        for tier in tiers:
            if look.after_tier is not None and tier < look.after_tier:
                continue
            after = look.after_path if tier == look.after_tier else ""
            others = [folder for name, folder in self.tiers.folders.items() if name != tier]
            if not self.tiers.folders[tier].is_dir():  # no file was ever put there
                continue
            walk = surveying.walk(self.tiers.folder(tier), after=after, without=others)
            while files := await asyncio.to_thread(next_page, walk):
                dark = await looks.unrecorded(self.conn, tier, [file.path for file in files])
                faults = [
                    FoundFault(
                        FileFault.DARK, "no dataset of this node has it", tier=tier, path=file.path,
                        size=file.size if file.is_plain else None, changed_at=file.changed_at,
                    )
                    for file in files if file.path in dark
                ]  # fmt: skip
                await looks.store_disk(self.conn, look.id, tier, files[-1].path, faults, on_disk=len(files))
                self.on_progress(LookProgress("disk", len(files), 0))

    # --- mending ---

    async def mend(self, look: DiskLook) -> str | None:
        """Mend what a finished look found, as far as that may be. Return why the brake stops it, else None."""
        counts = VerificationCounts(look.files, look.on_disk, look.bytes, await looks.count_faults(self.conn, look.id))
        reason = verification.brake(counts, self.limits.brake_percent)
        if reason is not None and not self.limits.is_forced:
            await looks.store_brake(self.conn, look, reason)
            return reason
        await self._check_marks()
        async for rows in self._open_findings(look, tuple(LOST)):
            await self._fetch_again(rows)
        async for rows in self._open_findings(look, (FileFault.UNREADABLE,)):
            await looks.store_outcomes(self.conn, [row.id for row in rows], "left", UNREADABLE)
        async for rows in self._open_findings(look, ENTRY_FAULTS):
            await looks.mend_entries(self.conn, rows)
        async for rows in self._open_findings(look, (FileFault.DARK,)):
            await self._remove_dark(rows)
        return None

    async def _open_findings(self, look: DiskLook, faults: Sequence[FileFault]) -> AsyncIterator[list[FindingRow]]:
        after = 0
        while rows := await looks.findings(
            self.conn, look.id, after=after, faults=faults, limit=MENDED_AT_ONCE, open_only=True
        ):
            yield rows
            after = rows[-1].id

    async def _fetch_again(self, rows: Sequence[FindingRow]) -> None:
        """Declare lost files, then take what is in their place out of the served tree."""
        mended = set(await looks.fetch_again(self.conn, rows))
        failpoint("replica.declared")
        others = [row.id for row in rows if row.id not in mended]
        await looks.store_outcomes(
            self.conn, others, "left", "it was changed meanwhile, or the dataset's files are not wanted any more"
        )
        for row in rows:
            if row.id in mended and row.size is not None and row.changed_at is not None:
                await asyncio.to_thread(
                    surveying.remove, self.tiers.folder(row.tier), row.path, size=row.size, changed_at=row.changed_at
                )

    async def _remove_dark(self, rows: Sequence[FindingRow]) -> None:
        """Remove dark files that are old enough, and of which there is still no record, if that is asked for."""
        limits = self.limits
        young: list[FindingRow] = []
        unwanted: list[FindingRow] = []
        odd: list[FindingRow] = []
        old: list[FindingRow] = []
        for row in rows:
            if not verification.is_old_enough(self.now() - (row.changed_at or 0.0), limits.dark_days):
                young.append(row)
            elif not limits.removes_dark:
                unwanted.append(row)
            else:
                (odd if row.size is None else old).append(row)
        outcomes = [
            (young, "left", f"it is younger than {limits.dark_days:g} days"),
            (unwanted, "left", "it stays, unless --remove-dark is given"),
            (odd, "left", "it is no regular file with a plain name; see to it by hand"),
        ]
        removed: list[FindingRow] = []
        altered: list[FindingRow] = []
        for tier in sorted({row.tier for row in old}):
            own = [row for row in old if row.tier == tier]
            dark = await looks.unrecorded(self.conn, tier, [row.path for row in own])
            for row in own:
                is_gone = row.path in dark and await asyncio.to_thread(
                    surveying.remove,
                    self.tiers.folder(tier),
                    row.path,
                    size=row.size or 0,
                    changed_at=row.changed_at or 0.0,
                )
                (removed if is_gone else altered).append(row)
        outcomes += [
            (removed, "mended", "it is removed"),
            (altered, "left", "it was changed, or recorded, since it was found"),
        ]
        for some, outcome, note in outcomes:
            await looks.store_outcomes(self.conn, [row.id for row in some], outcome, note)


def next_page(walk: Iterator[SurveyedFile]) -> list[SurveyedFile]:
    """Return the next files of a walk, empty at its end. Blocks."""
    return list(islice(walk, PAGE))


def _stretches(files: Sequence[FileToVerify]) -> Iterator[list[FileToVerify]]:
    """Yield files in stretches of so many files or bytes that little is read again after an interruption."""
    stretch: list[FileToVerify] = []
    size = 0
    for file in files:
        stretch.append(file)
        size += file.size or 0
        if len(stretch) == STRETCH_FILES or size >= STRETCH_BYTES:
            yield stretch
            stretch, size = [], 0
    if stretch:
        yield stretch
