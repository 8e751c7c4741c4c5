"""People as they stand in logs: pseudonyms, and the one table that knows whose they are. Deleting a row erases it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fedstac.db.connections import Connection
from fedstac.db.own_groups import GroupRole
from fedstac.domain.groups import Identity
from fedstac.runtime.failpoints import failpoint

PREFIX = "person:"  # no token may be called so (nodes.is_name)
GROUP_PARTS: Final = frozenset(GroupRole)
ACTIONS: Final = {  # in the audit log, of what closes one by one
    "grant": "withdraw-grant", "load": "cancel-load", "subscription": "remove-subscription",
    "bulk": "cancel-bulk", "cascade": "cancel-cascade",
}  # fmt: skip


async def pseudonym(conn: Connection, who: Identity) -> str:
    """Return the name of an identity in every log; a new one at first. Name and e-mail are stored as last given."""
    pseudonym = await conn.fetchval(
        """WITH known AS (
               SELECT pseudonym FROM fedstac.person
               WHERE iss = $1 AND sub = $2
                 AND name IS NOT DISTINCT FROM coalesce($3, name) AND email IS NOT DISTINCT FROM coalesce($4, email)),
           made AS (
               INSERT INTO fedstac.person (iss, sub, name, email)
               SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM known)
               ON CONFLICT (iss, sub) DO UPDATE SET name = coalesce(EXCLUDED.name, person.name),
                      email = coalesce(EXCLUDED.email, person.email)
               RETURNING pseudonym)
           SELECT pseudonym FROM known UNION ALL SELECT pseudonym FROM made""",
        who.issuer, who.subject, who.name or None, who.email,
    )  # fmt: skip
    return f"{PREFIX}{pseudonym}"


async def pseudonyms(conn: Connection, identities: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the names of identities, given as issuer and subject; new ones for those that never came here."""
    issuers, subjects = [issuer for issuer, _ in identities], [subject for _, subject in identities]
    await conn.execute(
        """INSERT INTO fedstac.person (iss, sub) SELECT DISTINCT * FROM unnest($1::text[], $2::text[]) ORDER BY 1, 2
           ON CONFLICT (iss, sub) DO NOTHING""",
        issuers, subjects,
    )  # fmt: skip
    rows = await conn.fetch(
        """SELECT p.iss, p.sub, p.pseudonym FROM fedstac.person p
           JOIN unnest($1::text[], $2::text[]) i (iss, sub) ON p.iss = i.iss AND p.sub = i.sub""",
        issuers, subjects,
    )  # fmt: skip
    return {(row["iss"], row["sub"]): f"{PREFIX}{row['pseudonym']}" for row in rows}


async def find(conn: Connection, issuer: str, subject: str) -> str | None:
    """Return the name of an identity; None where it never came here."""
    value = await conn.fetchval("SELECT pseudonym FROM fedstac.person WHERE iss = $1 AND sub = $2", issuer, subject)
    return f"{PREFIX}{value}" if value else None


@dataclass(frozen=True, slots=True)
class PersonalGroup:
    """A group of fedstac's own that somebody belongs to. part: member or manager."""

    name: str
    project: str
    part: str


@dataclass(frozen=True, slots=True)
class PersonalData:
    """What belongs to a person here, and closes when they leave; `datasets` stay, of which they are the publisher.

    awaited: results of requests that they wait for. messages: to their destinations, on their way or kept. loads: of
    full state, that are not applied. requests: with items that wait. bulks, cascades: changes of many datasets and
    deletions of collections that are under way. mapping: whether it is known whose pseudonym it is. Of a project there
    are groups, awaited results, grants, loads and datasets.
    """

    groups: tuple[PersonalGroup, ...]
    awaited: int
    datasets: int
    grants: int = 0
    loads: int = 0
    requests: int = 0
    bulks: int = 0
    cascades: int = 0
    subscriptions: int = 0
    destinations: int = 0
    messages: int = 0
    sessions: int = 0
    mapping: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is there that closes."""
        return not any(self.as_json()["closes"].values())

    def as_json(self) -> dict[str, Any]:
        return {
            "closes": {
                "groups": [{"group": each.name, "project": each.project, "part": each.part} for each in self.groups],
                "awaited": self.awaited, "grants": self.grants, "loads": self.loads,
                "requests": self.requests, "bulks": self.bulks, "cascades": self.cascades,
                "subscriptions": self.subscriptions, "destinations": self.destinations, "messages": self.messages,
                "sessions": self.sessions, "mapping": self.mapping,
            },
            "stays": {"datasets": self.datasets},
        }  # fmt: skip


async def leave(conn: Connection, who: str, project: str, *, dry_run: bool = False) -> PersonalData:
    """Close what somebody has in a project, with audit rows; return it. Again it closes nothing.

    A group that is for all projects is none of this one. For the deleter, or the owner.
    """
    return await _close(conn, who, project, "leave-project", dry_run=dry_run)


async def erase(conn: Connection, who: str, *, dry_run: bool = False) -> PersonalData:
    """Close all that a person has here, and delete the row that tells whose pseudonym it is; with audit rows.

    What they began stops: requests that wait, each item with its audit row, changes of many datasets at once, the
    deletion of a collection by the next look of its worker. Return what there was. Again it closes nothing. Logs and
    datasets keep the pseudonym, which names nobody then; who comes back gets another one. For the deleter, or the
    owner.
    """
    return await _close(conn, PREFIX + who.removeprefix(PREFIX), None, "erase-person", dry_run=dry_run)


async def _close(conn: Connection, who: str, project: str | None, action: str, *, dry_run: bool) -> PersonalData:
    async with conn.transaction():
        rows = await conn.fetch("SELECT * FROM fedstac.close_person($1, $2, $3)", who, project, not dry_run)
        counts = Counter[str]()
        for row in rows:
            counts[row["kind"]] += row["count"]
        data = PersonalData(
            groups=tuple(
                PersonalGroup(row["name"], row["project"], row["kind"]) for row in rows if row["kind"] in GROUP_PARTS
            ),
            awaited=counts["awaited"], datasets=counts["dataset"], grants=counts["grant"], loads=counts["load"],
            requests=counts["request"], bulks=counts["bulk"], cascades=counts["cascade"],
            subscriptions=counts["subscription"], destinations=counts["destination"], messages=counts["message"],
            sessions=counts["session"], mapping=bool(counts["mapping"]),
        )  # fmt: skip
        failpoint("person.closed")
        if not dry_run and not data.is_empty:
            detail = {name: value for name, value in data.as_json()["closes"].items() if name != "groups" and value}
            reason = orjson.dumps({"reason": action}).decode()
            await conn.executemany(
                """INSERT INTO fedstac.audit (actor, action, collection, dataset, outcome, detail)
                   VALUES ('database:' || session_user, $1, $2, $3, 'done', $4)""",
                [
                    *((f"remove-{each.part}", each.project, f"group/{each.name}/{who}", None) for each in data.groups),
                    *(
                        (ACTIONS[row["kind"]], row["project"], f"{row['kind']}/{row['name']}", reason)
                        for row in rows if row["kind"] in ACTIONS
                    ),
                    (action, project or "", who, orjson.dumps(detail).decode() if detail else None),
                ],
            )  # fmt: skip
    return data
