"""The replica node: takes the events of one origin or several, and keeps copies of the files that its policy wants.

Reading and judging an event is what an index node does. What follows from it is decided with the policy as it is then,
and stored in the transaction that moves the cursor: files to be fetched, and files that have to go. Workers do both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import orjson
import structlog

from fedstac.bootstrap import Node, Part
from fedstac.db import nodes, purging
from fedstac.db.connections import Connection
from fedstac.db.replica import removals
from fedstac.db.replica.datasets import DatasetKey, NewestEvent
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import Cursor, DatasetEvent
from fedstac.domain.replication.dataset_files import DatasetFile, digest_of, files_of, total_bytes
from fedstac.domain.replication.policy import NO_RULE, ReplicaPolicy
from fedstac.domain.replication.reacting import EventState
from fedstac.messaging.origin import Origin, TopicOrigin
from fedstac.messaging.sources import NotServed, RawEvent
from fedstac.replication import intake, places
from fedstac.replication.applying import state_of
from fedstac.replication.intake import JudgedEvent
from fedstac.replication.policy_file import PolicyFile
from fedstac.settings import Misconfigured, Settings
from fedstac.workers import (
    deletion_parts,
    pages,
    replica_announcing,
    replica_identity,
    replica_policy,
    replica_removals,
    replica_transfers,
    replica_watching,
)
from fedstac.workers.event_reading import EventReader
from fedstac.workers.pages import HandledPage, Handler, Page, PageReading, Rejection
from fedstac.workers.replica_removals import Remover

FOREIGN: Final = "its dataset is another origin's here"
PARTS: Final = (  # beside the followers
    replica_policy.PART, replica_transfers.PART, replica_announcing.PART, replica_removals.PART
)  # fmt: skip
log = structlog.get_logger()


class ReplicaHandler:
    """Stores what the events of one origin make of this node's copies."""

    consumer = nodes.REPLICA

    def __init__(self, node: Node, origin: Origin, policy: Callable[[], ReplicaPolicy]) -> None:
        self.node = node
        self.reader = EventReader(node, origin)
        self._policy = policy

    async def prepare(self, page: Page) -> PageReading:
        """Read events as an index node does, and decide by the policy; reject what cannot be read or judged.

        The values of the reading are `JudgedEvent`s; events of collections have none.
        """
        reading = await self.reader.read(page)
        return await asyncio.to_thread(self._decide, page, reading)

    def _decide(self, page: Page, reading: PageReading) -> PageReading:
        policy = self._policy()
        values: dict[int, tuple[JudgedEvent, str]] = {}
        rejections = list(reading.rejections)
        for raw in page.events:
            event = reading.values.get(id(raw))
            if not isinstance(event, DatasetEvent):
                continue
            try:
                values[id(raw)] = (self._judge(raw, event, policy, page.cursor), policy.digest)
            except BadRequest as error:
                rejections.append(Rejection(raw, error.detail))
            except Exception as error:  # one event's own: nothing but this event is looked at here
                log.exception("a policy fails on an event", origin=page.origin, subject=str(raw.get("subject"))[:650])
                rejections.append(Rejection(raw, f"this node cannot decide on it: {error!r}"[:300]))
        return PageReading(values, rejections)

    def _judge(self, raw: RawEvent, event: DatasetEvent, policy: ReplicaPolicy, cursor: Cursor) -> JudgedEvent:
        record = event.record
        document = raw["data"].get("document") if record.document is not None else None
        files: tuple[DatasetFile, ...] = files_of(document) if document is not None else ()
        state = EventState(record.state.value)
        newest = NewestEvent(
            key=DatasetKey(record.collection, record.id), origin=record.origin, lineage=record.lineage,
            epoch=record.epoch, seq=record.seq, pos=(event.cursor or cursor).pos, event_id=event.event_id,
            state=state, latest=record.claims_latest,
            retraction=orjson.loads(record.retraction) if record.retraction is not None else None,
            document=record.document, size=total_bytes(files), files=len(files),
            digest=digest_of(files) if document is not None else None,
        )  # fmt: skip
        decision = (
            policy.decide(document, record.collection, state_of(state, record.retraction), latest=record.claims_latest)
            if document is not None
            else NO_RULE
        )
        try:
            return intake.judge(newest, decision)
        except ValueError as error:
            raise BadRequest(f"its retraction cannot be read: {error}") from error

    async def handle(self, conn: Connection, page: Page) -> HandledPage:
        """Store what events make of datasets; those of another origin's datasets are rejected."""
        readings = [page.readings[id(event)] for event in page.events if id(event) in page.readings]
        parts = await deletion_parts.before(conn, self.consumer, page.events)
        result = await intake.take(
            conn, [each for each, _ in readings], policy_digest=readings[-1][1] if readings else ""
        )
        purged = [each.newest.key for each, _ in readings if each.newest.state is EventState.PURGED]
        if purged:
            await purging.purge_replicas(conn, [(key.collection, key.id) for key in purged], origin=page.origin)
        if page.ends_snapshot:  # what the snapshot of a newer epoch did not list may be lost at the origin
            count = await intake.restrict_unlisted(
                conn, page.origin, before_epoch=page.cursor.epoch, pos=page.cursor.pos
            )
            log.info("snapshot complete", origin=page.origin, cursor=str(page.cursor), datasets_restricted=count)
        pages.log_applied(page, applied_count=result.applied_count, ignored_count=result.ignored_count)
        foreign = {id(newest) for newest in result.foreign}
        foreign_keys = {(newest.key.collection, newest.key.id) for newest in result.foreign}
        await deletion_parts.store(conn, self.consumer, page.origin, parts, foreign=foreign_keys)
        rejections = [
            Rejection(event, FOREIGN) for event in page.events
            if id(event) in page.readings and id(page.readings[id(event)][0].newest) in foreign
        ]  # fmt: skip
        collections = len(page.events) - len(readings)
        return HandledPage(result.applied_count, result.ignored_count + collections, rejections)

    async def acknowledgeable(self, origin: str, applied_cursor: Cursor) -> Cursor:
        """Return the place before the earliest event whose removal is not done: files are served until then."""
        async with self.node.pool.acquire() as conn:
            open_place = await removals.oldest_open(conn, origin)
        if open_place is None:
            return applied_cursor
        return min(applied_cursor, Cursor(open_place.epoch, max(open_place.pos - 1, 0)))


