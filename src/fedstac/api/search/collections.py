"""The list of collections, and what searches it: the STAC API's collection search and children."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links
from fedstac.api.search import query as queries
from fedstac.api.search import summaries, words
from fedstac.api.search.pages import selected_members
from fedstac.api.writing.collections import LARGE, as_json
from fedstac.db import collections, conditions, search
from fedstac.db.collections import CollectionPage, CollectionSearch, CollectionState
from fedstac.domain import filters, queryables
from fedstac.domain.errors import BadRequest
from fedstac.domain.identifiers import COLLECTION_ID
from fedstac.runtime import budget

MOST: Final = 10_000  # of one page, and without `limit`; the bytes of a page have a bound too
PAGE_FACTOR: Final = 6  # bytes that a page takes while it is put together, for each byte of its documents
LIMIT: Final = re.compile(r"0*([1-9][0-9]{0,8})[0-9]*")  # as many digits as are more than any page has
TOKEN: Final = re.compile(f"(next|prev):({COLLECTION_ID.pattern})")
PLACE: Final = ("limit", "token")
CONDITIONS: Final = ("q", "bbox", "datetime", "filter", "filter-lang", "filter-crs", "query", "sortby", "fields")
ALWAYS: Final = frozenset(("type", "id"))  # members that `fields` does not take away
QUERYABLES_REL: Final = "http://www.opengis.net/def/rel/ogc/1.0/queryables"


async def get_collections(call: Call) -> Response:
    """Return the collections that a search finds, all of them without one, with links to other pages."""
    request = _read(call, (*PLACE, *CONDITIONS))
    extra: list[dict[str, Any]] = [
        {"rel": QUERYABLES_REL, "type": "application/schema+json", "href": call.base_url + "/collection-queryables"}
    ]
    return await _answer(call, request, "/collections", "collections", extra)


async def get_children(call: Call) -> Response:
    """Return the children of the root catalogue: the collections, page by page."""
    return await _answer(call, _read(call, PLACE), "/children", "children", [])


async def get_collection_queryables(call: Call) -> Response:
    """Return the properties that a filter of collections can name, as a JSON Schema."""
    body = {
        "$id": call.base_url + "/collection-queryables",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "title": "Queryables of the list of collections",
        "properties": queryables.OF_EVERY_COLLECTION,
        "additionalProperties": True,
    }
    return Response(orjson.dumps(body), media_type="application/schema+json")


class PageRequest(NamedTuple):
    """A page of collections that somebody asks for."""

    limit: int
    after: str | None  # the id after or before which it is
    before: str | None
    search: CollectionSearch | None
    include: frozenset[str]
    exclude: frozenset[str]


def _read(call: Call, names: tuple[str, ...]) -> PageRequest:
    """Return what the parameters ask for. BadRequest where one is not understood."""
    pairs = call.query_params.multi_items()
    queries.refuse_unknown((name for name, _ in pairs), names, there_are="there are")
    conditions_sent = [(name, value) for name, value in pairs if name in CONDITIONS and value]
    limit, after, before = _place(call.query_params)
    if not conditions_sent:
        return PageRequest(limit, after, before, None, frozenset(), frozenset())
    of_items = [*(pair for pair in conditions_sent if pair[0] != "q"), ("retracted", "include")]  # no collection is
    query = queries.from_parameters(of_items, call.node.settings)
    where = conditions.where(query.conditions)
    if text := dict(conditions_sent).get("q"):
        where += f" AND {collections.has_words(words.read(text))}"
    order = query.order if "sortby" in dict(conditions_sent) else (("id", False),)
    keys = search.order(order)
    return PageRequest(
        limit, after, before,
        CollectionSearch(
            where, ", ".join(f"{key.expression} {'DESC' if key.descending else 'ASC'}" for key in keys),
            is_by_id=order[0][0] in filters.TEXTS, is_descending=order[0][1],
        ),
        *(frozenset(path.removeprefix(queries.PROPERTIES) for path in side) for side in (query.include, query.exclude)),
    )  # fmt: skip


class PagePlace(NamedTuple):
    """The length of a page, and the id after or before which it is."""

    limit: int
    after: str | None
    before: str | None


def _place(parameters: Mapping[str, str]) -> PagePlace:
    """Return the place of the page. BadRequest where a parameter is not understood."""
    text, token = parameters.get("limit", str(MOST)), parameters.get("token")
    limit = LIMIT.fullmatch(text)
    if limit is None:
        raise BadRequest(f"limit={text[:20]!r} is not a whole number from 1 on")
    place = TOKEN.fullmatch(token) if token is not None else None
    if token is not None and place is None:
        raise BadRequest("the paging token is not one of this list; begin again without it")
    is_next = place is not None and place[1] == "next"
    name = place[2] if place else None
    return PagePlace(min(int(limit[1]), MOST), name if is_next else None, None if is_next else name)


async def _answer(call: Call, request: PageRequest, path: str, member: str, extra: list[dict[str, Any]]) -> Response:
    try:
        async with call.node.search_pool.acquire() as conn:
            page = await collections.page(
                conn, after=request.after, before=request.before, limit=request.limit, search=request.search
            )
    except collections.PlaceIsGone:
        raise BadRequest(
            "the paging token leads nowhere: the collection before this page is not found any more; begin again"
        ) from None
    values = await summaries.of_collections(call.services)
    assemble = partial(_page_text, call, request, page, path, member, extra, values)
    size = sum(len(each.document or "") + summaries.size_of(values.get(each.id, {})) for each in page.collections)
    if size <= LARGE:
        return Response(assemble(), media_type=links.JSON)
    async with call.services.memory.place(PAGE_FACTOR * size):
        return Response(await call.services.threads.run(assemble), media_type=links.JSON)


def _page_text(
    call: Call, request: PageRequest, page: CollectionPage, path: str, member: str, extra: list[dict[str, Any]],
    values: Mapping[str, Mapping[str, list[Any]]],
) -> bytes:  # fmt: skip
    """Return a page of collections.

    A large page takes 0.1 s: that is no work for the event loop. Nor may a thread hold the interpreter for so long, so
    each collection is read and written by itself.
    """
    texts = [_text(call, request, state, values.get(state.id)) for state in page.collections]
    return orjson.dumps({
        member: [orjson.Fragment(text) for text in texts],
        "numberMatched": page.total,
        "numberReturned": len(texts),
        "links": [*_links(call, page, partial(_link, call.base_url + path)), *extra],
    })  # fmt: skip


def _text(call: Call, request: PageRequest, state: CollectionState, values: Mapping[str, list[Any]] | None) -> bytes:
    """Return a collection as JSON text, with the members that `fields` selects."""
    budget.checkpoint()
    document = as_json(call.base_url, state, values)
    if request.include or request.exclude:
        document = selected_members(document, request.include, request.exclude, ALWAYS)
    return orjson.dumps(document)


def _links(call: Call, page: CollectionPage, link: Callable[[str, Mapping[str, str]], dict[str, Any]]) -> list[Any]:
    parameters = dict(call.query_params)
    page_links = [link("self", parameters), {"rel": "root", "type": links.JSON, "href": call.base_url + "/"}]
    if page.has_behind:
        page_links.append(link("next", {**parameters, "token": f"next:{page.collections[-1].id}"}))
    if page.has_before:
        page_links.append(link("prev", {**parameters, "token": f"prev:{page.collections[0].id}"}))
    return page_links


def _link(own: str, rel: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    query = "?" + urlencode(parameters, safe=":") if parameters else ""
    return {"rel": rel, "type": links.JSON, "href": own + query}
