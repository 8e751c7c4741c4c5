"""The read side: landing page, items, search. Documents go out as stored text, spliced, never parsed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from email.utils import format_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import orjson
from stac_fastapi.pgstac.utils import clean_exclude_set, filter_fields
from starlette.responses import Response

from fedstac import __version__
from fedstac.api.call import Call
from fedstac.api.http import links, preconditions
from fedstac.api.search import query
from fedstac.api.writing.collections import existing
from fedstac.bootstrap import Node
from fedstac.db import collections, conditions, search
from fedstac.db.connections import Connection
from fedstac.domain import strict_json
from fedstac.domain.errors import Finding, ItemDoesNotExist

T = TypeVar("T")

LARGE = 8 << 10  # bytes of a search that is read beside the event loop
FEW_ITEMS = 100  # of a page that is assembled in it
PAGE_FACTOR = 3  # bytes that a page takes while it is assembled, for each of its documents
ALWAYS = frozenset(("type", "id", "collection"))  # members that `fields` does not take away


async def landing_page(call: Call) -> Response:
    """Return the root catalogue: conformance classes, and links to everything else."""
    base, node = call.base_url, call.node
    async with node.pool.acquire() as conn:
        titles = await collections.titles(conn)
    body = {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": node.settings.node,
        "title": f"fedstac {node.settings.node}",
        "description": f"Datasets at the node {node.settings.node}, served by fedstac {__version__}",
        "conformsTo": call.services.conformance,
        "links": [
            {"rel": "self", "type": links.JSON, "href": base + "/"},
            {"rel": "root", "type": links.JSON, "href": base + "/"},
            {"rel": "conformance", "type": links.JSON, "href": base + "/conformance"},
            {"rel": "data", "type": links.JSON, "href": base + "/collections"},
            {"rel": "search", "type": links.GEOJSON, "method": "GET", "href": base + "/search"},
            {"rel": "search", "type": links.GEOJSON, "method": "POST", "href": base + "/search"},
            {"rel": "http://www.opengis.net/def/rel/ogc/1.0/queryables", "type": "application/schema+json",
             "href": base + "/queryables"},
            {"rel": "service-desc", "type": links.OPENAPI, "href": base + "/api"},
            {"rel": "service-doc", "type": "text/html", "href": base + "/api.html"},
            *({"rel": "child", "type": links.JSON, "title": title or name, "href": f"{base}/collections/{quote(name)}"}
              for name, title in titles.items()),
        ],
    }  # fmt: skip
    return Response(orjson.dumps(body), media_type=links.JSON)


async def conformance(call: Call) -> Response:
    """List the conformance classes."""
    return Response(orjson.dumps({"conformsTo": call.services.conformance}), media_type=links.JSON)


async def get_queryables(call: Call) -> Response:
    """Return the properties that a filter can name, as a JSON Schema: those of one collection, or of all."""
    base, node = call.base_url, call.node
    names = call.services.queryables
    name = call.path_params.get("collection_id")
    async with node.pool.acquire() as conn:
        if name is not None:
            await existing(conn, name)
        schemas = await names.shared(conn) if name is None else await names.of(conn, name)
    own = base if name is None else f"{base}/collections/{quote(name)}"
    body = orjson.dumps({
        "$id": own + "/queryables",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "title": f"Queryables of {name or 'all collections'}",
        "properties": schemas,
        "additionalProperties": True,
    })  # fmt: skip
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if preconditions.is_unchanged(call.headers, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/schema+json")


async def get_item(call: Call) -> Response:
    """Return a dataset: the stored document, with its state and its links."""
    node = call.node
    collection, item_id = call.path_params["collection_id"], call.path_params["item_id"]
    async with node.pool.acquire() as conn:
        found = await search.item(conn, collection, item_id)
        if found is None:
            await existing(conn, collection)
            raise ItemDoesNotExist(
                f"there is no dataset {item_id[:512]!r} in {collection}; a search lists those there are"
            )
    item, digest = found
    etag = links.entity_tag(item, digest)
    headers = {"ETag": etag, "Last-Modified": format_datetime(item.updated, usegmt=True), "Cache-Control": "no-cache"}
    if preconditions.is_unchanged(call.headers, etag):
        return Response(status_code=304, headers=headers)
    return Response(links.item_text(call.base_url, item), headers=headers, media_type=links.GEOJSON)


async def get_items(call: Call) -> Response:
    """Search the datasets of one collection."""
    name = call.path_params["collection_id"]
    asked = await _from_parameters(call, collection=name)
    return await _searched(call, asked, f"/collections/{quote(name)}/items", collection=name)


async def get_search(call: Call) -> Response:
    """Search datasets, with the conditions in the query."""
    return await _searched(call, await _from_parameters(call), "/search")


async def _from_parameters(call: Call, *, collection: str | None = None) -> query.Query:
    node = call.node

    def read() -> query.Query:
        return query.from_parameters(call.query_params.multi_items(), node.settings, collection=collection)

    return await _beside(call, read, large=len(call.query_string) > LARGE)


async def post_search(call: Call) -> Response:
    """Search datasets, with the conditions in the body."""
    node = call.node
    raw = await call.body.read()

    def read() -> tuple[object, query.Query]:
        body = strict_json.parse(raw)
        return body, query.from_body(body, node.settings)

    body, asked = await _beside(call, read, large=len(raw) > LARGE)
    return await _searched(call, asked, "/search", body)


async def _beside(call: Call, work: Callable[[], T], *, large: bool) -> T:
    """The result of work, which is done beside the event loop if it is large."""
    threads = call.services.threads
    return await threads.run(work) if large else work()


async def _searched(
    call: Call, asked: query.Query, path: str, body: object = None, *, collection: str | None = None
) -> Response:
    """Runs a search and assembles its page."""
    memory = call.services.memory
    large = asked.limit > FEW_ITEMS
    async with memory.place(PAGE_FACTOR * search.PAGE_BYTES) if large else nullcontext():
        found = await _found(call, asked, collection)
        text = await _beside(call, partial(_page_text, call, asked, path, body, found), large=large)
    return Response(text, media_type=links.GEOJSON)


@dataclass(frozen=True, slots=True)
class _Found:
    """A page of a search, and how many items it matches in all."""

    page: search.Page
    matched: int
    exact: bool
    warnings: Sequence[Finding]
    include: frozenset[str]  # members of each item, by their full names; empty: all
    exclude: frozenset[str]


async def _found(call: Call, asked: query.Query, collection: str | None) -> _Found:
    node = call.node
    place = query.place_of(asked.token, asked, node.signing_key) if asked.token else None
    names = call.services.queryables
    async with node.pool.acquire() as conn:
        if collection is not None:
            await existing(conn, collection)
        understood, warnings = await names.understand(conn, asked)
        where, order = conditions.where(understood.conditions), search.order(understood.order)
        page = await search.page(conn, where, order, asked.limit, place.values if place else None)
        matched, exact = (place.matched, place.exact) if place else await _matched(node, conn, asked, where)
    return _Found(page, matched, exact, warnings, understood.include, understood.exclude)


def _page_text(call: Call, asked: query.Query, path: str, body: object, found: _Found) -> str:
    node = call.node
    base = call.base_url
    following = None
    if found.page.last is not None:
        place = query.Place(found.page.last, found.matched, found.exact)
        following = query.token_for(place, asked, node.signing_key)
    features = [links.item_text(base, item) for item in found.page.items]
    if found.include or found.exclude:
        features = [_selected_members(text, found.include, found.exclude) for text in features]
    rest = {
        "links": _page_links(base, path, call, following, body),
        "numberMatched": found.matched,
        "numMatched": found.matched,
        "numberReturned": len(features),
        "numReturned": len(features),
    } | ({} if found.exact else {"fedstac:number_matched_estimated": True})
    if found.warnings:
        rest["fedstac:warnings"] = [finding.as_json() for finding in found.warnings]
    return f'{{"type":"FeatureCollection","features":[{",".join(features)}],{orjson.dumps(rest).decode()[1:]}'


async def _matched(node: Node, conn: Connection, asked: query.Query, where: str) -> tuple[int, bool]:
    """Totals without conditions come from the tally; others are counted up to the bound."""
    if set(asked.conditions) <= {"collections"}:
        totals = await collections.totals(conn)
        named = asked.conditions.get("collections", totals)
        return sum(totals.get(name, 0) for name in set(named)), True
    return await search.matched(conn, where, node.settings.matched_exact_to)


def _selected_members(text: str, include: frozenset[str], exclude: frozenset[str]) -> str:
    """Return an item with the members that `fields` selects. What names the item stays; `include` wins."""
    wanted = include | ALWAYS if include else include
    unwanted = clean_exclude_set(set(exclude), set(include | ALWAYS))
    return orjson.dumps(filter_fields(orjson.loads(text), set(wanted), unwanted)).decode()


def _page_links(base: str, path: str, call: Call, following: str | None, body: object) -> list[dict[str, Any]]:
    own = base + path
    parameters = {name: value for name, value in call.query_params.items() if name != "token"}
    shown = own + ("?" + urlencode(parameters) if parameters else "")
    found: list[dict[str, Any]] = [
        {"rel": "self", "type": links.GEOJSON, "href": shown},
        {"rel": "root", "type": links.JSON, "href": base + "/"},
    ]
    if following and isinstance(body, dict):
        found.append({"rel": "next", "type": links.GEOJSON, "method": "POST", "href": own,
                      "body": {**body, "token": following}})  # fmt: skip
    elif following:
        href = own + "?" + urlencode({**parameters, "token": following})
        found.append({"rel": "next", "type": links.GEOJSON, "method": "GET", "href": href})
    return found
