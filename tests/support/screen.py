"""Commands on a pseudo-terminal, and what its screen shows in the end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

from tests.support.commands import environment
from tests.support.waiting import PATIENCE

SEQUENCE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07|.", re.DOTALL)


def screen(written: str, width: int) -> list[str]:
    """Return the lines that stand on a terminal of a width after it was sent this; a wrapped line is one line.

    It knows what progress bars use: carriage return, line feed, cursor up, erase line, and colours, which it ignores.
    """
    rows: list[list[str]] = [[]]
    continued: set[int] = set()  # rows that go on from the row above
    row = column = 0
    for found in SEQUENCE.finditer(written):
        parameters, command = found[1] or "", found[2]
        char = found[0]
        if command == "A":
            row = max(0, row - int(parameters or 1))
        elif command == "K":
            rows[row] = []
            continued.discard(row + 1)
        elif char == "\r":
            column = 0
        elif char == "\n":
            row += 1
            if row == len(rows):
                rows.append([])
        elif not char.startswith("\x1b") and char.isprintable():
            if column == width:
                row, column = row + 1, 0
                if row == len(rows):
                    rows.append([])
                continued.add(row)
            cells = rows[row]
            cells.extend(" " * (column + 1 - len(cells)))
            cells[column] = char
            column += 1
    lines: list[str] = []
    for n, cells in enumerate(rows):
        if n in continued:
            lines[-1] += "".join(cells)
        else:
            lines.append("".join(cells))
    return [line.rstrip() for line in lines]


async def on_screen(folder: Path, *arguments: str, width: int, **variables: str) -> tuple[int, list[str], str]:
    """Run a command on a terminal; its exit code, the lines on the screen, and all that was written."""
    own, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    variables = {**environment(TERM="xterm", XDG_STATE_HOME=str(folder / "state"), **variables), "COLUMNS": str(width)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fedstac.cli", *arguments, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env=variables,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    written += await asyncio.to_thread(os.read, own, 1 << 16)
                except OSError:  # the command has ended
                    break
            code = await process.wait()
    finally:
        os.close(own)
    return code, screen(written.decode(), width), written.decode()
