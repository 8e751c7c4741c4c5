"""The feed as one long answer: Server-Sent Events (WHATWG HTML, 9.2), or a JSON document on each line.

A stream holds no connection of the database while it waits. Bookmarks tell its client how far the log is, also where a
filter leaves everything out, and tell the server whether the client is still there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedstac.api.call import Call
from fedstac.api.http import numbers, problems
from fedstac.api.http.media_types import Accept
from fedstac.api.http.streaming import watch_departure
from fedstac.api.nodes.feed import LINES, filter_of, may_read_grants, positioned
from fedstac.db import feed
from fedstac.db.feed import EventFilter, FeedSlice
from fedstac.domain import events, policy
from fedstac.domain.errors import (
    CursorGone,
    MissingPermission,
    TakesTooLong,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from fedstac.domain.events import Cursor
from fedstac.runtime.budget import Budget, Lane
from fedstac.runtime.causes import is_transient
from fedstac.runtime.wakeup import Backoff, pause, unless

SERVER_SENT = "text/event-stream"
PAGE, PAGE_BYTES = 200, 256 << 10  # that a stream holds in memory, but for one event that is larger
PART = 64 << 10  # bytes that a client has to take in the time that it may pause
BOOKMARK_SECONDS = 5.0
PACE_SECONDS = 0.05  # between looks
CHECK_SECONDS = 20.0  # between looks whether the token is still valid
LONGEST_SECONDS = 86_400  # of a stream that names its end
RETRY_MILLISECONDS = 2000  # after which a client connects again
HEADERS = {"Cache-Control": "private, no-store, no-transform", "X-Accel-Buffering": "no"}  # proxies pass it on at once


STREAMS = "{most} streams of events are open, which are the most; close one, or poll with wait=60"
WAITING_READERS = "{most} readers without a token wait for changes, which are the most; log in, or ask without `wait`"


class OpenStreams:
    """The streams of a process, or readers that wait. `most` bounds them. refusal: of one more."""

    def __init__(self, most: int, refusal: str = STREAMS) -> None:
        self._most, self._refusal = most, refusal
        self.count = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for a stream. TooManyRequests where none is free."""
        if self.count >= self._most:
            raise TooManyRequests(self._refusal.format(most=self._most), retry_after=5)
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


class StreamFormat(Protocol):
    """How a stream is written."""

    media_type: str

    def begin(self, cursor: Cursor) -> str:
        """Return what stands before the first event."""
        ...

    def event(self, cursor: Cursor, text: str) -> str: ...

    def bookmark(self, cursor: Cursor) -> str:
        """Return what moves the client's cursor without an event."""
        ...

    def last_words(self, problem: str) -> str:
        """Return the last words to a client that has to take a snapshot."""
        ...


class ServerSentEvents:
    """What browsers read with EventSource. The id of an event is the cursor after it."""

    media_type = SERVER_SENT

    def begin(self, cursor: Cursor) -> str:
        return f"retry: {RETRY_MILLISECONDS}\n{self.bookmark(cursor)}"

    def event(self, cursor: Cursor, text: str) -> str:
        return f"id: {cursor}\ndata: {text}\n\n"

    def bookmark(self, cursor: Cursor) -> str:
        return f"id: {cursor}\n\n"

    def last_words(self, problem: str) -> str:
        return f"event: gone\ndata: {problem}\n\n"


class JsonLines:
    """A JSON document on each line: an event, or `{"bookmark": cursor}`."""

    media_type = LINES

    def begin(self, cursor: Cursor) -> str:
        return self.bookmark(cursor)

    def event(self, cursor: Cursor, text: str) -> str:
        return f"{text}\n"

    def bookmark(self, cursor: Cursor) -> str:
        return f'{{"bookmark":"{cursor}"}}\n'

    def last_words(self, problem: str) -> str:
        return f'{{"gone":{problem}}}\n'


async def get_stream(call: Call) -> Response:
    """Stream events in the order of the log, the oldest first, and go on as they come.

    Last-Event-ID, which clients send when they connect again, counts more than `after`. An event without data is a
    bookmark: its id is where to go on. A client that falls behind what is kept gets the event `gone`, whose data is the
    problem; it takes a snapshot. With `wait` the stream ends after so many seconds, and not before everything is sent
    that was there.
    """
    name = "last-event-id" if call.headers.get("last-event-id") else "after"
    values = call.headers if name == "last-event-id" else call.query_params
    after = Cursor.parse(values.get(name, str(events.START)))
    event_filter = filter_of(call)
    wait = (
        numbers.whole(call.query_params, "wait", default=0, most=LONGEST_SECONDS)
        if "wait" in call.query_params
        else None
    )
    async with call.node.pool.acquire() as conn:
        after = await feed.resume(conn, after)
    asks_for_lines = Accept(call.headers).asks_for(LINES, instead_of=(SERVER_SENT,))
    form = JsonLines() if asks_for_lines else ServerSentEvents()
    return EventStream(call, form, after, event_filter=event_filter, wait=wait)


