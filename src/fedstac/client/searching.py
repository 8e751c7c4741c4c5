"""Searches and counts: what they ask for, and a search whose pages are fetched as it is iterated over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from fedstac.client.intervals import interval
from fedstac.client.transport import JSON_BODY, Failed, Transport


def conditions_of(
    collections: Sequence[str], bbox: Sequence[float] | None, datetime: str | None, filter: str | None, q: str | None
) -> dict[str, Any]:
    """Return the conditions that searches and counts share, as members of a body."""
    body: dict[str, Any] = {}
    if collections:
        body["collections"] = list(collections)
    if bbox is not None:
        body["bbox"] = list(bbox)
    if datetime:
        body["datetime"] = interval(datetime)
    if filter:
        body |= {"filter": filter, "filter-lang": "cql2-text"}
    if q:
        body["q"] = q
    return body


@dataclass(frozen=True, slots=True)
class CountsAnswer:
    """Aggregations as the node answers them, each with `value` or `buckets`; and what it says of unknown names."""

    aggregations: list[dict[str, Any]]
    warnings: tuple[str, ...]


@dataclass
class Search:
    """What a search found: iterate over it, as often as you like; `matched` is how many there are in all."""

    _transport: Transport
    _body: Mapping[str, Any]
    _limit: int | None
    _page: int
    _first: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        page: dict[str, Any] | None = self._first_page()
        remaining = self._limit
        while page is not None:
            for item in page["features"]:
                if remaining == 0:
                    return
                yield item
                remaining = None if remaining is None else remaining - 1
            if remaining == 0:
                return
            following = next((link for link in page.get("links", ()) if link["rel"] == "next"), None)
            page = self._next_page(following) if following else None

    @property
    def body(self) -> Mapping[str, Any]:
        """The body of POST /search that it is, without its limit."""
        return self._body

    @property
    def matched(self) -> int:
        """How many match, whatever the limit; an estimate where `is_estimated`."""
        return int(self._first_page().get("numberMatched", 0))

    @property
    def is_estimated(self) -> bool:
        """Large totals of filtered searches are the planner's estimate."""
        return bool(self._first_page().get("fedstac:number_matched_estimated", False))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the node says of the search: names of properties and collections that it knows nothing of."""
        return tuple(str(warning.get("message")) for warning in self._first_page().get("fedstac:warnings", ()))

    def _first_page(self) -> dict[str, Any]:
        if self._first is None:
            size = self._page if self._limit is None else max(1, min(self._limit, self._page))
            self._first = self._post({**self._body, "limit": size})
        return self._first

    def _next_page(self, link: Mapping[str, Any]) -> dict[str, Any]:
        """Return the next page, from our own address: the one in the link may be that of a proxy."""
        if link.get("method", "GET") == "POST":
            return self._post(link["body"])
        page: dict[str, Any] = self._transport.json("GET", "/search?" + urlsplit(link["href"]).query)
        return page

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        page = self._transport.json("POST", "/search", content=orjson.dumps(body), headers=JSON_BODY)
        if not isinstance(page, dict) or not isinstance(page.get("features"), list):
            raise Failed(200, "no-features", f"{self._transport.url}/search did not answer with a FeatureCollection")
        return page
