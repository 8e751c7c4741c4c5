"""Several API processes of one node share a port: one that dies is started anew, and all end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.scenarios.watching import wait_until
from tests.support.processes import children, is_running, serving
from tests.support.waiting import PATIENCE


def test_several_processes_share_a_port_and_one_that_is_killed_is_started_anew(dsn: str, tmp_path: Path) -> None:
    with serving(tmp_path, FEDSTAC_DSN=dsn, FEDSTAC_NODE="west", FEDSTAC_PORT="0") as (process, ready):
        wait_until(lambda: ready.exists() or process.poll() is not None, what="the node answers")
        url = json.loads(ready.read_text())["url"]
        members = children(process.pid)
        assert len(members) == 3
        for _ in range(20):
            assert httpx.get(f"{url}/livez").status_code < 300
        os.kill(members[1], signal.SIGKILL)
        wait_until(lambda: len(set(children(process.pid)) - set(members)) == 1, what="another process is there")
        for _ in range(20):
            assert httpx.get(f"{url}/collections").status_code == 200
        members = children(process.pid)
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert not [member for member in members if is_running(member)]


def test_what_one_process_lacks_ends_all(dsn: str, tmp_path: Path) -> None:
    variables = {"FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west", "FEDSTAC_PORT": "0", "FEDSTAC_CV_FOLDER": "/nowhere"}
    with serving(tmp_path, **variables) as (process, ready):
        assert process.wait(PATIENCE) > 0
        assert not ready.exists()
        assert not children(process.pid)


# --- the parent alone, with members that do nothing

MEMBER = """
member = processes.multiply(2)
os.write(1, f"ready {member.number}\\n".encode())  # in one piece: the other member writes there too
member.tell_ready()
"""


@contextmanager
def parent(before: str, after: str = "signal.pause()") -> Iterator[subprocess.Popen[str]]:
    """Run a script that becomes two members and their parent; what is before that, and what each does when ready."""
    script = f"import os, signal, sys\nfrom fedstac.workers import processes\n{before}{MEMBER}{after}\n"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def read_to(process: subprocess.Popen[str], *words: str) -> list[str]:
    """Read lines until each of these words was in one; fail where the output ends before."""
    assert process.stdout
    lines: list[str] = []
    while not all(any(word in line for line in lines) for word in words):
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return lines


def test_a_child_that_is_no_member_ends_without_harm() -> None:
    with parent("if not os.fork():\n    sys.stdin.read()\n    os._exit(0)") as process:
        read_to(process, "ready 0", "ready 1")
        assert len(children(process.pid)) == 3
        assert process.stdin
        process.stdin.close()
        wait_until(lambda: len(children(process.pid)) < 3, what="the other child is gone")
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_member_that_ends_soon_is_started_again_after_a_pause() -> None:
    before = "class Long(processes.Backoff):\n    pause = lambda self: 1000.0\nprocesses.Backoff = Long"
    with parent(before, "signal.pause() if member.number else sys.exit(3)") as process:
        lines = read_to(process, "ready 0", "ready 1", "an api process ended")
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stdout
        lines += process.stdout.readlines()
        assert [line.split() for line in lines].count(["ready", "0"]) == 1


def test_a_member_that_does_not_end_is_killed() -> None:
    with parent("processes.END_SECONDS = 0.1", "signal.signal(15, signal.SIG_IGN)\nos.write(1, b'deaf\\n')\n"
                "while True:\n    signal.pause()") as process:  # fmt: skip
        read_to(process, "ready 0", "ready 1", "deaf")
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert not children(process.pid)
