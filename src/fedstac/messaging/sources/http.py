"""The HTTP feed as an event source: long polls of GET /events. Its places are kept by the consumer."""

from __future__ import annotations

import orjson

from fedstac.domain.events import Cursor
from fedstac.messaging.node_client import NodeClient
from fedstac.messaging.sources import EventPage


class HttpSource(NodeClient):
    """The feed of one publishing node."""

    async def receive(self, after: Cursor, *, limit: int, wait: int) -> EventPage:
        """Return the next events, after up to `wait` seconds. BehindRetention where the feed does not reach back."""
        response = await self.send("GET", "/events", {"after": str(after), "limit": limit, "wait": wait})
        return EventPage(orjson.loads(response.content), Cursor.parse(response.headers["x-cursor"]))

    async def commit(self, through: Cursor) -> None:
        """Do nothing: the feed keeps no place for a consumer, each request says where to go on."""
