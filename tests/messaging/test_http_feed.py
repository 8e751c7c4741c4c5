"""What a consumer makes of a source's answers: wait, let an operator see to it, take a snapshot, or give it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from fedstac.domain import events
from fedstac.domain.events import Cursor
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import BehindRetention, NotServed, SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import SourceAddress, SourcesUnclear, read_addresses
from fedstac.messaging.sources.http import HttpSource
from tests.support.receivers import listening
from tests.support.waiting import until


@asynccontextmanager
async def answering(status: int, content: bytes = b"{}") -> AsyncIterator[str]:
    """Yield the address of something that answers everything with this status and this content."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 %d X\r\nlocation: /elsewhere\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % (status, len(content)) + content)
        await writer.drain()

    async with listening(answer) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (301, SourceRefused), (302, SourceRefused), (400, NotServed), (401, SourceRefused), (403, SourceRefused),
        (404, NotServed), (407, SourceRefused), (408, SourceAway), (410, BehindRetention), (429, SourceAway),
        (500, SourceAway), (503, SourceAway),
    ],
)  # fmt: skip
async def test_what_a_status_means(status: int, meaning: type[Exception]) -> None:
    async with answering(status) as address, Origin(SourceAddress(address, "fst_secret")) as source:
        with pytest.raises(meaning) as raised:
            await source.vocabulary("CMIP6", "6.2.60.0")
    assert type(raised.value) is meaning
    assert "fst_secret" not in str(raised.value)


async def test_nobody_there_is_waited_for() -> None:
    async with answering(200) as address:
        pass
    async with Origin(SourceAddress(address, "")) as source:
        with pytest.raises(SourceAway):
            await source.head()


@pytest.mark.parametrize("content", [b"<!doctype html><title>Back soon</title>", b"", b"[]", b"null", b"{}"])
async def test_the_page_of_a_proxy_is_no_answer_of_a_node(content: bytes) -> None:
    here = Cursor(1, 1)
    async with answering(200, content) as address:
        place = SourceAddress(address, "fst_x")
        async with Origin(place) as origin, HttpSource(place) as source:
            questions: list[Coroutine[Any, Any, object]] = [
                origin.head(), origin.progress(), origin.snapshot(None, limit=1), origin.current("CMIP6", ["x"]),
                origin.digests(), origin.bucket("CMIP6", 1), source.end(), origin.report([{"outcome": "ok"}]),
            ]  # fmt: skip
            if content not in (b"", b"{}"):
                questions.append(origin.acknowledge(here, []))  # else it would be lost, and nobody would know
            if content != b"[]":
                questions.append(source.receive(here, limit=1, wait=0))
            for question in questions:
                with pytest.raises(SourceAway, match=r"did not answer with|answered without"):
                    await question


# --- pages of the feed ---


@asynccontextmanager
async def feeding(types: Sequence[str]) -> AsyncIterator[HttpSource]:
    """Yield the feed of a node whose log has events of these types."""
    log = [{"pos": pos, "epoch": 1, "type": event_type} for pos, event_type in enumerate(types, 1)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        query = parse_qs(urlsplit(request.split()[1]).query)
        after, limit = int(query["after"][0].partition(".")[2]), int(query["limit"][0])
        page = log[after : after + limit]
        body = orjson.dumps(page)
        head = f"HTTP/1.1 200 OK\r\nx-cursor: 1.{after + len(page)}\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}connection: close\r\n\r\n".encode() + body)
        await writer.drain()

    async with (
        listening(answer) as port, HttpSource(SourceAddress(f"http://127.0.0.1:{port}", "fst_secret")) as source
    ):  # fmt: skip
        yield source


async def pages_of(source: HttpSource, limit: int) -> list[list[int]]:
    pages, cursor = [], Cursor(1, 0)
    while (page := await source.receive(cursor, limit=limit, wait=0)).events:
        pages.append([event["pos"] for event in page.events])
        cursor = page.cursor
    return pages


@pytest.mark.parametrize("limit", [2, 3, 5, 100])
async def test_no_page_ends_between_a_clearing_and_the_publication_after_it(limit: int) -> None:
    async with feeding([events.CLEARED, events.PUBLISHED] * 6) as source:
        pages = await pages_of(source, limit)
    assert [pos for page in pages for pos in page] == list(range(1, 13))
    assert all(page[-1] % 2 == 0 for page in pages), pages


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_datasets_that_are_cleared_and_stay_away_come_one_after_the_other(limit: int) -> None:
    async with feeding([events.PUBLISHED, *[events.CLEARED] * 4]) as source:
        pages = await pages_of(source, limit)
    assert [pos for page in pages for pos in page] == list(range(1, 6))


# --- whom to follow, as the settings say it ---

WEST, NORTH = "https://west.example", "https://north.example"


def pairs(addresses: str, tokens: str, *named: str) -> list[tuple[str, str]]:
    return [(source.address, source.token) for source in read_addresses(addresses, tokens, named)]


@pytest.mark.parametrize(
    ("addresses", "tokens", "named", "expected"),
    [
        (WEST, "a", [], [(WEST, "a")]),
        (WEST + "/", "", [], [(WEST, "")]),  # one without a token is tried: it may be open, and says so if not
        (f"{WEST} {NORTH}/", "a b", [], [(WEST, "a"), (NORTH, "b")]),
        (f" {WEST},\n{NORTH} ", "a, b", [], [(WEST, "a"), (NORTH, "b")]),
        (f"{WEST} {NORTH}", "a b", [NORTH], [(NORTH, "b")]),
        (f"{WEST} {NORTH}", "a b", [NORTH, WEST + "/"], [(NORTH, "b"), (WEST, "a")]),
        ("", "b", [NORTH], [(NORTH, "b")]),
        (WEST, "b", [NORTH], [(NORTH, "b")]),
        ("", "b a", [NORTH, WEST], [(NORTH, "b"), (WEST, "a")]),
    ],
)
def test_each_source_has_its_own_token(
    addresses: str, tokens: str, named: list[str], expected: list[tuple[str, str]]
) -> None:
    assert pairs(addresses, tokens, *named) == expected


