"""Transfers of a replica node: places datasets, claims their files, copies them, checks what is whole.

Everything that has to outlive the process is in the database (db/replica/claims.py). One dispatcher in each process
claims as many transfers as the process has room for; each is a task that copies its files one after another. A process
that dies leaves claims that end with its database session, and part files that the next copy goes on with.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from uuid import UUID, uuid4

import structlog

from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import check_queue, claims, placement_queue, settling
from fedstac.db.replica.check_queue import QueuedCheck
from fedstac.db.replica.claims import FileProgress, QueuedFile, Transfer, TransferLost, Worker
from fedstac.db.replica.settling import FileResult
from fedstac.domain.replication import placing, sharing
from fedstac.domain.replication.alarms import REASONS, AlarmKind
from fedstac.domain.replication.placing import Obstacle
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.replication import checking, places
from fedstac.replication.addresses import AddressRules
from fedstac.replication.checking import CheckInterrupted, CheckResult, CheckUnusable
from fedstac.replication.copying import CopyOrder, copy_file
from fedstac.replication.failures import NextStep, next_step
from fedstac.replication.marks import Marks, TierAway
from fedstac.replication.policy_file import PolicyFile
from fedstac.replication.throttle import SharedThrottle
from fedstac.replication.transports import CopyCause, CopyFailed, Transports
from fedstac.replication.transports.globus import GlobusIdentity
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.metrics import REPLICA_BYTES, REPLICA_FILES
from fedstac.runtime.outages import reason_of
from fedstac.settings import Settings
from fedstac.workers.replica_surroundings import PolicySurroundings, SourceView, Surroundings

LOOK_SECONDS = 1.0  # between looks for files when there is room
TELL_SECONDS = 2.0  # between reports of progress, which renew the leases too
ASK_SECONDS = 1.0  # after which a transfer asks whether its claim stands before it puts a file into the tree
TURN_SECONDS = 30.0  # after which a transfer whose connection is cut leaves its place to another one
SETTLE_SECONDS = 2.0  # after which finished files of a transfer that goes on are settled
AGAIN_SECONDS = 30.0  # after which a dataset that waits for the disk or the budget is looked at again
END_SECONDS = 3.0  # that transfers have to settle when the process stops
CHECKS_AT_ONCE = 2  # commands in one process
CHECK_SECONDS = 3600.0  # after which a command is ended, and its dataset parked
UNUSABLE_SECONDS = 60.0  # before a command that cannot be started, or that was interrupted, is tried again
MOST_INTERRUPTIONS = 3  # of a command, after which its dataset is parked
EXPECTED: supervision.Expected = {CheckUnusable: "the check of a rule cannot be started; its datasets wait"}
PART = "transfers"
log = structlog.get_logger()


@dataclass(slots=True)
class RunningTransfer:
    """A transfer of this process: which file is under way, how far, and what is not settled yet."""

    transfer: Transfer
    task: asyncio.Task[None] | None = None
    asset: str = ""
    bytes: int = 0
    results: list[FileResult] = field(default_factory=list)
    began_at: float = field(default_factory=time.monotonic)
    settled_at: float = field(default_factory=time.monotonic)
    asked_at: float = -inf  # when its claim was last asked for; seconds since the machine started
    reserved: dict[str, tuple[float, int]] = field(default_factory=dict)  # by tier: when asked, and the bytes
    interruption: str = ""  # why it was told to stop
    is_copying: bool = True

    def interrupt(self, reason: str) -> None:
        """Stop its copying, once: settling is not cut short. What it copied is kept, and nothing is counted."""
        if not self.interruption and self.is_copying and self.task is not None:
            self.interruption = reason
            self.task.cancel()


class Dispatcher:
    """Gives this process its transfers, and renews their claims."""

    def __init__(
        self, node: Node, surroundings: Surroundings, transports: Transports, *, most: int, block_bytes: int
    ) -> None:
        self.node, self.surroundings = node, surroundings
        self._transports, self._most, self._block_bytes = transports, most, block_bytes
        self._lease = node.settings.lease_seconds
        self._marks = Marks(node.settings.node)
        self._running: dict[UUID, RunningTransfer] = {}
        self._last_turns: dict[str, float] = {}  # when each source got its last transfer, by time.monotonic
        self._checks: dict[UUID, asyncio.Task[None]] = {}
        self._names: frozenset[str] = frozenset()  # of the sources, when strays were last looked for
        self._strays: set[str] = set()
        self._session: Connection | None = None
        self._worker: Worker | None = None
        self._ended = asyncio.Event()  # a transfer
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`."""
        parts, self._stop = self.node.parts, stop
        telling = asyncio.create_task(supervision.keep_trying(parts, PART, lambda: self._tell(stop), stop))
        try:
            await supervision.keep_trying(parts, PART, lambda: self._step(stop), stop)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await self._end()

    # --- dispatching ---

    async def _step(self, stop: asyncio.Event) -> bool:
        """Begin what there is room for, then wait until that may have changed."""
        self._ended.clear()
        count = await self.dispatch()
        if count:
            return True
        await _first_of(stop, self._ended, LOOK_SECONDS)
        if not (self._running or self._checks or self._ended.is_set()):
            await self.node.commits.pause(PART, stop, 0.0)
        return False

    async def dispatch(self) -> int:
        """Place datasets, and begin as many transfers as there is room for. Return how much was done."""
        worker = await self._enter()
        async with self.node.pool.acquire() as conn:
            await claims.release_dead(conn)
            now = datetime.now(UTC)
            view = await self._with_strays(conn, await self.surroundings.view(conn, now))
            closures = view.closures
            count = await placement_queue.leave_lanes(conn, list(closures.lanes)) if closures.lanes else 0
            count += await placement_queue.leave_hosts(conn, list(closures.hosts)) if closures.hosts else 0
            async with conn.transaction():
                count += await self._place(conn, view, now)
            async with conn.transaction():
                transfers = await self._take(conn, view, worker)
            tokens = [uuid4() for _ in range(CHECKS_AT_ONCE - len(self._checks))]
            async with conn.transaction():
                checks = await check_queue.take_checks(conn, worker, tokens, self._lease) if tokens else []
        failpoint("replica.claimed")
        for transfer in transfers:
            running = self._running[transfer.token] = RunningTransfer(transfer)
            running.task = asyncio.create_task(self._run(running), name=f"transfer {transfer.id}")
        for check in checks:
            self._checks[check.token] = asyncio.create_task(self._check(check), name=f"check of {check.id}")
        return count + len(transfers) + len(checks)

    async def _with_strays(self, conn: Connection, view: SourceView) -> SourceView:
        """Return the view with the lanes closed that the policy no longer names: their files are placed elsewhere."""
        names = frozenset((*view.caps, *view.closures.lanes))
        if names != self._names:
            self._names = names
            self._strays = await placement_queue.lanes(conn) - names
        strays = {lane: Obstacle(f"the policy names no source {lane} any more", None) for lane in self._strays}
        return replace(view, closures=replace(view.closures, lanes={**view.closures.lanes, **strays}))

    async def _enter(self) -> Worker:
        """Return the worker of this process. One whose session was lost has lost its claims: it begins anew."""
        if self._worker is None or self._session is None or not connections.is_open(self._session):
            await self._interrupt_all("the session with the database was lost")
            if self._session is not None:
                self._session.terminate()
            application = f"fedstac {self.node.settings.node} transfers"
            self._session = await connections.connect(self.node.settings.dsn, application=application)
            self._worker = await claims.enter(self._session, f"{self.node.parts.process}:{uuid4().hex[:6]}")
        return self._worker

    async def _place(self, conn: Connection, view: SourceView, now: datetime) -> int:
        """Choose sources for the next datasets that have none. Return for how many: not those that have to wait."""
        datasets = await placement_queue.unplaced(conn, view.closures)
        if not datasets:
            return 0
        obstacles = dict(await self.surroundings.over_budget(conn, [each for each in datasets if not each.is_admitted]))
        placements = {}
        for each in datasets:
            if each.n in obstacles:
                continue
            choices = self.surroundings.choose(each)
            placements[each.n] = placing.place(
                each.assets, choices.candidates, faults=each.faults, closures=view.closures,
                already=each.placed_counts, reasons=choices.reasons,
            )  # fmt: skip
        if placements:
            await placement_queue.write_places(conn, placements)
        if obstacles:
            await settling.hold(conn, {n: _looked_at_again(each, now) for n, each in obstacles.items()})
        return len(placements)

    async def _take(self, conn: Connection, view: SourceView, worker: Worker) -> list[Transfer]:
        """Claim files for new transfers."""
        await conn.execute(claims.TAKING)
        own = Counter(each.transfer.lane for each in self._running.values())
        everywhere = await claims.transfers_by_lane(conn)
        free = sharing.free_transfers(self._most, own, everywhere, view.caps, self._last_turns)
        if not free:
            return []
        counts = sharing.share_out(self._most - len(self._running), free, await claims.line_up(conn, list(free)))
        if not counts:
            return []
        transfers = [
            Transfer(uuid4(), each.n, each.collection, each.id, each.lane, each.files[batch.start : batch.stop])
            for each in await claims.next_files(conn, counts)
            for batch in sharing.batches_of([file.size or 0 for file in each.files])[: counts[each.n]]
        ]
        if transfers:
            await claims.claim(conn, worker, transfers, self._lease)
            self._last_turns.update(dict.fromkeys((each.lane for each in transfers), time.monotonic()))
        return transfers

    # --- telling ---

    async def _tell(self, stop: asyncio.Event) -> bool:
        """Renew the claims with the progress of their files, and stop what may not go on."""
        await _first_of(stop, stop, min(TELL_SECONDS, self._lease / 3))
        running, checks = dict(self._running), dict(self._checks)
        if not running and not checks:
            return False
        progress = [
            FileProgress(token, each.transfer.n, each.asset, each.bytes)
            for token, each in running.items()
            if each.asset
        ]
        async with self.node.pool.acquire() as conn:
            standing = await claims.renew(conn, [*running, *checks], progress, self._lease)
            view = await self.surroundings.view(conn, datetime.now(UTC))
        for token, each in running.items():
            if token not in standing:
                each.interrupt("the claim was lost")
            elif (obstacle := view.closures.lanes.get(each.transfer.lane)) is not None:
                each.interrupt(obstacle.reason)
        for token in checks.keys() - standing:
            checks[token].cancel()
        return True

    # --- transferring ---

    async def _run(self, running: RunningTransfer) -> None:
        """Copy the files of a transfer and settle them."""
        transfer, waits = running.transfer, None
        logger = log.bind(dataset=transfer.id, source=transfer.lane)
        try:
            try:
                waits = await self._copy_all(running)
            except asyncio.CancelledError:
                if not running.interruption:
                    raise
                logger.info("a transfer stops for now", reason=running.interruption)
            except TransferLost:
                raise
            except Exception as error:  # a fault of ours: the files are tried again, and it is counted
                self.node.parts.fails(PART, error)
                if running.asset:
                    reason = f"this node cannot copy it: {reason_of(error)}"
                    result = FileResult(running.asset, "queued", running.bytes, reason, counted=True, pause=10.0)
                    running.results.append(result)
            running.is_copying = False
            await self._settle(running, ends=True, waits=waits)
        except TransferLost:
            logger.info("a transfer was taken by another process or an event")
        except Exception as error:  # the lease ends it
            self.node.parts.fails(PART, error)
        finally:
            self._running.pop(transfer.token, None)
            self._ended.set()

    async def _copy_all(self, running: RunningTransfer) -> Obstacle | None:
        """Copy one file after another. Return why the dataset cannot go on, where it cannot."""
        try:
            async with self.node.pool.acquire() as conn:
                await self._require_marks(conn, running.transfer.files)
        except TierAway as error:
            return _disk_away(error)
        for file in running.transfer.files:
            if (obstacle := self.surroundings.lane_obstacle(running.transfer.lane, datetime.now(UTC))) is not None:
                return obstacle  # it closed a moment ago
            running.asset, running.bytes = file.asset, file.done_bytes
            try:
                await self._copy(running, file)
            except TierAway as error:
                return _disk_away(error)
            except CopyFailed as error:
                if running.interruption:  # it was cut by us
                    raise asyncio.CancelledError from error
                step = next_step(error.cause, file.attempts, retry_after=error.retry_after)
                running.results.append(_result(running, file, error, step))
                if step.source_is_away:
                    async with self.node.pool.acquire() as conn:
                        await self.surroundings.failed(conn, file.source, error.reason, step.pause)
                    return None
                if error.cause is CopyCause.CUT and time.monotonic() > running.began_at + TURN_SECONDS:
                    return None  # it may stall with every file: the next ones wait for their turn
                if step.disk:
                    is_full = error.cause is CopyCause.DISK_FULL
                    disk = REASONS[AlarmKind.DISK if is_full else AlarmKind.BROKEN_DISK]
                    return _looked_at_again(Obstacle(f"{disk}: {error.reason}", None), datetime.now(UTC))
            if time.monotonic() - running.settled_at > SETTLE_SECONDS:
                await self._settle(running, ends=False)
        return None

    async def _require_marks(self, conn: Connection, files: Sequence[QueuedFile]) -> None:
        """Refuse files whose tier is on a disk that is not mounted. TierAway."""
        await self._marks.require(conn, {file.tier: self.surroundings.folder(file.tier) for file in files})

    async def _copy(self, running: RunningTransfer, file: QueuedFile) -> None:
        def on_bytes(done: int) -> None:
            running.bytes = done

        async def may_place() -> None:  # this process may have stalled, and its files may have been told to go
            now = time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the machine sleeps
            if now - running.asked_at < ASK_SECONDS:
                return
            async with self.node.pool.acquire() as conn:
                if not await claims.stands(conn, running.transfer):
                    raise TransferLost
                await self._require_marks(conn, [file])
            running.asked_at = now

        order = CopyOrder(
            self.surroundings.folder(file.tier), file.path, file.size, file.checksum or "", file.href,
            host=file.source, reserved=await self._reserved(running, file.tier),
        )  # fmt: skip
        report = await copy_file(
            order, transports=self._transports, on_bytes=on_bytes, throttle=self.surroundings.throttle,
            block_bytes=self._block_bytes, may_place=may_place,
        )  # fmt: skip
        failpoint("replica.copied")
        for outcome, size in (("fetched", report.fetched_bytes), ("reused", report.reused_bytes)):
            if size:
                self.node.metrics.count(REPLICA_BYTES, outcome, file.source, by=size)
        running.results.append(FileResult(file.asset, "verified", report.size))

    async def _reserved(self, running: RunningTransfer, tier: str) -> int:
        """Return the bytes on the disk that older transfers need: so the oldest goes on. They become fewer only."""
        asked_at, count = running.reserved.get(tier, (0.0, 1))
        if count and time.monotonic() - asked_at > SETTLE_SECONDS:
            async with self.node.pool.acquire() as conn:
                count = await claims.lacking_before(conn, running.transfer.token, tier)
            running.reserved[tier] = time.monotonic(), count
        return count

    async def _settle(self, running: RunningTransfer, *, ends: bool, waits: Obstacle | None = None) -> None:
        results, running.results, running.settled_at = running.results, [], time.monotonic()
        async with self.node.pool.acquire() as conn:
            await settling.settle(conn, running.transfer, results, ends=ends, waits=waits)
            sources = {file.asset: file.source for file in running.transfer.files}
            for each in results:
                self.node.metrics.count(REPLICA_FILES, each.state, sources[each.asset])
            for source in {sources[each.asset] for each in results if each.state == "verified"}:
                await self.surroundings.worked(conn, source)
        failpoint("replica.settled")

    # --- checking ---

    async def _check(self, check: QueuedCheck) -> None:
        """Run the command of a dataset's rule over its files, and settle what it says."""
        logger = log.bind(dataset=check.id)
        try:
            try:
                result = await self._result_of(check)
            except CheckUnusable as error:
                self.node.parts.fails(PART, error, EXPECTED)
                async with self.node.pool.acquire() as conn:
                    await check_queue.put_off_check(conn, check, reason=str(error), pause=UNUSABLE_SECONDS)
                return
            except CheckInterrupted as error:
                if check.attempts + 1 < MOST_INTERRUPTIONS and not self._stop.is_set():
                    async with self.node.pool.acquire() as conn:
                        await check_queue.put_off_check(
                            conn, check, reason=str(error), pause=UNUSABLE_SECONDS, counted=True
                        )
                    return
                result = CheckResult(False, str(error))
            if self._stop.is_set() and not result.passes:
                return  # it was ended with this process: another one checks anew
            async with self.node.pool.acquire() as conn:
                await check_queue.settle_check(conn, check, passes=result.passes, reason=result.reason)
            logger.info("checked", passes=result.passes, reason=result.reason)
        except TransferLost:
            logger.info("a check was taken by another process or an event")
        except Exception as error:  # the lease ends it
            self.node.parts.fails(PART, error)
        finally:
            self._checks.pop(check.token, None)
            self._ended.set()

    async def _result_of(self, check: QueuedCheck) -> CheckResult:
        if not check.command:
            return CheckResult(True)
        tiers = {tier for tier, _ in check.files}
        folder = self.surroundings.folder(next(iter(tiers))) if tiers else Path("/")
        files = [path if len(tiers) == 1 else str(self.surroundings.folder(tier) / path) for tier, path in check.files]
        return await checking.check(
            check.command, folder=folder, collection=check.collection, dataset=check.id, files=files,
            seconds=CHECK_SECONDS,
        )  # fmt: skip

    # --- ending ---

    async def _interrupt_all(self, reason: str) -> None:
        tasks = [each.task for each in self._running.values() if each.task is not None]
        for each in list(self._running.values()):
            each.interrupt(reason)
        if tasks:
            await asyncio.wait(tasks, timeout=END_SECONDS)

    async def _end(self) -> None:
        """Settle what is under way, and leave."""
        await self._interrupt_all("this process stops")
        for each in list(self._running.values()):
            if each.task is not None:
                each.task.cancel()
        for task in self._checks.values():
            task.cancel()
        if self._checks:
            await asyncio.wait(self._checks.values(), timeout=END_SECONDS)  # their commands end
        if self._session is not None:
            self._session.terminate()  # what is still claimed is free now


