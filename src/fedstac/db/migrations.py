"""Migrations: pgstac to its pinned version, then our own in order, under one lock. Synchronous; the CLI calls it.

`SETUP` is what a superuser runs once on a server of the operator's own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from pypgstac.db import PgstacDB
from pypgstac.migrate import Migrate

from fedstac.db.schema import MIGRATION_LOCK

PGSTAC_VERSION = "0.10.0"
AT_ONCE = 5000  # datasets whose rows of codes are written in one transaction
FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

ROLES = ("fedstac_writer", "fedstac_sequencer", "fedstac_reader", "fedstac_auditor", "fedstac_deleter")
SETUP = """\
-- Run once as a superuser, connected to the database that fedstac will use:
--   fedstac migrate --print-setup | psql -d <database>
-- Run it again before `fedstac migrate` where that says so: a newer fedstac may know more roles. It repeats safely.
-- Then set passwords:  ALTER ROLE fedstac_owner PASSWORD '…';  ALTER ROLE fedstac_writer PASSWORD '…';
-- and those of fedstac_sequencer, fedstac_reader, fedstac_auditor and fedstac_deleter where they are used.
CREATE EXTENSION IF NOT EXISTS postgis;
CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE EXTENSION IF NOT EXISTS unaccent;
DO $$ BEGIN
    IF to_regrole('fedstac_owner') IS NULL THEN CREATE ROLE fedstac_owner LOGIN; END IF;
    IF to_regrole('fedstac_writer') IS NULL THEN CREATE ROLE fedstac_writer LOGIN; END IF;
    IF to_regrole('fedstac_sequencer') IS NULL THEN CREATE ROLE fedstac_sequencer LOGIN; END IF;
    IF to_regrole('fedstac_reader') IS NULL THEN CREATE ROLE fedstac_reader LOGIN; END IF;
    IF to_regrole('fedstac_auditor') IS NULL THEN CREATE ROLE fedstac_auditor LOGIN; END IF;
    IF to_regrole('fedstac_deleter') IS NULL THEN CREATE ROLE fedstac_deleter LOGIN; END IF;
    IF to_regrole('pgstac_admin') IS NULL THEN CREATE ROLE pgstac_admin; END IF;
    IF to_regrole('pgstac_read') IS NULL THEN CREATE ROLE pgstac_read; END IF;
    IF to_regrole('pgstac_ingest') IS NULL THEN CREATE ROLE pgstac_ingest; END IF;
END $$;
-- pgstac's own migration creates and grants roles, which PostgreSQL allows to CREATEROLE only
ALTER ROLE fedstac_owner CREATEROLE;
GRANT pgstac_admin, pgstac_read, pgstac_ingest TO fedstac_owner WITH ADMIN OPTION;
GRANT pgstac_read, pgstac_ingest TO fedstac_writer;
GRANT pgstac_read TO fedstac_reader;
-- the text of a search that fails may have a megabyte; fedstac logs its own faults
ALTER ROLE fedstac_writer SET log_min_error_statement = panic;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO fedstac_owner', current_database()); END $$;
"""


class MigrationRefused(Exception):
    """The database is not one that these migrations may touch; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A file of migrations/."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read(folder: Path) -> list[Migration]:
    """Return the migrations in a folder, in order."""
    files = sorted(path for path in folder.iterdir() if FILE.fullmatch(path.name))
    return [Migration(int(path.name[:4]), path.name, path.read_text()) for path in files]


def setup(dsn: str) -> None:
    """Run SETUP; `dsn` is a superuser's."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SETUP)


def migrate(dsn: str, folder: Path, *, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Bring a database up to date and return the names of the migrations that ran.

    `dsn` is the owner's; empty: PGHOST, …. Two at once wait for each other. MigrationRefused for a newer schema than
    this code knows, or a changed file.
    """
    with psycopg.connect(dsn, autocommit=True) as conn:
        _check_setup(conn)
        conn.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        pgstac = _migrate_pgstac(dsn, conn, say)
        conn.execute("CREATE SCHEMA IF NOT EXISTS fedstac")
        conn.execute(
            """CREATE TABLE IF NOT EXISTS fedstac.migration (
                   number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
                   at timestamptz NOT NULL DEFAULT now())"""
        )
        own = _migrate_own(conn, read(folder), say)
        conn.execute("SELECT fedstac.extend_outbox()")
        conn.execute("SELECT fedstac.widen_partitions()")
        conn.execute("SELECT fedstac.fix_paths()")
        _fill_facets(conn, say)
        database = sql.Identifier(conn.info.dbname)
        for setting in ("default_toast_compression = 'lz4'", "jit = off"):
            conn.execute(sql.SQL("ALTER DATABASE {} SET " + setting).format(database))
        return pgstac + own


