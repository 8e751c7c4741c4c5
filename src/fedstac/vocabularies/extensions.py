"""The STAC extensions that ship with fedstac, a folder each, and the validator that they make with the core schemas.

Nothing is ever fetched: what a schema refers to is in the folder, or among the core schemas that pystac carries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import jsonschema_rs

Schema = Mapping[str, Any]

CORE: Final = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
HERE: Final = "https://fedstac.invalid/extensions"  # where the schemas stand in the registry; no such host (RFC 2606)
PARTS: Final = ("file/v2.1.0", "alternate-assets/v1.2.0")  # beside the core, in the order of validation.SCHEMAS


def item_validator(folder: Path) -> jsonschema_rs.Validator:
    """Judge a STAC item, as it is served, by the core schema, the file and the alternate-assets rules at once.

    The first two steps of an error's `evaluation_path` are `allOf` and the number of the part that failed, 0 to 2 in
    that order. `folder` is `extensions`. jsonschema_rs.ValidationError where it lacks one of them.
    """
    parts = [CORE, *(f"{HERE}/{name}/schema.json" for name in PARTS)]
    return compiled({"allOf": [{"$ref": uri} for uri in parts]}, folder)


def compiled(schema: Schema, folder: Path) -> jsonschema_rs.Validator:
    """Return a schema that may refer to the core's and to those of `folder`; formats count.

    jsonschema_rs.ValidationError where it refers to anything else.
    """
    schemas = [*core_schemas().items(), *((f"{HERE}/{name}/schema.json", one) for name, one in shipped(folder).items())]
    registry = jsonschema_rs.Registry(schemas, retriever=closed, draft=jsonschema_rs.Draft7)
    return jsonschema_rs.validator_for(dict(schema), registry=registry, retriever=closed, validate_formats=True)


def shipped(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the schemas of a folder by `<name>/<version>`, sorted."""
    paths = sorted(folder.glob("*/*/schema.json"))
    return {path.parent.relative_to(folder).as_posix(): json.loads(path.read_bytes()) for path in paths}


@cache
def core_schemas() -> Mapping[str, dict[str, Any]]:
    """Return the STAC 1.1.0 core schemas and GeoJSON's, by URI, from pystac's copies."""
    schemas = {}
    place = find_spec("pystac")  # it is not imported, which takes longer than all the rest
    assert place is not None
    assert place.origin is not None
    root = Path(place.origin).parent / "validation" / "jsonschemas"
    for path in (*(root / "stac-spec" / "v1.1.0").iterdir(), *(root / "geojson").iterdir()):
        if path.name.endswith(".json"):
            schema = json.loads(path.read_text())
            # by file name: the published common.json misspells its own $id
            uri = schema["$id"].rpartition("/")[0] + "/" + path.name
            schemas[uri] = {**schema, "$id": uri}
    return schemas


def closed(uri: str) -> Any:
    """Return a retriever that retrieves nothing."""
    raise LookupError(f"schema {uri} is not at hand, and nothing is fetched while validating")
