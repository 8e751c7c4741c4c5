"""Full-state loads: what somebody says shall exist in a collection, and what that is compared with.

Documents come in parts, and stay here until they are applied. They are compared set-wise, where they lie, some at a
time: a load has up to a million. How far that is, and what it found, stands in the load itself. It is applied as a
change of many datasets (db/bulks.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from fedstac.db import bulks
from fedstac.db.bulks import Bulk
from fedstac.db.connections import Connection, Row
from fedstac.domain.bulk import BulkAction
from fedstac.domain.documents import ItemTexts, TextSource, as_stated, digest_of_packed
from fedstac.domain.reconcile import COMPARING, WORK, ChangeSet, LoadChange, LoadMode, LoadStep

APPLYING_LOCK: Final = 0x666564_0D  # with the collection: the advisory lock of whoever begins to apply a load
BEGINNING_LOCK: Final = 0x666564_15  # the advisory lock of whoever begins a load: open ones are counted
KEPT_DAYS: Final = 7  # that a load stays, unless it is being applied
NO_TEXTS: Final = ItemTexts(None)
TOO_OLD: Final = "it is older than a week"  # in place of who cancelled it
FORGOTTEN_AT_ONCE: Final = 5_000  # datasets of a load
SHOWN: Final = 10  # ids of each change
COLUMNS: Final = """l.id, l.collection, l.mode, l.override, l.submitter, l.roles, l.identity, l.correlation,
                    l.traceparent, l.created, l.compared_at, l.current, l.bulk, l.cancelled_by, l.done_at, l.step,
                    l.step_after, l.comparison, l.compared_stated, l.compared_here, l.counts, l.examples"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLoad:
    """A load as somebody begins it. override: the reason for other files under the same version."""

    id: UUID
    collection: str
    mode: LoadMode
    override: str | None
    submitter: str
    roles: Sequence[str]
    identity: str | None
    correlation: str
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Load:
    """A load as it stands.

    compared_at: when the comparison began that its changes are from; None until it has ended. current: datasets of this
    node in the collection then. counts, examples: what was found so far, the first ids by change. done_at: when it was
    applied, and had nothing to do.
    """

    id: UUID
    collection: str
    mode: LoadMode
    override: str | None
    submitter: str
    roles: Sequence[str]
    identity: str | None
    correlation: str
    traceparent: str | None
    created: datetime
    compared_at: datetime | None
    current: int | None
    bulk: UUID | None
    cancelled_by: str | None
    done_at: datetime | None
    step: LoadStep | None
    step_after: str
    comparison: int
    compared_stated: int
    compared_here: int
    counts: Mapping[LoadChange, int]
    examples: Mapping[LoadChange, Sequence[str]]

    @property
    def takes_parts(self) -> bool:
        """Whether parts may still come: it is neither applied nor cancelled."""
        return self.bulk is None and self.cancelled_by is None and self.done_at is None

    @property
    def is_comparing(self) -> bool:
        """Whether it is being compared."""
        return self.step in COMPARING

    @property
    def changes(self) -> ChangeSet | None:
        """What it would do; None until it was compared."""
        if self.compared_at is None or self.is_comparing:
            return None
        return ChangeSet(self.mode, self.counts, self.current or 0)


def _load(row: Row) -> Load:
    values = {name: row[name] for name in Load.__slots__}
    counts, examples = (orjson.loads(row[name] or "{}") for name in ("counts", "examples"))
    return Load(**{
        **values, "mode": LoadMode(row["mode"]), "step": LoadStep(row["step"]) if row["step"] else None,
        "counts": {LoadChange(change): count for change, count in counts.items()},
        "examples": {LoadChange(change): ids for change, ids in examples.items()},
    })  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadPart:
    """A part that has come. digest: sha-256 of its body."""

    n: int
    digest: bytes
    datasets: int


@dataclass(frozen=True, slots=True)
class StatedDataset:
    """A dataset that a load states; `problem` where its document is refused."""

    id: str
    lineage: str
    version: int | None
    cv_version: str | None
    texts: TextSource | None
    problem: str | None = None
    detail: str | None = None


