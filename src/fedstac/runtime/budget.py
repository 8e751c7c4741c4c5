"""The budget of a request: the lane that it works in, and one deadline for all of its work.

Whoever works for a request looks its budget up with `current()`. Background parts have none: nothing limits their time.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from enum import StrEnum
from types import TracebackType
from typing import Any

GRACE_SECONDS = 0.4  # that cancelled work has to end by itself, before its connections are cut


class Lane(StrEnum):
    """Which database connections a piece of work takes. Full lanes do not slow each other down."""

    HEALTH = "health"
    WORK = "work"  # writes, and everything that is not a request
    READER = "reader"  # reads of callers with a valid token
    ANONYMOUS = "anonymous"  # reads of everybody else


class Budget:
    """Runs the body of `async with` until the deadline, then cancels it and raises the reason.

    `end` does the same earlier, for another reason. Work that goes on for GRACE_SECONDS after that loses what it has
    registered with `on_overrun`: an answer comes in time also when the database does not answer at all.

    among: the budgets that are open, for whoever ends all of them.
    """

    def __init__(
        self, seconds: float, lane: Lane, reason: Callable[[], Exception], *, among: set[Budget] | None = None
    ) -> None:
        self.lane = lane
        self.client = ""  # who asks: one name for all requests that share what one may have
        self._seconds = seconds
        self._reason = reason
        self._among = among
        self._ended: Exception | None = None
        self._is_over = False
        self._overruns: set[Callable[[], object]] = set()

    async def __aenter__(self) -> Budget:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._seconds, self._expire)
        self._before = _current.set(self)
        if self._among is not None:
            self._among.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._before)
        self._timer.cancel()
        if self._among is not None:
            self._among.discard(self)
        if self._ended is None:
            self._is_over = kind is not None  # a thread that still works for the request gives up
            return
        if self._task.uncancel() <= self._cancelling and kind is not None:
            raise self._ended from error

    def extend(self, seconds: float) -> None:
        """Move the deadline: a wait that the caller asked for, or caused, is not our work."""
        if self._ended is None and seconds > 0:
            self._timer.cancel()
            self._timer = self._loop.call_at(self._timer.when() + seconds, self._expire)

    def end(self, reason: Exception) -> None:
        """Cancel the work now."""
        if self._ended is None:
            self._ended = reason
            self._timer.cancel()
            self._task.cancel()
            self._timer = self._loop.call_later(GRACE_SECONDS, self._overrun)

    @property
    def has_ended(self) -> bool:
        return self._ended is not None or self._is_over

    def on_overrun(self, cut: Callable[[], object]) -> Callable[[], None]:
        """Register what ends work that does not end by itself; return how to take that back."""
        self._overruns.add(cut)
        return lambda: self._overruns.discard(cut)

    def _expire(self) -> None:
        self.end(self._reason())

    def _overrun(self) -> None:
        for cut in tuple(self._overruns):
            cut()


_current: contextvars.ContextVar[Budget | None] = contextvars.ContextVar("budget", default=None)


def current() -> Budget | None:
    """Return the budget of the request that is worked on; None in a background part."""
    return _current.get()


def lane() -> Lane:
    """Return the lane of whoever is working."""
    budget = _current.get()
    return budget.lane if budget else Lane.WORK


class Abandoned(Exception):
    """The request that a thread works for has ended."""


def checkpoint() -> None:
    """Raise Abandoned if the request has ended. Long work in a thread calls it often: nobody else stops a thread."""
    budget = _current.get()
    if budget is not None and budget.has_ended:
        raise Abandoned


def extend(seconds: float) -> None:
    """Add an agreed waiting time to the budget of the request that is worked on."""
    if budget := _current.get():
        budget.extend(seconds)


def detached(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Return a task for several requests: it outlives the budget of the one that started it."""
    context = contextvars.copy_context()
    context.run(_current.set, None)
    return asyncio.create_task(work, context=context)
