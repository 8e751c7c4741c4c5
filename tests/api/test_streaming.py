"""An answer that is made while it is sent, and clients that do not take it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from fedstac.api.http import streaming
from fedstac.api.http.streaming import StreamedAnswer
from fedstac.runtime.budget import Lane
from fedstac.runtime.capacity import Memory
from tests.support.waiting import StoppedClock

SIZE = 1000


async def never() -> Any:
    await asyncio.Event().wait()


async def answer_with(
    pieces: AsyncGenerator[bytes, None], receive: Any, send: Any, *, patience: float, method: str = "GET"
) -> Memory:
    """Send an answer that has memory of its own; it has to give that back."""
    memory = Memory(1 << 20)
    share = memory.share(Lane.ANONYMOUS)
    share.take(SIZE)
    answer = StreamedAnswer(pieces, share=share, patience=patience, media_type="application/json", headers=None)
    try:
        await answer({"method": method}, receive, send)
    finally:
        assert memory.usage()[Lane.ANONYMOUS] == 0
    return memory


async def test_pieces_arrive_in_parts() -> None:
    sent: list[Any] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"a" * (streaming.PART + 1)
        yield b"b"

    async def send(message: Any) -> None:
        sent.append(message)

    await answer_with(pieces(), never, send, patience=60)
    assert [len(message["body"]) for message in sent[1:]] == [streaming.PART, 1, 1, 0]
    assert [message["more_body"] for message in sent[1:]] == [True, True, True, False]


async def test_nothing_is_made_for_who_asks_for_the_head_alone() -> None:
    sent: list[Any] = []
    made = 0

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal made
        made += 1
        yield b"a"

    async def send(message: Any) -> None:
        sent.append(message)

    await answer_with(pieces(), never, send, patience=60, method="HEAD")
    assert made == 0
    assert [message.get("body") for message in sent] == [None, b""]


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    made = 0

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal made
        while True:
            made += 1
            yield b"a"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never()

    with pytest.raises(ClientDisconnect):
        await answer_with(pieces(), never, send, patience=0.01)
    assert made == 1  # nothing is made ahead


async def test_a_client_that_takes_a_little_now_and_then_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part comes within the pause that is allowed, and all of them too slowly."""
    clock, sent = StoppedClock(), 0

    async def pieces() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"a"

    async def send(message: Any) -> None:
        nonlocal sent
        sent += 1
        clock.advance(0.4)

    monkeypatch.setattr(streaming, "time", clock)
    with pytest.raises(ClientDisconnect):
        await answer_with(pieces(), never, send, patience=10)
    assert 20 < sent < 30


async def test_a_client_that_leaves_ends_the_work() -> None:
    left, ended = asyncio.Event(), False

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal ended
        try:
            yield b"a"
            left.set()
            await never()
        finally:
            ended = True

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    await answer_with(pieces(), receive, send, patience=60)
    assert ended
