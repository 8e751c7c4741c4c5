"""Back-pressure: while too many events wait to be sent, bulk writes are refused before they are accepted.

Nothing that was accepted is dropped, and changes of single datasets go on. When the events have gone out, bulk writes
are taken again.
"""

from __future__ import annotations

import asyncio
import time

from fedstac.bootstrap import Node
from fedstac.db import backlog
from fedstac.db.backlog import Backlog
from fedstac.domain.errors import Unavailable

KEPT_SECONDS = 2.0  # many writes cost one look
RETRY_AFTER = 60


class BacklogLook:
    """The last look at what waits."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._until = 0.0
        self._backlogs: list[Backlog] = []
        self._looking = asyncio.Lock()

    async def require_room(self) -> None:
        """Let a bulk write go on. Unavailable where too many events wait to be sent."""
        async with self._looking:
            if self._until < time.monotonic():
                async with self._node.pool.acquire() as conn:
                    self._backlogs = await backlog.read(conn)
                self._until = time.monotonic() + KEPT_SECONDS
        settings = self._node.settings
        for each in self._backlogs:
            if each.fills(settings.unsent_seconds, settings.unsent_bytes) >= 1:
                raise Unavailable(
                    f"batches are not taken just now, since too many events wait to be sent ({each.describe()}); "
                    f"send it again later, or single datasets now",
                    retry_after=RETRY_AFTER,
                )
