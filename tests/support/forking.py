"""Commands of fedstac in processes of their own, forked from one that has imported them: imports take the longest.

`python -m tests.support.forking ADDRESS` is the process that forks. It has imported every module of fedstac, also those
that a command imports when it runs. Everything else of a command is its own: arguments, environment, folder, the three
streams, exit status.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
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


def _import_all() -> None:
    """Import every module of fedstac."""
    import fedstac

    for module in pkgutil.walk_packages(fedstac.__path__, "fedstac."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)


def _make_once() -> None:
    """Make what every command would make anew: the commands themselves, and the certificates that clients trust."""
    import httpx
    import typer.main
    from httpx._transports import default

    from fedstac.cli import app

    for module, name in ((typer.main, "get_command"), (default, "create_ssl_context")):
        setattr(module, name, functools.cache(getattr(module, name)))
    typer.main.get_command(app)
    httpx.Client().close()


def _main() -> None:
    from fedstac.cli import main

    _import_all()
    _make_once()
    gc.collect()
    gc.freeze()  # what is here stays, and no collection of a command looks at it
    _serve(sys.argv[1])
    try:
        main()
    except SystemExit as end:
        _leave(end)
        raise


def _leave(end: SystemExit) -> None:
    """End the process as the interpreter would, but for taking every module apart, which takes as long as a command.

    Return where there is more to do than that: a thread that still runs, or output that nobody takes.
    """
    gc.collect()  # what was left open complains now
    if threading.active_count() > 1 or not isinstance(end.code, int | None):
        return
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(end.code or 0)


if __name__ == "__main__":
    _main()
