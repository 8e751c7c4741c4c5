"""Where the files of a dataset are fetched from next: the first source of each that may be asked now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class FileSource(Protocol):
    """A place that has a file: of a node, at a host, under an address."""

    @property
    def node(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def href(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a source is not asked: for one file, or at all. `until` is None where nothing but a person ends it."""

    reason: str
    until: datetime | None


@dataclass(frozen=True, slots=True)
class FilePlace:
    """The source that a file is fetched from next."""

    asset: str
    node: str
    host: str
    href: str


@dataclass(frozen=True, slots=True)
class FileObstacle:
    """A file that no source can be asked for now, or ever (`until` is None)."""

    asset: str
    reason: str
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Placement:
    """What becomes of a dataset's files next.

    source: the host that most files come from; None where none comes from anywhere now.
    """

    places: tuple[FilePlace, ...]
    waiting: tuple[FileObstacle, ...]
    failed: tuple[FileObstacle, ...]
    source: str | None

    @property
    def obstacle(self) -> Obstacle | None:
        """Why nothing can be fetched now, and until when; None where something can.

        That is of the files that wait the one whose wait ends first; of files that failed the first.
        """
        if self.source is not None:
            return None
        if self.waiting:
            first = min(self.waiting, key=lambda each: (each.until is None, each.until))
            return Obstacle(first.reason, first.until)
        return Obstacle(_summary(self.failed), None) if self.failed else None


def place(
    assets: Iterable[str],
    candidates: Mapping[str, Sequence[FileSource]],
    *,
    faults: Mapping[tuple[str, str], Obstacle],
    closed: Mapping[str, Obstacle],
    already: Mapping[str, int],
) -> Placement:
    """Choose a source for each asset.

    candidates: by asset, in the order of preference. faults: why a host is not asked for a file, by asset and host.
    closed: why a host is not asked at all now, by host. already: how many files of the dataset have a source, by host.
    """
    places, waiting, failed = [], [], []
    counts = Counter({host: count for host, count in already.items() if host not in closed})
    for asset in assets:
        sources = candidates.get(asset, ())
        obstacles = [faults.get((asset, source.host)) or closed.get(source.host) for source in sources]
        usable = next((source for source, obstacle in zip(sources, obstacles, strict=True) if obstacle is None), None)
        if usable is not None:
            places.append(FilePlace(asset, usable.node, usable.host, usable.href))
            counts[usable.host] += 1
            continue
        ending = [(each.until, each.reason) for each in obstacles if each is not None and each.until is not None]
        if ending:
            until, reason = min(ending)
            waiting.append(FileObstacle(asset, reason, until))
        else:
            failed.append(FileObstacle(asset, _last_reason(sources, obstacles), None))
    source = counts.most_common(1)[0][0] if counts else None
    return Placement(tuple(places), tuple(waiting), tuple(failed), source)


def _last_reason(sources: Sequence[FileSource], obstacles: Sequence[Obstacle | None]) -> str:
    """Return why a file has no source left: what each of them did."""
    if not sources:
        return "the policy lists no source that has it"
    reasons = [f"{source.node}: {each.reason}" for source, each in zip(sources, obstacles, strict=True) if each]
    return "no source is left; " + "; ".join(reasons)


def _summary(failed: Sequence[FileObstacle]) -> str:
    first = failed[0]
    others = f" ({len(failed) - 1} more files failed)" if len(failed) > 1 else ""
    return f"{first.asset}: {first.reason}{others}"
