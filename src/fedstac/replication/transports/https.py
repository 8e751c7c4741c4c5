"""Files over HTTP: ranges with If-Range, redirects that are judged again, connections to the address that was judged.

Servers speak ranges badly. So nothing an answer says is believed that could be wrong without showing: an answer to a
range that does not say where it begins is not used, and the reader begins at 0.

A thread reads from the socket into the buffer that is hashed and written: half the processor time of an asynchronous
client (docs/adr/0036). Threads wait for the network only as long as the stall time says, and end when they are aborted.
"""

from __future__ import annotations

import asyncio
import functools
import http.client
import re
import select
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import Any, Final, TypeVar
from urllib.parse import urljoin

import httpx

from fedstac import __version__
from fedstac.replication.addresses import AddressRefused, AddressRules, SourceUrl
from fedstac.replication.transports import LATER, Chunk, CopyCause, CopyFailed, SourceStream, SourceVersion

CONNECT_SECONDS: Final = 20.0
KEPT_SECONDS: Final = 20.0  # that a connection stays open between files
MOST_KEPT: Final = 16  # connections of one host
MOST_ADDRESSES: Final = 2  # of a name that are tried
MOST_REDIRECTS: Final = 5
LEAST_BYTES: Final = 64 << 10  # that have to arrive within the stall time
LONGEST_WAIT_SECONDS: Final = 1.0  # for a chunk to become full
LONGEST_RETRY_SECONDS: Final = 86_400.0
REDIRECTS: Final = (301, 302, 303, 307, 308)
CONTENT_RANGE: Final = re.compile(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE | re.ASCII)
IDENTITY: Final = "identity"
LONGEST_FIELD: Final = 1000
T = TypeVar("T")

Resolve = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> Sequence[str]:
    """Resolve a name to its addresses, as the machine does."""
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class HttpsTransport:
    """Reads files over http and https."""

    def __init__(
        self, rules: Callable[[], AddressRules], *, threads: Executor, stall_seconds: float, find: Resolve = resolve
    ) -> None:
        self.rules, self.threads, self.stall_seconds, self.find = rules, threads, stall_seconds, find
        self.idle = _IdleConnections()

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        self.idle.close()

    @asynccontextmanager
    async def open(
        self, url: SourceUrl, start: int, expected: SourceVersion | None, chunk_bytes: int
    ) -> AsyncGenerator[SourceStream]:
        """Read from the byte `start` on, or from 0 where the source gives no such range. CopyFailed otherwise."""
        exchange = _Exchange(self, url)
        try:
            try:
                async with asyncio.timeout(CONNECT_SECONDS + self.stall_seconds):
                    stream = await self._open(exchange, start, expected, chunk_bytes)
            except AddressRefused as error:
                raise CopyFailed(CopyCause.SOURCE_REFUSES, str(error)) from None  # names and redirects change
            except ssl.SSLCertVerificationError as error:
                reason = f"{url.host} shows a certificate that is not valid for it: {error.verify_message}"
                raise CopyFailed(CopyCause.SOURCE_AWAY, reason) from error
            except TimeoutError as error:
                raise CopyFailed(CopyCause.SOURCE_AWAY, f"{url.host} does not answer") from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = f"{url.host} does not answer as a server of HTTP ({type(error).__name__})"
                raise CopyFailed(CopyCause.SOURCE_AWAY, reason) from error
            yield stream
        finally:
            exchange.end()

    async def _open(
        self, exchange: _Exchange, start: int, expected: SourceVersion | None, chunk_bytes: int
    ) -> SourceStream:
        """Return the stream of the range, or of the whole file where the range's is of no use."""
        for first in dict.fromkeys((start, 0)):
            await exchange.run(functools.partial(exchange.request, first, expected))
            stream = _stream_of(exchange, first, expected, chunk_bytes)
            if stream is not None:
                return stream
        raise CopyFailed(CopyCause.SOURCE_REFUSES, f"{exchange.url.host} answers to a request for all as if for a part")


class _IdleConnections:
    """Connections that stay open between files."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_place: dict[tuple[str, str, int], list[_Connection]] = defaultdict(list)

    def take(self, url: SourceUrl, rules: AddressRules) -> _Connection | None:
        """Return an open connection to a place, whose address may still be connected to; None where there is none."""
        while True:
            with self._lock:
                connections = self._by_place[url.scheme, url.host, url.port]
                if not connections:
                    return None
                connection = connections.pop()
            if connection.is_usable(rules):
                return connection
            connection.close()

    def give(self, connection: _Connection) -> None:
        """Keep a connection whose answer was read to its end."""
        connection.idle_since = time.monotonic()
        url = connection.url
        with self._lock:
            connections = self._by_place[url.scheme, url.host, url.port]
            if len(connections) < MOST_KEPT:
                connections.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for connections in self._by_place.values():
                for each in connections:
                    each.close()
            self._by_place.clear()


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was judged.

    A name that resolves differently a moment later leads nowhere else.
    """

    def __init__(self, url: SourceUrl, rules: AddressRules, find: Resolve) -> None:
        super().__init__(url.host, url.port)
        self.url, self._rules, self._find = url, rules, find
        self.idle_since = 0.0

    def connect(self) -> None:
        """Connect to one of the addresses of the name, all of which were judged."""
        addresses = list(dict.fromkeys(self._find(self.url.host, self.url.port)))
        self._rules.judge_connection(self.url.host, self.url.port, addresses)
        plain = _connect_to_first(addresses[:MOST_ADDRESSES], self.url.port)
        if self.url.scheme == "https":
            try:
                self.sock = _certificates().wrap_socket(plain, server_hostname=self.url.host)
            except BaseException:
                plain.close()
                raise
        else:
            self.sock = plain

    def is_usable(self, rules: AddressRules) -> bool:
        """Tell whether a request can be sent: it is young, the other side keeps it open, and its address is listed."""
        if time.monotonic() - self.idle_since > KEPT_SECONDS:
            return False
        try:
            rules.judge_connection(self.url.host, self.url.port, [str(self.sock.getpeername()[0])])
            return not select.select([self.sock], [], [], 0)[0]
        except (AddressRefused, OSError, ValueError):
            return False


