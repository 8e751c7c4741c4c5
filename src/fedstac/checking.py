"""The checker as every process has it: the schemas compiled, the snapshots of cv/ at hand. Nothing is ever fetched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema_rs

from fedstac import settings as environment
from fedstac.domain.validation import Checker
from fedstac.domain.vocabulary import Snapshot, Vocabularies

ITEM_SCHEMA = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
COLLECTION_SCHEMA = "https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/collection.json"


def checker(folder: Path | None = None, *, pins: Mapping[str, str] | None = None) -> Checker:
    """The rules, with the snapshots of cv/ (read when they are first asked for)."""
    item, _ = stac_schemas()
    return Checker(item, item, Vocabularies(shipped(folder or environment.folder("cv")), pins))


def shipped(folder: Path) -> list[Snapshot]:
    """The snapshots of a folder: <project>/<version>.json."""
    paths = [path for path in sorted(folder.glob("*/*.json")) if path.stem[:1].isdigit()]
    return [
        Snapshot(path.parent.name, path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), path.read_bytes)
        for path in paths
    ]


def stac_schemas() -> tuple[jsonschema_rs.Validator, jsonschema_rs.Validator]:
    """Validators of the STAC 1.1.0 core schemas for items and collections, from pystac's copies; nothing is fetched."""
    known: dict[str, dict[str, Any]] = {}
    root = resources.files("pystac.validation.jsonschemas")
    for path in (*root.joinpath("stac-spec", "v1.1.0").iterdir(), *root.joinpath("geojson").iterdir()):
        if path.name.endswith(".json"):
            schema = json.loads(path.read_text())
            # by file name: the published common.json misspells its own $id
            uri = schema["$id"].rpartition("/")[0] + "/" + path.name
            known[uri] = {**schema, "$id": uri}
    registry = jsonschema_rs.Registry(list(known.items()))
    item, collection = (
        jsonschema_rs.validator_for(known[uri], registry=registry, retriever=_closed, validate_formats=True)
        for uri in (ITEM_SCHEMA, COLLECTION_SCHEMA)
    )
    return item, collection


def _closed(uri: str) -> Any:
    raise LookupError(f"schema {uri} is not at hand, and nothing is fetched while validating")
