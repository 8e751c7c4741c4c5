"""The index node: applies the events of one origin or several to its own database, and serves search from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeAlias

import orjson
import structlog

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import collections, facets, nodes, outbox
from fedstac.db.connections import Connection
from fedstac.domain import events
from fedstac.domain.errors import BadRequest, Finding, errors_in
from fedstac.domain.events import Cursor, DatasetEvent, Event
from fedstac.domain.validation import is_fixed
from fedstac.domain.vocabulary import Vocabulary, VocabularyBroken
from fedstac.messaging.origin import Origin, TopicOrigin
from fedstac.messaging.sources import EventSource, NotServed, RawEvent
from fedstac.runtime import supervision
from fedstac.runtime.wakeup import pause
from fedstac.vocabularies import store
from fedstac.vocabularies.registry import Snapshot, Vocabularies, snapshot_of
from fedstac.workers import following
from fedstac.workers.esgf_topic import EsgfHandler
from fedstac.workers.following import (
    BEYOND_ALL,
    FollowedElsewhere,
    Follower,
    HandledPage,
    Handler,
    Page,
    PageReading,
    Rejection,
)

VocabularyName: TypeAlias = tuple[str, str, str | None]  # as an event names it: project, version, digest
REBUILD_PATIENCE_SECONDS = 10  # without an event, though the origin's head is further: a broker may take its time
FOREIGN = "its lineage is another origin's, or its collection is not here"
log = structlog.get_logger()


class IndexHandler:
    """Applies events to the records and the search of this node."""

    consumer = nodes.INDEX

    def __init__(self, node: Node, origin: Origin) -> None:
        self.node = node
        self.origin = origin

    async def prepare(self, page: Page) -> PageReading:
        """Read events and judge their documents; reject those that cannot be read, or that contradict the rules.

        The values of the reading are `Event`s.
        """
        absences = await self._fetch_vocabularies(page)
        reading = await asyncio.to_thread(self._read, page, absences)
        drafts = [event.draft for event in reading.values.values() if isinstance(event, DatasetEvent) and event.draft]
        if drafts:
            async with self.node.pool.acquire() as conn:
                await facets.prepare(conn, drafts)
        return reading

    def _read(self, page: Page, absences: Mapping[VocabularyName, str]) -> PageReading:
        values: dict[int, Event] = {}
        rejections: list[Rejection] = []
        for event in page.events:
            try:
                values[id(event)] = self._judge(event, page.origin, absences)
            except BadRequest as error:
                rejections.append(Rejection(event, error.detail))
            except Exception as error:  # one event's own: nothing but this event is read here
                log.exception("an event cannot be read", origin=page.origin, subject=str(event.get("subject"))[:650])
                rejections.append(Rejection(event, f"this node cannot read it: {error!r}"[:300]))
        return PageReading(values, rejections)

    async def handle(self, conn: Connection, page: Page) -> HandledPage:
        """Apply events; those of foreign lineages are rejected."""
        result = await publication.apply(conn, [page.readings[id(event)] for event in page.events])
        if page.ends_snapshot:  # what the snapshot of a newer epoch did not list is gone at the origin
            deletions = await publication.forget(conn, page.origin, before_epoch=page.cursor.epoch)
            log.info("snapshot complete", origin=page.origin, cursor=str(page.cursor), datasets_gone=deletions)
        if result.applied_count:
            log.info(
                "applied", origin=page.origin, events=result.applied_count, ignored=result.ignored_count,
                cursor=str(page.cursor), traces=events.traces_of(event.get("traceparent") for event in page.events),
            )  # fmt: skip
        foreign = {id(event) for event in result.foreign}
        rejections = [Rejection(event, FOREIGN) for event in page.events if id(page.readings[id(event)]) in foreign]
        return HandledPage(result.applied_count, result.ignored_count, rejections)

    async def acknowledgeable(self, origin: str, applied_cursor: Cursor) -> Cursor:
        """Return what is applied: searches show it."""
        return applied_cursor

    # --- vocabularies ---

    @property
    def vocabularies(self) -> Vocabularies:
        return self.node.checker.vocabularies

    async def _fetch_vocabularies(self, page: Page) -> dict[VocabularyName, str]:
        """Fetch the vocabularies that events name and this node lacks. Return why, of those that cannot be had."""
        absences: dict[VocabularyName, str] = {}
        for name in {name for event in page.events if (name := events.vocabulary_named(event)) is not None}:
            project, version, digest = name
            try:
                snapshot = self.vocabularies.find(project, version) or await self._fetch(name, page.origin)
                self.vocabularies.at(project, version)  # a file here may be damaged
            except (VocabularyBroken, NotServed) as error:
                absences[name] = f"its vocabulary {project} {version} cannot be had: {error}"
                continue
            if digest is not None and snapshot.digest != digest:
                absences[name] = f"{page.origin} judged it with another vocabulary {project} {version}"
        return absences

    async def _fetch(self, name: VocabularyName, origin: str) -> Snapshot:
        """Fetch one version from the origin and install it.

        VocabularyBroken where the origin gives another one, NotServed where it has none. What does not have the event's
        digest is not installed: a version never changes, the right one could not come later.
        """
        project, version, digest = name
        async with self.node.pool.acquire() as conn:
            await self.node.vocabulary_store.look(conn)
        installed = self.vocabularies.find(project, version)
        if installed is not None:
            return installed
        raw = await self.origin.vocabulary(project, version)
        snapshot = snapshot_of(raw)
        if (snapshot.project, snapshot.version) != (project, version):
            raise VocabularyBroken(f"{origin} gave {snapshot.project} {snapshot.version} for it")
        if digest is not None and snapshot.digest != digest:
            raise VocabularyBroken(f"{origin} gave one with the sha-256 {snapshot.digest} for {digest[:64]}")
        async with self.node.pool.acquire() as conn:
            await store.install(conn, raw, origin)
            await self.node.vocabulary_store.look(conn)  # what stays here judges: another follower may have been first
        installed = self.vocabularies.find(project, version)
        if installed is None:
            raise VocabularyBroken("what the database keeps under this name cannot be used")
        log.info("vocabulary fetched", origin=origin, project=project, version=version, digest=installed.digest)
        return installed

    # --- judging ---

    def _judge(self, raw: RawEvent, origin: str, absences: Mapping[VocabularyName, str]) -> Event:
        """Read an event, and judge its document with the very version that it was published under."""
        name = events.vocabulary_named(raw)
        if name is not None and name in absences:
            raise BadRequest(absences[name])
        vocabulary = self.vocabularies.at(*name[:2]) if name else None
        event = events.read(raw, vocabulary)
        if isinstance(event, DatasetEvent) and event.draft is not None:
            findings = self._findings(raw, event.record.collection, origin, vocabulary)
            excuses = {(rule, place) for rule, place in orjson.loads(event.record.cv_excused or "[]")}
            # what is fixed is excused for nobody: no publishing node takes it
            errors = [
                finding
                for finding in errors_in(findings)
                if is_fixed(finding) or (finding.rule, finding.pointer) not in excuses
            ]
            if errors:
                where = errors[0].pointer or "the document"
                rules = f"{name[0]} {name[1]}" if name else "what every item has to be"
                raise BadRequest(f"it contradicts {rules}: {where}: {errors[0].message}")
        return event

    def _findings(
        self, raw: RawEvent, collection: str, origin: str, vocabulary: Vocabulary | None
    ) -> tuple[Finding, ...]:
        """Check a document as everywhere. One that the rules fail on is parked too, and does not block the others."""
        try:
            return self.node.checker.lasting(raw["data"]["document"], collection, vocabulary)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            log.exception("the rules fail on a document", origin=origin, collection=collection)
            raise BadRequest(f"the rules here fail on it: {error!r}"[:300]) from error


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
        async with node.pool.acquire() as conn, conn.transaction():
            await publication.forget(conn, name, before_epoch=BEYOND_ALL)
            await nodes.forget_progress(conn, nodes.INDEX, name)
            await nodes.move(conn, nodes.INDEX, name, events.START, snapshot="" if from_snapshot else None)
        if from_snapshot:
            await follower.take_snapshot("")
        quiet_seconds = 0
        while follower.applied_cursor.pos < head.pos and quiet_seconds < REBUILD_PATIENCE_SECONDS:
            quiet_seconds = 0 if await follower.step(1) else quiet_seconds + 1
        return follower.applied_cursor
    finally:
        if follower is not None:
            await follower.drop_ahead()
        lock.terminate()
