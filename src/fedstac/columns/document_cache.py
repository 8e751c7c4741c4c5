"""The datasets that pages showed of late: a page of them needs no document from PostgreSQL."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable

from fedstac.db.columns import DatasetRow
from fedstac.db.search import ServedItem

LARGEST_PART = 16  # a dataset that takes more than this part of the memory is not kept
BESIDE = 2_000  # bytes that an entry takes beside its two texts


class DocumentCache:
    """Datasets by their numbers, those that were shown last; at most some bytes of them.

    Each is kept with the transaction that last changed its row of the columns. It counts only for a page that was
    chosen from the row of the same transaction: every change of a record changes its row (db/records.write).
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._datasets: OrderedDict[int, tuple[int, ServedItem, int]] = OrderedDict()

    def find(self, number: int, changed: int) -> ServedItem | None:
        """Return a dataset as the transaction `changed` left it; None where it is not kept."""
        entry = self._datasets.get(number)
        if entry is None or entry[0] != changed:
            self.misses += 1
            return None
        self.hits += 1
        self._datasets.move_to_end(number)
        return entry[1]

    def keep(self, rows: Iterable[DatasetRow]) -> None:
        """Keep datasets that were read, and let go of those that were not shown for longest."""
        for row in rows:
            self.drop((row.number,))
            size = 2 * sys.getsizeof(row.item.document) + BESIDE  # as it is stored, and as it is served
            if size * LARGEST_PART <= self.most_bytes:
                self._datasets[row.number] = row.changed, row.item, size
                self.bytes += size
        while self.bytes > self.most_bytes:
            _, (_, _, size) = self._datasets.popitem(last=False)
            self.bytes -= size

    def drop(self, numbers: Iterable[int]) -> None:
        """Let go of datasets that changed."""
        for number in numbers:
            entry = self._datasets.pop(number, None)
            if entry is not None:
                self.bytes -= entry[2]

    def clear(self) -> None:
        """Let go of all."""
        self._datasets.clear()
        self.bytes = 0
