"""Lets many threads read what one writer of the event loop changes, never both at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager


class Gate:
    """Readers are threads, and wait for a writer that waits. The event loop reads in one go, and needs no gate."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._is_wanted = False  # by the writer
        self._on_empty: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read, in a thread."""
        with self._condition:
            self._condition.wait_for(lambda: not self._is_wanted)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                if not self._readers and self._on_empty is not None:
                    loop, event = self._on_empty
                    if not loop.is_closed():
                        loop.call_soon_threadsafe(event.set)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write, in the event loop: there is one writer, and it does not pause."""
        empty = asyncio.Event()
        with self._condition:
            self._is_wanted = True
            self._on_empty = asyncio.get_running_loop(), empty
            if not self._readers:
                empty.set()
        try:
            await empty.wait()
            yield
        finally:
            with self._condition:
                self._is_wanted = False
                self._on_empty = None
                self._condition.notify_all()
