"""Reading events: what every consumer of a fedstac node does before it makes anything of them.

Each event is read, and its document judged again with the very version of the vocabulary that it was published under. A
version that is not here is fetched from the origin, and checked by its digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeAlias

import orjson
import structlog

from fedstac.bootstrap import Node
from fedstac.domain import events
from fedstac.domain.errors import BadRequest, Finding, errors_in
from fedstac.domain.events import DatasetEvent, Event
from fedstac.domain.validation import is_fixed
from fedstac.domain.vocabulary import Vocabulary, VocabularyBroken
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import NotServed, RawEvent
from fedstac.vocabularies import store
from fedstac.vocabularies.registry import Snapshot, Vocabularies, snapshot_of
from fedstac.workers.following import Page, PageReading, Rejection

VocabularyName: TypeAlias = tuple[str, str, str | None]  # as an event names it: project, version, digest
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
        absences = await self._fetch_vocabularies(page)
        return await asyncio.to_thread(self._read, page, absences)

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
