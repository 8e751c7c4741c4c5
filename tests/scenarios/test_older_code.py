"""Code from before the newest migration works on the schema after it, as docs/upgrade.md promises: read and publish.

The code comes from the history of the repository: the commit before the one that brought the newest migration.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedstac.demo import embedded
from fedstac.demo.federation import federation
from fedstac.settings import folder as folder_of
from tests.scenarios import watching
from tests.scenarios.watching import Publisher, client, fresh_items, settle, values, violations
from tests.support.places import REPOSITORY

pytestmark = [pytest.mark.xdist_group("older-code"), pytest.mark.history]
PARTS = ("src/fedstac", "migrations", "cv", "extensions", "pyproject.toml")
PRESENT = [name for name in PARTS if (REPOSITORY / name).exists()]


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, check=True).stdout


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The folder of sources of the code before the newest migration."""
    newest = max(path for path in folder_of("migrations").glob("*.sql"))
    log = git("log", "--diff-filter=A", "--no-renames", "--format=%H", "--", f"migrations/{newest.name}")
    added = log.decode().split()
    before = f"{added[-1]}^" if added else "HEAD"  # HEAD: the migration is not committed yet
    archive = git("archive", "--format=tar", before, "--", *PRESENT)
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(tmp_path, filter="data")
    assert not (tmp_path / "migrations" / newest.name).exists()
    sources = tmp_path / "src"
    imported = [sys.executable, "-c", "import fedstac; print(fedstac.__file__)"]
    where = subprocess.run(
        imported, env={"PYTHONPATH": str(sources)}, cwd="/", capture_output=True, check=True, text=True
    )
    assert where.stdout.strip() == str(sources / "fedstac" / "__init__.py")
    return sources


def described(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "properties": {**item["properties"], "description": "published again"}}


def test_older_code_reads_and_publishes_on_the_newest_schema(durable: embedded.Cluster, older: Path) -> None:
    """A request that the older API accepts is worked on by a newer worker, and the other way round."""
    with federation(durable, index_nodes=("east",), prefix="older_") as running:
        running.start("serve", "serve", FEDSTAC_PORT="0", PYTHONPATH=str(older))
        watching.make_collection(running)
        publisher, items = Publisher(running), fresh_items(40)
        publisher.publish(items[:20], batch=10)
        settle(running, ())

        running.start("newer", "worker")
        publisher.publish([described(item) for item in items], batch=10)
        settle(running, ())
        assert values(running, "SELECT status FROM fedstac.request_item WHERE status <> 'done'") == []
        with client(running) as http:
            found = http.get("/search", params={"limit": 100}).raise_for_status().json()
            assert found["numberMatched"] == len(found["features"]) == 40
            for item in items[::10]:
                answer = http.get(f"/collections/CMIP6/items/{item['id']}").raise_for_status().json()
                assert answer["properties"]["description"] == "published again"
            retraction = {"reason": "wrong units"}
            path = f"/collections/CMIP6/items/{items[0]['id']}/retract"
            http.post(path, json=retraction, headers={"Prefer": "wait=60"}).raise_for_status()
        settle(running, ())
        assert violations(running, "west") == []
