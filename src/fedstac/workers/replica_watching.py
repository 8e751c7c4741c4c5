"""The watch of a replica node: notes the room on its disks, and tells operators of what lasts.

A full or broken disk, a budget that is reached, a host that stays away and a broken policy file are told once, and
again only after they have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from fedstac.bootstrap import Node
from fedstac.db.replica import alarms
from fedstac.domain.replication.alarms import AWAY_SECONDS, Alarm, AlarmKind, DiskRoom
from fedstac.domain.replication.policy import DEFAULT_TIER
from fedstac.domain.replication.states import RESTRICTED_TIER
from fedstac.replication import storage
from fedstac.runtime import supervision
from fedstac.runtime.wakeup import pause

PART = "replica watch"
LOOK_SECONDS = 15.0
log = structlog.get_logger()


class Watch:
    """Looks every few seconds. Several processes may; each alarm is told by one."""

    def __init__(
        self, node: Node, folders: Callable[[], Mapping[str, Path]], *, policy_alert: Callable[[], str | None]
    ) -> None:
        self.node, self._folders, self._policy_alert = node, folders, policy_alert

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop`."""

        async def step() -> None:
            await self.look()
            await pause(stop, LOOK_SECONDS)

        await supervision.keep_trying(self.node.parts, PART, step, stop)

    async def look(self) -> None:
        """Note how it stands, and tell what is new."""
        disks = await asyncio.to_thread(_rooms, dict(self._folders()))
        alert = self._policy_alert()
        own = [Alarm(AlarmKind.POLICY, "policy file", alert)] if alert is not None else []
        async with self.node.pool.acquire() as conn, conn.transaction():
            await alarms.store_room(conn, disks)
            standing = [*own, *await alarms.standing(conn), *await alarms.away_hosts(conn, AWAY_SECONDS)]
            news = await alarms.store(conn, standing)
        for alarm in news:
            log.warning("a replica node needs somebody", kind=alarm.kind, thing=alarm.thing, detail=alarm.detail)


def _rooms(folders: Mapping[str, Path]) -> list[DiskRoom]:
    """Return the room of each tier. The folder of restricted files is made when the first comes. Blocks."""
    rooms = []
    for tier, folder in folders.items():
        try:
            free = storage.free_bytes(folder)
        except OSError:
            if tier == RESTRICTED_TIER:
                continue
            free = None
        rooms.append(DiskRoom(tier or DEFAULT_TIER, str(folder), free))
    return rooms
