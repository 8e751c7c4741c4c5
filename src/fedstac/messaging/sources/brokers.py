"""A broker's log as an event source: its messages in the order of the origin's log, each event once.

A broker is a module beside this one that has `open_log(address) -> BrokerLog`. While it is away, the origin's own feed
stands in for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Protocol, Self

import structlog

from fedstac.domain.events import START, Cursor
from fedstac.messaging.probing import can_be_reached
from fedstac.messaging.sources import EventPage, Offsets, SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.messaging.sources.chain import Chain, Gap, LogMessage
from fedstac.messaging.sources.http import HttpSource
from fedstac.runtime.wakeup import cancel

PAIR_PATIENCE_SECONDS = 0.5  # for what comes after the clearing of a dataset, which may publish it again
GAP_PATIENCE_SECONDS = 1.0  # for an event that another partition may still bring
READ_MESSAGES = 1000
REACH_SECONDS = 2.0  # between looks for a broker that is away
SILENCE_SECONDS = 3.0  # of a broker, after which the origin is asked whether it has more
EPOCH_SECONDS, EPOCH_REST_SECONDS = 5.0, 60.0  # that the origin has to say its epoch, and before it is asked again
ORIGIN_SECONDS = 1.0  # that its answer is waited for before the broker is listened to again
log = structlog.get_logger()


class BrokerLog(Protocol):
    """Reads the messages of a stream or topic. Its methods raise SourceAway where the broker fails.

    `identity`, as of the last `seek`, changes when the stream or topic is made anew.
    """

    @property
    def identity(self) -> str: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def seek(self, after: Cursor, offsets: Offsets) -> Collection[str]:
        """Go where events after a cursor may begin, and return the names of all partitions.

        `offsets` say where to read on, by partition. They are empty where they are not known, and wrong where the log
        was made anew: look for the cursor's pos then, or begin at the start. Too early a place costs time only; at too
        late a place the rest comes from the origin's feed.
        """
        ...

    async def read(self, limit: int, wait: float, *, without: Collection[str]) -> Sequence[LogMessage]:
        """Return the next messages, after up to `wait` seconds; none of the partitions `without`, which stay behind.

        Return as soon as there is one. At most `limit` of them, and some 16 MB.
        """
        ...


class BrokerSource:
    """The events of one origin as a broker has them; `feed` is the origin's own, which fills what is missing."""

    def __init__(self, log: BrokerLog, feed: HttpSource, address: BrokerAddress) -> None:
        self._log, self._feed, self._address = log, feed, address
        self._is_away = False
        self._reach_at = 0.0  # when a broker that is away is looked for again, by time.monotonic
        self._chain = Chain(START)
        self._gap: Gap | None = None
        self._gap_since = 0.0
        self._epoch_at = 0.0  # when the origin is asked for its epoch, by time.monotonic; until it says it
        self._heard_at = 0.0  # when the broker last gave something, or the origin had nothing more
        self._question: asyncio.Task[EventPage] | None = None  # what the origin has beyond a silent broker
        self._asked_after = START
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._resources.enter_async_context(self._feed)
        await self._resources.enter_async_context(self._log)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._drop_question()
        await self._resources.aclose()

    async def begin(self, after: Cursor, offsets: Offsets) -> None:
        """Go to a place in the log; of a broker that is away when it is back."""
        await self._drop_question()
        self._chain = Chain(after, dict(offsets))
        self._gap, self._heard_at, self._epoch_at = None, time.monotonic(), 0.0
        await self._reach()

    async def _reach(self) -> None:
        """Go to our place in the broker's log, or find that the broker is away."""
        try:
            if self._is_away and not await can_be_reached(self._address):
                raise SourceAway(f"{self._address} cannot be reached")
            partitions = await self._log.seek(self._chain.cursor, self._chain.offsets)
        except SourceAway as error:
            self._lose(error)
            return
        self._chain = Chain.begin(self._chain.cursor, self._chain.offsets, partitions, self._log.identity)
        if self._is_away:
            self._is_away = False
            log.info("the broker is there again; events are taken from it", broker=str(self._address))

    def _lose(self, error: SourceAway) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning("the broker is away; events are taken from the origin's feed", reason=str(error))
        self._reach_at = time.monotonic() + REACH_SECONDS

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        """Return the events after a place, after up to `wait` seconds. SourceAway where broker and origin are away.

        BehindRetention where neither the broker nor the origin's feed has what comes next.
        """
        if after != self._chain.cursor:  # the last page was not applied
            await self.begin(after, {})
        if self._is_away and time.monotonic() >= self._reach_at:
            await self._reach()
        if self._is_away:
            return await self._stand_in(limit, wait)
        if time.monotonic() >= self._epoch_at and await self._enter_epoch(after):
            return self._chain.take(0)
        deadline = time.monotonic() + wait
        while True:
            page = self._chain.take(limit)
            if page.events or page.unreadable:
                return page
            seconds = max(deadline - time.monotonic(), 0.0)
            gap = self._chain.gap()
            if self._chain.is_holding:
                seconds = PAIR_PATIENCE_SECONDS
            elif gap is not None:
                patience = self._patience(gap)
                if patience <= 0:
                    return await self._fill(gap, limit)
                seconds = min(seconds, patience)
            seconds = min(seconds, SILENCE_SECONDS)
            try:
                messages = await self._log.read(READ_MESSAGES, seconds, without=self._chain.partitions_ahead())
            except SourceAway as error:
                self._lose(error)
                return await self._stand_in(limit, deadline - time.monotonic())
            for message in messages:
                self._chain.put(message)
            if messages:
                self._heard_at = time.monotonic()
            elif self._is_silent():
                page = await self._look_elsewhere(limit)
                if page.events:
                    return page
            if not messages and time.monotonic() >= deadline and not self._chain.is_holding:
                return page

    async def _enter_epoch(self, after: Cursor) -> bool:
        """Go on in the origin's epoch, if it is a later one. BehindRetention where the place is beyond the fork.

        The broker has messages of a history that the origin may have lost; in the new epoch they are known as such.
        While the origin is away, or hangs, nothing can be told: it is asked again later.
        """
        await self._drop_question()
        self._epoch_at = math.inf
        try:
            async with asyncio.timeout(EPOCH_SECONDS):
                if (await self._feed.end()).epoch <= after.epoch:
                    return False
                page = await self._feed.receive(after, limit=1, wait=0)
        except (SourceAway, TimeoutError):
            self._epoch_at = time.monotonic() + EPOCH_REST_SECONDS
            return False
        self._chain.cursor = Cursor(page.cursor.epoch, after.pos)
        return True

    async def _stand_in(self, limit: int, wait: float) -> EventPage:
        """Return what the origin's feed has, in place of a broker that is away."""
        await self._drop_question()
        page = await self._feed.receive(self._chain.cursor, limit=limit, wait=max(min(wait, REACH_SECONDS), 0.0))
        return self._chain.go_on(page)

    def _is_silent(self) -> bool:
        return time.monotonic() - self._heard_at > SILENCE_SECONDS

    async def _look_elsewhere(self, limit: int) -> EventPage:
        """Return what the origin's feed has beyond a broker that gives nothing: its relay may stand still.

        An origin that is away, or refuses, changes nothing: there is nothing to be had anywhere. One that hangs is left
        to its answer, and the broker is listened to meanwhile.
        """
        if self._question is None:
            self._asked_after = self._chain.cursor
            self._question = asyncio.create_task(self._feed.receive(self._asked_after, limit=limit, wait=0))
        await asyncio.wait((self._question,), timeout=ORIGIN_SECONDS)
        if not self._question.done():
            return self._chain.take(limit)
        self._heard_at = time.monotonic()
        if self._asked_after != self._chain.cursor:  # the broker has brought more meanwhile
            await self._drop_question()
            return self._chain.take(limit)
        question, self._question = self._question, None
        try:
            page = question.result()
        except (SourceAway, SourceRefused):
            return self._chain.take(limit)
        if page.events:
            log.warning(
                "the broker is silent, and the origin has events; they are taken from there", events=len(page.events)
            )
            self._heard_at -= SILENCE_SECONDS
        return self._chain.go_on(page)

    async def _drop_question(self) -> None:
        """Ask the origin no more what it has: it is asked something else, or nothing."""
        question, self._question = self._question, None
        if question is not None:
            await cancel(question)

    def _patience(self, gap: Gap) -> float:
        """Return for how many seconds the broker may still bring what is missing."""
        if self._gap is None or self._gap.after != gap.after:
            self._gap, self._gap_since = gap, time.monotonic()
        return 0.0 if gap.is_certain else self._gap_since + GAP_PATIENCE_SECONDS - time.monotonic()

    async def _fill(self, gap: Gap, limit: int) -> EventPage:
        """Return what is missing from the origin's feed. BehindRetention where it does not reach back, either."""
        await self._drop_question()
        end = await self._feed.end()
        page = await self._feed.receive(gap.after, limit=min(gap.through - gap.after.pos, limit), wait=0)
        return self._chain.fill(page, end)
