"""Admission of writes: the collection has to be there; accepted requests become durable together.

Requests that come while a commit is under way share the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from fedstac.api.writing import refusals
from fedstac.bootstrap import Node
from fedstac.db import audit, collections, requests
from fedstac.db.connections import blames_nobody
from fedstac.db.requests import NewRequest
from fedstac.domain import collections as collection_rules
from fedstac.domain.errors import ForeignOrigin
from fedstac.runtime import budget
from fedstac.runtime.failpoints import failpoint

KNOWN_SECONDS = 5.0  # that a collection counts as there


class Admission:
    """Stores requests; `store` returns when its request is durable, and wakes the workers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: list[tuple[NewRequest, asyncio.Future[None]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, request: NewRequest) -> None:
        """Makes a request durable. What the database refuses, or cannot do now, is raised to its own caller."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._storing is None or self._storing.done():
            self._storing = budget.detached(self._store_waiting())
        await future

    async def _store_waiting(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            await self._store(group)
            self._node.queued.wake()

    async def _write(self, accepted: Sequence[NewRequest]) -> None:
        async with self._node.pools.work.acquire() as conn:
            if all(_is_simple(request) for request in accepted):
                await requests.create_singles(conn, accepted)
                return
            async with conn.transaction():
                await requests.create(conn, accepted)
                await audit.append(conn, [entry for request in accepted for entry in refusals.of_request(request)])

    async def _store(self, group: Sequence[tuple[NewRequest, asyncio.Future[None]]]) -> None:
        """Store the group in one transaction; if one of them may be to blame that it fails, each in its own."""
        try:
            await self._write([request for request, _ in group])
        except Exception as error:
            if not blames_nobody(error) and len(group) > 1:
                for pair in group:
                    await self._store([pair])
                return
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        failpoint("admission.stored")
        for _, future in group:
            if not future.done():
                future.set_result(None)


def _is_simple(request: NewRequest) -> bool:
    return len(request.items) == 1 and request.items[0].problem is None and request.key is None


class KnownCollections:
    """The collections that were there a moment ago. Publishing an item notices one that is gone since."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    async def require(self, node: Node, collection: str) -> None:
        """Let a write to the collection go on. CollectionDoesNotExist or ForeignOrigin where it cannot be written."""
        if self._until.get(collection, 0.0) > time.monotonic():
            return
        async with node.pool.acquire() as conn:
            stored = await collections.get(conn, collection)
            if stored is None:
                raise collection_rules.missing(collection, node.settings.contact)
            if stored.origin != node.settings.node:
                raise ForeignOrigin(f"the collection {collection} belongs to the node {stored.origin}; publish there")
        self._until[collection] = time.monotonic() + KNOWN_SECONDS
