"""The rules of deletion of projects, in their versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson

from fedstac.db.connections import Connection, Row
from fedstac.domain import deletion
from fedstac.domain.deletion import DeletionRules

RULES = "project, version, body, actor, at"
RULES_LOCK = 0x66656409  # advisory locks of rules that change; the second key is the hash of the project


@dataclass(frozen=True, slots=True)
class StoredRules:
    """A version of a project's rules, who stored it, and when."""

    project: str
    rules: DeletionRules
    actor: str
    at: datetime


def _rules_of_row(row: Row) -> StoredRules:
    rules = deletion.read_rules(orjson.loads(row["body"]), version=row["version"])
    return StoredRules(row["project"], rules, row["actor"], row["at"])


async def rules_of(conn: Connection, projects: Sequence[str]) -> dict[str, DeletionRules]:
    """Return the newest rules of projects; one that has none is left out."""
    rows = await conn.fetch(
        """SELECT DISTINCT ON (project) project, version, body FROM fedstac.deletion_configuration
           WHERE project = ANY ($1::text[]) ORDER BY project, version DESC""",
        projects,
    )
    return {row["project"]: deletion.read_rules(orjson.loads(row["body"]), version=row["version"]) for row in rows}


async def stored_rules(conn: Connection, project: str, version: int | None = None) -> StoredRules | None:
    """Return the newest rules of a project, or those of a version; None where there are none."""
    row = await conn.fetchrow(
        f"""SELECT {RULES} FROM fedstac.deletion_configuration
            WHERE project = $1 AND ($2::integer IS NULL OR version = $2) ORDER BY version DESC LIMIT 1""",
        project, version,
    )  # fmt: skip
    return _rules_of_row(row) if row else None


async def newest_rules(conn: Connection) -> list[StoredRules]:
    """Return the newest rules of all projects that have some, by project."""
    rows = await conn.fetch(
        f"""SELECT DISTINCT ON (project) {RULES} FROM fedstac.deletion_configuration
            ORDER BY project, version DESC"""
    )
    return [_rules_of_row(row) for row in rows]


async def rules_versions(conn: Connection, project: str, limit: int) -> list[StoredRules]:
    """Return the versions of a project's rules, the newest first."""
    rows = await conn.fetch(
        f"""SELECT {RULES} FROM fedstac.deletion_configuration WHERE project = $1 ORDER BY version DESC LIMIT $2""",
        project, limit,
    )  # fmt: skip
    return [_rules_of_row(row) for row in rows]


async def hold_rules(conn: Connection, project: str) -> None:
    """Let nobody else change the rules of a project before this transaction ends."""
    await conn.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", RULES_LOCK, project)


async def share_rules(conn: Connection, projects: Sequence[str]) -> None:
    """Let nobody change the rules of projects before this transaction ends; others may share them."""
    await conn.execute(
        "SELECT pg_advisory_xact_lock_shared($1, hashtext(project)) FROM unnest($2::text[]) project",
        RULES_LOCK, projects,
    )  # fmt: skip


async def store_rules(conn: Connection, project: str, rules: DeletionRules, *, actor: str, now: datetime) -> None:
    """Store a version of a project's rules; its number is that of the rules."""
    await conn.execute(
        "INSERT INTO fedstac.deletion_configuration (project, version, body, actor, at) VALUES ($1, $2, $3, $4, $5)",
        project, rules.version, orjson.dumps(rules.as_json()).decode(), actor, now,
    )  # fmt: skip


async def begin_revision(conn: Connection, project: str, version: int) -> None:
    """Note that the open deletions of a project get the rules of a version; none of them is deleted before."""
    await conn.execute(
        """INSERT INTO fedstac.deletion_revision (project, version) VALUES ($1, $2)
           ON CONFLICT (project) DO UPDATE SET version = EXCLUDED.version, begun_at = clock_timestamp()
           WHERE deletion_revision.version < EXCLUDED.version""",
        project, version,
    )  # fmt: skip


async def revisions(conn: Connection) -> list[StoredRules]:
    """Return the rules that open deletions of projects are about to get."""
    rows = await conn.fetch(
        f"""SELECT {RULES} FROM fedstac.deletion_configuration JOIN fedstac.deletion_revision USING (project, version)
            ORDER BY project"""
    )
    return [_rules_of_row(row) for row in rows]


async def end_revision(conn: Connection, project: str, version: int) -> None:
    """Note that every open deletion of a project has the rules of a version, or later ones."""
    await conn.execute("DELETE FROM fedstac.deletion_revision WHERE project = $1 AND version = $2", project, version)
