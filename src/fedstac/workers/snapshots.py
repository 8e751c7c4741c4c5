"""Snapshots in files: this node's datasets as parts and a manifest, from which an empty index node starts.

A part that is written stays. A writer that is killed goes on after the last one; a later one adds a part of what
changed since, until that is too much: then all parts are written anew. They are also where a dataset was deleted since:
its document is in one of them. Until then a node that serves the folder removes such parts.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson
import structlog
from filelock import FileLock, Timeout

from fedstac.bootstrap import Node
from fedstac.db import collections, feed, purging
from fedstac.domain import events
from fedstac.domain.errors import BadRequest, CursorGone
from fedstac.domain.events import Cursor
from fedstac.domain.model import Record, rfc3339
from fedstac.geoparquet import manifest as manifests
from fedstac.geoparquet.manifest import Manifest, PartKind, SnapshotBroken, SnapshotPart
from fedstac.geoparquet.parts import PartWriter
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.wakeup import pause
from fedstac.workers.snapshot_files import SnapshotBusy

PART_ROWS: Final = 25_000
GROUP_ROWS: Final = 1_000  # of one group, out of which an index node makes one transaction
CHANGED_SHARE: Final = 0.2  # of the rows: from there on all parts are written anew
MOST_CHANGES: Final = 500_000
MOST_ROUNDS: Final = 3  # of writing all parts, while datasets are deleted meanwhile
UPKEEP_SECONDS: Final = 5.0
PROGRESS, LOCK = "writing.json", ".lock"
UNFINISHED: Final = ".unfinished"

log = structlog.get_logger()

OnRows = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class WriterProgress:
    """How far the writing of all parts is: the parts that are done, and the last dataset in them."""

    origin: str
    cursor: Cursor
    after: tuple[str, str]
    parts: tuple[SnapshotPart, ...]


async def write(node: Node, folder: Path, *, on_rows: OnRows = lambda rows: None) -> Manifest:
    """Bring the snapshot in a folder up to now, and return its manifest. SnapshotBusy where another process does.

    `on_rows` is called with the number of datasets of each group that is written.
    """
    os.makedirs(folder, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            return await _Writer(node, folder, on_rows).write()
    except Timeout:
        raise SnapshotBusy(f"another process writes a snapshot into {folder}; wait for it to end") from None


async def keep(node: Node, stop: asyncio.Event) -> None:
    """Remove parts in the folder of the settings as datasets in them are deleted, until `stop`."""
    folder, done_through = Path(node.settings.snapshot_folder), -1

    async def step() -> bool:
        nonlocal done_through
        async with node.pool.acquire() as conn:
            newest = await purging.newest(conn)
        if newest > done_through and await remove_stale(node, folder):
            done_through = newest
        await pause(stop, UPKEEP_SECONDS)
        return False

    await supervision.keep_trying(node.parts, "snapshot folder", step, stop)


async def remove_stale(node: Node, folder: Path) -> bool:
    """Remove the parts that are older than a deletion. Return False where a writer is at work, for another time."""
    if not os.path.isdir(folder):  # noqa: ASYNC240
        return True
    try:
        with FileLock(folder / LOCK, timeout=0):
            await _Writer(node, folder, lambda rows: None).remove_stale()
    except Timeout:
        return False
    return True


class _Writer:
    """Writes into one folder that no other process writes into."""

    def __init__(self, node: Node, folder: Path, on_rows: OnRows) -> None:
        self._node, self._folder, self._on_rows = node, folder, on_rows
        self._origin = node.settings.node

    async def write(self) -> Manifest:
        async with self._node.pool.acquire() as conn:
            head = await feed.head(conn)
        progress = await self._progress(head)
        if progress is None:
            before = self._manifest()
            changes = await self._changes(before) if before is not None else None
            if before is not None and changes is not None:
                return await self._finish(head, [*_datasets(before), *await self._write_changes(head, changes)])
            progress = WriterProgress(self._origin, head, ("", ""), ())
        for _ in range(MOST_ROUNDS):
            parts = await self._write_records(progress)
            if not await self._is_stale(progress.cursor):
                break
            async with self._node.pool.acquire() as conn:
                progress = WriterProgress(self._origin, await feed.head(conn), ("", ""), ())
        return await self._finish(progress.cursor, parts)

    async def remove_stale(self) -> None:
        """Remove the manifests and the progress that are older than a deletion, and the parts that none names then."""
        paths = [self._folder / name for name in (manifests.NAME, manifests.BEFORE, PROGRESS)]
        stale = [path for path in paths if (cursor := self._cursor_in(path)) and await self._is_stale(cursor)]
        for path in stale:
            path.unlink()
            log.info("a snapshot is older than a deletion, and removed", file=str(path))
        names = {name for path in paths if path.exists() for name in _names_in(path)}
        for path in self._folder.iterdir() if stale else ():
            if _is_ours(path) and path.name not in names:
                path.unlink()

    def _cursor_in(self, path: Path) -> Cursor | None:
        """Return the cursor in a manifest, or in a writer's progress, of this node; None where it is none."""
        try:
            body = orjson.loads(path.read_bytes())
            return Cursor.parse(body["cursor"]) if body["origin"] == self._origin else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, BadRequest):
            return None

    async def _is_stale(self, cursor: Cursor) -> bool:
        """Tell whether a dataset was deleted since a place in the feed."""
        async with self._node.pool.acquire() as conn:
            return await purging.is_any_after(conn, cursor.pos)

    # --- what is there ---

    async def _progress(self, head: Cursor) -> WriterProgress | None:
        """Return how far an interrupted writer came; None where there is none, or its place in the log is gone."""
        try:
            body = orjson.loads((self._folder / PROGRESS).read_bytes())
            after = (str(body["after"][0]), str(body["after"][1]))
            parts = tuple(_part_from(entry) for entry in body["parts"])
            progress = WriterProgress(body["origin"], Cursor.parse(body["cursor"]), after, parts)
            async with self._node.pool.acquire() as conn:
                await feed.resume(conn, progress.cursor)
            for part in parts:
                manifests.check(self._folder / part.name, part)
        except (OSError, ValueError, LookupError, TypeError, BadRequest, CursorGone, SnapshotBroken):
            return None
        if await self._is_stale(progress.cursor):
            return None
        return progress if (progress.origin, progress.cursor.epoch) == (self._origin, head.epoch) else None

    def _manifest(self) -> Manifest | None:
        """Return the manifest that is there, if all its parts are."""
        try:
            manifest = manifests.read((self._folder / manifests.NAME).read_bytes())
        except (OSError, SnapshotBroken):
            return None
        is_whole = all(_has_size(self._folder / part.name, part.size) for part in manifest.parts)
        return manifest if is_whole and manifest.origin == self._origin else None

    async def _changes(self, before: Manifest) -> list[tuple[str, str]] | None:
        """Return the datasets that changed since a manifest; None where all parts are written anew."""
        rows = sum(part.rows for part in before.of_kind(PartKind.RECORDS))
        earlier = sum(part.rows for part in before.of_kind(PartKind.CHANGES))
        if await self._is_stale(before.cursor):
            return None
        async with self._node.pool.acquire() as conn:
            if (await feed.head(conn)).epoch != before.cursor.epoch:
                return None
            return await feed.changed_since(conn, before.cursor, min(int(rows * CHANGED_SHARE) - earlier, MOST_CHANGES))

    # --- parts ---

    async def _write_records(self, progress: WriterProgress) -> list[SnapshotPart]:
        """Write the parts of all datasets after those that are done."""
        while True:
            number = len(progress.parts) + 1
            path = self._folder / f"records-{number:05}{UNFINISHED}"
            after, is_last = progress.after, False
            with PartWriter(path, self._node.checker.vocabularies.current) as writer:
                while writer.rows < PART_ROWS and not is_last:
                    async with self._node.pool.acquire() as conn:
                        records = await feed.snapshot_page(conn, self._origin, after, GROUP_ROWS)
                    is_last = not records
                    if records:
                        await self._write_group(writer, records)
                        after = (records[-1].collection, records[-1].id)
            if not writer.rows:
                path.unlink()
                return list(progress.parts)
            part = self._keep(path, PartKind.RECORDS, progress.cursor, number, writer)
            progress = replace(progress, after=after, parts=(*progress.parts, part))
            self._put(PROGRESS, _progress_text(progress))
            failpoint("snapshot.part")

    async def _write_changes(self, cursor: Cursor, datasets: Sequence[tuple[str, str]]) -> list[SnapshotPart]:
        """Write the present state of datasets as one more part."""
        path = self._folder / f"changes{UNFINISHED}"
        with PartWriter(path, self._node.checker.vocabularies.current) as writer:
            for collection, ids in _by_collection(datasets):
                async with self._node.pool.acquire() as conn:
                    records = await feed.current_of(conn, self._origin, collection, ids)
                if records:
                    await self._write_group(writer, records)
        if not writer.rows:
            path.unlink()
            return []
        return [self._keep(path, PartKind.CHANGES, cursor, 1, writer)]

    async def _write_group(self, writer: PartWriter, records: Sequence[Record]) -> None:
        await asyncio.to_thread(writer.write, records)
        self._on_rows(len(records))

    async def _finish(self, cursor: Cursor, datasets: Sequence[SnapshotPart]) -> Manifest:
        """Write what is beside the datasets, and the manifest; remove the parts that no manifest names any more."""
        parts = [*self._write_vocabularies(), await self._write_collections(cursor), *datasets]
        manifest = Manifest(self._origin, cursor, rfc3339(datetime.now(UTC)), parts)
        before = self._manifest()
        if before is not None and await self._is_stale(before.cursor):
            before = None
            (self._folder / manifests.BEFORE).unlink(missing_ok=True)
        if before is not None:
            self._put(manifests.BEFORE, before.text())  # somebody may be fetching its parts
        self._put(manifests.NAME, manifest.text())
        (self._folder / PROGRESS).unlink(missing_ok=True)
        names = {part.name for each in (manifest, before) if each is not None for part in each.parts}
        for path in self._folder.iterdir():
            if _is_ours(path) and path.name not in names:
                path.unlink()
        return manifest

    def _write_vocabularies(self) -> list[SnapshotPart]:
        parts = []
        for snapshot in self._node.checker.vocabularies:
            path = self._folder / f"vocabulary{UNFINISHED}"
            path.write_bytes(snapshot.read())
            parts.append(self._keep_as(path, PartKind.VOCABULARY, "vocabulary-{}.cv", 1))
        return parts

    async def _write_collections(self, cursor: Cursor) -> SnapshotPart:
        async with self._node.pool.acquire() as conn:
            states = await collections.of_origin(conn, self._origin)
        path = self._folder / f"collections{UNFINISHED}"
        path.write_text("".join(
            events.current_collection(
                state.id, state.origin, cursor.epoch, state.seq, document=state.document, digest=state.digest
            ) + "\n"
            for state in states
        ))  # fmt: skip
        return self._keep_as(path, PartKind.COLLECTIONS, "collections-{}.ndjson", len(states))

    def _keep(self, path: Path, kind: PartKind, cursor: Cursor, number: int, writer: PartWriter) -> SnapshotPart:
        name = f"{kind}-{cursor.epoch}-{cursor.pos}-{number:05}-{{}}.parquet"
        return self._keep_as(path, kind, name, writer.rows, writer.groups)

    def _keep_as(self, path: Path, kind: PartKind, name: str, rows: int, groups: int = 0) -> SnapshotPart:
        """Give a file that is written its name, which has the beginning of its sha-256; return it as a part."""
        digest, size = manifests.fingerprint(path)
        part = SnapshotPart(name.format(digest[:12]), kind, digest, size, rows, groups)
        path.replace(self._folder / part.name)
        return part

    def _put(self, name: str, text: bytes) -> None:
        """Write a small file in one piece."""
        unfinished = self._folder / f"{name}{UNFINISHED}"
        unfinished.write_bytes(text)
        unfinished.replace(self._folder / name)


