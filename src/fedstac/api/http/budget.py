"""What a route gets before its handler runs: a lane, the time for its work, and memory for its body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from fedstac.api.people import identity
from fedstac.api.writing import intake
from fedstac.bootstrap import Node
from fedstac.domain.errors import BodyTooLarge, Problem, TakesTooLong, Unavailable
from fedstac.runtime.budget import Budget, Lane
from fedstac.runtime.capacity import Memory, Share

Handler = Callable[[Request], Awaitable[Response]]

WATCH_SECONDS = 0.05  # work that is done sooner is not worth watching whether its client is still there
TOKEN_SECONDS = 1.0  # that it may take to find out whose token it is, where the route takes anybody
RETRY_AFTER = 5
READ_ONLY = ("GET", "HEAD", "OPTIONS")
READS_BY_POST = ("/search", "/validate")
BATCHES = ("/validate", "/collections/{collection_id}/items")
SMALL_BODY = 64 << 10  # bytes that are not counted
SMALL_ANSWER = 256 << 10
BATCH_FACTOR, BODY_FACTOR = 4, 12  # bytes that the work on a body takes for each of it, item by item or at once
MOST_VALUES = 400_000  # in a body that is no batch, and in each item of one
_VALUES = (b",", b"[", b"{")  # one of them stands before every value but the first
_MARK = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)


def bounded(method: str, path: str, handler: Handler) -> Handler:
    """The handler, in its lane and under one deadline for all of its work. It is cancelled when its client leaves.

    The time in which the client sends the body does not count: the guard bounds it. TakesTooLong at the deadline.
    """
    fixed = _fixed_lane(method, path)
    takes_batch = method == "POST" and path in BATCHES

    async def in_time(request: Request) -> Response:
        node: Node = request.app.state.node
        seconds = node.settings.request_seconds
        async with Budget(seconds, fixed or Lane.WORK, lambda: _too_long(seconds)) as budget:
            client = _Client(request, budget, node.settings.max_batch_items if takes_batch else None)
            try:
                if fixed is None:
                    budget.lane = await _lane_of_reader(request)
                answer = await handler(BoundedRequest(request, client))
            finally:
                client.close()
            return answer if len(answer.body) <= SMALL_ANSWER else LargeAnswer(answer, request, budget.lane)

    return in_time


def _fixed_lane(method: str, path: str) -> Lane | None:
    """The lane of a route; None where it depends on the caller."""
    if path in ("/healthcheck", "/readiness"):
        return Lane.HEALTH
    if method in READ_ONLY or path in READS_BY_POST:
        return None
    return Lane.WORK


async def _lane_of_reader(request: Request) -> Lane:
    if "authorization" in request.headers:
        with suppress(Problem, TimeoutError):
            async with asyncio.timeout(TOKEN_SECONDS):
                await identity.principal(request)
                return Lane.READER
    return Lane.ANONYMOUS


def _too_long(seconds: float) -> TakesTooLong:
    return TakesTooLong(
        f"this took over {seconds:g} s, which is all that a request has; ask for less at once", retry_after=RETRY_AFTER
    )


class BoundedRequest(Request):
    """A request whose body is counted while it comes, and has memory of its own."""

    def __init__(self, request: Request, client: _Client) -> None:
        super().__init__(request.scope, client.receive, request._send)
        self._client = client

    def forget_body(self) -> None:
        """Gives the body's memory back before a wait for something else."""
        self._body = b""
        self._client.forget_body()


