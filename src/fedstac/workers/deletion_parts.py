"""A consumer's parts of deletions: what they are, and the reports to the origin, until that has them.

What is to be reported is stored in the transaction that applies the event. So it survives what ends this process, and
an origin that is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from fedstac.bootstrap import Node
from fedstac.db import nodes, own_reports
from fedstac.db.connections import Connection
from fedstac.db.own_reports import KnownState, OwnPart, OwnReport
from fedstac.db.replica import parts as replica_parts
from fedstac.domain import events
from fedstac.domain.deletion import DependencyState
from fedstac.domain.deletion_reports import DependencyReport
from fedstac.domain.events import Cursor
from fedstac.domain.model import GONE, WITHOUT_DOCUMENT, State
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import RawEvent, SourceAway, SourceRefused
from fedstac.messaging.statuses import StatusSender
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.supervision import SendTrouble

AT_ONCE, MOST_BATCHES = 250, 40  # reports of one request; requests before events are looked for again
LOOK_SECONDS, SOON_SECONDS = 1.0, 60.0
SETTLING_SHARE = 20  # of the time, one part in so many is for finding out what is done
LONGEST_RETRY_SECONDS = 60.0  # of an origin that does not take reports
TOPIC_REST_SECONDS = 30.0  # for which a topic that takes none is left alone
UNREPORTED = {
    SourceAway: "the source does not take reports on deletions just now; trying again",
    SourceRefused: "the source refuses reports on deletions; see to this node's token and name",
}
DELETING = (State.MARKED, *GONE)  # states that marks and deletions lead to
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DeletionEvent:
    """The newest event of a dataset in a page, where that marks or deletes it. mark_id: of the mark, if it is one."""

    key: tuple[str, str]  # collection and id
    state: State
    epoch: int
    seq: int
    mark_id: UUID | None


def _deletion_events(page: Sequence[RawEvent]) -> list[DeletionEvent]:
    """Return what the events of a page mark or delete. They were read before; what is redacted marks nothing here."""
    if not any(isinstance(data := event.get("data"), dict) and data.get("state") in DELETING for event in page):
        return []  # as nearly always
    newest: dict[tuple[str, str], RawEvent] = {}
    for event in page:
        if event["type"].startswith(events.COLLECTION_PREFIX):
            continue
        data = event["data"]
        if data.get("redacted") is True and State(data["state"]) not in GONE:
            continue  # a later event deletes the dataset
        key = (data["collection"], data["id"])
        if key not in newest or _place(newest[key]) < _place(event):
            newest[key] = event
    return [
        DeletionEvent(key, state, *_place(event), mark_id=_mark_id(event))
        for key, event in newest.items()
        if (state := State(event["data"]["state"])) in DELETING
    ]


def _place(event: RawEvent) -> tuple[int, int]:
    return event["epoch"], event["data"]["seq"]


def _mark_id(event: RawEvent) -> UUID | None:
    try:
        return UUID(event["id"]) if event["type"] == events.MARKED else None
    except (LookupError, ValueError):
        return None


async def before(conn: Connection, consumer: str, page: Sequence[RawEvent]) -> PartsBefore:
    """Return what a page of events marks or deletes, and how the datasets are known here before it is applied."""
    deletion_events = _deletion_events(page)
    if not deletion_events:
        return PartsBefore((), {})
    keys = [each.key for each in deletion_events]
    states = await (own_reports.known_replicas if consumer == nodes.REPLICA else own_reports.known_records)(conn, keys)
    return PartsBefore(deletion_events, states)


@dataclass(frozen=True, slots=True)
class PartsBefore:
    """What a page marks or deletes, and how the datasets were known before, by collection and id."""

    deletion_events: Sequence[DeletionEvent]
    states: Mapping[tuple[str, str], KnownState]


async def store(
    conn: Connection, consumer: str, origin: str, parts: PartsBefore, *, foreign: Container[tuple[str, str]]
) -> None:
    """Store this consumer's parts of the deletions that a page marked, in the transaction that applied it.

    An index node has done its part when the event is applied; it had nothing to do where it never had the dataset. A
    replica node has done it when the files are where they shall be: that is found out later. A mark that was not seen
    because the deletion came first is reported by the name of the dataset.
    """
    own_parts: list[OwnPart] = []
    ended: list[tuple[str, str]] = []
    for each in parts.deletion_events:
        record = parts.states.get(each.key)
        is_old = record is not None and (record.epoch, record.seq) >= (each.epoch, each.seq)
        if is_old or each.key in foreign or (record is not None and record.origin != origin):
            continue
        is_marked = each.state is State.MARKED
        had_it = record is not None and record.state not in WITHOUT_DOCUMENT
        if not is_marked and record is not None and record.state == State.MARKED:
            ended.append(each.key)  # its part was due with the mark
        elif is_marked or had_it:
            index_outcome = DependencyState.OK if had_it else DependencyState.NOTHING_TO_DO
            outcome = None if consumer == nodes.REPLICA else index_outcome
            own_parts.append(OwnPart(*each.key, each.mark_id, is_marked, outcome))
    await own_reports.put(conn, consumer, origin, own_parts)
    if ended:
        await own_reports.end_marks(conn, consumer, origin, ended)


class PartReporter:
    """Sends what one consumer has to report to one origin, beside the pages that it applies.

    topic: where it acknowledges, if not over HTTP. writing: whoever writes parts holds it, so that what is stored of an
    answer is of the part that was reported.
    """

    def __init__(
        self, node: Node, consumer: str, origin: Origin, topic: StatusSender | None = None, *,
        writing: asyncio.Lock | None = None,
    ) -> None:  # fmt: skip
        self._node, self._consumer, self._origin, self._topic = node, consumer, origin, topic
        self._writing = writing or asyncio.Lock()
        self._name = nodes.reporter(node.settings.node, consumer)
        self._look_at = self._settle_at = 0.0
        self._topic_away_until = 0.0  # by time.monotonic; 0: it took the last reports
        self.is_waiting = False  # the origin is asked soon whether it has what it was sent
        self._trouble = SendTrouble(node.parts, UNREPORTED, most=LONGEST_RETRY_SECONDS)

    async def report(self, origin_name: str, acknowledged: Cursor, *, part: str, at_once: bool = False) -> None:
        """Send the reports that are due, once in a while; what the origin does not take is tried again.

        acknowledged: the last place that the origin was told, which a topic's message repeats. at_once: a page was
        applied just now.
        """
        now = time.monotonic()
        if now < self._look_at and (self._trouble.is_on or not at_once):
            return
        self._look_at = now + LOOK_SECONDS
        if self._consumer == nodes.REPLICA and now >= self._settle_at:
            await self._settle(origin_name)
        try:
            for _ in range(MOST_BATCHES):
                if not await self._send_some(origin_name, acknowledged):
                    break
            if self._topic is not None:
                async with self._node.pool.acquire() as conn:
                    self.is_waiting = await own_reports.are_soon_due(conn, self._consumer, origin_name, SOON_SECONDS)
        except (SourceAway, SourceRefused) as error:
            self._look_at = time.monotonic() + self._trouble.begin(part, error)
            return
        self._trouble.end(part)

    async def _settle(self, origin_name: str) -> None:
        """Find out which parts of a replica node are done; where very many are open, less often."""
        begin = time.monotonic()
        async with self._writing, self._node.pool.acquire() as conn:
            await replica_parts.settle(conn, origin_name)
        end = time.monotonic()
        self._settle_at = end + max(LOOK_SECONDS, SETTLING_SHARE * (end - begin))

    async def _send_some(self, origin_name: str, acknowledged: Cursor) -> bool:
        """Send some reports. Return False where none is due."""
        async with self._node.pool.acquire() as conn:
            reports = await own_reports.due(conn, self._consumer, origin_name, AT_ONCE)
        if not reports:
            return False
        by_topic = [
            each for each in reports if self._topic is not None and each.event_id is not None and each.sends % 2 == 0
        ]  # fmt: skip
        has_topic = self._topic is not None
        if by_topic and not await self._reach_topic(origin_name, acknowledged, by_topic):
            by_topic, has_topic = [], False
        if by_http := [each for each in reports if each not in by_topic]:
            await self._send_by_http(origin_name, by_http, has_topic=has_topic)
        return True

    async def _reach_topic(self, origin_name: str, acknowledged: Cursor, reports: Sequence[OwnReport]) -> bool:
        """Send reports over the topic. Return False where it takes none: it is left alone for a while then."""
        if time.monotonic() < self._topic_away_until:
            return False
        try:
            await self._send_by_topic(origin_name, acknowledged, reports)
        except (SourceAway, SourceRefused) as error:
            if not self._topic_away_until:
                log.warning("a topic takes no reports on deletions; they go over HTTP", reason=str(error))
            self._topic_away_until = time.monotonic() + TOPIC_REST_SECONDS
            return False
        self._topic_away_until = 0.0
        return True

    async def _send_by_topic(self, origin_name: str, acknowledged: Cursor, reports: Sequence[OwnReport]) -> None:
        """Send reports over the topic. It answers nothing: the origin is asked over HTTP later whether it has them."""
        assert self._topic is not None
        bodies = [self._report_of(each).as_json() for each in reports]
        await self._topic.acknowledge(acknowledged, [], consumer=self._consumer, reports=bodies)
        failpoint(f"{self._consumer}.reported")
        async with self._writing, self._node.pool.acquire() as conn, conn.transaction():
            await own_reports.store_unanswered(conn, self._consumer, origin_name, reports)

    async def _send_by_http(self, origin_name: str, reports: Sequence[OwnReport], *, has_topic: bool) -> None:
        """Send reports over HTTP. What names no event goes this way only: a topic would keep it for a later mark.

        has_topic: those that it does not take go by a topic the next time.
        """
        try:
            results = await self._origin.report([self._report_of(each).as_json() for each in reports])
        except (SourceAway, SourceRefused):
            by_topic = [each for each in reports if each.event_id is not None]
            if not has_topic:
                raise
            if by_topic:
                async with self._writing, self._node.pool.acquire() as conn, conn.transaction():  # next by the topic
                    await own_reports.store_unanswered(conn, self._consumer, origin_name, by_topic)
            if len(by_topic) < len(reports):
                raise
            return
        failpoint(f"{self._consumer}.reported")
        async with self._writing, self._node.pool.acquire() as conn, conn.transaction():
            await own_reports.store_answers(conn, self._consumer, origin_name, reports, results)
        log.info("deletions reported", origin=origin_name, consumer=self._consumer, reports=len(reports))

    def _report_of(self, report: OwnReport) -> DependencyReport:
        return DependencyReport(
            self._name, report.outcome, report.event_id, report.collection, report.dataset, report.comment
        )
