"""The audit log: a row for every write that was asked for, and the chain over all rows (domain/audit.py).

The row of an accepted write is written in the write's transaction. Rows never change: no role may change one. Places
and hashes stand in a table of their own that only the function chain_audit can prolong.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import orjson

from fedstac.db import people, records
from fedstac.db.connections import Connection, Row
from fedstac.domain import audit as chained
from fedstac.domain.audit import ChainBroken, ChainHead
from fedstac.domain.model import Record

PREFETCH = 2000
PERSON = re.compile(re.escape(people.PREFIX) + "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row as it is written: an action and its outcome. The row's issuer follows from the actor.

    `correlation` None: that of the request. `rule`: the problem that refused, or the rule that allowed. `items` and
    `detail` (JSON): of a row that stands for many.
    """

    actor: str
    action: str
    collection: str
    dataset: str
    request: UUID | None
    outcome: str
    before: bytes | None
    after: bytes | None
    correlation: str | None = None
    rule: str | None = None
    items: int = 1
    detail: str | None = None


STORED = ("actor", "issuer", "action", "collection", "dataset", "request", "correlation", "outcome", "rule", "items",
          "detail", "digest_before", "digest_after")  # fmt: skip


async def operator(conn: Connection) -> str:
    """Return the name under which whoever works on the database itself stands in the log: no policy names them."""
    return f"database:{await conn.fetchval('SELECT session_user')}"


async def append(conn: Connection, rows: Sequence[NewRow]) -> None:
    """Write rows in their order, as part of the transaction that is open."""
    if not rows:
        return
    issuers, correlations = await _issuers_and_correlations(conn, rows)
    await conn.copy_records_to_table(
        "audit", schema_name="fedstac", columns=STORED,
        records=[
            (r.actor, issuers.get(r.actor), r.action, r.collection, r.dataset, r.request,
             r.correlation or correlations.get(r.request), r.outcome, r.rule, r.items, r.detail, r.before, r.after)
            for r in rows
        ],
    )  # fmt: skip


