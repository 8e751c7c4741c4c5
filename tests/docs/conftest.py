"""A small federation and a folder with what the pages mention, for their commands to run in."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import psycopg
import pytest

from fedstac.demo import embedded, sample
from fedstac.demo.federation import WEST, Federation, federation
from tests.docs.shell import REPOSITORY, Command
from tests.scan import files
from tests.scenarios import watching
from tests.scenarios.watching import Publisher, settle

NODES = ("west", "north")
PASSWORD = "secret"
STOP = "kill $(jobs -p) 2>/dev/null; wait"
# Exit codes other than 0 that a command of the pages is meant to have.
CODES = {
    "fedstac vocab diff": 1,  # they differ
    "fedstac replica verify": 1,  # nobody has the files
    "fedstac access explain publish": 4,  # robot may not
    "fedstac get ID;": 1,  # ends with a diff
}
SERVERS = re.compile(r"^(?:[A-Z_]+=(?:\"[^\"]*\"|\S*) )*fedstac (serve|worker|sequencer|index-node)\b")


@dataclass
class Site:
    """Where commands run."""

    running: Federation
    cluster: embedded.Cluster
    folder: Path
    published: Sequence[Mapping[str, object]]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a reader: the programs, PostgreSQL as its superuser, west, an administrator's token."""
        programs = (Path(sys.executable).parent, embedded.find_binaries(), os.environ["PATH"])
        return {
            "PATH": ":".join(map(str, programs)), "HOME": str(self.folder / "home"), "LC_ALL": "C.UTF-8",
            "TERM": "dumb", "COLUMNS": "200", "PGHOST": "127.0.0.1", "PGPORT": str(self.cluster.port),
            "PGUSER": "postgres", "PGPASSWORD": self.cluster.superuser_password,
            "FEDSTAC_URL": self.running.west, "FEDSTAC_TOKEN": self.running.tokens["admin"], "FEDSTAC_NODE": WEST,
            "FEDSTAC_DSN": self.running.database_of(WEST), "FEDSTAC_PORT": "0",
            "FEDSTAC_OWNER_DSN": self.cluster.dsn("fedstac_west", user="fedstac_owner"),
        }  # fmt: skip

    def dsn(self, database: str, user: str) -> str:
        """Return a DSN by TCP and with a password, as a reader writes it."""
        return f"postgresql://{user}:{PASSWORD}@127.0.0.1:{self.cluster.port}/{database}"

    def as_superuser(self, statement: str) -> None:
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as conn:
            conn.execute(statement.encode())

    def run(self, commands: Sequence[tuple[Command, str]], settings: Mapping[str, str]) -> list[str]:
        """Run the commands of a section in one shell, each as the text beside it. Return those that failed.

        A command that serves is started, and has to get ready. It ends with the section, or before a rebuild.
        """
        script = ["cd work"]
        for n, (_, text) in enumerate(commands):
            if SERVERS.match(text):
                script.append(
                    f"{text} --ready-file ../ready-{n} >../out-{n} 2>&1 </dev/null &\n"
                    f"pid=$!; until [ -e ../ready-{n} ] || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done\n"
                    f"[ -e ../ready-{n} ]; echo $? >../code-{n}"
                )
            else:
                if text.startswith("fedstac rebuild"):
                    script.append(STOP)
                script.append(f"{{ {text}\n}} >../out-{n} 2>&1 </dev/null; echo $? >../code-{n}")
        place = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(self.folder / "work", place / "work", symlinks=True)
        subprocess.run(
            ["bash", "-c", "\n".join([*script, STOP])],
            cwd=place,
            env={**self.environment, **settings},
            timeout=600,
            check=False,
        )
        failures = []
        for n, (command, _) in enumerate(commands):
            code = (place / f"code-{n}").read_text().strip() if (place / f"code-{n}").exists() else "nothing"
            if code != str(next((given for start, given in CODES.items() if command.text.startswith(start)), 0)):
                failures.append(f"{command}\n  gave {code}: {(place / f'out-{n}').read_text()[-600:]}")
        return failures


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="fedstac-docs-"))
    folder.chmod(0o755)
    try:
        with _federation(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder)


@contextmanager
def _federation(folder: Path) -> Iterator[Site]:
    settings = {"fsync": "off", "shared_buffers": "32MB"}
    with (
        embedded.cluster(folder / "pg", settings=settings) as cluster,
        federation(cluster, index_nodes=("east",), publishing=NODES) as running,
    ):
        running.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_SMTP="smtp://127.0.0.1:1")
        running.start_publishing_node("north")
        running.make_database("east")
        watching.make_collection(running)
        items = _two_versions_and_another()
        Publisher(running).publish(items)
        settle(running, ())
        site = Site(running, cluster, folder, items)
        for role in ("owner", "writer", "sequencer", "reader", "auditor", "deleter"):
            site.as_superuser(f"ALTER ROLE fedstac_{role} PASSWORD '{PASSWORD}'")
        _write_files(site)
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
    data = site.folder / "data"
    files.amon().write(files.drs(data))
    (work / "site.toml").write_text(
        f'node = "west.example"\n[[roots]]\nfolder = "{data}"\n[roots.urls]\nhttps = "https://west.example/data"\n'
    )
    (work / "cv").symlink_to(REPOSITORY / "cv")
    (work / "deploy").symlink_to(REPOSITORY / "deploy")
