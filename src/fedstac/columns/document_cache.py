"""The datasets that pages showed of late: a page of them needs no document from PostgreSQL."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fedstac.db.columns import DatasetRow
from fedstac.db.search import ServedItem

LARGEST_PART: Final = 16  # a dataset that takes more than this part of the memory is not kept
BESIDE: Final = 2_000  # bytes that an entry takes beside its two texts
CANDIDATES: Final = 2  # drawn at random, of which one has to go


@dataclass(slots=True)
class _Entry:
    changed: int  # the transaction
    item: ServedItem
    size: int  # bytes
    place: int  # among the numbers
    last_look: int  # by their count, that found it


class DocumentCache:
    """Datasets by their numbers, those that were shown of late; at most some bytes of them.

    Each is kept with the transaction that last changed its row of the columns. It counts only for a page that was
    chosen from the row of the same transaction: every change of a record changes its row (db/records.write).

    Where one has to go, two are drawn, and the one that was shown longer ago goes. Whoever walks in turns through a few
    more datasets than fit finds most of them so. By a strict order of time they would find none: each goes just before
    it is shown again.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: dict[int, _Entry] = {}
        self._numbers: list[int] = []  # of the entries, in no order
        self._draw = random.Random(0).randrange  # noqa: S311 - nobody gains by a guess

    def find(self, number: int, changed: int) -> ServedItem | None:
        """Return a dataset as the transaction `changed` left it; None where it is not kept."""
        entry = self._entries.get(number)
        if entry is None or entry.changed != changed:
            self.misses += 1
            return None
        self.hits += 1
        entry.last_look = self.hits + self.misses
        return entry.item

    def keep(self, rows: Iterable[DatasetRow]) -> None:
        """Keep datasets that were read, and let go of others where there is no room."""
        for row in rows:
            self.drop((row.number,))
            size = 2 * sys.getsizeof(row.item.document) + BESIDE  # as it is stored, and as it is served
            if size * LARGEST_PART > self.most_bytes:
                continue
            while self.bytes + size > self.most_bytes:
                self.drop((self._number_to_go(),))
            self._entries[row.number] = _Entry(row.changed, row.item, size, len(self._numbers), self.hits + self.misses)
            self._numbers.append(row.number)
            self.bytes += size

    def drop(self, numbers: Iterable[int]) -> None:
        """Let go of datasets that changed."""
        for number in numbers:
            entry = self._entries.pop(number, None)
            if entry is None:
                continue
            self.bytes -= entry.size
            last = self._numbers.pop()
            if last != number:  # it takes the place
                self._numbers[entry.place] = last
                self._entries[last].place = entry.place

    def clear(self) -> None:
        """Let go of all."""
        self._entries.clear()
        self._numbers.clear()
        self.bytes = 0

    def _number_to_go(self) -> int:
        count = len(self._numbers)
        drawn = (self._numbers[self._draw(count)] for _ in range(CANDIDATES))
        return min(drawn, key=lambda number: self._entries[number].last_look)
