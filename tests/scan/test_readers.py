"""Readers that fall silent or end: the file that they had is known, and the others go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import pytest

from fedstac.scan import reader, readers
from fedstac.scan.readers import Readers
from fedstac.scan.values import ScanFile, Unusable
from tests.scan.files import amon
from tests.support.processes import peak_memory


def found(path: Path) -> ScanFile:
    status = path.stat()
    return ScanFile(str(path), str(path), path.name, 0, status.st_size, status.st_mtime_ns, "20200101")


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


def test_a_header_that_takes_the_processor_for_long_is_named(tmp_path: Path) -> None:
    slow = amon().write(tmp_path)
    os.truncate(slow, 40 << 30)
    with Readers(1) as reading:
        answers = reading.answers(iter([(found(slow), True)]))
        assert next(answers) is None
        os.kill(reading._all[0].process.pid, signal.SIGPROF)  # as its timer does
        [(_, fault)] = [answer for answer in answers if answer is not None]
    assert isinstance(fault, Unusable)
    assert fault.message == "to read its header takes more than 60 s of the processor"


def bomb(size: int) -> bytes:
    """Return a chunk that inflates to so many times 16 MiB."""
    packer = zlib.compressobj(9)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * size + packer.flush()


@pytest.mark.parametrize(
    ("shape", "chunks", "stored", "reason"),
    [
        ((1024,), (1024,), bomb(200), "unreadable"),  # 3 MiB that inflate to 3 GiB
        ((1 << 17,), (1,), b"", None),
        ((1 << 22,), (1,), b"", "coordinates"),
        ((1 << 28,), (1 << 20,), b"", "coordinates"),
        ((1 << 26,), (1 << 25,), b"", "coordinates"),
        ((1, 1 << 22), (1, 1 << 20), b"", "coordinates"),  # not of the shape of the longitudes
    ],
    ids=["a bomb", "chunks of one", "4 million", "268 million", "chunks of 256 MB", "two dimensions"],
)
def test_a_hostile_file_is_named_and_the_next_one_is_read(
    tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], stored: bytes, reason: str | None
) -> None:
    hostile = amon(1850, 1850).write(tmp_path)
    with h5py.File(hostile, "a") as file:
        file.move("lat", "before")
        one = file.create_dataset("lat", shape, "f8", chunks=chunks, compression="gzip" if stored else None)
        one.attrs["units"] = "degrees_north"
        file["tas"].attrs["coordinates"] = "lat lon"
        if stored:
            one.id.write_direct_chunk((0,) * len(shape), stored)
    assert hostile.stat().st_size < 8 << 20
    good = amon(1851, 1851).write(tmp_path)
    with Readers(1) as reading:
        answers = reading.answers(iter([(found(hostile), False), (found(good), False)]))
        (_, first), (_, second) = [answer for answer in answers if answer is not None]
        process = reading._all[0].process if reading._all else None
        assert process is not None
        peak = peak_memory(process.pid) >> 20
    assert peak < 1500, f"{peak} MiB"
    assert (first.rule if isinstance(first, Unusable) else None) == reason
    assert not isinstance(second, Unusable)


def test_the_reading_process_starts_without_a_warning() -> None:
    command = [sys.executable, "-W", "error", "-P", "-m", "fedstac.scan.reader"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0


def test_a_file_larger_than_any_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="1 TiB are the most"):
        reader.read(str(tmp_path / "x.nc"), (1 << 40) + 1, 0, checksum=True, report=lambda done: None)


def test_readers_end_with_the_block(tmp_path: Path) -> None:
    path = amon().write(tmp_path)
    os.truncate(path, 40 << 30)
    with Readers(2) as reading:
        next(reading.answers(iter([(found(path), True)])))
        processes = [reader.process for reader in reading._all]
    assert [process.returncode for process in processes] == [-signal.SIGKILL]
