"""Processes that read files side by side (reader.py): which file each has is known, so none takes another along."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from fedstac.scan.values import PROCESSOR, Facts, ScanFile, Unusable

PATIENCE: Final = 900.0  # seconds without a sign of life: storage that fetches from tape takes minutes
TICK: Final = 0.2  # seconds
LONGEST: Final = 1 << 20  # bytes of an answer

Answer: TypeAlias = Facts | Unusable


@dataclass(slots=True)
class _Reader:
    process: subprocess.Popen[bytes]
    file: ScanFile | None = None
    read: int = 0  # bytes of it so far
    last_sign: float = 0.0
    unread: bytearray = field(default_factory=bytearray)


class Readers:
    """At most `jobs` processes. `read` is how many bytes were read to compute checksums."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._all: list[_Reader] = []
        self._selector = selectors.DefaultSelector()
        self._bytes_of_finished = 0

    @property
    def read(self) -> int:
        return self._bytes_of_finished + sum(reader.read for reader in self._all)

    def answers(self, files: Iterator[tuple[ScanFile, bool]]) -> Iterator[tuple[ScanFile, Answer] | None]:
        """Yield each of the files with its answer, and None in between, so that progress can be printable.

        `files` says for each whether to compute its checksum.
        """
        more = True
        while more or any(reader.file for reader in self._all):
            for reader in [reader for reader in self._all if not reader.file] + [None] * (
                self._jobs - len(self._all)
            ):  # those that wait, and those that may be started
                entry = next(files, None) if more else None
                if entry is None:
                    more = False
                    break
                self._give(reader or self._start(), *entry)
            yield None
            if any(reader.file for reader in self._all):
                yield from self._read_answers()

    def _start(self) -> _Reader:
        # -P: the folder where a command is given, or a file beside, is no place to take modules from
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedstac.scan.reader"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the scan's to handle
        )  # fmt: skip
        reader = _Reader(process)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, reader)
        self._all.append(reader)
        return reader

    def _give(self, reader: _Reader, file: ScanFile, checksum: bool) -> None:
        request = {"path": file.real, "size": file.size, "mtime": file.mtime, "checksum": checksum}
        reader.file, reader.read, reader.last_sign = file, 0, time.monotonic()
        assert reader.process.stdin is not None
        with suppress(BrokenPipeError):  # its end is seen where its answer is awaited
            reader.process.stdin.write(json.dumps(request).encode() + b"\n")
            reader.process.stdin.flush()

    def _read_answers(self) -> Iterator[tuple[ScanFile, Answer]]:
        for key, _ in self._selector.select(TICK):
            reader: _Reader = key.data
            assert reader.process.stdout is not None
            chunk = os.read(reader.process.stdout.fileno(), 1 << 16)
            reader.last_sign = time.monotonic()
            reader.unread += chunk
            *lines, rest = reader.unread.split(b"\n")
            reader.unread = rest
            for line in lines:
                yield from self._take(reader, json.loads(line))
            if not chunk or len(rest) > LONGEST:
                yield from self._lost(reader)
        late = time.monotonic() - PATIENCE
        for reader in [reader for reader in self._all if reader.file and reader.last_sign < late]:
            yield from self._lost(reader, f"nothing came of it for {PATIENCE:g} s")

    def _take(self, reader: _Reader, answer: dict[str, Any]) -> Iterator[tuple[ScanFile, Answer]]:
        if "bytes" in answer:
            reader.read = answer["bytes"]
            return
        file = reader.file
        assert file is not None
        facts = answer.get("facts")
        reader.file, reader.read = None, 0
        if facts is None:
            yield file, Unusable(*answer["fault"])
            return
        self._bytes_of_finished += file.size if facts["sha256"] else 0
        yield file, facts

    def _lost(self, reader: _Reader, reason: str = "") -> Iterator[tuple[ScanFile, Answer]]:
        """End a process, if it has not ended yet, and yield the file that it had."""
        self._end(reader)
        code = reader.process.returncode
        if not reason and code == -signal.SIGPROF:
            reason = f"to read its header takes more than {PROCESSOR:g} s of the processor"
        if not reason:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            reason = f"the process that read it ended ({how})"
        if reader.file:
            yield reader.file, Unusable("unreadable", reason)

    def _end(self, reader: _Reader) -> None:
        self._all.remove(reader)
        for pipe in (reader.process.stdin, reader.process.stdout):
            assert pipe is not None
            if pipe is reader.process.stdout:
                self._selector.unregister(pipe)
            with suppress(BrokenPipeError):
                pipe.close()
        reader.process.kill()
        reader.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in [*self._all]:
            self._end(reader)
        self._selector.close()
