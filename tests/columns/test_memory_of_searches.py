"""What one search takes, whatever it names."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any, cast

import numpy as np
import pytest

from fedstac.columns.dictionaries import Dictionaries
from fedstac.columns.order import Order, OrderKey, Pager, StartOrder
from fedstac.columns.plan import plan
from fedstac.columns.selection import Evaluation
from fedstac.columns.table import UNCODED, FacetTable
from fedstac.db.columns import Term
from fedstac.db.search import Anchor
from tests.columns import tables

ROWS = 40_000
MOST_BYTES_OF_ROW = 30  # masks, and the codes of two properties

MOST_BYTES_OF_SORTED_ROW = 80  # its number, and one key while it is made


def catalogue(names: int) -> tuple[FacetTable, Dictionaries]:
    """Return rows of two collections; in the first one, properties have places, in the second one other places."""
    table, dictionaries = FacetTable(), Dictionaries()
    rows = tables.rows(range(ROWS), random.Random(3))
    rows["collection"] = 1 + rows["n"] % 2
    rows["codes"]["code"] = 1
    table.apply(rows)
    dictionaries.add_terms([Term(1, f"x:p{n}", '"one"') for n in range(names)])
    slots = [("one", f"x:p{n}", n) for n in range(names)] + [("two", f"x:p{n}", names - 1 - n) for n in range(names)]
    dictionaries.place_collections({"one": 1, "two": 2}, slots)
    return table, dictionaries


@pytest.mark.parametrize("prefix", ["x:p", "x:made_up_"])
async def test_a_search_on_many_properties_takes_little_memory(prefix: str) -> None:
    table, dictionaries = catalogue(20)
    parts = [{"op": "=", "args": [{"property": f"{prefix}{n}"}, "none"]} for n in range(20 if prefix == "x:p" else 190)]
    searched = plan({"filter": {"op": "or", "args": parts}})
    verdicts = await dictionaries.verdicts(cast(Any, None), searched.leaves)
    tracemalloc.start()
    try:
        selection = Evaluation(table, dictionaries, verdicts, {}, None).select(searched)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert selection.count == 0
    assert not len(selection.doubtful)
    assert most < ROWS * MOST_BYTES_OF_ROW, most


def test_a_page_by_many_properties_takes_little_memory() -> None:
    table, dictionaries = catalogue(20)
    keys = tuple(OrderKey(f"x:p{n}", False, np.arange(3)) for n in range(10))
    evaluation = Evaluation(table, dictionaries, {}, {}, None)
    selection = evaluation.select(plan({}))
    pager = Pager(table, evaluation, StartOrder(table), Order(keys))
    for anchor in (None, Anchor((1,) * 10 + (500,)), Anchor((1,) * 10 + (ROWS,), is_before=True)):
        tracemalloc.start()
        try:
            page = pager.page(selection, 10, anchor)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(page) == 10
        assert most < ROWS * MOST_BYTES_OF_SORTED_ROW, most


async def test_rows_whose_codes_are_lost_are_doubtful_and_those_without_a_property_are_not() -> None:
    table, dictionaries = catalogue(1)
    shown = int((table.column("shown") > 0).sum())
    is_none = {"op": "=", "args": [{"property": "x:lost"}, "none"]}
    searched = plan({"filter": {"op": "or", "args": [is_none, {"op": "not", "args": [is_none]}]}})
    for slots, doubtful in (([], 0), ([("one", "x:lost", -1), ("two", "x:lost", -1)], shown)):
        dictionaries.place_collections({"one": 1, "two": 2}, slots)
        verdicts = await dictionaries.verdicts(cast(Any, None), searched.leaves)
        evaluation = Evaluation(table, dictionaries, verdicts, {}, None)
        selection = evaluation.select(searched)
        assert (selection.count, len(selection.doubtful)) == (0, doubtful)
        assert set(evaluation.codes("x:lost")[0].tolist()) == {UNCODED if doubtful else 0}
