"""Collections that are deleted with their datasets: what that affects, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from fedstac.db import connections
from fedstac.db.connections import Connection, Row
from fedstac.domain.cascade import TO_MARK, Cascade, CascadeEffects, CascadeState

CASCADE_LOCK = 0x666564_55  # the advisory lock of whoever marks
COLUMNS = "id, collection, state, reason, actor, datasets, begun_at, refused, refusal, ended_at, ended_by"


def _from_row(row: Row) -> Cascade:
    return Cascade(**{**dict(row), "state": CascadeState(row["state"])})


@dataclass(frozen=True, slots=True)
class CascadeOrder:
    """Who deletes a collection, as of when they asked, and why. identity: packed, as a request keeps it."""

    actor: str
    roles: Sequence[str]
    identity: str | None
    reason: str


async def effects(conn: Connection, collection: str) -> CascadeEffects:
    """Count what the deletion of a collection affects. A collection without datasets affects itself."""
    datasets = await conn.fetch(
        """SELECT r.state, count(*) AS datasets, coalesce(sum(f.files), 0)::bigint AS files,
                  coalesce(sum(f.size), 0)::bigint AS bytes
           FROM fedstac.record r LEFT JOIN fedstac.facet f ON f.n = r.n
           WHERE r.collection = $1 AND r.document IS NOT NULL GROUP BY r.state ORDER BY r.state""",
        collection,
    )
    replicas = await conn.fetch(
        """SELECT node, count(*) AS datasets, sum((entry ->> 'files')::bigint)::bigint AS files
           FROM fedstac.record r, jsonb_each(r.replicas::jsonb) e (node, entry)
           WHERE r.collection = $1 AND r.replicas IS NOT NULL AND r.document IS NOT NULL
           GROUP BY node""",
        collection,
    )
    others = await conn.fetchrow(
        """SELECT (SELECT count(DISTINCT lineage) FROM fedstac.record
                   WHERE collection = $1 AND document IS NOT NULL) AS lineages,
                  (SELECT count(*) FROM fedstac.own_group WHERE project = $1) AS groups,
                  (SELECT count(*) FROM fedstac.own_group_person p JOIN fedstac.own_group g ON g.name = p.own_group
                   WHERE g.project = $1) AS memberships,
                  (SELECT count(*) FROM fedstac.request_item i JOIN fedstac.request r ON r.id = i.request
                   WHERE i.status = 'queued' AND r.collection = $1) AS waiting,
                  (SELECT count(*) FROM fedstac.destination WHERE 'dataset' = ANY (topics) AND confirmed IS NOT NULL
                   AND owner IN (SELECT publisher FROM fedstac.record
                                 WHERE collection = $1 AND document IS NOT NULL)) AS destinations,
                  (SELECT count(*) FROM fedstac.awaited a JOIN fedstac.request r ON r.id = a.request
                   WHERE r.collection = $1) AS awaited""",
        collection,
    )
    assert others is not None
    return CascadeEffects(
        collection=collection, datasets={row["state"]: row["datasets"] for row in datasets},
        files=sum(row["files"] for row in datasets), bytes=sum(row["bytes"] for row in datasets),
        replicas={row["node"]: (row["datasets"], row["files"]) for row in replicas}, **dict(others),
    )  # fmt: skip


async def counts(conn: Connection, collection: str) -> dict[str, int]:
    """Count the datasets of a collection by state, the deleted ones too."""
    rows = await conn.fetch(
        "SELECT state, count(*) AS n FROM fedstac.record WHERE collection = $1 GROUP BY state", collection
    )
    return {row["state"]: row["n"] for row in rows}


async def count(conn: Connection, collection: str) -> int:
    """Count the datasets of a collection that are not deleted."""
    return int(await conn.fetchval(
        "SELECT count(*) FROM fedstac.record WHERE collection = $1 AND document IS NOT NULL", collection
    ) or 0)  # fmt: skip


async def foreign_origin(conn: Connection, collection: str, origin: str) -> str | None:
    """Return another node that has datasets in a collection; None where all are this node's."""
    other: str | None = await conn.fetchval(
        """SELECT origin FROM fedstac.record WHERE collection = $1 AND origin <> $2 AND document IS NOT NULL
           ORDER BY id LIMIT 1""",
        collection, origin,
    )  # fmt: skip
    return other


async def open_of(conn: Connection, collections: Sequence[str]) -> dict[str, UUID]:
    """Return the collections among these that are being deleted, each with the id of its cascade."""
    rows = await conn.fetch(
        "SELECT collection, id FROM fedstac.cascade WHERE ended_at IS NULL AND collection = ANY ($1::text[])",
        collections,
    )
    return {row["collection"]: row["id"] for row in rows}


