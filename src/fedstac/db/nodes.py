"""Nodes and tokens: who may call, what consumers acknowledge, and a consumer's own place in the feeds it follows."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from uuid import UUID

import orjson

from fedstac.db import people, purging
from fedstac.db.connections import Connection, Row
from fedstac.domain import digests
from fedstac.domain.events import Cursor
from fedstac.domain.policy import DELETION_MANAGER, Principal

LONGEST_NAME = 100
FILES = "files:"  # in front of the place in a snapshot of files
LISTED = "snapshot:"  # before the dataset, where an exception is of its entry in a snapshot
INDEX = "index"  # the consumer of an index node; the others have the names of their roles
REPLICA = "replica"  # the consumer and the role of a replica node
# Advisory locks of the followers. The second key is the hash of FOLLOWER_KEY, for a consumer and an origin. An index
# node's key is the origin alone, as in the releases that knew no other consumer: an old process and a new one exclude
# each other.
FOLLOWER_LOCK = 0x66656402
FOLLOWER_KEY = f"CASE {{consumer}} WHEN '{INDEX}' THEN {{origin}} ELSE {{consumer}} || ' ' || {{origin}} END"


def is_name(text: str) -> bool:
    """Return whether a token may have this name: it stands in logs, beside the pseudonyms of people."""
    is_text = text.isprintable() and text == text.strip() and 0 < len(text) <= LONGEST_NAME
    return is_text and text not in ("anonymous", DELETION_MANAGER) and not text.startswith(people.PREFIX)


async def issue_token(
    conn: Connection, name: str, roles: Sequence[str], *, token: str | None = None, expires: datetime | None = None
) -> str:
    """Issue a token for these roles and return it. Only its hash is stored.

    Without `expires` it is valid until it is revoked.
    """
    token = token or "fst_" + secrets.token_urlsafe(32)
    await conn.execute(
        "INSERT INTO fedstac.token (hash, name, roles, expires) VALUES ($1, $2, $3, $4) ON CONFLICT (hash) DO NOTHING",
        digests.of_token(token), name, list(roles), expires,
    )  # fmt: skip
    return token


async def principal(conn: Connection, token: str) -> Principal | None:
    """Return who holds a token, also one that has expired; None if nobody does."""
    row = await conn.fetchrow("SELECT name, roles, expires FROM fedstac.token WHERE hash = $1", digests.of_token(token))
    return Principal(row["name"], frozenset(row["roles"]), expires=row["expires"]) if row else None


async def token_hashes(conn: Connection, role: str) -> list[bytes]:
    """Return the SHA-256 of each valid token with a role: what its holder and this node know, and nobody else."""
    rows = await conn.fetch(
        "SELECT hash FROM fedstac.token WHERE $1 = ANY (roles) AND (expires IS NULL OR expires > clock_timestamp())",
        role,
    )
    return [row["hash"] for row in rows]


async def roles_of(conn: Connection, names: Collection[str]) -> dict[str, frozenset[str]]:
    """Return the roles that the valid tokens of names have together, by name; without names that have none."""
    rows = await conn.fetch(
        """SELECT name, array_agg(role) FILTER (WHERE role IS NOT NULL) AS roles
           FROM fedstac.token LEFT JOIN LATERAL unnest(roles) role ON true
           WHERE name = ANY ($1::text[]) AND (expires IS NULL OR expires > clock_timestamp()) GROUP BY name""",
        list(names),
    )  # fmt: skip
    return {row["name"]: frozenset(row["roles"] or ()) for row in rows}


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was issued. The beginning of its hash is its id."""

    id: str
    name: str
    roles: tuple[str, ...]
    created: datetime
    expires: datetime | None


def _token(row: Row) -> Token:
    return Token(row["id"], row["name"], tuple(row["roles"]), row["created"], row["expires"])


async def tokens(conn: Connection) -> list[Token]:
    """Return all tokens that are not revoked, by name; also those that have expired."""
    rows = await conn.fetch(
        """SELECT left(encode(hash, 'hex'), 12) AS id, name, roles, created, expires
           FROM fedstac.token ORDER BY name, created"""
    )
    return [_token(row) for row in rows]


