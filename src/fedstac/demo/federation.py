"""A small federation on this machine: the publishing node `west`, maybe others, index nodes; each its own process.

Used by `fedstac demo` and by the tests that kill its parts.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
from psycopg import sql

from fedstac import settings
from fedstac.db import connections, migrations, nodes, sinks
from fedstac.demo import embedded
from fedstac.demo.sample import facts

WEST = "west"
ACTOR = "demo"  # in the audit log
STREAM = "fedstac-west"  # the stream or topic with the events of west
INDEX_NODES = ("east", "south")  # of a demonstration; south joins while `--check` publishes
START_SECONDS = 120.0
STOP_SECONDS = 15.0
Say = Callable[[str], None]


class ProcessFailed(Exception):
    """A process did not start, or ended by itself; the message ends with what it logged last."""


class PostgresServer(Protocol):
    """A PostgreSQL that a federation can live in."""

    def dsn(self, database: str = "postgres", *, user: str = ...) -> str: ...


@dataclass(frozen=True, slots=True)
class ExistingServer:
    """A PostgreSQL of the operator's own. The DSN's user is a superuser, or may create databases and roles."""

    url: str

    def dsn(self, database: str = "postgres", *, user: str = "") -> str:
        """Return the DSN of a database. `user` has no effect: everything runs as the user of the given DSN."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path="/" + database)) if database != "postgres" else self.url


