"""The columns of a process: loaded once, and brought up to date by whoever needs all that was committed before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import structlog

from fedstac.columns.dictionaries import Dictionaries
from fedstac.columns.gate import Gate
from fedstac.columns.order import StartOrder
from fedstac.columns.table import Array, CopyReader, FacetTable, sent_rows
from fedstac.db import columns, connections
from fedstac.db.connections import Connection
from fedstac.runtime import budget, supervision
from fedstac.runtime.causes import DRIVER_ERRORS
from fedstac.runtime.supervision import Parts
from fedstac.runtime.wakeup import pause, unless

LOOK_SECONDS = 30.0  # that a look may take, before its connection is replaced; loading may take any time
MOST_CHANGES = 50_000  # rows that a look takes up, at once and in the event loop; after more, everything is read again
IDLE_SECONDS = 5.0  # without a search, after which a look is taken: each has little to take up
FILL_SECONDS = 1.0  # between looks whether all datasets have their rows by now
log = structlog.get_logger()


class LiveColumns:
    """The rows of all datasets, and the dictionaries of their codes.

    They have a connection of their own, to the server that has the documents. FacetColumns searches them, and lets go
    of what it keeps of them when `_empty`, `_on_places` and `_on_rows` are called.
    """

    def __init__(self, dsn: str, application: str) -> None:
        self._connect = partial(
            connections.connect, dsn, application=f"{application} columns", settings=columns.SETTINGS
        )
        self._conn: Connection | None = None
        self._gate = Gate()
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._due = asyncio.Event()  # there is something to load, or a failure to report
        self._failure: Exception | None = None  # of a look for a search
        self.loaded = 0  # rows that were read so far
        self.catch_ups = 0
        self.catch_up_seconds = 0.0
        self._empty()

    def _empty(self) -> None:
        self.table = FacetTable()
        self.dictionaries = Dictionaries()
        self._starts = StartOrder(self.table)
        self._snapshot: str | None = None
        self._history = ""
        self._places: tuple[int, int] | None = None
        self._removed_through = 0
        self.loaded = 0
        self._due.set()

    def _on_places(self) -> None:
        """Take note that a collection is new, or a property has another place in the rows."""

    def _on_rows(self, numbers: Sequence[int]) -> None:
        """Take note that these rows were written."""

    @property
    def is_ready(self) -> bool:
        """Return whether everything was read. Until then searches go to PostgreSQL."""
        return self._snapshot is not None

    @property
    def bytes(self) -> int:
        """Return how much memory the columns have."""
        return self.table.bytes + self._starts.bytes

    async def keep_loaded(self, parts: Parts, stop: asyncio.Event) -> None:
        """Load what is not loaded, now and whenever it has to be loaded again. Report the looks that failed."""

        async def step() -> bool:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self.is_ready:
                self._due.clear()
                before = self.catch_ups
                with suppress(TimeoutError):
                    await unless(stop, asyncio.wait_for(self._due.wait(), IDLE_SECONDS))
                if self.catch_ups == before and not self._due.is_set() and not stop.is_set():
                    await self.catch_up()
                return False
            await self.catch_up()
            if not self.is_ready:
                await pause(stop, FILL_SECONDS)
            return True

        await supervision.keep_trying(parts, "columns", step, stop)

    async def close(self) -> None:
        """End the looks that are under way, and the connection."""
        tasks = [task for task in (self._next, self._running) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._conn is not None:
            self._conn.terminate()
            self._conn = None

    async def catch_up(self) -> None:
        """Take up all that was committed before this call; the first time, read everything.

        One look at a time. Whoever comes while one is under way, which may have been too early, shares the next.
        """
        if self._running is None:
            self._running = task = budget.detached(self._look_alone())
        else:
            if self._next is None:
                self._next = budget.detached(self._look_alone(self._running))
            task = self._next
        await asyncio.shield(task)

    async def _is_current(self) -> bool:
        """Return whether a search can go on in memory, up to date. `keep_loaded` reports what failed."""
        try:
            await self.catch_up()
        except Exception as error:
            self._failure = error
            self._due.set()
            return False
        return self.is_ready

    async def _look_alone(self, before: asyncio.Task[None] | None = None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        started = time.perf_counter()
        try:
            if self._conn is None or not connections.is_open(self._conn):
                self._conn = await self._connect()
            await self._look_in_time(self._conn)
            self.catch_ups += 1
            self.catch_up_seconds += time.perf_counter() - started
        except BaseException:
            if self._conn is not None:  # maybe in the middle of an answer
                self._conn.terminate()
                self._conn = None
            raise
        finally:
            self._running, self._next = self._next, None

    async def _look_in_time(self, conn: Connection) -> None:
        """Take up changes, or everything. Empty the columns where the next look would not get further than this one.

        They are still right where only the database or the connection to it failed.
        """
        try:
            async with asyncio.timeout(LOOK_SECONDS if self.is_ready else None):
                await self.look(conn)
        except Exception as error:
            is_of_database = isinstance(error, (OSError, *DRIVER_ERRORS))
            if isinstance(error, TimeoutError) or not is_of_database:
                async with self._gate.writing():
                    self._empty()
            raise

    async def look(self, conn: Connection) -> None:
        """Take up what a connection sees: all that is there, or what became visible since the look before."""
        await (self._take_changes(conn, self._snapshot) if self._snapshot else self._load(conn))

    async def _load(self, conn: Connection) -> None:
        self._empty()
        started = time.perf_counter()
        if not await columns.is_filled(conn):
            return
        snapshot, history = await columns.snapshot(conn)
        self._removed_through = await columns.removed_through(conn)
        self.table.reserve(await columns.number_count(conn))

        def take(rows: Array) -> None:
            self.table.apply(rows)
            self.loaded += len(rows)

        await columns.copy(conn, CopyReader(take))
        self.dictionaries.add_terms(await columns.terms(conn))
        footprints = self.dictionaries.missing_footprints(np.unique(self.table.column("footprint")).tolist())
        self.dictionaries.add_footprints(footprints, await columns.rectangles(conn) if footprints else {})
        self.dictionaries.place_collections(await columns.collections(conn), await columns.slots(conn))
        self._snapshot, self._history = snapshot, history
        self._starts.prepare()
        log.info("the columns are loaded", rows=self.loaded, bytes=self.bytes,
                 seconds=round(time.perf_counter() - started, 3))  # fmt: skip

    async def _take_changes(self, conn: Connection, since: str) -> None:
        changes = await columns.changes(conn, since)
        lacks_removals = changes.may_lack_removals and changes.removed_through != self._removed_through
        is_other = changes.history != self._history or _next_transaction(changes.snapshot) < _next_transaction(since)
        if lacks_removals or is_other:
            because = "the database is another one" if is_other else "rows were removed"
            return await self._begin_again(because)
        pieces: list[Array] = []
        if changes.rows is None:
            await columns.copy(conn, CopyReader(pieces.append), since, limit=MOST_CHANGES + 1)
            if sum(map(len, pieces)) > MOST_CHANGES:
                return await self._begin_again("very many rows changed")
        elif changes.rows:
            pieces.append(sent_rows(changes.rows))
        if pieces:
            await self._take(conn, pieces, changes.places if changes.rows is not None else None)
        self._removed_through = changes.removed_through
        self._snapshot = changes.snapshot

    async def _begin_again(self, because: str) -> None:
        log.info("the columns are loaded again", because=because)
        async with self._gate.writing():
            self._empty()

    async def _take(self, conn: Connection, pieces: Sequence[Array], places: tuple[int, int] | None) -> None:
        """Take up rows, and of the dictionaries what they need. Those are read later, and so have all of it."""
        codes = set[int]().union(*(np.unique(rows["codes"]["code"]).tolist() for rows in pieces))
        keys_of_rows = set[int]().union(*(np.unique(rows["collection"]).tolist() for rows in pieces))
        footprints = set[int]().union(*(np.unique(rows["footprint"]).tolist() for rows in pieces))
        missing = self.dictionaries.missing_terms(sorted(codes))
        terms = await columns.terms(conn, missing) if missing else []
        new_footprints = self.dictionaries.missing_footprints(sorted(footprints))
        rectangles = await columns.rectangles(conn, new_footprints) if new_footprints else {}
        are_new = (
            places is None or places != self._places or not keys_of_rows <= {*self.dictionaries.collections.values()}
        )
        keys, slots = (await columns.collections(conn), await columns.slots(conn)) if are_new else ({}, [])
        async with self._gate.writing():
            self.dictionaries.add_terms(terms)
            self.dictionaries.add_footprints(new_footprints, rectangles)
            if are_new:
                self.dictionaries.place_collections(keys, slots)
                self._places = places
                self._on_places()
            for rows in pieces:
                self.table.apply(rows)
                self._on_rows(rows["n"].tolist())


def _next_transaction(snapshot: str) -> int:
    """Return the first transaction id that was not given out at a snapshot."""
    return int(snapshot.split(":")[1])
