"""Commands of fedstac in processes of their own, forked from one that has imported them: imports take the longest.

`python -m tests.support.forking ADDRESS` is the process that forks. Everything else of a command is its own: arguments,
environment, folder, the three streams, exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import REPOSITORY

LONGEST_COMMAND = 1 << 20  # bytes of arguments and environment
READY = b"ready\n"


@dataclass(frozen=True)
class Forks:
    """Runs commands at the process that listens at `address`."""

    address: str

    async def run(
        self, arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], stdin: bytes
    ) -> tuple[int, bytes, bytes]:
        """Run a command to its end, and return its exit code, standard output and standard error.

        It is killed where nobody waits for it any more.
        """
        loop = asyncio.get_running_loop()
        streams = [os.pipe(), os.pipe(), os.pipe()]
        theirs = [streams[0][0], streams[1][1], streams[2][1]]
        command = json.dumps([list(arguments), str(folder), dict(environment)]).encode()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.address)
            socket.send_fds(connection, [command + b"\n"], theirs)
            for stream in theirs:
                os.close(stream)
            connection.setblocking(False)
            _, stdout, stderr, status = await asyncio.gather(
                asyncio.to_thread(_write, streams[0][1], stdin),
                asyncio.to_thread(_read, streams[1][0]),
                asyncio.to_thread(_read, streams[2][0]),
                loop.sock_recv(connection, 16),
            )
        return os.waitstatus_to_exitcode(int(status)), stdout, stderr


def _write(stream: int, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(stream, "wb") as file:
        file.write(content)


def _read(stream: int) -> bytes:
    with open(stream, "rb") as file:
        return file.read()


@contextmanager
def forks(environment: Mapping[str, str]) -> Iterator[Forks]:
    """Run the process that forks, and end it with all that it has forked."""
    with tempfile.TemporaryDirectory(prefix="fedstac-forks-") as folder:
        address = f"{folder}/socket"
        command = [sys.executable, "-W", "error", "-m", "tests.support.forking", address]
        with subprocess.Popen(command, cwd=REPOSITORY, env=dict(environment), stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == READY
                yield Forks(address)
            finally:
                process.terminate()


def _serve(address: str) -> None:
    """Return in a new process for each connection, ready to run its command; never in this one."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by process: what tells its end, and who waits for it
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        selector.register(listener, selectors.EVENT_READ, 0)
        sys.stdout.buffer.write(READY)
        sys.stdout.flush()
        while True:
            for key, _ in selector.select():
                process: int = key.data
                if not process:
                    connection = listener.accept()[0]
                    content, streams, _, _ = socket.recv_fds(connection, LONGEST_COMMAND, 3)
                    while not content.endswith(b"\n"):
                        content += connection.recv(LONGEST_COMMAND)
                    forked = os.fork()
                    if not forked:
                        connection.close()
                        _become(content, streams)
                        return
                    for stream in streams:
                        os.close(stream)
                    running[forked] = os.pidfd_open(forked), connection
                    selector.register(running[forked][0], selectors.EVENT_READ, forked)
                    selector.register(connection, selectors.EVENT_READ, forked)
                elif process in running:
                    ended, connection = running[process]
                    if key.fileobj is connection:  # nobody waits for it
                        os.kill(process, signal.SIGKILL)
                        selector.unregister(connection)
                        continue
                    status = os.waitpid(process, 0)[1]
                    with contextlib.suppress(OSError):
                        connection.send(str(status).encode())
                    selector.unregister(ended)
                    with contextlib.suppress(KeyError):
                        selector.unregister(connection)
                    os.close(ended)
                    connection.close()
                    del running[process]


def _become(content: bytes, streams: Sequence[int]) -> None:
    arguments, folder, environment = json.loads(content)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["fedstac", *arguments]


def _main() -> None:
    from fedstac.cli import main

    _serve(sys.argv[1])
    main()


if __name__ == "__main__":
    _main()
