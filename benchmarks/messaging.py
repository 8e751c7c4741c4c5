"""The way of an event: positions, the feed, an index node, brokers. Each figure stands beside its limit.

On a busy machine the figures fall with what is left of it: `load` says how busy it was.
"""

from __future__ import annotations

import asyncio
import cProfile
import http.client
import os
import pstats
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psycopg
import uvloop

from benchmarks import load, relaying, report, servers
from benchmarks.servers import Server, say
from benchmarks.write import Supply, ndjson, singles
from fedstac import bootstrap
from fedstac.db import feed, nodes
from fedstac.demo import embedded, federation
from fedstac.demo.brokers import BrokerKind, BrokerMissing
from fedstac.settings import Settings
from fedstac.workers import processes, roles

SEQUENCING, FEED, APPLY, DELAY_MS = 100_000, 10_000, 3_000, 200  # the limits
EAST = "east"
PATIENCE = 300.0


class Part(StrEnum):
    """What can be measured by itself."""

    APPLY = "apply"  # an index node that begins with nothing


@dataclass(frozen=True, slots=True)
class Nodes:
    """A publishing node, and what an index node needs to follow it."""

    west: Server
    east_dsn: str
    node_token: str
    cluster: embedded.Cluster
    folder: Path


def run(
    *,
    quick: bool,
    rounds: int,
    kinds: Sequence[BrokerKind] = (BrokerKind.NATS, BrokerKind.KAFKA),
    events: int = 10_000,
    only: Part | None = None,
    profile: bool = False,
) -> None:
    """Measure everything, or one part, and print it."""
    with ExitStack() as stack:
        running, folder = stack.enter_context(servers.cluster())
        west = stack.enter_context(servers.fedstac(running, folder))
        federation.make_database(running, EAST, say)
        token = asyncio.run(_token(west.dsn))
        both = Nodes(west, running.dsn(EAST, user="fedstac_writer"), token, running, folder)
        _publish(west, 500 if quick else events)
        if only is None:
            _report("feed", _feed_rates(both, rounds), "events/s", FEED)
        _report_applying(_apply_rates(both, rounds, profile=profile))
        if only is Part.APPLY:
            return
        _report("commit to index node, p50 at 50/s", _delays(both, 100 if quick else 1000), "ms", DELAY_MS)
        _report("sequencing", _sequencing_rates(running, 20_000 if quick else 200_000, rounds), "events/s", SEQUENCING)
    for kind in kinds:
        try:
            relaying.run(kind=kind, events=2_000 if quick else 20_000, rounds=rounds)
        except (BrokerMissing, KeyError) as error:
            say(f"{kind} is left out: {error}")


def _report(name: str, value: float, unit: str, limit: float, more: Mapping[str, object] | None = None) -> None:
    is_met = value <= limit if unit in report.LOWER_IS_BETTER else value >= limit
    detail = {"limit": limit, "met": is_met, "load": round(os.getloadavg()[0], 1), **(more or {})}
    report.line(name, value, unit, detail=detail)


def _report_applying(rounds: Sequence[ApplyRound]) -> None:
    """Report the medians: events a second, and microseconds of processor time an event by who took it."""
    microseconds = {
        name: round(load.middle([getattr(each, name) for each in rounds]) * 1e6)
        for name in ("node", "judge", "postgresql", "origin")
    }
    detail = {f"{name}_us": value for name, value in microseconds.items()}
    _report("index apply", load.middle([each.rate for each in rounds]), "events/s", APPLY, detail)


async def _token(dsn: str) -> str:
    conn = await asyncpg.connect(dsn)
    try:
        return await nodes.issue_token(conn, EAST, [f"node:{EAST}"])
    finally:
        await conn.close()


def _publish(west: Server, count: int) -> None:
    load.replay(west.address, ndjson(west, Supply().take(count), 500), connections=1)
    servers.drain(west)
    _await(west.dsn, "SELECT (SELECT count(*) FROM fedstac.outbox) = (SELECT pos FROM fedstac.feed_state)")


