"""Wake-ups inside a process; across processes the same waits end by polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Wakeup:
    """Something may have happened: whoever waits looks again. Waking nobody is harmless, and so is waking too often."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        """End every wait that is under way."""
        self._event.set()
        self._event = asyncio.Event()

    def next(self) -> Callable[[float], Coroutine[Any, Any, bool]]:
        """Return a wait for the next wake from now on: take it, look, then wait, and nothing falls between."""
        event = self._event

        async def wait(seconds: float) -> bool:
            """Wait until the wake or the end of the time. Return which of them it was."""
            try:
                await asyncio.wait_for(event.wait(), seconds)
            except TimeoutError:
                return False
            return True

        return wait


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end, whatever it is."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but not beyond `stop`."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Do work that may be cut short anywhere. Return None if `stop` came first."""
    stop_task, work_task = asyncio.create_task(stop.wait()), asyncio.create_task(work)
    try:
        await asyncio.wait((stop_task, work_task), return_when=asyncio.FIRST_COMPLETED)
        return work_task.result() if work_task.done() else None
    finally:
        await cancel(stop_task, work_task)


class Backoff:
    """How long to wait before looking again: from `least` growing to `most` seconds; anew after a success.

    A growth of 1.1 waits a tenth of the time that it has waited already: what comes back is found that soon.
    """

    def __init__(self, least: float = 0.05, most: float = 0.5, *, growth: float = 2.0) -> None:
        self.least, self.most, self.growth, self._next = least, most, growth, least

    def reset(self) -> None:
        self._next = self.least

    def pause(self) -> float:
        current, self._next = self._next, min(self._next * self.growth, self.most)
        return current
