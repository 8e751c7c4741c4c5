"""What a person orders at a replica node: another try of what stands still, or that what nobody wants goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import orjson

from fedstac.db import audit, nodes
from fedstac.db.audit import NewRow
from fedstac.db.connections import Connection
from fedstac.db.replica import datasets, files, removals, settling
from fedstac.db.replica.datasets import DatasetKey
from fedstac.db.replica.files import FilePlan
from fedstac.db.replica.removals import NewRemoval
from fedstac.domain.events import Cursor
from fedstac.domain.replication.dataset_files import files_of
from fedstac.domain.replication.reacting import Goal, GoalKind, react

PAGE = 200  # datasets of one transaction
SHOWN_IDS = 100  # in a row of the audit log


@dataclass(frozen=True, slots=True)
class OrderedDataset:
    """A dataset that an order is about: how it stood, why, and its files that are here, in bytes."""

    n: int
    collection: str
    id: str
    state: str
    reason: str
    files: int
    bytes: int


# --- another try ---

STANDS_STILL = """(d.state IN ('parked', 'waiting')
                   OR EXISTS (SELECT FROM fedstac.replica_announcement a
                              WHERE a.n = d.n AND a.state IN ('queued', 'parked'))
                   OR EXISTS (SELECT FROM fedstac.replica_file f
                              WHERE f.n = d.n AND f.state = 'queued' AND f.next_try > clock_timestamp())
                   OR EXISTS (SELECT FROM fedstac.replica_removal r WHERE r.n = d.n AND r.state <> 'done'))"""


async def parked(conn: Connection, *, after: int) -> list[int]:
    """Return the next datasets that are parked, or of which an announcement is refused, behind a number."""
    rows = await conn.fetch(
        """SELECT n FROM (
               SELECT n FROM fedstac.replica_dataset WHERE state = 'parked' AND n > $1
               UNION SELECT n FROM fedstac.replica_announcement WHERE state = 'parked' AND n > $1) d
           ORDER BY n LIMIT $2""",
        after, PAGE,
    )  # fmt: skip
    return [row["n"] for row in rows]


async def retry(conn: Connection, numbers: Sequence[int], *, actor: str) -> list[OrderedDataset]:
    """Try datasets again at once: failed files, announcements, removals. Return those of them that stood still.

    What their sources were disqualified for is forgotten: the person who orders this has seen to it. One transaction.
    """
    async with conn.transaction():
        rows = await conn.fetch(
            f"""SELECT d.n, d.collection, d.id, d.state, d.reason, d.files, d.size AS bytes
                FROM fedstac.replica_dataset d WHERE d.n = ANY ($1::bigint[]) AND {STANDS_STILL}
                ORDER BY d.n FOR UPDATE OF d""",
            list(numbers),
        )  # fmt: skip
        standing = [row["n"] for row in rows]
        if not standing:
            return []
        await conn.execute(
            """DELETE FROM fedstac.replica_source_fault s USING fedstac.replica_file f
               WHERE s.n = ANY ($1::bigint[]) AND f.n = s.n AND f.asset = s.asset AND f.state <> 'verified'""",
            standing,
        )
        await _plan_anew(conn, standing)
        await conn.execute(
            """UPDATE fedstac.replica_file f
               SET state = 'queued', attempts = 0, next_try = NULL, href = NULL, lane = NULL,
                   reason = CASE WHEN f.state = 'failed' THEN 'tried again; before: ' || f.reason ELSE f.reason END
               FROM fedstac.replica_dataset d
               WHERE d.n = ANY ($1::bigint[]) AND f.n = d.n AND f.state IN ('failed', 'queued') AND f.path <> ''
                 AND d.goal = 'serve'""",
            standing,
        )
        await conn.execute(
            """UPDATE fedstac.replica_dataset
               SET state = 'queued', reason = '', until = NULL, lane = NULL, attempts = 0, next_try = NULL,
                   since = clock_timestamp(), updated = clock_timestamp()
               WHERE n = ANY ($1::bigint[]) AND state IN ('parked', 'waiting') AND goal = 'serve'""",
            standing,
        )
        await conn.execute(
            """UPDATE fedstac.replica_announcement
               SET state = CASE WHEN state = 'parked' THEN 'queued' ELSE state END, attempts = 0, conflicts = 0,
                   next_try = NULL,
                   request = CASE WHEN state = 'parked' THEN NULL ELSE request END, updated = clock_timestamp()
               WHERE n = ANY ($1::bigint[]) AND state <> 'done'""",
            standing,
        )
        await conn.execute(
            """UPDATE fedstac.replica_removal SET attempts = 0, next_try = NULL
               WHERE n = ANY ($1::bigint[]) AND state <> 'done'""",
            standing,
        )
        await files.park_the_impossible(conn, standing)
        await settling.finish_datasets(conn, standing)  # those that all files are here of are checked, or announced
        result = [OrderedDataset(**dict(row)) for row in rows]
        await _audit(conn, actor, "retry-replica", result)
    return result


async def _plan_anew(conn: Connection, numbers: Sequence[int]) -> None:
    """Give paths to files of locked datasets that had none: what was in their way may be gone."""
    rows = await conn.fetch(
        """SELECT n, tier, document FROM fedstac.replica_dataset d
           WHERE n = ANY ($1::bigint[]) AND state IN ('parked', 'waiting') AND goal = 'serve' AND document IS NOT NULL
             AND EXISTS (SELECT FROM fedstac.replica_file f WHERE f.n = d.n AND f.state = 'failed' AND f.path = '')
           ORDER BY n""",
        list(numbers),
    )  # fmt: skip
    await files.plan(conn, [FilePlan(n, tier, files_of(orjson.loads(document))) for n, tier, document in rows])


# --- what has to go ---


async def unwanted(conn: Connection, *, after: int, limit: int = PAGE) -> list[OrderedDataset]:
    """Return the next datasets that have files here and that the policy does not want any more, behind a number."""
    rows = await conn.fetch(
        """SELECT d.n, d.collection, d.id, d.state, d.reason, f.files, f.bytes
           FROM fedstac.replica_dataset d CROSS JOIN LATERAL (
               SELECT count(*) AS files, coalesce(sum(CASE WHEN state = 'verified' THEN size ELSE done_bytes END), 0)
                          ::bigint AS bytes
               FROM fedstac.replica_file f WHERE f.n = d.n) f
           WHERE d.goal = 'ignore' AND d.n > $1 AND f.files > 0
             AND NOT EXISTS (SELECT FROM fedstac.replica_removal r WHERE r.n = d.n AND r.state <> 'done')
           ORDER BY d.n LIMIT $2""",
        after, limit,
    )  # fmt: skip
    return [OrderedDataset(**dict(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class OpenRemoval:
    """A removal that an event or the policy has ordered already."""

    n: int
    collection: str
    id: str
    kind: str
    state: str
    reason: str
    files: int
    bytes: int


async def open_removals(conn: Connection, *, after: int, limit: int = PAGE) -> list[OpenRemoval]:
    """Return the next removals that are not done, behind the number of a dataset."""
    rows = await conn.fetch(
        """SELECT d.n, d.collection, d.id, r.kind, r.state, r.reason, d.files, d.size AS bytes
           FROM fedstac.replica_removal r JOIN fedstac.replica_dataset d USING (n)
           WHERE r.state <> 'done' AND r.n > $1 ORDER BY r.n LIMIT $2""",
        after, limit,
    )  # fmt: skip
    return [OpenRemoval(**dict(row)) for row in rows]


async def purge(conn: Connection, rows: Sequence[OrderedDataset], *, actor: str) -> list[OrderedDataset]:
    """Order that all files of these datasets go, of those that the policy still does not want. Return them.

    In one transaction. The node's removals do it: the origin is told first, then the bytes go.
    """
    async with conn.transaction():
        locked = await datasets.lock_all(conn, [DatasetKey(row.collection, row.id) for row in rows])
        due = [(row, locked[DatasetKey(row.collection, row.id)]) for row in rows
               if DatasetKey(row.collection, row.id) in locked]  # fmt: skip
        due = [(row, each) for row, each in due if each.goal.kind is GoalKind.IGNORE and each.here.has_files]
        changes = []
        for _, each in due:
            goal = Goal(GoalKind.PURGE, f"{each.goal.reason or 'the policy does not want it'}; purged by {actor}",
                        is_told=each.goal.is_told)  # fmt: skip
            here = replace(each.here, reason=goal.reason)
            changes.append((each, goal, react(here, goal, has_other_files=False)))
        await datasets.redirect(conn, [(each.n, goal, reaction) for each, goal, reaction in changes])
        places = {origin: await _next_place(conn, origin) for origin in {each.origin for _, each in due}}
        await removals.order(
            conn,
            [NewRemoval(each.n, each.origin, places[each.origin].epoch, places[each.origin].pos, "", reaction.removal,
                        goal.reason)
             for each, goal, reaction in changes if reaction.removal is not None],
        )  # fmt: skip
        result = [row for row, _ in due]
        await _audit(conn, actor, "purge-replica", result)
    return result


async def _next_place(conn: Connection, origin: str) -> Cursor:
    """Return the place behind all that is applied of an origin: what is applied may be acknowledged."""
    place = await nodes.progress(conn, nodes.REPLICA, origin)
    return Cursor(place.cursor.epoch, place.cursor.pos + 1) if place is not None else Cursor(0, 1)


async def _audit(conn: Connection, actor: str, action: str, rows: Sequence[OrderedDataset]) -> None:
    """Write a row for each collection: how many datasets, and the first ids."""
    audit_rows = []
    for collection in sorted({row.collection for row in rows}):
        ids = [row.id for row in rows if row.collection == collection]
        audit_rows.append(NewRow(
            actor=actor, action=action, collection=collection, dataset=ids[0] if len(ids) == 1 else "", request=None,
            outcome="done", before=None, after=None, items=len(ids),
            detail=orjson.dumps({"ids": ids[:SHOWN_IDS]}).decode(),
        ))  # fmt: skip
    await audit.append(conn, audit_rows)
