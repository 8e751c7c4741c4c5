"""Supervision: background parts that end are started again, and what ails them is logged once and shown.

A part has two layers. `keep_trying` is its loop: it runs a step again and again, whatever the step raises.
`keep_working` is that of a part whose steps take their share of the time, where there is work. `keep_running` stands
around the whole part: it starts a part again that ended, raised outside its loop, or was cancelled.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from uuid import uuid4

import structlog

from fedstac.runtime.causes import Cause, cause_of, statement_of
from fedstac.runtime.commits import CommitWatch
from fedstac.runtime.outages import Outage, reason_of
from fedstac.runtime.wakeup import Backoff, Wakeup, pause

MOST_ENDS, WINDOW_SECONDS = 10, 300.0  # a part that ends so often within this time ends the process
FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS = 0.1, 10.0
ENDED = "ended"  # the kind of trouble of a part that was started again
MOST_TROUBLES = 10  # that a part is said to have
LOOK_SECONDS = 1.0  # between looks of a part for something to do
LONGEST_REST_SECONDS = 2.0  # between steps that are due
FORGOTTEN_SECONDS = 60.0  # after which a trouble that does not come again is over
Expected = Mapping[type[Exception], str]  # errors that are no fault of ours, and the line to log for each
log = structlog.get_logger()


class PartGaveUp(Exception):
    """A background part ended again and again. The process ends with this, so that whoever runs it takes notice."""


@dataclass(slots=True)
class Trouble:
    """What ails a part, from when it begins until the part works again."""

    reason: str  # one line, for everybody
    last_time: float  # when it last came, by time.monotonic
    times: int = 1


@dataclass(slots=True)
class PartState:
    """How a part of this process stands; several instances of one name share it."""

    wanted: int = 0  # instances that should run
    running: int = 0
    restarts: int = 0
    troubles: dict[str, Trouble] = field(default_factory=dict)  # by kind

    @property
    def trouble(self) -> str | None:
        """All that ails it, in one line."""
        return "; ".join(trouble.reason for trouble in self.troubles.values()) or None


@dataclass(slots=True)
class Parts:
    """The background parts of this process. `outage`: of their database, which is one trouble of the whole process."""

    outage: Outage
    process: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}")
    states: dict[str, PartState] = field(default_factory=dict)
    changed: Wakeup = field(default_factory=Wakeup)
    gave_up: PartGaveUp | None = None

    def fails(self, name: str, error: BaseException, expected: Expected = MappingProxyType({})) -> None:
        """Note that a step of a part failed. One line is logged when the trouble begins, and none while it lasts.

        `expected` errors have a line of their own.
        """
        cause = cause_of(error)
        if cause is Cause.CONFLICT:
            log.info("a conflict in the database; it can be tried again", part=name, reason=reason_of(error))
            return
        if cause is Cause.AWAY:
            self.outage.failed(error)
            return
        reason = reason_of(error)
        # the texts of our own faults may speak of one request, those of missing things name the thing
        kind = type(error).__name__ if cause in (Cause.OURS, Cause.REFUSED) else reason
        line = next((line for kind, line in expected.items() if isinstance(error, kind)), None)
        if not self._begins(name, kind, line or _public_reason(error)):
            return
        log.error(
            line or "a part fails; it tries again", part=name, reason=reason, statement=statement_of(error),
            exc_info=error if cause is Cause.OURS and line is None else None,
        )  # fmt: skip

    def works(self, name: str) -> None:
        """Note that a step of a part succeeded: its trouble, if it had one, is over."""
        for kind in [kind for kind in self.state(name).troubles if kind != ENDED]:
            self._is_over(name, kind)

    def forget_old_troubles(self) -> None:
        """End troubles that have not come again for a while: their part has nothing to do that could fail."""
        for name, state in self.states.items():
            for kind, trouble in list(state.troubles.items()):
                if time.monotonic() - trouble.last_time > FORGOTTEN_SECONDS:
                    self._is_over(name, kind)

    def troubles(self) -> dict[str, str]:
        """Return what ails each part that is not well."""
        return {name: state.trouble for name, state in self.states.items() if state.trouble is not None}

    def ended(self, name: str, error: BaseException | None, reason: str) -> None:
        """Note that a part ended, and is started again."""
        self.state(name).restarts += 1
        self.state(name).troubles.pop(ENDED, None)
        self._begins(name, ENDED, f"it ended: {_public_reason(error) if error else reason}")
        log.error("a part ended; it is started again", part=name, reason=reason, exc_info=error)

    def state(self, name: str) -> PartState:
        return self.states.setdefault(name, PartState())

    def _begins(self, name: str, kind: str, reason: str) -> bool:
        """Count a trouble. Return whether it is a new one."""
        troubles = self.state(name).troubles
        if (trouble := troubles.get(kind)) is not None:
            trouble.last_time, trouble.times = time.monotonic(), trouble.times + 1
            return False
        if len(troubles) >= MOST_TROUBLES:
            del troubles[next(iter(troubles))]
        troubles[kind] = Trouble(reason, time.monotonic())
        self.changed.wake()
        return True

    def _is_over(self, name: str, kind: str) -> None:
        trouble = self.state(name).troubles.pop(kind)
        log.info("a part works again", part=name, times=trouble.times, reason=trouble.reason)
        self.changed.wake()


def _public_reason(error: BaseException) -> str:
    """Return an error in one line, for everybody: the text of a fault of ours may speak of a hidden dataset."""
    return reason_of(error) if cause_of(error) in (Cause.OPERATORS, Cause.SCHEMA) else type(error).__name__


async def keep_trying(
    parts: Parts,
    name: str,
    step: Callable[[], Awaitable[object]],
    stop: asyncio.Event,
    *,
    commits: CommitWatch | None = None,
    backoff: Backoff | None = None,
    expected: Expected = MappingProxyType({}),
) -> None:
    """Run a step of a part again and again until `stop`; after an error, with a pause that grows.

    The step waits by itself when it has nothing to do. It returns False when it did nothing that could have failed.
    With `commits` the first step comes once something waits for the part.
    """
    backoff = backoff or Backoff(least=0.1, most=5.0)
    if commits is not None:
        await commits.pause(name, stop, 0.0)
    while not stop.is_set():
        try:
            outcome = await step()
        except Exception as error:
            parts.fails(name, error, expected)
            await pause(stop, backoff.pause())
            continue
        backoff.reset()
        if outcome is not False:
            parts.works(name)


class SendTrouble:
    """Whether what a part sends is not taken just now: it is shown until it is, and tried again, each time later."""

    def __init__(self, parts: Parts, sentences: Expected, *, most: float) -> None:
        self._parts, self._sentences = parts, sentences
        self._backoff = Backoff(least=0.5, most=most)
        self.is_on = False

    def begin(self, part: str, error: Exception) -> float:
        """Show the trouble. Return the seconds after which to try again."""
        self.is_on = True
        self._parts.fails(part, error, self._sentences)
        return self._backoff.pause()

    def end(self, part: str) -> None:
        """Show it no more."""
        if self.is_on:
            self.is_on = False
            self._backoff.reset()
            self._parts.works(part)


async def keep_working(
    parts: Parts, name: str, step: Callable[[], Awaitable[float | None]], stop: asyncio.Event, *,
    commits: CommitWatch | None = None,
) -> None:  # fmt: skip
    """Do the steps of a part until `stop`, as `keep_trying`, and leave others the rest of the time.

    The step returns the share of the time that such steps may take, or None where there was nothing to do: then the
    next look comes LOOK_SECONDS later, and says nothing of whether the part works. With `commits` the part looks only
    once something waits for it, the first time too.
    """

    async def work() -> bool:
        started = time.perf_counter()
        share = await step()
        seconds = time.perf_counter() - started
        if share is None and commits is not None:
            await commits.pause(name, stop, LOOK_SECONDS)
        else:
            await pause(stop, LOOK_SECONDS if share is None else rest_seconds(seconds, share))
        return share is not None

    await keep_trying(parts, name, work, stop, commits=commits)


def rest_seconds(seconds: float, share: float) -> float:
    """Return the pause after a step that took so many seconds, so that steps take a share of the time (1: all)."""
    return min(seconds * (1 / share - 1), LONGEST_REST_SECONDS)


async def keep_running(
    parts: Parts, name: str, run: Callable[[], Coroutine[object, object, None]], stop: asyncio.Event
) -> None:
    """Run a part until `stop`, and start it again whenever it ends. One that ends too often sets `stop`."""
    state = parts.state(name)
    state.wanted += 1
    ends: deque[float] = deque(maxlen=MOST_ENDS)
    while not stop.is_set():
        task = asyncio.create_task(run(), name=name)
        state.running += 1
        try:
            await asyncio.wait((task,))
        finally:
            state.running -= 1
            if not task.done():  # we are cancelled
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        error = None if task.cancelled() else task.exception()
        if stop.is_set():
            return
        reason = "it was cancelled" if task.cancelled() else reason_of(error) if error else "it returned"
        parts.ended(name, error, reason)
        ends.append(time.monotonic())
        if len(ends) == MOST_ENDS and ends[-1] - ends[0] < WINDOW_SECONDS:
            parts.gave_up = PartGaveUp(f"the part {name} ended {MOST_ENDS} times; the last time: {reason}")
            log.critical("a part ends again and again; the process ends", part=name, ends=MOST_ENDS, reason=reason)
            stop.set()
            return
        await pause(stop, _restart_seconds(sum(ends[-1] - end < WINDOW_SECONDS for end in ends)))


def _restart_seconds(ends: int) -> float:
    """Return the pause before a part starts again: doubling, spread so that not all come at once."""
    return min(FIRST_RESTART_SECONDS * 2.0 ** (ends - 1), LONGEST_RESTART_SECONDS) * random.uniform(0.5, 1.5)  # noqa: S311
