"""`fedstac vocab check --dsn`: what a node holds, judged by another version than its own."""

from __future__ import annotations

import asyncio
import json
import sys

import asyncpg

from fedstac.bootstrap import Node
from fedstac.db import vocabularies
from fedstac.demo import sample
from tests.db import writing


async def test_what_a_node_holds_is_checked_by_the_version_that_is_named(
    node: Node, dsn: str, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    items = list(sample.items(5))
    async with node.pool.acquire() as writer:
        await writing.create_collections(node, "CMIP6")
        await writing.publish(writer, *items)
    await conn.execute(  # what an older vocabulary allowed
        """UPDATE fedstac.record SET document = regexp_replace(document, '"cmip6:grid_label":"[^"]*"',
               '"cmip6:grid_label":"gone"') WHERE id = $1""",
        items[0]["id"],
    )
    assert [name async for name, _ in vocabularies.documents(conn, "CMIP6", page=2)] == sorted(
        item["id"] for item in items
    )
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fedstac.cli", "vocab", "check", "CMIP6", "6.2.60.0", "--dsn", dsn, "-o", "json",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    answer, _ = await running.communicate()
    found = json.loads(answer)
    assert running.returncode == 1
    assert (found["checked"], found["failing"]) == (5, 1)
    assert found["examples"][0]["id"] == items[0]["id"]
    assert "term" in found["rules"]