async def revoke_tokens(conn: Connection, which: str) -> list[Token]:
    """Revoke the tokens of a name, or the one of an id as `tokens` shows it; return them."""
    rows = await conn.fetch(
        """DELETE FROM fedstac.token WHERE name = $1 OR left(encode(hash, 'hex'), 12) = $1
           RETURNING left(encode(hash, 'hex'), 12) AS id, name, roles, created, expires""",
        which,
    )
    return [_token(row) for row in rows]


def reporter(node: str, consumer: str) -> str:
    """Return the name under which a consumer acknowledges: its node's, and its own where it is no index node."""
    return node if consumer == INDEX else f"{node}/{consumer}"


async def acknowledge(conn: Connection, node: str, through: Cursor, exceptions: Sequence[Mapping[str, str]]) -> None:
    """Store that a consumer has everything through a position. The same again, or less, changes nothing.

    `node`: its `reporter` name. What is said of an event of a purged dataset is not stored.
    """
    await conn.execute(
        """INSERT INTO fedstac.node_status (node, epoch, through)
           SELECT $1::text, $2::bigint, $3::bigint WHERE NOT EXISTS (
               SELECT FROM (SELECT epoch, through FROM fedstac.node_status WHERE node = $1
                            ORDER BY epoch DESC, through DESC LIMIT 1) last
               WHERE (last.epoch, last.through) >= ($2, $3))
           ON CONFLICT DO NOTHING""",
        node, through.epoch, through.pos,
    )  # fmt: skip
    if exceptions:
        await conn.execute(
            """INSERT INTO fedstac.node_exception (node, event_id, outcome, detail, collection, dataset)
               SELECT $1, e.event_id, e.outcome, CASE WHEN e.detail <> '' AND EXISTS (
                   SELECT FROM fedstac.record r
                   WHERE r.collection = d.collection AND r.id = d.id AND r.state = 'purged') THEN $8 ELSE e.detail END,
                   d.collection, d.id
               FROM unnest($2::text[], $3::text[], $4::text[], $5::uuid[], $6::text[], $7::text[])
                    e (event_id, outcome, detail, uuid, collection, dataset)
               LEFT JOIN fedstac.node_exception known ON known.node = $1 AND known.event_id = e.event_id
               LEFT JOIN LATERAL (SELECT collection, dataset FROM fedstac.outbox WHERE event_id = e.uuid LIMIT 1) o
                    ON true
               CROSS JOIN LATERAL (SELECT coalesce(e.collection, o.collection, known.collection) AS collection,
                                          coalesce(e.dataset, o.dataset, known.dataset) AS id) d
               ON CONFLICT (node, event_id) DO UPDATE
                   SET outcome = EXCLUDED.outcome, detail = EXCLUDED.detail, collection = EXCLUDED.collection,
                       dataset = EXCLUDED.dataset""",
            node, [e["event_id"] for e in exceptions], [e["outcome"] for e in exceptions],
            [e.get("detail", "") for e in exceptions], [_event_id(e["event_id"]) for e in exceptions],
            *zip(*(_listed_dataset(e["event_id"]) for e in exceptions), strict=True), purging.PURGED_TEXT,
        )  # fmt: skip


def _event_id(name: str) -> UUID | None:
    """Return the id of the event that an exception names; None for an entry of a snapshot."""
    try:
        return UUID(name)
    except ValueError:
        return None


def _listed_dataset(name: str) -> tuple[str | None, str | None]:
    """Return collection and id of the entry of a snapshot that an exception names; None for an event."""
    collection, slash, dataset = name.removeprefix(LISTED).partition("/")
    return (collection, dataset) if name.startswith(LISTED) and slash else (None, None)


async def statuses(conn: Connection) -> list[Row]:
    """Return for every consumer that has ever acknowledged: through where, and since when."""
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


# --- a consumer's own place ---


