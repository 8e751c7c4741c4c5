"""The checker as every process has it: the schemas compiled, the snapshots of cv/ at hand. Nothing is ever fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import jsonschema_rs

from fedstac import settings as environment
from fedstac.domain.validation import Checker
from fedstac.domain.vocabulary import Snapshot, Vocabularies, VocabularyBroken
from fedstac.vocabularies import extensions

COLLECTION_SCHEMA = "https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/collection.json"


def open_checker(folder: Path | None = None, *, pins: Mapping[str, str] | None = None) -> Checker:
    """The rules, with the snapshots of cv/ (read when they are first asked for)."""
    core, _ = stac_schemas()
    item = extensions.item_validator(environment.folder("extensions"))
    return Checker(core, item, Vocabularies(shipped(folder or environment.folder("cv")), pins))


def shipped(folder: Path) -> list[Snapshot]:
    """The snapshots of a folder: <project>/<version>.json. VocabularyBroken where there is no such folder."""
    if not folder.is_dir():
        raise VocabularyBroken(f"{folder} is no folder of vocabulary snapshots (<project>/<version>.json)")
    paths = [path for path in sorted(folder.glob("*/*.json")) if path.stem[:1].isdigit()]
    return [
        Snapshot(path.parent.name, path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), path.read_bytes)
        for path in paths
    ]


def stac_schemas() -> tuple[jsonschema_rs.Validator, jsonschema_rs.Validator]:
    """Validators of the STAC 1.1.0 core schemas for items and collections, from pystac's copies; nothing is fetched."""
    known = extensions.core_schemas()
    registry = jsonschema_rs.Registry(list(known.items()))
    item, collection = (
        jsonschema_rs.validator_for(known[uri], registry=registry, retriever=extensions.closed, validate_formats=True)
        for uri in (extensions.CORE, COLLECTION_SCHEMA)
    )
    return item, collection
