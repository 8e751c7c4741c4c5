"""The description of every route as OpenAPI 3.1, from what the routes declare."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fedstac.api.capability import Capability
from fedstac.api.route import Access, Route
from fedstac.api.schemas import COMPONENTS, ref

_CONVERTOR = re.compile(r":\w+}")


def document(capabilities: Iterable[Capability], *, title: str, version: str, base_url: str) -> dict[str, Any]:
    """Return the OpenAPI document of the capabilities."""
    paths: dict[str, dict[str, Any]] = {}
    tags = []
    for capability in capabilities:
        tags.append({"name": capability.name, "description": capability.description})
        for route in capability.routes:
            paths.setdefault(_CONVERTOR.sub("}", route.path), {})[route.method.lower()] = _operation(route, capability)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "servers": [{"url": base_url}],
        "tags": tags,
        "paths": paths,
        "components": {"schemas": COMPONENTS, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: Route, capability: Capability) -> dict[str, Any]:
    operation: dict[str, Any] = {"tags": [capability.name], "summary": route.summary}
    if route.description:
        operation["description"] = route.description
    operation["parameters"] = [
        *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
          for name in route.path_parameters),
        *({"name": one.name, "in": one.place, "required": one.required, "description": one.description,
           "schema": one.schema} for one in route.parameters),
    ]  # fmt: skip
    if route.body is not None:
        content = {
            kind: {"schema": {"anyOf": [ref(name) for name in names]}} for kind, names in route.body.content.items()
        }
        operation["requestBody"] = {"required": route.body.is_required, "content": content}
    operation["responses"] = {"default": {"description": "See the documentation."}}
    if route.access is not Access.PUBLIC:
        operation["security"] = [{"bearer": []}]
    return operation