def _connect_to_first(addresses: Sequence[str], port: int) -> socket.socket:
    failure: OSError = ConnectionError("the name has no address")
    for address in addresses:
        try:
            connection = socket.create_connection((address, port), CONNECT_SECONDS)
        except OSError as error:
            failure = error
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    raise failure


class _Exchange:
    """A request, its redirects and its answer. `run` gives blocking work to a thread; `end` makes the thread return."""

    def __init__(self, transport: HttpsTransport, url: SourceUrl) -> None:
        self.url = url  # after redirects: the one that answered
        self.answer: http.client.HTTPResponse
        self.is_at_end = False
        self._transport = transport
        self._connection: _Connection | None = None
        self._socket: socket.socket | None = None
        self._lock = Lock()
        self._was_ended = False
        self._work: Future[Any] | None = None
        self._failure: CopyFailed | None = None
        self._fresh_bytes, self._fresh_seconds = 0, 0.0

    async def run(self, work: Callable[[], T]) -> T:
        """Do something in a thread."""
        self._work = self._transport.threads.submit(work)
        return await asyncio.wrap_future(self._work)

    def end(self) -> None:
        """Keep the connection where the answer is at its end; else close it, once no thread uses it."""
        with self._lock:
            self._was_ended = True
            work, connection = self._work, self._connection
        if work is not None and not work.done():
            if self._socket is not None:
                with suppress(OSError):  # it may be gone; TLS says no goodbye, which would wait
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            work.add_done_callback(lambda _: self._close())
        elif self.is_at_end and connection is not None and not self.answer.will_close:
            self.answer.close()
            self._transport.idle.give(connection)
        else:
            self._close()

    def _close(self) -> None:
        if hasattr(self, "answer"):
            self.answer.close()
        if self._connection is not None:
            self._connection.close()
        self._connection = self._socket = None

    def request(self, start: int, expected: SourceVersion | None) -> None:
        """Ask for the file from a byte on. Each redirect is judged as the first address was."""
        for _ in range(MOST_REDIRECTS + 1):
            self._close()
            self._send(start, expected)
            location = self.answer.headers.get("location")
            if self.answer.status not in REDIRECTS or location is None:
                return
            self.url = self._redirect(location)
        raise CopyFailed(CopyCause.SOURCE_REFUSES, f"{self.url.host} redirects more than {MOST_REDIRECTS} times")

    def _send(self, start: int, expected: SourceVersion | None) -> None:
        rules = self._transport.rules()
        connection = self._transport.idle.take(self.url, rules)
        if connection is not None:
            try:
                self._ask(connection, start, expected)
                return
            except (ConnectionError, http.client.BadStatusLine):  # the other side closed it at this moment
                self._close()
        self._ask(_Connection(self.url, rules, self._transport.find), start, expected)

    def _ask(self, connection: _Connection, start: int, expected: SourceVersion | None) -> None:
        with self._lock:
            self._connection = connection
        if connection.sock is None:
            connection.connect()
        with self._lock:
            self._socket = connection.sock
            if self._was_ended:
                raise ConnectionAbortedError
        self._socket.settimeout(self._transport.stall_seconds)
        connection.putrequest("GET", self.url.target, skip_accept_encoding=True)
        for name, value in _request_headers(start, expected):
            connection.putheader(name, value)
        connection.endheaders()
        self.answer = connection.getresponse()

    def _redirect(self, location: str) -> SourceUrl:
        url = self.url
        host = f"[{url.host}]" if ":" in url.host else url.host
        try:
            there = urljoin(f"{url.scheme}://{host}:{url.port}{url.target}", location)
            target = self._transport.rules().judge(there)
        except (AddressRefused, ValueError) as error:
            raise AddressRefused(f"{url.host} redirects, and {error}") from None
        if target.scheme not in (url.scheme, "https"):
            raise AddressRefused(f"{url.host} redirects from {url.scheme} to {target.scheme}")
        return target

    def read(self, most: int) -> Chunk:
        """Return up to so many bytes, fewer where they come slowly; none at the end. CopyFailed(CUT)."""
        self._raise_failure()
        buffer = memoryview(bytearray(most))
        size, begin = 0, time.monotonic()
        while size < most and time.monotonic() - begin < LONGEST_WAIT_SECONDS:
            try:
                count = self._read_some(buffer[size:])
            except TimeoutError:
                self._fail(f"sent nothing for {self._transport.stall_seconds:g} seconds")
                break
            except (OSError, http.client.HTTPException, ValueError):
                self._fail("ended the connection in the middle of the file")
                break
            if not count:
                break
            size += count
        self._judge_pace(size, time.monotonic() - begin)
        if not size:
            self._raise_failure()
        return buffer[:size]

    def _read_some(self, buffer: memoryview) -> int:
        if not self.answer.chunked:
            return self.answer.fp.readinto1(buffer)
        part = self.answer.read1(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def _judge_pace(self, size: int, seconds: float) -> None:
        """Give up a source that sends a few bytes now and then. Only the time that is spent waiting for it counts."""
        self._fresh_bytes += size
        self._fresh_seconds += seconds
        if self._fresh_bytes >= LEAST_BYTES:
            self._fresh_bytes, self._fresh_seconds = 0, 0.0
        elif self._fresh_seconds > self._transport.stall_seconds:
            self._fail(f"sent {self._fresh_bytes} bytes in {self._fresh_seconds:.0f} seconds")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, reason: str) -> None:
        self._failure = CopyFailed(CopyCause.CUT, f"{self.url.host} {reason}")


