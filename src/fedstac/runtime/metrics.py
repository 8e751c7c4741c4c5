"""Metrics, as Prometheus reads them: the table of all families, and what a process counts itself.

A family is declared once, here; docs/reference/metrics.md and the dashboard follow from the table. Counting is made for
hot paths: a dictionary and two additions. The text is made from copies, so that another thread may ask for it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Protocol
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

if TYPE_CHECKING:
    from fedstac.runtime.supervision import Parts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
LE = (*(str(limit) for limit in BOUNDS), "+Inf")
UNMATCHED = "none"  # the route of a request that no route takes; its method may be made up
CLIENT_LEFT = "none"  # the code of a request whose client did not wait


class MetricKind(StrEnum):
    """What a family is to Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class MetricScope(StrEnum):
    """Whose numbers a family has: those of one process, or those of the whole node, from its database."""

    PROCESS = "process"
    NODE = "node"


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A family of metrics: its name as Prometheus shows it, what it says, its labels."""

    kind: MetricKind
    scope: MetricScope
    name: str
    meaning: str  # a sentence
    labels: tuple[str, ...]

    def of(self, rows: Iterable[tuple[Sequence[str], float]]) -> Metric:
        """Return a gauge or a counter with a value for each row of labels."""
        if self.kind is MetricKind.GAUGE:
            metric: Metric = GaugeMetricFamily(self.name, self.meaning, labels=self.labels)
        else:
            metric = CounterMetricFamily(self.name.removesuffix("_total"), self.meaning, labels=self.labels)
        for values, value in rows:
            metric.add_sample(self.name, dict(zip(self.labels, values, strict=True)), value)
        return metric


FAMILIES: Final[dict[str, Family]] = {}  # all of them, by name


def _declare(
    kind: MetricKind, name: str, meaning: str, *labels: str, scope: MetricScope = MetricScope.PROCESS
) -> Family:
    family = FAMILIES[name] = Family(kind, scope, name, meaning, labels)
    return family


def _counter(name: str, meaning: str, *labels: str) -> Family:
    return _declare(MetricKind.COUNTER, name, meaning, *labels)


def _seconds(name: str, meaning: str, *labels: str) -> Family:
    return _declare(MetricKind.HISTOGRAM, name, meaning, *labels)


def _gauge(name: str, meaning: str, *labels: str) -> Family:
    return _declare(MetricKind.GAUGE, name, meaning, *labels)


def _of_node(name: str, meaning: str, *labels: str) -> Family:
    return _declare(MetricKind.GAUGE, name, meaning, *labels, scope=MetricScope.NODE)


def _counted_of_node(name: str, meaning: str, *labels: str) -> Family:
    return _declare(MetricKind.COUNTER, name, meaning, *labels, scope=MetricScope.NODE)


# --- of a process ---

REQUEST_SECONDS = _seconds(
    "fedstac_http_request_duration_seconds",
    "Time from a request to the end of its answer. `none` is the route of what no route takes, and the code of clients "
    "that left.",
    "method", "route", "code",
)  # fmt: skip
ITEMS = _counter("fedstac_items_total", "Items that this process brought to their end, by outcome.", "outcome")
FINDINGS = _counter(
    "fedstac_findings_total", "What validation found in what was sent to this process, by rule and severity.",
    "rule", "severity",
)  # fmt: skip
BATCH_SECONDS = _seconds(
    "fedstac_batch_duration_seconds", "Time of a publish worker for one batch: one transaction.",
)  # fmt: skip
SEQUENCING_SECONDS = _seconds(
    "fedstac_sequencing_duration_seconds", "Time of the sequencer for one transaction that gave positions."
)
SEQUENCED = _counter("fedstac_sequenced_events_total", "Events that this process gave a position.")
SUBSCRIPTION_POSTS = _counter(
    "fedstac_subscription_posts_total", "Events that this process posted to subscriptions, by what came of it.",
    "verdict",
)  # fmt: skip
UNWRITABLE_EVENTS = _counter(
    "fedstac_unwritable_events_total",
    "Events that a format could not write, for a sink, a subscription or a reader of changes: they are dead letters, "
    "or left out.",
    "format",
)  # fmt: skip
SINK_PAGE_SECONDS = _seconds(
    "fedstac_sink_page_duration_seconds",
    "Time until a sink acknowledged a page, one transaction of its broker.",
    "sink",
)
APPLY_SECONDS = _seconds(
    "fedstac_apply_duration_seconds",
    "Time of a consumer for a page: judged, applied and committed.",
    "consumer",
    "origin",
)
ACKNOWLEDGEMENT_SECONDS = _seconds(
    "fedstac_acknowledgement_duration_seconds", "Time until an origin took a consumer's acknowledgement.",
    "consumer", "origin",
)  # fmt: skip
CONSUMED = _counter(
    "fedstac_consumed_events_total",
    "Events that a consumer in this process brought to their end: applied; ignored, since what is here is as new; "
    "rejected, as nothing that this node takes; parked, since it fails here.",
    "consumer", "origin", "outcome",
)  # fmt: skip
STATUS_MESSAGES = _counter(
    "fedstac_status_messages_total",
    "Acknowledgements that a broker brought to this process: stored, or refused since they are none or not of who "
    "they say.",
    "outcome",
)  # fmt: skip
REPLICA_FILES = _counter(
    "fedstac_replica_files_total",
    "Files that a replica node's transfers in this process settled: verified, queued to be tried again, or failed.",
    "outcome", "source",
)  # fmt: skip
REPLICA_BYTES = _counter(
    "fedstac_replica_bytes_total",
    "Bytes of files that are verified now: fetched, or reused, since they were here already.",
    "outcome", "source",
)  # fmt: skip
PART_RESTARTS = _counter(
    "fedstac_part_restarts_total", "How often a background part of this process was started again.", "part"
)
PART_RUNNING = _gauge("fedstac_part_running", "Instances of a background part that run in this process.", "part")
PART_EXPECTED = _gauge(
    "fedstac_part_expected", "Instances of a background part that should run in this process.", "part"
)
PART_TROUBLES = _gauge("fedstac_part_troubles", "Troubles that a background part of this process has now.", "part")
DATABASE_AWAY = _gauge("fedstac_database_away", "1 while the database fails this process.")
POOL_CONNECTIONS = _gauge(
    "fedstac_pool_connections", "Database connections that a lane of this process may have.", "lane"
)
POOL_USERS = _gauge("fedstac_pool_users", "Who has a database connection of a lane or waits for one.", "lane")
REQUEST_MEMORY = _gauge(
    "fedstac_request_memory_bytes", "Memory that large bodies and answers of a lane have now.", "lane"
)
REQUEST_MEMORY_LIMIT = _gauge(
    "fedstac_request_memory_limit_bytes", "Memory that large bodies and answers of a lane may have.", "lane"
)
COLUMN_ROWS = _gauge("fedstac_columns_rows", "Rows that this process answers searches from.")
COLUMN_BYTES = _gauge("fedstac_columns_bytes", "Memory of these rows.")
COLUMN_TERMS = _gauge("fedstac_columns_terms", "Values of properties that their codes stand for.")
COLUMN_LOOKS = _counter(
    "fedstac_columns_looks_total", "How often this process looked for rows that others wrote; searches share looks."
)
COLUMN_LOOK_SECONDS = _counter("fedstac_columns_look_seconds_total", "Time that these looks took in all.")
CACHE_BYTES = _gauge("fedstac_document_cache_bytes", "Memory of the datasets that searches showed of late.")
CACHE_LOOKS = _counter(
    "fedstac_document_cache_looks_total", "Datasets of pages by whether they were in that memory: `hit`, or `miss`.",
    "result",
)  # fmt: skip
INFO = _gauge("fedstac_info", "Always 1; the labels say what runs.", "node", "version", "schema", "roles")

# --- of the node ---

QUEUE_ITEMS = _of_node("fedstac_queue_items", "Items that wait for a publish worker; counted to 100 000.")
QUEUE_OLDEST = _of_node("fedstac_queue_oldest_seconds", "Age of the oldest item that waits.")
REQUESTS_OPEN = _of_node(
    "fedstac_requests_open",
    "Requests of the first 5 000 items that wait: `waiting`, or `begun` where the first item of the request is done.",
    "state",
)  # fmt: skip
FEED_POSITION = _of_node("fedstac_feed_position", "The last position of this node's feed.", "epoch")
FEED_EARLIEST = _of_node("fedstac_feed_earliest_position", "The first position that this node's feed still has.")
FEED_AGE = _of_node("fedstac_feed_earliest_seconds", "Age of the first event that this node's feed still has.")
OUTBOX_WAITING = _of_node(
    "fedstac_outbox_waiting_events", "Events that were written and have no position yet; counted to 100 000."
)
OUTBOX_WAITING_AGE = _of_node("fedstac_outbox_waiting_seconds", "Age of the oldest event without a position.")
OUTBOX_PARTITIONS = _of_node(
    "fedstac_outbox_partitions_ahead", "Partitions of the outbox that are made, and not yet written to."
)
SINK_POSITION = _of_node("fedstac_sink_position", "Position of this node's feed through which a sink has all.", "sink")
SINK_LAG_EVENTS = _of_node("fedstac_sink_lag_events", "Events of this node's feed that a sink has not got.", "sink")
SINK_LAG_SECONDS = _of_node("fedstac_sink_lag_seconds", "Age of the oldest event that a sink has not got.", "sink")
SINK_CLEAR = _of_node(
    "fedstac_sink_clear_seconds",
    "Time until a sink has everything, at its pace since the look before; +Inf while it stands still.",
    "sink",
)  # fmt: skip
SINK_SENT = _counted_of_node("fedstac_sink_sent_events_total", "Events that were sent to a sink.", "sink")
SINK_ERRORS = _counted_of_node("fedstac_sink_errors_total", "How often a sink failed.", "sink")
SINK_FAILING = _of_node("fedstac_sink_failing_seconds", "For how long a sink has been failing; 0: it works.", "sink")
SINK_PAUSED = _of_node("fedstac_sink_paused", "1 while nothing is sent to a sink: it is paused, or has lapsed.", "sink")
DEAD_LETTERS = _of_node("fedstac_dead_letters", "Events that a sink refused for ever; counted to 100 000.", "sink")
SUBSCRIPTIONS = _of_node(
    "fedstac_subscriptions", "Subscriptions, by delivery (pull or webhook) and stand (active, failing, paused, ended).",
    "delivery", "stand",
)  # fmt: skip
SUBSCRIPTION_LAG_EVENTS = _of_node(
    "fedstac_subscription_lag_events",
    "Events of this node's feed after the place of the subscription that is furthest behind, of those active and those "
    "failing.",
    "delivery", "stand",
)  # fmt: skip
SUBSCRIPTION_LAG_SECONDS = _of_node(
    "fedstac_subscription_lag_seconds", "Age of the first of these events.", "delivery", "stand"
)
SUBSCRIPTION_EVENTS = _of_node(
    "fedstac_subscription_events",
    "Events that subscriptions did not take: waiting to be given again, or dead letters; each counted to 100 000.",
    "state",
)  # fmt: skip
CONSUMER_LAG_EVENTS = _of_node(
    "fedstac_consumer_lag_events",
    "Events of this node's feed that a consumer has not acknowledged. `east` is the index of the node east, "
    "`east/replica` another consumer there.",
    "consumer",
)  # fmt: skip
CONSUMER_LAG_SECONDS = _of_node(
    "fedstac_consumer_lag_seconds", "Age of the oldest event that a consumer has not acknowledged.", "consumer"
)
CONSUMER_CLEAR = _of_node(
    "fedstac_consumer_clear_seconds",
    "Time until a consumer has acknowledged everything, at its pace since the look before; +Inf while it stands still.",
    "consumer",
)  # fmt: skip
CONSUMER_SILENT = _of_node(
    "fedstac_consumer_silent_seconds", "Time since a consumer acknowledged more than before.", "consumer"
)
CURSOR_POSITION = _of_node(
    "fedstac_cursor_position", "Position in an origin's feed that a consumer of this node has applied.",
    "consumer", "origin",
)  # fmt: skip
CURSOR_IDLE = _of_node(
    "fedstac_cursor_idle_seconds", "Time since a consumer of this node applied something.", "consumer", "origin"
)
PARKED_EVENTS = _of_node(
    "fedstac_parked_events", "Events that a consumer of this node could not apply.", "consumer", "origin"
)
NOTIFICATIONS_WAITING = _of_node("fedstac_notifications_waiting", "Notifications that are not yet delivered.")
NOTIFICATIONS_LATE = _of_node("fedstac_notifications_late_seconds", "How long the oldest notification is due.")
REPLICA_DATASETS = _of_node("fedstac_replica_datasets", "Datasets that a replica node knows.", "state")
REPLICA_DATASET_BYTES = _of_node("fedstac_replica_dataset_bytes", "Bytes of these datasets' files.", "state")
REPLICA_OPEN_FILES = _of_node("fedstac_replica_open_files", "Files of a replica node that are not verified.", "state")
REPLICA_ANNOUNCEMENTS = _of_node(
    "fedstac_replica_announcements", "Announcements of a replica node that are not done.", "state"
)
REPLICA_REMOVALS = _of_node("fedstac_replica_removals", "Datasets whose files have to leave their place, and have not.")
REPLICA_FINDINGS = _of_node(
    "fedstac_replica_findings", "What the last verification of a replica node found and left, by fault.", "fault"
)
REPLICA_ROOM = _of_node("fedstac_replica_free_bytes", "Room on the disk of a replica node's tier.", "tier")
REPLICA_VERIFIED = _of_node("fedstac_replica_verification_seconds", "Time since the last verification ended.")
REPLICA_PROGRESS = _of_node("fedstac_replica_progress_seconds", "Time since a replica node last verified a new file.")
DELETIONS = _of_node(
    "fedstac_deletions",
    "Datasets that are marked for deletion: `open`, and of these `waiting` for somebody, `ready`, `late` and `failed`.",
    "standing",
)  # fmt: skip
DELETION_OLDEST = _of_node("fedstac_deletion_oldest_seconds", "Age of the oldest mark for deletion that is open.")
TRANSACTION_AGE = _of_node(
    "fedstac_oldest_transaction_seconds",
    "Age of the oldest transaction that is open in the database, of those that the writer's role may see.",
)


# --- counting ---


class Durations:
    """How long something took, each time."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * len(LE)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


