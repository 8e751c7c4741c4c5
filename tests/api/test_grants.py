"""Grants over HTTP and on the command line: given, checked, listed, withdrawn, in bulk; their events in the feed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from fedstac.client.documents import Unreadable
from fedstac.client.grants import withdrawals
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.workers import granting
from tests.support.commands import Fedstac
from tests.support.nodes import Api
from tests.support.waiting import until

ITEM = next(sample.items(1, versions=1))
DATASET = f"CMIP6/{ITEM['id']}"
UNTIL = "2999-01-01T00:00:00.000000Z"


@pytest.fixture
async def west(api: Api) -> Api:
    """A node with one dataset."""
    answer = await api.admin.post("/collections/CMIP6/items", json=ITEM, headers={"Prefer": "wait=60"})
    assert answer.status_code == 201, answer.text
    return api


def bearer(api: Api, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api.tokens[role]}"}


async def check(api: Api, role: str = "node:east", **who: str) -> Any:
    answer = await api.anyone.get("/grants/check", params={"dataset": DATASET, **who}, headers=bearer(api, role))
    return answer.json()["valid_until"] if answer.status_code == 200 else answer.status_code


async def test_a_grant_is_given_checked_and_withdrawn(west: Api) -> None:
    wish = {"subject": "publisher:NCAR", "dataset": DATASET, "valid_until": UNTIL}
    created = await west.admin.post("/grants", json=wish)
    assert created.status_code == 201
    assert created.headers["Location"] == f"{west.url}/grants/{created.json()['id']}"
    again = await west.admin.post("/grants", json=wish)
    assert (again.status_code, again.json()) == (200, created.json())
    assert await check(west, subject="publisher:NCAR") == UNTIL
    assert await check(west, subject="somebody else") is None
    assert await check(west, "publisher:NCAR", subject="publisher:NCAR") == UNTIL  # their own
    assert await check(west, "publisher:NCAR", subject="somebody else") == 403
    own = await west.anyone.get("/grants", headers=bearer(west, "publisher:NCAR"))
    assert [each["id"] for each in own.json()["grants"]] == [created.json()["id"]]
    others = await west.anyone.get("/grants", headers=bearer(west, "node:east"))
    assert others.json() == {"grants": [], "links": []}
    refused = await west.anyone.delete(f"/grants/{created.json()['id']}", headers=bearer(west, "publisher:NCAR"))
    assert refused.status_code == 403
    for _ in range(2):
        withdrawn = await west.admin.delete(f"/grants/{created.json()['id']}", params={"reason": "over"})
        assert (withdrawn.json()["stand"], withdrawn.json()["closed_why"]) == ("closed", "over")
    assert await check(west, subject="publisher:NCAR") is None
    for address in (f"/grants/{created.json()['id']}", "/grants?state=closed"):
        answers = [await west.anyone.get(address, headers=bearer(west, role)) for role in ("publisher:NCAR", "admin")]
        grants = [answer.json().get("grants", [answer.json()])[0] for answer in answers]
        assert [(each["closed_why"], each["closed_by"]) for each in grants] == [("over", None), ("over", "admin")]


async def test_a_marked_dataset_gets_no_grant_and_the_answer_names_the_deletion(west: Api) -> None:
    path = f"/collections/CMIP6/items/{ITEM['id']}"
    assert (await west.admin.delete(path, headers={"Prefer": "wait=60"})).status_code == 200
    wish = {"subject": "bert", "dataset": DATASET, "valid_until": UNTIL}
    answer = await west.admin.post("/grants", json=wish)
    assert answer.status_code == 409
    [deletion] = (await west.admin.get("/deletions")).json()["deletions"]
    assert answer.json()["deletion"].endswith(f"/deletions/{deletion['id']}"), answer.json()


@pytest.mark.parametrize(
    "wish",
    [
        {}, {"subject": "bert", "project": "CMIP6"}, {"subject": "bert", "valid_until": UNTIL},
        {"subject": "bert", "project": "CMIP6", "dataset": DATASET, "valid_until": UNTIL},
        {"subject": "bert", "project": "CMIP6", "valid_until": "2000-01-01T00:00:00Z"},
        {"subject": "bert", "project": "CMIP6/x", "valid_until": UNTIL},
        {"subject": "bert", "dataset": "CMIP6", "valid_until": UNTIL},
        {"subject": "a\nb", "project": "CMIP6", "valid_until": UNTIL},
        {"subject": {"iss": "https://x.example"}, "project": "CMIP6", "valid_until": UNTIL},
        {"subject": "bert", "project": "CMIP6", "valid_until": "tomorrow"},
        {"subject": "bert", "project": "CMIP6", "valid_until": UNTIL, "more": 1},
        {"subject": "bert", "project": "CMIP6", "valid_until": UNTIL, "valid_from": UNTIL},
    ],
)  # fmt: skip
async def test_what_is_no_grant_is_refused(api: Api, wish: dict[str, Any]) -> None:
    answer = await api.admin.post("/grants", json=wish)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")


async def test_many_grants_are_given_withdrawn_and_paged(west: Api) -> None:
    lines = [{"subject": f"person {n}", "project": "CMIP6", "valid_until": UNTIL} for n in range(7)]
    body = b"\n".join([*map(orjson.dumps, lines), b"no JSON", orjson.dumps({**lines[0], "project": "none"})])
    headers = {"Content-Type": "application/x-ndjson"}
    first = (await west.admin.post("/grants/import", content=body, headers=headers)).json()
    assert (first["given"], first["present"], [each["line"] for each in first["refused"]]) == (7, 0, [8, 9])
    second = (await west.admin.post("/grants/import", json={"grants": lines})).json()
    assert second == {"given": 0, "present": 7, "refused": []}
    subjects, address = [], "/grants?project=CMIP6&limit=3"
    while address:
        page = (await west.admin.get(address)).json()
        subjects += [each["subject"] for each in page["grants"]]
        address = next((link["href"] for link in page["links"] if link["rel"] == "next"), "")
    assert sorted(subjects) == [line["subject"] for line in lines]
    [visa] = (await west.admin.get("/grants?format=ga4gh&subject=person 3")).json()["visas"]
    assert visa["ga4gh_visa_v1"]["value"] == f"{west.url}/collections/CMIP6"
    one = await west.admin.delete("/grants?project=CMIP6&subject=person 3")
    rest = await west.admin.delete("/grants?project=CMIP6")
    again = await west.admin.delete("/grants?project=CMIP6")
    assert [answer.json()["withdrawn"] for answer in (one, rest, again)] == [1, 6, 0]
    assert (await west.admin.delete("/grants")).status_code == 400


async def test_an_import_is_read_beside_the_event_loop(west: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def read_wish(body: Any) -> granting.GrantWish:
        threads.add(threading.current_thread())
        return read(body)

    read = granting.read_wish
    monkeypatch.setattr(granting, "read_wish", read_wish)
    wish = {"subject": "bert", "project": "CMIP6", "valid_until": UNTIL}
    assert (await west.admin.post("/grants/import", json={"grants": [wish]})).json()["given"] == 1
    assert threads
    assert threading.current_thread() not in threads


async def test_events_about_grants_are_for_callers_with_the_right_and_cursors_move_on(west: Api) -> None:
    wish = {"subject": "bert", "project": "CMIP6", "valid_until": UNTIL}
    assert (await west.admin.post("/grants", json=wish)).status_code == 201
    assert (await west.admin.delete("/grants?project=CMIP6")).json() == {"withdrawn": 1}

    async def is_sequenced() -> bool:
        head = await west.anyone.get("/events/head", headers=bearer(west, "node:east"))
        return bool(head.json()["cursor"].endswith(".4"))

    await until(is_sequenced)
    answer = await west.anyone.get("/events", headers=bearer(west, "node:east"))
    assert [event["type"].split(".")[2] for event in answer.json()] == ["collection", "dataset"]
    rest = await west.anyone.get("/events?after=1.2", headers=bearer(west, "node:east"))
    assert (rest.json(), rest.headers["X-Cursor"]) == ([], "1.4")
    named = await west.anyone.get("/events?type=org.fedstac.grant.given.v1", headers=bearer(west, "node:east"))
    assert (named.json(), named.headers["X-Cursor"]) == ([], "1.4")


async def test_the_commands_do_the_same(west: Api, fedstac: Fedstac) -> None:
    env = {"FEDSTAC_URL": west.url, "FEDSTAC_TOKEN": west.tokens["admin"]}
    given = await fedstac("grant", "give", "bert", "--dataset", DATASET, "--until", "2999-01-01", "-o", "json", **env)
    assert given.code == 0, given.stderr
    grant = orjson.loads(given.stdout)
    assert grant["valid_until"] == UNTIL
    checked = await fedstac("grant", "check", DATASET, "--subject", "bert", **env)
    assert (checked.code, checked.stdout) == (0, f"until {UNTIL}\n")
    exported = await fedstac("grant", "export", **env)
    imported = await fedstac("grant", "import", "-", "-o", "json", stdin=exported.stdout.encode() + b"{}\n", **env)
    result = orjson.loads(imported.stdout)
    assert (imported.code, result["given"], result["present"], len(result["refused"])) == (1, 0, 1, 1)
    listed = await fedstac("grant", "list", "-o", "ndjson", **env)
    assert [orjson.loads(line)["id"] for line in listed.stdout.splitlines()] == [grant["id"]]
    assert (await fedstac("grant", "withdraw", **env)).code == 2
    change = {"properties": {"fedstac:access": "private"}}
    assert (await west.admin.patch(f"/collections/CMIP6/items/{ITEM['id']}", json=change)).status_code == 200
    private = await fedstac("grant", "private", "-c", "CMIP6", "-o", "ndjson", **env)
    assert [orjson.loads(line)["id"] for line in private.stdout.splitlines()] == [ITEM["id"]], private.stderr
    withdrawn = await fedstac("grant", "withdraw", "--dataset", DATASET, "-o", "json", **env)
    assert orjson.loads(withdrawn.stdout) == {"withdrawn": 1}
    assert (await fedstac("grant", "check", DATASET, "--subject", "bert", **env)).code == 1


async def test_what_was_withdrawn_after_a_backup_is_withdrawn_again_by_the_audit_log(
    west: Api, conn: Connection, fedstac: Fedstac, tmp_path: Path
) -> None:
    """A restore is as a database in which the grants are open again."""
    env = {"FEDSTAC_URL": west.url, "FEDSTAC_TOKEN": west.tokens["admin"]}
    targets = {"one": {"dataset": DATASET}, "two": {"dataset": DATASET}, "three": {"project": "CMIP6"}}
    for subject, target in targets.items():
        answer = await west.admin.post("/grants", json={"subject": subject, **target, "valid_until": UNTIL})
        assert answer.status_code == 201, answer.text
        if subject == "one":
            assert (await west.admin.delete(f"/grants/{answer.json()['id']}")).status_code == 200
    for query in ("dataset=" + DATASET, "project=CMIP6"):
        assert (await west.admin.delete(f"/grants?{query}")).json() == {"withdrawn": 1}
    rows = await conn.fetch("SELECT action, outcome, collection, dataset, detail FROM fedstac.audit ORDER BY id")
    absent = {"action": "withdraw-grant", "outcome": "done", "collection": "CMIP6", "dataset": f"grant/{uuid4()}"}
    file = tmp_path / "audit.ndjson"
    file.write_bytes(b"\n".join(orjson.dumps(row) for row in (*map(dict, rows), absent)))
    await conn.execute("UPDATE fedstac.access_grant SET closed_at = NULL, closed_by = NULL, closed_why = NULL")
    for count in (3, 0):
        again = await fedstac("grant", "withdraw", "--again", str(file), "-o", "json", **env)
        assert (again.code, orjson.loads(again.stdout)) == (0, {"withdrawn": count}), again.stderr
    assert (await west.admin.get("/grants")).json()["grants"] == []


def test_a_row_of_a_release_before_names_a_dataset_or_a_lineage() -> None:
    rows = [
        {"action": "withdraw-grants", "outcome": "done", "collection": "CMIP6", "dataset": name, "detail": None}
        for name in ("CMIP6", "CMIP6/a", "b")
    ]  # fmt: skip
    assert list(withdrawals(map(orjson.dumps, rows))) == [
        {"project": "CMIP6"}, {"dataset": "CMIP6/a"}, {"lineage": "CMIP6/a"}, {"dataset": "CMIP6/b"},
        {"lineage": "CMIP6/b"},
    ]  # fmt: skip


@pytest.mark.parametrize("damage", [b'{"action": "withdraw-gr', b"", b"[]", b"null", b'{"action": "withdraw-grant", '
                                    b'"outcome": "done", "collection": "CMIP6", "dataset": null}'])  # fmt: skip
def test_a_damaged_export_is_named_by_its_line(damage: bytes) -> None:
    whole = orjson.dumps({"action": "withdraw-grant", "outcome": "done", "collection": "CMIP6", "dataset": "grant/1"})
    rows = withdrawals([whole, damage, whole])
    assert next(rows) == {"id": "1"}
    with pytest.raises(Unreadable, match="line 2 is no row of an export of the audit log"):
        next(rows)
