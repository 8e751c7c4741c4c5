"""The read side: landing page, items, search. Documents go out as stored text, spliced, never parsed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from email.utils import format_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import orjson
from stac_fastapi.pgstac.utils import clean_exclude_set, filter_fields
from starlette.responses import Response

from fedstac import __version__
from fedstac.api.call import Call, Services
from fedstac.api.http import links, preconditions
from fedstac.api.http.files import FileAnswer
from fedstac.api.search import files_of_retracted, parquet
from fedstac.api.search import query as queries
from fedstac.api.search.query import Query
from fedstac.api.writing.collections import existing
from fedstac.bootstrap import Node
from fedstac.db import collections, conditions, search
from fedstac.db.connections import Connection
from fedstac.domain import strict_json
from fedstac.domain.errors import Finding, ItemDoesNotExist
from fedstac.domain.visibility import Visibility

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
            {"rel": "children", "type": links.JSON, "href": base + "/children"},
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
        row = await search.item(conn, collection, item_id)
        if row is None:
            await existing(conn, collection)
            raise ItemDoesNotExist(
                f"there is no dataset {item_id[:512]!r} in {collection}; a search lists those there are"
            )
    item, digest = row
    asks_for_files = queries.access_of(call.query_params.get("access") or None)
    shows_files = asks_for_files and (collection, item_id) in await _with_files(call, (item,))
    etag = links.entity_tag(item, digest, shows_files=shows_files)
    headers = {"ETag": etag, "Last-Modified": format_datetime(item.updated, usegmt=True), "Cache-Control": "no-cache"}
    if asks_for_files:
        headers |= files_of_retracted.PRIVATE
    if preconditions.is_unchanged(call.headers, etag):
        return Response(status_code=304, headers=headers)
    return Response(
        links.item_text(call.base_url, item, shows_files=shows_files), headers=headers, media_type=links.GEOJSON
    )


async def _with_files(call: Call, items: Sequence[search.ServedItem]) -> frozenset[tuple[str, str]]:
    """Return the retracted datasets whose files the caller may see. Unauthenticated without a token."""
    return await files_of_retracted.shown_to(call, await files_of_retracted.caller_of(call), items)


async def get_items(call: Call) -> Response:
    """Search the datasets of one collection."""
    name = call.path_params["collection_id"]
    query = await _from_parameters(call, collection=name)
    return await _answer(call, query, PageAddress.of(call, f"/collections/{quote(name)}/items"), collection=name)


async def get_search(call: Call) -> Response:
    """Search datasets, with the conditions in the query."""
    return await _answer(call, await _from_parameters(call), PageAddress.of(call, "/search"))


async def post_search(call: Call) -> Response:
    """Search datasets, with the conditions in the body."""
    settings, raw = call.node.settings, await call.body.read()

    def read() -> tuple[object, Query]:
        body = strict_json.parse(raw)
        return body, queries.from_body(body, settings)

    body, query = await _beside(call.services, read, is_large=len(raw) > LARGE)
    return await _answer(call, query, PageAddress.of(call, "/search", body))


async def _from_parameters(call: Call, *, collection: str | None = None) -> Query:
    settings = call.node.settings
    parameters = [pair for pair in call.query_params.multi_items() if pair[0] != parquet.PARAMETER]

    def read() -> Query:
        return queries.from_parameters(parameters, settings, collection=collection)

    return await _beside(call.services, read, is_large=len(call.query_string) > LARGE)


async def _beside(services: Services, work: Callable[[], T], *, is_large: bool) -> T:
    """Return the result of work, which is done beside the event loop if it is large."""
    return await services.threads.run(work) if is_large else work()


@dataclass(frozen=True, slots=True)
class PageAddress:
    """Where a page is: for its links to itself and to the next page."""

    base: str
    path: str
    parameters: Mapping[str, str]  # without the paging token
    body: object = None  # of a POST

    @classmethod
    def of(cls, call: Call, path: str, body: object = None) -> PageAddress:
        """Return the address of a call."""
        parameters = {name: value for name, value in call.query_params.items() if name != "token"}
        return cls(call.base_url, path, parameters, body)

    def links(self, token: str | None) -> list[dict[str, Any]]:
        """Return the links of the page; `token` leads to the next one."""
        own = self.base + self.path
        page_links: list[dict[str, Any]] = [
            {"rel": "self", "type": links.GEOJSON,
             "href": own + ("?" + urlencode(self.parameters) if self.parameters else "")},
            {"rel": "root", "type": links.JSON, "href": self.base + "/"},
        ]  # fmt: skip
        if token and isinstance(self.body, dict):
            page_links.append({"rel": "next", "type": links.GEOJSON, "method": "POST", "href": own,
                               "body": {**self.body, "token": token}})  # fmt: skip
        elif token:
            href = own + "?" + urlencode({**self.parameters, "token": token})
            page_links.append({"rel": "next", "type": links.GEOJSON, "method": "GET", "href": href})
        return page_links


async def _answer(call: Call, query: Query, address: PageAddress, *, collection: str | None = None) -> Response:
    """Run a search and assemble its page."""
    if parquet.is_asked_for(call):
        return await _answer_as_file(call, query, address, collection=collection)
    services, is_large = call.services, query.limit > FEW_ITEMS
    async with services.memory.place(PAGE_FACTOR * search.PAGE_BYTES) if is_large else nullcontext():
        page = await find(services, query, collection=collection)
        with_files = await _with_files(call, page.items) if query.shows_files else files_of_retracted.NOBODYS
        text = await _beside(services, partial(_page_text, page, address, with_files), is_large=is_large)
    headers = files_of_retracted.PRIVATE if query.shows_files else None
    return Response(text, headers=headers, media_type=links.GEOJSON)


async def _answer_as_file(call: Call, query: Query, address: PageAddress, *, collection: str | None = None) -> Response:
    """Run a search, and give what it finds as GeoParquet: up to the limit, or MOST_BYTES of documents."""
    services, count, token = call.services, 0, query.token
    async with services.memory.place(PAGE_FACTOR * search.PAGE_BYTES):
        with parquet.item_file() as file:
            while True:
                limit = min(query.limit - count, parquet.AT_ONCE)
                page = await find(services, replace(query, token=token, limit=limit), collection=collection)
                with_files = await _with_files(call, page.items) if query.shows_files else files_of_retracted.NOBODYS

                def add(page: SearchPage = page, with_files: Container[tuple[str, str]] = with_files) -> None:
                    file.add(_item_texts(page, address.base, with_files))

                await services.threads.run(add)
                count, token = count + len(page.items), page.next_token
                if token is None or count >= query.limit or file.size >= parquet.MOST_BYTES:
                    break
            content = await services.threads.run(file.convert)
    headers = {"OGC-NumberMatched": str(page.matched), "OGC-NumberReturned": str(count)}
    if token is not None and address.body is None:
        headers["Link"] = f'<{address.links(token)[-1]["href"]}>; rel="next"; type="{parquet.MEDIA_TYPE}"'
    elif token is not None:
        headers["X-Next-Token"] = token
    headers |= files_of_retracted.PRIVATE if query.shows_files else {}
    patience = call.node.settings.read_timeout_seconds
    return FileAnswer(content, services.open_files, media_type=parquet.MEDIA_TYPE, patience=patience, headers=headers)


@dataclass(frozen=True, slots=True)
class SearchPage:
    """A page of a search. `next_token` leads to the next one."""

    items: Sequence[search.ServedItem]
    matched: int  # numberMatched: how many items the search has in all
    is_exact: bool  # else an estimate
    warnings: Sequence[Finding]
    include: frozenset[str]  # members of each item, by their full names; empty: all
    exclude: frozenset[str]
    next_token: str | None


async def find(services: Services, query: Query, *, collection: str | None = None) -> SearchPage:
    """Return a page of what a search finds. CollectionDoesNotExist where `collection` is given and not there."""
    node = services.node
    place = queries.place_of(query.token, query, node.signing_key) if query.token else None
    async with node.pool.acquire() as conn:
        if collection is not None:
            await existing(conn, collection)
        full, warnings = await services.queryables.understand(conn, query)
        where, order = conditions.where(full.conditions), search.order(full.order)
        page = await search.page(conn, where, order, query.limit, place.values if place else None)
        matched, is_exact = (place.matched, place.exact) if place else await _count_matched(node, conn, query, where)
    next_token = None
    if page.last is not None:
        next_token = queries.token_for(queries.Place(page.last, matched, is_exact), query, node.signing_key)
    return SearchPage(page.items, matched, is_exact, warnings, full.include, full.exclude, next_token)


async def _count_matched(node: Node, conn: Connection, query: Query, where: str) -> tuple[int, bool]:
    """Count the items of a search: without conditions by the tally, else up to the bound; return if it is exact."""
    if set(query.conditions) <= {"collections", "retracted"}:
        totals = await collections.totals(conn, query.conditions.get("retracted", Visibility.INCLUDE))
        return sum(totals.get(name, 0) for name in set(query.conditions.get("collections", totals))), True
    return await search.matched(conn, where, node.settings.matched_exact_to)


def _page_text(page: SearchPage, address: PageAddress, with_files: Container[tuple[str, str]]) -> str:
    features = _item_texts(page, address.base, with_files)
    rest = {
        "links": address.links(page.next_token),
        "numberMatched": page.matched,
        "numMatched": page.matched,
        "numberReturned": len(features),
        "numReturned": len(features),
    } | ({} if page.is_exact else {"fedstac:number_matched_estimated": True})
    if page.warnings:
        rest["fedstac:warnings"] = [finding.as_json() for finding in page.warnings]
    return f'{{"type":"FeatureCollection","features":[{",".join(features)}],{orjson.dumps(rest).decode()[1:]}'


def _item_texts(page: SearchPage, base: str, with_files: Container[tuple[str, str]]) -> list[str]:
    """Return the items of a page, each as JSON text, with the members that `fields` selects."""
    texts = [links.item_text(base, item, shows_files=(item.collection, item.id) in with_files) for item in page.items]
    if page.include or page.exclude:
        return [_selected_members(text, page.include, page.exclude) for text in texts]
    return texts


def _selected_members(text: str, include: frozenset[str], exclude: frozenset[str]) -> str:
    return orjson.dumps(selected_members(orjson.loads(text), include, exclude, ALWAYS)).decode()


def selected_members(
    document: dict[str, Any], include: frozenset[str], exclude: frozenset[str], always: frozenset[str]
) -> dict[str, Any]:
    """Return a document with the members that `fields` selects. Those that name it always stay; `include` wins."""
    members = include | always if include else include
    others = clean_exclude_set(set(exclude), set(include | always))
    return dict(filter_fields(document, set(members), others))
