"""Deletions: the entries that marks open, what each waits for, waivers and reminders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from fedstac.db import connections
from fedstac.db.connections import Connection, Row
from fedstac.domain import deletion
from fedstac.domain.deletion import (
    Deletion,
    DeletionState,
    DependencyState,
    DependencyStatus,
    Waiver,
)

AWAITS_NEWER = """d.configuration < coalesce(
    (SELECT version FROM fedstac.deletion_revision WHERE project = d.collection), 0)"""
AWAITS_RULES = f"(d.state = 'open' AND {AWAITS_NEWER})"
COLUMNS = f"""id, collection, dataset, event_id, marked_at, grace_until, actor, reason, request, automatic,
              configuration AS rules, identifiers, state, ended_at, ended_by, institution,
              {AWAITS_RULES} AS awaits_rules"""
MANAGER_LOCK = 0x666564_08  # advisory lock of the one deletion manager
DEPENDENCY_COLUMNS = """name, required, owns_identifier, due, contact, state, comment, reported_at, reminded_at,
                        reminders"""


async def open_of(
    conn: Connection, datasets: Sequence[tuple[str, str]], *, locking: bool
) -> dict[tuple[str, str], Deletion]:
    """Return the open deletions of datasets, given as collection and id.

    locking: no report and no waiver changes them before this transaction ends.
    """
    rows = await conn.fetch(
        f"""SELECT {COLUMNS} FROM fedstac.deletion d
            WHERE (collection, dataset) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND state = 'open'
            ORDER BY id {"FOR UPDATE" if locking else ""}""",
        [collection for collection, _ in datasets], [id for _, id in datasets],
    )  # fmt: skip
    return {(each.collection, each.dataset): each for each in await with_dependencies(conn, rows)}


async def with_dependencies(conn: Connection, rows: Sequence[Row]) -> list[Deletion]:
    """Return the deletions of rows of COLUMNS, in their order, each with its dependencies."""
    parts = await conn.fetch(
        f"""SELECT deletion, {DEPENDENCY_COLUMNS} FROM fedstac.deletion_dependency
            WHERE deletion = ANY ($1::uuid[]) ORDER BY deletion, required DESC, name""",
        [row["id"] for row in rows],
    )
    waivers: dict[tuple[UUID, str], list[Waiver]] = {}
    for each in await conn.fetch(
        """SELECT deletion, name, actor, reason, at FROM fedstac.deletion_waiver
           WHERE deletion = ANY ($1::uuid[]) ORDER BY at, actor""",
        [row["id"] for row in rows],
    ):
        waivers.setdefault((each["deletion"], each["name"]), []).append(
            Waiver(each["actor"], each["reason"], each["at"])
        )
    dependencies: dict[UUID, list[DependencyStatus]] = {}
    for part in parts:
        values = dict(part)
        id = values.pop("deletion")
        own = tuple(waivers.get((id, values["name"]), ()))
        status = DependencyStatus(**{**values, "state": DependencyState(values["state"]), "waivers": own})
        dependencies.setdefault(id, []).append(status)
    return [
        Deletion(**{
            **dict(row), "state": DeletionState(row["state"]), "identifiers": tuple(row["identifiers"]),
            "dependencies": tuple(dependencies.get(row["id"], ())),
        })
        for row in rows
    ]  # fmt: skip


# --- written with the change of the dataset, in its transaction ---


async def begin(conn: Connection, entries: Sequence[Deletion]) -> None:
    """Store the deletions that marks open. Their lineages are locked.

    An open one of the same dataset ends as unmarked: a process of an older version took that mark back.
    """
    await conn.execute(
        """UPDATE fedstac.deletion d SET state = 'unmarked', ended_at = m.marked_at
           FROM unnest($1::text[], $2::text[], $3::timestamptz[]) m (collection, dataset, marked_at)
           WHERE d.collection = m.collection AND d.dataset = m.dataset AND d.state = 'open'""",
        [each.collection for each in entries], [each.dataset for each in entries],
        [each.marked_at for each in entries],
    )  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.deletion (id, collection, dataset, event_id, reason, actor, request, marked_at,
                                         grace_until, automatic, configuration, identifiers, institution,
                                         is_blocked, late_after)
           SELECT d.id, d.collection, d.dataset, d.event_id, d.reason, d.actor, d.request, d.marked_at, d.grace_until,
                  d.automatic, d.configuration, ARRAY(SELECT jsonb_array_elements_text(d.identifiers::jsonb)),
                  d.institution, d.is_blocked, d.late_after
           FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::text[], $7::uuid[],
                       $8::timestamptz[], $9::timestamptz[], $10::boolean[], $11::integer[], $12::text[], $13::text[],
                       $14::boolean[], $15::timestamptz[])
                d (id, collection, dataset, event_id, reason, actor, request, marked_at, grace_until, automatic,
                   configuration, identifiers, institution, is_blocked, late_after)""",
        [each.id for each in entries], [each.collection for each in entries], [each.dataset for each in entries],
        [each.event_id for each in entries], [each.reason for each in entries], [each.actor for each in entries],
        [each.request for each in entries], [each.marked_at for each in entries],
        [each.grace_until for each in entries], [each.automatic for each in entries],
        [each.rules for each in entries], [orjson.dumps(each.identifiers).decode() for each in entries],
        [each.institution for each in entries], [each.is_blocked for each in entries],
        [each.late_after for each in entries],
    )  # fmt: skip
    parts = [(each.id, part) for each in entries for part in each.dependencies]
    if parts:
        await conn.execute(
            """INSERT INTO fedstac.deletion_dependency (deletion, name, required, owns_identifier, contact, due,
                                                        remind_next)
               SELECT *, due FROM unnest($1::uuid[], $2::text[], $3::boolean[], $4::boolean[], $5::text[],
                                         $6::timestamptz[])
                      p (deletion, name, required, owns_identifier, contact, due)""",
            [id for id, _ in parts], [part.name for _, part in parts], [part.required for _, part in parts],
            [part.owns_identifier for _, part in parts], [part.contact for _, part in parts],
            [part.due for _, part in parts],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeletionEnd:
    """How the deletion of a dataset ends, or goes on after it was deleted."""

    collection: str
    dataset: str
    state: DeletionState
    actor: str


async def end(conn: Connection, endings: Sequence[DeletionEnd], *, now: datetime) -> None:
    """Close the open deletions of datasets; nobody is reminded of them any more.

    A purge closes nothing: when and by whom it was deleted, stays.
    """
    await conn.execute(
        """WITH ended AS (
           UPDATE fedstac.deletion d SET state = e.state,
                  ended_at = CASE WHEN e.state = 'purged' THEN d.ended_at ELSE $5 END,
                  ended_by = CASE WHEN e.state = 'purged' THEN d.ended_by ELSE e.actor END
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) e (collection, dataset, state, actor)
           WHERE d.collection = e.collection AND d.dataset = e.dataset
             AND d.state = CASE e.state WHEN 'purged' THEN 'deleted' ELSE 'open' END
           RETURNING d.id)
           UPDATE fedstac.deletion_dependency p SET remind_next = NULL, alerted_at = coalesce(p.alerted_at, p.due)
           FROM ended WHERE p.deletion = ended.id AND p.state IN ('pending', 'failed')""",
        [each.collection for each in endings], [each.dataset for each in endings],
        [each.state for each in endings], [each.actor for each in endings], now,
    )  # fmt: skip


# --- for the manager: other rules for open deletions ---


@dataclass(frozen=True, slots=True)
class OpenDeletions:
    """How many deletions of a project are open, and the first of them, the oldest mark first."""

    count: int
    first: tuple[tuple[UUID, str], ...]  # id of the deletion, id of the dataset


async def open_of_project(conn: Connection, project: str, limit: int) -> OpenDeletions:
    """Return how many deletions of a project are open, and the first ones."""
    rows = await conn.fetch(
        """SELECT id, dataset, count(*) OVER () AS n FROM fedstac.deletion
           WHERE collection = $1 AND state = 'open' ORDER BY marked_at, id LIMIT $2""",
        project, limit,
    )  # fmt: skip
    return OpenDeletions(rows[0]["n"] if rows else 0, tuple((row["id"], row["dataset"]) for row in rows))


async def lock_open_before(conn: Connection, project: str, version: int, *, limit: int) -> list[Deletion]:
    """Lock and return open deletions of a project that have rules of a version before this one, some at a time."""
    rows = await conn.fetch(
        f"""SELECT {COLUMNS} FROM fedstac.deletion d
            WHERE collection = $1 AND state = 'open' AND configuration < $2 ORDER BY id LIMIT $3 FOR UPDATE""",
        project, version, limit,
    )  # fmt: skip
    return await with_dependencies(conn, rows)


async def store_revised(conn: Connection, revised: Sequence[tuple[Deletion, Deletion]]) -> None:
    """Store locked deletions as they are under other rules; each is given as it was and as it is."""
    await conn.execute(
        """UPDATE fedstac.deletion d SET grace_until = r.grace_until, automatic = r.automatic,
                  configuration = r.configuration
           FROM unnest($1::uuid[], $2::timestamptz[], $3::boolean[], $4::integer[])
                r (id, grace_until, automatic, configuration) WHERE d.id = r.id""",
        [after.id for _, after in revised], [after.grace_until for _, after in revised],
        [after.automatic for _, after in revised], [after.rules for _, after in revised],
    )  # fmt: skip
    removed_parts: list[tuple[UUID, str]] = []
    new_parts: list[tuple[UUID, DependencyStatus]] = []
    for before, after in revised:
        parts = {each.name: each for each in after.dependencies}
        for old in before.dependencies:
            new = parts.get(old.name)
            if new is None or new.waivers != old.waivers:  # who becomes the owner begins anew
                removed_parts.append((before.id, old.name))
        new_parts += [(after.id, each) for each in after.dependencies if each not in before.dependencies]
    await conn.execute(
        """DELETE FROM fedstac.deletion_dependency d USING unnest($1::uuid[], $2::text[]) g (deletion, name)
           WHERE d.deletion = g.deletion AND d.name = g.name""",
        [id for id, _ in removed_parts], [name for _, name in removed_parts],
    )  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.deletion_dependency AS d (deletion, name, required, owns_identifier, contact, due, state,
                                                         remind_next)
           SELECT *, CASE WHEN state IN ('pending', 'failed') THEN due END
           FROM unnest($1::uuid[], $2::text[], $3::boolean[], $4::boolean[], $5::text[], $6::timestamptz[], $7::text[])
                p (deletion, name, required, owns_identifier, contact, due, state)
           ON CONFLICT (deletion, name) DO UPDATE SET required = EXCLUDED.required,
               owns_identifier = EXCLUDED.owns_identifier, contact = EXCLUDED.contact, due = EXCLUDED.due,
               alerted_at = CASE WHEN d.due = EXCLUDED.due THEN d.alerted_at END, state = EXCLUDED.state,
               comment = CASE WHEN EXCLUDED.state = 'pending' THEN NULL ELSE d.comment END,
               reported_at = CASE WHEN EXCLUDED.state = 'pending' THEN NULL ELSE d.reported_at END,
               remind_next = CASE WHEN d.reminders = 0 OR d.remind_next IS NULL OR EXCLUDED.remind_next IS NULL
                                  THEN EXCLUDED.remind_next ELSE d.remind_next END""",
        [id for id, _ in new_parts], [each.name for _, each in new_parts], [each.required for _, each in new_parts],
        [each.owns_identifier for _, each in new_parts], [each.contact for _, each in new_parts],
        [each.due for _, each in new_parts], [each.state for _, each in new_parts],
    )  # fmt: skip


# --- for the manager: one deletion ---


async def read(conn: Connection, id: UUID, *, locking: bool = False) -> Deletion | None:
    """Return a deletion; None where there is none. locking: nothing else changes it before this transaction ends."""
    rows = await conn.fetch(
        f"SELECT {COLUMNS} FROM fedstac.deletion d WHERE id = $1 {'FOR UPDATE' if locking else ''}", id
    )
    deletions_read = await with_dependencies(conn, rows)
    return deletions_read[0] if deletions_read else None


HISTORY_ACTIONS = ("mark", "unmark", "delete", "purge", "waive-deletion", "remind-deletion", "report-deletion")
MOST_HISTORY = 500


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Something that happened with a deletion: a row of the audit log. detail: a JSON object."""

    at: datetime
    actor: str
    action: str
    outcome: str
    detail: Mapping[str, Any]


async def history(conn: Connection, entry: Deletion) -> list[HistoryEntry]:
    """Return what happened with a deletion, the oldest first."""
    rows = await conn.fetch(
        f"""SELECT at, actor, action, outcome, detail FROM fedstac.audit
            WHERE action IN ({", ".join(f"'{action}'" for action in HISTORY_ACTIONS)})
              AND collection = $1 AND dataset = $2 AND at >= $3::timestamptz - interval '1 second'
              AND ($4::timestamptz IS NULL OR at <= $4::timestamptz + interval '10 minutes')
              AND (detail IS NULL OR detail::jsonb ->> 'deletion' IS NULL OR detail::jsonb ->> 'deletion' = $5)
            ORDER BY id LIMIT $6""",
        entry.collection, entry.dataset, entry.marked_at,
        entry.ended_at if entry.state is DeletionState.UNMARKED else None, str(entry.id), MOST_HISTORY,
    )  # fmt: skip
    return [
        HistoryEntry(row["at"], row["actor"], row["action"], row["outcome"], orjson.loads(row["detail"] or "{}"))
        for row in rows
    ]


# --- for the manager: waivers and reminders ---


async def store_waiver(conn: Connection, id: UUID, dependency: DependencyStatus, waiver: Waiver) -> None:
    """Store a waiver of a dependency, and the state that it leads to. The deletion is locked."""
    await conn.execute(
        "INSERT INTO fedstac.deletion_waiver (deletion, name, actor, reason, at) VALUES ($1, $2, $3, $4, $5)",
        id, dependency.name, waiver.actor, waiver.reason, waiver.at,
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.deletion_dependency SET state = $3,
                  remind_next = CASE WHEN $3 = 'waived' THEN NULL ELSE remind_next END
           WHERE deletion = $1 AND name = $2""",
        id, dependency.name, dependency.state,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reminder:
    """A reminder of a dependency of a deletion."""

    deletion: UUID
    collection: str
    dataset: str
    name: str
    contact: str | None
    due: datetime
    reminders: int  # with this one


async def remind(conn: Connection, reminders: Sequence[Reminder], *, now: datetime) -> None:
    """Store that dependencies are reminded now, and when the next reminder is.

    A person may send one while the manager sends another: each counts.
    """
    await conn.execute(
        """UPDATE fedstac.deletion_dependency p SET reminders = p.reminders + 1, reminded_at = $4, remind_next = r.next
           FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) r (deletion, name, next)
           WHERE p.deletion = r.deletion AND p.name = r.name""",
        [each.deletion for each in reminders], [each.name for each in reminders],
        [deletion.next_reminder(now, each.reminders) for each in reminders], now,
    )  # fmt: skip


# --- for the manager's own work ---


# What the manager has to do is with open deletions alone; of those that ended it forgets the reminders.
ANY_OPEN = """(
    EXISTS (SELECT FROM fedstac.deletion WHERE state = 'open')
    OR EXISTS (SELECT FROM fedstac.deletion_revision)
    OR EXISTS (SELECT FROM fedstac.deletion_dependency
               WHERE state IN ('pending', 'failed') AND remind_next IS NOT NULL))"""


def leading(conn: Connection) -> AbstractAsyncContextManager[bool]:
    """Return a context: whether this session is the one manager; no other is until it ends."""
    return connections.leading(conn, MANAGER_LOCK)


async def now(conn: Connection) -> datetime:
    """Return the time by the clock of the database: by it marks, grace and reports are dated."""
    moment: datetime = await conn.fetchval("SELECT clock_timestamp()")
    return moment


async def due_reminders(conn: Connection, *, now: datetime, limit: int) -> list[Reminder]:
    """Lock and return the reminders that are due, each with its number. Call it in a transaction.

    Who ends a deletion forgets its reminders. A process of a release before did not: its are forgotten here.
    """
    rows = await conn.fetch(
        """WITH late AS (
               SELECT d.id AS deletion, d.collection, d.dataset, p.name, p.contact, p.due,
                      p.reminders + 1 AS reminders, p.remind_next, d.state = 'open' AS is_open
               FROM fedstac.deletion_dependency p JOIN fedstac.deletion d ON d.id = p.deletion
               WHERE p.state IN ('pending', 'failed') AND p.remind_next <= $1
               ORDER BY p.remind_next LIMIT $2 FOR UPDATE OF p SKIP LOCKED),
           others AS (
               UPDATE fedstac.deletion_dependency p SET remind_next = NULL, alerted_at = coalesce(p.alerted_at, p.due)
               FROM late l WHERE NOT l.is_open AND p.deletion = l.deletion AND p.name = l.name)
           SELECT deletion, collection, dataset, name, contact, due, reminders FROM late
           WHERE is_open ORDER BY remind_next""",
        now, limit,
    )  # fmt: skip
    return [Reminder(**dict(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class LateDependency:
    """A dependency that is late with deletions of a project, and the first of them."""

    project: str
    name: str
    count: int
    first: str  # id of the dataset
    due: datetime  # the earliest


async def alert_late(conn: Connection, *, now: datetime, limit: int) -> list[LateDependency]:
    """Note that operators hear of dependencies that are late, each once. Return whom, by project."""
    rows = await conn.fetch(
        """WITH late AS (
               SELECT p.deletion, p.name, d.collection, d.dataset, p.due
               FROM fedstac.deletion_dependency p JOIN fedstac.deletion d ON d.id = p.deletion AND d.state = 'open'
               WHERE p.state IN ('pending', 'failed') AND p.alerted_at IS NULL AND p.due < $1
               ORDER BY p.due LIMIT $2 FOR UPDATE OF p SKIP LOCKED),
           alerted AS (
               UPDATE fedstac.deletion_dependency p SET alerted_at = $1 FROM late l
               WHERE p.deletion = l.deletion AND p.name = l.name)
           SELECT collection AS project, name, count(*) AS count, min(due) AS due,
                  (array_agg(dataset ORDER BY due, dataset))[1] AS first
           FROM late GROUP BY 1, 2 ORDER BY 1, 2""",
        now, limit,
    )  # fmt: skip
    return [LateDependency(**dict(row)) for row in rows]
