"""Full-state loads: what somebody says shall exist in a collection, and what that is compared with.

Documents come in parts, and stay here until they are applied. Everything is compared set-wise, where it lies. A load is
applied as a change of many datasets (db/bulks.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import orjson

from fedstac.db.connections import Connection
from fedstac.domain.bulk import BulkAction
from fedstac.domain.documents import ItemTexts, TextSource, digest_of_packed
from fedstac.domain.reconcile import WORK, ChangeSet, LoadChange, LoadMode

APPLYING_LOCK: Final = 0x666564_0D  # with the collection: the advisory lock of whoever begins to apply a load
KEPT_DAYS: Final = 7  # that a load stays, unless it is being applied
NO_TEXTS: Final = ItemTexts(None)
TOO_OLD: Final = "it is older than a week"  # in place of who cancelled it
FORGOTTEN_AT_ONCE: Final = 5_000  # datasets of a load
COLUMNS: Final = """id, collection, mode, override, submitter, roles, identity, correlation, traceparent, created,
                    compared_at, current, bulk, cancelled_by"""


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
    """A load as it stands. current: datasets of this node in the collection when it was compared."""

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

    @property
    def takes_parts(self) -> bool:
        """Whether parts may still come: it is neither applied nor cancelled."""
        return self.bulk is None and self.cancelled_by is None


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


async def find(conn: Connection, id: UUID, *, locking: bool = False) -> Load | None:
    """Return a load; None where there is none of that id. locking: until the transaction ends it stays as it is."""
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM fedstac.load WHERE id = $1 {'FOR NO KEY UPDATE' if locking else ''}", id
    )
    return Load(**{**dict(row), "mode": LoadMode(row["mode"])}) if row else None


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
    await conn.execute("DELETE FROM fedstac.load_dataset WHERE load = $1 AND (part = $2 OR part IS NULL)", id, part.n)
    await conn.copy_records_to_table(
        "load_dataset", schema_name="fedstac",
        columns=("load", "dataset", "part", "lineage", "version", "cv_version", "document", "prepared", "coded",
                 "document_digest", "problem", "detail"),
        records=(_columns(id, part.n, each) for each in datasets),
    )  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.load_part (load, n, digest, datasets) VALUES ($1, $2, $3, $4)
           ON CONFLICT (load, n) DO UPDATE SET digest = EXCLUDED.digest, datasets = EXCLUDED.datasets,
                  received = clock_timestamp()""",
        id, part.n, part.digest, part.datasets,
    )  # fmt: skip
    await conn.execute("UPDATE fedstac.load SET compared_at = NULL, current = NULL WHERE id = $1", id)


def _columns(load: UUID, part: int, each: StatedDataset) -> tuple[object, ...]:
    texts = each.texts.read() if each.texts is not None else NO_TEXTS
    digest = digest_of_packed(texts.prepared) if texts.prepared is not None else None
    return (load, each.id, part, each.lineage, each.version, each.cv_version, *texts, digest, each.problem,
            each.detail)  # fmt: skip


async def compare(conn: Connection, load: Load, origin: str) -> None:
    """Compare a locked load with what is here: each dataset gets its change, and the digest of the record.

    Documents with another digest count as changed; `doubtful` gives those where that may not be so.
    """
    # the planner may know small loads alone: it would look for each dataset here in all those of a large one
    await conn.execute("SET LOCAL enable_nestloop = off; SET LOCAL work_mem = '64MB'")
    await conn.execute("DELETE FROM fedstac.load_dataset WHERE load = $1 AND part IS NULL", load.id)
    await conn.execute(
        """UPDATE fedstac.load_dataset l SET expected = c.digest, change = c.change
           FROM (SELECT s.dataset, r.digest, CASE
                     WHEN s.problem IS NOT NULL THEN 'invalid'
                     WHEN r.id IS NULL OR r.state = 'cleared' AND r.origin = $2 THEN 'new'
                     WHEN r.origin <> $2 OR r.state NOT IN ('published', 'retracted') THEN 'held'
                     WHEN r.document_digest = s.document_digest AND r.state = 'published' THEN 'unchanged'
                     WHEN r.state = 'retracted' THEN 'held' ELSE 'changed' END AS change
                 FROM fedstac.load_dataset s
                 LEFT JOIN fedstac.record r ON r.collection = $3 AND r.id = s.dataset
                 WHERE s.load = $1) c
           WHERE l.load = $1 AND l.dataset = c.dataset
             AND (l.expected, l.change) IS DISTINCT FROM (c.digest, c.change)""",
        load.id, origin, load.collection,
    )  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.load_dataset (load, dataset, lineage, version, cv_version, change, expected)
           SELECT $1, r.id, r.lineage, r.version, r.cv_version, 'removed', r.digest FROM fedstac.record r
           WHERE r.collection = $3 AND r.origin = $2 AND r.state IN ('published', 'retracted') AND NOT EXISTS (
               SELECT FROM fedstac.load_dataset l WHERE l.load = $1 AND l.dataset = r.id)""",
        load.id, origin, load.collection,
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.load SET compared_at = clock_timestamp(), current = (
               SELECT count(*) FROM fedstac.record
               WHERE collection = $3 AND origin = $2 AND state IN ('published', 'retracted'))
           WHERE id = $1""",
        load.id, origin, load.collection,
    )  # fmt: skip
    await conn.execute("SET LOCAL enable_nestloop = on; RESET work_mem")


