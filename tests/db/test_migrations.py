"""Migrations: repeatable, refused where they would harm, and the schema has what the write path counts on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from fedstac import settings
from fedstac.db import migrations
from fedstac.demo import embedded


@pytest.fixture
def owner(cluster: embedded.Cluster, dsn: str) -> str:
    """The owner's DSN of the test's database."""
    return cluster.dsn(urlsplit(dsn).path.lstrip("/"), user="fedstac_owner", password="owner")


@pytest.fixture
def bare(cluster: embedded.Cluster) -> Iterator[str]:
    """The name of a database that nothing was done to."""
    name = "bare_" + threading.current_thread().name.lower().replace("-", "_")
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
    yield name
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def run(dsn: str) -> list[str]:
    return migrations.migrate(dsn, settings.folder("migrations"))


def test_the_second_run_does_nothing(owner: str) -> None:
    assert run(owner) == []


def test_two_at_once_wait_for_each_other(cluster: embedded.Cluster, template: str, bare: str) -> None:
    migrations.setup(cluster.dsn(bare))
    dsn, done = cluster.dsn(bare, user="fedstac_owner", password="owner"), []
    threads = [threading.Thread(target=lambda: done.append(run(dsn))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(map(len, done)) == [0, 1 + len(migrations.read(settings.folder("migrations")))]


def test_a_database_without_its_setup_is_refused_with_the_remedy(cluster: embedded.Cluster, bare: str) -> None:
    with pytest.raises(migrations.MigrationRefused, match="--print-setup"):
        run(cluster.dsn(bare))


def test_a_newer_schema_is_refused(owner: str) -> None:
    with psycopg.connect(owner, autocommit=True) as conn:
        conn.execute("INSERT INTO fedstac.migration VALUES (9999, '9999_future.sql', 'x')")
    with pytest.raises(migrations.MigrationRefused, match=r"9999_future\.sql"):
        run(owner)


def test_a_changed_migration_is_refused(owner: str, tmp_path: Path) -> None:
    for file in settings.folder("migrations").glob("*.sql"):
        (tmp_path / file.name).write_text(file.read_text() + "-- changed\n")
    with pytest.raises(migrations.MigrationRefused, match="changed"):
        migrations.migrate(owner, tmp_path)


def test_a_newer_pgstac_is_refused(owner: str) -> None:
    with psycopg.connect(owner, autocommit=True) as conn:
        conn.execute("SET search_path TO pgstac, public; SELECT set_version('0.99.0')")
    with pytest.raises(migrations.MigrationRefused, match=r"0\.99\.0"):
        run(owner)


def test_migrate_widens_partitions_that_pgstac_tightened(owner: str) -> None:
    unbounded = "SELECT count(*) FROM pgstac.partition_sys_meta WHERE constraint_dtrange = '(,)'"
    with psycopg.connect(owner, autocommit=True) as conn:
        conn.execute("SET search_path TO pgstac, public")
        conn.execute("""SELECT create_collection('{"id": "c", "type": "Collection", "links": [], "extent": {}}')""")
        conn.execute("""SELECT check_partition('c', '[2000-01-01,2001-01-01]', '[2000-01-01,2001-01-01]')""")
        assert conn.execute(unbounded).fetchone() == (0,)
        run(owner)
        assert conn.execute(unbounded).fetchone() == (1,)


def test_migrate_gives_functions_a_search_path_again_that_a_newer_pgstac_replaced(owner: str) -> None:
    without = "SELECT f::text FROM fedstac.functions_without_path() f ORDER BY 1"
    with psycopg.connect(owner, autocommit=True) as conn:
        assert conn.execute(without).fetchall() == []
        conn.execute("ALTER FUNCTION pgstac.collection_geom(jsonb) RESET search_path")
        conn.execute("ALTER FUNCTION pgstac.queryables_trigger_func() RESET search_path")
        assert conn.execute(without).fetchall() == [
            ("pgstac.collection_geom(jsonb)",),
            ("pgstac.queryables_trigger_func()",),
        ]
        run(owner)
        assert conn.execute(without).fetchall() == []


def test_a_function_that_an_index_uses_needs_no_search_path_if_it_names_nothing_beyond_the_catalogue(
    owner: str,
) -> None:
    """Those that searches call stay as they are, for PostgreSQL to inline."""
    with psycopg.connect(owner, autocommit=True) as conn:
        conn.execute("CREATE INDEX ON pgstac.items (pgstac.to_text(content->'x'))")
        assert conn.execute("SELECT count(*) FROM fedstac.functions_without_path()").fetchone() == (0,)


def test_no_two_migrations_have_one_number() -> None:
    numbers = [migration.number for migration in migrations.read(settings.folder("migrations"))]
    assert numbers == sorted(set(numbers))


# --- from the release before ---

BEFORE_CONSUMERS = 27  # the last migration of the release that knew one consumer
OLD_MOVE = """INSERT INTO fedstac.cursor (origin, epoch, pos, snapshot) VALUES ('north', 1, 9, NULL)
    ON CONFLICT (origin) DO UPDATE SET epoch = EXCLUDED.epoch, pos = EXCLUDED.pos, snapshot = EXCLUDED.snapshot"""
OLD_PARK = """INSERT INTO fedstac.parked (origin, pos, event_id, subject, epoch, seq, detail, event)
    VALUES ('north', 8, 'e2', 'c/y', 1, 2, 'd', '{}')
    ON CONFLICT (origin, subject) DO UPDATE SET pos = EXCLUDED.pos"""


@pytest.fixture
def old_release(cluster: embedded.Cluster, bare: str, tmp_path: Path) -> str:
    """The owner's DSN of an index node's database as the release before left it, with data."""
    for file in settings.folder("migrations").glob("*.sql"):
        if int(file.name[:4]) <= BEFORE_CONSUMERS:
            shutil.copy(file, tmp_path)
    migrations.setup(cluster.dsn(bare))
    owner = cluster.dsn(bare, user="fedstac_owner", password="owner")
    migrations.migrate(owner, tmp_path)
    with psycopg.connect(owner, autocommit=True) as conn:
        conn.execute("INSERT INTO fedstac.cursor VALUES ('north', 1, 7, NULL), ('west', 2, 5, 'page')")
        conn.execute("INSERT INTO fedstac.parked VALUES ('north', 'e1', 'c/x', 3, 'why', '{}', now(), 1, 4)")
    return owner


def test_an_index_nodes_places_and_parked_events_are_kept_when_it_becomes_one_consumer_of_several(
    old_release: str,
) -> None:
    run(old_release)
    with psycopg.connect(old_release, autocommit=True) as conn:
        places = conn.execute("SELECT consumer, origin, epoch, pos, snapshot FROM fedstac.consumer_cursor ORDER BY 2")
        assert places.fetchall() == [("index", "north", 1, 7, None), ("index", "west", 2, 5, "page")]
        parked = conn.execute("SELECT consumer, origin, subject, event_id, pos, epoch, seq FROM fedstac.parked_event")
        assert parked.fetchall() == [("index", "north", "c/x", "e1", 3, 1, 4)]


def test_the_release_before_goes_on_with_the_newer_schema(old_release: str) -> None:
    run(old_release)
    with psycopg.connect(old_release, autocommit=True) as conn:
        conn.execute(OLD_MOVE)
        conn.execute(OLD_PARK)
        assert conn.execute("SELECT pos FROM fedstac.cursor WHERE origin = 'north'").fetchone() == (9,)
        assert conn.execute("SELECT pos FROM fedstac.consumer_cursor WHERE origin = 'north'").fetchone() == (7,)
