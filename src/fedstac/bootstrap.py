"""The composition root: from settings to a node that can work."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema_rs

from fedstac import settings as environment
from fedstac.db import connections, feed
from fedstac.db.connections import Pool
from fedstac.domain.model import World
from fedstac.domain.validation import Checker
from fedstac.domain.vocabulary import Project, project_from
from fedstac.settings import Settings
from fedstac.wakeup import Wakeup

ITEM_SCHEMA = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
COLLECTION_SCHEMA = "https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/collection.json"


class WrongNode(Exception):
    """The database belongs to a node of another name."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node: its settings, its database, its rules. Built once a process, handed to all parts."""

    settings: Settings
    pool: Pool
    checker: Checker
    collection_schema: jsonschema_rs.Validator
    signing_key: bytes
    queued: Wakeup  # something was accepted
    committed: Wakeup  # events were written
    sequenced: Wakeup  # positions were given
    settled: Wakeup  # items became final
    stopping: asyncio.Event  # long answers end now

    def stop(self) -> None:
        """Ends what waits, so that the process can end."""
        self.stopping.set()
        for wakeup in (self.queued, self.committed, self.sequenced, self.settled):
            wakeup.wake()

    def world(self) -> World:
        """The world of a decision taken now; the write path sets the clock, which is the database's."""
        return World(now=datetime.now(UTC), origin=self.settings.node, projects=self.checker.projects)


Background = Callable[[Node, asyncio.Event], Coroutine[Any, Any, None]]  # runs until the event is set


@asynccontextmanager
async def node(settings: Settings) -> AsyncIterator[Node]:
    """A node on its database. WrongNode if that database is another's."""
    pool = await connections.pool(settings.dsn, size=settings.pool_size, application=f"fedstac {settings.node}")
    try:
        async with pool.acquire() as conn:
            origin = await feed.establish(conn, settings.node, os.urandom(32))
            if origin != settings.node:
                raise WrongNode(
                    f"this database is the node {origin!r}, not {settings.node!r}: set FEDSTAC_NODE={origin}, "
                    f"or use another database"
                )
            key = settings.token_key.encode() or await feed.signing_key(conn)
        item_schema, collection_schema = stac_schemas()
        yield Node(
            settings=settings, pool=pool, checker=Checker(item_schema, projects()),
            collection_schema=collection_schema, signing_key=key,
            queued=Wakeup(), committed=Wakeup(), sequenced=Wakeup(), settled=Wakeup(),
            stopping=asyncio.Event(),
        )  # fmt: skip
    finally:
        pool.terminate()


@asynccontextmanager
async def beside(node: Node, parts: Sequence[Background], stop: asyncio.Event) -> AsyncIterator[None]:
    """Runs a node's background parts, and ends them before the node goes."""
    tasks = [asyncio.create_task(part(node, stop)) for part in parts]
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


def projects(folder: Path | None = None) -> dict[str, Project]:
    """The projects that are installed in cv/, by collection id."""
    found = (folder or environment.folder("cv")).glob("*/project.json")
    loaded = [project_from(json.loads(path.read_text())) for path in sorted(found)]
    return {project.name: project for project in loaded}


def stac_schemas() -> tuple[jsonschema_rs.Validator, jsonschema_rs.Validator]:
    """Validators of the STAC 1.1.0 core schemas for items and collections, from pystac's copies; nothing is fetched."""
    known: dict[str, dict[str, Any]] = {}
    root = resources.files("pystac.validation.jsonschemas")
    for path in (*root.joinpath("stac-spec", "v1.1.0").iterdir(), *root.joinpath("geojson").iterdir()):
        if path.name.endswith(".json"):
            schema = json.loads(path.read_text())
            # by file name: the published common.json misspells its own $id
            uri = schema["$id"].rpartition("/")[0] + "/" + path.name
            known[uri] = {**schema, "$id": uri}
    registry = jsonschema_rs.Registry(list(known.items()))
    item, collection = (
        jsonschema_rs.validator_for(known[uri], registry=registry, retriever=_closed, validate_formats=True)
        for uri in (ITEM_SCHEMA, COLLECTION_SCHEMA)
    )
    return item, collection


def _closed(uri: str) -> Any:
    raise LookupError(f"schema {uri} is not at hand, and nothing is fetched while validating")
