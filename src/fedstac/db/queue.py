"""The queue of the workers: shards that they claim for a while, the items that wait in them, and their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID
from zlib import crc32

import orjson

from fedstac.db.connections import Connection
from fedstac.domain.errors import Finding
from fedstac.domain.model import Outcome

SHARDS = 64
FEW = 24  # shards
BATCH_BYTES = 2 << 20  # of documents that a worker takes up at once: some 400 of the usual size
FINAL = {Outcome.REJECTED: "rejected", Outcome.FAILED: "failed"}  # every other outcome is `done`


def key_hash(lineage: str) -> int:
    """Return the number that shards are made of: of the queue, and of the feed's `shard` parameter."""
    return crc32(lineage.encode())


def shard_of(lineage: str) -> int:
    """Return the shard of the queue that a lineage's items wait in."""
    return key_hash(lineage) % SHARDS


@dataclass(frozen=True, slots=True)
class Claim:
    """Shards that a worker holds for a while. A worker that finds another token in a shard has lost its claim."""

    token: UUID
    shards: tuple[int, ...]
    deaths: int  # earlier claims of these shards, in a row, that nobody let go: their workers died


# A claim ends with its lease, and at once when the database session of its worker ends. Another role's sessions show
# no start; then the process id has to do.
FREE = """(s.until < clock_timestamp() OR s.token IS NOT NULL AND s.backend IS NOT NULL AND NOT EXISTS (
               SELECT FROM session WHERE session.pid = s.backend
                 AND coalesce(session.backend_start = s.backend_start, true)))"""


async def claim(conn: Connection, worker: str, token: UUID, lease_seconds: float) -> Claim | None:
    """Claim shards that have work and no holder, those that wait longest first; None if there are none.

    Half of many shards, so that a second worker finds the other half; all of a few, whose items make one small batch.
    Shards whose workers died are claimed with their like only, and a quarter as many after each death: whatever killed
    the workers is soon alone, and the other shards go on.
    """
    rows = await conn.fetch(
        f"""WITH session AS MATERIALIZED (SELECT pid, backend_start FROM pg_stat_activity),
           busy AS MATERIALIZED (
               SELECT s.n, s.token, s.until, least(s.attempts, 8) AS deaths, first.id FROM fedstac.shard s
               CROSS JOIN LATERAL (SELECT id FROM fedstac.request_item i WHERE i.shard = s.n AND i.status = 'queued'
                                   ORDER BY id LIMIT 1) first
               WHERE {FREE}),
           oldest AS MATERIALIZED (SELECT deaths FROM busy ORDER BY id LIMIT 1),
           wanted AS MATERIALIZED (
               SELECT s.n FROM fedstac.shard s JOIN (
                   SELECT * FROM busy WHERE deaths = (SELECT deaths FROM oldest) ORDER BY id
                   LIMIT (SELECT CASE WHEN (SELECT deaths FROM oldest) > 0
                                      THEN greatest($4 >> (2 * (SELECT deaths FROM oldest)), 1)
                                      WHEN count(*) > $4 THEN (count(*) + 1) / 2 ELSE count(*) END FROM busy)) b
                   ON s.n = b.n AND s.until = b.until AND s.token IS NOT DISTINCT FROM b.token  -- nobody was faster
               ORDER BY s.n FOR UPDATE OF s SKIP LOCKED)
           UPDATE fedstac.shard s SET token = $1, worker = $2, attempts = attempts + 1,
                  until = clock_timestamp() + make_interval(secs => $3), backend = pg_backend_pid(),
                  backend_start = (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid()))
           FROM wanted WHERE s.n = wanted.n RETURNING s.n, s.attempts""",
        token, worker, lease_seconds, FEW,
    )  # fmt: skip
    if not rows:
        return None
    return Claim(token, tuple(sorted(row["n"] for row in rows)), max(row["attempts"] for row in rows) - 1)


async def hold(conn: Connection, claim: Claim) -> bool:
    """Tell whether the claim still stands. If so, nobody takes it until this transaction ends."""
    rows = await conn.fetch(
        "SELECT n FROM fedstac.shard WHERE n = ANY($1::smallint[]) AND token = $2 ORDER BY n FOR KEY SHARE",
        claim.shards, claim.token,
    )  # fmt: skip
    return len(rows) == len(claim.shards)


HELD = """(SELECT n FROM fedstac.shard WHERE n = ANY($1::smallint[]) AND token = $2 ORDER BY n FOR UPDATE) held"""
NOBODYS = "token = NULL, worker = NULL, backend = NULL, backend_start = NULL"


async def renew(conn: Connection, claim: Claim, lease_seconds: float) -> bool:
    """Extend a claim after a result; return False if it is lost."""
    status = await conn.execute(
        f"""UPDATE fedstac.shard s SET until = clock_timestamp() + make_interval(secs => $3)
            FROM {HELD} WHERE s.n = held.n""",
        claim.shards, claim.token, lease_seconds,
    )  # fmt: skip
    return status == f"UPDATE {len(claim.shards)}"