class EventStream(Response):
    """The answer: it goes on until its client leaves, its token ends, its time is up or the node stops."""

    def __init__(
        self, call: Call, form: StreamFormat, after: Cursor, *, event_filter: EventFilter, wait: int | None
    ) -> None:
        self.status_code, self.background, self.media_type = 200, None, form.media_type
        self.init_headers(HEADERS)  # there is no body yet, and so no length
        self.body = b""
        self._call, self._node, self._form = call, call.node, form
        self._cursor, self._filter = after, event_filter
        self._until = None if wait is None else time.monotonic() + wait
        self._patience = call.node.settings.read_timeout_seconds
        self._backoff = Backoff()
        self._check_at = time.monotonic() + CHECK_SECONDS
        self._bookmark_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        if scope["method"] == "HEAD":  # it gets no events, and would wait for the next one for ever
            await send(start)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        with self._call.services.streams.place():
            await send(start)
            departure = asyncio.Event()
            watch = asyncio.create_task(watch_departure(receive, departure))
            try:
                await unless(departure, self._run(send))
            finally:
                watch.cancel()

    async def _run(self, send: Send) -> None:
        """Send until the end. ClientDisconnect where the client does not take what is sent."""
        await self._send(send, self._form.begin(self._cursor))
        await self._send_events(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send) -> None:
        while not self._node.stopping.is_set():
            sequenced = self._node.sequenced.next()
            before = self._cursor.pos
            try:
                page = await self._next_page()
            except CursorGone as problem:
                await self._send(send, self._form.last_words(self._document_of(problem)))
                return
            except (Unauthenticated, MissingPermission):
                return
            text = "".join(self._texts(page)) if page is not None else ""
            if text:
                await self._send(send, text)
            elif time.monotonic() >= self._bookmark_at:
                await self._send(send, self._form.bookmark(self._cursor))
            if self._cursor.pos != before:
                self._backoff.reset()
                if page is not None and not _is_full(page, before, len(text)):
                    await pause(self._node.stopping, PACE_SECONDS)
            elif self._until is not None and time.monotonic() >= self._until:
                return
            else:
                await sequenced(min(self._node.commits.patience(self._backoff.pause()), self._seconds_left()))

    async def _next_page(self) -> FeedSlice | None:
        """Read on and move the cursor. None while the database is away: the stream waits for it.

        CursorGone where events are gone, Unauthenticated or MissingPermission where the token has ended.
        """
        seconds = self._node.settings.request_seconds
        reason = TakesTooLong(f"a look at the log took over {seconds:g} s", retry_after=1)
        try:
            async with Budget(seconds, Lane.READER, lambda: reason):
                if time.monotonic() >= self._check_at:
                    caller = await self._call.services.principals.identify(self._call.headers)
                    policy.require_node(caller)
                    self._filter = replace(self._filter, grants=may_read_grants(self._node.policy, caller))
                    self._check_at = time.monotonic() + CHECK_SECONDS
                async with self._node.pool.acquire() as conn:
                    self._cursor = await feed.resume(conn, self._cursor)
                    page = await feed.look(conn, self._cursor.pos, PAGE, self._filter, most_bytes=PAGE_BYTES)
        except Exception as error:
            if isinstance(error, Unavailable) or is_transient(error):
                return None
            raise
        self._cursor = Cursor(self._cursor.epoch, page.through)
        return page

    def _texts(self, page: FeedSlice) -> Iterator[str]:
        for entry in page.entries:
            yield self._form.event(Cursor(self._cursor.epoch, entry.pos), positioned(entry))
        if page.entries and page.through > page.entries[-1].pos:
            yield self._form.bookmark(self._cursor)

    def _document_of(self, problem: CursorGone) -> str:
        call = self._call
        document = orjson.loads(problems.body(problem, base_url=call.base_url, instance=call.path))
        return orjson.dumps(document).decode()  # on one line

    def _seconds_left(self) -> float:
        """Return how long a wait may last: until the next bookmark, or the end."""
        until = self._bookmark_at if self._until is None else min(self._bookmark_at, self._until)
        return max(until - time.monotonic(), 0.0)

    async def _send(self, send: Send, text: str) -> None:
        """Send a text. ClientDisconnect where the client does not take it."""
        content = text.encode()
        try:
            for start in range(0, len(content), PART):
                async with asyncio.timeout(self._patience):
                    body = content[start : start + PART]
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            raise ClientDisconnect from None
        self._bookmark_at = time.monotonic() + BOOKMARK_SECONDS


def _is_full(page: FeedSlice, after: int, size: int) -> bool:
    """Return whether there is probably more where a page came from."""
    return len(page.entries) >= PAGE or size >= PAGE_BYTES // 2 or page.through - after >= feed.SCANNED
