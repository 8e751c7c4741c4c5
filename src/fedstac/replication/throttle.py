"""The bandwidth caps of sources, which hold over all workers and processes of a replica node.

What a source may give is counted in PostgreSQL (db/replica/sources.py), in blocks: a process takes a fraction of a
second of the cap at once and spends it on its files. Nobody holds a connection, or a lock there, while it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fedstac.db import connections, pools
from fedstac.db.replica import sources
from fedstac.domain.replication.choosing import Source
from fedstac.domain.replication.policy import ReplicaPolicy

BLOCK_SECONDS: Final = 0.1  # of a cap, that a process takes at once
BURST_SECONDS: Final = 0.05  # by which a source that was idle may be ahead
LEAST_BLOCK: Final = 64 << 10  # bytes


@dataclass(slots=True)
class Purse:
    """What this process has taken of a source's cap and not spent yet. Its lock keeps the order of who waits."""

    bytes: int = 0
    order: asyncio.Lock = field(default_factory=asyncio.Lock)


class SharedThrottle:
    """Lets bytes through as fast as the policy allows: by host, the source that has it counts for all its hosts."""

    def __init__(self, pool: pools.Pool | connections.Pool, policy: Callable[[], ReplicaPolicy]) -> None:
        self._pool, self._policy = pool, policy
        self._purses: dict[str, Purse] = {}

    async def take(self, host: str, count: int) -> None:
        """Return when so many bytes of this host may have come. Of a host without a cap that is at once."""
        source = source_of_host(self._policy(), host)
        if source is None or source.bandwidth is None or count <= 0:
            return
        purse = self._purses.setdefault(source.name, Purse())
        async with purse.order:
            while purse.bytes < count:
                await self._fill(purse, source.name, source.bandwidth, count - purse.bytes)
            purse.bytes -= count

    async def _fill(self, purse: Purse, source: str, rate: int, needed: int) -> None:
        block = max(needed, LEAST_BLOCK, int(rate * BLOCK_SECONDS))
        async with self._pool.acquire() as conn:
            seconds = await sources.take_bytes(conn, source, block, rate, burst_seconds=BURST_SECONDS)
        if seconds > 0:
            await asyncio.sleep(seconds)
        purse.bytes += block


def source_of_host(policy: ReplicaPolicy, host: str) -> Source | None:
    """Return the source that a host belongs to: by its name in the policy, else by the host of an address."""
    by_name = next((source for source in policy.sources if source.name == host), None)
    return by_name or policy.source_of(f"{host if '://' in host else f'https://{host}'}/")
