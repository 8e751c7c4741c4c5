"""A page of a search as it is answered: at once, or while its documents are read if it is a large one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from stac_fastapi.pgstac.utils import clean_exclude_set, filter_fields
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links
from fedstac.api.http.streaming import StreamedAnswer
from fedstac.api.search import views
from fedstac.db import search
from fedstac.db.search import Anchor, ServedItem
from fedstac.domain.errors import Finding, TakesTooLong, Unavailable
from fedstac.domain.policy import Principal
from fedstac.domain.visibility import Visibility
from fedstac.runtime import budget
from fedstac.runtime.budget import Budget

ALWAYS: Final = frozenset(("type", "id", "collection"))  # members that `fields` does not take away
FEW_ITEMS: Final = 100  # that are assembled in the event loop
FEW_BYTES: Final = 1 << 20  # of their documents
READ_ITEMS, READ_BYTES = 200, 512 << 10  # of a large page that are read at once
MOST_BYTES: Final = 64 << 20  # of the documents of a large page
SENDING_SHARE: Final = 0.5  # of the seconds that a request may take: after that a large page ends, and `next` goes on
PLACE_BYTES: Final = 400  # that an item takes whose document is not read yet
ROW_BYTES: Final = 1000  # that it takes while the page is found
FACTOR: Final = 3  # bytes that a document takes while it is assembled, for each of its own


@dataclass(frozen=True, slots=True)
class SearchPage:
    """A page of a search, of a large one the places of its items."""

    items: search.ItemPage
    matched: int  # numberMatched: how many items the search has in all
    is_exact: bool  # else an estimate
    warnings: Sequence[Finding]
    include: frozenset[str]  # members of each item, by their full names; empty: all
    exclude: frozenset[str]
    visibility: Visibility
    token_for: Callable[[Anchor], str]


@dataclass(frozen=True, slots=True)
class PageAddress:
    """Where a page is: for its links to itself and to the pages beside it."""

    base: str
    path: str
    parameters: Mapping[str, str]  # without the paging token
    body: object = None  # of a POST

    @classmethod
    def of(cls, call: Call, path: str, body: object = None) -> PageAddress:
        """Return the address of a call."""
        parameters = {name: value for name, value in call.query_params.items() if name != "token"}
        return cls(call.base_url, path, parameters, body)

    def links(self, **tokens: str) -> list[dict[str, Any]]:
        """Return the links of the page; `tokens` are those of the pages beside it, by relation."""
        own = self.base + self.path
        page_links: list[dict[str, Any]] = [
            {"rel": "self", "type": links.GEOJSON,
             "href": own + ("?" + urlencode(self.parameters) if self.parameters else "")},
            {"rel": "root", "type": links.JSON, "href": self.base + "/"},
        ]  # fmt: skip
        for rel, token in tokens.items():
            if isinstance(self.body, dict):
                page_links.append({"rel": rel, "type": links.GEOJSON, "method": "POST", "href": own,
                                   "body": {**self.body, "token": token}})  # fmt: skip
            else:
                href = own + "?" + urlencode({**self.parameters, "token": token})
                page_links.append({"rel": rel, "type": links.GEOJSON, "method": "GET", "href": href})
        return page_links


class PageWriter:
    """Writes a page: its beginning, its items some at a time, and its end with what is known by then.

    caller: somebody who asks for the files of retracted datasets.
    """

    def __init__(self, call: Call, page: SearchPage, address: PageAddress, caller: Principal | None) -> None:
        self._call, self._page, self._address, self._caller = call, page, address, caller
        self._lane = budget.lane()
        self._rest = page.items.rest
        self._next = 0  # of the rest, to read
        self._after = page.items.after
        self._returned = 0
        self._read_bytes = 0
        seconds = call.node.settings.request_seconds
        self._ends_at = time.monotonic() + SENDING_SHARE * seconds

    async def answer(self) -> Response:
        """Return the answer: in one piece if a read is enough, else as a stream."""
        services = self._call.services
        headers = views.PRIVATE_PAGES if self._caller else views.OF_PAGES
        pieces = [self._beginning(), *await self._features(self._page.items.items)]
        if self._rest:
            pieces += await self._read_some()
        if self._is_done:
            return Response(b"".join((*pieces, self._end())), headers=headers, media_type=links.GEOJSON)
        start = b"".join(pieces)
        share = services.memory.share(self._lane)
        share.take(PLACE_BYTES * len(self._rest) + FACTOR * READ_BYTES)
        patience = services.node.settings.read_timeout_seconds
        return StreamedAnswer(
            self._pieces(start), share=share, patience=patience, media_type=links.GEOJSON, headers=headers
        )

    async def _pieces(self, start: bytes) -> AsyncGenerator[bytes, None]:
        yield start
        services = self._call.services
        seconds = services.node.settings.request_seconds
        reason = TakesTooLong(f"a part of the page took over {seconds:g} s", retry_after=1)
        while not self._is_done:
            if services.node.stopping.is_set():
                raise Unavailable("this process ends; send the request again", retry_after=1)
            async with Budget(seconds, self._lane, lambda: reason, among=services.open_budgets):
                piece = b"".join(await self._read_some())
            yield piece
        yield self._end()

    @property
    def _is_done(self) -> bool:
        return self._next >= len(self._rest)

    async def _read_some(self) -> list[bytes]:
        """Return the next items in pieces. No connection is held while they are sent."""
        keys = [search.unpacked(place)[0] for place in self._rest[self._next : self._next + READ_ITEMS]]
        async with self._call.node.search_pool.acquire() as conn:
            items, count = await search.read(conn, keys, self._page.visibility, most_bytes=READ_BYTES)
        self._next += count
        pieces = await self._features(items)
        is_long = self._read_bytes >= MOST_BYTES or time.monotonic() > self._ends_at
        if is_long and not self._is_done:
            self._after = Anchor(search.unpacked(self._rest[self._next - 1])[1], in_memory=self._page.items.in_memory)
            self._next = len(self._rest)
        return pieces

    async def _features(self, items: Sequence[ServedItem]) -> list[bytes]:
        """Return items as they are served, in pieces: each but the first one of the page with a comma before it."""
        if not items:
            return []
        call = self._call
        with_files = views.NOBODYS
        if self._caller is not None:
            with_files = await views.shown_to(call, self._caller, items)
        size = sum(len(item.document) for item in items)
        work = partial(item_texts, self._page, call.base_url, items, with_files)
        texts = await call.services.threads.run_if(len(items) > FEW_ITEMS or size > FEW_BYTES, work)
        pieces = [piece for text in texts for piece in (b",", text)]
        self._read_bytes += size
        is_first = not self._returned
        self._returned += len(items)
        return pieces[1:] if is_first else pieces

    def _beginning(self) -> bytes:
        return b'{"type":"FeatureCollection","features":['

    def _end(self) -> bytes:
        page = self._page
        beside = {"prev": page.items.before, "next": self._after}
        rest = {
            "links": self._address.links(**{rel: page.token_for(anchor) for rel, anchor in beside.items() if anchor}),
            "numberMatched": page.matched,
            "numMatched": page.matched,
            "numberReturned": self._returned,
            "numReturned": self._returned,
        } | ({} if page.is_exact else {"fedstac:number_matched_estimated": True})
        if page.warnings:
            rest["fedstac:warnings"] = [finding.as_json() for finding in page.warnings]
        return b"]," + orjson.dumps(rest)[1:]


def item_texts(
    page: SearchPage, base: str, items: Sequence[ServedItem], with_files: Container[tuple[str, str]]
) -> list[bytes]:
    """Return items of a page, each as JSON text, with the members that `fields` selects."""
    texts = []
    for item in items:
        budget.checkpoint()
        if (item.collection, item.id) in with_files:
            text = links.item_text(base, item, shows_files=True).encode()
        else:
            text = _public_text(base, item)
        texts.append(_selected_members(text, page.include, page.exclude) if page.include or page.exclude else text)
    return texts


def _public_text(base: str, item: ServedItem) -> bytes:
    """Return an item as everybody gets it. It keeps its text, for the pages that show it again."""
    text = item.texts.get(base)
    if text is None:
        text = links.item_text(base, item).encode()
        item.texts.clear()  # one address is enough
        item.texts[base] = text
    return text


def _selected_members(text: bytes, include: frozenset[str], exclude: frozenset[str]) -> bytes:
    return orjson.dumps(selected_members(orjson.loads(text), include, exclude, ALWAYS))


def selected_members(
    document: dict[str, Any], include: frozenset[str], exclude: frozenset[str], always: frozenset[str]
) -> dict[str, Any]:
    """Return a document with the members that `fields` selects. Those that name it always stay; `include` wins."""
    members = include | always if include else include
    others = clean_exclude_set(set(exclude), set(include | always))
    return dict(filter_fields(document, set(members), others))
