"""Full-state loads: what somebody says shall exist in a collection, the parts in which it comes, and how far it is.

Documents come in parts, and stay here until they are applied. What takes long goes some datasets at a time: a load has
up to a million. How far that is, and what it found, stands in the load itself. Comparing is in load_comparison.py,
applying in load_application.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import orjson

from fedstac.db import bulks
from fedstac.db.bulks import Bulk
from fedstac.db.connections import Connection, Row
from fedstac.domain.documents import ItemTexts, TextSource, digest_of_packed
from fedstac.domain.reconcile import COMPARING, ChangeSet, LoadChange, LoadMode, LoadStep

BEGINNING_LOCK: Final = 0x666564_15  # the advisory lock of whoever begins a load: open ones are counted
KEPT_DAYS: Final = 7  # that a load stays, unless it is being applied
NO_TEXTS: Final = ItemTexts(None)
TOO_OLD: Final = "it is older than a week"  # in place of who cancelled it
FORGOTTEN_AT_ONCE: Final = 5_000  # datasets of a load
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


# --- what takes long, some datasets at a time ---


ANY_STEP = "EXISTS (SELECT FROM fedstac.load WHERE step IS NOT NULL)"


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


def chunk_of(count: int, last: str | None, limit: int) -> ChunkOfDatasets:
    return ChunkOfDatasets(count, last, is_last=count < limit)


async def look_up_each(conn: Connection) -> None:
    """Tell the planner, until the transaction ends, to look up each dataset of a chunk by its key.

    It may know small loads alone, or none: it would read all of a large one for each chunk.
    """
    await conn.execute(
        "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off; "
        "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"
    )


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


async def close(conn: Connection, id: UUID) -> None:
    """End a locked load that has nothing to do."""
    await conn.execute(
        """UPDATE fedstac.load SET done_at = clock_timestamp(), step = 'trim', step_after = '', step_at = NULL
           WHERE id = $1""",
        id,
    )


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
