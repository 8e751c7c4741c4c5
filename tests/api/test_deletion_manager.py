"""The deletion manager over HTTP: the list, waivers, reminders, rules; and who sees any of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from fedstac.db import invariants, nodes
from fedstac.demo import sample
from tests.support.nodes import Api
from tests.support.waiting import PATIENCE

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
RULES = "/deletions/rules/CMIP6"
WAIT = {"Prefer": "wait=20"}
DATASETS = list(sample.items(3, versions=1))
IDS = [item["id"] for item in DATASETS]
INSTITUTION = DATASETS[0]["properties"]["cmip6:institution_id"]
PARTS = [{"name": "east", "contact": "east@east.example"}, {"name": "west/search", "required": False},
         {"name": "doi-desk", "owns_identifier": True}]  # fmt: skip


@asynccontextmanager
async def as_caller(api: Api, name: str, *roles: str) -> AsyncIterator[httpx.AsyncClient]:
    conn = await asyncpg.connect(api.settings.dsn)
    token = await nodes.issue_token(conn, name, roles)
    await conn.close()
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=api.url, headers=headers, timeout=PATIENCE, trust_env=False) as client:
        yield client


async def configure(api: Api, body: Json, *, tag: str = "*", **query: str) -> httpx.Response:
    return await api.admin.put(RULES, json=body, headers={"If-Match": tag}, params=query)


@pytest.fixture
async def west(api: Api) -> Api:
    """With three datasets, and rules with three dependencies and no grace."""
    body = {"type": "FeatureCollection", "features": DATASETS}
    response = await api.admin.post(ITEMS, json=body, headers=WAIT)
    assert response.json()["counts"]["done"] == len(DATASETS), response.text
    answer = await configure(api, {"dependencies": PARTS, "grace_days": 0}, tag='"0"')
    assert answer.status_code == 200, answer.text
    return api


async def mark(api: Api, *ids: str) -> list[str]:
    """Mark datasets and return the ids of their deletions."""
    for id in ids:
        answer = await api.admin.delete(f"{ITEMS}/{id}", params={"reason": f"withdrawn {id}"}, headers=WAIT)
        assert answer.status_code == 200, answer.text
    page = (await api.admin.get("/deletions", params={"state": "open"})).json()
    by_dataset = {each["dataset"]: each["id"] for each in page["deletions"]}
    return [by_dataset[id] for id in ids]


async def report(api: Api, name: str, state: str) -> None:
    conn = await asyncpg.connect(api.settings.dsn)
    await conn.execute(
        """UPDATE fedstac.deletion_dependency SET state = $2, reported_at = clock_timestamp(), comment = 'by a test'
           WHERE name = $1""",
        name, state,
    )  # fmt: skip
    await conn.close()


async def test_a_mark_is_listed_with_what_is_missing_until_it_is_deleted(west: Api) -> None:
    [id] = await mark(west, IDS[0])
    shown = (await west.admin.get(f"/deletions/{id}")).json()
    assert [(each["name"], each["required"], each["state"]) for each in shown["dependencies"]] == [
        ("doi-desk", True, "pending"), ("east", True, "pending"), ("west/search", False, "pending"),
    ]  # fmt: skip
    assert {finding["pointer"] for finding in shown["missing"]} == {"/dependencies/east", "/dependencies/doi-desk"}
    assert [each["action"] for each in shown["history"]] == ["mark"]
    early = await west.admin.post(f"/deletions/{id}/delete", headers=WAIT)
    assert early.status_code == 409
    assert early.json()["deletion"] == f"{west.url}/deletions/{id}"

    await report(west, "east", "failed")
    page = (await west.admin.get("/deletions?standing=failed")).json()
    assert [each["id"] for each in page["deletions"]] == [id]
    assert page["counts"] == {"open": 1, "waiting": 1, "ready": 0, "late": 0, "failed": 1, "unmarked": 0,
                              "deleted": 0, "purged": 0}  # fmt: skip
    await report(west, "east", "ok")
    await report(west, "doi-desk", "nothing to do")
    page = (await west.admin.get("/deletions?standing=ready")).json()
    assert [(each["id"], each["ready"], each["missing"]) for each in page["deletions"]] == [(id, True, [])]
    assert (await west.admin.post(f"/deletions/{id}/delete", headers=WAIT)).status_code == 200
    ended = (await west.admin.get(f"/deletions/{id}")).json()
    assert (ended["state"], ended["ended_by"]) == ("deleted", "admin")
    assert [each["action"] for each in ended["history"]] == ["mark", "delete"]
    assert (await west.anyone.get(f"{ITEMS}/{IDS[0]}")).status_code == 410


async def test_who_deletes_by_the_deletion_of_a_mark_before_gets_the_address_of_the_new_one(west: Api) -> None:
    assert (await configure(west, {"grace_days": 0})).status_code == 200
    [old] = await mark(west, IDS[0])
    await west.admin.post(f"{ITEMS}/{IDS[0]}/unmark", headers=WAIT)
    [new] = await mark(west, IDS[0])
    answer = await west.admin.post(f"/deletions/{old}/delete", headers=WAIT)
    assert (answer.status_code, answer.json()["deletion"]) == (409, f"{west.url}/deletions/{new}")
    assert "marked again" in answer.json()["detail"]
    assert (await west.admin.get(f"/deletions/{new}")).json()["state"] == "open"


async def test_two_different_people_waive_the_owner_of_identifiers_and_one_any_other(west: Api) -> None:
    [id] = await mark(west, IDS[0])
    async with as_caller(west, "boss", "admin") as boss:
        no_reason = await west.admin.post(f"/deletions/{id}/waive", json={"name": "east", "reason": " "})
        assert no_reason.status_code == 400
        nobody = await west.admin.post(f"/deletions/{id}/waive", json={"name": "north", "reason": "it is gone"})
        assert nobody.status_code == 404
        assert "doi-desk, east, west/search" in nobody.json()["detail"]
        for client, name, state in (
            (west.admin, "east", "waived"), (west.admin, "doi-desk", "pending"), (west.admin, "doi-desk", "pending"),
            (boss, "doi-desk", "waived"), (boss, "east", "waived"),
        ):  # fmt: skip
            answer = await client.post(f"/deletions/{id}/waive", json={"name": name, "reason": "it is gone"})
            assert answer.status_code == 200, answer.text
            assert {each["name"]: each["state"] for each in answer.json()["dependencies"]}[name] == state
        shown = (await boss.get(f"/deletions/{id}")).json()
    waivers = {each["name"]: [w["actor"] for w in each["waivers"]] for each in shown["dependencies"]}
    assert waivers == {"doi-desk": ["admin", "boss"], "east": ["admin"], "west/search": []}
    assert [(each["action"], each["detail"].get("name")) for each in shown["history"]] == [
        ("mark", None), ("waive-deletion", "east"), ("waive-deletion", "doi-desk"), ("waive-deletion", "doi-desk"),
    ]  # fmt: skip
    assert shown["ready"] is True
    conn = await asyncpg.connect(west.settings.dsn)
    assert await invariants.check(conn) == []
    await conn.close()


async def test_a_reminder_goes_to_the_contact_and_stands_in_the_deletion(west: Api) -> None:
    [id] = await mark(west, IDS[0])
    await report(west, "doi-desk", "ok")
    answer = (await west.admin.post(f"/deletions/{id}/remind")).json()
    assert {each["name"]: each["reminders"] for each in answer["dependencies"]} == {
        "doi-desk": 0, "east": 1, "west/search": 1,
    }  # fmt: skip
    again = await west.admin.post(f"/deletions/{id}/remind", json={"names": ["east"] * 50})
    assert {each["name"]: each["reminders"] for each in again.json()["dependencies"]}["east"] == 2
    assert again.json()["history"] == []
    shown = (await west.admin.get(f"/deletions/{id}")).json()
    assert shown["history"][-1]["detail"] == {"names": ["east"]}
    conn = await asyncpg.connect(west.settings.dsn)
    rows = await conn.fetch(
        """SELECT d.address, n.topic, n.about FROM fedstac.notification n
           JOIN fedstac.destination d ON d.id = n.destination WHERE n.topic = 'deletion'"""
    )
    await conn.close()
    assert {row["address"] for row in rows} == {"mailto:east@east.example"}
    assert {each for row in rows for each in row["about"]} == {f"{id} east"}


async def test_rules_are_versions_and_a_change_says_what_it_touches(west: Api) -> None:
    [id] = await mark(west, IDS[0])
    got = await west.admin.get(RULES)
    assert got.headers["ETag"] == '"1"'
    assert got.json()["actor"] == "admin"
    assert (await west.admin.put(RULES, json={})).status_code == 428
    wish = {"dependencies": [{"name": "north"}, PARTS[2]], "grace_days": 2}
    tried = (await configure(west, wish, dry_run="true")).json()
    assert (tried["dry_run"], tried["open"], tried["first"]) == (True, 1, [{"id": id, "dataset": IDS[0]}])
    assert [(each["what"], each["name"]) for each in tried["changes"]] == [
        ("dependency", "east"), ("dependency", "north"), ("dependency", "west/search"), ("grace_days", ""),
    ]  # fmt: skip
    assert (await west.admin.get(RULES)).headers["ETag"] == '"1"'

    assert (await configure(west, wish, tag='"0"')).status_code == 412
    assert (await configure(west, wish, tag='"1"')).headers["ETag"] == '"2"'
    assert (await configure(west, wish, tag='"2"')).headers["ETag"] == '"2"'  # the same again is no new version
    shown = (await west.admin.get(f"/deletions/{id}")).json()
    assert (shown["rules"], [each["name"] for each in shown["dependencies"]]) == (
        1,
        ["doi-desk", "east", "west/search"],
    )
    first = (await west.admin.get(RULES, params={"version": "1"})).json()
    assert [each["name"] for each in first["rules"]["dependencies"]] == ["east", "west/search", "doi-desk"]
    assert [each["version"] for each in first["versions"]] == [2, 1]

    await report(west, "east", "failed")
    assert (await configure(west, wish, tag='"2"', apply_to_open="true")).status_code == 200
    shown = (await west.admin.get(f"/deletions/{id}")).json()
    assert [(each["name"], each["required"], each["state"]) for each in shown["dependencies"]] == [
        ("doi-desk", True, "pending"), ("north", True, "pending"), ("east", False, "failed"),
    ]  # fmt: skip
    assert shown["rules"] == 2
    assert "grace" in {finding["rule"] for finding in shown["missing"]}


async def test_a_caller_sees_their_own_a_node_its_part_and_a_stranger_nothing(west: Api) -> None:
    [id] = await mark(west, IDS[0])
    async with (
        as_caller(west, "anna", f"publisher:{INSTITUTION}") as anna, as_caller(west, "otto", "publisher:OTHER") as otto,
        as_caller(west, "east", "node:east") as east, as_caller(west, "north", "node:north") as north,
        as_caller(west, "guest", "observer") as guest,
    ):  # fmt: skip
        refused = await anna.patch(f"{ITEMS}/{IDS[0]}", json={"properties": {"title": "x"}})
        assert refused.status_code == 409
        own = await anna.get(refused.json()["deletion"])
        assert (own.status_code, own.json()["reason"]) == (200, f"withdrawn {IDS[0]}")
        assert [each["id"] for each in (await anna.get("/deletions")).json()["deletions"]] == [id]
        assert (await anna.post(f"/deletions/{id}/waive", json={"name": "east", "reason": "x"})).status_code == 403
        assert (await anna.post(f"/deletions/{id}/delete", headers=WAIT)).status_code == 403
        assert (await anna.get(RULES)).status_code == 403
        assert (await anna.put(RULES, json={}, headers={"If-Match": "*"})).status_code == 403

        other = (await otto.get("/deletions")).json()
        assert (other["deletions"], other["counts"]["open"]) == ([], 0)
        assert (await otto.get(f"/deletions/{id}")).status_code == 404

        part = (await east.get(f"/deletions/{id}")).json()
        assert [each["name"] for each in part["dependencies"]] == ["east"]
        assert (part["reason"], part["actor"], part["history"], part["missing"]) == (None, None, [], [])
        assert (await east.get("/deletions")).json()["deletions"] == [part]
        assert (await north.get(f"/deletions/{id}")).status_code == 404
        assert (await north.get("/deletions")).json()["deletions"] == []
        assert (await guest.get("/deletions")).status_code == 403
        assert (await guest.get(f"/deletions/{id}")).status_code == 404
    assert (await west.anyone.get(f"/deletions/{id}")).status_code == 401


async def test_a_node_finds_out_nothing_that_is_hidden_from_it(west: Api) -> None:
    """Neither by a filter nor by a count: what it may not read of a deletion, it may not ask for."""
    [id] = await mark(west, IDS[0])
    await report(west, "doi-desk", "failed")
    hidden: list[dict[str, str]] = [
        {"q": "withdrawn"}, {"q": "admin"}, {"dependency": "doi-desk"}, {"standing": "failed"}, {"standing": "ready"},
    ]  # fmt: skip
    async with as_caller(west, "east", "node:east") as east:

        async def ids(**query: str) -> list[str]:
            page = (await east.get("/deletions", params=query)).json()
            return [each["id"] for each in page["deletions"]]

        for query in hidden:
            assert await ids(**query) == [], query
        for query in ({"q": IDS[0][:20]}, {"dependency": "east"}, {"standing": "waiting"}):
            assert await ids(**query) == [id], query
        assert (await east.get("/deletions")).json()["counts"]["failed"] == 0
        await report(west, "east", "ok")
        assert await ids(standing="ready") == [id], "its own part is done, and of the others it knows nothing"
        [part] = (await east.get("/deletions")).json()["deletions"]
        assert (part["ready"], part["late"]) == (True, False)
    everything = (await west.admin.get("/deletions", params={"standing": "failed", "q": "withdrawn"})).json()
    assert [each["id"] for each in everything["deletions"]] == [id]


async def test_pages_go_through_all_in_every_order(west: Api) -> None:
    marked = await mark(west, *IDS)
    for order in ("marked_at", "-marked_at", "grace_until", "-grace_until", "dataset", "-dataset"):
        seen: list[Json] = []
        address: str | None = f"{west.url}/deletions?sortby={order}&limit=1&project=CMIP6"
        while address is not None:
            page = (await west.admin.get(address)).json()
            seen += page["deletions"]
            assert page["counts"]["open"] == len(IDS)
            address = next((link["href"] for link in page["links"] if link["rel"] == "next"), None)
        values = [each[order.lstrip("-")] for each in seen]
        assert values == sorted(values, reverse=order.startswith("-"))
        assert sorted(each["id"] for each in seen) == sorted(marked)
    named = (await west.admin.get("/deletions", params={"q": IDS[1][:-4].upper()})).json()
    assert [each["dataset"] for each in named["deletions"]] == [IDS[1]]
    for order in ("secret", "--dataset", "-%2Bdataset", "-"):
        assert (await west.admin.get(f"/deletions?sortby={order}")).status_code == 400
    assert (await west.admin.get("/deletions?standing=none")).status_code == 400


async def test_cases_of_quarantine_are_listed_with_their_decision(west: Api) -> None:
    for id in IDS[:2]:
        body = {"reason": "personal data?", "case": "T-17", "links": ["https://mail.example/1"]}
        assert (await west.admin.post(f"{ITEMS}/{id}/quarantine", json=body, headers=WAIT)).status_code == 200
    await west.admin.post(f"{ITEMS}/{IDS[0]}/release", json={"decision": "it is harmless"}, headers=WAIT)
    cases = (await west.admin.get("/quarantines")).json()["quarantines"]
    assert [(each["dataset"], each["decision"]) for each in cases] == [(IDS[1], None), (IDS[0], "it is harmless")]
    still_open = (await west.admin.get("/quarantines?open=true&limit=1")).json()
    assert [each["dataset"] for each in still_open["quarantines"]] == [IDS[1]]
    async with as_caller(west, "anna", f"publisher:{INSTITUTION}") as anna:
        assert (await anna.get("/quarantines")).status_code == 403
