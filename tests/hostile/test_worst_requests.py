"""Valid requests that are as expensive as can be found, twenty at once, beside publishing and health checks."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import orjson
import pytest

from fedstac.demo import sample
from fedstac.settings import Settings
from tests.hostile import corpus, worst
from tests.hostile.corpus import ITEMS
from tests.hostile.site import SEED, Site, is_fault, keeps_its_promises, names
from tests.hostile.wire import Answer, Ask
from tests.support import health_watcher
from tests.support.waiting import PATIENCE

AT_ONCE = 20
READERS, FEW_READERS = 200, 40  # nobody knows, each from a network of its own
PER_SECOND = 50.0  # datasets that are published beside
SEARCH_SECONDS = float(os.environ.get("SOAK_SEARCH_SECONDS", "20"))  # of the guided search, for a route with knobs
SPARE = 64 << 20  # bytes that the api may take beside what it has at rest
BUDGET = float(Settings(_env_file=None).request_seconds)
# one process, in this order: the node is as it was left
pytestmark = [pytest.mark.xdist_group("hostile"), pytest.mark.long]
log = logging.getLogger(__name__)
_numbers = itertools.count(200_000)


@dataclass
class Record:
    """What is seen from outside while something goes on."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: list[tuple[float, int, str]] = field(default_factory=list)  # seconds, status and request of a few
    health: list[float] = field(default_factory=list)
    published: int = 0
    memory: int = 0

    def note(self, answer: Answer, data: bytes) -> None:
        """Count an answer, and keep which ones took longest."""
        self.statuses[answer.status] += 1
        name = data.split(b" HTTP/1.1", 1)[0][:150].decode("latin-1")
        self.slowest = heapq.nlargest(5, (*self.slowest, (answer.seconds, answer.status, name)))

    def percentile(self, percent: float) -> float:
        """Return seconds within which so many of the health checks were answered."""
        ordered = sorted(self.health)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


@asynccontextmanager
async def watched(node: Site) -> AsyncIterator[Record]:
    """Publish PER_SECOND datasets, ask for health and read the memory, as long as this lasts."""
    record = Record()
    stop = asyncio.Event()
    tasks = [asyncio.create_task(part(node, record, stop)) for part in (_publish, _check_health, _read_memory)]
    began = time.monotonic()
    try:
        yield record
    finally:
        record.seconds = time.monotonic() - began
        stop.set()
        await asyncio.gather(*tasks)


async def _publish(node: Site, record: Record, stop: asyncio.Event) -> None:
    """Publish single datasets at a steady rate over a few connections; what is done counts, not what is accepted."""
    before = node.count("SELECT count(*) FROM fedstac.record")
    began, sent = time.monotonic(), itertools.count()

    async def send() -> None:
        line = node.line()
        while not stop.is_set():
            due = began + next(sent) / PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            body = orjson.dumps(next(iter(sample.items(1, start=next(_numbers)))))
            ask = Ask("POST", "/collections/CMIP6/items", (), body, {}, "admin")
            try:
                await line.ask(ask.to_bytes(node.host, node.running.tokens))
            except TimeoutError:
                record.wrong.append("publishing hangs")
        line.close()

    await asyncio.gather(*(send() for _ in range(8)))
    record.published = node.count("SELECT count(*) FROM fedstac.record") - before


async def _check_health(node: Site, record: Record, stop: asyncio.Event) -> None:
    watcher = await health_watcher.start(node.host)  # what this process waits for itself is none of the node's
    await stop.wait()
    record.health = await health_watcher.latencies(watcher)


async def _read_memory(node: Site, record: Record, stop: asyncio.Event) -> None:
    while not stop.is_set():
        record.memory = max(record.memory, node.memory())
        await asyncio.sleep(0.25)


async def storm(
    node: Site, requests: Sequence[bytes], seconds: float, record: Record, at_once: int = AT_ONCE
) -> None:  # fmt: skip
    """Send requests drawn at random over some connections for so long; a proxy says that each is of another client."""
    until = time.monotonic() + seconds

    async def send(number: int) -> None:
        chance, line = random.Random(f"{SEED}/{number}"), node.line()
        while time.monotonic() < until:
            data = chance.choice(requests).replace(
                b"\r\n\r\n", b"\r\nX-Forwarded-For: 198.51.100.%d\r\n\r\n" % number, 1
            )
            try:
                answer = await line.ask(data)
            except TimeoutError:
                record.wrong.append(f"no answer in {PATIENCE:g} s to {data[:300]!r}")
                continue
            record.note(answer, data)
            if is_fault(answer) or (answer.status == 429 and "retry-after" not in answer.headers):
                record.wrong.append(f"{answer.status} {answer.body[:300]!r} to {data[:300]!r}")
        line.close()

    await asyncio.gather(*(send(number) for number in range(at_once)))


