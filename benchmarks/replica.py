"""How fast a replica node copies: beside a plain streaming copy with sha-256 of the same files, and beside a cap."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import report
from fedstac import bootstrap
from fedstac.demo import embedded, federation
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.replication.addresses import AddressRules
from fedstac.replication.copying import CopyOrder, Throttle, copy_file
from fedstac.replication.throttle import SharedThrottle
from fedstac.replication.transports import Transports
from fedstac.settings import Settings

LEAST_BYTES, MOST_BYTES = 1_000_000, 50_000_000
LIMIT = 0.80  # of the plain copy's rate
CAP = 40_000_000  # bytes a second
CAP_LIMIT = 0.90
CAP_WORKERS = 8
SHA256 = "1220"
POLICY = f"""
version: 1
rules:
  - name: everything
    where: latest = true
    action: replicate
sources:
  - name: source
    hosts: ["http://127.0.0.1:*"]
    bandwidth: {CAP // 1_000_000} MB/s
"""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the source."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class CopyRun:
    """How fast one copy of all files was: bytes a second, and of them a second of this process's processor time."""

    rate: float
    processor_rate: float


def run(*, quick: bool, rounds: int) -> None:
    """Print the rates of verified copies, one file at a time and four, and how much of a cap is used."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-bench-"))
    try:
        files = _make_files(folder / "source", 4 if quick else 20)
        with _file_server(folder / "source") as url:
            for workers in (1, 4):
                _compare(folder / "target", files, url, workers=workers, rounds=rounds)
            _use_cap(folder, files, url, seconds=1 if quick else 10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compare(target: Path, files: Sequence[SourceFile], url: str, *, workers: int, rounds: int) -> None:
    plain, verified = list[CopyRun](), list[CopyRun]()
    for number in range(rounds + 1):  # the first one warms up
        for runs, copy in sorted(((plain, _copy_plainly), (verified, _copy_verified)), key=lambda _: number % 2):
            # twice, and the second counts: the first takes blocks and pages that the other copy gave back
            _, each = (asyncio.run(copy(target, files, url, workers)) for _ in range(2))
            if number or not rounds:
                runs.append(each)
    rate, peer_rate = (statistics.median(each.rate for each in runs) for runs in (verified, plain))
    processor, peer_processor = (statistics.median(each.processor_rate for each in runs) for runs in (verified, plain))
    report.line(
        f"verified copy, {workers} at a time", rate / 1e6, "MB/s", peer_rate / 1e6,
        peer_name="httpx to a file, and sha-256",
        detail={
            "limit": LIMIT, "files": len(files), "bytes": sum(each.size for each in files),
            "ratios": [round(mine.rate / peer.rate, 2) for mine, peer in zip(verified, plain, strict=True)],
            "processor_ratio": round(processor / peer_processor, 2), "load": os.getloadavg()[0],
        },
    )  # fmt: skip


async def _copy_plainly(target: Path, files: Sequence[SourceFile], url: str, workers: int) -> CopyRun:
    async with httpx.AsyncClient() as client:

        async def copy(file: SourceFile) -> None:
            digest = hashlib.sha256()
            async with client.stream("GET", f"{url}/{file.name}") as answer:
                with (target / file.name).open("wb") as output:
                    async for chunk in answer.aiter_raw():
                        output.write(chunk)
                        digest.update(chunk)
            assert SHA256 + digest.hexdigest() == file.checksum

        return await _measure(target, files, copy, workers)


async def _copy_verified(
    target: Path, files: Sequence[SourceFile], url: str, workers: int, throttle: Throttle | None = None, host: str = ""
) -> CopyRun:
    rules = AddressRules(("127.0.0.1",))
    async with Transports(lambda: rules) as transports:

        async def copy(file: SourceFile) -> None:
            order = CopyOrder(target, file.name, file.size, file.checksum, f"{url}/{file.name}", host=host)
            await copy_file(order, transports=transports, throttle=throttle)

        return await _measure(target, files, copy, workers)


async def _measure(
    target: Path, files: Sequence[SourceFile], copy: Callable[[SourceFile], Awaitable[None]], workers: int
) -> CopyRun:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()  # noqa: ASYNC240 (before anything runs)
    os.sync()  # what an earlier copy wrote is no burden of this one
    rest = list(files)

    async def work() -> None:
        while rest:
            await copy(rest.pop())

    begin, processor = time.monotonic(), time.process_time()
    await asyncio.gather(*(work() for _ in range(workers)))
    size = sum(each.size for each in files)
    return CopyRun(size / (time.monotonic() - begin), size / (time.process_time() - processor))


def _use_cap(folder: Path, files: Sequence[SourceFile], url: str, *, seconds: float) -> None:
    """Print how much of a cap eight copies at a time use together. The cap is counted in PostgreSQL, as at a node."""
    some, size = list[SourceFile](), 0
    for each in files:
        if size < seconds * CAP:
            some.append(each)
            size += each.size
    folder.chmod(0o755)  # PostgreSQL has an account of its own
    with embedded.cluster(folder / "pg") as cluster:
        federation.make_database(cluster, "fedstac", lambda _: None)
        copy_run = asyncio.run(_copy_with_cap(cluster.dsn("fedstac", user="fedstac_writer"), folder, some, url))
    report.line(
        "a source's cap in use", copy_run.rate / 1e6, "MB/s", CAP / 1e6, peer_name="the cap",
        detail={"limit": CAP_LIMIT, "workers": CAP_WORKERS, "bytes": size, "load": os.getloadavg()[0]},
    )  # fmt: skip


async def _copy_with_cap(dsn: str, folder: Path, files: Sequence[SourceFile], url: str) -> CopyRun:
    policy = ReplicaPolicy.parse(POLICY)
    async with bootstrap.node(Settings(_env_file=None, node="bench", dsn=dsn)) as node:
        throttle = SharedThrottle(node.pool, lambda: policy)
        return await _copy_verified(folder / "target", files, url, CAP_WORKERS, throttle, host="source")


def _make_files(folder: Path, count: int) -> list[SourceFile]:
    folder.mkdir()
    chance, files = random.Random(12), []
    for number in range(count):
        content = chance.randbytes(chance.randrange(LEAST_BYTES, MOST_BYTES))
        (folder / f"{number}.nc").write_bytes(content)
        files.append(SourceFile(f"{number}.nc", len(content), SHA256 + hashlib.sha256(content).hexdigest()))
    return files


@contextmanager
def _file_server(folder: Path) -> Iterator[str]:
    """Serve a folder from a process of its own, and yield its address."""
    command = [sys.executable, "-m", "benchmarks.replica", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            process.wait()


def serve(folder: Path) -> None:
    """Serve files until standard input ends. sendfile: the server takes the least of the machine that it can."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_answer_all, args=(connection, folder), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def _answer_all(connection: socket.socket, folder: Path) -> None:
    with connection, connection.makefile("rb") as lines:
        while request := lines.readline():
            while lines.readline().strip():
                pass
            with (folder / request.split()[1].decode().lstrip("/")).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %d\r\n\r\n' % size)
                sent_bytes = 0
                while sent_bytes < size:
                    sent_bytes += os.sendfile(connection.fileno(), file.fileno(), sent_bytes, size - sent_bytes)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
