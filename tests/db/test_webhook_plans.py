"""How PostgreSQL finds the webhooks whose turn it is among many that have everything."""

from __future__ import annotations

from uuid import uuid4

import pytest

from fedstac.bootstrap import Node
from fedstac.db import webhook_deliveries
from fedstac.db.connections import Connection
from fedstac.demo import embedded
from tests.db import writing
from tests.support import plans
from tests.support.databases import name_in
from tests.workers.things import publish

COUNT, LETTERS = 5_000, 20  # subscriptions, which are the most; dead letters of each, 100 000 in all
FEW = 20  # rows that the statement may read for nothing
FILL = """
    INSERT INTO fedstac.subscription (name, owner, roles, delivery, url, secret, format, filter, batch, epoch, pos,
                                      agreed_url)
    SELECT 'idle-' || n, 'anna', '{}', 'webhook', 'https://hooks.example/x', 'x', 'cloudevents', '{}', 50,
           head.epoch, head.pos, 'https://hooks.example/x'
    FROM generate_series(1, $1) n, fedstac.feed_state head"""
FILL_EVENTS = """
    INSERT INTO fedstac.subscription_event (subscription, epoch, pos, event_id, key, collection, dataset, type,
                                            attempts, reason, dead_at, retry_at)
    SELECT s.name, 1, n, 'x', 'x', 'plain', 'thing-' || n, 'x', 1, 'x', now(), now()
    FROM fedstac.subscription s, generate_series(1, $1) n"""
WAIT = """
    UPDATE fedstac.subscription_event SET dead_at = NULL, retry_at = now() + make_interval(hours => $2)
    WHERE subscription = $1 AND pos = 1"""


@pytest.fixture
async def conn(
    west: Node, cluster: embedded.Cluster, dsn: str, connect: writing.Connect, administrator: Connection
) -> Connection:
    plans.tell_plans(cluster.dsn(), name_in(dsn))
    opened: Connection = await connect()
    await publish(opened, 1, 2)
    await opened.execute(FILL, COUNT)
    await opened.execute(FILL_EVENTS, LETTERS)
    await administrator.execute("ANALYZE fedstac.subscription, fedstac.subscription_event, fedstac.feed_state")
    return opened


async def claimed(conn: Connection) -> list[str]:
    """Return whose turn it is, after a look at what the statement read for that."""
    names: list[str] = []

    async def claim(conn: Connection) -> None:
        names.extend(turn.name for turn in await webhook_deliveries.claim(conn, uuid4(), 0.0, most=256, most_slow=64))

    found_plans = await plans.plans_of(conn, claim)
    assert found_plans
    for plan in found_plans:
        for table in ("subscription", "subscription_event"):
            assert plan.wasted.get(table, 0) <= FEW, plan
    return sorted(names)


async def test_those_that_have_everything_are_not_looked_at(conn: Connection) -> None:
    assert await claimed(conn) == []
    await conn.execute(WAIT, "idle-7", 1)  # not yet
    await conn.execute(WAIT, "idle-8", -1)
    assert await claimed(conn) == ["idle-8"]
    await conn.execute("UPDATE fedstac.subscription SET agreed_url = NULL WHERE name = 'idle-9'")
    await conn.execute("UPDATE fedstac.subscription SET pos = 1 WHERE name = 'idle-10'")
    await conn.execute("UPDATE fedstac.subscription SET epoch = epoch - 1 WHERE name = 'idle-11'")
    await conn.execute("UPDATE fedstac.subscription SET pos = 1, paused_reason = 'x' WHERE name = 'idle-12'")
    assert await claimed(conn) == ["idle-10", "idle-11", "idle-8", "idle-9"]


async def test_where_all_are_behind_each_has_its_turn(conn: Connection) -> None:
    await publish(conn, 3)
    names = {turn.name for turn in await webhook_deliveries.claim(conn, uuid4(), 15.0, most=COUNT, most_slow=64)}
    assert len(names) == COUNT