async def release(conn: Connection, claim: Claim) -> None:
    """Release the shards of a claim."""
    await conn.execute(
        f"""UPDATE fedstac.shard s SET {NOBODYS}, until = '-infinity', attempts = 0
            FROM {HELD} WHERE s.n = held.n""",
        claim.shards, claim.token,
    )  # fmt: skip


async def release_uncounted(conn: Connection, claim: Claim, item: int | None) -> None:
    """Release a claim that ended without a result and without a fault of its items: no death is counted.

    Nor is the attempt on `item`, the one that was being tried alone.
    """
    await conn.execute(
        f"""WITH withdrawn AS (
                UPDATE fedstac.request_item SET attempts = attempts - 1, trying = NULL
                WHERE id = $3 AND trying = $2 AND status = 'queued')
            UPDATE fedstac.shard s SET {NOBODYS}, until = '-infinity', attempts = greatest(attempts - 1, 0)
            FROM {HELD} WHERE s.n = held.n""",
        claim.shards, claim.token, item,
    )  # fmt: skip


async def begin_attempt(conn: Connection, claim: Claim, item: int) -> int | None:
    """Count an attempt on an item that is tried alone next; return its attempts, None if it is no longer ours.

    Commit it before the attempt: if the attempt kills the worker, the count stays with the item that did it.
    """
    attempts: int | None = await conn.fetchval(
        """UPDATE fedstac.request_item i SET attempts = i.attempts + 1, trying = $2
           FROM fedstac.shard s WHERE i.id = $1 AND i.status = 'queued' AND s.n = i.shard AND s.token = $2
           RETURNING i.attempts""",
        item, claim.token,
    )  # fmt: skip
    return attempts


