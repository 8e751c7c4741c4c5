"""The private PostgreSQL, started and killed for real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from fedstac.demo import embedded
from fedstac.demo.embedded import Cluster, cluster
from tests.support.processes import is_running
from tests.support.waiting import PATIENCE

QUICK = {"fsync": "off", "shared_buffers": "16MB"}

# a process that starts a cluster on a folder, tells the pid and the socket folder, and waits to be killed
HOLDER = """
import sys, time
from pathlib import Path
from fedstac.demo.embedded import cluster
with cluster(Path(sys.argv[1]), settings={"shared_buffers": "16MB"}) as started:
    print(started.pid, started.socket_dir, flush=True)
    time.sleep(3600)
"""


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """Yield an empty folder that PostgreSQL's account can enter; root's tmp_path is below a 0700 one."""
    made = Path(tempfile.mkdtemp(prefix="fedstac-test-", dir="/tmp"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_folder() as made:
        yield made


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """One for the tests that only look."""
    with reachable_folder() as made, cluster(made, settings=QUICK) as started:
        yield started


@pytest.fixture
def holder(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Another process with a cluster on the folder: the process, the server's pid, the socket folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, sockets = process.stdout.readline().split()
        yield process, int(pid), Path(sockets)
        process.kill()
    eventually(lambda: not is_running(int(pid)))


def ask(running: Cluster, statement: str) -> object:
    with psycopg.connect(running.dsn(), autocommit=True) as conn:
        cursor = conn.execute(statement)
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def eventually(condition: Callable[[], bool], *, within: float = PATIENCE) -> None:
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.02)


def test_postgis_can_be_installed(running: Cluster) -> None:
    ask(running, "CREATE EXTENSION postgis")
    assert ask(running, "SELECT ST_AsText(ST_Point(1, 2))") == "POINT(1 2)"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("default_toast_compression", "lz4"),
        ("jit", "off"),
        ("synchronous_commit", "on"),
        ("max_connections", "200"),
        ("server_encoding", "UTF8"),
        ("listen_addresses", "127.0.0.1"),
        ("fsync", "off"),
    ],
)
def test_settings_are_ours_unless_given(running: Cluster, setting: str, value: str) -> None:
    assert ask(running, f"SHOW {setting}") == value


def test_tcp_needs_the_password(running: Cluster) -> None:
    place = f"host=127.0.0.1 port={running.port} user=postgres dbname=postgres"
    psycopg.connect(f"{place} password={running.superuser_password}").close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"{place} password=guess")


async def test_asyncpg_takes_the_dsn(running: Cluster) -> None:
    conn = await asyncpg.connect(running.dsn())
    assert await conn.fetchval("SELECT 1") == 1
    await conn.close()


def test_the_next_run_finds_data_and_password(folder: Path) -> None:
    with cluster(folder, settings=QUICK) as first:
        ask(first, "CREATE TABLE kept AS SELECT 42 AS answer")
    with cluster(folder, settings=QUICK) as second:
        assert ask(second, "SELECT answer FROM kept") == 42
        assert second.superuser_password == first.superuser_password


def test_nothing_but_the_data_is_left(folder: Path) -> None:
    with cluster(folder, settings=QUICK) as running:
        assert (running.socket_dir / f".s.PGSQL.{running.port}").is_socket()
    assert not running.socket_dir.exists()
    assert not is_running(running.pid)
    assert {path.name for path in folder.iterdir()} == {"pgdata", "password", "postgres.log"}
    assert (folder / "password").stat().st_mode & 0o777 == 0o600


def test_the_server_ends_when_its_parent_is_killed(
    folder: Path, holder: tuple[subprocess.Popen[str], int, Path]
) -> None:
    process, pid, sockets = holder
    process.kill()
    eventually(lambda: not is_running(pid))
    with cluster(folder, settings=QUICK):
        assert not sockets.exists()


def test_a_restart_right_after_the_kill_waits_for_the_old_server(
    folder: Path, holder: tuple[subprocess.Popen[str], int, Path]
) -> None:
    process, pid, sockets = holder
    process.kill()
    with cluster(folder, settings=QUICK) as running:
        assert running.pid != pid
        assert not is_running(pid)
        assert not sockets.exists()


def test_committed_rows_survive_the_kill_of_the_server(
    folder: Path, holder: tuple[subprocess.Popen[str], int, Path]
) -> None:
    _, pid, sockets = holder
    port = next(sockets.glob(".s.PGSQL.*.lock")).name.split(".")[3]
    with psycopg.connect(host=str(sockets), port=port, user="postgres", autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(pid, signal.SIGKILL)
    notices: list[str] = []
    with cluster(folder, settings=QUICK, progress=notices.append) as running:
        assert ask(running, "SELECT answer FROM kept") == 42
    assert "The last run was killed: its committed data is recovered" in notices


def test_a_pid_file_with_the_number_of_another_process_is_no_obstacle(folder: Path) -> None:
    with cluster(folder, settings=QUICK) as running:
        left = (folder / "pgdata" / "postmaster.pid").read_text()
    (folder / "pgdata" / "postmaster.pid").write_text(left.replace(str(running.pid), str(os.getpid()), 1))
    with cluster(folder, settings=QUICK) as running:
        assert ask(running, "SELECT 1") == 1


def test_a_half_made_cluster_is_made_again(folder: Path) -> None:
    (folder / "password").write_text("")
    (folder / "pgdata.new").mkdir()
    (folder / "pgdata.new" / "PG_VERSION").write_text("15\n")
    with cluster(folder, settings=QUICK) as running:
        assert ask(running, "SELECT 1") == 1


def test_two_on_one_folder_are_refused_with_the_pid_of_the_first(folder: Path) -> None:
    with cluster(folder, settings=QUICK) as first:
        with pytest.raises(embedded.FolderInUse, match=f"kill -INT {first.pid}"), cluster(folder):
            pass
        assert ask(first, "SELECT 1") == 1


def test_two_folders_run_side_by_side(folder: Path) -> None:
    with cluster(folder / "a", settings=QUICK) as one, cluster(folder / "b", settings=QUICK) as other:
        assert ask(one, "SHOW data_directory") != ask(other, "SHOW data_directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as another user for root only")
def test_a_folder_out_of_reach_is_refused_before_anything_is_written(folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    with pytest.raises(embedded.UnusableFolder, match=rf"cannot enter {home}.*chmod o\+x {home}"), cluster(home / "pg"):
        pass
    assert list(home.iterdir()) == []


def test_a_folder_with_other_things_is_refused(folder: Path) -> None:
    (folder / "thesis.tex").touch()
    with pytest.raises(embedded.UnusableFolder, match="holds other things"), cluster(folder):
        pass


def test_data_of_another_major_version_is_refused(folder: Path) -> None:
    (folder / "pgdata").mkdir()
    (folder / "pgdata" / "PG_VERSION").write_text("9\n")
    with pytest.raises(embedded.WrongMajorVersion, match=r"written by PostgreSQL 9; installed with PostGIS: \d+"):
        cluster(folder).__enter__()


def test_a_failed_start_shows_the_end_of_the_log(folder: Path) -> None:
    with (
        pytest.raises(embedded.StartFailed, match='invalid value for parameter "shared_buffers"'),
        cluster(folder, settings={"shared_buffers": "much"}),
    ):
        pass


def test_a_missing_postgis_is_answered_with_the_line_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "EXTENSIONS", ("no-such-extension",))
    with pytest.raises(embedded.MissingPostgres, match=r"^(sudo )?(apt-get|dnf) install .*postgis$"):
        embedded.find_binaries()


def test_another_thread_is_refused(folder: Path) -> None:
    refused: list[str] = []

    def start() -> None:
        try:
            cluster(folder).__enter__()
        except RuntimeError as error:
            refused.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in refused[0]


def test_the_dsn_quotes_what_a_url_needs_quoted(folder: Path) -> None:
    running = Cluster(folder, Path("/tmp/a b"), 5433, "", 1)
    parts = conninfo_to_dict(running.dsn("my/db", user="a@b", password="x:y/z"))
    assert parts == {"host": "/tmp/a b", "port": "5433", "user": "a@b", "password": "x:y/z", "dbname": "my/db"}
