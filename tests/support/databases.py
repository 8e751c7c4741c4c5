"""Databases of tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from fedstac import settings
from fedstac.db import migrations
from fedstac.demo import embedded, federation
from fedstac.demo.federation import PostgresServer, Say

TEMPLATE = "template_fedstac"
MakeDatabase = Callable[..., str]


def name_in(dsn: str) -> str:
    """Return the name of the database that a DSN leads to."""
    return unquote(urlsplit(dsn).path.lstrip("/"))


@contextmanager
def prepared_cluster() -> Iterator[Path]:
    """Make a cluster with a template, and stop it; yield its folder, for others to be copied from it."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-prepared-"))
    folder.chmod(0o755)
    try:
        with embedded.cluster(folder / "pg", settings={"fsync": "off", "full_page_writes": "off"}) as made:
            make_template(made)
        yield folder / "pg"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def copied_clusters(prepared: Path) -> Iterator[None]:
    """Let clusters that are made in the block be copies of a prepared one, and databases of federations too."""

    def copy(binaries: Path, folder: Path, account: object, locks: Sequence[int]) -> None:
        subprocess.run(["cp", "-a", prepared / "pgdata", prepared / "password", folder], check=True)

    def make_database(server: PostgresServer, name: str, say: Say) -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            there = "SELECT bool_or(datname = %s), bool_or(datname = %s) FROM pg_database"
            if conn.execute(there, (TEMPLATE, name)).fetchone() == (True, False):
                copy_database(conn, name, TEMPLATE)
        make_or_update(server, name, say)  # a copy lacks the settings of a database

    make_or_update = federation.make_database
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_make_data", copy)
        patch.setattr(federation, "make_database", make_database)
        yield


def copy_database(conn: psycopg.Connection, name: str, template: str) -> None:
    """Make a migrated database, as a superuser.

    A copy by files costs half the processor time of one by write-ahead log, and leaves nothing to write out at its end.
    """
    conn.execute(f'CREATE DATABASE "{name}" OWNER fedstac_owner TEMPLATE {template} STRATEGY file_copy'.encode())


def make_template(cluster: embedded.Cluster) -> str:
    """Make a migrated database that others are copied from, and return its name."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {TEMPLATE}".encode())
    migrations.setup(cluster.dsn(TEMPLATE))
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        conn.execute("ALTER ROLE fedstac_owner PASSWORD 'owner'")
        conn.execute("ALTER ROLE fedstac_writer PASSWORD 'writer'")
    owner = cluster.dsn(TEMPLATE, user="fedstac_owner", password="owner")
    migrations.migrate(owner, settings.folder("migrations"))
    return TEMPLATE


@contextmanager
def databases(cluster: embedded.Cluster, template: str) -> Iterator[MakeDatabase]:
    """Make migrated databases, copies of the template unless another is named; return the writer's DSN of each.

    They go with the context.
    """
    made: list[str] = []

    def make(other_template: str | None = None) -> str:
        name = f"t{os.urandom(6).hex()}"
        with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
            copy_database(conn, name, other_template or template)
        made.append(name)
        return cluster.dsn(name, user="fedstac_writer", password="writer")

    try:
        yield make
    finally:
        with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
            for name in made:
                conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
