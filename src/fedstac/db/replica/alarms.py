"""Alarms of a replica node: what lasts is told once, when it begins, and again only after it has ended."""

from __future__ import annotations

from collections.abc import Sequence

from fedstac.db import troubles
from fedstac.db.connections import Connection
from fedstac.db.troubles import TroubleReport
from fedstac.domain.replication.alarms import REASONS, Alarm, AlarmKind, DiskRoom


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


async def away_hosts(conn: Connection, seconds: float) -> list[Alarm]:
    """Return the hosts that have been away for so long."""
    rows = await conn.fetch(
        """SELECT host, reason, since FROM fedstac.replica_host
           WHERE since < clock_timestamp() - make_interval(secs => $1) ORDER BY host""",
        seconds,
    )
    return [
        Alarm(AlarmKind.SOURCE, row["host"], f"since {row['since']:%Y-%m-%d %H:%M}: {row['reason']}") for row in rows
    ]


async def store_room(conn: Connection, disks: Sequence[DiskRoom]) -> None:
    """Store the room on the disk of each tier. Tiers that are not among these are forgotten."""
    await conn.execute(
        """WITH gone AS (DELETE FROM fedstac.replica_disk WHERE tier <> ALL ($1::text[]))
           INSERT INTO fedstac.replica_disk AS d (tier, folder, free_bytes)
           SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) ORDER BY 1
           ON CONFLICT (tier) DO UPDATE SET folder = EXCLUDED.folder, free_bytes = EXCLUDED.free_bytes,
                  at = clock_timestamp()""",
        [each.tier for each in disks], [each.folder for each in disks], [each.free_bytes for each in disks],
    )  # fmt: skip


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
