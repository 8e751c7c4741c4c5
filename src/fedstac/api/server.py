"""uvicorn, started from code, with what it lacks: deadlines and limits for what comes before a request's body.

uvicorn waits for ever for headers and takes any amount of them. The seam is its httptools protocol, one object per
connection, whose callbacks tell where in the message the connection is. Bodies are the guard's part (guard.py).
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedstac.api import problems
from fedstac.domain.errors import BadRequest, BodyTimeout, HeadersTooLarge, Problem

_MAX_HEAD = 64 * 1024


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
        graceful_timeout: int = 10,
        keep_alive: int = 5,
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
            lifespan="auto",
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
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._start_clock()
        self._since_progress += len(data)
        super().data_received(data)
        if self._since_progress > _MAX_HEAD:
            self._refuse(HeadersTooLarge(f"the headers are over the limit; send at most {_MAX_HEAD} bytes of them"))

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._since_progress = 0
        self._stop_clock()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._since_progress = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest("what was sent is not HTTP/1.1 (RFC 9112); speak that"))

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
        if self.transport.is_closing():
            return
        answering = bool(self.pipeline) or (
            self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        )
        if not answering:
            content = problems.body(problem, base_url=self.config.public_url, instance="")
            head = (
                f"HTTP/1.1 {problem.status} {problem.title}\r\n"
                f"content-type: {problems.MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\n"
                f"x-request-id: {uuid.uuid4().hex}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode("ascii") + content)
        self.transport.close()


class Server(uvicorn.Server):
    """Calls on_ready with the URL under which it listens, once it does, and on_stop before it waits for answers."""

    def __init__(
        self,
        config: Config,
        *,
        on_ready: Callable[[str], object] | None = None,
        on_stop: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._on_stop is not None:
            self._on_stop()
        await super().shutdown(sockets)

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
    """Serve until SIGTERM or SIGINT; requests under way then have ten seconds to end."""
    Server(Config(app, host=host, port=port, public_url=public_url), on_ready=on_ready).run()
