"""The relay: sends the log to every sink, each at its own pace. A sink that is away holds up nobody else.

A page of the log is one transaction of the broker, which expects the end of the broker's log that this relay knows. So
nothing is lost, doubled or out of order, whoever is killed in between and however many relays there are. What is noted
in the database is a hint: the broker says where its log ends, and a part of it that went missing is sent again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import pairwise

import structlog

from fedstac.bootstrap import Node
from fedstac.db import connections, dead_letters, records, sinks
from fedstac.db.connections import Connection
from fedstac.db.sinks import PartitionEnd, Sink, SinkPlace
from fedstac.domain import grants, outsiders
from fedstac.domain.access import RecordAccess
from fedstac.domain.events import Cursor, EventFormat, LoggedEvent
from fedstac.domain.relaying import ForeignLog, Resumption, is_in_log, resumption
from fedstac.messaging import formats
from fedstac.messaging.formats import Encoder, Unwritable, unwritable
from fedstac.messaging.probing import pause_until_back
from fedstac.messaging.sinks import (
    DAPR_SCHEMES,
    LARGEST_IN_SIDECAR,
    LARGEST_PAGE_BYTES,
    EventSink,
    Fenced,
    OutgoingEvent,
    PageRefused,
    PartitionTail,
    SinkAway,
    SinkRefused,
    SinkTarget,
    SinkUnclear,
    Tail,
    TailMoved,
    open_sink,
    scheme_of,
)
from fedstac.messaging.sources.addresses import BROKERS, BrokerAddress
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.metrics import SINK_PAGE_SECONDS, UNWRITABLE_EVENTS
from fedstac.runtime.outages import reason_of
from fedstac.runtime.wakeup import Backoff, cancel, pause

LOOK_SECONDS = 1.0  # between looks for sinks that were added or resumed
STAND_BY_SECONDS = 1.0
CHECK_SECONDS = 5.0  # between looks at a broker that nothing is sent to
END_SECONDS = 3.0  # that a page under way has to end, when the process stops
LEAST_POLL_SECONDS, MOST_POLL_SECONDS = 0.02, 0.25
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, RETRY_GROWTH = 0.2, 30.0, 1.1
TRIES, TRY_SECONDS = 3, 0.2  # of an event alone that a broker refuses, and the pause between
MOST_REFUSALS = 100  # in a row, after which it is the sink that is wrong, and not the events
log = structlog.get_logger()


async def run(node: Node, stop: asyncio.Event) -> None:
    """Send to every sink that is not paused, until `stop`. Sinks are taken up when they are added."""
    tasks: dict[str, asyncio.Task[None]] = {}
    ending = asyncio.Event()

    async def look() -> None:
        async with node.pool.acquire() as conn:
            for name in await sinks.lapse(conn, node.settings.sink_lapse_days):
                log.error("a required sink has lapsed; the log is no longer kept for it", sink=name)
            names = [sink.name for sink in await sinks.every(conn) if sink.paused_reason is None]
        for name in [name for name, task in tasks.items() if task.done()]:
            tasks.pop(name).result()  # raises what ended it
        for name in names:
            if name not in tasks:
                tasks[name] = asyncio.create_task(Relay(node, name).run(ending), name=f"relay {name}")
        await node.commits.pause("relay", stop, LOOK_SECONDS)

    try:
        await supervision.keep_trying(node.parts, "relay", look, stop, commits=node.commits)
    finally:
        ending.set()
        if tasks:
            await asyncio.wait(tasks.values(), timeout=END_SECONDS)
        await cancel(*tasks.values())


class Relay:
    """Sends to one sink, whenever this process has its lock."""

    def __init__(self, node: Node, name: str) -> None:
        self._node, self._name = node, name
        self._part = f"relay {name}"
        self._backoff = Backoff(least=FIRST_RETRY_SECONDS, most=LONGEST_RETRY_SECONDS, growth=RETRY_GROWTH)
        self._is_failing = False
        self._delivered_ids: set[str] = set()  # of a page that failed in the middle, where the sink keeps no log
        self._delivered_to: object = None  # the sink, as operators had left it then
        self._log = log.bind(sink=name)

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop`, or until the sink is paused or removed."""
        ended = asyncio.Event()

        async def step() -> bool:
            if stop.is_set() or not await self._step(stop):
                ended.set()
            return False

        await supervision.keep_trying(self._node.parts, self._part, step, ended)

    async def _step(self, stop: asyncio.Event) -> bool:
        """Send for as long as nothing fails. Return whether to go on with this sink."""
        dsn = self._node.settings.dsn
        conn = await connections.connect(dsn, application=f"fedstac {self._node.settings.node} {self._part}"[:63])
        connections.on_end(conn, self._node.sequenced.wake)
        try:
            while not await sinks.lead(conn, self._name):
                await pause(stop, STAND_BY_SECONDS)
                if stop.is_set():
                    return True
            sink = await sinks.find(conn, self._name)
            if sink is None or sink.paused_reason is not None:
                return False
            if (sink.created, sink.version) != self._delivered_to:  # an operator may want everything once more
                self._delivered_to = (sink.created, sink.version)
                self._delivered_ids.clear()
            try:
                async with open_sink(self._target(sink)) as broker:
                    await self._lead(_Course(self._node, conn, sink, broker, self._log), stop)
                return True
            except (SinkAway, TailMoved, Fenced) as error:
                failure = error.with_traceback(None)  # whose frames have the page
                await sinks.fail(conn, self._name, reason_of(error))
            except (SinkRefused, SinkUnclear, ForeignLog) as error:
                await sinks.stop(conn, sink, str(error))
                self._log.error("a sink is paused; resume it once its fault is mended", reason=str(error))
                return False
        finally:
            conn.terminate()
        await self._wait_after(failure, sink.address, stop)
        return True

    async def _wait_after(self, failure: Exception, address: str, stop: asyncio.Event) -> None:
        """Log a failure when it begins, and wait without the lock, so that another relay may try.

        A broker that comes back is noticed at once.
        """
        if not self._is_failing:
            self._is_failing = True
            self._log.warning("a sink does not take events just now; trying again", reason=reason_of(failure))
        seconds = self._backoff.pause() * random.uniform(0.5, 1.5)  # noqa: S311
        if isinstance(failure, SinkAway) and scheme_of(address) in BROKERS:
            await pause_until_back(BrokerAddress.parse(address, options=None), stop, seconds)
        else:
            await pause(stop, seconds)

    async def _lead(self, course: _Course, stop: asyncio.Event) -> None:
        """Send until `stop`, or until an operator changes the sink."""
        await course.begin()
        idle = Backoff(least=LEAST_POLL_SECONDS, most=MOST_POLL_SECONDS)
        try:
            while not stop.is_set():
                sequenced = self._node.sequenced.next()
                outcome = await course.step()
                self._works()
                match outcome:
                    case Step.CHANGED:
                        return
                    case Step.SENT:
                        idle.reset()
                    case Step.IDLE:
                        await sequenced(self._node.commits.patience(idle.pause(), most=CHECK_SECONDS))
        finally:
            await course.end()

    def _works(self) -> None:
        self._backoff.reset()
        self._node.parts.works(self._part)
        if self._is_failing:
            self._is_failing = False
            self._log.info("the sink takes events again")

    def _target(self, sink: Sink) -> SinkTarget:
        ends = {name: PartitionTail(end.offset, end.cursor) for name, end in sink.partitions.items()}
        return SinkTarget(
            origin=self._node.settings.node, name=sink.name, address=sink.address, private=sink.private,
            secret=sink.secret, sidecar_token=self._node.settings.dapr_api_token,
            last_tail=Tail(sink.identity, ends), delivered_ids=self._delivered_ids,
        )  # fmt: skip


