"""The files of a dataset, as its document names them, and where a replica node puts them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson

from fedstac.domain.documents import is_aggregation
from fedstac.domain.replication.paths import is_safe_path


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """A file of a dataset. path: below the folder of its tier; size in bytes; checksum: a multihash in hex.

    fault: why it cannot be stored; empty: it can.
    """

    asset: str
    path: str
    size: int | None
    checksum: str
    fault: str = ""


def files_of(document: Mapping[str, Any]) -> tuple[DatasetFile, ...]:
    """Return the files that a replica has: every asset with a checksum that is no aggregation."""
    collection, id = str(document["collection"]), str(document["id"])
    files = [
        _file(key, asset, collection, id)
        for key, asset in sorted(document["assets"].items())
        if isinstance(asset.get("file:checksum"), str) and not is_aggregation(asset)
    ]
    checksums: dict[str, str] = {}
    shared = Counter(file.path for file in files)
    return tuple(
        file
        if shared[file.path] == 1 or checksums.setdefault(file.path, file.checksum) == file.checksum
        else DatasetFile(file.asset, "", file.size, file.checksum, f"another file of the dataset is {file.path}")
        for file in files
    )


def digest_of(files: Iterable[DatasetFile]) -> bytes:
    """Return the sha-256 of a dataset's files: equal if and only if the same are to be at the same places."""
    rows = sorted((file.asset, file.path, file.size or 0, file.checksum) for file in files)
    return hashlib.sha256(orjson.dumps(rows)).digest()


def total_bytes(files: Sequence[DatasetFile]) -> int:
    """Return how many bytes files have; one that does not say its size counts nothing."""
    return sum(file.size or 0 for file in files)


def _file(key: str, asset: Mapping[str, Any], collection: str, id: str) -> DatasetFile:
    size, checksum = asset.get("file:size"), asset["file:checksum"]
    stored_size = size if type(size) is int and 0 <= size < 1 << 62 else None
    local = asset.get("file:local_path")
    if isinstance(local, str) and is_safe_path(local):
        return DatasetFile(key, local, stored_size, checksum)
    base = unquote(urlsplit(str(asset.get("href", ""))).path).rpartition("/")[2]
    for name in (base, key):
        if is_safe_path(path := f"{collection}/{id}/{name}") and "/" not in name:
            return DatasetFile(key, path, stored_size, checksum)
    return DatasetFile(
        key, "", stored_size, checksum, "neither its local path, its address nor its name is a safe path"
    )
