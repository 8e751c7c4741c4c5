"""The order of a search, and the page of it that comes after, or before, a place.

A place is what a paging token carries: the value of each key, and at the end the number of a dataset. Numbers and codes
are never used again, so a place means the same when its dataset is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedstac.columns.dictionaries import LOST, Dictionaries
from fedstac.columns.plan import COLUMN_OF, EARLIEST, LATEST_MOMENT, is_coded
from fedstac.columns.selection import BITS, Evaluation, GroupSelection, RowSelection, Selection
from fedstac.columns.table import Array, FacetTable, Mask, Numbers
from fedstac.db.columns import COLLECTION
from fedstac.db.connections import Reader
from fedstac.db.search import Anchor
from fedstac.runtime import budget

MANY = 16_000  # datasets from which on a kept order is walked; and changes after which it is made anew
STEP = 4_096  # places that a walk begins with
WALK_SHARE = 4  # of the rows, that a walk looks at
MANY_TIMES = 8  # as many datasets as a page has: groups with fewer are looked for, not met on a walk
ALWAYS = EARLIEST, LATEST_MOMENT

Place = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OrderKey:
    """One key of an order. `ranks`: by code, for a property and for the collection, with all values up to `newest`."""

    name: str
    descending: bool
    ranks: Array | None = None
    newest: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """Keys; datasets that are alike in all of them are ordered by their numbers, in the direction of the last one."""

    keys: tuple[OrderKey, ...]

    def is_complete(self, dictionaries: Dictionaries) -> bool:
        """Return whether it has a place for every value that rows may have by now."""
        return all(key.ranks is None or key.newest == dictionaries.newest(key.name) for key in self.keys)

    @property
    def is_by_start(self) -> bool:
        return len(self.keys) == 1 and COLUMN_OF.get(self.keys[0].name) == "starts"


async def order(conn: Reader, fields: Sequence[tuple[str, bool]], dictionaries: Dictionaries) -> Order | None:
    """Return the order by properties, given as (name, descending); None where memory does not have it."""
    keys = []
    for name, descending in fields:
        if name in COLUMN_OF or name in BITS:
            keys.append(OrderKey(name, descending))
        elif name == COLLECTION or is_coded(name):
            newest = dictionaries.newest(name)
            keys.append(OrderKey(name, descending, await dictionaries.ranks(conn, name), newest))
        else:
            return None
    return Order(tuple(keys))


@dataclass(frozen=True, slots=True)
class StartIndex:
    """Numbers as they were sorted by their starts, and those that have another start since or are new."""

    numbers: Array
    starts: Array
    moves: list[Numbers]

    @property
    def move_count(self) -> int:
        return sum(map(len, self.moves))

    def all_moves(self) -> Numbers:
        """Return the numbers that moved, each once, in order."""
        if len(self.moves) > 1:
            self.moves[:] = [np.unique(np.concatenate(self.moves))]
        return self.moves[0] if self.moves else np.zeros(0, np.int64)


class StartOrder:
    """The numbers of datasets by when they start. Several readers may renew it at once, beside no writer."""

    def __init__(self, table: FacetTable) -> None:
        self._table = table
        self._sorted: StartIndex | None = None
        table.on_moves(self._note)

    @property
    def bytes(self) -> int:
        return 0 if self._sorted is None else int(self._sorted.numbers.nbytes + self._sorted.starts.nbytes)

    def prepare(self) -> None:
        """Sort the numbers now, if there are so many that a walk will need it."""
        if self._table.length > MANY:
            self._renewed()

    def _note(self, numbers: Numbers) -> None:
        if self._sorted is not None and len(numbers):
            self._sorted.moves.append(numbers)
            if self._sorted.move_count > MANY:
                self._sorted = None

    def _renewed(self) -> StartIndex:
        starts = self._table.column("starts")
        numbers: Array = np.argsort(starts, kind="stable").astype(np.int32 if len(starts) < 2**31 else np.int64)
        self._sorted = renewed = StartIndex(numbers, starts[numbers], [])
        return renewed

    @property
    def is_sorted(self) -> bool:
        """Return whether a walk can begin at once."""
        return self._sorted is not None

    def first(
        self,
        has: Callable[[Numbers], Mask],
        count: int,
        after: Place | None,
        *,
        includes: bool,
        descending: bool,
        within: tuple[int, int] = ALWAYS,
    ) -> Numbers | None:
        """Return the first numbers of a selection after a place, and with them all of it that moved.

        has: which of some numbers the selection has. within: the first and the last moment at which what it has starts.
        None where it would be faster to sort the selection.
        """
        order = self._sorted or self._renewed()
        moves = order.all_moves()
        start = int(np.searchsorted(order.starts, within[0], "left"))
        end = int(np.searchsorted(order.starts, within[1], "right"))
        if after is not None and descending:
            end = min(end, _place(order, after, beyond=includes))
        elif after is not None:
            start = max(start, _place(order, after, beyond=not includes))
        pieces = [moves[has(moves)]]
        step, allowance = STEP, len(order.numbers) // WALK_SHARE
        while start < end and count > 0:
            if allowance < 0:
                return None
            if descending:
                piece = order.numbers[max(start, end - step) : end][::-1]
                end -= len(piece)
            else:
                piece = order.numbers[start : min(start + step, end)]
                start += len(piece)
            hits = piece[has(piece)]
            if len(moves):
                hits = hits[~np.isin(hits, moves)]
            pieces.append(hits[:count].astype(np.int64))
            count -= len(pieces[-1])
            allowance -= step
            step *= 2
        return np.concatenate(pieces)


def _place(order: StartIndex, after: Place, *, beyond: bool) -> int:
    """Return where a place is in the order, or where what comes after it begins."""
    value, number = after
    low, high = np.searchsorted(order.starts, value, "left"), np.searchsorted(order.starts, value, "right")
    return int(low + np.searchsorted(order.numbers[low:high], number, "right" if beyond else "left"))


class Pager:
    """Cuts pages out of a selection; used for one search, while the columns stand still."""

    def __init__(self, table: FacetTable, evaluation: Evaluation, starts: StartOrder, order: Order) -> None:
        self._table = table
        self._evaluation = evaluation
        self._starts = starts
        self._order = order

    def knows_order(self, dictionaries: Dictionaries) -> bool:
        """Return whether the rows have what the order needs."""
        for key in self._order.keys:
            if key.ranks is None or key.name == COLLECTION:
                continue
            if any(dictionaries.place(key.name, each) == LOST for each in self._evaluation.keys):
                return False
        return True

    def page(
        self, selection: Selection, count: int, anchor: Anchor | None = None, *, within: tuple[int, int] = ALWAYS
    ) -> Numbers:
        """Return the numbers on the side of an anchor that are next to it, the nearest first.

        within: the first and the last moment at which what is selected starts.
        """
        after, backwards, includes = (
            (anchor.values, anchor.is_before, anchor.includes) if anchor else (None, False, False)
        )
        numbers = None
        if self._order.is_by_start and _is_walk_short(selection, count):
            descending = self._order.keys[-1].descending is not backwards
            numbers = self._starts.first(
                selection.has, count, after, includes=includes, descending=descending, within=within
            )
        if numbers is None:
            numbers = selection.hits
        if after is not None:
            numbers = numbers[self._beyond(numbers, after, backwards=backwards, includes=includes)]
        return self._first(numbers, count, backwards=backwards)

    def places(self, numbers: Numbers) -> list[Place]:
        """Return the place of each number."""
        columns = [self._values(key, numbers) for key in self._order.keys]
        return [tuple(row) for row in zip(*(column.tolist() for column in columns), numbers.tolist(), strict=True)]

    def _values(self, key: OrderKey, numbers: Numbers) -> Array:
        """Return the values of a key as places have them: moments, truths, codes."""
        budget.checkpoint()
        if key.name in COLUMN_OF:
            return self._table.column(COLUMN_OF[key.name])[numbers]
        if key.name in BITS:
            has_it: Array = self._table.column("shown")[numbers] & BITS[key.name] != 0
            return has_it.astype(np.int64)
        if key.name == COLLECTION:
            return self._table.column(COLLECTION)[numbers].astype(np.int64)
        return self._evaluation.codes_at(key.name, numbers).astype(np.int64)

    def _sort_key(self, at: int, numbers: Numbers, *, backwards: bool) -> Array:
        """Return one of the keys that numbers are sorted by, all ascending; the last one has no two alike."""
        keys = self._order.keys
        if at < len(keys):
            ranks = _ranks_of(keys[at], self._values(keys[at], numbers))
        else:
            ranks = ~numbers if keys[-1].descending else numbers
        return np.invert(ranks) if backwards else ranks

    def _beyond(self, numbers: Numbers, place: Place, *, backwards: bool, includes: bool) -> Array:
        """Return which rows come after a place, or are there if that is included. One key is in memory at a time."""
        beyond, equal = np.zeros(len(numbers), np.bool_), np.ones(len(numbers), np.bool_)
        for at, value in enumerate(self._sort_keys_of_place(place)):
            key, limit = self._sort_key(at, numbers, backwards=backwards), ~value if backwards else value
            beyond |= equal & (key > limit)
            equal &= key == limit
        return beyond | equal if includes else beyond

    def _first(self, numbers: Numbers, count: int, *, backwards: bool) -> Numbers:
        """Return the first numbers, in order. Only those are sorted; of the others one key is in memory at a time."""
        pieces = [np.zeros(0, np.int64)]
        at, last = 0, len(self._order.keys)
        while 0 < count < len(numbers):
            key = self._sort_key(at, numbers, backwards=backwards)
            if at == last:
                numbers = numbers[np.argpartition(key, count - 1)[:count]]
                break
            limit = np.partition(key, count - 1)[count - 1]
            before = numbers[key < limit]
            pieces.append(self._sorted(before, at, backwards=backwards))
            numbers = numbers[key == limit]  # alike in the keys so far
            count -= len(before)
            at += 1
        if count > 0:
            pieces.append(self._sorted(numbers, at, backwards=backwards))
        return np.concatenate(pieces)

    def _sorted(self, numbers: Numbers, at: int, *, backwards: bool) -> Numbers:
        """Return a few numbers in order of the keys from one on."""
        keys = [self._sort_key(n, numbers, backwards=backwards) for n in range(at, len(self._order.keys) + 1)]
        return numbers[np.lexsort(keys[::-1])]

    def _sort_keys_of_place(self, place: Place) -> list[Any]:
        values = [np.array([value], np.int64) for value in place]
        keys = [_ranks_of(key, value)[0] for key, value in zip(self._order.keys, values, strict=False)]
        number = values[-1][0]
        return [*keys, ~number if self._order.keys[-1].descending else number]


def _is_walk_short(selection: Selection, count: int) -> bool:
    """Return whether a walk along the kept order meets so many datasets of a selection soon."""
    if isinstance(selection, GroupSelection):
        return selection.count > MANY_TIMES * count
    return isinstance(selection, RowSelection) and selection.numbers is None and selection.count > MANY


def _ranks_of(key: OrderKey, values: Array) -> Array:
    """Return values as numbers in the order of the key. The inverse (~) has the opposite order, and no overflow."""
    ranks: Array = key.ranks.take(values, mode="clip") if key.ranks is not None else values
    return ~ranks if key.descending else ranks
