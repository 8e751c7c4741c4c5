"""Pages of the log that were read a moment ago, for readers who come to the same place one after the other.

Each reader has a pace of their own, so those who began together reach the next page at different moments. What a
page says is read and parsed once for all of them; what they may read of it is asked anew each time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from fedstac.bootstrap import Node
from fedstac.db import feed, grant_turns, subscription_events
from fedstac.db.connections import Connection
from fedstac.domain.events import Cursor, LoggedEvent, current
from fedstac.domain.grants import PASSAGE
from fedstac.domain.subscriptions import LogPage
from fedstac.domain.vocabulary import UnknownVersion
from fedstac.vocabularies.registry import Vocabularies

PAGE_EVENTS: Final = 500  # of one reading of the log
KEPT_SECONDS: Final = 5.0  # a deletion takes the text of events away: whoever reads looks whether there was one
T = TypeVar("T")
MOST_BYTES: Final = 16 << 20  # of the texts of the pages that are kept; parsed they take several times as much


class RunInThread(Protocol):
    """Runs work beside the event loop."""

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Return the result of the work."""
        ...


async def in_any_thread(work: Callable[[], T]) -> T:
    """Return the result of work of this process's own, for which nothing bounds the threads."""
    return await asyncio.to_thread(work)


async def read_page(
    node: Node, conn: Connection, events: Sequence[LoggedEvent], *, run: RunInThread = in_any_thread
) -> LogPage:  # fmt: skip
    """Read events with what each dataset was before; the first few of them where that is large."""
    previous = await subscription_events.previous_events(conn, events)
    passages = await grant_turns.states_at(conn, [event for event in events if event.type == PASSAGE])
    is_complete = [
        event.dataset is None or (event.cursor.pos in previous and event.cursor.pos < passages.end) for event in events
    ]
    count = is_complete.index(False) if False in is_complete else len(events)
    vocabularies = node.checker.vocabularies
    states = {
        pos: current(record, record.epoch, vocabularies.digest_of) for pos, record in passages.by_position.items()
    }
    return await run(partial(LogPage.read, events[:count], previous, partial(_institution_of, vocabularies), states))


def _institution_of(vocabularies: Vocabularies, data: Mapping[str, Any]) -> str | None:
    """Return whose dataset it is, for the policy; None where that cannot be said."""
    document, cv = data.get("document"), data.get("cv")
    if document is None or not isinstance(cv, Mapping):
        return None
    try:
        vocabulary = vocabularies.at(data["collection"], cv["version"])
    except UnknownVersion:
        return None
    institution = document["properties"].get(vocabulary.institution)
    return institution if isinstance(institution, str) else None


@dataclass(frozen=True, slots=True)
class ReadPage:
    """What some collections (None: all) have in the log after a place and through another one.

    epoch: of the log when it was read. at: when its reading began, by the clock of the cache. size: of the texts, in
    characters.
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

    def part(self, after: int, count: int | None) -> tuple[LogPage, Cursor]:
        """Return so many events after a position at most (None: all), and the place that they reach to."""
        log_page = self.log_page.after(after)
        if count is None or len(log_page.events) <= count:
            return log_page, self.through
        events = log_page.events[:count]
        return replace(log_page, events=events), events[-1].cursor


class PageCache:
    """Reads the log page by page, and keeps the pages that were read last. For the tasks of one event loop."""

    def __init__(
        self, node: Node, *, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.node, self._most_bytes, self._clock = node, most_bytes, clock
        self._pages: deque[ReadPage] = deque()  # the oldest first
        self.reading_count = 0

    @property
    def now(self) -> float:
        """The time by its clock."""
        return self._clock()

    async def read(
        self, conn: Connection, after: Cursor, collections: frozenset[str] | None, *, size: int | None = None,
        is_fresh: bool = False, run: RunInThread = in_any_thread,
    ) -> ReadPage:  # fmt: skip
        """Return a page with the next events of some collections. CursorGone where the log does not go on there.

        size: events of a page that has to be read. is_fresh: a page that is kept does not do.
        """
        place = await feed.resume(conn, after)
        self._forget()
        fitting_pages = [each for each in self._pages if each.serves(place, collections)]
        if fitting_pages and not is_fresh:
            return max(fitting_pages, key=lambda each: each.through)
        for each in fitting_pages:
            self._pages.remove(each)
        self.reading_count += 1
        begin = self._clock()
        log_slice = await subscription_events.look(conn, place, collections, size or PAGE_EVENTS)
        log_page, through = LogPage((), {}, {}), log_slice.through
        if log_slice.events:
            log_page = await read_page(self.node, conn, log_slice.events, run=run)
            if len(log_page.events) < len(log_slice.events):
                through = log_page.events[-1].cursor
        datasets = [dataset.event for dataset in log_page.datasets.values()]
        others = [event for event in log_page.events if event.dataset is None]
        characters = sum(len(event.text) for event in (*datasets, *others))
        page = ReadPage(place.pos, through, place.epoch, collections, log_page, begin, characters)
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