@dataclass(frozen=True, slots=True)
class Progress:
    """A consumer's place in an origin's log.

    snapshot: the page to go on with while one is being taken.
    offsets: where a broker has that place, by partition.
    """

    cursor: Cursor
    snapshot: str | None = None
    offsets: Mapping[str, int] = field(default_factory=dict)


async def progress(conn: Connection, consumer: str, origin: str) -> Progress | None:
    """Return a consumer's place; None before it has one."""
    row = await conn.fetchrow(
        "SELECT epoch, pos, snapshot, offsets FROM fedstac.consumer_cursor WHERE consumer = $1 AND origin = $2",
        consumer, origin,
    )  # fmt: skip
    return Progress(Cursor(row["epoch"], row["pos"]), row["snapshot"], orjson.loads(row["offsets"])) if row else None


async def move(
    conn: Connection, consumer: str, origin: str, cursor: Cursor, *, snapshot: str | None = None,
    offsets: Mapping[str, int] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Store a consumer's place; call it in the transaction that applies. The deaths on the way here are forgotten."""
    await conn.execute(
        """INSERT INTO fedstac.consumer_cursor (consumer, origin, epoch, pos, snapshot, offsets)
           VALUES ($1, $2, $3, $4, $5, $6)
           ON CONFLICT (consumer, origin) DO UPDATE SET epoch = EXCLUDED.epoch, pos = EXCLUDED.pos,
                  snapshot = EXCLUDED.snapshot, offsets = EXCLUDED.offsets, deaths = 0, updated = now()""",
        consumer, origin, cursor.epoch, cursor.pos, snapshot, orjson.dumps(dict(offsets)).decode(),
    )  # fmt: skip


async def forget_progress(conn: Connection, consumer: str, origin: str) -> None:
    """Delete a consumer's place and what is parked: the origin is followed as if for the first time."""
    for table in ("consumer_cursor", "parked_event", "event_attempt", "esgf_event", "esgf_waiting"):
        await conn.execute(f"DELETE FROM fedstac.{table} WHERE consumer = $1 AND origin = $2", consumer, origin)


async def follow_alone(conn: Connection, consumer: str, origin: str) -> bool:
    """Return whether this session is the consumer that follows an origin into this database.

    The lock goes with the session.
    """
    key = FOLLOWER_KEY.format(consumer="$2::text", origin="$3::text")
    return bool(
        await conn.fetchval(f"SELECT pg_try_advisory_lock($1, hashtext({key}))", FOLLOWER_LOCK, consumer, origin)
    )


# --- events that kill ---


async def begin_page(conn: Connection, consumer: str, origin: str) -> int:
    """Count one more process that begins with a page; return how many died over it before. `move` counts from 0."""
    row = await conn.fetchval(
        """INSERT INTO fedstac.consumer_cursor AS c (consumer, origin, epoch, pos, deaths) VALUES ($1, $2, 0, 0, 1)
           ON CONFLICT (consumer, origin) DO UPDATE SET deaths = c.deaths + 1 RETURNING deaths - 1""",
        consumer, origin,
    )  # fmt: skip
    return int(row)


async def begin_attempt(conn: Connection, consumer: str, origin: str, event_id: str) -> int:
    """Count an attempt at one event before it begins; return which one it is."""
    attempts = await conn.fetchval(
        """INSERT INTO fedstac.event_attempt AS a (consumer, origin, event_id) VALUES ($1, $2, $3)
           ON CONFLICT (consumer, origin, event_id) DO UPDATE SET attempts = a.attempts + 1 RETURNING attempts""",
        consumer, origin, event_id,
    )  # fmt: skip
    return int(attempts)


async def end_attempt(conn: Connection, consumer: str, origin: str, event_id: str) -> None:
    """Forget the attempts at an event that killed nobody."""
    await conn.execute(
        "DELETE FROM fedstac.event_attempt WHERE consumer = $1 AND origin = $2 AND event_id = $3",
        consumer, origin, event_id,
    )  # fmt: skip