async def searches_of_anybody(node: Site) -> list[bytes]:
    """Return searches and counts that are answered, with knobs turned up; many of them PostgreSQL does by itself."""
    requests, line = [], node.line()
    for route in (("POST", "/search"), ("GET", "/search"), ("POST", "/aggregate"), ("GET", ITEMS)):
        ask = replace(corpus.asks(route)[0], role="")
        turned = worst.KNOBS[route]
        recipes = [{knob.__name__: level} for knob in turned for level in (6, worst.MOST)]
        for recipe in (*recipes, dict.fromkeys((knob.__name__ for knob in turned), 3)):
            data = worst.build(ask, recipe, turned).to_bytes(node.host, {})
            if (await line.ask(data)).status == 200:
                requests.append(data)
    line.close()
    return requests


async def _search_as_known(node: Site, record: Record, stop: asyncio.Event) -> list[float]:
    """Search with a token, five times a second; what is not answered is wrong. Return the seconds of each answer."""
    line, seconds = node.line(), list[float]()
    body = orjson.dumps({"collections": ["CMIP6"], "filter": corpus.FILTER, "limit": 10})
    data = Ask("POST", "/search", (), body, {}, "publisher:NCAR").to_bytes(node.host, node.running.tokens)
    while not stop.is_set():
        answer = await line.ask(data)
        seconds.append(answer.seconds)
        if answer.status != 200:
            record.wrong.append(f"a known reader: {answer.status} {answer.body[:300]!r}")
        await asyncio.wait((asyncio.ensure_future(stop.wait()),), timeout=0.2)
    line.close()
    return seconds


