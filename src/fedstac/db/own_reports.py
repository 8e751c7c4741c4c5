"""What consumers of this node have to report of deletions to the origins that they follow.

A row is written in the transaction that applies an event, and stays until the origin has the report. Of a dataset the
newest event counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from fedstac.db.connections import Connection, Row
from fedstac.domain.deletion import DependencyState
from fedstac.domain.deletion_reports import ReportResult

UNASKED_SECONDS = 6 * 3600.0  # until an origin that does not wait for us is told again: its rules may change
LEAST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30.0, 6 * 3600.0  # between sendings that nobody has answered
MOST_UNANSWERED = 12  # sendings; about two days: who takes reports only by a topic has it then


@dataclass(frozen=True, slots=True)
class OwnPart:
    """A part of a deletion. outcome: None where the part is not done yet."""

    collection: str
    dataset: str
    event_id: UUID | None
    is_marked: bool
    outcome: DependencyState | None


@dataclass(frozen=True, slots=True)
class OwnReport:
    """A report that is to be sent. sends: how often it was sent."""

    collection: str
    dataset: str
    event_id: UUID | None
    outcome: DependencyState
    comment: str | None
    sends: int


@dataclass(frozen=True, slots=True)
class KnownState:
    """The state of a dataset here before a page of events, and the place of the event that made it."""

    origin: str
    state: str
    epoch: int
    seq: int


async def known_records(conn: Connection, datasets: Sequence[tuple[str, str]]) -> dict[tuple[str, str], KnownState]:
    """Return how an index node knows datasets, by collection and id; those that it does not know are left out."""
    rows = await conn.fetch(
        """SELECT r.collection, r.id, r.origin, r.state, r.epoch, r.seq
           FROM unnest($1::text[], $2::text[]) d (collection, id) JOIN fedstac.record r USING (collection, id)""",
        [collection for collection, _ in datasets], [id for _, id in datasets],
    )  # fmt: skip
    return _by_dataset(rows)


async def known_replicas(conn: Connection, datasets: Sequence[tuple[str, str]]) -> dict[tuple[str, str], KnownState]:
    """Return how a replica node knows datasets, by collection and id; those that it does not know are left out."""
    rows = await conn.fetch(
        """SELECT r.collection, r.id, r.origin, r.event_state AS state, r.epoch, r.seq
           FROM unnest($1::text[], $2::text[]) d (collection, id)
           JOIN fedstac.replica_dataset r USING (collection, id)""",
        [collection for collection, _ in datasets], [id for _, id in datasets],
    )  # fmt: skip
    return _by_dataset(rows)


def _by_dataset(rows: Sequence[Row]) -> dict[tuple[str, str], KnownState]:
    return {
        (row["collection"], row["id"]): KnownState(row["origin"], row["state"], row["epoch"], row["seq"])
        for row in rows
    }


async def put(conn: Connection, consumer: str, origin: str, parts: Sequence[OwnPart]) -> None:
    """Store parts of deletions, in place of earlier ones of the same datasets; joins the caller's transaction."""
    if not parts:
        return
    await conn.execute(
        """INSERT INTO fedstac.own_report AS r (consumer, origin, collection, dataset, event_id, is_marked, outcome)
           SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::uuid[], $6::boolean[], $7::text[])
           ON CONFLICT (consumer, origin, collection, dataset) DO UPDATE SET
               event_id = EXCLUDED.event_id, is_marked = EXCLUDED.is_marked, outcome = EXCLUDED.outcome,
               comment = NULL, sends = 0, next_send = clock_timestamp(), at = clock_timestamp()""",
        consumer, origin, [each.collection for each in parts], [each.dataset for each in parts],
        [each.event_id for each in parts], [each.is_marked for each in parts],
        [each.outcome and each.outcome.value for each in parts],
    )  # fmt: skip


async def end_marks(conn: Connection, consumer: str, origin: str, datasets: Sequence[tuple[str, str]]) -> None:
    """Store that datasets, by collection and id, are deleted now: nobody comes to ask for a report any more."""
    await conn.execute(
        """UPDATE fedstac.own_report r SET is_marked = false
           FROM unnest($3::text[], $4::text[]) d (collection, dataset)
           WHERE r.consumer = $1 AND r.origin = $2 AND r.collection = d.collection AND r.dataset = d.dataset""",
        consumer, origin, [collection for collection, _ in datasets], [dataset for _, dataset in datasets],
    )  # fmt: skip


