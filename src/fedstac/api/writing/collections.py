"""Collections over HTTP: read, and written at once. api/search/collections.py lists them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from email.utils import format_datetime
from typing import Any

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, preconditions
from fedstac.api.search import summaries
from fedstac.api.writing import intake
from fedstac.db import collections
from fedstac.db.collections import CollectionState
from fedstac.db.connections import Connection
from fedstac.domain import patching
from fedstac.domain.collections import WARNINGS
from fedstac.domain.errors import CollectionDoesNotExist
from fedstac.domain.policy import Action, Resource
from fedstac.publication import CollectionWriter, WrittenCollection


async def get_collection(call: Call) -> Response:
    """Return the collection."""
    node = call.node
    async with node.pool.acquire() as conn:
        state = await existing(conn, call.path_params["collection_id"])
        values = (await summaries.of_collections(call.services, conn)).get(state.id, {})
    headers = _headers(state, values) | {"Cache-Control": "no-cache"}
    if preconditions.is_unchanged(call.headers, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    body = orjson.dumps(as_json(call.base_url, state, values))
    return Response(body, headers=headers, media_type=links.JSON)


async def existing(conn: Connection, name: str) -> CollectionState:
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
    """Delete an empty collection."""
    name, expected = call.path_params["collection_id"], preconditions.expected(call.headers)
    async with call.node.pool.acquire() as conn:
        await _writer(call, conn).delete(name, expected=expected)
    call.node.committed.wake()
    return Response(status_code=204)


def _writer(call: Call, conn: Connection) -> CollectionWriter:
    node = call.node
    return CollectionWriter(
        conn, node.settings.node, call.caller.name, node.collection_schema, traceparent=call.traceparent
    )


def _answer(call: Call, result: WrittenCollection, status: int) -> Response:
    """Return the answer to a write: the collection as it is served, with the warnings about what was sent."""
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
