"""Following: the loop of every consumer. It receives a page, applies it and moves the cursor in one transaction, and
acknowledges. While a page is applied, the next one is received and judged.

What is killed in between is done again and changes nothing. What a consumer makes of an event is its handler's part.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson
import structlog

from fedstac.bootstrap import Node
from fedstac.db import connections, nodes, parked, schema
from fedstac.db.connections import Connection
from fedstac.domain import events
from fedstac.domain.events import Cursor
from fedstac.messaging import statuses
from fedstac.messaging.origin import Origin, TopicOrigin, origin_of
from fedstac.messaging.sources import (
    NO_OFFSETS,
    BehindRetention,
    EventSource,
    NotServed,
    RawEvent,
    SourceAway,
    SourceRefused,
    UnreadableMessage,
    open_source,
)
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.runtime import supervision
from fedstac.runtime.causes import Cause, blames_nobody, cause_of, is_refusal, was_ended_in_order
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.metrics import ACKNOWLEDGEMENT_SECONDS, APPLY_SECONDS, CONSUMED
from fedstac.runtime.wakeup import Backoff, pause, unless
from fedstac.workers.deletion_parts import PartReporter
from fedstac.workers.pages import LONG_PAGE, ComingPage, HandledPage, Handler, Page, PageReading, Rejection, without

PAGE = 500  # events
EXCEPTIONS_AT_ONCE = 1000  # the origin takes 2 000
LONGEST_NAME, LONGEST_DETAIL = 650, 2000  # characters; of a name what fits into an index
LONG_POLL_SECONDS = 10
REQUEUED_LOOK_SECONDS, REQUEUED_AWAY_SECONDS = 1.0, 15.0
LAGGING_POLL_SECONDS = 1  # while something that is applied is not yet acknowledged
STAND_BY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 2.0  # of a source that is away, and of an acknowledgement: what comes back is found that soon
ELSEWHERE_SECONDS = 5.0
END_SECONDS = 2.0  # that a database may take to end a session
BEYOND_ALL = 2**63 - 1  # an epoch
ATTEMPTS = 3  # of an event, alone, after which it is parked
NARROWER = 3  # bits by which each death makes the portion of a page smaller
AWAY = {
    SourceAway: "the source is away; trying again",
    NotServed: "the source cannot be followed; see to its address",
    SourceRefused: "the source refuses this node; see to its token",
}
UNACKNOWLEDGED = {
    SourceAway: "the source does not take an acknowledgement just now; trying again",
    SourceRefused: "the source refuses an acknowledgement; trying again",
}
log = structlog.get_logger()


class OriginRolledBack(Exception):
    """The origin's log ends before what this node has applied of the same epoch; the text says what to do."""


class FollowedElsewhere(Exception):
    """Another process follows the origin into this database; the text says what to do."""


class Acknowledger(Protocol):
    """Tells an origin what is done here: the origin itself over HTTP, or a topic."""

    async def acknowledge(
        self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None
    ) -> None:
        """Say that everything through a position is done here, but for the exceptions."""
        ...


@dataclass(frozen=True, slots=True)
class _WrittenPage:
    """What was written of a page; it counts once the transaction is committed."""

    outcome: HandledPage
    parked_events: Sequence[parked.ParkedEvent]