async def append_act(
    conn: Connection, actor: str, correlation: str | None, action: str, subject: str, detail: Mapping[str, object]
) -> None:
    """Write the row of what somebody did with a thing that is no dataset, such as `sink/NAME`. Join a transaction."""
    await append_acts(conn, actor, correlation, [Act(action, subject, detail)])


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody did with a thing that is no dataset."""

    action: str
    subject: str
    detail: Mapping[str, object]


async def append_acts(conn: Connection, actor: str, correlation: str | None, acts: Sequence[Act]) -> None:
    """Write the rows of what somebody did with things that are no datasets, in their order. Join a transaction."""
    await append(conn, [
        NewRow(
            actor=actor, action=each.action, collection="", dataset=each.subject, request=None, outcome="done",
            before=None, after=None, correlation=correlation,
            detail=orjson.dumps(each.detail).decode() if each.detail else None,
        )
        for each in acts
    ])  # fmt: skip


async def _issuers_and_correlations(
    conn: Connection, rows: Sequence[NewRow]
) -> tuple[dict[str, str], dict[UUID | None, str]]:
    """Return the hosts of the issuers of the people among the actors, and the correlation ids of requests."""
    persons = {row.actor.removeprefix(people.PREFIX) for row in rows if PERSON.fullmatch(row.actor)}
    requests = {row.request for row in rows if row.request and row.correlation is None}
    if not persons and not requests:
        return {}, {}
    texts = await conn.fetch(
        """SELECT NULL::uuid AS request, pseudonym::text AS person,
                  split_part(regexp_replace(iss, '^[^:]*://', ''), '/', 1) AS text
           FROM fedstac.person WHERE pseudonym = ANY ($1::text[]::uuid[])
           UNION ALL SELECT id, NULL, correlation FROM fedstac.request WHERE id = ANY ($2::uuid[])
           UNION ALL SELECT id, NULL, correlation FROM fedstac.bulk WHERE id = ANY ($2::uuid[])""",
        list(persons), list(requests),
    )  # fmt: skip
    issuers = {people.PREFIX + row["person"]: row["text"] for row in texts if row["person"]}
    return issuers, {row["request"]: row["text"] for row in texts if row["request"]}


@dataclass(frozen=True, slots=True)
class LastChange:
    """Who changed a dataset last, by which action, and when (RFC 3339)."""

    actor: str
    action: str
    at: str


async def last_changes(conn: Connection, records: Sequence[Record]) -> dict[str, LastChange]:
    """Return the changes that made these records what they are, by id. A change that no row tells of is missing.

    A change and its row are of one transaction, so the row is looked for in the minutes after the record's time.
    """
    rows = await conn.fetch(
        """SELECT DISTINCT ON (r.id) r.id, a.actor, a.action, to_char(a.at AT TIME ZONE 'UTC', $5) AS at
           FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bytea[]) r (collection, id, updated, digest)
           JOIN fedstac.audit a ON a.at BETWEEN r.updated AND r.updated + interval '10 minutes'
                AND a.collection = r.collection AND a.dataset = r.id AND a.digest_after = r.digest
           WHERE a.at BETWEEN $6 AND $7::timestamptz + interval '10 minutes'  -- for the index
           ORDER BY r.id, a.id DESC""",
        [each.collection for each in records], [each.id for each in records], [each.updated for each in records],
        [each.digest for each in records], 'YYYY-MM-DD"T"HH24:MI:SS"Z"', min(each.updated for each in records),
        max(each.updated for each in records),
    )  # fmt: skip
    return {row["id"]: LastChange(row["actor"], row["action"], row["at"]) for row in rows}


async def chain(conn: Connection) -> int:
    """Give places and hashes to the rows that became visible; return how many. Without any, write nothing."""
    async with conn.transaction(isolation="repeatable_read"):
        return int(await conn.fetchval("SELECT fedstac.chain_audit()"))


async def chain_restored(conn: Connection) -> None:
    """Give a place to every row without one, in a database that was restored or promoted. Joins a transaction."""
    await conn.execute("SELECT fedstac.chain_audit(true)", timeout=records.A_DAY)


# --- for auditors

COLUMNS = """c.pos, a.id, to_char(a.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at, a.actor, a.issuer,
    a.action, a.collection, a.dataset, a.request::text, a.correlation, a.outcome, a.rule, a.items, a.detail,
    encode(a.digest_before, 'hex') AS before, encode(a.digest_after, 'hex') AS after, encode(c.hash, 'hex') AS hash"""


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Which rows; None: any. `dataset` is an id, also one of the few that a row for many names."""

    who: str | None = None
    dataset: str | None = None
    since: datetime | None = None
    outcome: str | None = None
    limit: int | None = None


async def rows(conn: Connection, filter: RowFilter) -> AsyncIterator[chained.Row]:
    """Yield rows, the newest first."""
    async with conn.transaction(readonly=True):
        async for row in conn.cursor(
            f"""SELECT {COLUMNS} FROM fedstac.audit a LEFT JOIN fedstac.audit_chain c ON c.id = a.id
                WHERE ($1::text IS NULL OR a.actor = $1) AND ($3::timestamptz IS NULL OR a.at >= $3)
                  AND ($2::text IS NULL OR a.dataset = $2 OR a.detail::jsonb -> 'datasets' ? $2)
                  AND ($4::text IS NULL OR a.outcome = $4)
                ORDER BY a.id DESC LIMIT $5""",
            filter.who, filter.dataset, filter.since, filter.outcome, filter.limit, prefetch=PREFETCH,
        ):  # fmt: skip
            yield chained.Row(**dict(row))


async def head(conn: Connection) -> ChainHead:
    """Return the last place of the chain."""
    row = await conn.fetchrow("SELECT pos, hash FROM fedstac.audit_head")
    if row is None:
        raise ChainBroken(0, "the head of the chain is gone")
    return ChainHead(row["pos"], row["hash"])


async def checkpoint(conn: Connection, at: ChainHead) -> chained.Checkpoint:
    """Return a head with this node's name and the time."""
    row = await conn.fetchrow(
        """SELECT (SELECT origin FROM fedstac.feed_state) AS origin,
                  to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS now"""
    )
    assert row is not None
    return chained.Checkpoint(row["origin"] or "", at, row["now"])


async def export(
    conn: Connection, since: datetime | None
) -> AsyncIterator[ChainHead | chained.Row | chained.Checkpoint]:
    """Yield the head before, every row from the first one of that time on, and a checkpoint; in one snapshot."""
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        first = await conn.fetchval(
            """SELECT coalesce(min(c.pos), (SELECT pos + 1 FROM fedstac.audit_head))
               FROM fedstac.audit_chain c JOIN fedstac.audit a ON a.id = c.id
               WHERE $1::timestamptz IS NULL OR a.at >= $1""",
            since,
        )
        head_before = await at(conn, first - 1)
        yield head_before or chained.START
        async for row in _by_place(conn, first):
            if row["id"] is not None:
                yield chained.Row(**dict(row))
        yield await checkpoint(conn, await head(conn))


async def at(conn: Connection, pos: int) -> ChainHead | None:
    """Return the head as it was at a position; None where there is no such position."""
    if pos == 0:
        return chained.START
    hash = await conn.fetchval("SELECT hash FROM fedstac.audit_chain WHERE pos = $1", pos)
    return ChainHead(pos, hash) if hash is not None else None


def _by_place(conn: Connection, first: int) -> AsyncIterator[Row]:
    return conn.cursor(
        f"""SELECT {COLUMNS} FROM fedstac.audit_chain c LEFT JOIN fedstac.audit a ON a.id = c.id
            WHERE c.pos >= $1 ORDER BY c.pos""",
        first, prefetch=PREFETCH,
    ).__aiter__()  # fmt: skip


async def verify(conn: Connection) -> ChainHead:
    """Follow the whole chain in one snapshot, with hashes made here. ChainBroken at the first bad place.

    Return its head.
    """
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        place = chained.START
        async for row in _by_place(conn, 0):
            if row["id"] is None:
                raise ChainBroken(row["pos"], "its row is gone")
            place = chained.link(place, chained.Row(**dict(row)))
        last = await head(conn)
        if last != place:
            what = f"the chain ends here, and its head is at position {last.pos}: rows were cut off or put behind"
            raise ChainBroken(min(place.pos, last.pos) + 1, what)
        foreign = await conn.fetchval(
            """SELECT min(a.id) FROM fedstac.audit a
               WHERE pg_visible_in_snapshot(a.xid, (SELECT snap FROM fedstac.audit_head))
                 AND NOT EXISTS (SELECT FROM fedstac.audit_chain c WHERE c.id = a.id)"""
        )
        if foreign is not None:
            raise ChainBroken(place.pos + 1, f"row {foreign} was put in without a place")
        return place
