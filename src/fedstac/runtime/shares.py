"""Places for work that takes long, shared fairly among clients: who has had least of them lately comes first."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from fedstac.domain.errors import TooManyRequests, Unavailable
from fedstac.runtime import budget
from fedstac.runtime.budget import Lane

WAIT_SECONDS = 5.0  # that work waits for a place
WAITING_PER_CLIENT = 20
WAITING_PER_PLACE = 100
HALF_LIFE = 30.0  # seconds after which half of what a client had is forgotten
MOST_CLIENTS = 10_000  # that are remembered


class FairShares:
    """Places of each lane. Background parts need none."""

    def __init__(self, places: Mapping[Lane, int]) -> None:
        self._by_lane = {lane: FairShare(count) for lane, count in places.items()}

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place of the lane of whoever is working, and hold it."""
        request = budget.current()
        share = self._by_lane.get(request.lane) if request is not None else None
        if request is None or share is None:
            yield
            return
        async with share.place(request.client):
            yield


class FairShare:
    """Some places, and who waits for them. A client's work is done in the order in which it came."""

    def __init__(self, places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free, self._most_waiting = places, places * WAITING_PER_PLACE
        self._clock = clock
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._waiting_count = 0
        self._running: Counter[str] = Counter()
        self._past: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by client: seconds, and as of when

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Hold a place. TooManyRequests where the client waits for many, Unavailable where it waits too long."""
        await self._take(client)
        began = self._clock()
        try:
            yield
        finally:
            self._give_back(client, self._clock() - began)

    async def _take(self, client: str) -> None:
        queue = self._waiting.get(client)
        if queue is not None and len(queue) >= WAITING_PER_CLIENT:
            raise TooManyRequests(
                f"{WAITING_PER_CLIENT} searches of yours, that take long, wait already; let them end first",
                retry_after=5,
            )
        if self._waiting_count >= self._most_waiting:
            raise _busy()
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(place)
        self._waiting_count += 1
        self._hand_out()
        try:
            async with asyncio.timeout(WAIT_SECONDS) as waiting:
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():  # it came at the last moment
                self._give_back(client, 0.0)
            else:
                self._leave(client, place)
            if isinstance(error, TimeoutError) and waiting.expired():
                raise _busy() from None
            raise

    def _leave(self, client: str, place: asyncio.Future[None]) -> None:
        """Take a place out of its queue, unless it is out already: it was cancelled, and then its turn came."""
        queue = self._waiting.get(client)
        if queue is None or place not in queue:
            return
        queue.remove(place)
        self._waiting_count -= 1
        if not queue:
            del self._waiting[client]

    def _give_back(self, client: str, seconds: float) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._past[client] = self._seconds_of(client) + seconds, self._clock()
        self._past.move_to_end(client)
        if len(self._past) > MOST_CLIENTS:
            self._past.popitem(last=False)
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        """Give free places to those who have fewest now, and of these to who had least lately."""
        while self._free and self._waiting:
            client = min(self._waiting, key=lambda each: (self._running[each], self._seconds_of(each)))
            place = self._waiting[client][0]
            self._leave(client, place)
            if not place.done():
                self._free -= 1
                self._running[client] += 1
                place.set_result(None)

    def _seconds_of(self, client: str) -> float:
        """Return seconds that a client had places, the older the less."""
        seconds, at = self._past.get(client, (0.0, 0.0))
        fading: float = 0.5 ** ((self._clock() - at) / HALF_LIFE)
        return seconds * fading


def _busy() -> Unavailable:
    return Unavailable("many searches that take long are under way; try again in a moment", retry_after=5)
