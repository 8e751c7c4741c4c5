"""Requests, their items and results. Items that wait are the queue's (db/queue.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from fedstac.db.connections import Connection
from fedstac.db.queue import findings_json, shard_of
from fedstac.domain.documents import ItemTexts, TextSource
from fedstac.domain.errors import Finding, MarkedForDeletion, Severity
from fedstac.domain.model import Outcome

QUEUE_COLUMNS = ("request", "n", "shard", "dataset", "document", "prepared", "coded", "findings")
TURN = 256 << 10  # characters
AT_ONCE = 10  # documents of any size that are read
REFUSED_COLUMNS = (*QUEUE_COLUMNS, "status", "outcome", "problem", "detail", "finished")


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item of a request as it is accepted; `problem` where it was refused before it was queued."""

    lineage: str
    dataset: str
    texts: TextSource
    problem: str | None = None
    detail: str | None = None
    findings: tuple[Finding, ...] = ()


class KeyTaken(Exception):
    """Another request was accepted under this Idempotency-Key in the meantime."""


@dataclass(frozen=True, slots=True)
class Key:
    """An Idempotency-Key, scoped to its caller and route, and the digest of the body that was sent under it."""

    submitter: str
    route: str
    key: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request as it is accepted."""

    id: UUID
    collection: str
    action: str
    submitter: str
    roles: tuple[str, ...]
    user_agent: str | None
    correlation: str
    cv_version: str | None
    items: Sequence[NewItem]
    identity: str | None = None  # of a submitter whom a provider vouches for, packed (domain/groups.py)
    key: Key | None = None
    retry_of: UUID | None = None  # the request whose refused items these are
    only_new: bool = False  # If-None-Match: *
    traceparent: str | None = None


async def create(conn: Connection, new: Sequence[NewRequest]) -> None:
    """Store accepted requests with their items. Call it in a transaction."""
    await conn.execute(
        """INSERT INTO fedstac.request (id, collection, action, total, submitter, roles, user_agent, correlation,
               cv_version, identity, retry_of, only_new, traceparent)
           SELECT id, collection, action, total, submitter, string_to_array(roles, E'\\x1f'), user_agent, correlation,
                  cv_version, identity, retry_of, only_new, traceparent
           FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::text[], $6::text[], $7::text[], $8::text[],
                       $9::text[], $10::text[], $11::uuid[], $12::bool[], $13::text[])
                r (id, collection, action, total, submitter, roles, user_agent, correlation, cv_version, identity,
                   retry_of, only_new, traceparent)""",
        [r.id for r in new], [r.collection for r in new], [r.action for r in new],
        [len(r.items) for r in new], [r.submitter for r in new], ["\x1f".join(r.roles) for r in new],
        [r.user_agent for r in new], [r.correlation for r in new], [r.cv_version for r in new],
        [r.identity for r in new], [r.retry_of for r in new], [r.only_new for r in new],
        [r.traceparent for r in new],
    )  # fmt: skip
    await _take_keys(conn, [(request.key, request.id) for request in new if request.key])
    numbered = [(request.id, n, item) for request in new for n, item in enumerate(request.items)]
    await conn.copy_records_to_table(
        "request_item", schema_name="fedstac", columns=QUEUE_COLUMNS,
        records=_in_turns(
            (request, n, shard_of(item.lineage), item.dataset, *item.texts.read(), findings_json(item.findings))
            for request, n, item in numbered if item.problem is None
        ),
    )  # fmt: skip
    refused_rows = [(request, n, item) for request, n, item in numbered if item.problem is not None]
    if refused_rows:
        now = await conn.fetchval("SELECT clock_timestamp()")
        await conn.copy_records_to_table(
            "request_item", schema_name="fedstac", columns=REFUSED_COLUMNS,
            records=_in_turns(
                (request, n, shard_of(item.lineage), item.dataset, *ItemTexts(item.texts.read().document),
                 findings_json(item.findings), "rejected", Outcome.REJECTED.value, item.problem, item.detail, now)
                for request, n, item in refused_rows
            ),
        )  # fmt: skip


async def _in_turns(rows: Iterable[tuple[Any, ...]]) -> AsyncIterator[tuple[Any, ...]]:
    """Yield rows of items; the event loop takes a turn after TURN characters of documents."""
    size = 0
    for row in rows:
        yield row
        size += len(row[QUEUE_COLUMNS.index("document")] or "")
        if size > TURN:
            size = 0
            await asyncio.sleep(0)


async def _take_keys(conn: Connection, keys: Sequence[tuple[Key, UUID]]) -> None:
    """Store keys. KeyTaken where one of them is another request's; waits for one that is just being stored."""
    if not keys:
        return
    keys_stored = await conn.fetch(
        """INSERT INTO fedstac.idempotency (submitter, route, key, digest, request)
           SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::uuid[])
           ON CONFLICT DO NOTHING RETURNING key""",
        [key.submitter for key, _ in keys], [key.route for key, _ in keys], [key.key for key, _ in keys],
        [key.digest for key, _ in keys], [request for _, request in keys],
    )  # fmt: skip
    if len(keys_stored) < len(keys):
        raise KeyTaken


