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
Measured = tuple[load.Load, float]  # and microseconds of processor time for each request


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
    """The same for both servers; everything is varied, so that no cache of one request's plan decides."""
    step = max(1, len(items) // 1000)
    some = items[::step][:1000]
    searches = [item["properties"] for item in items[:: max(1, len(items) // VARIANTS)][:VARIANTS]]
    return [
        Workload("get item", "requests/s", paths=[f"{ITEMS_PATH}/{item['id']}" for item in some]),
        Workload("search 10", "requests/s", [{"limit": 10}]),
        Workload("search 100", "requests/s", [{"limit": 100}]),
        Workload("search 10, filter", "requests/s", [_filtered(found, 10) for found in searches]),
        Workload("search 100, filter", "requests/s", [_filtered(found, 100) for found in searches]),
        Workload("search 10, bbox and datetime", "requests/s", [_boxed(n, 10) for n in range(VARIANTS)]),
        Workload("search 100, bbox and datetime", "requests/s", [_boxed(n, 100) for n in range(VARIANTS)]),
    ]


def _filtered(properties: Mapping[str, Any], limit: int) -> dict[str, Any]:
    equal = [
        {"op": "=", "args": [{"property": name}, properties[name]]} for name in ("cmip6:source_id", "cmip6:variable_id")
    ]
    return {
        "collections": [COLLECTION], "filter-lang": "cql2-json", "filter": {"op": "and", "args": equal}, "limit": limit
    }  # fmt: skip


def _boxed(number: int, limit: int) -> dict[str, Any]:
    west, year = -170 + 6 * number, 1850 + 3 * number
    return {
        "collections": [COLLECTION], "bbox": [west, -60, min(180, west + 40), 70],
        "datetime": f"{year}-01-01T00:00:00Z/{year + 10}-12-31T00:00:00Z", "limit": limit,
    }  # fmt: skip


def pages(server: Server, count: int, limit: int) -> list[bytes]:
    """Requests for the second and following pages of everything, taken from the links (untimed)."""
    found, requests = server.ask("POST", "/search", {"limit": limit}), []
    seen = {feature["id"] for feature in found["features"]}
    for _ in range(count):
        link = next((link for link in found["links"] if link["rel"] == "next"), None)
        if link is None:
            break
        path = urlsplit(link["href"]).path
        requests.append(load.request(server.address, "POST", path, orjson.dumps(link["body"])))
        found = server.ask("POST", path, link["body"])
        here = {feature["id"] for feature in found["features"]}
        if here & seen:
            raise RuntimeError(f"{server.name} shows items on two pages")
        seen |= here
    return requests


def agree(compared: Sequence[Server], workload: Workload) -> int:
    """Both servers find as much; how much."""
    counts = []
    for server in compared:
        if workload.paths:
            counts.append([len(server.ask("GET", path)["assets"]) for path in workload.paths[:5]])
        else:
            found = [server.ask("POST", "/search", body) for body in workload.bodies[:: max(1, VARIANTS // 10)]]
            counts.append([len(page["features"]) for page in found])
    if any(count != counts[0] for count in counts):
        raise RuntimeError(f"{workload.name}: the servers do not agree: {counts}")
    return sum(counts[0])


def fill(compared: Sequence[Server], items: Sequence[dict[str, Any]], folder: Path, running: Cluster) -> None:
    """The same items for all: stock by its loader, fedstac by its API."""
    for server in compared:
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
    """Loads both, then measures them in turn."""
    count, seconds = (500, 0.3) if quick else (count, 4.0)
    items = list(sample.items(count))
    measured: dict[tuple[str, str], list[Measured]] = {}
    with ExitStack() as stack:
        running, folder = stack.enter_context(servers.cluster())
        compared = [stack.enter_context(servers.peer(running, folder)),
                    stack.enter_context(servers.fedstac(running, folder, more=more))]  # fmt: skip
        fill(compared, items, folder, running)
        works = workloads(items)
        for work in works:
            say(f"{work.name}: {agree(compared, work)} features found by both")
        requests = {(server.name, work.name): work.requests(server) for server in compared for work in works}
        for server in compared:
            requests[server.name, "pages of 100"] = pages(server, 5 if quick else 30, 100)
        names = [*(work.name for work in works), "pages of 100"]
        for number, name, server in itertools.product(range(rounds + 1), names, compared):
            key = (server.name, name)
            cpu, length = server.cpu(), seconds if number else seconds / 2
            done = load.replay(server.address, requests[key], connections=CONNECTIONS, seconds=length)
            spent = (server.cpu() - cpu) / len(done.latencies) * 1e6
            say(f"round {number or 'to warm up'}: {name}: {server.name}: {done.rate:.0f}/s")
            if number or quick:
                measured.setdefault(key, []).append((done, spent))
    for name in names:
        _report(name, measured["fedstac inside", name], measured["peer", name], count)


def _report(name: str, ours: Sequence[Measured], peer: Sequence[Measured], count: int) -> None:
    detail: dict[str, object] = {"items": count, "connections": CONNECTIONS}
    for prefix, results in (("", ours), ("peer_", peer)):
        detail[prefix + "rounds"] = [round(done.rate, 1) for done, _ in results]
        detail[prefix + "cpu_us"] = round(load.middle(spent for _, spent in results))
        for which, percent in (("p50_ms", 50), ("p99_ms", 99)):
            detail[prefix + which] = round(load.middle(done.milliseconds(percent) for done, _ in results), 1)
    detail["bytes"] = round(ours[0][0].received / len(ours[0][0].latencies))
    report.line(
        name, load.middle(done.rate for done, _ in ours), "requests/s", load.middle(done.rate for done, _ in peer),
        peer_name="stac-fastapi-pgstac 7.2.0", detail=detail,
    )  # fmt: skip