def _await(dsn: str, condition: str) -> None:
    since = time.monotonic()
    with psycopg.connect(dsn, autocommit=True) as conn:
        while conn.execute(condition.encode()).fetchone() != (True,):
            if time.monotonic() - since > PATIENCE:
                raise RuntimeError(f"not after {PATIENCE:g} s: {condition}")
            time.sleep(0.01)


# --- the feed over HTTP


def _feed_rates(both: Nodes, rounds: int) -> float:
    rates = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        rates.append(_read_feed(both) / (time.perf_counter() - began))
    return load.middle(rates[1:] or rates)


def _read_feed(both: Nodes) -> int:
    """Read the whole feed in pages, as an index node does, without looking into them. Return the last position."""
    address = urlsplit(both.west.address)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    cursor, headers = "0.0", {"Authorization": f"Bearer {both.node_token}"}
    while True:
        connection.request("GET", f"/events?after={cursor}&limit=500", headers=headers)
        answer = connection.getresponse()
        answer.read()
        following = answer.headers["x-cursor"]
        if answer.status != 200 or following is None:
            raise RuntimeError(f"the feed answers {answer.status}")
        if following == cursor:
            connection.close()
            return int(cursor.partition(".")[2])
        cursor = following


# --- the index node


@dataclass(frozen=True, slots=True)
class ApplyRound:
    """What a follower did: events a second, and the seconds of processor time that an event took.

    node: of its process. judge: of the one beside it. postgresql: of both databases. origin: of the server that gave
    the feed.
    """

    rate: float
    node: float
    judge: float
    postgresql: float
    origin: float


def _apply_rates(both: Nodes, rounds: int, *, profile: bool) -> list[ApplyRound]:
    """Measure a follower that receives, judges and applies all events into a new database, without the first round."""
    processes.tune_interpreter()
    results, head = [], _head(both.west.dsn)
    for number in range(rounds + 1):
        name = f"{EAST}{number}"
        federation.make_database(both.cluster, name, say)
        settings = Settings(
            _env_file=None, node=EAST, dsn=both.cluster.dsn(name, user="fedstac_writer"), source=both.west.address,
            source_token=both.node_token, snapshot_first=False,
        )  # fmt: skip
        profiler = cProfile.Profile() if profile else None
        results.append(uvloop.run(_apply(both, settings, head, profiler)))
        say(str(results[-1]))
        if profiler:
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(45)
    return results[1:] or results


