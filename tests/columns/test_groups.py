"""Searches that look at groups of rows find what a look at each row finds, whatever is written meanwhile."""

from __future__ import annotations

import random
from typing import Any, TypeAlias, cast

import numpy as np
import pytest

from fedstac.columns import groups as module
from fedstac.columns import order as orders
from fedstac.columns import selection as selections
from fedstac.columns.dictionaries import Dictionaries
from fedstac.columns.order import Order, OrderKey, Pager, StartOrder
from fedstac.columns.plan import Plan, plan
from fedstac.columns.selection import Evaluation, GroupSelection, Selection
from fedstac.columns.table import GROUP, Array, FacetTable
from fedstac.db.columns import PLACES, Term
from fedstac.db.search import Anchor
from fedstac.domain import filters
from fedstac.domain.geometry import Rectangle
from tests.columns import tables

Json: TypeAlias = dict[str, Any]
COLLECTIONS = {"CMIP6": 1, "free": 2}
FOOTPRINTS = {1: [Rectangle(-180, -90, 180, 90)], 2: [Rectangle(0, 0, 10, 10)], 3: [Rectangle(170, 0, 180, 5)], 4: []}


def drawn(draw: random.Random, numbers: list[int], starts: int = 6) -> Array:
    """Return rows of few groups; their other columns are as different as can be."""
    rows = tables.rows(numbers, draw, starts=starts)
    rows["collection"] = [draw.choice(list(COLLECTIONS.values())) for _ in numbers]
    rows["footprint"] = [draw.randrange(5) for _ in numbers]
    rows["updated"] = [draw.randrange(1_000) for _ in numbers]
    codes = np.zeros((len(numbers), PLACES), np.int32)
    codes[:, 0] = [draw.randrange(3) for _ in numbers]
    rows["codes"]["code"] = codes
    return rows


def dictionaries() -> Dictionaries:
    made = Dictionaries()
    made.add_terms([Term(1, "x:kind", '"one"'), Term(2, "x:kind", '"two"')])
    made.add_footprints(list(FOOTPRINTS), FOOTPRINTS)
    made.place_collections(COLLECTIONS, [(name, "x:kind", 0) for name in COLLECTIONS])
    return made


def drawn_search(draw: random.Random) -> tuple[Plan, bool]:
    """Return a search, and whether all of its conditions are about groups."""
    conditions: Json = {"retracted": draw.choice(("exclude", "only"))} if draw.random() < 0.7 else {}
    if draw.random() < 0.6:
        west, south = draw.randint(-180, 170), draw.randint(-90, 80)
        conditions["intersects"] = filters.box([west, south, west + draw.randint(1, 40), south + 10])
    if draw.random() < 0.6:
        second = draw.randint(0, 9)
        conditions["datetime"] = f"1999-12-31T23:59:59.99999{second}Z/2000-01-01T00:00:00.00000{9 - second}Z"
    if draw.random() < 0.3:
        conditions["collections"] = draw.choice((["free"], ["CMIP6", "free"], ["absent"]))
    moment = {"timestamp": f"2000-01-01T00:00:00.00000{draw.randint(0, 3)}Z"}
    of_groups = [
        {"op": "<", "args": [{"property": "end_datetime"}, moment]},
        {"op": "not", "args": [{"op": "<", "args": [{"property": "datetime"}, moment]}]},
        {"op": "or", "args": [{"op": "=", "args": [{"property": "latest"}, True]},
                              {"op": "=", "args": [{"property": "collection"}, "free"]}]},
    ]  # fmt: skip
    of_rows = [
        {"op": "=", "args": [{"property": "x:kind"}, "one"]},
        {"op": ">", "args": [{"property": "updated"}, {"timestamp": "2000-01-01T00:00:00.0005Z"}]},
    ]
    parts = [part for part in of_groups if draw.random() < 0.3]
    are_of_groups = draw.random() < 0.5
    if not are_of_groups:
        parts.append(draw.choice(of_rows))
    if parts:
        conditions["filter"] = {"op": "and", "args": parts} if len(parts) > 1 else parts[0]
    return plan(conditions), are_of_groups


