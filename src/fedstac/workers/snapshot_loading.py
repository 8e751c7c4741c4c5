"""An empty index node starts from a snapshot in files: its parts are checked, loaded, and the feed goes on behind them.

Each group of rows is one transaction, which also notes that it is done: a killed node goes on with the others. Some
connections load at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import orjson
import structlog

from fedstac import applying
from fedstac.bootstrap import Node
from fedstac.db import connections, facets, nodes, own_reports
from fedstac.db.connections import Connection
from fedstac.db.own_reports import OwnPart
from fedstac.domain import events
from fedstac.domain.deletion import DependencyState
from fedstac.domain.events import CollectionEvent, Cursor
from fedstac.domain.model import State
from fedstac.geoparquet.manifest import Manifest, PartKind, SnapshotBroken, SnapshotPart
from fedstac.geoparquet.parts import LoadedDataset, PartReader
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.wakeup import cancel
from fedstac.vocabularies import store
from fedstac.workers import following
from fedstac.workers.following import FollowedElsewhere
from fedstac.workers.snapshot_files import OtherOrigin, SnapshotFiles

LOADERS: Final = 3  # connections that load at once: while one waits for the disk, two cores have work
LARGEST_BESIDE: Final = 64 << 20  # bytes of a vocabulary, or of all collections
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """What of a snapshot is loaded: all groups before `through`, and those of `beyond`."""

    digest: str  # of the manifest
    through: int = 0
    beyond: frozenset[int] = frozenset()

    def has(self, number: int) -> bool:
        """Return whether a group is loaded."""
        return number < self.through or number in self.beyond

    def plus(self, number: int) -> LoadProgress:
        """Return the place with one more group."""
        through, beyond = self.through, set(self.beyond | {number})
        while through in beyond:
            beyond.discard(through)
            through += 1
        return LoadProgress(self.digest, through, frozenset(beyond))

    def __str__(self) -> str:
        return f"{nodes.FILES}{self.digest}:{self.through}:{','.join(map(str, sorted(self.beyond)))}"

    @classmethod
    def parse(cls, text: str) -> LoadProgress:
        """Read a place as it is stored."""
        digest, through, beyond = text.removeprefix(nodes.FILES).split(":")
        return cls(digest, int(through), frozenset(int(number) for number in beyond.split(",") if number))


async def load(
    node: Node, files: SnapshotFiles, *, on_rows: Callable[[int, int], object] = lambda rows, total: None
) -> bool:
    """Load a snapshot into this node and set its place in the feed. Return False where that was done before.

    SnapshotBroken where a part is not what the manifest names; FollowedElsewhere while a process follows the origin.
    What an earlier attempt loaded of the same snapshot stays; of another snapshot it is loaded over.
    `on_rows` is called with the number of datasets that are loaded, and of all.
    """
    manifest = await files.manifest()
    if manifest.origin == node.settings.node:
        raise OtherOrigin(f"the snapshot is of {manifest.origin}, which is this node: it starts from no copy of itself")
    lock = await following.session(node)
    try:
        if not await nodes.follow_alone(lock, nodes.INDEX, manifest.origin):
            raise FollowedElsewhere(
                f"a process follows {manifest.origin} into this database; stop the index node first"
            )
        async with node.pool.acquire() as conn:
            progress = await nodes.progress(conn, nodes.INDEX, manifest.origin)
        if progress is not None and not (progress.snapshot or "").startswith(nodes.FILES):
            log.info("the node has a place in the feed; the snapshot is not needed", origin=manifest.origin)
            return False
        place = LoadProgress.parse(progress.snapshot) if progress is not None and progress.snapshot else None
        if place is None or place.digest != manifest.digest:
            place = LoadProgress(manifest.digest)
        await _Loader(node, files, manifest, place, lock, on_rows).run()
    finally:
        await following.end_session(lock)
    log.info("snapshot loaded", origin=manifest.origin, cursor=str(manifest.cursor))
    return True


@dataclass(frozen=True, slots=True)
class Group:
    """A group of rows of a part, by its number among all groups of the snapshot."""

    number: int
    part: SnapshotPart
    path: Path
    index: int  # in the part


class Stretches:
    """Groups in order, cut into one stretch for each taker. Who is done with its own takes half of the longest one.

    Those that stand beside each other often share a lineage, and two transactions that write one wait for each other.
    """

    def __init__(self, groups: Sequence[Group], takers: int) -> None:
        bounds = [len(groups) * taker // takers for taker in range(takers + 1)]
        self._stretches = [deque(groups[start:end]) for start, end in pairwise(bounds)]

    def take(self, taker: int) -> Group | None:
        """Return the next group for a taker; None when there is none."""
        own = self._stretches[taker]
        if not own:
            longest = max(self._stretches, key=len)
            own.extendleft(longest.pop() for _ in range((len(longest) + 1) // 2))
        return own.popleft() if own else None


class _Loader:
    """Loads what is not yet loaded of one snapshot."""

    def __init__(
        self, node: Node, files: SnapshotFiles, manifest: Manifest, place: LoadProgress, lock: Connection,
        on_rows: Callable[[int, int], object],
    ) -> None:  # fmt: skip
        self._node, self._files, self._manifest, self._lock = node, files, manifest, lock
        self._place, self._on_rows = place, on_rows
        self._committing = asyncio.Lock()  # by whoever moves the place
        self._rows = 0
        self._total = sum(part.rows for part in manifest.parts if part.groups)
        self._first = 0  # the number of the first group of the next part

    async def run(self) -> None:
        """Load everything, in the order in which it builds on each other, and set the place in the feed."""
        await self._load_beside()
        await self._move(events.START, str(self._place))
        for kind, loaders in ((PartKind.RECORDS, LOADERS), (PartKind.CHANGES, 1)):
            await self._load_parts(self._manifest.of_kind(kind), loaders)
        await self._move(self._manifest.cursor, None)

    async def _move(self, cursor: Cursor, snapshot: str | None) -> None:
        async with self._node.pool.acquire() as conn:
            await nodes.move(conn, nodes.INDEX, self._manifest.origin, cursor, snapshot=snapshot)

    async def _load_beside(self) -> None:
        """Install the vocabularies and collections: the datasets stand on them."""
        origin = self._manifest.origin
        for part in self._manifest.of_kind(PartKind.VOCABULARY):
            raw = await self._read(part)
            async with self._node.pool.acquire() as conn:
                await store.install(conn, raw, origin)
                await self._node.vocabulary_store.look(conn)
        for part in self._manifest.of_kind(PartKind.COLLECTIONS):
            page = [events.read(orjson.loads(line), None) for line in (await self._read(part)).splitlines()]
            if any(not isinstance(event, CollectionEvent) or event.origin != origin for event in page):
                raise SnapshotBroken(f"the part {part.name} has what is no collection of {origin}")
            async with self._node.pool.acquire() as conn, conn.transaction():
                await applying.apply(conn, page)

    async def _read(self, part: SnapshotPart) -> bytes:
        if part.size > LARGEST_BESIDE:
            raise SnapshotBroken(f"the part {part.name} has {part.size} bytes; one beside the datasets has at most "
                                 f"{LARGEST_BESIDE}")  # fmt: skip
        path = await self._files.fetch(part)
        try:
            return await asyncio.to_thread(path.read_bytes)
        finally:
            self._files.release(path)

    async def _load_parts(self, parts: Sequence[SnapshotPart], loaders: int) -> None:
        """Load the groups that are not loaded, part by part; fetch the next part meanwhile."""
        missing_parts: list[tuple[SnapshotPart, dict[int, int]]] = []  # with numbers and indexes of what is missing
        for part in parts:
            missing = {
                self._first + index: index for index in range(part.groups) if not self._place.has(self._first + index)
            }
            self._first += part.groups
            if missing:
                missing_parts.append((part, missing))
            else:
                self._rows += part.rows
        fetching = asyncio.create_task(self._files.fetch(missing_parts[0][0])) if missing_parts else None
        try:
            for at, (part, missing) in enumerate(missing_parts, 1):
                assert fetching is not None
                path = await fetching
                next_part = missing_parts[at][0] if at < len(missing_parts) else None
                fetching = asyncio.create_task(self._files.fetch(next_part)) if next_part is not None else None
                groups = [Group(number, part, path, index) for number, index in missing.items()]
                await self._load_groups(groups, loaders)
                self._files.release(path)
                log.info("part loaded", part=part.name, rows=part.rows)
        finally:
            if fetching is not None:
                await cancel(fetching)

    async def _load_groups(self, groups: Sequence[Group], loaders: int) -> None:
        """Load groups of one part, each loader on a connection of its own."""
        stretches = Stretches(groups, loaders)
        try:
            async with asyncio.TaskGroup() as tasks:
                for loader in range(loaders):
                    tasks.create_task(self._load_stretch(stretches, loader))
        except* Exception as errors:
            raise _first_of(errors) from None

    async def _load_stretch(self, stretches: Stretches, loader: int) -> None:
        origin, epoch = self._manifest.origin, self._manifest.cursor.epoch
        async with self._node.pool.acquire() as conn:
            while (group := stretches.take(loader)) is not None:

                def read(group: Group = group) -> list[LoadedDataset]:
                    with PartReader(group.path, group.part) as reader:
                        return reader.read(group.index, origin, epoch)

                await self._store(conn, group, await asyncio.to_thread(read))

    async def _store(self, conn: Connection, group: Group, datasets: Sequence[LoadedDataset]) -> None:
        origin = self._manifest.origin
        await facets.prepare(conn, [draft for _, draft in datasets if draft])
        transaction = conn.transaction()
        await transaction.start()
        try:
            result = await applying.load(conn, origin, datasets)
            if result.foreign:
                raise SnapshotBroken(
                    f"the part {group.part.name} has {len(result.foreign)} datasets that cannot be loaded: their "
                    f"lineages are another origin's here, or their collection is not in the snapshot"
                )
            await own_reports.put(conn, nodes.INDEX, origin, [
                OwnPart(record.collection, record.id, None, True, DependencyState.NOTHING_TO_DO)
                for record, _ in datasets if record.state is State.MARKED
            ])  # fmt: skip
            failpoint("snapshot.written")
            if not connections.is_open(self._lock):
                raise ConnectionError("the session that keeps others from following is gone")
            async with self._committing:
                place = self._place.plus(group.number)
                await nodes.move(conn, nodes.INDEX, origin, events.START, snapshot=str(place))
                await transaction.commit()
                self._place = place
        except BaseException:
            if connections.is_open(conn):
                with suppress(Exception):
                    await transaction.rollback()
            raise
        self._rows += len(datasets)
        self._on_rows(self._rows, self._total)
        failpoint("snapshot.loaded")


def _first_of(errors: BaseExceptionGroup[Exception]) -> Exception:
    error = errors.exceptions[0]
    return _first_of(error) if isinstance(error, BaseExceptionGroup) else error
