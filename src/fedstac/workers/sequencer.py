"""The sequencer: gives events and audit rows that became visible their positions. One leader; the rest stand by."""

from __future__ import annotations

import asyncio
import time

import structlog

from fedstac.bootstrap import Node, fork_if_restored
from fedstac.db import audit, collections, connections, facets, feed, outbox, requests
from fedstac.db.connections import Connection
from fedstac.runtime import metrics, supervision
from fedstac.runtime.causes import is_transient
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.wakeup import Backoff, pause

STAND_BY_SECONDS = 1.0
HOUSEKEEPING_SECONDS = 5.0
KEYS_DAYS = 7  # that an Idempotency-Key is kept
CHAIN_SECONDS = 0.25  # nobody waits for places in the audit log: few large links of the chain
log = structlog.get_logger()


async def run(node: Node, stop: asyncio.Event) -> None:
    """Sequence until `stop`, whenever this process is the leader."""

    async def step() -> bool:
        dsn = node.settings.sequencer_dsn or node.settings.dsn
        conn = await connections.connect(dsn, application=f"fedstac {node.settings.node} sequencer")
        connections.on_end(conn, node.committed.wake)
        try:
            if await _stand_by(conn, stop):
                await _lead(node, conn, stop)
        finally:
            conn.terminate()
        return False

    await supervision.keep_trying(node.parts, "sequencer", step, stop, backoff=Backoff(least=0.5, most=5.0))


async def _stand_by(conn: Connection, stop: asyncio.Event) -> bool:
    """Wait until nobody else leads. Return False if `stop` comes first."""
    while not stop.is_set():
        if await feed.lead(conn):
            return True
        await pause(stop, STAND_BY_SECONDS)
    return False


async def _lead(node: Node, conn: Connection, stop: asyncio.Event) -> None:
    """Sequence while the lock is ours; it goes with the connection."""
    await fork_if_restored(conn)
    log.info("sequencing", head=str(await feed.head(conn)))
    backoff, housekeeping_at, chained_at = Backoff(least=0.02, most=0.25), 0.0, 0.0
    while not stop.is_set():
        if time.monotonic() - housekeeping_at > HOUSEKEEPING_SECONDS:
            housekeeping_at = time.monotonic()
            await _keep_house(conn)
        committed, started = node.committed.next(), time.perf_counter()
        positions = await feed.sequence(conn)
        failpoint("sequencer.sequenced")
        if is_chaining := time.monotonic() - chained_at > CHAIN_SECONDS:
            chained_at = time.monotonic()
            await _chain(node, conn)
        node.parts.works("sequencer")
        if positions:
            node.metrics.observe(metrics.SEQUENCING_SECONDS, time.perf_counter() - started)
            node.metrics.count(metrics.SEQUENCED, by=positions)
            backoff.reset()
            node.sequenced.wake()
        else:
            seconds = backoff.pause()
            await committed(node.commits.patience(seconds) if is_chaining else min(seconds, CHAIN_SECONDS))


async def _chain(node: Node, conn: Connection) -> None:
    """Give audit rows their places. A chain that cannot be prolonged is an alarm; the feed goes on."""
    try:
        await audit.chain(conn)
        failpoint("sequencer.chained")
    except Exception as error:
        if is_transient(error):
            raise
        node.parts.fails("audit chain", error)
    else:
        node.parts.works("audit chain")


async def _keep_house(conn: Connection) -> None:
    """Make partitions of the outbox ahead of the writers, and one tally a collection."""
    await outbox.extend(conn)
    async with conn.transaction():
        await collections.sum_up(conn)
        await requests.forget_keys(conn, KEYS_DAYS)
    await facets.remove_unused(conn)
