"""How processes of a node start and end, as their operator sees it: lines on standard error, and an exit code."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from fedstac import __version__
from fedstac.db import opening
from fedstac.demo import embedded, federation
from fedstac.settings import folder
from tests.scenarios.watching import wait_until
from tests.support.forking import Forks

BARE = {name: value for name, value in os.environ.items() if not name.startswith(("FEDSTAC_", "PG"))}
OWN_PROGRAM = (sys.executable, "-m", "fedstac.cli")  # as an operator starts it; the others are forked
SECONDS = 120  # a hang guard, not a promise


Fedstac = Callable[..., subprocess.CompletedProcess[str]]
Serving = Callable[..., AbstractContextManager["RunningProcess"]]


@pytest.fixture
def fedstac(command_forks: Forks) -> Fedstac:
    """Runs a command to its end, where nothing is set but what is named."""

    def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command_forks.program, *arguments], env=BARE | environment, cwd="/", text=True, capture_output=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip

    return run_command


@pytest.fixture(scope="module")
def empty(cluster: embedded.Cluster) -> Iterator[str]:
    """A database that nobody has prepared."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        conn.execute("CREATE DATABASE unprepared")
        yield cluster.dsn("unprepared")
        conn.execute("DROP DATABASE unprepared WITH (FORCE)")


@pytest.fixture
def folder_of_own() -> Iterator[Path]:
    """A folder that PostgreSQL's account may enter."""
    path = Path(tempfile.mkdtemp(prefix="fedstac-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def is_one_line(done: subprocess.CompletedProcess[str], *words: str) -> bool:
    """Return whether the command ended with one sentence that has these words, and nothing else."""
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert all(word in line for word in words), line
    return True


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_process_on_an_empty_database_says_that_it_has_to_be_prepared(
    command: str, empty: str, fedstac: Fedstac
) -> None:
    done = fedstac(command, FEDSTAC_DSN=empty, FEDSTAC_PORT="0")
    assert is_one_line(done, "'unprepared'", "fedstac migrate --print-setup", "fedstac migrate")
    assert done.returncode == 5


def test_a_database_that_is_not_there_is_named(cluster: embedded.Cluster, fedstac: Fedstac) -> None:
    done = fedstac("serve", FEDSTAC_DSN=cluster.dsn("nowhere"), FEDSTAC_PORT="0")
    assert is_one_line(done, "no database 'nowhere'", "createdb nowhere")
    assert done.returncode == 5


def test_an_older_database_has_to_be_migrated_first(
    make_database: Callable[[], str], cluster: embedded.Cluster, fedstac: Fedstac
) -> None:
    dsn = make_database()
    name = dsn.rpartition("/")[2].partition("?")[0]
    newest = opening.newest(folder("migrations"))
    with psycopg.connect(cluster.dsn(name), autocommit=True) as conn:
        conn.execute("DELETE FROM fedstac.migration WHERE number = %s", (newest,))
    done = fedstac("serve", FEDSTAC_DSN=dsn, FEDSTAC_NODE="west", FEDSTAC_PORT="0")
    assert is_one_line(done, f"at migration {newest - 1}", f"needs {newest}", "run fedstac migrate")
    assert done.returncode == 5


def test_a_database_that_was_restored_in_parts_is_refused_and_its_check_says_so(
    make_database: Callable[[], str], cluster: embedded.Cluster, fedstac: Fedstac
) -> None:
    dsn = make_database()
    with psycopg.connect(cluster.dsn(dsn.rpartition("/")[2].partition("?")[0]), autocommit=True) as conn:
        conn.execute("DROP TABLE pgstac.collections CASCADE")
    done = fedstac("serve", FEDSTAC_DSN=dsn, FEDSTAC_NODE="west", FEDSTAC_PORT="0")
    assert is_one_line(done, "lacks pgstac.collections", "pg_restore --exit-on-error")
    assert done.returncode == 5
    checked = fedstac("admin", "check", "-o", "json", FEDSTAC_DSN=dsn)
    assert checked.returncode == 1
    assert "was not restored as a whole" in checked.stdout


def test_a_user_that_postgresql_does_not_know_is_named(cluster: embedded.Cluster, fedstac: Fedstac) -> None:
    done = fedstac("serve", FEDSTAC_DSN=cluster.dsn("postgres", user="nobody-here"), FEDSTAC_PORT="0")
    assert is_one_line(done, "nobody-here", "FEDSTAC_DSN")
    assert done.returncode == 5


def test_a_database_of_another_node_is_refused(
    make_database: Callable[[], str], fedstac: Fedstac, serving: Serving
) -> None:
    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as conn, serving(dsn):
        assert conn.execute("SELECT origin FROM fedstac.feed_state").fetchall() == [("west",)]
    done = fedstac("serve", FEDSTAC_DSN=dsn, FEDSTAC_NODE="east", FEDSTAC_PORT="0")
    assert is_one_line(done, "'west'", "FEDSTAC_NODE=west")
    assert done.returncode == 5


def test_a_port_that_is_taken_is_named(empty: str, fedstac: Fedstac) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = fedstac("serve", FEDSTAC_DSN=empty, FEDSTAC_PORT=port)
        provider = fedstac("identity-provider", "--port", port)
    assert is_one_line(done, f"port {port} of 127.0.0.1", "taken", "FEDSTAC_PORT")
    assert is_one_line(provider, f"port {port} of 127.0.0.1", "taken", "--port")
    assert "FEDSTAC_DSN" not in done.stderr
    assert done.returncode == 5


def test_a_host_of_another_machine_is_named(empty: str, fedstac: Fedstac) -> None:
    done = fedstac("serve", FEDSTAC_DSN=empty, FEDSTAC_HOST="192.0.2.1", FEDSTAC_PORT="0")
    assert is_one_line(done, "192.0.2.1", "FEDSTAC_HOST")
    assert done.returncode == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("CV_PINS", "CMIP6=1"), ("PORT", "http"), ("DSN", "mysql://db"), ("POLICY", "/nowhere/policy.yaml")],
)
def test_a_setting_of_the_wrong_form_is_named(name: str, value: str, empty: str, fedstac: Fedstac) -> None:
    done = fedstac("serve", **{"FEDSTAC_DSN": empty, "FEDSTAC_PORT": "0", f"FEDSTAC_{name}": value})
    assert is_one_line(done, value if name == "POLICY" else f"FEDSTAC_{name}")
    assert done.returncode == 5


