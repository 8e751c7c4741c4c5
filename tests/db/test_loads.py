"""Full-state loads in the database: large ones are compared and forgotten without a statement that takes for ever."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from fedstac.bootstrap import Node
from fedstac.db import loads
from fedstac.db.connections import Connection
from fedstac.db.loads import LoadPart, NewLoad, StatedDataset
from fedstac.domain.errors import BadRequest, Conflict
from fedstac.domain.reconcile import LoadMode
from fedstac.workers import loading
from tests.db import writing


def some_datasets(count: int, prefix: str = "d") -> list[StatedDataset]:
    return [StatedDataset(f"{prefix}{n:06}", f"l{n}", 1, None, None) for n in range(count)]


async def new_load(conn: Connection, count: int) -> UUID:
    id = uuid4()
    async with conn.transaction():
        await loads.create(conn, NewLoad(
            id=id, collection="CMIP6", mode=LoadMode.APPLY, override=None, submitter="anna", roles=[], identity=None,
            correlation="c", traceparent=None,
        ))  # fmt: skip
        await loads.put_part(conn, id, LoadPart(1, b"d", count), some_datasets(count))
    return id


async def age(conn: Connection, id: UUID) -> None:
    await conn.execute(
        "UPDATE fedstac.load SET created = created - make_interval(days => $2) WHERE id = $1", id, loads.KEPT_DAYS + 1
    )


async def test_an_old_load_is_forgotten_a_part_at_a_time(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "FORGOTTEN_AT_ONCE", 100)
    old, young = await new_load(conn, 250), await new_load(conn, 10)
    await age(conn, old)
    remaining = []
    while await loads.forget_old(conn):
        remaining.append(await conn.fetchval("SELECT count(*) FROM fedstac.load_dataset WHERE load = $1", old))
    assert remaining == [150, 50, 0], "no statement removes all of a load of a million datasets"
    assert await loads.find(conn, old) is None
    assert await conn.fetchval("SELECT count(*) FROM fedstac.load_dataset WHERE load = $1", young) == 10


async def test_what_is_left_of_a_load_that_is_being_forgotten_is_not_applied(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "FORGOTTEN_AT_ONCE", 100)
    id = await new_load(conn, 250)
    await age(conn, id)
    assert await loads.forget_old(conn)
    with pytest.raises(Conflict, match="begin a new one"):
        await loading.compare(west, conn, id)
    with pytest.raises(Conflict, match="begin a new one"):
        await loading.put_part(conn, id, LoadPart(2, b"e", 1), some_datasets(1, "e"), [""])


async def test_the_settings_of_a_comparison_end_with_it(west: Node, conn: Connection) -> None:
    id = await new_load(conn, 10)
    async with conn.transaction():
        load = await loads.find(conn, id, locking=True)
        assert load is not None
        before = await conn.fetchval("SHOW work_mem")
        await loads.compare(conn, load, "west")
        assert await conn.fetchval("SHOW enable_nestloop") == "on"
        assert await conn.fetchval("SHOW work_mem") == before
    versions = await conn.fetch("SELECT DISTINCT xmin::text FROM fedstac.load_dataset")
    async with conn.transaction():
        await loads.compare(conn, load, "west")
    assert await conn.fetch("SELECT DISTINCT xmin::text FROM fedstac.load_dataset") == versions, "nothing is new"


async def test_a_load_changes_no_more_than_a_change_of_many_datasets_may(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "MOST", 9)
    id = await new_load(conn, 10)
    await loading.compare(west, conn, id)
    with pytest.raises(BadRequest, match="10 datasets change, and 9 at most may"):
        await loading.apply(
            west, conn, writing.ANNA, id, confirmed=None, identity=None, correlation="c", traceparent=None
        )
