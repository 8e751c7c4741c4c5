"""What takes long of full-state loads: they are compared, their datasets listed, and what is not needed removed.

Each step is some datasets of one load, in one transaction with how far it has come. Whoever is killed leaves a step
that never was, and another process goes on with it. Loads take turns. A request does the first steps of a comparison
itself (workers/loading.py): a small load is compared at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog

from fedstac.bootstrap import Node
from fedstac.db import connections, load_application, load_comparison, loads
from fedstac.db.connections import Connection
from fedstac.db.load_comparison import ChangeTally, DoubtfulDataset
from fedstac.db.loads import Load
from fedstac.domain import reconcile
from fedstac.domain.reconcile import MOST, LoadChange, LoadStep
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint

PART: Final = "loads"
AT_ONCE: Final = 5_000  # datasets of a step
COMPARED_AT_ONCE: Final = 200  # pairs of documents
SHARE: Final = 0.7  # of the time, that steps take
log = structlog.get_logger()


async def run(node: Node, stop: asyncio.Event) -> None:
    """Work until `stop`."""

    async def look() -> float | None:
        async with node.pool.acquire() as conn:
            return SHARE if await step(node, conn) else None

    await supervision.keep_working(node.parts, PART, look, stop, commits=node.commits)


async def step(node: Node, conn: Connection) -> bool:
    """Do the next step of the load that waits longest; return whether there was one.

    A load whose step fails waits until others have had their turn.
    """
    load: Load | None = None
    try:
        async with conn.transaction():
            load = await loads.take_step(conn)
            if load is None:
                return False
            await advance(node, conn, load)
            failpoint("load.step")
    except Exception:
        if load is not None and connections.is_open(conn):
            await loads.put_off(conn, load.id)
        raise
    failpoint("load.stepped")
    return True


async def advance(node: Node, conn: Connection, load: Load) -> None:
    """Do the next step of a locked load, in the transaction that is open."""
    match load.step:
        case LoadStep.STATED:
            await _compare_stated(node, conn, load)
        case LoadStep.HERE:
            await _compare_here(node, conn, load)
        case LoadStep.LIST:
            await _list(conn, load)
        case LoadStep.TRIM:
            chunk = await load_application.trim(conn, load, AT_ONCE)
            await loads.store_step(conn, replace(
                load, step=None if chunk.is_last else load.step, step_after=chunk.last or ""
            ))  # fmt: skip
        case LoadStep.EMPTY:
            has_more = await loads.remove_some(conn, load.id)
            await loads.store_step(conn, load if has_more else replace(load, step=None))
        case None:
            pass


async def _list(conn: Connection, load: Load) -> None:
    """List the next datasets of the change that applies a load. It begins once the last of them is listed."""
    chunk = await load_application.list_some(conn, load, AT_ONCE)
    if chunk.is_last:
        await load_application.end_list(conn, load)
    else:
        await loads.store_step(conn, replace(load, step_after=chunk.last or ""))


async def _compare_stated(node: Node, conn: Connection, load: Load) -> None:
    chunk = await load_comparison.compare_stated(conn, load, node.settings.node, AT_ONCE)
    if chunk.last is not None:
        await _clear_doubts(conn, load, chunk.last)
        load = load_comparison.with_tallies(load, await load_comparison.tally(conn, load, chunk.last))
    load = replace(load, compared_stated=load.compared_stated + chunk.count, step_after=chunk.last or "")
    await loads.store_step(conn, replace(load, step=LoadStep.HERE, step_after="") if chunk.is_last else load)


async def _clear_doubts(conn: Connection, load: Load, through: str) -> None:
    """Compare the documents themselves where nodes have put replicas into those that are here."""
    after = load.step_after
    while pairs := await load_comparison.doubtful(conn, load, after, through, COMPARED_AT_ONCE):
        after = pairs[-1].id

        def same(pairs: Sequence[DoubtfulDataset] = pairs) -> list[str]:
            return [pair.id for pair in pairs if not reconcile.differs(pair.here, pair.load_document)]

        await load_comparison.mark_unchanged(conn, load.id, await asyncio.to_thread(same))


async def _compare_here(node: Node, conn: Connection, load: Load) -> None:
    """Look for the next records in the load. Of more than it may change they are counted alone."""
    keeps = load.counts.get(LoadChange.REMOVED, 0) <= MOST
    chunk = await load_comparison.compare_here(conn, load, node.settings.node, AT_ONCE, keeps=keeps)
    load = load_comparison.with_tallies(load, [ChangeTally(LoadChange.REMOVED, chunk.removed, chunk.first_ids)])
    load = replace(
        load, current=(load.current or 0) + chunk.current, compared_here=load.compared_here + chunk.records.count,
        step_after=chunk.records.last or "", step=None if chunk.records.is_last else load.step,
    )  # fmt: skip
    await loads.store_step(conn, load, is_compared=chunk.records.is_last)
    if chunk.records.is_last:
        log.info("a full-state load is compared", load=str(load.id), collection=load.collection,
                 stated=load.compared_stated, here=load.compared_here)  # fmt: skip