class Metrics:
    """What a process counts itself."""

    def __init__(self) -> None:
        self._counts: dict[Family, dict[tuple[str, ...], float]] = {
            family: {}
            for family in FAMILIES.values()
            if family.kind is MetricKind.COUNTER and family.scope is MetricScope.PROCESS
        }
        self._durations: dict[Family, dict[tuple[str, ...], Durations]] = {
            family: {} for family in FAMILIES.values() if family.kind is MetricKind.HISTOGRAM
        }

    def count(self, counter: Family, *labels: str, by: float = 1) -> None:
        """Count something that happened, by the values of the counter's labels; these have to be few."""
        counts = self._counts[counter]
        counts[labels] = counts.get(labels, 0) + by

    def observe(self, histogram: Family, seconds: float, *labels: str) -> None:
        """Count something that took so long, by the values of the histogram's labels; these have to be few."""
        durations = self._durations[histogram].get(labels)
        if durations is None:
            durations = self._durations[histogram][labels] = Durations()
        durations.observe(seconds)

    @contextmanager
    def timing(self, histogram: Family, *labels: str) -> Iterator[None]:
        """Count how long the block takes, unless it raises."""
        started = time.perf_counter()
        yield
        self.observe(histogram, time.perf_counter() - started, *labels)

    def observe_request(self, method: str, route: str | None, code: int | None, seconds: float) -> None:
        """Count a request with its answer. `code` is None where the client left first."""
        status = CLIENT_LEFT if code is None else str(code)
        labels = (method, route, status) if route is not None else (UNMATCHED, UNMATCHED, status)
        self.observe(REQUEST_SECONDS, seconds, *labels)

    def count_items(self, outcomes: Iterable[str]) -> None:
        """Count items that became final."""
        for outcome in outcomes:
            self.count(ITEMS, outcome)

    def durations(self, histogram: Family) -> dict[tuple[str, ...], Durations]:
        """Return what was observed, by the values of the labels."""
        return dict(self._durations[histogram])

    def families(self) -> Iterable[Metric]:
        """Return all that was counted."""
        for family, counts in self._counts.items():
            if family is not PART_RESTARTS:
                yield family.of(list(counts.items()))
        for family, durations in self._durations.items():
            histogram = HistogramMetricFamily(family.name, family.meaning, labels=family.labels)
            for labels, observed in list(durations.items()):
                histogram.add_metric(labels, _buckets(list(observed.counts)), observed.seconds)
            yield histogram


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for limit, count in zip(LE, counts, strict=True):
        total += count
        buckets.append((limit, float(total)))
    return buckets


