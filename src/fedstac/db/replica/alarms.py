"""Alarms of a replica node: what lasts is told once, when it begins, and again only after it has ended."""

from __future__ import annotations

from collections.abc import Sequence

from fedstac.db import troubles
from fedstac.db.connections import Connection
from fedstac.db.troubles import TroubleReport
from fedstac.domain.replication.alarms import REASONS, Alarm, AlarmKind


async def standing(conn: Connection) -> list[Alarm]:
    """Return what datasets wait for that needs somebody: room on the disk, a larger budget."""
    rows = await conn.fetch(
        """SELECT w.kind, split_part(d.reason, ':', 1) AS thing, count(*) AS datasets, min(d.reason) AS reason
           FROM fedstac.replica_dataset d
           JOIN unnest($1::text[], $2::text[]) w (kind, start) ON d.reason LIKE w.start || '%'
           WHERE d.state = 'waiting' GROUP BY 1, 2 ORDER BY 1, 2""",
        list(REASONS), list(REASONS.values()),
    )  # fmt: skip
    return [
        Alarm(AlarmKind(row["kind"]), row["thing"], f"{row['datasets']} wait; one of them: {row['reason']}")
        for row in rows
    ]


async def store(conn: Connection, alarms: Sequence[Alarm]) -> list[Alarm]:
    """Store the alarms that stand now, tell operators of those that are new, and return these.

    Call it in a transaction. Of several processes one tells.
    """
    await conn.execute(
        """DELETE FROM fedstac.replica_alarm a WHERE NOT EXISTS (
               SELECT FROM unnest($1::text[], $2::text[]) s (kind, thing)
               WHERE s.kind = a.kind AND s.thing = a.thing)""",
        [each.kind for each in alarms], [each.thing for each in alarms],
    )  # fmt: skip
    rows = await conn.fetch(
        """INSERT INTO fedstac.replica_alarm (kind, thing)
           SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING RETURNING kind, thing""",
        [each.kind for each in alarms], [each.thing for each in alarms],
    )  # fmt: skip
    new_things = {(row["kind"], row["thing"]) for row in rows}
    news = [each for each in alarms if (each.kind, each.thing) in new_things]
    for kind in sorted({each.kind for each in news}):
        reports = [TroubleReport(each.thing, each.detail) for each in news if each.kind == kind]
        await troubles.report_all(conn, kind, place="replica", reports=reports)
    return news
