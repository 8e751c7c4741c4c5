"""Children of a process that has imported everything, one after another, which may be killed at failpoints."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fedstac.workers import processes
from tests.support import failpoints


def run_each(work: Callable[[], Coroutine[Any, Any, None]], all_words: Iterable[str]) -> None:
    """Run a child for each of the words, and print how it ended: an exit code, or minus a signal.

    Nothing else goes to standard output. It is read at the end only, so a child that logs to it would wait for ever.
    all_words: failpoints as tests/support/failpoints.py reads them, or `-` for none.
    """
    processes.log_lines("auto", "children")
    for words in all_words:
        child = os.fork()
        if not child:
            code = 1
            try:
                if words != "-":
                    failpoints.install(words)
                asyncio.run(work())
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
