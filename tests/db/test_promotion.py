"""`promote_previous` in the database: the version before is announced whole, and is the latest at every node."""

from __future__ import annotations

from dataclasses import replace

import orjson

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import records
from fedstac.db.connections import Connection
from fedstac.domain.actions.flags import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.model import Outcome, Record
from fedstac.domain.policy import Policy
from fedstac.publication import Work
from tests.db import writing
from tests.db.test_actions_stateful import east as east
from tests.db.writing import ANNA, Connect, version

[ITEM] = writing.sample.items(1, seed=3)
OLD, NEW = (version(dict(ITEM), day) for day in (20200101, 20210101))


def retract(item: writing.Item) -> Work:
    return Work(Retract(target_of(item), ANNA, {"reason": "wrong units"}), "anna", "retract")


def target_of(item: writing.Item) -> Target:
    made = writing.draft(item)
    return Target("CMIP6", made.id, made.lineage)


async def latest_of(conn: Connection) -> dict[str, bool]:
    rows = await conn.fetch(f"SELECT {records.COLUMNS}, document FROM fedstac.record")
    held = [records.from_row(row) for row in rows]
    assert all(isinstance(record, Record) and record.document for record in held)
    return {record.id: record.latest for record in held}


async def test_the_version_before_is_latest_again_everywhere(west: Node, east: Connection, connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, OLD, NEW)
    world = replace(await writing.world(conn), policy=Policy(promoting=frozenset({"CMIP6"})))

    decision = await publication.preview(conn, world, retract(NEW).command)
    assert [change.after.id for change in decision.changes] == [NEW["id"], OLD["id"]]
    [receipt] = await publication.perform(conn, world, [retract(NEW)])
    assert receipt.outcome is Outcome.RETRACTED
    assert await latest_of(conn) == {OLD["id"]: True, NEW["id"]: False}

    told = await conn.fetchval(
        "SELECT event FROM fedstac.outbox WHERE dataset = $1 ORDER BY id DESC LIMIT 1", OLD["id"]
    )
    assert orjson.loads(told)["data"]["document"]["id"] == OLD["id"]
    await writing.sequence_all(conn)
    async with east.transaction():
        await publication.apply(east, await writing.whole_feed(conn))
    assert await latest_of(east) == await latest_of(conn)
    assert await writing.searched(east) == await writing.searched(conn)

    again = Work(Reinstate(target_of(NEW), ANNA), "anna", "reinstate")
    await publication.perform(conn, world, [again])
    assert await latest_of(conn) == {OLD["id"]: False, NEW["id"]: True}
