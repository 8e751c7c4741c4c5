"""Dead letters: events that a sink refused for ever, kept until an operator sends them again or discards them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from fedstac.db import audit, troubles
from fedstac.db.connections import Connection, Row
from fedstac.db.feed import PAGE_BYTES
from fedstac.domain.errors import Conflict, NotFound
from fedstac.domain.events import Cursor, LoggedEvent
from fedstac.domain.model import rfc3339

LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that a sink refused, and why."""

    id: int
    sink: str
    epoch: int
    pos: int
    event_id: str
    key: str
    collection: str
    dataset: str | None
    seq: int
    type: str
    reason: str
    attempts: int
    redrive_at: datetime | None
    at: datetime


def document_of(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter in JSON."""
    return {
        "id": letter.id,
        "sink": letter.sink,
        "place": f"{letter.epoch}.{letter.pos}",
        "event_id": letter.event_id,
        "type": letter.type,
        "collection": letter.collection,
        "dataset": letter.dataset,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "redrive_at": rfc3339(letter.redrive_at) if letter.redrive_at else None,
        "at": rfc3339(letter.at),
    }


COLUMNS = "id, sink, epoch, pos, event_id, key, collection, dataset, seq, type, reason, attempts, redrive_at, at"


def _letter(row: Row) -> DeadLetter:
    return DeadLetter(**dict(row))


async def keep(conn: Connection, sink: str, event: LoggedEvent, *, reason: str, attempts: int) -> None:
    """Store an event that a sink refused, and tell operators of one that is new. Joins the caller's transaction."""
    is_new = await conn.fetchval(
        """INSERT INTO fedstac.dead_letter AS d (sink, epoch, pos, event_id, key, collection, dataset, seq, type,
                                                 reason, attempts, event)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
           ON CONFLICT (sink, epoch, pos) DO UPDATE SET reason = EXCLUDED.reason, redrive_at = NULL,
                  attempts = d.attempts + EXCLUDED.attempts, at = clock_timestamp()
           RETURNING xmax = 0""",
        sink, event.cursor.epoch, event.cursor.pos, event.event_id, event.key, event.collection, event.dataset,
        event.seq, event.type, reason[:2000], attempts, event.text,
    )  # fmt: skip
    if is_new:
        what = f"{event.type} of {event.dataset or event.collection} at {event.cursor}"
        await troubles.report(conn, "dead-letter", place=sink, what=what, detail=reason)


async def positions(conn: Connection, sink: str, after: int, through: int) -> set[Cursor]:
    """Return the places of a stretch of the log that a sink's dead letters have."""
    rows = await conn.fetch(
        "SELECT epoch, pos FROM fedstac.dead_letter WHERE sink = $1 AND pos > $2 AND pos <= $3", sink, after, through
    )
    return {Cursor(row["epoch"], row["pos"]) for row in rows}


async def every(conn: Connection, sink: str | None, limit: int | None) -> list[DeadLetter]:
    """Return dead letters, of one sink or of all, the oldest first."""
    rows = await conn.fetch(
        f"SELECT {COLUMNS} FROM fedstac.dead_letter WHERE $1::text IS NULL OR sink = $1 ORDER BY id LIMIT $2",
        sink, limit,
    )  # fmt: skip
    return [_letter(row) for row in rows]


@dataclass(frozen=True, slots=True)
class WholeLetter:
    """A dead letter with the text of its event."""

    letter: DeadLetter
    event: str


async def read(conn: Connection, id: int) -> WholeLetter:
    """Return a dead letter. NotFound where there is none."""
    _refuse_impossible([id])
    row = await conn.fetchrow(f"SELECT {COLUMNS}, event FROM fedstac.dead_letter WHERE id = $1", id)
    if row is None:
        raise _not_found(id)
    fields = dict(row)
    return WholeLetter(event=fields.pop("event"), letter=DeadLetter(**fields))


async def redrive(
    conn: Connection, ids: Sequence[int], *, actor: str, correlation: str | None = None
) -> list[DeadLetter]:
    """Mark dead letters to be sent again, all or none. Conflict where a later event of the dataset went out since."""
    async with conn.transaction():
        letters = await _locked(conn, ids)
        stale = await _stale(conn, [letter.id for letter in letters])
        if stale:
            raise Conflict(
                f"a later event of the same dataset went out since, which says more: {_names(stale)}; "
                f"discard instead: fedstac dead-letter discard {' '.join(str(letter.id) for letter in stale)}"
            )
        await conn.execute(
            "UPDATE fedstac.dead_letter SET redrive_at = clock_timestamp() WHERE id = ANY ($1::bigint[])", list(ids)
        )
        await conn.execute(
            "UPDATE fedstac.sink SET version = version + 1 WHERE name = ANY ($1::text[])",
            sorted({letter.sink for letter in letters}),
        )
        await _audit(conn, actor, correlation, "redrive-dead-letters", letters)
        return await _locked(conn, ids)


async def discard(
    conn: Connection, ids: Sequence[int], *, actor: str, correlation: str | None = None
) -> list[DeadLetter]:
    """Delete dead letters: their sink never gets these events. All or none."""
    async with conn.transaction():
        letters = await _locked(conn, ids)
        await conn.execute("DELETE FROM fedstac.dead_letter WHERE id = ANY ($1::bigint[])", list(ids))
        await _audit(conn, actor, correlation, "discard-dead-letters", letters)
        return letters


async def _locked(conn: Connection, ids: Sequence[int]) -> list[DeadLetter]:
    _refuse_impossible(ids)
    rows = await conn.fetch(
        f"SELECT {COLUMNS} FROM fedstac.dead_letter WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE", list(ids)
    )
    if missing := set(ids) - {row["id"] for row in rows}:
        raise _not_found(min(missing))
    return [_letter(row) for row in rows]


def _refuse_impossible(ids: Sequence[int]) -> None:
    """Raise NotFound for a number that no dead letter can have."""
    for id in ids:
        if not 0 < id <= LARGEST_ID:
            raise _not_found(id)


def _not_found(id: int) -> NotFound:
    return NotFound(f"there is no dead letter {id}; see fedstac dead-letter list")


def _names(letters: Sequence[DeadLetter]) -> str:
    return ", ".join(f"{letter.id} ({letter.dataset or letter.collection})" for letter in letters[:5])


async def _stale(conn: Connection, ids: Sequence[int]) -> list[DeadLetter]:
    """Return the dead letters after which their dataset, or collection, changed again.

    Where all that came later in the lineage are dead letters themselves, the earlier one is not stale.
    """
    rows = await conn.fetch(
        f"""SELECT {", ".join("d." + column for column in COLUMNS.split(", "))} FROM fedstac.dead_letter d
            LEFT JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.dataset
            LEFT JOIN fedstac.collection c ON c.id = d.collection AND d.dataset IS NULL
            LEFT JOIN fedstac.lineage l ON l.key = d.key
            WHERE d.id = ANY ($1::bigint[])
              AND (coalesce(r.epoch, c.epoch), coalesce(r.seq, c.seq)) > (d.epoch, d.seq)
              AND coalesce(l.seq, c.seq) - d.seq > (
                  SELECT count(*) FROM fedstac.dead_letter later
                  WHERE later.sink = d.sink AND later.key = d.key AND later.seq > d.seq)
            ORDER BY d.id""",
        list(ids),
    )
    return [_letter(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Redrive:
    """A dead letter that is to be sent again."""

    id: int
    event: LoggedEvent


async def next_redrives(conn: Connection, sink: str, limit: int) -> list[Redrive]:
    """Return dead letters that are to be sent again; those that became stale meanwhile are deleted."""
    waiting = await conn.fetch(
        """SELECT id FROM (
               SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM (
                   SELECT id, octet_length(event) AS size FROM fedstac.dead_letter
                   WHERE sink = $1 AND redrive_at IS NOT NULL ORDER BY id LIMIT $2) due) sized
           WHERE before < $3 ORDER BY id""",
        sink, limit, PAGE_BYTES,
    )  # fmt: skip
    ids = [row["id"] for row in waiting]
    if not ids:
        return []
    stale = [letter.id for letter in await _stale(conn, ids)]
    await conn.execute("DELETE FROM fedstac.dead_letter WHERE id = ANY ($1::bigint[])", stale)
    rows = await conn.fetch(
        """SELECT id, epoch, pos, event_id, key, collection, dataset, seq, type, event FROM fedstac.dead_letter
           WHERE id = ANY ($1::bigint[]) ORDER BY epoch, pos""",
        ids,
    )
    return [
        Redrive(row["id"], LoggedEvent(
            Cursor(row["epoch"], row["pos"]), row["event_id"], row["key"], row["collection"], row["dataset"],
            row["seq"], row["type"], row["event"],
        ))
        for row in rows
    ]  # fmt: skip


async def forget(conn: Connection, ids: Sequence[int]) -> None:
    """Delete dead letters that their sink has taken."""
    await conn.execute("DELETE FROM fedstac.dead_letter WHERE id = ANY ($1::bigint[])", list(ids))


async def _audit(
    conn: Connection, actor: str, correlation: str | None, action: str, letters: Sequence[DeadLetter]
) -> None:
    """Write a row for each sink: how many letters, and the first few datasets."""
    rows = []
    for sink in sorted({letter.sink for letter in letters}):
        own = [letter for letter in letters if letter.sink == sink]
        detail = {"ids": [letter.id for letter in own][:100]}
        rows.append(audit.NewRow(
            actor=actor, action=action, collection="", dataset=f"sink/{sink}", request=None, outcome="done",
            before=None, after=None, correlation=correlation, items=len(own), detail=orjson.dumps(detail).decode(),
        ))  # fmt: skip
    await audit.append(conn, rows)
