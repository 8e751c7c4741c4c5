"""Reading events: what every consumer of a fedstac node does before it makes anything of them.

Each event is read, and its document judged again with the very version of the vocabulary that it was published under. A
version that is not here is fetched from the origin, and checked by its digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from fedstac.bootstrap import Node
from fedstac.domain import events
from fedstac.domain.events import Event, VocabularyName
from fedstac.domain.vocabulary import VocabularyBroken
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import NotServed
from fedstac.vocabularies import judging, store
from fedstac.vocabularies.judging import EventBatch, JudgeLost, Objection
from fedstac.vocabularies.registry import Snapshot, Vocabularies, snapshot_of
from fedstac.workers.pages import LONG_PAGE, Page, PageReading, Rejection

log = structlog.get_logger()


class EventReader:
    """Reads the events of one origin and judges them with their own vocabularies."""

    def __init__(self, node: Node, origin: Origin) -> None:
        self.node = node
        self.origin = origin

    async def read(self, page: Page) -> PageReading:
        """Read the events of a page; reject those that cannot be read, or that contradict the rules.

        The values of the reading are `Event`s.
        """
        names = {name for event in page.events if (name := events.vocabulary_named(event)) is not None}
        absences = await self._fetch_vocabularies(page, names)
        batch = EventBatch(page.origin, page.events, absences)
        judgements = await asyncio.to_thread(self._judge, batch, names - absences.keys())
        values: dict[int, Event] = {}
        rejections: list[Rejection] = []
        for event, judgement in zip(page.events, judgements, strict=True):
            if not isinstance(judgement, Objection):
                values[id(event)] = judgement
                continue
            rejections.append(Rejection(event, judgement.reason))
            if judgement.trace is not None:
                subject = str(event.get("subject"))[:650]
                log.error("an event cannot be read", origin=page.origin, subject=subject, exception=judgement.trace)
        return PageReading(values, rejections)

    def _judge(self, batch: EventBatch, names: Collection[VocabularyName]) -> list[Event | Objection]:
        """Judge events, those of a long page in the process beside this one: there may be more of them.

        names: the vocabularies that events name, but for the absences.
        """
        judge = self.node.judge
        if len(batch.events) >= LONG_PAGE and judge.is_ready():
            try:
                snapshots = (self.vocabularies.find(name.project, name.version) for name in names)
                return judge.judge(batch, [snapshot for snapshot in snapshots if snapshot is not None])
            except JudgeLost as error:
                log.warning("a page is judged here, not beside", origin=batch.origin, reason=str(error))
        return judging.judge(self.node.checker, batch)

    # --- vocabularies ---

    @property
    def vocabularies(self) -> Vocabularies:
        return self.node.checker.vocabularies

    async def _fetch_vocabularies(self, page: Page, names: Collection[VocabularyName]) -> dict[VocabularyName, str]:
        """Fetch the vocabularies that events name and this node lacks. Return why, of those that cannot be had."""
        absences: dict[VocabularyName, str] = {}
        for name in names:
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
