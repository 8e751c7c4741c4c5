"""Collections over HTTP: listed page by page, read, and written at once."""

from __future__ import annotations

import re
from email.utils import format_datetime
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.responses import Response

from fedstac.api.http import links, preconditions
from fedstac.api.people import identity
from fedstac.api.writing import intake
from fedstac.bootstrap import Node
from fedstac.db import collections
from fedstac.db.collections import CollectionPage, Stored
from fedstac.db.connections import Connection
from fedstac.domain import patching
from fedstac.domain.collections import WARNINGS
from fedstac.domain.errors import BadRequest, CollectionDoesNotExist
from fedstac.domain.identifiers import COLLECTION_ID
from fedstac.domain.policy import Action, Principal, Touched
from fedstac.publication import CollectionWriter, WrittenCollection

MOST: Final = 10_000  # of one page, and without `limit`; the bytes of a page have a bound too
LIMIT: Final = re.compile(r"0*([1-9][0-9]{0,8})[0-9]*")  # as many digits as are more than any page has
TOKEN: Final = re.compile(f"(next|prev):({COLLECTION_ID.pattern})")


async def get_collections(request: Request) -> Response:
    """GET /collections?limit=&token=: by their ids, with links to the next page and the previous one."""
    node: Node = request.app.state.node
    limit, after, before = _place(request)
    async with node.pool.acquire() as conn:
        page = await collections.page(conn, after=after, before=before, limit=limit)
    base = request.app.state.base_url
    body = {
        "collections": [_served(base, stored) for stored in page.collections],
        "numberMatched": page.total,
        "numberReturned": len(page.collections),
        "links": _links(request, page),
    }
    return Response(orjson.dumps(body), media_type=links.JSON)


def _place(request: Request) -> tuple[int, str | None, str | None]:
    """The length of the page, and the id after or before which it is. BadRequest where a parameter is of no use."""
    asked, token = request.query_params.get("limit", str(MOST)), request.query_params.get("token")
    limit = LIMIT.fullmatch(asked)
    if limit is None:
        raise BadRequest(f"limit={asked[:20]!r} is not a whole number from 1 on")
    place = TOKEN.fullmatch(token) if token is not None else None
    if token is not None and place is None:
        raise BadRequest("the paging token is not one of this list; begin again without it")
    is_next = place is not None and place[1] == "next"
    name = place[2] if place else None
    return min(int(limit[1]), MOST), name if is_next else None, None if is_next else name


def _links(request: Request, page: CollectionPage) -> list[dict[str, Any]]:
    base = request.app.state.base_url
    asked = {name: request.query_params[name] for name in ("limit", "token") if name in request.query_params}
    page_links = [_link("self", base, asked), {"rel": "root", "type": links.JSON, "href": base + "/"}]
    if page.has_behind:
        page_links.append(_link("next", base, {**asked, "token": f"next:{page.collections[-1].id}"}))
    if page.has_before:
        page_links.append(_link("prev", base, {**asked, "token": f"prev:{page.collections[0].id}"}))
    return page_links


def _link(rel: str, base: str, parameters: dict[str, str]) -> dict[str, Any]:
    query = "?" + urlencode(parameters, safe=":") if parameters else ""
    return {"rel": rel, "type": links.JSON, "href": f"{base}/collections{query}"}


async def get_collection(request: Request) -> Response:
    """GET /collections/{collection_id}: with ETag, or 304."""
    node: Node = request.app.state.node
    async with node.pool.acquire() as conn:
        stored = await existing(conn, request.path_params["collection_id"])
    headers = _headers(stored) | {"Cache-Control": "no-cache"}
    if preconditions.is_unchanged(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    body = orjson.dumps(_served(request.app.state.base_url, stored))
    return Response(body, headers=headers, media_type=links.JSON)


async def existing(conn: Connection, name: str) -> Stored:
    """The collection as it is shown. CollectionDoesNotExist without one."""
    stored = await collections.get(conn, name)
    if stored is None:
        raise CollectionDoesNotExist(
            f"there is no collection {name[:128]!r} here; GET /collections lists those there are"
        )
    return stored


async def post_collection(request: Request) -> Response:
    """POST /collections: a new collection."""
    node: Node = request.app.state.node
    principal = await identity.principal(request)
    document = await intake.json_of(request)
    _permit(node, principal, str(document.get("id")) if isinstance(document, dict) else "")
    async with node.pool.acquire() as conn:
        written = await _writer(node, conn, principal).create(document)
    return _answer(request, written, 201)


async def put_collection(request: Request) -> Response:
    """PUT /collections/{collection_id}: other metadata for a collection that is there."""
    node, principal, name = await _permitted(request)
    document = intake.addressed(await intake.json_of(request), id=name)
    async with node.pool.acquire() as conn:
        written = await _writer(node, conn, principal).replace(name, document, expected=preconditions.expected(request))
    return _answer(request, written, 200)


async def patch_collection(request: Request) -> Response:
    """PATCH /collections/{collection_id}: a JSON Patch, or an object to merge."""
    node, principal, name = await _permitted(request)
    edit = patching.read(await intake.json_of(request), request.headers.get("content-type", ""))
    async with node.pool.acquire() as conn:
        written = await _writer(node, conn, principal).patch(name, edit, expected=preconditions.expected(request))
    return _answer(request, written, 200)


async def delete_collection(request: Request) -> Response:
    """DELETE /collections/{collection_id}: an empty one."""
    node, principal, name = await _permitted(request)
    async with node.pool.acquire() as conn:
        await _writer(node, conn, principal).delete(name, expected=preconditions.expected(request))
    node.committed.wake()
    return Response(status_code=204)


async def _permitted(request: Request) -> tuple[Node, Principal, str]:
    """The node, the caller, and the name of the collection, which the caller may manage."""
    node: Node = request.app.state.node
    principal, name = await identity.principal(request), request.path_params["collection_id"]
    _permit(node, principal, name)
    return node, principal, name


def _writer(node: Node, conn: Connection, principal: Principal) -> CollectionWriter:
    return CollectionWriter(conn, node.settings.node, principal.name, node.collection_schema)


def _permit(node: Node, principal: Principal, collection: str) -> None:
    """MissingPermission for whoever may not manage the collection."""
    touched = Touched(f"the collection {collection[:128]}", collection, None)
    node.policy.require(principal, Action.COLLECTIONS, touched)


def _answer(request: Request, written: WrittenCollection, status: int) -> Response:
    """Return the answer to a write: the collection as it is served, with the warnings about what was sent."""
    request.app.state.node.committed.wake()
    base, stored = request.app.state.base_url, written.stored
    headers = _headers(stored) | {"Location": f"{base}/collections/{stored.id}"}
    body = _served(base, stored)
    if written.warnings:
        body[WARNINGS] = [warning.as_json() for warning in written.warnings]
    return Response(orjson.dumps(body), status, headers, media_type=links.JSON)


def _headers(stored: Stored) -> dict[str, str]:
    tag = f'"{stored.digest[:16].hex()}"'
    return {"ETag": tag, "Last-Modified": format_datetime(stored.updated, usegmt=True)}


def _served(base: str, stored: Stored) -> dict[str, Any]:
    return links.collection(base, orjson.loads(stored.document or "{}"))
