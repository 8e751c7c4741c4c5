"""Many datasets marked by a filter, the process that does it killed on the way; publishing and reading beside it.

First one half of the datasets is marked, beside a publisher with a steady pace, then the other half, beside one that
sends as much as the node takes. Publishing and reading are measured alone before, and beside the marks. Each dataset is
marked exactly once, or the run fails.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
import psycopg

from benchmarks import load, report, servers
from benchmarks.servers import COLLECTION, Server, say
from fedstac.demo import sample

ITEMS_PATH = f"/collections/{COLLECTION}/items"
BATCH, WAITING = 100, 600  # items of a request, and those that may wait before the next one is sent
STEADY_BATCH, STEADY_PAUSE = 25, 0.5  # items of a request, and seconds between two: 50 items a second
KILLS = (0.2, 0.45, 0.7)  # of the work
PROPERTY = "cmip6:variable_id"
READ_PAUSE = 0.01  # seconds between the reads of one reader
WARM_UP_SECONDS = 3.0
RESTART_SECONDS = 10.0  # after a kill, in which the worker starts again
Phase = tuple[str, float, float]  # what happened between two moments
ONCE = """
    SELECT count(*), count(DISTINCT dataset), (SELECT count(*) FROM fedstac.deletion WHERE state = 'open'),
           (SELECT count(*) FROM fedstac.audit WHERE action = 'mark' AND outcome = 'marked'),
           (SELECT count(*) FROM fedstac.record WHERE state = 'marked'),
           (SELECT count(*) FROM fedstac.bulk_dataset WHERE status = 'done')
    FROM fedstac.outbox WHERE type LIKE '%%.marked.%%'"""


def run(*, count: int, seconds: float) -> None:
    """Measure with so many datasets; publishing and reading alone for so many seconds."""
    with ExitStack() as stack:
        running, folder = stack.enter_context(servers.cluster())
        server = stack.enter_context(servers.fedstac(running, folder, workers="outside"))
        worker = stack.enter_context(_Worker.beside(folder, server))
        halves = _fill(server, count)
        server.settle(analyze=True)
        end_of_filling = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        older = {"op": "<", "args": [{"property": "updated"}, {"timestamp": end_of_filling}]}
        wishes = [
            {"action": "mark", "collections": [COLLECTION], "retracted": "include",
             "filter": {"op": "and", "args": [{"op": "in", "args": [{"property": PROPERTY}, names]}, older]}}
            for names in halves
        ]  # fmt: skip
        previews = [_preview(server, wishes[0]) for _ in range(3)]
        detail = {"records": count, "datasets": previews[-1][1]["total"]}
        report.line("preview", load.middle(one for one, _ in previews), "ms", detail=detail | _machine())
        marked, published = 0, count
        for wish, is_steady in zip(wishes, (True, False), strict=True):
            with (
                _Publisher.beside(server, published, is_steady=is_steady) as publisher,
                _Reader.beside(server) as reader,
            ):
                time.sleep(WARM_UP_SECONDS)
                alone = _Figures.of(publisher, reader, lambda: time.sleep(seconds))
                processor, since = server.cpu() + worker.cpu(), time.perf_counter()
                beside = _Figures.of(publisher, reader, partial(_mark, server, wish, worker))
                marking_seconds = time.perf_counter() - since
                processor = server.cpu() + worker.cpu() - processor
            total, marked = beside.total, marked + beside.total
            _check(server, marked)
            published += publisher.count_of_items
            _report(alone, beside, "a steady publisher" if is_steady else "a saturating publisher", {
                "records": count, "datasets": total, "seconds": round(marking_seconds, 1), "kills": len(KILLS),
                "processor_seconds": round(processor, 1), **_machine(),
            })  # fmt: skip


def _report(alone: _Figures, beside: _Figures, name: str, detail: dict[str, Any]) -> None:
    report.line(
        f"marks beside {name}, three kills", detail["datasets"] / detail["seconds"], "datasets/s", detail=detail
    )
    rates = {"alone": round(alone.rate, 1), "beside": round(beside.rate, 1)}
    report.line(f"publishing, {name}, beside the marks", 100 * beside.rate / alone.rate, "% of its rate", detail=rates)
    latencies = {"alone_ms": round(alone.p99, 1), "beside_ms": round(beside.p99, 1)}
    latencies |= {f"{phase}_ms": round(p99, 1) for phase, p99 in beside.p99_by_phase().items()}
    report.line(f"p99 of reads beside the marks and {name}", beside.p99 / alone.p99, "times", detail=latencies)


def _machine() -> dict[str, object]:
    return {"cores": os.cpu_count(), "load": os.getloadavg()[0]}


def _fill(server: Server, count: int) -> tuple[list[str], list[str]]:
    """Publish datasets; return values of a property that half of them have, and those of the other half."""
    values: Counter[str] = Counter()
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        for start in range(0, count, 1000):
            part = list(sample.items(min(1000, count - start), start=start))
            values.update(item["properties"][PROPERTY] for item in part)
            _post(server, b"\n".join(map(orjson.dumps, part)))
            while _count(conn, "queued") > 2000:
                time.sleep(0.05)
    servers.drain(server, patience=600.0)
    say(f"{count} datasets are published")
    first = _names_of_half(values, count // 2)
    for name in first:
        del values[name]
    return first, _names_of_half(values, count // 2)


def _names_of_half(values: Mapping[str, int], most: int) -> list[str]:
    """Return values that so many datasets have at most, and nearly so many."""
    names = []
    for name, number in sorted(values.items(), key=itemgetter(1), reverse=True):
        if number <= most:
            names.append(name)
            most -= number
    return names


def _post(server: Server, lines: bytes) -> None:
    headers = {**server.headers, "content-type": "application/x-ndjson", "prefer": "wait=0"}
    load.replay(server.address, [load.request(server.address, "POST", ITEMS_PATH, lines, headers)], connections=1)


def _preview(server: Server, wish: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the milliseconds of a preview, and the preview."""
    since = time.perf_counter()
    preview = server.ask("POST", "/bulk/preview", wish)
    return (time.perf_counter() - since) * 1000, preview


