"""Collections over HTTP: listed page by page, read, and written at once."""

from __future__ import annotations

import re
from email.utils import format_datetime
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, preconditions
from fedstac.api.writing import intake
from fedstac.db import collections
from fedstac.db.collections import CollectionPage, CollectionState
from fedstac.db.connections import Connection
from fedstac.domain import patching
from fedstac.domain.collections import WARNINGS
from fedstac.domain.errors import BadRequest, CollectionDoesNotExist
from fedstac.domain.identifiers import COLLECTION_ID
from fedstac.domain.policy import Action, Resource
from fedstac.publication import CollectionWriter, WrittenCollection

MOST: Final = 10_000  # of one page, and without `limit`; the bytes of a page have a bound too
LARGE: Final = 64 << 10  # bytes of the documents of a page that is put together beside the event loop
PAGE_FACTOR: Final = 6  # bytes that a page takes while it is put together, for each of its documents
LIMIT: Final = re.compile(r"0*([1-9][0-9]{0,8})[0-9]*")  # as many digits as are more than any page has
TOKEN: Final = re.compile(f"(next|prev):({COLLECTION_ID.pattern})")


async def get_collections(call: Call) -> Response:
    """Return the collections by their ids, with links to the next page and the previous one."""
    node = call.node
    limit, after, before = _place(call)
    async with node.pool.acquire() as conn:
        page = await collections.page(conn, after=after, before=before, limit=limit)
    size = sum(len(each.document or "") for each in page.collections)
    if size <= LARGE:
        return Response(_page_text(call, page), media_type=links.JSON)
    async with call.services.memory.place(PAGE_FACTOR * size):
        text = await call.services.threads.run(partial(_page_text, call, page))
        return Response(text, media_type=links.JSON)


def _page_text(call: Call, page: CollectionPage) -> bytes:
    """Return the answer to GET /collections. A large page takes 0.1 s: that is no work for the event loop."""
    return orjson.dumps({
        "collections": [_as_json(call.base_url, state) for state in page.collections],
        "numberMatched": page.total,
        "numberReturned": len(page.collections),
        "links": _links(call, page),
    })  # fmt: skip


class PagePlace(NamedTuple):
    """The length of a page, and the id after or before which it is."""

    limit: int
    after: str | None
    before: str | None


def _place(call: Call) -> PagePlace:
    """Return the place of the page. BadRequest where a parameter is not understood."""
    text, token = call.query_params.get("limit", str(MOST)), call.query_params.get("token")
    limit = LIMIT.fullmatch(text)
    if limit is None:
        raise BadRequest(f"limit={text[:20]!r} is not a whole number from 1 on")
    place = TOKEN.fullmatch(token) if token is not None else None
    if token is not None and place is None:
        raise BadRequest("the paging token is not one of this list; begin again without it")
    is_next = place is not None and place[1] == "next"
    name = place[2] if place else None
    return PagePlace(min(int(limit[1]), MOST), name if is_next else None, None if is_next else name)


def _links(call: Call, page: CollectionPage) -> list[dict[str, Any]]:
    base = call.base_url
    parameters = {name: call.query_params[name] for name in ("limit", "token") if name in call.query_params}
    page_links = [_link("self", base, parameters), {"rel": "root", "type": links.JSON, "href": base + "/"}]
    if page.has_behind:
        page_links.append(_link("next", base, {**parameters, "token": f"next:{page.collections[-1].id}"}))
    if page.has_before:
        page_links.append(_link("prev", base, {**parameters, "token": f"prev:{page.collections[0].id}"}))
    return page_links


def _link(rel: str, base: str, parameters: dict[str, str]) -> dict[str, Any]:
    query = "?" + urlencode(parameters, safe=":") if parameters else ""
    return {"rel": rel, "type": links.JSON, "href": f"{base}/collections{query}"}


async def get_collection(call: Call) -> Response:
    """Return the collection."""
    node = call.node
    async with node.pool.acquire() as conn:
        state = await existing(conn, call.path_params["collection_id"])
    headers = _headers(state) | {"Cache-Control": "no-cache"}
    if preconditions.is_unchanged(call.headers, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    body = orjson.dumps(_as_json(call.base_url, state))
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
    body = _as_json(base, state)
    if result.warnings:
        body[WARNINGS] = [warning.as_json() for warning in result.warnings]
    return Response(orjson.dumps(body), status, headers, media_type=links.JSON)


def _headers(state: CollectionState) -> dict[str, str]:
    tag = f'"{state.digest[:16].hex()}"'
    return {"ETag": tag, "Last-Modified": format_datetime(state.updated, usegmt=True)}


def _as_json(base: str, state: CollectionState) -> dict[str, Any]:
    return links.collection(base, orjson.loads(state.document or "{}"))
