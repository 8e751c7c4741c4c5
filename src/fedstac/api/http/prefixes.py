"""The path of the public URL, and whether the proxy in front takes it away. Decided once, at the start."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

import structlog
from starlette.routing import BaseRoute
from starlette.types import Scope

from fedstac.settings import Settings

log = structlog.get_logger()


def is_stripped(base_url: str, settings: Settings, routes: Iterable[BaseRoute]) -> bool:
    """Return whether a path that begins with the public path is taken as it stands, because the proxy stripped it.

    A public path that begins no route says by itself what a proxy did. One that does (`/api`, `/collections`) could be
    either, request by request; unless the settings say more, the proxy strips it.
    """
    prefix = urlsplit(base_url).path.rstrip("/")
    if not prefix or settings.proxy_path == "kept":
        return False
    if settings.proxy_path == "stripped":
        return True
    clash = next((path for route in routes if _begins(prefix, path := getattr(route, "path", ""))), None)
    if clash is None:
        return False
    log.warning(
        "the public path is the beginning of a route: the proxy has to take it away; "
        "set FEDSTAC_PROXY_PATH=kept if it does not",
        public_path=prefix, route=clash,
    )  # fmt: skip
    return True


def own_path(scope: Scope) -> str:
    """Return the path of a request as routes have it. With the public path in front it came from the guard."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _begins(prefix: str, route: str) -> bool:
    """Return whether a path that begins with the prefix may be one of the route's."""
    parts, pattern = prefix.split("/")[1:], route.split("/")[1:]
    for n, part in enumerate(parts):
        if n >= len(pattern):
            return False
        if pattern[n].endswith(":path}"):
            return True
        if not pattern[n].startswith("{") and pattern[n] != part:
            return False
    return True
