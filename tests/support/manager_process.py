"""Processes that are a publishing node's deletion manager, worker and sequencer at once, and may be killed anywhere.

`python -m tests.support.manager_process DSN WORDS…` imports everything once, and forks a child for each of the words,
one after the other: failpoints as tests/support/failpoints.py reads them, or `-` for none. A child works until nothing
is left to do at once. The ends of the children are printed, a line each: an exit code, or minus a signal.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import partial

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import audit, feed, queue
from fedstac.db.connections import Connection
from fedstac.db.deletions import leading
from fedstac.runtime.failpoints import failpoint
from fedstac.settings import Settings
from fedstac.workers import deletions, publisher
from tests.support.forked_children import run_each
from tests.support.forking import shared
from tests.support.places import REPOSITORY

STEPS = (
    "deletions.reminding", "deletions.reminded", "deletions.alerting", "deletions.asking", "deletions.asked",
    "worker.claimed", "perform.locked", "perform.records", "perform.events", "perform.redacted", "perform.deletions",
    "perform.written", "perform.finished", "worker.performed", "sequencer.sequenced", "sequencer.chained",
)  # fmt: skip
PURGE_STEPS = STEPS[STEPS.index("worker.claimed") :]


async def ends_of(dsn: str, *words: str) -> list[int]:
    """Run a process for each of the words; return how each ended."""
    process = await asyncio.create_subprocess_exec(
        *shared().program,
        "-m",
        "tests.support.manager_process",
        dsn,
        *words,
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    stdout, _ = await process.communicate()
    return [int(line) for line in stdout.split(b"\n") if line.lstrip(b"-").isdigit()]


async def _work(dsn: str) -> None:
    async with bootstrap.node(Settings(dsn=dsn, node="west", _env_file=None)) as node, node.pool.acquire() as conn:
        await _lead(conn)
        while await _step(node, conn) or await queue.longest_wait(conn) is not None:
            pass


async def _lead(conn: Connection) -> None:
    """Wait until nobody else leads: the session of a process that was killed lasts a moment longer."""
    while True:
        async with leading(conn) as is_leader:
            if is_leader:
                return
        await asyncio.sleep(0.05)


async def _step(node: Node, conn: Connection) -> bool:
    """Do what is due of each part, as their loops do; return whether there was something to perform."""
    await deletions.step(node, conn)
    items = await publisher.work_once(node, conn, "worker")
    await feed.sequence(conn)
    failpoint("sequencer.sequenced")
    await audit.chain(conn)
    failpoint("sequencer.chained")
    return items > 0


def _main(arguments: Sequence[str]) -> None:
    dsn, *all_words = arguments
    run_each(partial(_work, dsn), all_words)


if __name__ == "__main__":
    _main(sys.argv[1:])