def test_a_variable_that_is_no_setting_is_named_with_the_nearest(empty: str, fedstac: Fedstac) -> None:
    done = fedstac("worker", FEDSTAC_DSN=empty, FEDSTAC_POLCY="policy.yaml")
    line = json.loads(done.stderr.splitlines()[0])
    assert (line["level"], line["variable"], line["nearest"]) == ("warning", "FEDSTAC_POLCY", "FEDSTAC_POLICY")


def test_a_start_that_fails_does_not_give_the_database_a_name(
    make_database: Callable[[], str], fedstac: Fedstac
) -> None:
    dsn = make_database()
    done = fedstac("worker", FEDSTAC_DSN=dsn, FEDSTAC_CV_PINS='{"CMIP6": "none"}')
    assert is_one_line(done, "FEDSTAC_CV_PINS")
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT origin FROM fedstac.feed_state").fetchall() == []


def test_commands_that_need_the_database_say_what_it_lacks(
    empty: str, cluster: embedded.Cluster, fedstac: Fedstac
) -> None:
    listed = fedstac("token", "list", FEDSTAC_DSN=empty)
    assert is_one_line(listed, "'unprepared'", "fedstac migrate")
    migrated = fedstac("migrate", FEDSTAC_OWNER_DSN=cluster.dsn("nowhere"))
    assert is_one_line(migrated, '"nowhere" does not exist', "FEDSTAC_OWNER_DSN")
    malformed = fedstac("migrate", FEDSTAC_OWNER_DSN="nonsense")
    assert is_one_line(malformed, "FEDSTAC_OWNER_DSN is no connection URL")
    unprepared = fedstac("migrate", FEDSTAC_OWNER_DSN=empty)
    assert is_one_line(unprepared, "fedstac migrate --print-setup")
    assert [done.returncode for done in (listed, migrated, malformed, unprepared)] == [5] * 4


# --- the log, and the end ---


