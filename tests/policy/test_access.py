"""Decisions explained, at a server and without one; policies that change; homes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedstac.demo import sample
from fedstac.identity import policy_files
from tests.support.commands import Fedstac
from tests.support.nodes import Api, StartApi
from tests.support.places import REPOSITORY

ITEMS = "/collections/CMIP6/items"
NCAR = [item for item in sample.items(300) if item["properties"]["cmip6:institution_id"] == "NCAR"]
OTHER = next(item for item in sample.items(300) if item["properties"]["cmip6:institution_id"] != "NCAR")
ID = NCAR[0]["id"]
ROBOT = """
version: 1
builtin: true
grants:
  - {name: observers, who: [{role: observer}, {group: cmip}], may: [publish], projects: [CMIP6],
     institutions: [NCAR], nodes: "*"}
"""


async def explained(
    client: httpx.AsyncClient, *who: str, action: str = "publish", item: str = ID, **parameters: str
) -> Any:
    answer = await client.get("/access/explain", params={"action": action, "item": item, "as": list(who), **parameters})
    return answer.json() if answer.status_code == 200 else answer.status_code


async def test_administrators_ask_about_anybody(api: Api) -> None:
    verdict = await explained(api.admin)
    assert (verdict["allowed"], verdict["rule"]) == (True, "builtin: administrators")
    by_name = await explained(api.admin, "publisher:NCAR")  # a token's name
    assert (by_name["allowed"], by_name["rule"], by_name["institution"]) == (True, "builtin: publishers", "NCAR")
    other = await explained(api.admin, "publisher:NCAR", item=OTHER["id"])
    assert (other["allowed"], other["rule"]) == (False, None)
    assert other["institution"] == OTHER["properties"]["cmip6:institution_id"]
    assert "is needed" in other["reason"]
    nodes = await explained(api.admin, "role:node:east", action="replicate", node="east")
    assert (nodes["allowed"], nodes["nodes"]) == (True, ["east"])
    entitled = "entitlement:urn:mace:egi.eu:group:esgf.vo.egi.eu:project:CMIP6:role=RETRACT#aai.egi.eu"
    assert (await explained(api.admin, entitled, action="retract"))["rule"] == "builtin: ESGF RETRACT"
    assert await explained(api.admin, "entitlement:urn:x") == 400
    assert await explained(api.admin, action="fly") == 400
    assert await explained(api.admin, item="") == 400


async def test_others_ask_about_themselves(api: Api) -> None:
    bearer = {"Authorization": f"Bearer {api.tokens['publisher:NCAR']}"}
    async with httpx.AsyncClient(base_url=api.url, headers=bearer, trust_env=False) as ncar:
        assert (await explained(ncar))["allowed"]
        assert (await explained(ncar, "publisher:NCAR"))["allowed"]
        assert await explained(ncar, "admin") == 403
        assert await explained(ncar, "role:admin") == 403
    assert await explained(api.anyone) == 401


async def test_members_of_a_group_are_asked_about_by_name(api: Api) -> None:
    await api.admin.post("/groups", json={"name": "ncar", "project": "CMIP6", "institution": "NCAR"})
    await api.admin.put("/groups/ncar/members/person:6f9c")
    assert (await explained(api.admin, "person:6f9c"))["rule"] == "builtin: own groups"
    assert (await explained(api.admin, "own:ncar"))["allowed"]
    assert not (await explained(api.admin, "own:ncar", item=OTHER["id"]))["allowed"]
    assert not (await explained(api.admin, "own:nope"))["allowed"]


async def test_a_policy_is_taken_up_while_the_node_runs(
    start_api: StartApi, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_files, "LOOK_SECONDS", 0.0)
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nbuiltin: true\n")
    node = await start_api(dsn=dsn, policy=str(path))
    await node.admin.post("/collections", json=sample.collection())
    bearer = {"Authorization": f"Bearer {node.tokens['node:east']}"}
    assert (await node.anyone.post(ITEMS, json=NCAR[0], headers=bearer)).status_code == 403
    path.write_text(ROBOT.replace("observer}", "'node:east'}"))
    assert (await node.anyone.post(ITEMS, json=NCAR[0], headers=bearer)).status_code == 201
    path.write_text("nonsense")
    assert (await node.anyone.post(ITEMS, json=NCAR[1], headers=bearer)).status_code == 201
    assert "FEDSTAC_POLICY" in (await node.admin.get("/me")).json()["policy_error"]


async def test_without_a_policy_a_right_of_one_project_is_none_in_another(api: Api) -> None:
    entitlement = (
        "entitlement:urn:mace:egi.eu:group:esgf.vo.egi.eu:project:CMIP6:institution:NCAR:role=CREATE#aai.egi.eu"
    )
    assert (await explained(api.admin, entitlement))["allowed"]
    assert not (await explained(api.admin, entitlement, collection="CMIP7", institution="NCAR"))["allowed"]


async def test_a_write_goes_to_the_home_of_its_lineage(
    start_api: StartApi, make_database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two publishing nodes; each takes what is at home there and sends the rest to the other."""
    monkeypatch.setattr(policy_files, "LOOK_SECONDS", 0.0)
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\n")
    names = {"west": NCAR[0], "south": OTHER}
    nodes = {
        name: await start_api(dsn=make_database(), node=name, policy=str(path), public_url=f"https://{name}.example")
        for name in names
    }
    path.write_text(f"""
version: 1
builtin: true
homes:
  - {{projects: [CMIP6], institutions: [NCAR], node: west, url: "{nodes["west"].url}"}}
  - {{projects: [CMIP6], institutions: "*", node: south, url: "{nodes["south"].url}"}}
""")
    for node in nodes.values():
        assert (await node.admin.post("/collections", json=sample.collection())).status_code == 201
    for name, item in names.items():
        elsewhere = next(node for other, node in nodes.items() if other != name)
        refused = await elsewhere.admin.post(ITEMS, json=item)
        assert refused.status_code == 421, refused.text
        assert refused.json()["code"] == "misdirected"
        assert refused.json()["home"] == {"node": name, "href": nodes[name].url}
        assert nodes[name].url in refused.json()["detail"]
        followed = await nodes[name].admin.post(refused.json()["home"]["href"] + ITEMS, json=item)
        assert followed.status_code == 201, followed.text
    batch = {"type": "FeatureCollection", "features": NCAR[1:3]}
    assert (await nodes["south"].admin.post(ITEMS, json=batch)).status_code == 421
    change = f"{ITEMS}/{OTHER['id']}"
    assert (await nodes["south"].admin.patch(change, json={"properties": {"latest": False}})).status_code == 200
    explanation = await explained(nodes["south"].admin)
    assert (explanation["allowed"], explanation["home"]["node"]) == (False, "west")