def _result(running: RunningTransfer, file: QueuedFile, error: CopyFailed, step: NextStep) -> FileResult:
    """Return what a failed copy leaves behind."""
    progressed = error.cause is CopyCause.CUT and running.bytes > file.done_bytes
    return FileResult(
        file.asset, "failed" if step.fails else "queued", running.bytes, error.reason,
        node=file.node, source=file.source, counted=step.counts, progressed=progressed,
        keeps_source=not (step.source_pause or step.source_is_away), pause=0.0 if step.source_is_away else step.pause,
        fault_seconds=step.source_pause or None, is_wrong=step.is_wrong,
    )  # fmt: skip


def _disk_away(error: TierAway) -> Obstacle:
    reason = f"{REASONS[AlarmKind.BROKEN_DISK]}: {error}"
    return _looked_at_again(Obstacle(reason, None), datetime.now(UTC))


def _looked_at_again(obstacle: Obstacle, now: datetime) -> Obstacle:
    """Return an obstacle with a time: what nobody tells us the end of is looked at again."""
    return Obstacle(obstacle.reason, obstacle.until or now + timedelta(seconds=AGAIN_SECONDS))


async def _first_of(stop: asyncio.Event, event: asyncio.Event, seconds: float) -> None:
    """Wait for either event, and no longer than so many seconds."""
    tasks = [asyncio.create_task(each.wait()) for each in {stop, event}]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run(node: Node, stop: asyncio.Event, *, policy_file: PolicyFile) -> None:
    """Copy what the policy wants until `stop`."""
    settings = node.settings

    def policy() -> ReplicaPolicy:
        return policy_file.current

    surroundings = PolicySurroundings(
        settings.node, policy, lambda: places.folders_of(settings, policy()), SharedThrottle(node.pool, policy)
    )

    def rules() -> AddressRules:
        return AddressRules.of_sources(policy().sources)

    async with Transports(rules, globus=_globus_identity(settings)) as transports:
        dispatcher = Dispatcher(
            node, surroundings, transports, most=settings.replica_workers, block_bytes=settings.replica_block_bytes
        )
        await dispatcher.run(stop)


def _globus_identity(settings: Settings) -> GlobusIdentity | None:
    """Return who this node is at Globus; None where it has no collection there."""
    if not settings.replica_globus_collection:
        return None
    return GlobusIdentity(
        settings.replica_globus_collection, Path(settings.replica_folder).absolute(),
        settings.replica_globus_client_id, settings.replica_globus_client_secret,
    )  # fmt: skip
