"""How fast a relay fills a broker, beside the broker's own producer with the same messages and no log to read."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import orjson
from confluent_kafka import Producer
from nats.aio.client import Client

from benchmarks import report
from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import feed, sinks
from fedstac.db.connections import Connection
from fedstac.db.sinks import PAGE_EVENTS, NewSink
from fedstac.demo import brokers, embedded, federation
from fedstac.demo.brokers import Broker, BrokerKind
from fedstac.messaging import kafka
from fedstac.messaging.kafka import OwnThread
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.settings import Settings
from fedstac.workers import relay

EVENT_BYTES = 4500
EVENT_TYPE = "org.fedstac.dataset.updated.v1"
LINEAGES = 1000


def run(*, kind: BrokerKind, events: int = 20_000, rounds: int = 3) -> None:
    """Print the rate of a relay and that of the broker's own producer, each round with an empty stream."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-bench-"))
    folder.chmod(0o755)
    try:
        with embedded.cluster(folder / "pg") as cluster, brokers.broker(kind, folder / kind, lambda _: None) as broker:
            federation.make_database(cluster, "fedstac", lambda _: None)
            dsn = cluster.dsn("fedstac", user="fedstac_writer")
            rates = asyncio.run(_measure(dsn, broker, kind, events, rounds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.line(
        f"{kind} relay", rates.relay.rate, "events/s", rates.raw, peer_name=f"{kind} raw producer",
        detail={
            "events": events, "bytes": EVENT_BYTES, "page": PAGE_EVENTS,
            "cpu_us": round(rates.relay.cpu_us, 1), "raw_cpu_us": round(rates.raw_cpu_us, 1),
            "start_seconds": round(rates.relay.start_seconds, 2),
        },
    )  # fmt: skip
    report.line(
        f"{kind} relay beside a mute and a dead sink", rates.beside, "events/s", rates.relay.rate,
        peer_name="the same relay alone",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RelayRun:
    """How a relay filled a stream: events a second, and microseconds of this process's processor time for each."""

    rate: float
    cpu_us: float
    start_seconds: float  # until the first page


@dataclass(frozen=True, slots=True)
class Rates:
    """The medians of all rounds; `raw` is events a second."""

    relay: RelayRun
    raw: float
    raw_cpu_us: float
    beside: float  # events a second of a relay that has a mute and a dead sink, too


async def _measure(dsn: str, broker: Broker, kind: BrokerKind, events: int, rounds: int) -> Rates:
    runs: list[RelayRun] = []
    raw_rates: list[float] = []
    raw_times: list[float] = []
    beside_rates: list[float] = []
    produce = PRODUCERS[kind]
    async with bootstrap.node(Settings(_env_file=None, node="west", dsn=dsn)) as node:
        async with node.pool.acquire() as conn:
            values = await _fill(conn, events)
        for number in range(rounds + 1):  # the first one warms up
            cpu = time.process_time()
            raw_rates.append(events / await produce(broker.url, f"raw{number}", values))
            raw_times.append((time.process_time() - cpu) / events * 1e6)
            runs.append(await _relay(node, f"{broker.url}/relay{number}", events))
            with _mute_port() as mute, _dead_port() as dead:
                others = [f"{kind}://127.0.0.1:{port}/other" for port in (mute, dead)]
                beside_rates.append((await _relay(node, f"{broker.url}/beside{number}", events, beside=others)).rate)
    middle = [statistics.median(values[1:] or values) for values in (
        [run.rate for run in runs], [run.cpu_us for run in runs], [run.start_seconds for run in runs], raw_rates,
        raw_times, beside_rates,
    )]  # fmt: skip
    return Rates(RelayRun(*middle[:3]), *middle[3:])


async def _fill(conn: Connection, events: int) -> list[bytes]:
    """Write events to the log. Return them as they go to a broker, but for their places."""
    rows = []
    for number in range(events):
        event_id, dataset = uuid4(), f"dataset-{number % LINEAGES}"
        text = orjson.dumps({
            "specversion": "1.0", "id": str(event_id), "source": "west", "type": EVENT_TYPE,
            "time": "2026-01-01T00:00:00Z", "datacontenttype": "application/json", "partitionkey": f"CMIP6/{dataset}",
            "data": {"id": dataset, "text": secrets.token_hex(EVENT_BYTES // 2 - 150)},
        }).decode()  # fmt: skip
        key = f"CMIP6/{dataset}"
        rows.append((event_id, key, "CMIP6", dataset, number // LINEAGES + 1, EVENT_TYPE, b"", text))
    ids = await conn.fetch("SELECT nextval('fedstac.outbox_id_seq') AS id FROM generate_series(1, $1)", events)
    columns = ("id", "event_id", "key", "collection", "dataset", "seq", "type", "digest", "event")
    await conn.copy_records_to_table(
        "outbox", schema_name="fedstac", columns=columns,
        records=[(row["id"], *rest) for row, rest in zip(ids, rows, strict=True)],
    )  # fmt: skip
    while await feed.sequence(conn):
        continue
    return [row[-1].encode() for row in rows]


@contextmanager
def _mute_port() -> Iterator[int]:
    """Yield a port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@contextmanager
def _dead_port() -> Iterator[int]:
    """Yield a port where nobody listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


async def _relay(node: Node, address: str, events: int, *, beside: Sequence[str] = ()) -> RelayRun:
    """Let a relay send the whole log to a new stream; measure from its first page on, as for a raw producer.

    What comes before, the stream that is made and the end of it that is looked for, comes once and not for each event.
    `beside`: addresses of other sinks of the same relay.
    """
    addresses = {"bench": address} | {f"beside-{number}": other for number, other in enumerate(beside)}
    async with node.pool.acquire() as conn:
        for name, each in addresses.items():
            sink = NewSink(name, each, format="cloudevents", key_template="", required=False, private=True, after=0)
            await sinks.add(conn, sink, actor="bench")
    stop, started, first, cpu = asyncio.Event(), time.monotonic(), 0, 0.0
    began = started
    task = asyncio.create_task(relay.run(node, stop))
    try:
        async with node.pool.acquire() as conn:
            while (pos := (await sinks.read(conn, "bench")).pos) < events:
                if not first and pos:
                    first, began, cpu = pos, time.monotonic(), time.process_time()
                if task.done():
                    task.result()
                await asyncio.sleep(0.02)
        seconds, count = time.monotonic() - began, events - first
        return RelayRun(count / seconds, (time.process_time() - cpu) / count * 1e6, began - started)
    finally:
        stop.set()
        await task
        async with node.pool.acquire() as conn:
            for name in addresses:
                await sinks.remove(conn, name, actor="bench")


async def _produce_nats(url: str, stream: str, values: Sequence[bytes]) -> float:
    """Return how many seconds the client takes for the same batches, one after the other."""
    client = Client()
    await client.connect(url)
    configuration = {"name": stream, "subjects": [f"{stream}.>"], "allow_atomic": True, "max_msg_size": 8 << 20}
    await client.request(f"$JS.API.STREAM.CREATE.{stream}", orjson.dumps(configuration), timeout=10)
    began = time.monotonic()
    for start in range(0, len(values), PAGE_EVENTS):
        page = values[start : start + PAGE_EVENTS]
        headers = {"Nats-Batch-Id": f"{stream}-{start}"}
        for number, value in enumerate(page[:-1], 1):
            await client.publish(f"{stream}.a", value, headers=headers | {"Nats-Batch-Sequence": str(number)})
        last = {"Nats-Batch-Sequence": str(len(page)), "Nats-Batch-Commit": "1"}
        answer = await client.request(f"{stream}.a", page[-1], headers=headers | last, timeout=30)
        if b"error" in answer.data:
            raise RuntimeError(answer.data.decode())
    seconds = time.monotonic() - began
    await client.close()
    return seconds


async def _produce_kafka(url: str, topic: str, values: Sequence[bytes]) -> float:
    """Return how many seconds the client takes for a transaction a page, without keys, headers and outcomes."""
    place = BrokerAddress.parse(f"{url}/{topic}")
    thread, properties = OwnThread(), kafka.read_properties(place)

    def produce() -> float:
        kafka.Brokers(place, properties, thread).make_topic(kafka.PARTITIONS)
        producer = Producer({**properties, "transactional.id": topic, "linger.ms": 5})
        producer.init_transactions(30)
        began = time.monotonic()
        for start in range(0, len(values), PAGE_EVENTS):
            producer.begin_transaction()
            for number, value in enumerate(values[start : start + PAGE_EVENTS]):
                producer.produce(topic, value, partition=number % kafka.PARTITIONS)
            producer.commit_transaction(30)
        return time.monotonic() - began

    return await thread.run(produce)


PRODUCERS: Mapping[BrokerKind, Callable[[str, str, Sequence[bytes]], Awaitable[float]]] = {
    BrokerKind.NATS: _produce_nats,
    BrokerKind.KAFKA: _produce_kafka,
}
