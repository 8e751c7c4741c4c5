"""Groups of fedstac's own: their members and their managers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fedstac.db.connections import Connection, Row
from fedstac.domain.groups import Membership


class GroupRole(StrEnum):
    """What somebody is in a group. A manager is no member by that."""

    MEMBER = "member"
    MANAGER = "manager"


@dataclass(frozen=True, slots=True)
class OwnGroup:
    """A group: its members are such for a project and an institution, or for all (`*`)."""

    name: str
    project: str
    institution: str
    title: str
    created: datetime
    created_by: str
    members: tuple[str, ...]
    managers: tuple[str, ...]


def _group(row: Row) -> OwnGroup:
    return OwnGroup(**{**dict(row), "members": tuple(row["members"]), "managers": tuple(row["managers"])})


async def every(conn: Connection, *, of: str | None = None, name: str | None = None) -> list[OwnGroup]:
    """Return all groups by name; those that somebody belongs to or manages, or the one of a name."""
    rows = await conn.fetch(
        """SELECT g.name, g.project, g.institution, g.title, g.created, g.created_by,
                  coalesce(array_agg(p.principal ORDER BY p.principal) FILTER (WHERE p.part = 'member'), '{}')
                      AS members,
                  coalesce(array_agg(p.principal ORDER BY p.principal) FILTER (WHERE p.part = 'manager'), '{}')
                      AS managers
           FROM fedstac.own_group g LEFT JOIN fedstac.own_group_person p ON p.own_group = g.name
           WHERE ($2::text IS NULL OR g.name = $2)
             AND ($1::text IS NULL OR g.name IN (SELECT own_group FROM fedstac.own_group_person WHERE principal = $1))
           GROUP BY g.name ORDER BY g.name""",
        of, name,
    )  # fmt: skip
    return [_group(row) for row in rows]


async def create(conn: Connection, name: str, project: str, institution: str, title: str, by: str) -> bool:
    """Create a group; return False where there is one of that name."""
    status = await conn.execute(
        """INSERT INTO fedstac.own_group (name, project, institution, title, created_by) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT (name) DO NOTHING""",
        name, project, institution, title, by,
    )  # fmt: skip
    return status == "INSERT 0 1"


async def change(conn: Connection, name: str, project: str, institution: str, title: str) -> None:
    """Change what a group is for, and its title."""
    await conn.execute(
        "UPDATE fedstac.own_group SET project = $2, institution = $3, title = $4 WHERE name = $1",
        name, project, institution, title,
    )  # fmt: skip


async def delete(conn: Connection, name: str) -> None:
    """Delete a group with its members and managers."""
    await conn.execute("DELETE FROM fedstac.own_group WHERE name = $1", name)


async def delete_of_project(conn: Connection, project: str) -> list[str]:
    """Delete the groups of one project with their members and managers; return their names."""
    rows = await conn.fetch("DELETE FROM fedstac.own_group WHERE project = $1 RETURNING name", project)
    return sorted(row["name"] for row in rows)


async def lock(conn: Connection, name: str) -> OwnGroup | None:
    """Lock a group until the transaction ends and return it; None where there is none."""
    await conn.fetchrow("SELECT name FROM fedstac.own_group WHERE name = $1 FOR UPDATE", name)
    groups = await every(conn, name=name)
    return groups[0] if groups else None


async def add(conn: Connection, name: str, principal: str, part: GroupRole, by: str) -> bool:
    """Add somebody to a group; return False if they were that already."""
    status = await conn.execute(
        """INSERT INTO fedstac.own_group_person (own_group, principal, part, added_by) VALUES ($1, $2, $3, $4)
           ON CONFLICT DO NOTHING""",
        name, principal, part, by,
    )  # fmt: skip
    return status == "INSERT 0 1"


async def remove(conn: Connection, name: str, principal: str, part: GroupRole) -> bool:
    """Remove somebody from a group; return False if they were not that."""
    status = await conn.execute(
        "DELETE FROM fedstac.own_group_person WHERE own_group = $1 AND principal = $2 AND part = $3",
        name, principal, part,
    )  # fmt: skip
    return status == "DELETE 1"


async def memberships(conn: Connection, principals: Iterable[str]) -> dict[str, frozenset[Membership]]:
    """Return the memberships of each principal, now; without those who are in no group."""
    rows = await conn.fetch(
        """SELECT p.principal, g.name, g.project, g.institution
           FROM fedstac.own_group_person p JOIN fedstac.own_group g ON g.name = p.own_group
           WHERE p.part = 'member' AND p.principal = ANY($1::text[])""",
        sorted(set(principals)),
    )
    groups: dict[str, set[Membership]] = {}
    for row in rows:
        groups.setdefault(row["principal"], set()).add(Membership(row["name"], row["project"], row["institution"]))
    return {principal: frozenset(each) for principal, each in groups.items()}
