"""A process of a test that takes bytes of a source's cap: `python -m tests.support.byte_taker DSN POLICY HOST WORKERS`.

It says `ready`, reads from its standard input until when on the clock that all processes share, and says how many bytes
it got.
"""

from __future__ import annotations

import asyncio
import sys
import time

import asyncpg

from fedstac.replication.policy_file import PolicyFile
from fedstac.replication.throttle import SharedThrottle

PIECE = 32 << 10


async def main(dsn: str, policy: str, host: str, workers: int) -> None:
    file = PolicyFile(policy)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        throttle = SharedThrottle(pool, lambda: file.current)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        end = float(sys.stdin.readline())
        counts = await asyncio.gather(*(_take(throttle, host, end) for _ in range(workers)))
    sys.stdout.write(f"{sum(counts)}\n")


async def _take(throttle: SharedThrottle, host: str, end: float) -> int:
    count = 0
    while time.monotonic() < end:
        await throttle.take(host, PIECE)
        if time.monotonic() < end:
            count += PIECE
    return count


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