@contextmanager
def open_server(data_dir: Path | None, dsn: str | None, say: Say) -> Iterator[PostgresServer]:
    """Yield the server of this DSN, or one of our own that keeps its data in a folder and stops at the end."""
    if dsn:
        yield ExistingServer(dsn)
        return
    with embedded.cluster(data_dir, progress=say) as cluster:
        yield cluster


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM too while the block runs, so that everything that was started stops."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(slots=True)
class Process:
    """A child of ours, its log, and how to start it again."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready_file: Path
    child: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return str(json.loads(self.ready_file.read_text())["url"])

    @property
    def is_running(self) -> bool:
        return self.child.poll() is None

    @property
    def tells_ready(self) -> bool:
        """Return whether it writes its ready file; programs of others do not."""
        return str(self.ready_file) in self.command

    def kill(self) -> None:
        """Send SIGKILL, and return when the process is gone."""
        self.child.kill()
        self.child.wait()


@dataclass(slots=True)
class Federation:
    """What is running: processes by name, databases by node."""

    folder: Path
    database_of: Callable[[str], str]  # the writer's DSN of a node's database
    make_database: Callable[[str], None]
    issued: Mapping[str, Mapping[str, str]]  # tokens by publishing node and role
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def west(self) -> str:
        """West's address."""
        return self.address_of(WEST)

    @property
    def tokens(self) -> Mapping[str, str]:
        """West's tokens, by role."""
        return self.issued[WEST]

    def address_of(self, node: str) -> str:
        return self.processes["serve" if node == WEST else node].url

    def start(self, name: str, *command: str, node: str = WEST, **environment: str) -> Process:
        """Start `fedstac <command>` as a process of this name, and wait until it is ready."""
        log, ready_file = self.folder / "logs" / f"{name}.log", self.folder / f"{name}.ready"
        log.parent.mkdir(parents=True, exist_ok=True)
        full = {
            **settings.environment_of_children(),
            "FEDSTAC_NODE": node, "FEDSTAC_DSN": self.database_of(node), "FEDSTAC_LOG_FORMAT": "json",
            "FEDSTAC_DIE_WITH": str(os.getpid()), **environment,
        }  # fmt: skip
        arguments = (sys.executable, "-m", "fedstac.cli", *command, "--ready-file", str(ready_file))
        process = Process(name, arguments, full, log, ready_file, _spawn(arguments, full, log, ready_file))
        self.processes[name] = process
        self.wait_ready(process)
        return process

    def start_program(self, name: str, script: Path, *arguments: str, **environment: str) -> Process:
        """Start a Python program that is not fedstac as a process of this name. Return before it is ready."""
        log, ready_file = self.folder / "logs" / f"{name}.log", self.folder / f"{name}.ready"
        log.parent.mkdir(parents=True, exist_ok=True)
        full = {**settings.environment_of_children(), "FEDSTAC_DIE_WITH": str(os.getpid()), **environment}
        command = (sys.executable, "-m", "fedstac.demo.program", str(script), *arguments)
        self.processes[name] = Process(name, command, full, log, ready_file, _spawn(command, full, log, ready_file))
        return self.processes[name]

    def restart(self, name: str, **changes: str) -> Process:
        """Start a process that has ended again as before, on the same port if it has one; without its failpoints."""
        old = self.processes[name]
        if old.is_running:
            raise RuntimeError(f"{name} is still running: kill it before it is started again")
        environment = {key: value for key, value in old.environment.items() if key != "FEDSTAC_FAILPOINTS"} | changes
        if old.ready_file.exists() and "url" in json.loads(old.ready_file.read_text()):
            environment["FEDSTAC_PORT"] = old.url.rpartition(":")[2]
        child = _spawn(old.command, environment, old.log, old.ready_file)
        self.processes[name] = Process(name, old.command, environment, old.log, old.ready_file, child)
        self.wait_ready(self.processes[name])
        return self.processes[name]

    def wait_ready(self, process: Process) -> None:
        deadline = time.monotonic() + START_SECONDS
        while process.tells_ready and not process.ready_file.exists():
            if not process.is_running or time.monotonic() > deadline:
                raise ProcessFailed(f"{process.name} did not start; it logged last:\n{tail(process.log)}")
            time.sleep(0.02)

    def check_running(self) -> None:
        """Raise ProcessFailed if a process has ended by itself."""
        for process in self.processes.values():
            if not process.is_running:
                code = process.child.returncode
                raise ProcessFailed(f"{process.name} ended with {code}; it logged last:\n{tail(process.log)}")

    def start_publishing_node(self, name: str, **environment: str) -> Process:
        """Start another publishing node beside west, all of it in one process."""
        return self.start(name, "serve", node=name, **{"FEDSTAC_PORT": "0", **environment})

    def start_index_node(
        self, name: str, *, sources: Sequence[str] = (WEST,), feed: str = "", snapshot_first: bool = True,
        **environment: str,
    ) -> Process:  # fmt: skip
        """Make an index node of this name with a database of its own, following these publishing nodes.

        feed: the stream or topic that brings their events; empty: their own feeds do.
        """
        self.make_database(name)
        return self.start(
            name, "index-node", node=name, FEDSTAC_SOURCE=" ".join(map(self.address_of, sources)),
            FEDSTAC_SOURCE_TOKEN=" ".join(self.issued[source][f"node:{name}"] for source in sources),
            FEDSTAC_SOURCE_FEED=feed, FEDSTAC_SNAPSHOT_FIRST=str(snapshot_first),
            **{"FEDSTAC_PORT": "0", **environment},
        )  # fmt: skip

    def client(self, token: str) -> httpx.AsyncClient:
        """Return a client of west with this token."""
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.AsyncClient(base_url=self.west, headers=headers, timeout=60, trust_env=False)

    async def issue_token(self, name: str, *roles: str) -> str:
        """Return a new token of west."""
        conn = await connections.connect(self.database_of(WEST))
        try:
            return await nodes.issue_token(conn, name, list(roles))
        finally:
            await conn.close()

    def add_sink(self, name: str, address: str, *, node: str = WEST) -> None:
        """Send a publishing node's events to a stream or topic; instead of to the one that the name stood for."""

        async def add() -> None:
            conn = await connections.connect(self.database_of(node))
            try:
                present = await sinks.find(conn, name)
                if present is not None and present.address != address:
                    await sinks.remove(conn, name, actor=ACTOR)
                await sinks.add(conn, sinks.NewSink(
                    name, address, format="cloudevents", key_template="", required=True, private=True, after=0,
                ), actor=ACTOR)  # fmt: skip
            finally:
                await conn.close()

        asyncio.run(add())

    def stop(self) -> None:
        """End all processes: asked first, then killed."""
        for process in reversed(self.processes.values()):
            if process.is_running:
                process.child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            try:
                process.child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, ready_file: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own: a Ctrl-C on the terminal is ours to pass on."""
    ready_file.unlink(missing_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def federation(
    server: PostgresServer, *, index_nodes: Sequence[str] = (), publishing: Sequence[str] = (WEST,),
    say: Say = lambda _: None, prefix: str = "fedstac_",
) -> Iterator[Federation]:  # fmt: skip
    """Make databases and tokens for publishing nodes and these index nodes; the caller starts the processes.

    They end with this.
    """
    run = Path(tempfile.mkdtemp(prefix="fedstac-"))

    def database(node: str, user: str = "fedstac_writer") -> str:
        return server.dsn(prefix + node, user=user)

    def make(node: str) -> None:
        make_database(server, prefix + node, say)

    for node in publishing:
        make(node)
    issued = {node: _issue_tokens(database(node), index_nodes) for node in publishing}
    running = Federation(run, database, make, issued)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(run, ignore_errors=True)


def make_database(server: PostgresServer, name: str, say: Say) -> None:
    """Make a migrated database of this name, or bring one that is there up to date."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        exists = conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if not exists:
            say(f"making the database {name}")
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    migrations.setup(server.dsn(name))  # also where it ran: this version may know more roles
    migrations.migrate(server.dsn(name, user="fedstac_owner"), settings.folder("migrations"))


def drop_databases(server: PostgresServer, names: Sequence[str]) -> None:
    """Take databases away again, and whoever is still connected to them."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        for name in names:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _issue_tokens(dsn: str, index_nodes: Sequence[str]) -> dict[str, str]:
    """Return a token for every role that a demonstration needs."""
    roles = ["admin", *(f"node:{name}" for name in (*index_nodes, *sorted(set(facts.NODES.values()))))]
    roles += [f"publisher:{institution}" for institution in sorted(facts.NODES)]

    async def issue() -> dict[str, str]:
        conn = await connections.connect(dsn)
        try:
            return {role: await nodes.issue_token(conn, role, [role]) for role in roles}
        finally:
            await conn.close()

    return asyncio.run(issue())