def _fill_facets(conn: psycopg.Connection, say: Callable[[str], None]) -> None:
    """Write the rows of codes of datasets that lack theirs, a chunk in a transaction: others go on writing."""
    row = conn.execute("SELECT to_regproc('fedstac.fill_facets_after') IS NULL").fetchone()
    if row and row[0]:  # a folder of an older release
        return
    last: tuple[str, str] | None = ("", "")
    count = 0
    while last is not None and last[0] is not None:
        last = conn.execute("SELECT * FROM fedstac.fill_facets_after(%s, %s, %s::int)", (*last, AT_ONCE)).fetchone()
        count += AT_ONCE
        if count % 100_000 == 0:
            say(f"rows of codes: {count} datasets looked at")


def _check_setup(conn: psycopg.Connection) -> None:
    lacking = [
        row[0]
        for row in conn.execute(
            """SELECT 'PostGIS' WHERE to_regtype('public.geometry') IS NULL
               UNION ALL SELECT 'the role ' || name FROM unnest(%s::text[]) name WHERE to_regrole(name) IS NULL""",
            (list(ROLES),),
        )
    ]
    if lacking:
        raise MigrationRefused(
            f"the database {conn.info.dbname!r} lacks {', '.join(lacking)}; a superuser runs, also if it ran before: "
            f"fedstac migrate --print-setup | psql -d {conn.info.dbname}"
        )


def _migrate_pgstac(dsn: str, conn: psycopg.Connection, say: Callable[[str], None]) -> list[str]:
    row = conn.execute("SELECT to_regclass('pgstac.migrations') IS NOT NULL").fetchone()
    current = None
    if row and row[0]:
        last = conn.execute("SELECT version FROM pgstac.migrations ORDER BY datetime DESC, version DESC").fetchone()
        current = last[0] if last else None
    if current == PGSTAC_VERSION:
        return []
    if current and [int(n) for n in current.split(".")] > [int(n) for n in PGSTAC_VERSION.split(".")]:
        raise MigrationRefused(
            f"pgstac {current} is newer than {PGSTAC_VERSION}, which this fedstac knows; update fedstac"
        )
    say(f"pgstac {current or 'none'} → {PGSTAC_VERSION}")
    with PgstacDB(dsn=dsn) as db:
        Migrate(db).run_migration(PGSTAC_VERSION)
    return [f"pgstac {PGSTAC_VERSION}"]


def _migrate_own(conn: psycopg.Connection, migrations: list[Migration], say: Callable[[str], None]) -> list[str]:
    rows = conn.execute("SELECT number, name, checksum FROM fedstac.migration ORDER BY number").fetchall()
    rows_by_number = {number: (name, checksum) for number, name, checksum in rows}
    numbers = {migration.number: migration for migration in migrations}
    for number, (name, checksum) in rows_by_number.items():
        if number not in numbers:
            raise MigrationRefused(
                f"the database has the migration {name}, which this fedstac does not know; update it"
            )
        if numbers[number].checksum != checksum:
            raise MigrationRefused(f"the migration {name} was changed after it ran here; restore the released file")
    names = []
    for migration in migrations:
        if migration.number in rows_by_number:
            continue
        say(f"migration {migration.name}")
        with conn.transaction():
            conn.execute(migration.text.encode())
            conn.execute(
                "INSERT INTO fedstac.migration (number, name, checksum) VALUES (%s, %s, %s)",
                (migration.number, migration.name, migration.checksum),
            )
        names.append(migration.name)
    return names
