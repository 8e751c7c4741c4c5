"""Deletions: the rules of projects, the entries that marks open, reports, and cases of quarantine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from fedstac.db.connections import Connection, Row
from fedstac.domain import deletion
from fedstac.domain.deletion import Deletion, DeletionRules, DeletionState, DependencyState, DependencyStatus

COLUMNS = """id, collection, dataset, event_id, marked_at, grace_until, actor, reason, request, automatic,
             configuration AS rules, identifiers, state, ended_at, ended_by"""
DEPENDENCY_COLUMNS = """name, required, owns_identifier, due, contact, state, comment, reported_at, reminded_at,
                        reminders"""


async def rules_of(conn: Connection, projects: Sequence[str]) -> dict[str, DeletionRules]:
    """Return the newest rules of projects; one that has none is left out."""
    rows = await conn.fetch(
        """SELECT DISTINCT ON (project) project, version, body FROM fedstac.deletion_configuration
           WHERE project = ANY ($1::text[]) ORDER BY project, version DESC""",
        projects,
    )
    return {row["project"]: deletion.read_rules(orjson.loads(row["body"]), version=row["version"]) for row in rows}


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
    dependencies: dict[UUID, list[DependencyStatus]] = {}
    for part in parts:
        values = dict(part)
        id = values.pop("deletion")
        status = DependencyStatus(**{**values, "state": DependencyState(values["state"])})
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
    """Store the deletions that marks open. Their lineages are locked."""
    await conn.execute(
        """INSERT INTO fedstac.deletion (id, collection, dataset, event_id, reason, actor, request, marked_at,
                                         grace_until, automatic, configuration, identifiers)
           SELECT d.id, d.collection, d.dataset, d.event_id, d.reason, d.actor, d.request, d.marked_at, d.grace_until,
                  d.automatic, d.configuration, ARRAY(SELECT jsonb_array_elements_text(d.identifiers::jsonb))
           FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::text[], $7::uuid[],
                       $8::timestamptz[], $9::timestamptz[], $10::boolean[], $11::integer[], $12::text[])
                d (id, collection, dataset, event_id, reason, actor, request, marked_at, grace_until, automatic,
                   configuration, identifiers)""",
        [each.id for each in entries], [each.collection for each in entries], [each.dataset for each in entries],
        [each.event_id for each in entries], [each.reason for each in entries], [each.actor for each in entries],
        [each.request for each in entries], [each.marked_at for each in entries],
        [each.grace_until for each in entries], [each.automatic for each in entries],
        [each.rules for each in entries], [orjson.dumps(each.identifiers).decode() for each in entries],
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
    """Close the open deletions of datasets. A purge closes nothing: it goes on from the last deletion."""
    await conn.execute(
        """UPDATE fedstac.deletion d SET state = e.state, ended_at = $5, ended_by = e.actor
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) e (collection, dataset, state, actor)
           WHERE d.collection = e.collection AND d.dataset = e.dataset
             AND d.state = CASE e.state WHEN 'purged' THEN 'deleted' ELSE 'open' END""",
        [each.collection for each in endings], [each.dataset for each in endings],
        [each.state for each in endings], [each.actor for each in endings], now,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class QuarantineCase:
    """A case of quarantine that begins. `quarantine` has reason, case, contact and links."""

    id: UUID
    collection: str
    dataset: str
    event_id: UUID
    actor: str
    quarantine: Mapping[str, Any]


async def open_cases(conn: Connection, cases: Sequence[QuarantineCase], *, now: datetime) -> None:
    """Store cases of quarantine; what one says replaces what was said before of the same open case."""
    await conn.execute(
        """INSERT INTO fedstac.quarantine_case AS q (id, collection, dataset, event_id, opened_by, reason, reference,
                                                     contact, links, opened_at)
           SELECT c.id, c.collection, c.dataset, c.event_id, c.actor, c.body ->> 'reason', c.body ->> 'case',
                  c.body ->> 'contact', ARRAY(SELECT jsonb_array_elements_text(c.body -> 'links')), $7
           FROM (SELECT id, collection, dataset, event_id, actor, body::jsonb AS body
                 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::text[])
                      u (id, collection, dataset, event_id, actor, body)) c
           ON CONFLICT (collection, dataset) WHERE closed_at IS NULL DO UPDATE SET
               reason = EXCLUDED.reason, reference = EXCLUDED.reference, contact = EXCLUDED.contact,
               links = EXCLUDED.links""",
        [each.id for each in cases], [each.collection for each in cases], [each.dataset for each in cases],
        [each.event_id for each in cases], [each.actor for each in cases],
        [orjson.dumps({"links": [], **each.quarantine}).decode() for each in cases], now,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CaseEnd:
    """How the quarantine of a dataset ends."""

    collection: str
    dataset: str
    actor: str
    decision: str | None


async def close_cases(conn: Connection, endings: Sequence[CaseEnd], *, now: datetime) -> None:
    """Close the open cases of datasets."""
    await conn.execute(
        """UPDATE fedstac.quarantine_case q SET closed_at = $5, closed_by = e.actor, decision = e.decision
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) e (collection, dataset, actor, decision)
           WHERE q.collection = e.collection AND q.dataset = e.dataset AND q.closed_at IS NULL""",
        [each.collection for each in endings], [each.dataset for each in endings],
        [each.actor for each in endings], [each.decision for each in endings], now,
    )  # fmt: skip