class LanePool(Protocol):
    """The connections of one lane, as far as metrics tell of them."""

    size: int

    @property
    def users(self) -> int: ...


def process_families(metrics: Metrics, parts: Parts, pools: Sequence[tuple[str, LanePool]]) -> list[Metric]:
    """Return the metrics of what happens inside this process."""
    return [*metrics.families(), *_parts(parts), *_pools(pools)]


def text_of(families: Iterable[Metric]) -> bytes:
    """Return metrics in the text format, with those of the operating system about this process."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Families(list(families)))
    return generate_latest(registry)


def serve(host: str, port: int, collect: ProcessFamilies, is_alive: Callable[[], bool]) -> tuple[WSGIServer, Thread]:
    """Serve a process without an API from a thread: its metrics and /livez. OSError where the port cannot be used."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(collect)
    server, thread = start_http_server(port, addr=host, registry=registry)
    serve_metrics = server.get_app()

    def answer(environment: Any, start_response: Any) -> Any:
        if environment["PATH_INFO"] != "/livez" or serve_metrics is None:
            return serve_metrics(environment, start_response) if serve_metrics is not None else []
        status, body = ("200 OK", b'{"status":"UP"}') if is_alive() else (
            "503 Service Unavailable", b'{"status":"DOWN"}'
        )  # fmt: skip
        start_response(status, [("Content-Type", "application/json")])
        return [body]

    server.set_app(answer)
    return server, thread


class ProcessFamilies:
    """Collects the metrics of a process when they are asked for."""

    def __init__(self, metrics: Metrics, parts: Parts, pools: Sequence[tuple[str, LanePool]]) -> None:
        self._metrics, self._parts, self._pools = metrics, parts, pools

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as of now."""
        return process_families(self._metrics, self._parts, self._pools)


class _Families:
    """Gives a registry what was collected already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _parts(parts: Parts) -> Iterable[Metric]:
    states = list(parts.states.items())
    yield PART_RESTARTS.of([([name], state.restarts) for name, state in states])
    yield PART_RUNNING.of([([name], state.running) for name, state in states])
    yield PART_EXPECTED.of([([name], state.wanted) for name, state in states])
    yield PART_TROUBLES.of([([name], len(state.troubles)) for name, state in states])
    yield DATABASE_AWAY.of([([], parts.outage.is_on)])


def _pools(pools: Sequence[tuple[str, LanePool]]) -> Iterable[Metric]:
    yield POOL_CONNECTIONS.of([([lane], pool.size) for lane, pool in pools])
    yield POOL_USERS.of([([lane], pool.users) for lane, pool in pools])
