"""Commands of fedstac in processes of their own, and what they are given."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tests.support.nodes import Api
from tests.support.waiting import PATIENCE


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output as newline-delimited JSON."""
        return [orjson.loads(line) for line in self.stdout.splitlines()]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment without this machine's own wishes."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("FEDSTAC_", "PG"))}
    return {**kept, "NO_PROXY": "127.0.0.1", "COLUMNS": "80", "FEDSTAC_RETRIES": "1", **variables}


OWN_PROGRAM = (sys.executable, "-W", "error", "-m", "fedstac.cli")


async def start(
    *arguments: str, folder: Path, program: Sequence[str] = OWN_PROGRAM, **variables: str
) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *program, *arguments,
        stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder,
        env=environment(**{"XDG_STATE_HOME": str(folder / "state"), **variables}), limit=1 << 24,
    )  # fmt: skip


Fedstac = Callable[..., Awaitable[Result]]
StartCommand = Callable[..., Awaitable[asyncio.subprocess.Process]]


SERVER = ("asyncpg", "psycopg", "starlette", "fastapi", "uvicorn", "structlog", "stac_fastapi", "pypgstac", "shapely")


def lines(items: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def to(api: Api, role: str = "admin") -> dict[str, str]:
    return {"FEDSTAC_URL": api.url, "FEDSTAC_TOKEN": api.tokens.get(role, role)}


BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from fedstac.cli import main
"""
ONE = """
sys.argv = ["fedstac", *{arguments!r}]
main()
"""
EACH = """
import functools, typer.main
typer.main.get_command = functools.cache(typer.main.get_command)
for arguments in {commands!r}:
    sys.argv, code = ["fedstac", *arguments], 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    for stream in (sys.stdout, sys.stderr):
        stream.write(f"\\0{{code}}\\0")
"""


async def alone(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command where nothing of the server is installed. Return its exit code and what it wrote."""
    return await _run_alone(folder, ONE.format(arguments=arguments))


async def each_alone(folder: Path, commands: Sequence[Sequence[str]]) -> list[Result]:
    """Run commands one after the other in one process, where nothing of the server is installed."""
    code, *outputs = await _run_alone(folder, EACH.format(commands=[list(each) for each in commands]))
    assert code == 0, outputs
    stdout, stderr = (output.split("\0")[:-1] for output in outputs)
    return [Result(int(code), *texts) for code, *texts in zip(stdout[1::2], stdout[::2], stderr[::2], strict=True)]


async def _run_alone(folder: Path, script: str) -> tuple[int, str, str]:
    script = BLOCKED.format(names=set(SERVER)) + script
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", script, stdout=pipe, stderr=pipe, cwd=folder, env=environment()
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()
