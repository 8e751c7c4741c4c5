"""Backups: a publishing node is restored, serves and publishes, and its index nodes follow on without a wrong record.

East has read no more than the backup has. South has read what the restored node does not know. Worse for it, the node
publishes half of that again with other contents, so that positions and numbers of versions come a second time.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fedstac.demo import embedded
from fedstac.demo.federation import Federation, federation
from tests.docs.shell import REPOSITORY, commands
from tests.scenarios import watching
from tests.scenarios.watching import Publisher, digests, fresh_items, log_lines, settle, violations, wait_until
from tests.support.forking import Forks

pytestmark = [
    pytest.mark.xdist_group("backup"), pytest.mark.long, pytest.mark.usefixtures("forked_federations"),
]  # fmt: skip
SMALL = {"fsync": "off", "shared_buffers": "32MB"}  # the machine stays on: no test here needs a durable disk


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the test's own that the account of PostgreSQL can enter."""
    made = Path(tempfile.mkdtemp(prefix="fedstac-backup-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@dataclass
class Servers:
    """The PostgreSQL where all nodes begin, and the one where west's database is now."""

    first: embedded.Cluster
    of_west: embedded.Cluster
    west_is: str = "fedstac_west"  # its database; a second restore has another

    def dsn(self, database: str = "postgres", *, user: str = "postgres") -> str:
        if database == "fedstac_west":
            return self.of_west.dsn(self.west_is, user=user)
        return self.first.dsn(database, user=user)


@dataclass
class BackedUpSite:
    """The federation, its servers, and a folder that they may write to."""

    running: Federation
    servers: Servers
    folder: Path
    clusters: ExitStack
    lost_items: list[dict[str, Any]] = field(default_factory=list)

    def start_cluster(self, name: str, **settings: str) -> embedded.Cluster:
        return self.clusters.enter_context(embedded.cluster(self.folder / name, settings=SMALL | settings))

    def publish_what_is_lost(self) -> None:
        """Stop east. Then publish datasets that no backup has, and wait until south shows them."""
        self.running.processes["east"].kill()
        self.lost_items = fresh_items(60)
        Publisher(self.running).publish(self.lost_items)
        settle(self.running, ("south",))

    def serve_restored(self) -> None:
        """Start west's process again, at the same address, on the database where it is now."""
        self.running.restart("serve", FEDSTAC_DSN=self.running.database_of("west"))

    def go_on(self) -> None:
        """Start east again, and publish half of what was lost with other contents, and more."""
        if not self.running.processes["east"].is_running:
            self.running.restart("east")
        again = [described(item, "published again") for item in self.lost_items[::2]]
        Publisher(self.running).publish([*again, *fresh_items(60)])
        settle(self.running, ("east", "south"))

    def assert_alike(self) -> None:
        """Check that every node has the same datasets, and that every invariant holds."""
        __tracebackhide__ = True
        for name in ("west", "east", "south"):
            assert violations(self.running, name) == [], f"invariants at {name}"
            assert digests(self.running, name) == digests(self.running, "west"), f"{name} has wrong records"
        for name in ("east", "south"):
            assert watching.differences(self.running, name) == []

    def snapshots(self, name: str) -> int:
        """Return how many snapshots an index node has taken since it was made."""
        return len(log_lines(self.running, name, "snapshot complete"))


def described(item: Mapping[str, Any], text: str) -> dict[str, Any]:
    changed = copy.deepcopy(dict(item))
    changed["properties"]["description"] = text
    return changed


@contextmanager
def backed(folder: Path, **settings: str) -> Iterator[BackedUpSite]:
    """Start west with 60 datasets, which east and south have. `settings`: of their PostgreSQL."""
    with ExitStack() as clusters:
        first = clusters.enter_context(embedded.cluster(folder / "a", settings=SMALL | settings))
        servers = Servers(first, first)
        with federation(servers, index_nodes=("east", "south")) as running:
            running.start("serve", "serve", FEDSTAC_PORT="0")
            watching.make_collection(running)
            for name in ("east", "south"):
                running.start_index_node(name, snapshot_first=False)
            Publisher(running).publish(fresh_items(60))
            settle(running, ("east", "south"))
            yield BackedUpSite(running, servers, folder, clusters)


def run(cluster: embedded.Cluster, *command: str | Path, fed: str = "", **settings: str) -> str:
    """Run a program of PostgreSQL, or fedstac, as the cluster's superuser; what it prints."""
    environment = {
        "PATH": f"{embedded.find_binaries()}:{os.environ['PATH']}", "PGHOST": str(cluster.socket_dir),
        "PGPORT": str(cluster.port), "PGUSER": "postgres", **settings,
    }  # fmt: skip
    done = subprocess.run(command, env=environment, input=fed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def restore(forks: Forks, dump: Path, cluster: embedded.Cluster, database: str) -> None:
    """Restore a dump as docs/backup.md says."""
    run(cluster, "createdb", database)
    run(cluster, "psql", "--quiet", "-d", database, fed=run(cluster, *forks.program, "migrate", "--print-setup"))
    run(cluster, "pg_restore", "--exit-on-error", f"--dbname={database}", dump)
    run(cluster, *forks.program, "migrate", FEDSTAC_OWNER_DSN=cluster.dsn(database, user="fedstac_owner"))


def test_a_dump_is_restored_elsewhere_twice_and_the_index_nodes_follow_on(folder: Path, command_forks: Forks) -> None:
    with backed(folder) as site:
        dump = folder / "fedstac.dump"
        run(site.servers.first, "pg_dump", "--format=custom", f"--file={dump}", "fedstac_west")
        site.publish_what_is_lost()
        site.running.processes["serve"].kill()

        site.servers.of_west = site.start_cluster("b")
        restore(command_forks, dump, site.servers.of_west, "fedstac_west")
        site.serve_restored()
        site.go_on()
        site.assert_alike()
        assert (site.snapshots("east"), site.snapshots("south")) == (0, 1)
        first = watching.values(site.running, "SELECT max(n) FROM fedstac.epoch")

        site.running.processes["serve"].kill()
        site.servers.west_is = "fedstac_again"
        restore(command_forks, dump, site.servers.of_west, "fedstac_again")
        site.lost_items = fresh_items(40)
        site.serve_restored()
        site.go_on()
        site.assert_alike()
        assert (site.snapshots("east"), site.snapshots("south")) == (1, 2)
        assert watching.values(site.running, "SELECT max(n) FROM fedstac.epoch") > first


def test_a_base_backup_is_recovered_to_an_earlier_moment_and_the_index_nodes_follow_on(folder: Path) -> None:
    """Recover with the commands of docs/backup.md, but for the places and the moment."""
    archive = folder / "wal"
    archive.mkdir()
    archive.chmod(0o777)
    with backed(folder, archive_mode="on", archive_command=f"test ! -f {archive}/%f && cp %p {archive}/%f") as site:
        base_backup(site)
        Publisher(site.running).publish(fresh_items(40))
        settle(site.running, ("east", "south"))
        moment = ask(site.servers.first, "SELECT clock_timestamp()")
        site.publish_what_is_lost()
        site.running.processes["serve"].kill()
        segment = ask(site.servers.first, "SELECT pg_walfile_name(pg_switch_wal())")
        wait_until(lambda: (archive / segment).exists(), what=f"{segment} is archived")

        for command in of_the_page("Recover to a moment")[:3]:
            run(site.servers.first, "bash", "-c", as_here(command, folder).replace("2026-03-01 12:00:00+00", moment))
        give_to_postgres(site, folder / "b")
        site.servers.of_west = site.start_cluster("b")
        site.serve_restored()
        site.go_on()
        site.assert_alike()
        assert (site.snapshots("east"), site.snapshots("south")) == (0, 1)


def of_the_page(section: str) -> list[str]:
    return [command.text for command in commands(REPOSITORY / "docs/backup.md") if command.section == section]


def as_here(command: str, folder: Path) -> str:
    """Return a command of the page with the places of this test."""
    places = {
        "/backup/base": folder / "base",
        "/backup/wal": folder / "wal",
        "/var/lib/postgresql/restored": folder / "b" / "pgdata",
    }
    for place, here in places.items():
        command = command.replace(place, str(here))
    return command


def base_backup(site: BackedUpSite) -> None:
    """Take one with the command of the page; make the folder that it will be copied into."""
    (site.folder / "b").mkdir()
    [command] = of_the_page("Base backup and archive")
    run(site.servers.first, "bash", "-c", as_here(command, site.folder))


def give_to_postgres(site: BackedUpSite, folder: Path) -> None:
    """Let a copied data folder belong to the account that PostgreSQL runs as."""
    shutil.copy(site.folder / "a" / "password", folder / "password")
    owner = (site.folder / "a" / "pgdata").stat()
    for path in (folder / "password", folder / "pgdata", *(folder / "pgdata").rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def ask(cluster: embedded.Cluster, statement: str) -> str:
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        [[value]] = conn.execute(statement.encode()).fetchall()
        return str(value)


def test_a_disk_that_is_put_back_shows_to_who_read_more_until_an_operator_starts_an_epoch(
    folder: Path, command_forks: Forks
) -> None:
    """A base backup that is started without recovery is what a snapshot of the disk is: the same cluster, earlier."""
    with backed(folder) as site:
        base_backup(site)
        (folder / "base").rename(folder / "b" / "pgdata")
        give_to_postgres(site, folder / "b")
        site.publish_what_is_lost()
        site.running.processes["serve"].kill()

        site.servers.of_west = site.start_cluster("b")
        site.serve_restored()
        lost = "the source has lost a part of its log; nothing is taken from it"
        wait_until(lambda: log_lines(site.running, "south", lost))
        run(
            site.servers.of_west,
            *command_forks.program,
            "admin",
            "new-epoch",
            "--dsn",
            site.running.database_of("west"),
        )
        site.go_on()
        site.assert_alike()
        assert (site.snapshots("east"), site.snapshots("south")) == (1, 1)
