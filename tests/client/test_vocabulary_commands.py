"""Installing a vocabulary into a node that serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedstac.demo import sample
from fedstac.settings import folder
from tests.support.commands import Fedstac
from tests.support.nodes import Api, StartApi
from tests.support.vocabulary_versions import NEW, OLD, ONLY_NEW, of_model
from tests.support.waiting import until

SNAPSHOT = folder("cv") / "CMIP6" / f"{NEW}.json"


@pytest.fixture
async def behind(dsn: str, start_api: StartApi, tmp_path: Path) -> Api:
    """A node that has the old version only."""
    (tmp_path / "old" / "CMIP6").mkdir(parents=True)
    (tmp_path / "old" / "CMIP6" / f"{OLD}.json").write_bytes((folder("cv") / "CMIP6" / f"{OLD}.json").read_bytes())
    api = await start_api(dsn=dsn, cv_folder=str(tmp_path / "old"))
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    return api


async def test_a_node_that_serves_takes_it_up(behind: Api, fedstac: Fedstac, dsn: str) -> None:
    item = of_model(ONLY_NEW)
    assert (await behind.admin.post("/collections/CMIP6/items", json=item)).status_code == 400
    done = await fedstac("vocab", "install", str(SNAPSHOT), FEDSTAC_DSN=dsn)
    assert done.code == 0, done.stderr
    assert f"CMIP6 {NEW}" in done.stdout

    async def taken() -> bool:
        return (await behind.admin.post("/collections/CMIP6/items", json=item)).status_code == 201

    await until(taken)
    listed = (await behind.anyone.get("/vocabularies/CMIP6")).json()["vocabularies"]
    assert [(entry["version"], entry["current"]) for entry in listed] == [(OLD, False), (NEW, True)]
    again = await fedstac("vocab", "install", str(SNAPSHOT), "-o", "json", FEDSTAC_DSN=dsn)
    assert (again.code, json.loads(again.stdout)["installed"][0]["version"]) == (0, NEW)


async def test_what_would_harm_is_not_installed(fedstac: Fedstac, dsn: str, tmp_path: Path) -> None:
    changed = tmp_path / "changed.json"
    changed.write_bytes(SNAPSHOT.read_bytes().replace(b'"title":"CMIP6"', b'"title":"CMIP7"', 1))
    lost = tmp_path / "lost.json"
    content = json.loads(SNAPSHOT.read_bytes()) | {"version": "7.0"}
    content["terms"]["source_id"] = dict(list(content["terms"]["source_id"].items())[:20])
    lost.write_text(json.dumps(content))
    for path, says in (
        (changed, "other content"),
        (lost, "terms are gone"),
        (tmp_path / "none.json", "cannot be read"),
    ):
        done = await fedstac("vocab", "install", str(path), FEDSTAC_DSN=dsn)
        assert done.code in (1, 2), done.stderr
        assert says in done.stderr
    accepted = await fedstac("vocab", "install", str(lost), "--accept-losses", FEDSTAC_DSN=dsn)
    assert accepted.code == 0, accepted.stderr
