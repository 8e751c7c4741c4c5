"""What a doctor asks of the database: of the server, of its sessions, of what is set aside."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fedstac.db import migrations
from fedstac.db.connections import Connection
from fedstac.domain.diagnosis import OpenTransaction, ServerFacts

SETTINGS = (
    "archive_mode", "autovacuum", "data_directory", "default_transaction_read_only", "fsync", "full_page_writes",
    "max_connections", "server_encoding", "superuser_reserved_connections", "synchronous_commit", "wal_level",
)  # fmt: skip
SHOWN = 3  # examples of what is parked


async def server(conn: Connection) -> ServerFacts:
    """Read what PostgreSQL says of itself. It reads the catalogue alone, so it works whatever is missing."""
    before = time.time()
    row = await conn.fetchrow(
        """SELECT extract(epoch FROM clock_timestamp())::float8 AS now, pg_is_in_recovery() AS is_standby,
                  current_setting('server_version_num')::int AS version,
                  (SELECT sum(numbackends)::int FROM pg_stat_database) AS connections,
                  ARRAY(SELECT extname::text FROM pg_extension) AS extensions,
                  ARRAY(SELECT name FROM unnest($1::text[]) name WHERE to_regrole(name) IS NULL) AS lacking_roles,
                  to_regclass('pgstac.migrations') IS NOT NULL AS has_pgstac""",
        ["fedstac_owner", *migrations.ROLES],
    )
    assert row is not None
    middle = (before + time.time()) / 2
    settings = await conn.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY ($1::text[])", SETTINGS)
    return ServerFacts(
        version=row["version"], is_standby=row["is_standby"],
        settings={each["name"]: each["setting"] for each in settings}, extensions=frozenset(row["extensions"]),
        pgstac=await _pgstac(conn) if row["has_pgstac"] else None, lacking_roles=row["lacking_roles"],
        connections=row["connections"], clock_ahead_seconds=row["now"] - middle,
        transactions=await _transactions(conn),
    )  # fmt: skip


async def _pgstac(conn: Connection) -> str | None:
    version = await conn.fetchval("SELECT version FROM pgstac.migrations ORDER BY datetime DESC, version DESC LIMIT 1")
    return None if version is None else str(version)


async def _transactions(conn: Connection) -> list[OpenTransaction]:
    """Return the oldest open transactions of this database that this role may see, and prepared ones."""
    rows = await conn.fetch(
        """(SELECT format('session %s, %s', pid, coalesce(nullif(application_name, ''), usename, '?')) AS who,
                   extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds
            FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL
              AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 5)
           UNION ALL
           (SELECT format('prepared transaction %L', gid), extract(epoch FROM clock_timestamp() - prepared)::float8
            FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared LIMIT 5)"""
    )
    return [OpenTransaction(row["who"], row["seconds"]) for row in rows]


async def origin(conn: Connection) -> str | None:
    """Return whose database it is; None before its node's first start."""
    name = await conn.fetchval("SELECT origin FROM fedstac.feed_state")
    return None if name is None else str(name)


@dataclass(frozen=True, slots=True)
class ParkedExample:
    """One of the events that a consumer set aside."""

    consumer: str
    origin: str
    subject: str
    detail: str


async def parked_examples(conn: Connection) -> list[ParkedExample]:
    """Return the oldest parked events, a few of them."""
    rows = await conn.fetch(
        "SELECT consumer, origin, subject, detail FROM fedstac.parked_event ORDER BY at LIMIT $1", SHOWN
    )
    return [ParkedExample(**dict(row)) for row in rows]


async def collections(conn: Connection) -> list[str]:
    """Return the ids of the collections that are here."""
    rows = await conn.fetch("SELECT id FROM fedstac.collection WHERE document IS NOT NULL ORDER BY id LIMIT 1000")
    return [row["id"] for row in rows]
