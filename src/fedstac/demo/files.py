"""Sample datasets whose files exist: small files with the sizes and checksums that the datasets name.

What is in a file follows from its path alone, so that it can be written again at any time. It is no NetCDF.
"""

from __future__ import annotations

import hashlib
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


def datasets(
    count: int, *, folder: Path, url: str, sizes: FileSizes | None = None, files: int | None = None, start: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield new CMIP6 items whose files lie below a folder that is served at an address; missing files are written.

    `files`: how many each dataset has; None: as many as it comes with. `start`: how many of these datasets to pass.
    """
    sizes = sizes or FileSizes()
    number = 0
    for item in _items():
        names = [key for key, asset in item["assets"].items() if "file:checksum" in asset]
        if files is not None and len(names) < files:
            continue
        number += 1
        if number <= start:
            continue
        if number > start + count:
            return
        omitted = set(names[files:]) if files is not None else set()
        assets = {
            key: _asset(asset, folder, url, sizes) if key in names else asset
            for key, asset in item["assets"].items() if key not in omitted
        }  # fmt: skip
        size = sum(assets[key]["file:size"] for key in names if key not in omitted)
        yield {**item, "assets": assets, "properties": {**item["properties"], "size": size}}


def _items() -> Iterator[dict[str, Any]]:
    """Yield the stream of these datasets, one version of each."""
    start = 0
    while True:
        yield from sample.items(200, seed=SEED, versions=1, start=start)
        start += 200


def _asset(asset: Mapping[str, Any], folder: Path, url: str, sizes: FileSizes) -> dict[str, Any]:
    path = str(asset["file:local_path"])
    size = sizes.of(path)
    checksum = write(folder / path, path, size)
    return {**asset, "href": f"{url}/{path}", "file:size": size, "file:checksum": SHA256 + checksum}


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


def checksum_of(target: Path) -> str:
    """Return the multihash of a file's bytes, as `file:checksum` has it."""
    with target.open("rb") as file:
        return SHA256 + hashlib.file_digest(file, "sha256").hexdigest()
