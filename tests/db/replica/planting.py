"""Datasets and files of a replica node, planted in its tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fedstac.db.connections import Connection

NODE = "east"
BASE = "https://east.example/data"


def checksum_of(content: bytes) -> str:
    return "1220" + hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class PlantedFile:
    """A file of a dataset: its asset is its name."""

    name: str
    content: bytes
    state: str = "verified"

    def path(self, id: str) -> str:
        return f"CMIP6/{id}/{self.name}"


def document_of(id: str, files: Sequence[PlantedFile], announced_at: str = "") -> dict[str, Any]:
    """Return a dataset's document; with entries of this node below an address, where it is announced."""
    assets: dict[str, Any] = {}
    for file in files:
        facts = {"file:size": len(file.content), "file:checksum": checksum_of(file.content)}
        asset = {"href": f"https://west.example/{file.path(id)}", "file:local_path": file.path(id), **facts}
        if announced_at:
            asset["alternate"] = {
                NODE: {"href": f"{announced_at}/{file.path(id)}", "alternate:name": NODE, **facts}
            }  # fmt: skip
        assets[file.name] = asset
    return {"id": id, "collection": "CMIP6", "assets": assets, "properties": {}}


async def plant(
    conn: Connection, id: str, content: Sequence[PlantedFile], *, state: str = "announced", announced_at: str = BASE,
    **columns: object,
) -> int:  # fmt: skip
    """Plant a dataset with its files, and return its number."""
    document = document_of(id, content, announced_at)
    values: Mapping[str, object] = {
        "origin": "west", "collection": "CMIP6", "id": id, "lineage": f"CMIP6/{id}", "epoch": 1, "seq": 1, "pos": 1,
        "event_state": "published", "latest": True, "document": orjson.dumps(document).decode(),
        "size": sum(len(file.content) for file in content), "files": len(content), "action": "replicate",
        "goal": "ignore" if state in ("catalogued", "removed") else "serve", "rule": "all",
        "state": state, "announced_digest": b"1" if state == "announced" else None, **columns,
    }  # fmt: skip
    places = ", ".join(f"${n}" for n in range(1, len(values) + 1))
    names = ", ".join(values)
    n = int(await conn.fetchval(
        f"INSERT INTO fedstac.replica_dataset ({names}) VALUES ({places}) RETURNING n", *values.values()
    ))  # fmt: skip
    await conn.executemany(
        """INSERT INTO fedstac.replica_file (n, asset, path, size, checksum, state, source, verified_at, done_bytes)
           VALUES ($1, $2, $3, $4::bigint, $5, $6, 'west.example', CASE WHEN $6 = 'verified' THEN clock_timestamp() END,
                   CASE WHEN $6 = 'verified' THEN $4::bigint ELSE 0 END)""",
        [(n, file.name, file.path(id), len(file.content), checksum_of(file.content), file.state) for file in content],
    )
    return n


def write(folder: Path, id: str, files: Sequence[PlantedFile]) -> None:
    """Write a dataset's files below a folder."""
    for file in files:
        place = folder / file.path(id)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.content)
