"""A process that reads files, one at a time, for the scan that started it (readers.py).

The libraries below are large, written in C, and meet files of any kind here: what crashes, hangs or wants all memory is
this process, and the scan goes on. They talk in lines of JSON, which a hostile file cannot make into code.

Lines in: {"path", "size", "mtime", "checksum": whether to compute it}. Lines out, per file: any number of {"bytes": so
far}, then {"facts": {…}} (values.py) or {"fault": [rule, message]}.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from fedstac.scan.values import PROCESSOR, Unusable, printable

MEMORY: Final = 3 << 29  # bytes of addresses
LARGEST: Final = 1 << 40  # bytes of a file
PAUSE: Final = 0.1  # seconds between two reports


class GaplessFile(io.FileIO):
    """A file for h5py, which expects that every read fills its buffer.

    Parts that the system gives are put together. Behind the end there are zeros, not what was in memory before.
    """

    def readinto(self, buffer: Any, /) -> int:
        view, size = memoryview(buffer).cast("B"), 0
        while size < len(view) and (count := super().readinto(view[size:])):
            size += count
        view[size:] = bytes(len(view) - size)
        return len(view)


class ProgressFile(io.FileIO):
    """A file that reports how much of it was read."""

    def __init__(self, descriptor: int, report: Callable[[int], None]) -> None:
        super().__init__(descriptor, closefd=False)
        self._report, self._count, self._last_report = report, 0, 0.0

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer) or 0
        self._count += count
        now = time.monotonic()
        if now - self._last_report > PAUSE:
            self._last_report = now
            self._report(self._count)
        return count


def read(path: str, size: int, mtime: int, *, checksum: bool, report: Callable[[int], None]) -> dict[str, Any]:
    """Return the facts of one file, with its sha-256 if `checksum`. Unusable if a scan cannot take it."""
    from fedstac.scan import headers

    if size > LARGEST:
        raise Unusable("unreadable", f"it has {size} bytes; {LARGEST >> 40} TiB are the most")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Unusable("unreadable", f"it cannot be opened: {error.strerror}") from None
    with GaplessFile(descriptor) as file:
        _check(descriptor, size, mtime)
        # SIGPROF ends this process, also in the middle of a library's loop; readers.py says what of
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR)
        try:
            facts = headers.read(file)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        digest = None
        if checksum:
            file.seek(0)
            digest = hashlib.file_digest(ProgressFile(descriptor, report), "sha256").hexdigest()
        _check(descriptor, size, mtime)
    return facts | {"sha256": digest}


def _check(descriptor: int, size: int, mtime: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("unreadable", "it is no regular file")
    if (status.st_size, status.st_mtime_ns) != (size, mtime):
        raise Unusable("changed", "it was changed while it was scanned")


def main() -> None:
    """Answer until there are no more requests, or nobody listens."""
    os.putenv("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded, with the first file
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing but answers goes to whoever listens
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with suppress(ValueError, OSError):  # a system that knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer, allow_nan=False) + "\n")

    for line in sys.stdin:
        try:
            say({"facts": read(**json.loads(line), report=lambda count: say({"bytes": count}))})
        except Unusable as fault:
            say({"fault": [fault.rule, fault.message]})
        except MemoryError:
            say({"fault": ["unreadable", f"to read it takes more than {MEMORY / (1 << 30):g} GiB of memory"]})
        except BrokenPipeError:
            raise
        except Exception as error:  # an edge: whatever the libraries raise on a broken file is that file's fault
            reason = f"{type(error).__name__}: {error}"
            say({"fault": ["unreadable", f"it is damaged or no CMIP6 file: {printable(reason, 160)}"]})


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)
