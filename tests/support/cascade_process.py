"""Processes that work on the deletion of a collection, each of which may be killed at a failpoint.

`python -m tests.support.cascade_process DSN WORDS…` imports everything once, and forks a child for each of the words,
one after the other: failpoints as tests/support/failpoints.py reads them, or `-` for none. A child works until there is
nothing left to do at once. The ends of the children are printed, a line each: an exit code, or minus a signal.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback

from fedstac import bootstrap
from fedstac.settings import Settings
from fedstac.workers import cascading
from tests.support import failpoints

CHUNK = 20  # datasets in one transaction


async def _work(dsn: str) -> None:
    vars(cascading)["CHUNK"] = CHUNK
    async with bootstrap.node(Settings(dsn=dsn, node="west", _env_file=None)) as node, node.pool.acquire() as conn:
        while await cascading.step(node, conn):
            pass


def _main(dsn: str, *all_words: str) -> None:
    for words in all_words:
        child = os.fork()
        if not child:
            code = 1
            try:
                if words != "-":
                    failpoints.install(words)
                asyncio.run(_work(dsn))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
