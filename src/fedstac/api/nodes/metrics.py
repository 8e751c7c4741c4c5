"""GET /metrics: what Prometheus collects from a process with an API."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from prometheus_client.core import Metric
from starlette.responses import Response

from fedstac import __version__
from fedstac.api.call import Call
from fedstac.bootstrap import Node
from fedstac.db import metrics as figures_of_node
from fedstac.db.metrics import Figures
from fedstac.db.replica.figures import NO_REPLICA_NODE, ReplicaNodeFigures
from fedstac.domain.errors import Unavailable
from fedstac.runtime import metrics
from fedstac.runtime.causes import is_transient

ANSWER_SECONDS = 1.5  # for the database
KEPT_SECONDS = 5.0  # many scrapes cost one look into the database


@dataclass(frozen=True, slots=True)
class Look:
    """The numbers of the node, and how long sinks and consumers need to clear their lag at the pace of late."""

    figures: Figures
    at: float  # by time.monotonic
    sink_clear_seconds: Mapping[str, float]
    consumer_clear_seconds: Mapping[str, float]


class FiguresLook:
    """The last look at the numbers of the node: many scrapes cost one look."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._until = 0.0
        self._look: Look | None = None
        self._looking = asyncio.Lock()

    async def look(self) -> Look | None:
        """Return the numbers, at most KEPT_SECONDS old; None while the database does not answer."""
        async with self._looking:
            if self._until < time.monotonic():
                figures = await self._read()
                self._look = _look_after(self._look, figures, time.monotonic()) if figures is not None else None
                self._until = time.monotonic() + KEPT_SECONDS
            return self._look

    async def _read(self) -> Figures | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._node.pool.acquire() as conn:
                return await figures_of_node.read(conn)
        except Exception as error:
            if not (is_transient(error) or isinstance(error, Unavailable)):
                self._node.parts.fails("api", error)
            return None


def _look_after(before: Look | None, figures: Figures, at: float) -> Look:
    """Return a look with the pace since the one before; without that, only what has nothing to clear has a time."""
    seconds = at - before.at if before is not None else 0.0
    sinks = {sink.name: sink.position for sink in before.figures.sinks} if before is not None else {}
    consumers = {lag.reporter: lag.through for lag in before.figures.lags} if before is not None else {}
    return Look(
        figures,
        at,
        {
            sink.name: clear_seconds(sink.events, sink.position - sinks.get(sink.name, sink.position), seconds)
            for sink in figures.sinks
        },
        {
            lag.reporter: clear_seconds(lag.events, lag.through - consumers.get(lag.reporter, lag.through), seconds)
            for lag in figures.lags
        },
    )


def clear_seconds(lag: int, progress: int, seconds: float) -> float:
    """Return how long a lag takes at a pace of so many events in so many seconds; infinite without any progress."""
    if not lag:
        return 0.0
    return lag * seconds / progress if progress > 0 else math.inf


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
    if (columns := services.columns) is not None:
        families.append(metrics.COLUMN_ROWS.of([((), columns.table.length)]))
        families.append(metrics.COLUMN_BYTES.of([((), columns.bytes)]))
        families.append(metrics.COLUMN_TERMS.of([((), columns.dictionaries.term_count)]))
        families.append(metrics.COLUMN_LOOKS.of([((), columns.catch_ups)]))
        families.append(metrics.COLUMN_LOOK_SECONDS.of([((), columns.catch_up_seconds)]))
        families.append(metrics.CACHE_BYTES.of([((), columns.documents.bytes)]))
        families.append(
            metrics.CACHE_LOOKS.of([(["hit"], columns.documents.hits), (["miss"], columns.documents.misses)])
        )
    roles = " ".join(role.name for role in services.roles)
    families.append(metrics.INFO.of([((node.settings.node, __version__, str(node.schema), roles), 1)]))
    look = await services.figures.look()
    if look is not None:
        families += _of_database(look)
    text = await services.threads.run(partial(metrics.text_of, families))  # thousands of lines, after some time
    return Response(text, headers={"Cache-Control": "no-store", "Content-Type": metrics.CONTENT_TYPE})


