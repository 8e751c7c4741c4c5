"""People as they stand in logs: pseudonyms, and the one table that knows whose they are. Deleting a row erases it."""

from __future__ import annotations

from fedstac.db.connections import Connection
from fedstac.domain.groups import Identity

PREFIX = "person:"  # no token may be called so (nodes.is_name)


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


async def erase(conn: Connection, who: str) -> bool:
    """Delete the row that tells whose pseudonym it is, with an audit row; return False where nobody has it (any more).

    Logs keep the pseudonym, which names nobody then. For the deleter, or the owner.
    """
    async with conn.transaction():
        status = await conn.execute(
            "DELETE FROM fedstac.person WHERE pseudonym = $1::text::uuid", who.removeprefix(PREFIX)
        )
        if status != "DELETE 1":
            return False
        await conn.execute(
            """INSERT INTO fedstac.audit (actor, action, collection, dataset, outcome)
               VALUES ('database:' || session_user, 'erase-person', '', $1, 'done')""",
            PREFIX + who.removeprefix(PREFIX),
        )
    return True
