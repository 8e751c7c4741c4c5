"""Quarantine, delete and purge over HTTP: what each does to the record, the search, the tombstone and the events."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from fedstac.db import invariants, nodes
from fedstac.demo import embedded, sample
from fedstac.settings import folder
from tests.support.nodes import Api

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
[ITEM] = sample.items(1)
PATH = f"{ITEMS}/{ITEM['id']}"


@pytest.fixture
async def west(api: Api) -> Api:
    """With one dataset."""
    response = await api.admin.post(ITEMS, json=ITEM)
    assert response.status_code == 201, response.text
    return api


async def act(api: Api, action: str, body: Json | None = None) -> httpx.Response:
    return await api.admin.post(f"{PATH}/{action}", json=body or {}, headers={"Prefer": "wait=20"})


async def connect(api: Api) -> asyncpg.Connection:
    return await asyncpg.connect(api.settings.dsn)


async def found(api: Api) -> int:
    return int((await api.anyone.get("/search?collections=CMIP6")).json()["numberMatched"])


async def end_grace(api: Api) -> None:
    """Let the grace period of all open deletions be over, and the identifiers be waived."""
    conn = await connect(api)
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - $1::interval", timedelta(seconds=1))
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    await conn.close()


async def test_a_quarantine_hides_and_a_release_gives_every_byte_back(west: Api) -> None:
    before = (await west.anyone.get(PATH)).json()
    assert (await act(west, "quarantine", {"reason": "personal data?", "contact": "data@a.example"})).status_code == 200
    assert await found(west) == 0
    seen = (await west.anyone.get(PATH)).json()
    assert seen["assets"] == {}
    assert seen["properties"]["fedstac:state"] == "quarantined"
    assert seen["properties"]["fedstac:quarantine"] == {"contact": "data@a.example"}
    whole = (await west.admin.get(PATH + "?access=full")).json()
    assert whole["assets"] == before["assets"]
    assert whole["properties"]["fedstac:quarantine"]["reason"] == "personal data?"

    assert (await act(west, "release", {"decision": "it is harmless"})).status_code == 200
    after = (await west.anyone.get(PATH)).json()
    assert after | {"properties": None} == before | {"properties": None}
    assert {**after["properties"], "updated": None} == {**before["properties"], "updated": None}
    assert await found(west) == 1
    conn = await connect(west)
    case = await conn.fetchrow("SELECT * FROM fedstac.quarantine_case")
    assert case is not None
    assert case["decision"] == "it is harmless"
    assert case["closed_by"] == case["opened_by"]
    assert await invariants.check(conn) == []
    await conn.close()


async def test_a_retracted_dataset_under_quarantine_is_retracted_after_its_release(west: Api) -> None:
    await act(west, "quarantine", {"reason": "to be looked at"})
    assert (await act(west, "retract", {"reason": "wrong units"})).status_code == 200
    assert (await west.anyone.get(PATH)).json()["properties"]["fedstac:state"] == "quarantined"
    assert await found(west) == 0
    await act(west, "release")
    assert (await west.anyone.get(PATH)).json()["properties"]["fedstac:state"] == "retracted"


async def test_a_mark_over_a_quarantine_is_taken_back_to_the_quarantine(west: Api) -> None:
    await act(west, "quarantine", {"reason": "to be looked at"})
    assert (await west.admin.delete(PATH, headers={"Prefer": "wait=20"})).status_code == 200
    assert (await west.anyone.get(PATH)).status_code == 404
    await act(west, "unmark")
    assert (await west.anyone.get(PATH)).json()["properties"]["fedstac:state"] == "quarantined"


async def test_who_may_mark_a_marked_dataset_sees_it_with_what_the_mark_covers(west: Api) -> None:
    """Others find nothing there, as without `access=full`. Why it is under quarantine, is for those who decide."""
    conn = await connect(west)
    institution = ITEM["properties"]["cmip6:institution_id"]
    names = {"own": f"publisher:{institution}", "other": "publisher:ELSEWHERE"}
    tokens = {name: await nodes.issue_token(conn, name, [role]) for name, role in names.items()}
    tokens["admin"] = west.tokens["admin"]
    await conn.close()

    async def seen_by(name: str) -> Json | None:
        headers = {"Authorization": f"Bearer {tokens[name]}"} if name else {}
        answer = await west.anyone.get(f"{PATH}?access=full", headers=headers)
        nothing = await west.anyone.get(f"{PATH}x?access=full", headers=headers)
        if answer.status_code != 200:
            assert (answer.status_code, answer.text.replace(ITEM["id"], "")) == (
                nothing.status_code, nothing.text.replace(f"{ITEM['id']}x", "")
            )  # fmt: skip
            return None
        assert answer.headers["cache-control"].startswith("private")
        document: Json = answer.json()
        assert (await west.anyone.get(PATH, headers=headers)).status_code == 404
        return document

    public = (await west.anyone.get(PATH)).json()
    await west.admin.delete(PATH, headers={"Prefer": "wait=20"})
    for name in ("admin", "own"):
        document = await seen_by(name)
        assert document is not None
        assert (document["properties"]["fedstac:state"], document["assets"]) == ("marked", public["assets"])
    assert [await seen_by(name) for name in ("other", "")] == [None, None]

    await act(west, "unmark")
    await act(west, "quarantine", {"reason": "personal data?", "contact": "data@a.example"})
    await west.admin.delete(PATH, headers={"Prefer": "wait=20"})
    whole, part = await seen_by("admin"), await seen_by("own")
    assert whole is not None
    assert part is not None
    assert (whole["assets"], whole["properties"]["fedstac:quarantine"]["reason"]) == (
        public["assets"],
        "personal data?",
    )
    assert (part["assets"], part["properties"]["fedstac:quarantine"]) == ({}, {"contact": "data@a.example"})
    assert [await seen_by(name) for name in ("other", "")] == [None, None]


async def test_every_refusal_of_a_marked_dataset_has_the_address_of_its_deletion(west: Api) -> None:
    await west.admin.delete(PATH, headers={"Prefer": "wait=20"})
    [deletion] = (await west.admin.get("/deletions")).json()["deletions"]
    address = f"{west.url}/deletions/{deletion['id']}"
    for action, body in (
        ("retract", {"reason": "x"}), ("reinstate", {}), ("quarantine", {"reason": "x"}), ("delete", {}), ("purge", {}),
    ):  # fmt: skip
        refusal = await act(west, action, body)
        assert (refusal.status_code, refusal.json().get("deletion")) == (409, address), (action, refusal.text)
    changed = {**ITEM, "properties": {**ITEM["properties"], "title": "another"}}
    refusal = await west.admin.put(PATH, json=changed)
    assert (refusal.status_code, refusal.json().get("deletion")) == (409, address), refusal.text
    refusal = await west.admin.post(ITEMS, json=changed, headers={"Prefer": "wait=20"})
    assert (refusal.status_code, refusal.json().get("deletion")) == (409, address), refusal.text
    [request, *_] = (await west.admin.get("/requests")).json()["requests"]
    for path in (f"/requests/{request['id']}", f"/requests/{request['id']}/items"):
        answer = (await west.admin.get(path)).json()
        [result] = answer["problems"] if "problems" in answer else answer["items"]
        assert (result["type"], result["deletion"]) == ("marked-for-deletion", address), answer
    await act(west, "unmark")
    await act(west, "quarantine", {"reason": "x"})
    await west.admin.delete(PATH, headers={"Prefer": "wait=20"})
    refusal = await act(west, "release", {})
    assert refusal.json()["type"].endswith("/marked-for-deletion"), refusal.text
    assert refusal.json()["deletion"].startswith(f"{west.url}/deletions/")


async def test_deletion_waits_for_grace_and_for_the_owner_of_the_identifiers(west: Api) -> None:
    assert (await act(west, "delete")).status_code == 409  # not marked
    await west.admin.delete(PATH + "?reason=withdrawn", headers={"Prefer": "wait=20"})
    early = await act(west, "delete")
    assert early.status_code == 409
    assert early.json()["type"].endswith("/deletion-not-ready")
    assert {finding["rule"] for finding in early.json()["errors"]} >= {"grace"}
    assert early.json()["deletion"].startswith(f"{west.url}/deletions/")
    changed = await west.admin.patch(PATH, json={"properties": {"title": "x"}})
    assert changed.status_code == 409
    assert changed.json()["deletion"] == early.json()["deletion"]

    await end_grace(west)
    assert (await act(west, "delete")).status_code == 200
    gone = await west.anyone.get(PATH)
    assert gone.status_code == 410
    assert ITEM["id"] in gone.json()["detail"]
    assert (await west.admin.post(ITEMS, json=ITEM)).status_code == 409  # its id is never used again
    conn = await connect(west)
    assert await conn.fetchval("SELECT state FROM fedstac.deletion") == "deleted"
    assert (await act(west, "purge")).status_code == 200
    assert await conn.fetchval("SELECT state FROM fedstac.deletion") == "purged"
    types = [
        row[0] for row in await conn.fetch("SELECT type FROM fedstac.outbox WHERE dataset IS NOT NULL ORDER BY id")
    ]
    assert [name.split(".")[-2] for name in types] == ["published", "marked", "deleted", "purged"]
    assert await invariants.check(conn) == []
    await conn.close()


async def test_a_deletion_ends_the_quarantine_that_the_mark_covered(west: Api) -> None:
    await act(west, "quarantine", {"reason": "to be looked at"})
    await west.admin.delete(PATH, headers={"Prefer": "wait=20"})
    await end_grace(west)
    assert (await act(west, "delete")).status_code == 200
    conn = await connect(west)
    case = await conn.fetchrow("SELECT decision, closed_at FROM fedstac.quarantine_case")
    await conn.close()
    assert case is not None
    assert case["decision"] == "the dataset was deleted"
    assert case["closed_at"] is not None


async def test_a_dataset_that_an_earlier_release_marked_gets_its_deletion(west: Api, cluster: embedded.Cluster) -> None:
    """The migration makes the entry that the mark makes today."""
    await west.admin.delete(PATH + "?reason=withdrawn", headers={"Prefer": "wait=20"})
    owner = await asyncpg.connect(cluster.dsn(urlsplit(west.settings.dsn).path[1:]))
    entry = """SELECT collection, dataset, event_id, reason, actor, marked_at, grace_until, automatic, configuration,
                      identifiers, institution,
                      (SELECT array_agg((p.name, p.required, p.owns_identifier)) FROM fedstac.deletion_dependency p
                       WHERE p.deletion = d.id) AS dependencies FROM fedstac.deletion d"""
    before = await owner.fetch(entry)
    await owner.execute("DELETE FROM fedstac.deletion")
    migration = (folder("migrations") / "0062_marks_before.sql").read_text()
    for _ in range(2):  # it makes each entry once
        await owner.execute(migration + "; DROP FUNCTION pg_temp.identifiers_of(jsonb)")
    assert await owner.fetch(entry) == before
    assert len(before) == 1
    await owner.close()
    assert (await act(west, "delete")).json()["type"].endswith("/deletion-not-ready")


async def test_nobody_but_an_administrator_quarantines_deletes_or_purges(west: Api) -> None:
    conn = await connect(west)
    role = f"publisher:{ITEM['properties']['cmip6:institution_id']}"
    headers = {"Authorization": f"Bearer {await nodes.issue_token(conn, 'anna', [role])}"}
    await conn.close()
    for action in ("quarantine", "release", "delete"):
        body = {"reason": "x"} if action == "quarantine" else {}
        answer = await west.anyone.post(f"{PATH}/{action}", json=body, headers=headers)
        assert answer.status_code == 403, (action, answer.text)
    assert (await west.anyone.post(f"{PATH}/purge", json={}, headers=headers)).status_code in (403, 409)
    assert (await west.anyone.get(PATH)).status_code == 200