@dataclass(slots=True)
class Follower:
    """Follows one origin. `snapshot_first`: a new consumer starts from a snapshot instead of the log's beginning."""

    node: Node
    handler: Handler
    origin: Origin
    source: EventSource
    snapshot_first: bool = True
    name: str = "follower"  # of this part of the process
    origin_name: str = ""
    applied_cursor: Cursor = events.START
    acknowledged: Cursor = events.START
    exceptions: list[dict[str, str]] = field(default_factory=list)  # not yet acknowledged
    lock: Connection | None = None  # of `run` and `rebuild`: the session by which nobody else follows
    on_page: Callable[[int], object] = lambda entries: None  # called with the size of each page that is applied
    acknowledger: Acknowledger | None = None  # None: the origin
    reporter: PartReporter | None = None  # None: nobody waits for reports on deletions
    _deaths: int | None = None  # over the page that is due; None: not yet counted by this process
    _is_refused: bool = False  # the last acknowledgement
    _acknowledge_at: float = 0.0  # the next one, not before; by time.monotonic
    _requeued_at: float = 0.0  # the next look for what operators want to be tried again
    _refusals: Backoff = field(default_factory=lambda: Backoff(least=0.5, most=LONGEST_RETRY_SECONDS))
    _ahead: asyncio.Task[ComingPage] | None = None  # the next page, while this one is applied

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop`. A source that is away is waited for; one that refuses is logged and tried again."""
        backoff = Backoff(least=0.2, most=LONGEST_RETRY_SECONDS, growth=1.1)

        async def step() -> bool:
            await self._follow(stop, backoff)
            return False

        await supervision.keep_trying(self.node.parts, self.name, step, stop, backoff=backoff, expected={
            OriginRolledBack: "the source has lost a part of its log; nothing is taken from it", **AWAY,
        })  # fmt: skip

    async def _follow(self, stop: asyncio.Event, backoff: Backoff) -> None:
        self.origin_name, _ = await head_of(self.node, self.origin)
        self.lock = await session(self.node)
        try:
            if not await self._stand_by(self.lock, stop):
                return
            await self.begin()
            while not stop.is_set():
                try:
                    await unless(stop, self.step(LONG_POLL_SECONDS))
                    backoff.reset()
                    self.node.parts.works(self.name)
                except BehindRetention as error:
                    await self._refuse_rolled_back()
                    log.warning("the feed does not reach back to our cursor; taking a snapshot", reason=str(error))
                    await self.take_snapshot(None)
        finally:
            await self.drop_ahead()
            self.lock.terminate()

    async def _stand_by(self, lock: Connection, stop: asyncio.Event) -> bool:
        """Wait until nobody else follows the origin for this consumer. Return False if `stop` comes first."""
        is_standing_by = False
        while not stop.is_set():
            if await nodes.follow_alone(lock, self.handler.consumer, self.origin_name):
                return True
            if not is_standing_by:
                log.info("another process follows; standing by", origin=self.origin_name)
                is_standing_by = True
            await pause(stop, STAND_BY_SECONDS)
        return False

    async def _refuse_rolled_back(self) -> None:
        """Raise OriginRolledBack where the origin's log lost what is applied here, and has no new epoch.

        Its snapshot would be no newer than what is here, so that lost datasets would stay.
        """
        _, head = await self.origin.head()
        here = self.applied_cursor
        if head < here:
            raise OriginRolledBack(
                f"{self.origin_name} is at {head}, and this node has applied {here}: the origin's database was "
                f"put back to an earlier state; its operator runs `fedstac admin new-epoch`"
            )

    async def begin(self) -> None:
        """Go to our place: where we were, in the middle of a snapshot, or at the start."""
        await self.drop_ahead()
        self._acknowledge_at = 0.0
        consumer = self.handler.consumer
        async with self.node.pool.acquire() as conn:
            progress = await nodes.progress(conn, consumer, self.origin_name)
            if progress is None and not self.snapshot_first:
                await nodes.move(conn, consumer, self.origin_name, events.START)
            # a kill may have come before they were acknowledged
            self.exceptions = await parked.exceptions(conn, consumer, self.origin_name)
        is_half_loaded = progress is not None and (progress.snapshot or "").startswith(nodes.FILES)
        if is_half_loaded or (progress is None and self.snapshot_first):  # the files are not at hand: over HTTP, then
            await self.take_snapshot(None)
        elif progress is not None and progress.snapshot is not None:
            await self.take_snapshot(progress.snapshot)
        else:
            self.applied_cursor = progress.cursor if progress else events.START
            await self.source.begin(self.applied_cursor, progress.offsets if progress else NO_OFFSETS)
        log.info("following", consumer=consumer, origin=self.origin_name, cursor=str(self.applied_cursor))

    async def step(self, wait: int) -> int:
        """Receive, apply and acknowledge a page of the feed. Return how many events and other messages it had."""
        await self._apply_requeued()
        await self._acknowledge()
        await self._report_parts()
        is_reporting = self.reporter is not None and self.reporter.is_waiting
        if self.acknowledged != self.applied_cursor or self.exceptions or is_reporting:
            wait = min(wait, LAGGING_POLL_SECONDS)
        coming = await self._next_page(wait)
        page = coming.page
        if _has_news(coming, self.applied_cursor):
            if len(page.events) >= LONG_PAGE:  # there may be more
                self._look_ahead(self._receive(page.cursor, 0, is_ahead=True))
            with self.node.metrics.timing(APPLY_SECONDS, self.handler.consumer, self.origin_name):
                await self._apply(coming)
            failpoint(f"{self.handler.consumer}.applied")
        await self._acknowledge()
        await self._report_parts(at_once=bool(page.events))
        return len(page.events) + len(coming.rejections)

    async def _next_page(self, wait: int) -> ComingPage:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and _has_news(coming := await ahead, self.applied_cursor):
            return coming
        return await self._receive(self.applied_cursor, wait)

    async def _receive(self, after: Cursor, wait: int, *, is_ahead: bool = False) -> ComingPage:
        received = await self.source.receive(after, limit=PAGE, wait=wait)
        unreadable = [_rejection(message, self.origin_name) for message in received.unreadable]
        page = Page(self.origin_name, received.events, received.cursor, offsets=received.offsets)
        return await self._come(page, unreadable, is_ahead=is_ahead)

    async def _come(
        self, page: Page, unreadable: Sequence[Rejection] = (), *, is_ahead: bool, following: str | None = None
    ) -> ComingPage:
        """Set aside what is no event of this origin; read the others where the page comes ahead of its turn."""
        strangers = _strangers(page)
        own = without(page, strangers)
        reading = await self.handler.prepare(own) if is_ahead else None
        return ComingPage(own, [*unreadable, *strangers], reading, following)

    def _look_ahead(self, coming: Coroutine[Any, Any, ComingPage]) -> None:
        """Receive and read the next page meanwhile, once this process has applied one: an event that kills it stays
        alone with its page then, and can be told from the others.
        """
        if self._deaths == 0:
            self._ahead = asyncio.create_task(coming)
        else:
            coming.close()

    async def drop_ahead(self) -> None:
        """Give up what comes ahead of its turn."""
        if self._ahead is not None:
            task, self._ahead = self._ahead, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _acknowledge(self) -> None:
        """Tell the origin through where everything is done, if it does not know.

        A refused acknowledgement is logged, shown in /healthcheck and tried again; following goes on without it.
        """
        if time.monotonic() < self._acknowledge_at:
            return
        part = f"{self.name} acknowledgements"
        consumer = None if self.handler.consumer == nodes.INDEX else self.handler.consumer
        through = await self.handler.acknowledgeable(self.origin_name, self.applied_cursor)
        acknowledger = self.acknowledger or self.origin
        try:
            while self.acknowledged != through or self.exceptions:
                with self.node.metrics.timing(ACKNOWLEDGEMENT_SECONDS, self.handler.consumer, self.origin_name):
                    await acknowledger.acknowledge(through, self.exceptions[:EXCEPTIONS_AT_ONCE], consumer=consumer)
                self.acknowledged, self.exceptions = through, self.exceptions[EXCEPTIONS_AT_ONCE:]
        except (SourceAway, SourceRefused) as error:
            self._is_refused, self._acknowledge_at = True, time.monotonic() + self._refusals.pause()
            self.node.parts.fails(part, error, UNACKNOWLEDGED)
            return
        if self._is_refused:
            self._is_refused = False
            self._refusals.reset()
            self.node.parts.works(part)

    async def _report_parts(self, *, at_once: bool = False) -> None:
        """Tell the origin how far this consumer is with its parts of deletions."""
        if self.reporter is not None:
            part = f"{self.name} deletion reports"
            await self.reporter.report(self.origin_name, self.acknowledged, part=part, at_once=at_once)

    async def take_snapshot(self, page: str | None) -> None:
        """Apply the origin's current state, page by page; a killed node goes on with the page it was at.

        `page`: None begins anew, an empty text is the first one.
        """
        if page is None:
            async with self.node.pool.acquire() as conn, conn.transaction():
                await nodes.move(conn, self.handler.consumer, self.origin_name, events.START, snapshot="")
        await self.drop_ahead()
        while True:
            ahead, self._ahead = self._ahead, None
            coming = await (ahead if ahead is not None else self._receive_snapshot(page))
            following = coming.following
            if following is not None:
                self._look_ahead(self._receive_snapshot(following, is_ahead=True))
            await self._apply(coming)
            failpoint(f"{self.handler.consumer}.snapshot")
            if following is None:
                break
            page = following
        await self.source.begin(self.applied_cursor, NO_OFFSETS)

    async def _receive_snapshot(self, page: str | None, *, is_ahead: bool = False) -> ComingPage:
        snapshot = await self.origin.snapshot(page or None, limit=PAGE)
        last = snapshot.following is None
        return await self._come(
            Page(self.origin_name, snapshot.entries, snapshot.cursor, ends_snapshot=last),
            is_ahead=is_ahead, following=snapshot.following,
        )  # fmt: skip

    async def _apply(self, coming: ComingPage) -> None:
        """Apply a page and move the cursor in one transaction; what cannot be applied is parked."""
        if self.lock is not None and self.lock.is_closed():
            raise ConnectionError("the session that keeps others from following is gone")
        page, snapshot = coming.page, coming.following
        await self._count_death()
        if self._deaths and page.events:
            killers = await self._apply_in_portions(page, max(len(page.events) >> NARROWER * self._deaths, 1))
            rejections = [*coming.rejections, *killers]
            await self._apply_at_once(replace(page, events=()), rejections, snapshot=snapshot, moves=True)
        else:
            await self._apply_at_once(page, coming.rejections, snapshot=snapshot, moves=True, reading=coming.reading)
        self._deaths = 0
        self.applied_cursor = page.cursor
        self.on_page(len(page.events))

    async def _apply_at_once(
        self, page: Page, rejections: Sequence[Rejection], *, snapshot: str | None = None, moves: bool,
        reading: PageReading | None = None,
    ) -> None:  # fmt: skip
        """Apply events in one transaction, of those that fail together each alone. `reading`: None reads them here."""
        if reading is None:
            reading = await self.handler.prepare(page)
        rejections = [*rejections, *reading.rejections]
        rest = replace(without(page, reading.rejections), readings=reading.values)
        async with self.node.pool.acquire() as conn:
            try:
                await self._commit(conn, rest, rejections, snapshot=snapshot, moves=moves)
            except Exception as error:
                if conn.is_closed() and not was_ended_in_order(error):
                    self._deaths = None  # an event may have crashed the session: the next attempt counts as a death
                if not rest.events or not await _may_be_of_an_event(conn, error):
                    raise
                failures = await self._apply_apart(conn, rest)
                end = replace(rest, events=())
                await self._commit(conn, end, [*rejections, *failures], snapshot=snapshot, moves=moves)

    async def _commit(
        self, conn: Connection, page: Page, rejections: Sequence[Rejection], *, snapshot: str | None, moves: bool
    ) -> None:
        async with conn.transaction():
            applied_page = await self._write(conn, page, rejections)
            failpoint(f"{self.handler.consumer}.written")
            if moves:
                await nodes.move(
                    conn, self.handler.consumer, page.origin, page.cursor, snapshot=snapshot, offsets=page.offsets
                )
        self._report(applied_page)

    async def _write(self, conn: Connection, page: Page, rejections: Sequence[Rejection]) -> _WrittenPage:
        """Apply events and park the others; joins the caller's transaction."""
        consumer = self.handler.consumer
        if page.ends_snapshot:  # it has everything anew
            await parked.forget_earlier(conn, consumer, page.origin, before_epoch=page.cursor.epoch)
        unread = [_parked(rejection) for rejection in rejections]
        if unread:  # before the handler asks what a snapshot has listed
            await parked.park(conn, consumer, page.origin, page.cursor.pos, unread)
        outcome = await self.handler.handle(conn, page)
        untaken = [_parked(rejection) for rejection in outcome.rejections]
        if untaken:
            await parked.park(conn, consumer, page.origin, page.cursor.pos, untaken)
        if await parked.has_any(conn, consumer, page.origin):
            applied_events = without(page, outcome.rejections).events
            places = [parked.SubjectPlace(_subject(event), *_place(event)) for event in applied_events]
            await parked.unpark(conn, consumer, page.origin, places)
        return _WrittenPage(outcome, [*unread, *untaken])

    def _report(self, applied_page: _WrittenPage) -> None:
        """Count, log and note for the origin what became of a page that is committed."""
        counts = Counter({"applied": applied_page.outcome.applied_count, "ignored": applied_page.outcome.ignored_count})
        counts.update(each.outcome for each in applied_page.parked_events)
        for outcome, count in counts.items():
            self.node.metrics.count(CONSUMED, self.handler.consumer, self.origin_name, outcome, by=count)
        for each in applied_page.parked_events:
            log.error(f"an event is {each.outcome}", event_id=each.event_id, subject=each.subject, detail=each.detail)
            self.exceptions.append({"event_id": each.event_id, "outcome": each.outcome, "detail": each.detail})

    # --- events that fail ---

    async def _apply_apart(self, conn: Connection, page: Page) -> list[Rejection]:
        """Apply the events of a page that fails as a whole; return those that fail alone, and why.

        The cursor stays where it is: what is applied here changes nothing when it comes again. Where every event fails
        by a fault of ours, that is raised: none of them is to blame, and nothing is parked for it.
        """
        failures = await self._halve(conn, replace(page, ends_snapshot=False))
        ours = [error for _, error in failures if not is_refusal(error)]
        if ours and len(failures) == len(page.events):
            raise ours[0]
        return [
            Rejection(
                event,
                "the database here refuses it" if is_refusal(error) else f"this node fails on it: {error!r}"[:300],
            )
            for event, error in failures
        ]

    async def _halve(self, conn: Connection, page: Page) -> list[tuple[RawEvent, Exception]]:
        """Apply a page by halves, in its order, down to the events that fail alone, ATTEMPTS times."""
        size = len(page.events)
        for attempt in range(1, (ATTEMPTS if size == 1 else 1) + 1):
            try:
                async with conn.transaction():
                    applied_page = await self._write(conn, page, [])
            except Exception as error:
                if not await _may_be_of_an_event(conn, error):
                    raise
                if size == 1 and (attempt == ATTEMPTS or is_refusal(error)):
                    return [(page.events[0], error)]
            else:
                self._report(applied_page)
                return []
        first, second = page.events[: size // 2], page.events[size // 2 :]
        return await self._halve(conn, replace(page, events=first)) + await self._halve(
            conn, replace(page, events=second)
        )

    async def _apply_requeued(self) -> None:
        """Apply the parked events that an operator wants to be tried again, each alone. What fails stays parked."""
        if time.monotonic() < self._requeued_at:
            return
        self._requeued_at = time.monotonic() + REQUEUED_LOOK_SECONDS
        async with self.node.pool.acquire() as conn:
            texts = await parked.requeued_events(conn, self.handler.consumer, self.origin_name)
        for event in map(orjson.loads, texts):
            page = Page(self.origin_name, [event], self.applied_cursor)
            rejections = _strangers(page)
            try:
                if not rejections and not await self._try_alone(page):
                    rejections = [_killer(event)]
                if rejections:
                    await self._apply_at_once(replace(page, events=()), rejections, moves=False)
            except (SourceAway, SourceRefused) as error:  # it needs something of the origin; the others go on
                self._requeued_at = time.monotonic() + REQUEUED_AWAY_SECONDS
                log.warning("a parked event is tried again later", subject=_subject(event), reason=str(error))
                return

    # --- events that kill ---

    async def _count_death(self) -> None:
        """Count, once in a process, that it begins with a page: the count stays if the process dies over it.

        A page that is applied sets the count back with the cursor, so that later pages need no write of their own.
        """
        if self._deaths is None:
            async with self.node.pool.acquire() as conn:
                self._deaths = await nodes.begin_page(conn, self.handler.consumer, self.origin_name)
            if self._deaths:
                log.warning("a page was begun and not ended; it is applied in portions", times=self._deaths)

    async def _apply_in_portions(self, page: Page, size: int) -> list[Rejection]:
        """Apply a page over which processes died, in portions. Return the events that killed ATTEMPTS processes alone.

        The cursor stays where it is: what is applied here changes nothing when it comes again.
        """
        killers: list[Rejection] = []
        for start in range(0, len(page.events), size):
            portion = replace(page, events=page.events[start : start + size], ends_snapshot=False)
            if size > 1:
                await self._apply_at_once(portion, [], moves=False)
            elif not await self._try_alone(portion):
                killers.append(_killer(portion.events[0]))
        return killers

    async def _try_alone(self, page: Page) -> bool:
        """Apply one event, and count the attempt before it begins. Return False where it killed too often."""
        key = (self.handler.consumer, page.origin, _event_id(page.events[0]))
        async with self.node.pool.acquire() as conn:
            if await nodes.begin_attempt(conn, *key) > ATTEMPTS:
                return False
        failpoint(f"{self.handler.consumer}.alone")
        try:
            await self._apply_at_once(page, [], moves=False)
        finally:  # who gets here lives
            if self._deaths is not None:
                await self._forget_attempt(key)
        return True

    async def _forget_attempt(self, key: tuple[str, str, str]) -> None:
        """Forget an attempt that killed nobody; where the database is away, it counts."""
        with suppress(Exception):
            async with asyncio.timeout(ELSEWHERE_SECONDS), self.node.pool.acquire() as conn:
                await nodes.end_attempt(conn, *key)


def _has_news(coming: ComingPage, here: Cursor) -> bool:
    return bool(coming.page.events or coming.rejections) or coming.page.cursor != here


def _strangers(page: Page) -> list[Rejection]:
    """Reject the events that are another origin's than the one that announced them."""
    return [
        Rejection(event, f"{page.origin} announced what {str(event.get('source'))[:63]} is the origin of", True)
        for event in page.events
        if event.get("source") != page.origin
    ]


def _killer(event: RawEvent) -> Rejection:
    return Rejection(event, f"{ATTEMPTS} processes of this node ended while they applied it")


async def _may_be_of_an_event(conn: Connection, error: Exception) -> bool:
    """Return whether an event may be to blame for an error. OperatorsFault where the database explains it."""
    if cause_of(error) is Cause.SCHEMA:
        await schema.check(conn)
    return not blames_nobody(error)


def _subject(event: RawEvent) -> str:
    """Return what an event, or a snapshot's entry, is about; broken ones too need a name."""
    data = event.get("data")
    names = [str(data[name]) for name in ("collection", "id") if name in data] if isinstance(data, dict) else []
    return _storable(str(event.get("subject") or "/".join(names)), LONGEST_NAME)


def _event_id(event: RawEvent) -> str:
    return _storable(str(event.get("id") or f"snapshot:{_subject(event)}"), LONGEST_NAME)


def _storable(text: str, most: int) -> str:
    """Return a text from outside as every database takes it, here and at the origin."""
    return text.replace("\0", "\ufffd")[:most]


def _place(event: RawEvent) -> tuple[int, int]:
    """Return epoch and seq of an event; 0 where a broken one has none."""
    data = event.get("data")
    values = (event.get("epoch"), data.get("seq") if isinstance(data, dict) else None)
    epoch, seq = (value if type(value) is int and 0 <= value < BEYOND_ALL else 0 for value in values)
    return epoch, seq


def _rejection(message: UnreadableMessage, origin: str) -> Rejection:
    """Return what is parked of a message that is no event: its place in the broker is its name."""
    event = {"id": message.place, "subject": message.place, "source": origin, "message": message.text}
    return Rejection(event, message.reason, is_final=True)


def _parked(rejection: Rejection) -> parked.ParkedEvent:
    event = rejection.event
    epoch, seq = _place(event)
    detail = _storable(rejection.reason, LONGEST_DETAIL)
    return parked.ParkedEvent(
        _event_id(event), _subject(event), epoch, seq, detail, orjson.dumps(event).decode(),
        outcome="rejected" if rejection.is_final else "parked",
    )  # fmt: skip


async def session(node: Node) -> Connection:
    """Return a connection whose lock says who follows."""
    return await connections.connect(node.settings.dsn, application=f"fedstac {node.settings.node} follower")


async def end_session(lock: Connection) -> None:
    """End a session whose lock says who follows. Where the database answers, the lock is free when this returns."""
    with suppress(Exception):
        await lock.close(timeout=END_SECONDS)
    lock.terminate()


async def head_of(node: Node, origin: Origin) -> tuple[str, Cursor]:
    """Return the origin's name and last position.

    NotServed where that is this node, whose own datasets nobody may replace.
    """
    name, head = await origin.head()
    if name == node.settings.node:
        raise NotServed(f"the source is called {name}, as this node is: it is this node, or one has to be renamed")
    return name, head


MakeHandler = Callable[[Node, Origin], Handler]


async def follow(
    node: Node, stop: asyncio.Event, *, source: SourceAddress, make_handler: MakeHandler, name: str = "follower"
) -> None:
    """Follow a source until `stop`; while another process does for the same consumer, wait."""
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(origin_of(source))
        events_of_origin = await stack.enter_async_context(open_source(source))
        status_address = statuses.status_address(source.feed) if source.feed is not None else None
        sender = None
        if status_address is not None:
            topic = await stack.enter_async_context(statuses.open_topic(status_address))
            sender = statuses.StatusSender(topic, node=node.settings.node, token=source.token)
        handler = make_handler(node, origin)
        snapshot_first = node.settings.snapshot_first and origin.has_snapshots
        reporter = None if isinstance(origin, TopicOrigin) else PartReporter(node, handler.consumer, origin, sender)
        follower = Follower(
            node, handler, origin, events_of_origin, snapshot_first=snapshot_first, name=name, acknowledger=sender,
            reporter=reporter,
        )  # fmt: skip
        await follower.run(stop)
