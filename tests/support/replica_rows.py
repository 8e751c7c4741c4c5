"""Datasets of a replica node, written into its tables as its handler would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from fedstac.db.connections import Connection
from tests.support.byte_server import checksum, content


async def add_dataset(
    conn: Connection, id: str, files: Mapping[str, Sequence[str]], *, priority: int = 0, check: str | None = None,
) -> int:  # fmt: skip
    """Store a queued dataset with files by asset: where each lies, the original first. Return its number.

    The last part of an address is the name that its content follows from.
    """
    assets: dict[str, Any] = {}
    rows: list[tuple[str, str, int, str]] = []
    for asset, (href, *others) in files.items():
        name = href.rpartition("/")[2]
        assets[asset] = {
            "href": href, "file:size": len(content(name)), "file:checksum": checksum(name),
            "alternate:name": "west",
            **({"alternate": {f"east{n}": {"href": other} for n, other in enumerate(others)}} if others else {}),
        }  # fmt: skip
        rows.append((asset, f"data/{id}/{name}", len(content(name)), checksum(name)))
    document = {"type": "Feature", "id": id, "collection": "data", "properties": {}, "assets": assets}
    async with conn.transaction():  # a dataset without files would be complete at once
        n = await conn.fetchval(
            """INSERT INTO fedstac.replica_dataset (origin, collection, id, lineage, epoch, seq, pos, event_state,
                      latest, document, size, files, action, rule, priority, "check", state)
               VALUES ('west', 'data', $1, $1, 1, 1, 1, 'published', true, $2, $3, $4, 'replicate', 'all', $5, $6,
                       'queued')
               RETURNING n""",
            id, orjson.dumps(document).decode(), sum(row[2] for row in rows), len(rows), priority, check,
        )  # fmt: skip
        await conn.executemany(
            "INSERT INTO fedstac.replica_file (n, asset, path, size, checksum) VALUES ($1, $2, $3, $4, $5)",
            [(n, *row) for row in rows],
        )
    return int(n)


async def states(conn: Connection) -> dict[str, str]:
    """Return how each dataset stands, by its id."""
    return {row["id"]: row["state"] for row in await conn.fetch("SELECT id, state FROM fedstac.replica_dataset")}
