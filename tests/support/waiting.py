"""Waiting in tests: for a condition, and never so briefly that a slow machine fails.

A suite on a busy machine takes four times as long as on a quiet one, and more at times. So no test asserts how fast
something is. A wait ends when its condition holds. PATIENCE only ends a test that hangs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 120.0  # seconds


async def until(look: Callable[[], Awaitable[T]], seconds: float = PATIENCE) -> T:
    """Look until there is something, and return it. TimeoutError after so many seconds."""
    async with asyncio.timeout(seconds):
        while not (result := await look()):  # noqa: ASYNC110 (another process or session moves it)
            await asyncio.sleep(0.02)
        return result


class StoppedClock:
    """Stands in for the module `time` of the code under test: its clocks stand still until a test moves them on.

    What a test takes for itself does not count, however slow the machine is.
    """

    def __init__(self) -> None:
        self._time, self._monotonic = time.time(), time.monotonic()

    def advance(self, seconds: float) -> None:
        """Move both clocks on."""
        self._time += seconds
        self._monotonic += seconds

    def time(self) -> float:
        """Return seconds since the epoch, as time.time does."""
        return self._time

    def monotonic(self) -> float:
        """Return seconds of the monotonic clock, as time.monotonic does."""
        return self._monotonic
