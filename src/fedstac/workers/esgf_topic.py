"""The index node that follows a topic in ESGF's format: it applies the steps of its events to the records here.

No fedstac node is behind such a topic. So there is no snapshot, no vocabulary in an event, no state that comes again: a
patch that came before its item is kept until the item comes, and what came twice is left out (docs/adr/0026).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import orjson
import structlog

from fedstac import applying
from fedstac.bootstrap import Node
from fedstac.db import collections, facets, nodes, parked, records
from fedstac.db import esgf as kept
from fedstac.db.connections import Connection
from fedstac.db.esgf import WaitingPatch
from fedstac.db.parked import SubjectPlace
from fedstac.domain import documents, esgf, events
from fedstac.domain.errors import BadRequest, Problem
from fedstac.domain.esgf import DatasetEdition, ItemStep
from fedstac.domain.events import CollectionEvent, Cursor, DatasetEvent
from fedstac.domain.model import Judge, Lineage, Record
from fedstac.domain.vocabulary import Vocabulary, VocabularyBroken
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import RawEvent
from fedstac.workers.pages import HandledPage, Page, PageReading, Rejection

WAITS: Final = "it came before the item that it changes; it is kept and applied when that comes"
MIXED: Final = "its dataset is one that a fedstac node announces; what another program says of it has no place there"
FOREIGN: Final = "its lineage is another origin's"
FAULTS_OF_RULES: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NamedStep:
    """A step with the event that it was read from, the lineage of its item, and the item of a POST, judged."""

    event: RawEvent
    step: ItemStep
    lineage: str
    vocabulary: Vocabulary | None
    posted: DatasetEdition | None = None

    @property
    def subject(self) -> str:
        return f"{self.step.collection}/{self.step.item_id}"


@dataclass(slots=True)
class PageOutcome:
    """What a page's steps come to."""

    editions: dict[str, DatasetEdition] = field(default_factory=dict)  # by subject: those that changed
    claims: dict[str, DatasetEdition] = field(default_factory=dict)  # the last of each that claimed to be the latest
    event_ids: dict[str, str] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    waiting: list[WaitingPatch] = field(default_factory=list)
    arrived: set[str] = field(default_factory=set)  # subjects for which nothing waits any more
    revived: list[SubjectPlace] = field(default_factory=list)  # patches that waited for them
    applied: list[NamedStep] = field(default_factory=list)
    past: list[NamedStep] = field(default_factory=list)  # what is here already
    decided_steps: list[NamedStep] = field(default_factory=list)  # those, and the rejected ones; not what waits