# --- the command line ---


async def test_explaining_at_the_command_line(api: Api, fedstac: Fedstac) -> None:
    at = {"FEDSTAC_URL": api.url, "FEDSTAC_TOKEN": api.tokens["admin"]}
    done = await fedstac("access", "explain", "publish", ID, "--as", "publisher:NCAR", "-o", "json", **at)
    assert (done.code, json.loads(done.stdout)["rule"]) == (0, "builtin: publishers")
    denied = await fedstac("access", "explain", "delete", ID, "--as", "publisher:NCAR", **at)
    assert denied.code == 4
    assert denied.stdout.startswith("denied")


async def test_explaining_without_a_server(fedstac: Fedstac, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(ROBOT)
    ask = ("access", "explain", "publish", ID, "--policy", "policy.yaml", "-o", "json")
    allowed = await fedstac(*ask, "--as", "group:cmip")
    assert (allowed.code, json.loads(allowed.stdout)["rule"]) == (0, "observers"), allowed.stderr
    denied = await fedstac(*ask, "--as", "group:other")
    assert (denied.code, json.loads(denied.stdout)["institution"]) == (4, "NCAR")
    assert (await fedstac(*ask, "--as", "entitlement:x")).code == 2
    assert (await fedstac(*ask[:-3], "missing.yaml")).code == 2


async def test_policy_files_are_checked(fedstac: Fedstac, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(ROBOT)
    (tmp_path / "bad.yaml").write_text("version: 1\ngrants: {}\nhomes: 5")
    assert (await fedstac("access", "check", "good.yaml")).code == 0
    bad = await fedstac("access", "check", "bad.yaml")
    assert bad.code == 1
    assert "line 2: grants is no list" in bad.stderr
    result = await fedstac("access", "check", "bad.yaml", "-o", "json")
    assert [fault.partition(":")[0] for fault in json.loads(result.stdout)["faults"]] == ["line 2", "line 3"]
    (tmp_path / "bad.yaml").write_text("version: 1\ncolour: 5")  # whose sentence has a semicolon in it
    result = await fedstac("access", "check", "bad.yaml", "-o", "json")
    assert [fault.partition(":")[0] for fault in json.loads(result.stdout)["faults"]] == ["line 2"]
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    (tmp_path / "example.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    assert (await fedstac("access", "check", "example.yaml")).code == 0
