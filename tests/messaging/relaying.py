"""What the tests of the relay share: a log that is filled quickly, sinks, and a relay that runs beside the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import orjson

from fedstac.bootstrap import Node
from fedstac.db import feed, sinks
from fedstac.db.connections import Connection
from fedstac.db.sinks import NewSink, Sink
from fedstac.workers import relay
from tests.support.sinks import Message
from tests.support.waiting import until

TYPE = "org.fedstac.dataset.updated.v1"


async def fill(
    conn: Connection, count: int, *, lineages: int = 10, size: int = 100, first: int = 1, sequences: bool = True
) -> None:
    """Write events to the outbox and give them positions, unless a sequencer does. Event n has `"n": n` in its data."""
    rows = []
    for n in range(first, first + count):
        event_id, dataset = uuid4(), f"dataset-{n % lineages}"
        event = {
            "specversion": "1.0", "id": str(event_id), "source": "west", "type": TYPE, "time": "2026-01-01T00:00:00Z",
            "datacontenttype": "application/json", "partitionkey": f"CMIP6/{dataset}",
            "data": {"n": n, "text": "x" * size},
        }  # fmt: skip
        key = f"CMIP6/{dataset}"
        rows.append((event_id, key, "CMIP6", dataset, n, TYPE, b"", orjson.dumps(event).decode()))
    columns = ("event_id", "key", "collection", "dataset", "seq", "type", "digest", "event")
    ids = await conn.fetch("SELECT nextval('fedstac.outbox_id_seq') AS id FROM generate_series(1, $1)", count)
    await conn.copy_records_to_table(
        "outbox", schema_name="fedstac", columns=("id", *columns),
        records=[(row["id"], *rest) for row, rest in zip(ids, rows, strict=True)],
    )  # fmt: skip
    while sequences and await feed.sequence(conn):
        continue


async def add_sink(
    conn: Connection, address: str, name: str = "one", *, after: int = 0, required: bool = True,
    format: str = "cloudevents",
) -> Sink:  # fmt: skip
    new = NewSink(name, address, format, "", required=required, private=True, after=after)
    return await sinks.add(conn, new, actor="test")


@asynccontextmanager
async def relaying(node: Node) -> AsyncIterator[asyncio.Task[None]]:
    """Run a relay until the end of the block."""
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(node, stop))
    try:
        yield task
    finally:
        stop.set()
        node.sequenced.wake()
        with suppress(asyncio.CancelledError):
            await task


async def sent_through(node: Node, pos: int, name: str = "one") -> Sink:
    """Wait until a sink has come to a position."""
    return await _sink_that(node, name, lambda sink: sink.pos >= pos)


async def sent_through_pos(conn: Connection, pos: int, name: str) -> None:
    """Wait until a sink has come to a position, by a connection of the test."""

    async def look() -> bool:
        return (await sinks.read(conn, name)).pos >= pos

    await until(look)


async def is_paused(node: Node, name: str = "one") -> Sink:
    """Wait until a sink is paused."""
    return await _sink_that(node, name, lambda sink: sink.paused_reason is not None)


async def has_let_go(conn: Connection, name: str) -> None:
    """Wait until no relay has a session for a sink."""
    sessions = """SELECT count(*) = 0 FROM pg_stat_activity
                  WHERE datname = current_database() AND application_name LIKE '%relay ' || $1"""
    await until(lambda: conn.fetchval(sessions, name))


async def is_failing(node: Node, name: str = "one", *, errors: int = 2) -> Sink:
    """Wait until a sink has failed so many times."""
    return await _sink_that(node, name, lambda sink: sink.failing_since is not None and sink.errors >= errors)


async def _sink_that(node: Node, name: str, condition: Callable[[Sink], bool]) -> Sink:
    async def read() -> Sink:
        async with node.pool.acquire() as conn:
            return await sinks.read(conn, name)

    async def look() -> bool:
        return condition(await read())

    await until(look)
    return await read()


def is_chain(messages: Sequence[Message], count: int, first: int = 1) -> bool:
    """Return whether these are the events of a log in their order, each once, each naming the one before."""
    places = [(message.pos, int(message.headers["prev"])) for message in messages]
    return places == [(pos, pos - 1) for pos in range(first, first + count)]


def numbers(messages: Sequence[Message]) -> list[int]:
    """Return the `n` of each event."""
    return [orjson.loads(message.value)["data"]["n"] for message in messages]
