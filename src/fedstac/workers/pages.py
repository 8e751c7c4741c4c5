"""Pages: what a follower gives to the handler of a consumer, and what it gets back.

workers/following.py receives pages, and page_applying.py applies them. A consumer is a handler of them, in a module of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from fedstac.db.connections import Connection
from fedstac.domain import events
from fedstac.domain.events import Cursor
from fedstac.messaging.sources import Offsets, RawEvent, UnreadableMessage

LONG_PAGE = 250  # events
BEYOND_ALL = 2**63 - 1  # an epoch that none is after
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Page:
    """Some events of an origin in their order; `cursor` is the place in its feed after them."""

    origin: str
    events: Sequence[RawEvent]
    cursor: Cursor
    ends_snapshot: bool = False
    offsets: Offsets = field(default_factory=dict)  # the broker's own place after the page
    readings: Mapping[int, Any] = field(default_factory=dict)  # what the handler made of events, by their identity


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event that cannot be applied, and why. `is_final`: this node takes no such event, whatever is mended."""

    event: RawEvent
    reason: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class PageReading:
    """What a handler made of the events of a page, by their identity, and those that cannot be applied."""

    values: Mapping[int, Any]
    rejections: Sequence[Rejection] = ()


@dataclass(frozen=True, slots=True)
class HandledPage:
    """The result of events that a handler applied."""

    applied_count: int
    ignored_count: int  # here already, or older than what is here
    rejections: Sequence[Rejection] = ()  # of those that this node does not take


def log_applied(page: Page, *, applied_count: int, ignored_count: int) -> None:
    """Log what a handler applied of a page; nothing where that is nothing."""
    if applied_count:
        log.info(
            "applied", origin=page.origin, events=applied_count, ignored=ignored_count, cursor=str(page.cursor),
            traces=events.traces_of(event.get("traceparent") for event in page.events),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ComingPage:
    """A page that was received. reading: of its own events, unless the page is to be read when it is applied.

    following: where the next page of a snapshot is. None: this is the last one, or no snapshot.
    """

    page: Page
    rejections: Sequence[Rejection] = ()  # of what is no event of this origin
    reading: PageReading | None = None
    following: str | None = None


class Handler(Protocol):
    """What a consumer makes of the events of one origin."""

    consumer: str  # its name: cursor, parked events and lock are kept by consumer and origin

    async def prepare(self, page: Page) -> PageReading:
        """Do what has no place in a transaction: fetch, read, judge. The page before may not be applied yet."""
        ...

    async def handle(self, conn: Connection, page: Page) -> HandledPage:
        """Apply events that have their readings in the page. Return what became of them.

        It joins the caller's transaction, which moves the cursor. The same events again change nothing.
        """
        ...

    async def acknowledgeable(self, origin: str, applied_cursor: Cursor) -> Cursor:
        """Return through where the origin may be told that everything is done; it may lag behind what is applied."""
        ...


def without(page: Page, rejections: Sequence[Rejection]) -> Page:
    """Return the page less some of its events."""
    if not rejections:
        return page
    omitted = {id(rejection.event) for rejection in rejections}
    return replace(page, events=[event for event in page.events if id(event) not in omitted])


def strangers(page: Page) -> list[Rejection]:
    """Reject the events that are another origin's than the one that announced them."""
    return [
        Rejection(event, f"{page.origin} announced what {str(event.get('source'))[:63]} is the origin of", True)
        for event in page.events
        if event.get("source") != page.origin
    ]


def unreadable(message: UnreadableMessage, origin: str) -> Rejection:
    """Return what is parked of a message that is no event: its place in the broker is its name."""
    event = {"id": message.place, "subject": message.place, "source": origin, "message": message.text}
    return Rejection(event, message.reason, is_final=True)
