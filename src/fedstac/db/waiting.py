"""What waits for the background parts of a node: one look for all of them (runtime/commits.py)."""

from __future__ import annotations

from typing import Final

from fedstac.db import bulks, cascades, deletions, grant_turns, loads, notifications, queue, sinks, webhook_deliveries
from fedstac.db.connections import Connection
from fedstac.db.replica import announcements, claims, removals

# For each part whether it has something to do, or will have within a minute though nobody commits anything.
WORK: Final = {
    "publisher": queue.ANY_WAITING,
    "bulk": bulks.ANY_OPEN,
    "loads": loads.ANY_STEP,
    "grants": grant_turns.ANY_TURN,
    "notifier": notifications.ANYTHING_TO_TELL,
    "relay": sinks.ANY,
    "statuses": sinks.ANY,
    "cascades": cascades.ANY_OPEN,
    "deletions": deletions.ANY_OPEN,
    "subscriptions": webhook_deliveries.ANY_BEHIND,
    "transfers": claims.ANY_WORK,
    "announcer": announcements.ANY_OPEN,
    "removals": removals.ANY_OPEN,
}


async def snapshot(conn: Connection) -> str:
    """Return what is committed just now, as a name: it is another one after each commit in the cluster."""
    return str(await conn.fetchval("SELECT pg_current_snapshot()::text"))


async def read(conn: Connection) -> dict[str, bool]:
    """Return for each part in WORK whether something waits for it."""
    row = await conn.fetchrow(f"SELECT {', '.join(f'{there_is} AS {part}' for part, there_is in WORK.items())}")
    assert row is not None
    return dict(row)