@dataclass(frozen=True, slots=True)
class DoubtfulDataset:
    """A dataset whose documents have different digests, perhaps by what nodes put into the one that is here."""

    id: str
    here: str
    there: str


async def doubtful(conn: Connection, load: Load, after: str, limit: int) -> list[DoubtfulDataset]:
    """Return the next datasets, by id, that count as changed and have replicas here."""
    rows = await conn.fetch(
        """SELECT l.dataset AS id, r.document AS here, l.document AS there
           FROM fedstac.load_dataset l JOIN fedstac.record r ON r.collection = $2 AND r.id = l.dataset
           WHERE l.load = $1 AND l.change = 'changed' AND r.replicas IS NOT NULL AND l.dataset > $3
           ORDER BY l.dataset LIMIT $4""",
        load.id, load.collection, after, limit,
    )  # fmt: skip
    return [DoubtfulDataset(**dict(row)) for row in rows]


async def mark_unchanged(conn: Connection, id: UUID, datasets: Sequence[str]) -> None:
    """Store that datasets are the same after all."""
    await conn.execute(
        "UPDATE fedstac.load_dataset SET change = 'unchanged' WHERE load = $1 AND dataset = ANY ($2::text[])",
        id, datasets,
    )  # fmt: skip


async def changes(conn: Connection, load: Load) -> ChangeSet:
    """Return what a load that was compared would do."""
    rows = await conn.fetch(
        """SELECT change, count(*) AS count FROM fedstac.load_dataset WHERE load = $1 AND change IS NOT NULL
           GROUP BY change""",
        load.id,
    )
    return ChangeSet(load.mode, {LoadChange(row["change"]): row["count"] for row in rows}, load.current or 0)


@dataclass(frozen=True, slots=True)
class ComparedDataset:
    """A dataset of a load, what becomes of it, and why not."""

    id: str
    change: LoadChange | None
    problem: str | None
    detail: str | None


async def datasets(
    conn: Connection, id: UUID, *, change: LoadChange | None, after: str, limit: int
) -> list[ComparedDataset]:
    """Return datasets of a load after an id, by their ids; of one change if given."""
    rows = await conn.fetch(
        """SELECT dataset AS id, change, problem, detail FROM fedstac.load_dataset
           WHERE load = $1 AND ($2::text IS NULL OR change = $2) AND dataset > $3 ORDER BY dataset LIMIT $4""",
        id, change, after, limit,
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
    """Store the change of many datasets that applies a locked load; versions of one dataset come in their order.

    now_asked_by: who applies it, with the rights of now.
    """
    body = {"mode": load.mode, **({"override": load.override} if load.override else {})}
    await conn.execute(
        """INSERT INTO fedstac.bulk (id, action, body, selection, digest, total, submitter, roles, identity,
                                     correlation, traceparent)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)""",
        bulk, BulkAction.RECONCILE, orjson.dumps(body).decode(),
        orjson.dumps({"load": str(load.id), "collection": load.collection}).decode(), str(load.id), total,
        now_asked_by.submitter, list(now_asked_by.roles), now_asked_by.identity, now_asked_by.correlation,
        now_asked_by.traceparent,
    )  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.bulk_dataset (bulk, n, collection, dataset, lineage, digest, change)
           SELECT $2, row_number() OVER (ORDER BY lineage, version NULLS FIRST, dataset), $3, dataset, lineage,
                  coalesce(expected, ''), change
           FROM fedstac.load_dataset WHERE load = $1 AND change = ANY ($4::text[])""",
        load.id, bulk, load.collection, list(WORK[load.mode]),
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.load_dataset SET document = NULL, prepared = NULL, coded = NULL
           WHERE load = $1 AND NOT (change = ANY ($2::text[])) AND document IS NOT NULL""",
        load.id, list(WORK[load.mode]),
    )  # fmt: skip
    await conn.execute("UPDATE fedstac.load SET bulk = $2 WHERE id = $1", load.id, bulk)


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
    """End a locked load that is not applied: what it stated is removed."""
    await conn.execute("DELETE FROM fedstac.load_dataset WHERE load = $1", id)
    await conn.execute("UPDATE fedstac.load SET cancelled_by = $2 WHERE id = $1", id, by)


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
            "UPDATE fedstac.load SET cancelled_by = $2 WHERE id = $1 AND bulk IS NULL AND cancelled_by IS NULL",
            id, TOO_OLD,
        )  # fmt: skip
        removed = await conn.fetch(
            """DELETE FROM fedstac.load_dataset WHERE load = $1 AND dataset = ANY (ARRAY(
                   SELECT dataset FROM fedstac.load_dataset WHERE load = $1 ORDER BY dataset LIMIT $2))
               RETURNING 1""",
            id, FORGOTTEN_AT_ONCE,
        )  # fmt: skip
        if len(removed) < FORGOTTEN_AT_ONCE:
            await conn.execute("DELETE FROM fedstac.load WHERE id = $1", id)
        return True
