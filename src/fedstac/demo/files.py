"""Sample datasets whose files exist: small files with the sizes and checksums that the datasets name.

What is in a file follows from its path alone, so that it can be written again at any time. It is no NetCDF.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstac.demo import sample

SEED = 12  # of the datasets with files: others than those that the demonstrations publish without
BLOCK = 1 << 16  # bytes
SHA256 = "1220"  # multihash: which one, how long


@dataclass(frozen=True, slots=True)
class FileSizes:
    """The smallest and the largest size of a file, in bytes."""

    least: int = 8 << 10
    most: int = 256 << 10

    def of(self, path: str) -> int:
        """Return the size of the file with a path."""
        noise = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest())
        return self.least + noise % (self.most - self.least + 1)


@dataclass(frozen=True, slots=True)
class FileFolder:
    """Files below a folder that is served at an address, of these sizes; so many for each dataset."""

    folder: Path
    url: str
    sizes: FileSizes = FileSizes()
    least_files: int = 1
    most_files: int = 3


def datasets(count: int, place: FileFolder, *, start: int = 0) -> Iterator[dict[str, Any]]:
    """Yield new CMIP6 items whose files are there; missing files are written. `start`: how many of these to pass over.

    With the sizes and numbers that are set if nobody says others, each is smaller than any other sample dataset.
    """
    suitable = (item for item in _items() if len(_files_of(item)) >= place.least_files)
    for item in itertools.islice(suitable, start, start + count):
        names = _files_of(item)[: place.most_files]
        others = {key: asset for key, asset in item["assets"].items() if "file:checksum" not in asset}
        assets = {name: _asset(item["assets"][name], place) for name in names}
        size = sum(asset["file:size"] for asset in assets.values())
        yield {**item, "assets": assets | others, "properties": {**item["properties"], "size": size}}


def _files_of(item: Mapping[str, Any]) -> list[str]:
    """Return the assets of an item that are files."""
    return [key for key, asset in item["assets"].items() if "file:checksum" in asset]


def _items() -> Iterator[dict[str, Any]]:
    """Yield the stream of these datasets, one version of each."""
    start = 0
    while True:
        yield from sample.items(200, seed=SEED, versions=1, start=start)
        start += 200


def _asset(asset: Mapping[str, Any], place: FileFolder) -> dict[str, Any]:
    path = str(asset["file:local_path"])
    size = place.sizes.of(path)
    checksum = write(place.folder / path, path, size)
    return {**asset, "href": f"{place.url}/{path}", "file:size": size, "file:checksum": SHA256 + checksum}


def write(target: Path, path: str, size: int) -> str:
    """Write a file unless one of its size is there. Return the SHA-256 of what it should hold, in hexadecimal."""
    digest = hashlib.sha256()
    is_missing = not target.is_file() or target.stat().st_size != size
    if is_missing:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for block in _blocks(path, size):
                digest.update(block)
                file.write(block)
        return digest.hexdigest()
    for block in _blocks(path, size):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: str, size: int) -> Iterator[bytes]:
    """Yield the content of a file; no two blocks are alike, nor those of two files."""
    noise = hashlib.shake_256(path.encode()).digest(BLOCK - 8)
    for number in range(-(-size // BLOCK)):
        yield (number.to_bytes(8) + noise)[: size - number * BLOCK]
