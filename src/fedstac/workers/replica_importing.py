"""Adoption of files that are on the disk of a replica node already: what has the checksum of a dataset need not come.

No file is moved or changed. Whatever is recorded as verified is not read again. An interrupted import goes on where it
was.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedstac.db.connections import Connection
from fedstac.db.replica import adoption, looks
from fedstac.db.replica.adoption import ImportCandidate
from fedstac.db.replica.looks import DiskLook, FoundFault
from fedstac.domain.errors import BadRequest
from fedstac.domain.replication import verification
from fedstac.domain.replication.verification import DiskFile, FileFault, RecordedFile
from fedstac.replication import surveying
from fedstac.replication.copying import new_digest
from fedstac.replication.surveying import DiskReading, SurveyedFile
from fedstac.replication.transports import CopyFailed
from fedstac.runtime.failpoints import failpoint
from fedstac.workers.replica_verifying import LookProgress, Tiers, next_page

STRETCH_BYTES: Final = 16 << 30  # that are read between two moves of the import's place


@dataclass(frozen=True, slots=True)
class ImportPlace:
    """What is imported: a folder in that of a tier. `prefix`: its path there, with a slash at its end, or empty."""

    tier: str
    folder: Path
    prefix: str


def place_of(tiers: Tiers, folder: Path) -> ImportPlace:
    """Return where a folder is among the tiers. BadRequest where it is in none, or is not there."""
    real = Path(os.path.realpath(folder))
    if not real.is_dir():
        raise BadRequest(f"there is no folder {folder}")
    best: ImportPlace | None = None
    for tier, base in tiers.folders.items():
        root = Path(os.path.realpath(base))
        if real.is_relative_to(root):
            below = real.relative_to(root).as_posix()
            place = ImportPlace(tier, root, "" if below == "." else f"{below}/")
            if best is None or len(place.folder.parts) > len(best.folder.parts):
                best = place
    if best is None:
        folders = ", ".join(str(each) for each in tiers.folders.values())
        raise BadRequest(
            f"{folder} is in no folder of this node ({folders}); files are adopted where they are: name it as a tier "
            f"in the policy, or as FEDSTAC_REPLICA_FOLDER"
        )
    return best


@dataclass(slots=True)
class Importer:
    """Adopts the files of a folder, by several threads."""

    conn: Connection
    tiers: Tiers
    threads: int = max(2, os.cpu_count() or 2)
    on_progress: Callable[[LookProgress], None] = lambda progress: None
    _is_stopping: bool = field(default=False, init=False)

    async def run(self, look: DiskLook, place: ImportPlace) -> DiskLook:
        """Go on with an import to its end, and return it as it stands then."""
        others = [folder for name, folder in self.tiers.folders.items() if name != place.tier]
        start = place.folder / place.prefix if place.prefix else place.folder
        files_below = surveying.walk(start, after=look.after_path.removeprefix(place.prefix), without=others)
        walk = (_below(place.prefix, file) for file in files_below)
        self._is_stopping = False
        with ThreadPoolExecutor(self.threads, thread_name_prefix="import") as pool:
            try:
                while files := await asyncio.to_thread(next_page, walk):
                    candidates = await adoption.candidates(self.conn, place.tier, [file.path for file in files])
                    for stretch in _stretches(files):
                        await self._adopt(pool, look, place, stretch, candidates)
            finally:
                self._is_stopping = True
        await looks.enter_phase(self.conn, look.id, "done")
        return await looks.read(self.conn, look.id)

    async def _adopt(
        self, pool: ThreadPoolExecutor, look: DiskLook, place: ImportPlace, files: Sequence[SurveyedFile],
        candidates: dict[str, ImportCandidate],
    ) -> None:  # fmt: skip
        """Compare files with their datasets, and store what came of it."""
        loop = asyncio.get_running_loop()
        news = [file for file in files if (each := candidates.get(file.path)) is not None and not each.is_verified]
        readings = dict(zip(
            [file.path for file in news],
            await asyncio.gather(*(
                loop.run_in_executor(pool, self._read, place.folder, candidates[file.path]) for file in news
            )),
            strict=True,
        ))  # fmt: skip
        adopted: list[ImportCandidate] = []
        faults: list[FoundFault] = []
        for file in files:
            candidate = candidates.get(file.path)
            if candidate is None:
                detail = "no dataset that this node wants has a file of this path"
                faults.append(FoundFault(
                    FileFault.UNKNOWN, detail, tier=place.tier, path=file.path, size=file.size,
                    changed_at=file.changed_at,
                ))  # fmt: skip
            elif not candidate.is_verified:
                fault = _judge(candidate, readings[file.path].file)
                if fault is None:
                    adopted.append(candidate)
                else:
                    faults.append(fault)
        size = sum(reading.file.size for reading in readings.values() if reading.file)
        await adoption.store(
            self.conn, look.id, place.tier, files[-1].path, adopted, faults, on_disk=len(files), bytes=size
        )
        failpoint("replica.adopted")
        self.on_progress(LookProgress("import", len(files), sum(file.size for file in files)))

    def _read(self, folder: Path, candidate: ImportCandidate) -> DiskReading:
        if candidate.size is not None:  # of another size it need not be read
            by_size = surveying.look(folder, candidate.path, None)
            if by_size.file is None or by_size.file.trouble or by_size.file.size != candidate.size:
                return by_size
        return surveying.look(folder, candidate.path, candidate.checksum, should_go_on=lambda: not self._is_stopping)


def _judge(candidate: ImportCandidate, disk: DiskFile | None) -> FoundFault | None:
    """Return why a file cannot be adopted; None where it is what its dataset says."""
    verdict = verification.judge_file(RecordedFile(candidate.size, candidate.checksum), disk)
    if verdict is None and not _is_verifiable(candidate.checksum):
        detail = "its dataset has no checksum that can be computed here, so nobody can tell what it is"
        verdict = verification.FileVerdict(FileFault.UNKNOWN, detail)
    if verdict is None:
        return None
    return FoundFault(
        verdict.fault, verdict.detail, candidate.n, candidate.asset, candidate.tier, candidate.path,
        disk.size if disk else None,
    )  # fmt: skip


def _is_verifiable(checksum: str | None) -> bool:
    try:
        new_digest(checksum or "")
    except CopyFailed:
        return False
    return True


def _below(prefix: str, file: SurveyedFile) -> SurveyedFile:
    return SurveyedFile(prefix + file.path, file.size, file.changed_at, file.is_plain)


def _stretches(files: Sequence[SurveyedFile]) -> Iterator[list[SurveyedFile]]:
    """Yield files in stretches of so many bytes that little is read again after an interruption."""
    stretch: list[SurveyedFile] = []
    size = 0
    for file in files:
        stretch.append(file)
        size += file.size
        if size >= STRETCH_BYTES:
            yield stretch
            stretch, size = [], 0
    if stretch:
        yield stretch
