"""Answers out of files: read in pieces beside the event loop, whole or from a byte on (RFC 9110, 14)."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import BinaryIO

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedstac.domain.errors import Unavailable

PIECE = 256 << 10  # bytes
AT_ONCE = 32  # files that a process serves at the same time
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})")


class OpenFiles:
    """The answers out of files that are under way in a process. `most` bounds them."""

    def __init__(self, most: int = AT_ONCE) -> None:
        self._most = most
        self._count = 0

    def open(self) -> None:
        """Take a place. Unavailable where none is free."""
        if self._count >= self._most:
            raise Unavailable("many files are on their way; try again in a moment", retry_after=5)
        self._count += 1

    def close(self) -> None:
        """Give a place back."""
        self._count -= 1


class FileAnswer(Response):
    """A file as an answer: all of it, or one range of its bytes. It closes the file and gives its place back."""

    def __init__(
        self, file: BinaryIO, places: OpenFiles, *, media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.status_code, self.background, self.media_type, self.body = 200, None, media_type, b""
        self.init_headers(headers)
        self.headers["Accept-Ranges"] = "bytes"
        self._file, self._places = file, places
        self._size = os.fstat(file.fileno()).st_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._places.open()
        except Unavailable:
            self._file.close()
            raise
        try:
            await self._send(scope, send)
        finally:
            self._file.close()
            self._places.close()

    async def _send(self, scope: Scope, send: Send) -> None:
        has_body = scope["method"] != "HEAD"
        start, end = self._range(Headers(scope=scope)) if has_body else (0, self._size)  # ranges are of GET alone
        if (start, end) != (0, self._size):
            self.status_code = 206
            self.headers["Content-Range"] = f"bytes {start}-{end - 1}/{self._size}"
        self.headers["Content-Length"] = str(end - start)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._file.seek(start)
        rest = end - start if has_body else 0
        while rest:
            piece = await asyncio.to_thread(self._file.read, min(PIECE, rest))
            rest = rest - len(piece) if piece else 0
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _range(self, headers: Headers) -> tuple[int, int]:
        """Return the first byte and the one after the last. What is no range of this file counts as left out."""
        whole = 0, self._size
        match = _RANGE.fullmatch(headers.get("range", ""))
        condition = headers.get("if-range")
        if match is None or (condition is not None and condition != self.headers.get("etag")):
            return whole
        start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else self._size, self._size)
        return (start, end) if start < end else whole

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self._file.close()  # the client left before it was sent
