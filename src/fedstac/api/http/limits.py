"""How large the body of a request may be, by what its route declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from starlette import routing
from starlette.routing import Match
from starlette.types import Scope

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
        (routing.Route(route.path, lambda _: None, methods=[route.method]), sizes[route.body.size])
        for route in sorted(table, key=lambda route: not route.is_hot)
        if route.body is not None
    ]

    def limit(scope: Scope) -> int:
        return next((size for route, size in takers if route.matches(scope)[0] is Match.FULL), sizes[Size.SMALL])

    return limit