class LargeAnswer(Response):
    """An answer that has memory of its own until its client has taken it. Unavailable where there is none left."""

    def __init__(self, answer: Response, request: Request, lane: Lane) -> None:
        self.status_code, self.raw_headers = answer.status_code, answer.raw_headers
        self.body, self.background = answer.body, answer.background
        memory: Memory = request.app.state.memory
        self._share = memory.share(lane)
        if not self._share.fits(len(self.body)):
            raise Unavailable("many large answers are under way; try again in a moment", retry_after=2)
        self._share.take(len(self.body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._share.give_back()


def forget_body(request: Request) -> None:
    """Gives the memory of a body back that is worked off."""
    if isinstance(request, BoundedRequest):
        request.forget_body()


class _Client:
    """The other side of a request: it sends the body, and may leave before the answer."""

    def __init__(self, request: Request, budget: Budget, most_items: int | None) -> None:
        self._receive: Receive = request.receive
        self._budget = budget
        self._memory: Memory = request.app.state.memory
        self._share: Share | None = None
        self._body = BodyCounter(request.headers, most_items)
        self._factor = BODY_FACTOR if most_items is None else BATCH_FACTOR
        self._loop = asyncio.get_running_loop()
        self._has_sent = not _has_body(request)
        self._owes_empty_body = self._has_sent  # that there is no body is still to be said to the handler
        self._watching: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(WATCH_SECONDS, self._watch)

    async def receive(self) -> Message:
        """For the handler: the next message of the request. BodyTooLarge or TooManyRequests where that is too much."""
        if self._owes_empty_body:  # not from the server: whoever watches the client may have taken that message
            self._owes_empty_body = False
            return {"type": "http.request", "body": b"", "more_body": False}
        began = self._loop.time()
        message = await self._receive()
        if not self._has_sent:
            self._budget.extend(self._loop.time() - began)
            self._has_sent = not message.get("more_body", False)
            if self._body.count(message.get("body", b"")):
                self._take_memory()
        return message

    def _take_memory(self) -> None:
        if self._share is None:
            self._share = self._memory.share(self._budget.lane)
            self._share.check(self._factor * self._body.announced)
        self._share.require(self._factor * self._body.received - self._share.size)

    def forget_body(self) -> None:
        if self._share is not None:
            self._share.give_back()

    def close(self) -> None:
        self.forget_body()
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _watch(self) -> None:
        if self._has_sent:
            self._watching = asyncio.create_task(self._end_when_left())
        else:  # a client that leaves now is noticed by whoever reads the body
            self._timer = self._loop.call_later(WATCH_SECONDS, self._watch)

    async def _end_when_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._budget.end(ClientDisconnect())


class BodyCounter:
    """Counts what a body holds while it comes, so that nothing is read to its end that is refused then."""

    def __init__(self, headers: Mapping[str, str], most_items: int | None) -> None:
        kind = headers.get("content-type", "")
        announced = headers.get("content-length", "")
        self.announced = int(announced) if announced.isdecimal() else 0
        self.received = 0
        self._most_items = most_items
        self._is_lines = kind.partition(";")[0].strip().lower() in intake.LINE_TYPES
        self._values = self._items = self._depth = 0
        self._in_text = False
        self._rest = b""  # a backslash that ended a piece

    def count(self, piece: bytes) -> bool:
        """Whether the body is a large one. BodyTooLarge where it holds too much."""
        self.received += len(piece)
        if 0 < self.announced <= SMALL_BODY:
            return False
        if self._most_items is None:
            self._values += sum(piece.count(mark) for mark in _VALUES)
            if self._values > MOST_VALUES:
                raise BodyTooLarge(f"the body has over {MOST_VALUES} values; send less at once")
        else:
            self._items += piece.count(b"\n") if self._is_lines else self._count_objects(piece)
            if self._items > self._most_items:
                most = self._most_items
                raise BodyTooLarge(f"the batch has more than {most} items, which are the most: send several")
        return max(self.announced, self.received) > SMALL_BODY

    def _count_objects(self, piece: bytes) -> int:
        """Objects that begin in a list of the outermost object: the features of a FeatureCollection."""
        objects, depth, in_text = 0, self._depth, self._in_text
        piece, self._rest = self._rest + piece, b""
        end = 0
        for match in _MARK.finditer(piece):
            mark, end = match[0], match.end()
            if mark == b'"':
                in_text = not in_text
            elif in_text or len(mark) > 1:
                continue
            elif mark in b"[{":
                objects += mark == b"{" and depth == 2
                depth += 1
            else:
                depth -= 1
        self._depth, self._in_text = depth, in_text
        if piece.endswith(b"\\") and end < len(piece):
            self._rest = b"\\"
        return objects


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
