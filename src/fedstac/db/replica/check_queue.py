"""Checks of datasets whose files are all here, by the command of their rule: claimed, settled, put off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from fedstac.db import troubles
from fedstac.db.connections import Connection
from fedstac.db.replica import announcements
from fedstac.db.replica.claims import TransferLost, Worker
from fedstac.db.troubles import TroubleReport


@dataclass(frozen=True, slots=True)
class QueuedCheck:
    """A dataset whose files are all here, and the command that looks at them; None: its rule has none any more.

    attempts: how often the command was interrupted. files: tier and path of each.
    """

    token: UUID
    n: int
    collection: str
    id: str
    command: str | None
    attempts: int
    files: tuple[tuple[str, str], ...]


async def take_checks(
    conn: Connection, worker: Worker, tokens: Sequence[UUID], lease_seconds: float
) -> list[QueuedCheck]:
    """Claim datasets that are to be checked, at most one for each token. Call it in a transaction."""
    rows = await conn.fetch(
        """WITH due AS MATERIALIZED (
               SELECT d.n, row_number() OVER () AS place FROM (
                   SELECT d.n FROM fedstac.replica_dataset d
                   WHERE d.state = 'checking' AND coalesce(d.next_try, '-infinity') <= clock_timestamp()
                     AND NOT EXISTS (SELECT FROM fedstac.replica_claim c WHERE c.n = d.n)
                   ORDER BY d.priority DESC, d.since LIMIT cardinality($1::uuid[]) FOR UPDATE SKIP LOCKED) d),
           claim AS (
               INSERT INTO fedstac.replica_claim (token, n, kind, worker, backend, backend_start, until)
               SELECT ($1::uuid[])[due.place], due.n, 'check', $2, $3, $4,
                      clock_timestamp() + make_interval(secs => $5) FROM due RETURNING token, n)
           SELECT claim.token, claim.n, d.collection, d.id, d."check" AS command, d.attempts FROM claim
           JOIN fedstac.replica_dataset d USING (n)""",
        list(tokens), worker.name, worker.backend, worker.backend_start, lease_seconds,
    )  # fmt: skip
    files: dict[int, list[tuple[str, str]]] = {row["n"]: [] for row in rows}
    if rows:
        for row in await conn.fetch(
            "SELECT n, tier, path FROM fedstac.replica_file WHERE n = ANY($1::bigint[]) ORDER BY n, path", list(files)
        ):
            files[row["n"]].append((row["tier"], row["path"]))
    return [QueuedCheck(**dict(row), files=tuple(files[row["n"]])) for row in rows]


async def settle_check(conn: Connection, check: QueuedCheck, *, passes: bool, reason: str) -> None:
    """Complete a dataset that passed, or park it with what the command said; operators are told. TransferLost."""
    async with conn.transaction():
        await _end_check(conn, check)
        state = await conn.fetchval(
            """UPDATE fedstac.replica_dataset
               SET state = CASE WHEN $2 THEN 'complete' ELSE 'parked' END, reason = $3, next_try = NULL, attempts = 0,
                   since = clock_timestamp(), updated = clock_timestamp()
               WHERE n = $1 AND state = 'checking' RETURNING state""",
            check.n, passes, reason,
        )  # fmt: skip
        if state == "complete":
            await announcements.request(conn, [check.n])
        elif state == "parked":
            report = TroubleReport(f"{check.id} is parked", reason)
            await troubles.report_all(conn, "replica-parked", place="checks", reports=[report])


async def put_off_check(
    conn: Connection, check: QueuedCheck, *, reason: str, pause: float, counted: bool = False
) -> None:
    """Release a dataset that could not be checked by no fault of its own; it is checked after a pause. TransferLost."""
    async with conn.transaction():
        await _end_check(conn, check)
        await conn.execute(
            """UPDATE fedstac.replica_dataset
               SET reason = $2, next_try = clock_timestamp() + make_interval(secs => $3),
                   attempts = attempts + $4::boolean::integer, updated = clock_timestamp()
               WHERE n = $1 AND state = 'checking'""",
            check.n, reason, pause, counted,
        )  # fmt: skip


async def _end_check(conn: Connection, check: QueuedCheck) -> None:
    deleted = await conn.fetchval("DELETE FROM fedstac.replica_claim WHERE token = $1 RETURNING true", check.token)
    if not deleted:
        raise TransferLost
    await conn.execute("SELECT FROM fedstac.replica_dataset WHERE n = $1 FOR UPDATE", check.n)
