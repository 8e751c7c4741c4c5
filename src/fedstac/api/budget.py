"""What a route gets before its handler runs: the lane that its work goes in, and the time that it has for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive

from fedstac.api import identity
from fedstac.bootstrap import Node
from fedstac.domain.errors import Problem, TakesTooLong
from fedstac.runtime.budget import Budget, Lane

Handler = Callable[[Request], Awaitable[Response]]

WATCH_SECONDS = 0.05  # work that is done sooner is not worth watching whether its client is still there
TOKEN_SECONDS = 1.0  # that it may take to find out whose token it is, where the route takes anybody
RETRY_AFTER = 5
READ_ONLY = ("GET", "HEAD", "OPTIONS")
READS_BY_POST = ("/search", "/validate")


def bounded(method: str, path: str, handler: Handler) -> Handler:
    """The handler, in its lane and under one deadline for all of its work. It is cancelled when its client leaves.

    The time in which the client sends the body does not count: the guard bounds it. TakesTooLong at the deadline.
    """
    fixed = _fixed_lane(method, path)

    async def in_time(request: Request) -> Response:
        node: Node = request.app.state.node
        seconds = node.settings.request_seconds
        async with Budget(seconds, fixed or Lane.WORK, lambda: _too_long(seconds)) as budget:
            client = _Client(request, budget)
            try:
                if fixed is None:
                    budget.lane = await _lane_of_reader(request)
                return await handler(Request(request.scope, client.receive, request._send))
            finally:
                client.stop_watching()

    return in_time


def _fixed_lane(method: str, path: str) -> Lane | None:
    """The lane of a route; None where it depends on the caller."""
    if path == "/healthcheck":
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


class _Client:
    """The other side of a request: it sends the body, and may leave before the answer."""

    def __init__(self, request: Request, budget: Budget) -> None:
        self._receive: Receive = request.receive
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._has_sent = not _has_body(request)
        self._watching: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(WATCH_SECONDS, self._watch)

    async def receive(self) -> Message:
        """For the handler: the next message of the request."""
        began = self._loop.time()
        message = await self._receive()
        if not self._has_sent:
            self._budget.extend(self._loop.time() - began)
            self._has_sent = not message.get("more_body", False)
        return message

    def stop_watching(self) -> None:
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


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
