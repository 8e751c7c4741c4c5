"""Admission of writes: the collection has to be there, and an accepted request is durable before it is answered.

Requests that come while a commit is under way share the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID, uuid4

from fedstac.api.call import Services
from fedstac.api.people import identity, notifications
from fedstac.api.writing import idempotency, refusals
from fedstac.api.writing.intake import JudgedBody, JudgedItem
from fedstac.api.writing.options import WriteOptions
from fedstac.bootstrap import Node
from fedstac.db import audit, cascades, collections, records, requests
from fedstac.db.connections import Connection
from fedstac.db.requests import Key, NewItem, NewRequest
from fedstac.domain import cascade
from fedstac.domain import collections as collection_rules
from fedstac.domain.actions import publish
from fedstac.domain.actions.target import QueuedAction
from fedstac.domain.documents import ItemTexts
from fedstac.domain.errors import CollectionDoesNotExist, ForeignOrigin, Problem, Unavailable
from fedstac.domain.policy import Principal
from fedstac.runtime import budget
from fedstac.runtime.causes import blames_nobody
from fedstac.runtime.failpoints import failpoint

KNOWN_SECONDS: Final = 5.0  # that a collection counts as there


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """A request that is durable. `refused_items`: how many were refused before. `is_single`: it is no batch."""

    id: UUID
    total: int
    refused_items: int
    is_single: bool


@dataclass(frozen=True, slots=True)
class EarlierRequest:
    """The request that was accepted under the same Idempotency-Key before."""

    id: UUID


async def admit_items(
    services: Services, caller: Principal, body: JudgedBody, options: WriteOptions, key: Key | None
) -> AcceptedRequest | EarlierRequest:
    """Store a request to publish what was judged. Items that were refused are stored with their problems."""
    items = [_new_item(item) for item in body.items]
    request = _request(caller, body.collection, "publish", body.cv_version, items, options, key)
    return await _admit(services, caller, request, options, is_single=not body.is_batch)


async def admit_change(
    services: Services, name: str, action: QueuedAction, options: WriteOptions, key: Key | None
) -> AcceptedRequest | EarlierRequest:
    """Store a request to change one dataset."""
    items = [NewItem(action.name.lineage, action.dataset, ItemTexts(action.text))]
    request = _request(action.principal, action.collection, name, action.cv_version, items, options, key)
    return await _admit(services, action.principal, request, options, is_single=True)


def _request(
    caller: Principal, collection: str, action: str, cv_version: str | None, items: Sequence[NewItem],
    options: WriteOptions, key: Key | None,
) -> NewRequest:  # fmt: skip
    return NewRequest(
        id=uuid4(), collection=collection, action=action, submitter=caller.name, roles=tuple(sorted(caller.roles)),
        user_agent=options.user_agent, correlation=options.request_id, cv_version=cv_version, items=items,
        identity=identity.packed(caller), key=key, retry_of=options.retry_of, traceparent=options.traceparent,
        only_new=options.only_new and action == "publish",
    )  # fmt: skip


def _new_item(item: JudgedItem) -> NewItem:
    if (problem := item.problem) is None:
        return NewItem(item.lineage, item.id, item.texts, findings=item.warnings)
    return NewItem(item.id, item.id, item.texts, problem=problem.name, detail=problem.detail, findings=problem.findings)


async def _admit(
    services: Services, caller: Principal, request: NewRequest, options: WriteOptions, *, is_single: bool
) -> AcceptedRequest | EarlierRequest:
    """Make a request durable, or return the one that was accepted under its key meanwhile."""
    node = services.node
    await node.vocabulary_store.keep(node.pool, request.collection, request.cv_version)
    try:
        await notifications.wish(node, caller, options.notify, request.id)
        stored_request = await services.admission.store(request)
    except requests.KeyTaken:
        earlier = await idempotency.earlier(node, request.key)
        if earlier is None:
            raise Unavailable(
                "the request under this Idempotency-Key is just being stored; try again", retry_after=1
            ) from None
        return EarlierRequest(earlier)
    refused_items = sum(item.problem is not None for item in stored_request.items)
    return AcceptedRequest(request.id, len(request.items), refused_items, is_single)


class Admission:
    """Stores requests. `store` returns when its request is durable, and wakes the workers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: list[tuple[NewRequest, asyncio.Future[NewRequest]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, request: NewRequest) -> NewRequest:
        """Make a request durable, and return it as it is stored: what publishes under a used id is refused.

        Where that is all of it, the problem is raised. Whatever the database refuses, or cannot do now, is raised to
        its own caller.
        """
        future: asyncio.Future[NewRequest] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._storing is None or self._storing.done():
            self._storing = budget.detached(self._store_waiting())
        return await future

    async def _store_waiting(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            await self._store(group)
            self._node.queued.wake()

    async def _write(self, new: Sequence[NewRequest]) -> Sequence[NewRequest | Problem]:
        """Store requests. Return each as it is stored, or why nothing of it is."""
        async with self._node.pools.work.acquire() as conn:
            if all(_is_simple(request) for request in new):
                refused_ids = await requests.create_singles(conn, new)
                return [
                    _used_before(request, request.items[0]) if request.id in refused_ids else request for request in new
                ]
            async with conn.transaction():
                judged_requests = [await _without_used_ids(conn, request) for request in new]
                rest = [request for request in judged_requests if isinstance(request, NewRequest)]
                await requests.create(conn, rest)
                await audit.append(conn, [row for request in rest for row in refusals.rows_of(request)])
        return judged_requests

    async def _store(self, group: Sequence[tuple[NewRequest, asyncio.Future[NewRequest]]]) -> None:
        """Store the group in one transaction; if one of them may be to blame that it fails, each in its own."""
        try:
            results = await self._write([request for request, _ in group])
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
        for (_, future), result in zip(group, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Problem):
                future.set_exception(result)
            else:
                future.set_result(result)


async def _without_used_ids(conn: Connection, request: NewRequest) -> NewRequest | Problem:
    """Refuse the items of a request that publish under ids of deleted datasets: their documents are not kept.

    Return the request, or the problem of its only item.
    """
    ids = [item.dataset for item in request.items if item.problem is None]
    if request.action != "publish" or not (used_ids := await records.used_ids(conn, request.collection, ids)):
        return request
    if len(request.items) == 1:
        return _used_before(request, request.items[0])

    def judge(item: NewItem) -> NewItem:
        if item.problem is not None or item.dataset not in used_ids:
            return item
        problem = _used_before(request, item)
        return NewItem(item.lineage, item.dataset, ItemTexts(None), problem=problem.name, detail=problem.detail)

    return replace(request, items=[judge(item) for item in request.items])


def _used_before(request: NewRequest, item: NewItem) -> Problem:
    """Return the refusal to publish under the id of a dataset that was deleted."""
    return publish.is_there(item.dataset) if request.only_new else publish.id_was_used(item.dataset)


def _is_simple(request: NewRequest) -> bool:
    return len(request.items) == 1 and request.items[0].problem is None and request.key is None


class KnownCollections:
    """The collections that were there a moment ago. Publishing an item notices one that is gone since."""

    def __init__(self) -> None:
        self._looks: dict[str, _CollectionLook] = {}

    async def require(
        self, node: Node, collection: str, *, publishes: bool = False, purges: bool = False
    ) -> None:  # fmt: skip
        """Let a write to the collection go on.

        CollectionDoesNotExist or ForeignOrigin where it cannot be written; CollectionClosing where something is to be
        published into it and it is being deleted. What was deleted with its collection can be purged all the same.
        """
        look = self._looks.get(collection)
        if look is None or look.until <= time.monotonic():
            try:
                look = self._looks[collection] = await _look_at(node, collection)
            except CollectionDoesNotExist:
                if purges and await _was_deleted_here(node, collection):
                    return
                raise
        if publishes and look.cascade is not None:
            raise cascade.refusal(collection, look.cascade)

    def forget(self, collection: str) -> None:
        """Look at a collection again before the next write."""
        self._looks.pop(collection, None)


@dataclass(frozen=True, slots=True)
class _CollectionLook:
    """A collection of this node. until: by time.monotonic. cascade: by which it is being deleted."""

    until: float
    cascade: UUID | None


async def _look_at(node: Node, collection: str) -> _CollectionLook:
    async with node.pool.acquire() as conn:
        state = await collections.get(conn, collection)
        if state is None:
            raise collection_rules.missing(collection, node.settings.contact)
        if state.origin != node.settings.node:
            raise ForeignOrigin(f"the collection {collection} belongs to the node {state.origin}; publish there")
        open_cascades = await cascades.open_of(conn, [collection])
    return _CollectionLook(time.monotonic() + KNOWN_SECONDS, open_cascades.get(collection))


async def _was_deleted_here(node: Node, collection: str) -> bool:
    """Return whether the collection was this node's, and was deleted."""
    async with node.pool.acquire() as conn:
        return await collections.was_deleted(conn, collection, node.settings.node)
