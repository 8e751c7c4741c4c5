"""Troubles: what ails the node and needs an operator. The notifier tells of each row once."""

from __future__ import annotations

from fedstac.db.connections import Connection

KEPT_DAYS = 30


async def report(conn: Connection, kind: str, *, place: str, what: str, detail: str) -> None:
    """Store a trouble, of which operators are told. Call it in the transaction of what happened."""
    await conn.execute(
        "INSERT INTO fedstac.trouble (kind, place, what, detail) VALUES ($1, $2, $3, $4)",
        kind, place, what, detail[:2000],
    )  # fmt: skip


async def forget(conn: Connection) -> int:
    """Delete old troubles; return how many."""
    status = await conn.execute(
        f"DELETE FROM fedstac.trouble WHERE at < clock_timestamp() - interval '{KEPT_DAYS} days'"
    )
    return int(status.rpartition(" ")[2])