async def newest(conn: Connection, collection: str) -> Cascade | None:
    """Return the last deletion of a collection with its datasets; None where there was none."""
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM fedstac.cascade WHERE collection = $1 ORDER BY begun_at DESC, id DESC LIMIT 1",
        collection,
    )
    return _from_row(row) if row else None


async def begin(
    conn: Connection, id: UUID, collection: str, order: CascadeOrder, *, datasets: int, now: datetime,
    traceparent: str | None,
) -> Cascade:  # fmt: skip
    """Store that a collection is being deleted. It is locked, and nobody publishes into it just now."""
    row = await conn.fetchrow(
        f"""INSERT INTO fedstac.cascade (id, collection, reason, actor, roles, identity, traceparent, datasets, next_at,
                                         begun_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9) RETURNING {COLUMNS}""",
        id, collection, order.reason, order.actor, list(order.roles), order.identity, traceparent, datasets, now,
    )  # fmt: skip
    assert row is not None
    return _from_row(row)


async def end(conn: Connection, id: UUID, state: CascadeState, actor: str) -> None:
    """Store that a deletion is done or cancelled. One that has ended stays as it is."""
    await conn.execute(
        """UPDATE fedstac.cascade SET state = $2, ended_at = clock_timestamp(), ended_by = $3
           WHERE id = $1 AND ended_at IS NULL""",
        id, state, actor,
    )  # fmt: skip


# --- the work on it ---


def leading(conn: Connection) -> AbstractAsyncContextManager[bool]:
    """Return a context: whether this session is the one that marks; nobody else does until it ends."""
    return connections.leading(conn, CASCADE_LOCK)


@dataclass(frozen=True, slots=True)
class DueCascade:
    """A deletion that can go on, and in whose name its datasets are marked."""

    id: UUID
    collection: str
    state: str
    reason: str
    actor: str
    roles: Sequence[str]
    identity: str | None
    traceparent: str | None
    after_id: str
    refused: int
    is_stopped: bool  # its actor was erased: nothing is done in their name any more


ANY_OPEN = "EXISTS (SELECT FROM fedstac.cascade WHERE ended_at IS NULL)"


async def due(conn: Connection) -> DueCascade | None:
    """Return the deletion that has waited longest of those that can go on now; None without one."""
    row = await conn.fetchrow(
        """SELECT id, collection, state, reason, actor, roles, identity, traceparent, after_id, refused, is_stopped
           FROM fedstac.cascade WHERE ended_at IS NULL AND next_at <= clock_timestamp() ORDER BY next_at, id LIMIT 1"""
    )
    return DueCascade(**dict(row)) if row else None


@dataclass(frozen=True, slots=True)
class DatasetToMark:
    """A dataset that is not marked yet."""

    id: str
    lineage: str


async def chunk(conn: Connection, collection: str, after_id: str, limit: int) -> list[DatasetToMark]:
    """Return the next datasets to mark, by id."""
    rows = await conn.fetch(
        """SELECT id, lineage FROM fedstac.record
           WHERE collection = $1 AND id > $2 AND state = ANY ($3::text[]) ORDER BY id LIMIT $4""",
        collection, after_id, list(TO_MARK), limit,
    )  # fmt: skip
    return [DatasetToMark(**dict(row)) for row in rows]


async def advance(conn: Connection, id: UUID, after_id: str, *, refused: int, refusal: str | None) -> None:
    """Store through which dataset a pass came, and how many of these could not be marked."""
    await conn.execute(
        """UPDATE fedstac.cascade SET after_id = $2, refused = refused + $3, refusal = coalesce($4, refusal)
           WHERE id = $1 AND ended_at IS NULL""",
        id, after_id, refused, refusal,
    )  # fmt: skip


async def finish_pass(conn: Connection, id: UUID, *, seconds: float) -> None:
    """Let a deletion wait for so many seconds: every dataset was looked at."""
    await conn.execute(
        """UPDATE fedstac.cascade SET state = 'waiting', next_at = clock_timestamp()
                                      + make_interval(secs => $2)
           WHERE id = $1 AND ended_at IS NULL""",
        id, seconds,
    )  # fmt: skip


async def begin_pass(conn: Connection, id: UUID) -> None:
    """Look at every dataset again, and forget what could not be marked in the pass before."""
    await conn.execute(
        """UPDATE fedstac.cascade SET state = 'marking', after_id = '', refused = 0, refusal = NULL
           WHERE id = $1 AND ended_at IS NULL""",
        id,
    )
