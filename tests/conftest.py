"""A real PostgreSQL for every test run: one private cluster per pytest process, a fresh database per test."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import hypothesis
import psycopg
import pytest

from fedstac import bootstrap, settings
from fedstac.db import migrations
from fedstac.demo import embedded
from fedstac.settings import Settings
from tests.support.waiting import PATIENCE

# the same examples in every run, for a green run to mean something; FEDSTAC_TEST_RANDOM=1 looks for new ones
hypothesis.settings.register_profile("fedstac", derandomize=not os.environ.get("FEDSTAC_TEST_RANDOM"), deadline=None)
hypothesis.settings.load_profile("fedstac")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason="../shared is not here: only the developers and CI have it"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[embedded.Cluster]:
    """A private cluster; durability off, because no test asks what a crash of this one leaves."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-test-"))
    folder.chmod(0o755)
    try:
        with embedded.cluster(folder / "pg", settings={"fsync": "off", "full_page_writes": "off"}) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(cluster: embedded.Cluster) -> str:
    """A migrated database that tests copy."""
    return make_template(cluster)


def make_template(cluster: embedded.Cluster) -> str:
    """Make a migrated database that others are copied from, and return its name."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        conn.execute("CREATE DATABASE template_fedstac")
    migrations.setup(cluster.dsn("template_fedstac"))
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        conn.execute("ALTER ROLE fedstac_owner PASSWORD 'owner'")
        conn.execute("ALTER ROLE fedstac_writer PASSWORD 'writer'")
    owner = cluster.dsn("template_fedstac", user="fedstac_owner", password="owner")
    migrations.migrate(owner, settings.folder("migrations"))
    return "template_fedstac"


@contextmanager
def databases(cluster: embedded.Cluster, template: str) -> Iterator[Callable[[], str]]:
    """Makes migrated databases; returns the writer's DSN of each. They go with the context."""
    made: list[str] = []

    def make() -> str:
        name = f"t{os.urandom(6).hex()}"
        with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
            conn.execute(f'CREATE DATABASE "{name}" TEMPLATE {template}')
            conn.execute(f'ALTER DATABASE "{name}" OWNER TO fedstac_owner')
        made.append(name)
        return cluster.dsn(name, user="fedstac_writer", password="writer")

    try:
        yield make
    finally:
        with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
            for name in made:
                conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def make_database(cluster: embedded.Cluster, template: str) -> Iterator[Callable[[], str]]:
    """Makes migrated databases that go with the test."""
    with databases(cluster, template) as make:
        yield make


@pytest.fixture
def dsn(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture
async def node(dsn: str) -> AsyncIterator[bootstrap.Node]:
    """A node named `west` on a database of its own."""
    config = Settings(dsn=dsn, node="west", _env_file=None)
    async with bootstrap.node(config) as running:
        yield running


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await asyncio.wait_for(connection.close(), PATIENCE)
