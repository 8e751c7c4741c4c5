"""What a full-state load is compared with: set-wise, where the documents lie, some datasets at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from fedstac.db import loads
from fedstac.db.connections import Connection
from fedstac.db.loads import ChunkOfDatasets, Load
from fedstac.domain.documents import as_stated
from fedstac.domain.reconcile import LoadChange

SHOWN: Final = 10  # ids of each change


async def begin_comparison(conn: Connection, id: UUID) -> None:
    """Begin to compare a locked load with what is here. What an earlier comparison found does not count any more."""
    await conn.execute(
        """UPDATE fedstac.load SET step = 'stated', step_after = '', step_at = NULL, comparison = comparison + 1,
                  comparing_since = clock_timestamp(), compared_at = NULL, current = 0, compared_stated = 0,
                  compared_here = 0, counts = '{}', examples = '{}'
           WHERE id = $1""",
        id,
    )


async def compare_stated(conn: Connection, load: Load, origin: str, limit: int) -> ChunkOfDatasets:
    """Compare the next datasets that a locked load states: each gets its change, and the digest of the record.

    Documents with another digest count as changed; `doubtful` gives those where that may not be so. The document of
    what was deleted here is not kept.
    """
    await loads.look_up_each(conn)
    row = await conn.fetchrow(
        """WITH page AS MATERIALIZED (
               SELECT dataset, problem, document_digest FROM fedstac.load_dataset
               WHERE load = $1 AND dataset > $4 AND part IS NOT NULL ORDER BY dataset LIMIT $5),
           compared AS (
               SELECT p.dataset, r.digest, coalesce(r.state IN ('deleted', 'purged'), false) AS is_gone, CASE
                   WHEN p.problem IS NOT NULL THEN 'invalid'
                   WHEN r.id IS NULL OR r.state = 'cleared' AND r.origin = $2 THEN 'new'
                   WHEN r.origin <> $2 OR r.state NOT IN ('published', 'retracted') THEN 'held'
                   WHEN r.document_digest = p.document_digest AND r.state = 'published' THEN 'unchanged'
                   WHEN r.state = 'retracted' THEN 'held' ELSE 'changed' END AS change
               FROM page p LEFT JOIN fedstac.record r ON r.collection = $3 AND r.id = p.dataset),
           stored AS (
               UPDATE fedstac.load_dataset l
               SET expected = c.digest, change = c.change, comparison = $6,
                   document = CASE WHEN c.is_gone THEN NULL ELSE l.document END,
                   prepared = CASE WHEN c.is_gone THEN NULL ELSE l.prepared END,
                   coded = CASE WHEN c.is_gone THEN NULL ELSE l.coded END
               FROM compared c WHERE l.load = $1 AND l.dataset = c.dataset)
           SELECT count(*) AS count, max(dataset) AS last FROM page""",
        load.id, origin, load.collection, load.step_after, limit, load.comparison,
    )  # fmt: skip
    assert row is not None
    return loads.chunk_of(row["count"], row["last"], limit)


async def compare_here(conn: Connection, load: Load, origin: str, limit: int, *, keeps: bool) -> HereChunk:
    """Look for the next records of the collection in what a locked load states; those that it does not are removed.

    keeps: they are stored, and not counted alone.
    """
    await loads.look_up_each(conn)
    row = await conn.fetchrow(
        """WITH page AS MATERIALIZED (
               SELECT id, lineage, version, cv_version, digest,
                      origin = $2 AND state IN ('published', 'retracted') AS is_current
               FROM fedstac.record WHERE collection = $3 AND id > $4 ORDER BY id LIMIT $5),
           removed AS MATERIALIZED (
               SELECT * FROM page r WHERE is_current AND NOT EXISTS (
                   SELECT FROM fedstac.load_dataset l WHERE l.load = $1 AND l.dataset = r.id AND l.part IS NOT NULL)),
           stored AS (
               INSERT INTO fedstac.load_dataset (load, dataset, lineage, version, cv_version, change, expected,
                                                 comparison)
               SELECT $1, id, lineage, version, cv_version, 'removed', digest, $6 FROM removed WHERE $7
               ON CONFLICT (load, dataset) DO UPDATE
                   SET lineage = EXCLUDED.lineage, version = EXCLUDED.version, cv_version = EXCLUDED.cv_version,
                       change = EXCLUDED.change, expected = EXCLUDED.expected, comparison = EXCLUDED.comparison)
           SELECT (SELECT count(*) FROM page) AS count, (SELECT max(id) FROM page) AS last,
                  (SELECT count(*) FROM page WHERE is_current) AS current,
                  (SELECT count(*) FROM removed) AS removed,
                  ARRAY(SELECT id FROM removed ORDER BY id LIMIT $8) AS first_ids""",
        load.id, origin, load.collection, load.step_after, limit, load.comparison, keeps, SHOWN,
    )  # fmt: skip
    assert row is not None
    return HereChunk(loads.chunk_of(row["count"], row["last"], limit), row["current"], row["removed"], row["first_ids"])


@dataclass(frozen=True, slots=True)
class HereChunk:
    """Some records of a collection. current: those that are this node's and that searches find; removed: not stated."""

    records: ChunkOfDatasets
    current: int
    removed: int
    first_ids: Sequence[str]


