"""The registry of vocabularies: many versions side by side, each read and parsed when it is first needed.

Rules get a `ParsedVocabularies` of what they may need (domain/vocabulary.py): they never come here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

from fedstac.domain.vocabulary import ParsedVocabularies, UnknownVersion, Vocabulary, VocabularyBroken, parse


def order_of(version: str) -> tuple[tuple[int, ...], str]:
    """Return a key that sorts versions by their numbers: `6.2.58.60` before `6.2.60.0` before `6.2.60.0+1`."""
    return tuple(int(number) for number in re.findall(r"[0-9]+", version)), version


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version of a project's vocabulary that is at hand; `read` gives its bytes."""

    project: str
    version: str
    digest: str
    read: Callable[[], bytes]


class Vocabularies:
    """The versions that are at hand, each parsed when it is first needed.

    Threads share it. Installing a version changes none that is in use.
    """

    def __init__(self, snapshots: Sequence[Snapshot] = (), pins: Mapping[str, str] | None = None) -> None:
        """Take the snapshots. `pins`: projects that stay with a version, also if there is a newer one."""
        self._snapshots: dict[tuple[str, str], Snapshot] = {}
        self._vocabularies: dict[tuple[str, str], Vocabulary] = {}
        self._newest: dict[str, str] = {}
        self._pins = dict(pins or {})
        self._lock = Lock()
        for snapshot in snapshots:
            self.install(snapshot)

    def install(self, snapshot: Snapshot) -> None:
        """Add a version. VocabularyBroken where it is here with other content: versions never change."""
        key = snapshot.project, snapshot.version
        with self._lock:
            present = self._snapshots.get(key)
            if present is not None:
                if present.digest != snapshot.digest:
                    raise VocabularyBroken(
                        f"{snapshot.project} {snapshot.version} is here with other content; a version never changes"
                    )
                return
            self._snapshots[key] = snapshot
            newest = self._newest.get(snapshot.project)
            if newest is None or order_of(snapshot.version) > order_of(newest):
                self._newest[snapshot.project] = snapshot.version

    def current(self, project: str) -> Vocabulary | None:
        """Return the version that judges now: the pinned one, else the newest. None where there is no such project."""
        version = self._pins.get(project) or self._newest.get(project)
        return self.at(project, version) if version is not None else None

    def at(self, project: str, version: str) -> Vocabulary:
        """Return one version. UnknownVersion if it is not here, VocabularyBroken if its bytes have changed."""
        key = project, version
        if (parsed_vocabulary := self._vocabularies.get(key)) is not None:
            return parsed_vocabulary
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            here = ", ".join(one.version for one in self.of(project)) or "none"
            raise UnknownVersion(f"{project} has no vocabulary {version!r} here; there is: {here}")
        vocabulary = parse(snapshot.read())
        if (vocabulary.project, vocabulary.version, vocabulary.digest) != (*key, snapshot.digest):
            raise VocabularyBroken(f"the snapshot {project} {version} is not what it was: its digest differs")
        with self._lock:
            return self._vocabularies.setdefault(key, vocabulary)

    def find(self, project: str, version: str) -> Snapshot | None:
        """Return the snapshot of a version; None where it is not here. Nothing is read."""
        return self._snapshots.get((project, version))

    def digest_of(self, project: str, version: str) -> str | None:
        """Return the digest of a version; None where it is not here. Nothing is read."""
        snapshot = self._snapshots.get((project, version))
        return snapshot.digest if snapshot else None

    def select(self, projects: Iterable[str], versions: Iterable[tuple[str, str]]) -> ParsedVocabularies:
        """Return the versions (project, version), and the current ones of the projects. UnknownVersion as `at`."""
        newest = {project: current for project in projects if (current := self.current(project)) is not None}
        return ParsedVocabularies({key: self.at(*key) for key in versions}, newest)

    def of(self, project: str) -> list[Snapshot]:
        """Return a project's snapshots, the oldest version first."""
        return sorted(
            (s for s in list(self._snapshots.values()) if s.project == project), key=lambda s: order_of(s.version)
        )

    def projects(self) -> list[str]:
        """Return the projects that have a vocabulary, sorted."""
        return sorted(self._newest)

    def __iter__(self) -> Iterator[Snapshot]:
        return (snapshot for project in self.projects() for snapshot in self.of(project))


def snapshot_of(raw: bytes) -> Snapshot:
    """Return bytes in memory as a snapshot. VocabularyBroken where they are none."""
    vocabulary = parse(raw)
    return Snapshot(vocabulary.project, vocabulary.version, vocabulary.digest, lambda: raw)
