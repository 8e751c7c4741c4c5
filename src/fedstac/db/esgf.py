"""What a follower of a topic in ESGF's format keeps: which events came, and patches that wait for their item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedstac.db.connections import Connection

REMEMBERED_EVENTS = 1_000_000  # of a topic: a publisher repeats an event soon, or never
MOST_WAITING = 100  # patches of one dataset


@dataclass(frozen=True, slots=True)
class WaitingPatch:
    """A patch of a dataset that is not here; `event` as it came, as JSON text."""

    subject: str
    sameness: str  # of its id and content; its place in the topic where it has no id
    pos: int
    event: str


async def find_repeats(conn: Connection, consumer: str, origin: str, event_ids: Mapping[str, str]) -> set[str]:
    """Return which of these events, ids by sameness, were decided already; not those that an operator tries again."""
    rows = await conn.fetch(
        """SELECT e.sameness FROM fedstac.esgf_event e
           JOIN unnest($3::text[], $4::text[]) page (sameness, event_id) ON page.sameness = e.sameness
           WHERE e.consumer = $1 AND e.origin = $2 AND NOT EXISTS (
               SELECT FROM fedstac.parked_event p WHERE p.consumer = $1 AND p.origin = $2
                 AND p.event_id = page.event_id AND p.requeued_at IS NOT NULL)""",
        consumer, origin, list(event_ids), list(event_ids.values()),
    )  # fmt: skip
    return {row["sameness"] for row in rows}


async def remember(conn: Connection, consumer: str, origin: str, positions: Mapping[str, int]) -> None:
    """Store that events were decided, given by sameness, and forget those of long ago."""
    if not positions:
        return
    await conn.execute(
        """INSERT INTO fedstac.esgf_event (consumer, origin, sameness, pos)
           SELECT $1, $2, * FROM unnest($3::text[], $4::bigint[]) ON CONFLICT DO NOTHING""",
        consumer, origin, list(positions), list(positions.values()),
    )  # fmt: skip
    await conn.execute(
        "DELETE FROM fedstac.esgf_event WHERE consumer = $1 AND origin = $2 AND pos <= $3",
        consumer, origin, max(positions.values()) - REMEMBERED_EVENTS,
    )  # fmt: skip


async def waiting(conn: Connection, consumer: str, origin: str, subjects: Sequence[str]) -> list[WaitingPatch]:
    """Return the patches that wait for these datasets, in the order in which they came."""
    rows = await conn.fetch(
        """SELECT subject, sameness, pos, event FROM fedstac.esgf_waiting
           WHERE consumer = $1 AND origin = $2 AND subject = ANY($3::text[]) ORDER BY subject, pos""",
        consumer, origin, subjects,
    )  # fmt: skip
    return [WaitingPatch(**dict(row)) for row in rows]


async def wait(conn: Connection, consumer: str, origin: str, patches: Sequence[WaitingPatch]) -> None:
    """Keep patches until their datasets come: of each the last MOST_WAITING."""
    if not patches:
        return
    await conn.execute(
        """INSERT INTO fedstac.esgf_waiting (consumer, origin, subject, sameness, pos, event)
           SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::bigint[], $6::text[]) ON CONFLICT DO NOTHING""",
        consumer, origin, [patch.subject for patch in patches], [patch.sameness for patch in patches],
        [patch.pos for patch in patches], [patch.event for patch in patches],
    )  # fmt: skip
    await conn.execute(
        """DELETE FROM fedstac.esgf_waiting w USING (
               SELECT subject, sameness, row_number() OVER (PARTITION BY subject ORDER BY pos DESC) AS n
               FROM fedstac.esgf_waiting WHERE consumer = $1 AND origin = $2 AND subject = ANY($3::text[])) ranked
           WHERE w.consumer = $1 AND w.origin = $2 AND w.subject = ranked.subject AND w.sameness = ranked.sameness
             AND ranked.n > $4""",
        consumer, origin, list({patch.subject for patch in patches}), MOST_WAITING,
    )  # fmt: skip


async def end_waiting(conn: Connection, consumer: str, origin: str, subjects: Sequence[str]) -> None:
    """Delete the patches that waited for these datasets, which are here now."""
    if subjects:
        await conn.execute(
            "DELETE FROM fedstac.esgf_waiting WHERE consumer = $1 AND origin = $2 AND subject = ANY($3::text[])",
            consumer, origin, subjects,
        )  # fmt: skip