async def create(conn: Connection, new: NewLoad) -> None:
    """Store a load without parts."""
    await conn.execute(
        """INSERT INTO fedstac.load (id, collection, mode, override, submitter, roles, identity, correlation,
                                     traceparent)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)""",
        new.id, new.collection, new.mode, new.override, new.submitter, list(new.roles), new.identity,
        new.correlation, new.traceparent,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OpenLoads:
    """How many loads are neither applied nor cancelled, and the oldest one of the person who asks."""

    of_person: int
    of_collection: int
    oldest: UUID | None


async def count_open(conn: Connection, submitter: str, collection: str) -> OpenLoads:
    """Count the open loads of a person and of a collection. Until the transaction ends nobody begins another one."""
    await conn.execute("SELECT pg_advisory_xact_lock($1)", BEGINNING_LOCK)
    row = await conn.fetchrow(
        """SELECT count(*) FILTER (WHERE submitter = $1) AS of_person,
                  count(*) FILTER (WHERE collection = $2) AS of_collection,
                  (array_agg(id ORDER BY created, id) FILTER (WHERE submitter = $1))[1] AS oldest
           FROM fedstac.load WHERE bulk IS NULL AND cancelled_by IS NULL AND done_at IS NULL""",
        submitter, collection,
    )  # fmt: skip
    assert row is not None
    return OpenLoads(**dict(row))


async def find(conn: Connection, id: UUID, *, locking: bool = False) -> Load | None:
    """Return a load; None where there is none of that id. locking: until the transaction ends it stays as it is."""
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM fedstac.load l WHERE l.id = $1 {'FOR NO KEY UPDATE' if locking else ''}", id
    )
    return _load(row) if row else None


@dataclass(frozen=True, slots=True)
class ListedLoad:
    """A load in a list. stated_count: datasets of its parts."""

    load: Load
    stated_count: int
    bulk: Bulk | None


async def list_page(conn: Connection, submitter: str | None, *, after: UUID | None, limit: int) -> list[ListedLoad]:
    """Return loads, the newest first; those of somebody, or all."""
    rows = await conn.fetch(
        f"""SELECT {COLUMNS},
                   (SELECT coalesce(sum(p.datasets), 0) FROM fedstac.load_part p WHERE p.load = l.id) AS stated_count
            FROM fedstac.load l
            WHERE ($1::text IS NULL OR l.submitter = $1) AND ($2::uuid IS NULL OR (l.created, l.id) < (
                SELECT created, id FROM fedstac.load WHERE id = $2))
            ORDER BY l.created DESC, l.id DESC LIMIT $3""",
        submitter, after, limit,
    )  # fmt: skip
    applying = await bulks.find_all(conn, [row["bulk"] for row in rows if row["bulk"] is not None])
    return [ListedLoad(_load(row), row["stated_count"], applying.get(row["bulk"])) for row in rows]


async def parts(conn: Connection, id: UUID) -> list[LoadPart]:
    """Return the parts that have come, in their order."""
    rows = await conn.fetch("SELECT n, digest, datasets FROM fedstac.load_part WHERE load = $1 ORDER BY n", id)
    return [LoadPart(**dict(row)) for row in rows]


async def in_other_part(conn: Connection, id: UUID, n: int, ids: Sequence[str]) -> str | None:
    """Return the first of some datasets that another part of a load states; None where none does."""
    first: str | None = await conn.fetchval(
        """SELECT min(dataset COLLATE "C") FROM fedstac.load_dataset
           WHERE load = $1 AND dataset = ANY ($2::text[]) AND part <> $3""",
        id, ids, n,
    )  # fmt: skip
    return first


async def put_part(conn: Connection, id: UUID, part: LoadPart, datasets: Iterable[StatedDataset]) -> None:
    """Store a part of a locked load in place of what it was before; what was compared before is not any more."""
    rows = list(datasets)
    await conn.execute("DELETE FROM fedstac.load_dataset WHERE load = $1 AND part = $2", id, part.n)
    await conn.execute(  # what a comparison found to be removed
        "DELETE FROM fedstac.load_dataset WHERE load = $1 AND part IS NULL AND dataset = ANY ($2::text[])",
        id, [each.id for each in rows],
    )  # fmt: skip
    await conn.copy_records_to_table(
        "load_dataset", schema_name="fedstac",
        columns=("load", "dataset", "part", "lineage", "version", "cv_version", "document", "prepared", "coded",
                 "document_digest", "problem", "detail"),
        records=(_columns(id, part.n, each) for each in rows),
    )  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.load_part (load, n, digest, datasets) VALUES ($1, $2, $3, $4)
           ON CONFLICT (load, n) DO UPDATE SET digest = EXCLUDED.digest, datasets = EXCLUDED.datasets,
                  received = clock_timestamp()""",
        id, part.n, part.digest, part.datasets,
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.load SET compared_at = NULL, current = NULL, counts = NULL, examples = NULL, step = NULL,
                  comparison = comparison + 1
           WHERE id = $1""",
        id,
    )


