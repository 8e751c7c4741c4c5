"""Nobody can tell by the time that an answer takes whether a dataset is hidden or never was (I17).

That both do the same work is tested in tests/db/test_hidden.py; this asks the clock. The two of a pair are asked one
after the other, in an order that is drawn, so that a busy machine is as busy for both.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import Any, Final

import asyncpg
import pytest

from fedstac.db import nodes
from fedstac.demo import sample
from tests.support.nodes import Api

ITEMS = "/collections/CMIP6/items"
SEED: Final = 7
LEAST_P: Final = 0.01
QUESTIONS: Final[tuple[tuple[str, str, Any, int], ...]] = (  # of a stranger, and how they are answered
    ("GET", "", None, 404), ("GET", "?access=full", None, 404), ("OPTIONS", "", None, 404),
    ("GET", "/history", None, 404), ("PATCH", "", {}, 404), ("POST", "/retract", {"reason": "x"}, 404),
    ("STATUS", "", None, 200),
)  # fmt: skip


def p_of_ranks(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the p of Mann and Whitney's test, two-sided, by its normal approximation with a correction for ties."""
    count, other = len(ours), len(theirs)
    values = sorted([(value, True) for value in ours] + [(value, False) for value in theirs])
    place, ranks, ties = 0, 0.0, 0
    for _, group in groupby(values, key=lambda each: each[0]):
        alike = [is_ours for _, is_ours in group]
        ranks += sum(alike) * (place + (len(alike) + 1) / 2)
        place, ties = place + len(alike), ties + len(alike) ** 3 - len(alike)
    total = count + other
    mean = count * other / 2
    variance = count * other / 12 * (total + 1 - ties / (total * (total - 1)))
    statistic = ranks - count * (count + 1) / 2
    return math.erfc(abs(statistic - mean) / math.sqrt(2 * variance))


def test_the_test_of_ranks_tells_what_differs_from_what_does_not() -> None:
    chance = random.Random(SEED)
    ours, theirs = ([chance.gauss(10, 1) for _ in range(400)] for _ in range(2))
    assert p_of_ranks(ours, theirs) > LEAST_P
    assert p_of_ranks(ours, [value + 0.5 for value in theirs]) < 1e-6
    assert p_of_ranks([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == pytest.approx(1.0)


async def p_of_times(api: Api, question: tuple[str, str, Any, int], pairs: int, count: int) -> float:
    """Return how likely times as different as those about hidden datasets are, if there is no difference."""
    method, suffix, body, status = question
    items = list(sample.items(2 * count, versions=1))
    hidden, never = (tuple(str(item["id"]) for item in part) for part in (items[:count], items[count:]))
    conn = await asyncpg.connect(api.settings.dsn)
    token = await nodes.issue_token(conn, f"stranger {method} {suffix}", ["observer"])
    await conn.close()
    headers = {"Authorization": f"Bearer {token}"}

    async def seconds(id: str) -> float:
        began = time.perf_counter()
        if method == "STATUS":
            answer = await api.anyone.post("/datasets/status", json=[id])
        else:
            path, content = f"{ITEMS}/{id}{suffix}", {"json": body} if body is not None else {}
            answer = await api.anyone.request(method, path, headers=headers, **content)
        assert answer.status_code == status, answer.text
        return time.perf_counter() - began

    chance = random.Random(SEED)
    times: dict[bool, list[float]] = {True: [], False: []}
    for n in range(pairs + 20):
        pair = [(True, hidden[n % count]), (False, never[n % count])]
        chance.shuffle(pair)
        for is_hidden, id in pair:
            taken = await seconds(id)
            if n >= 20:  # the first ones warm up what is remembered
                times[is_hidden].append(taken)
    return p_of_ranks(times[True], times[False])


async def mark(api: Api, id: str) -> None:
    assert (await api.admin.delete(f"{ITEMS}/{id}", headers={"Prefer": "wait=60"})).status_code == 200


async def make_private(api: Api, id: str) -> None:
    headers = {"Content-Type": "application/merge-patch+json", "Prefer": "wait=60"}
    body = {"properties": {"fedstac:access": "private"}}
    assert (await api.admin.patch(f"{ITEMS}/{id}", json=body, headers=headers)).status_code == 200


async def hide(api: Api, count: int, hide_one: Callable[[Api, str], Awaitable[None]]) -> None:
    items = list(sample.items(count, versions=1))
    assert (await api.admin.post(ITEMS, json={"type": "FeatureCollection", "features": items})).status_code == 200
    for item in items:
        await hide_one(api, str(item["id"]))


async def is_told_by_the_time(api: Api, question: tuple[str, str, Any, int], pairs: int, count: int) -> bool:
    """Tell whether times differ in three rounds of three: one round in a hundred differs by chance."""
    for n in range(3):
        p = await p_of_times(api, question, pairs, count)
        print(f"{question[0]} {question[1]}: seed {SEED}, round {n}, {pairs} pairs, p = {p:.3f}")
        if p > LEAST_P:
            return False
    return True


HIDING = pytest.mark.parametrize("hide_one", [mark, make_private])


@pytest.mark.long
@HIDING
async def test_a_stranger_cannot_tell_a_hidden_dataset_by_the_time(
    api: Api, hide_one: Callable[[Api, str], Awaitable[None]]
) -> None:
    await hide(api, 10, hide_one)
    assert [each for each in QUESTIONS if await is_told_by_the_time(api, each, 40, 10)] == []


@HIDING
@pytest.mark.soak
async def test_a_stranger_cannot_tell_a_hidden_dataset_by_the_times_of_two_thousand_pairs(
    api: Api, hide_one: Callable[[Api, str], Awaitable[None]]
) -> None:
    await hide(api, 100, hide_one)
    assert [each for each in QUESTIONS if await is_told_by_the_time(api, each, 2000, 100)] == []
