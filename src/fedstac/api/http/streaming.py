"""An answer that is made while it is sent, piece by piece: its memory does not grow with its length."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedstac.runtime.capacity import Share
from fedstac.runtime.wakeup import unless

PART: Final = 64 << 10  # bytes that a client has to take in the time that it may pause
LEAST_RATE: Final = 64 << 10  # bytes per second that a client has to take on average, beside one pause


class StreamedAnswer(Response):
    """The answer. A fault on the way cuts the connection, so that nobody takes a part for the whole.

    pieces: the body; the next piece is made when the one before is sent.
    share: what the answer has of the memory, until its end.
    patience: seconds that the client may pause.
    """

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], *, share: Share, patience: float, media_type: str,
        headers: Mapping[str, str] | None,
    ) -> None:  # fmt: skip
        self.status_code, self.background, self.media_type = 200, None, media_type
        self.init_headers(headers)  # there is no body yet, and so no length
        self.body = b""
        self._pieces, self._share = pieces, share
        self._patience = patience
        self._sent_bytes, self._waited_seconds = 0, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        departure = asyncio.Event()
        watch = asyncio.create_task(watch_departure(receive, departure))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] == "HEAD":  # nothing is made that nobody gets
                await self._pieces.aclose()
            await unless(departure, self._send_all(send))
        finally:
            watch.cancel()
            self._share.give_back()

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), PART):
                    await self._send_part(send, piece[start : start + PART])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_part(self, send: Send, part: bytes) -> None:
        """Send a part. ClientDisconnect where the client takes it too slowly."""
        began = time.monotonic()
        seconds = self._patience + self._sent_bytes / LEAST_RATE - self._waited_seconds
        if seconds <= 0:
            raise ClientDisconnect
        try:
            async with asyncio.timeout(min(self._patience, seconds)):
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except TimeoutError:
            raise ClientDisconnect from None
        self._waited_seconds += time.monotonic() - began
        self._sent_bytes += len(part)


async def watch_departure(receive: Receive, departure: asyncio.Event) -> None:
    """Set the event when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    departure.set()