def _stream_of(
    exchange: _Exchange, start: int, expected: SourceVersion | None, chunk_bytes: int
) -> SourceStream | None:
    """Return the stream of an answer; None where it is of no use, but one to the whole file may be."""
    answer, host = exchange.answer, exchange.url.host
    if answer.status not in (200, 206, 416):
        raise _refusal(answer, exchange.url)
    if answer.status == 416 or (answer.status == 206 and not start):
        return None
    length = None if answer.chunked else _number(_field(answer, "content-length"))
    encoding = _field(answer, "content-encoding").lower() or IDENTITY
    if answer.status == 200:
        first, total = 0, length
    else:
        place = CONTENT_RANGE.fullmatch(_field(answer, "content-range"))
        if place is None or int(place[1]) != start or encoding != IDENTITY:
            return None
        first, total = start, _number(place[3])
        if total is not None and (int(place[2]) != total - 1 or length not in (None, total - start)):
            return None
    version = SourceVersion(total, _field(answer, "etag"), _field(answer, "last-modified"))
    if first and expected is not None and version.contradicts(expected):
        raise CopyFailed(CopyCause.CHANGED, f"{host} has another content now than when the copy began")
    remark = "" if encoding == IDENTITY else f"{host} sends it encoded with {encoding}, unasked"
    return SourceStream(version, first, _chunks(exchange, length, chunk_bytes), remark)


async def _chunks(exchange: _Exchange, length: int | None, chunk_bytes: int) -> AsyncGenerator[Chunk]:
    """Yield what arrives. CopyFailed(CUT) at the end of the connection, or if too little came for too long."""
    rest = length
    while rest is None or rest > 0:
        chunk = await exchange.run(functools.partial(exchange.read, min(chunk_bytes, rest or chunk_bytes)))
        if not chunk:
            if rest is None:
                break
            raise CopyFailed(CopyCause.CUT, f"{exchange.url.host} ended the connection in the middle of the file")
        if rest is not None:
            rest -= len(chunk)
        yield chunk
    exchange.is_at_end = True


def _request_headers(start: int, expected: SourceVersion | None) -> Iterator[tuple[str, str]]:
    yield "User-Agent", f"fedstac/{__version__}"
    yield "Accept", "*/*"
    yield "Accept-Encoding", IDENTITY
    if start:
        yield "Range", f"bytes={start}-"
        if expected is not None and expected.validator:
            yield "If-Range", expected.validator


def _field(answer: http.client.HTTPResponse, name: str) -> str:
    """Return a header; empty where there is none that is plain and short."""
    text = str(answer.headers.get(name, "")).strip()
    return text if len(text) <= LONGEST_FIELD and text.isascii() and text.isprintable() else ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _refusal(answer: http.client.HTTPResponse, url: SourceUrl) -> CopyFailed:
    status = answer.status
    if status in LATER:
        return CopyFailed(CopyCause.SOURCE_AWAY, f"{url.host} answered {status}", retry_after=_retry_after(answer))
    reason = {
        401: "wants a login", 403: "does not permit it", 404: "has no such file", 410: "has the file no more",
    }.get(status, "does not give the file")  # fmt: skip
    return CopyFailed(CopyCause.SOURCE_REFUSES, f"{url.host} {reason} ({status}): {url.for_people}")


def _retry_after(answer: http.client.HTTPResponse) -> float | None:
    """Return how many seconds a source asks to wait; it says so in seconds or as a date."""
    text = _field(answer, "retry-after")
    seconds: float | None = _number(text)
    if seconds is None and text:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_RETRY_SECONDS)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return what TLS checks the other side with. It is read once a process, in 40 ms."""
    return httpx.create_ssl_context()
