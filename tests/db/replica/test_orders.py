"""What a person orders: another try of what stands still, and that what nobody wants goes."""

from __future__ import annotations

from collections import Counter

import pytest

from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.db.replica import orders, removals
from tests.db.replica.planting import PlantedFile, plant
from tests.support.commands import Fedstac

WHOLE = [PlantedFile("a.nc", b"a"), PlantedFile("b.nc", b"bb")]
FAILED = [PlantedFile("a.nc", b"a"), PlantedFile("b.nc", b"bb", "failed")]


@pytest.fixture
async def east(node: Node, conn: Connection) -> Connection:
    """Datasets that stand still, each for another reason, and some that do not."""
    parked = await plant(conn, "parked", FAILED, state="parked", announced_at="", reason="no source has b.nc")
    await conn.execute(
        "UPDATE fedstac.replica_file SET attempts = 9, reason = 'gone' WHERE n = $1 AND asset = 'b.nc'", parked
    )
    await conn.execute(
        """INSERT INTO fedstac.replica_source_fault (n, asset, node, host, reason)
           VALUES ($1, 'b.nc', 'west', 'west.example', 'another checksum')""",
        parked,
    )
    refused = await plant(conn, "refused", WHOLE, state="parked", announced_at="", reason="the origin refuses")
    await conn.execute(
        "INSERT INTO fedstac.replica_announcement (n, kind, state, attempts) VALUES ($1, 'add', 'parked', 15)", refused
    )
    await plant(conn, "waiting", [PlantedFile("a.nc", b"a", "queued")], state="waiting", announced_at="",
                reason="west.example is away")  # fmt: skip
    await plant(conn, "fine", WHOLE)
    await plant(conn, "unwanted", WHOLE, goal="ignore", reason="no rule of the policy fits it")
    return conn


async def state_of(conn: Connection, id: str) -> tuple[str, Counter[str], str | None]:
    row = await conn.fetchrow(
        """SELECT d.state, array(SELECT f.state FROM fedstac.replica_file f WHERE f.n = d.n) AS files,
                  (SELECT a.kind || ' ' || a.state FROM fedstac.replica_announcement a WHERE a.n = d.n) AS announcement
           FROM fedstac.replica_dataset d WHERE id = $1""",
        id,
    )
    assert row is not None
    return row["state"], Counter(row["files"]), row["announcement"]


async def test_what_stands_still_is_tried_again_and_nothing_else(east: Connection) -> None:
    numbers = [row["n"] for row in await east.fetch("SELECT n FROM fedstac.replica_dataset ORDER BY n")]
    rows = await orders.retry(east, numbers, actor="anna")
    assert [row.id for row in rows] == ["parked", "refused", "waiting"]
    assert await state_of(east, "parked") == ("queued", Counter(verified=1, queued=1), None)
    assert await state_of(east, "refused") == ("complete", Counter(verified=2), "add queued")
    assert await state_of(east, "waiting") == ("queued", Counter(queued=1), None)
    assert await state_of(east, "fine") == ("announced", Counter(verified=2), None)
    file = await east.fetchrow("SELECT attempts, reason FROM fedstac.replica_file WHERE reason <> ''")
    assert file is not None
    assert tuple(file) == (0, "tried again; before: gone")
    assert await east.fetchval("SELECT count(*) FROM fedstac.replica_source_fault") == 0
    assert [row.id for row in await orders.retry(east, numbers, actor="anna")] == ["refused"]  # it is on its way
    assert await east.fetchval("SELECT count(*) FROM fedstac.audit WHERE action = 'retry-replica'") == 2


async def test_the_command_retries_what_is_parked(east: Connection, fedstac: Fedstac, dsn: str) -> None:
    result = await fedstac("replica", "retry", "--parked", "-o", "ndjson", FEDSTAC_DSN=dsn)
    assert (result.code, [row["id"] for row in result.lines]) == (0, ["parked", "refused"]), result.stderr
    nothing = await fedstac("replica", "retry", "fine", FEDSTAC_DSN=dsn)
    assert (nothing.code, "nothing stands still" in nothing.stderr) == (1, True)
    assert (await fedstac("replica", "retry", "no-such-dataset", FEDSTAC_DSN=dsn)).code == 3
    assert (await fedstac("replica", "retry", FEDSTAC_DSN=dsn)).code == 2


async def test_a_purge_orders_the_removal_of_what_the_policy_does_not_want(
    east: Connection, fedstac: Fedstac, dsn: str
) -> None:
    await east.execute(
        """INSERT INTO fedstac.consumer_cursor (consumer, origin, epoch, pos) VALUES ('replica', 'west', 1, 41)"""
    )
    shown = await fedstac("replica", "purge", "--dry-run", "-o", "ndjson", FEDSTAC_DSN=dsn)
    assert [(row["id"], row["bytes"], row["what"]) for row in shown.lines] == [("unwanted", 3, "would go")]
    assert (await state_of(east, "unwanted"))[0] == "announced"
    done = await fedstac("replica", "purge", "--yes", FEDSTAC_DSN=dsn)
    assert (done.code, "1 dataset, 2 files" in done.stderr) == (0, True), done.stderr
    assert (await state_of(east, "unwanted"))[0] == "removing"
    [removal] = await removals.next_due(east)
    assert removal.kind == "purge"
    place = await removals.oldest_open(east, "west")
    assert (place and (place.epoch, place.pos)) == (1, 42)  # all that is applied may be acknowledged
    again = await fedstac("replica", "purge", "--dry-run", "-o", "ndjson", FEDSTAC_DSN=dsn)
    assert [(row["id"], row["what"]) for row in again.lines] == [("unwanted", "under way")]
    assert (await fedstac("replica", "purge", FEDSTAC_DSN=dsn)).code == 2
    assert await east.fetchval("SELECT actor LIKE 'database:%' FROM fedstac.audit WHERE action = 'purge-replica'")
