"""Bodies on their way to and from a handler: counted while they arrive, with memory of their own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedstac.api.writing import intake
from fedstac.domain.errors import BodyTooLarge, Unavailable
from fedstac.domain.strict_json import BEFORE_VALUES, MOST_VALUES
from fedstac.domain.texts import Text
from fedstac.runtime.budget import Budget, Lane
from fedstac.runtime.capacity import Memory, Share
from fedstac.runtime.spool import Spool

WATCH_SECONDS = 0.05  # work that is done sooner is not worth watching whether its client is still there
SMALL_BODY = 64 << 10  # bytes that are not counted
SMALL_ANSWER = 256 << 10
IN_MEMORY = 256 << 10  # bytes of a batch; the rest goes to a file
BATCH_FACTOR, BODY_FACTOR = 4, 12  # bytes that the work on a body takes for each of it, item by item or at once
IDS_FACTOR = 4  # the same of a list of texts


class Peer:
    """The other side of a request: it sends the body, and may leave before the answer, which ends the work.

    most_items: the items that a batch may have; None where the body is no batch. factor: the bytes that the work on the
    body takes for each of it, where it is no batch.
    """

    def __init__(
        self, headers: Headers, receive: Receive, *, budget: Budget, memory: Memory, most_items: int | None,
        factor: int = BODY_FACTOR,
    ) -> None:  # fmt: skip
        self._receive = receive
        self._budget = budget
        self._memory = memory
        self._share: Share | None = None
        self._headers = headers
        self._most_items = most_items
        self._factor = factor
        self._has_sent = not _has_body(headers)
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(WATCH_SECONDS, self._watch)

    async def read_body(self) -> Text:
        """Return the whole body; a large batch is in a file. BodyTooLarge or TooManyRequests where that is too much.

        The time in which the client sends it does not count as work: the guard bounds it.
        """
        if self._has_sent:  # not from the server: whoever watches the client may have taken that message
            return b""
        counter = BodyCounter(self._headers, self._most_items)
        spool = Spool(IN_MEMORY if self._most_items is not None else sys.maxsize)
        async for piece in self._pieces():
            if counter.count(piece):
                self._take_memory(counter)
            spool.append(piece)
        return spool.text()

    async def _pieces(self) -> AsyncIterator[bytes]:
        while True:
            began = self._loop.time()
            message = await self._receive()
            self._budget.extend(self._loop.time() - began)
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._has_sent = not message.get("more_body", False)
            yield message.get("body", b"")
            if self._has_sent:
                return

    def _take_memory(self, counter: BodyCounter) -> None:
        if self._share is None:
            self._share = self._memory.share(self._budget.lane)
            self._share.check(self._memory_for(counter.length))
        self._share.require(self._memory_for(counter.received) - self._share.size)

    def _memory_for(self, length: int) -> int:
        return self._factor * length if self._most_items is None else min(BATCH_FACTOR * length, intake.BATCH_MEMORY)

    def forget_body(self) -> None:
        """Give the memory of the body back."""
        if self._share is not None:
            self._share.give_back()

    def close(self) -> None:
        """End what watches the client."""
        self.forget_body()
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None  # its traceback has this object, which would keep it until the next collection

    def _watch(self) -> None:
        if self._has_sent:
            self._watching = asyncio.create_task(self._end_when_left())
        else:  # a client that leaves now is noticed by whoever reads the body
            self._timer = self._loop.call_later(WATCH_SECONDS, self._watch)

    async def _end_when_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._budget.end(ClientDisconnect())


class LargeAnswer(Response):
    """An answer that has memory of its own until its client has taken it. Unavailable where there is none left."""

    def __init__(self, answer: Response, memory: Memory, lane: Lane) -> None:
        self.status_code, self.raw_headers = answer.status_code, answer.raw_headers
        self.body, self.background = answer.body, answer.background
        self._share = memory.share(lane)
        if not self._share.fits(len(self.body)):
            raise Unavailable("many large answers are under way; try again in a moment", retry_after=2)
        self._share.take(len(self.body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._share.give_back()


class BodyCounter:
    """Counts what a body holds while it comes, so that a body with too much is not read to its end.

    Lines are the items of NDJSON. The items of a FeatureCollection are counted where they are parsed one by one, beside
    the event loop: finding them takes too long for it.
    """

    def __init__(self, headers: Mapping[str, str], most_items: int | None) -> None:
        kind = headers.get("content-type", "")
        length = headers.get("content-length", "")
        self.length = int(length) if length.isdecimal() else 0  # as the head says
        self.received = 0
        self._most_items = most_items
        self._is_lines = kind.partition(";")[0].strip().lower() in intake.LINE_TYPES
        self._values = self._lines = 0

    def count(self, piece: bytes) -> bool:
        """Return whether the body is a large one. BodyTooLarge where it holds too much."""
        self.received += len(piece)
        if 0 < self.length <= SMALL_BODY:
            return False
        if self._most_items is None:
            self._values += sum(piece.count(mark) for mark in BEFORE_VALUES)
            if self._values > MOST_VALUES:
                raise BodyTooLarge(f"the body has over {MOST_VALUES} values; send less at once")
        elif self._is_lines:
            self._lines += piece.count(b"\n")
            if self._lines > self._most_items:
                most = self._most_items
                raise BodyTooLarge(f"the batch has more than {most} items, which are the most: send several")
        return max(self.length, self.received) > SMALL_BODY


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
