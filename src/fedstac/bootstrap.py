"""The composition root: from settings to a node that can work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema_rs
import structlog

from fedstac.db import feed, opening, pools, waiting
from fedstac.db import parts as parts_of_node
from fedstac.db.connections import Connection
from fedstac.db.pools import CopyPool, Pool, Pools
from fedstac.domain.policy import Policy
from fedstac.domain.vocabulary import UnknownVersion, Vocabulary, VocabularyBroken
from fedstac.identity.policy_files import Policies
from fedstac.publication import NodeRules
from fedstac.runtime import commits, supervision
from fedstac.runtime.commits import CommitWatch
from fedstac.runtime.metrics import Metrics
from fedstac.runtime.outages import Outage
from fedstac.runtime.supervision import Parts
from fedstac.runtime.wakeup import Wakeup, cancel, pause
from fedstac.settings import Settings, folder
from fedstac.vocabularies.checker import VocabularyChecker, open_checker, stac_schemas
from fedstac.vocabularies.judging import JudgeProcess
from fedstac.vocabularies.store import VocabularyStore

LOOK_SECONDS = 5.0  # between looks for vocabularies that somebody installed
PROBE_SECONDS = 1.0  # between looks whether the database is back
COMMIT_LOOK_SECONDS = 5.0  # that a look for commits may take, before everybody looks for themselves
LEAST_BEAT_SECONDS, BEAT_SECONDS = 0.2, 10.0  # between reports of how the parts stand
END_SECONDS = 4.0  # that parts have to end by themselves when the process stops
FORGET_SECONDS = 0.5
log = structlog.get_logger()


class WrongNode(Exception):
    """The database belongs to a node of another name."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node: its settings, its database, its rules. Built once a process, handed to all parts."""

    settings: Settings
    pools: Pools
    checker: VocabularyChecker
    vocabulary_store: VocabularyStore  # of the checker's vocabularies
    policies: Policies
    collection_schema: jsonschema_rs.Validator
    signing_key: bytes
    queued: Wakeup  # something was accepted
    committed: Wakeup  # events were written
    sequenced: Wakeup  # positions were given
    settled: Wakeup  # items became final
    commits: CommitWatch  # tells of the commits of other processes too: it wakes the four above
    stopping: asyncio.Event  # long answers end now
    schema: int  # the number of the database's last migration
    parts: Parts  # how the background parts of this process stand
    metrics: Metrics  # what this process counts
    judge: JudgeProcess  # a process beside this one, for pages of events; it is started when it is needed

    def stop(self) -> None:
        """End what waits, so that the process can end."""
        self.stopping.set()
        for wakeup in (self.queued, self.committed, self.sequenced, self.settled):
            wakeup.wake()

    @property
    def rules(self) -> NodeRules:
        """What this node decides with, as of now."""
        return NodeRules(self.settings.node, self.checker, self.policy, self.checker.vocabularies)

    @property
    def pool(self) -> Pool:
        """The connections of whoever is working: those of the request's lane; in a background part, those of work."""
        return self.pools.current()

    @property
    def search_pool(self) -> Pool | CopyPool:
        """The connections of whoever searches: to the standby, where there is one."""
        return self.pools.searching()

    @property
    def policy(self) -> Policy:
        """Who may do what, as of now."""
        return self.policies.current

    async def vocabulary(self, project: str, version: str | None) -> Vocabulary | None:
        """Return one version, also if it was installed a moment ago; None without a version.

        UnknownVersion where it is not here.
        """
        if version is None:
            return None
        try:
            return self.checker.vocabularies.at(project, version)
        except UnknownVersion:
            async with self.pool.acquire() as conn:
                await self.vocabulary_store.look(conn)
            return self.checker.vocabularies.at(project, version)


async def fork_if_restored(conn: Connection) -> None:
    """Start a new epoch where the database was restored or promoted, before anybody is served its snapshot."""
    epoch = await feed.fork_if_restored(conn)
    if epoch:
        log.warning("this database was restored or promoted; the feed goes on in a new epoch", epoch=epoch)


@dataclass(frozen=True, slots=True)
class Part:
    """What runs beside a node until the event is set; `name` stands in logs and in the answer of /healthcheck."""

    name: str
    run: Callable[[Node, asyncio.Event], Coroutine[Any, Any, None]]


@asynccontextmanager
async def node(settings: Settings, policies: Policies | None = None) -> AsyncIterator[Node]:
    """Open a node on its database. WrongNode if that database is another's; PolicyBroken if its policy is not usable.

    DatabaseUnusable if the database is not there, refuses us or is not prepared.
    VocabularyBroken if the folder of vocabularies, a pinned version, or one that would judge is not there or broken.
    """
    policies = policies or Policies(settings.policy, settings.globus_policy, here=settings.node)
    with opening.explaining(settings.dsn):
        opened = await pools.open_pools(
            settings.dsn, settings, application=f"fedstac {settings.node}", read_dsn=settings.read_dsn
        )
    judge = JudgeProcess()
    queued, committed, sequenced, settled = (Wakeup() for _ in range(4))
    try:
        async with opened.work.acquire() as conn:
            with opening.explaining(settings.dsn):
                schema = await opening.schema(conn, opening.newest(folder("migrations")), settings.dsn)
            rules, vocabulary_store = await _rules(conn, settings)
            key = await _enter(conn, settings)  # writes the node's name: a start that fails before has written nothing
        _, collection_schema = stac_schemas()
        yield Node(
            settings=settings, pools=opened, checker=rules, vocabulary_store=vocabulary_store, policies=policies,
            collection_schema=collection_schema, signing_key=key,
            queued=queued, committed=committed, sequenced=sequenced, settled=settled,
            commits=CommitWatch((committed, sequenced, settled), by_part={"publisher": queued}),
            stopping=asyncio.Event(), schema=schema, parts=Parts(Outage("the database")), metrics=Metrics(),
            judge=judge,
        )  # fmt: skip
    finally:
        judge.close()
        opened.terminate()


