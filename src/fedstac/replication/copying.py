"""Copying one file: resumed, verified while it arrives, moved into place whole.

Bytes go to a part file beside the target, and are hashed and written in a thread while the next ones arrive. A process
that ends loses less than a block: what is in the part file is read again, not fetched. Only a whole file whose checksum
agrees gets its final name, and it is on the disk before.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

import orjson

from fedstac.domain.multihashes import Multihash
from fedstac.replication import storage
from fedstac.replication.addresses import AddressRefused, SourceUrl
from fedstac.replication.storage import Digest, PartFile, TargetPlace
from fedstac.replication.transports import (
    Chunk,
    CopyCause,
    CopyFailed,
    DeliveringTransport,
    SourceStream,
    SourceVersion,
    StreamingTransport,
    Transport,
    Transports,
)

BLOCK_BYTES = 8 << 20  # that a killed process may have fetched and not kept
PIECES = 8  # of a block: what is handed to the thread at once
MOST_CUTS = 3  # that are resumed at once, if bytes came in between
SMALL_BYTES = 1 << 20  # a file that comes in one piece is not resumed, so nothing is noted of it
P = ParamSpec("P")
T = TypeVar("T")

HASHES: Final[dict[str, Callable[[], Digest]]] = {
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha2-256": hashlib.sha256,
    "sha2-384": hashlib.sha384,
    "sha2-512": hashlib.sha512,
    "sha3-224": hashlib.sha3_224,
    "sha3-256": hashlib.sha3_256,
    "sha3-384": hashlib.sha3_384,
    "sha3-512": hashlib.sha3_512,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "blake2b-256": lambda: hashlib.blake2b(digest_size=32),
    "blake2b-512": hashlib.blake2b,
}  # by their names in MULTIHASHES; blake3 is in no standard library


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """A file to have: `path` below `folder`, its size where the catalogue says it, its multihash, and where it is.

    `host`: the source whose cap the bytes count for; empty: the host of `href`. `reserved`: bytes that others who began
    before still write there.
    """

    folder: Path
    path: str
    size: int | None
    checksum: str
    href: str
    host: str = ""
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy took, in bytes. `reused`: what was here already, in a part or as the whole file."""

    size: int
    fetched_bytes: int
    reused_bytes: int


class Throttle(Protocol):
    """Keeps a source's cap."""

    async def take(self, host: str, count: int) -> None:
        """Return when so many bytes of this host may have come."""
        ...


class NoThrottle:
    """Lets everything through."""

    async def take(self, host: str, count: int) -> None:
        """Return at once."""


def new_digest(checksum: str) -> tuple[Digest, Multihash]:
    """Return an empty digest of a checksum's function, and what it has to give. CopyFailed(UNVERIFIABLE)."""
    try:
        multihash = Multihash.parse(checksum)
    except ValueError as error:
        raise CopyFailed(CopyCause.UNVERIFIABLE, f"the checksum {error}") from None
    if multihash.function not in HASHES:
        raise CopyFailed(CopyCause.UNVERIFIABLE, f"the checksum is of {multihash.function}, which is not computed here")
    return HASHES[multihash.function](), multihash


