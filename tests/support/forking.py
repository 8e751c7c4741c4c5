"""Commands of fedstac in processes of their own, forked from one that has imported them: imports take the longest.

`python -m tests.support.forking ADDRESS` is the process that forks. It has imported every module of fedstac, also those
that a command imports when it runs. Everything else of a command is its own: arguments, environment, folder, the three
streams, exit status. Arguments that begin with `-m` or `-c` run a module or code instead of a command, as Python does.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.commands import environment
from tests.support.places import REPOSITORY

LONGEST_COMMAND = 1 << 20  # bytes of arguments and environment
READY = b"ready\n"
ROOM = 4 << 10, 16 << 10  # bytes in which /proc shows the arguments and the environment of a process that was forked
PROGRAM = Path(__file__).with_name("forked_command.py")


@dataclass(frozen=True)
class Forks:
    """Runs commands at the process that listens at `address`."""

    address: str

    @property
    def program(self) -> tuple[str, ...]:
        """What stands for `python -m fedstac.cli` where a process is started by other means than these.

        With `-m` and a module, or `-c` and code, it stands for `python`.
        """
        return (sys.executable, "-I", "-S", str(PROGRAM), self.address)

    def write_program(self, folder: Path) -> None:
        """Write the program `fedstac` for shells that find it in a folder."""
        words = " ".join(f'"{word}"' for word in self.program)
        program = folder / "fedstac"
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)

    async def run(
        self, arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], stdin: bytes
    ) -> tuple[int, bytes, bytes]:
        """Run a command to its end, and return its exit code, standard output and standard error.

        It is killed where nobody waits for it any more.
        """
        streams = [os.pipe(), os.pipe(), os.pipe()]
        theirs = [streams[0][0], streams[1][1], streams[2][1]]
        with self._fork(arguments, folder, environment, theirs) as connection:
            for stream in theirs:
                os.close(stream)
            connection.setblocking(False)
            _, stdout, stderr, status = await asyncio.gather(
                asyncio.to_thread(_write, streams[0][1], stdin),
                asyncio.to_thread(_read, streams[1][0]),
                asyncio.to_thread(_read, streams[2][0]),
                _receive_status(connection),
            )
        return os.waitstatus_to_exitcode(status), stdout, stderr

    def start(self, arguments: Sequence[str], *, environment: Mapping[str, str], output: Path | None) -> ForkedProcess:
        """Start a command in a process group of its own, which writes to a file, or nowhere."""
        with open(os.devnull, "rb") as nothing, open(output or os.devnull, "ab") as file:
            streams = [nothing.fileno(), file.fileno(), file.fileno()]
            return ForkedProcess(self._fork(arguments, REPOSITORY, environment, streams, leads_group=True))

    def spawn(
        self, others: Callable[..., Any], command: Sequence[str], environment: Mapping[str, str], log: Path,
        ready_file: Path,
    ) -> Any:  # fmt: skip
        """Start a process of a federation, as fedstac.demo.federation does; by `others` if it is of other code."""
        is_ours = environment.get("PYTHONPATH", str(REPOSITORY)) == str(REPOSITORY)
        if not is_ours or tuple(command[1:3]) != ("-m", "fedstac.cli"):
            return others(command, environment, log, ready_file)
        ready_file.unlink(missing_ok=True)
        return self.start(command[3:], environment=environment, output=log)

    def _fork(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Sequence[int], *,
        leads_group: bool = False,
    ) -> socket.socket:  # fmt: skip
        """Ask for a process. Return the connection that tells its id, then its status at the end, a line each."""
        request = {
            "arguments": list(arguments), "folder": str(folder), "environment": dict(environment),
            "leads_group": leads_group,
        }  # fmt: skip
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], streams)
        return connection


class ForkedProcess:
    """A process that was forked elsewhere, as subprocess.Popen shows one that is a child of ours."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._text = connection, b""
        while b"\n" not in self._text:
            self._text += connection.recv(16)
        first_line, _, self._text = self._text.partition(b"\n")
        self.pid = int(first_line)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code at its end. TimeoutExpired where it runs for longer."""
        while self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                piece = self._connection.recv(16)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("fedstac", timeout or 0) from None
            assert piece, "the process that forks has ended"
            self._text += piece
            if b"\n" in self._text:
                self.returncode = os.waitstatus_to_exitcode(int(self._text))
                self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def _receive_status(connection: socket.socket) -> int:
    """Return the status from a connection: it comes in the second line."""
    text = b""
    while text.count(b"\n") < 2:
        text += await asyncio.get_running_loop().sock_recv(connection, 32)
    return int(text.splitlines()[1])


def _write(stream: int, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(stream, "wb") as file:
        file.write(content)


def _read(stream: int) -> bytes:
    with open(stream, "rb") as file:
        return file.read()


@functools.cache
def shared() -> Forks:
    """Return what all tests of this process share."""
    return _shared.enter_context(forks(environment()))


def end_shared() -> None:
    """End what tests of this process have shared, if they did."""
    _shared.close()
    shared.cache_clear()


_shared = contextlib.ExitStack()


@contextmanager
def forks(environment: Mapping[str, str]) -> Iterator[Forks]:
    """Run the process that forks, and end it with all that it has forked."""
    with tempfile.TemporaryDirectory(prefix="fedstac-forks-") as folder:
        address = f"{folder}/socket"
        arguments, variables = ("." * size for size in ROOM)
        command = [sys.executable, "-W", "error", "-m", "tests.support.forking", address, arguments]
        own = {**environment, "ROOM": variables}
        with subprocess.Popen(command, cwd=REPOSITORY, env=own, stdout=subprocess.PIPE) as process:
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
                        for descriptor, other in running.values():  # else it complains of them as left open
                            os.close(descriptor)
                            other.close()
                        _become(content, streams, Forks(address))
                        return
                    for stream in streams:
                        os.close(stream)
                    with contextlib.suppress(OSError):
                        connection.send(f"{forked}\n".encode())
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
                        connection.send(f"{status}\n".encode())
                    selector.unregister(ended)
                    with contextlib.suppress(KeyError):
                        selector.unregister(connection)
                    os.close(ended)
                    connection.close()
                    del running[process]


def _become(content: bytes, streams: Sequence[int], forks: Forks) -> None:
    """Make this process one that was started for a command. What a demonstration starts is forked too."""
    from fedstac.cli.faults import PROCESSES
    from fedstac.demo import federation

    request = json.loads(content)
    arguments, variables = request["arguments"], request["environment"]
    if request.get("leads_group"):
        os.setpgid(0, 0)
    if request.get("ignores_interrupts"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    is_python = arguments[:1] in (["-m"], ["-c"])
    if is_python or (arguments[:1] and arguments[0] in PROCESSES):
        warnings.resetwarnings()  # a server is no test
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=os.isatty(1))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "FEDSTAC_DIE_WITH" in variables:
        variables["FEDSTAC_DIE_WITH"] = str(os.getppid())
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(request["folder"])
    sys.argv = ["fedstac", *arguments]
    _show([sys.executable, *(() if is_python else ("-m", "fedstac.cli")), *arguments], variables)
    if arguments[:1] == ["demo"]:
        vars(federation)["_spawn"] = functools.partial(forks.spawn, federation._spawn)


def _show(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Show the arguments and the environment of this process in /proc, as far as there is room for them."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    places = [int(field) for field in fields[45:49]]  # proc(5): arg_start, arg_end, env_start, env_end
    pairs = [f"{name}={value}" for name, value in variables.items()]
    for start, end, texts in ((places[0], places[1], words), (places[2], places[3], pairs)):
        content = b"".join(os.fsencode(text) + b"\0" for text in texts)[: end - start - 1]
        ctypes.memmove(start, content.ljust(end - start, b"\0"), end - start)


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
        match sys.argv[1:]:
            case ["-m", module, *arguments]:
                sys.argv = [module, *arguments]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                sys.exit()
            case ["-c", code, *arguments]:
                sys.argv = ["-c", *arguments]
                exec(code, {"__name__": "__main__"})
                sys.exit()
            case _:
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
