"""A node with its queue and its publish worker, and an index node that follows it, each on a database of its own."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import orjson

from fedstac import applying, bootstrap, publication
from fedstac.bootstrap import Node
from fedstac.db import audit, connections, feed, invariants, nodes, queue, records, requests
from fedstac.db.connections import Connection
from fedstac.domain import events
from fedstac.domain.actions import Work
from fedstac.domain.events import Cursor, DatasetEvent
from fedstac.domain.model import Record
from fedstac.identity.policy_files import Policies
from fedstac.settings import Settings
from fedstac.workers import publisher
from tests.db import writing
from tests.db.model import Model, Result, Step
from tests.db.writing import CHECKER

OVERLAP, PAGE = 40, 20  # events that the index node is told again, and at once
SHARED_BY = 40  # runs: what all of a catalogue is looked at for costs more with each
TWO_LATEST = "SELECT lineage FROM fedstac.record WHERE latest GROUP BY lineage HAVING count(*) > 1"
TO_THE_END = 1_000_000
T = TypeVar("T")


@dataclass
class Catalogue:
    """West, which is written to, and east, which follows; and how far west's logs were read, and what was there."""

    node: Node
    conn: Connection
    east: Connection
    log: list[str] = field(default_factory=list)  # of the outbox, what a run made
    entries: list[feed.Entry] = field(default_factory=list)
    event: int = 0
    row: int = 0

    async def begin(self, policies: Policies) -> None:
        """Begin a run: do what a broken run left waiting, and remember what is there."""
        await self.work()
        self.node = replace(self.node, policies=policies)
        self.log.clear()
        self.event = await self.conn.fetchval("SELECT max(id) FROM fedstac.outbox")
        self.row = await self.conn.fetchval("SELECT max(id) FROM fedstac.audit")

    async def accept(self, steps: Sequence[Step]) -> None:
        async with self.conn.transaction():
            await requests.create(self.conn, [step.accepted for step in steps])

    async def die_working(self) -> None:
        """Claim what waits, as a worker that dies then."""
        await queue.claim(self.conn, "somebody else", uuid4(), -1.0)

    async def work(self) -> None:
        while await publisher.work_once(self.node, self.conn, "worker"):
            continue

    async def perform(self, steps: Sequence[Step], model: Model) -> None:
        """Let the worker do what waits. I1, I4: all is final; records, events and audit rows are of these steps."""
        await self.work()
        results = await self._results(steps)
        rows: Sequence[Any] = await self.conn.fetch(
            """SELECT id, event_id, key, collection, dataset, seq, type, digest, event FROM fedstac.outbox
               WHERE id > $1 ORDER BY id""",
            self.event,
        )
        self.event = rows[-1]["id"] if rows else self.event
        self.log += [row["event"] for row in rows]
        model.follow([(step, results[step.accepted.id]) for step in steps], rows)
        assert await stored(self.conn, model.seqs) == model.records
        await self._check_audit(steps, results, rows)

    async def _results(self, steps: Sequence[Step]) -> dict[UUID, Result]:
        rows = await self.conn.fetch(
            """SELECT request, status, outcome, problem, detail, last_event FROM fedstac.request_item
               WHERE request = ANY($1::uuid[])""",
            [step.accepted.id for step in steps],
        )
        return {row["request"]: Result(**{name: row[name] for name in Result.__slots__}) for row in rows}

    async def _check_audit(
        self, steps: Sequence[Step], results: Mapping[UUID, Result], event_rows: Sequence[Mapping[str, Any]]
    ) -> None:
        rows = await self.conn.fetch(
            """SELECT id, request, dataset, outcome, actor, digest_after FROM fedstac.audit
               WHERE id > $1 ORDER BY id""",
            self.row,
        )
        self.row = rows[-1]["id"] if rows else self.row
        changed_rows = [(row["dataset"], row["digest_after"]) for row in rows if row["digest_after"] is not None]
        assert sorted(changed_rows) == sorted((event["dataset"], event["digest"]) for event in event_rows)
        steps_by_id = {step.accepted.id: step for step in steps}
        own = {row["request"]: (row["outcome"], row["actor"]) for row in rows
               if row["dataset"] == steps_by_id[row["request"]].command.target.id}  # fmt: skip
        assert own == {number: (results[number].outcome, step.principal.name) for number, step in steps_by_id.items()}

    async def rehearse(self, steps: Sequence[Step], model: Model) -> None:
        """Rehearse the steps, and check that nothing is left of them."""
        work = [Work(step.command, step.principal.name, step.accepted.action) for step in steps]
        await publication.rehearse(self.conn, self.node.rules, [one.command.target for one in work], work.__getitem__)
        assert await stored(self.conn, model.seqs) == model.records

    async def send_again(self, step: Step) -> None:
        """Check I3: what comes under a used key stores nothing; the key leads to the earlier request."""
        key = step.accepted.key
        assert key is not None
        try:
            await self.accept([replace(step, accepted=replace(step.accepted, id=uuid4()))])
        except requests.KeyTaken:
            assert await requests.under_key(self.conn, key) == (step.accepted.id, key.digest)
        else:
            raise AssertionError(f"{step} was accepted twice under one key")

    async def follow(self, chance: random.Random) -> None:
        """Give positions, and tell east what is new in pages that overlap, each in any order.

        I5: what was read of the feed stays as it was. I11: east never shows two latest of a lineage.
        """
        await writing.sequence_all(self.conn)
        await audit.chain(self.conn)
        overlap = self.entries[-OVERLAP:]
        after = overlap[0].pos - 1 if overlap else 0
        fresh = await feed.page(self.conn, after, TO_THE_END)
        assert fresh[: len(overlap)] == overlap
        self.entries += fresh[len(overlap) :]
        page = [read(entry) for entry in fresh]
        collections: list[events.Event] = [event for event in page if not isinstance(event, DatasetEvent)]
        datasets: list[events.Event] = [event for event in page if isinstance(event, DatasetEvent)]
        pages = [collections, *(datasets[at : at + 2 * PAGE] for at in range(0, len(datasets), PAGE))]
        for page in pages:
            chance.shuffle(page)
            async with self.east.transaction():
                await applying.apply(self.east, page)
            assert await self.east.fetch(TWO_LATEST) == []
        await nodes.move(self.east, nodes.INDEX, "west", Cursor(1, self.entries[-1].pos))

    async def compare(self, model: Model) -> None:
        """Check I7, I8, I9 for a run's datasets: the log is as it was read; feed, west and east agree."""
        conn, lineages = self.conn, list(model.seqs)
        rows = await conn.fetch("SELECT event FROM fedstac.outbox WHERE key = ANY($1) ORDER BY id", lineages)
        assert [row["event"] for row in rows] == self.log
        entries = await feed.page(conn, self.entries[-1].pos - len(self.log), TO_THE_END)
        shown = {name: (record.digest.hex(), record.latest) for name, record in model.records.items()}
        assert writing.fold([read(entry) for entry in entries if entry.key in model.seqs]) == shown
        assert await stored(self.east, model.seqs) == model.records

    async def check(self) -> list[invariants.Violation]:
        """Return what `fedstac admin check` says about everything that is there."""
        return await invariants.check(self.conn)

    async def compare_all(self) -> None:
        """Check that the audit chain is whole, and that search and digests agree with the index node's."""
        await self.work()
        await self.follow(random.Random(0))
        conn, east = self.conn, self.east
        await audit.verify(conn)
        assert await writing.searched(east) == await writing.searched(conn)
        assert await feed.digests(east, "west") == await feed.digests(conn, "west")
        violations = await invariants.check(east)
        assert violations == [], violations