@pytest.mark.parametrize(
    ("addresses", "tokens", "named", "reason"),
    [
        ("", "", [], "say which node is followed"),
        (f"{WEST} {NORTH}", "", [], f"0 tokens for 2 sources; it needs one for each of {WEST}, {NORTH}, in this order"),
        (f"{WEST} {NORTH}", "a", [], "1 tokens for 2 sources"),
        (f"{WEST} {NORTH}", "a b c", [], "3 tokens for 2 sources"),
        (WEST, "a b", [], "2 tokens for 1 sources"),
        (f"{WEST} https://third.example", "a b", [NORTH, WEST], f"has some of those named, and not {NORTH}"),
        (f"{WEST} {WEST}/", "a b", [], f"{WEST} is named twice"),
        (WEST, "a", [WEST, NORTH], "1 tokens for 2 sources"),
        ("west.example", "a", [], "'west.example' is no address of a node"),
        ("https:///feed", "a", [], "'https:///feed' is no address of a node"),
        (f"{WEST} {NORTH}", "a tök", [], f"the token for {NORTH} has characters that no token has"),
        (WEST, "a\x07", [], f"the token for {WEST} has characters"),
    ],
)
def test_what_does_not_come_out_even_is_refused(addresses: str, tokens: str, named: list[str], reason: str) -> None:
    with pytest.raises(SourcesUnclear) as refused:
        pairs(addresses, tokens, *named)
    assert reason in str(refused.value)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(read_addresses(WEST, "secret"))


# --- what brings their events ---

NATS, KAFKA = "nats://b1:4222/EVENTS", "kafka://b1:9092,b2:9092/events?config=kafka.conf&status=acks"


def feeds(setting: str, addresses: str = WEST, tokens: str = "a", *named: str) -> list[str | None]:
    return [str(each.feed) if each.feed else None for each in read_addresses(addresses, tokens, named, feeds=setting)]


def test_each_source_has_its_own_feed() -> None:
    assert feeds("") == [None]
    assert feeds("http") == [None]
    assert feeds(NATS) == [NATS]
    assert feeds(f"http\n{KAFKA}", f"{WEST} {NORTH}", "a b") == [None, KAFKA]
    assert feeds(f"http {NATS}", f"{WEST} {NORTH}", "a b", NORTH) == [NATS]
    [source] = read_addresses(WEST, "a", feeds=KAFKA)
    assert source.feed is not None
    assert source.feed.options == {"config": "kafka.conf", "status": "acks"}
    assert source.feed.servers == ("b1:9092", "b2:9092")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (f"{NATS} {NATS}", "2 feeds for 1 sources"),
        ("https://west.example", "begins with none of nats://, kafka://"),
        ("nats://b1/EVENTS", "'b1' for host:port"),
        ("nats://b1:0/EVENTS", "'b1:0' for host:port"),
        ("nats://b1:99999/EVENTS", "'b1:99999' for host:port"),
        ("nats://b1:4222", "names no stream or topic"),
        ("nats://b1:4222/a/b", "names no stream or topic"),
        ("kafka://b1:9092,/events", "'' for host:port"),
        (f"{NATS}?fromat=esgf", "has the option 'fromat'; there are config, format, gap, origin, status"),
        ("nats://me:secret@b1:4222/EVENTS", "an address has no user and no password"),
        ("nats://me:secret@b1:4222/EVENTS?password=secret", "an address has no user"),
        ("amqp://me:secret@b1:4222/EVENTS", "begins with none of"),
    ],
)
def test_a_feed_that_is_none_is_refused_without_a_password_in_the_message(setting: str, reason: str) -> None:
    with pytest.raises(SourcesUnclear) as refused:
        feeds(setting)
    assert reason in str(refused.value)
    assert "secret" not in str(refused.value)


# --- a page ahead ---


async def test_the_next_page_is_fetched_while_one_is_applied_and_forgotten_where_it_is_not_wanted() -> None:
    requests: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a log of nine events, two a page."""
        while request := (await reader.read(4096)).decode():
            path = request.split()[1]
            requests.append(path)
            start = int(path.partition("after=1.")[2].partition("&")[0])
            positions = list(range(start + 1, min(start + 2, 9) + 1))
            body = b"[%s]" % b",".join(b'{"pos":%d}' % pos for pos in positions)
            cursor = positions[-1] if positions else start
            head = b"HTTP/1.1 200 X\r\nx-cursor: 1.%d\r\ncontent-length: %d\r\n\r\n" % (cursor, len(body))
            writer.write(head + body)
            await writer.drain()

    async with listening(answer) as port, HttpSource(SourceAddress(f"http://127.0.0.1:{port}", "token")) as source:

        async def receive(after: int) -> list[int]:
            page = await source.receive(Cursor(1, after), limit=2, wait=0)
            return [event["pos"] for event in page.events]

        assert await receive(0) == [1, 2]

        async def is_ahead() -> bool:
            return len(requests) == 2

        await until(is_ahead)
        assert await receive(2) == [3, 4]
        assert await receive(0) == [1, 2]  # a consumer that failed begins again
        await source.begin(Cursor(1, 6), {})
        assert await receive(6) == [7, 8]
        assert await receive(8) == [9]
        assert await receive(9) == []
