"""HTTP as bytes: what no well-behaved client library would send can be sent, and every answer is read to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

from tests.support.waiting import PATIENCE


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: `path` is percent-encoded and has no query; `role` says whose token goes with it."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    role: str = ""  # nobody's

    def to_bytes(self, host: str, tokens: Mapping[str, str]) -> bytes:
        """Return the request as it goes over the wire. Headers that it sets itself are not added."""
        headers = {"Host": host, **self.headers}
        if self.role and "Authorization" not in headers:
            headers["Authorization"] = f"Bearer {tokens.get(self.role, self.role)}"
        if self.body and "Content-Type" not in headers:
            headers["Content-Type"] = "application/json"
        if (self.body or self.method in ("POST", "PUT", "PATCH")) and not {"Content-Length", "Transfer-Encoding"} & set(
            headers
        ):
            headers["Content-Length"] = str(len(self.body))
        target = self.path + ("?" + urlencode(self.query, quote_via=quote) if self.query else "")
        lines = [f"{self.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + self.body


@dataclass(frozen=True, slots=True)
class Answer:
    """status 0: the connection ended without an answer. `seconds` from the first byte sent to the last one read."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class Line:
    """One connection to a node, made anew when the node closes it."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, data: bytes, *, patience: float = PATIENCE) -> Answer:
        """Send a request and read its answer. TimeoutError after `patience` seconds."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                answer = await self._ask(data)
                if answer is None:  # the node had closed the connection after the answer before
                    answer = await self._ask(data)
        except TimeoutError:
            self.close()
            raise
        seconds = time.monotonic() - began
        if answer is None:
            return Answer(0, {}, b"", seconds)
        status, headers, body = answer
        return Answer(status, headers, body, seconds)

    async def _ask(self, data: bytes) -> tuple[int, dict[str, str], bytes] | None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, self.port, limit=1 << 26)
        reader, writer = self._streams
        sending = asyncio.create_task(_send(writer, data))
        try:
            answer = await _read(reader, is_head=data.startswith(b"HEAD "))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            return None
        finally:
            sending.cancel()
        if answer[1].get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    try:
        for start in range(0, len(data), 1 << 18):
            writer.write(data[start : start + (1 << 18)])
            await writer.drain()
    except ConnectionError:
        return  # what the node has to say is read all the same


async def _read(reader: asyncio.StreamReader, *, is_head: bool) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    status = int(first.split()[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if is_head or status in (204, 304):
        return status, headers, b""
    if headers.get("transfer-encoding") == "chunked":
        pieces = []
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            pieces.append((await reader.readexactly(size + 2))[:-2])
        await reader.readuntil(b"\r\n")
        return status, headers, b"".join(pieces)
    return status, headers, await reader.readexactly(int(headers.get("content-length", "0")))
