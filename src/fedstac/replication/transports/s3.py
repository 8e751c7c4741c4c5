"""Files of S3 through fsspec and s3fs: `s3://bucket/key`.

Endpoint, region and keys are those that every S3 program takes: the variables AWS_… and ~/.aws. Without keys, buckets
are read as everybody may. A part is asked for on the condition that the object still has the ETag of the first part.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Lock
from typing import Any, Final, TypeVar

from fedstac.replication.addresses import SourceUrl
from fedstac.replication.transports import (
    LATER,
    Chunk,
    CopyCause,
    CopyFailed,
    SourceStream,
    SourceVersion,
    in_thread,
)

CONNECT_SECONDS: Final = 20
CHUNKS: Final = 4  # of those that are handed on, in one request: a request takes a round trip
T = TypeVar("T")


class S3Transport:
    """Reads objects of S3, each part with a request of its own."""

    def __init__(self, *, threads: ThreadPoolExecutor, stall_seconds: float) -> None:
        self._threads, self._stall_seconds = threads, stall_seconds
        self._opening = Lock()
        self._files: Any = None

    async def close(self) -> None:
        """Close the connections."""
        if self._files is not None:
            await in_thread(self._threads, lambda: self._files.close_session(self._files.loop, self._files._s3))
            self._files = None

    @asynccontextmanager
    async def open(
        self, url: SourceUrl, start: int, expected: SourceVersion | None, chunk_bytes: int
    ) -> AsyncGenerator[SourceStream]:
        """Read from the byte `start` on. CopyFailed where there is no such object, or where it changed."""
        file, details = await in_thread(self._threads, lambda: self._name_failures(url, lambda: self._open(url)))
        try:
            version = SourceVersion(int(details["size"]), str(details.get("ETag") or ""))
            if start and (start > int(details["size"]) or (expected is not None and version.contradicts(expected))):
                raise CopyFailed(CopyCause.CHANGED, f"{url.for_people} is another content than when the copy began")
            file.seek(start)
            yield SourceStream(version, start, self._chunks(file, url, chunk_bytes * CHUNKS))
        finally:
            file.close()

    def _open(self, url: SourceUrl) -> tuple[Any, dict[str, Any]]:
        file = self._connect().open(f"{url.host}{url.target}", "rb", cache_type="none")
        return file, file.details

    def _connect(self) -> Any:
        """Return the file system. The first call looks for keys, and reads what is on the disk about them."""
        with self._opening:
            if self._files is None:
                try:
                    import botocore.session
                    from s3fs import S3FileSystem
                except ImportError as error:
                    reason = "files of s3: need the package s3fs: pip install 'fedstac[replica]'"
                    raise CopyFailed(CopyCause.SOURCE_REFUSES, reason) from error
                limits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": self._stall_seconds}
                is_anonymous = botocore.session.get_session().get_credentials() is None
                self._files = S3FileSystem(
                    anon=is_anonymous, config_kwargs=limits, use_listings_cache=False, skip_instance_cache=True
                )
            return self._files

    async def _chunks(self, file: Any, url: SourceUrl, size: int) -> AsyncGenerator[Chunk]:
        def read() -> bytes:
            content: bytes = file.read(size)
            return content

        while part := await in_thread(self._threads, lambda: self._name_failures(url, read, is_midway=True)):
            yield part

    def _name_failures(self, url: SourceUrl, work: Callable[[], T], *, is_midway: bool = False) -> T:
        """Do something at S3. CopyFailed where that is not possible."""
        try:
            return work()
        except CopyFailed:
            raise
        except FileNotFoundError as error:
            raise CopyFailed(CopyCause.SOURCE_REFUSES, f"there is no {url.for_people}") from error
        except PermissionError as error:
            raise CopyFailed(CopyCause.SOURCE_REFUSES, f"{url.for_people} may not be read") from error
        except Exception as error:  # those of botocore, aiohttp and s3fs have no class in common
            if getattr(error, "errno", None) == errno.EBUSY and type(error).__name__ == "FileExpired":
                raise CopyFailed(CopyCause.CHANGED, f"{url.for_people} has another content now") from error
            status = _status_of(error)
            refuses = status is not None and status not in LATER
            cause = CopyCause.SOURCE_REFUSES if refuses else CopyCause.SOURCE_AWAY
            how = type(error).__name__ if status is None else f"it answered {status}"
            raise CopyFailed(
                CopyCause.CUT if is_midway else cause, f"{url.for_people} cannot be read now ({how})"
            ) from error


def _status_of(error: Exception) -> int | None:
    """Return what S3 answered, as botocore tells it; None where it did not answer."""
    answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return status if isinstance(status, int) else None
