"""Searching, on catalogues of several sizes: `make bench BENCH=search SIZE=20k|100k|1m`.

Each operation is measured at the peer and at fedstac in turn: times with one connection, rates with eight. The
requests are the same for every size, so that times can be compared. With --keep the results stay in benchmarks/results,
and the plots in docs/plots are made of all results that are there.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks import corpus, load, plots, report, servers
from benchmarks.read import pages
from benchmarks.servers import COLLECTION, Server, say

RESULTS: Final = Path(__file__).resolve().parent / "results"
DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
PLOTS, PAGE = DOCS / "plots", DOCS / "search-figures.md"
CONNECTIONS: Final = 8
DIFFERENT: Final = 1_000  # requests of an operation with conditions: a process keeps 500 pages, as it chose them
CHECKED: Final = 5  # of them are compared before
KNOWN: Final = 2_000  # the first items, which are in catalogues of every size
IDS: Final = 20
SMALL: Final = "20k"  # the catalogue that a larger one is compared with
TURNS: Final = 4  # of which a round consists that compares them
TEN: Final = tuple(
    f"cmip6_{name}_frequency"
    for name in ("activity_id", "experiment_id", "frequency", "grid_label", "institution_id", "nominal_resolution",
                 "realm", "source_id", "table_id", "variable_id")
)  # fmt: skip
PEER_NAME: Final = "stac-fastapi-pgstac 7.2.0"


@dataclass(frozen=True, slots=True)
class Operation:
    """Requests that are sent in turn: bodies to POST, or paths to GET.

    has_peer: whether the peer can do it. counts: the answer is not a page.
    """

    name: str
    bodies: Sequence[dict[str, Any]] = ()
    paths: Sequence[str] = ()
    target: str = "/search"
    has_peer: bool = True
    is_of_pages: bool = False

    @property
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower()).replace("--", "-")

    def requests(self, server: Server) -> list[bytes]:
        if self.is_of_pages:
            return pages(server, len(self.bodies), 100)
        if self.paths:
            return [load.request(server.address, "GET", path) for path in self.paths]
        return [load.request(server.address, "POST", self.target, orjson.dumps(body)) for body in self.bodies]


def operations() -> list[Operation]:
    """Return what is measured. Conditions are varied, so that no page is one that was kept.

    The first page of everything is the same for everybody: it is kept.
    """
    items = list(corpus.items(KNOWN))
    all_properties = [item["properties"] for item in items]
    three = _equal_to_each(all_properties, ("experiment_id", "frequency", "grid_label"))
    variables = Counter(properties["cmip6:variable_id"] for properties in all_properties)
    rare = [name for name, _ in sorted(variables.items(), key=lambda each: (each[1], each[0]))[: len(variables) // 2]]
    boxes = [_box(n) for n in range(DIFFERENT)]
    return [
        Operation("GET item", paths=[f"/collections/{COLLECTION}/items/{item['id']}" for item in items[::2]]),
        Operation("search 10", [{"limit": 10}]),
        Operation("search 100", [{"limit": 100}]),
        Operation("two properties", _many(_equal_to_each(all_properties, ("source_id", "variable_id")))),
        Operation("three facets", _many(three)),
        Operation("three facets, few",
                  _many(_equal_to_each(all_properties, ("source_id", "experiment_id", "variable_id")))),
        Operation("rare value", _many([_equal({"cmip6:variable_id": name}, ("variable_id",)) for name in rare])),
        Operation("bbox and datetime", boxes),
        Operation("datetime", [{name: value for name, value in box.items() if name != "bbox"} for box in boxes]),
        Operation("pages of 100", [{}] * 15, is_of_pages=True),
        Operation("20 ids", [{"ids": [item["id"] for item in items[n : n + IDS]], "limit": IDS}
                             for n in range(0, KNOWN - IDS, 2)]),
        Operation("sorted by id", [{"sortby": [{"field": "id", "direction": "asc"}], "limit": 10}]),
        Operation("sorted by a property",
                  [{"sortby": [{"field": "properties.cmip6:variable_id", "direction": "asc"}], "limit": 10}]),
        Operation("ten facet counts", [{"aggregations": TEN, "collections": [COLLECTION]}],
                  target="/aggregate", has_peer=False),
        Operation("ten facet counts under three facets",
                  [{**body, "aggregations": TEN} for body in three],
                  target="/aggregate", has_peer=False),
    ]  # fmt: skip


def _many(bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return DIFFERENT requests of these conditions, or some more: with other limits, from 10 on."""
    limits = range(10, 10 + -(-DIFFERENT // len(bodies)))
    return [{**body, "limit": limit} for limit in limits for body in bodies]


def _equal_to_each(all_properties: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the requests for the values that datasets have in these properties, each once."""
    values = {tuple(properties[f"cmip6:{name}"] for name in names): properties for properties in all_properties}
    return [_equal(properties, names) for properties in values.values()]


def _equal(properties: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    equal = [{"op": "=", "args": [{"property": f"cmip6:{name}"}, properties[f"cmip6:{name}"]]} for name in names]
    return {
        "collections": [COLLECTION], "filter-lang": "cql2-json", "limit": 10,
        "filter": {"op": "and", "args": equal} if len(equal) > 1 else equal[0],
    }  # fmt: skip


def _box(number: int) -> dict[str, Any]:
    west, year, month = -170 + 6.1 * number % 330, 1850 + 3 * number % 200, 1 + number // 200 % 12
    return {
        "collections": [COLLECTION], "bbox": [west, -60, min(180, west + 40), 70], "limit": 10,
        "datetime": f"{year}-{month:02}-01T00:00:00Z/{year + 10}-12-31T00:00:00Z",
    }  # fmt: skip


@dataclass(slots=True)
class Times:
    """What was measured of one operation at one server, in all rounds."""

    milliseconds: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)  # processor time of a request, one number a round
    database_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, float]:
        ordered = sorted(self.milliseconds)
        return {
            "p50_ms": round(statistics.median(ordered), 3),
            "p95_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 3),
            "cpu_server_ms": round(statistics.median(self.server_ms), 3),
            "cpu_database_ms": round(statistics.median(self.database_ms), 3),
            "rate": round(statistics.median(self.rates), 2),
            "requests": len(ordered),
        }


def measure(server: Server, requests: deque[bytes], seconds: float, into: Times) -> None:
    """Send the requests for some seconds one by one, then for as long over several connections.

    The next time goes on behind the last one: a process keeps the pages that it chose of late.
    """
    before = server.cpu_parts()
    alone = load.replay(server.address, requests, connections=1, seconds=seconds)
    seconds_of_cpu = [after - then for after, then in zip(server.cpu_parts(), before, strict=True)]
    into.milliseconds += [each * 1000 for each in alone.latencies]
    into.server_ms.append(seconds_of_cpu[0] / len(alone.latencies) * 1000)
    into.database_ms.append(seconds_of_cpu[1] / len(alone.latencies) * 1000)
    requests.rotate(-len(alone.latencies))
    together = load.replay(server.address, requests, connections=CONNECTIONS, seconds=seconds)
    into.rates.append(together.rate)
    requests.rotate(-len(together.latencies))


def agree(all_servers: Sequence[Server], operation: Operation) -> None:
    """Compare what the servers find. RuntimeError unless it is as much."""
    if operation.paths or operation.is_of_pages or not operation.has_peer:
        return
    bodies = operation.bodies[:: max(1, len(operation.bodies) // CHECKED)]
    counts = [[len(server.ask("POST", "/search", body)["features"]) for body in bodies] for server in all_servers]
    if counts[0] != counts[-1]:
        raise RuntimeError(f"{operation.name}: the servers do not agree: {counts}")


def run(*, size: str, quick: bool, rounds: int, more: Mapping[str, str], keep: bool, alone: bool = False) -> None:
    """Measure both servers in turn on the kept corpus of a size, which is made first where it is not there.

    alone: without the peer, on a corpus that is kept.
    """
    count, seconds = corpus.SIZES[size], 0.2 if quick else 2.0
    with ExitStack() as stack:
        running, folder, is_kept = stack.enter_context(corpus.cluster(size))
        if alone and not is_kept:
            raise SystemExit(f"no corpus of {size} is kept: run once without --alone, which loads it into both servers")
        peer = () if alone else (stack.enter_context(servers.peer(running, folder, is_kept=is_kept)),)
        own = stack.enter_context(servers.fedstac(running, folder, more=more, is_kept=is_kept))
        all_servers = [*peer, own]
        if not is_kept:
            corpus.load(count, all_servers, running, folder)
        corpus.read_files(running)
        for work in operations():
            agree(all_servers, work)
        measured = _measure_all(all_servers, seconds, rounds)
        growth = _measure_growth(own, size, seconds, rounds, more)
    results = {
        "size": count, "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "cores": os.cpu_count(),
        "machine": platform.machine(), "load_before": round(os.getloadavg()[0], 1), "rounds": rounds,
        "operations": {
            name: {server: times.as_json() for server, times in each.items()} for name, each in measured.items()
        },
        "growth": growth,
    }  # fmt: skip
    _print(results)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"search-{size}.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
        plot()


def _measure_growth(
    own: Server, size: str, seconds: float, rounds: int, more: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return the medians of each operation in the smallest catalogue that figures are of, and in this one.

    Both are asked in turn, for short times: what a machine does from one minute to the next is no growth.
    """
    if corpus.SIZES[size] <= corpus.SIZES[SMALL]:
        return {}
    if not corpus.is_kept(SMALL):
        say(f"growth is measured beside the corpus of {SMALL}, which is not kept: run with SIZE={SMALL} once")
        return {}
    with ExitStack() as stack:
        running, folder, _ = stack.enter_context(corpus.cluster(SMALL))
        small = stack.enter_context(servers.fedstac(running, folder, more=more, is_kept=True))
        corpus.read_files(running)
        both = [replace(small, name=SMALL), replace(own, name=size)]
        measured = _measure_all(both, seconds / TURNS, rounds * TURNS)
    return {
        name: {each: round(statistics.median(times.milliseconds), 3) for each, times in times_by_size.items()}
        for name, times_by_size in measured.items()
    }


def _measure_all(all_servers: Sequence[Server], seconds: float, rounds: int) -> dict[str, dict[str, Times]]:
    measured: dict[str, dict[str, Times]] = {}
    works = operations()
    requests = {
        (server.name, work.name): deque(work.requests(server))
        for server in all_servers for work in works if work.has_peer or server.name != "peer"
    }  # fmt: skip
    for number, work, server in itertools.product(range(rounds + 1), works, all_servers):
        if (server.name, work.name) not in requests:
            continue
        times = Times()
        if number:
            times = measured.setdefault(work.name, {}).setdefault(server.name.split()[0], times)
        measure(server, requests[server.name, work.name], seconds if number else seconds / 4, times)
        middle = statistics.median(times.milliseconds)
        say(f"round {number or 'to warm up'}: {work.name}: {server.name}: {middle:.2f} ms")
    return measured


def _print(results: Mapping[str, Any]) -> None:
    """Print one line for each operation. The ratio is that of the rates."""
    for name, each in results["operations"].items():
        own, peer = each["fedstac"], each.get("peer")
        detail = {"items": results["size"], **own, **{f"peer_{key}": value for key, value in (peer or {}).items()}}
        report.line(
            name, own["rate"], "requests/s", peer["rate"] if peer else None, peer_name=PEER_NAME if peer else None,
            detail=detail,
        )  # fmt: skip
    for name, times in results["growth"].items():
        small, large = times.values()
        report.line(f"growth, {name}", round(large / small, 2), "times", detail={"p50_ms": times})


def results_on_disk() -> list[dict[str, Any]]:
    """Return the results that are kept, the smallest catalogue first."""
    results: list[dict[str, Any]] = [orjson.loads(path.read_bytes()) for path in RESULTS.glob("search-*.json")]
    return sorted(results, key=lambda each: int(each["size"]))


def plot() -> None:
    """Draw a plot for each operation from all results that are kept, and write their page."""
    all_results = results_on_disk()
    PLOTS.mkdir(exist_ok=True)
    names = dict.fromkeys(name for results in all_results for name in results["operations"])
    slugs = {name: Operation(name).slug for name in names}
    for name in names:
        lines: dict[str, list[tuple[float, float]]] = {}
        for results in all_results:
            for server, times in results["operations"].get(name, {}).items():
                lines.setdefault(server, []).append((results["size"], times["p50_ms"]))
        (PLOTS / f"search-{slugs[name]}.svg").write_text(
            plots.chart(name, lines, x_label="datasets", y_label="median, milliseconds")
        )
    PAGE.write_text(page(all_results, slugs))


def page(all_results: Sequence[Mapping[str, Any]], slugs: Mapping[str, str]) -> str:
    """Return the page of figures: a table for each size, and the plots."""
    parts = ["<!-- Written by `make bench BENCH=search ARGS=--keep`. -->", "", "# Figures of searches", "",
             "What is measured, and how: [performance](performance.md#search). Times are medians in milliseconds of one"
             " connection, and", "in brackets 95th percentiles. The ratio is that of the rates of eight connections."
             " Where the load before was above 1, the machine was", "busy: then the times say little, and the ratios"
             " and the processor time a bit more."]  # fmt: skip
    for results in all_results:
        parts += ["", f"## {results['size']:,} datasets".replace(",", " "), "",
                  f"{results['at']}, {results['cores']} cores, load before {results['load_before']}, rounds:"
                  f" {results['rounds']}.", "",
                  "| | fedstac | peer | ratio | processor, server | processor, PostgreSQL |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        parts += [_row(name, each) for name, each in results["operations"].items()]
    parts += ["", "## Time against size", ""]
    parts += [f"![{name}: milliseconds by datasets](plots/search-{slug}.svg)" for name, slug in slugs.items()]
    return "\n".join(parts) + "\n"


def _row(name: str, each: Mapping[str, Mapping[str, float]]) -> str:
    own, peer = each["fedstac"], each.get("peer")
    times = [f"{side['p50_ms']:.1f} ({side['p95_ms']:.1f})" if side else "" for side in (own, peer)]
    ratio = f"{own['rate'] / peer['rate']:.1f}" if peer else ""
    cpu = [
        f"{own[part]:.1f} ms" + (f", peer {peer[part]:.1f} ms" if peer else "")
        for part in ("cpu_server_ms", "cpu_database_ms")
    ]
    return f"| {name} | {times[0]} | {times[1]} | {ratio} | {cpu[0]} | {cpu[1]} |"
