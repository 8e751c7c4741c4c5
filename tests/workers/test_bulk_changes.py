"""Changes of many datasets as their worker does them: what a cancel meets, and what may be asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fedstac.bootstrap import Node
from fedstac.db import bulks, connections, queue
from fedstac.db.bulks import Bulk
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.bulk import read_wish
from fedstac.runtime.causes import DRIVER_ERRORS
from fedstac.workers import bulk_changes
from fedstac.workers.bulk_changes import BulkRequest
from tests.db import writing
from tests.db.writing import ANNA
from tests.support.failpoints import once_at

ITEMS = list(sample.items(6))
IDS = [item["id"] for item in ITEMS]
BLOCKS = "SELECT $2 = ANY (pg_blocking_pids($1))"


@pytest.fixture
async def conn(node: Node, dsn: str) -> AsyncIterator[Connection]:
    """Of a node with datasets."""
    await writing.create_collections(node, "CMIP6")
    opened = await connections.connect(dsn)
    await writing.publish(opened, *ITEMS)
    yield opened
    await asyncio.wait_for(opened.close(), 10)


async def start(node: Node, conn: Connection, **wish: object) -> tuple[Bulk, bool]:
    """Look at what a change of all datasets would do, and begin it. Return it, and whether it is new."""
    request = BulkRequest(read_wish(wish), IDS, {}, {})
    look = await bulk_changes.preview(node, conn, ANNA, request)
    return await bulk_changes.start(
        node, conn, ANNA, request, look.digest, identity=None, correlation="c", traceparent=None
    )


async def end_of(node: Node, conn: Connection, job: Bulk) -> Bulk:
    """Work until there is nothing to do; return a change as it stands then."""
    assert await bulk_changes.work_off(node, conn, asyncio.Event())
    after = await bulks.find(conn, job.id)
    assert after is not None
    return after


async def test_a_cancel_between_an_attempt_and_its_part_ends_the_change(node: Node, conn: Connection, dsn: str) -> None:
    job, _ = await start(node, conn, action="mark")

    async def cancel() -> None:
        other = await connections.connect(dsn)
        await bulk_changes.cancel(other, job, "anna", correlation="c")
        await other.close()

    with once_at("bulk.begun", cancel):
        after = await end_of(node, conn, job)
    assert after.status == "cancelled"
    assert after.counts == {"waiting": 0, "done": 0, "rejected": 0, "failed": 0, "cancelled": len(IDS)}
    assert await conn.fetchval("SELECT count(*) FROM fedstac.record WHERE state = 'published'") == len(IDS)


async def test_what_changed_nothing_may_be_asked_for_again(node: Node, conn: Connection) -> None:
    """All of it was refused; the datasets are as before, and so is the digest of the preview."""
    marked, _ = await start(node, conn, action="mark")
    assert (await end_of(node, conn, marked)).status == "done"
    wish = {"action": "quarantine", "quarantine": {"reason": "look"}}
    refused, _ = await start(node, conn, **wish)
    assert await start(node, conn, **wish) == (refused, False)
    assert (await end_of(node, conn, refused)).status == "rejected"
    again, is_new = await start(node, conn, **wish)
    assert is_new
    assert again.digest == refused.digest
    assert (await end_of(node, conn, again)).status == "rejected"
    assert await bulks.asked_before(conn, "anna", marked.digest) is not None


async def test_sessions_that_are_ended_blame_no_dataset(node: Node, conn: Connection, dsn: str) -> None:
    """A database that is started again and again ends sessions, each in the middle of a part."""
    job, _ = await start(node, conn, action="mark")
    blocker = await connections.connect(dsn)
    async with blocker.transaction():
        await blocker.execute("SELECT FROM fedstac.lineage FOR UPDATE")
        for _ in range(bulk_changes.ALONE + bulk_changes.ATTEMPTS + 1):
            async with node.pool.acquire() as own:
                work = asyncio.create_task(bulk_changes.work_off(node, own, asyncio.Event()))
                await writing.until(conn, BLOCKS, own.get_server_pid(), blocker.get_server_pid())
                await conn.execute("SELECT pg_terminate_backend($1)", own.get_server_pid())
                with pytest.raises(DRIVER_ERRORS):
                    await work
    await blocker.close()
    after = await end_of(node, conn, job)
    assert (after.status, after.done_count) == ("done", len(IDS))


async def test_a_change_takes_less_of_the_time_the_longer_publications_wait(node: Node, conn: Connection) -> None:
    nobody_waits = await queue.longest_wait(conn)
    await writing.submit(conn, *sample.items(3, start=10))
    just_now = await queue.longest_wait(conn)
    await conn.execute("UPDATE fedstac.request SET created = created - interval '1 minute'")
    for_long = await queue.longest_wait(conn)
    assert nobody_waits is None
    assert just_now is not None
    assert for_long is not None
    assert 60 <= for_long < just_now + 120
    shares = [bulk_changes.share_beside(seconds) for seconds in (nobody_waits, 0.1, for_long)]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == len(shares)