def _columns(load: UUID, part: int, each: StatedDataset) -> tuple[object, ...]:
    texts = each.texts.read() if each.texts is not None else NO_TEXTS
    digest = digest_of_packed(texts.prepared) if texts.prepared is not None else None
    return (load, each.id, part, each.lineage, each.version, each.cv_version, *texts, digest, each.problem,
            each.detail)  # fmt: skip


# --- comparing, some datasets at a time ---


async def begin_comparison(conn: Connection, id: UUID) -> None:
    """Begin to compare a locked load with what is here. What an earlier comparison found does not count any more."""
    await conn.execute(
        """UPDATE fedstac.load SET step = 'stated', step_after = '', step_at = NULL, comparison = comparison + 1,
                  comparing_since = clock_timestamp(), compared_at = NULL, current = 0, compared_stated = 0,
                  compared_here = 0, counts = '{}', examples = '{}'
           WHERE id = $1""",
        id,
    )


async def take_step(conn: Connection) -> Load | None:
    """Lock the load that has waited longest for its next step, and return it; None where nothing is to be done."""
    row = await conn.fetchrow(
        f"""SELECT {COLUMNS} FROM fedstac.load l WHERE l.step IS NOT NULL
            ORDER BY l.step_at NULLS FIRST LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED"""
    )
    return _load(row) if row else None


async def put_off(conn: Connection, id: UUID) -> None:
    """Let other loads take their turn before a load whose step failed."""
    await conn.execute("UPDATE fedstac.load SET step_at = clock_timestamp() WHERE id = $1", id)


@dataclass(frozen=True, slots=True)
class ChunkOfDatasets:
    """Some datasets, by their ids. last: the last of them, None without one. is_last: no more follow."""

    count: int
    last: str | None
    is_last: bool


def _chunk(count: int, last: str | None, limit: int) -> ChunkOfDatasets:
    return ChunkOfDatasets(count, last, is_last=count < limit)


async def _look_up_each(conn: Connection) -> None:
    """Tell the planner, until the transaction ends, to look up each dataset of a chunk by its key.

    It may know small loads alone, or none: it would read all of a large one for each chunk.
    """
    await conn.execute(
        "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off; "
        "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"
    )


async def compare_stated(conn: Connection, load: Load, origin: str, limit: int) -> ChunkOfDatasets:
    """Compare the next datasets that a locked load states: each gets its change, and the digest of the record.

    Documents with another digest count as changed; `doubtful` gives those where that may not be so. The document of
    what was deleted here is not kept.
    """
    await _look_up_each(conn)
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
    return _chunk(row["count"], row["last"], limit)


async def compare_here(conn: Connection, load: Load, origin: str, limit: int, *, keeps: bool) -> HereChunk:
    """Look for the next records of the collection in what a locked load states; those that it does not are removed.

    keeps: they are stored, and not counted alone.
    """
    await _look_up_each(conn)
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
    return HereChunk(_chunk(row["count"], row["last"], limit), row["current"], row["removed"], row["first_ids"])


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


def _by_name(values: Mapping[LoadChange, object]) -> str:
    return orjson.dumps({change.value: value for change, value in values.items()}).decode()


async def store_step(conn: Connection, load: Load, *, is_compared: bool = False) -> None:
    """Store how far a locked load is. is_compared: its comparison has ended with this step."""
    await conn.execute(
        """UPDATE fedstac.load SET step = $2, step_after = $3, step_at = clock_timestamp(), current = $4,
                  compared_stated = $5, compared_here = $6, counts = $7, examples = $8,
                  compared_at = CASE WHEN $9 THEN comparing_since ELSE compared_at END
           WHERE id = $1""",
        load.id, load.step, load.step_after, load.current, load.compared_stated, load.compared_here,
        _by_name(load.counts), _by_name(load.examples), is_compared,
    )  # fmt: skip


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


