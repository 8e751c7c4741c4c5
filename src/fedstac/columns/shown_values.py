"""The values that published datasets have, by collection and property: counted once, and kept by what changes.

Who looks at a collection gets them. To count again whenever a dataset is hidden would read all rows, a thousand times
while many are marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from fedstac.columns.counts import of_codes
from fedstac.columns.dictionaries import Dictionaries
from fedstac.columns.table import PUBLISHED, Array, FacetTable, RecentChanges, ShownChange
from fedstac.db.columns import PLACES
from fedstac.domain import aggregating
from fedstac.runtime import budget

ValuesByProperty: TypeAlias = dict[str, dict[str, list[Any]]]  # by collection and property


class ShownValues:
    """How many published datasets have each code, by the key of their collection and the place of the property.

    Where a property has more than `most` values in a collection, none is counted.
    """

    def __init__(self, table: FacetTable, most: int) -> None:
        self._most = most
        self._counts: dict[tuple[int, int], dict[int, int] | None] = {}
        # by key and place: the property, how many values it had in all, and those of the codes
        self._values: dict[tuple[int, int], tuple[str, int, list[Any]]] = {}
        self._through = table.shown_changes.count
        numbers = np.flatnonzero(table.column("shown") & PUBLISHED)
        keys = table.column("collection")[numbers]
        if len(table.collections) > 1:
            order = np.argsort(keys, kind="stable")
            numbers, keys = numbers[order], keys[order]
        for key in sorted(table.collections):
            rows = numbers[np.searchsorted(keys, key, "left") : np.searchsorted(keys, key, "right")]
            for place in range(PLACES):
                budget.checkpoint()
                counts = of_codes(table.place(place)[rows])
                if counts:
                    self._counts[key, place] = counts if len(counts) <= most else None

    def follow(self, changes: RecentChanges[ShownChange]) -> bool:
        """Take up what searches began and ceased to find since. False where that is not kept any more."""
        entries = changes.since(self._through)
        if entries is None:
            return False
        for entry in entries:
            for key in np.unique(entry.collections).tolist():
                codes = entry.codes[:, entry.collections == key]
                for place in np.flatnonzero(codes.any(axis=1)).tolist():
                    self._add((key, place), codes[place], entry.sign)
        self._through = changes.count
        return True

    def _add(self, at: tuple[int, int], codes: Array, sign: int) -> None:
        counts = self._counts.setdefault(at, {})
        if counts is None:
            return
        for code, count in of_codes(codes).items():
            before = counts.get(code, 0)
            counts[code] = before + sign * count
            if not counts[code]:
                del counts[code]
            if not before or code not in counts:  # else there are more or fewer of the same
                self._values.pop(at, None)
        if len(counts) > self._most:
            self._counts[at] = None

    def by_property(self, dictionaries: Dictionaries) -> ValuesByProperty:
        """Return the values by the names of collections and properties. What is another one is put in order anew."""
        values: ValuesByProperty = {}
        slots = sorted(dictionaries.slots.items())  # else the order tells what hidden datasets have
        for name, key in dictionaries.collections.items():
            for property, places in slots:
                members = self._values_at((key, places.get(key, -1)), property, dictionaries.values_of(property))
                if members:
                    values.setdefault(name, {})[property] = members
        return values

    def _values_at(self, at: tuple[int, int], property: str, by_code: Mapping[int, Any]) -> list[Any]:
        """Return the values of a property in a collection. Hundreds of lists in order take a request some 50 ms."""
        counts = self._counts.get(at)
        if not counts:
            return []
        entry = self._values.get(at)
        if entry is None or entry[:2] != (property, len(by_code)):
            members = aggregating.members(by_code[code] for code in sorted(counts) if code in by_code)
            entry = self._values[at] = property, len(by_code), members
        return entry[2]
