"""Writes that are refused before they are accepted: a row each in the audit log, at most one a request.

A row is durable before its refusal is answered; refusals that come at the same time share a commit. A caller who is
refused all the time gets a row now and then that counts the others. Nothing here slows down or fails an answer for
longer than LONGEST_WAIT: a row that cannot be written is counted, and written when the database is back.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import orjson
import structlog

from fedstac.api.call import CallProgress
from fedstac.bootstrap import Node
from fedstac.db import audit
from fedstac.db.requests import NewRequest
from fedstac.domain.errors import Problem
from fedstac.domain.model import Outcome
from fedstac.runtime import budget, supervision
from fedstac.runtime.causes import is_refusal
from fedstac.runtime.wakeup import pause

NOBODY = "anonymous"  # the actor where the caller is unknown
BURST, PER_SECOND = 60, 1.0  # rows of one caller at once, and then
SUMMARY_SECONDS = 10.0
LONGEST_WAIT = 2.0
MOST_WAITING = 1000
MOST_CALLERS = 1024
MOST_KINDS = 32
FEW = 5  # ids in a row that stands for many
LONGEST = 512  # characters of what a caller may have made up
log = structlog.get_logger()


def entry(
    log_name: str, problem: Problem, progress: CallProgress, *, path_params: Mapping[str, str], request_id: str
) -> audit.NewRow:
    """Return the row of a refusal. Somebody whose token is not valid has no name in it."""
    ids = progress.item_ids
    dataset = path_params.get("item_id") or (ids[0] if progress.items == 1 and ids else "")
    if "collection_id" not in path_params:
        dataset = "/".join(path_params.values())  # a group and its member, a request, a destination
    return audit.NewRow(
        actor=progress.caller.name if progress.caller else NOBODY, action=log_name,
        collection=_cut(path_params.get("collection_id", "")), dataset=_cut(dataset), request=None,
        outcome=Outcome.REJECTED, before=None, after=None, correlation=request_id, rule=problem.name,
        items=progress.items, detail=_json({"datasets": ids}) if progress.items > 1 else None,
    )  # fmt: skip


def _cut(text: str) -> str:
    """Return what PostgreSQL can store of a text from outside."""
    return text[:LONGEST].replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def rows_of(request: NewRequest) -> list[audit.NewRow]:
    """Return one row for the refused items of an accepted batch; none where none was refused."""
    items = [item for item in request.items if item.problem is not None]
    if not items:
        return []
    problems = Counter(str(item.problem) for item in items)
    return [
        audit.NewRow(
            actor=request.submitter, action=request.action, collection=request.collection,
            dataset=_cut(items[0].dataset) if len(items) == 1 else "", request=request.id,
            outcome=Outcome.REJECTED, before=None, after=None, correlation=request.correlation,
            rule=problems.most_common(1)[0][0], items=len(items),
            detail=_json({"datasets": [_cut(item.dataset) for item in items[:FEW]], "problems": dict(problems)})
            if len(items) > 1 else None,
        )
    ]  # fmt: skip


@dataclass(slots=True)
class _Caller:
    """How many rows a caller may still have, and the refusals without one: by kind, with the first request ids."""

    rows_left: float = BURST
    at: float = field(default_factory=time.monotonic)
    counts: dict[audit.NewRow, tuple[int, list[str]]] = field(default_factory=dict)

    def may_write(self) -> bool:
        now = time.monotonic()
        self.rows_left, self.at = min(BURST, self.rows_left + (now - self.at) * PER_SECOND), now
        if self.rows_left < 1:
            return False
        self.rows_left -= 1
        return True

    def count(self, entry: audit.NewRow) -> None:
        kind = replace(entry, dataset="", correlation=None, items=1, detail=None)
        if kind not in self.counts and len(self.counts) >= MOST_KINDS:
            kind = replace(kind, action="", collection="", rule=None)
        many, ids = self.counts.get(kind, (0, []))
        self.counts[kind] = many + entry.items, [*ids, *([entry.correlation] if entry.correlation else [])][:FEW]

    def take_summary(self) -> list[audit.NewRow]:
        counts, self.counts = self.counts, {}
        return [
            replace(kind, items=many, detail=_json({"correlations": ids})) for kind, (many, ids) in counts.items()
        ]  # fmt: skip

    @property
    def is_idle(self) -> bool:
        return not self.counts and self.rows_left + (time.monotonic() - self.at) * PER_SECOND >= BURST


class Refusals:
    """Writes rows of refusals; `note` returns when the row is durable, or counted."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._callers: dict[str, _Caller] = {}
        self._waiting: list[tuple[audit.NewRow, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def note(self, entry: audit.NewRow) -> None:
        """Write a row, or count it. Never raises for the database's sake: the refusal is answered in any case."""
        caller = self._caller(entry.actor)
        if len(self._waiting) >= MOST_WAITING or not caller.may_write():
            caller.count(entry)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        if self._writing is None or self._writing.done():
            self._writing = budget.detached(self._write_waiting())
        await asyncio.wait([future], timeout=LONGEST_WAIT)

    def _caller(self, name: str) -> _Caller:
        if name not in self._callers and len(self._callers) >= MOST_CALLERS:
            name = NOBODY
        return self._callers.setdefault(name, _Caller())

    async def _write_waiting(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                await self._write([entry for entry, _ in group])
            finally:
                for _, future in group:
                    if not future.done():
                        future.set_result(None)

    async def _write(self, entries: Sequence[audit.NewRow]) -> None:
        """Write all rows in one transaction; rows that the database refuses, or cannot take now, are counted."""
        try:
            async with self._node.pools.work.acquire() as conn, conn.transaction():
                await audit.append(conn, entries)
        except Exception as error:
            if is_refusal(error) and len(entries) > 1:
                for entry in entries:
                    await self._write([entry])
                return
            self._node.parts.fails("refusals", error)
            for entry in entries:
                self._caller(entry.actor).count(entry)

    async def keep(self, node: Node, stop: asyncio.Event) -> None:
        """Sum up from time to time, until `stop`."""

        async def step() -> None:
            await pause(stop, SUMMARY_SECONDS)
            await self.sum_up()

        await supervision.keep_trying(node.parts, "refusals", step, stop)

    async def sum_up(self) -> None:
        """Write rows that stand for the counted refusals, and forget callers that were silent."""
        rows = [row for caller in self._callers.values() for row in caller.take_summary()]
        if rows:
            await self._write(rows)
        self._callers = {name: caller for name, caller in self._callers.items() if not caller.is_idle}


@asynccontextmanager
async def recording(node: Node) -> AsyncIterator[Refusals]:
    """Yield the recorder of refusals; the refusals that it only counted are written at the end."""
    refusals = Refusals(node)
    try:
        yield refusals
    finally:
        with suppress(TimeoutError):
            await asyncio.wait_for(refusals.sum_up(), LONGEST_WAIT)
