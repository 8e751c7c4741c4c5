"""Parked events: what a consumer of this node could not apply, of each dataset the newest, until something newer comes.

An operator has one tried again, or discards it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson

from fedstac.db import audit, troubles
from fedstac.db.connections import Connection
from fedstac.domain.errors import Conflict, NotFound
from fedstac.domain.model import rfc3339

MOST_REPORTED = 20  # troubles for one page; of a rule that fails on a million datasets one sentence is enough
AT_ONCE = 100  # that are tried again


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """An event that is set aside; epoch and seq are its place among those of its dataset, 0 where it has none.

    outcome: parked, or rejected where this node takes no such event, whatever is mended.
    """

    event_id: str
    subject: str
    epoch: int
    seq: int
    detail: str
    event: str
    outcome: str = "parked"


@dataclass(frozen=True, slots=True)
class SubjectPlace:
    """How new an event of a dataset is."""

    subject: str
    epoch: int
    seq: int


# --- by the consumer ---


async def park(conn: Connection, consumer: str, origin: str, pos: int, events: Sequence[ParkedEvent]) -> None:
    """Set events aside that cannot be applied, of each dataset the newest: a later one replaces it (C2).

    Operators are told of those that are new.
    """
    rows = await conn.fetch(
        """WITH before AS (SELECT subject, event_id FROM fedstac.parked_event
                           WHERE consumer = $1 AND origin = $2 AND subject = ANY ($5::text[])),
                put AS (
               INSERT INTO fedstac.parked_event AS p (consumer, origin, pos, event_id, subject, epoch, seq, detail,
                                                      event, outcome)
               SELECT DISTINCT ON (subject) $1::text, $2::text, $3::bigint, event_id, subject, epoch, seq, detail,
                      event, outcome
               FROM unnest($4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[])
                    WITH ORDINALITY b (event_id, subject, epoch, seq, detail, event, outcome, n)
               ORDER BY subject, epoch DESC, seq DESC, n DESC
               ON CONFLICT (consumer, origin, subject) DO UPDATE SET
                      pos = CASE WHEN p.event_id = EXCLUDED.event_id THEN p.pos ELSE EXCLUDED.pos END,
                      id = CASE WHEN p.event_id = EXCLUDED.event_id THEN p.id ELSE EXCLUDED.id END,
                      attempts = CASE WHEN p.event_id = EXCLUDED.event_id THEN p.attempts + 1 ELSE 1 END,
                      event_id = EXCLUDED.event_id, epoch = EXCLUDED.epoch, seq = EXCLUDED.seq,
                      detail = EXCLUDED.detail, event = EXCLUDED.event, outcome = EXCLUDED.outcome,
                      requeued_at = NULL, at = now()
               WHERE (p.epoch, p.seq) <= (EXCLUDED.epoch, EXCLUDED.seq)
               RETURNING subject, event_id, detail)
           SELECT put.subject, put.detail FROM put LEFT JOIN before USING (subject)
           WHERE before.event_id IS DISTINCT FROM put.event_id ORDER BY put.subject""",
        consumer, origin, pos, [each.event_id for each in events], [each.subject for each in events],
        [each.epoch for each in events], [each.seq for each in events], [each.detail for each in events],
        [each.event for each in events], [each.outcome for each in events],
    )  # fmt: skip
    reports = [troubles.TroubleReport(row["subject"], row["detail"]) for row in rows[:MOST_REPORTED]]
    if len(rows) > MOST_REPORTED:
        reports.append(troubles.TroubleReport(f"{len(rows) - MOST_REPORTED} more", "see fedstac parked list"))
    await troubles.report_all(conn, "parked", place=f"{consumer} of {origin}", reports=reports)


async def exceptions(conn: Connection, consumer: str, origin: str) -> list[dict[str, str]]:
    """Return the first thousand parked events, as exceptions to an acknowledgement."""
    rows = await conn.fetch(
        """SELECT event_id, outcome, detail FROM fedstac.parked_event WHERE consumer = $1 AND origin = $2
           ORDER BY pos LIMIT 1000""",
        consumer, origin,
    )  # fmt: skip
    return [dict(row) for row in rows]


async def has_any(conn: Connection, consumer: str, origin: str) -> bool:
    """Return whether anything is parked of an origin."""
    return bool(
        await conn.fetchval(
            "SELECT EXISTS (SELECT FROM fedstac.parked_event WHERE consumer = $1 AND origin = $2)", consumer, origin
        )
    )


async def unpark(conn: Connection, consumer: str, origin: str, places: Sequence[SubjectPlace]) -> None:
    """Delete the parked events of datasets that are brought up to date: those as new, and older ones."""
    await conn.execute(
        """DELETE FROM fedstac.parked_event p
           USING unnest($3::text[], $4::bigint[], $5::bigint[]) a (subject, epoch, seq)
           WHERE p.consumer = $1 AND p.origin = $2 AND p.subject = a.subject
             AND (p.epoch, p.seq) <= (a.epoch, a.seq)""",
        consumer, origin, [place.subject for place in places], [place.epoch for place in places],
        [place.seq for place in places],
    )  # fmt: skip


async def forget_earlier(conn: Connection, consumer: str, origin: str, *, before_epoch: int) -> None:
    """Delete the parked events of earlier epochs: the snapshot of this one has everything anew."""
    await conn.execute(
        "DELETE FROM fedstac.parked_event WHERE consumer = $1 AND origin = $2 AND epoch < $3",
        consumer, origin, before_epoch,
    )  # fmt: skip


async def requeued_events(conn: Connection, consumer: str, origin: str) -> list[str]:
    """Return the texts of events that an operator wants to be tried again, the oldest first."""
    rows = await conn.fetch(
        """SELECT event FROM fedstac.parked_event
           WHERE consumer = $1 AND origin = $2 AND requeued_at IS NOT NULL ORDER BY id LIMIT $3""",
        consumer, origin, AT_ONCE,
    )  # fmt: skip
    return [row["event"] for row in rows]


# --- by an operator ---


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """A parked event as operators see it."""

    id: int
    consumer: str
    origin: str
    subject: str
    event_id: str
    epoch: int
    seq: int
    pos: int
    outcome: str
    detail: str
    attempts: int
    requeued_at: datetime | None
    at: datetime


COLUMNS = "id, consumer, origin, subject, event_id, epoch, seq, pos, outcome, detail, attempts, requeued_at, at"


async def every(conn: Connection, *, after: int = 0, limit: int | None = None) -> list[ParkedRow]:
    """Return parked events by their ids, which grow with time."""
    rows = await conn.fetch(
        f"SELECT {COLUMNS} FROM fedstac.parked_event WHERE id > $1 ORDER BY id LIMIT $2", after, limit
    )
    return [ParkedRow(**dict(row)) for row in rows]


def document_of(row: ParkedRow) -> dict[str, object]:
    """Return a parked event as programs read it, over HTTP and of the command line."""
    return {
        "id": row.id, "consumer": row.consumer, "origin": row.origin, "subject": row.subject, "event_id": row.event_id,
        "epoch": row.epoch, "seq": row.seq, "pos": row.pos, "outcome": row.outcome, "detail": row.detail,
        "attempts": row.attempts, "requeued_at": rfc3339(row.requeued_at) if row.requeued_at else None,
        "at": rfc3339(row.at),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class WholeParkedEvent:
    """A parked event with its text."""

    row: ParkedRow
    event: str


async def read(conn: Connection, id: int) -> WholeParkedEvent:
    """Return a parked event. NotFound where there is none."""
    row = await conn.fetchrow(f"SELECT {COLUMNS}, event FROM fedstac.parked_event WHERE id = $1", id)
    if row is None:
        raise _not_found(id)
    fields = dict(row)
    return WholeParkedEvent(event=fields.pop("event"), row=ParkedRow(**fields))


async def requeue(
    conn: Connection, ids: Sequence[int], *, actor: str, correlation: str | None = None
) -> list[ParkedRow]:
    """Mark parked events to be tried again by their consumer, all or none.

    Conflict where what is here is as new already, or newer, and where it is no event that could be applied.
    """
    async with conn.transaction():
        rows = await _locked(conn, ids)
        if stale := await _stale(conn, ids):
            raise Conflict(
                f"the dataset here is as new already, or newer: {_names(stale)}; discard instead: "
                f"fedstac parked discard {' '.join(str(row.id) for row in stale)}"
            )
        if refused_rows := [row for row in rows if row.outcome == "rejected"]:
            raise Conflict(
                f"it is no event that this node would ever take: {_names(refused_rows)}; discard it: "
                f"fedstac parked discard {' '.join(str(row.id) for row in refused_rows)}"
            )
        await conn.execute(
            "UPDATE fedstac.parked_event SET requeued_at = clock_timestamp() WHERE id = ANY ($1::bigint[])", list(ids)
        )
        await conn.execute(
            """DELETE FROM fedstac.event_attempt a USING fedstac.parked_event p
               WHERE p.id = ANY ($1::bigint[]) AND a.consumer = p.consumer AND a.origin = p.origin
                 AND a.event_id = p.event_id""",
            list(ids),
        )
        await _audit(conn, actor, "requeue-parked", rows, correlation)
        return await _locked(conn, ids)


async def discard(
    conn: Connection, ids: Sequence[int], *, actor: str, correlation: str | None = None
) -> list[ParkedRow]:
    """Delete parked events, all or none. Their datasets stay as they are until a later event or `verify --repair`."""
    async with conn.transaction():
        rows = await _locked(conn, ids)
        await conn.execute("DELETE FROM fedstac.parked_event WHERE id = ANY ($1::bigint[])", list(ids))
        await _audit(conn, actor, "discard-parked", rows, correlation)
        return rows


async def _locked(conn: Connection, ids: Sequence[int]) -> list[ParkedRow]:
    rows = await conn.fetch(
        f"SELECT {COLUMNS} FROM fedstac.parked_event WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE", list(ids)
    )
    if missing := set(ids) - {row["id"] for row in rows}:
        raise _not_found(min(missing))
    return [ParkedRow(**dict(row)) for row in rows]


async def _stale(conn: Connection, ids: Sequence[int]) -> list[ParkedRow]:
    """Return the parked events whose dataset, or collection, is at least as new here."""
    rows = await conn.fetch(
        f"""SELECT {", ".join("p." + column for column in COLUMNS.split(", "))} FROM fedstac.parked_event p
            LEFT JOIN fedstac.record r ON r.collection = split_part(p.subject, '/', 1)
                  AND r.id = substr(p.subject, strpos(p.subject, '/') + 1) AND r.origin = p.origin
            LEFT JOIN fedstac.collection c ON c.id = p.subject AND c.origin = p.origin
            WHERE p.id = ANY ($1::bigint[])
              AND (coalesce(r.epoch, c.epoch), coalesce(r.seq, c.seq)) >= (p.epoch, p.seq) ORDER BY p.id""",
        list(ids),
    )
    return [ParkedRow(**dict(row)) for row in rows]


def _not_found(id: int) -> NotFound:
    return NotFound(f"there is no parked event {id}; see fedstac parked list")


def _names(rows: Sequence[ParkedRow]) -> str:
    return ", ".join(f"{row.id} ({row.subject})" for row in rows[:5])


async def _audit(conn: Connection, actor: str, action: str, rows: Sequence[ParkedRow], correlation: str | None) -> None:
    """Write a row for each origin: how many events, and the first ids."""
    audit_rows = []
    for origin in sorted({row.origin for row in rows}):
        own = [row for row in rows if row.origin == origin]
        detail = {"ids": [row.id for row in own][:100], "events": [row.event_id for row in own][:20]}
        audit_rows.append(audit.NewRow(
            actor=actor, action=action, collection="", dataset=origin, request=None, outcome="done", before=None,
            after=None, items=len(own), detail=orjson.dumps(detail).decode(), correlation=correlation,
        ))  # fmt: skip
    await audit.append(conn, audit_rows)
