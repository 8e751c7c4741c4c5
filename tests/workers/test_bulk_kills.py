"""kill -9 of the process that works off a change of many datasets: each dataset is changed exactly once."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from fedstac.demo import sample
from tests.support import failpoints
from tests.support.forking import Forks
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until
from tests.support.workers import worker

COUNT = 2_000
DEATHS = ("bulk.begun=kill:3", "bulk.performed=kill:4", "perform.events=kill:3", "bulk.committed=kill:3")
ONCE = """
    SELECT (SELECT count(*) FROM fedstac.record WHERE state = 'marked') AS marked,
           (SELECT count(*) FROM fedstac.outbox WHERE type LIKE '%.marked.%') AS events,
           (SELECT count(DISTINCT dataset) FROM fedstac.outbox WHERE type LIKE '%.marked.%') AS announced,
           (SELECT count(*) FROM fedstac.deletion WHERE state = 'open') AS deletions,
           (SELECT count(*) FROM fedstac.audit WHERE action = 'mark' AND outcome = 'marked') AS rows,
           (SELECT count(*) FROM fedstac.bulk_dataset WHERE status = 'done' AND outcome = 'marked') AS results"""


async def ended(api: Api, path: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        answer: dict[str, Any] = (await api.admin.get(path)).json()
        return answer if answer["finished"] else None

    answer = await until(look)
    assert answer is not None
    return answer


@pytest.mark.long
async def test_what_a_killed_process_left_is_done_once(start_api: StartApi, dsn: str, command_forks: Forks) -> None:
    api = await start_api(dsn=dsn, background=False)
    await api.admin.post("/collections", json=sample.collection())
    with worker(command_forks, api):
        body = {"type": "FeatureCollection", "features": list(sample.items(COUNT, versions=2))}
        accepted = await api.admin.post("/collections/CMIP6/items", json=body, headers={"Prefer": "wait=0"})
        await ended(api, f"/requests/{accepted.json()['id']}")
    wish = {"action": "mark", "collections": ["CMIP6"], "retracted": "include"}
    digest = (await api.admin.post("/bulk/preview", json=wish)).json()["digest"]
    begun = (await api.admin.post("/bulk", json={**wish, "digest": digest})).json()
    assert begun["total"] == COUNT
    for words in DEATHS:
        with worker(command_forks, api, **failpoints.environment(words)) as process:
            assert await asyncio.to_thread(process.wait, PATIENCE) < 0
    with worker(command_forks, api):
        answer = await ended(api, f"/bulk/{begun['id']}")
    assert answer["counts"] == {"waiting": 0, "done": COUNT, "rejected": 0, "failed": 0, "cancelled": 0}
    conn = await asyncpg.connect(dsn)
    try:
        row = await conn.fetchrow(ONCE)
        assert row is not None
        assert set(row.values()) == {COUNT}, dict(row)
    finally:
        await conn.close()
