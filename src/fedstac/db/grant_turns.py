"""Beginnings and ends of grants that subscriptions are still to be told of, and the datasets that they are about.

They are noted by the triggers of migrations/0090_grant_turns.sql in the transaction in which a grant is given or
withdrawn, and by `note_ends` where it runs out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from fedstac.db import records
from fedstac.db.connections import Connection
from fedstac.domain import grant_passages
from fedstac.domain.events import LoggedEvent
from fedstac.domain.grants import GrantScope, GrantTarget
from fedstac.domain.model import Record

PAGE_BYTES: Final = 8 << 20  # of documents that are read at once
NO_END: Final = sys.maxsize


@dataclass(frozen=True, slots=True)
class GrantTurn:
    """A beginning or end of a grant. place: datasets through this id are told. told: events so far.

    is_void: the grant is over before its beginning was told.
    """

    id: int
    grant: UUID
    subject: str
    target: GrantTarget
    begins: bool
    place: str
    told: int
    is_void: bool
    now: datetime


# Now, or within a minute.
ANY_TURN: Final = """(
    EXISTS (SELECT FROM fedstac.grant_turn WHERE due <= statement_timestamp() + interval '1 minute')
    OR EXISTS (SELECT FROM fedstac.access_grant WHERE closed_at IS NULL AND NOT has_expired
                 AND valid_until <= statement_timestamp() + interval '1 minute'))"""


async def note_ends(conn: Connection, limit: int) -> bool:
    """Note that grants ran out, so many at most. Return whether there may be more.

    Each has a turn if its subject has a subscription.
    """
    count = await conn.fetchval(
        """WITH ended AS (
               UPDATE fedstac.access_grant g SET has_expired = true
               WHERE g.id = ANY (ARRAY(
                   SELECT id FROM fedstac.access_grant
                   WHERE closed_at IS NULL AND NOT has_expired AND valid_until <= statement_timestamp()
                   ORDER BY valid_until LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED))
               RETURNING g.id, g.subject),
           noted AS (
               INSERT INTO fedstac.grant_turn (grant_id, begins, due)
               SELECT id, false, clock_timestamp() FROM ended e
               WHERE EXISTS (SELECT FROM fedstac.subscription s WHERE s.owner = e.subject)
               ON CONFLICT DO NOTHING)
           SELECT count(*) FROM ended""",
        limit,
    )
    return bool(count == limit)


async def take(conn: Connection) -> GrantTurn | None:
    """Lock the turn that has waited longest, and return it; None where none is due."""
    row = await conn.fetchrow(
        """SELECT t.id, g.id AS grant, g.subject, g.collection, g.scope, g.target, t.begins, t.place, t.told,
                  t.begins AND (g.closed_at IS NOT NULL OR g.valid_until <= clock_timestamp()) AS is_void,
                  clock_timestamp() AS now
           FROM fedstac.grant_turn t JOIN fedstac.access_grant g ON g.id = t.grant_id
           WHERE t.due <= statement_timestamp() ORDER BY t.due LIMIT 1 FOR NO KEY UPDATE OF t SKIP LOCKED"""
    )
    if row is None:
        return None
    values = dict(row)
    target = GrantTarget(values.pop("collection"), GrantScope(values.pop("scope")), values.pop("target"))
    return GrantTurn(**values, target=target)


async def advance(conn: Connection, turn: GrantTurn, place: str, told: int) -> None:
    """Store how far a locked turn is, and let others take theirs."""
    await conn.execute(
        "UPDATE fedstac.grant_turn SET place = $2, told = $3, due = clock_timestamp() WHERE id = $1",
        turn.id, place, told,
    )  # fmt: skip


async def put_off(conn: Connection, turn: GrantTurn, seconds: float) -> None:
    """Let a turn that failed wait for so many seconds."""
    await conn.execute(
        "UPDATE fedstac.grant_turn SET due = clock_timestamp() + make_interval(secs => $2) WHERE id = $1",
        turn.id, seconds,
    )  # fmt: skip


async def end(conn: Connection, turn: GrantTurn) -> None:
    """End a locked turn: all is told."""
    await conn.execute("DELETE FROM fedstac.grant_turn WHERE id = $1", turn.id)


async def end_unheard(conn: Connection, limit: int) -> None:
    """End turns that are due and whose subject has no subscription by now; so many at most."""
    await conn.execute(
        """DELETE FROM fedstac.grant_turn WHERE id = ANY (ARRAY(
               SELECT t.id FROM fedstac.grant_turn t JOIN fedstac.access_grant g ON g.id = t.grant_id
               WHERE t.due <= statement_timestamp()
                 AND NOT EXISTS (SELECT FROM fedstac.subscription s WHERE s.owner = g.subject)
               ORDER BY t.due LIMIT $1 FOR NO KEY UPDATE OF t SKIP LOCKED))""",
        limit,
    )


async def datasets(conn: Connection, turn: GrantTurn, limit: int) -> list[Record]:
    """Return the next datasets of a turn's target, by id, that the grant makes a difference for; of large ones few.

    What is not published is closed to grants, and an event of its own said so.
    """
    condition = {
        GrantScope.DATASET: "id = $2", GrantScope.LINEAGE: "lineage = $2", GrantScope.PROJECT: "$2::text = ''",
    }[turn.target.scope]  # fmt: skip
    rows = await conn.fetch(
        f"""SELECT {records.COLUMNS}, document FROM (
                SELECT *, sum(octet_length(document)) OVER (ORDER BY id) - octet_length(document) AS before FROM (
                    SELECT * FROM fedstac.record
                    WHERE collection = $1 AND {condition} AND id > $3 AND access <> 'open' AND state = 'published'
                    ORDER BY id LIMIT $4) limited) sized
            WHERE before < $5 ORDER BY id""",
        turn.target.collection, turn.target.name, turn.place, limit, PAGE_BYTES,
    )  # fmt: skip
    return [records.from_row(row) for row in rows]


@dataclass(frozen=True, slots=True)
class PassageStates:
    """The records of the datasets of passages, by position, where these are at the change that the passage names.

    end: the first position whose document is too much for one page.
    """

    by_position: Mapping[int, Record] = field(default_factory=dict)
    end: int = NO_END


async def states_at(conn: Connection, passages: Sequence[LoggedEvent]) -> PassageStates:
    """Return the records that passages are made of, as they are now."""
    if not passages:
        return PassageStates()
    passage_data = [grant_passages.read(event) for event in passages]
    columns = ", ".join(f"r.{name.strip()}" for name in records.COLUMNS.split(","))
    rows = await conn.fetch(
        f"""SELECT pos, {records.COLUMNS}, CASE WHEN before < $5 THEN document END AS document FROM (
                SELECT p.pos, {columns}, r.document,
                       sum(octet_length(r.document)) OVER (ORDER BY p.pos) - octet_length(r.document) AS before
                FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) p (pos, collection, id, seq)
                JOIN fedstac.record r ON r.collection = p.collection AND r.id = p.id AND r.seq = p.seq
                WHERE r.document IS NOT NULL) sized
            ORDER BY pos""",
        [event.cursor.pos for event in passages], [each.collection for each in passage_data],
        [each.dataset for each in passage_data], [each.seq for each in passage_data], PAGE_BYTES,
    )  # fmt: skip
    by_position, end = dict[int, Record](), NO_END
    for row in rows:
        if row["document"] is None:
            end = row["pos"]
            break
        by_position[row["pos"]] = records.from_row({name: value for name, value in row.items() if name != "pos"})
    return PassageStates(by_position, end)
