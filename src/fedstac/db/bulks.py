"""Changes of many datasets: how they are chosen and counted, and the table of those that are under way.

The datasets are chosen, counted and stored set-wise on the server: none of them comes to this process before its turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from fedstac.db import conditions, connections, search
from fedstac.db.connections import Connection, Row
from fedstac.domain.bulk import MOST, MOST_SHOWN, BulkAction, DatasetGroup, GroupKey
from fedstac.domain.model import State

BULK_LOCK = 0x666564_0B  # advisory lock of the one who works
FINAL = ("done", "rejected", "failed")
STATUSES = ("waiting", *FINAL, "cancelled")
COLUMNS = """id, action, body, selection, digest, total, submitter, roles, identity, traceparent, created, started_at,
             worked_at, finished_at, cancelled_by, through, done_count, rejected_count, failed_count, attempts"""
# A search shows nothing that is marked or under quarantine. Its conditions are applied to documents then.
HIDDEN_ITEMS = """(
    SELECT r.collection, r.id, NULL::jsonb AS private, public.st_geomfromgeojson(d.document -> 'geometry') AS geometry,
           coalesce(d.document #>> '{properties,start_datetime}', d.document #>> '{properties,datetime}')::timestamptz
               AS datetime,
           coalesce(d.document #>> '{properties,end_datetime}', d.document #>> '{properties,datetime}')::timestamptz
               AS end_datetime,
           jsonb_build_object('properties', (d.document -> 'properties') || jsonb_build_object(
               'created', r.created, 'updated', r.updated, 'retracted', r.retraction IS NOT NULL)) AS content
    FROM fedstac.record r CROSS JOIN LATERAL (SELECT r.document::jsonb AS document OFFSET 0) d
    WHERE r.state = '{state}')"""
STATES = {BulkAction.UNMARK: State.MARKED, BulkAction.RELEASE: State.QUARANTINED}  # that a filter chooses from
WITH_IDENTIFIERS = (BulkAction.MARK, BulkAction.QUARANTINE)  # actions for which they are counted
FEW = 5_000  # datasets up to which each is looked up by itself
# As domain/deletion.has_identifier, for what was stored before the record said it.
IDENTIFIER = """coalesce(r.has_identifier,
    r.document LIKE '%pid":"_%' OR r.document LIKE '%doi":"_%' OR r.document ~* '(pid|doi)":"[^"]'
    OR r.document LIKE '%"rel":"cite-as"%' AND r.document ~* 'https?://((dx[.])?doi[.]org|hdl[.]handle[.]net)/')"""


@dataclass(frozen=True, slots=True)
class DatasetChoice:
    """How datasets are chosen: by ids in some collections or all, or by the conditions of a search.

    numbers: of the records that meet the conditions, where the columns could tell; None: PostgreSQL evaluates them.
    naming: the property with the institution, by collection and version of the vocabulary.
    """

    action: BulkAction
    ids: Sequence[str] | None
    conditions: Mapping[str, object]
    naming: Mapping[tuple[str, str], str]
    numbers: Sequence[int] | None = None


def _places_of(choice: DatasetChoice) -> str:
    """Return SQL for the places of the datasets, of those beyond MOST one more. $5 ids, $6 collections.

    The state is part of the text: only so is the index of what is hidden used.
    """
    if choice.ids is not None:
        return f"""SELECT r.collection, r.id FROM (SELECT DISTINCT id FROM unnest($5::text[]) id) wanted
                   JOIN fedstac.record r USING (id)
                   WHERE r.collection = ANY (coalesce($6::text[], ARRAY(SELECT id FROM pgstac.collections)))
                   LIMIT {MOST + 1}"""
    state = STATES.get(choice.action)
    source = HIDDEN_ITEMS.replace("{state}", state) if state else "pgstac.items"
    return f"""SELECT collection, id FROM {source} item WHERE ({conditions.where(choice.conditions)})
               AND ($5::text[], $6::text[]) IS NOT DISTINCT FROM (NULL, NULL) LIMIT {MOST + 1}"""


def _records_of(choice: DatasetChoice) -> str:
    """Return SQL for the records `r` of the datasets. $5 ids or numbers, $6 collections."""
    if choice.ids is None and choice.numbers is not None:
        return """unnest($5::bigint[]) p (n) JOIN fedstac.record r ON r.n = p.n AND $6::text[] IS NULL
                  AND r.state IN ('published', 'retracted') AND r.access <> 'private'"""
    return f"({_places_of(choice)}) p JOIN fedstac.record r ON r.collection = p.collection AND r.id = p.id"


def _rows_of(choice: DatasetChoice) -> str:
    """Return SQL for the chosen datasets, read once. $1 origin, $2 to $4 naming, $5 ids or numbers, $6 collections.

    Whose a dataset is, the record says; of what was stored before it did, its codes or its document.
    """
    identifier = IDENTIFIER if choice.action in WITH_IDENTIFIERS else "false"
    return f"""picked AS MATERIALIZED (
        SELECT r.n, r.collection, r.id, r.lineage, r.version, r.latest, r.state, r.digest, r.publisher, r.cv_version,
               r.updated, r.quarantine IS NOT NULL AS is_quarantined, r.access = 'private' AS is_private,
               coalesce(r.replicas, '{{}}') <> '{{}}' AS has_replicas,
               {identifier} AS has_identifier,
               CASE WHEN v.property IS NULL OR r.institution = '' THEN NULL
                    WHEN r.institution <> '*' THEN r.institution
                    ELSE (SELECT coalesce(t.content, r.document::jsonb) #>> ARRAY['properties', v.property]
                          FROM (VALUES (r.n)) one (n)
                          LEFT JOIN fedstac.facet_slot s ON s.collection = r.collection AND s.property = v.property
                          LEFT JOIN fedstac.facet f ON f.n = one.n
                          LEFT JOIN fedstac.term t ON t.code = f.codes[s.slot + 1]) END AS institution
        FROM {_records_of(choice)}
        LEFT JOIN unnest($2::text[], $3::text[], $4::text[]) v (collection, version, property)
             ON v.collection = r.collection AND v.version = r.cv_version
        WHERE r.origin = $1 AND r.state NOT IN ('deleted', 'purged', 'cleared')),
        outdated AS MATERIALIZED (
        SELECT picked.n FROM picked WHERE NOT latest AND EXISTS (
            SELECT FROM fedstac.record o WHERE o.lineage = picked.lineage AND o.version > picked.version
            AND o.state IN ('published', 'retracted') AND o.access <> 'private')), chosen AS (
        SELECT picked.*, outdated.n IS NOT NULL AS has_newer_version FROM picked LEFT JOIN outdated USING (n))"""


def _arguments(choice: DatasetChoice, origin: str) -> list[object]:
    by_ids = choice.ids is not None
    names = list(choice.naming)
    return [
        origin, [collection for collection, _ in names], [version for _, version in names],
        [choice.naming[name] for name in names], choice.numbers if choice.ids is None else choice.ids,
        choice.conditions.get("collections") if by_ids else None,
    ]  # fmt: skip


async def expect(conn: Connection, choice: DatasetChoice, origin: str) -> None:
    """Tell the planner, for this transaction, whether there are many datasets: it expects a few of any filter."""
    keys = choice.ids if choice.ids is not None else choice.numbers
    count = len(keys) if keys is not None else None
    if count is None:
        with search.for_the_caller():
            count = await conn.fetchval(
                f"""SELECT count(*) FROM (SELECT FROM ({_places_of(choice)}) picked LIMIT {FEW + 1}) few
                    WHERE ($1::text, $2::text[], $3::text[], $4::text[]) IS NOT NULL""",
                *_arguments(choice, origin),
            )  # fmt: skip
    if count > FEW:
        await conn.execute("SET LOCAL enable_nestloop = off; SET LOCAL work_mem = '64MB'")


async def groups_of(
    conn: Connection, choice: DatasetChoice, origin: str, *, since: datetime | None = None
) -> list[DatasetGroup]:
    """Return the chosen datasets, counted in groups; of those beyond MOST one more. `changed` counts since a moment.

    Call it in a transaction, after `expect`.
    """
    with search.for_the_caller():
        rows = await conn.fetch(
            f"""WITH {_rows_of(choice)}
                SELECT collection, cv_version, institution COLLATE "C" AS institution, state, is_quarantined,
                       is_private, publisher, count(*) AS count,
                       count(*) FILTER (WHERE has_replicas) AS with_replicas,
                       count(*) FILTER (WHERE has_newer_version) AS with_newer_version,
                       count(*) FILTER (WHERE has_identifier) AS with_identifier,
                       count(*) FILTER (WHERE updated > $7::timestamptz) AS changed,
                       sha256(string_agg(convert_to(id, 'UTF8') || '\\x0a'::bytea || digest, ''::bytea
                                         ORDER BY id COLLATE "C")) AS digest,
                       (array_agg(id ORDER BY id COLLATE "C"))[1:{MOST_SHOWN}] AS first_ids
                FROM chosen
                GROUP BY institution COLLATE "C", cv_version, state, publisher, is_quarantined, is_private, collection
                ORDER BY collection, min(id COLLATE "C")""",
            *_arguments(choice, origin), since,
        )  # fmt: skip
    return [
        DatasetGroup(
            GroupKey(
                row["collection"], row["cv_version"], row["institution"], State(row["state"]), row["is_quarantined"],
                row["is_private"],
            ),
            row["publisher"], row["count"], row["with_replicas"], row["with_newer_version"], row["with_identifier"],
            row["changed"], row["digest"], tuple(row["first_ids"]),
        )
        for row in rows
    ]  # fmt: skip


class AskedMeanwhile(Exception):
    """The same change was stored by another request in the meantime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBulk:
    """A change of many datasets as it is asked for. `selection`: how they were chosen, as JSON."""

    id: UUID
    action: BulkAction
    body: str
    selection: str
    digest: str
    submitter: str
    roles: Sequence[str]
    identity: str | None
    correlation: str
    traceparent: str | None
    total: int


async def store(
    conn: Connection, new: NewBulk, choice: DatasetChoice, origin: str, *, hidden: Sequence[GroupKey]
) -> None:
    """Store a change with its datasets, those of hidden groups left out; as part of the transaction that is open.

    AskedMeanwhile where it is stored already.

    Versions of the same dataset come in their order: none is changed by what becomes of one that comes later.
    """
    try:
        await conn.execute(
            """INSERT INTO fedstac.bulk (id, action, body, selection, digest, total, submitter, roles, identity,
                                         correlation, traceparent)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)""",
            new.id, new.action, new.body, new.selection, new.digest, new.total, new.submitter, list(new.roles),
            new.identity, new.correlation, new.traceparent,
        )  # fmt: skip
    except asyncpg.UniqueViolationError as error:
        raise AskedMeanwhile from error
    with search.for_the_caller():
        await conn.execute(
            f"""WITH {_rows_of(choice)}
                INSERT INTO fedstac.bulk_dataset (bulk, n, collection, dataset, lineage, digest)
                SELECT $7, row_number() OVER (ORDER BY collection, lineage, version NULLS FIRST, id),
                       collection, id, lineage, digest
                FROM chosen c WHERE NOT EXISTS (
                    SELECT FROM unnest($8::text[], $9::text[], $10::text[], $11::text[], $12::boolean[],
                                      $13::boolean[]) h
                        (collection, cv_version, institution, state, is_quarantined, is_private)
                    WHERE h.collection = c.collection AND h.cv_version IS NOT DISTINCT FROM c.cv_version
                      AND h.institution IS NOT DISTINCT FROM c.institution AND h.state = c.state
                      AND h.is_quarantined = c.is_quarantined AND h.is_private = c.is_private)""",
            *_arguments(choice, origin), new.id, [key.collection for key in hidden],
            [key.cv_version for key in hidden], [key.institution for key in hidden],
            [key.state for key in hidden], [key.is_quarantined for key in hidden],
            [key.is_private for key in hidden],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bulk:
    """A change of many datasets as it stands. Datasets up to the number `through` have their results."""

    id: UUID
    action: BulkAction
    body: str
    selection: str
    digest: str
    total: int
    submitter: str
    roles: frozenset[str]
    identity: str | None
    traceparent: str | None
    created: datetime
    started_at: datetime | None
    worked_at: datetime | None
    finished_at: datetime | None
    cancelled_by: str | None
    through: int
    done_count: int
    rejected_count: int
    failed_count: int
    attempts: int

    @property
    def status(self) -> str:
        """The status of the whole: waiting, running, or how it ended."""
        if self.finished_at is None:
            return "waiting" if self.started_at is None else "running"
        if self.cancelled_by is not None:
            return "cancelled"
        if self.done_count == self.total:
            return "done"
        return "partly" if self.done_count else "rejected" if not self.failed_count else "failed"

    @property
    def counts(self) -> dict[str, int]:
        """The number of datasets by status."""
        rest = self.total - self.through
        cancelled = rest if self.cancelled_by is not None else 0
        return {
            "waiting": rest - cancelled, "done": self.done_count, "rejected": self.rejected_count,
            "failed": self.failed_count, "cancelled": cancelled,
        }  # fmt: skip

    @property
    def rate(self) -> float | None:
        """Datasets a second since it began; None before the first result."""
        if self.started_at is None or self.worked_at is None or not self.through:
            return None
        return self.through / max((self.worked_at - self.started_at).total_seconds(), 0.001)


def _from_row(row: Row) -> Bulk:
    return Bulk(**{**dict(row), "action": BulkAction(row["action"]), "roles": frozenset(row["roles"])})


async def find(conn: Connection, id: UUID) -> Bulk | None:
    """Return a change; None where there is none of that id."""
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM fedstac.bulk WHERE id = $1", id)
    return _from_row(row) if row else None


async def find_all(conn: Connection, ids: Sequence[UUID]) -> dict[UUID, Bulk]:
    """Return changes by their ids; without those that are not there."""
    rows = await conn.fetch(f"SELECT {COLUMNS} FROM fedstac.bulk WHERE id = ANY ($1::uuid[])", ids) if ids else []
    return {row["id"]: _from_row(row) for row in rows}


async def asked_before(conn: Connection, submitter: str, digest: str) -> Bulk | None:
    """Return the change that somebody asked for with a digest, unless it was cancelled or changed nothing."""
    row = await conn.fetchrow(
        f"""SELECT {COLUMNS} FROM fedstac.bulk WHERE submitter = $1 AND digest = $2 AND cancelled_by IS NULL
            AND (finished_at IS NULL OR done_count > 0)""",
        submitter, digest,
    )  # fmt: skip
    return _from_row(row) if row else None


async def list_page(conn: Connection, submitter: str | None, *, after: UUID | None, limit: int) -> list[Bulk]:
    """Return changes, the newest first; those of somebody, or all."""
    rows = await conn.fetch(
        f"""SELECT {COLUMNS} FROM fedstac.bulk
            WHERE ($1::text IS NULL OR submitter = $1) AND ($2::uuid IS NULL OR (created, id) < (
                SELECT created, id FROM fedstac.bulk WHERE id = $2))
            ORDER BY created DESC, id DESC LIMIT $3""",
        submitter, after, limit,
    )  # fmt: skip
    return [_from_row(row) for row in rows]


@dataclass(frozen=True, slots=True)
class DatasetResult:
    """What became of one dataset of a change, by its number in it."""

    n: int
    collection: str
    dataset: str
    status: str
    outcome: str | None
    problem: str | None
    detail: str | None


async def results(conn: Connection, id: UUID, *, status: str | None, after: int, limit: int) -> list[DatasetResult]:
    """Return datasets of a change after a number, of one status if given."""
    rows = await conn.fetch(
        """SELECT n, collection, dataset, status, outcome, problem, detail
           FROM (SELECT d.n, d.collection, d.dataset, d.outcome, d.problem, d.detail,
                        CASE WHEN d.n > b.through AND b.cancelled_by IS NOT NULL THEN 'cancelled' ELSE d.status END
                            AS status
                 FROM fedstac.bulk_dataset d JOIN fedstac.bulk b ON b.id = d.bulk WHERE d.bulk = $1 AND d.n > $2) each
           WHERE $3::text IS NULL OR status = $3 ORDER BY n LIMIT $4""",
        id, after, status, limit,
    )  # fmt: skip
    return [DatasetResult(**dict(row)) for row in rows]


# --- work ---


def leading(conn: Connection) -> AbstractAsyncContextManager[bool]:
    """Return a context: whether this session is the one that works; nobody else does until it ends."""
    return connections.leading(conn, BULK_LOCK)


ANY_OPEN = "EXISTS (SELECT FROM fedstac.bulk WHERE finished_at IS NULL AND is_listed)"


async def are_open(conn: Connection) -> bool:
    """Tell whether a change is not finished."""
    return bool(await conn.fetchval(f"SELECT {ANY_OPEN}"))


async def begin_attempt(conn: Connection) -> Bulk | None:
    """Count an attempt on the next part of the change that waits longest, and return that change; None without one.

    Commit it before the part: if it kills the worker, the count stays. Changes take turns.
    """
    row = await conn.fetchrow(
        f"""UPDATE fedstac.bulk SET attempts = attempts + 1, started_at = coalesce(started_at, clock_timestamp())
            WHERE id = (SELECT id FROM fedstac.bulk WHERE finished_at IS NULL AND is_listed
                        ORDER BY worked_at NULLS FIRST, created LIMIT 1)
              AND finished_at IS NULL
            RETURNING {COLUMNS}"""
    )
    return _from_row(row) if row else None


async def withdraw_attempt(conn: Connection, id: UUID) -> None:
    """Take the count of an attempt back that ended without a fault of its datasets."""
    await conn.execute("UPDATE fedstac.bulk SET attempts = greatest(attempts - 1, 0) WHERE id = $1", id)


@dataclass(frozen=True, slots=True)
class WaitingDataset:
    """A dataset whose turn has come. `digest` is that of the state that was shown."""

    n: int
    collection: str
    dataset: str
    lineage: str
    digest: bytes
    change: str | None = None  # of a full-state load: what becomes of the dataset


async def take(conn: Connection, id: UUID, count: int) -> list[WaitingDataset]:
    """Lock a change, and return the next of its datasets; none where it is finished.

    Until the transaction ends nobody else works on it or cancels it. The rows are read in a statement after the one
    that locks.
    """
    through = await conn.fetchval(
        "SELECT through FROM fedstac.bulk WHERE id = $1 AND finished_at IS NULL FOR NO KEY UPDATE", id
    )
    if through is None:
        return []
    rows = await conn.fetch(
        """SELECT n, collection, dataset, lineage, digest, change FROM fedstac.bulk_dataset
           WHERE bulk = $1 AND n > $2 AND n <= $2 + $3 ORDER BY n""",
        id, through, count,
    )  # fmt: skip
    return [WaitingDataset(**dict(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The result of one dataset: done, rejected or failed."""

    n: int
    status: str
    outcome: str
    problem: str | None
    detail: str | None


async def finish(conn: Connection, id: UUID, results: Sequence[BulkResult]) -> None:
    """Store the results of a part, which was taken in the same transaction. What is finished stays as it is."""
    await conn.execute(
        """UPDATE fedstac.bulk_dataset d SET status = r.status, outcome = r.outcome, problem = r.problem,
                  detail = r.detail, finished = clock_timestamp()
           FROM unnest($2::integer[], $3::text[], $4::text[], $5::text[], $6::text[])
                r (n, status, outcome, problem, detail)
           WHERE d.bulk = $1 AND d.n = r.n""",
        id, [r.n for r in results], [r.status for r in results], [r.outcome for r in results],
        [r.problem for r in results], [r.detail for r in results],
    )  # fmt: skip
    counts = [sum(result.status == status for result in results) for status in FINAL]
    await conn.execute(
        """UPDATE fedstac.bulk SET through = through + $2 + $3 + $4, done_count = done_count + $2,
                  rejected_count = rejected_count + $3, failed_count = failed_count + $4,
                  attempts = greatest(attempts - 2, 0), worked_at = clock_timestamp(),
                  finished_at = CASE WHEN through + $2 + $3 + $4 = total THEN clock_timestamp() END
           WHERE id = $1 AND finished_at IS NULL""",
        id, *counts,
    )  # fmt: skip


async def cancel(conn: Connection, id: UUID, by: str) -> bool:
    """End a change where it stands; return False where it is finished. It waits for a part that is being done.

    The datasets behind `through` are cancelled by that: none of their rows is written.
    """
    ended = await conn.fetchval(
        """UPDATE fedstac.bulk SET cancelled_by = $2, finished_at = clock_timestamp()
           WHERE id = $1 AND finished_at IS NULL RETURNING true""",
        id, by,
    )  # fmt: skip
    return bool(ended)
