"""Collections over HTTP: made, changed, listed and deleted, by several clients at once."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest

from fedstac.db import invariants
from fedstac.demo import sample
from tests.support.nodes import Api

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


# --- lists ---


@pytest.fixture
async def seven(api: Api) -> Api:
    """With the collections a … f beside CMIP6."""
    for name in "fbdace":
        assert (await api.admin.post("/collections", json=named(name))).status_code == 201
    return api


def href(answer: httpx.Response, rel: str) -> str | None:
    return next((str(link["href"]) for link in answer.json()["links"] if link["rel"] == rel), None)


async def pages(api: Api, path: str, rel: str) -> list[list[str]]:
    """Return the ids of a page and of those that its links of a relation lead to."""
    found: list[list[str]] = []
    place: str | None = path
    while place is not None:
        answer = await api.anyone.get(place)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["numberMatched"], body["numberReturned"]) == (7, len(body["collections"]))
        assert href(answer, "self") == (place if "://" in place else api.url + place)
        found.append([each["id"] for each in body["collections"]])
        place = href(answer, rel)
    return found


async def test_a_list_of_collections_leads_forwards_and_back(seven: Api) -> None:
    everything = await pages(seven, "/collections", "next")
    assert everything == [["CMIP6", *"abcdef"]]
    assert everything == await pages(seven, "/collections?limit=7", "prev")
    ids = everything[0]
    forwards = await pages(seven, "/collections?limit=3", "next")
    assert forwards == [ids[:3], ids[3:6], ids[6:]]
    last = f"/collections?limit=3&token=next:{ids[5]}"
    assert await pages(seven, last, "prev") == [ids[6:], ids[3:6], ids[:3]]
    assert (await seven.anyone.get("/collections?limit=99999999999999999999")).json()["numberReturned"] == 7


async def test_a_page_of_collections_survives_those_that_come_and_go(seven: Api) -> None:
    first = await seven.anyone.get("/collections?limit=2")
    [_, last] = [each["id"] for each in first.json()["collections"]]
    following = href(first, "next")
    assert following is not None
    assert parse_qs(urlsplit(following).query)["token"] == [f"next:{last}"]
    before = (await seven.anyone.get(following)).json()["collections"]
    assert (await seven.admin.delete(f"/collections/{last}")).status_code == 204
    assert (await seven.anyone.get(following)).json()["collections"] == before
    beyond = (await seven.anyone.get("/collections?token=next:zzz")).json()
    assert (beyond["collections"], beyond["numberMatched"]) == ([], 6)


async def test_a_page_of_collections_has_a_bound_of_bytes(seven: Api) -> None:
    for name in "abc":
        large = named(name, description="x" * 2_000_000)
        assert (await seven.admin.put(f"/collections/{name}", json=large)).status_code == 200
    assert await pages(seven, "/collections", "next") == [["CMIP6", "a", "b", "c"], ["d", "e", "f"]]
    assert await pages(seven, "/collections?token=next:c", "prev") == [["d", "e", "f"], ["a", "b", "c"], ["CMIP6"]]
    assert await pages(seven, "/collections?limit=3", "next") == [["CMIP6", "a", "b"], ["c", "d", "e"], ["f"]]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=-1", "limit=x", "limit=", "limit=1_0", "token=", "token=x", "token=next:", "token=next:a/b"],
)
async def test_a_list_that_cannot_be_is_refused(api: Api, query: str) -> None:
    refused = await api.anyone.get(f"/collections?{query}")
    assert (refused.status_code, refused.json()["code"]) == (400, "bad-request")


async def test_a_collection_always_has_a_title(api: Api) -> None:
    untitled = named("untitled")
    del untitled["title"]
    posted = await api.admin.post("/collections", json=untitled)
    listed = {each["id"]: each for each in (await api.anyone.get("/collections")).json()["collections"]}
    children = {
        link["href"]: link["title"] for link in (await api.anyone.get("/")).json()["links"] if link["rel"] == "child"
    }
    assert posted.json()["title"] == listed["untitled"]["title"] == "untitled"
    assert (await api.anyone.get("/collections/untitled")).json()["title"] == "untitled"
    assert children[f"{api.url}/collections/untitled"] == "untitled"


# --- changes ---

PLACE = "/collections/free"


@pytest.fixture
async def free(api: Api) -> Api:
    posted = await api.admin.post("/collections", json=named("free", keywords=["one"], assets={}))
    assert posted.status_code == 201
    return api


async def traces(api: Api) -> list[tuple[str, str, str]]:
    """Return what was announced of `free`, and what the audit log has of it."""
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        rows = await conn.fetch("SELECT type FROM fedstac.outbox WHERE collection = 'free' ORDER BY id")
        logged = await conn.fetch(
            "SELECT action, outcome, actor FROM fedstac.audit WHERE collection = 'free' ORDER BY id"
        )
        assert await invariants.check(conn) == []
    finally:
        await conn.close()
    assert [row["type"].split(".")[-2] for row in rows] == [f"{row['action']}" for row in logged]
    return [(row["action"], row["outcome"], row["actor"]) for row in logged]


async def test_a_collection_is_patched_in_both_forms_with_event_and_audit_row(free: Api) -> None:
    operations = [{"op": "add", "path": "/keywords/-", "value": "two"}, {"op": "remove", "path": "/assets"}]
    patched = await free.admin.patch(PLACE, json=operations)
    assert (patched.status_code, patched.json()["keywords"]) == (200, ["one", "two"]), patched.text
    merge = {"keywords": None, "title": "Free data", "extent": None, "id": "free"}
    merged = await free.admin.patch(PLACE, json=merge, headers={"Content-Type": "application/merge-patch+json"})
    assert merged.status_code == 200, merged.text
    served = (await free.anyone.get(PLACE)).json()
    assert served == merged.json()
    assert served["title"] == "Free data"
    assert not served.keys() & {"keywords", "assets"}
    assert served["extent"] == sample.collection()["extent"]
    assert [action for action, *_ in await traces(free)] == ["created", "updated", "updated"]


async def test_a_patch_of_a_collection_without_effect_changes_nothing(free: Api) -> None:
    before = await traces(free)
    title = (await free.anyone.get(PLACE)).json()["title"]
    for patch in ({}, [], {"title": title}, [{"op": "replace", "path": "/title", "value": title}]):
        assert (await free.admin.patch(PLACE, json=patch)).status_code == 200
    assert await traces(free) == before


@pytest.mark.parametrize(
    ("patch", "status"),
    [
        ({"id": "other"}, 400), ({"type": "Catalog"}, 400), ({"extent": {"spatial": None}}, 400), ({"links": 5}, 400),
        ([{"op": "remove", "path": "/nothing"}], 400), ([{"op": "remove", "path": "/license"}], 400), (5, 400),
        ([{"op": "replace", "path": "", "value": []}], 400), ({"stac_version": "0.9.0"}, 400),
    ],
)  # fmt: skip
async def test_a_patch_that_leaves_no_such_collection_behind_is_refused(free: Api, patch: Any, status: int) -> None:
    before = (await free.anyone.get(PLACE)).json()
    refused = await free.admin.patch(PLACE, json=patch)
    assert refused.status_code == status, refused.text
    assert (await free.anyone.get(PLACE)).json() == before


async def test_changes_of_collections_take_conditions(free: Api) -> None:
    tag = (await free.anyone.get(PLACE)).headers["etag"]
    assert (await free.anyone.get(PLACE, headers={"If-None-Match": tag})).status_code == 304
    condition = {"If-Match": tag}
    patched = await free.admin.patch(PLACE, json={"title": "one"}, headers=condition)
    assert patched.status_code == 200
    for late in (
        await free.admin.patch(PLACE, json={"title": "two"}, headers=condition),
        await free.admin.put(PLACE, json=named("free", title="two"), headers=condition),
        await free.admin.delete(PLACE, headers=condition),
    ):
        assert (late.status_code, late.json()["code"]) == (412, "precondition-failed")
    now = {"If-Match": patched.headers["etag"]}
    assert (await free.admin.put(PLACE, json=named("free", title="two"), headers=now)).status_code == 200
    assert (await free.admin.delete(PLACE, headers={"If-Match": "*"})).status_code == 204


async def test_a_collection_is_patched_by_whoever_manages_it_only(free: Api) -> None:
    for name, status in (("publisher:NCAR", 403), ("node:east", 403), ("admin", 200)):
        headers = {"Authorization": f"Bearer {free.tokens[name]}"}
        assert (await free.anyone.patch(PLACE, json={"title": "x"}, headers=headers)).status_code == status
    assert (await free.anyone.patch(PLACE, json={"title": "x"})).status_code == 401
    assert (await free.admin.patch("/collections/absent", json={"title": "x"})).status_code == 404
    assert "PATCH" in (await free.admin.options(PLACE)).headers["allow"]


async def test_the_id_of_a_changed_collection_is_that_of_the_url(free: Api) -> None:
    changed = named("free", title="changed")
    del changed["id"]
    assert (await free.admin.put(PLACE, json=changed)).json()["id"] == "free"
    assert (await free.admin.put(PLACE, json=named("other"))).status_code == 400


# --- STAC 1.0.0 ---


async def test_a_collection_of_stac_1_0_is_upgraded_with_warnings(api: Api) -> None:
    old = named("old", stac_version="1.0.0", license="proprietary")
    posted = await api.admin.post("/collections", json=old)
    assert posted.status_code == 201, posted.text
    answer = posted.json()
    assert (answer["stac_version"], answer["license"]) == ("1.1.0", "other")
    warnings = {each["pointer"]: (each["rule"], each["severity"]) for each in answer["fedstac:warnings"]}
    assert warnings == dict.fromkeys(("/stac_version", "/license"), ("stac-version", "warning"))
    served = (await api.anyone.get("/collections/old")).json()
    assert served == {name: member for name, member in answer.items() if name != "fedstac:warnings"}
    put = await api.admin.put("/collections/old", json=old)
    assert (put.status_code, put.headers["etag"]) == (200, posted.headers["etag"])
    assert put.json()["fedstac:warnings"] == answer["fedstac:warnings"]
    patched = await api.admin.patch("/collections/old", json={"stac_version": "1.0.0"})
    assert [each["pointer"] for each in patched.json()["fedstac:warnings"]] == ["/stac_version"]


async def test_warnings_that_are_sent_back_are_not_stored(api: Api) -> None:
    answer = (await api.admin.post("/collections", json=named("old", stac_version="1.0.0"))).json()
    put = await api.admin.put("/collections/old", json=answer)
    assert (put.status_code, "fedstac:warnings" in put.json()) == (200, False)
    assert "fedstac:warnings" not in (await api.anyone.get("/collections/old")).json()
