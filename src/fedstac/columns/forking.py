"""Columns that several processes of a host share: one process reads them, and the others are forked from it.

A forked process has the pages of its parent, and gets one of its own where it writes. Each goes on to take up changes
by itself, so that a process needs no other one to search what was committed before.
"""

from __future__ import annotations

import asyncio
import gc

import structlog

from fedstac.columns.memory import FacetColumns
from fedstac.runtime.causes import DRIVER_ERRORS

LOAD_SECONDS = 300.0  # that loading may take; then each process loads by itself
log = structlog.get_logger()


def refresh(columns: FacetColumns) -> None:
    """Load columns, or take up what changed since, before this process is forked. It has no event loop.

    Where the database does not answer, the processes that are forked load by themselves.
    """
    try:
        asyncio.run(_refresh(columns))
    except (OSError, *DRIVER_ERRORS) as error:  # TimeoutError is an OSError
        log.warning("the columns are not loaded before the processes start", because=type(error).__name__)
    gc.collect()
    gc.freeze()  # a collection writes to each object that it visits, and so takes its page


async def _refresh(columns: FacetColumns) -> None:
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            await columns.catch_up()
            if not columns.is_ready:  # too much changed: it begins again
                await columns.catch_up()
    finally:
        await columns.close()
