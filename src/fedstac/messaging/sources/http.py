"""The HTTP feed as an event source: long polls of GET /events. Its places are kept by the consumer."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from types import TracebackType

from fedstac.domain.events import Cursor
from fedstac.messaging.node_client import NodeClient
from fedstac.messaging.sources import EventPage, Offsets, SourceAway, is_clearing
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.runtime.wakeup import cancel


@dataclass(frozen=True, slots=True)
class PageAhead:
    """A page that is fetched while the consumer applies the one before it."""

    after: Cursor
    limit: int
    task: asyncio.Task[EventPage]


class HttpSource(NodeClient):
    """The feed of one publishing node. While a consumer is behind, the next page is fetched ahead."""

    def __init__(self, source: SourceAddress) -> None:
        super().__init__(source)
        self._ahead: PageAhead | None = None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._drop_ahead()
        await super().__aexit__(kind, error, trace)

    async def begin(self, after: Cursor, offsets: Offsets) -> None:
        """Forget what was fetched ahead: each request says where to go on."""
        await self._drop_ahead()

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        """Return the next events, after up to `wait` seconds. BehindRetention where the feed does not reach back.

        A page that was fetched ahead may be empty without a wait.
        """
        ahead = self._ahead
        if ahead is not None and (ahead.after, ahead.limit) == (after, limit):
            self._ahead = None
            page = await ahead.task
        else:
            await self._drop_ahead()
            page = await self._fetch(after, limit, wait)
        if len(page.events) >= max(limit - 1, 1):  # one may be left to the next page
            task = asyncio.create_task(self._fetch(page.cursor, limit, 0))
            self._ahead = PageAhead(page.cursor, limit, task)
        return page

    async def _fetch(self, after: Cursor, limit: int, wait: float) -> EventPage:
        parameters = {"after": str(after), "limit": limit, "wait": math.ceil(wait)}
        response = await self.send("GET", "/events", parameters)
        events = self.value_of(response, "/events")
        if not isinstance(events, list) or "x-cursor" not in response.headers:
            raise SourceAway("the source did not answer with a page of events; is there a proxy before it?")
        cursor = Cursor.parse(response.headers["x-cursor"])
        if len(events) > 1 and is_clearing(events[-1]):
            events, cursor = events[:-1], Cursor(cursor.epoch, int(events[-2]["pos"]))
        return EventPage(events, cursor)

    async def _drop_ahead(self) -> None:
        if self._ahead is not None:
            task, self._ahead = self._ahead.task, None
            await cancel(task)

    async def end(self) -> Cursor:
        """Return the last position of the feed."""
        return Cursor.parse((await self.get_json("/events/head"))["cursor"])
