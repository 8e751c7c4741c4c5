"""Rules that compare a dataset with others, all of them warnings.

A newer version that covers less of time than the one before it; the same files, or a file's tracking id, in another
dataset. Versions of one dataset may share files. Pure: whoever calls brings the other datasets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final

import orjson

from fedstac.domain.errors import Finding, Severity
from fedstac.domain.model import moment
from fedstac.domain.vocabulary import Vocabulary

COVERAGE, SAME_FILES, SHARED_TRACKING_ID = "coverage", "same-files", "shared-tracking-id"
RULES: Final = (COVERAGE, SAME_FILES, SHARED_TRACKING_ID)
SLACK: Final = timedelta(days=16)  # monthly means named by the middle of their months end half a month early
MOST_MARKS: Final = 1_000_000  # that a batch remembers
TRACKING_ID: Final = ':tracking_id":"'  # what stands before one in a document's text
CHECKSUM: Final = '"file:checksum":"'


def is_on(rule: str, vocabulary: Vocabulary | None) -> bool:
    """Tell whether a project has the warnings of a rule."""
    return vocabulary is None or vocabulary.rules.get(rule, Severity.WARNING) is not None


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a dataset, and the time that it covers."""

    id: str
    version: int
    start: str  # RFC 3339
    end: str


def version_of(document: str, id: str, version: int | None) -> Version | None:
    """Return what time a stored document covers; None where its dataset has no versions."""
    if version is None:
        return None
    properties: Mapping[str, Any] = orjson.loads(document)["properties"]
    start, end = (properties.get(name) or properties.get("datetime") for name in ("start_datetime", "end_datetime"))
    return Version(id, version, str(start), str(end))


def coverage(one: Version, other: Version) -> Finding | None:
    """Return a warning where the newer of two versions leaves out time that the older one covers.

    A tenth of the older one's time, and at most half a month, may be missing at each end.
    """
    older, newer = sorted((one, other), key=lambda version: version.version)
    times = [moment(text) for text in (older.start, older.end, newer.start, newer.end)]
    if not all(times):
        return None
    since, until, start, end = (time for time in times if time is not None)
    slack = min(SLACK, max(until - since, timedelta(0)) / 10)
    if _is_within(start, since, slack) and _is_within(until, end, slack):
        return None
    message = (
        f"the newer version {newer.id} ({newer.start} to {newer.end}) covers less of time than {older.id} "
        f"({older.start} to {older.end}) and hides it"
    )
    return Finding(COVERAGE, "/properties/start_datetime", message, Severity.WARNING)


def _is_within(earlier: datetime, later: datetime, slack: timedelta) -> bool:
    """Tell whether one moment is not after the other by more than the slack."""
    return earlier - later <= slack


def marks(document: str) -> dict[int, str]:
    """Return the marks of a document's files: a number for each tracking id, with that id, and one for the set of all
    checksums, with an empty text.

    `document` is JSON text as orjson writes it. A number is 64 bits of a SHA-256, as in migrations/*_file_marks.sql.
    """
    numbers = {mark_of(tracking_id): tracking_id for tracking_id in values_behind(document, TRACKING_ID)}
    checksums = sorted(values_behind(document, CHECKSUM))
    if checksums:
        numbers[mark_of(" ".join(checksums))] = ""
    return numbers


def values_behind(document: str, key: str) -> set[str]:
    """Return the texts behind a key. Texts with escapes are none of a tracking id or checksum."""
    parts = document.split(key)[1:]
    return {value for part in parts if (value := part[: part.index('"')]) and "\\" not in value}


def mark_of(text: str) -> int:
    """Return 64 bits of the SHA-256 of a text, as the migrations of marks compute it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)


def common_files(own: Mapping[int, str], common: Collection[int], other: str) -> Finding:
    """Return the warning that a dataset has marks in common with another one."""
    if any(not own[mark] for mark in common):
        message = f"{other} has the same files; one of the two ids may be wrong"
        return Finding(SAME_FILES, "/assets", message, Severity.WARNING)
    tracking_ids = sorted(own[mark] for mark in common)
    message = f"the tracking id {tracking_ids[0][:128]} is also that of a file of {other}"
    if len(tracking_ids) > 1:
        message = f"{len(tracking_ids)} tracking ids are also those of files of {other}, as {tracking_ids[0][:128]}"
    return Finding(SHARED_TRACKING_ID, "/assets", message, Severity.WARNING)


class Batch:
    """Datasets that are judged one after the other, each beside those before it. It keeps a million marks."""

    def __init__(self) -> None:
        self._datasets: list[tuple[str, str]] = []  # id and lineage
        self._by_mark: dict[int, int] = {}  # the first dataset that has it
        self._versions: dict[str, list[Version]] = {}

    def compare(self, document: str, id: str, lineage: str, version: int | None) -> Iterator[Finding]:
        """Yield warnings about a dataset beside those before it, which it joins."""
        covered = version_of(document, id, version)
        if covered is not None:
            yield from self._beside_versions(covered, lineage)
        yield from self.compare_files(marks(document), id, lineage)

    def compare_files(self, own: Mapping[int, str], id: str, lineage: str) -> Iterator[Finding]:
        """Yield warnings about the files of a dataset beside those before it, which it joins."""
        common: dict[int, list[int]] = {}
        for mark in own:
            if (before := self._by_mark.get(mark)) is not None and self._datasets[before][1] != lineage:
                common.setdefault(before, []).append(mark)
        for before, theirs in common.items():
            yield common_files(own, theirs, self._datasets[before][0])
        if own and len(self._by_mark) + len(own) <= MOST_MARKS:
            self._datasets.append((id, lineage))
            for mark in own:
                self._by_mark.setdefault(mark, len(self._datasets) - 1)

    def _beside_versions(self, covered: Version, lineage: str) -> Iterator[Finding]:
        versions = self._versions.setdefault(lineage, [])
        older = [other for other in versions if other.version < covered.version]
        newer = [other for other in versions if other.version > covered.version]
        for neighbour in (max(older, key=attrgetter("version"), default=None),
                          min(newer, key=attrgetter("version"), default=None)):  # fmt: skip
            if neighbour is not None and (finding := coverage(covered, neighbour)):
                yield finding
        versions.append(covered)
