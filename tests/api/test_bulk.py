"""Changes of many datasets over HTTP: what is shown before, who may, what is done, and how it is followed."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import httpx
import pytest

from fedstac.db import bulks, invariants, nodes
from fedstac.db.bulks import DatasetChoice
from fedstac.demo import sample
from tests.support.nodes import Api, StartApi
from tests.support.waiting import until

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
DATASETS = tuple(sample.items(60))
WAIT = {"Prefer": "wait=60"}
ALL: Json = {"action": "mark", "collections": ["CMIP6"], "reason": "withdrawn"}


@pytest.fixture
async def west(api: Api) -> Api:
    """With some datasets."""
    response = await api.admin.post(ITEMS, json={"type": "FeatureCollection", "features": DATASETS}, headers=WAIT)
    assert response.json()["counts"]["done"] == len(DATASETS), response.text
    return api


async def preview(client: httpx.AsyncClient, wish: Json) -> Json:
    response = await client.post("/bulk/preview", json=wish)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


async def begin(client: httpx.AsyncClient, wish: Json) -> Json:
    """Do what the preview shows."""
    shown = await preview(client, wish)
    response = await client.post("/bulk", json={**wish, "digest": shown["digest"]})
    assert response.status_code == 202, response.text
    started: Json = response.json()
    assert started["total"] == shown["total"]
    return started


async def end_of(client: httpx.AsyncClient, id: str) -> Json:
    async def ended() -> Json | None:
        now: Json = (await client.get(f"/bulk/{id}")).json()
        return now if now["finished"] else None

    now = await until(ended)
    assert now is not None
    return now


async def change(client: httpx.AsyncClient, wish: Json) -> Json:
    return await end_of(client, (await begin(client, wish))["id"])


async def matched(api: Api) -> int:
    return int((await api.anyone.get("/search?collections=CMIP6")).json()["numberMatched"])


async def connect(api: Api) -> asyncpg.Connection:
    return await asyncpg.connect(api.settings.dsn)


async def test_what_was_shown_is_marked_and_the_same_set_is_unmarked(west: Api) -> None:
    before = (await west.anyone.get(f"{ITEMS}?limit=100")).json()["features"]
    shown = await preview(west.admin, ALL)
    assert shown["total"] == shown["states"]["published"] == sum(shown["institutions"].values()) == 60
    assert shown["publishers"] == {"admin": 60}
    assert shown["marked"] == shown["unchanged"] == shown["refused"] == shown["with_replicas"] == 0
    assert shown["with_identifier"] == 60
    assert shown["ids"] == sorted(item["id"] for item in DATASETS)[:10]
    ended = await change(west.admin, ALL)
    assert ended["status"] == "done"
    assert ended["counts"] == {"waiting": 0, "done": 60, "rejected": 0, "failed": 0, "cancelled": 0}
    assert await matched(west) == 0
    conn = await connect(west)
    assert (
        await conn.fetchval("SELECT count(*) FROM fedstac.deletion WHERE state = 'open' AND reason = 'withdrawn'") == 60
    )
    assert await conn.fetchval("SELECT count(*) FROM fedstac.outbox WHERE type LIKE '%.marked.%'") == 60
    assert (
        await conn.fetchval("SELECT count(*) FROM fedstac.audit WHERE action = 'mark' AND request = $1", ended["id"])
        == 60
    )

    wish = {"action": "unmark", "collections": ["CMIP6"]}
    assert (await preview(west.admin, wish))["marked"] == 60
    assert (await change(west.admin, wish))["counts"]["done"] == 60
    after = (await west.anyone.get(f"{ITEMS}?limit=100")).json()["features"]

    def plain(items: list[Json]) -> dict[str, Json]:
        return {item["id"]: {**item, "properties": {**item["properties"], "updated": None}} for item in items}

    assert plain(after) == plain(before)
    assert await invariants.check(conn) == []
    await conn.close()


async def test_memory_and_the_database_choose_the_same(
    west: Api, start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[bool] = []
    selection_sql = bulks._records_of

    def note(choice: DatasetChoice) -> str:
        places.append(choice.numbers is not None)
        return selection_sql(choice)

    monkeypatch.setattr(bulks, "_records_of", note)
    by_database = await start_api(dsn=west.settings.dsn, columns=False, background=False)

    async def is_loaded() -> bool:
        return bool((await west.anyone.get("/healthcheck")).json()["columns"] == "ready")

    await until(is_loaded)
    retracted = DATASETS[0]["id"]
    await west.admin.post(f"{ITEMS}/{retracted}/retract", json={"reason": "wrong"}, headers=WAIT)
    table = DATASETS[0]["properties"]["cmip6:table_id"]
    for wish in (
        ALL,
        {**ALL, "retracted": "include", "filter": f"cmip6:table_id = '{table}'"},
        {**ALL, "filter": "title LIKE '%a%' AND updated > TIMESTAMP('2020-01-01T00:00:00Z')"},
        {"action": "quarantine", "quarantine": {"reason": "look"}, "bbox": [0, 0, 90, 45]},
        {**ALL, "datetime": "1900-01-01T00:00:00Z/1950-01-01T00:00:00Z"},
    ):
        answers = [await preview(each.admin, wish) for each in (west, by_database)]
        digests = [answer.pop("digest").partition(".")[0] for answer in answers]
        assert answers[0] == answers[1]
        assert digests[0] == digests[1]
        assert answers[0]["total"] > 0
    assert set(places) == {True, False}


async def test_a_filter_chooses_what_the_same_search_finds(west: Api) -> None:
    table = DATASETS[0]["properties"]["cmip6:table_id"]
    for filter in (
        f"cmip6:table_id = '{table}'",
        {"op": "=", "args": [{"property": "cmip6:table_id"}, table]},
    ):
        search = {"collections": ["CMIP6"], "filter": filter}
        search |= {"filter-lang": "cql2-text"} if isinstance(filter, str) else {}
        count = (await west.anyone.post("/search", json=search)).json()["numberMatched"]
        assert 0 < count < 60
        assert (await preview(west.admin, {"action": "mark", **search}))["total"] == count
    text = f"cmip6:table_id = '{table}'"
    ended = await change(west.admin, {"action": "quarantine", "quarantine": {"reason": "look"}, "filter": text})
    assert ended["counts"]["done"] == count
    assert await matched(west) == 60 - count
    wish = {"action": "release", "filter": text, "decision": "harmless"}
    assert (await preview(west.admin, wish))["total"] == count
    assert (await change(west.admin, wish))["counts"]["done"] == count
    assert await matched(west) == 60


async def test_only_what_was_shown_is_done(west: Api) -> None:
    shown = await preview(west.admin, ALL)
    changed, marked = (f"{ITEMS}/{item['id']}" for item in DATASETS[:2])
    patched = await west.admin.patch(changed, json={"properties": {"description": "another"}}, headers=WAIT)
    assert patched.status_code == 200, patched.text
    await west.admin.delete(marked, headers=WAIT)
    refused = await west.admin.post("/bulk", json={**ALL, "digest": shown["digest"]})
    assert refused.status_code == 409
    assert refused.json()["type"].endswith("/bulk-changed")
    assert refused.json()["difference"] == {"shown": 60, "now": 59, "changed": 1}
    shown = await preview(west.admin, ALL)
    for other in ({"reason": "another"}, {"action": "unmark", "reason": None}, {"filter": "cmip6:table_id = 'x'"}):
        answer = await west.admin.post("/bulk", json={**ALL, **other, "digest": shown["digest"]})
        assert answer.status_code == 409, answer.text
    for digest in (None, "", "x", shown["digest"][:-1] + "x", 1):
        assert (await west.admin.post("/bulk", json={**ALL, "digest": digest})).status_code == 400
    assert await matched(west) == 59
    assert (await west.admin.get("/bulk")).json()["bulks"] == []


async def test_the_same_request_again_is_the_same_change(west: Api) -> None:
    shown = await preview(west.admin, ALL)
    body = {**ALL, "digest": shown["digest"]}
    first = await west.admin.post("/bulk", json=body)
    await end_of(west.admin, first.json()["id"])
    again = await west.admin.post("/bulk", json=body)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["id"] == first.json()["id"]
    assert first.headers["location"] == f"{west.url}/bulk/{first.json()['id']}"
    assert len((await west.admin.get("/bulk")).json()["bulks"]) == 1


async def test_one_dataset_that_the_caller_may_not_touch_refuses_the_whole(west: Api) -> None:
    institution = DATASETS[0]["properties"]["cmip6:institution_id"]
    conn = await connect(west)
    token = await nodes.issue_token(conn, "anna", [f"publisher:{institution}"])
    await conn.close()
    headers = {"Authorization": f"Bearer {token}"}
    own = [item["id"] for item in DATASETS if item["properties"]["cmip6:institution_id"] == institution]
    others = [item["id"] for item in DATASETS if item["id"] not in own]
    async with httpx.AsyncClient(base_url=west.url, headers=headers, timeout=60, trust_env=False) as anna:
        refused = await anna.post("/bulk/preview", json=ALL)
        assert refused.status_code == 403
        assert any(id in refused.json()["detail"] for id in others)
        shown = await preview(anna, {"action": "mark", "ids": [*own, "nothing"]})
        assert (shown["total"], shown["missing"]) == (len(own), 1)
        assert (await anna.post("/bulk/preview", json={"action": "release", "ids": own})).status_code == 403
        await change(west.admin, {"action": "mark", "ids": others})
        hidden = await preview(anna, {"action": "mark", "ids": [item["id"] for item in DATASETS]})
        assert (hidden["total"], hidden["missing"], hidden["marked"]) == (len(own), len(others), 0)
        assert (await preview(anna, {"action": "unmark", "collections": ["CMIP6"]}))["total"] == 0
        started = await begin(anna, {"action": "mark", "ids": [item["id"] for item in DATASETS]})
        assert (await end_of(anna, started["id"]))["counts"]["done"] == len(own)
        foreign = (await west.admin.get("/bulk")).json()["bulks"]
        assert len(foreign) == 2
        assert len((await anna.get("/bulk")).json()["bulks"]) == 1
        mine = {each["id"] for each in (await anna.get("/bulk")).json()["bulks"]}
        [other] = [each["id"] for each in foreign if each["id"] not in mine]
        for path in (f"/bulk/{other}", f"/bulk/{other}/datasets", "/bulk/nothing"):
            assert (await anna.get(path)).status_code == 404
        assert (await anna.post(f"/bulk/{other}/cancel")).status_code == 404


async def test_who_has_the_right_nowhere_is_refused_before_anything_is_looked_up(west: Api) -> None:
    headers = {"Authorization": f"Bearer {west.tokens['node:east']}"}
    for path in ("/bulk/preview", "/bulk"):
        for choice in ({"ids": ["nothing"]}, {"filter": "no such = filter"}):
            refused = await west.anyone.post(path, json={"action": "mark", **choice}, headers=headers)
            assert refused.status_code == 403, refused.text


async def test_results_come_in_pages_and_by_status(west: Api) -> None:
    ids = [item["id"] for item in DATASETS[:5]]
    await change(west.admin, {"action": "mark", "ids": ids[:2]})
    wish = {"action": "quarantine", "ids": ids, "quarantine": {"reason": "look"}}
    assert (await preview(west.admin, wish))["refused"] == 2
    ended = await change(west.admin, wish)
    assert ended["status"] == "partly"
    assert (ended["counts"]["done"], ended["counts"]["rejected"]) == (3, 2)
    url = f"/bulk/{ended['id']}/datasets"
    rejected = (await west.admin.get(f"{url}?status=rejected")).json()["datasets"]
    assert {each["id"] for each in rejected} == set(ids[:2])
    assert {each["type"] for each in rejected} == {"marked-for-deletion"}
    seen: list[str] = []
    path: str | None = f"{url}?limit=2"
    while path:
        page = (await west.admin.get(path)).json()
        seen += [each["id"] for each in page["datasets"]]
        path = next((link["href"] for link in page["links"] if link["rel"] == "next"), None)
    assert sorted(seen) == sorted(ids)
    assert (await west.admin.post(f"/bulk/{ended['id']}/cancel")).status_code == 409


NOT_UNDERSTOOD: tuple[Json, ...] = (
    {"action": "delete", "collections": ["CMIP6"]},
    {"action": "mark"},
    {"action": "mark", "ids": []},
    {"action": "mark", "ids": ["a"], "filter": "id = 'a'"},
    {"action": "mark", "ids": ["a"], "decision": "no"},
    {"action": "unmark", "ids": ["a"], "reason": "no"},
    {"action": "quarantine", "ids": ["a"]},
    {"action": "unmark", "q": "tas"},
    {"action": "mark", "filter": "id ="},
    {"action": "mark", "collections": ["CMIP6"], "limit": 3},
    {"action": "mark", "collections": ["CMIP6"], "colour": 3},
    {"action": "mark", "filter": f"id = '{'x' * 50_000}'"},  # stored with the change, and shown with each
    {"action": "mark", "ids": ["a"], "collections": [f"{'x' * 500}{n}" for n in range(100)]},
)


async def test_a_wish_that_is_not_understood_is_refused(west: Api) -> None:
    for wish in NOT_UNDERSTOOD:
        answer = await west.admin.post("/bulk/preview", json=wish)
        assert answer.status_code == 400, wish
        assert len(answer.content) < 2_000
    assert (await west.anyone.post("/bulk/preview", json=ALL)).status_code == 401


async def test_a_hundred_thousand_ids_are_one_change(west: Api) -> None:
    """As many ids as there may be, of the usual length; one more is refused."""
    ids = [item["id"] for item in DATASETS]
    padding = [f"CMIP6.CMIP.NCAR.CESM2.historical.r{n}i1p1f1.Amon.tas.gn.v20190401" for n in range(100_000 - len(ids))]
    shown = await preview(west.admin, {"action": "mark", "ids": [*ids, *padding]})
    assert (shown["total"], shown["missing"]) == (len(ids), len(padding))
    refused = await west.admin.post("/bulk/preview", json={"action": "mark", "ids": [*ids, *padding, "another"]})
    assert refused.status_code == 400


async def test_two_at_the_same_moment_are_one_change(west: Api) -> None:
    body = {**ALL, "digest": (await preview(west.admin, ALL))["digest"]}
    answers = await asyncio.gather(*(west.admin.post("/bulk", json=body) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 202]
    assert len({answer.json()["id"] for answer in answers}) == 1
    ended = await end_of(west.admin, answers[0].json()["id"])
    assert ended["counts"]["done"] == 60


async def test_a_cancelled_change_stops_where_it_stands_and_may_be_asked_for_again(west: Api) -> None:
    started = await begin(west.admin, ALL)
    answer = await west.admin.post(f"/bulk/{started['id']}/cancel")
    if answer.status_code == 409:  # a slow machine: all of it was done by then
        assert await matched(west) == 0
        return
    counts = answer.json()["counts"]
    assert answer.json()["status"] == "cancelled"
    assert counts["done"] + counts["cancelled"] == 60
    assert await matched(west) == counts["cancelled"]
    rest = (await west.admin.get(f"/bulk/{started['id']}/datasets?status=cancelled")).json()["datasets"]
    assert len(rest) == counts["cancelled"]
    again = await begin(west.admin, ALL)
    assert again["total"] == counts["cancelled"]
    assert (await end_of(west.admin, again["id"]))["status"] == "done"
    assert await matched(west) == 0