async def select(searched: Plan, table: FacetTable, names: Dictionaries) -> tuple[Selection, Evaluation]:
    verdicts = await names.verdicts(cast(Any, None), searched.leaves)
    evaluation = Evaluation(table, names, verdicts, {}, searched.collections)
    return evaluation.select(searched), evaluation


def check_groups(table: FacetTable) -> None:
    """Check that each row is in the group that has its values, and that groups have as many rows as they say."""
    codes, groups = table.column(GROUP), table.groups
    for name in module.KEY.names or ():
        assert (groups.column(name)[codes] == table.column(name)).all()
    counts = np.bincount(codes, minlength=groups.length)
    assert (counts[1:] == groups.counts[1:]).all()


@pytest.mark.parametrize("seed", range(3))
async def test_groups_find_what_rows_find(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "STEP", 8)
    monkeypatch.setattr(selections, "PIECE", 64)
    monkeypatch.setattr(selections, "SMALL", 8)
    draw, names, by_groups, by_rows = random.Random(seed), dictionaries(), FacetTable(), FacetTable()
    by_rows.groups.are_kept = False
    starts, count_of_groups = StartOrder(by_groups), 0
    for _ in range(40):
        length = by_groups.length
        numbers = draw.sample(range(length + 60), min(length + 60, draw.choice((1, 30, 60))))
        rows = drawn(draw, numbers)
        by_groups.apply(rows)
        by_rows.apply(rows)
        check_groups(by_groups)
        for _ in range(10):
            searched, are_of_groups = drawn_search(draw)
            own, evaluation = await select(searched, by_groups, names)
            others, _ = await select(searched, by_rows, names)
            assert isinstance(own, GroupSelection) is are_of_groups
            count_of_groups += are_of_groups
            assert own.count == others.count == len(others.hits)
            assert own.hits.tolist() == others.hits.tolist()
            numbers_asked = np.array(draw.sample(range(by_groups.length), min(20, by_groups.length)))
            assert own.has(numbers_asked).tolist() == np.isin(numbers_asked, others.hits).tolist()
            order = Order((OrderKey("datetime", draw.random() < 0.5),))
            pager, anchor, found = Pager(by_groups, evaluation, starts, order), None, list[int]()
            while len(page := pager.page(own, 7, anchor, within=searched.starts)):
                found += page.tolist()
                anchor = Anchor(pager.places(page)[-1])
            moments = by_rows.column("starts")
            sign = -1 if order.keys[0].descending else 1
            assert found == sorted(others.hits.tolist(), key=lambda n: (sign * moments[n], sign * n))
    assert count_of_groups > 100


async def test_with_as_many_groups_as_rows_none_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_ROOM", 20)
    draw, names, table = random.Random(4), dictionaries(), FacetTable()
    by_rows = FacetTable()
    by_rows.groups.are_kept = False
    for _ in range(20):
        rows = drawn(draw, draw.sample(range(200), 20), starts=1_000)
        table.apply(rows)
        by_rows.apply(rows)
        searched, _ = drawn_search(draw)
        own, _ = await select(searched, table, names)
        others, _ = await select(searched, by_rows, names)
        assert own.hits.tolist() == others.hits.tolist()
    assert not table.groups.are_kept


async def test_a_group_of_which_memory_cannot_tell_leaves_it_to_the_rows() -> None:
    draw, table, names = random.Random(5), FacetTable(), dictionaries()
    table.apply(drawn(draw, list(range(100))))
    searched = plan({"intersects": {"type": "Point", "coordinates": [5, 5]}})
    evaluation = Evaluation(table, names, {}, {}, None)  # without an answer of PostgreSQL
    selection = evaluation.select(searched)
    assert not isinstance(selection, GroupSelection)
    assert len(selection.doubtful) == np.count_nonzero(table.column("shown") > 0)
