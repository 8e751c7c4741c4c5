"""The way of the busiest routes past the middleware, which is a quarter of their cost."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from fedstac.api.http import endpoint, prefixes
from fedstac.api.route import Route


class FastPath:
    """An ASGI application that answers the hot routes itself. The guard answers their problems.

    Everything else goes the whole way.
    """

    def __init__(self, app: FastAPI, table: Iterable[Route]) -> None:
        self.app = app
        self._routes = [endpoint.starlette_route(route) for route in table if route.is_hot]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, method = prefixes.own_path(scope), scope["method"]
            for route in self._routes:
                match = route.path_regex.match(path)
                if match is not None and method in (route.methods or ()):
                    texts = match.groupdict()
                    values = {name: route.param_convertors[name].convert(text) for name, text in texts.items()}
                    await route.app({**scope, "path_params": values, "app": self.app}, receive, send)
                    return
        await self.app(scope, receive, send)
