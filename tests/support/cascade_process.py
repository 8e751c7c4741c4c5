"""Processes that work on the deletion of a collection, each of which may be killed at a failpoint.

`python -m tests.support.cascade_process DSN WORDS…` imports everything once, and forks a child for each of the words,
one after the other: failpoints as tests/support/failpoints.py reads them, or `-` for none. A child works until there is
nothing left to do at once. The ends of the children are printed, a line each: an exit code, or minus a signal.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from fedstac import bootstrap
from fedstac.db import cascades
from fedstac.db.connections import Connection
from fedstac.settings import Settings
from fedstac.workers import cascading
from tests.support.forked_children import run_each

CHUNK = 20  # datasets in one transaction


async def _work(dsn: str) -> None:
    vars(cascading)["CHUNK"] = CHUNK
    async with bootstrap.node(Settings(dsn=dsn, node="west", _env_file=None)) as node, node.pool.acquire() as conn:
        await _lead(conn)
        while await cascading.step(node, conn):
            pass


async def _lead(conn: Connection) -> None:
    """Wait until nobody else leads: the session of a process that was killed lasts a moment longer."""
    while True:
        async with cascades.leading(conn) as is_leader:
            if is_leader:
                return
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    _, DSN, *ALL_WORDS = sys.argv
    run_each(partial(_work, DSN), ALL_WORDS)
