"""Files over HTTP: ranges with If-Range, redirects that are judged again, connections to the address that was judged.

Servers speak ranges badly. So nothing an answer says is believed that could be wrong without showing: an answer to a
range that does not say where it begins is not used, and the reader begins at 0.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

import httpcore

from fedstac import __version__
from fedstac.messaging.pinning import PinningBackend, Resolve, certificates, resolve
from fedstac.replication.addresses import AddressRefused, AddressRules, SourceUrl
from fedstac.replication.transports import CopyCause, CopyFailed, SourceStream, SourceVersion

CONNECT_SECONDS = 20.0
KEPT_SECONDS = 20.0  # that a connection stays open between files
MOST_KEPT = 64
MOST_REDIRECTS = 5
LEAST_BYTES = 64 << 10  # that have to arrive within the stall time
LONGEST_RETRY_SECONDS = 86_400.0
LATER = (408, 425, 429)  # and 5xx: it may do better another time
CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)
REDIRECTS = (301, 302, 303, 307, 308)


class HttpsTransport:
    """Reads files over http and https."""

    def __init__(self, rules: Callable[[], AddressRules], *, stall_seconds: float, find: Resolve = resolve) -> None:
        self._rules, self._stall_seconds = rules, stall_seconds
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=certificates(), max_connections=None, max_keepalive_connections=MOST_KEPT,
            keepalive_expiry=KEPT_SECONDS,
            network_backend=PinningBackend(find, lambda *place: rules().judge_connection(*place)),
        )  # fmt: skip

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    @asynccontextmanager
    async def open(self, url: SourceUrl, start: int, expected: SourceVersion | None) -> AsyncGenerator[SourceStream]:
        """Read from the byte `start` on, or from 0 where the source gives no such range. CopyFailed otherwise."""
        async with AsyncExitStack() as stack:
            try:
                stream = await self._open(stack, url, start, expected)
            except AddressRefused as error:
                raise CopyFailed(CopyCause.BAD_ADDRESS, str(error)) from None
            except (httpcore.ConnectError, httpcore.TimeoutException) as error:
                raise CopyFailed(CopyCause.SOURCE_AWAY, f"{url.host} does not answer") from error
            except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
                raise CopyFailed(CopyCause.SOURCE_AWAY, f"{url.host} ended the connection before its answer") from error
            yield stream

    async def _open(
        self, stack: AsyncExitStack, url: SourceUrl, start: int, expected: SourceVersion | None
    ) -> SourceStream:
        """Return the stream of the range, or of the whole file where the range's is of no use. `stack` closes it."""
        for first in dict.fromkeys((start, 0)):
            answer, place = await self._follow(stack, url, first, expected if first else None)
            stream = self._stream_of(answer, place, first, expected)
            if stream is not None:
                return stream
            await stack.aclose()
        raise CopyFailed(CopyCause.SOURCE_REFUSES, f"{url.host} answers to the whole file as if to a part of it")

    async def _follow(
        self, stack: AsyncExitStack, url: SourceUrl, start: int, expected: SourceVersion | None
    ) -> tuple[httpcore.Response, SourceUrl]:
        """Return the answer after the redirects, each of which is judged as the first address was."""
        for _ in range(MOST_REDIRECTS + 1):
            headers = _request_headers(url, start, expected)
            target = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
            limits = {"connect": CONNECT_SECONDS, "read": self._stall_seconds, "write": self._stall_seconds}
            answer = await stack.enter_async_context(
                self._pool.stream("GET", target, headers=headers, extensions={"timeout": limits})
            )
            location = _fields(answer).get("location")
            if answer.status not in REDIRECTS or location is None:
                return answer, url
            await stack.aclose()
            url = self._redirect(url, location)
        raise CopyFailed(CopyCause.SOURCE_REFUSES, f"{url.host} redirects more than {MOST_REDIRECTS} times")

    def _redirect(self, url: SourceUrl, location: str) -> SourceUrl:
        host = f"[{url.host}]" if ":" in url.host else url.host
        try:
            there = urljoin(f"{url.scheme}://{host}:{url.port}{url.target}", location)
            target = self._rules().judge(there)
        except (AddressRefused, ValueError) as error:
            raise AddressRefused(f"{url.host} redirects, and {error}") from None
        if url.scheme == "https" and target.scheme != "https":
            raise AddressRefused(f"{url.host} redirects from https to {target.scheme}")
        return target

    def _stream_of(
        self, answer: httpcore.Response, url: SourceUrl, start: int, expected: SourceVersion | None
    ) -> SourceStream | None:
        """Return the stream of an answer; None where it is of no use, but one to the whole file may be."""
        fields = _fields(answer)
        if answer.status not in (200, 206, 416):
            raise _refusal(answer.status, url, fields)
        if answer.status == 416 or (answer.status == 206 and not start):
            return None
        length = _number(fields.get("content-length"))
        if answer.status == 200:
            first, total = 0, length
        else:
            place = CONTENT_RANGE.fullmatch(fields.get("content-range", "").strip())
            if place is None or int(place[1]) != start or fields.get("content-encoding", "identity") != "identity":
                return None
            first, total = start, _number(place[3])
            if total is not None and (int(place[2]) != total - 1 or length not in (None, total - start)):
                return None
        version = SourceVersion(total, fields.get("etag", ""), fields.get("last-modified", ""))
        if first and expected is not None and version.contradicts(expected):
            raise CopyFailed(CopyCause.CHANGED, f"{url.host} has another content now than when the copy began")
        encoding = fields.get("content-encoding", "identity")
        remark = "" if encoding == "identity" else f"{url.host} sends it encoded with {encoding}, unasked"
        return SourceStream(version, first, self._chunks(answer, url), remark)

    async def _chunks(self, answer: httpcore.Response, url: SourceUrl) -> AsyncGenerator[bytes]:
        """Yield what arrives. CopyFailed(CUT) at the end of the connection, or if too little came for too long."""
        clock = asyncio.get_running_loop().time
        size = fresh = 0
        deadline = clock() + self._stall_seconds
        try:
            async with aclosing(answer.aiter_stream()) as parts:  # type: ignore[type-var]
                async for part in parts:
                    size += len(part)
                    fresh += len(part)
                    if fresh >= LEAST_BYTES:
                        fresh, deadline = 0, clock() + self._stall_seconds
                    elif clock() > deadline:
                        raise CopyFailed(CopyCause.CUT, f"{url.host} sends fewer than {LEAST_BYTES} bytes in "
                                                    f"{self._stall_seconds:g} seconds")  # fmt: skip
                    waiting_since = clock()
                    yield part
                    deadline += clock() - waiting_since  # what the reader takes is not the source's fault
        except httpcore.TimeoutException as error:
            raise CopyFailed(CopyCause.CUT, f"{url.host} sent nothing for {self._stall_seconds:g} seconds") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise CopyFailed(CopyCause.CUT, f"{url.host} ended the connection in the middle of the file") from error


