"""What tests do at failpoints: they kill the process there. And faults that a checker has to find, put into the code.

A process of a test gets them by its environment (`environment`), this process by `plant`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedstac.db import feed, outbox, queue, records
from fedstac.db.connections import Connection
from fedstac.runtime import failpoints

REPOSITORY = Path(__file__).resolve().parents[2]
Replace = Callable[[Any, str, Any], None]

# Reads on from the highest id that has a position, as if ids became visible in their order.
NAIVE = """
    WITH fresh AS MATERIALIZED (
            SELECT id FROM fedstac.outbox WHERE id > (SELECT coalesce(max(id), 0) FROM fedstac.feed)),
         put AS (
            INSERT INTO fedstac.feed (pos, id)
            SELECT (SELECT pos FROM fedstac.feed_state) + row_number() OVER (ORDER BY id), id FROM fresh RETURNING pos)
    UPDATE fedstac.feed_state SET snap = pg_current_snapshot(), pos = pos + (SELECT count(*) FROM put)
    WHERE EXISTS (SELECT 1 FROM fresh) RETURNING (SELECT count(*) FROM put)"""


def environment(words: str) -> dict[str, str]:
    """Return the variables that make a process install these words: `worker.claimed=kill:3`, or names of FAULTS."""
    return {"FEDSTAC_FAILPOINTS": f"{__name__}:{words}", "PYTHONPATH": str(REPOSITORY)}


def install(words: str) -> None:
    """Make this process die at the failpoints `NAME=kill` or `NAME=kill:PASS`, and plant the faults `NAME`."""
    deaths: dict[str, int] = {}
    for word in words.split(","):
        name, _, action = word.partition("=")
        kind, _, nth = action.partition(":")
        match kind:
            case "":
                plant(name)
            case "kill":
                deaths[name] = int(nth or 1)
            case _:
                raise ValueError(f"{word!r} is neither NAME, NAME=kill nor NAME=kill:PASS")
    passes: Counter[str] = Counter()

    def die(name: str) -> None:
        passes[name] += 1
        if passes[name] == deaths.get(name):
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.act(die)


@contextmanager
def once_at(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Do something, to its end and as somebody else would, when this process first comes to a failpoint."""

    def act(reached: str) -> None:
        if reached == name:
            failpoints.act(None)
            with ThreadPoolExecutor(1) as thread:  # this one has an event loop
                thread.submit(asyncio.run, work()).result()

    failpoints.act(act)
    try:
        yield
    finally:
        failpoints.act(None)


def plant(name: str, replace: Replace = setattr) -> None:
    """Put a fault into the code of this process; `replace` as `setattr`, or a monkeypatch's, which undoes it."""
    FAULTS[name](replace)


# --- faults ---


def _naive_cursor(replace: Replace) -> None:
    replace(feed, "SEQUENCE", NAIVE)


class _WithoutLocks:
    """A connection whose statements lock no rows."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    async def fetch(self, statement: str, *parameters: object) -> Any:
        assert "FOR UPDATE" in statement
        return await self._conn.fetch(statement.replace("FOR UPDATE", ""), *parameters)


def _no_lineage_lock(replace: Replace) -> None:
    lock = records.lock

    async def read(conn: Any, origins: Mapping[str, str]) -> Any:
        return await lock(_WithoutLocks(conn), origins)  # type: ignore[arg-type]

    replace(records, "lock", read)


def _event_outside_transaction(replace: Replace) -> None:
    append = outbox.append

    async def commit_and_append(conn: Connection, announcements: Sequence[outbox.Announcement]) -> list[int]:
        if announcements:
            await conn.execute("COMMIT; BEGIN")
        return await append(conn, announcements)

    replace(outbox, "append", commit_and_append)


def _requests_out_of_order(replace: Replace) -> None:
    read = queue.read

    async def newest_first(conn: Connection, ids: Sequence[int]) -> list[queue.QueuedItem]:
        return (await read(conn, ids))[::-1]

    replace(queue, "read", newest_first)


FAULTS: Mapping[str, Callable[[Replace], None]] = {
    "naive-cursor": _naive_cursor,
    "no-lineage-lock": _no_lineage_lock,
    "event-outside-transaction": _event_outside_transaction,
    "requests-out-of-order": _requests_out_of_order,
}
