"""The quality check of a rule: a command of the operator's that judges a dataset's files before it is announced."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fedstac.settings import environment_of_children

TAIL_BYTES: Final = 2000  # of what the command writes, that a reason repeats
READ_BYTES: Final = 64 << 10
REST_SECONDS: Final = 2.0  # for what is still in the pipe when the command has ended
GRACE_SECONDS: Final = 5.0  # between asking the command to end and ending it
INTERRUPTIONS: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # no command sends them to itself

# Becomes the command in its process, as a program: preexec_fn is unsafe in a process with threads. A node that is
# killed leaves no command behind; getppid tells of one that went before the line above.
LAUNCH: Final = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    print(error.strerror, flush=True)
    sys.exit(127)
"""


class CheckUnusable(Exception):
    """The command cannot be started. No dataset is to blame; the text says what to mend."""


class CheckInterrupted(Exception):
    """Somebody else ended the command: the service manager, or the kernel for want of memory. It says nothing."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check says of a dataset; `reason` is "" where it passes."""

    passes: bool
    reason: str = ""


async def check(
    command: str, *, folder: Path, collection: str, dataset: str, files: Sequence[str], seconds: float
) -> CheckResult:
    """Run a command over a dataset's files, and return its verdict. CheckUnusable, CheckInterrupted.

    The command is split as a shell does, and run without one, in `folder`. It reads `files`, paths relative to the
    folder, from its standard input, one a line; FEDSTAC_COLLECTION and FEDSTAC_DATASET name the dataset. Settings and
    secrets of this node are not in its environment. Exit status 0 passes; 126 and 127 are of what cannot be started;
    any other one fails, as does a command that has not ended after so many seconds. What it leaves running is ended
    with it.
    """
    with tempfile.TemporaryFile() as listing:
        listing.write("".join(f"{path}\n" for path in files).encode())
        listing.seek(0)
        async with _Tail(TAIL_BYTES) as output:
            process = await _start(command, folder, collection, dataset, stdin=listing.fileno(), stdout=output.writer)
            try:
                async with asyncio.timeout(seconds):
                    status = await process.wait()
            except TimeoutError:
                status = None
            finally:
                await _end(process)
        # what the command started may have held the output open until now
    if status == 0:
        return CheckResult(True)
    match status:
        case None:
            how = f"did not end within {seconds:g} s"
        case 126 | 127:
            raise CheckUnusable(f"the check {_quoted(command)} cannot be started; mend the policy{output.quoted()}")
        case negative if -negative in INTERRUPTIONS:
            raise CheckInterrupted(f"the check was ended by signal {-negative}: {_quoted(command)}{output.quoted()}")
        case negative if negative < 0:
            how = f"was ended by signal {-negative}"
        case positive:
            how = f"ended with status {positive}"
    return CheckResult(False, f"the check {how}: {_quoted(command)}{output.quoted()}")


async def _start(
    command: str, folder: Path, collection: str, dataset: str, *, stdin: int, stdout: int
) -> asyncio.subprocess.Process:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CheckUnusable(f"the check {_quoted(command)} cannot be read: {error}; mend the policy") from None
    if not words:
        raise CheckUnusable("the check of the rule is empty; mend the policy")
    environment = environment_of_children() | {"FEDSTAC_COLLECTION": collection, "FEDSTAC_DATASET": dataset}
    try:
        # no pipes of asyncio: it would wait for all who hold them, and not for the command alone
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-IS",
            "-c",
            LAUNCH,
            str(os.getpid()),
            *words,
            cwd=folder,
            env=environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stdout,
            process_group=0,
        )
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckUnusable(f"the check {_quoted(command)} cannot be started: {reason}; mend the policy") from None


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the command and whatever it started: first asked to, then killed."""
    if process.returncode is None:
        _signal(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE_SECONDS)
    _signal(process.pid, signal.SIGKILL)  # the group outlives its leader
    await process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _quoted(command: str) -> str:
    return f"`{command[:200]}`"


class _Tail:
    """The last bytes of what is written into `writer`; the rest is read and forgotten."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, b""
        self._reader, self.writer = os.pipe()

    async def __aenter__(self) -> Self:
        stream = asyncio.StreamReader()
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(self._reader, "rb", buffering=0)
        )
        self._task = asyncio.create_task(self._read(stream))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Read what is left. Nobody writes any more: all who could are ended."""
        os.close(self.writer)
        await asyncio.wait((self._task,), timeout=REST_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._transport.close()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(READ_BYTES):
            self._bytes = (self._bytes + chunk)[-self._most_bytes :]

    def quoted(self) -> str:
        """Return the output as it stands in a reason; "" where the command wrote nothing."""
        text = self._bytes.decode("utf-8", "replace").strip()
        clean = "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
        return f"\n{clean}" if clean else ""
