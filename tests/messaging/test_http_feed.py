"""What a consumer makes of a source's answers: wait, let an operator see to it, take a snapshot, or give it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fedstac.messaging.http_feed import BehindRetention, HttpFeed, NotServed, SourceAway, SourceRefused


@asynccontextmanager
async def answering(status: int) -> AsyncIterator[str]:
    """The address of something that answers everything with this status."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\nlocation: /elsewhere\r\ncontent-length: 2\r\n\r\n{}" % status)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (301, SourceRefused), (302, SourceRefused), (400, NotServed), (401, SourceRefused), (403, SourceRefused),
        (404, NotServed), (407, SourceRefused), (408, SourceAway), (410, BehindRetention), (429, SourceAway),
        (500, SourceAway), (503, SourceAway),
    ],
)  # fmt: skip
async def test_what_a_status_means(status: int, meaning: type[Exception]) -> None:
    async with answering(status) as address, HttpFeed(address, "fst_secret") as source:
        with pytest.raises(meaning) as raised:
            await source.vocabulary("CMIP6", "6.2.60.0")
    assert type(raised.value) is meaning
    assert "fst_secret" not in str(raised.value)


async def test_nobody_there_is_waited_for() -> None:
    async with answering(200) as address:
        pass
    async with HttpFeed(address, "") as source:
        with pytest.raises(SourceAway):
            await source.head()
