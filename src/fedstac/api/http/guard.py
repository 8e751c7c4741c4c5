"""The outermost layer of the API: what no route should have to think of.

Messages whose length two readers could see differently, bodies that are too large, too slow or bombs, characters that
nothing good is made of, the server's own name, the request's id, CORS, and faults that nobody caught. uvicorn itself
takes bodies of any size at any pace; see server.py for headers that never end, which come before any application.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
import zlib
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedstac.api.http import cors, problems, tracing
from fedstac.api.http.access_log import AccessLog
from fedstac.domain.errors import (
    BadRequest,
    BodyTimeout,
    BodyTooLarge,
    HeadersTooLarge,
    Problem,
    UnsupportedMediaType,
)

_INFLATE_RATIO = 100  # JSON of items comes to 10 or 20; deflate can do 1 030
_INFLATE_FREE = 64 * 1024  # bytes that any small body may inflate to
_INFLATE_PIECE = 256 * 1024
_INFLATE_MEMBERS = 10_000
_MAX_HEADERS = 100
_SMALL_REST = 64 * 1024  # an unread body that is not worth a new connection: uvicorn skips it
_PART = 64 * 1024  # bytes of an answer that are given to the connection at once
_LENGTH_DIGITS = 19  # of a Content-Length; 64 bits hold them

_VARY = (b"vary", b"Accept-Encoding")  # compression.py; also where this answer is not compressed
_OF_ALL_ANSWERS = (_VARY, *cors.HEADERS)
_LISTS = (b"accept", b"if-match", b"if-none-match", b"prefer", b"x-forwarded-for")  # lines of one mean one list
_ONCE = (b"authorization", b"content-type", b"idempotency-key", b"if-range", b"range", b"last-event-id")
_READ = frozenset((
    b"host", b"x-request-id", b"traceparent", b"content-encoding", b"content-length", b"transfer-encoding", *_LISTS,
    *_ONCE,
))  # headers that the guard reads  # fmt: skip

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_QUERY = re.compile(rb"[\x00-\x1f\x7f]|%(?:[01][0-9a-f]|7f|c2%[89][0-9a-f])", re.IGNORECASE)
_CONTROL_IN_HEADER = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # a tab may be there (RFC 9110, 5.5)
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")  # RFC 9110, 7.2
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

_log = structlog.get_logger(__name__)


class Guard:
    """An ASGI application around another one.

    public_url: where clients find the application; taken for links instead of what the Host header says.
    proxy_strips: the proxy in front always takes the public path away; else it may do so or not.
    limit_for: bytes of body that a request may have.
    access_log: takes every request; without it there is none.
    read_timeout: seconds that a body may pause, and that it has before it must come at min_rate bytes per second.
    linger: seconds that a client may pause while the rest of a refused body is still read and dropped. A client that
        sends all of it before it reads gets the refusal. At most linger_bytes are read, in read_timeout and the time
        that they take at linger_rate bytes per second.
    on_answer: counts a request: its method, its route, its status (None if the client left first), its seconds.
    on_failure: notes a fault of ours; it is called once for each.
    is_stopping: tells whether the process ends; then the rest of a refused body is not waited for.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit_for: Callable[[Scope], int],
        public_url: str | None = None,
        proxy_strips: bool = False,
        access_log: AccessLog | None = None,
        read_timeout: float = 15.0,
        min_rate: int = 1024,
        max_url: int = 16 * 1024,
        max_headers: int = 32 * 1024,
        linger: float = 2.0,
        linger_bytes: int = 128 * 2**20,
        linger_rate: int = 2**20,
        on_answer: Callable[[str, str | None, int | None, float], object] | None = None,
        on_failure: Callable[[Exception, Scope], object] = problems.log_failure,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app = app
        self._public = _Public(public_url, proxy_strips=proxy_strips) if public_url else None
        self.limit_for = limit_for
        self.access_log = access_log
        self.read_timeout = read_timeout
        self.min_rate = min_rate
        self.max_url = max_url
        self.max_headers = max_headers
        self.linger = linger
        self.linger_bytes = linger_bytes
        self.linger_rate = linger_rate
        self.on_answer = on_answer
        self.on_failure = on_failure
        self.is_stopping = is_stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        head = _Head(scope)
        scope = self._public.scope_of(scope) if self._public is not None else dict(scope)
        request_id = head.value(b"x-request-id").decode("latin-1")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(16)
        traceparent = tracing.traceparent_of(head.value(b"traceparent"))
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "traceparent": traceparent}
        body = _Body(self, receive, head, scope)
        answer = _Answer(send, body, request_id)
        log_fields = structlog.contextvars.bind_contextvars(request_id=request_id, trace=tracing.trace_of(traceparent))
        try:
            await self._answer(scope, receive, head, body, answer)
        except ClientDisconnect:
            pass
        finally:
            structlog.contextvars.reset_contextvars(**log_fields)
            body.refusal = None  # its traceback has the body, which would keep it until the next collection
        if self.on_answer is not None:
            route: str | None = scope["state"].get("route")
            self.on_answer(scope["method"], route, answer.status, time.perf_counter() - began)
        if self.access_log is not None:
            self.access_log.record(scope, request_id=request_id, began=began, status=answer.status, size=answer.size)

    async def _answer(self, scope: Scope, receive: Receive, head: _Head, body: _Body, answer: _Answer) -> None:
        """Let the application answer, or refuse. ClientDisconnect where nobody is left to answer."""
        try:
            self._check_head(scope, head)
            body.check_framing()
            scope = head.with_lists(scope)
            application: ASGIApp = cors.preflight(scope) or self.app
            await application(body.check_head(scope), body.receive, answer.send)
            if not (answer.has_started or body.refusal or body.has_left):
                raise RuntimeError("the application gave no answer")
        except Problem as problem:
            body.refusal = body.refusal or problem
        except ClientDisconnect:
            raise
        except Exception as error:
            if body.refusal is None:  # else this is what the application made of it
                self.on_failure(error, scope)
                body.refusal = problems.failure(error)
        if body.refusal is not None and not answer.has_started:
            await problems.response(body.refusal, scope)(scope, receive, answer.send_final)

    def _check_head(self, scope: Scope, head: _Head) -> None:
        fields: list[tuple[bytes, bytes]] = scope["headers"]
        if len(fields) > _MAX_HEADERS or sum([len(name) + len(value) for name, value in fields]) > self.max_headers:
            raise HeadersTooLarge(
                f"the headers are over the limit; send at most {_MAX_HEADERS} and {self.max_headers} bytes of them"
            )
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > self.max_url:
            raise BadRequest(f"the URL is longer than {self.max_url} bytes; searches can be sent by POST")
        if _CONTROL.search(scope["path"]):
            raise BadRequest("the path holds control characters; leave them out, no id has any")
        if scope["query_string"] and _CONTROL_IN_QUERY.search(scope["query_string"]):
            raise BadRequest("the query holds control characters; leave them out (a line break: write a space)")
        if _CONTROL_IN_HEADER.search(b"".join([value for _, value in fields])):
            name = next(name for name, value in fields if _CONTROL_IN_HEADER.search(value))
            raise BadRequest(f"the header {name.decode('latin-1')} holds control characters; leave them out")
        for name in _ONCE:
            times = len(head.values(name))
            if times > 1:  # another reader on the way could take another one
                raise BadRequest(f"the header {name.decode().title()} is there {times} times; send it once")


