"""A server of one file over HTTP that speaks ranges well, or as badly as a test wants it, and counts what it sends."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from tests.support.receivers import listening

Fields = Mapping[str, str]


@dataclass(frozen=True)
class FileAnswer:
    """What a request gets. `cut`: so many bytes of the body are sent, and the connection ends; `stall`: it stays."""

    status: str
    headers: Fields
    body: bytes
    cut: int | None = None
    stall: int | None = None

    def having(self, **headers: str | None) -> FileAnswer:
        """Return the answer with other headers; None takes one away."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        merged = {**self.headers, **named}
        return replace(self, headers={name: value for name, value in merged.items() if value is not None})


Fault = Callable[[FileAnswer], FileAnswer]


@dataclass
class FileServer:
    """`faults` are used up by the requests in their order; after them everything is well."""

    content: bytes
    etag: str = '"one"'
    modified: str = ""
    port: int = 0
    faults: deque[Fault] = field(default_factory=deque)
    requests: list[Fields] = field(default_factory=list)
    sent_bytes: int = 0
    pause: Callable[[int], None] | None = None  # is called with what was sent so far
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/data/a.nc"

    def good_answer(self, fields: Fields) -> FileAnswer:
        """Return what RFC 9110 asks for."""
        size = len(self.content)
        headers = {"etag": self.etag, "last-modified": self.modified, "accept-ranges": "bytes"}
        headers = {name: value for name, value in headers.items() if value}
        match = re.fullmatch(r"bytes=(\d+)-", fields.get("range", ""))
        same = fields.get("if-range") in (None, self.etag, self.modified)
        if match is None or not same:
            return FileAnswer("200 OK", {**headers, "content-length": str(size)}, self.content)
        start = int(match[1])
        if start >= size:
            range_ = {"content-range": f"bytes */{size}", "content-length": "0"}
            return FileAnswer("416 Range Not Satisfiable", {**headers, **range_}, b"")
        range_ = {"content-range": f"bytes {start}-{size - 1}/{size}", "content-length": str(size - start)}
        return FileAnswer("206 Partial Content", {**headers, **range_}, self.content[start:])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        writer.transport.set_write_buffer_limits(64 << 10)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
                self.requests.append(fields)
                answer = self.good_answer(fields)
                if self.faults:
                    answer = self.faults.popleft()(answer)
                if not await self._send(answer, writer):
                    return

    async def _send(self, answer: FileAnswer, writer: asyncio.StreamWriter) -> bool:
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        writer.write(f"HTTP/1.1 {answer.status}\r\n{head}\r\n".encode("latin-1"))
        until = len(answer.body)
        for limit in (answer.cut, answer.stall):
            until = until if limit is None else min(until, limit)
        for at in range(0, until, 64 << 10):
            part = answer.body[at : min(at + (64 << 10), until)]
            writer.write(part)
            await writer.drain()
            self.sent_bytes += len(part)
            if self.pause is not None:
                self.pause(self.sent_bytes)
        if answer.stall is not None:
            await self.closing.wait()
        return answer.cut is None and answer.stall is None and "content-length" in answer.headers


@asynccontextmanager
async def file_server(content: bytes, etag: str = '"one"', modified: str = "") -> AsyncIterator[FileServer]:
    """Serve a file on a free port."""
    server = FileServer(content, etag, modified)
    async with listening(server.serve) as port:
        server.port = port
        yield server
