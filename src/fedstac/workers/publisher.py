"""The publish worker: claims shards of the queue, performs what waits in them, lets them go."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from uuid import UUID, uuid4

import orjson
import structlog

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import audit, own_groups, queue
from fedstac.db.connections import Connection, is_transient
from fedstac.domain import documents
from fedstac.domain.actions import Command, command_of
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Finding, InternalError, StacInvalid
from fedstac.domain.groups import Identity
from fedstac.domain.model import Outcome
from fedstac.domain.policy import Principal
from fedstac.domain.vocabulary import DatasetName, UnknownVersion, Vocabulary, name_of
from fedstac.failpoints import failpoint
from fedstac.publication import ClaimLost, Work
from fedstac.wakeup import Backoff

GATHER_SECONDS, GATHERED = 0.025, 100  # with less than this in a claim, the next one waits a moment
AT_ONCE = 5000  # items whose numbers are read in one go
ALONE_AFTER = 2  # claims without a result, after which items are tried one by one
FAILED_AFTER = 6  # and after which the first one is given up as failed
log = structlog.get_logger()


async def run(node: Node, stop: asyncio.Event) -> None:
    """Works until `stop`; a lost connection or a full disk is waited out."""
    name = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}"
    backoff = Backoff()
    while not stop.is_set():
        queued = node.queued.next()
        try:
            async with node.pool.acquire() as conn:
                done = await work_once(node, conn, name)
        except ClaimLost:
            log.warning(
                "claim lost, to another worker or by a cancelled request; the rest is claimed anew", worker=name
            )
            done = 1
        except Exception as error:
            if not is_transient(error):
                log.exception("the publish worker failed; trying again", worker=name)
            else:
                log.warning("the database is away; trying again", worker=name, error=type(error).__name__)
            done = 0
        if not done:
            await queued(backoff.pause())
            continue
        backoff.reset()
        if 1 < done < GATHERED:  # many small requests: a moment more makes one larger batch of them
            await asyncio.sleep(GATHER_SECONDS)


async def work_once(node: Node, conn: Connection, name: str) -> int:
    """Claims what waits and performs it, batch by batch, until the claimed shards are empty; how many items it was."""
    lease = node.settings.lease_seconds
    claim = await queue.claim(conn, name, uuid4(), lease)
    if claim is None:
        return 0
    failpoint("worker.claimed")
    try:
        done = await _work_off(node, conn, claim, lease)
    except Exception as error:
        lost = isinstance(error, ClaimLost)  # in part: a request was cancelled
        if isinstance(error, UnknownVersion):  # a stored dataset's, that another process has judged with
            await node.shelf.look(conn)
        if (lost or is_transient(error)) and not conn.is_closed():  # the items have no part in it
            await queue.excuse(conn, claim)
        raise
    await queue.release(conn, claim)
    return max(done, 1)


async def _work_off(node: Node, conn: Connection, claim: queue.Claim, lease: float) -> int:
    done = 0
    alone, began = claim.attempts >= ALONE_AFTER, time.monotonic()
    if claim.attempts >= FAILED_AFTER:
        await _give_up(conn, claim)
    size = 1 if alone else node.settings.batch
    more = True
    while more and (ids := await queue.waiting(conn, claim, AT_ONCE)):
        more = len(ids) == AT_ONCE  # else what came meanwhile is for the next claim
        for start in range(0, len(ids), size):
            if node.stopping.is_set():
                return done
            wanted = ids[start : start + size]
            items = await queue.queued(conn, wanted)
            if items:
                await _perform(node, conn, items, claim)
                done += len(items)
                failpoint("worker.performed")
            if alone and items:
                await queue.prove(conn, claim, items[0].shard)
            if time.monotonic() - began > lease / 3 and not await queue.renew(conn, claim, lease):
                raise ClaimLost
            if len(items) < len(wanted):  # large ones: what was left of these comes before those behind them
                more = True
                break
    return done


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
            await audit.append(conn, [_audited(item, by_id[item.id]) for item in items if item.id in by_id])
    receipts = await publication.perform(conn, node.world(), work, claim=claim)
    node.committed.wake()
    node.settled.wake()
    log.info(
        "published", items=len(items), events=sum(len(receipt.changes) for receipt in receipts),
        rejected=sum(receipt.outcome is Outcome.REJECTED for receipt in receipts),
        milliseconds=round((time.perf_counter() - started) * 1000, 1),
    )  # fmt: skip


async def _submitters(conn: Connection, items: list[queue.QueuedItem]) -> dict[UUID, Principal]:
    """Who asked, by request: roles, groups and entitlements as of the 202, memberships in own groups as of now."""
    memberships = await own_groups.memberships(conn, {item.submitter for item in items})
    return {
        item.request: Principal(
            item.submitter, frozenset(item.roles), Identity.unpacked(item.identity) if item.identity else None,
            memberships.get(item.submitter, frozenset()),
        )
        for item in {item.request: item for item in items}.values()
    }  # fmt: skip


async def _work(
    node: Node, items: list[queue.QueuedItem], submitters: Mapping[UUID, Principal]
) -> tuple[list[Work], list[queue.Result]]:
    """Queued items as commands; their documents were judged before the 202, with the version that was fixed then.

    An item that has no name by that version is refused by itself.
    """
    work, misnamed = [], []
    for item in items:
        vocabulary = await node.vocabulary(item.collection, item.cv_version)
        name = name_of(item.collection, item.dataset, vocabulary)
        if isinstance(name, Finding):
            refused = queue.Result(item.id, Outcome.REJECTED, StacInvalid.name, name.message, (name,), None)
            misnamed.append(refused)
            continue
        command = _command(item, name, vocabulary, submitters[item.request])
        work.append(Work(command, item.submitter, item.action, item=item.id, request=item.request))
    return work, misnamed


def _command(item: queue.QueuedItem, name: DatasetName, vocabulary: Vocabulary | None, principal: Principal) -> Command:
    if item.action != "publish":
        target = Target(item.collection, item.dataset, name.lineage)
        return command_of(item.action, target, principal, orjson.loads(item.document), item.cv_version)
    draft, held = (
        documents.unpacked(item.document, item.prepared, item.collection, item.dataset, name)
        if item.prepared
        else (documents.prepare(orjson.loads(item.document), name, vocabulary), ())
    )
    return Publish(draft, principal, cv_version=item.cv_version, held=held, only_new=item.only_new)


async def _give_up(conn: Connection, claim: queue.Claim) -> None:
    """An item at the head of its shard has ended every attempt on it, alone too: failed is ours, and final."""
    for item in await queue.stuck(conn, claim, FAILED_AFTER):
        log.error("an item is given up", dataset=item.dataset, request=str(item.request), attempts=claim.attempts)
        finding = Finding("internal", "", "the server could not process this item; its operators are told")
        result = queue.Result(
            item.id, Outcome.FAILED, InternalError.name, "the server could not process it", (finding,), None
        )
        async with conn.transaction():
            if not await queue.hold(conn, claim):
                raise ClaimLost
            await queue.finish(conn, [result])
            await audit.append(conn, [_audited(item, result)])
            await queue.prove(conn, claim, item.shard)


def _audited(item: queue.QueuedItem, result: queue.Result) -> audit.Entry:
    """The row of an item that never came to a decision."""
    return audit.Entry(
        actor=item.submitter, action=item.action, collection=item.collection, dataset=item.dataset,
        request=item.request, outcome=result.outcome, before=None, after=None, rule=result.problem,
    )  # fmt: skip