def _request_headers(url: SourceUrl, start: int, expected: SourceVersion | None) -> list[tuple[str, str]]:
    host = f"[{url.host}]" if ":" in url.host else url.host
    plain = url.port == (443 if url.scheme == "https" else 80)
    headers = [
        ("host", host if plain else f"{host}:{url.port}"), ("user-agent", f"fedstac/{__version__}"),
        ("accept", "*/*"), ("accept-encoding", "identity"),
    ]  # fmt: skip
    if start:
        headers.append(("range", f"bytes={start}-"))
        if expected is not None and expected.validator:
            headers.append(("if-range", expected.validator))
    return headers


def _fields(answer: httpcore.Response) -> Mapping[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _refusal(status: int, url: SourceUrl, fields: Mapping[str, str]) -> CopyFailed:
    if status in LATER or status >= 500:
        return CopyFailed(CopyCause.SOURCE_AWAY, f"{url.host} answered {status}", retry_after=_retry_after(fields))
    reason = {
        401: "wants a login", 403: "does not permit it", 404: "has no such file", 410: "has the file no more",
    }.get(status, "does not give the file")  # fmt: skip
    return CopyFailed(CopyCause.SOURCE_REFUSES, f"{url.host} {reason} ({status}): {url.for_people}")


def _retry_after(fields: Mapping[str, str]) -> float | None:
    """Return how many seconds a source asks to wait; it says so in seconds or as a date."""
    text = fields.get("retry-after", "").strip()
    seconds: float | None = _number(text)
    if seconds is None and text:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_RETRY_SECONDS)
