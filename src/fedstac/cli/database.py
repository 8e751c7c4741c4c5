"""How commands reach this node's own database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from fedstac import settings as environment

if TYPE_CHECKING:
    from fedstac.db.connections import Connection

T = TypeVar("T")
CLOSE_SECONDS = 10.0


def with_database(work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run work on a connection to this node's database, and return its result."""
    from fedstac.db import opening

    async def connected() -> T:
        conn = await opening.connect(environment.load().dsn, application="fedstac cli")
        try:
            return await work(conn)
        finally:
            await conn.close(timeout=CLOSE_SECONDS)

    return asyncio.run(connected())


def with_actor(work: Callable[[Connection, str], Awaitable[T]]) -> T:
    """Run work on such a connection, with the name under which it stands in the audit log."""

    from fedstac.db import audit

    async def act(conn: Connection) -> T:
        return await work(conn, await audit.operator(conn))

    return with_database(act)
