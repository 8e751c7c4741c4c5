"""Which grants there are: one, a page of those that somebody may see, and those that open nothing now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fedstac.db import grants
from fedstac.db.connections import Connection
from fedstac.domain.grants import AccessGrant, GrantTarget

# --- reading ---


async def read(conn: Connection, id: UUID) -> AccessGrant | None:
    """Return a grant; None where there is none of the id."""
    row = await conn.fetchrow(f"SELECT {grants.COLUMNS} FROM fedstac.access_grant WHERE id = $1", id)
    return grants.from_row(row) if row else None


@dataclass(frozen=True, slots=True)
class GrantFilter:
    """Which grants are asked for. is_open None: both open and closed ones; an open one may have expired.

    is_valid: only those that are open and valid now.
    """

    subject: str | None = None
    target: GrantTarget | None = None
    is_open: bool | None = True
    is_valid: bool = False


@dataclass(frozen=True, slots=True)
class GrantSight:
    """Which grants somebody may see: all of them, those of projects, and those that they have or gave."""

    sees_all: bool = False
    projects: tuple[str, ...] = ()
    name: str | None = None


async def page(
    conn: Connection, filter: GrantFilter, sight: GrantSight, *, after: UUID | None, limit: int
) -> list[AccessGrant]:
    """Return grants that somebody may see, in the order in which they were given, after one of them."""
    conditions, values = list[str](), list[Any]()

    def add(text: str, *arguments: object) -> None:
        places = [f"${len(values) + n}" for n in range(1, len(arguments) + 1)]
        values.extend(arguments)
        conditions.append(text.format(*places))

    if filter.subject is not None:
        add("subject = {}", filter.subject)
    if filter.target is not None:
        target = filter.target
        add("collection = {} AND scope = {} AND target = {}", target.collection, target.scope, target.name)
    if filter.is_open is not None:
        conditions.append("closed_at IS NULL" if filter.is_open else "closed_at IS NOT NULL")
    if filter.is_valid:
        add("closed_at IS NULL AND valid_from <= clock_timestamp() AND valid_until > clock_timestamp()")
    if after is not None:
        add("id > {}", after)
    ways = ["true"]
    if not sight.sees_all:  # each way by an index of its own: nobody reads what all others have
        values += [sight.name, list(sight.projects)]
        name, projects = f"${len(values) - 1}", f"${len(values)}"
        ways = [f"subject = {name}", f"given_by = {name}", f"collection = ANY ({projects}::text[])"]
    values.append(limit)
    first = f"ORDER BY id LIMIT ${len(values)}"
    parts = (
        f"(SELECT {grants.COLUMNS} FROM fedstac.access_grant WHERE {' AND '.join((way, *conditions))} {first})"
        for way in ways
    )
    rows = await conn.fetch(f"SELECT * FROM ({' UNION '.join(parts)}) shown {first}", *values)
    return [grants.from_row(row) for row in rows]


async def suspended(conn: Connection, ids: Sequence[UUID], sight: GrantSight) -> set[UUID]:
    """Return those of some grants of datasets that are open and open nothing now, by the state of their dataset.

    Of what somebody merely gave it is not said: they need not know of a mark.
    """
    rows = await conn.fetch(
        """SELECT g.id FROM fedstac.access_grant g
           JOIN fedstac.record r ON r.collection = g.collection AND r.id = g.target
           WHERE g.id = ANY ($1::uuid[]) AND g.scope = 'dataset' AND g.closed_at IS NULL AND r.state <> 'published'
             AND ($2 OR g.subject = $3 OR g.collection = ANY ($4::text[]))""",
        list(ids), sight.sees_all, sight.name, list(sight.projects),
    )  # fmt: skip
    return {row["id"] for row in rows}


async def open_ids(
    conn: Connection, subject: str, *, target: GrantTarget | None, projects: Sequence[str], limit: int
) -> list[UUID]:
    """Return the first open grants of a subject: of a target, or of all in some projects."""
    rows = await conn.fetch(
        """SELECT id FROM fedstac.access_grant
           WHERE subject = $1 AND closed_at IS NULL AND collection = ANY ($2::text[])
             AND ($3::text IS NULL OR scope = $3 AND target = $4) ORDER BY id LIMIT $5""",
        subject, list(projects), target.scope if target else None, target.name if target else None, limit,
    )  # fmt: skip
    return [row["id"] for row in rows]
