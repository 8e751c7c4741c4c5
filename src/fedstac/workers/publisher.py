"""The publish worker: claims shards of the queue, performs what waits in them, lets them go."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

import structlog

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import audit, connections, own_groups, queue, schema
from fedstac.db.connections import Connection
from fedstac.domain import events
from fedstac.domain.actions import Work, command_of
from fedstac.domain.actions.target import QueuedAction
from fedstac.domain.errors import Finding, InternalError, StacInvalid
from fedstac.domain.model import Outcome
from fedstac.domain.policy import Principal
from fedstac.domain.vocabulary import UnknownVersion, name_of
from fedstac.publication import ClaimLost
from fedstac.runtime import commits, metrics, supervision
from fedstac.runtime.causes import Cause, OperatorsFault, blames_nobody, cause_of, was_ended_in_order
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.outages import reason_of
from fedstac.runtime.wakeup import Backoff, pause

GATHER_SECONDS, GATHERED = 0.025, 100  # with less than this in a claim, the next one waits a moment
AT_ONCE = 5000  # items whose numbers are read in one go
ATTEMPTS = 5  # of an item, alone, after which it is given up
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 0.1, 2.0  # between attempts
log = structlog.get_logger()


async def run(node: Node, stop: asyncio.Event) -> None:
    """Work until `stop`; a lost connection or a full disk is waited out."""
    name = f"{node.parts.process}:{uuid4().hex[:6]}"
    idle = Backoff()
    first_request = node.queued.next()
    if not node.commits.has_work("publisher"):
        await first_request(commits.PATIENCE_SECONDS)

    async def step() -> bool:
        next_request = node.queued.next()
        try:
            async with node.pool.acquire() as conn:
                items = await work_once(node, conn, name)
        except ClaimLost:
            log.warning(
                "claim lost, to another worker or by a cancelled request; the rest is claimed anew", worker=name
            )
            return False
        if not items:
            await next_request(node.commits.patience(idle.pause(), part="publisher"))
            return False
        idle.reset()
        if 1 < items < GATHERED:  # many small requests: a moment more makes one larger batch of them
            await asyncio.sleep(GATHER_SECONDS)
        return True

    await supervision.keep_trying(node.parts, "publisher", step, stop)


async def work_once(node: Node, conn: Connection, name: str) -> int:
    """Claim what waits and perform it, batch by batch, until the claimed shards are empty; return how many items."""
    lease = node.settings.lease_seconds
    claim = await queue.claim(conn, name, uuid4(), lease)
    if claim is None:
        return 0
    failpoint("worker.claimed")
    shift = Shift(node, conn, claim)
    try:
        await shift.work_off()
    except (Exception, asyncio.CancelledError) as error:
        await shift.break_off(error)
        raise
    await queue.release(conn, shift.claim)
    return max(shift.items, 1)


@dataclass(slots=True)
class Shift:
    """One claim on its way to the end.

    Blame: a batch that raises is halved down to the one item that does. That item is tried alone, and its attempts are
    counted in its own row, each before it begins. A worker that dies over a batch blames nobody: the next claim takes
    fewer shards and items at once, until items are tried alone. Only an item that was tried alone ATTEMPTS times fails.
    """

    node: Node
    conn: Connection
    claim: queue.Claim  # less the shards that rest
    items: int = 0  # that were performed
    trying: int | None = None  # the item that is being tried alone
    renewed: float = field(default_factory=time.monotonic)

    async def work_off(self) -> None:
        size = max(self.node.settings.batch >> 2 * self.claim.deaths, 1)
        more = True
        while more and self.claim.shards and (waiting := await queue.waiting(self.conn, self.claim, AT_ONCE)):
            more = len(waiting) == AT_ONCE  # else what came meanwhile is for the next claim
            for batch in _batches(waiting, size):
                if self.node.stopping.is_set():
                    return
                if not await self._work([item for item in batch if item.shard in self.claim.shards], size):
                    more = True
                    break
                await self._renew()

    async def break_off(self, error: BaseException) -> None:
        """End the claim early, and count no death: what an item did is counted with the item.

        Only where the session vanished it counts, for an item may have crashed it.
        """
        if connections.is_open(self.conn):
            await queue.release_uncounted(self.conn, self.claim, self.trying)
        elif was_ended_in_order(error):
            await self.node.pool.try_elsewhere(lambda conn: queue.release_uncounted(conn, self.claim, self.trying))

    async def _work(self, batch: Sequence[queue.WaitingItem], size: int) -> bool:
        """Perform a batch; what raises is found by halving. False where large documents left a part of it undone."""
        if not batch:
            return True
        if len(batch) == 1 and (size == 1 or batch[0].attempts):
            return await self._try_alone(batch[0])
        try:
            return await self._perform(batch)
        except Exception as error:
            if isinstance(error, ClaimLost) or blames_nobody(error):
                raise
            log.warning("a batch failed; it is halved", items=len(batch), reason=reason_of(error))
            await self._learn(error)
        if len(batch) == 1:
            return await self._try_alone(batch[0])
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            if not await self._work([item for item in half if item.shard in self.claim.shards], size):
                return False
        return True

    async def _try_alone(self, item: queue.WaitingItem) -> bool:
        """Try an item by itself. If it fails its shard rests a while, and the others go on."""
        if item.killed:
            if item.attempts >= ATTEMPTS:
                await self._give_up(item, item.attempts, None)
                return True
            # A worker that dies whatever it does must not blame the item: it lives a while, and does nothing the same
            # way, before the attempt counts.
            await pause(self.node.stopping, _rest_seconds(item.attempts))
            await publication.rehearse(self.conn, self.node.rules, [], lambda _: [])
        attempts = await queue.begin_attempt(self.conn, self.claim, item.id)
        if attempts is None:
            return True  # it is final, or the claim is lost, which the next batch finds out
        self.trying = item.id
        failpoint("worker.alone")
        try:
            await self._perform([item])
        except Exception as error:
            if isinstance(error, ClaimLost) or blames_nobody(error):
                raise
            log.warning("an item cannot be worked on", item=item.id, attempts=attempts, reason=reason_of(error))
            await self._learn(error)
            if attempts >= ATTEMPTS:
                await self._give_up(item, attempts, error)
            else:
                await queue.rest(self.conn, self.claim, item, _rest_seconds(attempts))
                shards = tuple(shard for shard in self.claim.shards if shard != item.shard)
                self.claim = replace(self.claim, shards=shards)
        self.trying = None
        return True

    async def _perform(self, batch: Sequence[queue.WaitingItem]) -> bool:
        items = await queue.read(self.conn, [item.id for item in batch])
        if items:
            await _perform(self.node, self.conn, items, self.claim)
            self.items += len(items)
            failpoint("worker.performed")
        return len(items) == len(batch)

    async def _learn(self, error: Exception) -> None:
        """Take up what the next attempt may need. OperatorsFault where the database explains the error."""
        if cause_of(error) is Cause.SCHEMA:
            try:
                await schema.check(self.conn)
            except OperatorsFault as fault:
                raise OperatorsFault(f"{fault}; {reason_of(error)}") from error
        if isinstance(error, UnknownVersion):  # of a stored dataset, that another process has judged with
            await self.node.vocabulary_store.look(self.conn)

    async def _renew(self) -> None:
        lease = self.node.settings.lease_seconds
        if time.monotonic() - self.renewed > lease / 3:
            self.renewed = time.monotonic()
            if not await queue.renew(self.conn, self.claim, lease):
                raise ClaimLost

    async def _give_up(self, item: queue.WaitingItem, attempts: int, error: Exception | None) -> None:
        """Make an item `failed`, which says that the fault is ours; it is final. `error` is None where workers died."""
        origin = await queue.origin(self.conn, item.id)
        log.error(
            "an item is given up", dataset=origin.dataset, request=str(origin.request), attempts=attempts,
            reason=reason_of(error) if error else "its workers died", exc_info=error,
        )  # fmt: skip
        finding = Finding("internal", "", "the server could not process this item; its operators are told")
        detail = "the server could not process it"
        result = queue.Result(item.id, Outcome.FAILED, InternalError.name, detail, (finding,), None)
        async with self.conn.transaction():
            if not await queue.hold(self.conn, self.claim):
                raise ClaimLost
            await queue.finish(self.conn, [result])
            await audit.append(self.conn, [_audit_row(origin, result)])
        self.node.metrics.count_items([result.outcome])


def _batches(waiting: Sequence[queue.WaitingItem], size: int) -> Iterator[Sequence[queue.WaitingItem]]:
    """Yield batches in the order of the queue. An item that was tried alone before is a batch of its own."""
    batch: list[queue.WaitingItem] = []
    for item in waiting:
        if batch and (len(batch) == size or item.attempts or batch[-1].attempts):
            yield batch
            batch = []
        batch.append(item)
    yield batch


def _rest_seconds(attempts: int) -> float:
    """Return the pause before the next attempt: doubling, spread so that not all come at once."""
    return min(FIRST_REST_SECONDS * 2.0 ** (attempts - 1), LONGEST_REST_SECONDS) * random.uniform(0.5, 1.5)  # noqa: S311


async def _perform(node: Node, conn: Connection, items: list[queue.QueuedItem], claim: queue.Claim) -> None:
    started = time.perf_counter()
    submitters = await _submitters(conn, items)
    work, misnamed = await _work(node, items, submitters)
    if misnamed:
        by_id = {result.item: result for result in misnamed}
        async with conn.transaction():
            if not await queue.hold(conn, claim):
                raise ClaimLost
            await queue.finish(conn, misnamed)
            await audit.append(conn, [_audit_row(_origin(item), by_id[item.id]) for item in items if item.id in by_id])
    receipts = await publication.perform(conn, node.rules, work, claim=claim)
    node.metrics.count_items(result.outcome for result in misnamed)
    node.metrics.count_items(receipt.outcome for receipt in receipts)
    seconds = time.perf_counter() - started
    node.metrics.observe(metrics.BATCH_SECONDS, seconds)
    node.committed.wake()
    node.settled.wake()
    log.info(
        "published", items=len(items), events=sum(len(receipt.changes) for receipt in receipts),
        rejected=sum(receipt.outcome is Outcome.REJECTED for receipt in receipts),
        milliseconds=round(seconds * 1000, 1), traces=events.traces_of(item.traceparent for item in items),
    )  # fmt: skip


async def _submitters(conn: Connection, items: list[queue.QueuedItem]) -> dict[UUID, Principal]:
    """Return who asked, by request.

    Roles, groups and entitlements are those of the 202, memberships in own groups those of now.
    """
    memberships = await own_groups.memberships(conn, {item.submitter for item in items})
    return {
        item.request: Principal.of_submitter(item.submitter, item.roles, item.identity, memberships)
        for item in {item.request: item for item in items}.values()
    }  # fmt: skip


async def _work(
    node: Node, items: list[queue.QueuedItem], submitters: Mapping[UUID, Principal]
) -> tuple[list[Work], list[queue.Result]]:
    """Make commands of queued items; their documents were judged before the 202, with the version that was fixed then.

    An item that has no name by that version is refused by itself.
    """
    work, misnamed = [], []
    for item in items:
        vocabulary = await node.vocabulary(item.collection, item.cv_version)
        name = name_of(item.collection, item.dataset, vocabulary)
        if isinstance(name, Finding):
            misnamed.append(queue.Result(item.id, Outcome.REJECTED, StacInvalid.name, name.message, (name,), None))
            continue
        action = QueuedAction(
            item.collection, item.dataset, name, submitters[item.request], item.document, prepared=item.prepared,
            coded=item.coded, vocabulary=vocabulary, only_new=item.only_new,
        )  # fmt: skip
        command = command_of(item.action, action)
        work.append(Work(
            command, item.submitter, item.action, item=item.id, request=item.request, traceparent=item.traceparent
        ))  # fmt: skip
    return work, misnamed


def _origin(item: queue.QueuedItem) -> queue.ItemOrigin:
    return queue.ItemOrigin(item.request, item.collection, item.dataset, item.action, item.submitter)


def _audit_row(item: queue.ItemOrigin, result: queue.Result) -> audit.NewRow:
    """Return the audit row of an item that never came to a decision."""
    return audit.NewRow(
        actor=item.submitter, action=item.action, collection=item.collection, dataset=item.dataset,
        request=item.request, outcome=result.outcome, before=None, after=None, rule=result.problem,
    )  # fmt: skip