def _mark(server: Server, wish: dict[str, Any], worker: _Worker) -> tuple[int, list[Phase]]:
    """Mark the datasets, and kill the worker on the way. Return how many they are, and what happened when."""
    since = time.perf_counter()
    _, preview = _preview(server, wish)
    job = server.ask("POST", "/bulk", {**wish, "digest": preview["digest"]})
    phases = [("preview", since, time.perf_counter())]
    kills = [share * job["total"] for share in KILLS]
    while not job["finished"]:
        time.sleep(0.1)
        job = server.ask("GET", f"/bulk/{job['id']}")
        if kills and job["total"] - job["counts"]["waiting"] >= kills[0]:
            kills.pop(0)
            worker.kill()
            phases.append(("restarts", time.perf_counter(), time.perf_counter() + RESTART_SECONDS))
    if kills or job["counts"]["done"] != job["total"]:
        raise RuntimeError(f"{job['counts']}, and {len(kills)} kills did not come")
    return int(job["total"]), phases


def _check(server: Server, total: int) -> None:
    with psycopg.connect(server.dsn) as conn:
        row = conn.execute(ONCE).fetchone()
    if row is None or set(row) != {total}:
        raise RuntimeError(f"{total} datasets are to be marked once each: {row}")


class _Worker:
    """The workers' process, which is killed and started again."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder, self._environment = folder, _environment(server)
        self._stack = ExitStack()
        self._ended = 0.0
        self._start()

    @classmethod
    @contextmanager
    def beside(cls, folder: Path, server: Server) -> Iterator[_Worker]:
        worker = cls(folder, server)
        try:
            yield worker
        finally:
            worker._stack.close()

    def _start(self) -> None:
        self._pid = self._stack.enter_context(servers.started(self._folder, "worker", "worker", self._environment))

    def kill(self) -> None:
        self._ended += servers.seconds_of(self._pid)[0]
        os.kill(self._pid, signal.SIGKILL)
        self._stack.close()
        self._start()

    def cpu(self) -> float:
        """Return the seconds of processor time, of those that were killed too."""
        return self._ended + servers.seconds_of(self._pid)[0]


def _environment(server: Server) -> dict[str, str]:
    """Return the variables of the node, as its own process has them."""
    pairs = (entry.partition("=") for entry in Path(f"/proc/{server.pids['serve']}/environ").read_text().split("\0"))
    return {name: value for name, _, value in pairs if name.startswith("FEDSTAC_")}


class _Publisher:
    """A publisher that always has some datasets waiting, or one that sends a few at a steady pace."""

    def __init__(self, server: Server, first: int, *, is_steady: bool) -> None:
        self._server, self._first, self._is_steady = server, first, is_steady
        self._stop, self.count_of_items = threading.Event(), 0
        self._thread = threading.Thread(target=self._run)

    @classmethod
    @contextmanager
    def beside(cls, server: Server, first: int, *, is_steady: bool) -> Iterator[_Publisher]:
        publisher = cls(server, first, is_steady=is_steady)
        publisher._thread.start()
        try:
            yield publisher
        finally:
            publisher._stop.set()
            publisher._thread.join()

    def _run(self) -> None:
        size, due = STEADY_BATCH if self._is_steady else BATCH, time.perf_counter()
        with psycopg.connect(self._server.dsn, autocommit=True) as conn:
            while not self._stop.is_set():
                items = sample.items(size, start=self._first + self.count_of_items)
                _post(self._server, b"\n".join(map(orjson.dumps, items)))
                self.count_of_items += size
                if self._is_steady:
                    due += STEADY_PAUSE
                    self._stop.wait(max(due - time.perf_counter(), 0))
                    continue
                while not self._stop.is_set() and _count(conn, "queued") > WAITING:
                    time.sleep(0.02)

    def count(self) -> int:
        with psycopg.connect(self._server.dsn, autocommit=True) as conn:
            return _count(conn, "done")


def _count(conn: psycopg.Connection[Any], status: str) -> int:
    row = conn.execute("SELECT count(*) FROM fedstac.request_item WHERE status = %s", (status,)).fetchone()
    assert row is not None
    return int(row[0])


class _Reader:
    """Readers that look at a dataset or search, with pauses."""

    def __init__(self, server: Server) -> None:
        items = list(sample.items(50))
        self._server, self._stop = server, threading.Event()
        paths = [f"{ITEMS_PATH}?limit=10", f"/search?collections={COLLECTION}&limit=1", f"/collections/{COLLECTION}"]
        paths += [f"/search?ids={item['id']}" for item in items]
        self._requests = [load.request(server.address, "GET", path) for path in paths]
        self.latencies: list[tuple[float, float]] = []  # when a read ended, and its seconds
        self._thread = threading.Thread(target=self._run)

    @classmethod
    @contextmanager
    def beside(cls, server: Server) -> Iterator[_Reader]:
        reader = cls(server)
        reader._thread.start()
        try:
            yield reader
        finally:
            reader._stop.set()
            reader._thread.join()

    def _run(self) -> None:
        for request in itertools.cycle(self._requests):
            if self._stop.is_set():
                return
            answers = load.replay(self._server.address, [request], connections=1)
            self.latencies += [(time.perf_counter(), seconds) for seconds in answers.latencies]
            time.sleep(READ_PAUSE)


class _Figures:
    """The rate of publishing and the latencies of reads while something runs."""

    def __init__(self, rate: float, latencies: Sequence[tuple[float, float]], total: int, phases: Sequence[Phase]):
        self.rate, self.total = rate, total
        self._latencies, self._phases = latencies, phases

    @classmethod
    def of(cls, publisher: _Publisher, reader: _Reader, work: Callable[[], tuple[int, list[Phase]] | None]) -> _Figures:
        """Measure while `work` runs, and keep what it returns."""
        count, first, since = publisher.count(), len(reader.latencies), time.perf_counter()
        total, phases = work() or (0, [])
        seconds = time.perf_counter() - since
        figures = cls((publisher.count() - count) / seconds, reader.latencies[first:], total, phases)
        say(json.dumps({"published/s": figures.rate, "p99 ms": figures.p99, "reads": len(figures._latencies)}))
        return figures

    @property
    def p99(self) -> float:
        """The p99 of all reads, in milliseconds."""
        return _p99(seconds for _, seconds in self._latencies)

    def p99_by_phase(self) -> dict[str, float]:
        """Return the p99 of the reads that touch each phase, and of the rest, in milliseconds."""
        names: dict[str, list[float]] = {}
        for end, seconds in self._latencies:
            phase = next((name for name, first, last in self._phases if first < end < last + seconds), "rest")
            names.setdefault(phase, []).append(seconds)
        return {name: _p99(latencies) for name, latencies in names.items()}


def _p99(latencies: Iterable[float]) -> float:
    in_order = sorted(latencies)
    return in_order[int(len(in_order) * 0.99)] * 1000 if in_order else 0.0
