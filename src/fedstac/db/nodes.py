"""Nodes and tokens: who may call, what consumers have acknowledged, and a consumer's own cursor."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from fedstac.db import people
from fedstac.db.connections import Connection, Row
from fedstac.domain.events import Cursor
from fedstac.domain.policy import Principal

LONGEST_NAME = 100
FOLLOWER_LOCK = 0x66656402  # advisory locks of the followers, with the hash of the origin as second key


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def is_name(text: str) -> bool:
    """Whether a token may be called so: the name stands in logs, beside the pseudonyms of people."""
    is_text = text.isprintable() and text == text.strip() and 0 < len(text) <= LONGEST_NAME
    return is_text and text != "anonymous" and not text.startswith(people.PREFIX)


async def issue_token(
    conn: Connection, name: str, roles: Sequence[str], *, token: str | None = None, expires: datetime | None = None
) -> str:
    """A new token for these roles; only its hash is kept. Without `expires` it is valid until it is revoked."""
    token = token or "fst_" + secrets.token_urlsafe(32)
    await conn.execute(
        "INSERT INTO fedstac.token (hash, name, roles, expires) VALUES ($1, $2, $3, $4) ON CONFLICT (hash) DO NOTHING",
        _hash(token), name, list(roles), expires,
    )  # fmt: skip
    return token


async def principal(conn: Connection, token: str) -> Principal | None:
    """Who holds a token, also one that has ended; None if nobody does."""
    row = await conn.fetchrow("SELECT name, roles, expires FROM fedstac.token WHERE hash = $1", _hash(token))
    return Principal(row["name"], frozenset(row["roles"]), expires=row["expires"]) if row else None


@dataclass(frozen=True, slots=True)
class Token:
    """An issued token as far as it is known: the beginning of its hash names it."""

    id: str
    name: str
    roles: tuple[str, ...]
    created: datetime
    expires: datetime | None


def _token(row: Row) -> Token:
    return Token(row["id"], row["name"], tuple(row["roles"]), row["created"], row["expires"])


async def tokens(conn: Connection) -> list[Token]:
    """All tokens that were issued and not revoked, by name; also those that have ended."""
    rows = await conn.fetch(
        """SELECT left(encode(hash, 'hex'), 12) AS id, name, roles, created, expires
           FROM fedstac.token ORDER BY name, created"""
    )
    return [_token(row) for row in rows]


async def revoke_tokens(conn: Connection, which: str) -> list[Token]:
    """Withdraws the tokens of a name, or the one of an id as `tokens` shows it; those that were."""
    rows = await conn.fetch(
        """DELETE FROM fedstac.token WHERE name = $1 OR left(encode(hash, 'hex'), 12) = $1
           RETURNING left(encode(hash, 'hex'), 12) AS id, name, roles, created, expires""",
        which,
    )
    return [_token(row) for row in rows]


async def acknowledge(conn: Connection, node: str, through: Cursor, exceptions: Sequence[Mapping[str, str]]) -> None:
    """Notes that a node has everything through a position. The same again, or less, changes nothing."""
    await conn.execute(
        """INSERT INTO fedstac.node_status (node, epoch, through)
           SELECT $1, $2, $3 WHERE NOT EXISTS (
               SELECT 1 FROM fedstac.node_status WHERE node = $1 AND (epoch, through) >= ($2, $3))
           ON CONFLICT DO NOTHING""",
        node, through.epoch, through.pos,
    )  # fmt: skip
    if exceptions:
        await conn.execute(
            """INSERT INTO fedstac.node_exception (node, event_id, outcome, detail)
               SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[])
               ON CONFLICT (node, event_id) DO UPDATE SET outcome = EXCLUDED.outcome, detail = EXCLUDED.detail""",
            node, [e["event_id"] for e in exceptions], [e["outcome"] for e in exceptions],
            [e.get("detail", "") for e in exceptions],
        )  # fmt: skip


async def statuses(conn: Connection) -> list[Row]:
    """For every node that has ever acknowledged: through where, and since when."""
    return await conn.fetch(
        """WITH RECURSIVE last AS (
               (SELECT node, epoch, through, at FROM fedstac.node_status
                ORDER BY node DESC, epoch DESC, through DESC LIMIT 1)
               UNION ALL
               SELECT s.* FROM last l CROSS JOIN LATERAL (
                   SELECT node, epoch, through, at FROM fedstac.node_status n WHERE n.node < l.node
                   ORDER BY node DESC, epoch DESC, through DESC LIMIT 1) s)
           SELECT node, epoch, through, at FROM last ORDER BY node"""
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """A consumer's place in an origin's feed; `snapshot` is the page to go on with while one is being taken."""

    cursor: Cursor
    snapshot: str | None


async def progress(conn: Connection, origin: str) -> Progress | None:
    row = await conn.fetchrow("SELECT epoch, pos, snapshot FROM fedstac.cursor WHERE origin = $1", origin)
    return Progress(Cursor(row["epoch"], row["pos"]), row["snapshot"]) if row else None


async def move(conn: Connection, origin: str, cursor: Cursor, snapshot: str | None = None) -> None:
    """Stores a consumer's place; call it in the transaction that applies."""
    await conn.execute(
        """INSERT INTO fedstac.cursor (origin, epoch, pos, snapshot) VALUES ($1, $2, $3, $4)
           ON CONFLICT (origin) DO UPDATE SET epoch = EXCLUDED.epoch, pos = EXCLUDED.pos,
                  snapshot = EXCLUDED.snapshot, updated = now()""",
        origin, cursor.epoch, cursor.pos, snapshot,
    )  # fmt: skip


