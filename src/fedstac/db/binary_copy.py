"""PostgreSQL's binary COPY (COPY, "Binary Format"): the frame of its rows, and moments as it has them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from fedstac.db.connections import Connection

HEAD, TAIL = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


async def write(conn: Connection, schema: str, table: str, columns: Sequence[str], rows: Sequence[bytes]) -> None:
    """Insert rows, each with the number of its fields and the length of each field before it."""
    source: Any = memoryview(b"".join((HEAD, *rows, TAIL)))  # asyncpg takes bytes for the name of a file
    await conn.copy_to_table(table, schema_name=schema, columns=columns, source=source, format="binary")


@lru_cache(maxsize=4096)  # a batch shares its moments
def microseconds(moment: str) -> int:
    """Return a moment of RFC 3339 as a timestamptz."""
    return microseconds_of(datetime.fromisoformat(moment.upper()))


def microseconds_of(moment: datetime) -> int:
    """Return a moment as a timestamptz."""
    return (moment - EPOCH) // MICROSECOND
