"""Applying pages: each in one transaction with the cursor. What cannot be applied is parked, so that the others go on.

An event that fails is found by halves, and one that kills the process by counts that outlive it. What is applied while
they are looked for changes nothing when it comes again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import orjson
import structlog

from fedstac.bootstrap import Node
from fedstac.db import connections, nodes, parked, schema
from fedstac.db.connections import Connection
from fedstac.domain.events import Cursor
from fedstac.messaging.sources import RawEvent, SourceAway, SourceRefused
from fedstac.runtime.causes import Cause, blames_nobody, cause_of, is_refusal, was_ended_in_order
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.metrics import CONSUMED
from fedstac.workers.pages import (
    BEYOND_ALL,
    ComingPage,
    HandledPage,
    Handler,
    Page,
    PageReading,
    Rejection,
    strangers,
    without,
)

LONGEST_NAME, LONGEST_DETAIL = 650, 2000  # characters; of a name what fits into an index
REQUEUED_LOOK_SECONDS, REQUEUED_AWAY_SECONDS = 1.0, 15.0
ATTEMPTS = 3  # of an event, alone, after which it is parked
NARROWER = 3  # bits by which each death makes the portion of a page smaller
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _WrittenPage:
    """What was written of a page; it counts once the transaction is committed."""

    outcome: HandledPage
    parked_events: Sequence[parked.ParkedEvent]


class PageApplier:
    """Applies pages for one consumer. `on_parked` is called with the events that are parked, once that is committed."""

    def __init__(
        self, node: Node, handler: Handler, on_parked: Callable[[Sequence[parked.ParkedEvent]], object]
    ) -> None:
        self.node, self.handler = node, handler
        self._on_parked = on_parked
        self._deaths: int | None = None  # over the page that is due; None: not yet counted by this process
        self._requeued_at = 0.0  # the next look for what operators want to be tried again

    @property
    def has_applied_one(self) -> bool:
        """Return whether this process has applied a page, and no session crashed since."""
        return self._deaths == 0

    async def apply(self, coming: ComingPage) -> None:
        """Apply a page and move the cursor in one transaction; what cannot be applied is parked."""
        page, snapshot = coming.page, coming.following
        await self._count_death(page.origin)
        if self._deaths and page.events:
            killers = await self._apply_in_portions(page, max(len(page.events) >> NARROWER * self._deaths, 1))
            rejections = [*coming.rejections, *killers]
            await self._apply_at_once(replace(page, events=()), rejections, snapshot=snapshot, moves=True)
        else:
            await self._apply_at_once(page, coming.rejections, snapshot=snapshot, moves=True, reading=coming.reading)
        self._deaths = 0

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
                if not connections.is_open(conn) and not was_ended_in_order(error):
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
        self._report(page.origin, applied_page)

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

    def _report(self, origin: str, applied_page: _WrittenPage) -> None:
        """Count, log and tell what became of a page that is committed."""
        counts = Counter({"applied": applied_page.outcome.applied_count, "ignored": applied_page.outcome.ignored_count})
        counts.update(each.outcome for each in applied_page.parked_events)
        for outcome, count in counts.items():
            self.node.metrics.count(CONSUMED, self.handler.consumer, origin, outcome, by=count)
        for each in applied_page.parked_events:
            log.error(f"an event is {each.outcome}", event_id=each.event_id, subject=each.subject, detail=each.detail)
        self._on_parked(applied_page.parked_events)

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
                self._report(page.origin, applied_page)
                return []
        first, second = page.events[: size // 2], page.events[size // 2 :]
        return await self._halve(conn, replace(page, events=first)) + await self._halve(
            conn, replace(page, events=second)
        )

    async def apply_requeued(self, origin: str, applied_cursor: Cursor) -> None:
        """Apply the parked events that an operator wants to be tried again, each alone. What fails stays parked."""
        if time.monotonic() < self._requeued_at:
            return
        self._requeued_at = time.monotonic() + REQUEUED_LOOK_SECONDS
        async with self.node.pool.acquire() as conn:
            texts = await parked.requeued_events(conn, self.handler.consumer, origin)
        for event in map(orjson.loads, texts):
            page = Page(origin, [event], applied_cursor)
            rejections = strangers(page)
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

    async def _count_death(self, origin: str) -> None:
        """Count, once in a process, that it begins with a page: the count stays if the process dies over it.

        A page that is applied sets the count back with the cursor, so that later pages need no write of their own.
        """
        if self._deaths is None:
            async with self.node.pool.acquire() as conn:
                self._deaths = await nodes.begin_page(conn, self.handler.consumer, origin)
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
                # where the database is away the attempt counts, though it killed nobody
                await self.node.pool.try_elsewhere(lambda conn: nodes.end_attempt(conn, *key))
        return True


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


def _parked(rejection: Rejection) -> parked.ParkedEvent:
    event = rejection.event
    epoch, seq = _place(event)
    detail = _storable(rejection.reason, LONGEST_DETAIL)
    return parked.ParkedEvent(
        _event_id(event), _subject(event), epoch, seq, detail, orjson.dumps(event).decode(),
        outcome="rejected" if rejection.is_final else "parked",
    )  # fmt: skip
