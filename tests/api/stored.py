"""What is stored, byte for byte: for tests that something leaves no trace."""

from __future__ import annotations

from fedstac.db.connections import Connection

TABLES = (
    "fedstac.record", "fedstac.lineage", "fedstac.collection", "fedstac.outbox", "fedstac.own_group",
    "fedstac.own_group_person", "pgstac.items",
)  # fmt: skip


async def everything(conn: Connection) -> dict[str, list[str]]:
    """Return every row of what a change writes: documents, digests, states, numbers, events, search copies, groups."""
    return {
        table: [row[0] for row in await conn.fetch(f"SELECT t::text FROM {table} t ORDER BY 1")] for table in TABLES
    }
