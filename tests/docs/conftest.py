"""A small federation and a folder with what the pages mention, for their commands to run in."""

from __future__ import annotations

import copy
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from fedstac.demo import brokers, embedded, sample
from fedstac.demo.federation import federation
from tests.docs.shell import REPOSITORY
from tests.scan import files
from tests.scenarios import watching
from tests.scenarios.watching import Publisher, settle, wait_until
from tests.support.forking import Forks
from tests.support.pages import NODES, PASSWORD, Site


@pytest.fixture(scope="module")
def site(command_forks: Forks, forked_federations: None, copied: None) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="fedstac-docs-"))
    folder.chmod(0o755)
    try:
        with _federation(folder, command_forks) as made:
            yield made
    finally:
        shutil.rmtree(folder)


@contextmanager
def _federation(folder: Path, forks: Forks) -> Iterator[Site]:
    settings = {"fsync": "off", "shared_buffers": "32MB"}
    with (
        embedded.cluster(folder / "pg", settings=settings) as cluster,
        federation(cluster, index_nodes=("east", "replica"), publishing=NODES) as running,
        brokers.nats_server(folder / "nats") as nats,
    ):
        running.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_SMTP="smtp://127.0.0.1:1")
        running.start_publishing_node("north")
        running.make_database("east")
        running.make_database("replica")
        watching.make_collection(running)
        items = _two_versions_and_another()
        Publisher(running).publish(items)
        settle(running, ())
        site = Site(running, cluster, folder, items, nats)
        for role in ("owner", "writer", "sequencer", "reader", "auditor", "deleter"):
            site.as_superuser(f"ALTER ROLE fedstac_{role} PASSWORD '{PASSWORD}'")
        _write_files(site)
        (folder / "programs").mkdir()
        forks.write_program(folder / "programs")
        running.start("replica", "replica-node", **{**site.replica_settings, "FEDSTAC_PORT": "0"})
        wait_until(lambda: watching.values(running, "SELECT id FROM fedstac.replica_dataset", at="replica"))
        yield site


def _two_versions_and_another() -> list[dict[str, object]]:
    """Return the newest version of a dataset of NCAR, a version of another one, and the older versions of the first."""
    lineages: dict[str, list[dict[str, object]]] = {}
    for item in sample.items(2000):
        if ".NCAR." in str(item["id"]):
            lineages.setdefault(str(item["id"]).rpartition(".v")[0], []).append(item)
    several, *others = sorted(lineages.values(), key=len, reverse=True)
    *older, newest = sorted(several, key=lambda item: str(item["id"]))
    return [newest, others[0][0], *older]


def _write_files(site: Site) -> None:
    """Write the files that pages mention."""
    work = site.folder / "work"
    work.mkdir()
    (site.folder / "home").mkdir()
    (site.folder / "home" / ".curlrc").write_text("fail\nsilent\nshow-error\n")  # a refusal is a failure
    new = list(sample.items(20, start=40, versions=1))
    lines = b"".join(orjson.dumps(item) + b"\n" for item in new)
    for name in ("items.ndjson", "my-items.ndjson"):
        (work / name).write_bytes(lines)
    (work / "item.json").write_bytes(orjson.dumps(copy.deepcopy(new[0])))
    subprocess.run(["gzip", "--keep", "items.ndjson"], cwd=work, check=True)
    operations = (REPOSITORY / "docs/operations.md").read_text()
    (work / "policy.yaml").write_text(operations.partition("```yaml\n")[2].partition("```")[0])
    replication = (REPOSITORY / "docs/replication.md").read_text()
    (work / "replica.yaml").write_text(replication.partition("```yaml\n")[2].partition("```")[0])
    (site.folder / "files").mkdir()
    data = site.folder / "data"
    files.amon().write(files.drs(data))
    (work / "site.toml").write_text(
        f'node = "west.example"\n[[roots]]\nfolder = "{data}"\n[roots.urls]\nhttps = "https://west.example/data"\n'
    )
    (work / "cv").symlink_to(REPOSITORY / "cv")
    (work / "deploy").symlink_to(REPOSITORY / "deploy")
