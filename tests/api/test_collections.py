"""Collections over HTTP: made, changed, listed and deleted, by several clients at once."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from fedstac import sample
from fedstac.db import invariants
from tests.api.conftest import Api

Json = dict[str, Any]


def named(name: str, **members: Any) -> Json:
    return {**sample.collection(), "id": name, **members}


async def test_collections_that_are_written_at_the_same_time_are_all_written(api: Api) -> None:
    async def keep(client: int) -> list[int]:
        statuses = []
        for n in range(6):
            name = f"c{client}-{n}"
            for answer in (
                await api.admin.post("/collections", json=named(name)),
                await api.admin.put(f"/collections/{name}", json=named(name, title="changed")),
                await api.anyone.get(f"/search?collections={name}"),
                *([await api.admin.delete(f"/collections/{name}")] if n % 2 else []),
            ):
                statuses.append(answer.status_code)
        return statuses

    answers = await asyncio.gather(*(keep(client) for client in range(4)))
    assert {status for statuses in answers for status in statuses} == {200, 201, 204}
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        assert await conn.fetchval("SELECT count(*) FROM pgstac.collections") == 1 + 4 * 3
        assert await invariants.check(conn) == []
    finally:
        await conn.close()
