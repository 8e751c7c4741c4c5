"""Facets: which properties of a dataset its narrow row codes (docs/search.md, "Coded columns").

A collection has PLACES places. Its properties take them in the order of `candidates`, as they are first seen. A
property gives its place up when it turns out not to be one of few values: see db/facets.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from fedstac.domain.vocabulary import Kind, Vocabulary

PLACES: Final = 24
MOST_TERMS: Final = 10_000  # that a collection may bring of one property
MOST_BYTES: Final = 500  # of a value as JSON
NODES: Final = (
    "alternate:name"  # the property that names the nodes with files of a dataset, its own and those of replicas
)
MOST_NODES_BYTES: Final = 480  # of their names as JSON: with the brackets that is less than MOST_BYTES
# Names, less their prefix, of what has a value of its own in nearly every dataset. The migration that brought the table
# has the same list. A name that is taken out of it needs a migration: stored rows do not have its codes.
UNIQUE_NAMES: Final = frozenset((
    "abstract", "base_id", "citation_url", "created", "datetime", "description", "end_datetime", "further_info_url",
    "id", "latest", "pid", "retracted", "size", "start_datetime", "title", "tracking_id", "updated",
))  # fmt: skip


def candidates(properties: Mapping[str, Any], vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Return the properties that may have a place, with their values as they stand; the first has the best claim.

    Facets of the project's ids, then required properties with terms, others with terms, required ones, all others.
    """
    preferred = _preferred(vocabulary) if vocabulary else ()
    values = {name: properties[name] for name in preferred if name in properties}
    for name, value in properties.items():
        if name not in values and may_have_place(name):
            values[name] = value
    return values


@lru_cache(maxsize=256)  # a Vocabulary is equal to itself alone
def _preferred(vocabulary: Vocabulary) -> tuple[str, ...]:
    def rank(name: str) -> int:
        demand = vocabulary.properties[name]
        in_id = name in vocabulary.facets or name in vocabulary.id_template.names
        return 0 if in_id else (2 if demand.terms is None else 0) + (1 if demand.required else 2)

    names = (
        name for name, demand in vocabulary.properties.items()
        if demand.kind is not Kind.DATETIME and may_have_place(name)
    )  # fmt: skip
    return tuple(sorted(names, key=rank))


@lru_cache(maxsize=4096)
def may_have_place(name: str) -> bool:
    """Return whether rows may have codes of a property."""
    return name.rpartition(":")[2] not in UNIQUE_NAMES and name != "fedstac:access"  # the server's, where a policy asks


def nodes_of(own: Iterable[str], replicas: Iterable[str]) -> list[str]:
    """Return the nodes that have files of a dataset, by name: as many as a code can stand for.

    fedstac.nodes_of does the same.
    """
    names, size = [], 0
    for name in sorted({*own, *replicas}):
        size += len(orjson.dumps(name)) + 2
        if size > MOST_NODES_BYTES:
            break
        names.append(name)
    return names


def size_of(assets: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Return the bytes of a document's files, and how many files it has. An aggregation (kerchunk) is made of files."""
    size = files = 0
    for asset in assets.values():
        if asset.get("protocol") == "kerchunk":
            continue
        bytes_of_file = asset.get("file:size")
        if type(bytes_of_file) is int and bytes_of_file >= 0:
            size += bytes_of_file
            files += 1
        elif "file:checksum" in asset:
            files += 1
    return min(size, 2**63 - 1), files