def _head(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        [pos] = conn.execute("SELECT pos FROM fedstac.feed_state").fetchone() or (0,)
    return int(pos)


async def _apply(both: Nodes, settings: Settings, head: int, profiler: cProfile.Profile | None) -> ApplyRound:
    """Follow from nothing to the head; measure the way there."""
    async with bootstrap.node(settings) as node:
        [follower, *_] = roles.INDEX.parts(settings)
        stop, began, cpu = asyncio.Event(), time.perf_counter(), _processor_seconds(both, None)
        if profiler:
            profiler.enable()
        task = asyncio.create_task(follower.run(node, stop))
        while True:
            await asyncio.sleep(0.05)
            async with node.pool.acquire() as conn:
                pos = await conn.fetchval("SELECT max(pos) FROM fedstac.consumer_cursor")
            if pos == head:
                break
            if task.done():
                task.result()
        seconds, cpu_after = time.perf_counter() - began, _processor_seconds(both, node.judge.pid)
        if profiler:
            profiler.disable()
        stop.set()
        await task
        return cpu_after.since(cpu, events=head, seconds=seconds)


@dataclass(frozen=True, slots=True)
class ProcessorSeconds:
    """The processor time until now: of this process, of the one that judges, of PostgreSQL and of the origin."""

    node: float
    judge: float
    postgresql: float
    origin: float

    def since(self, before: ProcessorSeconds, *, events: int, seconds: float) -> ApplyRound:
        """Return what happened between two moments."""
        return ApplyRound(
            events / seconds, (self.node - before.node) / events, (self.judge - before.judge) / events,
            (self.postgresql - before.postgresql) / events, (self.origin - before.origin) / events,
        )  # fmt: skip


def _processor_seconds(both: Nodes, judge: int | None) -> ProcessorSeconds:
    origin, database = both.west.cpu_parts()
    beside = servers.seconds_of(judge)[0] if judge is not None else 0.0
    return ProcessorSeconds(time.process_time(), beside, database, origin)


# --- from the commit to the index node


def _delays(both: Nodes, count: int) -> float:
    """Return the median of the milliseconds from an event's row to its place at an index node, at a steady pace."""
    environment = {
        "FEDSTAC_DSN": both.east_dsn, "FEDSTAC_NODE": EAST, "FEDSTAC_PORT": "0", "FEDSTAC_LOG_FORMAT": "json",
        "FEDSTAC_SOURCE": both.west.address, "FEDSTAC_SOURCE_TOKEN": both.node_token,
        "FEDSTAC_DIE_WITH": str(os.getpid()),
    }  # fmt: skip
    first = _head(both.west.dsn)
    with servers.started(both.folder, EAST, "index-node", environment), _places(both.east_dsn, first) as places:
        supply = Supply(first)  # others than before
        requests = singles(both.west, supply.take(count))
        began = time.perf_counter()
        for number, request in enumerate(requests):
            time.sleep(max(0.0, began + number / 50 - time.perf_counter()))
            load.replay(both.west.address, [request], connections=1)
        servers.drain(both.west)
        _await(both.west.dsn, "SELECT (SELECT max(id) FROM fedstac.outbox) = (SELECT max(id) FROM fedstac.feed)")
        last = _head(both.west.dsn)
        _await(both.east_dsn, f"SELECT max(pos) >= {last} FROM fedstac.consumer_cursor")
        time.sleep(0.1)
    with psycopg.connect(both.west.dsn) as conn:
        rows = conn.execute(
            """SELECT f.pos, extract(epoch FROM o.at)::float8 FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
               WHERE f.pos > %s""",
            (first,),
        ).fetchall()
    return load.middle([(_arrival(places, pos) - at) * 1000 for pos, at in rows])


def _arrival(places: Mapping[int, float], pos: int) -> float:
    return min(at for place, at in places.items() if place >= pos)


@contextmanager
def _places(dsn: str, first: int) -> Iterator[Mapping[int, float]]:
    """Yield when an index node was first seen at its places, from one on."""
    places: dict[int, float] = {}
    stop = threading.Event()

    def watch() -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            while not stop.wait(0.002):
                [pos] = conn.execute("SELECT max(pos) FROM fedstac.consumer_cursor").fetchone() or (None,)
                if pos is not None and pos not in places:
                    places[pos] = time.time()

    _await(dsn, f"SELECT max(pos) >= {first} FROM fedstac.consumer_cursor")
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield places
    finally:
        stop.set()
        thread.join()


# --- positions


def _sequencing_rates(cluster: embedded.Cluster, count: int, rounds: int) -> float:
    federation.make_database(cluster, "sequencing", say)
    return asyncio.run(_sequence(cluster.dsn("sequencing", user="fedstac_writer"), count, rounds))


async def _sequence(dsn: str, count: int, rounds: int) -> float:
    """Return the events a second that get positions, of many small ones that wait."""
    rates = []
    async with bootstrap.node(Settings(_env_file=None, node="west", dsn=dsn)) as node, node.pool.acquire() as conn:
        for _ in range(rounds + 1):
            await conn.execute(
                """INSERT INTO fedstac.outbox (event_id, key, collection, dataset, seq, type, digest, event)
                   SELECT gen_random_uuid(), 'CMIP6/' || n % 1000, 'CMIP6', 'd' || n, n, 'x', '', '{}'
                   FROM generate_series(1, $1::int) n""",
                count,
            )
            began = time.perf_counter()
            if await feed.sequence(conn) != count:
                raise RuntimeError("other events got positions")
            rates.append(count / (time.perf_counter() - began))
    return load.middle(rates[1:] or rates)
