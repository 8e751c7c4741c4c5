"""kill -9 of a replica node while it copies and announces: P1, P2 and P3 hold, and the source counts the bytes."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from fedstac.demo import sample
from tests.support.byte_server import ByteServer, byte_server, checksum, content
from tests.support.nodes import Api, StartApi
from tests.support.replica_process import ReplicaProcess, replica_process
from tests.support.replica_rows import add_dataset
from tests.support.waiting import until

SEED = int(os.environ.get("FEDSTAC_TEST_SEED") or random.randrange(1_000_000))
BLOCK = 1 << 20  # that a kill may cost
WORKERS = 4


def item(id: str, files: dict[str, str], source: ByteServer) -> dict[str, Any]:
    """Return a dataset without a vocabulary, with files of these names by asset."""
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": id, "collection": "data", "geometry": None, "links": [],
        "stac_extensions": ["https://stac-extensions.github.io/file/v2.1.0/schema.json"],
        "properties": {"datetime": "2026-11-29T00:00:00Z"},
        "assets": {
            asset: {"href": source.url(name), "file:size": len(content(name)), "file:checksum": checksum(name)}
            for asset, name in files.items()
        },
    }  # fmt: skip


async def publish(west: Api, items: list[dict[str, Any]]) -> None:
    assert (await west.admin.post("/collections", json=sample.collection("data"))).status_code == 201
    answer = await west.admin.post("/collections/data/items", json={"type": "FeatureCollection", "features": items})
    assert answer.json()["counts"]["done"] == len(items), answer.text


async def announced(west: Api) -> dict[str, dict[str, str]]:
    """Return what the origin shows of our copies: the addresses by asset, by dataset."""
    answer = await west.anyone.get("/search", params={"collections": "data", "limit": 1000})
    return {
        feature["id"]: {asset: entry["alternate"]["east"]["href"] for asset, entry in feature["assets"].items()}
        for feature in answer.json()["features"]
        if any("east" in asset.get("alternate", {}) for asset in feature["assets"].values())
    }


def whole_files(folder: Path) -> set[str]:
    """Return the names of the files that are there under their final names; each has to be whole (P1)."""
    files = [each for each in folder.rglob("*.bin") if ".fedstac-part" not in each.parts]
    for each in files:
        assert each.stat().st_size == len(content(each.name)), each
        assert each.read_bytes() == content(each.name), each
    return {each.name for each in files}


async def kill_and_restart(
    replica: ReplicaProcess, west: Api, source: ByteServer, folder: Path, datasets: dict[str, dict[str, str]], *,
    kills: int, chance: random.Random,
) -> int:  # fmt: skip
    """Kill the node after so many more bytes or moments each time. Return how many kills hit it at work."""
    total = sum(len(content(name)) for files in datasets.values() for name in files.values())
    hits = 0
    for kill in range(kills):
        replica.start()
        goal = int(total * (kill + chance.random()) / kills)

        async def far_enough() -> bool:
            return source.sent.total() >= goal  # noqa: B023

        await until(far_enough)
        await asyncio.sleep(chance.random() * 0.1)  # also while it settles and announces
        replica.end()
        hits += source.sent.total() < total
        here = whole_files(folder)
        for id, hrefs in (await announced(west)).items():  # P2
            assert hrefs.keys() == datasets[id].keys(), f"kill {kill}"
            assert set(datasets[id].values()) <= here, f"kill {kill}"
    replica.start()
    return hits


async def run(
    make_database: Callable[[], str], start_api: StartApi, folder: Path, *, count: int, sizes: list[int], kills: int
) -> None:
    print("FEDSTAC_TEST_SEED", SEED)
    chance = random.Random(SEED)
    datasets = {
        f"d{n}": {f"f{k}": f"d{n}-{k}-{chance.choice(sizes)}.bin" for k in range(chance.randrange(1, 4))}
        for n in range(count)
    }
    west, dsn = await start_api(dsn=make_database()), make_database()
    async with byte_server() as source:
        source.pause = 0.01
        await publish(west, [item(id, files, source) for id, files in datasets.items()])
        conn = await asyncpg.connect(dsn)
        try:
            for id, files in datasets.items():
                await add_dataset(conn, id, {asset: (source.url(name),) for asset, name in files.items()})
            lanes = [f"127.0.0.1:{source.port}"]
            with replica_process(
                dsn=dsn, folder=folder, lanes=lanes, origin=west.url, token=west.tokens["node:east"],
                block_bytes=BLOCK, workers=WORKERS,
            ) as replica:  # fmt: skip
                hits = await kill_and_restart(replica, west, source, folder, datasets, kills=kills, chance=chance)

                async def all_announced() -> bool:
                    states = await conn.fetch("SELECT DISTINCT state FROM fedstac.replica_dataset")
                    return [row["state"] for row in states] == ["announced"]

                await until(all_announced)
        finally:
            await conn.close()
        names = [name for files in datasets.values() for name in files.values()]
        assert whole_files(folder) == set(names)
        shown = await announced(west)
        assert {id: set(hrefs) for id, hrefs in shown.items()} == {id: set(files) for id, files in datasets.items()}
        again = source.sent.total() - sum(len(content(name)) for name in names)
        print(f"{kills} kills, {hits} at work: {again} bytes fetched again, {len(names)} files")
        assert again <= hits * BLOCK  # P3


async def test_a_node_that_is_killed_goes_on_where_it_was(
    make_database: Callable[[], str], start_api: StartApi, tmp_path: Path
) -> None:
    await run(make_database, start_api, tmp_path, count=10, sizes=[0, 1000, 1_500_000, 4_000_000], kills=4)


@pytest.mark.soak
async def test_50_kills_during_200_transfers(
    make_database: Callable[[], str], start_api: StartApi, tmp_path: Path
) -> None:
    await run(make_database, start_api, tmp_path, count=100, sizes=[1000, 1_500_000, 4_000_000, 12_000_000], kills=50)