async def copy_file(
    order: CopyOrder, *, transports: Transports, on_bytes: Callable[[int], None] = lambda size: None,
    throttle: Throttle | None = None, block_bytes: int = BLOCK_BYTES,
    may_place: Callable[[], Awaitable[None]] | None = None,
) -> CopyReport:  # fmt: skip
    """Bring a file to its final name, whole and verified; one that is there already is verified and left.

    `on_bytes` is called with the bytes that are here so far. Raises CopyFailed; what came is kept for the next call
    where it may be of use. An existing file with another content stays until the new one is verified. `may_place` is
    awaited right before the file gets its final name; where it raises, the file does not, and its part stays whole.
    """
    new_digest(order.checksum)
    try:
        url = transports.rules().judge(order.href)
    except AddressRefused as error:
        raise CopyFailed(CopyCause.BAD_ADDRESS, str(error)) from None
    transport = transports.open_transport(url)
    preparation = await _prepared(transports.threads, order)
    if isinstance(preparation, int):
        on_bytes(preparation)
        return CopyReport(preparation, 0, preparation)
    part, piece_bytes = preparation, max(block_bytes // PIECES, 1)
    try:
        copy = _Copy(order, url, part, transports.threads, on_bytes, throttle or NoThrottle(), piece_bytes)
        await copy.run(transport)
        if may_place is not None:
            await may_place()
        return await copy.place()
    finally:  # one without a byte goes when it is closed
        part.give_up()
        await asyncio.shield(asyncio.wrap_future(transports.threads.submit(part.close)))


async def _prepared(threads: ThreadPoolExecutor, order: CopyOrder) -> int | PartFile:
    work = threads.submit(storage.name_failures, order.path, functools.partial(_prepare, order))
    try:
        return await asyncio.wrap_future(work)
    except asyncio.CancelledError:
        work.add_done_callback(_abandon)
        raise
    finally:  # its error has this frame
        del work


def _abandon(work: Future[int | PartFile]) -> None:
    """Unlock the part that nobody takes any more."""
    if not work.cancelled() and work.exception() is None and isinstance(part := work.result(), PartFile):
        part.close()


def _prepare(order: CopyOrder) -> int | PartFile:
    """Return the size of the file that is there already, if it is the very file, else its part, locked."""
    with storage.open_place(order.folder, order.path) as place:
        size = _verified_size(place, order)
        return place.open_part(order.checksum) if size is None else size


def _verified_size(place: TargetPlace, order: CopyOrder) -> int | None:
    """Return the size of the file that is there already, if it is the very file."""
    fd = place.open_target()
    if fd is None:
        return None
    with open(fd, "rb", buffering=0) as file:
        if order.size is not None and os.fstat(fd).st_size != order.size:
            return None
        digest, expected = new_digest(order.checksum)
        size = storage.feed(file.fileno(), digest)
        return size if digest.digest() == expected.digest else None


class _Copy:
    """One file on its way: the part file, its digest so far, and where its bytes came from."""

    def __init__(
        self, order: CopyOrder, url: SourceUrl, part: PartFile, threads: ThreadPoolExecutor,
        on_bytes: Callable[[int], None], throttle: Throttle, piece_bytes: int,
    ) -> None:  # fmt: skip
        self._order, self._url, self._part = order, url, part
        self._on_bytes, self._throttle, self._piece_bytes = on_bytes, throttle, piece_bytes
        self._host = order.host or url.host
        self._digest, self._expected = new_digest(order.checksum)
        self._size = 0  # bytes in the part file, and in the digest
        self._fetched_bytes = self._reused_bytes = 0
        self._streams = 0  # that the bytes of the part came in; those that were here count as one
        self._version: SourceVersion | None = None  # of this source, when the first of the bytes came
        self._remark = ""
        self._was_here = False  # bytes of the part, before this call
        self._was_restarted = False  # because the source changed, which it may once
        self._threads = threads

    async def run(self, transport: Transport) -> None:
        """Fetch what is missing, until the checksum agrees. CopyFailed."""
        await self._run(self._take_up)
        self._on_bytes(self._size)
        cuts = 0
        while True:
            before = self._fetched_bytes
            try:
                if self._order.size is None or self._size < self._order.size or not self._streams:
                    await self._fetch(transport)
                if self._digest.digest() == self._expected.digest:
                    break
                if self._is_sources_fault():
                    raise await self._discard(self._wrong_checksum())
                raise CopyFailed(CopyCause.CHANGED, f"{self._host} gave parts that are not of one file")
            except CopyFailed as error:
                match error.cause:
                    case CopyCause.CHANGED if not self._was_restarted:
                        self._was_restarted = True
                        await self._run(self._restart)
                    case CopyCause.CUT if self._fetched_bytes > before and cuts < MOST_CUTS:
                        cuts += 1
                    case CopyCause.CHANGED:
                        raise await self._discard(error) from error
                    case _:
                        raise

    async def place(self) -> CopyReport:
        """Move the file into place. CopyFailed."""
        await self._run(self._part.move_into_place)
        return CopyReport(self._size, self._fetched_bytes, self._reused_bytes)

    def _take_up(self) -> None:
        """Read what an earlier process left."""
        if self._order.size is not None and self._part.size > self._order.size:
            self._part.empty()
        self._size = self._reused_bytes = self._part.hash_into(self._digest)
        self._streams = 1 if self._size else 0
        try:
            note = orjson.loads(self._part.read_note() or "{}")
            if self._size and note.get("source") == _fingerprint(self._url):
                self._version = SourceVersion(**note["version"])
        except (ValueError, TypeError, KeyError, AttributeError):
            pass  # a note that was cut off: the checksum is there
        self._was_here = self._size > 0

    def _restart(self) -> None:
        self._part.empty()
        self._digest, _ = new_digest(self._order.checksum)
        self._size = self._reused_bytes = self._streams = 0
        self._version, self._was_here = None, False

    def _is_sources_fault(self) -> bool:
        """Tell whether all bytes are this source's, and of one version of its file.

        Where they came in several parts, that is believed after they were fetched twice only.
        """
        if self._was_here:
            return False
        return self._streams == 1 or (self._was_restarted and bool(self._version and self._version.validator))

    async def _discard(self, failure: CopyFailed) -> CopyFailed:
        await self._run(self._part.discard)
        return failure

    def _wrong_checksum(self) -> CopyFailed:
        code = self._order.checksum[: -2 * len(self._expected.digest)]
        return CopyFailed(
            CopyCause.WRONG_CONTENT,
            f"{self._host} sent {self._size} bytes with the checksum {code}{self._digest.digest().hex()}; "
            f"the catalogue says {self._order.checksum}" + (f"; {self._remark}" if self._remark else ""),
        )

    async def _fetch(self, transport: Transport) -> None:
        await self._run(self._check_room)
        if isinstance(transport, DeliveringTransport):
            target = self._order.folder / self._part.delivery_path(self._order.path)
            await transport.deliver(self._url, target, self._order.size, self._on_bytes)
            await self._run(self._take_delivery)
        else:
            await self._read(transport)
        if self._order.size is not None and self._size < self._order.size:
            raise CopyFailed(CopyCause.CUT, f"{self._host} ended after {self._size} of {self._order.size} bytes")

    def _take_delivery(self) -> None:
        self._restart()
        self._part.take_delivery()
        self._size = self._fetched_bytes = self._part.hash_into(self._digest)
        self._streams = 1

    async def _read(self, transport: StreamingTransport) -> None:
        """Append what the source has behind the bytes that are here."""
        async with transport.open(self._url, self._size, self._version, self._piece_bytes) as stream:
            if stream.start != self._size:  # it sends all, whatever was asked for
                if self._version is not None and stream.version.contradicts(self._version):
                    if self._was_restarted:
                        raise CopyFailed(CopyCause.CHANGED, f"{self._host} changes its file all the time")
                    self._was_restarted = True
                await self._run(self._restart)
            self._remark = stream.remark
            await self._check_version(stream)
            self._streams += 1
            await self._append(stream)

    def _check_room(self) -> None:
        if self._order.size is not None:
            missing, free = self._order.size - self._size, storage.free_bytes(self._order.folder)
            if free - self._order.reserved < missing:
                words = f", and files that began before need {self._order.reserved}" if self._order.reserved else ""
                raise CopyFailed(
                    CopyCause.DISK_FULL, f"{self._order.path} needs {missing} bytes more; {free} are free{words}"
                )

    async def _check_version(self, stream: SourceStream) -> None:
        """Refuse another size than the catalogue's before a byte is read, and note the source's version."""
        size = stream.version.size
        if size is not None and self._order.size is not None and size != self._order.size:
            if self._was_here or self._streams:
                raise CopyFailed(CopyCause.CHANGED, f"{self._host} has {size} bytes now")
            remark = f"; {stream.remark}" if stream.remark else ""
            raise await self._discard(CopyFailed(
                CopyCause.WRONG_CONTENT,
                f"{self._host} has {size} bytes, the catalogue says {self._order.size}{remark}",
            ))  # fmt: skip
        if self._version is None and not self._was_here:
            self._version = stream.version
            if self._order.size is None or self._order.size > SMALL_BYTES:
                note = {"source": _fingerprint(self._url), "version": asdict(stream.version)}
                await self._run(self._part.write_note, orjson.dumps(note).decode())

    async def _append(self, stream: SourceStream) -> None:
        """Hash and write in a thread while the next piece arrives; at most two pieces are in memory."""
        arrived, pending, count = self._size, list[Chunk](), 0
        writing = failure = None
        try:
            async with aclosing(stream.chunks) as chunks:
                async for chunk in chunks:
                    pending.append(chunk)
                    count += len(chunk)
                    arrived += len(chunk)
                    if self._order.size is not None and arrived > self._order.size:
                        remark = f"; {stream.remark}" if stream.remark else ""
                        raise CopyFailed(
                            CopyCause.WRONG_CONTENT,
                            f"{self._host} sends more than the {self._order.size} bytes of the catalogue{remark}",
                        )
                    if count >= self._piece_bytes:
                        await self._settle(writing)
                        writing = self._run(self._keep, pending)
                        await self._throttle.take(self._host, count)
                        pending, count = [], 0
        except CopyFailed as error:  # what came is kept
            failure = error
        try:
            await self._settle(writing)
            if failure is not None and failure.cause == CopyCause.WRONG_CONTENT:
                raise await self._discard(failure)
            if pending:
                await self._settle(self._run(self._keep, pending))
                await self._throttle.take(self._host, count)
            if failure is not None:
                raise failure
        finally:  # its traceback has this frame, which would keep it and the pieces until the next collection
            del failure, pending

    def _run(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> asyncio.Future[T]:
        """Work on the disk in a thread. CopyFailed where the disk refuses."""
        call = functools.partial(work, *args, **options)
        return asyncio.wrap_future(self._threads.submit(storage.name_failures, self._order.path, call))

    async def _settle(self, writing: asyncio.Future[None] | None) -> None:
        if writing is not None:
            await writing
            self._on_bytes(self._size)

    def _keep(self, chunks: list[Chunk]) -> None:
        self._part.append(chunks)
        for chunk in chunks:
            self._digest.update(chunk)
        size = sum(map(len, chunks))
        self._size += size
        self._fetched_bytes += size


def _fingerprint(url: SourceUrl) -> str:
    """Return what tells one source from another, and nothing of an address that may be a secret."""
    return hashlib.sha256(f"{url.scheme}://{url.host}:{url.port}{url.target}".encode()).hexdigest()
