"""Fair shares: who has had least comes first, and whoever asks for too much is told when to come again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fedstac.domain.errors import TooManyRequests, Unavailable
from fedstac.runtime import shares
from fedstac.runtime.shares import FairShare


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def worker(share: FairShare, done: list[str], clock: Clock) -> Callable[[str, float], asyncio.Task[None]]:
    async def work(client: str, seconds: float) -> None:
        async with share.place(client):
            await asyncio.sleep(0)
            clock.now += seconds
            done.append(client)

    return lambda client, seconds: asyncio.create_task(work(client, seconds))


async def test_a_client_with_much_waits_for_one_with_little() -> None:
    clock, done = Clock(), list[str]()
    start = worker(FairShare(1, clock), done, clock)
    tasks = [start("greedy", 1.0) for _ in range(15)] + [start("modest", 0.1) for _ in range(5)]
    await asyncio.gather(*tasks)
    assert done[:6] == ["greedy", *["modest"] * 5]


async def test_equal_clients_take_turns_and_what_was_long_ago_counts_little() -> None:
    clock, done = Clock(), list[str]()
    start = worker(FairShare(1, clock), done, clock)
    await asyncio.gather(*(start("a", 1.0) for _ in range(3)))
    clock.now += 600
    await asyncio.gather(*(start(client, 1.0) for client in "bbbaaa"))
    assert done[3:] in (list("bababa"), list("babaab"), list("baabab"))


async def test_one_client_waits_for_a_few_places_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "WAITING_PER_CLIENT", 3)
    clock, done = Clock(), list[str]()
    share = FairShare(1, clock)
    start = worker(share, done, clock)
    async with share.place("greedy"):
        tasks = [start("greedy", 1.0) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests) as refusal:
            await start("greedy", 1.0)
        other = start("other", 1.0)
        await asyncio.sleep(0)
        clock.now += 1
    await asyncio.gather(*tasks, other)
    assert refusal.value.retry_after
    assert done[0] == "other"


async def test_who_waits_too_long_or_leaves_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "WAIT_SECONDS", 0.01)
    clock, done = Clock(), list[str]()
    share = FairShare(1, clock)
    start = worker(share, done, clock)
    async with share.place("a"):
        with pytest.raises(Unavailable) as refusal:
            await start("b", 1.0)
        monkeypatch.setattr(shares, "WAIT_SECONDS", 60)
        leaving = start("b", 1.0)
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait((leaving,))
    assert refusal.value.retry_after
    await start("c", 1.0)
    assert done == ["c"]


async def test_a_turn_that_comes_between_the_end_of_a_wait_and_its_leaving_goes_to_the_next() -> None:
    clock, done = Clock(), list[str]()
    share = FairShare(1, clock)
    start = worker(share, done, clock)
    async with share.place("a"):
        leaving, other = start("b", 1.0), start("c", 1.0)
        await asyncio.sleep(0)
        leaving.cancel()
    results = await asyncio.gather(leaving, other, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert done == ["c"]


async def test_a_place_given_to_somebody_who_leaves_at_that_moment_is_given_on() -> None:
    clock, done = Clock(), list[str]()
    share = FairShare(1, clock)
    start = worker(share, done, clock)
    async with share.place("a"):
        leaving, other = start("b", 1.0), start("c", 1.0)
        await asyncio.sleep(0)
    leaving.cancel()  # it has the place, and has not run since
    await asyncio.gather(leaving, other, return_exceptions=True)
    assert done == ["c"]
