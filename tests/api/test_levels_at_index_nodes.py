"""A level travels with the event: an index node hides and shows what its origin does, from the feed and a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from fedstac.db import invariants
from fedstac.demo import sample
from tests.support.nodes import Api, StartApi
from tests.support.waiting import until

ITEMS = list(sample.items(4))
CONTROLLED, PRIVATE, CLOSED, GONE = (item["id"] for item in ITEMS)
PATH = "/collections/CMIP6/items"
FULL = {"access": "full"}


async def set_level(api: Api, item: str, level: str | None) -> None:
    answer = await api.admin.patch(f"{PATH}/{item}", json={"properties": {"fedstac:access": level}})
    assert answer.status_code == 200, answer.text


async def digests(conn: asyncpg.Connection[Any]) -> list[tuple[Any, ...]]:
    rows = await conn.fetch("SELECT id, state, access, latest, digest FROM fedstac.record ORDER BY id")
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("snapshot_first", [False, True])
async def test_an_index_node_follows_the_levels(
    api: Api, conn: asyncpg.Connection[Any], start_api: StartApi, make_database: Callable[[], str],
    snapshot_first: bool,
) -> None:  # fmt: skip
    for item in ITEMS:
        assert (await api.admin.post(PATH, json=item)).status_code == 201
    for item, level in ((CONTROLLED, "controlled"), (PRIVATE, "private"), (GONE, "private")):
        await set_level(api, item, level)
    assert (await api.admin.delete(f"{PATH}/{GONE}")).status_code == 200
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    assert (await api.admin.post(f"{PATH}/{GONE}/delete", json={})).status_code == 200
    east = await start_api(
        dsn=make_database(), node="east", source=api.url, source_token=api.tokens["node:east"],
        snapshot_first=snapshot_first,
    )  # fmt: skip
    there = await asyncpg.connect(east.settings.dsn)
    try:

        async def agree() -> bool:
            return await digests(conn) == await digests(there)

        await until(agree)
        await set_level(api, CLOSED, "private")
        await set_level(api, PRIVATE, "controlled")
        await until(agree)
        page = (await east.anyone.post("/search", json={"limit": 100})).json()
        assert {each["id"]: each["assets"] for each in page["features"]} == {CONTROLLED: {}, PRIVATE: {}}
        statuses = {item: (await east.anyone.get(f"{PATH}/{item}")).status_code for item in (CLOSED, GONE, CONTROLLED)}
        assert statuses == {CLOSED: 404, GONE: 404, CONTROLLED: 200}
        assert (await east.admin.get(f"{PATH}/{CLOSED}", params=FULL)).json()["assets"]
        assert await invariants.check(there) == []
    finally:
        await there.close()
