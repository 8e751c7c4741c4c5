"""The queue of the workers: shards that they claim for a while, what waits in them, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID
from zlib import crc32

import orjson

from fedstac.db.connections import Connection
from fedstac.domain.errors import Finding
from fedstac.domain.model import Outcome
from fedstac.failpoints import planted

SHARDS = 64
FEW = 24  # shards
BATCH_BYTES = 32 << 20  # of documents that a worker takes up at once
FINAL = {Outcome.REJECTED: "rejected", Outcome.FAILED: "failed"}  # every other outcome is `done`


def key_hash(lineage: str) -> int:
    """What shards are made of: of the queue, and of the feed's `shard` parameter."""
    return crc32(lineage.encode())


def shard_of(lineage: str) -> int:
    """The shard of the queue that a lineage's items wait in."""
    return key_hash(lineage) % SHARDS


@dataclass(frozen=True, slots=True)
class Claim:
    """Shards that a worker holds for a while; whoever finds the token changed has lost them."""

    token: UUID
    shards: tuple[int, ...]
    attempts: int  # claims of one of them that ended without a result


async def claim(conn: Connection, worker: str, token: UUID, lease_seconds: float) -> Claim | None:
    """Claims shards that have work and no holder, the ones that wait longest first; None if there is none.

    Half of many, so that a second worker finds the other half; all of a few, whose items make one small batch.
    """
    rows = await conn.fetch(
        """WITH busy AS MATERIALIZED (
               SELECT s.n, first.id FROM fedstac.shard s
               CROSS JOIN LATERAL (SELECT id FROM fedstac.request_item i WHERE i.shard = s.n AND i.status = 'queued'
                                   ORDER BY id LIMIT 1) first
               WHERE s.until < clock_timestamp()),
           wanted AS MATERIALIZED (
               SELECT n FROM fedstac.shard WHERE n IN (
                   SELECT n FROM busy ORDER BY id
                   LIMIT (SELECT CASE WHEN count(*) > $4 THEN (count(*) + 1) / 2 ELSE count(*) END FROM busy))
               AND until < clock_timestamp() ORDER BY n FOR UPDATE SKIP LOCKED)
           UPDATE fedstac.shard s SET token = $1, worker = $2, attempts = attempts + 1,
                  until = clock_timestamp() + make_interval(secs => $3)
           FROM wanted WHERE s.n = wanted.n RETURNING s.n, s.attempts""",
        token, worker, lease_seconds, FEW,
    )  # fmt: skip
    if not rows:
        return None
    return Claim(token, tuple(sorted(row["n"] for row in rows)), max(row["attempts"] for row in rows) - 1)


async def hold(conn: Connection, claim: Claim) -> bool:
    """Whether the claim still stands; if so nobody takes it until this transaction ends."""
    rows = await conn.fetch(
        "SELECT n FROM fedstac.shard WHERE n = ANY($1::smallint[]) AND token = $2 ORDER BY n FOR KEY SHARE",
        claim.shards, claim.token,
    )  # fmt: skip
    return len(rows) == len(claim.shards)


HELD = """(SELECT n FROM fedstac.shard WHERE n = ANY($1::smallint[]) AND token = $2 ORDER BY n FOR UPDATE) held"""


async def renew(conn: Connection, claim: Claim, lease_seconds: float) -> bool:
    """Prolongs a claim after a result; False if it is lost."""
    status = await conn.execute(
        f"""UPDATE fedstac.shard s SET until = clock_timestamp() + make_interval(secs => $3), attempts = 1
            FROM {HELD} WHERE s.n = held.n""",
        claim.shards, claim.token, lease_seconds,
    )  # fmt: skip
    return status == f"UPDATE {len(claim.shards)}"


async def release(conn: Connection, claim: Claim) -> None:
    """Lets go of what is left of a claim."""
    await conn.execute(
        f"""UPDATE fedstac.shard s SET token = NULL, worker = NULL, until = '-infinity', attempts = 0
            FROM {HELD} WHERE s.n = held.n""",
        claim.shards, claim.token,
    )  # fmt: skip


async def prove(conn: Connection, claim: Claim, shard: int) -> None:
    """An item that was tried alone has its result: attempts are those on the one behind it."""
    await conn.execute("UPDATE fedstac.shard SET attempts = 1 WHERE n = $1 AND token = $2", shard, claim.token)