class EsgfHandler:
    """Applies ESGF's events to the records and the search of this node."""

    consumer = nodes.INDEX

    def __init__(self, node: Node, origin: Origin) -> None:
        self.node = node

    async def prepare(self, page: Page) -> PageReading:
        """Read events, judge the items of POSTs by this node's newest vocabularies; reject what is not valid.

        The values of the reading are `NamedStep`s.
        """
        async with self.node.pool.acquire() as conn:
            await self.node.vocabulary_store.look(conn)
        rejections: list[Rejection] = []
        steps: dict[int, NamedStep] = {}
        for event in page.events:
            try:
                steps[id(event)] = self._read(event, page.origin)
            except Problem as error:
                rejections.append(Rejection(event, error.detail))
            except (VocabularyBroken, *FAULTS_OF_RULES) as error:
                log.exception("an event cannot be read", origin=page.origin, subject=str(event.get("subject"))[:650])
                rejections.append(Rejection(event, f"this node cannot read it: {error!r}"[:300]))
        judged_with = {(one.step.collection, one.vocabulary.version) for one in steps.values() if one.vocabulary}
        for project, version in sorted(judged_with):
            await self.node.vocabulary_store.keep(self.node.pool, project, version)
        drafts = [one.posted.draft for one in steps.values() if one.posted and one.posted.draft]
        if drafts:
            async with self.node.pool.acquire() as conn:
                await facets.prepare(conn, drafts)
        return PageReading(steps, rejections)

    def _read(self, event: RawEvent, origin: str) -> NamedStep:
        step = _step(event)
        vocabulary = self.node.checker.vocabularies.current(step.collection)
        name = esgf.name(step, vocabulary)
        posted = esgf.publish(step, self.node.checker, vocabulary, origin) if step.item is not None else None
        return NamedStep(event, step, name.lineage, vocabulary, posted)

    async def handle(self, conn: Connection, page: Page) -> HandledPage:
        """Apply steps to the records as they are, under their locks; reject what cannot be applied, or not yet."""
        steps: list[NamedStep] = [page.readings[id(event)] for event in page.events]
        if not steps:
            return HandledPage(0, 0)
        await self._make_collections(conn, steps, page.origin)
        here = await records.hold_leaves(conn, sorted({each.step.collection for each in steps}))
        rejections = [
            Rejection(each.event, f"there is no collection {each.step.collection[:128]} here, and no vocabulary for it")
            for each in steps if each.step.collection not in here
        ]  # fmt: skip
        steps = [each for each in steps if each.step.collection in here]
        repeats = await kept.find_repeats(conn, self.consumer, page.origin, {
            str(each.event["sameness"]): each.step.event_id for each in steps if "sameness" in each.event
        })  # fmt: skip
        once = _once(steps, repeats)
        repeat_count, steps = len(steps) - len(once), once
        locked = await records.lock(conn, {each.lineage: page.origin for each in steps})
        lineages = await records.load(conn, locked, [each.step.item_id for each in steps])
        arriving = sorted({each.subject for each in steps if each.posted})
        waiting = await kept.waiting(conn, self.consumer, page.origin, arriving)
        outcome = await asyncio.to_thread(_fold, steps, lineages, waiting, judge=self.node.checker, origin=page.origin)
        foreign = await self._write(conn, page.origin, outcome)
        rejections += [Rejection(each.event, FOREIGN) for each in steps if each.subject in foreign]
        applied = [each for each in outcome.applied if each.subject not in foreign]
        if applied:
            log.info(
                "applied", origin=page.origin, events=len(applied), ignored=len(outcome.past) + repeat_count,
                cursor=str(page.cursor), traces=events.traces_of(each.event.get("traceparent") for each in applied),
            )  # fmt: skip
        return HandledPage(len(applied), len(outcome.past) + repeat_count, [*rejections, *outcome.rejections])

    async def _write(self, conn: Connection, origin: str, outcome: PageOutcome) -> set[str]:
        """Write what a page comes to. Return the subjects that another origin has."""
        datasets = [
            DatasetEvent(outcome.event_ids[subject], None, edition.record, edition.draft)
            for subject, last in outcome.editions.items()
            for edition in ((outcome.claims[subject],) if subject in outcome.claims else ()) + (last,)
        ]
        result = await applying.apply(conn, datasets)
        foreign = {
            f"{event.record.collection}/{event.record.id}"
            for event in result.foreign
            if isinstance(event, DatasetEvent)
        }
        await kept.wait(conn, self.consumer, origin, outcome.waiting)
        await kept.end_waiting(conn, self.consumer, origin, sorted(outcome.arrived - foreign))
        await parked.unpark(conn, self.consumer, origin, outcome.revived)
        await kept.remember(conn, self.consumer, origin, {
            str(each.event["sameness"]): int(each.event["pos"])
            for each in outcome.decided_steps
            if "sameness" in each.event
        })  # fmt: skip
        return foreign

    async def _make_collections(self, conn: Connection, steps: Sequence[NamedStep], origin: str) -> None:
        """Make the collections of projects with a vocabulary here: ESGF announces none."""
        projects = {each.step.collection for each in steps if each.vocabulary is not None}
        missing = sorted(projects - set(await collections.names(conn))) if projects else []
        if missing:
            await applying.apply(conn, [_collection(project, origin) for project in missing])
            log.info("collections made for the projects of a topic", origin=origin, collections=missing)

    async def acknowledgeable(self, origin: str, applied_cursor: Cursor) -> Cursor:
        """Return what is applied: searches show it."""
        return applied_cursor


def _step(event: RawEvent) -> ItemStep:
    """Return the step of an event. Problem where the message is none."""
    if "fault" in event:
        raise BadRequest(str(event["fault"]))
    return esgf.read(event)


def _once(steps: Sequence[NamedStep], repeats: set[str]) -> list[NamedStep]:
    """Return the steps less those that came already, in this page or before."""
    samenesses, result = set(repeats), []
    for each in steps:
        sameness = each.event.get("sameness")
        if sameness is None or sameness not in samenesses:
            result.append(each)
        if sameness is not None:
            samenesses.add(sameness)
    return result


def _fold(
    steps: Sequence[NamedStep], lineages: Mapping[str, Lineage], waiting: Sequence[WaitingPatch], *, judge: Judge,
    origin: str,
) -> PageOutcome:  # fmt: skip
    """Return what steps come to, each applied to what those before it leave."""
    outcome = PageOutcome()
    current = {f"{one.collection}/{one.id}": one for lineage in lineages.values() for one in lineage.records.values()}
    patches: dict[str, list[WaitingPatch]] = defaultdict(list)
    for patch in waiting:
        patches[patch.subject].append(patch)
    revived: set[str] = set()
    for each in steps:
        record = current.get(each.subject)
        if _sameness(each.event) in revived:
            outcome.past.append(each)
        elif record is not None and record.origin != origin:
            outcome.rejections.append(Rejection(each.event, FOREIGN))
        elif each.posted is None and not each.step.deletes and (record is None or record.document is None):
            text = orjson.dumps(each.event).decode()
            patch = WaitingPatch(each.subject, _sameness(each.event), int(each.event["pos"]), text)
            if all(patch.sameness != other.sameness for other in patches[each.subject]):
                patches[each.subject].append(patch)
                outcome.waiting.append(patch)
            outcome.rejections.append(Rejection(each.event, WAITS))
        else:
            steps_now = [each]
            if each.posted is not None:
                arrived_patches = patches.pop(each.subject, [])
                revived |= {patch.sameness for patch in arrived_patches}
                steps_now += [_revived(patch, each, outcome) for patch in arrived_patches]
                outcome.arrived.add(each.subject)
                outcome.waiting = [patch for patch in outcome.waiting if patch.subject != each.subject]
            for one in steps_now:
                _apply(one, current, outcome, judge, origin)
    return outcome


