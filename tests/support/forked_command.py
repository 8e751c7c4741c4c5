"""Runs a command of fedstac at a process that forks: `python -I -S forked_command.py ADDRESS ARGUMENT…`.

It imports little, for it to start at once. Its folder, environment and streams are those of the command, it passes its
signals on, and it ends as the command does. The command is killed where this is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from types import FrameType

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Command:
    """A command that runs elsewhere, for all that this process is told to be itself."""

    def __init__(self) -> None:
        self._process = 0
        self._early_signals = list[int]()

    def run(self, address: str, arguments: list[str]) -> int:
        """Run it to its end, and return its status as wait(2) has it."""
        ignores_interrupts = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)
        request = {
            "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ),
            "ignores_interrupts": ignores_interrupts,
        }  # fmt: skip
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
            text = b""
            while text.count(b"\n") < 2:
                piece = connection.recv(32)
                if not piece:
                    sys.exit("the process that forks has ended")
                text += piece
                if b"\n" in text and not self._process:
                    self._process = int(text.splitlines()[0])
                    for early in self._early_signals:
                        self._send(early)
        return int(text.splitlines()[1])

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._process:
            self._send(number)
        else:
            self._early_signals.append(number)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, number)


def end_alike(status: int) -> None:
    """End this process with the status of another."""
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    end_alike(Command().run(sys.argv[1], sys.argv[2:]))
