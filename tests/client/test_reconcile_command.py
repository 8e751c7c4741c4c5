"""`fedstac reconcile`: files, GeoParquet and another STAC API state what shall exist; what changes is shown first."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedstac.client import collections_elsewhere
from fedstac.client.documents import ReadyDocument
from fedstac.client.loads import SourceBroken, load_parts
from fedstac.demo import sample
from fedstac.geoparquet import items as geoparquet
from fedstac.geoparquet import reading
from tests.support import loads
from tests.support.commands import Fedstac, to
from tests.support.nodes import Api

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
DATASETS = tuple(sample.items(24))
WAIT = {"Prefer": "wait=60"}


@pytest.fixture
async def west(api: Api) -> Api:
    body = {"type": "FeatureCollection", "features": DATASETS}
    assert (await api.admin.post(ITEMS, json=body, headers=WAIT)).status_code == 200
    return api


async def ids(api: Api) -> set[str]:
    return {each["id"] for each in (await api.anyone.get(f"{ITEMS}?limit=1000&fields=id")).json()["features"]}


def write(path: Path, items: Sequence[Json]) -> str:
    path.write_bytes(loads.lines(items))
    return str(path)


async def test_a_folder_is_looked_at_and_loaded(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    changed = copy.deepcopy(DATASETS[0])
    changed["properties"]["description"] = "better"
    write(folder / "a.ndjson", [changed, *DATASETS[1:10]])
    write(folder / "b.ndjson", DATASETS[11:])
    reconcile = ("reconcile", str(folder), "-c", "CMIP6")
    look = await fedstac(*reconcile, "--dry-run", "-o", "json", **to(west))
    assert look.code == 0, look.stderr
    load = json.loads(look.stdout)
    assert load["changes"] == {"new": 0, "changed": 1, "unchanged": 22, "removed": 1, "held": 0, "invalid": 0}
    people = await fedstac(*reconcile, "--dry-run", **to(west))
    assert "not in the load: cleared" in people.stdout
    assert DATASETS[10]["id"] in people.stdout
    nobody = await fedstac(*reconcile, **to(west))
    assert (nobody.code, "--yes" in nobody.stderr) == (2, True)
    assert len(await ids(west)) == 24
    done = await fedstac("reconcile", "--load", load["id"], "--yes", "-o", "json", **to(west))
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["done"] == 2
    assert await ids(west) == {item["id"] for item in DATASETS} - {DATASETS[10]["id"]}
    again = await fedstac(*reconcile, "--yes", "-o", "json", **to(west))
    assert (again.code, json.loads(again.stdout)["status"]) == (0, "done")


async def test_many_datasets_go_only_with_their_number(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    path = write(tmp_path / "few.ndjson", DATASETS[:4])
    reconcile = ("reconcile", path, "-c", "CMIP6")
    assert "--confirm 20" in (await fedstac(*reconcile, "--yes", **to(west))).stderr
    wrong = await fedstac(*reconcile, "--confirm", "19", **to(west))
    assert (wrong.code, "confirm" in wrong.stderr) == (1, True), wrong
    assert len(await ids(west)) == 24
    assert (await fedstac(*reconcile, "--confirm", "20", **to(west))).code == 0
    assert len(await ids(west)) == 4


async def test_nothing_is_loaded_of_a_source_that_cannot_be_read_whole(
    west: Api, fedstac: Fedstac, tmp_path: Path
) -> None:
    path = tmp_path / "broken.ndjson"
    path.write_bytes(loads.lines(DATASETS[:20]) + b'{"type": "Feature", "id":\n')
    broken = await fedstac("reconcile", str(path), "-c", "CMIP6", "--confirm", "4", **to(west))
    assert broken.code != 0
    assert "broken.ndjson:21" in broken.stderr
    assert len(await ids(west)) == 24


async def test_a_collection_of_another_stac_api_is_the_source(
    west: Api, fedstac: Fedstac, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collections_elsewhere, "PAGE", 7)
    address = f"{west.url}/collections/CMIP6"

    def read() -> list[str]:
        return [each.id for each in collections_elsewhere.read(address, "CMIP6", retries=0)]

    assert sorted(await asyncio.to_thread(read)) == sorted(item["id"] for item in DATASETS)
    same = await fedstac(
        "reconcile", "--from-collection", address, "-c", "CMIP6", "--dry-run", "-o", "json", **to(west)
    )
    assert same.code == 0, same.stderr
    assert json.loads(same.stdout)["changes"]["unchanged"] == 24
    nowhere = await fedstac("reconcile", "--from-collection", f"{west.url}/collections/no", "-c", "CMIP6", **to(west))
    assert nowhere.code == 3


@pytest.mark.parametrize("total", [{"numberMatched": 25}, {"context": {"matched": 25}}])
def test_an_api_that_gives_fewer_items_than_it_says_is_no_source(total: Json) -> None:
    """What it left out would be cleared."""
    page = {"type": "FeatureCollection", "features": DATASETS, "links": [], **total}
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json=page))) as http:
        items = collections_elsewhere.read("https://east.example/collections/CMIP6", "CMIP6", retries=0, http=http)
        with pytest.raises(SourceBroken, match="25 items, and gave 24"):
            list(items)


async def test_geoparquet_is_the_source(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    lines, path = tmp_path / "lines", tmp_path / "all.parquet"
    write(lines, DATASETS)
    geoparquet.write(lines, path)
    assert [item["id"] for item in reading.read(path)] == [item["id"] for item in DATASETS]
    same = await fedstac("reconcile", str(path), "-c", "CMIP6", "--dry-run", "-o", "json", **to(west))
    assert same.code == 0, same.stderr
    assert json.loads(same.stdout)["changes"]["unchanged"] == 24, same.stdout
    path.write_bytes(b"PAR1 is not enough")
    broken = await fedstac("reconcile", str(path), "-c", "CMIP6", "--dry-run", **to(west))
    assert "stac-geoparquet" in broken.stderr


async def test_an_interrupted_load_goes_on_with_what_is_missing(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    path = write(tmp_path / "all.ndjson", DATASETS)
    first = (await loads.state(west.admin, DATASETS[:3], complete="false")).json()
    done = await fedstac("reconcile", path, "--load", first["id"], "--dry-run", "-o", "json", **to(west))
    assert done.code == 0, done.stderr
    load = json.loads(done.stdout)
    assert (load["id"], load["stated"], load["changes"]["unchanged"]) == (first["id"], 24, 24)


async def test_what_is_left_of_an_interrupted_load_is_not_applied(west: Api, fedstac: Fedstac) -> None:
    """It would clear what was not sent: less than a tenth, so that nobody would have to confirm it."""
    load = (await loads.state(west.admin, DATASETS[:23], complete="false")).json()
    result = await fedstac("reconcile", "--load", load["id"], "--yes", **to(west))
    assert (result.code, "not all of the load" in result.stderr) == (2, True), result.stderr
    assert len(await ids(west)) == 24


async def test_a_source_that_changed_during_an_interruption_is_sent_anew(
    west: Api, fedstac: Fedstac, tmp_path: Path
) -> None:
    """Its parts begin elsewhere: what comes in one of them now was in a later one before."""
    load = (await loads.state(west.admin, DATASETS[:3], complete="false")).json()
    put = await west.admin.put(f"/loads/{load['id']}/parts/2", content=loads.lines(DATASETS[3:6]), headers=loads.LINES)
    assert put.status_code == 200, put.text
    path = write(tmp_path / "all.ndjson", DATASETS[1:])
    done = await fedstac("reconcile", path, "--load", load["id"], "--dry-run", "-o", "json", **to(west))
    assert done.code == 0, done.stderr
    changes = json.loads(done.stdout)["changes"]
    assert (changes["unchanged"], changes["removed"]) == (23, 1)


def test_a_part_has_neither_too_many_documents_nor_too_many_bytes() -> None:
    documents = [each for each in loads.ready(DATASETS) if isinstance(each, ReadyDocument)]
    parts = list(load_parts(documents, most=10))
    assert [part.count for part in parts] == [10, 10, 4]
    assert b"\n".join(part.content for part in parts) == b"\n".join(each.text for each in documents)
    assert [part.count for part in load_parts(documents, most_bytes=1)] == [1] * 24


def test_what_is_no_item_ends_the_source() -> None:
    with pytest.raises(SourceBroken, match="would be cleared"):
        list(load_parts(loads.ready([{"type": "Feature"}])))
