"""The items of a collection at any STAC API, read page by page. The client reads them: a server never fetches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from fedstac.client.documents import DocumentTrouble, ReadyDocument, entry
from fedstac.client.loads import SourceBroken
from fedstac.client.transport import OnRetry, Transport, no_notice

PAGE = 500
MOST_EMPTY_PAGES = 100  # one after the other, each with a next


def read(
    url: str, collection: str, *, retries: int, http: httpx.Client | None = None, on_retry: OnRetry = no_notice
) -> Iterator[ReadyDocument]:
    """Yield the items of the collection at this address, made ready for a collection here.

    SourceBroken where the address is no collection, a page is no FeatureCollection, or items came and went meanwhile:
    then there are others than it said.
    """
    place = urlsplit(url)
    if place.scheme not in ("http", "https") or "/collections/" not in place.path:
        raise SourceBroken(f"{url} is no address of a collection; it looks like https://host/collections/CMIP6")
    origin = f"{place.scheme}://{place.netloc}"
    transport = Transport(origin, None, timeout=60, retries=retries, http=http, on_retry=on_retry)
    try:
        yield from _items(transport, origin, f"{place.path.rstrip('/')}/items", collection)
    finally:
        transport.close()


def _items(transport: Transport, origin: str, path: str, collection: str) -> Iterator[ReadyDocument]:
    address: str | None = f"{path}?limit={PAGE}"
    count, empty = 0, 0
    matched: int | None = None
    visited: set[str] = set()
    while address is not None:
        if address in visited:
            raise SourceBroken(f"{origin}{address} comes after itself; the pages of this API have no end")
        visited = {*list(visited)[-1:], address}
        page = transport.json("GET", address)
        features = page.get("features")
        if not isinstance(features, list):
            raise SourceBroken(f"{origin}{address} is no FeatureCollection; is it a STAC API?")
        matched = _matched(page) if matched is None else matched
        empty = 0 if features else empty + 1
        if empty > MOST_EMPTY_PAGES:
            raise SourceBroken(f"{origin}{path} gives page after page without items")
        for number, feature in enumerate(features, 1):
            ready = entry(feature, None, f"{origin}{address}, item {number}", collection) if _is_item(feature) else None
            if ready is None or isinstance(ready, DocumentTrouble):
                raise SourceBroken(f"{origin}{address}: its item {number} is no item")
            count += 1
            yield ready
        address = _next(page, origin, address)
    if matched is not None and matched != count:
        raise SourceBroken(
            f"{origin}{path} said that it has {matched} items, and gave {count}; it changed meanwhile, so read it again"
        )


def _matched(page: dict[str, Any]) -> int | None:
    """Return how many items an API says that there are, older ones in the Context extension; None where it does not."""
    context = page.get("context")
    numbers = (page.get("numberMatched"), context.get("matched") if isinstance(context, dict) else None)
    return next((number for number in numbers if isinstance(number, int)), None)


def _is_item(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("type") == "Feature" and isinstance(feature.get("id"), str)


def _next(page: dict[str, Any], origin: str, address: str) -> str | None:
    """Return the address of the next page at the same server; None at the end. SourceBroken where it is elsewhere."""
    links = [link for link in page.get("links", ()) if isinstance(link, dict) and link.get("rel") == "next"]
    if not links:
        return None
    if links[0].get("method", "GET") != "GET" or not isinstance(links[0].get("href"), str):
        raise SourceBroken(
            f"the next page after {origin}{address} cannot be had with GET: {json.dumps(links[0])[:200]}"
        )
    place = urlsplit(urljoin(origin + address, links[0]["href"]))
    if f"{place.scheme}://{place.netloc}" != origin:
        raise SourceBroken(f"the next page after {origin}{address} is at another server, {place.netloc}")
    return f"{place.path}?{place.query}"
