"""fedstac's own groups over HTTP: who makes them, who fills them, and what their members may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import httpx
import pytest

from fedstac.db import nodes
from fedstac.demo import sample
from tests.support.commands import Fedstac
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE

ITEMS = "/collections/CMIP6/items"
NCAR = [item for item in sample.items(300) if item["properties"]["cmip6:institution_id"] == "NCAR"]
OTHER = next(item for item in sample.items(300) if item["properties"]["cmip6:institution_id"] != "NCAR")
GROUP = {"name": "ncar", "project": "CMIP6", "institution": "NCAR", "title": "Publishers of NCAR"}

As = Callable[[str], Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def as_(api: Api) -> AsyncIterator[As]:
    """A client for somebody of that name, whose token has no roles."""
    async with AsyncExitStack() as stack:

        async def client(name: str) -> httpx.AsyncClient:
            conn = await asyncpg.connect(api.settings.dsn)
            try:
                token = await nodes.issue_token(conn, name, ["observer"])
            finally:
                await conn.close()
            bearer = {"Authorization": f"Bearer {token}"}
            return await stack.enter_async_context(
                httpx.AsyncClient(base_url=api.url, headers=bearer, timeout=PATIENCE, trust_env=False)
            )

        yield client


async def status(answer: Awaitable[httpx.Response]) -> int:
    return (await answer).status_code


async def test_a_manager_lets_somebody_publish_and_stops_them(api: Api, as_: As) -> None:
    alice, bob = await as_("alice"), await as_("bob")
    made = await api.admin.post("/groups", json=GROUP)
    assert (made.status_code, made.headers["location"]) == (201, f"{api.url}/groups/ncar")
    assert await status(api.admin.put("/groups/ncar/managers/alice")) == 204
    assert await status(bob.post(ITEMS, json=NCAR[0])) == 403
    assert await status(alice.put("/groups/ncar/members/bob")) == 204
    assert await status(bob.post(ITEMS, json=NCAR[0])) == 201
    assert await status(bob.post(ITEMS, json=OTHER)) == 403
    assert await status(alice.post(ITEMS, json=NCAR[1])) == 403  # a manager is no member by that
    assert (await bob.get("/me")).json()["own_groups"] == ["ncar"]
    assert await status(alice.delete("/groups/ncar/members/bob")) == 204
    assert await status(bob.post(ITEMS, json=NCAR[1])) == 403


async def test_the_same_again_changes_nothing(api: Api) -> None:
    assert await status(api.admin.post("/groups", json=GROUP)) == 201
    assert await status(api.admin.post("/groups", json=GROUP)) == 200
    for _ in range(2):
        assert await status(api.admin.put("/groups/ncar/members/bob")) == 204
    for _ in range(2):
        assert await status(api.admin.delete("/groups/ncar/members/bob")) == 204
    assert await status(api.admin.put("/groups/ncar", json=GROUP)) == 200
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        noted = await conn.fetch("SELECT action, actor FROM fedstac.audit WHERE dataset LIKE 'group/%' ORDER BY id")
    finally:
        await conn.close()
    assert [tuple(row) for row in noted] == [
        ("create-group", "admin"), ("add-member", "admin"), ("remove-member", "admin"),
    ]  # fmt: skip


async def test_managers_fill_their_group_and_nothing_else(api: Api, as_: As) -> None:
    alice = await as_("alice")
    await api.admin.post("/groups", json=GROUP)
    await api.admin.post("/groups", json={**GROUP, "name": "other"})
    await api.admin.put("/groups/ncar/managers/alice")
    for method, path in (
        ("PUT", "/groups/ncar/managers/alice"), ("PUT", "/groups/ncar/managers/bob"), ("PUT", "/groups/ncar"),
        ("DELETE", "/groups/ncar"), ("DELETE", "/groups/ncar/managers/alice"), ("PUT", "/groups/other/members/alice"),
        ("PUT", "/groups/none/members/alice"), ("POST", "/groups"),
    ):  # fmt: skip
        answer = await alice.request(method, path, json={**GROUP, "institution": "*"})
        assert answer.status_code == 403, (method, path)


async def test_strangers_do_not_learn_which_groups_there_are(api: Api, as_: As) -> None:
    bob = await as_("bob")
    await api.admin.post("/groups", json=GROUP)
    here, nowhere = await bob.put("/groups/ncar/members/bob"), await bob.put("/groups/nope/members/bob")
    assert (here.status_code, nowhere.status_code) == (403, 403)
    assert here.json()["detail"].replace("ncar", "nope") == nowhere.json()["detail"]
    assert await status(bob.get("/groups/ncar")) == await status(bob.get("/groups/nope")) == 404
    assert (await bob.get("/groups")).json()["groups"] == []
    assert [each["name"] for each in (await api.admin.get("/groups")).json()["groups"]] == ["ncar"]


async def test_a_group_that_is_gone_gives_nothing(api: Api, as_: As) -> None:
    bob = await as_("bob")
    await api.admin.post("/groups", json=GROUP)
    await api.admin.put("/groups/ncar/members/bob")
    assert await status(bob.get("/groups/ncar")) == 200
    moved = await api.admin.put("/groups/ncar", json={**GROUP, "institution": "MPI-M"})
    assert moved.json()["members"] == ["bob"]
    assert await status(bob.post(ITEMS, json=NCAR[0])) == 403
    assert await status(api.admin.delete("/groups/ncar")) == 204
    assert await status(api.admin.get("/groups/ncar")) == 404
    assert await status(api.admin.put("/groups/ncar/members/bob")) == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({**GROUP, "name": "../x"}, "/name"), ({**GROUP, "name": "x" * 64}, "/name"),
        ({**GROUP, "members": []}, "/members"),
        ({**GROUP, "project": ""}, "/project"), ({**GROUP, "institution": 5}, "/institution"),
        ({"name": "x"}, "/project"), ({**GROUP, "title": "a\nb"}, "/title"),
    ],
)  # fmt: skip
async def test_what_is_no_group_is_refused_with_its_place(api: Api, body: Any, pointer: str) -> None:
    answer = await api.admin.post("/groups", json=body)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == pointer


async def test_another_group_of_the_name_is_in_conflict(api: Api) -> None:
    await api.admin.post("/groups", json=GROUP)
    assert await status(api.admin.post("/groups", json={**GROUP, "project": "*"})) == 409


async def test_membership_is_judged_again_when_a_request_is_performed(
    start_api: StartApi, dsn: str, api: Api, as_: As
) -> None:
    """Accepted by a process without workers, taken out of the group, then performed by one that has them."""
    front = await start_api(dsn=dsn, run_workers=False, default_wait_seconds=0)
    bob = await as_("bob")
    await api.admin.post("/groups", json=GROUP)
    await api.admin.put("/groups/ncar/members/bob")
    conn = await asyncpg.connect(dsn)
    try:
        await conn.execute("UPDATE fedstac.shard SET until = now() + interval '1 hour'")  # nobody works for now
        accepted = await bob.post(ITEMS, json=NCAR[0], headers={"Prefer": "wait=0"})
        assert accepted.status_code == 202, accepted.text
        await front.admin.delete("/groups/ncar/members/bob")
        await conn.execute("UPDATE fedstac.shard SET until = '-infinity'")
    finally:
        await conn.close()
    shown: dict[str, Any] = {"status": "queued"}
    async with asyncio.timeout(PATIENCE):
        while shown["status"] in ("queued", "running"):
            await asyncio.sleep(0.02)
            shown = (await api.admin.get(accepted.headers["location"])).json()
    assert (shown["status"], shown["problems"][0]["type"]) == ("rejected", "missing-permission")


async def test_the_command_line_looks_after_groups(api: Api, fedstac: Fedstac) -> None:
    at = {"FEDSTAC_URL": api.url, "FEDSTAC_TOKEN": api.tokens["admin"]}
    made = await fedstac("groups", "create", "ncar", "--project", "CMIP6", "--institution", "NCAR", "-o", "json", **at)
    assert made.code == 0, made.stderr
    for part, who in (("manager", "alice"), ("member", "robot/1")):
        assert (await fedstac("groups", part, "add", "ncar", who, **at)).code == 0
    shown = (await fedstac("groups", "list", "-o", "ndjson", **at)).lines
    assert [(each["name"], each["members"], each["managers"]) for each in shown] == [("ncar", ["robot/1"], ["alice"])]
    assert "CMIP6 × NCAR" in (await fedstac("groups", "show", "ncar", **at)).stdout
    for part, who in (("manager", "alice"), ("member", "robot/1")):
        assert (await fedstac("groups", part, "remove", "ncar", who, **at)).code == 0
    assert (await fedstac("groups", "delete", "ncar", **at)).code == 0
    assert (await fedstac("groups", "show", "ncar", **at)).code == 3
