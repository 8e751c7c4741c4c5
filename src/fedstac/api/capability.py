"""Something that a node can do, as stac-fastapi wants it: an extension with its conformance classes and its routes."""

from __future__ import annotations

from collections.abc import Sequence

import attr
from fastapi import FastAPI
from stac_fastapi.types.extension import ApiExtension

from fedstac.api.http import endpoint
from fedstac.api.route import Route


@attr.s(kw_only=True)
class Capability(ApiExtension):  # type: ignore[misc]
    """An extension of stac-fastapi whose routes are declared.

    name, description: the tag of its routes in OpenAPI.
    """

    name: str = attr.ib()
    description: str = attr.ib()
    routes: Sequence[Route] = attr.ib()
    conformance_classes: Sequence[str] = attr.ib(factory=tuple)

    def register(self, app: FastAPI) -> None:
        """Add the routes to an application, each behind the checks that it declares."""
        app.router.routes.extend(endpoint.starlette_route(route) for route in self.routes)
