"""Removals: files that have to go out of the served tree, or to another tier, and what waits for that.

At most one removal of a dataset is open. What has to happen is what the dataset's row says when it is done, not when it
was ordered. The origin is told of no event from an open removal's place on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedstac.db import troubles
from fedstac.db.connections import Connection
from fedstac.db.troubles import TroubleReport
from fedstac.domain.events import Cursor
from fedstac.domain.replication.states import OUT_OF_SIGHT, RemovalKind

KEPT_DAYS = 30  # removals that are done
LONGEST_PAUSE_SECONDS = 600
LOOKED_AT_ONCE = 100


ANY_OPEN = "EXISTS (SELECT FROM fedstac.replica_removal WHERE state <> 'done')"


@dataclass(frozen=True, slots=True)
class NewRemoval:
    """What has to leave its place because of an event, whose place in the feed is (epoch, pos)."""

    n: int
    origin: str
    epoch: int
    pos: int
    event_id: str
    kind: RemovalKind
    reason: str


@dataclass(frozen=True, slots=True)
class Removal:
    """A removal that is open. is_begun: files may have left their places, stored or not."""

    id: int
    n: int
    kind: RemovalKind
    attempts: int
    is_begun: bool


async def order(conn: Connection, removals: Sequence[NewRemoval]) -> None:
    """Order removals. One that is open already gets the new kind, and keeps the place that it acknowledges."""
    await conn.execute(
        """INSERT INTO fedstac.replica_removal AS r (n, origin, epoch, pos, event_id, kind, reason)
           SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[],
                                $7::text[])
           ON CONFLICT (n) WHERE state <> 'done' DO UPDATE SET kind = EXCLUDED.kind, reason = EXCLUDED.reason,
                  event_id = EXCLUDED.event_id, state = 'queued', attempts = 0, next_try = NULL""",
        [each.n for each in removals], [each.origin for each in removals], [each.epoch for each in removals],
        [each.pos for each in removals], [each.event_id for each in removals], [each.kind for each in removals],
        [each.reason for each in removals],
    )  # fmt: skip


async def overtake(conn: Connection, numbers: Sequence[int]) -> None:
    """End the open removals of datasets that may stay as they are, by a later event.

    One that has begun is no such: its files are looked at first (reacting.react).
    """
    await conn.execute(
        """UPDATE fedstac.replica_removal SET state = 'done', reason = 'a later event took it back', done_at = now()
           WHERE n = ANY ($1::bigint[]) AND state <> 'done'""",
        list(numbers),
    )


async def next_due(conn: Connection) -> list[Removal]:
    """Return the removals whose time has come, those that no worker holds files of.

    What nobody shall be served any more comes first; then the oldest.
    """
    rows = await conn.fetch(
        """SELECT r.id, r.n, r.kind, r.attempts, r.begun FROM fedstac.replica_removal r
           WHERE r.state = 'queued' AND coalesce(r.next_try, '-infinity') <= clock_timestamp()
             AND NOT EXISTS (SELECT FROM fedstac.replica_claim c WHERE c.n = r.n)
           ORDER BY r.kind = ANY($2::text[]) DESC, r.next_try NULLS FIRST, r.id LIMIT $1""",
        LOOKED_AT_ONCE,
        list(OUT_OF_SIGHT),
    )
    return [Removal(row["id"], row["n"], RemovalKind(row["kind"]), row["attempts"], row["begun"]) for row in rows]


async def open_of(conn: Connection, n: int) -> Removal | None:
    """Return the removal of a locked dataset that is to be done; None where there is none, or a worker has files."""
    row = await conn.fetchrow(
        """SELECT id, n, kind, attempts, begun FROM fedstac.replica_removal r
           WHERE n = $1 AND state = 'queued' AND NOT EXISTS (SELECT FROM fedstac.replica_claim c WHERE c.n = r.n)""",
        n,
    )
    return Removal(row["id"], row["n"], RemovalKind(row["kind"]), row["attempts"], row["begun"]) if row else None


async def begin(conn: Connection, removal: Removal) -> None:
    """Store that the files of a removal leave their places from now on."""
    await conn.execute("UPDATE fedstac.replica_removal SET begun = true WHERE id = $1", removal.id)


async def move_on(conn: Connection, removal: Removal, *, is_done: bool) -> None:
    """Store that files are where they belong. One that is not done yet waits until the origin knows."""
    await conn.execute(
        """UPDATE fedstac.replica_removal r
           SET state = CASE WHEN $2 THEN 'done' ELSE 'moved' END, next_try = NULL,
               done_at = CASE WHEN $2 THEN now() END,
               reason = CASE WHEN EXISTS (SELECT FROM fedstac.replica_dataset d
                                          WHERE d.n = r.n AND d.event_state IN ('deleted', 'purged'))
                             THEN '' ELSE reason END  -- it may name a file
           WHERE id = $1""",
        removal.id, is_done,
    )  # fmt: skip


async def fail(conn: Connection, removal: Removal, name: str, reason: str) -> None:
    """Store what stands in the way of a removal. It is tried again, later each time; operators are told."""
    await conn.execute(
        """UPDATE fedstac.replica_removal
           SET attempts = attempts + 1, reason = $2,
               next_try = clock_timestamp() + make_interval(secs => least(2 ^ least(attempts, 16), $3))
           WHERE id = $1 AND state = 'queued'""",
        removal.id, reason, LONGEST_PAUSE_SECONDS,
    )  # fmt: skip
    await troubles.report_all(
        conn,
        "replica-parked",
        place="removals",
        reports=[TroubleReport(f"the files of {name} cannot be moved", reason)],
    )


async def end_told(conn: Connection) -> int:
    """End the removals whose files are gone and of whose dataset the origin has no entry of ours. Return how many."""
    rows = await conn.fetch(
        """UPDATE fedstac.replica_removal r SET state = 'done', done_at = now()
           FROM fedstac.replica_dataset d
           WHERE r.state = 'moved' AND d.n = r.n
             AND (NOT d.is_told OR d.announced_digest IS NULL AND NOT EXISTS (
                  SELECT FROM fedstac.replica_announcement a
                  WHERE a.n = r.n AND NOT (a.kind = 'remove' AND a.state = 'done')))
           RETURNING r.id"""
    )
    return len(rows)


async def oldest_open(conn: Connection, origin: str) -> Cursor | None:
    """Return the place of the earliest event that waits for a removal; None where none does."""
    row = await conn.fetchrow(
        """SELECT epoch, pos FROM fedstac.replica_removal WHERE origin = $1 AND state <> 'done'
           ORDER BY epoch, pos LIMIT 1""",
        origin,
    )
    return Cursor(row["epoch"], row["pos"]) if row else None


async def forget_done(conn: Connection) -> None:
    """Delete removals that were done long ago."""
    await conn.execute(
        """DELETE FROM fedstac.replica_removal
           WHERE state = 'done' AND done_at < now() - make_interval(days => $1)""",
        KEPT_DAYS,
    )
