"""Pages out of columns, compared with a sort of everything in Python."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest

from fedstac.columns import order as orders
from fedstac.columns.dictionaries import Dictionaries
from fedstac.columns.order import Order, OrderKey, Pager, StartOrder
from fedstac.columns.plan import plan
from fedstac.columns.selection import Evaluation
from fedstac.columns.table import FacetTable, sent_rows
from fedstac.db.search import Anchor
from tests.columns import tables

RowsByNumber = dict[int, dict[str, int]]


def in_order(rows_by_number: RowsByNumber, keys: tuple[OrderKey, ...]) -> list[int]:
    """Return the numbers of what is shown, sorted in Python."""

    def sort_key(row: dict[str, int]) -> list[int]:
        names = [("starts" if key.name == "datetime" else key.name, key.descending) for key in keys]
        return [(-1 if down else 1) * row[name] for name, down in (*names, ("n", keys[-1].descending))]

    return [row["n"] for row in sorted((row for row in rows_by_number.values() if row["shown"]), key=sort_key)]


@pytest.mark.parametrize("names", [("datetime",), ("updated",), ("datetime", "updated")])
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("many", [0, 1_000_000], ids=["walked", "sorted"])
def test_pages_between_changes_are_those_of_a_sort(
    names: tuple[str, ...], descending: bool, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "MANY", many or 60)
    monkeypatch.setattr(orders, "STEP", 8)
    rng = random.Random(5)
    table, dictionaries, rows_by_number = FacetTable(), Dictionaries(), RowsByNumber()
    dictionaries.place_collections({"one": 1}, [])
    starts = StartOrder(table)
    keys = tuple(OrderKey(name, descending) for name in names)
    for _ in range(40):
        numbers = sorted({rng.randrange(600) for _ in range(rng.choice((1, 5, 40)))})
        rows = tables.rows(numbers, rng)
        if rng.random() < 0.5:  # only what is shown is another
            rows["starts"] = [rows_by_number.get(n, {}).get("starts", 0) for n in numbers]
        table.apply(rows)
        rows_by_number |= {row["n"]: row for row in map(tables.values, rows)}
        wanted = in_order(rows_by_number, keys)
        evaluation = Evaluation(table, dictionaries, {}, {}, None)
        pager = Pager(table, evaluation, starts, Order(keys))
        selection = evaluation.select(plan({}))
        assert selection.count == len(wanted)
        anchor, at, count = None, 0, rng.choice((1, 7, 50))
        for _ in range(5):
            page = pager.page(selection, count, anchor)
            assert page.tolist() == wanted[at : at + count]
            if not len(page):
                break
            at += len(page)
            place = pager.places(page)[-1]
            anchor = Anchor(place)
            for includes in (0, 1):
                before = pager.page(selection, count, Anchor(place, is_before=True, includes=bool(includes)))
                assert before.tolist() == wanted[max(at - 1 + includes - count, 0) : at - 1 + includes][::-1]
            including = pager.page(selection, count, Anchor(place, includes=True))
            assert including.tolist() == wanted[at - 1 : at - 1 + count]


@pytest.mark.parametrize("descending", [True, False])
def test_a_walk_within_an_interval_finds_what_a_sort_does(descending: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "MANY", 10)
    monkeypatch.setattr(orders, "STEP", 8)
    draw = random.Random(7)
    table, dictionaries = FacetTable(), Dictionaries()
    dictionaries.place_collections({"one": 1}, [])
    starts, keys = StartOrder(table), (OrderKey("datetime", descending),)
    timestamp = {"op": "<", "args": [{"property": "datetime"}, {"timestamp": "2000-01-01T00:00:00.000008Z"}]}
    searches: list[tuple[dict[str, Any], int | None, int]] = [
        ({"datetime": "1999-12-31T23:59:59.999990Z/2000-01-01T00:00:00.000005Z"}, -10, 5),
        ({"datetime": "../2000-01-01T00:00:00.000005Z"}, None, 5),
        ({"datetime": "2000-01-01T00:00:00Z", "filter": timestamp}, 0, 0),
        ({"filter": timestamp}, None, 7),
    ]
    for _ in range(20):
        table.apply(tables.rows(draw.sample(range(400), 40), draw))
        for conditions, first_end, last_start in searches:
            searched = plan(conditions)
            assert searched.starts[1] >= last_start
            rows = {
                n: {"n": n, "starts": int(table.column("starts")[n]), "shown": 1}
                for n in range(table.length)
                if table.column("shown")[n] and table.column("starts")[n] <= last_start
                and (first_end is None or table.column("ends")[n] >= first_end)
            }  # fmt: skip
            evaluation = Evaluation(table, dictionaries, {}, {}, None)
            pager = Pager(table, evaluation, starts, Order(keys))
            wanted, at, anchor = in_order(rows, keys), 0, None
            selection = evaluation.select(searched)
            while len(page := pager.page(selection, 7, anchor, within=searched.starts)):
                assert page.tolist() == wanted[at : at + 7]
                at += len(page)
                anchor = Anchor(pager.places(page)[-1])
            assert at == len(wanted)


def test_rows_that_are_sent_are_read_as_they_are() -> None:
    rows = tables.rows(range(5000), random.Random(1))
    table = FacetTable()
    table.apply(sent_rows(rows.tobytes()))
    assert table.length == 5000
    assert np.array_equal(table.column("starts"), rows["starts"])
    assert np.array_equal(table.column("shown"), rows["shown"])


def test_a_table_grows_and_keeps_what_it_has() -> None:
    rng = random.Random(2)
    table, rows_by_number = FacetTable(), RowsByNumber()
    for numbers in (range(10), range(5, 4100), range(4090, 20_000, 7)):
        rows = tables.rows(numbers, rng)
        table.apply(rows)
        rows_by_number |= {row["n"]: row for row in map(tables.values, rows)}
    assert table.length == 4090 + (20_000 - 4090 - 1) // 7 * 7 + 1
    for name in ("shown", "starts", "updated"):
        column = table.column(name).tolist()
        assert [column[n] for n in rows_by_number] == [row[name] for row in rows_by_number.values()]
    assert table.column("shown").sum() == sum(row["shown"] for row in rows_by_number.values())


async def test_readers_in_threads_see_all_of_a_change_or_nothing() -> None:
    import asyncio

    from fedstac.columns.gate import Gate

    gate, values, torn, stop = Gate(), [0, 0], [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            with gate.reading():
                one = values[0]
                stop.wait(0.0005)
                if one != values[1]:
                    torn.append(one)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for n in range(1, 40):
            async with asyncio.timeout(30), gate.writing():
                values[0] = n
                stop.wait(0.001)
                values[1] = n
    finally:
        stop.set()
        for reader in readers:
            await asyncio.to_thread(reader.join, 30)
    assert values == [39, 39]
    assert not torn
