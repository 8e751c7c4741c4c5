"""What is due at a replica node: events that it has not applied, files, checks, announcements, removals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from fedstac.db import nodes
from fedstac.db.connections import Connection
from fedstac.domain.events import Cursor

SOON_SECONDS = 15.0  # what is tried again by then is waited for


@dataclass(frozen=True, slots=True)
class DueWork:
    """What is due now or in a moment, and what was done since a moment, in files and bytes."""

    feeds: int  # origins whose events are not all applied
    datasets: int  # with files to fetch, to check, or to move
    announcements: int
    removals: int
    left_bytes: int  # of files that are fetched now, or next
    done_files: int
    done_bytes: int
    parked: int
    waiting: int

    @property
    def is_any(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self.feeds or self.datasets or self.announcements or self.removals)


async def read(conn: Connection, heads: Mapping[str, Cursor], since: datetime) -> DueWork:
    """Return what is due. `heads`: through where the events of each origin are to be applied."""
    feeds = 0
    for origin, head in heads.items():
        place = await nodes.progress(conn, nodes.REPLICA, origin)
        feeds += place is None or place.snapshot is not None or place.cursor < head
    row = await conn.fetchrow(
        """WITH soon AS MATERIALIZED (SELECT clock_timestamp() + make_interval(secs => $1) AS at),
           fetched AS MATERIALIZED (
               SELECT d.n, sum(greatest(coalesce(f.size, 0) - f.done_bytes, 0)) AS bytes
               FROM fedstac.replica_dataset d JOIN fedstac.replica_file f ON f.n = d.n AND f.state <> 'verified', soon
               WHERE (d.state IN ('queued', 'transferring')
                      OR d.state = 'waiting' AND coalesce(d.until, '-infinity') <= soon.at)
               GROUP BY d.n
               HAVING bool_or(f.state = 'transferring' OR f.state = 'queued'
                              AND coalesce(f.next_try, '-infinity') <= (SELECT at FROM soon))),
           verified AS MATERIALIZED (
               SELECT count(*) AS files, coalesce(sum(size), 0) AS bytes FROM fedstac.replica_file
               WHERE verified_at >= $2)
           SELECT (SELECT count(*) FROM fetched) + (
                      SELECT count(*) FROM fedstac.replica_dataset d, soon
                      WHERE d.state = 'checking' AND coalesce(d.next_try, '-infinity') <= soon.at) AS datasets,
                  (SELECT count(*) FROM fedstac.replica_announcement a, soon
                   WHERE a.state IN ('queued', 'sent') AND coalesce(a.next_try, '-infinity') <= soon.at)
                      AS announcements,
                  (SELECT count(*) FROM fedstac.replica_removal r, soon
                   WHERE r.state <> 'done' AND coalesce(r.next_try, '-infinity') <= soon.at) AS removals,
                  (SELECT coalesce(sum(bytes), 0)::bigint FROM fetched) AS left_bytes,
                  v.files AS done_files, v.bytes::bigint AS done_bytes,
                  (SELECT count(*) FROM fedstac.replica_dataset WHERE state = 'parked') AS parked,
                  (SELECT count(*) FROM fedstac.replica_dataset WHERE state = 'waiting') AS waiting
           FROM verified v""",
        SOON_SECONDS, since,
    )  # fmt: skip
    assert row is not None
    return DueWork(feeds, **dict(row))
