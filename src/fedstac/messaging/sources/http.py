"""The HTTP feed as an event source: long polls of GET /events. Its places are kept by the consumer."""

from __future__ import annotations

import math

import orjson

from fedstac.domain.events import Cursor
from fedstac.messaging.node_client import NodeClient
from fedstac.messaging.sources import EventPage, Offsets


class HttpSource(NodeClient):
    """The feed of one publishing node."""

    async def begin(self, after: Cursor, offsets: Offsets) -> None:
        """Do nothing: each request says where to go on."""

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        """Return the next events, after up to `wait` seconds. BehindRetention where the feed does not reach back."""
        parameters = {"after": str(after), "limit": limit, "wait": math.ceil(wait)}
        response = await self.send("GET", "/events", parameters)
        return EventPage(orjson.loads(response.content), Cursor.parse(response.headers["x-cursor"]))

    async def end(self) -> Cursor:
        """Return the last position of the feed."""
        return Cursor.parse((await self.get_json("/events/head"))["cursor"])
