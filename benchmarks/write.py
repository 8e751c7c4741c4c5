"""Publishing: batches and single items, until they are versioned, announced and searchable."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import psycopg

from benchmarks import load, report, servers
from benchmarks.servers import COLLECTION, Server, say
from fedstac.demo import sample
from fedstac.demo.embedded import Cluster

ITEMS_PATH = f"/collections/{COLLECTION}/items"
BULK_PATH = f"/collections/{COLLECTION}/bulk_items"
CLIENTS = 8
BULK = ("bulk_items 500", "bulk_items 500, 2 clients", "features 100")  # the peer's best counts


class Supply:
    """New items of the one stream, for a server that gets each once."""

    def __init__(self, first: int = 0) -> None:
        self.count = first

    def take(self, count: int) -> list[dict[str, Any]]:
        start = self.count
        self.count += count
        return list(sample.items(count, start=start))


def chunks(items: Sequence[dict[str, Any]], size: int) -> Iterator[Sequence[dict[str, Any]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def ndjson(server: Server, items: Sequence[dict[str, Any]], size: int) -> list[bytes]:
    headers = {**server.headers, "content-type": "application/x-ndjson"}
    return [
        load.request(server.address, "POST", ITEMS_PATH, b"\n".join(map(orjson.dumps, part)), headers)
        for part in chunks(items, size)
    ]


def feature_collections(server: Server, items: Sequence[dict[str, Any]], size: int) -> list[bytes]:
    bodies = (orjson.dumps({"type": "FeatureCollection", "features": part}) for part in chunks(items, size))
    return [load.request(server.address, "POST", ITEMS_PATH, body, server.headers) for body in bodies]


def bulk(server: Server, items: Sequence[dict[str, Any]], size: int) -> list[bytes]:
    bodies = (
        orjson.dumps({"items": {str(item["id"]): item for item in part}, "method": "insert"})
        for part in chunks(items, size)
    )
    return [load.request(server.address, "POST", BULK_PATH, body) for body in bodies]


def singles(server: Server, items: Sequence[dict[str, Any]]) -> list[bytes]:
    return [load.request(server.address, "POST", ITEMS_PATH, orjson.dumps(item), server.headers) for item in items]


def check(server: Server, items: Sequence[dict[str, Any]], total: int) -> None:
    """Check that everything arrived: the number of items, and one of them by value. Outside of all measuring."""
    with psycopg.connect(server.dsn) as conn:
        row = conn.execute("SELECT count(*) FROM pgstac.items").fetchone()
        if row != (total,):
            raise RuntimeError(f"{server.name} has {row} items instead of {total}")
        if server.name.startswith("fedstac"):
            bad = conn.execute("SELECT count(*) FROM fedstac.request_item WHERE status <> 'done'").fetchone()
            if bad != (0,):
                raise RuntimeError(f"{server.name}: {bad} items are not done")
    item = server.ask("GET", f"{ITEMS_PATH}/{items[-1]['id']}")
    if item["assets"] != items[-1]["assets"]:
        raise RuntimeError(f"{server.name} gives back another item than it got")


Work = Callable[[Server, Supply], dict[str, float]]


def fedstac_batches(shape: Callable[..., list[bytes]], size: int, count: int, connections: int) -> Work:
    """Measure items per second from the first byte to the last final result."""

    def run(server: Server, supply: Supply) -> dict[str, float]:
        items = supply.take(count)
        requests = shape(server, items, size)
        began, cpu = time.perf_counter(), server.cpu()
        answers = load.replay(server.address, requests, connections=connections)
        servers.drain(server)
        seconds, cpu_seconds = time.perf_counter() - began, server.cpu() - cpu
        check(server, items, supply.count)
        return {"rate": count / seconds, "accepted": count / answers.seconds, "cpu_us": cpu_seconds / count * 1e6}

    return run


def peer_batches(shape: Callable[..., list[bytes]], size: int, count: int, connections: int) -> Work:
    def run(server: Server, supply: Supply) -> dict[str, float]:
        items = supply.take(count)
        requests, cpu = shape(server, items, size), server.cpu()
        answers = load.replay(server.address, requests, connections=connections)
        cpu_seconds = server.cpu() - cpu
        check(server, items, supply.count)
        return {"rate": count / answers.seconds, "cpu_us": cpu_seconds / count * 1e6}

    return run


def fedstac_singles(count: int) -> Work:
    """Measure 202s per second while the workers publish, and items per second until the last one is published."""

    def run(server: Server, supply: Supply) -> dict[str, float]:
        items = supply.take(count)
        requests = singles(server, items)
        began, cpu = time.perf_counter(), server.cpu()
        answers = load.replay(server.address, requests, connections=CLIENTS)
        servers.drain(server)
        seconds, cpu_seconds = time.perf_counter() - began, server.cpu() - cpu
        check(server, items, supply.count)
        return {
            "accepted": answers.rate, "rate": count / seconds, "cpu_us": cpu_seconds / count * 1e6,
            "p50": answers.milliseconds(50), "p99": answers.milliseconds(99),
        }  # fmt: skip

    return run


def peer_singles(count: int) -> Work:
    def run(server: Server, supply: Supply) -> dict[str, float]:
        items = supply.take(count)
        requests, cpu = singles(server, items), server.cpu()
        answers = load.replay(server.address, requests, connections=CLIENTS)
        cpu_seconds = server.cpu() - cpu
        check(server, items, supply.count)
        return {
            "rate": answers.rate, "cpu_us": cpu_seconds / count * 1e6,
            "p50": answers.milliseconds(50), "p99": answers.milliseconds(99),
        }  # fmt: skip

    return run


def fedstac_visible(count: int, rate: float) -> Work:
    """Measure the milliseconds from the 202 until a search finds the item, at a steady pace."""

    def run(server: Server, supply: Supply) -> dict[str, float]:
        items = supply.take(count)
        delays: list[float] = []
        failures: list[BaseException] = []
        began = time.perf_counter()

        def follow(own: Sequence[tuple[int, dict[str, Any]]]) -> None:
            try:
                for number, item in own:
                    time.sleep(max(0.0, began + number / rate - time.perf_counter()))
                    server.ask("POST", ITEMS_PATH, item)
                    delays.append(_until_found(server, str(item["id"])))
            except BaseException as error:
                failures.append(error)

        numbered = list(enumerate(items))
        threads = [threading.Thread(target=follow, args=(numbered[n::CLIENTS],)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        servers.drain(server)
        check(server, items, supply.count)
        ordered = sorted(delays)
        return {"p50": ordered[len(ordered) // 2] * 1000, "p99": ordered[int(len(ordered) * 0.99)] * 1000}

    return run


def _until_found(server: Server, item_id: str) -> float:
    began = time.perf_counter()
    while time.perf_counter() - began < 30:
        page = server.ask("POST", "/search", {"ids": [item_id], "collections": [COLLECTION]})
        if page["features"]:
            return time.perf_counter() - began
        time.sleep(0.002)
    raise RuntimeError(f"{item_id} is not found after 30 s")


def run(*, quick: bool, rounds: int, layouts: Sequence[str], more: Mapping[str, str]) -> None:
    """Measure everything, round by round: the peer, then fedstac in each layout."""
    scale = 20 if quick else 1
    ours: dict[str, Work] = {
        "ndjson 500": fedstac_batches(ndjson, 500, 6000 // scale, 2),
        "ndjson 1000": fedstac_batches(ndjson, 1000, 6000 // scale, 2),
        "features 200": fedstac_batches(feature_collections, 200, 6000 // scale, 2),
        "single": fedstac_singles(3000 // scale),
        "visible": fedstac_visible(400 // scale, 50),
    }
    theirs: dict[str, Work] = {
        "bulk_items 500": peer_batches(bulk, 500, 2000 // scale, 1),
        "bulk_items 500, 2 clients": peer_batches(bulk, 500, 2000 // scale, 2),
        "features 100": peer_batches(feature_collections, 100, 1000 // scale, 1),
        "single": peer_singles(1000 // scale),
    }
    measured: dict[tuple[str, str], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        running, folder = stack.enter_context(servers.cluster())
        all_servers = [(stack.enter_context(servers.peer(running, folder)), theirs)]
        all_servers += [
            (
                stack.enter_context(servers.fedstac(running, folder, f"fedstac_{layout}", workers=layout, more=more)),
                ours,
            )
            for layout in layouts
        ]
        supplies = {server.name: Supply() for server, _ in all_servers}
        for number, (server, works) in itertools.product(range(rounds + 1), all_servers):
            for name, work in works.items():
                server.settle()
                result = work(server, supplies[server.name])
                _say(number, f"{server.name}: {name}", result)
                if number or quick:
                    measured.setdefault((server.name, name), []).append(result)
            if server.name == "peer":
                result = _pypgstac(server, supplies[server.name], folder, running, 6000 // scale)
                _say(number, "pypgstac load", result)
                if number or quick:
                    measured.setdefault(("peer", "pypgstac load"), []).append(result)
    _report(measured, layouts)


def _say(number: int, what: str, result: dict[str, float]) -> None:
    figures = ", ".join(f"{name} {value:.0f}" for name, value in result.items())
    say(f"round {number or 'to warm up'}: {what}: {figures}")


def _pypgstac(server: Server, supply: Supply, folder: Path, running: Cluster, count: int) -> dict[str, float]:
    items, lines = supply.take(count), folder / "items.ndjson"
    lines.write_bytes(b"\n".join(map(orjson.dumps, items)))
    server.settle()
    seconds = servers.pypgstac_load(running, lines)
    check(server, items, supply.count)
    return {"rate": count / seconds}


def _report(measured: dict[tuple[str, str], list[dict[str, float]]], layouts: Sequence[str]) -> None:
    def of(server: str, work: str, what: str) -> float:
        return load.middle(result[what] for result in measured[server, work])

    def all_of(server: str, work: str, what: str) -> list[int]:
        return [round(result[what]) for result in measured[server, work]]

    best_bulk = max(BULK, key=lambda name: of("peer", name, "rate"))
    shapes = [name for server, name in measured if server == f"fedstac {layouts[0]}" and "accepted" in
              measured[server, name][0] and name != "single"]  # fmt: skip
    for layout in layouts:
        server = f"fedstac {layout}"
        suffix = "" if layout == "inside" else f", workers {layout}"
        best = max(shapes, key=lambda name: of(server, name, "rate"))
        report.line(
            f"publish batch{suffix}", of(server, best, "rate"), "items/s", of("peer", best_bulk, "rate"),
            peer_name=best_bulk,
            detail={
                "shape": best, "clients": 2, "rounds": all_of(server, best, "rate"),
                "peer_rounds": all_of("peer", best_bulk, "rate"),
                "accepted": round(of(server, best, "accepted")),
                "others": {name: round(of(server, name, "rate")) for name in shapes if name != best},
            },
        )  # fmt: skip
        report.line(
            f"publish batch to pypgstac load{suffix}", of(server, best, "rate"), "items/s",
            of("peer", "pypgstac load", "rate"), peer_name="pypgstac load, no server, no validation, no event",
            detail={"peer_rounds": all_of("peer", "pypgstac load", "rate")},
        )  # fmt: skip
        for name, work, other in (("batch", best, best_bulk), ("single", "single", "single")):
            report.line(
                f"publish {name}, processor time{suffix}", of(server, work, "cpu_us"), "us/item",
                of("peer", other, "cpu_us"), peer_name=other,
                detail={"of": "the server's processes and PostgreSQL", "rounds": all_of(server, work, "cpu_us"),
                        "peer_rounds": all_of("peer", other, "cpu_us")},
            )  # fmt: skip
        for name, what in (("publish single, accepted", "accepted"), ("publish single, published", "rate")):
            report.line(
                name + suffix, of(server, "single", what), "items/s", of("peer", "single", "rate"),
                peer_name="POST item",
                detail={"clients": CLIENTS, "rounds": all_of(server, "single", what),
                        "peer_rounds": all_of("peer", "single", "rate")},
            )  # fmt: skip
        for percentile in ("p50", "p99"):
            report.line(
                f"publish single, latency {percentile}{suffix}", of(server, "single", percentile), "ms",
                of("peer", "single", percentile), peer_name="POST item", detail={"clients": CLIENTS},
            )  # fmt: skip
        for percentile in ("p50", "p99"):
            report.line(
                f"202 to searchable {percentile}{suffix}", of(server, "visible", percentile), "ms",
                detail={"offered": "50 items/s"},
            )  # fmt: skip
