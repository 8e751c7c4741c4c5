"""How a replica node stands: its datasets by state, its pace, the files of one dataset. For people, who read only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from fedstac.db.connections import Connection, Row

BUSY = ("queued", "transferring", "checking")  # datasets that go on by themselves, now
PACE_SECONDS = 600.0  # of the past, over which the pace of the transfers is measured
PAGE = 1000  # files that one statement reads
MOST_LISTED = 200  # datasets of a list for people
MOST_REASONS = 50
ORDER = [  # of the states, as people read them
    "transferring", "checking", "queued", "waiting", "complete", "announced", "parked", "moving", "removing",
    "restricted", "removed", "catalogued",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class StateSummary:
    """The datasets of one state. `done_bytes`: of these `bytes`, those that are here."""

    state: str
    datasets: int
    files: int
    bytes: int
    done_bytes: int


@dataclass(frozen=True, slots=True)
class WaitingReason:
    """Why datasets wait or are parked, how many for the same reason, and the moment at which the first goes on."""

    state: str
    reason: str
    datasets: int
    until: datetime | None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """How the node stands. `bytes_a_second`: verified copies over the last PACE_SECONDS."""

    states: Sequence[StateSummary]
    reasons: Sequence[WaitingReason]
    bytes_a_second: float
    removals: int  # that are wanted and not done
    announcements: int  # on their way to an origin
    last_progress: datetime | None  # when a file was last verified

    @property
    def left_bytes(self) -> int:
        """The bytes that are still to come of datasets that go on by themselves."""
        return sum(each.bytes - each.done_bytes for each in self.states if each.state in BUSY)

    @property
    def left_seconds(self) -> float | None:
        """The time until these bytes are here, at the pace of late; None where that is not known."""
        if not self.left_bytes:
            return 0.0
        return self.left_bytes / self.bytes_a_second if self.bytes_a_second > 0 else None


async def of_node(conn: Connection) -> NodeStatus:
    """Return how the node stands. Of files, only those that are not here and those of late are looked at."""
    rows = await conn.fetch(
        """WITH open AS MATERIALIZED (
               SELECT n, sum(greatest(coalesce(size, 0) - done_bytes, 0)) AS bytes
               FROM fedstac.replica_file WHERE state <> 'verified' GROUP BY n)
           SELECT d.state, count(*) AS datasets, sum(d.files)::bigint AS files, sum(d.size)::bigint AS bytes,
                  (CASE WHEN d.state IN ('catalogued', 'removed') THEN 0
                        ELSE greatest(sum(d.size) - coalesce(sum(o.bytes), 0), 0) END)::bigint AS done_bytes
           FROM fedstac.replica_dataset d LEFT JOIN open o USING (n)
           GROUP BY d.state ORDER BY min(array_position($1::text[], d.state)), d.state""",
        ORDER,
    )
    reasons = await conn.fetch(
        """SELECT state, reason, count(*) AS datasets, min(until) AS until FROM fedstac.replica_dataset
           WHERE state IN ('waiting', 'parked') GROUP BY state, reason
           ORDER BY state, datasets DESC, reason LIMIT $1""",
        MOST_REASONS,
    )
    row = await conn.fetchrow(
        """SELECT (SELECT coalesce(sum(size), 0)::float8 / $1 FROM fedstac.replica_file
                   WHERE verified_at > clock_timestamp() - make_interval(secs => $1) AND source IS NOT NULL) AS pace,
                  (SELECT count(*) FROM fedstac.replica_removal WHERE state <> 'done') AS removals,
                  (SELECT count(*) FROM fedstac.replica_announcement
                   WHERE state IN ('queued', 'sent')) AS announcements,
                  (SELECT max(verified_at) FROM fedstac.replica_file) AS progress""",
        PACE_SECONDS,
    )
    assert row is not None
    return NodeStatus(
        [StateSummary(**dict(each)) for each in rows], [WaitingReason(**dict(each)) for each in reasons],
        row["pace"], row["removals"], row["announcements"], row["progress"],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReplicaDataset:
    """A dataset of the node, in its state."""

    n: int
    origin: str
    collection: str
    id: str
    action: str
    rule: str
    priority: int
    tier: str
    state: str
    reason: str
    until: datetime | None
    attempts: int
    next_try: datetime | None
    size: int
    files: int
    is_announced: bool
    since: datetime


COLUMNS = """n, origin, collection, id, action, rule, priority, tier, state, reason, until, attempts, next_try,
             size, files, announced_digest IS NOT NULL AS is_announced, since"""


async def datasets(
    conn: Connection, states: Sequence[str], *, after: int = 0, limit: int = MOST_LISTED
) -> list[ReplicaDataset]:
    """Return datasets that have one of the states and come after a number, by their numbers."""
    rows = await conn.fetch(
        f"""SELECT {COLUMNS} FROM fedstac.replica_dataset
            WHERE state = ANY ($1::text[]) AND n > $2 ORDER BY n LIMIT $3""",
        list(states), after, limit,
    )  # fmt: skip
    return [ReplicaDataset(**dict(row)) for row in rows]


async def dataset(conn: Connection, id: str, collection: str = "") -> list[ReplicaDataset]:
    """Return the dataset of an id: several where collections share it and none is named, none where nobody named it."""
    rows = await conn.fetch(
        f"""SELECT {COLUMNS} FROM fedstac.replica_dataset
            WHERE id = $1 AND ($2 = '' OR collection = $2) ORDER BY collection""",
        id, collection,
    )  # fmt: skip
    return [ReplicaDataset(**dict(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file of a dataset. `done_bytes`: those that are here."""

    asset: str
    path: str
    tier: str
    size: int | None
    checksum: str | None
    state: str
    reason: str
    source: str | None
    attempts: int
    next_try: datetime | None
    done_bytes: int
    verified_at: datetime | None


