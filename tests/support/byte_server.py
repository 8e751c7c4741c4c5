"""A source of files in the test's own event loop: it counts every byte that it sends, and fails as it is told to.

The content of a file follows from its path and size, so that nothing is stored: `content`, `checksum`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote

BLOCK = 1 << 16
SIZE = re.compile(r"-(\d+)\.bin$")


@lru_cache(maxsize=64)
def content(path: str) -> bytes:
    """Return the bytes of `…-<size>.bin`."""
    match = SIZE.search(path)
    assert match, path
    size = int(match[1])
    noise = hashlib.shake_256(path.encode()).digest(min(size, BLOCK - 8))
    return b"".join(n.to_bytes(8) + noise for n in range(-(-size // BLOCK)))[:size]


def checksum(path: str) -> str:
    """Return the multihash of a file, as `file:checksum` has it."""
    return "1220" + hashlib.sha256(content(path)).hexdigest()


@dataclass(slots=True)
class Fault:
    """What a source does to one request: status, then how many bytes come, and what becomes of them."""

    status: int = 0
    bytes: int | None = None  # after which the connection is cut
    corrupt: bool = False


@dataclass
class ByteServer:
    """The source. `sent` counts bytes of bodies by path, `requests` the requests, `open` those under way.

    faults: asked for each request, with the path and how often it was asked for before; None: no fault. gate: every
    block waits for it.
    """

    port: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    open: int = 0
    most_open: int = 0
    faults: Callable[[str, int], Fault | None] = lambda path, before: None
    block: int = BLOCK
    pause: float = 0.0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    corrupted: set[str] = field(default_factory=set)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            try:
                while await self._exchange(reader, writer):
                    pass
            finally:
                writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        _, target, _ = head.split(" ", 2)
        path = unquote(target.lstrip("/").partition("?")[0])
        before, self.requests[path] = self.requests[path], self.requests[path] + 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            fault = self.faults(path, before) or Fault()
            if fault.status:
                writer.write(f"HTTP/1.1 {fault.status} no\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
                return True
            return await self._send(writer, path, head, fault)
        finally:
            self.open -= 1

    async def _send(self, writer: asyncio.StreamWriter, path: str, head: str, fault: Fault) -> bool:
        data = content(path)
        if fault.corrupt or path in self.corrupted:
            data = data[:-1] + bytes((data[-1] ^ 1,))
        ranged = re.search(r"\r\nrange: *bytes=(\d+)-", head, re.IGNORECASE)
        start = int(ranged[1]) if ranged else 0
        status, extra = "200 OK", ""
        if ranged:
            status, extra = "206 Partial Content", f"Content-Range: bytes {start}-{len(data) - 1}/{len(data)}\r\n"
        writer.write(
            f'HTTP/1.1 {status}\r\nContent-Length: {len(data) - start}\r\n{extra}ETag: "{path}"\r\n'
            f"Accept-Ranges: bytes\r\n\r\n".encode()
        )
        end = len(data) if fault.bytes is None else min(len(data), start + fault.bytes)
        for at in range(start, end, self.block):
            await self.gate.wait()
            if self.pause:
                await asyncio.sleep(self.pause)
            chunk = data[at : min(at + self.block, end)]
            writer.write(chunk)
            await writer.drain()
            self.sent[path] += len(chunk)
        if end < len(data):
            writer.transport.abort()
            return False
        return True


@asynccontextmanager
async def byte_server() -> AsyncIterator[ByteServer]:
    """Run a source on a port of loopback."""
    source = ByteServer()
    source.gate.set()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # what is counted is on its way
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK)
        task = asyncio.ensure_future(source.answer(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    source.port = server.sockets[0].getsockname()[1]
    try:
        yield source
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
