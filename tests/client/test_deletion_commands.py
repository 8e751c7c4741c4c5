"""`fedstac deletion`: the deletion manager on the command line."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import asyncpg
import orjson
import pytest

from fedstac.db import nodes
from fedstac.demo import sample
from tests.support.commands import Fedstac, StartCommand, to
from tests.support.nodes import Api
from tests.support.waiting import PATIENCE, until

WAIT = {"Prefer": "wait=20"}
DATASETS = list(sample.items(2, versions=1))
IDS = [str(item["id"]) for item in DATASETS]
RULES = """
dependencies:
  - name: east
    contact: east@east.example
  - {name: doi-desk, owns_identifier: true, days: 14}
grace_days: 0
automatic: false
"""


@pytest.fixture
async def west(api: Api, fedstac: Fedstac, tmp_path: Path) -> Api:
    """With two datasets, and rules that a file gave."""
    body = {"type": "FeatureCollection", "features": DATASETS}
    assert (await api.admin.post("/collections/CMIP6/items", json=body, headers=WAIT)).status_code == 200
    (tmp_path / "rules.yaml").write_text(RULES)
    stored = await fedstac("deletion", "config", "CMIP6", "--set", str(tmp_path / "rules.yaml"), **to(api))
    assert (stored.code, stored.stdout.splitlines()[-1]) == (0, "version 1"), stored
    return api


async def mark(api: Api, *ids: str) -> None:
    for id in ids:
        answer = await api.admin.delete(f"/collections/CMIP6/items/{id}", params={"reason": "withdrawn"}, headers=WAIT)
        assert answer.status_code == 200, answer.text


async def waive_as(api: Api, name: str, id: str, dependency: str) -> None:
    conn = await asyncpg.connect(api.settings.dsn)
    token = await nodes.issue_token(conn, name, ["admin"])
    await conn.close()
    answer = await api.anyone.post(
        f"/deletions/{id}/waive", json={"name": dependency, "reason": "it is gone"},
        headers={"Authorization": f"Bearer {token}"},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text


async def test_rules_are_shown_tried_and_stored(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    shown = await fedstac("deletion", "config", "CMIP6", "-o", "json", **to(west))
    [document] = shown.lines
    assert [each["name"] for each in document["rules"]["dependencies"]] == ["east", "doi-desk"]
    assert document["rules"]["dependencies"][1]["days"] == 14
    text = (await fedstac("deletion", "config", "CMIP6", **to(west))).stdout
    assert "doi-desk" in text
    assert "owns the identifiers" in text
    file = tmp_path / "rules.json"
    file.write_bytes(orjson.dumps({**document["rules"], "grace_days": 3, "automatic": True, "schedule": "03:30"}))
    tried = await fedstac("deletion", "config", "CMIP6", "--set", str(file), "--dry-run", **to(west))
    assert tried.stdout.splitlines() == [
        "grace_days: 0.0 → 3.0", "automatic: false → true", 'schedule: "" → "03:30"', "no deletion is open",
        "nothing is stored",
    ]  # fmt: skip
    assert (await fedstac("deletion", "config", "CMIP6", "--set", str(file), **to(west))).code == 0
    [listed] = (await fedstac("deletion", "config", "-o", "ndjson", **to(west))).lines
    assert (listed["project"], listed["version"]) == ("CMIP6", 2)
    [first] = (await fedstac("deletion", "config", "CMIP6", "--version", "1", "-o", "json", **to(west))).lines
    assert first["rules"]["grace_days"] == 0
    file.write_text('{"dependencies": [{"name": "east", "dais": 3}]}')
    wrong = await fedstac("deletion", "config", "CMIP6", "--set", str(file), **to(west))
    assert wrong.code == 2
    assert "a dependency is a JSON object with some of name, required, days" in wrong.stderr
    for arguments in (
        ("CMIP6", "--dry-run"), ("--version", "1"), ("CMIP6", "--version", "1", "--set", str(file)),
    ):  # fmt: skip
        assert (await fedstac("deletion", "config", *arguments, **to(west))).code == 2, arguments
    unknown = await fedstac("deletion", "config", "CMIP6", "--version", "9", **to(west))
    assert (unknown.code, unknown.stderr) == (
        3, "fedstac: CMIP6 has no version 9 of its rules of deletion; ask without a version\n"
    )  # fmt: skip
    assert (await fedstac("deletion", "config", "CMIP6", **to(west, west.tokens["node:east"]))).code == 4


async def test_a_deletion_is_listed_reminded_waived_and_run(west: Api, fedstac: Fedstac) -> None:
    await mark(west, *IDS)
    entries = (await fedstac("deletion", "list", "-o", "ndjson", **to(west))).lines
    assert sorted(each["dataset"] for each in entries) == sorted(IDS)
    table = (await fedstac("deletion", "list", "-q", IDS[0], **to(west))).stdout.splitlines()
    assert table[0].split() == ["deletion", "state", "marked", "done", "dataset"]
    assert table[1].split()[-2:] == ["0/2", IDS[0]]

    reminded = await fedstac("deletion", "remind", IDS[0], "east", "-o", "json", **to(west))
    assert {each["name"]: each["reminders"] for each in reminded.lines[0]["dependencies"]} == {"east": 1, "doi-desk": 0}
    reason = ("--reason", "it is gone")
    assert (await fedstac("deletion", "waive", IDS[0], "east", *reason, **to(west))).code == 0
    half = await fedstac("deletion", "waive", IDS[0], "doi-desk", *reason, **to(west))
    assert half.code == 0
    assert "a second person has to waive it, too" in half.stderr
    unknown = await fedstac("deletion", "waive", IDS[0], "north", *reason, **to(west))
    assert (unknown.code, "waits for no dependency 'north'" in unknown.stderr) == (3, True)
    assert (await fedstac("deletion", "show", "nothing", **to(west))).code == 3
    shown = (await fedstac("deletion", "show", IDS[0], **to(west))).stdout
    assert "missing: doi-desk has not reported; two people can waive it" in shown
    assert "waived by admin: it is gone" in shown

    nothing = await fedstac("deletion", "run", **to(west))
    assert (nothing.code, nothing.stdout) == (0, "nothing is ready\n")
    for entry in entries:
        for name in ("east", "doi-desk"):
            for token in ("admin", "second"):
                await waive_as(west, token, entry["id"], name)
    tried = await fedstac("deletion", "run", "--dry-run", **to(west))
    assert tried.stdout.split() == ["CMIP6", "2", "datasets", "ready"]
    done = await fedstac("deletion", "run", "--project", "CMIP6", **to(west))
    assert (done.code, done.stdout) == (0, "2 datasets deleted, by 1 request\n")
    gone = await fedstac("deletion", "list", "--state", "deleted", "-o", "ndjson", **to(west))
    assert sorted(each["dataset"] for each in gone.lines) == sorted(IDS)


async def test_whoever_stops_waiting_is_told_what_goes_on_and_how_to_follow_it(
    west: Api, tmp_path: Path, start_command: StartCommand
) -> None:
    await mark(west, IDS[0])
    conn = await asyncpg.connect(west.settings.dsn)
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'ok'")
    holder = conn.transaction()
    await holder.start()
    await conn.execute("LOCK TABLE fedstac.outbox IN SHARE ROW EXCLUSIVE MODE")  # the workers wait at their events
    process = await start_command("deletion", "run", folder=tmp_path, **to(west))

    async def is_waiting() -> bool:
        return 'method="GET",route="/requests/' in (await west.admin.get("/metrics")).text

    await until(is_waiting)
    process.send_signal(signal.SIGINT)
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    await holder.rollback()
    await conn.close()
    pattern = r"goes on with 1 request; to follow the next: fedstac requests show ([0-9a-f-]{36})"
    found = re.search(pattern, stderr.decode())
    assert found, stderr
    assert process.returncode == 130
    status = await west.admin.get(f"/requests/{found[1]}")
    assert status.status_code == 200


async def test_a_dataset_that_no_search_finds_is_named_by_its_id_alone(api: Api, fedstac: Fedstac) -> None:
    """Its collection is asked of the server: what is under quarantine, marked or deleted, and of a very long id."""
    id = "thing-" + "x" * 200
    assert (await api.admin.post("/collections", json=sample.collection("plain"))).status_code == 201
    documents = [{**DATASETS[0], "id": name, "collection": "plain"} for name in (id, f"{id}y")]
    for document in documents:
        answer = await api.admin.post("/collections/plain/items", json=document, headers=WAIT)
        assert answer.status_code == 201, answer.text
    rules = {"grace_days": 0}
    stored = await api.admin.put("/deletions/rules/plain", json=rules, headers={"If-Match": "*"})
    assert stored.status_code == 200

    async def outcome(*arguments: str, **variables: str) -> str:
        done = await fedstac(*arguments, "-o", "json", **(variables or to(api)))
        return str(orjson.loads(done.stdout)[0]["outcome"]) if done.stdout else done.stderr

    reason = ("--reason", "look")
    assert await outcome("quarantine", id, *reason) == "quarantined"
    assert await outcome("release", id) == "released"
    assert await outcome("mark", id, *reason) == "marked"
    assert await outcome("mark", f"{id}y", *reason) == "marked"
    shown = await fedstac("deletion", "show", id, "-o", "json", **to(api))
    assert shown.lines[0]["dataset"] == id
    assert await outcome("unmark", id, **to(api, "publisher:NCAR")) == "rejected"
    assert await outcome("unmark", id) == "unmarked"
    assert await outcome("mark", id, *reason) == "marked"
    [deletion] = [each["id"] for each in (await api.admin.get("/deletions")).json()["deletions"]
                  if each["dataset"] == id and each["state"] == "open"]  # fmt: skip
    for token in ("admin", "second"):
        await waive_as(api, token, deletion, "identifier")
    assert await outcome("delete", id, "--yes") == "deleted"
    assert await outcome("purge", id, "--yes") == "purged"