async def _readers_beside_publishing(node: Site, readers: int, seconds: float) -> tuple[Record, Record]:
    """Return what is seen while one publishes alone, and beside readers with the worst searches; check the answers."""
    requests = await searches_of_anybody(node)
    async with watched(node) as alone:
        await asyncio.sleep(seconds)
    stop = asyncio.Event()
    async with watched(node) as beside:
        reader = asyncio.create_task(_search_as_known(node, beside, stop))
        await storm(node, requests, seconds, beside, readers)
        stop.set()
        latencies = sorted(await reader)
    pace = (beside.published / beside.seconds) / max(alone.published / alone.seconds, 0.1)
    log.info(
        "%d readers: answers %s, slowest %.1f s; published %.1f/s (alone %.1f): %.0f %%; health p99 %.0f ms (alone "
        "%.0f); %d searches of a known reader, half of them in %.0f ms, all in %.0f ms",
        readers, dict(sorted(beside.statuses.items())), beside.slowest[0][0], beside.published / beside.seconds,
        alone.published / alone.seconds, 100 * pace, 1000 * beside.percentile(99), 1000 * alone.percentile(99),
        len(latencies), 1000 * latencies[len(latencies) // 2], 1000 * latencies[-1],
    )  # fmt: skip
    assert not beside.wrong, "\n".join(beside.wrong[:20])
    assert set(beside.statuses) <= {200, 429, 503}
    assert beside.statuses[200]
    await keeps_its_promises(node)
    return alone, beside


async def test_readers_with_the_worst_searches_do_not_keep_known_ones_from_theirs(node: Site) -> None:
    _, beside = await _readers_beside_publishing(node, FEW_READERS, 4.0)
    assert beside.published > 0


@pytest.mark.soak
async def test_hostile_readers_leave_a_publisher_its_rate(node: Site) -> None:
    """The limits of the issue, in figures: run it on a machine that does nothing else."""
    alone, beside = await _readers_beside_publishing(node, READERS, 60.0)
    assert beside.published / beside.seconds >= 0.9 * alone.published / alone.seconds


async def test_each_knob_turned_up_is_answered_and_memory_comes_back(node: Site) -> None:
    """Every route, every knob alone; then all of them at once for a few seconds beside publishing."""
    made_names = await names(node)
    line, wrong, requests = node.line(), [], []
    at_rest = node.memory()
    for route in corpus.routes():
        ask = corpus.asks(route, made_names)[0]
        for recipe in worst.corners(route):
            data = worst.build(ask, recipe, worst.knobs(route)).to_bytes(node.host, node.running.tokens)
            answer = await line.ask(data)
            if is_fault(answer):
                wrong.append(f"{route} {recipe}: {answer.status} {answer.body[:300]!r}")
            if ask.method in ("GET", "POST") and recipe.keys() - {knob.__name__ for knob in worst.GENERIC}:
                requests.append(data)
    line.close()
    assert not wrong, "\n".join(wrong)
    async with watched(node) as record:
        await storm(node, requests, 10.0, record)
    print(f"{dict(record.statuses)}, {record.published} published, {(record.memory - at_rest) >> 20} MB more")
    assert not record.wrong, "\n".join(record.wrong[:20])
    assert record.published > 0
    await keeps_its_promises(node)


@pytest.mark.soak
async def test_hostile_worst_requests_of_a_guided_search(node: Site) -> None:
    """The limits of the issue, in figures: run it on a machine that does nothing else."""
    made_names = await names(node)
    chance, requests = random.Random(SEED), []
    async with watched(node) as alone:
        await asyncio.sleep(30)
    at_rest = node.memory()
    for route in corpus.routes():
        for ask in corpus.asks(route, made_names)[:1]:
            seconds = SEARCH_SECONDS if route in worst.KNOBS else min(3.0, SEARCH_SECONDS)
            trials = await worst.search(node, route, ask, seconds, chance)
            turned = worst.knobs(route)
            requests += [worst.build(ask, t.recipe, turned).to_bytes(node.host, node.running.tokens) for t in trials]
            if trials:
                log.info("%s %s: %d recipes, up to %.2f s: %s", *route, len(trials), trials[0].cost, trials[0].recipe)
    async with watched(node) as beside:
        await storm(node, requests, 60.0, beside)
    until = time.monotonic() + 60
    while (rest := node.memory() - at_rest) > SPARE and time.monotonic() < until:  # noqa: ASYNC110 (another process)
        await asyncio.sleep(1)
    pace = (beside.published / beside.seconds) / (alone.published / alone.seconds)
    log.info(
        "answers %s; slowest %.1f s of %.0f; health p99 %.0f ms (alone %.0f); published %.1f/s (alone %.1f): %.0f %%; "
        "memory +%d MB at most, +%d MB a minute later",
        dict(sorted(beside.statuses.items())), beside.slowest[0][0], BUDGET, 1000 * beside.percentile(99),
        1000 * alone.percentile(99), beside.published / beside.seconds, alone.published / alone.seconds, 100 * pace,
        (beside.memory - at_rest) >> 20, rest >> 20,
    )  # fmt: skip
    assert not beside.wrong, "\n".join(beside.wrong[:20])
    log.info(
        "the slowest: %s", "; ".join(f"{seconds:.1f} s, {status}, {name}" for seconds, status, name in beside.slowest)
    )
    assert beside.slowest[0][0] <= BUDGET + 1, beside.slowest
    assert beside.percentile(99) <= 0.1
    assert pace >= 0.7
    assert beside.memory - at_rest <= SPARE
    assert rest <= SPARE
    await keeps_its_promises(node)


def test_the_routes_that_take_much_have_knobs_of_their_own() -> None:
    """A route with a body or a list has more to turn than headers."""
    plain = {
        route for route in corpus.routes()
        if route not in worst.KNOBS and route in corpus.BODIES and route[1] != ITEMS
    }  # fmt: skip
    assert plain == {
        ("POST", "/collections/{collection_id}/items/{item_id}/retract"), ("POST", "/notifications"),
        ("POST", "/sinks"), ("POST", "/sinks/{sink}/pause"), ("POST", "/sinks/{sink}/seek"),
        ("POST", "/sinks/{sink}/audit"), ("POST", "/dead-letters/redrive"), ("POST", "/dead-letters/discard"),
        ("POST", "/parked-events/requeue"), ("POST", "/parked-events/discard"),
        *(("POST", f"/subscriptions/{{subscription}}/{verb}") for verb in ("ack", "nack", "seek")),
    }  # fmt: skip
