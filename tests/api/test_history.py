"""The history of a dataset, and how thousands stand: what everybody sees, and what is for those who may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from fedstac.api.search import history
from fedstac.demo import embedded, sample
from tests.support import nodes as running_nodes
from tests.support.clients import newer
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
FIRST, SECOND, THIRD = sample.items(3)
ITEMS = [FIRST, newer(FIRST), SECOND, newer(SECOND), THIRD]
OLD, NEW = ITEMS[0]["id"], ITEMS[1]["id"]
MARKED, KEPT = ITEMS[2]["id"], ITEMS[4]["id"]
PATH = "/collections/CMIP6/items"
WHY = {"reason": "wrong forcing", "errata": "https://errata.esgf.io/1", "replaced_by": NEW}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def west(cluster: embedded.Cluster, template: str) -> AsyncIterator[Api]:
    """A node where a dataset was retracted, reinstated and retracted again, and another one is marked."""
    async with running_nodes.publishing(cluster, template, {"CMIP6": ITEMS}) as api:
        (await api.admin.post(f"{PATH}/{OLD}/retract", json={"reason": "too early"})).raise_for_status()
        (await api.admin.post(f"{PATH}/{OLD}/reinstate")).raise_for_status()
        (await api.admin.post(f"{PATH}/{OLD}/retract", json=WHY)).raise_for_status()
        (await api.admin.delete(f"{PATH}/{MARKED}")).raise_for_status()
        yield api


async def test_a_history_has_versions_and_events(west: Api) -> None:
    answer = await west.anyone.get(f"{PATH}/{OLD}/history")
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "private, no-cache"
    body = answer.json()
    assert [(each["id"], each["state"], each["latest"]) for each in body["versions"]] == [
        (NEW, "published", True), (OLD, "retracted", False),
    ]  # fmt: skip
    assert body["versions"][1]["retraction"] == WHY
    assert {each["origin"] for each in body["versions"]} == {"west"}
    own = [(each["type"], each["state"], each["previous_state"]) for each in body["events"] if each["id"] == OLD]
    assert own[:3] == [
        ("retracted", "retracted", "published"), ("reinstated", "published", "retracted"),
        ("retracted", "retracted", "published"),
    ]  # fmt: skip
    assert own[-1] == ("published", "published", None)
    reasons = [each["retraction"]["reason"] for each in body["events"] if "retraction" in each]
    assert reasons == ["wrong forcing", "too early"]
    assert [each["time"] for each in body["events"]] == sorted((each["time"] for each in body["events"]), reverse=True)
    assert "actor" not in answer.text


async def test_who_did_it_is_for_those_who_could(west: Api) -> None:
    seen = (await west.admin.get(f"{PATH}/{OLD}/history")).json()["events"]
    assert {each["actor"] for each in seen} == {"admin"}
    headers = {"Authorization": f"Bearer {west.tokens['node:east']}"}
    other = (await west.anyone.get(f"{PATH}/{OLD}/history", headers=headers)).json()["events"]
    assert other == [{name: each[name] for name in each if name not in ("actor", "reason")} for each in seen]
    assert any(each["reason"] == f"superseded by {NEW}" for each in seen)


async def test_a_history_has_pages(west: Api) -> None:
    whole = (await west.anyone.get(f"{PATH}/{OLD}/history")).json()["events"]
    found, address = [], f"{west.url}{PATH}/{OLD}/history?limit=2"
    while address:
        page = (await west.anyone.get(address)).json()
        found += page["events"]
        address = next((link["href"] for link in page["links"] if link["rel"] == "next"), "")
    assert found == whole
    for before in ("x", "0" * 32):
        assert (await west.anyone.get(f"{PATH}/{OLD}/history", params={"before": before})).status_code == 400


async def test_a_marked_dataset_is_for_those_who_may_mark_it(west: Api) -> None:
    unknown = await west.anyone.get(f"{PATH}/{MARKED}x/history")
    hidden = await west.anyone.get(f"{PATH}/{MARKED}/history")
    assert (hidden.status_code, unknown.status_code) == (404, 404)
    assert hidden.json()["type"] == unknown.json()["type"]
    seen = (await west.admin.get(f"{PATH}/{MARKED}/history")).json()
    assert seen["events"][0]["type"] == "marked"
    other = ITEMS[3]["id"]  # another version of it
    assert MARKED not in (await west.anyone.get(f"{PATH}/{other}/history")).text
    assert MARKED in (await west.admin.get(f"{PATH}/{other}/history")).text


# --- many


async def status(api: Api, ids: Any, **headers: str) -> httpx.Response:
    return await api.anyone.post("/datasets/status", content=orjson.dumps(ids), headers={
        "Content-Type": "application/json", **headers})  # fmt: skip


@pytest.mark.parametrize("together", [500, 2])
async def test_how_datasets_stand(west: Api, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(history, "TOGETHER", together)
    ids = [OLD, "nothing", MARKED, NEW, KEPT, OLD]
    answer = await status(west, ids)
    entries = answer.json()["datasets"]
    assert [(each["id"], each["state"]) for each in entries] == [
        (OLD, "retracted"), ("nothing", "unknown"), (MARKED, "unknown"), (NEW, "published"), (KEPT, "published"),
        (OLD, "retracted"),
    ]  # fmt: skip
    assert {name: entries[0][name] for name in WHY} == WHY
    assert (entries[0]["latest"], entries[0]["latest_version"]) == (False, NEW)
    assert entries[1].keys() == entries[2].keys() == {"id", "state"}
    assert "latest_version" not in entries[3]
    text = "".join(f'"{id}"\n' for id in ids)
    lines = await west.anyone.post(
        "/datasets/status", content=text, headers={"Content-Type": history.LINES, "Accept": history.LINES}
    )
    assert [orjson.loads(line) for line in lines.text.splitlines()] == entries
    assert (await status(west, {"ids": ids, "collections": ["CMIP6"]})).json()["datasets"] == entries
    elsewhere = (await status(west, {"ids": ids, "collections": ["other"]})).json()["datasets"]
    assert {each["state"] for each in elsewhere} == {"unknown"}
    assert (await status(west, [])).json() == {"datasets": []}


@pytest.mark.parametrize("body", [{}, {"ids": 1}, {"ids": [1]}, "x", 1, None, {"ids": [], "x": 1}, ["a"] * 10_001])
async def test_what_is_no_list_of_ids_is_refused(west: Api, body: Any) -> None:
    assert (await status(west, body)).status_code == 400


async def test_a_reader_who_has_it_is_told_by_its_tag_alone(west: Api) -> None:
    path = f"{PATH}/{KEPT}"
    first = await west.anyone.get(path)
    date = first.headers["last-modified"]
    for headers, code in (
        ({"If-None-Match": first.headers["etag"]}, 304),
        ({"If-Modified-Since": date}, 200),  # states of other versions are in the answer, and have other dates
        ({"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": date, "If-None-Match": '"another"'}, 200),
        ({"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT", "If-None-Match": first.headers["etag"]}, 304),
    ):
        assert (await west.anyone.get(path, headers=headers)).status_code == code, headers
    options = await west.admin.options(path)
    assert "DELETE" in options.headers["allow"]
    assert (await west.anyone.options(path)).headers["allow"] == "GET, HEAD, OPTIONS"
