"""The read side: landing page, items, search. Documents go out as stored text, spliced, never parsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from email.utils import format_datetime
from functools import partial
from typing import TypeVar
from urllib.parse import quote

import orjson
from starlette.responses import Response

from fedstac import __version__
from fedstac.api.call import Call, Services
from fedstac.api.deletions import tombstones as gone
from fedstac.api.http import links, preconditions
from fedstac.api.http.files import FileAnswer
from fedstac.api.search import parquet, views
from fedstac.api.search import query as queries
from fedstac.api.search.pages import (
    FACTOR,
    FEW_ITEMS,
    READ_BYTES,
    ROW_BYTES,
    PageAddress,
    PageWriter,
    SearchPage,
    item_texts,
)
from fedstac.api.search.parquet import ItemFile
from fedstac.api.search.query import Query
from fedstac.api.writing.collections import existing
from fedstac.bootstrap import Node
from fedstac.columns.answer_cache import AnswerCache, CachedAnswer
from fedstac.columns.memory import FacetColumns, Found, PageQuestion
from fedstac.db import collections, conditions, search, tombstones
from fedstac.db.connections import Connection, LazyConnection, Reader
from fedstac.db.search import Anchor
from fedstac.db.tombstones import Tombstone
from fedstac.domain import strict_json
from fedstac.domain.errors import BadRequest, ItemDeleted, ItemDoesNotExist, Unauthenticated, Unavailable
from fedstac.domain.model import State, rfc3339
from fedstac.domain.policy import Level, Principal
from fedstac.domain.visibility import Visibility

T = TypeVar("T")

LARGE = 8 << 10  # bytes of a search that is read beside the event loop
BESIDE = 3_000  # bytes that a kept answer takes beside its body


async def landing_page(call: Call) -> Response:
    """Return the root catalogue: conformance classes, and links to everything else."""
    base, node = call.base_url, call.node
    async with node.search_pool.acquire() as conn:
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
            *links.of_aggregation(base),
            {"rel": "service-desc", "type": links.OPENAPI, "href": base + "/api"},
            {"rel": "service-doc", "type": "text/html", "href": base + "/api.html"},
            *links.of_channels(base, call.services.hubs),
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
    async with node.search_pool.acquire() as conn:
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
    return preconditions.serve(call.headers, body, "application/schema+json", {"Cache-Control": "no-cache"})


async def get_item(call: Call) -> Response:
    """Return a dataset: the stored document, with its state and its links.

    One that is marked for deletion is there with `access=full`, for those who may mark, unmark or delete it.
    """
    node = call.node
    collection, item_id = call.path_params["collection_id"], call.path_params["item_id"]
    asks_for_tombstone = queries.deleted_of(call.query_params.get("deleted") or None)
    asks_for_all = _asks_for_files(call)
    with_private = asks_for_all and await views.may_read_some_private(call, collection)
    with_marked = asks_for_all and await views.may_read_some_marked(call, collection)
    answers = _answers_at(call)
    entry = answers.find((collection, item_id)) if answers is not None else None
    async with node.search_pool.acquire() as conn:
        read = partial(search.item_row, conn, collection, item_id, with_private=with_private, with_marked=with_marked)
        row = await read(before=entry.row if entry else None)
        if entry is not None and row is not None and row["document"] is None:
            if entry.row == search.without_document(row):
                return _kept_answer(call, entry.answer)
            row = await read()  # other rows say another thing of it
        is_hidden = row is not None and (row["access"] == Level.PRIVATE or row["state"] == State.MARKED)
        if row is None or is_hidden:
            await existing(conn, collection)
            tombstone = await tombstones.read(conn, collection, item_id)  # for all alike: the time tells nothing
    if row is None:
        return await _answer_of_missing(call, tombstone, is_asked_for=asks_for_tombstone)
    item, digest = search.item_of(row)
    if is_hidden and not await views.may_read_hidden(call, item):
        return await _answer_of_missing(call, tombstone, is_asked_for=asks_for_tombstone)
    asks_for_files = queries.access_of(call.query_params.get("access") or None)
    shows_files = asks_for_files and await _shows_files(call, item)
    etag = links.entity_tag(item, digest, shows_files=shows_files)
    headers = {"ETag": etag, "Last-Modified": format_datetime(item.updated, usegmt=True), "Cache-Control": "no-cache"}
    if asks_for_files:
        headers |= views.PRIVATE
    if preconditions.is_unchanged(call.headers, etag):  # not by date: other versions change what is shown beside it
        return Response(status_code=304, headers=headers)
    text = links.item_text(call.base_url, item, shows_files=shows_files).encode()
    answer = ItemAnswer(Response(text, headers=headers, media_type=links.GEOJSON), headers)
    if answers is not None:
        entry = CachedAnswer(answer, search.without_document(row), row["n"], len(text) + BESIDE)
        answers.keep((collection, item_id), entry)
    return answer.response


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """The answer to GET of a dataset, and the headers that it shares with a 304."""

    response: Response
    headers: Mapping[str, str]


def _answers_at(call: Call) -> AnswerCache[ItemAnswer] | None:
    """Return the answers that are kept, those that everybody gets; None where another one is asked for."""
    columns = call.services.columns
    return columns.answers if columns is not None and columns.is_ready and not call.query_string else None


def _kept_answer(call: Call, answer: ItemAnswer) -> Response:
    if preconditions.is_unchanged(call.headers, answer.headers["ETag"]):
        return Response(status_code=304, headers=answer.headers)
    return answer.response


def _asks_for_files(call: Call) -> bool:
    """Tell whether `access=full` is asked for. An access that there is not counts as none: nothing is refused here."""
    with suppress(BadRequest):
        return queries.access_of(call.query_params.get("access") or None)
    return False


async def _answer_of_missing(call: Call, tombstone: Tombstone | None, *, is_asked_for: bool) -> Response:
    """Answer for a dataset that is not here: with its tombstone, for those who ask for it and may delete.

    For others ItemDeleted or ItemDoesNotExist. Unauthenticated where a tombstone is asked for without a token.
    """
    collection, item_id = call.path_params["collection_id"], call.path_params["item_id"]
    if is_asked_for:
        caller = await call.find_caller()
        if caller is None:
            raise Unauthenticated("deleted=include shows what is deleted; send a token, or leave it out")
        if tombstone is not None and gone.may_see(call, caller, tombstone):
            return gone.answer(tombstone)
    if tombstone is not None and tombstone.access != Level.PRIVATE:
        at = rfc3339(tombstone.deleted_at)
        raise ItemDeleted(f"{item_id} was deleted at {at}; its id is never used again")
    raise ItemDoesNotExist(f"there is no dataset {item_id[:512]!r} in {collection}; a search lists those there are")


async def _shows_files(call: Call, item: search.ServedItem) -> bool:
    """Tell whether the caller sees the files of a dataset that not everybody sees. Unauthenticated without a token."""
    uncovered = item.without_mark
    if uncovered is not item and not uncovered.has_hidden_files:
        return True  # the mark alone hides it, and the caller may see that
    return (item.collection, item.id) in await _with_files(call, (uncovered,))


async def _with_files(call: Call, items: Sequence[search.ServedItem]) -> frozenset[tuple[str, str]]:
    """Return the datasets with hidden files whose files the caller may see. Unauthenticated without a token."""
    return await views.shown_to(call, await views.caller_of(call), items)


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

    body, query = await call.services.threads.run_if(len(raw) > LARGE, read)
    return await _answer(call, query, PageAddress.of(call, "/search", body))


async def _from_parameters(call: Call, *, collection: str | None = None) -> Query:
    settings = call.node.settings
    parameters = [pair for pair in call.query_params.multi_items() if pair[0] != parquet.PARAMETER]

    def read() -> Query:
        return queries.from_parameters(parameters, settings, collection=collection)

    return await call.services.threads.run_if(len(call.query_string) > LARGE, read)


async def _answer(call: Call, query: Query, address: PageAddress, *, collection: str | None = None) -> Response:
    """Run a search and answer with its page. Items of a large one are found first, and read while it is sent."""
    caller = await views.caller_of(call) if query.shows_files else None
    if parquet.is_asked_for(call):
        return await _answer_as_file(call, query, address, caller, collection=collection)
    services, is_large = call.services, query.limit > FEW_ITEMS
    size = ROW_BYTES * query.limit + FACTOR * READ_BYTES
    async with services.memory.place(size) if is_large else nullcontext():
        page = await find(services, query, collection=collection)
        return await PageWriter(call, page, address, caller).answer()


async def _answer_as_file(
    call: Call, query: Query, address: PageAddress, caller: Principal | None, *, collection: str | None = None
) -> Response:
    """Run a search, and give what it finds as GeoParquet: up to the limit, or MOST_BYTES of documents."""
    services, count, token = call.services, 0, query.token
    async with services.memory.place(FACTOR * search.PAGE_BYTES):
        with parquet.item_file() as file:
            while True:
                limit = min(query.limit - count, parquet.AT_ONCE)
                page = await find(services, replace(query, token=token, limit=limit), collection=collection, whole=True)
                items, with_files = page.items.items, views.NOBODYS
                if caller is not None:
                    with_files = await views.shown_to(call, caller, items)
                texts = partial(item_texts, page, address.base, items, with_files)
                await services.threads.run(partial(_add, file, texts))
                count, token = count + len(items), page.token_for(page.items.after) if page.items.after else None
                if token is None or count >= query.limit or file.size >= parquet.MOST_BYTES:
                    break
            content = await services.threads.run(file.convert)
    headers = {"OGC-NumberMatched": str(page.matched), "OGC-NumberReturned": str(count)}
    if token is not None and address.body is None:
        headers["Link"] = f'<{address.links(next=token)[-1]["href"]}>; rel="next"; type="{parquet.MEDIA_TYPE}"'
    elif token is not None:
        headers["X-Next-Token"] = token
    headers |= parquet.warnings_header(page.warnings)
    headers |= views.PRIVATE_PAGES if caller else views.OF_PAGES
    return FileAnswer(content, services.open_files, media_type=parquet.MEDIA_TYPE, headers=headers)


def _add(file: ItemFile, texts: Callable[[], list[bytes]]) -> None:
    file.add(texts())


async def find(services: Services, query: Query, *, collection: str | None = None, whole: bool = False) -> SearchPage:
    """Return a page of what a search finds. CollectionDoesNotExist where `collection` is given and not there.

    Of more than FEW_ITEMS only the places are found, unless the page is to be `whole`.
    """
    node = services.node
    place = queries.place_of(query.token, query, node.signing_key) if query.token else None
    anchor = place.anchor if place else None
    whole = whole or query.limit <= FEW_ITEMS
    async with node.search_pool.reading() as conn:
        if collection is not None:
            await existing(conn, collection)
        full, warnings = await services.queryables.understand(conn, query)
        answer = await _from_memory(services, conn, full, anchor, whole=whole)
    if answer is not None:
        items, matched, is_exact = answer.page, answer.matched, True
    else:
        where, order = conditions.where(full.conditions), search.order(full.order)
        async with services.shares.place(), node.search_pool.acquire() as conn:
            items = await (search.page if whole else search.large_page)(conn, where, order, query.limit, anchor)
            matched, is_exact = (place.matched, place.exact) if place else await _count_matched(node, conn, full, where)

    def token_for(anchor: Anchor) -> str:
        return queries.token_for(queries.Place(anchor, matched, is_exact), query, node.signing_key)

    visibility = full.conditions.get("retracted", Visibility.INCLUDE)
    return SearchPage(items, matched, is_exact, warnings, full.include, full.exclude, visibility, token_for)


def columns_at(services: Services, conn: Reader) -> FacetColumns | None:
    """Return the columns, if they are loaded and a connection leads to the server that they are of; else None."""
    columns = services.columns
    return columns if columns is not None and columns.is_ready and is_of_columns(services.node, conn) else None


def is_of_columns(node: Node, conn: Reader) -> bool:
    """Tell whether a connection leads to the server that the columns are of: the standby, where there is one."""
    if not node.settings.read_dsn:
        return True
    return not isinstance(conn, LazyConnection) and getattr(conn.get_settings(), "in_hot_standby", "off") == "on"


async def _from_memory(
    services: Services, conn: Reader, query: Query, anchor: Anchor | None, *, whole: bool
) -> Found | None:
    """Search in the columns; None where they cannot tell, and so for the pages beside one that PostgreSQL found.

    Unavailable where a page that began in them has to wait for them, or for the standby that they are of.
    """
    columns = services.columns
    if anchor is not None and not anchor.in_memory:
        return None
    answer = None
    if (loaded_columns := columns_at(services, conn)) is not None:
        question = PageQuestion(query.conditions, query.order, query.limit, anchor)
        answer = await loaded_columns.page(conn, services.threads, question, whole=whole)
    if answer is not None or anchor is None:
        return answer
    if columns is not None and not columns.is_ready:
        raise Unavailable("this process has just begun, and still reads what pages are made from", retry_after=2)
    if columns is not None and not is_of_columns(services.node, conn):
        raise Unavailable("the standby that this page is from lags behind, or is away", retry_after=5)
    raise BadRequest("this search cannot go on from that page any more; begin again without the token")


async def _count_matched(node: Node, conn: Connection, query: Query, where: str) -> tuple[int, bool]:
    """Count the items of a search: without conditions by the tally, else up to the bound; return if it is exact."""
    if set(query.conditions) <= {"collections", "retracted"}:
        totals = await collections.totals(conn, query.conditions.get("retracted", Visibility.INCLUDE))
        return sum(totals.get(name, 0) for name in set(query.conditions.get("collections", totals))), True
    return await search.matched(conn, where, node.settings.matched_exact_to)
