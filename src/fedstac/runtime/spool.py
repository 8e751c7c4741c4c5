"""What waits in a temporary file without a name, so that its size is no matter for memory.

The folder is that of the system, which TMPDIR names. Nobody else can open the file, and it is gone with its process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref

import structlog

from fedstac.domain.errors import Unavailable
from fedstac.domain.texts import Text

IN_MEMORY = 256 << 10  # bytes
RETRY_AFTER = 30
_log = structlog.get_logger(__name__)


class Spool:
    """Bytes in the order in which they were appended: a few in memory, more in a file.

    The file is closed with the last reference: who still reads from it keeps it. Unavailable where the folder takes
    no more.
    """

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._most_in_memory = in_memory
        self._end = bytearray()  # the end, which is not written yet
        self._file_size = 0
        self._descriptor = -1  # no file

    @property
    def size(self) -> int:
        """Bytes that were appended."""
        return self._file_size + len(self._end)

    def append(self, data: bytes) -> int:
        """Add data and return where it begins."""
        start = self.size
        self._end += data
        if len(self._end) > self._most_in_memory:
            self._write()
        return start

    def read(self, start: int, size: int) -> bytes:
        """Return bytes that one call has appended, or a part of them."""
        if start >= self._file_size:
            place = start - self._file_size
            return bytes(self._end[place : place + size])
        return os.pread(self._descriptor, size, start)

    def text(self) -> Text:
        """Return all that was appended. It can be read after the spool is gone."""
        if self._descriptor < 0:
            return bytes(self._end)
        self._write()
        return mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)

    def _write(self) -> None:
        try:
            if self._descriptor < 0:
                file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with the spool)
                self._descriptor = file.fileno()
                weakref.finalize(self, file.close)
            rest = memoryview(self._end)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            _log.error("no temporary file for a large body; see TMPDIR", reason=str(error))
            raise Unavailable(
                "there is no room for large bodies just now; try again later", retry_after=RETRY_AFTER
            ) from None
        self._file_size += len(self._end)
        self._end = bytearray()
