"""Counts are those of what is committed: beside writers, and beside transactions that are open or rolled back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedstac.db import connections, facets, invariants
from fedstac.demo import sample
from tests.db import writing
from tests.support.nodes import Api

Json = dict[str, Any]

ITEMS = "/collections/CMIP6/items"
SINGLE, LIST = "cmip6:source_id", "cmip6:source_type"  # facets of one value and of several, which all items have
NAMES = ("total_count", "byte_count", "file_count", "cmip6_source_id_frequency", "cmip6_source_type_frequency",
         "collection_frequency", "datetime_frequency")  # fmt: skip
BATCH, BATCHES = 40, 4


async def counts(api: Api, **conditions: Any) -> dict[str, Json]:
    answer = (await api.anyone.post("/aggregate", json={"aggregations": NAMES, **conditions})).json()
    return {each["name"]: each for each in answer["aggregations"]}


def buckets(aggregation: Json) -> dict[str, int]:
    return {bucket["key"]: bucket["frequency"] for bucket in aggregation["buckets"]}


async def expect(api: Api, items: Sequence[Json]) -> None:
    """Fail unless exactly these items are counted."""
    found = await counts(api)
    assert found["total_count"]["value"] == len(items)
    assert buckets(found["cmip6_source_id_frequency"]) == Counter(item["properties"][SINGLE] for item in items)
    lists = Counter(member for item in items for member in set(item["properties"][LIST]))
    assert buckets(found["cmip6_source_type_frequency"]) == lists
    assert found["byte_count"]["value"] == sum(item["properties"]["size"] for item in items)


async def watch(api: Api, done: asyncio.Event) -> int:
    """Fail where the parts of one answer are of different moments, until `done` is set; return the number of looks."""
    looks, most = 0, 0
    while not done.is_set():
        found = await counts(api)
        total = found["total_count"]["value"]
        for name in ("cmip6_source_id_frequency", "collection_frequency", "datetime_frequency"):
            assert sum(buckets(found[name]).values()) == total, name
            assert found[name]["overflow"] == 0
        assert total >= most
        looks, most = looks + 1, total
    return looks


async def publish(api: Api, items: Sequence[Json]) -> None:
    response = await api.admin.post(ITEMS, json={"type": "FeatureCollection", "features": items})
    assert response.json()["counts"]["done"] == len(items), response.text


async def test_what_is_not_committed_is_not_counted_and_what_is_committed_is(api: Api) -> None:
    items = list(sample.items(BATCH * (BATCHES + 2), versions=1))
    batches = [items[n : n + BATCH] for n in range(0, len(items), BATCH)]
    late, never, *others = batches
    dsn = api.settings.dsn
    async with asyncio.TaskGroup() as group:
        done = asyncio.Event()
        watcher = group.create_task(watch(api, done))
        await publish(api, others[0])
        slow, undone = await connections.connect(dsn), await connections.connect(dsn)
        try:
            for conn, batch in ((slow, late), (undone, never)):  # as perform does, where it is in no transaction yet
                await facets.prepare(conn, [writing.draft(item) for item in batch])
            slow_one, undone_one = slow.transaction(), undone.transaction()
            await slow_one.start()
            await writing.publish(slow, *late)
            await expect(api, others[0])
            await undone_one.start()
            await writing.publish(undone, *never)
            await publish(api, others[1])
            await expect(api, [*others[0], *others[1]])
            await undone_one.rollback()
            await publish(api, others[2])
            await expect(api, [item for batch in others[:3] for item in batch])
            await slow_one.commit()
            await expect(api, [*late, *(item for batch in others[:3] for item in batch)])
        finally:
            await slow.close()
            await undone.close()
        await asyncio.gather(publish(api, never), publish(api, others[3]))
        done.set()
    assert watcher.result() > 0
    await expect(api, items)


async def test_what_is_marked_for_deletion_is_not_counted_until_it_is_unmarked(api: Api) -> None:
    items = list(sample.items(12, versions=1))
    await publish(api, items)
    path = f"{ITEMS}/{items[0]['id']}"
    assert (await api.admin.delete(path)).status_code == 200
    await expect(api, items[1:])
    everything = await counts(api, filter=True, ids=[items[0]["id"]])
    assert everything["total_count"]["value"] == 0
    assert buckets(everything["cmip6_source_id_frequency"]) == {}
    assert (await api.admin.post(path + "/unmark")).status_code == 200
    await expect(api, items)


async def test_retracted_datasets_are_counted_where_they_are_asked_for(api: Api) -> None:
    items = list(sample.items(12, versions=1))
    await publish(api, items)
    body = {"reason": "The units are wrong.", "data": "keep"}
    answer = await api.admin.post(f"{ITEMS}/{items[0]['id']}/retract", json=body)
    assert answer.status_code == 200, answer.text
    await expect(api, items[1:])
    for conditions, count in (
        ({"retracted": "include"}, 12), ({"retracted": "only"}, 1), ({"retracted": "exclude"}, 11),
        ({"filter": {"op": "=", "args": [{"property": "retracted"}, True]}}, 1),
    ):  # fmt: skip
        assert (await counts(api, **conditions))["total_count"]["value"] == count


async def test_nodes_are_counted_with_those_of_replicas_and_are_searched_by(api: Api) -> None:
    items = list(sample.items(12, versions=1))
    await publish(api, items)
    own = {item["id"]: {asset["alternate:name"] for asset in item["assets"].values()} for item in items}
    entry = {
        key: {"href": f"https://east.example/{key}", "alternate:name": "east", "type": "application/netcdf"}
        for key, asset in items[0]["assets"].items() if "file:checksum" in asset
    }  # fmt: skip
    east = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    answer = await api.anyone.put(f"{ITEMS}/{items[0]['id']}/replicas/east", json=entry, headers=east)
    assert answer.status_code == 200, answer.text
    own[items[0]["id"]].add("east")
    names = {"aggregations": ["alternate_name_frequency", "node_count", "cmip6_alternate_name_frequency"]}
    found = (await api.anyone.post("/aggregate", json=names)).json()["aggregations"]
    wanted = Counter(node for nodes in own.values() for node in nodes)
    assert buckets(found[0]) == buckets(found[2]) == wanted
    assert found[1]["value"] == len(wanted)
    alone = (await api.anyone.get("/aggregate", params={"aggregations": "node_count"})).json()["aggregations"]
    assert alone[0]["value"] == len(wanted)
    condition = {"filter": {"op": "=", "args": [{"property": "alternate:name"}, "east"]}}
    page = (await api.anyone.post("/search", json=condition)).json()
    assert [feature["id"] for feature in page["features"]] == [items[0]["id"]]
    assert "fedstac:warnings" not in page
    answer = await api.anyone.delete(f"{ITEMS}/{items[0]['id']}/replicas/east", headers=east)
    assert answer.status_code == 200, answer.text
    found = (await api.anyone.post("/aggregate", json=names)).json()["aggregations"]
    assert "east" not in buckets(found[0])
    assert await broken_invariants(api) == []


async def broken_invariants(api: Api) -> list[str]:
    conn = await connections.connect(api.settings.dsn)
    try:
        return [f"{each.name} {each.statement}: {each.examples}" for each in await invariants.check(conn)]
    finally:
        await conn.close()
