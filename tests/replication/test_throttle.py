"""The bandwidth cap of a source, over all workers and processes of a replica node."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest

from fedstac.replication.policy_file import PolicyFile
from fedstac.replication.throttle import SharedThrottle
from tests.support.forking import shared
from tests.support.waiting import until

CAP = 8_000_000
POLICY = """\
version: 1
rules: []
sources:
  - {name: slow, hosts: [a.example, "*.b.example"], bandwidth: %s}
  - {name: fast, hosts: [c.example]}
"""
TAKER = ("-m", "tests.support.byte_taker")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY % "8 MB/s")
    return path


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def allow(policy: Path, file: PolicyFile, bandwidth: str) -> bool:
    policy.write_text(POLICY % bandwidth)
    return file.look()


def bytes_taken(processes: ExitStack, dsn: str, policy: Path, count: int, workers: int, seconds: float) -> int:
    """Return what several processes got together in so many seconds, with as many workers each."""
    takers = [
        processes.enter_context(subprocess.Popen(
            [*shared().program, *TAKER, dsn, str(policy), host, str(workers)], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ))
        for host in ["a.example", "x.b.example"] * (count // 2)
    ]  # fmt: skip
    for taker in takers:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "ready\n"
    end = time.monotonic() + seconds
    return sum(int(taker.communicate(f"{end}\n", timeout=60)[0]) for taker in takers)


def test_a_cap_holds_over_the_workers_of_two_processes(processes: ExitStack, dsn: str, policy: Path) -> None:
    rate = bytes_taken(processes, dsn, policy, count=2, workers=4, seconds=2.5) / 2.5
    assert 0.9 * CAP <= rate <= 1.05 * CAP, rate


@pytest.mark.soak
def test_a_cap_holds_over_eight_processes(processes: ExitStack, dsn: str, policy: Path) -> None:
    rate = bytes_taken(processes, dsn, policy, count=8, workers=1, seconds=10) / 10
    sys.stdout.write(f"\n8 processes: {rate / CAP:.3f} of the cap\n")
    assert 0.95 * CAP <= rate <= 1.05 * CAP, rate


async def test_a_source_without_a_cap_and_a_host_of_none_wait_for_nothing(dsn: str, policy: Path) -> None:
    file = PolicyFile(policy)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        throttle = SharedThrottle(pool, lambda: file.current)
        async with asyncio.timeout(1):
            await throttle.take("c.example", 1 << 40)
            await throttle.take("elsewhere.example", 1 << 40)


async def test_who_waits_holds_no_connection_and_a_higher_cap_counts_at_once(dsn: str, policy: Path) -> None:
    file = PolicyFile(policy)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        throttle = SharedThrottle(pool, lambda: file.current)
        waiting = asyncio.create_task(throttle.take("a.example", 1 << 40))  # a day and a half
        await until(lambda: pool.fetchval("SELECT count(*) FROM fedstac.replica_source"))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert allow(policy, file, "900 TB/s")
        async with asyncio.timeout(1):
            await throttle.take("a.example", 1)
