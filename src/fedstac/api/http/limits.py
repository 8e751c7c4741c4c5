"""How large the body of a request may be, by what its route declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from starlette.routing import compile_path
from starlette.types import Scope

from fedstac.api.http import prefixes
from fedstac.api.route import Route, Size
from fedstac.settings import Settings

SMALL: Final = 2 << 20  # bytes of a search, a collection, a group, …
IDS: Final = 12 << 20  # bytes of 100 000 ids


def of_bodies(table: Iterable[Route], settings: Settings) -> Callable[[Scope], int]:
    """Return what says how many bytes the body of a request may have, also decompressed."""
    sizes = {
        Size.SMALL: min(SMALL, settings.max_item_bytes),
        Size.ITEM: settings.max_item_bytes,
        Size.IDS: min(IDS, settings.max_batch_bytes),
        Size.BATCH: settings.max_batch_bytes,
    }
    takers = [
        (route.method, compile_path(route.path)[0], sizes[route.body.size])
        for route in sorted(table, key=lambda route: not route.is_hot)
        if route.body is not None
    ]

    def limit(scope: Scope) -> int:
        path, method = prefixes.own_path(scope), scope["method"]
        for own_method, pattern, size in takers:
            if own_method == method and pattern.match(path):
                return size
        return sizes[Size.SMALL]

    return limit
