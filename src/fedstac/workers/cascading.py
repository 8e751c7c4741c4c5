"""Collections that are deleted with their datasets: these are marked in chunks, and the collection goes after them.

Each chunk is one transaction of the write path. What is marked is not marked again, so a process that is killed
anywhere leaves nothing to be undone: the next one goes on.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.collection_writing import CollectionWriter
from fedstac.db import cascades, own_groups
from fedstac.db.cascades import DueCascade
from fedstac.db.connections import Connection
from fedstac.domain.actions import Work
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.target import Target
from fedstac.domain.cascade import CascadeState
from fedstac.domain.errors import NotFound
from fedstac.domain.model import Outcome
from fedstac.domain.policy import DELETION_MANAGER, Principal
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint

PART: Final = "cascades"
CHUNK: Final = 250  # datasets in one transaction
LOOK_SECONDS: Final = 2.0  # between looks for something to do
WAITING_SECONDS: Final = 5.0  # between looks whether the last dataset is deleted
AGAIN_SECONDS: Final = 60.0  # before datasets that could not be marked are tried again
log = structlog.get_logger()


async def run(node: Node, stop: asyncio.Event) -> None:
    """Work on what is being deleted, until `stop`."""

    async def look() -> None:
        while not stop.is_set():
            next_commit = node.committed.next()
            async with node.pool.acquire() as conn:
                is_more = await step(node, conn)
            if not is_more:
                if node.commits.has_work(PART):
                    await next_commit(LOOK_SECONDS)
                await node.commits.pause(PART, stop, LOOK_SECONDS / 10)  # each commit wakes us

    await supervision.keep_trying(node.parts, PART, look, stop, commits=node.commits)


async def step(node: Node, conn: Connection) -> bool:
    """Do the next piece of work; return whether there may be more at once. Nothing where another session is at it."""
    async with cascades.leading(conn) as is_leader:
        due = await cascades.due(conn) if is_leader else None
        if due is None:
            return False
        if due.is_stopped:
            await _cancel(node, conn, due)
            return True
        if due.state == CascadeState.MARKING:
            await _mark(node, conn, due)
            return True
        if await _writer(node, conn, due).end_cascade(due.collection, due.id):
            node.committed.wake()
            log.info("a collection is deleted with its datasets", collection=due.collection, cascade=str(due.id))
        elif due.refused:
            await cascades.begin_pass(conn, due.id)
        else:
            await cascades.finish_pass(conn, due.id, seconds=WAITING_SECONDS)
        return True


async def _mark(node: Node, conn: Connection, due: DueCascade) -> None:
    """Mark the next chunk in the name of who asked. Their rights are judged again, for every dataset."""
    datasets = await cascades.chunk(conn, due.collection, due.after_id, CHUNK)
    if not datasets:
        await cascades.finish_pass(conn, due.id, seconds=AGAIN_SECONDS if due.refused else 0.0)
        return
    memberships = await own_groups.memberships(conn, [due.actor])
    principal = Principal.of_submitter(due.actor, due.roles, due.identity, memberships)
    work = [
        Work(
            Mark(Target(due.collection, each.id, each.lineage), principal, due.reason, cascade=due.id), due.actor,
            "mark", traceparent=due.traceparent, causation=due.id,
        )
        for each in datasets
    ]  # fmt: skip
    failpoint("cascade.chosen")
    receipts = await publication.perform(conn, node.rules, work)
    failpoint("cascade.marked")
    problems = [receipt.problem for receipt in receipts if receipt.problem is not None]
    await cascades.advance(
        conn, due.id, datasets[-1].id, refused=len(problems), refusal=problems[-1].detail if problems else None
    )
    failpoint("cascade.advanced")
    marked = sum(receipt.outcome is Outcome.MARKED for receipt in receipts)
    node.metrics.count_items(receipt.outcome for receipt in receipts)
    node.committed.wake()
    log.info(
        "datasets of a collection are marked", collection=due.collection, marked=marked, refused=len(problems),
        cascade=str(due.id),
    )  # fmt: skip


async def _cancel(node: Node, conn: Connection, due: DueCascade) -> None:
    """End a deletion whose actor was erased: nobody asks for it any more. What is marked stays marked."""
    with suppress(NotFound):  # somebody else cancelled it a moment ago
        await _writer(node, conn, due, actor=DELETION_MANAGER).cancel_cascade(due.collection)
    node.committed.wake()
    log.info("the deletion of a collection ends, as its actor was erased", collection=due.collection,
             cascade=str(due.id))  # fmt: skip


def _writer(node: Node, conn: Connection, due: DueCascade, *, actor: str = "") -> CollectionWriter:
    """Return who writes the collection's state; in the name of who asked for its deletion, if nobody else is named."""
    return CollectionWriter(
        conn, node.settings.node, actor or due.actor, node.collection_schema, traceparent=due.traceparent
    )
