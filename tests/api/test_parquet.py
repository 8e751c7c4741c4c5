"""Searches as files in GeoParquet, and snapshots in files over HTTP, read by pyarrow and by another library."""

from __future__ import annotations

import copy
import io
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
import rustac
import shapely

from fedstac import bootstrap
from fedstac.api.http.files import OpenFiles
from fedstac.api.search import parquet
from fedstac.demo import embedded, sample
from fedstac.geoparquet import manifest as manifests
from fedstac.geoparquet.items import Columns, write
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.settings import Settings
from fedstac.workers import snapshot_files, snapshot_loading, snapshots
from tests.support import nodes as running_nodes
from tests.support.databases import databases
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")
Json = dict[str, Any]
ACCEPT = {"Accept": parquet.MEDIA_TYPE}
COUNT = 120


def plain(number: int, **properties: Any) -> Json:
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": f"odd-{number}", "collection": "odd",
        "geometry": {"type": "Point", "coordinates": [number, 1.5]}, "bbox": [number, 1.5, number, 1.5],
        "properties": {"datetime": "2020-01-01T00:00:00Z", **properties}, "links": [], "assets": {},
    }  # fmt: skip


ODD = [
    plain(1, size=1, nested={"a": 1, "b": [1, 2]}, id="not the id"), plain(2, size="large", nested={"a": "text"}),
    plain(3, size=[1, 2], nested={}), plain(4, size=2**40, when="2020-13-45"), plain(5, size=1.5, flag=True),
    plain(6, size=None, flag="yes", when="2021-01-01T00:00:00Z"), plain(7, **{f"p{n}": n for n in range(300)}),
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(cluster: embedded.Cluster, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    folder = tmp_path_factory.mktemp("snapshot")
    with databases(cluster, template) as make:
        settings = Settings(
            dsn=make(), node="west", default_wait_seconds=60, snapshot_folder=str(folder), _env_file=None
        )
        async with running_nodes.running(settings) as api:
            for name in ("CMIP6", "odd"):
                assert (await api.admin.post("/collections", json=sample.collection(name))).status_code == 201
            items = list(sample.items(COUNT, seed=5))
            for name, batch in (("CMIP6", items), ("odd", ODD)):
                answer = await api.admin.post(
                    f"/collections/{name}/items", json={"type": "FeatureCollection", "features": batch}
                )
                assert answer.json()["status"] == "done", answer.text
            for item, verb in ((items[0], "retract"), (items[1], "mark-for-deletion")):
                path = f"/collections/CMIP6/items/{item['id']}"
                if verb == "retract":
                    answer = await api.admin.post(f"{path}/retract", json={"reason": "wrong units"})
                else:
                    answer = await api.admin.delete(path)
                assert answer.status_code in (200, 202, 204), answer.text
            yield api


async def features(api: Api, **body: Any) -> list[Json]:
    found: list[Json] = (await api.anyone.post("/search", json=body)).json()["features"]
    return found


def table_of(answer: httpx.Response) -> list[Json]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == parquet.MEDIA_TYPE
    rows: list[Json] = pq.read_table(io.BytesIO(answer.content)).to_pylist()
    return rows


async def read_back(answer: httpx.Response, folder: Path) -> list[Json]:
    """Return the items of a file as another library reads them."""
    path = folder / "items.parquet"
    path.write_bytes(answer.content)
    collection = await rustac.read(str(path))
    items: list[Json] = list(collection["features"])
    return items


def comparable(item: Json) -> Json:
    """Return an item as a table can give it back: without null, which a table has for what is absent, too."""

    def without_nulls(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without_nulls(each) for name, each in value.items() if each is not None}
        return [without_nulls(each) for each in value] if isinstance(value, list) else value

    made: Json = without_nulls(copy.deepcopy(item))
    for name, value in made["properties"].items():
        if name in ("created", "updated", "datetime", "start_datetime", "end_datetime"):
            made["properties"][name] = datetime.fromisoformat(value)
    made["geometry"] = shapely.from_geojson(orjson.dumps(made["geometry"])).wkt
    made["stac_extensions"] = sorted(made.get("stac_extensions", []))
    made["bbox"] = [float(side) for side in made["bbox"]]
    return made


async def test_a_search_is_a_file_that_another_library_reads_back_as_the_same_items(api: Api, tmp_path: Path) -> None:
    wanted = await features(api, collections=["CMIP6"], limit=1000)
    for answer in (
        await api.anyone.get("/search", params={"collections": "CMIP6", "limit": 1000, "f": "parquet"}),
        await api.anyone.post("/search", json={"collections": ["CMIP6"], "limit": 1000}, headers=ACCEPT),
        await api.anyone.get("/collections/CMIP6/items", params={"limit": 1000}, headers=ACCEPT),
    ):
        rows = table_of(answer)
        assert [row["id"] for row in rows] == [item["id"] for item in wanted]
        assert answer.headers["OGC-NumberReturned"] == answer.headers["OGC-NumberMatched"] == str(len(wanted))
        assert "link" not in answer.headers
    back = {item["id"]: comparable(item) for item in await read_back(answer, tmp_path)}
    for item in wanted:
        assert back[item["id"]] == comparable(item)


async def test_geometry_and_metadata_are_those_of_geoparquet(api: Api) -> None:
    answer = await api.anyone.get("/collections/CMIP6/items", params={"limit": 5, "f": "parquet"})
    table = pq.read_table(io.BytesIO(answer.content))
    geo = orjson.loads(table.schema.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["encoding"] == "WKB"
    [first, *_] = await features(api, collections=["CMIP6"], limit=5)
    row = table.to_pylist()[0]
    assert shapely.from_wkb(row["geometry"]).equals(shapely.from_geojson(orjson.dumps(first["geometry"])))
    assert list(row["bbox"].values()) == first["bbox"]
    assert {name for name, asset in row["assets"].items() if asset} == first["assets"].keys()


async def test_what_is_hidden_or_retracted_is_in_no_file(api: Api) -> None:
    items = list(sample.items(COUNT, seed=5))
    rows = {row["id"]: row for row in table_of(await api.anyone.post(
        "/search", json={"limit": 1000, "retracted": "include"}, headers=ACCEPT
    ))}  # fmt: skip
    assert items[1]["id"] not in rows
    retracted = rows[items[0]["id"]]
    assert retracted["fedstac:state"] == "retracted"
    assert retracted["fedstac:retraction"]["reason"] == "wrong units"
    assert not [asset for asset in retracted["assets"] if asset is not None]
    hrefs = {asset["href"] for asset in items[0]["assets"].values()}
    answer = await api.anyone.post("/search", json={"limit": 1000, "retracted": "only"}, headers=ACCEPT)
    assert not [href for href in hrefs if href.encode() in answer.content]


async def test_a_propertys_odd_types_fail_nobodys_file_and_are_kept_as_json(api: Api) -> None:
    rows = {row["id"]: row for row in table_of(
        await api.anyone.get("/search", params={"collections": "odd", "limit": 100, "f": "parquet"})
    )}  # fmt: skip
    assert len(rows) == len(ODD)
    for item in ODD:
        row, size = rows[item["id"]], item["properties"].get("size")
        assert (orjson.loads(row["size"]) if row["size"] is not None else None) == size
    assert rows["odd-1"]["properties.id"] == "not the id"
    assert [orjson.loads(rows[f"odd-{n}"]["nested"]["a"]) for n in (1, 2)] == [1, "text"]
    assert rows["odd-7"]["p299"] == 299


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
async def test_a_moment_beyond_the_calendar_stays_text(moment: str) -> None:
    columns = Columns()
    columns.add({"properties": {"start_datetime": moment}})
    assert columns.moments == {"start_datetime": False}


async def test_integers_that_no_double_has_are_json_beside_fractions(tmp_path: Path) -> None:
    """Publishing refuses them; what was stored before that may have them."""
    lines, target = tmp_path / "items.ndjson", tmp_path / "items.parquet"
    documents = (plain(1, sum=2**62 + 1, count=2**62 + 1), plain(2, sum=0.5, count=1), plain(3, sum=2, count=None))
    lines.write_bytes(b"".join(orjson.dumps(document) + b"\n" for document in documents))
    assert write(lines, target) == 3
    rows = pq.read_table(target).to_pylist()
    assert [orjson.loads(row["sum"]) for row in rows] == [2**62 + 1, 0.5, 2]
    assert [row["count"] for row in rows] == [2**62 + 1, 1, None]


async def test_a_part_of_what_is_found_says_where_the_rest_is(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "AT_ONCE", 20)
    monkeypatch.setattr(parquet, "MOST_BYTES", 40 * 4000)
    wanted = [item["id"] for item in await features(api, collections=["CMIP6"], limit=1000)]
    found: list[str] = []
    address = f"{api.url}/search?collections=CMIP6&limit=1000&f=parquet"
    for _ in range(20):
        answer = await api.anyone.get(address)
        found += [row["id"] for row in table_of(answer)]
        if "link" not in answer.headers:
            break
        address = answer.headers["link"].partition(">")[0].removeprefix("<")
    assert found == wanted
    answer = await api.anyone.post("/search", json={"collections": ["CMIP6"], "limit": 30}, headers=ACCEPT)
    rest = {"collections": ["CMIP6"], "limit": 1000, "token": answer.headers["X-Next-Token"]}
    both = [
        row["id"] for row in table_of(answer) + table_of(await api.anyone.post("/search", json=rest, headers=ACCEPT))
    ]
    assert both == wanted[: len(both)]
    assert len(both) > 40


async def test_an_empty_search_is_a_file_without_rows_and_another_form_is_refused(api: Api) -> None:
    answer = await api.anyone.get("/search", params={"ids": "absent", "f": "parquet"})
    assert table_of(answer) == []
    assert (await api.anyone.get("/search", params={"f": "xml"})).status_code == 400
    fields = {"collections": "CMIP6", "fields": "id,properties.cmip6:source_id", "f": "parquet"}
    assert {"id", "cmip6:source_id"} <= table_of(await api.anyone.get("/search", params=fields))[0].keys()


async def test_a_file_and_a_page_are_told_apart_and_warn_alike(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    names = " OR ".join(f'"unknown{n}" = 1' for n in range(9))
    query = {"collections": "CMIP6,österreich", "filter": names, "filter-lang": "cql2-text"}
    page = await api.anyone.get("/search", params=query)
    whole = page.json()["fedstac:warnings"]
    for most, count in ((parquet.LONGEST_WARNINGS, 10), (600, 3)):
        monkeypatch.setattr(parquet, "LONGEST_WARNINGS", most)
        file = await api.anyone.get("/search", params=query, headers=ACCEPT)
        assert table_of(file) == []
        for answer in (page, file):
            assert "Accept" in answer.headers.get_list("vary", split_commas=True)
        warnings = orjson.loads(file.headers["fedstac-warnings"])
        assert warnings == whole[: len(warnings)]
        assert len(warnings) == count
        assert len(file.headers["fedstac-warnings"]) <= most
    without = await api.anyone.get("/search", params={"f": "parquet", "limit": 1})
    assert "fedstac-warnings" not in without.headers


# --- snapshots ---


async def test_a_node_starts_from_the_files_that_another_serves(
    api: Api, cluster: embedded.Cluster, template: str, tmp_path: Path
) -> None:
    bearer = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    manifest_address = {"format": "geoparquet"}
    assert (await api.anyone.get("/snapshot", params=manifest_address)).status_code == 401
    assert (await api.anyone.get("/snapshot", params=manifest_address, headers=bearer)).status_code == 404
    with databases(cluster, template) as make:
        async with bootstrap.node(api.settings) as west:
            await snapshots.write(west, Path(api.settings.snapshot_folder))
        manifest = manifests.read((await api.anyone.get("/snapshot", params=manifest_address, headers=bearer)).content)
        part = manifest.parts[-1]
        for each in manifest.parts:
            assert (await api.anyone.get(f"/snapshot/parts/{each.name}", headers=bearer)).status_code == 200
        path = f"/snapshot/parts/{part.name}"
        assert (await api.anyone.get(path)).status_code == 401
        whole = await api.anyone.get(path, headers=bearer)
        assert len(whole.content) == part.size
        assert whole.headers["accept-ranges"] == "bytes"
        rest = await api.anyone.get(path, headers={**bearer, "Range": f"bytes={part.size - 10}-"})
        assert (rest.status_code, rest.content) == (206, whole.content[-10:])
        middle = await api.anyone.get(path, headers={**bearer, "Range": "bytes=5-8", "If-Range": whole.headers["etag"]})
        assert (middle.content, middle.headers["content-range"]) == (whole.content[5:9], f"bytes 5-8/{part.size}")
        head = await api.anyone.head(path, headers={**bearer, "Range": "bytes=5-8"})  # RFC 9110, 14.2: of GET alone
        assert (head.status_code, int(head.headers["content-length"])) == (200, part.size)
        for text in ("bytes=999999999999-", "bytes=8-5", "bytes=a-b", "bytes=0-1,5-6", "lines=1-2"):
            assert (await api.anyone.get(path, headers={**bearer, "Range": text})).content == whole.content
        for name in ("stray.parquet", "stray.ndjson", "stray.cv"):  # that lie beside the parts
            (Path(api.settings.snapshot_folder) / name).write_text("secret")
        for name in (
            "absent.parquet",
            "stray.parquet",
            "stray.ndjson",
            "stray.cv",
            "manifest.json",
            "..%2fmanifest.json",
            ".lock",
            "%2e%2e",
            "writing.json",
        ):
            assert (await api.anyone.get(f"/snapshot/parts/{name}", headers=bearer)).status_code == 404
        source = SourceAddress(api.url, api.tokens["node:east"])
        east = Settings(dsn=make(), node="east", _env_file=None)
        async with bootstrap.node(east) as node:
            async with snapshot_files.open_files(f"{api.url}/snapshot?format=geoparquet", [source]) as files:
                assert await snapshot_loading.load(node, files)
            async with node.pool.acquire() as conn:
                count = await conn.fetchval("SELECT count(*) FROM fedstac.record")
        assert count == COUNT + len(ODD)
        elsewhere = SourceAddress("http://127.0.0.1:9", api.tokens["node:east"])  # its token is not for this server
        async with snapshot_files.open_files(f"{api.url}/snapshot?format=geoparquet", [elsewhere]) as files:
            with pytest.raises(snapshot_files.SnapshotAway, match="401"):
                await files.manifest()


async def test_so_many_files_at_once_and_no_more(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenFiles, "open", lambda places: _refuse(places))
    answer = await api.anyone.get("/search", params={"f": "parquet"})
    assert answer.status_code == 503


def _refuse(places: OpenFiles) -> None:
    full = OpenFiles(0)
    OPEN(full)


OPEN = OpenFiles.open


async def test_no_two_properties_have_one_column(tmp_path: Path) -> None:
    properties = {"datetime": None, "type": "own", "properties.type": "another", "properties.properties.type": "third"}
    item: dict[str, Any] = {
        "type": "Feature",
        "id": "a",
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {},
    }
    lines, target = tmp_path / "lines", tmp_path / "items.parquet"
    lines.write_bytes(orjson.dumps(item) + b"\n")
    write(lines, target)
    [row] = pq.read_table(target).to_pylist()
    assert row["type"] == "Feature"
    names = {"properties." + name: value for name, value in properties.items() if value}
    assert {name: row[name] for name in names} == names