class RunningProcess:
    """A process of a node that is ready, and what it logs."""

    def __init__(
        self, program: Sequence[str], home: Path, dsn: str, command: str, *, ignored: bool, environment: dict[str, str]
    ) -> None:
        self.log, ready = home / "log", home / "ready"
        variables = {"FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west", "FEDSTAC_PORT": "0", **environment}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*program, command, "--ready-file", str(ready)], env=BARE | variables,
                cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=ignore_interrupts if ignored else None,
            )  # fmt: skip
        wait_until(lambda: ready.exists() or self.process.poll() is not None, what=f"{command} is ready")
        assert self.process.poll() is None, self.log.read_text()
        self.url = json.loads(ready.read_text()).get("url", "")

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def ends(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


def ignore_interrupts() -> None:
    """Ignore SIGINT, as a shell does for a background command without job control (POSIX, 2.11)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def running_process(
    program: Sequence[str], dsn: str, command: str = "serve", *, ignored: bool = False, **environment: str
) -> Iterator[RunningProcess]:
    with tempfile.TemporaryDirectory() as home:
        running = RunningProcess(program, Path(home), dsn, command, ignored=ignored, environment=environment)
        try:
            yield running
        finally:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def serving(command_forks: Forks) -> Serving:
    """Runs a process of a node while a block runs."""
    return functools.partial(running_process, command_forks.program)


def test_the_first_line_says_where_what_and_as_what_it_serves(dsn: str) -> None:
    with running_process(OWN_PROGRAM, dsn, FEDSTAC_PUBLIC_URL="https://west.example") as running:
        [line] = [line for line in running.lines if line["event"] == "serving"]
        assert line["address"] == running.url
        assert line.items() >= {
            "public_url": "https://west.example", "node": "west", "version": __version__, "role": "serve",
            "schema": opening.newest(folder("migrations")), "level": "info",
        }.items()  # fmt: skip
        assert running.ends(signal.SIGTERM) == 0
        assert not [line for line in running.lines if line["level"] in ("warning", "error")]


def test_what_other_packages_log_is_json_too() -> None:
    program = """
import logging, warnings
from fedstac.workers import processes
processes.log_lines("json", "serve")
logging.getLogger("other").warning("it has %d things", 2)
try:
    raise RuntimeError("a reason \\ud800")
except RuntimeError:
    logging.getLogger("other").exception("it failed")
warnings.warn("it is old")
logging.getLogger("other").info("not worth a line")
"""
    done = subprocess.run([sys.executable, "-c", program], env=BARE, capture_output=True, text=True, check=True)
    one, two, three = map(json.loads, done.stderr.splitlines())
    assert one.items() >= {"event": "it has 2 things", "level": "warning", "logger": "other", "role": "serve"}.items()
    assert (two["event"], two["level"]) == ("it failed", "error")
    assert "RuntimeError: a reason" in two["exception"]
    assert "it is old" in three["event"]


@pytest.mark.parametrize("command", ["worker", "sequencer", "relay", "notifier"])
def test_parts_without_an_address_say_what_started_too(command: str, dsn: str, serving: Serving) -> None:
    with serving(dsn, command, ignored=True) as running:
        [line] = [line for line in running.lines if line["event"] == "working"]
        assert (line["role"], line["node"], line["version"]) == (command, "west", __version__)
        assert running.ends(signal.SIGINT) == 0


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_ends_a_server_also_where_it_was_started_in_the_background(
    ignored: bool, dsn: str, serving: Serving
) -> None:
    with serving(dsn, ignored=ignored) as running:
        assert running.ends(signal.SIGINT) == 130


def test_ctrl_c_ends_an_identity_provider_in_the_background(dsn: str, serving: Serving) -> None:
    with serving(dsn, "identity-provider", ignored=True) as running:
        assert running.ends(signal.SIGINT) in (0, 130)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_waits_for_the_database_ends_at_once(
    number: signal.Signals, tmp_path: Path, command_forks: Forks
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never says anything
        dsn = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/fedstac"
        process = subprocess.Popen(
            [*command_forks.program, "serve"], env=BARE | {"FEDSTAC_DSN": dsn, "FEDSTAC_PORT": "0"},
            cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=ignore_interrupts,
        )  # fmt: skip
        silent.settimeout(SECONDS)
        with silent.accept()[0]:
            process.send_signal(number)
            _, output = process.communicate(timeout=SECONDS)
        assert "Traceback" not in output
        assert process.returncode == (130 if number is signal.SIGINT else -signal.SIGTERM)


def test_an_outage_is_one_line_when_it_begins_and_one_when_it_ends(folder_of_own: Path, serving: Serving) -> None:
    with embedded.cluster(folder_of_own / "pg", settings={"fsync": "off"}) as cluster:
        with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
            conn.execute("CREATE DATABASE fedstac")
        federation.make_database(cluster, "fedstac", lambda _: None)
        with (
            serving(cluster.dsn("fedstac"), FEDSTAC_RUN_WORKERS="false") as running,
            httpx.Client(base_url=running.url, trust_env=False, timeout=SECONDS) as http,
        ):
            assert http.get("/search").status_code == 200
            before = len(running.lines)
            with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
                conn.execute("ALTER DATABASE fedstac ALLOW_CONNECTIONS false")
                conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'fedstac'")
                refused = [http.get(path) for path in ("/search", "/collections", "/", "/search", "/healthcheck") * 3]
                assert {answer.status_code for answer in refused[3:]} == {503}
                assert all(answer.headers["retry-after"] for answer in refused[3:])
                conn.execute("ALTER DATABASE fedstac ALLOW_CONNECTIONS true")
            back = "the database is back"
            wait_until(lambda: any(line["event"] == back for line in running.lines), what=back)
            assert http.get("/search").status_code == 200
            others = ("request", "the columns")
            lines = [line for line in running.lines[before:] if not line["event"].startswith(others)]
            assert len(lines) == 2, lines
            began, ended = lines
            assert (began["level"], "away" in began["event"]) == ("warning", True)
            assert ended["failures"] >= 10
            assert "exception" not in began
