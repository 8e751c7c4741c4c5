"""What the tests of the database share: the node west with two collections, and connections of their own to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.db.connections import Connection
from tests.db import writing


@pytest.fixture
async def west(node: Node) -> Node:
    """The node `west` with the collections CMIP6 and plain."""
    await writing.create_collections(node, "CMIP6", "plain")
    return node


@pytest.fixture
async def connect(west: Node, dsn: str) -> AsyncIterator[writing.Connect]:
    """Connections of the test's own to west's database; they go with it."""
    async with AsyncExitStack() as stack:

        async def open_one() -> Connection:
            conn = await connections.connect(dsn, application="fedstac test")
            stack.callback(conn.terminate)
            return conn

        yield open_one
