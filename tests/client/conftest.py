"""A running node for the client, and commands in processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.api.conftest import api as api
from tests.api.conftest import start_api as start_api
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


async def start(*arguments: str, folder: Path, **variables: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "fedstac.cli", *arguments,
        stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder,
        env=environment(**{"XDG_STATE_HOME": str(folder / "state"), **variables}), limit=1 << 24,
    )  # fmt: skip


Fedstac = Callable[..., Awaitable[Result]]


@pytest.fixture
def fedstac(tmp_path: Path) -> Fedstac:
    """Runs a command and returns how it ended."""

    async def run(*arguments: str, stdin: bytes = b"", **variables: str) -> Result:
        process = await start(*arguments, folder=tmp_path, **variables)
        try:
            stdout, stderr = await asyncio.wait_for(process.communicate(stdin), PATIENCE)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode is not None
        return Result(process.returncode, stdout.decode(), stderr.decode())

    return run
