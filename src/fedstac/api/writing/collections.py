"""Collections over HTTP: read, and written at once. api/search/collections.py lists them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from email.utils import format_datetime
from typing import Any, Final

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store, numbers, preconditions
from fedstac.api.people import identity
from fedstac.api.search import summaries
from fedstac.api.writing import intake
from fedstac.api.writing.options import is_dry_run, is_wanted
from fedstac.collection_writing import CollectionWriter, WrittenCollection
from fedstac.db import cascades, collections
from fedstac.db.cascades import CascadeOrder
from fedstac.db.collections import CollectionState
from fedstac.db.connections import Connection, Reader
from fedstac.domain import cascade, patching
from fedstac.domain.collections import WARNINGS
from fedstac.domain.errors import BadRequest, CollectionDoesNotExist, NotFound
from fedstac.domain.groups import ANY
from fedstac.domain.policy import Action, Resource

LARGE: Final = 64 << 10  # bytes of documents that are put together beside the event loop


async def get_collection(call: Call) -> Response:
    """Return the collection."""
    node = call.node
    async with node.pool.acquire() as conn:
        state = await existing(conn, call.path_params["collection_id"])
    values = (await summaries.of_collections(call.services)).get(state.id, {})  # maybe of all rows: it takes seconds
    headers = _headers(state, values) | {"Cache-Control": "no-cache"}
    if preconditions.is_unchanged(call.headers, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    is_large = len(state.document or "") + summaries.size_of(values) > LARGE
    body = await call.services.threads.run_if(is_large, lambda: orjson.dumps(as_json(call.base_url, state, values)))
    return Response(body, headers=headers, media_type=links.JSON)


async def existing(conn: Reader, name: str) -> CollectionState:
    """Return the collection as it is shown. CollectionDoesNotExist without one."""
    state = await collections.get(conn, name)
    if state is None:
        raise CollectionDoesNotExist(
            f"there is no collection {name[:128]!r} here; GET /collections lists those there are"
        )
    return state


async def post_collection(call: Call) -> Response:
    """Create a collection."""
    node = call.node
    document = await intake.json_of(call)
    name = str(document.get("id")) if isinstance(document, dict) else ""
    node.policy.require(call.caller, Action.COLLECTIONS, Resource.of_collection(name))
    async with node.pool.acquire() as conn:
        result = await _writer(call, conn).create(document)
    return _answer(call, result, 201)


async def put_collection(call: Call) -> Response:
    """Replace the metadata of a collection."""
    node, name = call.node, call.path_params["collection_id"]
    document = intake.addressed(await intake.json_of(call), id=name)
    async with node.pool.acquire() as conn:
        result = await _writer(call, conn).replace(name, document, expected=preconditions.expected(call.headers))
    return _answer(call, result, 200)


async def patch_collection(call: Call) -> Response:
    """Change a collection by a JSON Patch, or by an object to merge."""
    node, name = call.node, call.path_params["collection_id"]
    edit = patching.read(await intake.json_of(call), call.headers.get("content-type", ""))
    async with node.pool.acquire() as conn:
        result = await _writer(call, conn).patch(name, edit, expected=preconditions.expected(call.headers))
    return _answer(call, result, 200)


async def delete_collection(call: Call) -> Response:
    """Delete an empty collection; with `cascade=true`, one with its datasets: all of them are marked for deletion.

    A cascade with `dry_run=true` tells what is affected, and the number that confirms it. The collection goes when the
    last dataset is deleted, by the rules of deletion.
    """
    name, expected = call.path_params["collection_id"], preconditions.expected(call.headers)
    if is_wanted(call, "cascade"):
        return await _cascade(call, name, expected)
    if is_dry_run(call):
        raise BadRequest("dry_run is for a deletion with cascade=true; an empty collection has nothing to tell of")
    async with call.node.pool.acquire() as conn:
        await _writer(call, conn).delete(name, expected=expected)
    call.services.collections.forget(name)
    call.node.committed.wake()
    return Response(status_code=204)


async def _cascade(call: Call, name: str, expected: Sequence[str] | None) -> Response:
    """Tell what the deletion of a collection with its datasets affects, or begin it."""
    node, whole = call.node, Resource(f"all datasets of {name[:128]}", name, ANY)
    for action in (Action.DELETE, Action.MARK):
        node.policy.require(call.caller, action, whole)
    if is_dry_run(call):
        async with node.pool.acquire() as conn:
            await existing(conn, name)
            effects = await cascades.effects(conn, name)
        return no_store.answer(effects.as_json())
    if "confirm" not in call.query_params:
        raise BadRequest("confirm is missing: the number of datasets, as a request with dry_run=true gives it")
    confirmed = numbers.whole(call.query_params, "confirm", default=0, most=(1 << 62) - 1)
    reason = call.query_params.get("reason", "").strip()
    if not 0 < len(reason) <= cascade.LONGEST_REASON:
        raise BadRequest(f"reason says why the collection is deleted, in 1 to {cascade.LONGEST_REASON} characters")
    order = CascadeOrder(call.caller.name, sorted(call.caller.roles), identity.packed(call.caller), reason)
    async with node.pool.acquire() as conn:
        new_cascade = await _writer(call, conn).begin_cascade(name, order, confirmed=confirmed, expected=expected)
        counts = await cascades.counts(conn, name)
    call.services.collections.forget(name)
    node.committed.wake()
    place = f"{call.base_url}/collections/{name}/cascade"
    return no_store.answer(new_cascade.as_json(counts), 202, Location=place)


async def get_cascade(call: Call) -> Response:
    """Tell how far the last deletion of a collection with its datasets is."""
    name = call.path_params["collection_id"]
    async with call.node.pool.acquire() as conn:
        newest = await cascades.newest(conn, name)
        counts = await cascades.counts(conn, name)
    if newest is None:
        raise NotFound(f"the collection {name[:128]!r} was never deleted with its datasets")
    return no_store.answer(newest.as_json(counts))


async def delete_cascade(call: Call) -> Response:
    """Cancel the deletion of a collection with its datasets. What is marked by then stays marked."""
    name = call.path_params["collection_id"]
    async with call.node.pool.acquire() as conn:
        cancelled = await _writer(call, conn).cancel_cascade(name)
        counts = await cascades.counts(conn, name)
    call.services.collections.forget(name)
    return no_store.answer(cancelled.as_json(counts))


def _writer(call: Call, conn: Connection) -> CollectionWriter:
    node = call.node
    return CollectionWriter(
        conn, node.settings.node, call.caller.name, node.collection_schema, traceparent=call.traceparent
    )


def _answer(call: Call, result: WrittenCollection, status: int) -> Response:
    """Return the answer to a write: the collection as it is served, with the warnings about what was sent.

    It waits for nothing: what is written must not be answered with an error.
    """
    call.node.committed.wake()
    base, state = call.base_url, result.state
    headers = _headers(state) | {"Location": f"{base}/collections/{state.id}"}
    body = as_json(base, state)
    if result.warnings:
        body[WARNINGS] = [warning.as_json() for warning in result.warnings]
    return Response(orjson.dumps(body), status, headers, media_type=links.JSON)


def _headers(state: CollectionState, values: Mapping[str, Any] | None = None) -> dict[str, str]:
    beside = f"-{hashlib.sha256(orjson.dumps(values)).hexdigest()[:16]}" if values else ""
    tag = f'"{state.digest[:16].hex()}{beside}"'
    return {"ETag": tag, "Last-Modified": format_datetime(state.updated, usegmt=True)}


def as_json(base: str, state: CollectionState, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a collection as it is served. `values` that its datasets have by property are summaries of it."""
    document = orjson.loads(state.document or "{}")
    if values:
        document["summaries"] = {**document.get("summaries", {}), **values}
    return links.collection(base, document)