async def excuse(conn: Connection, claim: Claim) -> None:
    """Lets go of a claim that came to nothing by no fault of its items: it does not count."""
    await conn.execute(
        f"""UPDATE fedstac.shard s SET token = NULL, worker = NULL, until = '-infinity',
                   attempts = greatest(attempts - 1, 0)
            FROM {HELD} WHERE s.n = held.n""",
        claim.shards, claim.token,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class QueuedItem:
    id: int
    shard: int
    request: UUID
    collection: str
    action: str
    dataset: str
    document: str
    prepared: str | None
    submitter: str
    roles: tuple[str, ...]
    cv_version: str | None
    identity: str | None  # packed
    only_new: bool = False


async def waiting(conn: Connection, claim: Claim, limit: int) -> list[int]:
    """What waits in the claimed shards, in the order in which it was accepted.

    Read for many batches at once: every look costs as much as the queue is long.
    """
    rows = await conn.fetch(
        """SELECT id FROM fedstac.request_item
           WHERE status = 'queued' AND shard = ANY($1::smallint[]) ORDER BY id LIMIT $2""",
        claim.shards, limit,
    )  # fmt: skip
    return [row["id"] for row in rows]


async def is_waiting(conn: Connection, lineage: str) -> bool:
    """Whether something may not be final yet that was accepted for a lineage, or one of the same shard."""
    statement = "SELECT EXISTS (SELECT FROM fedstac.request_item WHERE status = 'queued' AND shard = $1)"
    return bool(await conn.fetchval(statement, shard_of(lineage)))


async def queued(conn: Connection, ids: Sequence[int]) -> list[QueuedItem]:
    """Items of these that still wait, in the order in which they were accepted; of large ones only the first few."""
    rows = await conn.fetch(
        f"""SELECT id, shard, request, collection, action, dataset, document, prepared, submitter, roles, cv_version,
                  identity, only_new
           FROM (SELECT i.id, i.shard, i.request, r.collection, r.action, i.dataset, i.document, i.prepared,
                        r.submitter, r.roles, r.cv_version, r.identity, r.only_new,
                        sum(octet_length(i.document)) OVER (ORDER BY i.id) - octet_length(i.document) AS before
                 FROM fedstac.request_item i JOIN fedstac.request r ON r.id = i.request
                 WHERE i.id = ANY($1::bigint[]) AND i.status = 'queued') waiting
           WHERE before < $2 ORDER BY id {"DESC" if planted("requests-out-of-order") else ""}""",
        ids, BATCH_BYTES,
    )  # fmt: skip
    return [QueuedItem(**{**dict(row), "roles": tuple(row["roles"])}) for row in rows]


async def stuck(conn: Connection, claim: Claim, attempts: int) -> list[QueuedItem]:
    """The oldest item of the claimed shards that have had so many claims without a result.

    Items are tried alone in the order of their ids: what lies behind the oldest was not tried, and is not at fault.
    """
    rows = await conn.fetch(
        """SELECT i.id, i.shard, i.request, r.collection, r.action, i.dataset, i.document,
                  i.prepared, r.submitter, r.roles, r.cv_version, r.identity
           FROM fedstac.shard s JOIN fedstac.request_item i ON i.shard = s.n JOIN fedstac.request r ON r.id = i.request
           WHERE i.status = 'queued' AND s.n = ANY($1::smallint[]) AND s.token = $2 AND s.attempts > $3
           ORDER BY i.id LIMIT 1""",
        claim.shards, claim.token, attempts,
    )  # fmt: skip
    return [QueuedItem(**{**dict(row), "roles": tuple(row["roles"])}) for row in rows]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one queued item."""

    item: int
    outcome: Outcome
    problem: str | None
    detail: str | None
    findings: tuple[Finding, ...]
    last_event: int | None


async def finish(conn: Connection, results: Sequence[Result]) -> None:
    """Makes items final; one that is final already stays as it is (I2). Documents of finished work are let go."""
    await conn.execute(
        """UPDATE fedstac.request_item i
           SET status = r.status, outcome = r.outcome, problem = r.problem, detail = r.detail,
               findings = CASE WHEN r.findings IS NULL THEN i.findings
                               ELSE coalesce(i.findings, '[]') || r.findings::jsonb END,
               last_event = r.last_event, finished = clock_timestamp(),
               document = CASE WHEN r.status <> 'done' THEN i.document END,
               prepared = NULL
           FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[])
                r (id, status, outcome, problem, detail, findings, last_event)
           WHERE i.id = r.id AND i.status = 'queued'""",
        [r.item for r in results], [FINAL.get(r.outcome, "done") for r in results], [r.outcome for r in results],
        [r.problem for r in results], [r.detail for r in results], [findings_json(r.findings) for r in results],
        [r.last_event for r in results],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TakenBack:
    """An item that was not worked on."""

    collection: str
    dataset: str


async def take_back(conn: Connection, request: UUID, problem: str, detail: str) -> list[TakenBack]:
    """Refuses what is queued of a request. Its shards are taken from their workers, whose claims hold no longer.

    Call it in a transaction. It waits for batches that are being performed, whose items are done then. Who holds the
    shards is for the statement after the one that locks them: a claim may have come while it waited.
    """
    shards = await conn.fetch(
        """SELECT n FROM fedstac.shard
           WHERE n IN (SELECT shard FROM fedstac.request_item WHERE request = $1 AND status = 'queued')
           ORDER BY n FOR UPDATE""",
        request,
    )
    await conn.execute(
        """UPDATE fedstac.shard SET token = NULL, worker = NULL, until = '-infinity',
                  attempts = greatest(attempts - 1, 0)
           WHERE n = ANY($1::smallint[]) AND token IS NOT NULL""",
        [row["n"] for row in shards],
    )
    rows = await conn.fetch(
        """UPDATE fedstac.request_item i
           SET status = 'rejected', outcome = 'rejected', problem = $2, detail = $3, finished = clock_timestamp(),
               prepared = NULL
           FROM fedstac.request r WHERE i.request = $1 AND i.status = 'queued' AND r.id = i.request
           RETURNING r.collection, i.dataset""",
        request, problem, detail,
    )  # fmt: skip
    return [TakenBack(**dict(row)) for row in rows]


def findings_json(findings: Sequence[Finding]) -> str | None:
    return orjson.dumps([finding.as_json() for finding in findings]).decode() if findings else None