class _Public:
    """Where clients find the application: what their requests are made to say, whatever a proxy made of them."""

    def __init__(self, url: str, *, proxy_strips: bool) -> None:
        parts = urlsplit(url)
        self._host = (b"host", parts.netloc.encode())
        self._root, self._proxy_strips = parts.path.rstrip("/"), proxy_strips
        self._members = {
            "scheme": parts.scheme,
            "server": (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)),
            "root_path": self._root,
        }

    def scope_of(self, scope: Scope) -> Scope:
        """Return a copy of the scope with the public scheme, host and path, whether or not a proxy cut the path."""
        headers = [self._host, *[field for field in scope["headers"] if field[0] != b"host"]]
        public, root = {**scope, **self._members, "headers": headers}, self._root
        path, raw_path = scope["path"], scope.get("raw_path") or scope["path"].encode()
        if root and (self._proxy_strips or (path != root and not path.startswith(f"{root}/"))):
            path, raw_path = root + path, root.encode() + raw_path
        public["path"], public["raw_path"] = path, raw_path
        return public


class _Head:
    """The headers that the guard reads, as they came, found in one pass."""

    __slots__ = ("_values", "version")

    def __init__(self, scope: Scope) -> None:
        self.version: str = scope.get("http_version", "1.1")
        self._values: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in _READ:
                self._values.setdefault(name, []).append(value)

    def values(self, name: bytes) -> Sequence[bytes]:
        """Return what a header says, each time that it is there."""
        return self._values.get(name, ())

    def value(self, name: bytes) -> bytes:
        """Return what a header says, all times in one; nothing where it is not there."""
        return b", ".join(self._values[name]).strip() if name in self._values else b""

    def with_lists(self, scope: Scope) -> Scope:
        """Return the scope with the lines of each header that is a list in one line (RFC 9110, 5.3)."""
        names = [name for name in _LISTS if len(self.values(name)) > 1]
        if not names:
            return scope
        scope = _without(scope, *names)
        return {**scope, "headers": [*scope["headers"], *((name, self.value(name)) for name in names)]}


