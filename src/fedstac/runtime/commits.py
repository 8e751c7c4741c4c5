"""One look for a whole process: whether anything was committed, and for which parts something waits.

Parts and requests wait for what others store. Wake-ups tell them of this process at once; of other processes each part
once asked PostgreSQL for itself, up to four times a second. Now one statement asks for all of them: a snapshot of
PostgreSQL is another one after each commit. Where nothing was committed there is nothing new, and nobody has to look.

While nobody takes this look, or the database fails it, everybody looks as often as if it were not there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from fedstac.runtime.wakeup import Wakeup, pause, unless

TICK_SECONDS: Final = 0.25  # between looks: no part that waits for a commit looks more often once it is idle
PATIENCE_SECONDS: Final = 30.0  # after which everybody looks all the same


class CommitWatch:
    """What the last look saw. It wakes the process for each commit of others, as the process does for its own."""

    def __init__(self, wakeups: Sequence[Wakeup], *, by_part: Mapping[str, Wakeup] = MappingProxyType({})) -> None:
        """Take wake-ups for each commit, and those `by_part` for commits that leave something for the part to do."""
        self._wakeups, self._by_part = tuple(wakeups), dict(by_part)
        self._news = Wakeup()
        self._snapshot = ""
        self._read_at = 0.0
        self._waiting: Mapping[str, bool] | None = None  # by part; None: nobody looks just now

    def is_news(self, snapshot: str) -> bool:
        """Return whether something was committed since the last look, or what waits was read long ago."""
        is_old = time.monotonic() - self._read_at > PATIENCE_SECONDS
        return self._waiting is None or snapshot != self._snapshot or is_old

    def note(self, snapshot: str, waiting: Mapping[str, bool]) -> None:
        """Note a look: for which parts something waits, now or within PATIENCE_SECONDS, read after the snapshot."""
        is_other = waiting != self._waiting
        self._snapshot, self._waiting, self._read_at = snapshot, waiting, time.monotonic()
        for wakeup in (*self._wakeups, *(each for part, each in self._by_part.items() if waiting[part])):
            wakeup.wake()
        if is_other:
            self._news.wake()

    def lose(self) -> None:
        """Note that nobody looks just now: everybody looks for themselves."""
        self._waiting = None
        for wakeup in (*self._wakeups, *self._by_part.values(), self._news):
            wakeup.wake()

    def has_work(self, part: str) -> bool:
        """Return whether a part may have something to do, now or soon; it may, where nobody knows."""
        return self._waiting is None or self._waiting[part]

    def patience(self, seconds: float, *, part: str | None = None, most: float = PATIENCE_SECONDS) -> float:
        """Return for how long to wait for a wake-up, instead of these seconds: a commit ends the wait in time.

        Short waits stay as they are, and so do those of a part for which something waits.
        """
        is_watched = self._waiting is not None and (part is None or not self._waiting[part])
        return max(seconds, most) if is_watched and seconds >= TICK_SECONDS else seconds

    async def pause(self, part: str, stop: asyncio.Event, seconds: float) -> None:
        """Wait so long before a part looks again, and on for as long as nothing is there for it to do."""
        if seconds:
            await pause(stop, seconds)
        end = time.monotonic() + PATIENCE_SECONDS
        while not stop.is_set():
            next_news = self._news.next()
            rest = end - time.monotonic()
            if self.has_work(part) or rest <= 0:
                return
            await unless(stop, next_news(rest))