@asynccontextmanager
async def beside(
    node: Node, parts: Sequence[Part], stop: asyncio.Event, *, on_give_up: Callable[[], object] = lambda: None
) -> AsyncIterator[None]:
    """Run a node's background parts, start them again when they end, and end them before the node goes.

    A part that ends again and again sets `stop` and calls `on_give_up`; `node.parts.gave_up` says why.
    """
    await _first_look(node)
    tasks = [
        asyncio.create_task(supervision.keep_running(node.parts, part.name, partial(part.run, node, stop), stop))
        for part in (*parts, *OWN_PARTS)
    ]
    telling = asyncio.create_task(_tell_of_stop(stop, node, on_give_up))
    try:
        yield
    finally:
        stop.set()
        node.stop()
        node.parts.changed.wake()
        await asyncio.wait(tasks, timeout=END_SECONDS)
        await cancel(*tasks, telling)
        await _forget_reports(node)


async def _tell_of_stop(stop: asyncio.Event, node: Node, on_give_up: Callable[[], object]) -> None:
    await stop.wait()
    if node.parts.gave_up is not None:
        on_give_up()


async def report_parts(node: Node, stop: asyncio.Event) -> None:
    """Report how the parts of this process stand, when that changes and every few seconds."""

    async def report() -> None:
        next_change = node.parts.changed.next()
        node.parts.forget_old_troubles()
        async with node.pools.work.acquire() as conn:
            await parts_of_node.report(conn, node.parts.process, node.parts.states)
        await pause(stop, LEAST_BEAT_SECONDS)
        if not stop.is_set():
            await next_change(BEAT_SECONDS)

    await supervision.keep_trying(node.parts, "heartbeat", report, stop)


async def _forget_reports(node: Node) -> None:
    """Take back what this process reported, if the database is quick; else it ages."""
    with suppress(Exception):
        async with asyncio.timeout(FORGET_SECONDS), node.pools.work.acquire() as conn:
            await parts_of_node.forget(conn, node.parts.process)


async def _enter(conn: Connection, settings: Settings) -> bytes:
    """Make sure that the database is this node's, and return the secret that signs paging tokens."""
    with opening.explaining(settings.dsn):
        origin = await feed.establish(conn, settings.node, os.urandom(32))
        if origin != settings.node:
            raise WrongNode(
                f"this database is the node {origin!r}, not {settings.node!r}: set FEDSTAC_NODE={origin}, "
                f"or use another database"
            )
        await fork_if_restored(conn)
        return settings.token_key.encode() or await feed.signing_key(conn)


async def _rules(conn: Connection, settings: Settings) -> tuple[VocabularyChecker, VocabularyStore]:
    """Return the rules with all vocabularies that are here.

    VocabularyBroken where one that would judge cannot be used.
    """
    rules = open_checker(Path(settings.cv_folder) if settings.cv_folder else None, pins=settings.cv_pins)
    vocabulary_store = VocabularyStore(rules.vocabularies, settings.node)
    await vocabulary_store.look(conn)
    for project in sorted({*rules.vocabularies.projects(), *settings.cv_pins}):
        try:
            rules.vocabularies.current(project)
        except UnknownVersion as error:
            raise VocabularyBroken(f"FEDSTAC_CV_PINS: {error}") from None
        except VocabularyBroken as error:
            raise VocabularyBroken(f"the vocabulary of {project} that judges cannot be used: {error}") from error
    return rules, vocabulary_store


async def watch_vocabularies(node: Node, stop: asyncio.Event) -> None:
    """Take up, while the node serves, what somebody installs."""

    async def look() -> None:
        await pause(stop, LOOK_SECONDS)
        async with node.pool.acquire() as conn:
            await node.vocabulary_store.look(conn)

    await supervision.keep_trying(node.parts, "vocabularies", look, stop)


async def _look_for_commits(node: Node) -> None:
    """Look for all of the process whether anything was committed, and what waits for its parts."""
    async with node.pools.work.acquire() as conn, asyncio.timeout(COMMIT_LOOK_SECONDS):
        snapshot = await waiting.snapshot(conn)
        if node.commits.is_news(snapshot):
            node.commits.note(snapshot, await waiting.read(conn))


async def _first_look(node: Node) -> None:
    """Find out what waits, so that parts without work begin by waiting. Each looks for itself where that fails."""
    with suppress(Exception):
        await _look_for_commits(node)


async def watch_commits(node: Node, stop: asyncio.Event) -> None:
    """Look for commits until `stop`."""

    async def step() -> None:
        try:
            await _look_for_commits(node)
        except BaseException:
            node.commits.lose()
            raise
        await pause(stop, commits.TICK_SECONDS)

    try:
        await supervision.keep_trying(node.parts, "commits", step, stop)
    finally:
        node.commits.lose()


async def watch_database(node: Node, stop: asyncio.Event) -> None:
    """Look, after the database failed somebody, whether it is back, and log that."""

    async def look() -> bool:
        await pause(stop, PROBE_SECONDS)
        if node.parts.outage.may_be_over:
            async with asyncio.timeout(PROBE_SECONDS * 3), node.pool.acquire() as conn:
                await conn.execute("SELECT")
            node.parts.outage.ended()
        return False

    await supervision.keep_trying(node.parts, "outages", look, stop)


OWN_PARTS = (Part("heartbeat", report_parts), Part("outages", watch_database), Part("commits", watch_commits))
"""What runs in each process beside the parts of its roles."""
