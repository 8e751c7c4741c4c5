"""Message brokers for `fedstac demo` and the tests: real servers on loopback, each a process that ends with this one.

A broker keeps its data in a folder of its own, and its port when it is started again.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Protocol

from fedstac.demo.embedded import LAUNCH

START_SECONDS, STOP_SECONDS = 60.0, 10.0
LARGEST_MESSAGE = 8_912_896  # bytes: an event of 8 MiB and its headers
PORT_TRIES = 3


class BrokerKind(StrEnum):
    """The brokers that a demonstration can have."""

    NONE = "none"
    NATS = "nats"
    KAFKA = "kafka"


class Broker(Protocol):
    """A message broker on loopback."""

    process: BrokerProcess

    @property
    def url(self) -> str:
        """The address of the server; `/` and the name of a stream or topic come after it."""
        ...

    def empty(self) -> None:
        """Remove everything that a broker which has ended has stored."""
        ...


class BrokerMissing(Exception):
    """The programs of a broker are not installed; the message says what to install."""


class BrokerFailed(Exception):
    """A broker did not start; the message ends with what it logged last."""


@dataclass(slots=True)
class BrokerProcess:
    """A broker's process, and how it is ended and started again."""

    name: str
    command: Sequence[str]
    log: Path
    port: int
    is_ready: Callable[[], bool]  # asked until it is so
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it is ready. BrokerFailed where it ends instead, or takes too long.

        From the main thread: the process ends with the thread that started it.
        """
        self.child = _spawn(self.command, self.log)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.child.poll() is not None or time.monotonic() > deadline:
                self.kill()
                lines = self.log.read_text(errors="replace").splitlines()[-15:]
                raise BrokerFailed("\n".join([f"{self.name} did not start; {self.log} ends with:", *lines]))
            time.sleep(0.01)

    def kill(self) -> None:
        """Send SIGKILL, and return when the process is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end; kill it if it does not."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop its clock, as SIGSTOP does, until `thaw`."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if self.child is not None:
            self.child.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self.child is None:
            return
        self.child.send_signal(number)
        self.child.send_signal(signal.SIGCONT)  # a frozen one would not hear it
        try:
            self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child = None


def _spawn(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Run a command out of reach of the terminal's Ctrl-C, and only as long as this process."""
    launch = [sys.executable, "-I", "-S", "-c", LAUNCH, *map(str, (os.getpid(), os.geteuid(), os.getegid()))]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*launch, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", process_group=0
        )


def free_port() -> int:
    """Return a port of loopback that nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def broker(kind: BrokerKind, folder: Path, say: Callable[[str], None]) -> Iterator[Broker]:
    """Yield a broker of a kind. BrokerMissing where it is not installed."""
    say(f"starting the broker ({kind})")
    match kind:
        case BrokerKind.NATS:
            with nats_server(folder) as server:
                yield server
        case BrokerKind.KAFKA:
            from fedstac.demo import kafka

            with kafka.kafka_broker(folder, progress=say) as running:
                yield running
        case BrokerKind.NONE:
            raise ValueError("there is no broker of the kind `none`")


# --- NATS

NATS_CONFIGURATION = """\
# written by fedstac demo
server_name: fedstac
listen: "127.0.0.1:{port}"
max_payload: {largest}  # events of 8 MiB, with their headers
jetstream {{
  store_dir: "{store}"
  sync_interval: always  # what is acknowledged is on the disk
}}
"""


@dataclass(slots=True)
class NatsServer:
    """A NATS server with JetStream."""

    folder: Path
    process: BrokerProcess

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.process.port}"

    def empty(self) -> None:
        """Remove everything that a server which has ended has stored."""
        shutil.rmtree(self.folder / "store", ignore_errors=True)


def start_on_port(describe: Callable[[int], BrokerProcess], port: int | None = None) -> BrokerProcess:
    """Start the process that `describe` returns for a port, and return it: for this port, or for one that is free.

    Where somebody takes the port between our look and its start, it is tried again. BrokerFailed as
    `BrokerProcess.start` raises it.
    """
    tries_left = PORT_TRIES
    while True:
        process = describe(port or free_port())
        tries_left -= 1
        try:
            process.start()
        except BrokerFailed as error:
            if not tries_left or "address already in use" not in str(error).lower():
                raise
        else:
            return process


@contextmanager
def nats_server(folder: Path, *, port: int | None = None, more: str = "") -> Iterator[NatsServer]:
    """Yield a server that keeps its data in a folder. BrokerMissing where none is installed.

    more: lines of configuration.
    """
    program = nats_program()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "nats-server.conf"

    def at(listening_port: int) -> BrokerProcess:
        configuration.write_text(
            NATS_CONFIGURATION.format(port=listening_port, largest=LARGEST_MESSAGE, store=folder / "store") + more
        )
        command = (program, "--config", str(configuration))
        log = folder / "nats-server.log"
        return BrokerProcess("the NATS server", command, log, listening_port, partial(_greets, listening_port))

    process = start_on_port(at, port)
    try:
        yield NatsServer(folder, process)
    finally:
        process.stop()


def nats_program() -> str:
    """Return the path of the server: that of the extra, or of the machine. BrokerMissing where there is none."""
    own = Path(sysconfig.get_path("scripts")) / "nats-server"
    program = str(own) if own.is_file() else shutil.which("nats-server")
    if program is None:
        raise BrokerMissing("there is no nats-server here; install it: pip install 'fedstac[nats,nats-server]'")
    return program


def _greets(port: int) -> bool:
    """Return whether a NATS server with JetStream listens at a port: it sends the first line."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return b'"jetstream":true' in connection.recv(4096)
    except OSError:
        return False