def _framing_fault(head: _Head, length: bytes) -> str | None:
    """Say what is wrong with a message's version, length, coding or host; None if nothing is."""
    version, codings, hosts = head.version, head.values(b"transfer-encoding"), head.values(b"host")
    if version not in ("1.0", "1.1"):
        return f"HTTP/{version} is not spoken here; speak HTTP/1.1"
    if len(length) > _LENGTH_DIGITS:
        return f"Content-Length has {len(length)} digits; send the number of bytes without zeros in front"
    if codings and version == "1.0":
        return "HTTP/1.0 has no Transfer-Encoding; send Content-Length"
    if len(codings) > 1 or (codings and codings[0].strip().lower() != b"chunked"):
        return "the Transfer-Encoding is not exactly chunked; send chunked alone, or Content-Length"
    if not hosts and version == "1.1":
        return "the header Host is missing; HTTP/1.1 needs it"
    if len(hosts) > 1:
        return f"the header Host is there {len(hosts)} times; send it once"
    if hosts and not _HOST.fullmatch(hosts[0].strip()):
        return "the header Host is not a host with or without a port; send one"
    return None


def _without(scope: Scope, *names: bytes) -> Scope:
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in names]}


class _Body:
    """The request's body on its way in: counted as it comes from the wire, inflated, never kept."""

    def __init__(self, guard: Guard, receive: Receive, head: _Head, scope: Scope) -> None:
        self._guard = guard
        self.patience = guard.read_timeout
        self._receive = receive
        self._waited = 0.0  # seconds; the application's own pauses are not the client's
        self._received = 0
        self._inflater: _Inflater | None = None
        self._encodings = head.value(b"content-encoding")
        length = head.value(b"content-length")
        self._length = int(length[-_LENGTH_DIGITS:]) if length.isdigit() else None
        self._fault = _framing_fault(head, length)
        self.is_complete = not self._length and not head.value(b"transfer-encoding")
        self._limit = 0 if self.is_complete else guard.limit_for(scope)  # bytes
        self.has_left = False
        self.refusal: Problem | None = None

    @property
    def is_unframed(self) -> bool:
        """Whether nobody can say for sure where the message ends."""
        return self._fault is not None

    def check_framing(self) -> None:
        """Refuse a message whose end, or whose host, another reader on its way could see elsewhere (RFC 9112, 6).

        A proxy and this server that disagree about it take one client's body for another one's request. llhttp has
        refused most of these before (tests/api/test_guard.py); after a refusal the connection closes.
        """
        if self._fault is not None:
            raise BadRequest(self._fault)

    def check_head(self, scope: Scope) -> Scope:
        """Return the scope as the application shall see it. The Problem for which the head is refused."""
        if self._length is not None and self._length > self._limit:
            raise self._too_large()
        match self._encodings.lower():
            case b"identity" | b"":
                return scope
            case b"gzip" | b"x-gzip":
                plain = _without(scope, b"content-encoding", b"content-length", b"transfer-encoding")
                if self.is_complete:
                    return plain
                self._inflater = _Inflater(self._limit)
                return {
                    **plain,
                    "headers": [*plain["headers"], (b"transfer-encoding", b"chunked")],
                }  # of no known length
            case other:
                encoding = other.decode("latin-1")[:100]
                raise UnsupportedMediaType(f"the Content-Encoding {encoding!r} is not taken; send gzip, or none")

    def is_worth_skipping(self) -> bool:
        """Return whether so little has not arrived that the connection can be kept for the next request."""
        return self._length is not None and self._length - self._received <= _SMALL_REST

    async def receive(self) -> Message:
        """Return the next message, for the application. Raises the Problem for which the body is refused."""
        if self.refusal is not None:
            raise self.refusal
        try:
            if self._inflater is None:
                return await self._receive_counted()
            return await self._receive_inflated(self._inflater)
        except Problem as problem:
            self.refusal = problem  # holds whatever the application makes of it
            raise

    async def skip_rest(self) -> None:
        """Read the rest and drop it, within bounds.

        A client that still sends when the connection closes is reset, and loses the answer that it has not read.
        """
        guard, rest = self._guard, 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(guard.read_timeout + guard.linger_bytes / guard.linger_rate):
                while not (self.is_complete or self.has_left or guard.is_stopping()) and rest < guard.linger_bytes:
                    async with asyncio.timeout(guard.linger):
                        rest += len((await self._next()).get("body", b""))

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.is_complete = not message.get("more_body", False)
        else:
            self.has_left = True
        return message

    async def _receive_counted(self) -> Message:
        if self.is_complete:
            return await self._next()  # that there is no body, or that the client left
        start = time.monotonic()
        budget = self._guard.read_timeout + self._received / self._guard.min_rate - self._waited
        try:
            async with asyncio.timeout(min(self._guard.read_timeout, budget)):
                message = await self._next()
        except TimeoutError:
            raise BodyTimeout(
                f"the body paused for {self._guard.read_timeout:g} s, or came at less than {self._guard.min_rate}"
                f" bytes per second; {self._received} bytes of it have arrived."
                " Send it again, in smaller parts if the line is slow"
            ) from None
        self._waited += time.monotonic() - start
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise self._too_large()
        return message

    async def _receive_inflated(self, inflater: _Inflater) -> Message:
        while True:
            piece = inflater.take(compressed=self._received)
            if piece:
                return {"type": "http.request", "body": piece, "more_body": True}
            if self.is_complete:
                inflater.end()
                self._inflater = None
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await self._receive_counted()
            if self.has_left:
                return message
            inflater.feed(message.get("body", b""))

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is over {self._limit} bytes; send fewer datasets in a request")


