"""Write the dashboard for Grafana, docker/grafana/fedstac.json, from the table of metrics. `make docs` runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fedstac.runtime import metrics as m

TARGET = Path(__file__).resolve().parents[1] / "docker" / "grafana" / "fedstac.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, COLUMNS = 8, 7, 3


@dataclass(frozen=True, slots=True)
class Line:
    """What one query shows, and how its lines are called."""

    query: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `unit` as Grafana names it."""

    title: str
    unit: str
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the dashboard with its panels."""

    title: str
    panels: Sequence[Panel]


def gauge(family: m.Family, *labels: str) -> Line:
    """Return the newest value of a gauge by job and these labels; processes of one node say the same."""
    by = ", ".join(("job", *labels))
    return Line(
        f'max by ({by}) ({family.name}{{job=~"$job"}})', " ".join(f"{{{{{name}}}}}" for name in ("job", *labels))
    )


def rate(family: m.Family, *labels: str) -> Line:
    """Return how often something happens in a second, of all processes together."""
    by = ", ".join(("job", *labels))
    legend = " ".join(f"{{{{{name}}}}}" for name in ("job", *labels))
    return Line(f'sum by ({by}) (rate({family.name}{{job=~"$job"}}[$__rate_interval]))', legend)


def quantile(family: m.Family, share: float, *labels: str) -> Line:
    """Return below which duration a share of what was observed lies."""
    by = ", ".join(("job", "le", *labels))
    legend = " ".join(f"{{{{{name}}}}}" for name in ("job", *labels)) + f" {share:.0%}"
    buckets = f'sum by ({by}) (rate({family.name}_bucket{{job=~"$job"}}[$__rate_interval]))'
    return Line(f"histogram_quantile({share}, {buckets})", legend)


REQUESTS = m.REQUEST_SECONDS.name + "_count"
SECTIONS = (
    Section("At a glance", (
        Panel("Troubles of background parts", "short", [gauge(m.PART_TROUBLES, "part")]),
        Panel("What waits", "short", [gauge(m.QUEUE_ITEMS), gauge(m.REQUESTS_OPEN, "state")]),
        Panel("Sinks and nodes behind", "s", [
            gauge(m.SINK_LAG_SECONDS, "sink"), gauge(m.CONSUMER_LAG_SECONDS, "consumer"),
        ]),
        Panel("Dead letters and parked events", "short", [
            gauge(m.DEAD_LETTERS, "sink"), gauge(m.PARKED_EVENTS, "consumer", "origin"),
        ]),
        Panel("Marked for deletion", "short", [gauge(m.DELETIONS, "standing")]),
        Panel("Oldest mark", "s", [gauge(m.DELETION_OLDEST)]),
        Panel("Database away", "bool_yes_no", [gauge(m.DATABASE_AWAY)]),
        Panel("Versions", "short", [gauge(m.INFO, "node", "version", "schema", "roles")]),
    )),
    Section("Requests", (
        Panel("Requests a second", "reqps", [Line(
            f'sum by (job, code) (rate({REQUESTS}{{job=~"$job"}}[$__rate_interval]))', "{{job}} {{code}}")]),
        Panel("Duration", "s", [quantile(m.REQUEST_SECONDS, 0.5), quantile(m.REQUEST_SECONDS, 0.99)]),
        Panel("Slowest routes, 99 %", "s", [Line(
            "topk(8, histogram_quantile(0.99, sum by (le, method, route) "
            f'(rate({m.REQUEST_SECONDS.name}_bucket{{job=~"$job"}}[$__rate_interval]))))', "{{method}} {{route}}")]),
        Panel("Connections: who has one or waits", "short", [
            gauge(m.POOL_USERS, "lane"), gauge(m.POOL_CONNECTIONS, "lane"),
        ]),
        Panel("Memory of large bodies and answers", "bytes", [
            gauge(m.REQUEST_MEMORY, "lane"), gauge(m.REQUEST_MEMORY_LIMIT, "lane"),
        ]),
        Panel("Columns of searches: rows and terms", "short", [gauge(m.COLUMN_ROWS), gauge(m.COLUMN_TERMS)]),
        Panel("Memory of the columns", "bytes", [gauge(m.COLUMN_BYTES)]),
        Panel("Memory of the datasets that searches showed", "bytes", [gauge(m.CACHE_BYTES)]),
        Panel("Datasets of pages: in that memory or not", "ops", [rate(m.CACHE_LOOKS, "result")]),
        Panel("Looks of the columns for changes", "ops", [rate(m.COLUMN_LOOKS)]),
        Panel("Time of these looks, of each second", "s", [rate(m.COLUMN_LOOK_SECONDS)]),
        Panel("Findings of validation", "short", [rate(m.FINDINGS, "rule", "severity")]),
    )),
    Section("Publishing", (
        Panel("Items a second", "ops", [rate(m.ITEMS, "outcome")]),
        Panel("Time of a batch", "s", [quantile(m.BATCH_SECONDS, 0.5), quantile(m.BATCH_SECONDS, 0.99)]),
        Panel("Age of the oldest waiting item", "s", [gauge(m.QUEUE_OLDEST)]),
        Panel("Events that get a position", "ops", [rate(m.SEQUENCED)]),
        Panel("Time to give positions", "s", [quantile(m.SEQUENCING_SECONDS, 0.99)]),
        Panel("Events without a position", "short", [gauge(m.OUTBOX_WAITING)]),
    )),
    Section("The log and its sinks", (
        Panel("End of the feed", "short", [gauge(m.FEED_POSITION, "epoch"), gauge(m.FEED_EARLIEST)]),
        Panel("Age of the oldest event that is kept", "s", [gauge(m.FEED_AGE), gauge(m.OUTBOX_WAITING_AGE)]),
        Panel("Partitions ahead", "short", [gauge(m.OUTBOX_PARTITIONS)]),
        Panel("Events that a sink has not got", "short", [gauge(m.SINK_LAG_EVENTS, "sink")]),
        Panel("Time to clear", "s", [gauge(m.SINK_CLEAR, "sink"), gauge(m.CONSUMER_CLEAR, "consumer")]),
        Panel("Sent to sinks", "ops", [Line(
            f'max by (job, sink) (rate({m.SINK_SENT.name}{{job=~"$job"}}[$__rate_interval]))', "{{job}} {{sink}}")]),
        Panel("Time of a page at a sink", "s", [
            quantile(m.SINK_PAGE_SECONDS, 0.5, "sink"), quantile(m.SINK_PAGE_SECONDS, 0.99, "sink"),
        ]),
        Panel("Place of sinks", "short", [gauge(m.SINK_POSITION, "sink")]),
        Panel("Failing for", "s", [gauge(m.SINK_FAILING, "sink")]),
        Panel("Paused, errors", "short", [gauge(m.SINK_PAUSED, "sink"), rate(m.SINK_ERRORS, "sink")]),
    )),
    Section("Subscriptions", (
        Panel("Subscriptions", "short", [gauge(m.SUBSCRIPTIONS, "delivery", "stand")]),
        Panel("Behind: the last one", "s", [gauge(m.SUBSCRIPTION_LAG_SECONDS, "delivery", "stand")]),
        Panel("Events that the last one has not got", "short", [
            gauge(m.SUBSCRIPTION_LAG_EVENTS, "delivery", "stand"),
        ]),
        Panel("Events that were not taken", "short", [gauge(m.SUBSCRIPTION_EVENTS, "state")]),
        Panel("Posted to webhooks", "ops", [rate(m.SUBSCRIPTION_POSTS, "verdict")]),
        Panel("Events that a format cannot write", "ops", [rate(m.UNWRITABLE_EVENTS, "format")]),
    )),
    Section("Nodes", (
        Panel("Events that a node has not acknowledged", "short", [gauge(m.CONSUMER_LAG_EVENTS, "consumer")]),
        Panel("Silence of a node", "s", [gauge(m.CONSUMER_SILENT, "consumer")]),
        Panel("Place in the feed of an origin", "short", [gauge(m.CURSOR_POSITION, "consumer", "origin")]),
        Panel("Events that consumers brought to their end", "ops", [rate(m.CONSUMED, "consumer", "origin", "outcome")]),
        Panel("Acknowledgements over a broker", "ops", [rate(m.STATUS_MESSAGES, "outcome")]),
        Panel("Time of a page at a consumer", "s", [quantile(m.APPLY_SECONDS, 0.99, "consumer", "origin")]),
        Panel("Time of an acknowledgement", "s", [quantile(m.ACKNOWLEDGEMENT_SECONDS, 0.99, "consumer", "origin")]),
        Panel("Idle followers", "s", [gauge(m.CURSOR_IDLE, "consumer", "origin")]),
        Panel("Notifications", "short", [gauge(m.NOTIFICATIONS_WAITING)]),
        Panel("Notifications late", "s", [gauge(m.NOTIFICATIONS_LATE)]),
    )),
    Section("Replica node", (
        Panel("Datasets by state", "short", [gauge(m.REPLICA_DATASETS, "state")]),
        Panel("Bytes by state", "bytes", [gauge(m.REPLICA_DATASET_BYTES, "state")]),
        Panel("Files that are not verified", "short", [gauge(m.REPLICA_OPEN_FILES, "state")]),
        Panel("Bytes a second by source", "Bps", [rate(m.REPLICA_BYTES, "outcome", "source")]),
        Panel("Files a second by source", "ops", [rate(m.REPLICA_FILES, "outcome", "source")]),
        Panel("Announcements and removals under way", "short", [
            gauge(m.REPLICA_ANNOUNCEMENTS, "state"), gauge(m.REPLICA_REMOVALS),
        ]),
        Panel("Room on the disks", "bytes", [gauge(m.REPLICA_ROOM, "tier")]),
        Panel("What the last verification left", "short", [gauge(m.REPLICA_FINDINGS, "fault")]),
        Panel("Since the last verification, file", "s", [gauge(m.REPLICA_VERIFIED), gauge(m.REPLICA_PROGRESS)]),
    )),
    Section("Processes", (
        Panel("Background parts", "short", [gauge(m.PART_RUNNING, "part"), gauge(m.PART_EXPECTED, "part")]),
        Panel("Restarts", "short", [rate(m.PART_RESTARTS, "part")]),
        Panel("Oldest transaction", "s", [gauge(m.TRANSACTION_AGE)]),
        Panel("Processor", "percentunit", [
            Line('rate(process_cpu_seconds_total{job=~"$job"}[$__rate_interval])', "{{instance}}"),
        ]),
        Panel("Memory", "bytes", [Line('process_resident_memory_bytes{job=~"$job"}', "{{instance}}")]),
        Panel("Open files", "short", [Line('process_open_fds{job=~"$job"}', "{{instance}}")]),
    )),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana takes it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for section in SECTIONS:
        panels.append({
            "id": len(panels) + 1, "type": "row", "title": section.title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        })  # fmt: skip
        for n, panel in enumerate(section.panels):
            place = {"x": n % COLUMNS * WIDTH, "y": y + 1 + n // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(_panel(len(panels) + 1, panel, place))
        y += 1 + -(-len(section.panels) // COLUMNS) * HEIGHT
    return {
        "uid": "fedstac", "title": "fedstac", "tags": ["fedstac"], "schemaVersion": 39, "version": 1, "editable": True,
        "timezone": "browser", "refresh": "30s", "time": {"from": "now-3h", "to": "now"}, "panels": panels,
        "templating": {"list": [{
            "name": "job", "label": "Node", "type": "query", "datasource": SOURCE, "multi": True, "includeAll": True,
            "query": f"label_values({m.INFO.name}, job)", "refresh": 2, "sort": 1,
            "current": {"text": "All", "value": "$__all"},
        }]},
    }  # fmt: skip


def _panel(id: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + n), "expr": line.query, "legendFormat": line.legend, "datasource": SOURCE}
        for n, line in enumerate(panel.lines)
    ]
    return {
        "id": id, "type": "timeseries", "title": panel.title, "datasource": SOURCE, "gridPos": place,
        "targets": targets, "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }  # fmt: skip


def main() -> int:
    """Write the dashboard. With --check write nothing, and say whether it is out of date."""
    text = orjson.dumps(dashboard(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    is_stale = not TARGET.exists() or TARGET.read_bytes() != text
    if is_stale and "--check" not in sys.argv:
        TARGET.write_bytes(text)
    print(f"dashboard: {'out of date' if is_stale and '--check' in sys.argv else 'written'}")
    return 1 if is_stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
