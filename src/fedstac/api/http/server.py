"""uvicorn, started from code, with what it lacks: deadlines and limits for what comes before a request's body.

uvicorn waits for ever for headers and takes any amount of them, and loses the body of a request that offers another
protocol. The seam is its httptools protocol, one object per connection, whose callbacks tell where in the message the
connection is. Bodies are the guard's part (guard.py).
"""

from __future__ import annotations

import asyncio
import signal
import socket
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedstac.api.http import cors, problems
from fedstac.api.http.access_log import AccessLog
from fedstac.domain.errors import BadRequest, BodyTimeout, HeadersTooLarge, Problem

_MAX_HEAD = 64 * 1024
KEEP_ALIVE_SECONDS = 75  # longer than proxies keep a connection: who sends must not find that we just closed it
GRACEFUL_SECONDS = 5  # that requests under way have to end when the process stops; its parts have theirs after that
_ANSWER = b"HTTP/1.1 "  # how the head of an answer begins
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 16 * 2**20  # for which a refused client may go on sending
_CORS = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in cors.HEADERS)


class Config(uvicorn.Config):
    """uvicorn's settings as we use them, and the seconds that a client has for a request's headers."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        public_url: str | None = None,
        header_timeout: float = 15.0,
        access_log: AccessLog | None = None,
        graceful_timeout: int = GRACEFUL_SECONDS,
        keep_alive: int = KEEP_ALIVE_SECONDS,
        backlog: int = 2048,
    ) -> None:
        super().__init__(
            app,
            host=host,
            port=port,
            loop="uvloop",
            http=Protocol,
            ws="none",
            interface="asgi3",
            lifespan="off",  # Server has a context of its own instead
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=graceful_timeout,
            timeout_keep_alive=keep_alive,
            backlog=backlog,
        )
        self.public_url = (public_url or "").rstrip("/")
        self.header_timeout = header_timeout
        self.request_log = access_log


class _JoinedAnswers:
    """A transport that sends the head of an answer together with the first piece of its body.

    uvicorn writes them one after the other: two system calls, two packets, and a client that wakes up twice. A head
    waits for its body until the end of this turn of the loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self.set_protocol = transport.set_protocol

    def write(self, piece: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, piece))
        elif piece.startswith(_ANSWER):
            self._head = piece
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(piece)

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)


class Protocol(HttpToolsProtocol):
    """One connection: the head of each request has to be complete in time, and not be endless.

    The same clock runs while the rest of a body comes whose request is answered already, and the same limit holds for
    what is between and behind the pieces of a body (chunk extensions, trailers), which nobody else counts.
    """

    config: Config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._deadline: asyncio.TimerHandle | None = None
        self._in_head = False
        self._since_progress = 0  # bytes after the last complete head or piece of a body
        self._offers_upgrade = False
        self._is_refused = False  # the answer is out, and what still comes is dropped
        super().connection_made(_JoinedAnswers(transport, self.loop))  # type: ignore[arg-type]
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._since_progress += len(data)
        if self._is_refused:
            if self._since_progress > _LINGER_BYTES:
                self.transport.close()
            return
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(BadRequest("what was sent is not HTTP/1.1 (RFC 9112); speak that"))
        if self._since_progress > _MAX_HEAD:
            self._refuse(HeadersTooLarge(f"the headers are over the limit; send at most {_MAX_HEAD} bytes of them"))
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._start_clock()  # most heads come whole, and need none

    def shutdown(self) -> None:
        if self._is_refused:
            self.transport.close()
        else:
            super().shutdown()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])

    def _decline_upgrade(self, rest: bytes) -> None:
        """Continue with HTTP/1.1 after a head that offers another protocol (RFC 9110, 7.8).

        Clients that speak HTTP/2 offer h2c with their first request, and send its body. The parser stops at such a head
        and takes the body for the other protocol's, so a new one reads on from the same head without the offer.
        """
        self._offers_upgrade = False
        version = self.parser.get_http_version().encode()
        fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] not in (b"upgrade", b"connection")]
        if not self.parser.should_keep_alive():
            fields.append(b"connection: close\r\n")
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (self.parser.get_method(), self.url, version, b"".join(fields))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._parse(head + rest)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._offers_upgrade:
            return
        self._in_head = False
        self._since_progress = 0
        self._stop_clock()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._since_progress = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._offers_upgrade:
            super().on_message_complete()

    def _start_clock(self) -> None:
        self._deadline = self.loop.call_later(self.config.header_timeout, self._time_is_up)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_is_up(self) -> None:
        self._deadline = None
        if self._in_head:
            self._refuse(
                BodyTimeout(
                    f"the headers were not complete after {self.config.header_timeout:g} s; send them in one go"
                )
            )
        else:  # nothing was asked: an answer could be taken for that of the next request
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answer without the application, unless it is answering just now, and close."""
        if self.transport.is_closing() or self._is_refused:
            return
        answering = bool(self.pipeline) or (
            self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        )
        if answering:
            self.transport.close()
            return
        content = problems.body(problem, base_url=self.config.public_url, instance="")
        request_id = uuid.uuid4().hex
        head = (
            f"HTTP/1.1 {problem.status} {problem.title}\r\n"
            f"content-type: {problems.MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\n"
            f"x-request-id: {request_id}\r\n{_CORS}cache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + content)
        self._linger()
        if self.config.request_log is not None:
            self.config.request_log.record_refusal(
                self.client, request_id=request_id, status=problem.status, problem=problem.name
            )

    def _linger(self) -> None:
        """Drop what still comes until the client closes, within bounds: closing now would reset the connection, and a
        client that still sends would lose the answer.
        """
        self._is_refused, self._since_progress = True, 0
        if self.cycle is not None:  # an application that has not begun to answer sees that the client left
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._stop_clock()
        self._deadline = self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        self.transport.write_eof()
        self.flow.resume_reading()


class HttpServer(uvicorn.Server):
    """Calls on_ready with the URL under which it listens, once it does, and on_stop before it waits for answers.

    lifespan: what the application needs while it serves. What it raises when it begins is raised by `run` and `serve`.
    """

    config: Config

    def __init__(
        self,
        config: Config,
        *,
        lifespan: AbstractAsyncContextManager[object] | None = None,
        on_ready: Callable[[str], object] | None = None,
        on_stop: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(config)
        self._lifespan = lifespan or nullcontext()
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until SIGTERM or SIGINT, which end the process at once until the application is ready."""
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(self._lifespan)
            with self.capture_signals():
                async with opened.pop_all():
                    await self._serve(sockets)
                # uvicorn sends it to itself again, and the exit code would say that it was killed
                self._captured_signals = [each for each in self._captured_signals if each != signal.SIGTERM]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._on_stop is not None:
            self._on_stop()
        await super().shutdown(sockets)
        if self.config.request_log is not None:
            self.config.request_log.write()

    @property
    def url(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    public_url: str | None = None,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests under way then have GRACEFUL_SECONDS to end."""
    HttpServer(Config(app, host=host, port=port, public_url=public_url), on_ready=on_ready).run()
