"""The composition root: from settings to a node that can work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import structlog

from fedstac import checking
from fedstac.db import feed, opening, pools
from fedstac.db.connections import Connection, is_transient
from fedstac.db.pools import Pool, Pools
from fedstac.domain.model import World
from fedstac.domain.policy import Policy
from fedstac.domain.validation import Checker
from fedstac.domain.vocabulary import UnknownVersion, Vocabulary, VocabularyBroken
from fedstac.policies import Policies
from fedstac.runtime.outages import Outage
from fedstac.settings import Settings, folder
from fedstac.shelf import Shelf
from fedstac.wakeup import Wakeup, pause

LOOK_SECONDS = 5.0  # between looks for vocabularies that somebody installed
PROBE_SECONDS = 1.0  # between looks whether the database is back
log = structlog.get_logger()


class WrongNode(Exception):
    """The database belongs to a node of another name."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node: its settings, its database, its rules. Built once a process, handed to all parts."""

    settings: Settings
    pools: Pools
    checker: Checker
    shelf: Shelf  # of the checker's vocabularies
    policies: Policies
    collection_schema: jsonschema_rs.Validator
    signing_key: bytes
    queued: Wakeup  # something was accepted
    committed: Wakeup  # events were written
    sequenced: Wakeup  # positions were given
    settled: Wakeup  # items became final
    stopping: asyncio.Event  # long answers end now
    schema: int  # the number of the database's last migration
    outage: Outage  # of the database

    def stop(self) -> None:
        """Ends what waits, so that the process can end."""
        self.stopping.set()
        for wakeup in (self.queued, self.committed, self.sequenced, self.settled):
            wakeup.wake()

    def world(self) -> World:
        """The world of a decision taken now; the write path sets the clock, which is the database's."""
        return World(now=datetime.now(UTC), origin=self.settings.node, judge=self.checker, policy=self.policy)

    @property
    def pool(self) -> Pool:
        """The connections of whoever is working: those of the request's lane; in a background part, those of work."""
        return self.pools.current()

    @property
    def policy(self) -> Policy:
        """Who may do what, as of now."""
        return self.policies.current

    async def vocabulary(self, project: str, version: str | None) -> Vocabulary | None:
        """One version, also if it was installed a moment ago. UnknownVersion where it is not here; None without one."""
        if version is None:
            return None
        try:
            return self.checker.vocabularies.at(project, version)
        except UnknownVersion:
            async with self.pool.acquire() as conn:
                await self.shelf.look(conn)
            return self.checker.vocabularies.at(project, version)


async def fork_if_restored(conn: Connection) -> None:
    """Starts a new epoch where the database was restored or promoted, before anybody is served its snapshot."""
    epoch = await feed.fork_if_restored(conn)
    if epoch:
        log.warning("this database was restored or promoted; the feed goes on in a new epoch", epoch=epoch)


Background = Callable[[Node, asyncio.Event], Coroutine[Any, Any, None]]  # runs until the event is set


@asynccontextmanager
async def node(settings: Settings, policies: Policies | None = None) -> AsyncIterator[Node]:
    """A node on its database. WrongNode if that database is another's; PolicyBroken if its policy is not usable.

    DatabaseUnusable if the database is not there, refuses us or is not prepared.
    VocabularyBroken if the folder of vocabularies, a pinned version, or one that would judge is not there or broken.
    """
    policies = policies or Policies(settings.policy, settings.globus_policy, here=settings.node)
    with opening.explained(settings.dsn):
        opened = await pools.open_pools(settings.dsn, settings, application=f"fedstac {settings.node}")
    try:
        async with opened.work.acquire() as conn:
            schema, key = await _enter(conn, settings)
            rules, shelf = await _rules(conn, settings)
        _, collection_schema = checking.stac_schemas()
        yield Node(
            settings=settings, pools=opened, checker=rules, shelf=shelf, policies=policies,
            collection_schema=collection_schema, signing_key=key,
            queued=Wakeup(), committed=Wakeup(), sequenced=Wakeup(), settled=Wakeup(),
            stopping=asyncio.Event(), schema=schema, outage=Outage("the database"),
        )  # fmt: skip
    finally:
        opened.terminate()


@asynccontextmanager
async def beside(node: Node, parts: Sequence[Background], stop: asyncio.Event) -> AsyncIterator[None]:
    """Runs a node's background parts, and ends them before the node goes."""
    tasks = [asyncio.create_task(part(node, stop)) for part in (*parts, watch_database)]
    try:
        yield
    finally:
        stop.set()
        node.stop()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _enter(conn: Connection, settings: Settings) -> tuple[int, bytes]:
    """Make sure that the database is prepared and this node's; the number of its last migration, and its secret."""
    with opening.explained(settings.dsn):
        schema = await opening.schema(conn, opening.newest(folder("migrations")), settings.dsn)
        origin = await feed.establish(conn, settings.node, os.urandom(32))
        if origin != settings.node:
            raise WrongNode(
                f"this database is the node {origin!r}, not {settings.node!r}: set FEDSTAC_NODE={origin}, "
                f"or use another database"
            )
        await fork_if_restored(conn)
        return schema, settings.token_key.encode() or await feed.signing_key(conn)


async def _rules(conn: Connection, settings: Settings) -> tuple[Checker, Shelf]:
    """The rules with all vocabularies that are here. VocabularyBroken where one that would judge cannot be used."""
    rules = checking.checker(Path(settings.cv_folder) if settings.cv_folder else None, pins=settings.cv_pins)
    shelf = Shelf(rules.vocabularies, settings.node)
    await shelf.look(conn)
    for project in sorted({*rules.vocabularies.projects(), *settings.cv_pins}):
        try:
            rules.vocabularies.current(project)
        except UnknownVersion as error:
            raise VocabularyBroken(f"FEDSTAC_CV_PINS: {error}") from None
        except VocabularyBroken as error:
            raise VocabularyBroken(f"the vocabulary of {project} that judges cannot be used: {error}") from error
    return rules, shelf


async def watch_vocabularies(node: Node, stop: asyncio.Event) -> None:
    """Takes up, while the node serves, what somebody installs."""
    while not stop.is_set():
        await pause(stop, LOOK_SECONDS)
        try:
            async with node.pool.acquire() as conn:
                await node.shelf.look(conn)
        except Exception as error:
            if not is_transient(error):
                log.exception("looking for vocabularies failed; trying again")


async def watch_database(node: Node, stop: asyncio.Event) -> None:
    """Notices, and logs, that the database is back after it failed somebody."""
    while not stop.is_set():
        await pause(stop, PROBE_SECONDS)
        if not node.outage.may_be_over:
            continue
        try:
            async with asyncio.timeout(PROBE_SECONDS * 3), node.pool.acquire() as conn:
                await conn.execute("SELECT")
        except Exception as error:
            node.outage.failed(error)
        else:
            node.outage.ended()
