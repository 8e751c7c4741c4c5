"""Whether the database has what this fedstac needs of it: its tables, its rights on them, its migrations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fedstac import settings
from fedstac.db.connections import Connection
from fedstac.runtime.causes import OperatorsFault

MIGRATION_LOCK = 0x666564_00  # the advisory lock of whoever migrates

# What the writer's role has to be allowed: Select, Insert, Update, Delete.
NEEDED = {
    "fedstac.access_grant": "SIU", "fedstac.grant_target": "SIU", "fedstac.grant_turn": "SIUD",
    "fedstac.alerted": "SIUD", "fedstac.audit": "SI", "fedstac.audit_chain": "S", "fedstac.audit_head": "S",
    "fedstac.awaited": "SIUD", "fedstac.cascade": "SIU", "fedstac.collection": "SIUD", "fedstac.confirmation": "SIUD",
    "fedstac.bulk": "SIU", "fedstac.bulk_dataset": "SIU", "fedstac.console_session": "SIUD",
    "fedstac.consumer_cursor": "SIUD", "fedstac.cursor": "SIUD", "fedstac.dead_letter": "SIUD",
    "fedstac.deletion": "SIU", "fedstac.deletion_configuration": "SI", "fedstac.deletion_dependency": "SIUD",
    "fedstac.deletion_revision": "SIUD", "fedstac.deletion_waiver": "SI",
    "fedstac.destination": "SIUD", "fedstac.epoch": "SIUD", "fedstac.esgf_event": "SID", "fedstac.esgf_waiting": "SID",
    "fedstac.event_attempt": "SIUD", "fedstac.feed": "SI", "fedstac.feed_state": "SIUD",
    "fedstac.facet": "SIUD", "fedstac.facet_lost": "SI",
    "fedstac.facet_removed": "SU", "fedstac.facet_slot": "SIUD", "fedstac.file_mark": "SID",
    "fedstac.file_reference": "SIUD", "fedstac.footprint": "SI",
    "fedstac.forgotten": "S", "fedstac.lapse": "SIUD",
    "fedstac.idempotency": "SID", "fedstac.lineage": "SIU", "fedstac.load": "SIUD",
    "fedstac.load_dataset": "SIUD", "fedstac.load_part": "SIUD", "fedstac.migration": "S",
    "fedstac.node_exception": "SIUD",
    "fedstac.node_status": "SIUD", "fedstac.notification": "SIUD", "fedstac.outbox": "SIU",
    "fedstac.own_group": "SIUD", "fedstac.own_group_person": "SIUD", "fedstac.own_report": "SIUD",
    "fedstac.parked": "SIUD", "fedstac.parked_event": "SIUD", "fedstac.part": "SIUD",
    "fedstac.person": "SIU",
    "fedstac.quarantine_case": "SIU", "fedstac.record": "SIUD", "fedstac.redaction": "SIU",
    "fedstac.replica_alarm": "SIUD", "fedstac.replica_announcement": "SIUD", "fedstac.replica_claim": "SIUD",
    "fedstac.replica_dataset": "SIUD", "fedstac.replica_disk": "SIUD", "fedstac.replica_file": "SIUD",
    "fedstac.replica_finding": "SIUD", "fedstac.replica_host": "SIUD", "fedstac.replica_mark": "SIUD",
    "fedstac.replica_leftover": "SIUD", "fedstac.replica_source": "SIUD",
    "fedstac.replica_look": "SIUD", "fedstac.replica_removal": "SIUD", "fedstac.replica_source_fault": "SIUD",
    "fedstac.request": "SIUD", "fedstac.request_item": "SIUD",
    "fedstac.shard": "SIUD", "fedstac.sink": "SIUD", "fedstac.sink_resend": "SIUD",
    "fedstac.subscription": "SIUD", "fedstac.subscription_event": "SIUD",
    "fedstac.status_topic": "SIU",
    "fedstac.tally": "SIUD", "fedstac.term": "SI", "fedstac.term_state": "S",
    "fedstac.token": "SIUD", "fedstac.told": "SU",
    "fedstac.trouble": "SIUD",
    "fedstac.vocabulary": "SI", "pgstac.items": "SIUD", "pgstac.collections": "SIUD",
}  # fmt: skip
RIGHTS = {"S": "SELECT", "I": "INSERT", "U": "UPDATE", "D": "DELETE"}


@dataclass(frozen=True, slots=True)
class Soundness:
    """What the database lacks, a sentence each; and whether a migration is under way, which may explain it."""

    defects: tuple[str, ...]
    is_migrating: bool

    def require(self) -> None:
        """Raise OperatorsFault where the database lacks something."""
        if self.defects:
            raise OperatorsFault(f"the database is not as it has to be: {'; '.join(self.defects)}")


async def look(conn: Connection) -> Soundness:
    """Compare the database with what this fedstac needs. It reads the catalogue, so it works whatever is missing."""
    pairs = [(table, RIGHTS[letter]) for table, letters in NEEDED.items() for letter in letters]
    rows = await conn.fetch(
        """SELECT name, to_regclass(name) IS NULL AS is_missing, array_agg(verb ORDER BY verb) AS verbs
           FROM unnest($1::text[], $2::text[]) wanted (name, verb)
           WHERE NOT coalesce(has_table_privilege(to_regclass(name), verb), false) GROUP BY name ORDER BY name""",
        [table for table, _ in pairs], [verb for _, verb in pairs],
    )  # fmt: skip
    defects = [
        f"the table {row['name']} is missing"
        if row["is_missing"]
        else f"the right to {', '.join(row['verbs'])} on {row['name']} is missing"
        for row in rows
    ]
    is_migrating = await conn.fetchval(
        """SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
                          AND classid::bigint << 32 | objid::bigint = $1
                          AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))""",
        MIGRATION_LOCK,
    )
    if not defects:
        behind = await _migrations_behind(conn)
        defects += [f"it is {behind} migrations behind this fedstac: run fedstac migrate"] if behind else []
    return Soundness(tuple(defects), bool(is_migrating))


async def check(conn: Connection) -> None:
    """Raise OperatorsFault where the database lacks something, or is being migrated."""
    soundness = await look(conn)
    if soundness.is_migrating:
        raise OperatorsFault("the database is being migrated")
    soundness.require()


async def _migrations_behind(conn: Connection) -> int:
    rows = await conn.fetch("SELECT number FROM fedstac.migration")
    return len(_known_migrations() - {row["number"] for row in rows})


@cache
def _known_migrations() -> frozenset[int]:
    return frozenset(int(path.name[:4]) for path in settings.folder("migrations").glob("[0-9][0-9][0-9][0-9]_*.sql"))