async def due(conn: Connection, consumer: str, origin: str, limit: int) -> list[OwnReport]:
    """Return the reports whose time has come, those that wait longest first."""
    rows = await conn.fetch(
        """SELECT collection, dataset, event_id, outcome, comment, sends FROM fedstac.own_report
           WHERE consumer = $1 AND origin = $2 AND outcome IS NOT NULL AND next_send <= clock_timestamp()
           ORDER BY next_send, collection, dataset LIMIT $3""",
        consumer, origin, limit,
    )  # fmt: skip
    return [OwnReport(**{**dict(row), "outcome": DependencyState(row["outcome"])}) for row in rows]


async def are_soon_due(conn: Connection, consumer: str, origin: str, seconds: float) -> bool:
    """Return whether some report is to be sent within a time."""
    return bool(
        await conn.fetchval(
            """SELECT EXISTS (SELECT FROM fedstac.own_report
                              WHERE consumer = $1 AND origin = $2 AND outcome IS NOT NULL
                                AND next_send <= clock_timestamp() + make_interval(secs => $3))""",
            consumer, origin, seconds,
        )
    )  # fmt: skip


async def store_answers(
    conn: Connection, consumer: str, origin: str, reports: Sequence[OwnReport], results: Sequence[ReportResult]
) -> None:
    """Store what the origin answered, report by report.

    What it has is removed, but a failure: that waits for what becomes of the part. An origin that waits for no report
    of ours is told again later while the dataset is marked: its rules may come to name us.
    """
    await conn.execute(
        """WITH answer AS (
               SELECT * FROM unnest($3::text[], $4::text[], $5::uuid[], $6::text[], $7::text[], $8::text[])
                   a (collection, dataset, event_id, outcome, comment, result)),
           own AS (
               SELECT r.collection, r.dataset, a.result,
                      a.result = 'too late' OR a.result = 'not asked' AND NOT r.is_marked
                      OR a.result <> 'not asked' AND a.outcome <> 'failed' AS is_over
               FROM fedstac.own_report r JOIN answer a USING (collection, dataset)
               WHERE r.consumer = $1 AND r.origin = $2 AND r.outcome = a.outcome
                 AND r.event_id IS NOT DISTINCT FROM a.event_id AND r.comment IS NOT DISTINCT FROM a.comment),
           gone AS (
               DELETE FROM fedstac.own_report r USING own o
               WHERE r.consumer = $1 AND r.origin = $2 AND r.collection = o.collection AND r.dataset = o.dataset
                 AND o.is_over)
           UPDATE fedstac.own_report r
           SET sends = sends + 1,
               next_send = CASE o.result WHEN 'not asked' THEN clock_timestamp() + make_interval(secs => $9)
                                         ELSE 'infinity' END
           FROM own o
           WHERE r.consumer = $1 AND r.origin = $2 AND r.collection = o.collection AND r.dataset = o.dataset
             AND NOT o.is_over""",
        consumer, origin, [each.collection for each in reports], [each.dataset for each in reports],
        [each.event_id for each in reports], [each.outcome.value for each in reports],
        [each.comment for each in reports], [each.value for each in results], UNASKED_SECONDS,
    )  # fmt: skip


async def store_unanswered(conn: Connection, consumer: str, origin: str, reports: Sequence[OwnReport]) -> None:
    """Store that reports were sent and not answered: they are sent again, later each time, and not for ever.

    One whose part is of a later event by now was not sent.
    """
    await conn.execute(
        """WITH own AS (
               SELECT r.collection, r.dataset, r.sends + 1 >= $5 AND r.outcome <> 'failed' AS is_over
               FROM fedstac.own_report r
               JOIN unnest($3::text[], $4::text[], $8::uuid[]) a (collection, dataset, event_id)
                    USING (collection, dataset)
               WHERE r.consumer = $1 AND r.origin = $2 AND r.event_id IS NOT DISTINCT FROM a.event_id),
           gone AS (
               DELETE FROM fedstac.own_report r USING own o
               WHERE r.consumer = $1 AND r.origin = $2 AND r.collection = o.collection AND r.dataset = o.dataset
                 AND o.is_over)
           UPDATE fedstac.own_report r
           SET sends = sends + 1,
               next_send = clock_timestamp() + make_interval(secs => least($6 * 2 ^ least(sends, 16), $7))
           FROM own o
           WHERE r.consumer = $1 AND r.origin = $2 AND r.collection = o.collection AND r.dataset = o.dataset
             AND NOT o.is_over""",
        consumer, origin, [each.collection for each in reports], [each.dataset for each in reports], MOST_UNANSWERED,
        LEAST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, [each.event_id for each in reports],
    )  # fmt: skip
