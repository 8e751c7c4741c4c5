"""Rows that are kept for conditions are those that a look at all rows finds."""

from __future__ import annotations

import random
import threading
from typing import Any, cast

import numpy as np
import pytest

from fedstac.columns import row_cache
from fedstac.columns import selection as selection_module
from fedstac.columns import table as tables_module
from fedstac.columns.dictionaries import Dictionaries
from fedstac.columns.plan import Plan, plan
from fedstac.columns.row_cache import RowCache, Rows
from fedstac.columns.selection import Evaluation, Selection
from fedstac.columns.table import Array, FacetTable, Mask, Numbers
from fedstac.db.columns import PLACES, Term
from tests.columns import tables

COLLECTIONS = {"CMIP6": 1, "free": 2}
NAMES = {1: "x:kind", 2: "x:kind", 3: "x:tag", 4: "x:tag", 5: "x:tag"}


def drawn(draw: random.Random, numbers: list[int], *, newest: int = 5) -> Array:
    """Return rows of two collections, with codes up to the newest one. The kind 2 and the tag 5 are rare."""
    rows = tables.rows(numbers, draw)
    rows["collection"] = [draw.choice(list(COLLECTIONS.values())) for _ in numbers]
    codes = np.zeros((len(numbers), PLACES), np.int32)
    for row in range(len(numbers)):
        codes[row, 0] = draw.choice((0,) + (1,) * 40 + (2,))
        codes[row, 1] = draw.choice((0, *(3, 4) * 20, newest))
    rows["codes"]["code"] = codes
    return rows


def dictionaries() -> Dictionaries:
    made = Dictionaries()
    made.add_terms(Term(code, name, f'"v{code}"') for code, name in NAMES.items())
    made.place_collections(
        COLLECTIONS, [(name, property, at) for name in COLLECTIONS for at, property in enumerate(("x:kind", "x:tag"))]
    )
    return made


def equal(code: int) -> dict[str, Any]:
    return {"op": "=", "args": [{"property": NAMES[code]}, f"v{code}"]}


def searches() -> list[Plan]:
    """Return searches whose conditions are few, and which have all of them in common with others."""
    parts = [equal(1), equal(2), equal(4), equal(5), {"op": "not", "args": [equal(3)]},
             {"op": "or", "args": [equal(2), equal(5)]},
             {"op": "between", "args": [{"property": "updated"}, {"timestamp": "1999-12-31T23:59:59.999995Z"},
                                        {"timestamp": "2000-01-01T00:00:00.000010Z"}]}]  # fmt: skip
    made: list[dict[str, Any]] = [{}, {"retracted": "exclude"}, {"retracted": "only"}, {"collections": ["free"]}]
    made += [{"filter": part} for part in parts]
    made += [{"retracted": "exclude", "filter": {"op": "and", "args": [one, other]}}
             for one in parts for other in parts if one is not other]  # fmt: skip
    made += [{"collections": ["CMIP6"], "filter": part, "datetime": "../2000-01-01T00:00:00.000004Z"} for part in parts]
    return [plan(each) for each in made]


async def found(
    searched: Plan, table: FacetTable, names: Dictionaries, cache: RowCache | None
) -> tuple[list[int], list[int]]:
    """Return which numbers a search has, and which have to be asked."""
    verdicts = await names.verdicts(cast(Any, None), searched.leaves)
    evaluation = Evaluation(table, names, verdicts, {}, searched.collections, cache)
    selection: Selection = evaluation.select(searched)
    effort = evaluation.effort(searched)
    assert selection.count <= effort.most_found or not effort.looks
    return selection.hits.tolist(), selection.doubtful.tolist()


@pytest.fixture(params=[1, 4, 64, 10**9], ids=lambda few: f"few{few}")
def kinds_of_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Keep bits for all conditions, numbers for some or all of them; look at rows in many pieces."""
    monkeypatch.setattr(row_cache, "FEW", request.param)
    monkeypatch.setattr(selection_module, "PIECE", 64)
    monkeypatch.setattr(selection_module, "SMALL", 8)
    return int(request.param)


@pytest.mark.parametrize("seed", range(3))
async def test_searches_find_the_same_from_rows_that_are_kept_whatever_changes(
    seed: int, kinds_of_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables_module, "MOST_NUMBERS", 40)
    draw, table, names = random.Random(seed), FacetTable(), dictionaries()
    table.apply(drawn(draw, list(range(300))))
    cache, all_searches = RowCache(table), searches()
    came_from_kept = 0
    for step in range(60):
        for _ in range(draw.choice((0, 1, 3))):
            low = draw.choice((0, table.length - 5))
            numbers = draw.sample(range(low, table.length + 3), 5)
            newest = 6 if step == 30 else 5  # a code that the dictionary lacks: its rows are asked themselves
            table.apply(drawn(draw, numbers, newest=newest))
        for searched in draw.sample(all_searches, 8):
            before = [cache.peek(key) for key in tuple(cache._entries)]
            assert await found(searched, table, names, cache) == await found(searched, table, names, None)
            came_from_kept += len(before) > 0
            assert cache.bytes == sum(entry.bytes for entry in cache._entries.values())
    assert came_from_kept > 300
    assert {entry.rows.bits is None for entry in cache._entries.values()} <= (
        {True, False} if kinds_of_rows < 10**9 else {False}
    )


async def test_rows_are_kept_for_what_is_asked_for_twice() -> None:
    draw, table, names = random.Random(1), FacetTable(), dictionaries()
    table.apply(drawn(draw, list(range(300))))
    cache, searched = RowCache(table), plan({"filter": equal(1)})
    for wanted in (0, 2, 2):  # the second: what searches may find, and the condition
        await found(searched, table, names, cache)
        assert len(cache._entries) == wanted
    cache.clear()
    assert (len(cache._entries), cache.bytes) == (0, 0)


async def test_rows_that_are_kept_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, table, names = random.Random(1), FacetTable(), dictionaries()
    table.apply(drawn(draw, list(range(300))))
    cache = RowCache(table)
    monkeypatch.setattr(row_cache, "LEAST_BYTES", 2_000)
    monkeypatch.setattr(row_cache, "BYTES_OF_ROW", 0)
    most = 0
    for _ in range(3):
        for searched in searches():
            assert await found(searched, table, names, cache) == await found(searched, table, names, None)
            most = max(most, cache.bytes)
    assert 0 < most <= 2_000
    monkeypatch.setattr(row_cache, "MOST_ASKED", 3)
    for number in range(20):
        assert not cache.wants(number)
    assert len(cache._hashes) < 30


def test_threads_that_take_up_the_same_changes_at_once_have_the_same_rows() -> None:
    draw, table = random.Random(3), FacetTable()
    table.apply(drawn(draw, list(range(20_000))))
    cache = RowCache(table)

    def meet(numbers: Numbers) -> Mask:
        is_first: Mask = table.place(0)[numbers] == 1
        return is_first

    every = np.arange(table.length)
    cache.keep("kind", Rows.of(meet(every)))
    for _ in range(20):
        numbers = draw.sample(range(table.length + 50), 300)
        table.apply(drawn(draw, numbers))
        wanted, wrong = np.zeros(table.length, np.bool_), list[Rows | None]()
        wanted[:] = meet(np.arange(table.length))

        def read(wanted: Array = wanted, wrong: list[Rows | None] = wrong) -> None:
            rows = cache.find("kind", meet)
            if rows is None or not np.array_equal(rows.mask, wanted):
                wrong.append(rows)

        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
