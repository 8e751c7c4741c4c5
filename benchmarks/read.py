"""Reading: one item, pages of a search, filters, on a catalogue of some size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmarks import load, report, servers
from benchmarks.servers import COLLECTION, Server, say
from benchmarks.write import ITEMS_PATH, ndjson
from fedstac.demo import sample
from fedstac.demo.embedded import Cluster

CONNECTIONS = 8
VARIANTS = 50
BATCH = 1000


@dataclass(frozen=True, slots=True)
class Measurement:
    """One round of a workload at a server."""

    answers: load.Load
    cpu_us: float  # microseconds of processor time for each request


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are sent in turn; `bodies` of POST /search, or paths to GET."""

    name: str
    unit: str
    bodies: Sequence[dict[str, Any]] = ()
    paths: Sequence[str] = ()

    def requests(self, server: Server) -> list[bytes]:
        if self.paths:
            return [load.request(server.address, "GET", path) for path in self.paths]
        return [load.request(server.address, "POST", "/search", orjson.dumps(body)) for body in self.bodies]


def workloads(items: Sequence[dict[str, Any]]) -> list[Workload]:
    """Return the workloads of both servers. Everything is varied, so that no cache of one request's plan decides."""
    step = max(1, len(items) // 1000)
    some = items[::step][:1000]
    searches = [item["properties"] for item in items[:: max(1, len(items) // VARIANTS)][:VARIANTS]]
    return [
        Workload("get item", "requests/s", paths=[f"{ITEMS_PATH}/{item['id']}" for item in some]),
        Workload("search 10", "requests/s", [{"limit": 10}]),
        Workload("search 100", "requests/s", [{"limit": 100}]),
        Workload("search 10, filter", "requests/s", [_filter(properties, 10) for properties in searches]),
        Workload("search 100, filter", "requests/s", [_filter(properties, 100) for properties in searches]),
        Workload("search 10, bbox and datetime", "requests/s", [_box(n, 10) for n in range(VARIANTS)]),
        Workload("search 100, bbox and datetime", "requests/s", [_box(n, 100) for n in range(VARIANTS)]),
    ]


def _filter(properties: Mapping[str, Any], limit: int) -> dict[str, Any]:
    equal = [
        {"op": "=", "args": [{"property": name}, properties[name]]} for name in ("cmip6:source_id", "cmip6:variable_id")
    ]
    return {
        "collections": [COLLECTION], "filter-lang": "cql2-json", "filter": {"op": "and", "args": equal}, "limit": limit
    }  # fmt: skip


def _box(number: int, limit: int) -> dict[str, Any]:
    west, year = -170 + 6 * number, 1850 + 3 * number
    return {
        "collections": [COLLECTION], "bbox": [west, -60, min(180, west + 40), 70],
        "datetime": f"{year}-01-01T00:00:00Z/{year + 10}-12-31T00:00:00Z", "limit": limit,
    }  # fmt: skip


def pages(server: Server, count: int, limit: int) -> list[bytes]:
    """Return requests for the second and following pages of everything, made from the links (untimed)."""
    page, requests = server.ask("POST", "/search", {"limit": limit}), []
    earlier_ids = {feature["id"] for feature in page["features"]}
    for _ in range(count):
        link = next((link for link in page["links"] if link["rel"] == "next"), None)
        if link is None:
            break
        path = urlsplit(link["href"]).path
        requests.append(load.request(server.address, "POST", path, orjson.dumps(link["body"])))
        page = server.ask("POST", path, link["body"])
        ids = {feature["id"] for feature in page["features"]}
        if ids & earlier_ids:
            raise RuntimeError(f"{server.name} shows items on two pages")
        earlier_ids |= ids
    return requests


def agree(both_servers: Sequence[Server], workload: Workload) -> int:
    """Return how much both servers find. RuntimeError unless it is as much."""
    counts = []
    for server in both_servers:
        if workload.paths:
            counts.append([len(server.ask("GET", path)["assets"]) for path in workload.paths[:5]])
        else:
            bodies = workload.bodies[:: max(1, VARIANTS // 10)]
            counts.append([len(server.ask("POST", "/search", body)["features"]) for body in bodies])
    if any(count != counts[0] for count in counts):
        raise RuntimeError(f"{workload.name}: the servers do not agree: {counts}")
    return sum(counts[0])


def fill(both_servers: Sequence[Server], items: Sequence[dict[str, Any]], folder: Path, running: Cluster) -> None:
    """Load the same items into all servers: into the peer by its loader, into fedstac by its API."""
    for server in both_servers:
        say(f"{server.name}: loading {len(items)} items")
        if server.name == "peer":
            lines = folder / "items.ndjson"
            lines.write_bytes(b"\n".join(map(orjson.dumps, items)))
            servers.pypgstac_load(running, lines)
        else:
            load.replay(server.address, ndjson(server, items, BATCH), connections=2)
            servers.drain(server)
        server.settle(analyze=True)


def run(*, quick: bool, rounds: int, count: int, more: Mapping[str, str]) -> None:
    """Load both, then measure them in turn."""
    count, seconds = (500, 0.3) if quick else (count, 4.0)
    items = list(sample.items(count))
    measured: dict[tuple[str, str], list[Measurement]] = {}
    with ExitStack() as stack:
        running, folder = stack.enter_context(servers.cluster())
        both_servers = [stack.enter_context(servers.peer(running, folder)),
                    stack.enter_context(servers.fedstac(running, folder, more=more))]  # fmt: skip
        fill(both_servers, items, folder, running)
        works = workloads(items)
        for work in works:
            say(f"{work.name}: {agree(both_servers, work)} features found by both")
        requests = {(server.name, work.name): work.requests(server) for server in both_servers for work in works}
        for server in both_servers:
            requests[server.name, "pages of 100"] = pages(server, 5 if quick else 30, 100)
        names = [*(work.name for work in works), "pages of 100"]
        for number, name, server in itertools.product(range(rounds + 1), names, both_servers):
            key = (server.name, name)
            cpu, length = server.cpu(), seconds if number else seconds / 2
            answers = load.replay(server.address, requests[key], connections=CONNECTIONS, seconds=length)
            cpu_us = (server.cpu() - cpu) / len(answers.latencies) * 1e6
            say(f"round {number or 'to warm up'}: {name}: {server.name}: {answers.rate:.0f}/s")
            if number or quick:
                measured.setdefault(key, []).append(Measurement(answers, cpu_us))
    for name in names:
        _report(name, measured["fedstac inside", name], measured["peer", name], count)


def _report(name: str, ours: Sequence[Measurement], peer: Sequence[Measurement], count: int) -> None:
    detail: dict[str, object] = {"items": count, "connections": CONNECTIONS}
    for prefix, results in (("", ours), ("peer_", peer)):
        detail[prefix + "rounds"] = [round(each.answers.rate, 1) for each in results]
        detail[prefix + "cpu_us"] = round(load.middle(each.cpu_us for each in results))
        for which, percent in (("p50_ms", 50), ("p99_ms", 99)):
            detail[prefix + which] = round(load.middle(each.answers.milliseconds(percent) for each in results), 1)
    detail["bytes"] = round(ours[0].answers.received / len(ours[0].answers.latencies))
    report.line(
        name, load.middle(each.answers.rate for each in ours), "requests/s",
        load.middle(each.answers.rate for each in peer),
        peer_name="stac-fastapi-pgstac 7.2.0", detail=detail,
    )  # fmt: skip
