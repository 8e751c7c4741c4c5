"""`fedstac worker` in a process of its own, beside a node that runs without workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.forking import ForkedProcess, Forks
from tests.support.nodes import Api
from tests.support.waiting import PATIENCE


@contextmanager
def worker(forks: Forks, api: Api, **variables: str) -> Iterator[ForkedProcess]:
    """Run `fedstac worker` beside a node without workers."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDSTAC_")}
    environment |= {"FEDSTAC_NODE": "west", "FEDSTAC_DSN": api.settings.dsn, **variables}
    process = forks.start(["worker"], environment=environment, output=None)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)
