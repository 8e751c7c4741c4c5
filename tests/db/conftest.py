"""What the tests of the database share: the node west with two collections, and connections of their own to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.demo import embedded
from fedstac.settings import Settings
from tests.db import writing
from tests.db.catalogue import Ground
from tests.support.databases import databases


@pytest.fixture
async def west(node: Node) -> Node:
    """The node `west` with the collections CMIP6 and plain."""
    await writing.create_collections(node, "CMIP6", "plain")
    return node


@pytest.fixture
async def east(make_database: Callable[[], str]) -> AsyncIterator[Connection]:
    """The database of an index node that follows west."""
    config = Settings(dsn=make_database(), node="east", _env_file=None)
    async with bootstrap.node(config) as running, running.pool.acquire() as conn:
        yield conn


@pytest.fixture
def ground(cluster: embedded.Cluster, template: str, tmp_path: Path) -> Iterator[Ground]:
    """Where runs that hypothesis draws take place."""
    policy = tmp_path / "policy.yaml"
    policy.write_text('version: 1\nbuiltin: true\npromote_previous: ["*"]\n')
    made = Ground(partial(databases, cluster, template), str(policy))
    yield made
    made.close()


@pytest.fixture
async def connect(west: Node, dsn: str) -> AsyncIterator[writing.Connect]:
    """Connections of the test's own to west's database; they go with it."""
    async with AsyncExitStack() as stack:

        async def open_one() -> Connection:
            conn = await connections.connect(dsn, application="fedstac test")
            stack.callback(conn.terminate)
            return conn

        yield open_one
