"""Removals of a replica node: takes files out of the served tree, or to another tier, as events and policy want it.

A removal is done a few files at a time, each batch in a transaction that holds the dataset: an event that comes
meanwhile waits for one batch, and what it wants is what the next batch does. A process that dies between moving a file
and storing it finds it at its new place; a purge that comes first looks for it in every tier. Nothing is moved while a
worker still has files of the dataset; it is told to stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.db.replica import announcements, datasets, files, removals
from fedstac.db.replica.datasets import KnownDataset
from fedstac.db.replica.files import FilePlan, MisplacedFile
from fedstac.db.replica.removals import Removal
from fedstac.domain.replication.dataset_files import digest_of, files_of
from fedstac.domain.replication.paths import PathUnsafe
from fedstac.domain.replication.reacting import GoalKind, standing
from fedstac.domain.replication.states import RESTRICTED_TIER, DatasetState, RemovalKind
from fedstac.replication import moving
from fedstac.replication.marks import Marks, TierAway
from fedstac.replication.moving import OtherFileSystem, WrongContent
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.outages import reason_of

AT_ONCE = 200  # files of a batch
LOOK_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 2.0  # of a cycle, after which what is due is looked for again
SWEEP_SECONDS = 3600.0
MISSING = "it was not where it was stored; it is fetched anew"
PART = "removals"
log = structlog.get_logger()


class NoFolder(Exception):
    """Files are in, or belong to, a tier without a folder; the text says what to do."""


@dataclass(slots=True)
class StagedFile:
    """A file that is to go to another file system, and is copied before it is moved."""

    file: MisplacedFile
    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch on the disk: files that have left their places, assets that were not there, what failed.

    fault: why the next file is still at its place, and those behind it; None: all have left.
    """

    files: Sequence[MisplacedFile]
    missing: Sequence[str]
    fault: Exception | None = None


