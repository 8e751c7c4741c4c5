"""The load generator: prepared requests over keep-alive connections, from one thread around epoll.

It shares the machine with what it measures, so it does little: it reads status and length of an answer and drops the
rest. `limit` measures how fast it is against a server that does nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import select
import socket
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import uvloop

PIECE = 1 << 20
PATIENCE = 120.0  # seconds without any answer


class Unexpected(Exception):
    """An answer that is no success, or none at all."""


@dataclass(frozen=True, slots=True)
class Load:
    """The latencies and the bytes of a series of requests."""

    seconds: float
    latencies: Sequence[float]  # of each request, in seconds, in the order of the answers
    received: int  # bytes of bodies

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def milliseconds(self, percent: float) -> float:
        """Return a percentile of the latencies."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    began: float = 0.0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    head: bytes = b""
    missing: int = -1  # bytes of body that have not come; -1 while the head has not

    def send(self) -> bool:
        """Send what the socket takes. Return whether that was all."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return False
        return True

    def take(self, piece: memoryview) -> bool:
        """Count a piece of an answer. Return whether the answer is complete."""
        if self.missing >= 0:
            self.missing -= len(piece)
            return self.missing == 0
        self.head += bytes(piece)
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return False
        self.missing = _length(self.head[:end]) - (len(self.head) - end - 4)
        return self.missing == 0


def _length(head: bytes) -> int:
    at = head.lower().find(b"content-length:")
    if at < 0:
        raise Unexpected(f"an answer without a length: {head!r}")
    return int(head[at + 15 :].partition(b"\r")[0])


def request(address: str, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Return a request as it goes over the wire."""
    fields = {"host": urlsplit(address).netloc, **(headers or {})}
    if body:
        fields = {"content-type": "application/json", **fields, "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def replay(address: str, requests: Iterable[bytes], *, connections: int, seconds: float | None = None) -> Load:
    """Send requests, one at a time on each connection: each once, or again and again for some seconds.

    Raises Unexpected unless every answer is a success.
    """
    queue = iter(requests if seconds is None else itertools.cycle(list(requests)))
    poll, opened = select.epoll(), {}
    where = urlsplit(address)
    for _ in range(connections):
        connected = socket.create_connection((where.hostname, where.port))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)
        opened[connected.fileno()] = _Connection(connected)
        poll.register(connected, select.EPOLLIN)
    try:
        return _run(poll, opened, queue, seconds)
    finally:
        poll.close()
        for connection in opened.values():
            connection.socket.close()


def _run(poll: select.epoll, opened: Mapping[int, _Connection], queue: Iterator[bytes], seconds: float | None) -> Load:
    clock, buffer = time.perf_counter, memoryview(bytearray(PIECE))
    latencies: list[float] = []
    received, began = 0, clock()
    ends = began + seconds if seconds else float("inf")
    busy = sum(_begin(poll, connection, queue, clock()) for connection in opened.values())
    while busy:
        ready = poll.poll(PATIENCE)
        if not ready:
            raise Unexpected(f"no answer within {PATIENCE:g} s")
        for number, event in ready:
            connection = opened[number]
            if event & select.EPOLLOUT and connection.send():
                poll.modify(number, select.EPOLLIN)
            if not event & select.EPOLLIN:
                continue
            size = connection.socket.recv_into(buffer)
            if not size:
                raise Unexpected("the server closed a connection")
            received += size
            if not connection.take(buffer[:size]):
                continue
            now = clock()
            if connection.head[9:10] != b"2":
                raise Unexpected(connection.head.decode(errors="replace"))
            latencies.append(now - connection.began)
            busy -= not (now < ends and _begin(poll, connection, queue, now))
    return Load(clock() - began, latencies, received)


def _begin(poll: select.epoll, connection: _Connection, queue: Iterator[bytes], now: float) -> bool:
    """Send the next request. Return False if there is none."""
    following = next(queue, None)
    if following is None:
        return False
    connection.began, connection.head, connection.missing = now, b"", -1
    connection.unsent = memoryview(following)
    if not connection.send():
        poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
    return True


def limit(size: int, *, connections: int, seconds: float) -> float:
    """Return the requests per second of the generator on answers of `size` bytes that cost their server nothing."""
    with _idle_server(size) as address:
        wire = request(address, "GET", "/collections/CMIP6/items/nothing")
        return replay(address, [wire], connections=connections, seconds=seconds).rate


@contextmanager
def _idle_server(size: int) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_nothing, args=(size, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve_nothing(size: int, pipe: multiprocessing.connection.Connection) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b" " * size

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(answer)  # type: ignore[attr-defined]

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


def middle(values: Iterable[float]) -> float:
    return statistics.median(values)
