"""Groups of rows that are alike in their collection, in what of them is shown, in where and in when they are.

The datasets of a model and an experiment share their footprint and their years. So a catalogue has few groups, and a
search by box and interval looks at groups instead of rows (docs/adr/0060).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

KEY: Final = np.dtype(
    [("collection", np.int32), ("shown", np.int32), ("starts", np.int64), ("ends", np.int64), ("footprint", np.int32)]
)
LEAST_ROOM: Final = 1 << 16  # groups that any table may have
ROWS_OF_GROUP: Final = 16  # rows of a larger table for each group, on average; with more groups none are kept


class RowGroups:
    """The groups of a table, by their codes; each has the values of its rows, and how many those are.

    Group 0 has the numbers that no dataset has.
    """

    def __init__(self) -> None:
        self.length = 0
        self.are_kept = True
        self._columns: Array = np.zeros(64, KEY)
        self._counts: Array = np.zeros(64, np.int64)
        self._codes: dict[bytes, int] = {}
        self._add(np.zeros(1, KEY).tobytes())

    def column(self, name: str) -> Array:
        """Return what all groups have in a column of the table."""
        column: Array = self._columns[name][: self.length]
        return column

    @property
    def counts(self) -> Array:
        """Return how many rows each group has."""
        return self._counts[: self.length]

    def codes(self, values: Mapping[str, Array], table_length: int) -> Array:
        """Return the group of each row, by its values; group 0 for all where groups are not kept."""
        keys = np.empty(len(values["starts"]), KEY)
        for name in KEY.fields or ():
            keys[name] = values[name]
        texts = keys.view(f"V{KEY.itemsize}").tolist()
        new = set(texts) - self._codes.keys()
        if self.length + len(new) > max(LEAST_ROOM, table_length // ROWS_OF_GROUP):
            self._give_up()
        if not self.are_kept:
            return np.zeros(len(keys), np.int32)
        for text in new:
            self._add(text)
        return np.fromiter(map(self._codes.__getitem__, texts), np.int32, len(texts))

    def move(self, before: Array | None, after: Array) -> None:
        """Count rows in their groups; before: the groups that they were in."""
        if not self.are_kept:
            return
        if before is not None:
            self._counts[: self.length] -= np.bincount(before, minlength=self.length)
        self._counts[: self.length] += np.bincount(after, minlength=self.length)

    def _add(self, key: bytes) -> None:
        code = self.length
        if code == len(self._columns):
            self._columns = np.concatenate((self._columns, np.zeros(code, KEY)))
            self._counts = np.concatenate((self._counts, np.zeros(code, np.int64)))
        self._columns[code] = np.frombuffer(key, KEY)[0]
        self._codes[key] = code
        self.length += 1

    def _give_up(self) -> None:
        """Keep no groups any more, until the table is read again: they would be as many as rows."""
        self.are_kept = False
        self._codes = {}
