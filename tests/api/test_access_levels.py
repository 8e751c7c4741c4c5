"""Controlled and private datasets over HTTP: who sees them, who gets their files, and how a level changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import asyncpg
import httpx
import pytest
import pytest_asyncio

from fedstac.db import invariants, nodes
from fedstac.demo import embedded, sample
from tests.support import nodes as running_nodes
from tests.support.clients import newer
from tests.support.nodes import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
PATH = "/collections/CMIP6/items"
FULL = {"access": "full"}
ITEMS = list(sample.items(8))


def at_level(item: Json, level: str) -> Json:
    return {**item, "properties": {**item["properties"], "fedstac:access": level}}


CONTROLLED, PRIVATE, LATER = ITEMS[0], ITEMS[1], newer(ITEMS[2])
ASSETS = list(CONTROLLED["assets"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def west(cluster: embedded.Cluster, template: str) -> AsyncIterator[Api]:
    items = [at_level(CONTROLLED, "controlled"), at_level(PRIVATE, "private"), *ITEMS[2:]]
    async with running_nodes.publishing(cluster, template, {"CMIP6": items}) as api:
        yield api


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def conn(west: Api) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(west.settings.dsn)
    yield connection
    await connection.close()


async def holder(conn: asyncpg.Connection[Any], item: Json, name: str) -> dict[str, str]:
    """Return the headers of somebody who has a grant for a dataset."""
    now = datetime.now(UTC)
    await conn.execute(
        """INSERT INTO fedstac.access_grant (id, subject, collection, scope, target, valid_from, valid_until, given_at,
                                             given_by) VALUES ($1, $2, 'CMIP6', 'dataset', $3, $4, $5, $4, 'admin')""",
        uuid4(), name, item["id"], now - timedelta(hours=1), now + timedelta(hours=1),
    )  # fmt: skip
    return {"Authorization": f"Bearer {await nodes.issue_token(conn, name, ['member'])}"}


def of_role(west: Api, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {west.tokens[role]}"}


def assets_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["assets"])


async def found_ids(west: Api, **conditions: Any) -> set[str]:
    answer = await west.anyone.post("/search", json={"limit": 100, **conditions})
    page = answer.json()
    found = {each["id"] for each in page["features"]}
    assert page["numberMatched"] == len(found), answer.text
    return found


async def test_a_controlled_dataset_is_there_for_everybody_without_its_files(west: Api) -> None:
    item = await west.anyone.get(f"{PATH}/{CONTROLLED['id']}")
    assert assets_of(item) == []
    assert item.json()["properties"]["fedstac:access"] == "controlled"
    assert CONTROLLED["id"] in await found_ids(west)
    assert await found_ids(west, filter={"op": "=", "args": [{"property": "fedstac:access"}, "controlled"]}) == {
        CONTROLLED["id"]
    }
    href = CONTROLLED["assets"][ASSETS[0]]["href"]
    for path in (f"{PATH}?limit=100", "/search?limit=100", f"{PATH}/{CONTROLLED['id']}/history"):
        assert href not in (await west.anyone.get(path)).text
    assert (await west.anyone.get(f"{PATH}/{CONTROLLED['id']}", params=FULL)).status_code == 401


async def test_no_link_or_property_leads_to_the_files_of_a_controlled_dataset(west: Api) -> None:
    """Nor of one that is retracted: what has no files for a reader has no address of them."""
    place = "https://secret.example/files"
    item = newer(ITEMS[3], "20650101")
    item["links"] += [{"rel": rel, "href": f"{place}/{rel}"} for rel in ("enclosure", "data", "item", "via")]
    item["links"].append({"rel": "about", "href": "https://about.example", "alternate": {"east": {"href": place}}})
    item["links"].append({"rel": "license", "href": "https://licence.example"})
    item["properties"]["alternate"] = {"east": {"href": place}}
    path = f"{PATH}/{item['id']}"
    assert (await west.admin.post(PATH, json=item)).status_code == 201
    assert place in (await west.anyone.get(path)).text

    async def require_no_place() -> None:
        for way in (
            path,
            f"{PATH}?limit=100&retracted=include",
            f"/search?ids={item['id']}&retracted=include",
            f"{path}/history",
        ):
            answer = await west.anyone.get(way)
            assert item["id"] in answer.text
            assert place not in answer.text, way
        changes = await west.anyone.get("/changes?since=start&limit=1000")
        assert item["id"] in changes.text
        assert place not in changes.text, "also in the events of the time when it was open"
        assert "https://licence.example" in (await west.anyone.get(path)).text
        assert place in (await west.admin.get(path, params=FULL)).text

    change = {"properties": {"fedstac:access": "controlled"}}
    assert (await west.admin.patch(path, json=change)).status_code == 200
    await require_no_place()
    opened = {"properties": {"fedstac:access": "open", "retracted": True}}
    assert (await west.admin.patch(path, json=opened)).status_code == 200
    await require_no_place()


async def test_files_are_for_publishers_nodes_and_holders_of_a_grant(west: Api, conn: asyncpg.Connection[Any]) -> None:
    path = f"{PATH}/{CONTROLLED['id']}"
    institution = CONTROLLED["properties"]["cmip6:institution_id"]
    publisher = {"Authorization": f"Bearer {await nodes.issue_token(conn, 'hers', [f'publisher:{institution}'])}"}
    member = await holder(conn, CONTROLLED, "member-1")
    for headers in (publisher, of_role(west, "node:east"), member):
        answer = await west.anyone.get(path, params=FULL, headers=headers)
        assert assets_of(answer) == ASSETS
        assert answer.headers["cache-control"] == "private, no-cache"
        assert answer.headers["vary"].startswith("Auth")
        page = await west.anyone.get("/search", params={"ids": CONTROLLED["id"], **FULL}, headers=headers)
        assert list(page.json()["features"][0]["assets"]) == ASSETS
        assert assets_of(await west.anyone.get(path, headers=headers)) == []
    assert institution != "NCAR"
    assert assets_of(await west.anyone.get(path, params=FULL, headers=of_role(west, "publisher:NCAR"))) == []
    other = await holder(conn, ITEMS[3], "member-2")
    assert assets_of(await west.anyone.get(path, params=FULL, headers=other)) == []


async def test_a_private_dataset_is_nowhere_but_for_those_who_may_read_it(
    west: Api, conn: asyncpg.Connection[Any]
) -> None:
    path, never = f"{PATH}/{PRIVATE['id']}", f"{PATH}/{PRIVATE['id'][:-1]}9"
    stranger = of_role(west, "publisher:NCAR")
    for way in ("", "?access=full", "?deleted=include", "/history"):
        for headers in ({}, stranger, {"Authorization": "Bearer wrong"} if way == "?access=full" else {}):
            one, other = [await west.anyone.get(each + way, headers=headers) for each in (path, never)]
            assert (one.status_code, one.json()["title"]) == (other.status_code, other.json()["title"]), way
    assert PRIVATE["id"] not in await found_ids(west, retracted="include")
    member = await holder(conn, PRIVATE, "member-3")
    assert (await west.anyone.get(path, headers=member)).status_code == 404
    shown = await west.anyone.get(path, params=FULL, headers=member)
    assert assets_of(shown) == list(PRIVATE["assets"])
    assert shown.json()["properties"]["latest"] is False
    assert (await west.anyone.get(f"{path}/history", headers=member)).status_code == 200
    assert (await west.anyone.get(path, params=FULL, headers=of_role(west, "node:east"))).status_code == 200


async def test_a_list_has_the_private_datasets_that_one_has_a_right_to(
    west: Api, conn: asyncpg.Connection[Any]
) -> None:
    """By a role, by an institution's, by a grant of a dataset, a lineage or a project; nobody else learns of any."""
    versions = [newer(ITEMS[4], f"208{n}0101") for n in range(4)]
    for item in versions:
        assert (await west.admin.post(PATH, json=at_level(item, "private"))).status_code == 201
    every = {each["id"] for each in versions} | {PRIVATE["id"]}
    lineage = await conn.fetchval("SELECT lineage FROM fedstac.record WHERE id = $1", versions[0]["id"])

    async def found(headers: dict[str, str], **query: str) -> list[str]:
        ids, path = [], "/private?" + urlencode({"limit": "2", **query})
        while path:
            answer = await west.anyone.get(path, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.headers["cache-control"] == "private, no-cache"
            ids += [each["id"] for each in answer.json()["datasets"]]
            path = next((each["href"] for each in answer.json()["links"] if each["rel"] == "next"), "")
        return ids

    async def granted(name: str, scope: str, target: str) -> dict[str, str]:
        headers = await holder(conn, PRIVATE, name)
        await conn.execute(
            "UPDATE fedstac.access_grant SET scope = $2, target = $3 WHERE subject = $1", name, scope, target
        )
        return headers

    admin = of_role(west, "admin")
    listed = await found(admin)
    assert listed == sorted(listed)
    assert every <= set(listed)
    assert await found(of_role(west, "node:east"), collection="CMIP6") == listed
    assert await found(await granted("of-dataset", "dataset", PRIVATE["id"])) == [PRIVATE["id"]]
    by_lineage = await found(await granted("of-lineage", "lineage", lineage))
    assert by_lineage == [id for id in listed if id.rpartition(".v")[0] == ITEMS[4]["id"].rpartition(".v")[0]]
    assert await found(await granted("of-project", "project", "")) == listed
    institution = ITEMS[4]["properties"]["cmip6:institution_id"]
    publisher = {"Authorization": f"Bearer {await nodes.issue_token(conn, 'ours', [f'publisher:{institution}'])}"}
    own_ids = [id for id in listed if id.split(".")[2] == institution]
    assert {each["id"] for each in versions} <= set(own_ids)
    assert await found(publisher) == await found(publisher, collection="CMIP6") == own_ids
    elsewhere = {"Authorization": f"Bearer {await nodes.issue_token(conn, 'elsewhere', ['publisher:NOWHERE'])}"}
    assert await found(elsewhere) == []
    unsaid = "UPDATE fedstac.record SET institution = $2 WHERE access = 'private' AND institution = $1"
    await conn.execute(unsaid, institution, "*")  # as before anybody noted it
    assert await found(publisher) == own_ids
    await conn.execute(unsaid, "*", institution)
    first = (await west.anyone.get("/private?limit=1", headers=admin)).json()["datasets"][0]
    assert (await west.anyone.get(first["href"].removeprefix(west.url), headers=admin)).json()["id"] == first["id"]
    stranger = {"Authorization": f"Bearer {await nodes.issue_token(conn, 'stranger', ['member'])}"}
    for query in ("", "?collection=CMIP6", "?limit=1", "?collection=nothing"):
        nothing = (await west.anyone.get(f"/private{query}", headers=stranger)).json()
        assert nothing["datasets"] == []
        assert [each["rel"] for each in nothing["links"]] == ["self"]
    assert await found(admin, collection="nothing") == []
    assert (await west.anyone.get("/private")).status_code == 401
    for token in ("x", "WzEsMl0=", "WyJhIl0=", "bnVsbA==", "W1tdLFtdXQ=="):
        assert (await west.anyone.get(f"/private?token={token}", headers=admin)).status_code == 400


async def test_a_level_changes_with_a_patch_and_the_versions_follow(west: Api) -> None:
    older, path = ITEMS[2]["id"], f"{PATH}/{LATER['id']}"

    async def latest(of: str) -> Any:
        answer = await west.admin.get(f"{PATH}/{of}", params=FULL)
        return answer.json()["properties"]["latest"]

    assert (await west.admin.post(PATH, json=at_level(LATER, "private"))).status_code == 201
    assert (await latest(older), await latest(LATER["id"])) == (True, False)
    neighbour = await west.anyone.get(f"{PATH}/{older}")
    assert LATER["id"] not in neighbour.text

    opened = await west.admin.patch(path, json={"properties": {"fedstac:access": None}})
    assert opened.status_code == 200, opened.text
    assert (await latest(older), await latest(LATER["id"])) == (False, True)
    assert LATER["id"] in await found_ids(west)
    closed = await west.admin.patch(path, json={"properties": {"fedstac:access": "private"}})
    assert closed.status_code == 200
    assert list(closed.json()["assets"]) == list(LATER["assets"])
    assert LATER["id"] not in await found_ids(west)
    assert not (await west.anyone.post("/datasets/status", json=[LATER["id"]])).json()["datasets"][0].get("latest")


async def test_a_level_that_nobody_knows_is_refused(west: Api) -> None:
    answer = await west.admin.post(PATH, json=at_level(newer(ITEMS[4]), "secret"))
    assert answer.status_code == 400
    assert "fedstac:access" in answer.text


@pytest.mark.parametrize("level", ["controlled", "private"])
async def test_no_way_to_write_opens_a_dataset_that_says_nothing_of_its_level(west: Api, level: str) -> None:
    """PUT, PATCH, POST again, in a batch, of a new version, and a full-state load; a word opens it."""
    item = newer(ITEMS[7], {"controlled": "20700101", "private": "20720101"}[level])
    later = newer(item, {"controlled": "20710101", "private": "20730101"}[level])
    path, href = f"{PATH}/{item['id']}", next(iter(item["assets"].values()))["href"]

    def titled(title: str) -> Json:
        return {**item, "properties": {**item["properties"], "description": title}}

    async def require_level(id: str, title: str | None = None) -> None:
        shown = await west.anyone.get(f"{PATH}/{id}")
        assert shown.status_code == {"controlled": 200, "private": 404}[level]
        assert href not in shown.text
        properties = (await west.admin.get(f"{PATH}/{id}", params=FULL)).json()["properties"]
        assert (properties["fedstac:access"], properties.get("description")) == (level, title)

    assert (await west.admin.post(PATH, json=at_level(item, level))).status_code == 201
    put = await west.admin.put(path, json=titled("put"))
    assert put.status_code == 200, put.text
    await require_level(item["id"], "put")
    assert (await west.admin.patch(path, json={"properties": {"description": "patched"}})).status_code == 200
    await require_level(item["id"], "patched")
    again = await west.admin.post(PATH, json=titled("again"))
    assert again.status_code == 200, again.text
    await require_level(item["id"], "again")
    for batch in ([titled("batch"), ITEMS[6]], [later, ITEMS[6]]):
        body = {"type": "FeatureCollection", "features": batch}
        answer = (await west.admin.post(PATH, json=body)).json()
        assert answer["counts"]["done"] == len(batch), answer
    await require_level(item["id"], "batch")
    await require_level(later["id"])
    opened = await west.admin.put(path, json=at_level(item, "open"))
    assert opened.status_code == 200, opened.text
    assert list((await west.anyone.get(path)).json()["assets"]) == list(item["assets"])
    await require_level(later["id"])


async def test_the_events_of_the_feed_say_the_level(west: Api) -> None:
    feed = await west.anyone.get("/events?limit=1000", headers=of_role(west, "node:east"))
    logged = [each["data"] for each in feed.json() if "id" in each["data"]]
    levels = {each["id"]: each.get("access") for each in logged}
    assert (levels[CONTROLLED["id"]], levels[PRIVATE["id"]], levels[ITEMS[3]["id"]]) == ("controlled", "private", None)


async def test_the_history_asks_of_each_private_version_whose_it_is(west: Api, conn: asyncpg.Connection[Any]) -> None:
    shown, private = ITEMS[6], newer(ITEMS[6])
    assert (await west.admin.post(PATH, json=at_level(private, "private"))).status_code == 201
    institution = shown["properties"]["cmip6:institution_id"]
    publisher = {"Authorization": f"Bearer {await nodes.issue_token(conn, 'theirs', [f'publisher:{institution}'])}"}

    async def versions() -> list[str]:
        answer = await west.anyone.get(f"{PATH}/{shown['id']}/history", headers=publisher)
        return [each["id"] for each in answer.json()["versions"]]

    assert await versions() == [private["id"], shown["id"]]
    document = await conn.fetchval("SELECT document FROM fedstac.record WHERE id = $1", private["id"])
    change = "UPDATE fedstac.record SET document = $2 WHERE id = $1"
    await conn.execute(change, private["id"], document.replace(f'"{institution}"', '"ANOTHER"'))
    assert await versions() == [shown["id"]]
    await conn.execute(change, private["id"], document)


async def test_a_deleted_private_dataset_leaves_nothing_behind(west: Api, conn: asyncpg.Connection[Any]) -> None:
    gone = newer(ITEMS[5])
    path = f"{PATH}/{gone['id']}"
    assert (await west.admin.post(PATH, json=at_level(gone, "private"))).status_code == 201
    assert (await west.admin.delete(path)).status_code == 200
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    assert (await west.admin.post(f"{path}/delete", json={})).status_code == 200
    assert (await west.anyone.get(path)).status_code == 404
    assert (await west.admin.get(path, params={"deleted": "include"})).status_code == 200


async def test_the_invariants_hold(west: Api, conn: asyncpg.Connection[Any]) -> None:
    assert await invariants.check(conn) == []