async def rest(conn: Connection, claim: Claim, item: WaitingItem, seconds: float) -> None:
    """Release the shard of an item whose attempt failed; its next attempt comes after a while."""
    await conn.execute(
        f"""WITH ended AS (UPDATE fedstac.request_item SET trying = NULL WHERE id = $4 AND trying = $2)
            UPDATE fedstac.shard s SET {NOBODYS}, until = clock_timestamp() + make_interval(secs => $3), attempts = 0
            FROM {HELD} WHERE s.n = held.n""",
        [item.shard], claim.token, seconds, item.id,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class WaitingItem:
    """A queued item that nobody has read yet."""

    id: int
    shard: int
    attempts: int  # times that it was tried alone without a result
    killed: bool  # the worker that tried it last did not live to say why


@dataclass(frozen=True, slots=True)
class QueuedItem:
    """An accepted item with all that its command is made of."""

    id: int
    shard: int
    request: UUID
    collection: str
    action: str
    dataset: str
    document: str
    prepared: str | None
    coded: str | None
    submitter: str
    roles: tuple[str, ...]
    cv_version: str | None
    identity: str | None  # packed
    only_new: bool = False
    traceparent: str | None = None


async def waiting(conn: Connection, claim: Claim, limit: int) -> list[WaitingItem]:
    """Return the items that wait in the claimed shards, in the order in which they were accepted.

    Read for many batches at once: every look costs as much as the queue is long.
    """
    rows = await conn.fetch(
        """SELECT i.id, i.shard, i.attempts, i.trying IS NOT NULL AS killed FROM unnest($1::smallint[]) s (n)
           CROSS JOIN LATERAL (SELECT id, shard, attempts, trying FROM fedstac.request_item
                               WHERE status = 'queued' AND shard = s.n ORDER BY id LIMIT $2) i
           ORDER BY i.id LIMIT $2""",
        claim.shards, limit,
    )  # fmt: skip
    return [WaitingItem(row["id"], row["shard"], row["attempts"], row["killed"]) for row in rows]


async def is_waiting(conn: Connection, lineage: str) -> bool:
    """Tell whether something may not be final yet that was accepted for a lineage, or for one of the same shard."""
    statement = "SELECT EXISTS (SELECT FROM fedstac.request_item WHERE status = 'queued' AND shard = $1)"
    return bool(await conn.fetchval(statement, shard_of(lineage)))


ANY_WAITING = "EXISTS (SELECT FROM fedstac.request_item WHERE status = 'queued')"


# For how many seconds the oldest of what was accepted has waited; NULL where nothing waits. It looks once at a shard.
LONGEST_WAIT = """(
    SELECT extract(epoch FROM clock_timestamp() - r.created)::float8
    FROM (SELECT min(first.id) AS id FROM fedstac.shard s
          CROSS JOIN LATERAL (SELECT id FROM fedstac.request_item i WHERE i.shard = s.n AND i.status = 'queued'
                              ORDER BY id LIMIT 1) first) oldest
    JOIN fedstac.request_item i ON i.id = oldest.id JOIN fedstac.request r ON r.id = i.request)"""


async def longest_wait(conn: Connection) -> float | None:
    """Return for how many seconds the oldest of what was accepted has waited; None where nothing waits."""
    seconds: float | None = await conn.fetchval(f"SELECT {LONGEST_WAIT}")
    return seconds


async def read(conn: Connection, ids: Sequence[int]) -> list[QueuedItem]:
    """Return those of the items that still wait, in their order; of large ones the first few."""
    rows = await conn.fetch(
        """SELECT id, shard, request, collection, action, dataset, document, prepared, coded, submitter, roles,
                  cv_version, identity, only_new, traceparent
           FROM (SELECT i.id, i.shard, i.request, r.collection, r.action, i.dataset, i.document, i.prepared, i.coded,
                        r.submitter, r.roles, r.cv_version, r.identity, r.only_new, r.traceparent,
                        sum(octet_length(i.document)) OVER (ORDER BY i.id) - octet_length(i.document) AS before
                 FROM fedstac.request_item i JOIN fedstac.request r ON r.id = i.request
                 WHERE i.id = ANY($1::bigint[]) AND i.status = 'queued') waiting
           WHERE before < $2 ORDER BY id""",
        ids, BATCH_BYTES,
    )  # fmt: skip
    return [QueuedItem(**{**dict(row), "roles": tuple(row["roles"])}) for row in rows]


@dataclass(frozen=True, slots=True)
class ItemOrigin:
    """Where a queued item comes from: it can be read of any item, whatever its document is like."""

    request: UUID
    collection: str
    dataset: str
    action: str
    submitter: str


async def origin(conn: Connection, item: int) -> ItemOrigin:
    """Return where an item comes from."""
    row = await conn.fetchrow(
        """SELECT i.request, r.collection, i.dataset, r.action, r.submitter
           FROM fedstac.request_item i JOIN fedstac.request r ON r.id = i.request WHERE i.id = $1""",
        item,
    )
    assert row is not None
    return ItemOrigin(**dict(row))


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one queued item."""

    item: int
    outcome: Outcome
    problem: str | None
    detail: str | None
    findings: tuple[Finding, ...]
    last_event: int | None


async def finish(conn: Connection, results: Sequence[Result]) -> None:
    """Make items final. One that is final already stays as it is.

    Documents of finished work are deleted, and so is what somebody sends of a purged dataset once more.
    """
    await conn.execute(
        """UPDATE fedstac.request_item i
           SET status = r.status, outcome = r.outcome, problem = r.problem, detail = r.detail,
               findings = CASE WHEN r.findings IS NULL THEN i.findings
                               ELSE coalesce(i.findings, '[]') || r.findings::jsonb END,
               last_event = r.last_event, finished = clock_timestamp(), trying = NULL,
               document = CASE WHEN r.status <> 'done' AND NOT EXISTS (
                   SELECT FROM fedstac.request q JOIN fedstac.record p ON p.collection = q.collection
                   WHERE q.id = i.request AND p.id = i.dataset AND p.state = 'purged') THEN i.document END,
               prepared = NULL, coded = NULL
           FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[])
                r (id, status, outcome, problem, detail, findings, last_event)
           WHERE i.id = r.id AND i.status = 'queued'""",
        [r.item for r in results], [FINAL.get(r.outcome, "done") for r in results], [r.outcome for r in results],
        [r.problem for r in results], [r.detail for r in results], [findings_json(r.findings) for r in results],
        [r.last_event for r in results],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CancelledItem:
    """An item of a cancelled request that was not worked on."""

    collection: str
    dataset: str


async def take_back(conn: Connection, request: UUID, problem: str, detail: str) -> list[CancelledItem]:
    """Refuse the queued items of a request. Their shards are taken from the workers, whose claims end.

    Call it in a transaction. It waits for batches that are being performed: their items are done then. The tokens are
    taken in the statement after the one that locks: a claim may have come while it waited.
    """
    shards = await conn.fetch(
        """SELECT n FROM fedstac.shard
           WHERE n IN (SELECT shard FROM fedstac.request_item WHERE request = $1 AND status = 'queued')
           ORDER BY n FOR UPDATE""",
        request,
    )
    await conn.execute(
        f"""UPDATE fedstac.shard SET {NOBODYS}, until = '-infinity', attempts = greatest(attempts - 1, 0)
           WHERE n = ANY($1::smallint[]) AND token IS NOT NULL""",
        [row["n"] for row in shards],
    )
    rows = await conn.fetch(
        """UPDATE fedstac.request_item i
           SET status = 'rejected', outcome = 'rejected', problem = $2, detail = $3, finished = clock_timestamp(),
               prepared = NULL, coded = NULL
           FROM fedstac.request r WHERE i.request = $1 AND i.status = 'queued' AND r.id = i.request
           RETURNING r.collection, i.dataset""",
        request, problem, detail,
    )  # fmt: skip
    return [CancelledItem(**dict(row)) for row in rows]


def findings_json(findings: Sequence[Finding]) -> str | None:
    """Return findings as JSON text; None without any."""
    return orjson.dumps([finding.as_json() for finding in findings]).decode() if findings else None