def _datasets(manifest: Manifest) -> list[SnapshotPart]:
    return [*manifest.of_kind(PartKind.RECORDS), *manifest.of_kind(PartKind.CHANGES)]


def _by_collection(datasets: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield the ids of datasets in groups, of one collection each."""
    by_collection: dict[str, list[str]] = {}
    for collection, item_id in datasets:
        by_collection.setdefault(collection, []).append(item_id)
    for collection, ids in by_collection.items():
        for start in range(0, len(ids), GROUP_ROWS):
            yield collection, ids[start : start + GROUP_ROWS]


def _is_ours(path: Path) -> bool:
    return path.suffix in (".parquet", ".ndjson", ".cv", UNFINISHED)


def _names_in(path: Path) -> list[str]:
    """Return the names of the parts in a manifest, or in a writer's progress."""
    body = orjson.loads(path.read_bytes())
    return [part[0] if isinstance(part, list) else part["name"] for part in body["parts"]]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _progress_text(progress: WriterProgress) -> bytes:
    parts = [[part.name, part.kind, part.sha256, part.size, part.rows, part.groups] for part in progress.parts]
    return orjson.dumps(
        {"origin": progress.origin, "cursor": str(progress.cursor), "after": progress.after, "parts": parts}
    )


def _part_from(entry: Sequence[object]) -> SnapshotPart:
    name, kind, digest, *numbers = entry
    size, rows, groups = (int(str(number)) for number in numbers)
    return SnapshotPart(str(name), PartKind(str(kind)), str(digest), size, rows, groups)