async def forget_progress(conn: Connection, origin: str) -> None:
    """Deletes a consumer's place and what is parked: the origin is followed as if for the first time."""
    await conn.execute("DELETE FROM fedstac.cursor WHERE origin = $1", origin)
    await conn.execute("DELETE FROM fedstac.parked WHERE origin = $1", origin)


async def follow_alone(conn: Connection, origin: str) -> bool:
    """Whether this session is the one that follows an origin into this database; the lock goes with the session."""
    return bool(await conn.fetchval("SELECT pg_try_advisory_lock($1, hashtext($2))", FOLLOWER_LOCK, origin))


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that is set aside; epoch and seq are its place among those of its dataset, 0 where it has none."""

    event_id: str
    subject: str
    epoch: int
    seq: int
    detail: str
    event: str


async def park(conn: Connection, origin: str, pos: int, broken: Sequence[Parked]) -> None:
    """Sets events aside that cannot be applied, of each dataset the newest: a later one replaces it (C2)."""
    await conn.execute(
        """INSERT INTO fedstac.parked AS p (origin, pos, event_id, subject, epoch, seq, detail, event)
           SELECT DISTINCT ON (subject) $1::text, $2::bigint, event_id, subject, epoch, seq, detail, event
           FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[]) WITH ORDINALITY
                b (event_id, subject, epoch, seq, detail, event, n)
           ORDER BY subject, epoch DESC, seq DESC, n DESC
           ON CONFLICT (origin, subject) DO UPDATE SET pos = EXCLUDED.pos, event_id = EXCLUDED.event_id,
                  epoch = EXCLUDED.epoch, seq = EXCLUDED.seq, detail = EXCLUDED.detail, event = EXCLUDED.event,
                  at = now()
           WHERE (p.epoch, p.seq) <= (EXCLUDED.epoch, EXCLUDED.seq)""",
        origin, pos, [each.event_id for each in broken], [each.subject for each in broken],
        [each.epoch for each in broken], [each.seq for each in broken], [each.detail for each in broken],
        [each.event for each in broken],
    )  # fmt: skip


async def parked(conn: Connection, origin: str) -> list[dict[str, str]]:
    """What of an origin's events is set aside here, as exceptions to an acknowledgement."""
    rows = await conn.fetch(
        "SELECT event_id, detail FROM fedstac.parked WHERE origin = $1 ORDER BY pos LIMIT 1000", origin
    )
    return [{"event_id": row["event_id"], "outcome": "parked", "detail": row["detail"]} for row in rows]


async def unpark(conn: Connection, origin: str, applied: Sequence[tuple[str, int, int]]) -> None:
    """Forgets parked events of datasets that are brought up to date: (subject, epoch, seq), as new or newer."""
    await conn.execute(
        """DELETE FROM fedstac.parked p USING unnest($2::text[], $3::bigint[], $4::bigint[]) a (subject, epoch, seq)
           WHERE p.origin = $1 AND p.subject = a.subject AND (p.epoch, p.seq) <= (a.epoch, a.seq)""",
        origin, [subject for subject, _, _ in applied], [epoch for _, epoch, _ in applied],
        [seq for _, _, seq in applied],
    )  # fmt: skip


async def forget_parked(conn: Connection, origin: str, *, before_epoch: int) -> None:
    """Forgets parked events of epochs before this one, whose snapshot says everything anew."""
    await conn.execute("DELETE FROM fedstac.parked WHERE origin = $1 AND epoch < $2", origin, before_epoch)
