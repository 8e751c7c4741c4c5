"""The writes of collections, each with its event and audit row; and the deletion of one with its datasets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

import jsonschema_rs
import orjson
import structlog

from fedstac.db import audit, cascades, collections, grants, outbox, own_groups
from fedstac.db.cascades import CascadeOrder
from fedstac.db.collections import CollectionState
from fedstac.db.connections import Connection
from fedstac.domain import cascade, documents, events
from fedstac.domain import collections as collection_rules
from fedstac.domain.cascade import Cascade, CascadeState
from fedstac.domain.errors import (
    CollectionAlreadyExists,
    CollectionNotEmpty,
    Conflict,
    Finding,
    ForeignOrigin,
    NotFound,
    PreconditionFailed,
)
from fedstac.domain.identifiers import uuid7
from fedstac.domain.patching import JsonPatch, MergePatch
from fedstac.runtime.failpoints import failpoint


@dataclass(frozen=True, slots=True)
class WrittenCollection:
    """A collection after a write, and warnings about what the write changed in the document that was sent."""

    state: CollectionState
    warnings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class CollectionWriter:
    """The writes of collections at one node, by one actor. Each is one transaction, with its event and audit row."""

    conn: Connection
    origin: str
    actor: str
    schema: jsonschema_rs.Validator  # of a STAC collection
    traceparent: str | None = None  # of the request

    async def create(self, document: object) -> WrittenCollection:
        """Create a collection. CollectionAlreadyExists where there is one."""
        collection = await asyncio.to_thread(collection_rules.check, document, self.schema, None)
        name = collection.document["id"]
        async with self.conn.transaction():
            state = self._own(await collections.lock(self.conn, name))
            if state is not None and state.document is not None:
                raise CollectionAlreadyExists(
                    f"there is a collection {name} already; change it with PUT /collections/{name}"
                )
            created = await self._announce(events.COLLECTION_CREATED, name, state, collection.document)
            return WrittenCollection(created, collection.warnings)

    async def replace(self, name: str, document: object, *, expected: Sequence[str] | None = None) -> WrittenCollection:
        """Store another document of a collection. The same document again changes nothing."""
        collection = await asyncio.to_thread(collection_rules.check, document, self.schema, name)
        async with self.conn.transaction():
            state = await self._update(await self._existing(name, expected), collection.document)
            return WrittenCollection(state, collection.warnings)

    async def patch(
        self, name: str, edit: JsonPatch | MergePatch, *, expected: Sequence[str] | None = None
    ) -> WrittenCollection:
        """Apply a patch to a collection under its lock. A patch without effect changes nothing."""
        async with self.conn.transaction():
            state = await self._existing(name, expected)

            def check() -> collection_rules.CheckedCollection:
                document = collection_rules.patched(orjson.loads(state.document or "{}"), edit)
                return collection_rules.check(document, self.schema, name)

            collection = await asyncio.to_thread(check)
            return WrittenCollection(await self._update(state, collection.document), collection.warnings)

    async def delete(self, name: str, *, expected: Sequence[str] | None = None) -> None:
        """Delete an empty collection. CollectionNotEmpty while there are datasets."""
        async with self.conn.transaction():
            state = await self._existing(name, expected)
            if not await collections.hold_empty(self.conn, name):
                raise CollectionNotEmpty(f"the collection {name} has datasets; delete them first")
            if (present := (await cascades.open_of(self.conn, [name])).get(name)) is not None:
                await cascades.end(self.conn, present, CascadeState.DONE, self.actor)
            await self._announce(events.COLLECTION_DELETED, name, state, None)

    async def begin_cascade(
        self, name: str, order: CascadeOrder, *, confirmed: int, expected: Sequence[str] | None = None
    ) -> Cascade:
        """Begin to delete a collection with its datasets. From here on nothing is published into it.

        confirmed: how many datasets it has, as the caller was told. PreconditionFailed where that is not so.
        CollectionClosing where it is being deleted already, Conflict where another node has datasets in it.
        """
        async with self.conn.transaction():
            state = await self._existing(name, expected)
            if (present := (await cascades.open_of(self.conn, [name])).get(name)) is not None:
                raise cascade.refusal(name, present)
            await collections.hold_closed(self.conn, name)
            other = await cascades.foreign_origin(self.conn, name, self.origin)
            if other is not None:
                raise Conflict(f"the node {other} has datasets in {name}; they have to be deleted there first")
            datasets = await cascades.count(self.conn, name)
            if datasets != confirmed:
                raise PreconditionFailed(
                    f"the collection {name} has {datasets} datasets, and {confirmed} were confirmed; look at the dry "
                    "run again"
                )
            event_id = uuid7(datetime.now(UTC))
            after = await self._announce(
                events.COLLECTION_CLOSING, name, state, orjson.loads(state.document or "{}"), event_id=event_id,
                more={"reason": order.reason, "datasets": datasets},
            )  # fmt: skip
            failpoint("cascade.begun")
            return await cascades.begin(
                self.conn, event_id, name, order, datasets=datasets, now=after.updated, traceparent=self.traceparent
            )

    async def cancel_cascade(self, name: str) -> Cascade:
        """Let a collection be published into again. NotFound where it is not being deleted.

        What is marked by then stays marked.
        """
        async with self.conn.transaction():
            state = await self._existing(name, None)
            present = (await cascades.open_of(self.conn, [name])).get(name)
            if present is None:
                raise NotFound(f"the collection {name} is not being deleted; there is nothing to cancel")
            await collections.hold_closed(self.conn, name)
            await self._announce(
                events.COLLECTION_REOPENED, name, state, orjson.loads(state.document or "{}"), causation=present
            )
            await cascades.end(self.conn, present, CascadeState.CANCELLED, self.actor)
            after = await cascades.newest(self.conn, name)
            assert after is not None
            return after

    async def end_cascade(self, name: str, cascade_id: UUID) -> bool:
        """Delete a collection whose last dataset is deleted, and the groups of its project; end its cascade.

        Return False, with nothing written, where a dataset is left.
        """
        async with self.conn.transaction():
            state = self._own(await collections.lock(self.conn, name))
            if not await collections.hold_empty(self.conn, name):
                return False
            if (await cascades.open_of(self.conn, [name])).get(name) != cascade_id:
                return True  # it was cancelled, or has ended, a moment ago
            if state is not None and state.document is not None:  # else somebody deleted the empty collection
                await self._announce(events.COLLECTION_DELETED, name, state, None, causation=cascade_id)
            groups = await own_groups.delete_of_project(self.conn, name)
            await audit.append(self.conn, [
                audit.NewRow(self.actor, "delete-group", name, f"group/{group}", None, "done", None, None,
                             rule=f"cascade {cascade_id}")
                for group in groups
            ])  # fmt: skip
            failpoint("cascade.ending")
            await cascades.end(self.conn, cascade_id, CascadeState.DONE, self.actor)
            return True

    async def _existing(self, name: str, expected: Sequence[str] | None) -> CollectionState:
        """Lock and return a collection of this node. CollectionDoesNotExist, or PreconditionFailed in another state."""
        state = self._own(await collections.lock(self.conn, name))
        if state is None or state.document is None:
            raise collection_rules.missing(name)
        if expected is not None and "*" not in expected and state.digest[:16].hex() not in expected:
            raise PreconditionFailed(f"the collection {name} was changed since you read it; read it again")
        return state

    async def _update(self, state: CollectionState, document: Mapping[str, Any]) -> CollectionState:
        if state.digest == documents.digest(document):
            return state
        return await self._announce(events.COLLECTION_UPDATED, state.id, state, document)

    def _own(self, states: Sequence[CollectionState]) -> CollectionState | None:
        """Return this node's state of a collection. ForeignOrigin where another node has it."""
        others = ", ".join(each.origin for each in states if each.origin != self.origin)
        if others:
            raise ForeignOrigin(f"the collection {states[0].id} belongs to the node {others}; change it there")
        return states[0] if states else None

    async def _announce(
        self, event_type: str, name: str, before: CollectionState | None, document: Mapping[str, Any] | None, *,
        event_id: UUID | None = None, causation: UUID | None = None,
        more: Mapping[str, object] = MappingProxyType({}),
    ) -> CollectionState:  # fmt: skip
        """Write a collection's new state with its event and audit row. Without a document it is deleted."""
        epoch, now = await outbox.begin(self.conn)
        event_id, seq = event_id or uuid7(now), (before.seq if before else 0) + 1
        text = orjson.dumps(document).decode() if document is not None else None
        digest = documents.digest(document) if document is not None else b""
        after = CollectionState(name, self.origin, epoch, seq, text, digest, now)
        await collections.store(self.conn, after)
        event = events.collection_event(
            event_type, name, seq, document=text, digest=digest, at=now, event_id=event_id,
            context=events.Context(self.origin, self.actor, None, self.traceparent, causation), more=more,
        )  # fmt: skip
        announcement = outbox.Announcement(event_id, name, name, None, seq, event_type, digest, event)
        await outbox.append(self.conn, [announcement])
        if document is None:
            await grants.close_of_collection(self.conn, name, actor=self.actor, cause=event_id)
        row = audit.NewRow(
            self.actor, event_type.split(".")[-2], name, name, None, "done", before.digest if before else None, digest,
            correlation=structlog.contextvars.get_contextvars().get("request_id"),
            detail=orjson.dumps(dict(more)).decode() if more else None,
        )  # fmt: skip
        await audit.append(self.conn, [row])
        return after
