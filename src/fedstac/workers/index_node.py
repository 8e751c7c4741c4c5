"""The index node: applies the events of one origin or several to its own database, and serves search from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from fedstac import applying
from fedstac.bootstrap import Node
from fedstac.db import collections, facets, nodes, outbox
from fedstac.db.connections import Connection
from fedstac.domain import events
from fedstac.domain.events import Cursor, DatasetEvent
from fedstac.messaging.origin import Origin, TopicOrigin
from fedstac.messaging.sources import EventSource
from fedstac.runtime import supervision
from fedstac.runtime.wakeup import pause
from fedstac.workers import deletion_parts, following, pages
from fedstac.workers.esgf_topic import EsgfHandler
from fedstac.workers.event_reading import EventReader
from fedstac.workers.following import FollowedElsewhere, Follower
from fedstac.workers.pages import BEYOND_ALL, HandledPage, Handler, Page, PageReading, Rejection

REBUILD_PATIENCE_SECONDS = 10  # without an event, though the origin's head is further: a broker may take its time
FOREIGN = "its lineage is another origin's, or its collection is not here"
log = structlog.get_logger()


class IndexHandler:
    """Applies events to the records and the search of this node."""

    consumer = nodes.INDEX

    def __init__(self, node: Node, origin: Origin) -> None:
        self.node = node
        self.reader = EventReader(node, origin)

    async def prepare(self, page: Page) -> PageReading:
        """Read events and judge their documents; reject those that cannot be read, or that contradict the rules.

        The values of the reading are `Event`s.
        """
        reading = await self.reader.read(page)
        drafts = [event.draft for event in reading.values.values() if isinstance(event, DatasetEvent) and event.draft]
        if drafts:
            async with self.node.pool.acquire() as conn:
                await facets.prepare(conn, drafts)
        return reading

    async def handle(self, conn: Connection, page: Page) -> HandledPage:
        """Apply events; those of foreign lineages are rejected."""
        parts = await deletion_parts.before(conn, self.consumer, page.events)
        result = await applying.apply(conn, [page.readings[id(event)] for event in page.events])
        if page.ends_snapshot:  # what the snapshot of a newer epoch did not list is gone at the origin
            deletions = await applying.forget(conn, page.origin, before_epoch=page.cursor.epoch)
            log.info("snapshot complete", origin=page.origin, cursor=str(page.cursor), datasets_gone=deletions)
        pages.log_applied(page, applied_count=result.applied_count, ignored_count=result.ignored_count)
        foreign = {id(event) for event in result.foreign}
        foreign_keys = {
            (event.record.collection, event.record.id) for event in result.foreign if isinstance(event, DatasetEvent)
        }
        await deletion_parts.store(conn, self.consumer, page.origin, parts, foreign=foreign_keys)
        rejections = [Rejection(event, FOREIGN) for event in page.events if id(page.readings[id(event)]) in foreign]
        return HandledPage(result.applied_count, result.ignored_count, rejections)

    async def acknowledgeable(self, origin: str, applied_cursor: Cursor) -> Cursor:
        """Return what is applied: searches show it."""
        return applied_cursor


def index_handler(node: Node, origin: Origin) -> Handler:
    """Return what applies the events of an origin to this node's search."""
    return EsgfHandler(node, origin) if isinstance(origin, TopicOrigin) else IndexHandler(node, origin)


async def keep_house(node: Node, stop: asyncio.Event, *, every_seconds: float = 5.0) -> None:
    """Do what the sequencer does at a publishing node: sum tallies up, make partitions ahead."""

    async def step() -> None:
        async with node.pool.acquire() as conn, conn.transaction():
            await outbox.extend(conn)
            await collections.sum_up(conn)
            await facets.remove_forgotten(conn)
        async with node.pool.acquire() as conn:
            await facets.remove_unused(conn)
        await pause(stop, every_seconds)

    await supervision.keep_trying(node.parts, "housekeeping", step, stop)


async def rebuild(
    node: Node, origin: Origin, source: EventSource, *, from_snapshot: bool, on_page: Callable[[int], object]
) -> Cursor:
    """Forget everything of an origin and take it anew, from a snapshot or the log's beginning. Return the cursor.

    What came from other origins stays. FollowedElsewhere while an index node follows; BehindRetention, with nothing
    forgotten, where the log has lost its beginning. The index node, or another rebuild, goes on with what was
    interrupted.
    """
    name, head = await following.head_of(node, origin)
    if not from_snapshot:
        await source.receive(events.START, limit=1, wait=0)
    lock = await following.session(node)
    follower: Follower | None = None
    try:
        if not await nodes.follow_alone(lock, nodes.INDEX, name):
            raise FollowedElsewhere(
                f"a process follows {name} into this database; stop the index node first (`fedstac index-node`)"
            )
        follower = Follower(
            node, index_handler(node, origin), origin, source, origin_name=name, lock=lock, on_page=on_page
        )
        async with node.pool.acquire() as conn:
            async with conn.transaction():  # first: whoever goes on after an interruption begins at the beginning
                await nodes.forget_progress(conn, nodes.INDEX, name)
                await nodes.move(conn, nodes.INDEX, name, events.START, snapshot="" if from_snapshot else None)
            await applying.forget_in_parts(conn, name, before_epoch=BEYOND_ALL)
            await applying.forget(conn, name, before_epoch=BEYOND_ALL)
        if from_snapshot:
            await follower.take_snapshot("")
        quiet_seconds = 0
        while follower.applied_cursor.pos < head.pos and quiet_seconds < REBUILD_PATIENCE_SECONDS:
            quiet_seconds = 0 if await follower.step(1) else quiet_seconds + 1
        await follower.finish()
        return follower.applied_cursor
    finally:
        if follower is not None:
            await follower.drop_beside()
        await following.end_session(lock)
