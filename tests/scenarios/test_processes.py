"""Several API processes of one node share a port: one that dies is started anew, and all end together."""

from __future__ import annotations

import json
import os
import signal
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
