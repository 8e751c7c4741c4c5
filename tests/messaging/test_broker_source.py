"""A broker and an origin as one source: an origin that gives no answer does not hold back what the broker has."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

import orjson
import pytest

from fedstac.domain.events import Cursor
from fedstac.messaging.sources import Offsets, SourceAway, brokers
from fedstac.messaging.sources.addresses import BrokerAddress, SourceAddress
from fedstac.messaging.sources.brokers import BrokerSource
from fedstac.messaging.sources.chain import LogMessage
from fedstac.messaging.sources.http import HttpSource

BEGIN = Cursor(1, 0)


def message(pos: int) -> LogMessage:
    value = {"pos": pos, "epoch": 1, "id": str(pos), "data": {}}
    return LogMessage("0", pos, {"pos": str(pos), "epoch": "1", "prev": str(pos - 1)}, orjson.dumps(value))


class ListedLog:
    """A broker's log that gives these batches, one a read."""

    identity = "a"

    def __init__(self, *batches: Sequence[LogMessage]) -> None:
        self.batches = list(batches)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def seek(self, after: Cursor, offsets: Offsets) -> Collection[str]:
        return ["0"]

    async def read(self, limit: int, wait: float, *, without: Collection[str]) -> Sequence[LogMessage]:
        return self.batches.pop(0) if self.batches else []


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(brokers, "GAP_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(brokers, "ORIGIN_SECONDS", 0.05)


async def receive(log: ListedLog, *, times: int) -> list[int]:
    """Return the places of the events that so many calls give, from a broker whose origin takes calls and is mute."""
    end = asyncio.Event()

    async def be_mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await end.wait()
        writer.close()

    server = await asyncio.start_server(be_mute, "127.0.0.1", 0)
    origin = SourceAddress(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "token")
    address = BrokerAddress.parse("kafka://127.0.0.1:1/west")
    places: list[int] = []
    try:
        async with server, BrokerSource(log, HttpSource(origin), address) as source:
            await source.begin(BEGIN, {})
            cursor = BEGIN
            for _ in range(times):
                page = await source.receive(cursor, limit=10, wait=0)
                places += [event["pos"] for event in page.events]
                cursor = page.cursor
            end.set()
    finally:
        end.set()
    return places


async def test_a_silent_broker_whose_origin_is_mute_goes_on_with_what_comes() -> None:
    async with asyncio.timeout(30):
        assert await receive(ListedLog([message(1)], [], [], [message(2)]), times=4) == [1, 2]


async def test_what_only_a_mute_origin_has_is_waited_for_elsewhere() -> None:
    async with asyncio.timeout(30):
        with pytest.raises(SourceAway, match=r"the origin has given no answer for 0\.05 s"):
            await receive(ListedLog([message(1)], [message(3)]), times=2)
