"""GET /metrics: what Prometheus collects from a process with an API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from prometheus_client.core import Metric
from starlette.responses import Response

from fedstac import __version__
from fedstac.api.call import Call
from fedstac.bootstrap import Node
from fedstac.db import metrics as figures_of_node
from fedstac.db.metrics import Figures
from fedstac.domain.errors import Unavailable
from fedstac.runtime import metrics
from fedstac.runtime.causes import is_transient

ANSWER_SECONDS = 1.5  # for the database
KEPT_SECONDS = 5.0  # many scrapes cost one look into the database


class FiguresLook:
    """The last look at the numbers of the node: many scrapes cost one look."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._until = 0.0
        self._figures: Figures | None = None
        self._looking = asyncio.Lock()

    async def figures(self) -> Figures | None:
        """Return the numbers, at most KEPT_SECONDS old; None while the database does not answer."""
        async with self._looking:
            if self._until < time.monotonic():
                self._figures, self._until = await self._look(), time.monotonic() + KEPT_SECONDS
            return self._figures

    async def _look(self) -> Figures | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._node.pool.acquire() as conn:
                return await figures_of_node.read(conn)
        except Exception as error:
            if not (is_transient(error) or isinstance(error, Unavailable)):
                self._node.parts.fails("api", error)
            return None


async def get_metrics(call: Call) -> Response:
    """Return the metrics of this process and of the node's database, in the text format of Prometheus.

    For administrators and tokens with the role monitor. What comes from the database is at most five seconds old, and
    left out while the database does not answer.
    """
    node, services = call.node, call.services
    families = metrics.process_families(node.metrics, node.parts, node.pools.by_name())
    families.append(metrics.REQUEST_MEMORY.of([([lane], size) for lane, size in services.memory.usage().items()]))
    families.append(
        metrics.REQUEST_MEMORY_LIMIT.of([([lane], size) for lane, size in services.memory.limits().items()])
    )
    roles = " ".join(role.name for role in services.roles)
    families.append(metrics.INFO.of([((node.settings.node, __version__, str(node.schema), roles), 1)]))
    figures = await services.figures.figures()
    if figures is not None:
        families += _of_database(figures)
    return Response(
        metrics.text_of(families), headers={"Cache-Control": "no-store", "Content-Type": metrics.CONTENT_TYPE}
    )


def _of_database(figures: Figures) -> Iterable[Metric]:
    """Return the metrics of the whole node; every api process of it says the same."""
    yield metrics.QUEUE_ITEMS.of([((), figures.queued)])
    yield metrics.QUEUE_OLDEST.of([((), figures.oldest_seconds)])
    yield metrics.FEED_POSITION.of([((str(figures.epoch),), figures.position)])
    yield metrics.CONSUMER_LAG_EVENTS.of([((lag.reporter,), lag.events) for lag in figures.lags])
    yield metrics.CONSUMER_LAG_SECONDS.of([((lag.reporter,), lag.seconds) for lag in figures.lags])
    places = figures.places
    yield metrics.CURSOR_POSITION.of([((each.consumer, each.origin), each.position) for each in places])
    yield metrics.CURSOR_IDLE.of([((each.consumer, each.origin), each.idle_seconds) for each in places])
    yield metrics.PARKED_EVENTS.of([((each.consumer, each.origin), each.parked) for each in places])
    yield metrics.NOTIFICATIONS_WAITING.of([((), figures.notifications)])
    yield metrics.NOTIFICATIONS_LATE.of([((), figures.notification_seconds)])
