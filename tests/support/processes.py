"""Processes of a node, and what /proc tells of processes: children, memory, time. Linux only, as the server is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import PATIENCE

PROC = Path("/proc")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that have not been waited for, in the order of their ids.

    The list in /proc/<pid>/task/*/children is an option of the kernel, so every process is asked for its parent.
    """
    others = sorted(int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    return [other for other in others if (fields := _stat(other)) and int(fields[1]) == pid]


def is_running(pid: int) -> bool:
    """Return whether there is such a process. One that has ended and was not waited for is none."""
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process and of its children that have ended; 0 of none."""
    return sum(map(int, _stat(pid)[11:15])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    """Return the most bytes of memory that a process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (PROC / str(pid) / "status").read_text())
    assert found
    return int(found[1]) * 1024


def shared_memory(pid: int) -> int:
    """Return the bytes of memory of a process; pages that it shares count by share (Pss). 0 of none."""
    try:
        rollup = (PROC / str(pid) / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def _stat(pid: int) -> list[str]:
    """Return the fields of proc(5), stat, from the third on; empty if there is no such process."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def processes_naming(*marks: str) -> dict[int, str]:
    """Return the processes, but for this one, whose command line, environment or working directory names a mark."""
    naming = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + b"\n" + (entry / "environ").read_bytes()
                text += os.fsencode(os.readlink(entry / "cwd"))
            except OSError:  # it ended meanwhile, or is a zombie
                continue
            if any(mark.encode() in text for mark in marks):
                naming[int(entry.name)] = text.partition(b"\n")[0].replace(b"\0", b" ").decode(errors="replace")
    return naming


@contextmanager
def serving(folder: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run `fedstac serve --processes 3`; yield its process, and the file with its address once it answers."""
    ready, log = folder / "ready", folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDSTAC_")}
    command = [sys.executable, "-m", "fedstac.cli", "serve", "--processes", "3", "--ready-file", str(ready)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**environment, **variables}, stdout=output, stderr=output, cwd=folder, process_group=0
        )
    try:
        yield process, ready
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)
        print(log.read_text()[-3000:])
