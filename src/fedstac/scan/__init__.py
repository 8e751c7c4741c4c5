"""From CMIP6 NetCDF files to STAC items: find the files, read each once, put them together as datasets.

Facts of files are remembered (memory.py): a run that was stopped goes on, and a second run reads nothing again.
`fedstac scan` is the command line; docs/scan.md says what comes of which file. Of this package only headers.py and
calendars.py need the extra `netcdf`, in reader.py's processes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from fedstac.domain import crosschecks
from fedstac.domain.errors import Severity
from fedstac.domain.vocabulary import Vocabulary
from fedstac.scan import items, listing
from fedstac.scan.listing import VERSION, NoListing
from fedstac.scan.memory import ScanState, StateBroken
from fedstac.scan.readers import Readers
from fedstac.scan.site import Site, SiteBroken
from fedstac.scan.values import Facts, Fault, ScanFile, Unusable

__all__ = ["Fault", "NoListing", "Scan", "Site", "SiteBroken", "StateBroken", "missing_modules", "processors"]

Item: TypeAlias = dict[str, Any]


def missing_modules() -> list[str]:
    """Return what the extra `netcdf` brings and is not installed."""
    return [name for name in ("h5py", "cftime") if find_spec(name) is None]


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Scan:
    """One run over a folder or mapfile (`source`). `version` (YYYYMMDD) is that of files whose folder says none.

    `ignore_folders`: no folder says a version, so that `version`, or the mapfile's, is that of all files.
    `trust`: checksums of the mapfile count, and files are not read as a whole. `afresh`: what is remembered is not
    used. `counts` says at any time: files found, read now, remembered, unusable; datasets made, kept back; errors and
    warnings. `size`: bytes of all files; `to_read` and `was_read`: bytes to compute checksums from.
    """

    def __init__(
        self,
        source: str,
        site: Site,
        *,
        state: Path | None,
        version: str | None = None,
        ignore_folders: bool = False,
        vocabulary: Vocabulary | None = None,
        jobs: int = 1,
        trust: bool = False,
        afresh: bool = False,
    ) -> None:
        if version is not None and not listing.is_version(version):
            raise NoListing(f"the version {version!r} is no date of the calendar (YYYYMMDD)")
        self._source, self._site, self._vocabulary = source, site, vocabulary
        self._version, self._ignore_folders = version, ignore_folders
        self._jobs, self._trust, self._afresh, self._state = max(1, jobs), trust, afresh, state
        self._memory: ScanState | None = None
        self._readers: Readers | None = None
        self._bytes_remembered = self._bytes_read_by_readers = 0
        self._incomplete: dict[tuple[str, ...], str] = {}  # datasets that lack a file, and that file
        self.counts: Counter[str] = Counter()
        self.size = self.to_read = 0

    @property
    def read_now(self) -> int:
        """Of `was_read`, what is not remembered from before."""
        return self._bytes_read_by_readers + (self._readers.read if self._readers else 0)

    @property
    def was_read(self) -> int:
        return self._bytes_remembered + self.read_now

    def run(self) -> Iterator[Item | Fault | None]:
        """Yield the items, and the faults of files and datasets; before that None, so that progress can be printable.

        NoListing where there is nothing to read, StateBroken where nothing can be kept.
        """
        with ScanState(self._state) as memory:
            yield from self._list(memory)
            with Readers(self._jobs) as self._readers:
                yield from self._read(memory, self._readers)
                self._bytes_read_by_readers = self._readers.read
            self._readers = None
            for result in self._put_together(memory):
                if not isinstance(result, Fault):
                    self.counts["datasets"] += 1
                yield result

    # --- files ---

    def _list(self, memory: ScanState) -> Iterator[Fault | None]:
        for file in listing.files(self._source, self._site, self._version, ignore_folders=self._ignore_folders):
            if isinstance(file, Fault):
                yield self._unusable(file)
                continue
            memory.add(file)
            self.counts["found"] += 1
            self.size += file.size
            self.to_read += file.size if self._wants_checksum(file) else 0
            if self.counts["found"] % 100 == 0:
                yield None
        if not (self.counts["found"] or self.counts["unusable"]):
            raise NoListing(f"{self._source} names no file with a name in .nc")

    def _wants_checksum(self, file: ScanFile) -> bool:
        return not (self._trust and file.checksum)

    def _read(self, memory: ScanState, readers: Readers) -> Iterator[Fault | None]:
        """Settle every file: first those that are remembered, which shows how much there is to do, then the others."""
        for n, file in memory.unsettled():
            facts = None if self._afresh else memory.recall(file)
            wants = self._wants_checksum(file)
            if facts is not None and (facts["sha256"] or not wants):
                self.counts["remembered"] += 1
                self._bytes_remembered += file.size if wants else 0
                yield from self._settle(memory, n, file, facts)
            if n % 100 == 0:
                yield None
        numbers: dict[ScanFile, int] = {}

        def unread() -> Iterator[tuple[ScanFile, bool]]:
            for n, file in memory.unsettled():
                numbers[file] = n
                yield file, self._wants_checksum(file)

        for answer in readers.answers(unread()):
            if answer is None:
                yield None
                continue
            file, result = answer
            n = numbers.pop(file)
            if isinstance(result, Unusable):
                memory.refuse(n)
                yield self._unusable(Fault(file.path, result.rule, result.message, dataset=_whole(file)), file)
                continue
            self.counts["read"] += 1
            memory.remember(file, result)
            yield from self._settle(memory, n, file, result)

    def _settle(self, memory: ScanState, n: int, file: ScanFile, facts: Facts) -> Iterator[Fault]:
        """Yield a file that was read: used, unless it is not what the mapfile says."""
        base, digest = items.base_id(facts), facts["sha256"]
        fault = None
        if digest and file.checksum and digest != file.checksum:
            fault = "checksum", f"its SHA-256 is {digest}, and the mapfile says {file.checksum}"
        elif file.dataset not in (None, base):
            fault = "dataset-id", f"its attributes make it part of {base}, and the mapfile says {file.dataset}"
        if fault is not None:
            memory.refuse(n)
            yield self._unusable(Fault(file.path, *fault, dataset=_whole(file)), file)
            return
        for rule, message in facts["notes"]:
            yield self._fault(Fault(file.path, rule, message, Severity.WARNING))
        last = file.folder.rpartition("/")[2]
        folder = f"{file.root}/{file.folder}" if VERSION.fullmatch(last) else ""
        memory.settle(n, file, facts, base=base, folder=folder)

    def _unusable(self, fault: Fault, file: ScanFile | None = None) -> Fault:
        """Count it, and note which dataset is not whole without it: the mapfile's, or that of its neighbours."""
        if fault.severity is Severity.WARNING:
            self.counts["warnings"] += 1
            return fault
        self.counts["unusable"] += 1
        self.counts["errors"] += 1
        if fault.dataset:
            self._incomplete[(fault.dataset,)] = fault.path
        self._incomplete[_neighbours(file.path if file else fault.path)] = fault.path
        return fault

    # --- datasets ---

    def _put_together(self, memory: ScanState) -> Iterator[Item | Fault]:
        mixed: set[str] = set()
        for one, other, ids in memory.mixed_folders():
            mixed.update(ids)
            message = f"{one.path} and {other.path} are in one version's folder, and of {ids[0]} and {ids[1]}"
            yield self._fault(Fault(one.folder, "mixed-folder", message))
        for tracking, one, other in memory.shared_tracking_ids():
            message = f"{one.path} and {other.path} have one tracking id, {tracking}"
            yield self._fault(Fault(other.path, "tracking-id", message, Severity.WARNING))
        before: tuple[str, crosschecks.Version] | None = None
        for id, files in memory.datasets():
            faults = [*items.disagreements(id, files), *self._lacking(id, files)]
            yield from map(self._fault, faults)
            yield from map(self._fault, items.overlaps(id, files))
            if faults or id in mixed:
                self.counts["kept back"] += 1
                continue
            item = items.item(id, files, self._site, self._vocabulary)
            base, period = item["properties"]["base_id"], items.covered(item)
            if before is not None and before[0] == base and (gap := crosschecks.coverage(before[1], period)):
                message = f"{gap.message}; if they are one version, say it: --version YYYYMMDD --ignore-version-folders"
                yield self._fault(Fault(id, gap.rule, message, Severity.WARNING))
            before = base, period
            yield item

    def _lacking(self, id: str, files: items.Files) -> Iterator[Fault]:
        """Yield a fault if the dataset lacks a file: no file could be added under the same version later."""
        keys = {(id,)} | {_neighbours(file.path) for file, _ in files}
        lost = sorted(self._incomplete[key] for key in keys & self._incomplete.keys())
        if lost:
            yield Fault(id, "incomplete", f"a file of it cannot be used ({lost[0]}), so it is kept back")

    def _fault(self, fault: Fault) -> Fault:
        self.counts["warnings" if fault.severity is Severity.WARNING else "errors"] += 1
        return fault


def _neighbours(path: str) -> tuple[str, ...]:
    """Return what the paths of one dataset's files have alike: the version's folder, or folder and name."""
    folder, _, name = path.rpartition("/")
    return (folder,) if VERSION.fullmatch(folder.rpartition("/")[2]) else (folder, items.stem(name))


def _whole(file: ScanFile) -> str | None:
    return f"{file.dataset}.v{file.version}" if file.dataset else None
