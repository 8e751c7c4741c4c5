"""Sessions of the web console: the hash of a cookie's secret, and the caller's tokens sealed with that secret."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from fedstac.db.connections import Connection

MOST_OF_ACTOR = 20  # sessions that one actor has at once; older ones end
SWEPT_AT_ONCE = 1000
TOUCH_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session that has not ended. `is_stale`: its use is to be noted. renewal: what renews its token, sealed too."""

    sealed: str
    renewal: str | None
    actor: str
    is_stale: bool


async def add(
    conn: Connection, id: bytes, *, sealed: str, renewal: str | None, actor: str, longest: timedelta, idle: timedelta
) -> None:  # fmt: skip
    """Store a session. Those that ended go, and of the actor's the oldest beyond MOST_OF_ACTOR."""
    await conn.execute(
        """DELETE FROM fedstac.console_session WHERE id IN (
               SELECT id FROM fedstac.console_session
               WHERE ends_at < clock_timestamp() OR used_at < clock_timestamp() - $2::interval
               LIMIT $3)
           OR id IN (
               SELECT id FROM fedstac.console_session WHERE actor = $1 ORDER BY opened_at DESC OFFSET $4)""",
        actor, idle, SWEPT_AT_ONCE, MOST_OF_ACTOR - 1,
    )  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.console_session (id, sealed, renewal, actor, ends_at)
           VALUES ($1, $2, $3, $4, clock_timestamp() + $5::interval)""",
        id, sealed, renewal, actor, longest,
    )  # fmt: skip


async def find(conn: Connection, id: bytes, *, idle: timedelta) -> StoredSession | None:
    """Return the session of a hash; None where there is none, or it ended."""
    row = await conn.fetchrow(
        """SELECT sealed, renewal, actor, used_at < clock_timestamp() - $3::interval AS is_stale
           FROM fedstac.console_session
           WHERE id = $1 AND ends_at > clock_timestamp() AND used_at > clock_timestamp() - $2::interval""",
        id, idle, TOUCH_EVERY,
    )  # fmt: skip
    return None if row is None else StoredSession(**dict(row))


async def touch(conn: Connection, id: bytes) -> None:
    """Note that a session is used."""
    await conn.execute("UPDATE fedstac.console_session SET used_at = clock_timestamp() WHERE id = $1", id)


async def claim_renewal(conn: Connection, id: bytes, *, sealed: str, seconds: float) -> bool:
    """Tell whether the caller is the one to renew a session whose token is this one; nobody else is for so long."""
    return bool(await conn.fetchval(
        """UPDATE fedstac.console_session SET renewing_until = clock_timestamp() + make_interval(secs => $3)
           WHERE id = $1 AND sealed = $2 AND (renewing_until IS NULL OR renewing_until < clock_timestamp())
           RETURNING true""",
        id, sealed, seconds,
    ))  # fmt: skip


async def renew(conn: Connection, id: bytes, *, sealed: str, renewal: str | None) -> None:
    """Store the newer tokens of a session."""
    await conn.execute(
        "UPDATE fedstac.console_session SET sealed = $2, renewal = $3, renewing_until = NULL WHERE id = $1",
        id, sealed, renewal,
    )  # fmt: skip


async def release_renewal(conn: Connection, id: bytes) -> None:
    """Let another request renew a session: this one could not."""
    await conn.execute("UPDATE fedstac.console_session SET renewing_until = NULL WHERE id = $1", id)


async def remove(conn: Connection, id: bytes) -> None:
    """End a session."""
    await conn.execute("DELETE FROM fedstac.console_session WHERE id = $1", id)
