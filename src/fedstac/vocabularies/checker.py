"""The checker as every process has it: the schemas compiled, the snapshots of cv/ at hand. Nothing is ever fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import jsonschema_rs

from fedstac.domain.validation import Checker
from fedstac.domain.vocabulary import VocabularyBroken
from fedstac.vocabularies import extensions
from fedstac.vocabularies.registry import Snapshot, Vocabularies

COLLECTION_SCHEMA = "https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/collection.json"


@dataclass(frozen=True, slots=True)
class VocabularyChecker(Checker):
    """The rules, and beside them the vocabularies at hand: whoever judges picks one and hands it to the rules."""

    vocabularies: Vocabularies


def open_checker(folder: Path | None = None, *, pins: Mapping[str, str] | None = None) -> VocabularyChecker:
    """Return the rules, with the snapshots of cv/ (read when they are first needed)."""
    from fedstac import settings as environment  # most of the start of a process that only judges

    checker = bare_checker(environment.folder("extensions"))
    return replace(checker, vocabularies=Vocabularies(shipped(folder or environment.folder("cv")), pins))


def bare_checker(folder: Path) -> VocabularyChecker:
    """Return the rules without any vocabulary. `folder` is that of the extensions."""
    core, _ = stac_schemas()
    return VocabularyChecker(core, extensions.item_validator(folder), Vocabularies())


def shipped(folder: Path) -> list[Snapshot]:
    """Return the snapshots of a folder: <project>/<version>.json. VocabularyBroken if there is no such folder."""
    if not folder.is_dir():
        raise VocabularyBroken(f"{folder} is no folder of vocabulary snapshots (<project>/<version>.json)")
    paths = [path for path in sorted(folder.glob("*/*.json")) if path.stem[:1].isdigit()]
    return [
        Snapshot(path.parent.name, path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), path.read_bytes)
        for path in paths
    ]


@cache
def stac_schemas() -> tuple[jsonschema_rs.Validator, jsonschema_rs.Validator]:
    """Return the validators of STAC 1.1.0 items and collections, made from pystac's copies of the core schemas."""
    schemas = extensions.core_schemas()
    registry = jsonschema_rs.Registry(list(schemas.items()))
    item, collection = (
        jsonschema_rs.validator_for(schemas[uri], registry=registry, retriever=extensions.closed, validate_formats=True)
        for uri in (extensions.CORE, COLLECTION_SCHEMA)
    )
    return item, collection
