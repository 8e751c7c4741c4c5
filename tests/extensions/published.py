"""The published schemas, as an oracle: read from ../shared, never a part of this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs

STAC = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
ITEM = (STAC, *(EXTENSION.format(name) for name in ("cmip6/v3.0.2", "file/v2.1.0", "alternate-assets/v1.2.0")))


def _closed(uri: str) -> Any:
    raise LookupError(uri)


def validator(folder: Path, *uris: str) -> jsonschema_rs.Validator:
    """Return all of these schemas at once; the folder has each by host and path. Nothing is fetched."""
    schemas = {}
    for path in sorted(folder.rglob("*.json")):
        uri = "https://" + path.relative_to(folder).as_posix()
        schemas[uri] = {**json.loads(path.read_text()), "$id": uri}
    registry = jsonschema_rs.Registry(list(schemas.items()), retriever=_closed)
    schema = {"allOf": [{"$ref": uri} for uri in uris]}
    return jsonschema_rs.validator_for(schema, registry=registry, retriever=_closed, validate_formats=True)
