"""Vocabularies over HTTP: served, judged with, rehearsed; and documents that outlive the terms they were judged by."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson
import pytest

from fedstac.demo import sample
from fedstac.domain.vocabulary import parse
from fedstac.settings import folder
from fedstac.vocabularies import store
from tests.support.nodes import Api, StartApi
from tests.support.vocabulary_versions import NEW, OLD, ONLY_NEW, ONLY_OLD, Json, of_model

ITEMS = "/collections/CMIP6/items"


async def judged(api: Api, item: Json, version: str | None = None) -> Json:
    response = await api.admin.post("/validate", json=item, params={"cv_version": version} if version else None)
    assert response.status_code == 200, response.text
    [verdict] = response.json()["items"]
    return dict(verdict)


def rules_of(answer: Json) -> set[str]:
    return {finding["rule"] for finding in answer.get("errors") or answer.get("findings") or ()}


async def test_versions_are_listed_and_served_byte_for_byte(api: Api) -> None:
    listed = (await api.anyone.get("/vocabularies/CMIP6")).json()["vocabularies"]
    assert [(entry["version"], entry["current"]) for entry in listed] == [(OLD, False), (NEW, True)]
    assert {entry["project"] for entry in (await api.anyone.get("/vocabularies")).json()["vocabularies"]} >= {"CMIP6"}
    for entry in listed:
        response = await api.anyone.get(entry["links"][0]["href"])
        assert hashlib.sha256(response.content).hexdigest() == entry["digest"]
        assert response.content == (folder("cv") / "CMIP6" / f"{entry['version']}.json").read_bytes()
        tag, path = response.headers["etag"], f"/vocabularies/CMIP6/{entry['version']}"
        for tags, status in ((tag, 304), (f'"another", W/{tag}', 304), ("*", 304), ('"another"', 200)):
            assert (await api.anyone.get(path, headers={"If-None-Match": tags})).status_code == status
        assert (await api.anyone.get(entry["links"][1]["href"])).json()["$schema"]
    current = await api.anyone.get("/vocabularies/CMIP6/current")
    assert parse(current.content).version == NEW


async def test_terms_are_served_with_what_is_known_of_them(api: Api) -> None:
    for facet in ("cmip6:source_id", "source_id"):
        body = (await api.anyone.get(f"/vocabularies/CMIP6/{NEW}/terms/{facet}")).json()
        assert body["terms"]["IPSL-CM6A-LR"]["institution_id"] == ["IPSL"]
    assert (await api.anyone.get(f"/vocabularies/CMIP6/{NEW}/terms/cmip6:pid")).json()["pattern"].startswith("^hdl:")


@pytest.mark.parametrize(
    "path",
    ["/vocabularies/NOPE", f"/vocabularies/NOPE/{NEW}", "/vocabularies/CMIP6/1.0", "/vocabularies/CMIP6/..%2F..%2Fx",
     f"/vocabularies/CMIP6/{NEW}/terms/nope", "/extensions/nope/1/schema.json", "/extensions/CMIP6/1/schema.json",
     "/extensions/..%2Fcv/CMIP6/schema.json"],
)  # fmt: skip
async def test_what_is_not_here_is_not_found(api: Api, path: str) -> None:
    response = await api.anyone.get(path)
    assert response.status_code == 404, response.text
    assert response.json()["detail"]


async def test_our_extension_is_served_where_items_say_it_is(api: Api) -> None:
    [item] = sample.items(1)
    assert (await api.admin.post(ITEMS, json=item)).status_code == 201
    served = (await api.anyone.get(f"{ITEMS}/{item['id']}")).json()
    assert served["properties"]["fedstac:cv_version"] == NEW
    uri = served["stac_extensions"][-1]
    assert uri == f"{api.url}/extensions/fedstac/v1.0.0/schema.json"
    assert (await api.anyone.get(uri)).json()["$schema"]
    again = await api.admin.post(ITEMS, json=served)
    assert again.status_code == 200, again.text
    assert "fedstac:" not in orjson.dumps(sample_of(api, served)).decode()


def sample_of(api: Api, served: Json) -> Json:
    """Return what a client would write of what it read."""
    kept = {name: value for name, value in served["properties"].items() if not name.startswith("fedstac:")}
    return {**served, "properties": kept, "stac_extensions": [u for u in served["stac_extensions"] if api.url not in u]}


async def test_validate_tells_all_findings_and_stores_nothing(api: Api) -> None:
    good, other = sample.items(2)
    bad = copy.deepcopy(other)
    bad["properties"] |= {"cmip6:experiment_id": "historcal", "size": "much"}
    body = {"type": "FeatureCollection", "features": [good, bad]}
    answer = (await api.admin.post("/validate", json=body)).json()
    assert [item["valid"] for item in answer["items"]] == [True, False]
    assert not answer["valid"]
    assert rules_of(answer["items"][1]) == {"term", "type"}  # the id differs too, which follows from the term
    [term] = [finding for finding in answer["items"][1]["findings"] if finding["rule"] == "term"]
    assert term["suggestion"] == "historical"
    assert (await api.anyone.get(f"{ITEMS}/{good['id']}")).status_code == 404
    assert (await api.anyone.post("/validate", json=good)).status_code == 401


@pytest.mark.parametrize(("pair", "valid_in"), [(ONLY_OLD, OLD), (ONLY_NEW, NEW)])
async def test_an_item_is_judged_by_the_version_that_is_asked_for(
    api: Api, pair: tuple[str, str], valid_in: str
) -> None:
    item = of_model(pair)
    verdicts = {version: await judged(api, item, version) for version in (OLD, NEW)}
    assert {version: verdict["valid"] for version, verdict in verdicts.items()} == {
        version: version == valid_in for version in (OLD, NEW)
    }
    assert [verdict["cv_version"] for verdict in verdicts.values()] == [OLD, NEW]
    assert (await judged(api, item))["valid"] is (valid_in == NEW)
    response = await api.admin.post("/validate", json=item, params={"cv_version": "1.1"})
    assert response.status_code == 404


async def test_a_rehearsal_says_what_would_become_of_each_and_leaves_nothing(api: Api, dsn: str) -> None:
    published, new = sample.items(2)
    assert (await api.admin.post(ITEMS, json=published)).status_code == 201
    before = await counts(dsn)
    bad = {**new, "id": "x"}
    changed = copy.deepcopy(published)
    changed["properties"]["description"] = "other"
    body = {"type": "FeatureCollection", "features": [published, changed, new, bad]}
    response = await api.admin.post(ITEMS, params={"dry_run": "true"}, json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [item["outcome"] for item in answer["items"]] == ["identical", "updated", "new", "rejected"]
    assert (answer["dry_run"], answer["valid"], answer["cv_version"]) == (True, False, NEW)
    assert "id-template" in rules_of(answer["items"][3])
    assert await counts(dsn) == before
    assert (await api.admin.post(ITEMS, params={"dry_run": "maybe"}, json=published)).status_code == 400


async def counts(dsn: str) -> list[int]:
    conn = await asyncpg.connect(dsn)
    tables = ("record", "lineage", "outbox", "request", "request_item", "audit")
    found = [await conn.fetchval(f"SELECT count(*) FROM fedstac.{table}") for table in tables]
    await conn.close()
    return found


# --- the version moves on ---


async def test_old_datasets_do_not_freeze_when_terms_move(dsn: str, start_api: StartApi) -> None:
    item = of_model(ONLY_OLD)
    before = await start_api(dsn=dsn, cv_pins={"CMIP6": OLD})
    assert (await before.admin.post("/collections", json=sample.collection())).status_code == 201
    assert (await before.admin.post(ITEMS, json=item)).status_code == 201
    now = await start_api(dsn=dsn)
    assert (await now.admin.post(ITEMS, json=item)).status_code == 200

    described = copy.deepcopy(item)
    described["properties"]["description"] = "with errata"
    response = await now.admin.post(ITEMS, json=described)
    assert response.status_code == 200, response.text
    assert response.json()["properties"]["description"] == "with errata"
    assert await excused(dsn) == [["term", "/properties/cmip6:source_id"]]

    worse = copy.deepcopy(described)
    worse["properties"]["cmip6:nominal_resolution"] = "3 km"
    refused = await now.admin.post(ITEMS, json=worse)
    assert refused.status_code == 400
    severities = {finding["pointer"]: finding["severity"] for finding in refused.json()["errors"]}
    assert severities["/properties/cmip6:source_id"] == "warning"
    assert severities["/properties/cmip6:nominal_resolution"] == "error"

    version = json.loads(json.dumps(item).replace(item["properties"]["version"], "20991231"))
    assert (await now.admin.post(ITEMS, json=version)).status_code == 400


async def excused(dsn: str) -> Any:
    conn = await asyncpg.connect(dsn)
    found = await conn.fetchval("SELECT cv_excused FROM fedstac.record")
    await conn.close()
    return json.loads(found)


async def test_a_vocabulary_is_installed_while_the_node_serves(dsn: str, start_api: StartApi, tmp_path: Path) -> None:
    old = folder("cv") / "CMIP6" / f"{OLD}.json"
    (tmp_path / "CMIP6").mkdir()
    (tmp_path / "CMIP6" / old.name).write_bytes(old.read_bytes())
    api = await start_api(dsn=dsn, cv_folder=str(tmp_path))
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    item = of_model(ONLY_NEW)
    assert rules_of((await api.admin.post(ITEMS, json=item)).json()) >= {"term"}
    conn = await asyncpg.connect(dsn)
    await store.install(conn, (folder("cv") / "CMIP6" / f"{NEW}.json").read_bytes(), "test")
    await conn.close()
    assert (await judged(api, item, NEW))["valid"]  # whoever asks for it looks at once; the others within seconds
    response = await api.admin.post(ITEMS, json=item)
    assert response.status_code == 201, response.text
    assert response.json()["properties"]["fedstac:cv_version"] == NEW


async def test_a_version_of_other_content_is_not_taken_up(dsn: str, start_api: StartApi) -> None:
    conn = await asyncpg.connect(dsn)
    raw = (folder("cv") / "CMIP6" / f"{NEW}.json").read_bytes().replace(b'"title":"CMIP6"', b'"title":"CMIP7"', 1)
    await store.install(conn, raw, "somebody")
    await conn.close()
    api = await start_api(dsn=dsn)
    served: httpx.Response = await api.anyone.get(f"/vocabularies/CMIP6/{NEW}")
    assert served.content == (folder("cv") / "CMIP6" / f"{NEW}.json").read_bytes()


async def kept(dsn: str) -> list[tuple[str, ...]]:
    conn = await asyncpg.connect(dsn)
    found = await conn.fetch("SELECT project, version, source FROM fedstac.vocabulary ORDER BY 1, 2")
    await conn.close()
    return [tuple(row) for row in found]


async def test_a_version_that_judged_here_stays_when_its_file_is_gone(
    dsn: str, start_api: StartApi, tmp_path: Path
) -> None:
    item, other = of_model(ONLY_OLD), of_model(ONLY_NEW)
    before = await start_api(dsn=dsn, cv_pins={"CMIP6": OLD})
    assert (await before.admin.post("/collections", json=sample.collection())).status_code == 201
    assert (await before.admin.post("/validate", json=item)).json()["valid"]
    assert (await before.admin.post(ITEMS, json=item, params={"dry_run": "true"})).json()["valid"]
    assert await kept(dsn) == []  # nothing is stored that was judged with it
    assert (await before.admin.post(ITEMS, json=item)).status_code == 201
    assert await kept(dsn) == [("CMIP6", OLD, "west")]

    (tmp_path / "CMIP6").mkdir()
    (tmp_path / "CMIP6" / f"{NEW}.json").write_bytes((folder("cv") / "CMIP6" / f"{NEW}.json").read_bytes())
    after = await start_api(dsn=dsn, cv_folder=str(tmp_path))
    served = await after.anyone.get(f"/vocabularies/CMIP6/{OLD}")
    assert served.content == (folder("cv") / "CMIP6" / f"{OLD}.json").read_bytes()
    patched = await after.admin.patch(f"{ITEMS}/{item['id']}", json={"properties": {"retracted": True}})
    assert patched.status_code == 200, patched.text
    assert patched.json()["properties"]["fedstac:cv_version"] == OLD
    assert await kept(dsn) == [("CMIP6", OLD, "west"), ("CMIP6", NEW, "west")]
    assert (await after.admin.post(ITEMS, json=other)).status_code == 201


async def test_two_contents_never_judge_as_one_version(dsn: str, start_api: StartApi) -> None:
    api = await start_api(dsn=dsn)
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    conn = await asyncpg.connect(dsn)
    raw = (folder("cv") / "CMIP6" / f"{NEW}.json").read_bytes().replace(b'"title":"CMIP6"', b'"title":"CMIP7"', 1)
    await store.install(conn, raw, "west")  # as another process of the node, with other files
    [item] = sample.items(1)
    response = await api.admin.post(ITEMS, json=item)
    assert response.status_code == 500
    assert await conn.fetchval("SELECT count(*) FROM fedstac.request") == 0
    await conn.close()


# --- what ESGF's present services accept (esgf-wire, last section) ---

FAULTS: dict[str, tuple[Json, str]] = {
    "a source that is not registered": ({"cmip6:source_id": "NOPE"}, "term"),
    "an id that its properties contradict": ({"cmip6:grid_label": "gr9"}, "id-agrees-with-properties"),
    "a source of another institution": ({"cmip6:institution_id": "DKRZ"}, "source-institution"),
    "a variable that is not in its table": ({"cmip6:table_id": "fx"}, "table-variable"),
    "an activity that the source is not in": ({"cmip6:activity_id": ["VolMIP"]}, "source-activity"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_the_present_services_accept_is_refused(api: Api, fault: str) -> None:
    properties, rule = FAULTS[fault]
    [item] = sample.items(1)
    wrong = {**item, "properties": {**item["properties"], **properties}}
    response = await api.admin.post(ITEMS, json=wrong)
    assert response.status_code == 400
    assert rule in rules_of(response.json())


async def test_a_checksum_that_is_none_is_refused(api: Api) -> None:
    [item] = sample.items(1)
    wrong = json.loads(json.dumps(item))
    next(asset for asset in wrong["assets"].values() if "file:checksum" in asset)["file:checksum"] = "abcd"
    response = await api.admin.post(ITEMS, json=wrong)
    assert response.status_code == 400
    assert "checksum" in rules_of(response.json())


async def test_the_same_post_again_changes_nothing_and_every_202_can_be_followed(api: Api) -> None:
    [item] = sample.items(1)
    for outcome in ("new", "identical"):
        accepted = await api.admin.post(ITEMS, json=item, headers={"Prefer": "wait=0"})
        assert accepted.status_code == 202
        request = await api.admin.get(accepted.headers["location"], headers={"Prefer": "wait=10"})
        while request.json()["status"] not in ("done", "rejected"):
            request = await api.admin.get(accepted.headers["location"])
        assert request.json()["outcomes"] == {outcome: 1}
        assert request.json()["cv_version"] == NEW
