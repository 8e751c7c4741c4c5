"""Retention: drops the oldest part of the log when it is old enough and everybody who counts has it.

It also tells operators where events wait for too long, and who lapsed.
"""

from __future__ import annotations

import asyncio

import structlog

from fedstac.bootstrap import Node
from fedstac.db import backlog, loads, retention
from fedstac.db.connections import Connection
from fedstac.db.retention import OldPartition, PartitionChanged
from fedstac.runtime import supervision
from fedstac.runtime.wakeup import Backoff, pause

LOOK_SECONDS = 60.0
STEP_SECONDS = 0.05  # between steps of one piece of work, for others to have the disk
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 2.0, 300.0  # for the lock of a partition that somebody reads
log = structlog.get_logger()


async def run(node: Node, stop: asyncio.Event) -> None:
    """Look for what can go, until `stop`."""
    retries = Backoff(least=FIRST_RETRY_SECONDS, most=LONGEST_RETRY_SECONDS)

    async def look() -> None:
        while not stop.is_set():
            async with node.pool.acquire() as conn:
                seconds = await step(node, conn, retries)
            await pause(stop, seconds)

    await supervision.keep_trying(node.parts, "retention", look, stop)


async def step(node: Node, conn: Connection, retries: Backoff) -> float:
    """Do the next piece of work, if there is one; return the seconds until the next look."""
    async with retention.leading(conn) as is_leader:
        return await _step(node, conn, retries) if is_leader else LOOK_SECONDS


async def _step(node: Node, conn: Connection, retries: Backoff) -> float:
    settings = node.settings
    for each in await backlog.read(conn):
        if each.fills(settings.unsent_seconds, settings.unsent_bytes) >= backlog.WARNING_SHARE:
            await backlog.alert(conn, each)
    for name in await retention.lapse(conn, settings.node_lapse_days):
        log.error("a node has lapsed; the log is no longer kept for it", reader=name)
    if await loads.forget_old(conn):
        return STEP_SECONDS
    partition = await retention.oldest_partition(conn, settings.keep_events_days)
    if partition is None:
        return LOOK_SECONDS
    start = await retention.log_start(conn)
    if start.id < partition.last_id or start.pos < partition.last_pos:
        return await _forget(node, conn, partition)
    if await retention.sweep(conn) or await retention.sweep_acknowledgements(conn):
        return STEP_SECONDS
    if not await retention.drop(conn, partition):
        return retries.pause()
    retries.reset()
    log.info("a part of the log was dropped", partition=partition.number, through=start.pos)
    return STEP_SECONDS


async def _forget(node: Node, conn: Connection, partition: OldPartition) -> float:
    """Forget a partition if everybody has it."""
    readers = await retention.readers(conn)
    behind = [reader for reader in readers if reader.pos < partition.last_pos]
    if behind:
        return LOOK_SECONDS
    try:
        is_forgotten = await retention.forget(conn, partition, actor=node.settings.node, readers=readers)
    except PartitionChanged:
        return STEP_SECONDS
    if not is_forgotten:
        return LOOK_SECONDS
    log.info("a part of the log is forgotten", partition=partition.number, through=partition.last_pos)
    return STEP_SECONDS
