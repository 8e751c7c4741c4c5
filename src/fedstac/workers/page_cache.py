"""Pages of the log that were read a moment ago, for subscriptions that come to the same place one after the other.

Each receiver has its own pace, so subscriptions that began together reach the next page at different moments. What a
page says is read and parsed once for all of them; what they may read of it is asked anew each time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedstac.bootstrap import Node
from fedstac.db import feed, subscription_events
from fedstac.db.connections import Connection
from fedstac.domain.events import Cursor
from fedstac.domain.subscriptions import LogPage
from fedstac.workers import delivering

PAGE_EVENTS: Final = 500  # of one reading of the log
KEPT_SECONDS: Final = 5.0  # a deletion takes the text of events away: what was read before is soon forgotten
MOST_BYTES: Final = 16 << 20  # of the texts of the pages that are kept; parsed they take several times as much


@dataclass(frozen=True, slots=True)
class ReadPage:
    """What some collections (None: all) have in the log after a place and through another one.

    epoch: of the log when it was read. at: by the clock of the cache. size: of the texts, in characters.
    """

    after: int
    through: Cursor
    epoch: int
    collections: frozenset[str] | None
    log_page: LogPage
    at: float
    size: int

    def serves(self, place: Cursor, collections: frozenset[str] | None) -> bool:
        """Tell whether it has what comes next after a place, for these collections."""
        is_at = place.epoch == self.epoch and self.after <= place.pos < self.through.pos
        return is_at and (self.collections is None or (collections is not None and collections <= self.collections))


class PageCache:
    """Reads the log page by page, and keeps the pages that were read last. For one task at a time."""

    def __init__(
        self, node: Node, *, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._node, self._most_bytes, self._clock = node, most_bytes, clock
        self._pages: deque[ReadPage] = deque()  # the oldest first
        self.reading_count = 0

    async def read(self, conn: Connection, after: Cursor, collections: frozenset[str] | None) -> ReadPage:
        """Return a page with the next events of some collections. CursorGone where the log does not go on there."""
        place = await feed.resume(conn, after)
        self._forget()
        fitting_pages = [each for each in self._pages if each.serves(place, collections)]
        if fitting_pages:
            return max(fitting_pages, key=lambda each: each.through)
        self.reading_count += 1
        log_slice = await subscription_events.look(conn, place, collections, PAGE_EVENTS)
        log_page, through = LogPage((), {}, {}), log_slice.through
        if log_slice.events:
            log_page = await delivering.read_page(self._node, conn, log_slice.events)
            if len(log_page.events) < len(log_slice.events):
                through = log_page.events[-1].cursor
        earlier = [event for event in log_page.previous.values() if event is not None]
        size = sum(len(event.text) for event in (*log_page.events, *earlier))
        page = ReadPage(place.pos, through, place.epoch, collections, log_page, self._clock(), size)
        if through.pos > place.pos:
            self._pages.append(page)
            self._forget()
        return page

    def _forget(self) -> None:
        """Drop what is old, and what is too much."""
        oldest = self._clock() - KEPT_SECONDS
        while self._pages and (
            self._pages[0].at < oldest or sum(each.size for each in self._pages) > self._most_bytes
        ):  # fmt: skip
            self._pages.popleft()
