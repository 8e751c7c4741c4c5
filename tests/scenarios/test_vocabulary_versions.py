"""Datasets are judged by the version they were published under: on every node, also after restarts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from fedstac import settings
from fedstac.demo import embedded
from fedstac.demo.federation import Federation, federation
from tests.scenarios import watching
from tests.scenarios.watching import Publisher, client, differences, settle, values, wait_until
from tests.support.vocabulary_versions import NEW, OLD, ONLY_NEW, ONLY_OLD, of_model

pytestmark = [
    pytest.mark.xdist_group("vocabulary-versions"), pytest.mark.usefixtures("forked_federations", "copied"),
]  # fmt: skip


@pytest.fixture(scope="module")
def newer(folder: Path) -> str:
    """A folder of vocabularies without the old version."""
    (folder / "cv" / "CMIP6").mkdir(parents=True)
    shutil.copy(settings.folder("cv") / "CMIP6" / f"{NEW}.json", folder / "cv" / "CMIP6")
    return str(folder / "cv")


@pytest.fixture
def running(durable: embedded.Cluster, newer: str) -> Iterator[Federation]:
    """West, which stays with the old version, and east, which never had it."""
    with federation(durable, index_nodes=("east",), prefix="versions_") as made:
        made.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_CV_PINS=json.dumps({"CMIP6": OLD}))
        watching.make_collection(made)
        made.start_index_node("east", FEDSTAC_CV_FOLDER=newer)
        yield made


def judged_with(running: Federation, name: str) -> dict[str, str]:
    with psycopg.connect(running.database_of(name)) as conn:
        return dict(conn.execute("SELECT id, cv_version FROM fedstac.record").fetchall())


def kept(running: Federation, name: str) -> list[tuple[Any, ...]]:
    """Return the vocabularies that a node has beyond those of its folder, and from where."""
    with psycopg.connect(running.database_of(name)) as conn:
        return conn.execute("SELECT project, version, source FROM fedstac.vocabulary ORDER BY 1, 2").fetchall()


def refused(running: Federation, document: dict[str, Any]) -> set[str]:
    with client(running) as http:
        response = http.post("/collections/CMIP6/items", json=document)
    assert response.status_code == 400, response.text
    return {finding["rule"] for finding in response.json()["errors"]}


def test_every_node_judges_with_the_version_of_the_dataset(running: Federation) -> None:
    old, new = of_model(ONLY_OLD), of_model(ONLY_NEW)
    publisher = Publisher(running)
    assert "term" in refused(running, new)
    publisher.publish([old])
    settle(running)
    assert judged_with(running, "east") == {old["id"]: OLD}
    assert kept(running, "east") == [("CMIP6", OLD, "west")]

    running.processes["serve"].kill()
    running.restart("serve", FEDSTAC_CV_PINS="{}")
    running.processes["east"].kill()
    running.restart("east")
    fresh = json.loads(json.dumps(old).replace(old["properties"]["version"], "20991231"))
    assert "term" in refused(running, fresh)
    publisher.publish([new])
    settle(running)
    expected = {old["id"]: OLD, new["id"]: NEW}
    assert judged_with(running, "west") == judged_with(running, "east") == expected
    assert differences(running, "east") == []

    with psycopg.connect(running.database_of("east"), autocommit=True) as conn:  # as on a node that begins anew
        conn.execute("DELETE FROM fedstac.consumer_cursor")
        conn.execute("DELETE FROM fedstac.record")
    running.processes["east"].kill()
    running.restart("east")
    wait_until(lambda: judged_with(running, "east") == expected, what="east from a snapshot")
    served = httpx.get(f"{running.processes['east'].url}/collections/CMIP6/items/{old['id']}", trust_env=False).json()
    assert served["properties"]["fedstac:cv_version"] == OLD
    listed = httpx.get(f"{running.processes['east'].url}/vocabularies/CMIP6", trust_env=False).json()["vocabularies"]
    assert [entry["version"] for entry in listed] == [OLD, NEW]


def test_what_is_shipped_no_more_goes_on_judging_what_it_judged(durable: embedded.Cluster, newer: str) -> None:
    """West is updated to a package that lacks the version of its datasets, before any other node had it."""
    item = of_model(ONLY_OLD)
    with federation(durable, index_nodes=("east",), prefix="shipped_") as running:
        running.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_CV_PINS=json.dumps({"CMIP6": OLD}))
        watching.make_collection(running)
        Publisher(running).publish([item])
        settle(running, nodes=())
        running.processes["serve"].kill()
        running.restart("serve", FEDSTAC_CV_PINS="{}", FEDSTAC_CV_FOLDER=newer)

        link = {"rel": "related", "type": "text/html", "title": "Errata issue", "href": "https://errata.esgf.io/1"}
        errata = [{"op": "add", "path": "/links/-", "value": link}]
        with client(running) as http:
            patched = http.patch(f"/collections/CMIP6/items/{item['id']}", json=errata)
        assert patched.status_code == 202, patched.text
        settle(running, nodes=())
        assert set(values(running, "SELECT status FROM fedstac.request_item")) == {"done"}
        served = httpx.get(f"{running.west}/vocabularies/CMIP6/{OLD}", trust_env=False)
        assert served.content == (settings.folder("cv") / "CMIP6" / f"{OLD}.json").read_bytes()

        running.start_index_node("east", snapshot_first=False, FEDSTAC_CV_FOLDER=newer)
        settle(running)
        assert judged_with(running, "east") == {item["id"]: OLD}
        assert ("CMIP6", OLD, "west") in kept(running, "east")
        assert differences(running, "east") == []
