"""A replica node's transfers and announcements as a process that a test kills.

`python -m tests.support.replica_process` imports everything once; each line of its standard input is an order, for
which it forks a child and prints the child's id. Children end with SIGTERM, or with SIGKILL.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstac import bootstrap
from fedstac.db.replica.announcements import CopiedFile
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.replication.transports import Transports
from fedstac.settings import Settings
from fedstac.workers.replica_announcing import Announcer
from fedstac.workers.replica_transfers import Dispatcher
from tests.support.fixed_sources import RULES, FixedSources
from tests.support.forking import shared
from tests.support.places import REPOSITORY


@dataclass
class ReplicaProcess:
    """The process that forks, and the child that runs now."""

    helper: subprocess.Popen[str]
    order: dict[str, Any]
    pid: int = 0

    def start(self) -> None:
        """Start a child; the one before has to have ended."""
        assert self.helper.stdin is not None
        assert self.helper.stdout is not None
        self.helper.stdin.write(json.dumps(self.order) + "\n")
        self.helper.stdin.flush()
        self.pid = int(self.helper.stdout.readline())

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the child, and wait until it is gone."""
        assert self.helper.stdin is not None
        assert self.helper.stdout is not None
        os.kill(self.pid, number)
        self.helper.stdin.write("wait\n")
        self.helper.stdin.flush()
        assert self.helper.stdout.readline() == "gone\n"
        self.pid = 0


@contextmanager
def replica_process(
    *, dsn: str, folder: Path, lanes: list[str], origin: str, token: str, block_bytes: int, workers: int
) -> Iterator[ReplicaProcess]:
    """Run the process that forks; no child runs yet. It ends with its children."""
    order = {
        "dsn": dsn, "folder": str(folder), "lanes": lanes, "origin": origin, "token": token,
        "block_bytes": block_bytes, "workers": workers,
    }  # fmt: skip
    command = [*shared().program, "-m", "tests.support.replica_process"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as helper:
        running = ReplicaProcess(helper, order)
        try:
            yield running
        finally:
            if running.pid:
                running.end()
            assert helper.stdin is not None
            helper.stdin.close()


async def _work(order: dict[str, Any]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings(dsn=order["dsn"], node="east", _env_file=None)
    sources = FixedSources(Path(order["folder"]), dict.fromkeys(order["lanes"]))

    def href_of(file: CopiedFile) -> str:
        return f"https://east.example/{file.path}"

    async with bootstrap.node(settings) as node, Transports(lambda: RULES) as transports:
        announcer = Announcer(
            node, [SourceAddress(order["origin"], order["token"])], lambda: str(order["token"]), href_of
        )
        dispatcher = Dispatcher(node, sources, transports, most=order["workers"], block_bytes=order["block_bytes"])
        await asyncio.gather(dispatcher.run(stop), announcer.run(stop))


def _main() -> None:
    child = 0
    for line in sys.stdin:
        if line == "wait\n":
            os.waitpid(child, 0)
            print("gone", flush=True)
            continue
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.setpgrp()
            try:
                asyncio.run(_work(json.loads(line)))
            finally:
                os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    _main()
