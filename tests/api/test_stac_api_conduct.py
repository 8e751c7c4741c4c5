"""Conduct that clients of the STAC API Transaction extension rely on, as public test suites of others hold it."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest

from fedstac.demo import sample
from fedstac.domain import validation
from fedstac.vocabularies.checker import stac_schemas
from tests.support.nodes import Api, StartApi

Json = dict[str, Any]
ITEMS = "/collections/free/items"
ITEM: Json = {
    "type": "Feature", "stac_version": "1.1.0", "stac_extensions": [], "id": "swath-1", "collection": "free",
    "geometry": {"type": "Point", "coordinates": [7.5, 51.25]}, "bbox": [7.5, 51.25, 7.5, 51.25],
    "properties": {"datetime": "2020-02-03T04:05:06Z", "eo:cloud_cover": 12.5, "description": "a swath"},
    "links": [], "assets": {"data": {"href": "https://data.example/swath-1.nc", "type": "application/netcdf"}},
}  # fmt: skip


def item(name: str = "swath-1", **members: Any) -> Json:
    return {**copy.deepcopy(ITEM), "id": name, **members}


def less(document: Json, *members: str) -> Json:
    return {name: value for name, value in document.items() if name not in members}


@pytest.fixture
async def free(start_api: StartApi, dsn: str) -> Api:
    """A node with the collection `free`, which has no vocabulary, and one item in it."""
    api = await start_api(dsn=dsn)
    assert (await api.admin.post("/collections", json=sample.collection("free"))).status_code == 201
    assert (await api.admin.post(ITEMS, json=ITEM)).status_code == 201
    return api


# --- what the URL names ---


@pytest.mark.parametrize("partial", [less(item("x"), "collection"), item("x", collection=None)])
async def test_the_collection_of_a_new_item_is_the_one_of_the_url(free: Api, partial: Json) -> None:
    posted = await free.admin.post(ITEMS, json=partial)
    assert posted.status_code == 201, posted.text
    assert posted.json()["collection"] == "free"
    assert (await free.anyone.get(f"{ITEMS}/x")).json()["collection"] == "free"


async def test_so_is_the_collection_of_each_item_of_a_batch(free: Api) -> None:
    features = [less(item("x"), "collection"), item("y"), item("z", collection="other")]
    answer = await free.admin.post(ITEMS, json={"type": "FeatureCollection", "features": features})
    results = (await free.admin.get(f"/requests/{answer.json()['id']}/items")).json()["items"]
    assert [(result["id"], result["status"]) for result in results] == [
        ("x", "done"), ("y", "done"), ("z", "rejected"),
    ]  # fmt: skip
    assert results[2]["findings"][0]["pointer"] == "/collection"


@pytest.mark.parametrize("missing", [("id",), ("collection",), ("id", "collection")])
async def test_the_id_and_the_collection_of_a_changed_item_are_those_of_the_url(
    free: Api, missing: tuple[str, ...]
) -> None:
    changed = item(properties={**ITEM["properties"], "description": "another"})
    put = await free.admin.put(f"{ITEMS}/swath-1", json=less(changed, *missing))
    assert put.status_code == 200, put.text
    served = (await free.anyone.get(f"{ITEMS}/swath-1")).json()
    assert (served["id"], served["collection"], served["properties"]["description"]) == ("swath-1", "free", "another")


@pytest.mark.parametrize("other", [{"id": "swath-2"}, {"collection": "CMIP6"}, {"id": ""}, {"collection": 5}])
async def test_another_id_or_collection_than_the_urls_is_refused(free: Api, other: Json) -> None:
    put = await free.admin.put(f"{ITEMS}/swath-1", json=item(**other))
    assert put.status_code == 400, put.text
    assert {error["pointer"] for error in put.json()["errors"]} == {f"/{name}" for name in other}


# --- ids ---


async def test_a_dataset_that_an_earlier_release_took_under_an_id_with_a_comma_stays_usable(
    free: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, path = item("a,b"), f"{ITEMS}/a%2Cb"
    with monkeypatch.context() as earlier:
        earlier.setattr(validation, "fault_of_new_id", lambda _: None)
        assert (await free.admin.post(ITEMS, json=old)).status_code == 201
    assert (await free.admin.post(ITEMS, json=old)).status_code == 200
    assert (await free.anyone.get(path)).json()["id"] == "a,b"
    for method, route, body in (
        ("PATCH", path, {"properties": {"description": "patched"}}), ("PUT", path, old),
        ("POST", f"{path}/retract", {"reason": "wrong"}), ("POST", f"{path}/reinstate", None), ("DELETE", path, None),
        ("POST", f"{path}/unmark", None),
    ):  # fmt: skip
        answer = await free.admin.request(method, route, json=body)
        assert answer.status_code == 200, (method, route, answer.text)
    assert (await free.admin.post(ITEMS, json=item("c,d"))).status_code == 400


# --- STAC versions ---


async def test_an_item_of_stac_1_0_is_stored_as_one_of_1_1_with_a_warning(free: Api) -> None:
    old = item("old", stac_version="1.0.0", properties={**ITEM["properties"], "license": "proprietary"})
    rehearsed = (await free.admin.post(ITEMS, params={"dry_run": "true"}, json=old)).json()["items"][0]
    assert (rehearsed["outcome"], {each["severity"] for each in rehearsed["findings"]}) == ("new", {"warning"})
    assert [each["pointer"] for each in rehearsed["findings"]] == ["/stac_version", "/properties/license"]
    posted = await free.admin.post(ITEMS, json=old)
    assert posted.status_code == 201, posted.text
    served = (await free.anyone.get(f"{ITEMS}/old")).json()
    assert (served["stac_version"], served["properties"]["license"]) == ("1.1.0", "other")
    [request, *_] = (await free.admin.get("/requests")).json()["requests"]
    results = (await free.admin.get(f"/requests/{request['id']}/items")).json()["items"]
    assert [each["rule"] for each in results[0]["findings"]] == ["stac-version", "stac-version"]
    for again in (await free.admin.post(ITEMS, json=old), await free.admin.put(f"{ITEMS}/old", json=old)):
        assert again.status_code == 200, again.text
    assert (await free.anyone.get(f"{ITEMS}/old")).json() == served


async def test_an_item_of_stac_1_0_may_take_the_place_of_one_that_is_there(free: Api) -> None:
    old = item(stac_version="1.0.0", properties={**ITEM["properties"], "description": "old"})
    path = f"{ITEMS}/swath-1"
    rehearsed = (await free.admin.put(path, params={"dry_run": "true"}, json=old)).json()
    assert (rehearsed["outcome"], [each["rule"] for each in rehearsed["findings"]]) == ("updated", ["stac-version"])
    assert (await free.admin.put(path, json=old)).status_code == 200
    assert (await free.anyone.get(path)).json()["stac_version"] == "1.1.0"


@pytest.mark.parametrize("version", ["0.9.0", "1.0.0-rc.2", "1.0.0-beta.1", "0.6.2", "1.2.0", "2", ""])
async def test_another_stac_version_is_refused_by_its_name(free: Api, version: str) -> None:
    for method, path, body in (
        ("POST", ITEMS, item("x", stac_version=version)), ("PUT", f"{ITEMS}/swath-1", item(stac_version=version)),
        ("PATCH", f"{ITEMS}/swath-1", {"stac_version": version}),
        ("POST", "/collections", {**sample.collection("x"), "stac_version": version}),
    ):  # fmt: skip
        refused = await free.admin.request(method, path, json=body)
        assert refused.status_code == 400, (method, path, refused.text)
        errors = refused.json()["errors"]
        assert [(each["rule"], each["pointer"], each["suggestion"]) for each in errors] == [
            ("stac-version", "/stac_version", "1.1.0")
        ]
        assert f"STAC {version!r} is not taken here" in errors[0]["detail"]


async def test_a_collection_of_stac_1_0_is_stored_as_one_of_1_1(free: Api) -> None:
    uri = "https://stac-extensions.github.io/item-assets/v1.0.0/schema.json"
    old = {**sample.collection("old"), "stac_version": "1.0.0", "license": "various", "stac_extensions": [uri],
           "item_assets": {"data": {"type": "application/netcdf", "roles": ["data"]}}}  # fmt: skip
    assert (await free.admin.post("/collections", json=old)).status_code == 201
    served = (await free.anyone.get("/collections/old")).json()
    assert (served["stac_version"], served["license"], served["stac_extensions"]) == ("1.1.0", "other", [])
    assert served["item_assets"] == old["item_assets"]


# --- a collection's life ---


def linked(document: Json, rel: str) -> str:
    [href] = [link["href"] for link in document["links"] if link["rel"] == rel]
    return str(href)


def less_links(document: Json) -> Json:
    return less(document, "links")


async def test_a_collection_is_created_read_changed_listed_and_deleted(free: Api) -> None:
    license_link = {"rel": "license", "href": "https://data.example/license", "type": "text/html"}
    sent = {**sample.collection("swaths"), "keywords": ["one"], "links": [license_link]}
    posted = await free.admin.post("/collections", json=sent)
    assert posted.status_code == 201
    assert posted.headers["location"] == linked(posted.json(), "self") == f"{free.url}/collections/swaths"
    got = await free.anyone.get("/collections/swaths")
    assert got.json() == posted.json()
    assert less_links(got.json()) == less_links(sent)
    assert license_link in got.json()["links"]
    assert (await free.admin.post("/collections", json=sent)).status_code == 409

    put = await free.admin.put("/collections/swaths", json={**got.json(), "keywords": ["one", "two"]})
    assert (put.status_code, put.json()["keywords"]) == (200, ["one", "two"])
    listed = {each["id"]: each for each in (await free.anyone.get("/collections")).json()["collections"]}
    assert listed["swaths"] == put.json() == (await free.anyone.get("/collections/swaths")).json()
    assert {link["rel"] for link in listed["swaths"]["links"]} >= {"self", "root", "parent", "items", "license"}
    assert "Queryables" in [link.get("title") for link in listed["swaths"]["links"]]
    _, schema = stac_schemas()
    schema.validate(listed["swaths"])

    assert (await free.admin.delete("/collections/swaths")).status_code in (200, 204)
    assert (await free.anyone.get("/collections/swaths")).status_code == 404


async def test_what_is_not_there_is_neither_changed_nor_deleted(free: Api) -> None:
    assert (await free.admin.delete("/collections")).status_code == 405
    for path, body in (("/collections/absent", sample.collection("absent")), (f"{ITEMS}/absent", item("absent"))):
        assert (await free.admin.put(path, json=body)).status_code == 404
        assert (await free.admin.patch(path, json={"title": "x"})).status_code == 404
        assert (await free.admin.delete(path)).status_code == 404
        assert (await free.anyone.get(path)).status_code == 404
    assert (await free.anyone.get("/collections/absent/items")).status_code == 404
    assert (await free.anyone.get("/collections/absent/items/absent")).status_code == 404
    assert (await free.admin.post("/collections/absent/items", json=ITEM)).status_code == 404


async def test_item_assets_of_a_collection_never_change_its_items(free: Api) -> None:
    assets = {"data": {"type": "application/netcdf", "description": "the data", "roles": ["data"]}}
    assert (await free.admin.patch("/collections/free", json={"item_assets": assets})).status_code == 200
    before = (await free.anyone.get(f"{ITEMS}/swath-1")).json()
    assert before["assets"] == ITEM["assets"]
    removed = await free.admin.patch("/collections/free", json=[{"op": "remove", "path": "/item_assets"}])
    assert (removed.status_code, "item_assets" in removed.json()) == (200, False)
    listed = (await free.anyone.get(ITEMS)).json()["features"]
    assert [each["assets"] for each in listed] == [ITEM["assets"]]


# --- an item's life ---


def written(document: Json) -> Json:
    """Return an item as its publisher sent it: without what the server sets."""
    names = ("latest", "retracted", "created", "updated")
    properties = {
        name: value for name, value in document["properties"].items()
        if name not in names and not name.startswith("fedstac:")
    }  # fmt: skip
    extensions = [uri for uri in document["stac_extensions"] if "/extensions/fedstac/" not in uri]
    return {**less_links(document), "properties": properties, "stac_extensions": extensions}


async def test_an_item_is_created_read_changed_and_deleted(free: Api) -> None:
    preview = {"rel": "preview", "href": "https://data.example/preview.html", "type": "text/html"}
    sent = item("swath-2", links=[preview])
    posted = await free.admin.post(ITEMS, json=sent)
    path = f"{ITEMS}/swath-2"
    assert posted.status_code == 201
    assert posted.headers["location"] == linked(posted.json(), "self") == free.url + path
    got = await free.anyone.get(path)
    assert got.headers["content-type"] == "application/geo+json"
    assert got.json() == posted.json()
    assert written(got.json()) == less_links(sent)
    assert preview in got.json()["links"]
    schema, _ = stac_schemas()
    schema.validate(got.json())

    changed = {**got.json(), "properties": {**got.json()["properties"], "description": "changed"}}
    put = await free.admin.put(path, json=changed)  # as it was read, the server's own members too
    assert (put.status_code, put.json()["properties"]["description"]) == (200, "changed")
    partial = {"id": "swath-2", "collection": "free", "properties": {"gsd": 10}}
    merged = await free.admin.patch(path, json=partial)
    assert (merged.status_code, merged.json()["properties"]["gsd"]) == (200, 10)
    operations = [{"op": "replace", "path": "/properties/gsd", "value": 20}]
    patched = await free.admin.patch(path, json=operations)
    assert (patched.status_code, patched.json()["properties"]["gsd"]) == (200, 20)
    assert (await free.anyone.get(path)).json() == patched.json()

    assert (await free.admin.delete(path)).status_code in (200, 202, 204)
    assert (await free.anyone.get(path)).status_code == 404
    assert [each["id"] for each in (await free.anyone.get(ITEMS)).json()["features"]] == ["swath-1"]


@pytest.mark.parametrize(
    "wrong",
    [{"collection": "other"}, {"id": "a/b"}, {"type": "Item"}, {"geometry": 5}, {"assets": []}, {"links": None}],
)
async def test_an_item_that_is_not_valid_is_refused_alone_and_in_a_batch(free: Api, wrong: Json) -> None:
    assert (await free.admin.post(ITEMS, json=item("x", **wrong))).status_code == 400
    batch = {"type": "FeatureCollection", "features": [item(f"x{n}", **wrong) for n in range(3)]}
    assert (await free.admin.post(ITEMS, json=batch)).status_code == 400
    assert (await free.anyone.get(ITEMS)).json()["numberMatched"] == 1


async def test_a_feature_collection_publishes_each_of_its_items(free: Api) -> None:
    items = [less(item(f"x{n}"), "collection") for n in range(5)]
    answer = await free.admin.post(ITEMS, json={"type": "FeatureCollection", "features": items, "links": []})
    assert answer.status_code in (200, 201)
    assert answer.json()["counts"]["done"] == 5
    for each in items:
        assert (await free.anyone.get(f"{ITEMS}/{each['id']}")).json()["collection"] == "free"


@pytest.mark.parametrize(
    "media_type", ["application/json", "application/geo+json", "application/json; charset=utf-8", "Application/JSON"]
)
async def test_an_item_is_json_or_geojson(free: Api, media_type: str) -> None:
    content, headers = orjson.dumps(item("x")), {"Content-Type": media_type}
    assert (await free.admin.post(ITEMS, content=content, headers=headers)).status_code == 201
    assert (await free.admin.put(f"{ITEMS}/x", content=content, headers=headers)).status_code == 200


async def test_the_transaction_extension_is_advertised(free: Api) -> None:
    classes = set((await free.anyone.get("/conformance")).json()["conformsTo"])
    assert classes == set((await free.anyone.get("/")).json()["conformsTo"])
    assert classes >= {
        "https://api.stacspec.org/v1.0.0/ogcapi-features/extensions/transaction",
        "https://api.stacspec.org/v1.0.0/collections/extensions/transaction",
    }
    paths = (await free.anyone.get("/api")).json()["paths"]
    assert set(paths["/collections/{collection_id}"]) >= {"get", "put", "patch", "delete"}
