"""Invariants (being written)."""

from fedstac.db.connections import Connection


async def check(conn: Connection) -> list[str]:
    """Nothing is checked yet."""
    return []
