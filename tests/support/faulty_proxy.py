"""A proxy before a file server that cuts, stalls, answers 503, and corrupts what it is told to.

It is a process of its own. Which request meets which fault follows from a seed, the path and how often it was asked
for, and no path meets more than two: who tries again gets every file. GET /_faults tells what it has done.
`python -m tests.support.faulty_proxy PLAN` writes {"url": …} on standard output; PLAN is the JSON of a FaultPlan.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from tests.support.places import REPOSITORY
from tests.support.waiting import PATIENCE

MOST_FAULTS = 2  # of a path
PIECE = 1 << 16


class Fault(StrEnum):
    """What a request meets."""

    CUT = "cut"
    STALL = "stall"
    UNAVAILABLE = "503"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What the proxy does: `share` of the first requests for a path meet a fault, `corrupt` paths always."""

    upstream: str
    seed: int
    share: float = 0.3
    stall_seconds: float = 0.3
    corrupt: Sequence[str] = ()
    port: int = 0


@dataclass
class FaultyProxy:
    """The faults so far."""

    plan: FaultPlan
    requests: Counter[str] = field(default_factory=Counter)  # by path
    faults: Counter[str] = field(default_factory=Counter)  # by kind
    faults_of: Counter[str] = field(default_factory=Counter)  # by path
    sent_bytes: int = 0

    def fault_of(self, path: str) -> tuple[Fault | None, float]:
        """Return what the next request for a path meets, and after which part of the body."""
        self.requests[path] += 1
        noise = hashlib.blake2b(f"{self.plan.seed} {self.requests[path]} {path}".encode()).digest()
        where = noise[0] / 256
        if path.lstrip("/") in self.plan.corrupt:
            fault: Fault | None = Fault.CORRUPT
        elif self.faults_of[path] >= MOST_FAULTS or noise[1] / 256 >= self.plan.share:
            fault = None
        else:
            fault = (Fault.CUT, Fault.CUT, Fault.STALL, Fault.UNAVAILABLE)[noise[2] % 4]
            self.faults_of[path] += 1
        if fault is not None:
            self.faults[fault] += 1
        return fault, where

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; the connection ends with it."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            if target == "/_faults":
                content = json.dumps({"faults": self.faults, "requests": self.requests, "bytes": self.sent_bytes})
                writer.write(_answer("200 OK", content.encode()))
                await writer.drain()
                return
            fault, where = self.fault_of(unquote(urlsplit(target).path)) if method == "GET" else (None, 0.0)
            if fault is Fault.UNAVAILABLE:
                writer.write(_answer("503 Service Unavailable", b"busy", "Retry-After: 1\r\n"))
                await writer.drain()
                return
            kept = [line for line in lines if line and not line.lower().startswith(("connection:", "host:"))]
            request = "\r\n".join((f"{method} {target} HTTP/1.1", "Host: upstream", "Connection: close", *kept))
            await self._forward(f"{request}\r\n\r\n".encode("latin-1"), writer, fault, where)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _forward(self, request: bytes, writer: asyncio.StreamWriter, fault: Fault | None, where: float) -> None:
        upstream = urlsplit(self.plan.upstream)
        source, sink = await asyncio.open_connection(upstream.hostname, upstream.port)
        try:
            sink.write(request)
            head = await source.readuntil(b"\r\n\r\n")
            writer.write(head)
            length = next((int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n")
                           if line.startswith(b"content-length:")), 0)  # fmt: skip
            turn, position = int(length * where), 0
            while piece := await source.read(min(PIECE, turn - position) if position < turn else PIECE):
                if fault is Fault.CORRUPT and position <= turn < position + len(piece):
                    changed = bytearray(piece)
                    changed[turn - position] ^= 0xFF
                    piece = bytes(changed)
                if position == turn and fault is Fault.CUT:
                    writer.transport.abort()
                    return
                if position == turn and fault is Fault.STALL:
                    await asyncio.sleep(self.plan.stall_seconds)
                writer.write(piece)
                await writer.drain()
                position += len(piece)
                self.sent_bytes += len(piece)
        finally:
            sink.close()
            with suppress(OSError):
                await sink.wait_closed()


def _answer(status: str, content: bytes, headers: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n{headers}\r\n".encode() + content
    )


async def run(plan: FaultPlan) -> None:
    """Serve until the process is ended."""
    proxy = FaultyProxy(plan)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", plan.port) as server:
        print(json.dumps({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}), flush=True)
        await server.serve_forever()


@contextmanager
def faulty_proxy(plan: FaultPlan) -> Iterator[str]:
    """Run the proxy, and yield its address."""
    print(f"faults of seed {plan.seed}, share {plan.share}")
    command = [sys.executable, "-m", "tests.support.faulty_proxy", json.dumps(asdict(plan))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, env=environment) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


def faults_at(url: str) -> dict[str, Any]:
    """Return what a proxy has done: faults by kind, requests by path, bytes of bodies."""
    return dict(httpx.get(f"{url}/_faults", trust_env=False, timeout=PATIENCE).json())


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(run(FaultPlan(**json.loads(sys.argv[1]))))
