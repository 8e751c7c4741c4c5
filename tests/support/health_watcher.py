"""A process that asks a node for its health, and does nothing else: what it waits for is not its own work.

`python -m tests.support.health_watcher HOST:PORT` asks until its input ends, and prints the seconds of each answer.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import sys
import time
from asyncio.subprocess import PIPE, Process

from tests.support.places import REPOSITORY

BETWEEN_SECONDS = 0.05


async def start(host: str) -> Process:
    """Begin to watch a node, given as host:port."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, host, cwd=REPOSITORY, stdin=PIPE, stdout=PIPE
    )


async def latencies(watcher: Process) -> list[float]:
    """End a watch, and return the seconds that each answer took."""
    out, _ = await watcher.communicate(b"")
    assert watcher.returncode == 0, "a health check had no answer, or another one than 200"
    return [float(seconds) for seconds in json.loads(out)]


def watch(host: str) -> list[float]:
    """Ask for health until the input ends. RuntimeError after an answer that is not 200."""
    line, seconds = http.client.HTTPConnection(host, timeout=60), list[float]()
    while not select.select([sys.stdin], [], [], BETWEEN_SECONDS)[0]:
        began = time.monotonic()
        line.request("GET", "/healthcheck")
        answer = line.getresponse()
        answer.read()
        seconds.append(time.monotonic() - began)
        if answer.status != 200:
            raise RuntimeError(f"health: {answer.status}")
    line.close()
    return seconds


if __name__ == "__main__":
    json.dump(watch(sys.argv[1]), sys.stdout)
