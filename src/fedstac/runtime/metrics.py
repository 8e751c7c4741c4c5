"""Metrics of one process, as Prometheus reads them: plain numbers, put into form when somebody asks for them.

Counting is made for hot paths: a dictionary and two additions. The text is made from copies, so that another thread may
ask for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from threading import Thread
from typing import TYPE_CHECKING, Protocol
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


class Durations:
    """How long the requests of one route, method and code took."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * len(LE)
        self.seconds = 0.0


class Metrics:
    """What a process counts itself."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int | None], Durations] = {}
        self.items: Counter[str] = Counter()  # by outcome

    def observe_request(self, method: str, route: str | None, code: int | None, seconds: float) -> None:
        """Count a request with its answer. `code` is None where the client left first."""
        key = (method, route, code) if route is not None else (UNMATCHED, UNMATCHED, code)
        durations = self.requests.get(key)
        if durations is None:
            durations = self.requests[key] = Durations()
        durations.counts[bisect_left(BOUNDS, seconds)] += 1
        durations.seconds += seconds

    def count_items(self, outcomes: Iterable[str]) -> None:
        """Count items that became final."""
        self.items.update(outcomes)


class LanePool(Protocol):
    """The connections of one lane, as far as metrics tell of them."""

    size: int

    @property
    def users(self) -> int: ...


def process_families(metrics: Metrics, parts: Parts, pools: Sequence[tuple[str, LanePool]]) -> list[Metric]:
    """Return the metrics of what happens inside this process."""
    return [*_requests(metrics), _items(metrics), *_parts(parts), *_pools(pools)]


def text_of(families: Iterable[Metric]) -> bytes:
    """Return metrics in the text format, with those of the operating system about this process."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Families(list(families)))
    return generate_latest(registry)


def serve(host: str, port: int, collect: ProcessFamilies) -> tuple[WSGIServer, Thread]:
    """Serve the metrics of a process without an API from a thread. OSError where the port cannot be used."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(collect)
    return start_http_server(port, addr=host, registry=registry)


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


def gauge(name: str, help_text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """Return a gauge with a value for each row of labels."""
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _requests(metrics: Metrics) -> Iterable[Metric]:
    family = HistogramMetricFamily(
        "fedstac_http_request_duration_seconds",
        "Time from a request to the end of its answer.",
        labels=["method", "route", "code"],
    )
    for (method, route, code), durations in list(metrics.requests.items()):
        total, buckets = 0, []
        for limit, count in zip(LE, list(durations.counts), strict=True):
            total += count
            buckets.append((limit, total))
        family.add_metric([method, str(route), str(code or CLIENT_LEFT)], buckets, durations.seconds)
    yield family


def _items(metrics: Metrics) -> Metric:
    family = CounterMetricFamily(
        "fedstac_items", "Items that this process brought to their end, by outcome.", labels=["outcome"]
    )
    for outcome, count in list(metrics.items.items()):
        family.add_metric([outcome], count)
    return family


def _parts(parts: Parts) -> Iterable[Metric]:
    states = list(parts.states.items())
    restarts = CounterMetricFamily(
        "fedstac_part_restarts", "How often a background part of this process was started again.", labels=["part"]
    )
    for name, state in states:
        restarts.add_metric([name], state.restarts)
    yield restarts
    yield gauge("fedstac_part_running", "Instances of a background part that run in this process.", ["part"],
                [([name], state.running) for name, state in states])  # fmt: skip
    yield gauge("fedstac_part_expected", "Instances of a background part that should run in this process.", ["part"],
                [([name], state.wanted) for name, state in states])  # fmt: skip
    yield gauge("fedstac_part_troubles", "Troubles that a background part of this process has now.", ["part"],
                [([name], len(state.troubles)) for name, state in states])  # fmt: skip
    yield gauge("fedstac_database_away", "1 while the database fails this process.", [], [([], parts.outage.is_on)])


def _pools(pools: Sequence[tuple[str, LanePool]]) -> Iterable[Metric]:
    yield gauge("fedstac_pool_connections", "Database connections that a lane of this process may have.", ["lane"],
                [([lane], pool.size) for lane, pool in pools])  # fmt: skip
    yield gauge("fedstac_pool_users", "Who has a database connection of a lane or waits for one.", ["lane"],
                [([lane], pool.users) for lane, pool in pools])  # fmt: skip
