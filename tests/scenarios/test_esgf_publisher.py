"""ESGF's own publisher, unchanged, against `fedstac demo`: publish, supersede, retract, replicas, aggregations, update.

It has an environment of its own (its pandas is older than ours may be), `.venv-esgcet`: tools/esgf_publisher.py makes
it, and `make test` runs that. Where its packages cannot be had this module is skipped; on CI it fails.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedstac.demo import sample
from fedstac.demo.sample import facts
from tests.scenarios.demonstrations import Demo, demo
from tests.scenarios.watching import wait_until
from tests.support.places import REPOSITORY

BIN = Path(os.environ.get("FEDSTAC_ESGCET") or REPOSITORY / ".venv-esgcet") / "bin"
IS_HERE = (BIN.parent / ".installed").is_file()
MISSING = "ESGF's publisher is not here: python tools/esgf_publisher.py makes it, or says why it cannot"
pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("esgf-publisher"),
    pytest.mark.skipif(not IS_HERE and not os.environ.get("CI"), reason=MISSING),
]
Json = dict[str, Any]
DRIVER = Path(__file__).with_name("esgf_publisher.py")
NODE = facts.NODES["CAS"]  # of replicas
LATER = 20300101
ITEM: Json = next(item for item in sample.items(200, seed=11) if ".NCAR." in str(item["id"]))
NAMES = {"variable_cf_standard_name": "cf_standard_name", "experiment": "experiment_title"}


def records(item: Json, day: int) -> list[Json]:
    """Return what esgcet knows of a dataset after it has scanned the files: records as its index had them."""
    properties = item["properties"]
    facets = {name.removeprefix("cmip6:"): value for name, value in properties.items() if name.startswith("cmip6:")}
    facets |= {NAMES[name]: facets[name] for name in NAMES if name in facets}
    files = {key: asset for key, asset in item["assets"].items() if "file:checksum" in asset}
    [first, *_] = files.values()
    instance = f"{properties['base_id']}.v{day}"
    dataset = {
        "type": "Dataset", "id": f"{instance}|{NODE}", "instance_id": instance,
        "master_id": properties["base_id"], "title": properties["base_id"],
        "version": str(day), "project": "CMIP6", "access": properties["access"], "latest": True,
        "data_node": first["alternate:name"], "datetime_start": properties["start_datetime"],
        "datetime_end": properties["end_datetime"], **facets,
        "citation_url": f"https://cera-www.dkrz.de/WDCC/meta/CMIP6/{instance}.json",
    }  # fmt: skip
    globus = "globus:ce0440bc-7bc2-4fde-aff7-f2105398b54c/data/"
    return [
        *({
            "type": "File", "title": key, "size": asset["file:size"], "checksum": f"{n:x}" * 64 if day == LATER else
            asset["file:checksum"][4:], "checksum_type": "SHA256", "tracking_id": asset["cmip6:tracking_id"],
            "timestamp": "2020-01-01T00:00:00Z",
            "url": [f"{asset['href']}|application/netcdf|HTTPServer", f"{globus}{key}|Globus|Globus"],
        } for n, (key, asset) in enumerate(files.items())),
        dataset,
    ]  # fmt: skip


class Publisher:
    """Somebody who has esgcet, its configuration file and a token in the file where esgcet keeps its tokens."""

    def __init__(self, folder: Path, running: Demo, name: str, token: str) -> None:
        self.home = folder / name
        self.home.mkdir()
        tokens = self.home / "tokens.json"
        tokens.write_text(json.dumps({"access_token": token, "expires_at": time.time() + 3600}))
        self.stac_config = {
            "stac_api": running.api,
            "stac_client": {"client_id": "esgcet", "redirect_uri": ""},
            "stac_transaction_api": {
                "client_id": "esgcet", "base_url": running.api, "scope_endpoint": f"{running.api}/scope",
            },
            "token_storage_file": str(tokens),
        }  # fmt: skip
        self.config = self.home / "esg.yaml"
        about = {"stac_config": self.stac_config, "data_node": NODE, "index_node": "none", "silent": "false",
                 "verbose": "true"}  # fmt: skip
        self.config.write_text(json.dumps(about))  # YAML is a superset

    def run(self, *command: str, code: int = 0) -> str:
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], "NO_PROXY": "*"}
        done = subprocess.run(
            command, env=environment, cwd=self.home, capture_output=True, text=True, timeout=600, check=False
        )
        report = f"{' '.join(command)[:200]}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-5000:]}"
        print(report)
        assert done.returncode == code, report
        return report

    def drive(self, action: str, **arguments: object) -> str:
        options_text = json.dumps({"stac_config": self.stac_config, **arguments})
        return self.run(str(BIN / "python"), str(DRIVER), action, options_text)

    def unpublish(self, dataset: str, *options: str) -> str:
        return self.run(str(BIN / "esgunpublish"), "--config", str(self.config), "--dset-id", dataset, *options)

    def add(self, dataset: str, *options: str) -> str:
        """Run esgadd. It exits with 1 also when all is well: its `run` returns nothing."""
        output = self.run(str(BIN / "esgadd"), "--config", str(self.config), "--dataset-id", dataset, *options, code=1)
        assert "Queued for update" in output
        return output


@pytest.fixture
def running(folder: Path) -> Iterator[Demo]:
    assert IS_HERE, MISSING
    with demo(folder, items=20) as made:
        yield made


def get(running: Demo, dataset: str) -> Json:
    found = httpx.get(f"{running.api}/collections/CMIP6/items/{dataset}", trust_env=False)
    assert found.status_code == 200, found.text
    return dict(found.json())


def shows(running: Demo, dataset: str, **wanted: object) -> None:
    def as_wanted() -> bool:
        found = get(running, dataset)["properties"]
        return {name: found.get(name) for name in wanted} == wanted

    wait_until(as_wanted, what=f"{dataset} shows {wanted}")


def test_esgf_publisher_unchanged(running: Demo, tmp_path: Path) -> None:
    """The publisher has a token of the demonstration's identity provider, the replica node one of the node's own."""
    publisher = Publisher(tmp_path, running, "publisher", running.log_in("nina"))
    replicas = Publisher(tmp_path, running, "node", running.about["tokens"][f"node:{NODE}"])
    item = copy.deepcopy(ITEM)
    day = int(item["properties"]["version"])
    old, new = item["id"], f"{item['properties']['base_id']}.v{LATER}"

    publisher.drive("publish", records=records(item, day))
    wait_until(lambda: httpx.get(f"{running.api}/collections/CMIP6/items/{old}", trust_env=False).is_success)
    shows(running, old, latest=True, retracted=False)

    publisher.drive("publish", records=records(item, LATER))  # finds the old one, supersedes it, publishes
    shows(running, old, latest=False)
    shows(running, new, latest=True)

    replicas.add(new, "--datanode", NODE, "--prefix", "css03_data")
    wait_until(lambda: NODE in get(running, new)["properties"].get("fedstac:replicas", {}))
    files = [asset for asset in get(running, new)["assets"].values() if "file:checksum" in asset]
    assert all(asset["alternate"][NODE]["file:checksum"] == asset["file:checksum"] for asset in files)

    publisher.add(new, "--datanode", "west.example", "--agg", "kerchunk", "--agg-url", "https://west.example/agg.json")
    wait_until(lambda: "reference_file" in get(running, new)["assets"])
    replicas.drive("aggregation", id=new, collection="CMIP6", asset={
        "site": NODE, "href": f"https://{NODE}/agg.json", "type": "application/kerchunk",
    })  # fmt: skip
    wait_until(lambda: NODE in get(running, new)["assets"]["reference_file"].get("alternate", {}))
    replicas.unpublish(new, "--agg", "--data-node", NODE)
    wait_until(lambda: "alternate" not in get(running, new)["assets"]["reference_file"])
    publisher.unpublish(new, "--agg", "--data-node", "west.example")
    wait_until(lambda: "reference_file" not in get(running, new)["assets"])

    # its update of a property reads the value beside `properties`, so both are said
    publisher.drive("update", id=new, changes={"properties": {"title": 1}, "title": item["properties"]["title"]})
    publisher.drive("update", id=new, changes={"links": [
        {"rel": "related", "href": "https://errata.esgf.io/1", "title": "Errata issue", "type": "text/html"}
    ]})  # fmt: skip
    wait_until(lambda: any(link["rel"] == "related" for link in get(running, new)["links"]))

    before = get(running, new)
    publisher.unpublish(new)  # retracts: of its three operations one empties the assets
    shows(running, new, latest=False, retracted=True)
    running.admin("POST", f"/collections/CMIP6/items/{new}/reinstate")
    shows(running, new, latest=True, retracted=False)
    assert get(running, new)["assets"] == before["assets"]

    assert "Error 403" in replicas.unpublish(
        new, "--deprecate"
    )  # a node's token is no publisher's: refused, and nothing changes
    publisher.unpublish(new, "--deprecate")
    shows(running, new, latest=False, retracted=False)