async def under_key(conn: Connection, key: Key) -> tuple[UUID, bytes] | None:
    """Return the request that was accepted under a key, and the digest of its body."""
    row = await conn.fetchrow(
        "SELECT request, digest FROM fedstac.idempotency WHERE submitter = $1 AND route = $2 AND key = $3",
        key.submitter, key.route, key.key,
    )  # fmt: skip
    return (row["request"], row["digest"]) if row else None


async def forget_keys(conn: Connection, days: int) -> None:
    """Delete keys that are older."""
    await conn.execute("DELETE FROM fedstac.idempotency WHERE at < now() - make_interval(days => $1)", days)


async def create_singles(conn: Connection, new: Sequence[NewRequest]) -> set[UUID]:
    """Store accepted requests of one item each, none of them refused: one statement, so it needs no transaction.

    Return those that are not stored: they publish under the id of a dataset that was deleted.
    """
    items = [request.items[0] for request in new]
    texts = [item.texts.read() for item in items]
    rows = await conn.fetch(
        """WITH given AS MATERIALIZED (
               SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                                    $8::text[], $9::smallint[], $10::text[], $11::text[], $12::text[], $13::text[],
                                    $14::text[], $15::uuid[], $16::bool[], $17::text[], $18::text[])
                    WITH ORDINALITY g (id, collection, action, submitter, roles, user_agent, correlation, cv_version,
                                       shard, dataset, document, prepared, findings, identity, retry_of, only_new,
                                       traceparent, coded, n)),
           refused AS MATERIALIZED (
               SELECT g.id FROM given g WHERE g.action = 'publish' AND EXISTS (
                   SELECT FROM fedstac.record r WHERE r.collection = g.collection AND r.id = g.dataset
                   AND r.state IN ('deleted', 'purged'))),
           accepted AS MATERIALIZED (SELECT * FROM given WHERE id NOT IN (SELECT id FROM refused)),
           stored AS (
               INSERT INTO fedstac.request (id, collection, action, total, submitter, roles, user_agent, correlation,
                   cv_version, identity, retry_of, only_new, traceparent)
               SELECT id, collection, action, 1, submitter, string_to_array(roles, E'\\x1f'), user_agent, correlation,
                      cv_version, identity, retry_of, only_new, traceparent FROM accepted),
           queued AS (
               INSERT INTO fedstac.request_item (request, n, shard, dataset, document, prepared, coded, findings)
               SELECT id, 0, shard, dataset, document, prepared, coded, findings::jsonb FROM accepted ORDER BY n)
           SELECT id FROM refused""",
        [r.id for r in new], [r.collection for r in new], [r.action for r in new],
        [r.submitter for r in new], ["\x1f".join(r.roles) for r in new], [r.user_agent for r in new],
        [r.correlation for r in new], [r.cv_version for r in new],
        [shard_of(item.lineage) for item in items], [item.dataset for item in items],
        [each.document for each in texts], [each.prepared for each in texts],
        [findings_json(item.findings) for item in items], [r.identity for r in new],
        [r.retry_of for r in new], [r.only_new for r in new], [r.traceparent for r in new],
        [each.coded for each in texts],
    )  # fmt: skip
    return {row["id"] for row in rows}