class _Inflater:
    """gzip (RFC 1952), a piece at a time, so that a bomb is noticed before it is in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._member = zlib.decompressobj(wbits=31)
        self._members = 1
        self._input = b""
        self._holds_more = False  # output that did not fit into the last piece
        self._inflated = 0

    def feed(self, data: bytes) -> None:
        self._input += data

    def take(self, *, compressed: int) -> bytes:
        """Return the next piece of what was fed; nothing when more has to be fed first."""
        while self._input or self._holds_more:
            if self._member.eof:
                self._next_member()
            try:
                piece = self._member.decompress(self._input, _INFLATE_PIECE)
            except zlib.error:
                raise BadRequest(
                    "the body is not gzip, as its Content-Encoding says; send it so, or without that header"
                ) from None
            self._holds_more = len(piece) == _INFLATE_PIECE and not self._member.eof
            self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._inflated += len(piece)
            if self._inflated > self._limit:
                raise BodyTooLarge(f"the body inflates to over {self._limit} bytes; send fewer datasets in a request")
            if self._inflated > _INFLATE_FREE + _INFLATE_RATIO * compressed:
                raise BodyTooLarge(f"the body inflates to over {_INFLATE_RATIO} times its size; send it uncompressed")
            if piece:
                return piece
        return b""

    def end(self) -> None:
        if not self._member.eof:
            raise BadRequest("the gzip body is cut off; send it whole")

    def _next_member(self) -> None:
        self._members += 1
        if self._members > _INFLATE_MEMBERS:
            raise BadRequest(f"the gzip body has over {_INFLATE_MEMBERS} members; compress it as one")
        self._member = zlib.decompressobj(wbits=31)


class _Answer:
    """The response on its way out."""

    def __init__(self, send: Send, body: _Body, request_id: str) -> None:
        self._send = send
        self._body = body
        self._request_id = request_id.encode()
        self._closes = False
        self.has_started = False
        self.status: int | None = None
        self.size = 0  # bytes of its body

    async def send(self, message: Message) -> None:
        """Send a message of the application. Once its request's body is refused, that is the answer instead."""
        if self.has_started or self._body.refusal is None:
            await self.send_final(message)

    async def send_final(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started, self.status = True, message["status"]
            await self._send({**message, "headers": self._headers(message)})
            return
        body: bytes = message.get("body", b"")
        self.size += len(body)
        if self._closes and message["type"] == "http.response.body" and not message.get("more_body", False):
            # The client has it all (by Content-Length) before the connection closes with the last, empty piece.
            await self._send_in_parts({**message, "more_body": True})
            await self._body.skip_rest()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await (self._send(message) if len(body) <= _PART else self._send_in_parts(message))

    async def _send_in_parts(self, message: Message) -> None:
        """Send a message piece by piece.

        ClientDisconnect where the client takes none for as long as it may pause while it sends.
        """
        body: bytes = message.get("body", b"")
        if len(body) <= _PART:
            await self._send(message)
            return
        for start in range(0, len(body), _PART):
            more = start + _PART < len(body) or message.get("more_body", False)
            try:
                async with asyncio.timeout(self._body.patience):
                    await self._send({**message, "body": body[start : start + _PART], "more_body": more})
            except TimeoutError:
                raise ClientDisconnect from None

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"x-request-id"]
        headers += ((b"x-request-id", self._request_id), *_OF_ALL_ANSWERS)
        unread = not self._body.is_complete
        self._closes = self._body.is_unframed or (
            unread and (self._body.refusal is not None or not self._body.is_worth_skipping())
        )
        if self._closes:
            headers = [(name, value) for name, value in headers if name.lower() != b"connection"]
            headers.append((b"connection", b"close"))
        return headers
