"""GET /events/stream as clients see it over a socket, and what a filter does to GET /events."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import orjson
import pytest

from fedstac.api.nodes import stream
from fedstac.api.people import identity
from fedstac.db import queue
from fedstac.demo import embedded, sample
from tests.db import writing
from tests.support.databases import name_in
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until

ITEMS = list(sample.items(12, versions=1))
RETRACTED = "org.fedstac.dataset.retracted.v1"


@dataclass(frozen=True)
class Sent:
    """One block of Server-Sent Events; without data it is a bookmark."""

    id: str | None
    data: Any
    name: str | None = None


@dataclass(frozen=True)
class OpenStream:
    """A stream that a client reads."""

    response: httpx.Response
    blocks: AsyncIterator[Sent]


@asynccontextmanager
async def streaming(api: Api, query: str = "", **headers: str) -> AsyncIterator[OpenStream]:
    fields = {"Authorization": f"Bearer {api.tokens['node:east']}", "Accept-Encoding": "br, gzip", **headers}
    async with (
        httpx.AsyncClient(base_url=api.url, timeout=PATIENCE, trust_env=False, headers=fields) as client,
        client.stream("GET", f"/events/stream?{query}") as response,
    ):
        yield OpenStream(response, blocks(response))


async def blocks(response: httpx.Response) -> AsyncIterator[Sent]:
    """Yield what a client of Server-Sent Events makes of an answer."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            data = fields.get("data")
            yield Sent(fields.get("id"), orjson.loads(data) if data else None, fields.get("event"))
            fields = {}


async def take(opened: OpenStream, *, count: int) -> list[Sent]:
    """Return the next events."""
    events: list[Sent] = []
    async with asyncio.timeout(PATIENCE):
        while len(events) < count:
            block = await anext(opened.blocks)
            events += [block] if block.data is not None else []
    return events


async def bookmark(opened: OpenStream, is_wanted: Callable[[str], bool]) -> str:
    """Return the next wanted bookmark; there is no event before it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            block = await anext(opened.blocks)
            assert block.data is None
            if block.id is not None and is_wanted(block.id):
                return block.id


async def publish(api: Api, *items: dict[str, Any]) -> None:
    body = {"type": "FeatureCollection", "features": list(items)}
    answer = await api.admin.post("/collections/CMIP6/items", json=body, headers={"Prefer": "wait=60"})
    assert answer.is_success, answer.text


async def head(api: Api) -> str:
    """Return the head of the feed once everything stored is in it."""
    east = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        await writing.until(conn, "SELECT (SELECT count(*) FROM fedstac.outbox) = (SELECT pos FROM fedstac.feed_state)")
    finally:
        await conn.close()
    return str((await api.anyone.get("/events/head", headers=east)).json()["cursor"])


async def ids_of_feed(api: Api, query: str = "") -> list[str]:
    east = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    ids, cursor = list[str](), "0.0"
    while True:
        answer = await api.anyone.get(f"/events?after={cursor}&limit=5&{query}", headers=east)
        if answer.headers["x-cursor"] == cursor:
            return ids
        ids += [event["id"] for event in answer.json()]
        cursor = answer.headers["x-cursor"]


async def test_a_stream_gives_what_is_there_and_what_comes_and_goes_on_after_the_last_event_id(api: Api) -> None:
    await publish(api, *ITEMS[:3])
    async with streaming(api) as opened:
        assert opened.response.headers["content-type"].startswith(stream.SERVER_SENT)
        assert "content-encoding" not in opened.response.headers
        events = await take(opened, count=4)
    await publish(api, *ITEMS[3:6])
    await head(api)
    async with streaming(api, "after=0.0", **{"Last-Event-ID": str(events[1].id)}) as opened:
        again = await take(opened, count=5)
    assert again[:2] == events[2:]
    all_events = [*events, *again[2:]]
    assert [event.data["id"] for event in all_events] == await ids_of_feed(api)
    assert [event.id for event in all_events] == [f"1.{event.data['pos']}" for event in all_events]
    async with streaming(api, f"after={all_events[-1].id}") as opened:
        waiting = asyncio.create_task(take(opened, count=1))
        await publish(api, ITEMS[6])
        assert (await waiting)[0].data["subject"] == f"CMIP6/{ITEMS[6]['id']}"


async def test_a_stream_of_lines_that_names_its_end_is_the_whole_log(api: Api) -> None:
    await publish(api, *ITEMS)
    last = await head(api)
    async with streaming(api, "wait=0", Accept="application/x-ndjson") as opened:
        assert opened.response.headers["content-type"].startswith("application/x-ndjson")
        lines = [orjson.loads(line) async for line in opened.response.aiter_lines()]
    assert lines[0] == {"bookmark": "1.0"}
    assert [line["id"] for line in lines if "id" in line] == await ids_of_feed(api)
    assert f"1.{lines[-1]['pos']}" == last


async def test_bookmarks_move_the_cursor_of_a_client_whose_filter_takes_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BOOKMARK_SECONDS", 0.05)
    async with streaming(api, f"type={RETRACTED}") as opened:
        await publish(api, *ITEMS)
        last = await head(api)
        assert await bookmark(opened, last.__eq__) == last


async def test_a_stream_too_many_is_refused_and_its_place_is_free_again(start_api: StartApi, dsn: str) -> None:
    api = await start_api(dsn=dsn, event_streams=2)
    async with streaming(api) as first:
        async with streaming(api) as second, streaming(api) as third:
            statuses = tuple(each.response.status_code for each in (first, second, third))
            assert (statuses, third.response.headers["retry-after"]) == ((200, 200, 429), "5")

        async def opens() -> bool:
            async with streaming(api) as opened:
                return opened.response.status_code == 200

        await until(opens)


async def test_a_token_that_is_revoked_ends_its_streams(
    api: Api, conn: asyncpg.Connection[asyncpg.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(identity, "KEPT_SECONDS", 0.05)
    async with streaming(api) as opened:
        await take(opened, count=1)
        await conn.execute("DELETE FROM fedstac.token WHERE name = 'node:east'")
        async with asyncio.timeout(PATIENCE):
            rest = [block async for block in opened.blocks]  # it ends in order
        assert all(block.data is None for block in rest)
    async with streaming(api) as opened:
        assert opened.response.status_code == 401


def test_a_token_ends_its_streams_within_a_minute() -> None:
    assert stream.CHECK_SECONDS + identity.KEPT_SECONDS + stream.BOOKMARK_SECONDS < 60


async def test_a_client_that_takes_nothing_loses_its_stream(
    start_api: StartApi, dsn: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_api(dsn=dsn, read_timeout_seconds=0.3, event_streams=1)
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    await publish(api, *ITEMS)
    await head(api)
    await administrator.execute("UPDATE fedstac.outbox SET event = overlay(event PLACING $1 FROM 2 FOR 0)",
                                f'"padding":"{"x" * 900_000}",')  # fmt: skip
    reader, port = socket.socket(), int(api.url.rpartition(":")[2])
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", port))
    with reader:
        token = api.tokens["node:east"]
        reader.sendall(f"GET /events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())

        async def is_full() -> bool:
            async with streaming(api, "wait=0") as opened:
                return opened.response.status_code == 429

        await until(is_full)

        async def is_free() -> bool:
            return not await is_full()

        await until(is_free)


async def test_a_client_that_fell_behind_what_is_kept_is_told_where_to_go_on(
    api: Api, cluster: embedded.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(api, *ITEMS)
    last = await head(api)
    async with streaming(api, f"after={last}") as opened:
        assert await bookmark(opened, last.__eq__)
        owner = await asyncpg.connect(cluster.dsn(name_in(api.settings.dsn)))
        await owner.execute("UPDATE fedstac.forgotten SET pos = 1000000")
        await owner.close()
        [gone] = await take(opened, count=1)
        assert [block async for block in opened.blocks] == []
    expected = {"earliest": "1.1000000", "snapshot": f"{api.url}/snapshot", "status": 410}
    assert gone.name == "gone"
    assert gone.data | expected == gone.data
    async with streaming(api, **{"Last-Event-ID": last}) as opened:
        await opened.response.aread()
        assert opened.response.json() | expected == opened.response.json()


async def test_streams_survive_a_database_that_was_away(
    api: Api, conn: asyncpg.Connection[asyncpg.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BOOKMARK_SECONDS", 0.05)
    last = await head(api)
    async with streaming(api, f"after={last}") as opened:
        await bookmark(opened, last.__eq__)
        own = await conn.fetchval("SELECT pg_backend_pid()")
        for _ in range(3):
            await conn.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> $1""",
                own,
            )
            await asyncio.sleep(0.05)
        waiting = asyncio.create_task(take(opened, count=1))
        async with asyncio.timeout(PATIENCE):
            while not waiting.done():
                answer = await api.admin.post("/collections/CMIP6/items", json=ITEMS[0])
                if answer.is_success:
                    break
        assert (await waiting)[0].data["subject"] == f"CMIP6/{ITEMS[0]['id']}"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