async def refused_items(conn: Connection, request: UUID) -> AsyncIterator[tuple[str, str]]:
    """Yield the rejected and failed items of a request, dataset and document, in the order in which they were sent.

    Read all of them, or end the connection's use: AT_ONCE are in memory.
    """
    async with conn.transaction(readonly=True):
        async for row in conn.cursor(
            """SELECT dataset, document FROM fedstac.request_item
               WHERE request = $1 AND status IN ('rejected', 'failed') AND document IS NOT NULL ORDER BY n""",
            request, prefetch=AT_ONCE,
        ):  # fmt: skip
            yield row["dataset"], row["document"]


def status_of(counts: Mapping[str, int], total: int) -> str:
    """Return the status of a request: queued → running → done | partly | rejected | failed. A final one stays."""
    waiting = counts.get("queued", 0)
    if waiting:
        return "queued" if waiting == total else "running"
    final = [status for status in ("done", "rejected", "failed") if counts.get(status)]
    return final[0] if len(final) == 1 else "partly" if "done" in final else "failed"


@dataclass(frozen=True, slots=True)
class Summary:
    """A request as it stands: counts by status and outcome, and the last of its events."""

    id: UUID
    collection: str
    action: str
    total: int
    submitter: str
    user_agent: str | None
    correlation: str
    cv_version: str | None
    created: datetime
    finished: datetime | None  # of the last item, once all are final
    counts: dict[str, int]
    outcomes: dict[str, int]
    last_event: int | None
    pos: int | None  # of that event in the feed, once it has one
    retry_of: UUID | None = None
    only_new: bool = False
    warned_items: int = 0  # items that are done, with findings

    @property
    def status(self) -> str:
        return status_of(self.counts, self.total)

    @property
    def is_final(self) -> bool:
        return not self.counts.get("queued")


