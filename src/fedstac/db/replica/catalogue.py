"""The local catalogue of a replica node: what its policy is asked of each dataset, and what is not copied, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson

from fedstac.db.conditions import array
from fedstac.db.connections import Connection
from fedstac.db.replica.datasets import DatasetKey, NewestEvent
from fedstac.domain.filters import MOMENTS, TEXTS
from fedstac.domain.replication.dataset_files import digest_of, files_of
from fedstac.domain.replication.reacting import EventState

# What was decided of a dataset so far, as one text that is compared with what a policy says now.
DECIDED = """jsonb_build_array(d.action, d.rule, d.priority, coalesce(d."check", ''), d.on_superseded, d.on_retracted,
                               d.goal, d.tier, d.is_told)::text"""
MOMENT_NAMES = ("datetime", "start_datetime", "end_datetime")
# Whom a policy is asked of: all that are not deleted, less those that were taken out of service because their origin
# does not list them any more (intake.restrict_unlisted), which no policy brings back.
JUDGED = "d.document IS NOT NULL AND (d.is_told OR d.event_state NOT IN ('published', 'retracted'))"


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """A dataset as a policy is asked for it.

    key: JSON of all that its decision follows from (`names_of_key` says in which order). before: of what was decided
    last. is_bare: no file of it is or was planned, and no entry announced. is_parked: under another policy;
    this one may name what it lacks.
    """

    n: int
    epoch: int
    seq: int
    size: int
    state: str
    key: str
    before: str
    is_bare: bool
    is_parked: bool


def names_of_key(names: frozenset[str]) -> list[str]:
    """Return the properties whose values a key has, for a policy that asks for these names."""
    properties = sorted(names - set(TEXTS) - set(MOMENTS) - {"geometry"})
    return [*properties, *(MOMENT_NAMES if names & set(MOMENTS) else ())]


async def page(
    conn: Connection, names: frozenset[str], *, after: int, count: int, digest: str, is_due: bool
) -> list[CatalogueRow]:
    """Return the next datasets that are not deleted, by number.

    A key is [event state, latest, retraction, has files, collection, id or null, geometry or null, values…].
    digest: of the policy; is_due: leave out what was decided by it.
    """
    values = "".join(f", d.facts #> {array(name.split('.'), 'text')}" for name in names_of_key(names))
    rows = await conn.fetch(
        f"""SELECT d.n, d.epoch, d.seq, d.size, d.state,
                   jsonb_build_array(d.event_state, d.latest, d.retraction, d.files > 0, d.collection,
                       {"d.id" if "id" in names else "NULL"},
                       {"d.document -> 'geometry'" if "geometry" in names else "NULL"}{values})::text AS key,
                   {DECIDED} AS before,
                   d.announced_digest IS NULL
                       AND NOT EXISTS (SELECT FROM fedstac.replica_file f WHERE f.n = d.n)
                       AND NOT EXISTS (SELECT FROM fedstac.replica_leftover l WHERE l.n = d.n) AS is_bare,
                   d.state = 'parked' AND d.policy_digest IS DISTINCT FROM $3 AS is_parked
            FROM fedstac.replica_dataset d
            WHERE d.n > $1 AND {JUDGED} AND (NOT $4 OR d.policy_digest IS DISTINCT FROM $3)
            ORDER BY d.n LIMIT $2""",
        after, count, digest, is_due,
    )  # fmt: skip
    return [CatalogueRow(*row) for row in rows]


async def newest_events(conn: Connection, numbers: Sequence[int], *, locking: bool) -> dict[int, NewestEvent]:
    """Return the newest events of datasets as they are stored, by number; `locking`: their rows are locked."""
    rows = await conn.fetch(
        f"""SELECT n, collection, id, origin, lineage, epoch, seq, pos, event_id, event_state, latest, retraction,
                   document, size, files FROM fedstac.replica_dataset d
            WHERE n = ANY ($1::bigint[]) AND {JUDGED} ORDER BY n{" FOR UPDATE" if locking else ""}""",
        list(numbers),
    )
    return {
        row["n"]: NewestEvent(
            DatasetKey(row["collection"], row["id"]), row["origin"], row["lineage"], row["epoch"], row["seq"],
            row["pos"], row["event_id"], EventState(row["event_state"]), row["latest"],
            orjson.loads(row["retraction"]) if row["retraction"] is not None else None, row["document"], row["size"],
            row["files"], digest_of(files_of(orjson.loads(row["document"]))),
        )
        for row in rows
    }  # fmt: skip


async def bytes_here(conn: Connection, numbers: Sequence[int]) -> dict[int, int]:
    """Return the bytes of the whole files that are here of datasets, by number; those without any are left out."""
    rows = await conn.fetch(
        """SELECT n, sum(size)::bigint AS size FROM fedstac.replica_file
           WHERE n = ANY ($1::bigint[]) AND state = 'verified' GROUP BY n""",
        list(numbers),
    )
    return {row["n"]: row["size"] or 0 for row in rows}


async def mark(conn: Connection, rows: Sequence[CatalogueRow], policy_digest: str) -> None:
    """Note that a policy changes nothing of datasets, unless an event has come meanwhile."""
    await conn.execute(
        """UPDATE fedstac.replica_dataset d SET policy_digest = $4
           FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) r (n, epoch, seq)
           WHERE d.n = r.n AND d.epoch = r.epoch AND d.seq = r.seq""",
        [row.n for row in rows], [row.epoch for row in rows], [row.seq for row in rows], policy_digest,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CataloguedDataset:
    """A dataset that is known and not copied: why, since when, and what it would take in files and bytes."""

    collection: str
    id: str
    origin: str
    event_state: str
    state: str
    rule: str
    reason: str
    since: datetime
    files: int
    size: int


async def catalogued(
    conn: Connection, *, collection: str = "", rule: str | None = None, after: int = 0, count: int
) -> tuple[list[CataloguedDataset], int | None]:
    """Return the next datasets that are not copied here, and the number to go on after; None: these are the last."""
    rows = await conn.fetch(
        """SELECT n, collection, id, origin, event_state, state, rule, reason, since, files, size
           FROM fedstac.replica_dataset
           WHERE n > $1 AND state IN ('catalogued', 'removed') AND ($2 = '' OR collection = $2)
             AND ($3::text IS NULL OR rule = $3) ORDER BY n LIMIT $4""",
        after, collection, rule, count,
    )  # fmt: skip
    datasets = [CataloguedDataset(*list(row.values())[1:]) for row in rows]
    return datasets, rows[-1]["n"] if len(rows) == count else None