def _of_database(look: Look) -> Iterable[Metric]:
    """Return the metrics of the whole node; every api process of it says the same."""
    figures = look.figures
    yield metrics.QUEUE_ITEMS.of([((), figures.queued)])
    yield metrics.QUEUE_OLDEST.of([((), figures.oldest_seconds)])
    yield metrics.FEED_POSITION.of([((str(figures.epoch),), figures.position)])
    outbox, sinks = figures.outbox, figures.sinks
    states = {"waiting": figures.waiting_requests, "begun": figures.begun_requests}
    yield metrics.REQUESTS_OPEN.of([((state,), count) for state, count in states.items()])
    yield metrics.FEED_EARLIEST.of([((), outbox.earliest)])
    yield metrics.FEED_AGE.of([((), outbox.earliest_seconds)])
    yield metrics.OUTBOX_WAITING.of([((), outbox.unsequenced)])
    yield metrics.OUTBOX_WAITING_AGE.of([((), outbox.unsequenced_seconds)])
    yield metrics.OUTBOX_PARTITIONS.of([((), outbox.partitions_ahead)])
    yield metrics.SINK_POSITION.of([((sink.name,), sink.position) for sink in sinks])
    yield metrics.SINK_LAG_EVENTS.of([((sink.name,), sink.events) for sink in sinks])
    yield metrics.SINK_LAG_SECONDS.of([((sink.name,), sink.seconds) for sink in sinks])
    yield metrics.SINK_CLEAR.of([((sink.name,), look.sink_clear_seconds[sink.name]) for sink in sinks])
    yield metrics.SINK_SENT.of([((sink.name,), sink.sent) for sink in sinks])
    yield metrics.SINK_ERRORS.of([((sink.name,), sink.errors) for sink in sinks])
    yield metrics.SINK_FAILING.of([((sink.name,), sink.failing_seconds) for sink in sinks])
    yield metrics.SINK_PAUSED.of([((sink.name,), sink.paused_reason is not None or sink.has_lapsed) for sink in sinks])
    yield metrics.DEAD_LETTERS.of([((sink.name,), sink.dead_letters) for sink in sinks])
    lags = {(each.delivery, each.stand): each for each in figures.subscriptions}
    yield metrics.SUBSCRIPTIONS.of([(labels, each.count) for labels, each in lags.items()])
    unstopped_lags = {labels: each for labels, each in lags.items() if each.stand in ("active", "failing")}
    yield metrics.SUBSCRIPTION_LAG_EVENTS.of([(labels, each.events) for labels, each in unstopped_lags.items()])
    yield metrics.SUBSCRIPTION_LAG_SECONDS.of([(labels, each.seconds) for labels, each in unstopped_lags.items()])
    missed = figures.missed_events
    yield metrics.SUBSCRIPTION_EVENTS.of([(("waiting",), missed.waiting), (("dead",), missed.dead)])
    yield metrics.CONSUMER_LAG_EVENTS.of([((lag.reporter,), lag.events) for lag in figures.lags])
    yield metrics.CONSUMER_LAG_SECONDS.of([((lag.reporter,), lag.seconds) for lag in figures.lags])
    yield metrics.CONSUMER_SILENT.of([((lag.reporter,), lag.silent_seconds) for lag in figures.lags])
    yield metrics.CONSUMER_CLEAR.of([((name,), seconds) for name, seconds in look.consumer_clear_seconds.items()])
    places = figures.places
    yield metrics.CURSOR_POSITION.of([((each.consumer, each.origin), each.position) for each in places])
    yield metrics.CURSOR_IDLE.of([((each.consumer, each.origin), each.idle_seconds) for each in places])
    yield metrics.PARKED_EVENTS.of([((each.consumer, each.origin), each.parked) for each in places])
    yield metrics.NOTIFICATIONS_WAITING.of([((), figures.notifications)])
    yield metrics.NOTIFICATIONS_LATE.of([((), figures.notification_seconds)])
    yield metrics.TRANSACTION_AGE.of([((), figures.transaction_seconds)])
    marked = figures.deletions
    yield metrics.DELETIONS.of([
        (("open",), marked.open), (("waiting",), marked.waiting), (("ready",), marked.ready), (("late",), marked.late),
        (("failed",), marked.failed),
    ])  # fmt: skip
    yield metrics.DELETION_OLDEST.of([((), marked.oldest_seconds)])
    yield from _of_replica_node(figures.replica or NO_REPLICA_NODE)


def _of_replica_node(figures: ReplicaNodeFigures) -> Iterable[Metric]:
    """Return the metrics of the replica node that has this database."""
    yield metrics.REPLICA_DATASETS.of([((each.state,), each.datasets) for each in figures.states])
    yield metrics.REPLICA_DATASET_BYTES.of([((each.state,), each.bytes) for each in figures.states])
    yield metrics.REPLICA_OPEN_FILES.of([((state,), count) for state, count in figures.open_files.items()])
    yield metrics.REPLICA_ANNOUNCEMENTS.of([((state,), count) for state, count in figures.announcements.items()])
    yield metrics.REPLICA_REMOVALS.of([((), figures.removals)] if figures.states else [])
    yield metrics.REPLICA_FINDINGS.of([((fault,), count) for fault, count in figures.findings.items()])
    room = [((tier,), free) for tier, free in figures.free_bytes.items() if free is not None]
    yield metrics.REPLICA_ROOM.of(room)
    for family, seconds in (
        (metrics.REPLICA_VERIFIED, figures.verified_seconds),
        (metrics.REPLICA_PROGRESS, figures.progress_seconds),
    ):
        yield family.of([((), seconds)] if seconds is not None else [])
