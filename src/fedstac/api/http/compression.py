"""Compressed answers for clients that ask for them (RFC 9110, 8.4 and 12.5.3): brotli or gzip, each at its fastest.

Measured on pages of items (docs/performance.md): these levels make them 6 to 10 times smaller at 800 MB/s and more; the
next levels cost three times as much for another tenth.

A compressed answer is another representation and needs another strong entity tag: `"…"` becomes `"…-br"`. In
conditional requests these tags mean the same as those without: the dataset behind them is the same.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import brotli
from starlette.types import ASGIApp, Message, Receive, Scope, Send

try:
    from isal import isal_zlib as zlib
except ImportError:  # it knows few kinds of processors; zlib is the same, and slower
    import zlib  # type: ignore[no-redef]

LEAST = 2048  # bytes; what fits in one or two packets gains nothing
INLINE = 256 * 1024  # bytes; more is compressed in a thread, in pieces of this size
PREFERENCE = ("br", "gzip")  # where the client has none
LONGEST_KEPT = 200  # bytes of a header whose meaning is remembered

_ELEMENT = re.compile(r"\s*([!#$%&'*+.^_`|~0-9a-z-]+)\s*(?:;\s*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*)?")
_TAG_OF_VARIANT = re.compile(rb'-(?:br|gzip)"')
_TEXTS = (b"text/", b"application/javascript", b"image/svg")


class Compressor(Protocol):
    """What brotli's and zlib's compressors have in common, by our names."""

    def compress(self, piece: bytes) -> bytes: ...
    def flush(self) -> bytes: ...


class _Brotli:
    def __init__(self) -> None:
        self._compressor = brotli.Compressor(mode=brotli.MODE_TEXT, quality=1)

    def compress(self, piece: bytes) -> bytes:
        compressed: bytes = self._compressor.process(piece)
        return compressed

    def flush(self) -> bytes:
        rest: bytes = self._compressor.finish()
        return rest


def _gzip() -> Compressor:
    return zlib.compressobj(level=1, wbits=31)


class Compression:
    """An ASGI application around another one. Requests that ask for nothing pass at the cost of a look."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        accept_encoding = conditions = b""
        for name, value in scope["headers"]:
            if name == b"accept-encoding":
                accept_encoding += b"," + value
            elif name in (b"if-match", b"if-none-match"):
                conditions += value
        if conditions and _TAG_OF_VARIANT.search(conditions):
            scope = {**scope, "headers": [_without_variant(*field) for field in scope["headers"]]}
        coding = _coding(accept_encoding) if accept_encoding else None
        if coding is not None and scope["method"] != "HEAD":
            send = _CompressedAnswer(send, coding, conditions).send
        await self.app(scope, receive, send)


def _without_variant(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    return name, _TAG_OF_VARIANT.sub(b'"', value) if name in (b"if-match", b"if-none-match") else value


def _coding(accept_encoding: bytes) -> str | None:
    return (
        _cached_choice(accept_encoding)
        if len(accept_encoding) <= LONGEST_KEPT
        else best(accept_encoding.decode("latin-1"))
    )


@lru_cache(maxsize=256)
def _cached_choice(accept_encoding: bytes) -> str | None:
    return best(accept_encoding.decode("latin-1"))


def best(accept_encoding: str) -> str | None:
    """Return the coding that an Accept-Encoding header likes best, of those that we have; None for the text as it is.

    An element of another form than RFC 9110's is ignored.
    """
    weights: dict[str, float] = {}
    for element in accept_encoding.lower().split(","):
        if match := _ELEMENT.fullmatch(element):
            weights[match[1].removeprefix("x-")] = float(match[2] or 1)
    others = weights.get("*", 0.0)
    choice = max(PREFERENCE, key=lambda coding: weights.get(coding, others))
    weight = weights.get(choice, others)
    return choice if weight > 0 and weight >= weights.get("identity", 0.0) else None


class _CompressedAnswer:
    """The answer on its way out. Its head waits for the body, whose size decides."""

    def __init__(self, send: Send, coding: str, conditions: bytes) -> None:
        self._send = send
        self._coding = coding
        self._conditions = conditions
        self._start: Message | None = None
        self._stream: Compressor | None = None  # of an answer that comes in parts

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._stream is not None:
            message = _next_part(self._stream, message)
        elif self._start is not None:
            start, self._start = self._start, None
            start, message = await self._compressed(start, message)
            await self._send(start)
        if message.get("body") or not message.get("more_body", False):
            await self._send(message)

    async def _compressed(self, start: Message, message: Message) -> tuple[Message, Message]:
        fields: list[tuple[bytes, bytes]] = list(start.get("headers", ()))
        headers = {name.lower(): value for name, value in fields}
        body: bytes = message.get("body", b"")
        tag = headers.get(b"etag", b"")
        own_tag = tag.removesuffix(b'"') + f'-{self._coding}"'.encode()
        if start["status"] == 304 and tag and own_tag in self._conditions:
            return {**start, "headers": _with(fields, {b"etag": own_tag})}, message
        if message.get("more_body", False):
            if _is_text(start["status"], headers) and b"no-transform" not in headers.get(b"cache-control", b""):
                self._stream = _compressor(self._coding)
                replacements = {b"content-encoding": self._coding.encode()} | ({b"etag": own_tag} if tag else {})
                fields = [field for field in fields if field[0].lower() != b"content-length"]
                return {**start, "headers": _with(fields, replacements)}, _next_part(self._stream, message)
        elif len(body) >= LEAST and _is_text(start["status"], headers):
            body = await _compress(body, self._coding)
            replacements = {b"content-encoding": self._coding.encode(), b"content-length": str(len(body)).encode()}
            if tag:
                replacements[b"etag"] = own_tag
            return {**start, "headers": _with(fields, replacements)}, {**message, "body": body}
        return start, message


def _with(fields: list[tuple[bytes, bytes]], replacements: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [field for field in fields if field[0].lower() not in replacements] + list(replacements.items())


def _is_text(status: int, headers: Mapping[bytes, bytes]) -> bool:
    kind = headers.get(b"content-type", b"")
    return (
        status not in (204, 206, 304)
        and b"content-encoding" not in headers
        and (b"json" in kind or kind.startswith(_TEXTS))
    )


def _compressor(coding: str) -> Compressor:
    return _Brotli() if coding == "br" else _gzip()


def _next_part(compressor: Compressor, message: Message) -> Message:
    """Return a part of an answer, compressed: it may be empty, and the last one ends the body."""
    body = compressor.compress(message.get("body", b""))
    return {**message, "body": body if message.get("more_body", False) else body + compressor.flush()}


async def _compress(body: bytes, coding: str) -> bytes:
    """Compress a body. A large one goes through a thread piece by piece: both libraries let others run meanwhile."""
    compressor = _compressor(coding)
    if len(body) <= INLINE:
        return compressor.compress(body) + compressor.flush()
    pieces = [
        await asyncio.to_thread(compressor.compress, body[at : at + INLINE]) for at in range(0, len(body), INLINE)
    ]
    return b"".join((*pieces, await asyncio.to_thread(compressor.flush)))
