"""A mail server and a receiver of webhooks, both real, on loopback and in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import orjson
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.support.nodes import Api
from tests.support.waiting import PATIENCE


@asynccontextmanager
async def listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]],
) -> AsyncIterator[int]:
    """Handle the connections to a free port, and yield the port. At the end all of them are closed.

    One that was left open is collected in a later test, and fails that.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(asyncio.CancelledError):  # the end
                await handle(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


@dataclass(frozen=True)
class Call:
    """One POST that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.body)
        return found


@dataclass
class Receiver:
    """An HTTP server of a few lines: it keeps what comes and answers what it is told to, 204 without."""

    port: int = 0
    calls: asyncio.Queue[Call] = field(default_factory=asyncio.Queue)
    answers: deque[str] = field(default_factory=deque)
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def next(self) -> Call:
        return await asyncio.wait_for(self.calls.get(), PATIENCE)

    async def ended(self) -> None:
        """Wait until every connection is closed."""
        if self.serving:
            await asyncio.wait(self.serving, timeout=PATIENCE)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await self.calls.put(Call(first.split()[1], headers, body))
            answer = self.answers.popleft() if self.answers else "204 No Content"
            writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", port)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver
    await receiver.ended()


@dataclass
class Mailbox:
    """What a mail server got: who it was for, and the mail."""

    port: int = 0
    mails: asyncio.Queue[tuple[list[str], EmailMessage, bytes]] = field(default_factory=asyncio.Queue)
    refusals: deque[str] = field(default_factory=deque)

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    async def next(self) -> tuple[list[str], EmailMessage, bytes]:
        return await asyncio.wait_for(self.mails.get(), PATIENCE)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refusals:
            return self.refusals.popleft()
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        raw = envelope.content
        assert isinstance(raw, bytes)
        mail = message_from_bytes(raw, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        await self.mails.put((envelope.rcpt_tos, mail, raw))
        return "250 OK"


async def close(connections: Sequence[SMTP]) -> None:
    """Close a mail server's connections, and wait until the loop has done so."""
    for each in connections:
        if each.transport is not None:
            each.transport.close()
    if handlers := [each._handler_coroutine for each in connections if each._handler_coroutine is not None]:
        await asyncio.wait(handlers, timeout=PATIENCE)


StartTelling = Callable[..., Awaitable[Api]]
