"""Where the files of a dataset are fetched from next: the first source of each that may be asked now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


class FileSource(Protocol):
    """A copy of a file: of a node, at a host, under an address, and of which source of the policy."""

    @property
    def node(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def href(self) -> str: ...
    @property
    def source(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a source is not asked: for one file, or at all. `until` is None where nothing but a person ends it."""

    reason: str
    until: datetime | None


@dataclass(frozen=True, slots=True)
class FilePlace:
    """The copy that a file is fetched from next. `lane`: the source of the policy whose caps hold."""

    asset: str
    node: str
    host: str
    href: str
    lane: str


@dataclass(frozen=True, slots=True)
class FileObstacle:
    """A file that no source can be asked for now, or ever (`until` is None)."""

    asset: str
    reason: str
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Placement:
    """What becomes of a dataset's files next.

    lane: the source of the policy that most files come from; None where none comes from anywhere now.
    """

    places: tuple[FilePlace, ...]
    waiting: tuple[FileObstacle, ...]
    failed: tuple[FileObstacle, ...]
    lane: str | None

    @property
    def obstacle(self) -> Obstacle | None:
        """Why nothing can be fetched now, and until when; None where something can.

        That is of the files that wait the one whose wait ends first; of files that failed the first.
        """
        if self.lane is not None:
            return None
        if self.waiting:
            first = min(self.waiting, key=lambda each: (each.until is None, each.until))
            return Obstacle(first.reason, first.until)
        return Obstacle(_summary(self.failed), None) if self.failed else None


@dataclass(frozen=True, slots=True)
class Closures:
    """Why sources of the policy (lanes), and single hosts, are not asked for anything now."""

    lanes: Mapping[str, Obstacle] = field(default_factory=dict)
    hosts: Mapping[str, Obstacle] = field(default_factory=dict)

    def of(self, source: FileSource) -> Obstacle | None:
        """Return why a copy is not fetched now; None where it may be."""
        return self.lanes.get(source.source) or self.hosts.get(source.host)


def place(
    assets: Iterable[str],
    candidates: Mapping[str, Sequence[FileSource]],
    *,
    faults: Mapping[tuple[str, str], Obstacle],
    closures: Closures,
    already: Mapping[str, int],
    reasons: Mapping[str, str],
) -> Placement:
    """Choose a copy for each asset.

    candidates: by asset, in the order of preference; reasons: why an asset has none. faults: why a host is not asked
    for a file, by asset and host. already: how many files of the dataset have a copy chosen, by lane.
    """
    places, waiting, failed = [], [], []
    counts = Counter({lane: count for lane, count in already.items() if lane not in closures.lanes})
    for asset in assets:
        sources = candidates.get(asset, ())
        obstacles = [faults.get((asset, source.host)) or closures.of(source) for source in sources]
        usable = next((source for source, obstacle in zip(sources, obstacles, strict=True) if obstacle is None), None)
        if usable is not None:
            places.append(FilePlace(asset, usable.node, usable.host, usable.href, usable.source))
            counts[usable.source] += 1
            continue
        ending = [(each.until, each.reason) for each in obstacles if each is not None and each.until is not None]
        if ending:
            until, reason = min(ending)
            waiting.append(FileObstacle(asset, reason, until))
        else:
            reason = _last_reason(sources, obstacles) or reasons.get(asset) or "the policy lists no source that has it"
            failed.append(FileObstacle(asset, reason, None))
    lane = counts.most_common(1)[0][0] if counts else None
    return Placement(tuple(places), tuple(waiting), tuple(failed), lane)


def _last_reason(sources: Sequence[FileSource], obstacles: Sequence[Obstacle | None]) -> str:
    """Return why a file has no copy left: what each of them did; "" where there never was one."""
    reasons = [f"{source.node}: {each.reason}" for source, each in zip(sources, obstacles, strict=True) if each]
    return "no source is left; " + "; ".join(reasons) if reasons else ""


def _summary(failed: Sequence[FileObstacle]) -> str:
    first = failed[0]
    others = f" ({len(failed) - 1} more files failed)" if len(failed) > 1 else ""
    return f"{first.asset}: {first.reason}{others}"
