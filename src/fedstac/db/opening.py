"""What a process finds when it opens its database, and what its operator has to do where that is of no use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psycopg
from psycopg.conninfo import conninfo_to_dict

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.runtime.causes import DRIVER_ERRORS, is_transient
from fedstac.settings import PostgresVariables

SETUP = "fedstac migrate --print-setup | psql -d {name}, then: fedstac migrate"
FORM = "postgresql://user:password@host/database"
SEARCHED = ("pgstac.collections", "pgstac.items")  # what a restore of an old dump lacks
MIGRATION = re.compile(r"(\d{4})_\w+\.sql")


class DatabaseUnusable(Exception):
    """The database is not there, refuses us, or is not prepared; the message says what to do."""


@contextmanager
def explaining(dsn: str) -> Iterator[None]:
    """Raise DatabaseUnusable instead of an error that the operator can mend."""
    try:
        yield
    except Exception as error:
        sentence = explanation(error, dsn)
        if sentence is None:
            raise
        raise DatabaseUnusable(sentence) from error


async def connect(dsn: str, *, application: str) -> Connection:
    """Open a connection for a command. DatabaseUnusable if that fails for a reason that the operator can mend."""
    with explaining(dsn):
        return await connections.connect(dsn, application=application)


def is_of_driver(error: Exception) -> bool:
    """Return whether one of the two drivers raised this."""
    return isinstance(error, (*DRIVER_ERRORS, psycopg.Error))


def explanation(error: Exception, dsn: str) -> str | None:
    """Return one sentence that says what is wrong with the database and what to do; None where it is not that."""
    name, place = _place(dsn)
    match error:
        case asyncpg.InvalidCatalogNameError():
            return f"there is no database {name!r} at {place}: run createdb {name}, then {SETUP.format(name=name)}"
        case asyncpg.InvalidAuthorizationSpecificationError():
            return f"PostgreSQL at {place} refuses to log us in: {error}; see to the user and password in FEDSTAC_DSN"
        case asyncpg.InsufficientPrivilegeError():
            return (
                f"the database {name!r} at {place} lacks a right ({error}): run {SETUP.format(name=name)}, and let "
                f"FEDSTAC_DSN name the user fedstac_writer"
            )
        case (
            asyncpg.UndefinedTableError()
            | asyncpg.UndefinedColumnError()
            | asyncpg.UndefinedFunctionError()
            | asyncpg.InvalidSchemaNameError()
        ):
            return f"the database {name!r} at {place} has no tables of fedstac: run {SETUP.format(name=name)}"
        case asyncpg.exceptions.ClientConfigurationError():
            return f"FEDSTAC_DSN is no connection URL ({FORM}): {error}"
        case psycopg.OperationalError() if error.sqlstate is None:
            return f"{_first_line(error)}; see to FEDSTAC_OWNER_DSN"
        case psycopg.ProgrammingError() if error.sqlstate is None:
            return f"FEDSTAC_OWNER_DSN is no connection URL ({FORM}): {_first_line(error)}"
        case psycopg.errors.InsufficientPrivilege():
            return f"{_first_line(error)}: let FEDSTAC_OWNER_DSN name the user fedstac_owner"
        case OSError() | asyncpg.PostgresConnectionError() | asyncpg.CannotConnectNowError():
            return f"no PostgreSQL answers at {place} ({error}): start it, or see to FEDSTAC_DSN"
        case asyncpg.PostgresError() if is_transient(error):
            return f"PostgreSQL at {place} does not serve us: {error}; see to it, then start again"
    return None


def newest(folder: Path) -> int:
    """Return the number of the last migration of this fedstac."""
    return max(int(name[1]) for path in folder.iterdir() if (name := MIGRATION.fullmatch(path.name)))


async def schema(conn: Connection, number: int, dsn: str) -> int:
    """Return the number of the database's last migration.

    DatabaseUnusable where a later one is needed, or where a restore left tables out.
    """
    last = int(await conn.fetchval("SELECT coalesce(max(number), 0) FROM fedstac.migration"))
    if last < number:
        name, place = _place(dsn)
        raise DatabaseUnusable(
            f"the database {name!r} at {place} is at migration {last}, this fedstac needs {number}: run fedstac migrate"
        )
    lacking = await conn.fetch(  # from the catalogue: to_regclass needs a right to the schema, which not every role has
        """SELECT name FROM unnest($1::text[]) name WHERE NOT EXISTS (
               SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname || '.' || c.relname = name)""",
        SEARCHED,
    )
    if lacking:
        name, place = _place(dsn)
        raise DatabaseUnusable(
            f"the database {name!r} at {place} lacks {' and '.join(row['name'] for row in lacking)}: it was not "
            f"restored as a whole; restore it again into an empty database, with pg_restore --exit-on-error"
        )
    return last


def _place(dsn: str) -> tuple[str, str]:
    """Return the name of the database, and the host and port of its server, as the URL and PG… variables say."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.Error:
        parts = {}
    variables = PostgresVariables()
    name = parts.get("dbname") or variables.database or parts.get("user") or variables.user
    return str(name), f"{parts.get('host') or variables.host}:{parts.get('port') or variables.port}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
