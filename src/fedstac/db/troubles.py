"""Troubles: what ails the node and needs an operator. The notifier tells of each row once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedstac.db.connections import Connection


async def report(conn: Connection, kind: str, *, place: str, what: str, detail: str) -> None:
    """Store a trouble, of which operators are told. Call it in the transaction of what happened."""
    await conn.execute(
        "INSERT INTO fedstac.trouble (kind, place, what, detail) VALUES ($1, $2, $3, $4)",
        kind, place, what, detail[:2000],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TroubleReport:
    """What is wrong, and why."""

    what: str
    detail: str


async def report_all(conn: Connection, kind: str, *, place: str, reports: Sequence[TroubleReport]) -> None:
    """Store several troubles of one place, as `report` does."""
    if reports:
        await conn.execute(
            """INSERT INTO fedstac.trouble (kind, place, what, detail)
               SELECT $1, $2, * FROM unnest($3::text[], $4::text[])""",
            kind, place, [each.what for each in reports], [each.detail[:2000] for each in reports],
        )  # fmt: skip