async def applied_beside(conn: Connection, load: Load) -> UUID | None:
    """Return another load of the collection that is being applied, or was since a load was compared; None without one.

    Until the transaction ends no other load of the collection begins to be applied.
    """
    await conn.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", APPLYING_LOCK, load.collection)
    other: UUID | None = await conn.fetchval(
        """SELECT l.id FROM fedstac.load l JOIN fedstac.bulk b ON b.id = l.bulk
           WHERE l.collection = $1 AND l.id <> $2 AND (b.finished_at IS NULL OR b.finished_at > $3)
           ORDER BY b.created DESC LIMIT 1""",
        load.collection, load.id, load.compared_at,
    )  # fmt: skip
    return other


async def begin(conn: Connection, load: Load, bulk: UUID, total: int, *, now_asked_by: NewLoad) -> None:
    """Store the change of many datasets that applies a locked load. The next step is to list these.

    now_asked_by: who applies it, with the rights of now.
    """
    body = {"mode": load.mode, **({"override": load.override} if load.override else {})}
    await conn.execute(
        """INSERT INTO fedstac.bulk (id, action, body, selection, digest, total, submitter, roles, identity,
                                     correlation, traceparent, is_listed)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)""",
        bulk, BulkAction.RECONCILE, orjson.dumps(body).decode(),
        orjson.dumps({"load": str(load.id), "collection": load.collection}).decode(), str(load.id), total,
        now_asked_by.submitter, list(now_asked_by.roles), now_asked_by.identity, now_asked_by.correlation,
        now_asked_by.traceparent, False,
    )  # fmt: skip
    await conn.execute(
        "UPDATE fedstac.load SET bulk = $2, step = 'list', step_after = '', step_at = NULL WHERE id = $1", load.id, bulk
    )


async def list_some(conn: Connection, load: Load, limit: int) -> ChunkOfDatasets:
    """List the next datasets of the change that applies a locked load; versions of one dataset come in their order.

    None where that change was cancelled meanwhile: then this is the last chunk.
    """
    await _look_up_each(conn)
    row = await conn.fetchrow(
        """WITH place AS MATERIALIZED (
               SELECT lineage, coalesce(version, -1) AS version, dataset FROM fedstac.load_dataset
               WHERE load = $1 AND dataset = $6 UNION ALL SELECT '', -2, '' WHERE $6 = ''),
           page AS MATERIALIZED (
               SELECT dataset, lineage, coalesce(version, -1) AS version, coalesce(expected, '') AS digest, change,
                      comparison = $5 AND change = ANY ($4::text[]) AS is_work
               FROM fedstac.load_dataset
               WHERE load = $1 AND (lineage, coalesce(version, -1), dataset)
                     > ((SELECT lineage FROM place), (SELECT version FROM place), (SELECT dataset FROM place))
                 AND EXISTS (SELECT FROM fedstac.bulk WHERE id = $2 AND finished_at IS NULL)
               ORDER BY lineage, coalesce(version, -1), dataset LIMIT $7),
           listed AS (
               INSERT INTO fedstac.bulk_dataset (bulk, n, collection, dataset, lineage, digest, change)
               SELECT $2, (SELECT coalesce(max(n), 0) FROM fedstac.bulk_dataset WHERE bulk = $2)
                      + row_number() OVER (ORDER BY lineage, version, dataset),
                      $3, dataset, lineage, digest, change
               FROM page WHERE is_work)
           SELECT count(*) AS count, (array_agg(dataset ORDER BY lineage DESC, version DESC, dataset DESC))[1] AS last
           FROM page""",
        load.id, load.bulk, load.collection, list(WORK[load.mode]), load.comparison, load.step_after, limit,
    )  # fmt: skip
    assert row is not None
    return _chunk(row["count"], row["last"], limit)


async def end_list(conn: Connection, load: Load) -> None:
    """Let the change that applies a locked load begin: all its datasets are listed.

    What is left to do is to remove the documents of others.
    """
    await conn.execute("UPDATE fedstac.bulk SET is_listed = true WHERE id = $1", load.bulk)
    await conn.execute(
        "UPDATE fedstac.load SET step = 'trim', step_after = '', step_at = clock_timestamp() WHERE id = $1", load.id
    )


async def close(conn: Connection, id: UUID) -> None:
    """End a locked load that has nothing to do."""
    await conn.execute(
        """UPDATE fedstac.load SET done_at = clock_timestamp(), step = 'trim', step_after = '', step_at = NULL
           WHERE id = $1""",
        id,
    )


