"""A broker and an origin as one source: an origin that hangs does not hold back what the broker has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import orjson
import pytest

from fedstac.domain.events import Cursor
from fedstac.messaging.sources import EventPage, Offsets, SourceAway, SourceRefused, brokers
from fedstac.messaging.sources.addresses import BrokerAddress, SourceAddress
from fedstac.messaging.sources.brokers import BrokerSource
from fedstac.messaging.sources.chain import LogMessage
from fedstac.messaging.sources.http import HttpSource
from tests.support.receivers import listening

BEGIN = Cursor(1, 0)


def event(pos: int) -> dict[str, object]:
    return {"pos": pos, "epoch": 1, "id": str(pos), "data": {}}


def message(pos: int) -> LogMessage:
    return LogMessage("0", pos, {"pos": str(pos), "epoch": "1", "prev": str(pos - 1)}, orjson.dumps(event(pos)))


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


class SettledFeed(HttpSource):
    """A feed whose epoch is known; for the rest it asks its server."""

    async def end(self) -> Cursor:
        return BEGIN


class SlowFeed(SettledFeed):
    """A feed that answers when it is told to, or refuses."""

    def __init__(self) -> None:
        super().__init__(SourceAddress("http://127.0.0.1:1", "token"))
        self.may_answer = asyncio.Event()
        self.questions: list[int] = []
        self.refuses = False

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        self.questions.append(after.pos)
        if self.refuses:
            raise SourceRefused("no")
        await self.may_answer.wait()
        return EventPage([event(after.pos + 1)], Cursor(1, after.pos + 1))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(brokers, "ORIGIN_SECONDS", 0.02)


async def receive(source: BrokerSource, after: Cursor, *, times: int) -> tuple[list[object], Cursor]:
    """Return the places of the events that so many calls give."""
    places: list[object] = []
    for _ in range(times):
        page = await source.receive(after, limit=10, wait=0)
        places += [each["pos"] for each in page.events]
        after = page.cursor
    return places, after


def is_asking(source: BrokerSource) -> bool:
    return source._question is not None


@asynccontextmanager
async def source_of(log: ListedLog, feed: HttpSource) -> AsyncIterator[BrokerSource]:
    address = BrokerAddress.parse("kafka://127.0.0.1:1/west")
    async with asyncio.timeout(60), BrokerSource(log, feed, address) as source:
        await source.begin(BEGIN, {})
        yield source


async def test_a_silent_broker_whose_origin_hangs_goes_on_with_what_comes() -> None:
    """Over a real connection, to a server that takes it and says nothing."""

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(be_silent) as port:
        feed = SettledFeed(SourceAddress(f"http://127.0.0.1:{port}", "token"))
        async with source_of(ListedLog([message(1)], [], [], [message(2)]), feed) as source:
            assert (await receive(source, BEGIN, times=4))[0] == [1, 2]


async def test_a_late_answer_of_the_origin_counts_where_the_broker_has_not_gone_on() -> None:
    feed = SlowFeed()
    async with source_of(ListedLog([message(1)], [], [message(2)], []), feed) as source:
        places, here = await receive(source, BEGIN, times=3)
        assert (places, feed.questions) == ([1, 2], [1])
        feed.may_answer.set()  # with 2, which is here already
        places, here = await receive(source, here, times=1)
        assert (places, feed.questions) == ([], [1])
        assert (await receive(source, here, times=1))[0] == [3]
        assert feed.questions == [1, 2]


async def test_an_origin_that_refuses_changes_nothing_while_the_broker_is_there() -> None:
    feed = SlowFeed()
    feed.refuses = True
    async with source_of(ListedLog([message(1)], [], [message(2)]), feed) as source:
        assert (await receive(source, BEGIN, times=3))[0] == [1, 2]


async def test_nothing_is_asked_any_more_when_it_ends_or_begins_anew() -> None:
    feed = SlowFeed()
    async with source_of(ListedLog([message(1)], [], [message(1)], []), feed) as source:
        await receive(source, BEGIN, times=2)
        assert is_asking(source)
        await source.begin(BEGIN, {})
        assert not is_asking(source)
        await receive(source, BEGIN, times=2)
        assert is_asking(source)
    assert not is_asking(source)


async def test_an_origin_that_does_not_say_its_epoch_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "EPOCH_SECONDS", 0.02)
    monkeypatch.setattr(brokers, "EPOCH_REST_SECONDS", 0.0)
    feed, calls = SlowFeed(), 0

    async def end() -> Cursor:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()
        if calls == 2:
            raise SourceAway("no route")
        return BEGIN

    monkeypatch.setattr(feed, "end", end)
    async with source_of(ListedLog(*([message(n)] for n in range(1, 6))), feed) as source:
        assert (await receive(source, BEGIN, times=5))[0] == [1, 2, 3, 4, 5]
    assert calls == 3  # then it is known
