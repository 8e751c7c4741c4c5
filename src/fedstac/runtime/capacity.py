"""What a process has to give at the same time beside connections: threads for long work, memory for large bodies."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from fedstac.domain.errors import TooManyRequests, Unavailable
from fedstac.runtime import budget
from fedstac.runtime.budget import Lane

T = TypeVar("T")

THREADS: Mapping[Lane, int] = {Lane.WORK: 2, Lane.READER: 1, Lane.ANONYMOUS: 1, Lane.HEALTH: 1}
WAITING_PER_THREAD = 100
SHARES: Mapping[Lane, float] = {Lane.WORK: 0.5, Lane.READER: 0.25, Lane.ANONYMOUS: 0.25, Lane.HEALTH: 0.0}
M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3  # malloc.h
TRIM_SECONDS = 1.0  # between two looks whether memory can go back to the system
REST_SECONDS = 20.0  # after the last large work, from which on there is none
TRIM_BYTES = 8 << 20  # as much as has to be free for that
WAIT_SECONDS = 5.0  # that an answer waits for memory


class Threads:
    """Threads for work that would hold the event loop, a few for each lane. All work is bounded."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(sum(THREADS.values()), thread_name_prefix="work")
        self._places = {lane: asyncio.Semaphore(count) for lane, count in THREADS.items()}
        self._users: Counter[Lane] = Counter()

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of the work. Unavailable if too much of the same lane waits already."""
        lane = budget.lane()
        if self._users[lane] >= THREADS[lane] * (1 + WAITING_PER_THREAD):
            raise Unavailable("many large requests are under way; try again in a moment", retry_after=2)
        self._users[lane] += 1
        try:
            places = self._places[lane]
            await places.acquire()
            loop = asyncio.get_running_loop()

            def free(_: object) -> None:  # when the thread is: it may outlive its request for a moment
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(places.release)

            running = self._executor.submit(contextvars.copy_context().run, work)
            running.add_done_callback(free)
            try:
                return await asyncio.wrap_future(running)
            finally:  # its error has this frame, which would keep it and the work until the next collection
                del running
        finally:
            self._users[lane] -= 1

    async def run_if(self, is_large: bool, work: Callable[[], T]) -> T:
        """Return the result of the work: of a thread where it is large, else of the event loop. Errors as of `run`."""
        return await self.run(work) if is_large else work()

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


class Memory:
    """Bytes that large bodies and answers may take at the same time, in shares for each lane.

    What is larger than its whole share gets it when nobody else has any of it.
    """

    def __init__(self, size: int) -> None:
        self._most = {lane: int(size * share) for lane, share in SHARES.items()}
        self._taken_bytes: Counter[Lane] = Counter()
        self._freed = asyncio.Event()
        self._trimming: asyncio.TimerHandle | None = None
        self._untrimmed = 0  # bytes that were given back since
        self._rests_at = 0.0  # by the clock of the event loop

    def share(self, lane: Lane) -> Share:
        """Return a share, which takes memory piece by piece and gives all of it back at once."""
        return Share(self, lane)

    @asynccontextmanager
    async def place(self, size: int) -> AsyncIterator[Share]:
        """Wait for memory. Unavailable if none is free for WAIT_SECONDS."""
        share = self.share(budget.lane())
        try:
            async with asyncio.timeout(WAIT_SECONDS) as waiting:
                while not share.fits(size):
                    await self._freed.wait()
        except TimeoutError:
            if not waiting.expired():
                raise
            raise Unavailable("many large answers are under way; try again in a moment", retry_after=2) from None
        share.take(size)
        try:
            yield share
        finally:
            share.give_back()

    def usage(self) -> dict[str, int]:
        """Return how many bytes each lane has."""
        return {str(lane): self._taken_bytes[lane] for lane in self._most}

    def limits(self) -> dict[str, int]:
        """Return how many bytes each lane may have."""
        return {str(lane): size for lane, size in self._most.items()}

    def fits(self, lane: Lane, size: int, own: int) -> bool:
        others = self._taken_bytes[lane] - own
        return others + own + size <= self._most[lane] or others == 0

    def move(self, lane: Lane, size: int) -> None:
        self._taken_bytes[lane] += size
        if size < 0:
            self._freed.set()
            self._freed = asyncio.Event()
            self._untrimmed -= size
            if self._trimming is None and self._untrimmed >= TRIM_BYTES:
                self._trim_later()

    def _trim_later(self) -> None:
        self._trimming = asyncio.get_running_loop().call_later(TRIM_SECONDS, self._trim)

    def _trim(self) -> None:
        """Give back what the C library keeps of freed memory, now and then until there was no large work for a while.

        That takes no time of the event loop. The last time has the garbage, too, and what the workers freed meanwhile.
        """
        loop = asyncio.get_running_loop()
        self._trimming = None
        if self._untrimmed >= TRIM_BYTES:
            self._untrimmed, self._rests_at = 0, loop.time() + REST_SECONDS
            loop.run_in_executor(None, trim_memory)
        elif not any(self._taken_bytes.values()) and loop.time() >= self._rests_at:
            gc.collect()
            loop.run_in_executor(None, trim_memory)
            return
        self._trim_later()


class Share:
    """What one request has of the memory."""

    def __init__(self, memory: Memory, lane: Lane) -> None:
        self._memory = memory
        self.lane = lane
        self.size = 0

    def fits(self, size: int) -> bool:
        return self._memory.fits(self.lane, size, self.size)

    def take(self, size: int) -> None:
        self._memory.move(self.lane, size)
        self.size += size

    def check(self, size: int) -> None:
        """Raise TooManyRequests if so much more is not free: nothing waits with a half-read body."""
        if not self.fits(size):
            raise TooManyRequests("many large bodies are under way; send this one again in a moment", retry_after=2)

    def require(self, size: int) -> None:
        """Take more, or raise as `check` does."""
        self.check(size)
        self.take(size)

    def give_back(self) -> None:
        if self.size:
            self._memory.move(self.lane, -self.size)
            self.size = 0


def tame_allocator() -> None:
    """Tell glibc, which is made for speed, to give memory back: few arenas, and large blocks by themselves."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 2)
        libc.mallopt(M_MMAP_THRESHOLD, 256 << 10)


def trim_memory() -> None:
    """Give what the C library keeps of freed memory back to the system, where it is glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
