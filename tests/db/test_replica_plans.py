"""How PostgreSQL finds what a replica node does next among 20 000 datasets that wait: by index, with few rows read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import placement_queue
from fedstac.demo import embedded
from tests.support import plans
from tests.support.databases import databases

pytestmark = pytest.mark.xdist_group("plans")  # one process: the database is made once

FEW = 2_500  # rows of a table that a statement may read for nothing: those of a few datasets
FILL = """
INSERT INTO fedstac.replica_dataset (origin, collection, id, lineage, epoch, seq, pos, event_state, latest, document,
       size, files, action, rule, priority, state, until, lane)
SELECT 'west', 'c', 'd' || n, 'd' || n, 1, 1, n, 'published', true, '{"assets": {}}', 100, 5, 'replicate', 'all', 0,
       CASE WHEN n <= 18000 THEN 'waiting' ELSE 'queued' END,
       CASE WHEN n <= 18000 THEN clock_timestamp() + interval '1 day' END, CASE WHEN n > 18010 THEN 'w' END
FROM generate_series(1, 20000) n;
INSERT INTO fedstac.replica_file (n, asset, path, size, checksum, source, href, node, lane)
SELECT d.n, 'a' || a, d.id || '/' || a, 20, '1220', CASE WHEN d.lane IS NOT NULL THEN 'w.example' END,
       CASE WHEN d.lane IS NOT NULL THEN 'https://w.example/' || a END,
       CASE WHEN d.lane IS NOT NULL THEN 'west' END, d.lane
FROM fedstac.replica_dataset d, generate_series(1, 5) a;
UPDATE fedstac.replica_file SET source = 'away.example' WHERE n IN (SELECT n FROM fedstac.replica_dataset
       WHERE id IN ('d19990', 'd19995'));
ANALYZE fedstac.replica_dataset, fedstac.replica_file;
"""


@pytest.fixture(scope="module")
def many_datasets(cluster: embedded.Cluster, template: str) -> Iterator[str]:
    """The writer's DSN of a database whose sessions tell their plans."""
    with databases(cluster, template) as make:
        writer = make()
        name = writer.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(cluster.dsn(name), autocommit=True) as conn:
            conn.execute(FILL)
        plans.tell_plans(cluster.dsn(), name)
        yield writer


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_what_comes_next_is_found_by_index(many_datasets: str, mode: str) -> None:
    conn = await connections.connect(many_datasets)
    await conn.execute(f"SET plan_cache_mode = {mode}")
    transaction = conn.transaction()
    await transaction.start()

    async def place(conn: Connection) -> None:
        assert len(await placement_queue.unplaced(conn)) == placement_queue.PLACED_AT_ONCE

    async def leave(conn: Connection) -> None:
        assert await placement_queue.leave_hosts(conn, ["away.example", "other.example"]) == 2
        assert await placement_queue.leave_hosts(conn, ["away.example", "other.example"]) == 0

    try:
        for run in (place, leave):
            for plan in await plans.plans_of(conn, run):
                assert max(plan.wasted.values(), default=0) <= FEW, plan
    finally:
        await transaction.rollback()
        await conn.close()


async def test_datasets_whose_wait_is_over_are_placed_with_the_others(many_datasets: str) -> None:
    conn = await connections.connect(many_datasets)
    transaction = conn.transaction()
    await transaction.start()
    try:
        over = datetime.now(UTC) - timedelta(seconds=1)
        await conn.execute(
            "UPDATE fedstac.replica_dataset SET until = $1, priority = 1 WHERE id = ANY($2)", over, ["d7", "d9"]
        )
        await conn.execute("UPDATE fedstac.replica_dataset SET until = NULL, priority = 1 WHERE id = 'd8'")
        found = [each.id for each in await placement_queue.unplaced(conn)]
        assert found == ["d7", "d8", "d9", *(f"d{n}" for n in range(18001, 18006))]
    finally:
        await transaction.rollback()
        await conn.close()