def _sameness(event: RawEvent) -> str:
    return str(event.get("sameness") or event["id"])


def _revived(patch: WaitingPatch, posted: NamedStep, outcome: PageOutcome) -> NamedStep:
    """Return a patch that waited, just behind the item that came. What came later may have a lower place."""
    event = orjson.loads(patch.event)
    outcome.revived.append(SubjectPlace(event["subject"], event["epoch"], event["data"]["seq"]))
    outcome.rejections = [
        rejection
        for rejection in outcome.rejections
        if (rejection.reason, _sameness(rejection.event)) != (WAITS, patch.sameness)
    ]
    if event["epoch"] == esgf.EPOCH:
        event["data"]["seq"] = posted.step.seq + 1
    return replace(posted, event=event, step=_step(event), posted=None)


def _apply(
    each: NamedStep, current: dict[str, Record], outcome: PageOutcome, judge: Judge, origin: str
) -> None:  # fmt: skip
    """Apply one step. What it cannot be applied to stays as it is."""
    record, step = current.get(each.subject), each.step
    outcome.decided_steps.append(each)
    if record is not None and not _is_news(each, record):
        outcome.past.append(each)
        return
    if record is not None and step.facts is None and record.epoch > esgf.EPOCH:
        newest = {**each.event, "epoch": record.epoch, "data": {**each.event["data"], "seq": record.seq + 1}}
        outcome.rejections.append(Rejection(newest, MIXED))
        return
    try:
        if each.posted is not None:
            edition = each.posted
            if record is not None and step.facts is None:  # over a tombstone
                edition = replace(edition, record=replace(edition.record, seq=max(step.seq, record.seq + 1)))
        elif record is None:
            edition = esgf.tombstone(step, each.vocabulary, origin)
        else:
            edition = esgf.amend(record, step, judge, each.vocabulary)
    except Problem as error:
        outcome.rejections.append(Rejection(each.event, error.detail))
        return
    except FAULTS_OF_RULES as error:
        log.exception("the rules fail on an event", subject=each.subject)
        outcome.rejections.append(Rejection(each.event, f"the rules here fail on it: {error!r}"[:300]))
        return
    if step.facts is not None and edition.record.digest.hex() != step.facts.digest:
        log.error("a dataset is not as its origin has it: an event before this one is missing", subject=each.subject)
    before = outcome.editions.get(each.subject)
    draft = edition.draft or (before.draft if before and edition.record.document is not None else None)
    current[each.subject] = edition.record
    outcome.editions[each.subject] = DatasetEdition(edition.record, draft)
    if edition.record.claims_latest:  # counts also where a later step of the page gives it up (ADR 27)
        outcome.claims[each.subject] = outcome.editions[each.subject]
    outcome.event_ids[each.subject] = step.event_id
    outcome.applied.append(each)


def _is_news(each: NamedStep, record: Record) -> bool:
    """Return whether a step may change a record that is here.

    ESGF's services refuse a POST of what is there, so that it stays as its patches left it.
    """
    if each.step.facts is not None:
        return not record.includes(each.step.epoch, each.step.seq)
    return each.posted is None or record.document is None


def _collection(project: str, origin: str) -> CollectionEvent:
    """Return the announcement of a project's collection, as plain as STAC allows."""
    document = {
        "type": "Collection", "stac_version": "1.1.0", "stac_extensions": [], "id": project, "title": project,
        "description": f"{project}: datasets that {origin} announces.", "license": "other",
        "extent": {
            "spatial": {"bbox": [[-180.0, -90.0, 180.0, 90.0]]},
            "temporal": {"interval": [["0001-01-01T00:00:00Z", None]]},
        },
        "links": [],
    }  # fmt: skip
    return CollectionEvent(
        event_id="", cursor=None, change="set", collection=project, origin=origin, epoch=1, seq=1,
        document=orjson.dumps(document).decode(), digest=documents.digest(document),
    )  # fmt: skip
