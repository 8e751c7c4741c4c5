"""How the bytes of a file come: one interface over https, file, s3 and Globus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from fedstac.replication.addresses import AddressRules, SourceUrl

if TYPE_CHECKING:
    from fedstac.replication.transports.globus import GlobusIdentity

STALL_SECONDS = 60.0
MOST_THREADS = 256  # a stream that waits for its source has one, and each write
LATER = (408, 425, 429, 502, 503, 504)  # of a source, or a proxy before it: later. Other answers are about the file
Chunk = bytes | memoryview
T = TypeVar("T")


class CopyCause(StrEnum):
    """Why a file was not copied; who reads it decides by it what to do next."""

    SOURCE_AWAY = "source away"  # it does not answer, or says to come later: try again later
    SOURCE_REFUSES = "source refuses"  # it has no such file, does not give it, or leads elsewhere: try another source
    WRONG_CONTENT = "wrong content"  # the whole file came, and is another one: never again from this source
    CHANGED = "changed"  # the source's file changed while it was read, twice
    CUT = "cut"  # the connection ended or stalled; what came is kept and resumed
    BAD_ADDRESS = "bad address"  # the policy does not let it be fetched: never from there
    BAD_PATH = "bad path"  # the file must not be stored there
    UNVERIFIABLE = "unverifiable"  # the checksum is none that can be computed here
    DISK_FULL = "disk full"  # no space or quota here: waiting, not an error
    DISK_BROKEN = "disk broken"  # the disk refuses for another reason
    BUSY = "busy"  # another process copies this very file here


class CopyFailed(Exception):
    """A file was not copied. The message is for people, and has neither a query of an address nor a local folder."""

    def __init__(self, cause: CopyCause, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.cause, self.reason = cause, reason
        self.retry_after = retry_after  # seconds, where the source says so


@dataclass(frozen=True, slots=True)
class SourceVersion:
    """What a source says about the file that it sends. Empty: it says nothing."""

    size: int | None = None
    etag: str = ""
    modified: str = ""

    @property
    def validator(self) -> str:
        """What `If-Range` takes: a strong ETag, or the time of the last change."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def contradicts(self, other: SourceVersion) -> bool:
        """Tell whether two answers are of two contents, by what both say."""
        mine, others = (self.size, self.etag, self.modified), (other.size, other.etag, other.modified)
        return any(a and b and a != b for a, b in zip(mine, others, strict=True))


@dataclass(frozen=True, slots=True)
class SourceStream:
    """The bytes of a file from `start` on, as they arrive."""

    version: SourceVersion
    start: int  # 0 where the source sends all although a rest was asked for
    chunks: AsyncGenerator[Chunk]  # none of them empty
    remark: str = ""  # what would explain a wrong content


class StreamingTransport(Protocol):
    """Reads a file as a stream of bytes."""

    def open(
        self, url: SourceUrl, start: int, expected: SourceVersion | None, chunk_bytes: int
    ) -> AbstractAsyncContextManager[SourceStream]:
        """Read from the byte `start` on; `expected`: what the source said when the first bytes came. CopyFailed.

        A chunk has at most `chunk_bytes`. CHANGED is raised where the source has another content now; the reader then
        begins at 0.
        """
        ...

    async def close(self) -> None:
        """Close what is open."""
        ...


@runtime_checkable
class DeliveringTransport(Protocol):
    """Lets somebody else write a file here, and waits until that is done."""

    async def deliver(self, url: SourceUrl, target: Path, size: int | None, on_bytes: Callable[[int], None]) -> None:
        """Let the file be written to `target`, a path of this machine. A task under way is taken up. CopyFailed."""
        ...

    async def close(self) -> None:
        """Close what is open."""
        ...


Transport = StreamingTransport | DeliveringTransport


def in_thread(threads: ThreadPoolExecutor, work: Callable[[], T]) -> asyncio.Future[T]:
    """Do something that blocks in a thread."""
    return asyncio.wrap_future(threads.submit(work))


class Transports:
    """The transports of a process: connections are kept between files. An async context manager's job is `close`.

    `rules` is asked for every address and every connection, so a policy that is read anew holds at once.
    """

    def __init__(
        self, rules: Callable[[], AddressRules], *, stall_seconds: float = STALL_SECONDS,
        globus: GlobusIdentity | None = None,
    ) -> None:  # fmt: skip
        self.rules = rules
        self.threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="replica")
        self._stall_seconds, self._globus = stall_seconds, globus
        self._by_scheme: dict[str, Transport] = {}

    def open_transport(self, url: SourceUrl) -> Transport:
        """Return the transport of an address that was judged. CopyFailed where there is none."""
        scheme = "https" if url.scheme == "http" else url.scheme
        if scheme not in self._by_scheme:
            self._by_scheme[scheme] = self._make(scheme)
        return self._by_scheme[scheme]

    def use(self, scheme: str, transport: Transport) -> None:
        """Let a transport serve a scheme in place of this node's own. It is closed with the others."""
        self._by_scheme[scheme] = transport

    def _make(self, scheme: str) -> Transport:
        match scheme:
            case "https":
                from fedstac.replication.transports.https import HttpsTransport

                return HttpsTransport(self.rules, threads=self.threads, stall_seconds=self._stall_seconds)
            case "file":
                from fedstac.replication.transports.files import FileTransport

                return FileTransport(self.rules, self.threads)
            case "globus" if self._globus is not None:
                from fedstac.replication.transports.globus import GlobusTransport

                node = self._globus
                return GlobusTransport(node.collection, node.folder, node.client, threads=self.threads)
            case "s3":
                from fedstac.replication.transports.s3 import S3Transport

                return S3Transport(threads=self.threads, stall_seconds=self._stall_seconds)
        raise CopyFailed(CopyCause.SOURCE_REFUSES, f"this node has no transport for {scheme}:")

    async def close(self) -> None:
        """Close the connections of all transports."""
        while self._by_scheme:
            _, transport = self._by_scheme.popitem()
            await transport.close()
        await asyncio.to_thread(self.threads.shutdown)

    async def __aenter__(self) -> Transports:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
