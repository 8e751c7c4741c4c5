"""Reports on deletions over HTTP: who may report, what is refused, and the same member in an acknowledgement."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from fedstac.db import nodes
from fedstac.demo import sample
from tests.support.nodes import Api

Json = dict[str, Any]
[ITEM] = sample.items(1)
PATH = f"/collections/CMIP6/items/{ITEM['id']}"
RULES = '{"dependencies": [{"name": "east"}, {"name": "south/replica"}]}'


@pytest.fixture
async def mark(api: Api, conn: asyncpg.Connection[asyncpg.Record]) -> str:
    """Mark a dataset that east and the replica node south have to see to. Return the event's id."""
    await conn.execute(
        """INSERT INTO fedstac.deletion_configuration (project, version, body, actor)
           VALUES ('CMIP6', 1, $1::jsonb, 'test')""",
        RULES,
    )
    assert (await api.admin.post("/collections/CMIP6/items", json=ITEM)).status_code == 201
    answer = await api.admin.delete(PATH + "?reason=withdrawn", headers={"Prefer": "wait=20"})
    assert answer.status_code == 200, answer.text
    return str(await conn.fetchval("SELECT event_id FROM fedstac.deletion"))


async def report(api: Api, role: str, *reports: Json, path: str = "/deletions/reports") -> httpx.Response:
    body: Json = {"reports": list(reports)}
    if path == "/events/status":
        body |= {"epoch": 1, "through": 1}
    headers = {"Authorization": f"Bearer {api.tokens[role]}"}
    return await api.anyone.post(path, json=body, headers=headers)


async def standing(conn: asyncpg.Connection[asyncpg.Record]) -> dict[str, str]:
    rows = await conn.fetch("SELECT name, state FROM fedstac.deletion_dependency WHERE NOT owns_identifier")
    return {row["name"]: row["state"] for row in rows}


async def test_each_report_has_its_answer_and_a_repeat_changes_nothing(
    api: Api, conn: asyncpg.Connection[asyncpg.Record], mark: str
) -> None:
    own = {"event_id": mark, "outcome": "failed", "comment": "the index is read-only"}
    by_dataset = {"collection": "CMIP6", "dataset": ITEM["id"], "name": "east", "outcome": "ok"}
    stranger = {"event_id": str(uuid4()), "outcome": "ok"}
    part = {"event_id": mark, "name": "east/replica", "outcome": "ok"}
    answer = await report(api, "node:east", own, own, by_dataset, stranger, part)
    assert answer.status_code == 200, answer.text
    assert [(each["result"], each["state"]) for each in answer.json()["reports"]] == [
        ("stored", "failed"), ("unchanged", "failed"), ("stored", "ok"), ("not asked", None), ("not asked", None)
    ]  # fmt: skip
    assert "does not wait for east/replica" in answer.json()["reports"][4]["detail"]
    assert await standing(conn) == {"east": "ok", "south/replica": "pending"}


async def test_an_acknowledgement_with_reports_is_answered_like_the_reports(
    api: Api, conn: asyncpg.Connection[asyncpg.Record], mark: str
) -> None:
    own = {"event_id": mark, "outcome": "nothing to do"}
    answer = await report(api, "node:east", own, path="/events/status")
    assert answer.status_code == 200, answer.text
    assert answer.json()["reports"][0]["result"] == "stored"
    assert (await standing(conn))["east"] == "nothing to do"
    assert [row["node"] for row in await nodes.statuses(conn)] == ["east"]


@pytest.mark.parametrize("path", ["/deletions/reports", "/events/status"])
async def test_nobody_reports_for_another(
    api: Api, conn: asyncpg.Connection[asyncpg.Record], mark: str, path: str
) -> None:
    """I22: also not in a body whose other reports are the caller's own, and not an administrator."""
    own = {"event_id": mark, "outcome": "ok"}
    for name in ("south/replica", "south", "eastern", "east-2/index", "../east", "East"):
        answer = await report(api, "node:east", own, {**own, "name": name}, path=path)
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (403, "missing-permission"), name
        assert f"/reports/1/name: east may not report for {name}" in answer.json()["detail"]
    assert (await report(api, "admin", own, path=path)).status_code == 403
    assert await standing(conn) == {"east": "pending", "south/replica": "pending"}


@pytest.mark.parametrize(("wrong", "where"), [
    ({"outcome": "ok"}, "/reports/0/collection"), ({"event_id": "x", "outcome": "ok"}, "/reports/0/event_id"),
    ({"event_id": 7, "outcome": "ok"}, "/reports/0/event_id"),
    ({"collection": "c", "dataset": "", "outcome": "ok"}, "/reports/0/dataset"),
    ({"collection": "c", "dataset": "d", "outcome": "waived"}, "/reports/0/outcome"),
    ({"collection": "c", "dataset": "d", "outcome": ["ok"]}, "/reports/0/outcome"),
    ({"collection": "c", "dataset": "d", "outcome": "ok", "comment": "x" * 2001}, "/reports/0/comment"),
    ({"collection": "c", "dataset": "d", "outcome": "ok", "name": ""}, "/reports/0/name"),
    ({"collection": "c", "dataset": "d", "outcome": "ok", "more": 1}, "/reports/0"), ("ok", "/reports/0"),
])  # fmt: skip
async def test_a_refusal_names_the_thing(api: Api, wrong: Any, where: str) -> None:
    answer = await report(api, "node:east", wrong)
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"].startswith(f"{where}: "), answer.text


async def test_too_many_reports_or_none_at_all_are_refused(api: Api) -> None:
    entry = {"collection": "c", "dataset": "d", "outcome": "ok"}
    assert (await report(api, "node:east", *[entry] * 1000)).status_code == 200
    assert (await report(api, "node:east", *[entry] * 1001)).status_code == 400
    headers = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    bodies: tuple[Any, ...] = ([], {}, {"reports": None}, {"reports": {}}, {"reports": [], "epoch": 1})
    for body in bodies:
        assert (await api.anyone.post("/deletions/reports", json=body, headers=headers)).status_code == 400, body
