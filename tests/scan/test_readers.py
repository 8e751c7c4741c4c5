"""Readers that fall silent or end: the file that they had is known, and the others go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fedstac.scan import readers
from fedstac.scan.readers import Readers
from fedstac.scan.values import Found, Unusable
from tests.scan.files import amon


def found(path: Path) -> Found:
    status = path.stat()
    return Found(str(path), str(path), path.name, 0, status.st_size, status.st_mtime_ns, "20200101")


def test_a_reader_that_falls_silent_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PATIENCE", 5.0)
    slow, quick = amon(1850, 1850).write(tmp_path), amon(1851, 1851).write(tmp_path)
    os.truncate(slow, 40 << 30)  # a hole: nothing on disk, and time to stop its reader
    with Readers(1) as reading:
        answers = reading.answers(iter([(found(slow), True), (found(quick), True)]))
        assert next(answers) is None
        [process] = [reader.process for reader in reading._all]
        os.kill(process.pid, signal.SIGSTOP)
        (first, silence), (second, facts) = [answer for answer in answers if answer is not None]
    assert (first.name, second.name) == (slow.name, quick.name)
    assert isinstance(silence, Unusable)
    assert silence.message == "nothing came of it for 5 s"
    assert not isinstance(facts, Unusable)
    assert process.returncode == -signal.SIGKILL


def test_readers_end_with_the_block(tmp_path: Path) -> None:
    path = amon().write(tmp_path)
    os.truncate(path, 40 << 30)
    with Readers(2) as reading:
        next(reading.answers(iter([(found(path), True)])))
        processes = [reader.process for reader in reading._all]
    assert [process.returncode for process in processes] == [-signal.SIGKILL]
