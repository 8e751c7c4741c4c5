"""Processes that send subscriptions to their webhooks, each of which may be killed at a failpoint.

`python -m tests.support.webhook_process DSN WORDS…` imports everything once, and forks a child for each of the words,
one after the other: failpoints as tests/support/failpoints.py reads them, or `-` for none. A child sends until it is
killed, or until standard input ends. The ends of the children are printed, a line each: an exit code, or minus a
signal.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fedstac import bootstrap
from fedstac.settings import Settings
from fedstac.workers.subscriptions import WebhookSender
from tests.support import failpoints
from tests.support.forked_children import run_each
from tests.support.forking import shared

LEASE_SECONDS = 3.0
LOOPBACK = ("127.0.0.0/8",)


@asynccontextmanager
async def sending_processes(dsn: str, words: Sequence[str]) -> AsyncIterator[list[int]]:
    """Send in processes that are killed at failpoints, the last of which works until the end of the block.

    Yields the ends of those that were killed, which are known after the block.
    """
    process = await asyncio.create_subprocess_exec(
        *shared().program, "-m", "tests.support.webhook_process", dsn, *words, "-", cwd=failpoints.REPOSITORY,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    kills: list[int] = []
    try:
        yield kills
    finally:
        stdout, _ = await process.communicate(b"")  # closes its input
    ends = [int(line) for line in stdout.split(b"\n") if line.lstrip(b"-").isdigit()]
    assert set(ends) <= {0, -9}, ends
    kills += [end for end in ends if end]


async def _work(dsn: str) -> None:
    settings = Settings(dsn=dsn, node="west", webhook_networks=LOOPBACK, _env_file=None)
    stop = asyncio.Event()
    async with bootstrap.node(settings) as node:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)  # its end: nothing else comes
        await WebhookSender(node, lease_seconds=LEASE_SECONDS).run(stop)


def _until_the_test_is_over(all_words: Iterable[str]) -> Iterator[str]:
    """Yield the words, the failpoints among them only while the test has not ended or given up."""
    for words in all_words:
        if words != "-" and select.select([sys.stdin], [], [], 0)[0]:
            return
        yield words


if __name__ == "__main__":
    _, DSN, *ALL_WORDS = sys.argv
    run_each(partial(_work, DSN), _until_the_test_is_over(ALL_WORDS))