def read(entry: feed.Entry) -> events.Event:
    event = orjson.loads(events.positioned(entry.event, Cursor(entry.epoch, entry.pos)))
    named = events.vocabulary_named(event)
    return events.read(event, CHECKER.vocabularies.at(named[0], named[1]) if named else None)


async def stored(conn: Connection, lineages: Mapping[str, int]) -> dict[str, Record]:
    rows = await conn.fetch(
        f"SELECT {records.COLUMNS}, document FROM fedstac.record WHERE lineage = ANY($1)", list(lineages)
    )
    return {row["id"]: records.from_row(row) for row in rows}


@asynccontextmanager
async def opened(make_database: Callable[[], str]) -> AsyncIterator[Catalogue]:
    """Yield a catalogue with nothing in it but two collections."""
    east = await connections.connect(make_database())
    try:
        await feed.establish(east, "east", os.urandom(32))
        config = Settings(dsn=make_database(), node="west", pool_size=2, _env_file=None)
        async with bootstrap.node(config) as node, node.pool.acquire() as conn:
            await writing.create_collections(node, "CMIP6", "plain")
            yield Catalogue(node, conn, east)
    finally:
        east.terminate()


class Ground:
    """Where runs take place: a catalogue that several share, one after another, each with datasets of its own.

    After a run that failed its like are tried again and again, to make it shorter: they go on in the same place, and
    only what is their own is looked at.
    """

    def __init__(self, databases: Callable[[], AbstractContextManager[Callable[[], str]]], policy: str) -> None:
        """Take what makes databases for a while, and the policy file that `promoting` runs have."""
        self._databases = databases
        self._policies = {promoting: Policies(policy if promoting else "", here="west") for promoting in (False, True)}
        self._runner, self._open = asyncio.Runner(), ExitStack()
        self._catalogue: Catalogue | None = None
        self._is_spoilt = False
        self.runs = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def begin(self, *, promoting: bool) -> Catalogue:
        if self.runs % SHARED_BY == 0 and not self._is_spoilt:
            self.leave()
        if self._catalogue is None:
            make = self._open.enter_context(self._databases())
            stack = AsyncExitStack()
            self._open.callback(lambda: self._runner.run(stack.aclose()))
            self._catalogue = self._runner.run(stack.enter_async_context(opened(make)))
        self.runs += 1
        self._runner.run(self._catalogue.begin(self._policies[promoting]))
        return self._catalogue

    def end(self, catalogue: Catalogue, model: Model) -> None:
        """End a run: compare its own datasets, and check everything that is there."""
        self.run(catalogue.compare(model))
        wrong = self._check(catalogue)
        assert not wrong, "\n".join(map(str, wrong))

    def break_off(self, error: BaseException) -> None:
        """Clean up after a run that failed or that hypothesis broke off."""
        if self._catalogue is None:
            return
        if not isinstance(error, Exception):
            self.run(self._catalogue.work())
            self._check(self._catalogue)
            return
        self._is_spoilt = True
        if not isinstance(error, AssertionError):
            self.leave()

    def _check(self, catalogue: Catalogue) -> list[invariants.Violation]:
        """Return what is wrong with the whole database, unless it is spoilt on purpose."""
        wrong = [] if self._is_spoilt else self.run(catalogue.check())
        if wrong:
            self._is_spoilt = True
            self.leave()
        return wrong

    def leave(self) -> None:
        """Check the whole place for the last time, and give the next run another one."""
        left, is_spoilt = self._catalogue, self._is_spoilt
        self._catalogue, self._is_spoilt = None, False
        with self._open:
            if left is not None and not is_spoilt:
                self.run(left.compare_all())

    def close(self) -> None:
        self.leave()
        self._runner.close()
