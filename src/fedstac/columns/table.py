"""The rows of fedstac.facet as columns. The number of a dataset is its place in each of them."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedstac.columns.groups import RowGroups
from fedstac.db.columns import PLACES

T = TypeVar("T")
Array = NDArray[Any]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]

PUBLISHED, RETRACTED, LATEST = 1, 2, 4  # bits of `shown`; 0: gone, or hidden from searches
UNCODED = -1  # in `codes`: the item has a value that is not in the dictionary
SMALLEST = 1 << 12  # rows that columns begin with
SPARE = 1 << 20  # numbers, at least, that a loaded table has room for beyond its own
MOST_SHOWN_CHANGES = 20_000  # rows, of a hundred bytes, whose changes are kept for who counts values
MOST_NUMBERS = 50_000  # of rows that were written of late, for conditions whose rows are kept
HEADER = 19  # bytes of the binary format of COPY before its rows, which have no extension of the header
FIELDS = (
    ("n", ">i8"), ("changed", ">i8"), ("collection", ">i4"), ("shown", ">i2"), ("starts", ">i8"), ("ends", ">i8"),
    ("updated", ">i8"), ("footprint", ">i4"), ("size", ">i8"), ("files", ">i4"),
)  # fmt: skip
KINDS = (
    ("changed", np.int64), ("collection", np.int32), ("shown", np.int8), ("starts", np.int64), ("ends", np.int64),
    ("updated", np.int64), ("footprint", np.int32), ("size", np.int64), ("files", np.int32),
)  # fmt: skip
CODE = np.dtype([("length", ">i4"), ("code", ">i4")])
MAP_NORESERVE = 0x4000  # mman.h, on Linux
GROUP = "group"  # the column with the group of each row, which PostgreSQL does not send
COLUMNS = (*KINDS, (GROUP, np.int32))
ROW_BYTES = sum(np.dtype(kind).itemsize for _, kind in COLUMNS) + PLACES * np.dtype(np.int32).itemsize


def _row(first: str, before_value: str) -> np.dtype[Any]:
    """Return how PostgreSQL writes a row: `first` before all of it, `before_value` before each value."""
    fields: list[Any] = [("count", first)]
    for name, kind in FIELDS:
        fields += [(f"before_{name}", before_value), (name, kind)]
    fields += [("before_codes", before_value), ("dimensions", "V20"), ("codes", CODE, (PLACES,))]
    return np.dtype(fields)


COPIED = _row(">i2", "V4")  # the number of fields, then the length of each
SENT = _row(">i4", "V8")  # by record_send: the number of fields, then type and length of each


def sent_rows(data: bytes) -> Array:
    """Return rows as record_send wrote them, one after the other."""
    return np.frombuffer(data, SENT)


class CopyReader:
    """Takes the pieces of a binary COPY, and hands over whole rows."""

    def __init__(self, on_rows: Callable[[Array], object]) -> None:
        self._on_rows = on_rows
        self._rest = b""
        self._skip = HEADER

    async def __call__(self, data: bytes) -> None:
        data = self._rest + data
        if self._skip:
            if len(data) < self._skip:
                self._rest = data
                return
            data, self._skip = data[self._skip :], 0
        count = len(data) // COPIED.itemsize
        if count:
            self._on_rows(np.frombuffer(data, COPIED, count))
        self._rest = data[count * COPIED.itemsize :]


@dataclass(frozen=True, slots=True)
class ShownChange:
    """Rows that are published from now on (sign 1), or were until now (-1), with their codes: [place, row]."""

    sign: int
    collections: Array
    codes: Array


class RecentChanges(Generic[T]):
    """What happened to rows of late, in the order in which it came. What is older than `most` rows is forgotten."""

    def __init__(self, most: int) -> None:
        self.count = 0  # rows so far
        self._most = most
        self._entries: deque[tuple[int, T]] = deque()  # each with the count that includes it
        self._first_count = 0  # of `count`: what came before is forgotten

    def note(self, rows: int, entry: T) -> None:
        """Note what happened to so many rows."""
        if not rows:
            return
        self.count += rows
        self._entries.append((self.count, entry))
        while self.count - self._first_count > self._most:
            self._first_count = self._entries.popleft()[0]

    def since(self, count: int) -> list[T] | None:
        """Return what came after the first `count` rows; None where some of it is forgotten."""
        if count < self._first_count:
            return None
        later = takewhile(lambda entry: entry[0] > count, reversed(self._entries))
        return [entry for _, entry in later][::-1]


class FacetTable:
    """Columns of the datasets with numbers below `length`. A number that no dataset has is not shown.

    `column` names: `changed`, the transaction that changed a row; `collection`, a key of pgstac.collections; `shown`;
    `starts`, `ends` and `updated` in microseconds since 2000; `footprint`, a code; `size` in bytes; `files`; `group`,
    the code of one of the `groups`.
    One writer; who reads beside it sees a row half old and half new (Gate).
    Processes that were forked from one that had read a table share its pages, until one of them writes to a page. So
    room for more rows is taken at the beginning, and of a row only what is another value now is written.
    """

    def __init__(self) -> None:
        self._capacity = 0
        self._columns: dict[str, Array] = {}
        self._codes: Array = np.zeros((PLACES, 0), np.int32)  # [place, number]; 0: the item lacks the property
        self.length = 0
        self.recent_writes = RecentChanges[Numbers](MOST_NUMBERS)
        self.shown_changes = RecentChanges[ShownChange](MOST_SHOWN_CHANGES)
        self.collections: set[int] = set()  # keys that rows had
        self.groups = RowGroups()
        self._followers: list[Callable[[Numbers], object]] = []
        self._grow(SMALLEST)

    @property
    def bytes(self) -> int:
        """Return how much memory the rows have."""
        return ROW_BYTES * self.length

    @property
    def changes(self) -> int:
        """Return how many rows were written so far."""
        return self.recent_writes.count

    def on_moves(self, follow: Callable[[Numbers], object]) -> None:
        """Call, before rows are written, with the numbers whose start will be another one."""
        self._followers.append(follow)

    def apply(self, rows: Array) -> None:
        """Write rows, in their last state."""
        if not len(rows):
            return
        numbers = rows["n"].astype(np.int64)
        length = max(self.length, int(numbers.max()) + 1)
        self._grow(length)
        is_new = numbers >= self.length
        is_first = self._columns["changed"][numbers] == 0  # numbers come out of order: it may be between others
        moves = numbers[is_first | (self._columns["starts"][numbers] != rows["starts"])]
        values: dict[str, Array] = {name: rows[name] for name, _ in KINDS}
        values[GROUP] = self.groups.codes(values, length)
        codes = rows["codes"]["code"].T
        if is_new.all():
            for name, column in self._columns.items():
                column[numbers] = values[name]
            self._codes[:, numbers] = codes
            self.groups.move(None, values[GROUP])
            self._note_shown(1, rows["collection"], codes, rows["shown"] & PUBLISHED != 0)
        else:
            codes_before, keys_before = self._codes[:, numbers], self._columns["collection"][numbers]
            was_published, is_published = (
                self._columns["shown"][numbers] & PUBLISHED != 0,
                rows["shown"] & PUBLISHED != 0,
            )
            is_other = (codes_before != codes).any(axis=0) | (keys_before != rows["collection"])
            is_other |= was_published != is_published
            self._note_shown(-1, keys_before, codes_before, was_published & is_other)
            self._note_shown(1, rows["collection"], codes, is_published & is_other)
            self.groups.move(self._columns[GROUP][numbers[~is_new]], values[GROUP])
            for name, column in self._columns.items():
                differs = column[numbers] != values[name]
                column[numbers[differs]] = values[name][differs]
            places, at = np.nonzero(codes_before != codes)
            self._codes[places, numbers[at]] = codes[places, at]
        self.collections.update(np.unique(rows["collection"]).tolist())
        self.length = length
        self.recent_writes.note(len(numbers), numbers)
        for follow in self._followers:
            follow(moves)

    def _note_shown(self, sign: int, collections: Array, codes: Array, which: Mask) -> None:
        change = ShownChange(sign, collections[which].astype(np.int32), codes[:, which].astype(np.int32))
        self.shown_changes.note(len(change.collections), change)

    def column(self, name: str) -> Array:
        """Return one column of all rows."""
        return self._columns[name][: self.length]

    def place(self, place: int) -> Array:
        """Return the codes of all rows at one place."""
        codes: Array = self._codes[place, : self.length]
        return codes

    def reserve(self, numbers: int) -> None:
        """Take room for so many numbers and as many again: pages that nothing is written to cost nothing."""
        self._grow(numbers + max(numbers, SPARE))

    def _grow(self, length: int) -> None:
        if length <= self._capacity:
            return
        capacity = max(self._capacity or SMALLEST, SMALLEST)
        while capacity < length:
            capacity *= 2
        for name, kind in COLUMNS:
            self._columns[name] = self._longer(self._columns.get(name), capacity, kind)
        self._codes = self._longer_codes(capacity)
        self._capacity = capacity

    def _longer(self, before: Array | None, capacity: int, kind: Any) -> Array:
        column = _zeros(capacity, kind)
        if before is not None:
            column[: self.length] = before[: self.length]
        return column

    def _longer_codes(self, capacity: int) -> Array:
        codes = _zeros(PLACES * capacity, np.int32).reshape(PLACES, capacity)
        if self.length:
            codes[:, : self.length] = self._codes[:, : self.length]
        return codes


def _zeros(count: int, kind: Any) -> Array:
    """Return zeros in small pages: to write to one of a large array would take two megabytes, of each column."""
    size = count * np.dtype(kind).itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, kind, count)
