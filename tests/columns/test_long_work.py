"""Long work is done in threads, which give up when nobody waits for it any more."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import asyncpg
import pytest

from fedstac.columns import counts
from fedstac.columns.counts import Wish
from fedstac.columns.dictionaries import Dictionaries
from fedstac.columns.memory import FacetColumns, PageQuestion
from fedstac.columns.order import Order, OrderKey, Pager, StartOrder
from fedstac.columns.plan import plan
from fedstac.columns.selection import Evaluation
from fedstac.columns.table import FacetTable
from fedstac.db import aggregation
from fedstac.db.columns import Term
from fedstac.domain import aggregating
from fedstac.domain.aggregating import Counts
from fedstac.runtime import budget
from fedstac.runtime.budget import Abandoned
from fedstac.runtime.capacity import Threads
from tests.columns import tables

T = TypeVar("T")
FACET = "x:facet"
MANY = 3_000  # values of a facet, which few rows have


class CountingThreads(Threads):
    """Counts what is done in its threads."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    async def run(self, work: Callable[[], T]) -> T:
        self.runs += 1
        return await super().run(work)


@pytest.fixture
async def threads() -> AsyncIterator[CountingThreads]:
    threads = CountingThreads()
    yield threads
    threads.close()


async def test_facets_of_many_values_are_counted_in_a_thread(
    dsn: str, conn: asyncpg.Connection[asyncpg.Record], threads: CountingThreads
) -> None:
    columns = FacetColumns(dsn, "fedstac test")
    try:
        await columns.catch_up()
        columns.dictionaries.add_terms([Term(n, FACET, f'"{n}"') for n in range(1, MANY)])
        for name, runs in (("x:other", 0), (FACET, 1)):
            wish = Wish((), (name,), multi_select=False)

            def count(*given: Any, wish: Wish = wish) -> Counts | None:
                return counts.count(wish, *given)

            answer = await columns.count(conn, threads, PageQuestion({}), count, key=name, properties=[name])
            assert answer is not None
            assert threads.runs == runs
    finally:
        await columns.close()


async def test_many_counts_of_postgresql_are_put_together_in_a_thread(
    conn: asyncpg.Connection[asyncpg.Record], threads: CountingThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = await aggregation.count(conn, threads, {}, {}, [])
    assert threads.runs == 0
    monkeypatch.setattr(aggregation, "INLINE", 0)
    assert await aggregation.count(conn, threads, {}, {}, []) == few
    assert threads.runs == 1


def end_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the request end before a call of `checkpoint`."""
    calls = iter(range(call))

    def checkpoint() -> None:
        if next(calls, None) is None:
            raise Abandoned

    monkeypatch.setattr(budget, "checkpoint", checkpoint)


async def test_work_over_columns_ends_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    table, dictionaries = FacetTable(), Dictionaries()
    table.apply(tables.rows(range(100), random.Random(4)))
    dictionaries.place_collections({"one": 1}, [])
    searched = plan({"filter": {"op": "and", "args": [{"op": "isNull", "args": [{"property": FACET}]}] * 3}})
    evaluation = Evaluation(table, dictionaries, {}, {}, None)
    selection = evaluation.select(plan({}))
    pager = Pager(table, evaluation, StartOrder(table), Order((OrderKey("updated", True), OrderKey("datetime", True))))
    wish = Wish((), ("x:a", "x:b"), multi_select=False)
    aggregations = aggregating.every(frozenset(), {})[:2]
    for work in (
        lambda: evaluation.select(searched),
        lambda: pager.page(selection, 5),
        lambda: counts.count(wish, evaluation, plan({}), selection),
        lambda: aggregating.answer(aggregations, Counts(), before_each=budget.checkpoint),
    ):
        work()
        with monkeypatch.context() as patched:
            end_at(1, patched)
            with pytest.raises(Abandoned):
                work()
