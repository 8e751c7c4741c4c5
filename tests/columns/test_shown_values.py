"""Values that are kept by what changes are those that a look at all rows finds."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from fedstac.columns import table as tables_module
from fedstac.columns.dictionaries import Dictionaries
from fedstac.columns.shown_values import ShownValues
from fedstac.columns.table import Array, FacetTable
from fedstac.db.columns import PLACES, Term
from fedstac.domain import aggregating
from tests.columns import tables

MOST = 5
COLLECTIONS = {"CMIP6": 1, "free": 2}


def drawn(draw: random.Random, numbers: list[int]) -> Array:
    """Return rows of two collections; of the third place there are more values than are counted."""
    rows = tables.rows(numbers, draw)
    rows["collection"] = [draw.choice(list(COLLECTIONS.values())) for _ in numbers]
    codes = np.zeros((len(numbers), PLACES), np.int32)
    for row in range(len(numbers)):
        codes[row, :3] = draw.choice((0, 1, 2)), draw.choice((-1, 0, 3, 4, 5)), draw.randrange(6, 30)
    rows["codes"]["code"] = codes
    return rows


def dictionaries() -> Dictionaries:
    made = Dictionaries()
    names = {1: "kind", 2: "kind", 3: "tag", 4: "tag", 5: "tag", **dict.fromkeys(range(6, 30), "many")}
    made.add_terms(Term(code, name, f'"v{code}"') for code, name in names.items())
    made.place_collections(COLLECTIONS, [
        (collection, name, place) for collection in COLLECTIONS for place, name in enumerate(("kind", "tag", "many"))
    ])  # fmt: skip
    return made


def values_by_rows(table: FacetTable, names: Dictionaries) -> Mapping[str, Mapping[str, list[str]]]:
    """Return the values of the rows that are published, by a plain loop."""
    found: dict[str, dict[str, set[int]]] = {}
    for row in range(table.length):
        if table.column("shown")[row] & tables_module.PUBLISHED:
            [name] = [name for name, key in COLLECTIONS.items() if key == table.column("collection")[row]]
            for place, property in enumerate(("kind", "tag", "many")):
                if (code := int(table.place(place)[row])) > 0:
                    found.setdefault(name, {}).setdefault(property, set()).add(code)
    return {
        name: {property: sorted(f"v{code}" for code in codes) for property, codes in properties.items()
               if len(codes) <= MOST}
        for name, properties in found.items()
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_values_that_are_kept_are_those_of_the_rows_whatever_changes(seed: int) -> None:
    draw, table, names = random.Random(seed), FacetTable(), dictionaries()
    table.apply(drawn(draw, list(range(40))))
    kept = ShownValues(table, MOST)
    for _ in range(60):
        low = draw.choice((0, table.length - 5))
        table.apply(drawn(draw, draw.sample(range(low, table.length + 3), 6)))
        assert kept.follow(table.shown_changes)
        anew = ShownValues(table, MOST).by_property(names)
        assert {name: {p: sorted(v) for p, v in values.items()} for name, values in anew.items()} == values_by_rows(
            table, names
        )
        shown = kept.by_property(names)
        for name, values in anew.items():  # what had very many values once is left out until all is counted again
            assert {p: v for p, v in values.items() if p != "many"} == {
                p: v for p, v in shown.get(name, {}).items() if p != "many"
            }
            assert shown.get(name, {}).get("many") in (None, values.get("many"))


def test_values_are_counted_again_where_too_much_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "MOST_SHOWN_CHANGES", 10)
    draw, table = random.Random(1), FacetTable()
    table.apply(drawn(draw, list(range(20))))
    kept = ShownValues(table, MOST)
    hidden = drawn(draw, list(range(20)))
    hidden["shown"] = 0
    table.apply(hidden)
    assert not kept.follow(table.shown_changes)


def test_a_change_that_nobody_sees_is_not_noted() -> None:
    draw, table = random.Random(1), FacetTable()
    rows = drawn(draw, list(range(20)))
    table.apply(rows)
    noted = table.shown_changes.count
    rows["updated"] += 1
    table.apply(rows)
    assert table.shown_changes.count == noted


def test_values_are_put_in_order_anew_where_they_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, table, names = random.Random(1), FacetTable(), dictionaries()
    rows = drawn(draw, [0, 1, 2])
    rows["collection"], rows["shown"] = 1, tables_module.PUBLISHED
    codes = np.zeros((3, PLACES), np.int32)
    codes[:, 0], codes[:, 1] = (1, 1, 2), (3, 4, 4)
    rows["codes"]["code"] = codes
    table.apply(rows)
    kept, orders = ShownValues(table, MOST), list[list[str]]()

    def members(values: Iterable[Any]) -> list[Any]:
        orders.append(sorted(values))
        return [*orders[-1]]

    monkeypatch.setattr(aggregating, "members", members)

    def shown() -> Mapping[str, Mapping[str, list[str]]]:
        assert kept.follow(table.shown_changes)
        return kept.by_property(names)

    assert shown() == shown() == {"CMIP6": {"kind": ["v1", "v2"], "tag": ["v3", "v4"]}}
    assert orders == [["v1", "v2"], ["v3", "v4"]]
    rows["shown"] = (0, 1, 1)  # its kind has another dataset, its tag none
    table.apply(rows)
    assert shown() == {"CMIP6": {"kind": ["v1", "v2"], "tag": ["v4"]}}
    assert orders[2:] == [["v4"]]
    rows["shown"] = 1
    table.apply(rows)
    assert shown() == {"CMIP6": {"kind": ["v1", "v2"], "tag": ["v3", "v4"]}}
    assert orders[3:] == [["v3", "v4"]]