async def test_shares_divide_the_log_by_lineage(api: Api, count: int) -> None:
    await publish(api, *ITEMS)
    await head(api)
    every = await ids_of_feed(api)
    shares = [await ids_of_feed(api, f"shard={n}/{count}") for n in range(count)]
    assert sorted(event for share in shares for event in share) == sorted(every)
    assert [set(share) & set(other) for share in shares for other in shares if share is not other] == [set()] * (
        count * (count - 1)
    )
    for share in shares:
        assert share == [event for event in every if event in set(share)]  # in the order of the log
    for n in range(count):  # a lineage stays with its share
        async with streaming(api, f"wait=0&shard={n}/{count}") as opened:
            sent = [block.data async for block in opened.blocks if block.data]
        assert [event["id"] for event in sent] == shares[n]
        assert {queue.key_hash(event["partitionkey"]) % count for event in sent} <= {n}


async def test_a_filtered_long_poll_waits_while_other_events_pass(api: Api) -> None:
    east = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    start = await head(api)
    poll = asyncio.create_task(api.anyone.get(f"/events?type={RETRACTED}&after={start}&wait=60", headers=east))
    for item in ITEMS:
        await publish(api, item)
    assert not poll.done()
    answer = await api.admin.post(
        f"/collections/CMIP6/items/{ITEMS[0]['id']}/retract", json={"reason": "wrong"}, headers={"Prefer": "wait=60"}
    )
    assert answer.is_success, answer.text
    found = await poll
    assert [event["type"] for event in found.json()] == [RETRACTED]
    assert found.headers["x-cursor"] == f"1.{found.json()[0]['pos']}"


async def test_a_page_that_a_filter_leaves_empty_moves_the_cursor(api: Api) -> None:
    await publish(api, *ITEMS)
    last = await head(api)
    east = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    answer = await api.anyone.get(f"/events?type={RETRACTED}&limit=1", headers=east)
    assert (answer.json(), answer.headers["x-cursor"]) == ([], last)
