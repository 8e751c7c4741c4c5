"""The two servers that are compared, each as processes of their own on a database of its own in one cluster."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import asyncpg
import psycopg

from fedstac import settings
from fedstac.db import migrations, nodes
from fedstac.demo import embedded, sample

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".venv-peer"
LOCK = HERE / "peer-requirements.lock"
COLLECTION = "CMIP6"
STARTING = 60.0
FEDSTAC = ("-m", "fedstac.cli")  # what Python runs

# Stock uvicorn with one worker, and the end that comes with the parent's (prctl: PR_SET_PDEATHSIG, SIGTERM).
SERVE_PEER = """
import ctypes, sys, uvicorn
ctypes.CDLL(None).prctl(1, 15)
uvicorn.run("stac_fastapi.pgstac.app:create_app", factory=True, host="127.0.0.1", port=int(sys.argv[1]),
            loop="uvloop", http="httptools", access_log=False, log_level="warning")
"""
LOAD_PEER = """
import sys, time
from pypgstac.db import PgstacDB
from pypgstac.load import Loader, Methods
with PgstacDB(dsn="") as db:
    began = time.perf_counter()
    Loader(db).load_items(sys.argv[1], Methods.insert)
    print(time.perf_counter() - began)
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    name: str
    address: str
    dsn: str  # of a superuser, for looking on
    pids: Mapping[str, int]
    postmaster: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send one request outside of all measuring, and return its answer, parsed."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = Request(
            self.address + path, data, {"Content-Type": "application/json", **self.headers}, method=method
        )
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=120) as response:
                answer: dict[str, Any] = json.loads(response.read() or b"{}")
                return answer
        except HTTPError as error:
            raise RuntimeError(f"{self.name}: {method} {path}: {error.code} {error.read()[:2000]!r}") from error

    def cpu(self) -> float:
        """Return the seconds of processor time of its processes and PostgreSQL. The other server idles meanwhile."""
        return sum(self.cpu_parts())

    def cpu_parts(self) -> tuple[float, float]:
        """Return the seconds of processor time of its own processes, and of PostgreSQL."""
        return sum(seconds_of(pid)[0] for pid in self.pids.values()), database_seconds(self.postmaster)

    def settle(self, *, analyze: bool = False) -> None:
        """Write everything to disk and do all housekeeping, so that rounds do not pay for each other."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("VACUUM ANALYZE" if analyze else "VACUUM")
            conn.execute("CHECKPOINT")


def seconds_of(pid: int) -> tuple[float, float]:
    """Return the processor time of a process, and of its children that have ended (proc(5), stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0, 0.0
    own, ended = (sum(map(int, fields[at : at + 2])) / os.sysconf("SC_CLK_TCK") for at in (11, 13))
    return own, ended


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def cluster(*, extra: Mapping[str, str] | None = None) -> Iterator[tuple[embedded.Cluster, Path]]:
    """Start a new cluster with durability on, and make a folder for logs. Both servers have the same settings."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-bench-"))
    folder.chmod(0o755)
    durable = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    try:
        with embedded.cluster(folder / "pg", settings={**durable, **(extra or {})}, progress=say) as running:
            yield running, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_database(running: embedded.Cluster, name: str) -> str:
    with psycopg.connect(running.dsn(), autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
    return running.dsn(name)


def _by_tcp(running: embedded.Cluster, database: str, user: str, password: str) -> str:
    """Return a DSN by TCP. The peer cannot use a socket, so neither of them does."""
    return f"postgresql://{user}:{password}@127.0.0.1:{running.port}/{database}"


@contextmanager
def _process(folder: Path, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[int]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FEDSTAC_", "PG", "POSTGRES_"))}
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env={**inherited, **environment}
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(pid: int, ready: Path | int, log: Path) -> None:
    """Wait until a file is there, or a port is open."""
    since = time.monotonic()
    while time.monotonic() - since < STARTING:
        if isinstance(ready, Path):
            if ready.exists():
                return
        else:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", ready)) == 0:
                    return
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.05)
    raise RuntimeError(f"{log.stem} did not start:\n{log.read_text()[-3000:]}")


# --- the peer


def prepare_peer() -> None:
    """Make the peer's own environment, unless it is there with the versions of the lock."""
    mark = PEER / ".installed"
    if mark.is_file() and mark.read_text() == LOCK.read_text():
        return
    say(f"installing the peer into {PEER.name}")
    if shutil.which("uv"):
        _quietly("uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(PEER))
        install = ("uv", "pip", "install", "--quiet", "--python", str(PEER / "bin" / "python"))
    else:
        _quietly(sys.executable, "-m", "venv", "--clear", str(PEER))
        install = (str(PEER / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    _quietly(*install, "--require-hashes", "-r", str(LOCK))
    mark.write_text(LOCK.read_text())


def _quietly(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")


def _peer_environment(running: embedded.Cluster, database: str) -> dict[str, str]:
    return {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(running.port),
        "PGUSER": "postgres",
        "PGPASSWORD": running.superuser_password,
        "PGDATABASE": database,
        "ENABLE_TRANSACTIONS_EXTENSIONS": "TRUE",
    }


@contextmanager
def peer(running: embedded.Cluster, folder: Path, database: str = "peer", *, is_kept: bool = False) -> Iterator[Server]:
    """Start stock stac-fastapi-pgstac, and give it the collection; on a database that is there already if `is_kept`."""
    dsn = running.dsn(database) if is_kept else _make_database(running, database)
    environment = _peer_environment(running, database)
    if not is_kept:
        subprocess.run(
            [PEER / "bin" / "pypgstac", "migrate"], env={**os.environ, **environment}, check=True, capture_output=True
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(PEER / "bin" / "python"), "-c", SERVE_PEER, str(port)]
    with _process(folder, database, command, environment) as pid:
        _await(pid, port, folder / f"{database}.log")
        server = Server("peer", f"http://127.0.0.1:{port}", dsn, {"api": pid}, running.pid)
        if not is_kept:
            server.ask("POST", "/collections", sample.collection(COLLECTION))
        yield server


def pypgstac_load(running: embedded.Cluster, lines: Path, database: str = "peer") -> float:
    """Return the seconds that `pypgstac load` takes for a file of items, less its start."""
    result = subprocess.run(
        [PEER / "bin" / "python", "-c", LOAD_PEER, str(lines)],
        env={**os.environ, **_peer_environment(running, database)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return float(result.stdout.split()[-1])


# --- fedstac


@contextmanager
def started(
    folder: Path, name: str, role: str, environment: Mapping[str, str], program: Sequence[str] = FEDSTAC
) -> Iterator[int]:
    """Start `fedstac <role>` and yield its process id once it is ready. `program`: what Python runs."""
    ready = folder / f"{name}.ready"
    ready.unlink(missing_ok=True)  # of a run before, in a folder that is kept
    command = [sys.executable, *program, role, "--ready-file", str(ready)]
    with _process(folder, name, command, environment) as pid:
        _await(pid, ready, folder / f"{name}.log")
        yield pid


@contextmanager
def fedstac(
    running: embedded.Cluster,
    folder: Path,
    database: str = "fedstac",
    *,
    workers: str = "inside",
    more: Mapping[str, str] | None = None,
    is_kept: bool = False,
    program: Sequence[str] = FEDSTAC,
) -> Iterator[Server]:
    """Start a node, and give it the collection; on a database that is there already if `is_kept`.

    `workers` are `inside` the api process, `beside` it in a process of their own, or `outside`: somebody else starts
    them. `more` are environment variables. `program`: what Python runs.
    """
    superuser = running.dsn(database) if is_kept else _make_database(running, database)
    dsn = migrate(running, database)
    environment = {
        "FEDSTAC_DSN": dsn,
        "FEDSTAC_NODE": "bench",
        "FEDSTAC_PORT": "0",
        "FEDSTAC_LOG_FORMAT": "json",
        "FEDSTAC_DIE_WITH": str(os.getpid()),
        "FEDSTAC_REQUEST_MEMORY_BYTES": str(192 << 20),  # two clients with batches of 1 000 at once
        "FEDSTAC_RUN_WORKERS": "true" if workers == "inside" else "false",
        **(more or {}),
    }
    roles = {"inside": ["serve"], "outside": ["serve", "sequencer"]}.get(workers, ["serve", "worker", "sequencer"])
    pids: dict[str, int] = {}
    with ExitStack() as stack:
        for role in roles:
            pids[role] = stack.enter_context(started(folder, f"{database}-{role}", role, environment, program))
        address = json.loads((folder / f"{database}-serve.ready").read_text())["url"]
        token = asyncio.run(_token(superuser))
        server = Server(
            f"fedstac {workers}", address, superuser, pids, running.pid, {"Authorization": f"Bearer {token}"}
        )
        if not is_kept:
            server.ask("POST", "/collections", sample.collection(COLLECTION))
        yield server


def migrate(running: embedded.Cluster, database: str) -> str:
    """Bring a database up to date as a node's, and return the DSN of its writer."""
    superuser = running.dsn(database)
    migrations.setup(superuser)
    with psycopg.connect(superuser, autocommit=True) as conn:
        conn.execute("ALTER ROLE fedstac_owner PASSWORD 'owner'")
        conn.execute("ALTER ROLE fedstac_writer PASSWORD 'writer'")
    owner = running.dsn(database, user="fedstac_owner", password="owner")
    migrations.migrate(owner, settings.folder("migrations"))
    return _by_tcp(running, database, "fedstac_writer", "writer")


def make_node_database(running: embedded.Cluster, name: str) -> str:
    """Make a database of a node, and return the DSN of its writer."""
    _make_database(running, name)
    return migrate(running, name)


def database_seconds(postmaster: int) -> float:
    """Return the seconds of processor time of PostgreSQL, of its ended processes too."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return sum(seconds_of(pid)[0] for pid in map(int, children)) + sum(seconds_of(postmaster))


async def _token(dsn: str) -> str:
    conn = await asyncpg.connect(dsn)
    try:
        return await nodes.issue_token(conn, "bench", ["admin"])
    finally:
        await conn.close()


def drain(server: Server, *, patience: float = 300.0) -> None:
    """Wait until every request is final. The database is asked: asking the API would disturb what is measured."""
    since = time.monotonic()
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        while conn.execute("SELECT 1 FROM fedstac.request_item WHERE status = 'queued' LIMIT 1").fetchone():
            if time.monotonic() - since > patience:
                raise RuntimeError(f"{server.name} is not done after {patience:g} s")
            time.sleep(0.01)
