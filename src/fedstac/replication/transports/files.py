"""Files of a folder of this machine that the policy lists: another disk, or one that several nodes mount."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from fedstac.replication.addresses import AddressRefused, AddressRules, SourceUrl
from fedstac.replication.transports import CopyCause, CopyFailed, SourceStream, SourceVersion

CHUNK_BYTES = 1 << 20


class FileTransport:
    """Reads files of listed folders. What a link of the folder leads to has to be in a listed folder too."""

    def __init__(self, rules: Callable[[], AddressRules]) -> None:
        self._rules = rules

    async def close(self) -> None:
        """Do nothing: each file is closed after it was read."""

    @asynccontextmanager
    async def open(self, url: SourceUrl, start: int, expected: SourceVersion | None) -> AsyncGenerator[SourceStream]:
        """Read from the byte `start` on. CopyFailed where there is no such file, or where it changed."""
        file = await asyncio.to_thread(self._open, url)
        try:
            status = os.fstat(file.fileno())
            version = SourceVersion(status.st_size, f'"{status.st_ino}-{status.st_mtime_ns}"')
            if start and (start > status.st_size or (expected is not None and version.contradicts(expected))):
                raise CopyFailed(CopyCause.CHANGED, f"{url.for_people} is another content than when the copy began")
            file.seek(start)
            yield SourceStream(version, start, _chunks(file, url))
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
            raise CopyFailed(CopyCause.BAD_ADDRESS, str(error)) from None
        except FileNotFoundError as error:
            raise CopyFailed(CopyCause.SOURCE_REFUSES, f"there is no {url.for_people}") from error
        except OSError as error:
            raise CopyFailed(CopyCause.SOURCE_AWAY, f"{url.for_people} cannot be read: {error.strerror}") from error


def _quoted(path: Path) -> str:
    return path.as_uri().removeprefix("file://")


async def _chunks(file: BinaryIO, url: SourceUrl) -> AsyncGenerator[bytes]:
    try:
        while part := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield part
    except OSError as error:
        raise CopyFailed(CopyCause.CUT, f"{url.for_people} cannot be read further: {error.strerror}") from error