async def summary(conn: Connection, request: UUID) -> Summary | None:
    """Return a request with the counts of its items; None where there is no such request."""
    rows = await conn.fetch(
        """SELECT r.id, r.collection, r.action, r.total, r.submitter, r.user_agent, r.correlation, r.cv_version,
                  r.created, r.retry_of, r.only_new, i.status, i.outcome, i.n, i.found, i.finished, i.last_event
           FROM fedstac.request r JOIN LATERAL (
               SELECT status, CASE WHEN problem = 'cancelled' THEN problem ELSE outcome END AS outcome,
                      count(*) AS n, count(findings) AS found, max(finished) AS finished, max(last_event) AS last_event
               FROM fedstac.request_item WHERE request = r.id GROUP BY 1, 2) i ON true
           WHERE r.id = $1""",
        request,
    )
    if not rows:
        return None
    counts: dict[str, int] = {}
    outcomes: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + row["n"]
        if row["outcome"]:
            outcomes[row["outcome"]] = row["n"]
    last = max((row["last_event"] for row in rows if row["last_event"] is not None), default=None)
    pos = await conn.fetchval(
        """SELECT max(place.pos) FROM fedstac.request_item i CROSS JOIN fedstac.forgotten g
           LEFT JOIN fedstac.feed f ON f.id = i.last_event
           CROSS JOIN LATERAL (SELECT CASE WHEN i.last_event <= g.id THEN g.pos ELSE f.pos END AS pos) place
           WHERE i.request = $1 AND i.last_event IS NOT NULL HAVING count(*) = count(place.pos)""",
        request,
    )
    first = rows[0]
    return Summary(
        id=first["id"], collection=first["collection"], action=first["action"], total=first["total"],
        submitter=first["submitter"], user_agent=first["user_agent"], correlation=first["correlation"],
        cv_version=first["cv_version"], created=first["created"],
        finished=max(row["finished"] for row in rows) if "queued" not in counts else None,
        counts=counts, outcomes=outcomes, last_event=last, pos=pos, retry_of=first["retry_of"],
        only_new=first["only_new"], warned_items=sum(row["found"] for row in rows if row["status"] == "done"),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """A request in a list: what it is, and how many of its items have which status."""

    id: UUID
    collection: str
    action: str
    total: int
    created: datetime
    counts: dict[str, int]
    cancelled: int = 0  # of those that are rejected

    @property
    def status(self) -> str:
        return status_of(self.counts, self.total)


async def of_submitter(conn: Connection, submitter: str, *, after: UUID | None, limit: int) -> list[RequestCounts]:
    """Return a caller's requests, the newest first; with `after`, those before that request of theirs."""
    rows = await conn.fetch(
        """SELECT r.id, r.collection, r.action, r.total, r.created, i.status, i.n, i.cancelled
           FROM (SELECT id, collection, action, total, created FROM fedstac.request
                 WHERE submitter = $1 AND ($2::uuid IS NULL OR (created, id) < (
                     SELECT created, id FROM fedstac.request WHERE id = $2 AND submitter = $1))
                 ORDER BY created DESC, id DESC LIMIT $3) r
           CROSS JOIN LATERAL (SELECT status, count(*) AS n, count(*) FILTER (WHERE problem = 'cancelled') AS cancelled
                               FROM fedstac.request_item WHERE request = r.id GROUP BY 1) i
           ORDER BY r.created DESC, r.id DESC""",
        submitter, after, limit,
    )  # fmt: skip
    requests: dict[UUID, RequestCounts] = {}
    for row in rows:
        entry = requests.setdefault(
            row["id"], RequestCounts(row["id"], row["collection"], row["action"], row["total"], row["created"], {})
        )
        counts, cancelled = {**entry.counts, row["status"]: row["n"]}, entry.cancelled + row["cancelled"]
        requests[row["id"]] = replace(entry, counts=counts, cancelled=cancelled)
    return list(requests.values())


@dataclass(frozen=True, slots=True)
class StoredResult:
    """The result of one item, by its number in the request."""

    n: int
    dataset: str
    status: str
    outcome: str | None
    problem: str | None
    detail: str | None
    findings: str | None  # JSON text
    finished: datetime | None
    deletion: UUID | None = None  # that is open, of a dataset that is marked

    def findings_read(self) -> tuple[Finding, ...]:
        """Return the findings as values."""
        return tuple(
            Finding(f["rule"], f["pointer"], f["message"], Severity(f["severity"]), f.get("suggestion"))
            for f in orjson.loads(self.findings or "[]")
        )


async def last_identity(conn: Connection, submitter: str) -> str | None:
    """Return the identity that was stored with a caller's last request, packed (domain/groups.py)."""
    identity: str | None = await conn.fetchval(
        """SELECT identity FROM fedstac.request WHERE submitter = $1 AND identity IS NOT NULL
           ORDER BY created DESC LIMIT 1""",
        submitter,
    )
    return identity


async def results(conn: Connection, request: UUID, *, status: str | None, after: int, limit: int) -> list[StoredResult]:
    """Return items of a request after number `after`, of one status if given."""
    rows = await conn.fetch(
        """SELECT n, dataset, status, outcome, problem, detail, findings::text AS findings, finished,
                  CASE WHEN problem = $5 THEN (
                      SELECT d.id FROM fedstac.deletion d JOIN fedstac.request r ON r.collection = d.collection
                      WHERE r.id = i.request AND d.dataset = i.dataset AND d.state = 'open') END AS deletion
           FROM fedstac.request_item i WHERE request = $1 AND n > $2 AND ($3::text IS NULL OR status = $3)
           ORDER BY n LIMIT $4""",
        request, after, status, limit, MarkedForDeletion.name,
    )  # fmt: skip
    return [StoredResult(**dict(row)) for row in rows]


async def visible(conn: Connection, pos: int) -> list[tuple[str, datetime | None]]:
    """Return every node that acknowledges, and since when it shows everything through a position; None: not yet."""
    rows = await conn.fetch(
        """WITH RECURSIVE known AS (
               (SELECT node FROM fedstac.node_status ORDER BY node LIMIT 1)
               UNION ALL
               SELECT (SELECT s.node FROM fedstac.node_status s WHERE s.node > k.node ORDER BY s.node LIMIT 1)
               FROM known k WHERE k.node IS NOT NULL),
           since AS (SELECT coalesce(max(n), 1) AS epoch FROM fedstac.epoch WHERE forked_at_pos < $1::bigint)
           SELECT k.node, (SELECT s.at FROM fedstac.node_status s
                           WHERE s.node = k.node AND (s.epoch, s.through) >= ((SELECT epoch FROM since), $1::bigint)
                             AND s.through >= $1::bigint ORDER BY s.epoch, s.through LIMIT 1) AS at
           FROM known k WHERE k.node IS NOT NULL AND k.node NOT LIKE '%/%' ORDER BY k.node""",
        pos,
    )
    return [(row["node"], row["at"]) for row in rows]
