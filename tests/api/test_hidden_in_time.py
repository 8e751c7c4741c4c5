"""Nobody can tell by the time that an answer takes whether a dataset is marked for deletion or never was (I17).

That both do the same work is tested in tests/db/test_hidden.py; this asks the clock, many times, and so is a soak test.
"""

from __future__ import annotations

import random
import time

import asyncpg
import pytest

from fedstac.db import nodes
from fedstac.demo import sample
from tests.support.nodes import Api

ITEMS = "/collections/CMIP6/items"
PAIRS = 2000
FAIR = range(900, 1101)  # of the pairs: beyond four and a half deviations of a coin that is tossed 2 000 times


@pytest.mark.soak
async def test_a_strangers_change_of_a_marked_dataset_takes_as_long_as_of_one_that_never_was(api: Api) -> None:
    items = list(sample.items(200, versions=1))
    await api.admin.post(ITEMS, json={"type": "FeatureCollection", "features": items[:100]})
    marked, never = ([f"{ITEMS}/{item['id']}" for item in part] for part in (items[:100], items[100:]))
    for path in marked:
        assert (await api.admin.delete(path)).status_code == 200
    conn = await asyncpg.connect(api.settings.dsn)
    headers = {"Authorization": f"Bearer {await nodes.issue_token(conn, 'stranger', ['observer'])}"}
    await conn.close()

    async def seconds(path: str) -> float:
        began = time.perf_counter()
        assert (await api.anyone.patch(path, json={}, headers=headers)).status_code == 404
        return time.perf_counter() - began

    chance, slower = random.Random(7), 0
    for n in range(PAIRS):
        pair = [marked[n % 100], never[n % 100]]
        chance.shuffle(pair)
        taken = {path: await seconds(path) for path in pair}
        slower += taken[marked[n % 100]] > taken[never[n % 100]]
    assert slower in FAIR
