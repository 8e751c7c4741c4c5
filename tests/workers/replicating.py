"""A replica node beside an index node in one database, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fedstac import bootstrap
from fedstac.db.connections import Connection
from fedstac.settings import Settings
from fedstac.workers import roles
from tests.support.nodes import Api

POLICY = "version: 1\nsources: []\nrules:\n- {name: all, where: collection = 'CMIP6', action: replicate}\n"


def settings_of(index: Api, api: Api, place: Path) -> Settings:
    return index.settings.model_copy(update={
        "replica_policy": str(place.with_name("policy.yaml")), "replica_folder": str(place),
        "replica_url": "https://east.example/data", "replica_token": api.tokens["node:east"],
    })  # fmt: skip


@asynccontextmanager
async def replicating(settings: Settings) -> AsyncIterator[Connection]:
    """Run the parts of a replica node, and give a connection to its database."""
    stop = asyncio.Event()
    async with (
        bootstrap.node(settings) as node,
        bootstrap.beside(node, roles.REPLICA.parts(settings), stop),
        node.pool.acquire() as conn,
    ):
        yield conn


async def plant(conn: Connection, place: Path, id: str) -> list[Path]:
    """Put the files of a dataset where they belong, as if they had been copied and announced."""
    rows = await conn.fetch(
        "SELECT f.* FROM fedstac.replica_file f JOIN fedstac.replica_dataset USING (n) WHERE id = $1", id
    )
    paths = [place / row["path"] for row in rows]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"whole")
    async with conn.transaction():
        # the dataset before its files, as the node does: its parts run beside this
        await conn.execute("UPDATE fedstac.replica_dataset SET state = 'announced' WHERE n = $1", rows[0]["n"])
        await conn.execute("UPDATE fedstac.replica_file SET state = 'verified' WHERE n = $1", rows[0]["n"])
    return paths
