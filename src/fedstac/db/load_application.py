"""How a full-state load is applied: as a change of many datasets (db/bulks.py), which are listed some at a time.

What is not needed any more is removed in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import orjson

from fedstac.db import loads
from fedstac.db.connections import Connection
from fedstac.db.loads import ChunkOfDatasets, Load, NewLoad
from fedstac.domain.bulk import BulkAction
from fedstac.domain.reconcile import WORK

APPLYING_LOCK: Final = 0x666564_0D  # with the collection: the advisory lock of whoever begins to apply a load


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

    Its digest is the id of the load.

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
    await loads.look_up_each(conn)
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
    return loads.chunk_of(row["count"], row["last"], limit)


async def end_list(conn: Connection, load: Load) -> None:
    """Let the change that applies a locked load begin: all its datasets are listed.

    What is left to do is to remove the documents of others.
    """
    await conn.execute("UPDATE fedstac.bulk SET is_listed = true WHERE id = $1", load.bulk)
    await conn.execute(
        "UPDATE fedstac.load SET step = 'trim', step_after = '', step_at = clock_timestamp() WHERE id = $1", load.id
    )


async def trim(conn: Connection, load: Load, limit: int) -> ChunkOfDatasets:
    """Remove the documents of the next datasets of a load that nothing is done with."""
    await loads.look_up_each(conn)
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
    return loads.chunk_of(row["count"], row["last"], limit)


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
