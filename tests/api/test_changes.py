"""Changes over HTTP: what ESGF's clients send, what may not change, conditions, replicas of several nodes at once."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import asyncpg
import httpx
import jsonschema_rs
import pytest

from fedstac.db import invariants, nodes
from fedstac.demo import sample
from fedstac.settings import folder
from tests.support.documents import written
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
[ITEM] = sample.items(1)
PATH = f"{ITEMS}/{ITEM['id']}"
FILE = next(key for key, asset in ITEM["assets"].items() if "file:checksum" in asset)
RETRACT = [
    {"op": "replace", "path": "/properties/latest", "value": False},
    {"op": "replace", "path": "/properties/retracted", "value": True},
    {"op": "replace", "path": "/assets", "value": {}},
]
FILES = sum("file:checksum" in asset for asset in ITEM["assets"].values())
AGGREGATION = {
    "href": "https://example.org/kerchunk.json", "type": "application/json", "roles": ["reference"],
    "alternate:name": "west.example", "protocol": "kerchunk", "description": "Kerchunk",
    "created": "2024-01-01T00:00:00Z", "updated": "2024-01-01T00:00:00Z",
}  # fmt: skip


def pointer(*steps: str) -> str:
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


@pytest.fixture
async def west(api: Api) -> Api:
    """With one dataset."""
    response = await api.admin.post(ITEMS, json=ITEM)
    assert response.status_code == 201, response.text
    return api


async def patch(api: Api, operations: Any, **headers: str) -> httpx.Response:
    return await api.admin.patch(PATH, json=operations, headers=headers)


async def get(api: Api) -> Json:
    response = await api.anyone.get(PATH)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def announcements(api: Api) -> list[tuple[str, list[str] | None]]:
    """Return the events so far: type and actions."""
    bearer = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    body: list[Json] = []
    async with asyncio.timeout(PATIENCE):
        while not body or len(body) < await written_events(api):
            body = (await api.anyone.get("/events?after=0.0&wait=1", headers=bearer)).json()
    return [
        (event["type"].split(".")[-2], event["data"].get("actions")) for event in body if ".dataset." in event["type"]
    ]


async def written_events(api: Api) -> int:
    conn = await asyncpg.connect(api.settings.dsn)
    count = await conn.fetchval("SELECT count(*) FROM fedstac.outbox")
    await conn.close()
    return int(count)


def conforms(served: Json) -> bool:
    """Return whether a served item is valid by our own extension."""
    schema = json.loads((folder("extensions") / "fedstac" / "v1.0.0" / "schema.json").read_text())
    jsonschema_rs.validate(schema, served)
    return True


async def consistent(api: Api) -> None:
    await announcements(api)
    conn = await asyncpg.connect(api.settings.dsn)
    assert await invariants.check(conn) == []
    await conn.close()


async def test_retracting_as_esgf_does_keeps_every_file_and_reinstating_restores_every_byte(west: Api) -> None:
    before = await get(west)
    response = await patch(west, RETRACT)
    assert response.status_code == 200, response.text
    hidden = await get(west)
    assert (hidden["assets"], hidden["properties"]["retracted"], hidden["properties"]["latest"]) == ({}, True, False)
    again = await patch(west, RETRACT)
    assert again.status_code == 200, again.text
    back = await west.admin.post(f"{PATH}/reinstate")
    assert back.status_code == 200, back.text
    after = await get(west)
    assert written(after) == written(before)
    assert (after["properties"]["retracted"], after["properties"]["latest"]) == (False, True)
    assert [name for name, _ in await announcements(west)] == ["published", "retracted", "reinstated"]
    await consistent(west)


async def test_a_retraction_needs_a_reason_once(west: Api) -> None:
    for silent in ({}, {"data": "keep"}):
        refused = await west.admin.post(f"{PATH}/retract", json=silent)
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (400, "/reason")
    why = {"reason": "wrong units", "replaced_by": "CMIP6.later"}
    assert (await west.admin.post(f"{PATH}/retract", json=why)).status_code == 200
    more = {"errata": "https://errata.esgf.io/1"}
    assert (await west.admin.post(f"{PATH}/retract", json=more)).status_code == 200
    assert (await get(west))["properties"]["fedstac:retraction"] == {**why, **more}
    events = len(await announcements(west))
    assert (await west.admin.post(f"{PATH}/retract", json={})).status_code == 200
    assert (await get(west))["properties"]["fedstac:retraction"] == {**why, **more}
    assert len(await announcements(west)) == events, "a repeat that says nothing new is announced"
    await consistent(west)


async def test_a_retraction_by_patch_has_no_reason_until_one_is_given(west: Api) -> None:
    tried = await west.admin.patch(PATH, json=RETRACT, params={"dry_run": "true"})
    [warning] = tried.json()["findings"]
    assert (warning["rule"], warning["severity"]) == ("retraction", "warning")
    assert (await patch(west, RETRACT)).status_code == 200
    assert (await get(west))["properties"]["fedstac:retraction"] == {}
    assert (await west.admin.post(f"{PATH}/retract", json={"data": "purge"})).status_code == 400
    assert (await west.admin.post(f"{PATH}/retract", json={"reason": "wrong units"})).status_code == 200
    assert (await get(west))["properties"]["fedstac:retraction"] == {"reason": "wrong units"}
    await consistent(west)


async def test_a_replacement_is_checked_and_linked_both_ways(west: Api) -> None:
    other = next(item for item in sample.items(20) if item["properties"]["base_id"] != ITEM["properties"]["base_id"])
    path, retract = f"{ITEMS}/{other['id']}", f"{PATH}/retract"
    why = {"reason": "wrong units", "replaced_by": other["id"]}
    tried = await west.admin.post(retract, json=why, params={"dry_run": "true"})
    [warning] = tried.json()["findings"]
    assert (warning["severity"], warning["pointer"]) == ("warning", "/replaced_by")
    assert f"there is no dataset '{other['id']}'" in warning["message"]
    assert (await west.admin.post(ITEMS, json=other)).status_code == 201
    before = (await west.anyone.get(path)).headers["etag"]
    assert (await west.admin.post(retract, json=why, params={"dry_run": "true"})).json()["findings"] == []
    assert (await west.admin.post(retract, json=why)).status_code == 200

    async def linked(path: str, rel: str) -> list[str]:
        document = (await west.anyone.get(path)).json()
        return [link["href"].rpartition("/")[2] for link in document["links"] if link["rel"] == rel]

    assert await linked(PATH, "replaced_by") == [other["id"]]
    assert await linked(path, "replaces") == [ITEM["id"]]
    changed = await west.anyone.get(path, headers={"If-None-Match": before})
    assert changed.status_code == 200, "the links are other ones, and the ETag is the same"
    edit = {"properties": {"description": "x"}}
    answer = await west.admin.patch(path, json=edit, headers={"If-Match": changed.headers["etag"]})
    assert answer.status_code == 200, answer.text
    assert (await west.admin.post(f"{path}/retract", json={"reason": "wrong units too"})).status_code == 200
    [warning] = (await west.admin.post(retract, json=why, params={"dry_run": "true"})).json()["findings"]
    assert "is retracted too" in warning["message"]
    assert (await west.admin.post(f"{PATH}/reinstate")).status_code == 200
    assert await linked(path, "replaces") == []
    await consistent(west)


async def test_a_retraction_says_why(west: Api) -> None:
    retraction = {"reason": "wrong forcing", "errata": "https://errata.esgf.io/x", "data": "restrict"}
    response = await west.admin.post(f"{PATH}/retract", json=retraction)
    assert response.status_code == 200, response.text
    assert (await get(west))["properties"]["fedstac:retraction"] == retraction
    assert conforms(await get(west))
    refused_bodies: tuple[Any, ...] = (
        {"replaced_by": "a b"},
        {"reason": ""},
        {"data": "burn"},
        {"because": "x"},
        {"errata": "javascript:x"},
        [],
    )
    for wrong in refused_bodies:
        assert (await west.admin.post(f"{PATH}/retract", json=wrong)).status_code == 400
    itself = await west.admin.post(f"{PATH}/retract", json={"replaced_by": ITEM["id"]})
    assert itself.json()["errors"][0]["pointer"] == "/replaced_by"
    number = await west.admin.post(f"{PATH}/retract", json={"reason": 5})
    assert number.json()["errors"][0]["message"] == "`reason` is a text of at most 2000 characters"
    refused = await patch(west, [{"op": "replace", "path": "/properties/cmip6:grid", "value": "x"}])
    assert refused.status_code == 409
    await consistent(west)


async def test_superseding(west: Api) -> None:
    response = await patch(west, [{"op": "replace", "path": "/properties/latest", "value": False}])
    assert response.status_code == 200, response.text
    assert (await get(west))["properties"]["latest"] is False
    again = await patch(west, [{"op": "replace", "path": "/properties/latest", "value": False}])
    assert again.status_code == 200
    assert (await announcements(west))[1:] == [("superseded", ["supersede"])]
    await consistent(west)


async def test_updating_annotating_and_aggregating(west: Api) -> None:
    errata = {"rel": "related", "href": "https://errata.esgf.io/static/1", "title": "Errata issue", "type": "text/html"}
    steps: list[tuple[Any, str]] = [
        ([{"op": "replace", "path": "/properties/cmip6:grid", "value": "another grid"}], "update"),
        ([{"op": "add", "path": "/links/-", "value": errata}], "annotate"),
        ([{"op": "add", "path": "/assets/reference_file", "value": AGGREGATION}], "update"),
        ([{"op": "remove", "path": "/assets/reference_file"}], "update"),
        ({"operations": [{"op": "replace", "path": "/properties/cmip6:grid", "value": "third"}]}, "update"),
        ({"properties": {"cmip6:grid": "merged"}, "id": None, "links": None, "assets": None}, "update"),
    ]
    for body, action in steps:
        response = await patch(west, body)
        assert response.status_code == 200, response.text
        assert action in ((await announcements(west))[-1][1] or ())
    found = await get(west)
    assert found["properties"]["cmip6:grid"] == "merged"
    assert any(link["rel"] == "related" for link in found["links"])
    assert "reference_file" not in found["assets"]
    await consistent(west)


async def replicator(api: Api, node: str) -> httpx.AsyncClient:
    conn = await asyncpg.connect(api.settings.dsn)
    token = await nodes.issue_token(conn, f"operator of {node}", [f"node:{node}"])
    await conn.close()
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=api.url, headers=headers, timeout=PATIENCE, trust_env=False)


def at(node: str) -> Json:
    return {
        "href": f"https://{node}/{FILE}", "alternate:name": node, "type": "application/netcdf", "roles": ["data"],
        "description": "HTTPServer Link", "created": "2024-01-01T00:00:00Z", "updated": "2024-01-01T00:00:00Z",
    }  # fmt: skip


async def test_several_nodes_add_their_replicas_at_once_and_none_is_lost(west: Api) -> None:
    names = [f"node{n}.example" for n in range(6)]
    clients = [await replicator(west, name) for name in names]
    path = pointer("assets", FILE, "alternate")
    responses = await asyncio.gather(*(
        client.patch(PATH, json=[{"op": "add", "path": f"{path}/{name}", "value": at(name)}])
        for client, name in zip(clients, names, strict=True)
    ))  # fmt: skip
    assert {response.status_code for response in responses} == {200}, [response.text for response in responses]
    found = await get(west)
    alternates = found["assets"][FILE]["alternate"]
    assert sorted(alternates) == names
    assert conforms(found)
    assert found["properties"]["fedstac:replicas"] == {
        name: {"complete": FILES == 1, "files": 1, "of": FILES} for name in names
    }
    for entry in alternates.values():
        assert entry["file:checksum"] == ITEM["assets"][FILE]["file:checksum"]
        assert entry["file:size"] == ITEM["assets"][FILE]["file:size"]
    count = len(await announcements(west))
    again = await clients[0].put(f"{PATH}/replicas/{names[0]}", json={FILE: at(names[0])})
    assert again.status_code == 200, again.text
    assert len(await announcements(west)) == count

    stranger = await clients[0].patch(PATH, json=[{"op": "remove", "path": f"{path}/{names[1]}"}])
    assert stranger.status_code == 403
    sneaky = [{"op": "add", "path": f"{path}/{names[0]}", "value": {**at(names[0]), "title": "x"}},
              {"op": "replace", "path": f"{path}/{names[1]}/href", "value": "https://evil.example/x"}]  # fmt: skip
    assert (await clients[0].patch(PATH, json=sneaky)).status_code == 403
    other = {**at(names[0]), "file:checksum": "1220" + "0" * 64}
    assert (await clients[0].put(f"{PATH}/replicas/{names[0]}", json={FILE: other})).status_code == 400
    for client, name in zip(clients[:3], names, strict=False):
        assert (await client.delete(f"{PATH}/replicas/{name}")).status_code == 200
    assert sorted((await get(west))["assets"][FILE]["alternate"]) == names[3:]

    described = copy.deepcopy(ITEM)
    described["properties"]["description"] = "published again"
    assert (await west.admin.post(ITEMS, json=described)).status_code == 200
    assert sorted((await get(west))["assets"][FILE]["alternate"]) == names[3:]
    assert (await west.admin.put(PATH, json=ITEM)).status_code == 200
    assert sorted((await get(west))["assets"][FILE]["alternate"]) == names[3:]
    for client in clients:
        await client.aclose()
    await consistent(west)


async def test_files_never_change_under_a_version_without_an_exemption(west: Api) -> None:
    other = copy.deepcopy(ITEM)
    other["assets"][FILE]["file:checksum"] = "1220" + "a" * 64
    assert (await west.admin.put(PATH, json=other)).status_code == 409
    response = await west.admin.put(PATH, json=other, headers={"Fedstac-Override": "truncated upload"})
    assert response.status_code == 200, response.text
    assert (await announcements(west))[-1][0] == "replaced"
    await consistent(west)


async def test_conditions(west: Api) -> None:
    tag = (await west.anyone.get(PATH)).headers["etag"]
    change = [{"op": "replace", "path": "/properties/cmip6:grid", "value": "one"}]
    assert (await patch(west, change, **{"If-Match": tag})).status_code == 200
    late = [{"op": "replace", "path": "/properties/cmip6:grid", "value": "two"}]
    refused = await patch(west, late, **{"If-Match": tag})
    assert (refused.status_code, refused.json()["code"]) == (412, "precondition-failed")
    assert (await patch(west, late, **{"If-Match": "*"})).status_code == 200
    assert (await patch(west, late, **{"If-Match": '"nonsense"'})).status_code == 412


async def test_a_rehearsal_changes_nothing_however_it_is_spelled(west: Api) -> None:
    before, events = await get(west), await written_events(west)
    change = [{"op": "replace", "path": "/properties/cmip6:grid", "value": "one"}]
    for spelled in ("true", "True", "TRUE"):
        rehearsed = await west.admin.patch(PATH, params={"dry_run": spelled}, json=change)
        assert (rehearsed.status_code, rehearsed.json()["outcome"]) == (200, "updated"), rehearsed.text
    for unclear in ("yes", "1", ""):
        assert (await west.admin.patch(PATH, params={"dry_run": unclear}, json=change)).status_code == 400
    assert (await get(west), await written_events(west)) == (before, events)


async def test_a_marked_dataset_is_hidden_and_cannot_be_changed_until_it_is_unmarked(west: Api) -> None:
    before = await get(west)
    response = await west.admin.delete(PATH)
    assert response.status_code == 200, response.text
    assert (await west.anyone.get(PATH)).status_code == 404
    assert (await west.anyone.get("/search", params={"ids": ITEM["id"]})).json()["features"] == []
    for found in ("/search", "/search?collections=CMIP6", ITEMS):
        assert (await west.anyone.get(found)).json()["numberMatched"] == 0
    assert (await patch(west, [{"op": "add", "path": "/links/-", "value": {}}])).status_code == 409
    await consistent(west)
    assert (await west.admin.delete(PATH)).status_code == 200
    assert (await west.admin.post(f"{PATH}/unmark")).status_code == 200
    after = await get(west)
    assert written(after) == written(before)
    assert after["properties"]["latest"] is True
    await consistent(west)


async def test_what_is_not_there_cannot_be_changed(west: Api) -> None:
    other = f"{ITEMS}/{ITEM['id'][:-8]}20991231"
    for response in (
        await west.admin.patch(other, json=[]), await west.admin.post(f"{other}/retract", json={}),
        await west.admin.delete(other), await west.admin.patch(f"{ITEMS}/x", json=[]),
    ):  # fmt: skip
        assert (response.status_code, response.json()["code"]) == (404, "item-does-not-exist")
    for response in (
        await west.anyone.patch(PATH, content=b"{"), await west.anyone.put(PATH, content=b"{"),
        await west.anyone.put(f"{PATH}/replicas/x", content=b"{"),
        await west.anyone.post(f"{PATH}/retract", content=b"{"),
    ):  # fmt: skip
        assert response.status_code == 401


async def test_a_retracted_newer_version_keeps_an_older_one_from_being_latest(west: Api) -> None:
    newer = copy.deepcopy(ITEM)
    version = ITEM["properties"]["version"]
    text = json.dumps(newer).replace(version, "20991231")
    newer = json.loads(text)
    assert (await west.admin.post(ITEMS, json=newer)).status_code == 201
    linked = {link["rel"]: link["href"].rpartition("/")[2] for link in (await get(west))["links"]}
    assert linked["successor-version"] == linked["latest-version"] == newer["id"]
    assert "predecessor-version" not in linked
    why = {"reason": "wrong units"}
    assert (await west.admin.post(f"{PATH}/retract", json=why)).status_code == 200
    assert (await west.admin.post(f"{ITEMS}/{newer['id']}/retract", json=why)).status_code == 200
    assert (await west.admin.post(f"{PATH}/reinstate")).status_code == 200
    assert (await get(west))["properties"]["latest"] is False
    assert (await west.admin.post(f"{ITEMS}/{newer['id']}/reinstate")).status_code == 200
    assert (await west.anyone.get(f"{ITEMS}/{newer['id']}")).json()["properties"]["latest"] is True
    await consistent(west)


async def test_the_same_body_under_a_key_is_one_request_and_another_is_refused(west: Api) -> None:
    change = [{"op": "replace", "path": "/properties/cmip6:grid", "value": "one"}]
    key = {"Idempotency-Key": '"k-1"', "Prefer": "wait=0"}
    first, *others = await asyncio.gather(*(patch(west, change, **key) for _ in range(8)))
    assert {response.status_code for response in (first, *others)} == {202}
    assert {response.headers["location"] for response in (first, *others)} == {first.headers["location"]}
    assert {response.json()["id"] for response in (first, *others)} == {first.json()["id"]}
    other = [{"op": "replace", "path": "/properties/cmip6:grid", "value": "two"}]
    refused = await patch(west, other, **key)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency-key-reused")
    later = await patch(west, change, **{"Idempotency-Key": '"k-1"'})
    assert later.status_code == 200, later.text
    [made] = sample.items(1, start=5)
    posted = [await west.admin.post(ITEMS, json=made, headers=key) for _ in range(2)]
    assert posted[0].json()["id"] == posted[1].json()["id"] != first.json()["id"]
    conn = await asyncpg.connect(west.settings.dsn)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.request") == 3
    await conn.close()
    for wrong in ("", "x" * 300, "a\tb"):
        assert (await patch(west, change, **{"Idempotency-Key": wrong})).status_code == 400


async def test_if_none_match_publishes_what_is_not_there_and_changes_nothing(west: Api) -> None:
    new = {"If-None-Match": "*"}
    other = list(sample.items(3))[2]
    assert (await west.admin.post(ITEMS, json=other, headers=new)).status_code == 201
    before = await get(west)
    again = await west.admin.post(ITEMS, json=ITEM, headers=new)
    assert (again.status_code, again.json()["code"]) == (412, "precondition-failed")
    assert again.json()["detail"].startswith(f"{ITEM['id']} is there already")
    rehearsed = await west.admin.post(ITEMS, json=ITEM, headers=new, params={"dry_run": "true"})
    assert rehearsed.json()["items"][0]["problem"] == "precondition-failed"
    for method in ("PUT", "PATCH"):
        assert (await west.admin.request(method, PATH, json=ITEM, headers=new)).status_code == 412
    assert (await west.anyone.patch(PATH, json={}, headers=new)).status_code == 401
    assert (await west.admin.put(PATH[:-1] + "9", json=ITEM, headers=new)).status_code == 404
    wrong = await west.admin.post(ITEMS, json=ITEM, headers={"If-None-Match": '"abc"'})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "bad-request")
    assert await get(west) == before


async def test_what_is_new_only_once_is_published_once_of_two_at_the_same_time(west: Api) -> None:
    other = list(sample.items(3))[2]
    answers = await asyncio.gather(*(
        west.admin.post(ITEMS, json={**other, "properties": {**other["properties"], "description": f"{n}"}},
                        headers={"If-None-Match": "*"})
        for n in range(8)
    ))  # fmt: skip
    assert sorted(answer.status_code for answer in answers) == [201, *[412] * 7]


async def test_options_of_collections_tell_who_may_publish_and_manage(west: Api) -> None:
    bearer = {"Authorization": f"Bearer {west.tokens['publisher:NCAR']}"}
    async with (
        await replicator(west, "east.example") as node,
        httpx.AsyncClient(base_url=west.url, headers=bearer, trust_env=False) as ncar,
    ):
        clients = {"anyone": west.anyone, "node": node, "ncar": ncar, "admin": west.admin}
        allowed = {
            path: {
                name: (await client.options(path)).headers["allow"].split(", ")[3:] for name, client in clients.items()
            }
            for path in (ITEMS, "/collections/CMIP6", "/collections")
        }
    nobody: dict[str, list[str]] = {"anyone": [], "node": [], "ncar": [], "admin": []}
    assert allowed == {
        ITEMS: {**nobody, "ncar": ["POST"], "admin": ["POST"]},
        "/collections/CMIP6": {**nobody, "admin": ["PUT", "PATCH", "DELETE"]},
        "/collections": {**nobody, "admin": ["POST"]},
    }
    assert (await west.admin.options("/collections/nothing/items")).status_code == 404
    other = await west.admin.put(ITEMS)
    assert (other.status_code, other.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")


async def test_options_tell_what_the_caller_may_send(west: Api) -> None:
    async with await replicator(west, "east.example") as node:
        allowed = {
            name: (await client.options(PATH)).headers["allow"].split(", ")
            for name, client in (("anyone", west.anyone), ("node", node), ("admin", west.admin))
        }
    read = ["GET", "HEAD", "OPTIONS"]
    assert allowed == {"anyone": read, "node": [*read, "PATCH"], "admin": [*read, "PATCH", "PUT", "DELETE"]}


def what_changes_nothing() -> list[tuple[str, str, Any]]:
    """Return requests that leave the dataset as it is."""
    return [
        ("PATCH", PATH, {}), ("PATCH", PATH, []), ("PATCH", PATH, {"properties": {"retracted": False}}),
        ("PATCH", PATH, {"properties": {"version": ITEM["properties"]["version"]}}), ("PUT", PATH, ITEM),
        ("DELETE", f"{PATH}/replicas/east", None), ("POST", f"{PATH}/reinstate", None),
        ("POST", f"{PATH}/unmark", None),
    ]  # fmt: skip


async def traces(api: Api) -> list[int]:
    """Return how many requests, queued items, events and audited writes there are."""
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        return [
            await conn.fetchval(f"SELECT count(*) FROM fedstac.{table}")
            for table in ("request", "request_item", "outbox", "audit")
        ]
    finally:
        await conn.close()


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_change_that_changes_nothing_is_answered_at_once_and_leaves_no_trace(
    west: Api, asynchronous: bool
) -> None:
    before, headers = await traces(west), {"Prefer": "respond-async, wait=0"} if asynchronous else {}
    for method, path, body in what_changes_nothing():
        answer = await west.admin.request(method, path, json=body, headers=headers)
        assert answer.status_code == 200, (method, path, answer.text)
        assert answer.json()["id"] == ITEM["id"]
    assert await traces(west) == before
    assert (await west.admin.delete(PATH)).status_code == 200
    marked = await traces(west)
    again = await west.admin.delete(PATH)
    assert (again.status_code, again.json()) == (200, {"id": ITEM["id"], "outcome": "identical"})
    assert await traces(west) == marked


async def test_a_change_that_changes_nothing_is_a_success_to_esgfs_publisher(west: Api) -> None:
    """It takes 201 and 202 only, and 200 for a failure: a replica that is added twice would end its run."""
    before, publisher = await traces(west), {"User-Agent": "esgf_publisher/5.5.3"}
    claim = [{"op": "replace", "path": "/properties/latest", "value": True}]
    assert (await west.admin.patch(PATH, json=claim, headers=publisher)).status_code == 202
    assert await traces(west) == before


async def token(api: Api, *roles: str) -> dict[str, str]:
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        return {"Authorization": f"Bearer {await nodes.issue_token(conn, ', '.join(roles), list(roles))}"}
    finally:
        await conn.close()


async def test_whoever_may_change_nothing_is_refused_what_would_change_nothing(west: Api) -> None:
    before = await traces(west)
    for headers in (await token(west, "observer"), await token(west, "publisher:MPI-M")):
        for method, path, body in what_changes_nothing():
            answer = await west.anyone.request(method, path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "missing-permission"), (
                method,
                path,
                answer.text,
            )
    south = {"Authorization": f"Bearer {west.tokens['node:south']}"}
    assert (await west.anyone.delete(f"{PATH}/replicas/east", headers=south)).status_code == 403
    assert (await traces(west))[:3] == before[:3]


async def test_nobody_without_rights_queues_behind_what_is_under_way(start_api: StartApi, dsn: str) -> None:
    api = await start_api(dsn=dsn, background=False, default_wait_seconds=0.0)
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    assert (await api.admin.post(ITEMS, json=ITEM)).status_code == 202
    before, stranger = await traces(api), await token(api, "observer")
    for method, path, body in (*what_changes_nothing(), ("DELETE", PATH, None), ("POST", f"{PATH}/retract", {})):
        answer = await api.anyone.request(method, path, json=body, headers=stranger)
        assert answer.status_code in (403, 404), (method, path, answer.text)
    assert (await traces(api))[:3] == before[:3]
    assert (await api.admin.patch(PATH, json={})).status_code == 202


async def test_what_is_hidden_leaves_no_trace_in_the_entity_tag_of_another_version(west: Api) -> None:
    versions = [dated(day) for day in ("20990101", "20990201", "20990301")]
    for item in versions:
        assert (await west.admin.post(ITEMS, json=item)).status_code == 201
    newest, oldest = (f"{ITEMS}/{item['id']}" for item in (versions[2], versions[0]))
    tag = (await west.anyone.get(newest)).headers["etag"]
    assert (await west.admin.delete(oldest)).status_code == 200
    assert (await west.anyone.get(newest, headers={"If-None-Match": tag})).status_code == 304
    assert (await west.admin.delete(f"{ITEMS}/{versions[1]['id']}")).status_code == 200
    shown = await west.anyone.get(newest, headers={"If-None-Match": tag})
    assert shown.status_code == 200  # its predecessor is another one
    changed = await west.admin.patch(newest, json={"properties": {"description": "x"}}, headers={"If-Match": tag})
    assert changed.status_code == 200  # it is itself as it was


def dated(day: str) -> Json:
    """Return another version of the dataset."""
    return dict(json.loads(json.dumps(ITEM).replace(ITEM["properties"]["version"], day)))
