"""kill -9 in the middle of copying: what is here is never fetched again, and no name is given to half a file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fedstac.domain.replication.paths import PART_FOLDER
from tests.support.file_server import file_server
from tests.support.places import REPOSITORY

BLOCK_BYTES = 8 << 20


@asynccontextmanager
async def copier() -> AsyncIterator[Process]:
    """Run the process that forks copies."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "tests.replication.forking_copier", cwd=REPOSITORY, stdin=PIPE, stdout=PIPE
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def _check_kills(folder: Path, *, kills: int, seed: int) -> None:
    """Copy a file of 60 MB, and end the process at random moments, also before the first byte and after the last."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    content = chance.randbytes(60_000_000)
    target, checksum = folder / "a/b.nc", "1220" + hashlib.sha256(content).hexdigest()
    async with file_server(content) as server, copier() as process:
        order = {"folder": str(folder), "path": "a/b.nc", "size": len(content), "checksum": checksum,
                 "href": server.url, "block_bytes": BLOCK_BYTES}  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(kills + 1):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            pid = int(await process.stdout.readline())
            if number < kills:
                # at a byte that the server sends, so that the moments do not depend on how fast the machine is; the
                # last ones are where the file is verified and moved
                moment = server.sent_bytes + chance.choice((0, chance.randrange(2 * len(content) // kills)))
                server.pause = lambda sent, moment=moment, pid=pid: kill(pid) if sent >= moment else None
                if moment == server.sent_bytes:
                    kill(pid)
            else:
                server.pause = None
            status = int(await process.stdout.readline())
            assert status in (0, -signal.SIGKILL)
            if target.exists():  # P1
                assert target.read_bytes() == content
                assert status == 0 or number < kills
            assert server.sent_bytes <= len(content) + (number + 1) * BLOCK_BYTES
        assert target.read_bytes() == content
        assert not (folder / "a" / PART_FOLDER).exists()
        print(f"{kills} kills, {server.sent_bytes - len(content)} bytes twice")
        assert server.sent_bytes - len(content) < kills * BLOCK_BYTES  # P3


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself
        return


async def test_kills_lose_less_than_a_block_each(tmp_path: Path) -> None:
    await _check_kills(tmp_path, kills=12, seed=12)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
async def test_hundreds_of_kills_lose_less_than_a_block_each(tmp_path: Path, seed: int) -> None:
    await _check_kills(tmp_path, kills=50, seed=seed)