@dataclass(frozen=True, slots=True)
class FileCounts:
    """The files of a dataset in one state."""

    state: str
    files: int
    bytes: int
    done_bytes: int


FILE_COLUMNS = "asset, path, tier, size, checksum, state, reason, source, attempts, next_try, done_bytes, verified_at"


def _file(row: Row) -> FileRow:
    values = dict(row)
    if values["state"] == "verified" and values["size"] is not None:
        values["done_bytes"] = values["size"]
    return FileRow(**values)


async def count_files(conn: Connection, n: int) -> list[FileCounts]:
    """Return how many files of a dataset are in each state."""
    rows = await conn.fetch(
        """SELECT state, count(*) AS files, coalesce(sum(size), 0)::bigint AS bytes,
                  coalesce(sum(CASE WHEN state = 'verified' THEN coalesce(size, 0) ELSE done_bytes END), 0)::bigint
                      AS done_bytes
           FROM fedstac.replica_file WHERE n = $1 GROUP BY state ORDER BY state""",
        n,
    )
    return [FileCounts(**dict(row)) for row in rows]


async def first_files(conn: Connection, n: int, states: Sequence[str], limit: int) -> list[FileRow]:
    """Return the files of a dataset that people ask for first: failed ones, then those under way, the verified last."""
    rows = await conn.fetch(
        f"""SELECT {FILE_COLUMNS} FROM fedstac.replica_file WHERE n = $1 AND state = ANY ($2::text[])
            ORDER BY array_position(ARRAY['failed', 'transferring', 'queued', 'verified'], state), asset LIMIT $3""",
        n, list(states), limit,
    )  # fmt: skip
    return [_file(row) for row in rows]


async def every_file(conn: Connection, n: int, states: Sequence[str]) -> AsyncIterator[FileRow]:
    """Yield all files of a dataset that have one of the states, by asset, a page in memory at a time."""
    after = ""
    while True:
        rows = await conn.fetch(
            f"""SELECT {FILE_COLUMNS} FROM fedstac.replica_file
                WHERE n = $1 AND asset > $2 AND state = ANY ($3::text[]) ORDER BY asset LIMIT $4""",
            n, after, list(states), PAGE,
        )  # fmt: skip
        for row in rows:
            yield _file(row)
        if len(rows) < PAGE:
            return
        after = rows[-1]["asset"]
