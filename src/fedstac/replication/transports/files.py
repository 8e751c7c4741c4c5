"""Files of a folder of this machine that the policy lists: another disk, or one that several nodes mount."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final

from fedstac.replication.addresses import AddressRefused, AddressRules, SourceUrl
from fedstac.replication.transports import Chunk, CopyCause, CopyFailed, SourceStream, SourceVersion

# Of the disk or the server behind the folder, or of this process; what else the system says is about the file.
AWAY: Final = (
    errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV, errno.ENXIO,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM,
)  # fmt: skip


class FileTransport:
    """Reads files of listed folders. What a link of the folder leads to has to be in a listed folder too."""

    def __init__(self, rules: Callable[[], AddressRules], threads: Executor) -> None:
        self._rules, self._threads = rules, threads

    async def close(self) -> None:
        """Do nothing: each file is closed after it was read."""

    @asynccontextmanager
    async def open(
        self, url: SourceUrl, start: int, expected: SourceVersion | None, chunk_bytes: int
    ) -> AsyncGenerator[SourceStream]:
        """Read from the byte `start` on. CopyFailed where there is no such file, or where it changed."""
        file = await asyncio.get_running_loop().run_in_executor(self._threads, self._open, url)
        try:
            status = os.fstat(file.fileno())
            version = SourceVersion(status.st_size, f'"{status.st_ino}-{status.st_mtime_ns}"')
            if start and (start > status.st_size or (expected is not None and version.contradicts(expected))):
                raise CopyFailed(CopyCause.CHANGED, f"{url.for_people} is another content than when the copy began")
            file.seek(start)
            yield SourceStream(version, start, self._chunks(file, url, chunk_bytes))
        finally:
            file.close()

    def _open(self, url: SourceUrl) -> BinaryIO:
        try:
            path = Path(url.target).resolve(strict=True)
            self._rules().judge(f"file://{_quoted(path)}")
            if not path.is_file():
                raise CopyFailed(CopyCause.SOURCE_REFUSES, f"{url.for_people} is no file")
            return path.open("rb", buffering=0)
        except AddressRefused as error:
            raise CopyFailed(CopyCause.SOURCE_REFUSES, str(error)) from None
        except FileNotFoundError as error:
            raise CopyFailed(CopyCause.SOURCE_REFUSES, f"there is no {url.for_people}") from error
        except OSError as error:
            cause = CopyCause.SOURCE_AWAY if error.errno in AWAY else CopyCause.SOURCE_REFUSES
            raise CopyFailed(cause, f"{url.for_people} cannot be read: {error.strerror}") from error

    async def _chunks(self, file: BinaryIO, url: SourceUrl, size: int) -> AsyncGenerator[Chunk]:
        loop = asyncio.get_running_loop()
        try:
            while part := await loop.run_in_executor(self._threads, file.read, size):
                yield part
        except OSError as error:
            raise CopyFailed(CopyCause.CUT, f"{url.for_people} cannot be read further: {error.strerror}") from error


def _quoted(path: Path) -> str:
    return path.as_uri().removeprefix("file://")