def encoder_of(sink: Sink, public_url: str) -> Encoder:
    """Return how a sink gets its events."""
    scheme = scheme_of(sink.address)
    return Encoder(
        EventFormat(sink.format), key_template=sink.key_template,
        header_prefix=formats.KAFKA_PREFIX if scheme == "kafka" else formats.PREFIX,
        feed_url=f"{public_url.rstrip('/')}/events",
        largest_value=LARGEST_IN_SIDECAR if scheme in DAPR_SCHEMES else formats.LARGEST_VALUE,
        topic=BrokerAddress.parse(sink.address, options=None).name if scheme in BROKERS else formats.DATASETS,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EncodedPage:
    """A page of the log as it goes to a broker, without what the broker has already.

    `cursor` and `previous_pos`: where the log and the chain of what was sent stand after it.
    """

    cursor: Cursor
    previous_pos: int
    events: Sequence[OutgoingEvent]
    logged: dict[str, LoggedEvent]  # by event id
    unwritable: Sequence[Unwritable] = ()


class Step(Enum):
    """What a step of a relay came to."""

    SENT = auto()  # there may be more
    IDLE = auto()
    CHANGED = auto()  # an operator changed the sink: begin anew


def takes(encoder: Encoder, event_type: str) -> bool:
    """Return whether a sink gets events of a type: none about grants, which subscribers with the right get."""
    return not event_type.startswith(grants.PREFIX) and encoder.takes(event_type)


RecordsNow = Mapping[tuple[str, str], RecordAccess]


async def _records_now(conn: Connection, encoder: Encoder, events: Sequence[LoggedEvent]) -> RecordsNow:
    """Return what the records of a page's datasets say now, by collection and id; nothing where nodes read the sink."""
    if encoder.dialect.is_for_nodes:
        return {}
    return await records.access_of(
        conn, {(event.collection, event.dataset) for event in events if event.dataset is not None}
    )


def _as_told(encoder: Encoder, event: LoggedEvent, now: RecordsNow) -> LoggedEvent | None:
    """Return an event as the readers of a sink get it; None where the sink does not get it."""
    if not takes(encoder, event.type) or not encoder.tells(event):
        return None
    if encoder.dialect.is_for_nodes:
        return event
    return outsiders.as_told(event, now.get((event.collection, event.dataset or "")))


@dataclass(slots=True)
class _Course:
    """One leadership of a sink: from the end of the broker's log on."""

    node: Node
    conn: Connection  # the session that has the lock
    sink: Sink
    broker: EventSink
    log: structlog.BoundLogger
    encoder: Encoder = field(init=False)
    tail: Tail = field(init=False)
    cursor: Cursor = field(init=False)
    previous_pos: int = field(init=False)
    ends: dict[str, Cursor] = field(init=False)  # of the partitions, when this began
    read_ahead: asyncio.Task[EncodedPage | None] | None = None
    dropped: OutgoingEvent | None = None  # the last one that went to the dead letters: nothing may name it as sent
    refusals: int = 0  # in a row
    heard_at: float = field(default_factory=time.monotonic)  # when the broker answered last
    has_sent: bool = False  # an event
    sends_again: bool = True  # there may be dead letters or stretches that are to be sent once more

    async def begin(self) -> None:
        """Ask the broker where its log ends, and go on there. ForeignLog where it is not of this feed."""
        self.encoder = encoder_of(self.sink, self.node.settings.public_url)
        if self.encoder.lacks_address:
            raise SinkUnclear(f"messages of the format {self.sink.format} lead to this node: set FEDSTAC_PUBLIC_URL")
        self.tail = await self.broker.begin()
        self.ends = {name: end.cursor for name, end in self.tail.partitions.items()}
        feed = await sinks.feed_state(self.conn)
        start = resumption(self.sink.place, self.ends, self.tail.identity, feed, self.sink.starts_after)
        self.cursor, self.previous_pos = Cursor(self.sink.epoch, start.after), start.previous_pos
        self._report_start(start)
        await self._note(0)

    def _report_start(self, start: Resumption) -> None:
        if start.is_made_anew:
            self.log.warning("the sink's log was made anew; it is filled again", after=start.after)
        elif start.lost:
            self.log.warning("the sink has lost events; they are sent again", after=start.after, partitions=start.lost)
        self.log.info("relaying", after=str(self.cursor), tail=str(self.tail.cursor))

    async def step(self) -> Step:
        """Send what is due: a page of what is to be sent once more, and a page of the log."""
        if self.sends_again:
            self.sends_again = await self._send_again()
        page = await self._next_page()
        if page is None:
            version = await sinks.version(self.conn, self.sink)
            outcome = Step.SENT if self.sends_again else Step.IDLE
            await self._check_broker()
        else:
            version = await self._send_page(page)
            outcome = Step.SENT
        return outcome if version == self.sink.version else Step.CHANGED

    async def _check_broker(self) -> None:
        """Look now and then at a broker that nothing is sent to: one that went away, or lost its end, is noticed."""
        if time.monotonic() - self.heard_at > CHECK_SECONDS:
            await self.broker.check(self.tail)
            self.heard_at = time.monotonic()

    async def end(self) -> None:
        """End what is under way."""
        if self.read_ahead is not None:
            await cancel(self.read_ahead)
            self.read_ahead = None

    async def _next_page(self) -> EncodedPage | None:
        task, self.read_ahead = self.read_ahead, None
        return await task if task is not None else await self._read(self.cursor.pos, self.previous_pos)

    async def _read(self, after: int, previous_pos: int) -> EncodedPage | None:
        """Return the next page of the log; None at its end."""
        async with self.node.pool.acquire() as conn:
            events = await sinks.events_after(conn, after)
            if not events:
                return None
            is_behind = events[0].cursor.pos <= self.sink.pos  # of what was done before, some were refused then
            last = events[-1].cursor.pos
            dead = await dead_letters.positions(conn, self.sink.name, after, last) if is_behind else set()
            skips = await sinks.skips(conn, self.sink.name) if is_behind else []
            now = await _records_now(conn, self.encoder, events)
        for each in skips:
            dead |= {event.cursor for event in events if each.after < event.cursor.pos <= each.through}
        return await asyncio.to_thread(self._encode, events, after, previous_pos, dead, now)

    def _encode(
        self, events: Sequence[LoggedEvent], after: int, previous_pos: int, dead: set[Cursor], now: RecordsNow
    ) -> EncodedPage:
        outgoing_events: list[OutgoingEvent] = []
        unwritable_events: list[Unwritable] = []
        logged: dict[str, LoggedEvent] = {}
        highest_end = max((end.pos for end in self.ends.values()), default=-1)
        for event in events:
            pos = event.cursor.pos
            if pos != after + 1:  # the log does not reach back to there: a hole that consumers have to see
                previous_pos = pos - 1
            after = pos
            told_event = _as_told(self.encoder, event, now) if event.cursor not in dead else None
            if told_event is None:
                continue
            logged[told_event.event_id] = told_event
            try:
                outgoing = self.encoder.encode(told_event, previous_pos)
            except Exception as error:
                unwritable_events.append(unwritable(told_event, error))
                continue
            previous_pos = pos
            if pos > highest_end or not is_in_log(event.cursor, self.ends.get(self.broker.partition_of(outgoing))):
                outgoing_events.append(outgoing)
        outgoing_events = self.encoder.in_batches(outgoing_events, logged)
        return EncodedPage(events[-1].cursor, previous_pos, outgoing_events, logged, unwritable_events)

    async def _send_page(self, page: EncodedPage) -> int | None:
        """Send a page, while the next one is read. Return the version of the sink; None where it was removed.

        Before the first event went out the sink may be away, and the next page would take memory for nothing.
        """
        if self.has_sent:
            self.read_ahead = asyncio.create_task(self._read(page.cursor.pos, page.previous_pos))
        await self._keep_unwritable(page.unwritable)
        for chunk in chunks_of(page.events):
            await self._send(chunk, page.logged)
        self.has_sent = self.has_sent or bool(page.events)
        self.cursor = page.cursor
        self.previous_pos = self._linked(page.previous_pos)
        return await self._note(0)

    async def _keep_unwritable(self, events: Sequence[Unwritable]) -> None:
        if not events:
            return
        async with self.conn.transaction():
            for each in events:
                self.log.error(
                    "an event cannot be written for a sink", event_id=each.event.event_id, reason=each.reason
                )
                await dead_letters.keep(self.conn, self.sink.name, each.event, reason=each.reason, attempts=1)
        self.node.metrics.count(UNWRITABLE_EVENTS, self.sink.format, by=len(events))

    async def _send(self, events: Sequence[OutgoingEvent], logged: dict[str, LoggedEvent]) -> set[str]:
        """Send events in their order. Return the ids of those that became dead letters: the broker refuses them."""
        waiting, tries, buried_ids = [list(events)], 0, set[str]()
        while waiting:
            part = waiting.pop()
            part[0] = replace(part[0], previous_pos=self._linked(part[0].previous_pos))
            try:
                await self._publish(part)
            except PageRefused as refusal:
                if len(part) > 1:
                    waiting.extend(reversed(split(part, refusal.event_id)))
                    continue
                if part[0].batch:
                    waiting.extend([event] for event in reversed(self._singles(part[0], logged)))
                    continue
                tries += 1
                if tries < TRIES:
                    waiting.append(part)
                    await asyncio.sleep(TRY_SECONDS)
                    continue
                tries = 0
                await self._bury(part[0], logged[part[0].event_id], str(refusal))
                buried_ids.add(part[0].event_id)
            else:
                tries = self.refusals = 0
        return buried_ids

    def _singles(self, batch: OutgoingEvent, logged: dict[str, LoggedEvent]) -> list[OutgoingEvent]:
        """Return the events of a batch that is refused, each in a message of its own: one of them may be at fault."""
        positions = {*batch.batch, batch.cursor.pos}
        singles: list[OutgoingEvent] = []
        previous_pos = batch.previous_pos
        for event in logged.values():
            if event.cursor.pos in positions:
                singles.append(self.encoder.encode(event, previous_pos))
                previous_pos = event.cursor.pos
        return singles

    async def _publish(self, events: Sequence[OutgoingEvent]) -> None:
        if not connections.is_open(self.conn):
            raise ConnectionError("the session that keeps others from sending is gone")
        failpoint("relay.read")
        with self.node.metrics.timing(SINK_PAGE_SECONDS, self.sink.name):
            self.tail = await self.broker.publish(events, self.tail)
        self.heard_at = time.monotonic()
        failpoint("relay.published")
        if not events[-1].is_redrive:
            self.cursor, self.previous_pos = events[-1].cursor, events[-1].cursor.pos
        await self._note(len(events))
        failpoint("relay.noted")

    async def _bury(self, event: OutgoingEvent, logged: LoggedEvent, reason: str) -> None:
        """Put an event to the dead letters. SinkRefused where the sink refuses everything."""
        if not event.is_redrive:
            self.dropped, self.cursor, self.previous_pos = event, event.cursor, event.previous_pos
        self.refusals += 1
        async with self.conn.transaction():
            await dead_letters.keep(self.conn, self.sink.name, logged, reason=reason, attempts=TRIES)
            await self._note(0)
        failpoint("relay.buried")
        self.log.error("a sink refuses an event; it is a dead letter", event_id=event.event_id, reason=reason)
        if self.refusals >= MOST_REFUSALS:
            raise SinkRefused(f"it refused {self.refusals} events in a row, the last one so: {reason}")

    def _linked(self, previous_pos: int) -> int:
        """Return the position before in the chain of what was sent, which leaves out what was dropped."""
        dropped = self.dropped
        return dropped.previous_pos if dropped is not None and dropped.cursor.pos == previous_pos else previous_pos

    async def _note(self, count: int) -> int | None:
        ends = {name: PartitionEnd(end.offset, end.cursor) for name, end in self.tail.partitions.items()}
        place = SinkPlace(self.cursor, self.previous_pos, self.tail.identity, ends, count)
        return await sinks.move(self.conn, self.sink, place)

    # --- once more ---

    async def _send_again(self) -> bool:
        """Send dead letters and stretches that an operator or an audit wants to be sent again; some of them at a time.

        Return whether there were any.
        """
        redrives = await dead_letters.next_redrives(self.conn, self.sink.name, sinks.PAGE_EVENTS)
        buried_ids = await self._redrive([each.event for each in redrives])
        await dead_letters.forget(self.conn, [each.id for each in redrives if each.event.event_id not in buried_ids])
        stretches = await sinks.next_resends(self.conn, self.sink.name)
        if stretches:
            events = await sinks.events_in(self.conn, stretches)
            through = events[-1].cursor.pos if events else stretches[-1].through
            dead = await dead_letters.positions(self.conn, self.sink.name, stretches[0].after, through)
            await self._redrive([event for event in events if event.cursor not in dead])
            async with self.conn.transaction():
                await sinks.shorten(self.conn, self.sink.name, through)
        return bool(redrives or stretches)

    async def _redrive(self, events: Sequence[LoggedEvent]) -> set[str]:
        """Send events once more, behind what came after them. Return the ids of those that are dead letters again."""
        outgoing_events: list[OutgoingEvent] = []
        unwritable_events: list[Unwritable] = []
        now = await _records_now(self.conn, self.encoder, events)
        told_events = [
            shown_event for event in events if (shown_event := _as_told(self.encoder, event, now)) is not None
        ]
        for event in told_events:
            try:
                outgoing_events.append(replace(self.encoder.encode(event, event.cursor.pos - 1), is_redrive=True))
            except Exception as error:
                unwritable_events.append(unwritable(event, error))
        await self._keep_unwritable(unwritable_events)
        buried_ids = {each.event.event_id for each in unwritable_events}
        logged = {event.event_id: event for event in told_events}
        for chunk in chunks_of(outgoing_events):
            buried_ids |= await self._send(chunk, logged)
        return buried_ids


def chunks_of(events: Sequence[OutgoingEvent]) -> list[list[OutgoingEvent]]:
    """Split events so that each part fits into one transaction of a broker, or is a single one."""
    chunks: list[list[OutgoingEvent]] = []
    size = 0
    for event in events:
        size += len(event.value)
        if not chunks or size > LARGEST_PAGE_BYTES:
            chunks.append([])
            size = len(event.value)
        chunks[-1].append(event)
    return chunks


def split(events: Sequence[OutgoingEvent], culprit: str | None) -> list[list[OutgoingEvent]]:
    """Split events of which one is refused: around the culprit where it is known, else in halves."""
    place = next((n for n, event in enumerate(events) if event.event_id == culprit), None)
    cuts = (0, len(events) // 2, len(events)) if place is None else (0, place, place + 1, len(events))
    return [list(events[begin:end]) for begin, end in pairwise(cuts) if begin < end]