async def tally(conn: Connection, load: Load, through: str) -> list[ChangeTally]:
    """Count the datasets of a load by change, from where its step is through an id."""
    rows = await conn.fetch(
        f"""SELECT change, count(*) AS count, (array_agg(dataset ORDER BY dataset))[1:{SHOWN}] AS first_ids
            FROM (SELECT change, dataset FROM fedstac.load_dataset
                  WHERE load = $1 AND dataset > $2 AND dataset <= $3 AND part IS NOT NULL ORDER BY dataset) each
            GROUP BY change""",
        load.id, load.step_after, through,
    )  # fmt: skip
    return [ChangeTally(LoadChange(row["change"]), row["count"], row["first_ids"]) for row in rows]


@dataclass(frozen=True, slots=True)
class ChangeTally:
    """How many of some datasets have a change, and the first ids."""

    change: LoadChange
    count: int
    first_ids: Sequence[str]


def with_tallies(load: Load, tallies: Sequence[ChangeTally]) -> Load:
    """Return a load with more datasets counted."""
    counts, examples = dict(load.counts), dict(load.examples)
    for each in tallies:
        if not each.count:
            continue
        counts[each.change] = counts.get(each.change, 0) + each.count
        examples[each.change] = [*examples.get(each.change, ()), *each.first_ids][:SHOWN]
    return replace(load, counts=counts, examples=examples)


@dataclass(frozen=True, slots=True)
class DoubtfulDataset:
    """A dataset whose documents have different digests, perhaps by what its publisher did not write.

    That is what nodes put into the one that is here, and its level. prepared: what was packed of the other one.
    """

    id: str
    here: str
    there: str
    prepared: str

    @property
    def load_document(self) -> dict[str, Any]:
        """The document that the load states."""
        return as_stated(self.there, self.prepared)


async def doubtful(conn: Connection, load: Load, after: str, through: str, limit: int) -> list[DoubtfulDataset]:
    """Return the next datasets, by id, that count as changed and have replicas here, or are not open.

    None behind `through`.
    """
    rows = await conn.fetch(
        """SELECT l.dataset AS id, r.document AS here, l.document AS there, l.prepared
           FROM fedstac.load_dataset l JOIN fedstac.record r ON r.collection = $2 AND r.id = l.dataset
           WHERE l.load = $1 AND l.change = 'changed' AND (r.replicas IS NOT NULL OR r.access <> 'open')
             AND l.dataset > $3             AND l.dataset <= $4 AND l.part IS NOT NULL
           ORDER BY l.dataset LIMIT $5""",
        load.id, load.collection, after, through, limit,
    )  # fmt: skip
    return [DoubtfulDataset(**dict(row)) for row in rows]


async def mark_unchanged(conn: Connection, id: UUID, datasets: Sequence[str]) -> None:
    """Store that datasets are the same after all."""
    await conn.execute(
        "UPDATE fedstac.load_dataset SET change = 'unchanged' WHERE load = $1 AND dataset = ANY ($2::text[])",
        id, datasets,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ComparedDataset:
    """A dataset of a load, what becomes of it, and why not."""

    id: str
    change: LoadChange | None
    problem: str | None
    detail: str | None


async def datasets(
    conn: Connection, load: Load, *, change: LoadChange | None, after: str, limit: int
) -> list[ComparedDataset]:
    """Return datasets of a load after an id, by their ids; of one change if given. A cancelled one has none."""
    if load.cancelled_by is not None:
        return []
    condition = "(part IS NOT NULL OR comparison = $2)" if change is None else "comparison = $2 AND change = $5"
    rows = await conn.fetch(
        f"""SELECT dataset AS id, CASE WHEN comparison = $2 THEN change END AS change, problem, detail
            FROM fedstac.load_dataset WHERE load = $1 AND dataset > $3 AND {condition} ORDER BY dataset LIMIT $4""",
        load.id, load.comparison, after, limit, *([change] if change is not None else []),
    )  # fmt: skip
    return [
        ComparedDataset(row["id"], LoadChange(row["change"]) if row["change"] else None, row["problem"],
                        row["detail"])
        for row in rows
    ]  # fmt: skip
