"""Which tiers of a replica node have their mark on the disk. They had it once, so their disk has it always."""

from __future__ import annotations

from collections.abc import Collection

from fedstac.db.connections import Connection


async def tiers(conn: Connection) -> set[str]:
    """Return the tiers whose folder has got its mark."""
    return {row["tier"] for row in await conn.fetch("SELECT tier FROM fedstac.replica_mark")}


async def store(conn: Connection, tiers: Collection[str]) -> None:
    """Store that the folders of tiers have their marks."""
    await conn.execute(
        "INSERT INTO fedstac.replica_mark (tier) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", sorted(tiers)
    )
