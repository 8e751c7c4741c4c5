"""The publish worker: claims shards of the queue, performs what waits in them, lets them go."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from uuid import uuid4

import orjson
import structlog

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import requests
from fedstac.db.connections import Connection, is_transient
from fedstac.domain import documents
from fedstac.domain.actions.publish import Publish
from fedstac.domain.errors import Finding, InternalError
from fedstac.domain.model import Outcome
from fedstac.domain.policy import Principal
from fedstac.domain.vocabulary import name_of
from fedstac.failpoints import failpoint
from fedstac.publication import ClaimLost, Work
from fedstac.wakeup import Backoff

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
                worked = await work_once(node, conn, name)
        except ClaimLost:
            log.warning("claim lost to another worker; its work goes on there", worker=name)
            worked = True
        except Exception as error:
            if not is_transient(error):
                log.exception("the publish worker failed; trying again", worker=name)
            else:
                log.warning("the database is away; trying again", worker=name, error=type(error).__name__)
            worked = False
        if worked:
            backoff.reset()
        else:
            await queued(backoff.pause())


async def work_once(node: Node, conn: Connection, name: str) -> bool:
    """Claims what waits and performs it, batch by batch, until the claimed shards are empty; False if nothing waits."""
    lease = node.settings.lease_seconds
    claim = await requests.claim(conn, name, uuid4(), lease)
    if claim is None:
        return False
    failpoint("worker.claimed")
    size, began = node.settings.batch if claim.attempts < ALONE_AFTER else 1, time.monotonic()
    if claim.attempts >= FAILED_AFTER:
        await _give_up(conn, claim)
    while items := await requests.queued(conn, claim, size):
        await _perform(node, conn, items, claim)
        failpoint("worker.performed")
        size = node.settings.batch
        if time.monotonic() - began > lease / 3 and not await requests.renew(conn, claim, lease):
            raise ClaimLost
    await requests.release(conn, claim)
    return True


async def _perform(node: Node, conn: Connection, items: list[requests.QueuedItem], claim: requests.Claim) -> None:
    started = time.perf_counter()
    work = [_work(node, item) for item in items]
    receipts = await publication.perform(conn, await node.world(conn), work, claim=claim)
    node.committed.wake()
    node.settled.wake()
    log.info(
        "published", items=len(items), events=sum(len(receipt.changes) for receipt in receipts),
        rejected=sum(receipt.outcome is Outcome.REJECTED for receipt in receipts),
        milliseconds=round((time.perf_counter() - started) * 1000, 1),
    )  # fmt: skip


def _work(node: Node, item: requests.QueuedItem) -> Work:
    """A queued item as a command; its document was judged before the 202 and is what was judged."""
    document = orjson.loads(item.document)
    project = node.checker.projects.get(item.collection)
    name = name_of(item.collection, item.dataset, project)
    if isinstance(name, Finding):
        raise LookupError(f"the id {item.dataset} was accepted and is no longer of the project's form")
    command = Publish(
        draft=documents.prepare(document, name, project),
        principal=Principal(item.submitter, frozenset(item.roles)),
        cv_version=item.cv_version,
    )
    return Work(command, item.submitter, item.action, item=item.id, request=item.request)


async def _give_up(conn: Connection, claim: requests.Claim) -> None:
    """The item at the head of the shards has ended every attempt on it: failed is ours, and final."""
    for item in await requests.queued(conn, claim, 1):
        log.error("an item is given up", dataset=item.dataset, request=str(item.request), attempts=claim.attempts)
        finding = Finding("internal", "", "the server could not process this item; its operators are told")
        result = requests.Result(
            item.id, Outcome.FAILED, InternalError.name, "the server could not process it", (finding,), None
        )
        async with conn.transaction():
            await requests.finish(conn, [result])