class Remover:
    """Does what removals want. Several processes may: each dataset is locked by one."""

    def __init__(self, node: Node, folders: Callable[[], Mapping[str, Path]]) -> None:
        self.node = node
        self._folders = folders
        self._marks = Marks(node.settings.node)
        self._sweep_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`."""

        async def step() -> bool:
            if await self.cycle():
                return True
            await self.node.commits.pause(PART, stop, LOOK_SECONDS)
            return False

        await supervision.keep_trying(self.node.parts, PART, step, stop)

    async def cycle(self) -> int:
        """Do the removals that are due. Return how many moved on.

        One that copies files to another disk may take hours. Then what is due is looked for again: what has to be out
        of sight comes first.
        """
        begin = time.monotonic()
        async with self.node.pool.acquire() as conn:
            count = await removals.end_told(conn)
            due = await removals.next_due(conn)
            if time.monotonic() > self._sweep_at:
                await removals.forget_done(conn)
                self._sweep_at = time.monotonic() + SWEEP_SECONDS
        for removal in due:
            count += await self._remove(removal)
            if time.monotonic() > begin + LOOK_AGAIN_SECONDS:
                break
        return count

    async def _remove(self, removal: Removal) -> bool:
        """Do one removal. Return False where it has to wait."""
        while True:
            try:
                if (is_over := await self._batch(removal.n)) is not None:
                    return is_over
            except _NeedsCopy as error:
                staged = error.staged
                try:
                    await asyncio.to_thread(
                        moving.stage, staged.source, staged.file.path, staged.file.checksum, to=staged.target
                    )
                except (OSError, WrongContent) as fault:
                    return await self._fail(removal, fault)
            except (OSError, PathUnsafe, NoFolder) as fault:
                if isinstance(fault, ConnectionError):  # the database's
                    raise
                return await self._fail(removal, fault)

    async def _batch(self, n: int) -> bool | None:
        """Take the next files of a dataset away. Return None while there are more, else whether that was the end."""
        async with self.node.pool.acquire() as conn, conn.transaction():
            dataset = await datasets.lock(conn, n)
            removal = await removals.open_of(conn, n)
            if dataset is None or removal is None:
                return False
            if not removal.is_begun:  # stored before the disk is touched: a process may die there
                await removals.begin(conn, removal)
                return None
            await self._marks.load(conn)
            goal = dataset.goal
            stays = goal.kind in (GoalKind.HOLD, GoalKind.IGNORE)
            batch = await files.misplaced(
                conn, n, target=None if stays else goal.tier, purges=goal.kind is GoalKind.PURGE,
                keeps_own=goal.kind is GoalKind.SERVE,
                restores=goal.kind is GoalKind.HOLD or (stays and removal.kind is RemovalKind.RESTORE), limit=AT_ONCE,
            )  # fmt: skip
            if batch:
                purges = goal.kind is GoalKind.PURGE
                result = await asyncio.to_thread(self._take_away, batch, purges=purges)
                failpoint("replica.taken")
                await files.settle_places(conn, n, result.files)
                await files.lose(conn, n, result.missing, MISSING)
            elif not await self._settle(conn, dataset, removal):
                return None
            await self._marks.store(conn)
        if batch:
            if result.fault is not None:  # what has left its place is stored
                raise result.fault
            return None
        log.info("removed", kind=removal.kind, dataset=dataset.key.id, reason=goal.reason)
        failpoint("replica.removed")
        return True

    def _take_away(self, batch: Sequence[MisplacedFile], *, purges: bool) -> BatchResult:
        """Delete or move files on the disk, up to the first that fails. purges: nothing of them stays anywhere."""
        missing: list[str] = []
        for count, file in enumerate(batch):
            try:
                if purges:
                    self._delete_strays(file)
                if not self._take(file) and file.asset is not None:
                    missing.append(file.asset)
            except (OSError, PathUnsafe, NoFolder, _NeedsCopy) as fault:
                return BatchResult(batch[:count], missing, fault)
        return BatchResult(batch, missing)

    def _take(self, file: MisplacedFile) -> bool:
        """Delete or move a file. Return False where it is to be moved and was not there."""
        if not file.path:  # it has no place
            return True
        source = self._folder(file.tier)
        if file.target is None:
            if not file.is_shared:
                moving.delete(source, file.path, file.checksum)
        elif file.is_here:
            target = self._folder(file.target, make=True)
            try:
                return moving.move(source, file.path, file.checksum, to=target, keeps=file.is_shared)
            except OtherFileSystem:
                raise _NeedsCopy(StagedFile(file, source, target)) from None
        elif not file.is_shared:  # an older file of that name, or a part of this one
            moving.delete(source, file.path, file.checksum)
        return True

    def _delete_strays(self, file: MisplacedFile) -> None:
        """Delete what a move that was not stored left of a file in other tiers: it, or a copy on its way.

        A disk that is away is waited for where restricted files are: a mark moves them there, and then the purge comes.
        """
        for tier, folder in self._folders().items():
            if not file.path or tier == file.tier or tier in file.shared_tiers or not self._marks.is_used(tier, folder):
                continue
            try:
                folder = self._folder(tier)
            except NoFolder:
                if tier == RESTRICTED_TIER:
                    raise
                continue
            moving.delete(folder, file.path, file.checksum)

    def _away(self, places: Sequence[tuple[str, str, str]]) -> list[str]:
        """Return the assets whose file is not at its place (asset, tier, path)."""
        return [asset for asset, tier, path in places if not moving.is_there(self._folder(tier), path)]

    def _folder(self, tier: str, *, make: bool = False) -> Path:
        """Return the folder of a tier, which has its mark; `make`: it is made, if the one above it is there."""
        folder = self._folders().get(tier)
        if folder is None:
            raise NoFolder(f"the policy has no tier {tier!r} any more; name its folder in the policy again")
        if make and not folder.is_dir():
            folder.mkdir(0o755, exist_ok=True)
        if not folder.is_dir():
            raise NoFolder(f"there is no folder {folder} of the tier {tier!r}; mount it, or make it")
        try:
            self._marks.check(tier, folder)
        except TierAway as error:
            raise NoFolder(str(error)) from error
        return folder

    async def _settle(self, conn: Connection, dataset: KnownDataset, removal: Removal) -> bool:
        """Store how a dataset stands when no file is misplaced. Return False where its document leaves some over."""
        goal, n = dataset.goal, dataset.n
        away: Sequence[str] = ()
        if goal.kind not in (GoalKind.PURGE, GoalKind.RESTRICT):  # another removal may have taken some and died
            away = await asyncio.to_thread(self._away, await files.verified(conn, n))
            if away:
                await files.lose(conn, n, away, MISSING)
                dataset = replace(dataset, here=replace(dataset.here, is_whole=False))
            if dataset.here.is_announced and goal.is_told and (away or dataset.files_digest is None):
                await announcements.withdraw(conn, [n])  # it names files that were deleted here
        if goal.kind is not GoalKind.PURGE:
            document = await datasets.document_of(conn, n)  # None where the dataset was cleared: its files stay
            document_files = files_of(document) if document is not None else ()
            is_due = document is not None and (dataset.here.has_files or goal.kind is GoalKind.SERVE)
            if is_due and digest_of(document_files) != dataset.files_digest:
                await files.plan(conn, [FilePlan(n, goal.tier, document_files, keeps_old=goal.kind is GoalKind.SERVE)])
                again = await datasets.lock(conn, n)
                assert again is not None
                dataset = again
                if dataset.here.has_leftovers:
                    return False
        stays = goal.kind in (GoalKind.HOLD, GoalKind.IGNORE)
        is_known = stays and removal.kind is not RemovalKind.TRIM and not away
        here = replace(dataset.here, is_announced=dataset.here.is_announced and is_known)
        reaction = standing(here, goal)
        taken_away = goal.kind in (GoalKind.RESTRICT, GoalKind.PURGE) or removal.kind is RemovalKind.RESTRICT
        if stays and not is_known and dataset.here.is_announced and goal.is_told:
            await announcements.withdraw(conn, [n])
        await datasets.settle(conn, n, reaction, forgets_entry=not taken_away and not is_known)
        if reaction.state is DatasetState.QUEUED:
            await files.park_the_impossible(conn, [n])
        if reaction.state is DatasetState.COMPLETE:
            await announcements.request(conn, [n])
        if taken_away and goal.is_told:
            await announcements.withdraw(conn, [n])
        await removals.move_on(conn, removal, is_done=not (taken_away and goal.is_told))
        return True

    async def _fail(self, removal: Removal, error: Exception) -> bool:
        """Store why a removal cannot be done now."""
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error) or reason_of(error)
        async with self.node.pool.acquire() as conn, conn.transaction():
            dataset = await datasets.lock(conn, removal.n)
            await removals.fail(conn, removal, dataset.key.id if dataset else "a dataset", reason)
        log.warning("files cannot be moved", dataset=dataset.key.id if dataset else removal.n, reason=reason)
        return False


class _NeedsCopy(Exception):
    """A file goes to another file system: it is copied first."""

    def __init__(self, staged: StagedFile) -> None:
        super().__init__(staged.file.path)
        self.staged = staged
