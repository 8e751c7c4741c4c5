"""An event that kills every process that applies it, as a fault of a library would. Installed as a failpoint is."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from fedstac import applying
from fedstac.applying import PageResult
from fedstac.db.connections import Connection
from fedstac.domain.events import DatasetEvent, Event


def environment(dataset: str) -> dict[str, str]:
    """Return the variable that makes a process die over the events of a dataset."""
    return {"FEDSTAC_FAILPOINTS": f"{__name__}:{dataset}"}


def install(dataset: str) -> None:
    """Make this process die where it applies an event of a dataset."""
    apply = applying.apply

    async def apply_or_die(conn: Connection, page: Sequence[Event]) -> PageResult:
        if any(isinstance(event, DatasetEvent) and event.record.id == dataset for event in page):
            os.kill(os.getpid(), signal.SIGKILL)
        return await apply(conn, page)

    applying.apply = apply_or_die