def check(settings: Settings) -> None:
    """Refuse settings that are missing or wrong before anything runs: Misconfigured, PolicyBroken."""
    for value, variable, meaning in (
        (settings.replica_policy, "FEDSTAC_REPLICA_POLICY", "the file that says what it copies from where"),
        (settings.replica_folder, "FEDSTAC_REPLICA_FOLDER", "the folder of its files"),
        (settings.replica_url, "FEDSTAC_REPLICA_URL", "the address under which others find its files"),
    ):
        if not value:
            raise Misconfigured(f"a replica node needs {variable}: {meaning}")
    if not Path(settings.replica_folder).is_dir():
        raise Misconfigured(
            f"FEDSTAC_REPLICA_FOLDER: there is no folder {settings.replica_folder}; make it, or mount it"
        )
    replica_identity.token_source(settings)


def parts(settings: Settings) -> tuple[Callable[[Node, Origin], Handler], Sequence[Part]]:
    """Return what makes the handlers of the followers, and what runs beside them. All share one policy file."""
    check(settings)
    policy_file = PolicyFile(settings.replica_policy)

    def policy() -> ReplicaPolicy:
        return policy_file.current

    def folders() -> Mapping[str, Path]:
        return places.folders_of(settings, policy())

    async def remove(node: Node, stop: asyncio.Event) -> None:
        await Remover(node, folders).run(stop)

    async def watch(node: Node, stop: asyncio.Event) -> None:
        await replica_watching.Watch(node, folders, policy_alert=lambda: policy_file.alert).run(stop)

    return partial(replica_handler, policy=policy), (
        Part(replica_policy.PART, partial(replica_policy.run, policy_file=policy_file)),
        Part(replica_transfers.PART, partial(replica_transfers.run, policy_file=policy_file)),
        Part(replica_announcing.PART, partial(replica_announcing.run, policy_file=policy_file)),
        Part(replica_removals.PART, remove),
        Part(replica_watching.PART, watch),
    )


def replica_handler(node: Node, origin: Origin, policy: Callable[[], ReplicaPolicy]) -> Handler:
    """Return what stores the events of an origin for this node's copies. NotServed for a topic of ESGF."""
    if isinstance(origin, TopicOrigin):
        raise NotServed("a replica node follows fedstac nodes; a topic of ESGF has no API to announce replicas to")
    return ReplicaHandler(node, origin, policy)
