"""Which rows meet the conditions that were asked for of late. Of them only rows that were written since are looked at.

People choose from the same facets: a search has conditions that another one had, even where nobody asked for both of
them together. Rows are kept when a condition is asked for a second time, so that those that come once displace nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedstac.columns.table import FacetTable, Mask, Numbers

FEW = 64  # where one row of so many, or fewer, meet a condition, their numbers take no more memory than bits
BYTES_OF_ROW, LEAST_BYTES = 8, 4 << 20  # that all together may take: of each row of the table, and at least
BESIDE = 600  # bytes that an entry takes beside its rows
MOST_ASKED = 1_000  # conditions that are known to have been asked for once

Bits: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a table: their `numbers` in order where they are few, else `bits`, one for each row."""

    length: int  # of the table
    numbers: Numbers | None
    bits: Bits | None

    @classmethod
    def of(cls, mask: Mask) -> Rows:
        return cls.of_bits(np.packbits(mask), len(mask))

    @classmethod
    def of_bits(cls, bits: Bits, length: int) -> Rows:
        return cls(length, numbers_of(bits), None) if count(bits) * FEW <= length else cls(length, None, bits)

    @property
    def bytes(self) -> int:
        array = self.numbers if self.numbers is not None else self.bits
        return 0 if array is None else int(array.nbytes)

    @property
    def mask(self) -> Mask:
        if self.bits is not None:
            return mask_of(self.bits, self.length)
        mask = np.zeros(self.length, np.bool_)
        mask[self.numbers] = True
        return mask

    def after(self, numbers: Numbers, mask: Mask, length: int) -> Rows:
        """Return them after rows were written. Of the `numbers`, each once and in order, those of the mask belong."""
        if self.bits is None:
            assert self.numbers is not None
            others = self.numbers[~np.isin(self.numbers, numbers, assume_unique=True)]
            every = np.union1d(others, numbers[mask])
            few = Rows(length, every, None)
            return few if len(every) * FEW <= length else Rows.of(few.mask)
        bits = np.zeros(-(-length // 8), np.uint8)
        bits[: len(self.bits)] = self.bits
        places, own = _places_of(numbers)
        np.bitwise_and.at(bits, places, ~own)
        np.bitwise_or.at(bits, places[mask], own[mask])
        return Rows(length, None, bits)


def count(bits: Bits) -> int:
    """Return how many rows bits have."""
    return int(np.bitwise_count(bits).sum())


def numbers_of(bits: Bits) -> Numbers:
    """Return the numbers of rows for bits; where they are few, faster than by a mask."""
    places = np.flatnonzero(bits)
    at, beside = np.nonzero(np.unpackbits(bits[places]).reshape(-1, 8))
    return places[at] * 8 + beside


def among(bits: Bits, numbers: Numbers) -> Mask:
    """Return which of some rows bits have."""
    places, own = _places_of(numbers)
    mask: Mask = bits[places] & own != 0
    return mask


def _places_of(numbers: Numbers) -> tuple[Numbers, Bits]:
    """Return in which byte each row has its bit, and a byte with that bit alone."""
    return numbers >> 3, np.right_shift(128, numbers & 7).astype(np.uint8)


def mask_of(bits: Bits, length: int) -> Mask:
    """Return the mask of all rows for bits."""
    return np.unpackbits(bits, count=length).view(np.bool_)


class _Entry(NamedTuple):
    changes: int  # of the table, that the rows include
    rows: Rows
    condition_bytes: int

    @property
    def bytes(self) -> int:
        return self.rows.bytes + self.condition_bytes + BESIDE


class RowCache:
    """Rows by condition, for all searches of a process, in any of its threads. The table stands still meanwhile."""

    def __init__(self, table: FacetTable) -> None:
        self._table = table
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._hashes: OrderedDict[int, None] = OrderedDict()  # of conditions that were asked for
        self.bytes = 0

    def peek(self, condition: Hashable) -> Rows | None:
        """Return what is kept, maybe as of before the last changes."""
        entry = self._entries.get(condition)
        return entry.rows if entry is not None else None

    def find(self, condition: Hashable, meet: Callable[[Numbers], Mask | None]) -> Rows | None:
        """Return the rows that meet a condition; None where they are not kept.

        meet: which of some rows do; None where that is not known.
        """
        changes = self._table.changes
        with self._lock:
            entry = self._entries.get(condition)
            if entry is None:
                return None
            self._entries.move_to_end(condition)
        if entry.changes == changes:
            return entry.rows
        pieces = self._table.recent_writes.since(entry.changes)
        numbers = np.unique(np.concatenate(pieces)) if pieces else None
        mask = meet(numbers) if numbers is not None else None
        if numbers is None or mask is None:
            self._forget(condition)
            return None
        rows = entry.rows.after(numbers, mask, self._table.length)
        self.keep(condition, rows, condition_bytes=entry.condition_bytes)
        return rows

    def wants(self, condition: Hashable) -> bool:
        """Note that a condition is asked for. Return whether it was before: then its rows are worth keeping."""
        own_hash = hash(condition)
        with self._lock:
            was_asked = own_hash in self._hashes
            self._hashes[own_hash] = None
            self._hashes.move_to_end(own_hash)
            if len(self._hashes) > MOST_ASKED:
                self._hashes.popitem(last=False)
        return was_asked

    def keep(self, condition: Hashable, rows: Rows, *, condition_bytes: int = 0) -> None:
        """Keep which of all rows meet a condition. condition_bytes: of the texts in it."""
        most = max(BYTES_OF_ROW * self._table.length, LEAST_BYTES)
        with self._lock:
            before = self._entries.pop(condition, None)
            entry = self._entries[condition] = _Entry(self._table.changes, rows, condition_bytes)
            self.bytes += entry.bytes - (before.bytes if before is not None else 0)
            while self.bytes > most:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= oldest.bytes

    def clear(self) -> None:
        """Keep nothing: rows of before do not count any more."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0

    def _forget(self, condition: Hashable) -> None:
        with self._lock:
            entry = self._entries.pop(condition, None)
            if entry is not None:
                self.bytes -= entry.bytes