async def trim(conn: Connection, load: Load, limit: int) -> ChunkOfDatasets:
    """Remove the documents of the next datasets of a load that nothing is done with."""
    await _look_up_each(conn)
    row = await conn.fetchrow(
        """WITH page AS MATERIALIZED (
               SELECT dataset, document IS NOT NULL AND NOT coalesce(change = ANY ($4::text[]), false) AS is_trimmed
               FROM fedstac.load_dataset WHERE load = $1 AND dataset > $2 ORDER BY dataset LIMIT $3),
           trimmed AS (
               UPDATE fedstac.load_dataset l SET document = NULL, prepared = NULL, coded = NULL
               FROM page p WHERE l.load = $1 AND l.dataset = p.dataset AND p.is_trimmed)
           SELECT count(*) AS count, max(dataset) AS last FROM page""",
        load.id, load.step_after, limit, list(WORK[load.mode]) if load.bulk is not None else [],
    )  # fmt: skip
    assert row is not None
    return _chunk(row["count"], row["last"], limit)


@dataclass(frozen=True, slots=True)
class StatedDocument:
    """The document of a dataset that is to be applied, as it was prepared when it came."""

    version: int | None
    cv_version: str | None
    text: str
    prepared: str
    coded: str | None


async def documents(conn: Connection, id: UUID, ids: Sequence[str]) -> dict[str, StatedDocument]:
    """Return the documents of datasets, by id; without those that have none."""
    rows = await conn.fetch(
        """SELECT dataset, version, cv_version, document, prepared, coded FROM fedstac.load_dataset
           WHERE load = $1 AND dataset = ANY ($2::text[]) AND document IS NOT NULL AND prepared IS NOT NULL""",
        id, ids,
    )  # fmt: skip
    return {
        row["dataset"]: StatedDocument(row["version"], row["cv_version"], row["document"], row["prepared"],
                                       row["coded"])
        for row in rows
    }  # fmt: skip


async def forget_documents(conn: Connection, id: UUID, ids: Sequence[str]) -> None:
    """Remove the documents of datasets that are applied."""
    await conn.execute(
        """UPDATE fedstac.load_dataset SET document = NULL, prepared = NULL, coded = NULL
           WHERE load = $1 AND dataset = ANY ($2::text[])""",
        id, ids,
    )  # fmt: skip


async def cancel(conn: Connection, id: UUID, by: str) -> None:
    """End a locked load that is not applied. What it stated is removed in the steps that follow."""
    await conn.execute(
        """UPDATE fedstac.load SET cancelled_by = $2, step = 'empty', step_at = NULL, compared_at = NULL, counts = NULL,
                  examples = NULL
           WHERE id = $1""",
        id, by,
    )  # fmt: skip


async def remove_some(conn: Connection, id: UUID) -> bool:
    """Remove some of what a load states; return whether there may be more."""
    removed = await conn.fetchval(
        """WITH removed AS (
               DELETE FROM fedstac.load_dataset WHERE load = $1 AND dataset = ANY (ARRAY(
                   SELECT dataset FROM fedstac.load_dataset WHERE load = $1 ORDER BY dataset LIMIT $2))
               RETURNING 1)
           SELECT count(*) FROM removed""",
        id, FORGOTTEN_AT_ONCE,
    )  # fmt: skip
    return bool(removed == FORGOTTEN_AT_ONCE)


async def forget_old(conn: Connection) -> bool:
    """Remove a part of what is kept of a load that is KEPT_DAYS old and not being applied; False where there is none.

    It is cancelled first: whoever applied what is left of it would clear datasets that it stated.
    """
    async with conn.transaction():
        id = await conn.fetchval(
            """SELECT l.id FROM fedstac.load l LEFT JOIN fedstac.bulk b ON b.id = l.bulk
               WHERE l.created < clock_timestamp() - make_interval(days => $1)
                 AND (l.bulk IS NULL OR b.finished_at IS NOT NULL)
               ORDER BY l.created LIMIT 1 FOR UPDATE OF l SKIP LOCKED""",
            KEPT_DAYS,
        )
        if id is None:
            return False
        await conn.execute(
            """UPDATE fedstac.load SET step = NULL,
                      cancelled_by = CASE WHEN bulk IS NULL THEN coalesce(cancelled_by, $2) ELSE cancelled_by END
               WHERE id = $1""",
            id, TOO_OLD,
        )  # fmt: skip
        if not await remove_some(conn, id):
            await conn.execute("DELETE FROM fedstac.load WHERE id = $1", id)
        return True
