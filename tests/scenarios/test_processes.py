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
from tests.support.processes import children, is_running
from tests.support.waiting import PATIENCE


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
