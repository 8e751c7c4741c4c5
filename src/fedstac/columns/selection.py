"""Evaluates a plan over the columns: which rows a search finds, and of which only the item itself can tell.

A condition has three values, as in SQL. For each wanted value it has two masks: of the rows that certainly have it, and
of those that possibly do. They are one array where memory can tell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, assert_never

import numpy as np

from fedstac.columns import row_cache
from fedstac.columns.dictionaries import (
    ABSENT,
    FALSE,
    LARGEST_KEPT,
    LOST,
    TRUE,
    UNDECIDED,
    Dictionaries,
    Leaf,
    Verdicts,
)
from fedstac.columns.groups import KEY, RowGroups
from fedstac.columns.plan import (
    All,
    AnyOf,
    BitTest,
    CodeTest,
    Constant,
    IdTest,
    ItemTest,
    Node,
    Not,
    Plan,
    TimeTest,
    Visible,
    walk,
)
from fedstac.columns.row_cache import Bits, RowCache, Rows, mask_of
from fedstac.columns.table import GROUP, LATEST, PUBLISHED, RETRACTED, UNCODED, Array, FacetTable, Mask, Numbers
from fedstac.db.columns import COLLECTION, FOOTPRINT, TERM
from fedstac.runtime import budget

FEW_CODES = 3  # that are compared one after the other; more are looked up in a table
NARROW = 8  # when one row of so many is left, the other conditions look at those alone
MOST_CODES = 2  # properties whose codes an evaluation keeps, for conditions that come one after the other
PIECE = 1 << 16  # rows that are looked at together, for what is made for them to stay near; a multiple of eight
SMALL = 1 << 12  # rows of which the others are not left out
MOST_LOOKS = 1 << 19  # at groups, for each condition, in the event loop
VISIBLE = Visible()
GROUP_COLUMNS = frozenset(KEY.names or ())
BITS = {"latest": LATEST, "retracted": RETRACTED}


@dataclass(frozen=True, slots=True)
class Masks:
    """Rows that certainly, and that possibly, have a truth."""

    certain: Mask
    possible: Mask

    @classmethod
    def of(cls, mask: Mask) -> Masks:
        return cls(mask, mask)

    def __and__(self, other: Masks) -> Masks:
        certain = self.certain & other.certain
        if self.is_known and other.is_known:
            return Masks(certain, certain)
        return Masks(certain, self.possible & other.possible)

    def __or__(self, other: Masks) -> Masks:
        certain = self.certain | other.certain
        if self.is_known and other.is_known:
            return Masks(certain, certain)
        return Masks(certain, self.possible | other.possible)

    def at(self, places: Numbers) -> Masks:
        """Return the masks of some of the rows."""
        certain = self.certain[places]
        return Masks(certain, certain if self.is_known else self.possible[places])

    def scatter(self, places: Numbers, length: int) -> Masks:
        """Return the masks of so many rows, of which these are some; the others have no truth."""
        certain = np.zeros(length, np.bool_)
        certain[places] = self.certain
        if self.is_known:
            return Masks(certain, certain)
        possible = np.zeros(length, np.bool_)
        possible[places] = self.possible
        return Masks(certain, possible)

    @property
    def is_known(self) -> bool:
        return self.certain is self.possible


class Selection(ABC):
    """What a search finds."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Return how many datasets it certainly has."""

    @property
    @abstractmethod
    def doubtful(self) -> Numbers:
        """Return the numbers of datasets that have to be asked themselves."""

    @property
    @abstractmethod
    def hits(self) -> Numbers:
        """Return the numbers of datasets that it certainly has."""

    @abstractmethod
    def has(self, numbers: Numbers) -> Mask:
        """Return which of some datasets it certainly has."""

    def with_hits(self, numbers: Sequence[int]) -> Selection:
        """Return it with the doubtful ones decided: these are found, the others are not."""
        every = self.hits if not numbers else np.union1d(self.hits, np.array(numbers, np.int64))
        return RowSelection(every, Masks.of(np.ones(len(every), np.bool_)))


@dataclass(frozen=True, slots=True)
class RowSelection(Selection):
    """A selection by masks. `numbers`: of the rows that the masks are of; None: all of them."""

    numbers: Numbers | None
    masks: Masks

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.masks.certain))

    @property
    def doubtful(self) -> Numbers:
        if self.masks.is_known:
            return np.zeros(0, np.int64)
        return self._numbers(self.masks.possible & ~self.masks.certain)

    @property
    def hits(self) -> Numbers:
        return self._numbers(self.masks.certain)

    def has(self, numbers: Numbers) -> Mask:
        return self.masks.certain[numbers] if self.numbers is None else np.isin(numbers, self.hits)

    def _numbers(self, mask: Mask) -> Numbers:
        places = np.flatnonzero(mask)
        return places if self.numbers is None else self.numbers[places]


@dataclass(frozen=True, slots=True)
class GroupSelection(Selection):
    """All rows of some groups. `mask`: of the groups; `codes`: the group of each row; `count`: of the rows."""

    mask: Mask
    codes: Array
    count: int

    @property
    def doubtful(self) -> Numbers:
        return np.zeros(0, np.int64)

    @property
    def hits(self) -> Numbers:
        starts = range(0, len(self.codes), PIECE)
        pieces = [np.flatnonzero(self.mask[self.codes[start : start + PIECE]]) + start for start in starts]
        return np.concatenate([np.zeros(0, np.int64), *pieces])

    def has(self, numbers: Numbers) -> Mask:
        mask: Mask = self.mask[self.codes[numbers]]
        return mask


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the conditions that all have to be true, with the rows that meet it and the properties that it names."""

    properties: frozenset[str]
    masks: Masks


@dataclass(frozen=True, slots=True, eq=False)
class GroupTest:
    """A condition that rows of these groups meet."""

    mask: Mask


@dataclass(frozen=True, slots=True)
class Effort:
    """How much an evaluation looks at, in rows of one condition, and how many rows it may find."""

    looks: int
    most_found: int


class Evaluation:
    """One evaluation of a plan. It keeps nothing of the columns, but in its cache which rows meet the conditions.

    numbers_by_id: of the datasets with the ids that the plan names. collections: those that are searched; None: all.
    """

    def __init__(
        self,
        table: FacetTable,
        dictionaries: Dictionaries,
        verdicts: Mapping[Leaf, Verdicts],
        numbers_by_id: Mapping[str, Sequence[int]],
        collections: Iterable[str] | None,
        cache: RowCache | None = None,
    ) -> None:
        self.table = table
        self.dictionaries = dictionaries
        self._verdicts = verdicts
        self._numbers_by_id = numbers_by_id
        keys = dictionaries.collections
        searched = keys.values() if collections is None else [keys[name] for name in collections if name in keys]
        self.keys = sorted(table.collections & set(searched))
        self._cache = cache
        self._source: FacetTable | RowGroups = table
        self._rows: slice | Numbers = slice(0, table.length)  # of the source, that are looked at
        self._groups: tuple[Plan, GroupSelection | None] | None = None  # what a plan selects, by groups alone
        self._codes: OrderedDict[str, tuple[Array, bool]] = OrderedDict()  # those used last
        self._room = np.zeros(0, np.intp)  # for codes in the form in which numpy looks them up

    @property
    def _length(self) -> int:
        return self._rows.stop - self._rows.start if isinstance(self._rows, slice) else len(self._rows)

    def select(self, plan: Plan) -> Selection:
        """Return what meets all conditions: by groups, or from the rows on of which that is known already."""
        if (selection := self._select_groups(plan)) is not None:
            return selection
        parts = sorted((VISIBLE, *plan.parts), key=_cost)
        all_rows = [self._find(part) for part in parts]
        if not any(rows is not None and rows.numbers is not None for rows in all_rows):
            all_rows = [rows or self._rows_to_keep(part) for part, rows in zip(parts, all_rows, strict=True)]
        others = [part for part, rows in zip(parts, all_rows, strict=True) if rows is None]
        rows = _common([rows for rows in all_rows if rows is not None])
        if rows is not None and rows.numbers is not None:
            return RowSelection(rows.numbers, self._among(rows.numbers).meeting(others))
        masks = self._in_pieces(self._with_groups(others), rows.bits if rows is not None else None)
        if np.count_nonzero(masks.possible) * NARROW > self._length:
            return RowSelection(None, masks)
        numbers = np.flatnonzero(masks.possible)
        return RowSelection(numbers, masks.at(numbers))

    def effort(self, plan: Plan) -> Effort:
        """Return how much `select` would look at."""
        length = self.table.length
        if (selection := self._select_groups(plan)) is not None:
            return Effort(length // 2, selection.count)  # to find them is one look at some or all of the rows
        looks, most_found = length // 4, length
        for part in (VISIBLE, *plan.parts):
            if isinstance(part, IdTest):
                most_found = min(most_found, sum(len(self._numbers_by_id.get(each, ())) for each in part.ids))
            elif (rows := self._peek(part)) is None:
                looks += length * sum(1 for _ in walk((part,)))
            elif rows.numbers is not None:
                most_found = min(most_found, len(rows.numbers))
            else:
                looks += length // 8
        return Effort(min(looks, most_found * (1 + len(plan.parts))) if most_found < length else looks, most_found)

    def each(self, plan: Plan) -> list[Condition]:
        """Return each condition with the rows that meet it, whether they are shown or not."""
        return [Condition(_properties_of(part), self._of_all_rows(part)) for part in plan.parts]

    def visible(self) -> Mask:
        """Return the rows that searches may find, in the collections that are searched."""
        return self._of_all_rows(VISIBLE).certain

    # --- groups ---

    def _select_groups(self, plan: Plan) -> GroupSelection | None:
        """Return what meets all conditions where all of them are conditions on groups; None for other plans."""
        if self._groups is None or self._groups[0] is not plan:
            self._groups = plan, self._selection_of_groups(plan)
        return self._groups[1]

    def _selection_of_groups(self, plan: Plan) -> GroupSelection | None:
        groups = self.table.groups
        if not groups.are_kept or not all(map(_is_of_groups, plan.parts)):
            return None
        if groups.length * sum(1 for _ in plan.nodes()) > MOST_LOOKS:
            return None
        masks = self._among_groups().meeting([VISIBLE, *plan.parts])
        if not masks.is_known:
            return None
        count = int(groups.counts[masks.certain].sum())
        return GroupSelection(masks.certain, self.table.column(GROUP), count)

    def _with_groups(self, parts: Sequence[Node]) -> Sequence[Node | GroupTest]:
        """Return conditions with one on groups instead of several that are about them."""
        of_groups = [part for part in parts if _is_of_groups(part)]
        groups = self.table.groups
        if len(of_groups) < 2 or not groups.are_kept or groups.length * NARROW > self.table.length:
            return parts
        masks = self._among_groups().meeting(of_groups)
        if not masks.is_known:
            return parts
        return [GroupTest(masks.certain), *(part for part in parts if part not in of_groups)]

    def _among_groups(self) -> Evaluation:
        """Return an evaluation that looks at groups instead of rows."""
        other = self._among(slice(0, self.table.groups.length))
        other._source = self.table.groups
        return other

    # --- what is known already ---

    def _find(self, part: Node) -> Rows | None:
        """Return the rows that meet a condition, without looking at all of them; None where that cannot be."""
        if isinstance(part, IdTest):
            return Rows(self.table.length, np.unique(self._numbers_of(part.ids)), None)
        if self._cache is None or (key := self._key(part)) is None:
            return None

        def meet(numbers: Numbers) -> Mask | None:
            masks = self._among(numbers).truth(part, wanted=True)
            return masks.certain if masks.is_known else None

        return self._cache.find(key, meet)

    def _rows_to_keep(self, part: Node) -> Rows | None:
        """Look at all rows for a condition that was asked for before; None for others, and for what is doubtful."""
        if self._cache is None or (key := self._key(part)) is None or not self._cache.wants(key):
            return None
        pieces = []
        for _, piece in self._pieces():
            masks = piece.truth(part, wanted=True)
            if not masks.is_known:
                return None
            pieces.append(np.packbits(masks.certain))
        rows = Rows.of_bits(np.concatenate([np.zeros(0, np.uint8), *pieces]), self._length)
        self._cache.keep(key, rows, condition_bytes=_bytes_of(part))
        return rows

    def _peek(self, part: Node) -> Rows | None:
        if self._cache is None or (key := self._key(part)) is None:
            return None
        return self._cache.peek(key)

    def _of_all_rows(self, part: Node) -> Masks:
        rows = self._find(part) or self._rows_to_keep(part)
        return Masks.of(rows.mask) if rows is not None else self._in_pieces([part], None)

    def _key(self, part: Node) -> Hashable | None:
        """Return the name of a condition in the cache; None where it depends on more than the columns, or is long."""
        if not _may_be_kept(part):
            return None
        return part, tuple(self.keys)  # a property has other places in other collections

    # --- pieces ---

    def _pieces(self) -> Iterator[tuple[slice, Evaluation]]:
        """Go through all rows, some at a time."""
        room = np.empty(min(PIECE, self._length), np.intp)
        for start in range(0, self._length, PIECE):
            rows = slice(start, min(start + PIECE, self._length))
            piece = self._among(rows)
            piece._room = room
            yield rows, piece

    def _in_pieces(self, parts: Sequence[Node | GroupTest], bits: Bits | None) -> Masks:
        """Return which rows of these, or of all, meet all conditions."""
        if not parts and bits is not None:
            return Masks.of(mask_of(bits, self._length))
        certain = np.empty(self._length, np.bool_)
        possible = certain
        for rows, piece in self._pieces():
            mask = None if bits is None else mask_of(bits[rows.start // 8 :], piece._length)
            masks = piece.meeting(parts, mask)
            if not masks.is_known and possible is certain:
                possible = certain.copy()
            certain[rows], possible[rows] = masks.certain, masks.possible
        return Masks(certain, possible)

    def meeting(self, parts: Sequence[Node | GroupTest], mask: Mask | None = None) -> Masks:
        """Return which rows of a mask meet all conditions. Where few are left, only they are looked at."""
        masks = Masks.of(np.ones(self._length, np.bool_) if mask is None else mask)
        for at, part in enumerate(parts):
            if self._length > SMALL and np.count_nonzero(masks.possible) * NARROW <= self._length:
                places = np.flatnonzero(masks.possible)
                if not len(places):
                    return masks
                rest = masks.at(places) & self._within(places).meeting(parts[at:])
                return rest.scatter(places, self._length)
            masks = masks & self.truth(part, wanted=True)
        return masks

    def truth(self, node: Node | GroupTest, *, wanted: bool) -> Masks:
        """Return the rows of which a condition is true, or false if that is wanted."""
        budget.checkpoint()
        match node:
            case Visible():
                return Masks.of(self._visible() == wanted)
            case GroupTest(mask):
                return Masks.of(self._look_up(mask if wanted else ~mask, self._column(GROUP)))
            case All(parts) | AnyOf(parts):
                masks = (self.truth(part, wanted=wanted) for part in parts)
                if isinstance(node, All) is wanted:
                    return reduce(Masks.__and__, masks)
                return reduce(Masks.__or__, masks)
            case Not(part):
                return self.truth(part, wanted=not wanted)
            case Constant(value):
                return Masks.of(np.full(self._length, value is wanted))
            case BitTest(bit, has_it):
                return Masks.of((self._column("shown") & bit != 0) == (has_it is wanted))
            case TimeTest():
                return self._timed(node, wanted=wanted)
            case IdTest(ids):
                return Masks.of(self._has_number(ids) == wanted)
            case CodeTest(leaf):
                return self._coded(leaf, wanted=wanted)
            case ItemTest():
                return Masks(np.zeros(self._length, np.bool_), np.ones(self._length, np.bool_))
            case _:
                assert_never(node)

    # --- conditions ---

    def _visible(self) -> Mask:
        mask: Mask = self._column("shown") & (PUBLISHED | RETRACTED) != 0
        if set(self.keys) != self.table.collections:
            mask &= self._per_collection(dict.fromkeys(self.keys, True), False)
        return mask

    def _timed(self, node: TimeTest, *, wanted: bool) -> Masks:
        result = node.test(*(self._column(moment) if isinstance(moment, str) else moment for moment in node.moments))
        mask = result if isinstance(result, np.ndarray) else np.full(self._length, bool(result))
        return Masks.of(mask if wanted else ~mask)

    def _has_number(self, ids: Sequence[str]) -> Mask:
        numbers = self._numbers_of(ids)
        if not isinstance(self._rows, slice):
            return np.isin(self._rows, numbers)
        mask = np.zeros(self._length, np.bool_)
        places = numbers - self._rows.start
        mask[places[(places >= 0) & (places < self._length)]] = True
        return mask

    def _numbers_of(self, ids: Sequence[str]) -> Numbers:
        numbers = np.array([number for each in ids for number in self._numbers_by_id.get(each, ())], np.int64)
        return numbers[numbers < self.table.length]

    def _coded(self, leaf: Leaf, *, wanted: bool) -> Masks:
        verdicts = self._verdicts.get(leaf)
        if verdicts is None:
            return self.truth(ItemTest(None), wanted=wanted)
        codes, is_complete = self._codes_of(leaf)
        if codes.strides == (0,):
            return _for_all_rows(self._masks_of(leaf, verdicts, codes[:1], is_complete, wanted=wanted), self._length)
        return self._masks_of(leaf, verdicts, codes, is_complete, wanted=wanted)

    def _masks_of(self, leaf: Leaf, verdicts: Verdicts, codes: Array, is_complete: bool, *, wanted: bool) -> Masks:
        """Return the rows, by their codes, of which a condition has a truth."""
        if is_complete and verdicts.entries == len(self.dictionaries.of(leaf.place)):
            if wanted and len(verdicts.true_codes) <= FEW_CODES:
                equal = (codes == code for code in verdicts.true_codes)
                return Masks.of(reduce(np.bitwise_or, equal, np.zeros(len(codes), np.bool_)))
            return Masks.of(self._look_up(verdicts.table == (TRUE if wanted else FALSE), codes))
        states = self._look_up(verdicts.table, codes.view(np.uint32))  # what is in no dictionary is the last entry
        certain = states == (TRUE if wanted else FALSE)
        return Masks(certain, certain | (states == UNDECIDED))

    def _look_up(self, table: Array, codes: Array) -> Array:
        """Return the entry of each code."""
        if len(codes) <= len(self._room):
            room = self._room[: len(codes)]
            np.copyto(room, codes)
            codes = room
        return table.take(codes, mode="clip")

    def _codes_of(self, leaf: Leaf) -> tuple[Array, bool]:
        """Return the codes of all rows, and whether they are all in the dictionary."""
        kind, name = leaf.place
        if kind in BITS:
            return (self._column("shown") & BITS[kind] != 0).astype(np.int32), True
        if kind in (COLLECTION, FOOTPRINT):
            return self._column(kind), True
        assert kind == TERM
        if name not in self._codes:
            self._codes[name] = self.codes(name)
            if len(self._codes) > MOST_CODES:
                self._codes.popitem(last=False)
        self._codes.move_to_end(name)
        return self._codes[name]

    def codes(self, name: str) -> tuple[Array, bool]:
        """Return the codes of a property, and whether they are all known: 0 without it, UNCODED if it was lost.

        Where no row has any it is one code in memory, that all rows share.
        """
        places = {key: self.dictionaries.place(name, key) for key in self.keys}
        different_places = set(places.values()) or {ABSENT}
        if len(different_places) == 1:
            place = next(iter(different_places))
            if place < 0:
                return np.broadcast_to(np.int32(UNCODED if place == LOST else 0), self._length), place != LOST
            return self._at(self.table.place(place)), True
        codes = np.zeros(self._length, np.int32)
        for place in different_places - {ABSENT}:
            of_place = self._per_collection({key: True for key, each in places.items() if each == place}, False)
            np.copyto(codes, self._at(self.table.place(place)) if place != LOST else UNCODED, where=of_place)
        return codes, LOST not in different_places

    def codes_at(self, name: str, numbers: Numbers) -> Array:
        """Return the codes of a property in some rows."""
        return self._among(numbers).codes(name)[0]

    def _per_collection(self, values: Mapping[int, Any], otherwise: Any) -> Array:
        """Return a value for each row by its collection."""
        collection = self._column("collection")
        if len(values) == 1 and otherwise is False:
            mask: Array = collection == next(iter(values))
            return mask
        table = np.full(max(self.table.collections, default=0) + 1, otherwise)
        for key, value in values.items():
            table[key] = value
        return table.take(collection)

    # --- rows ---

    def _column(self, name: str) -> Array:
        return self._at(self._source.column(name))

    def _at(self, column: Array) -> Array:
        return column[self._rows]

    def _among(self, rows: slice | Numbers) -> Evaluation:
        """Return an evaluation that looks at some rows only."""
        other = copy(self)
        other._rows, other._codes = rows, OrderedDict()
        return other

    def _within(self, places: Numbers) -> Evaluation:
        """Return an evaluation that looks at some of these rows only."""
        return self._among(places + self._rows.start if isinstance(self._rows, slice) else self._rows[places])


def _common(all_rows: Sequence[Rows]) -> Rows | None:
    """Return the rows that are among all of these, by their numbers where they are few; None where these are none."""
    many = [rows.bits for rows in all_rows if rows.bits is not None]
    few = [rows.numbers for rows in all_rows if rows.numbers is not None]
    bits = reduce(np.bitwise_and, many) if many else None
    if few:
        numbers = reduce(partial(np.intersect1d, assume_unique=True), sorted(few, key=len))
        return Rows(all_rows[0].length, numbers if bits is None else numbers[row_cache.among(bits, numbers)], None)
    if bits is not None and row_cache.count(bits) * NARROW <= all_rows[0].length:
        return Rows(all_rows[0].length, row_cache.numbers_of(bits), None)
    return Rows(all_rows[0].length, None, bits) if bits is not None else None


def _for_all_rows(masks: Masks, length: int) -> Masks:
    """Return, for many rows, the masks of one that is like all of them; they take no memory."""
    certain = np.broadcast_to(masks.certain, length)
    return Masks(certain, certain if masks.is_known else np.broadcast_to(masks.possible, length))


def _may_be_kept(part: Node) -> bool:
    """Return whether a condition depends on the columns alone, and is short enough to be kept as a key."""
    return not any(isinstance(node, IdTest | ItemTest) for node in walk((part,))) and _bytes_of(part) <= LARGEST_KEPT


def _bytes_of(part: Node) -> int:
    """Return how many bytes the texts in a condition have."""
    return sum(len(node.leaf.text) for node in walk((part,)) if isinstance(node, CodeTest))


def _is_of_groups(part: Node) -> bool:
    """Return whether a condition is about nothing but what all rows of a group have in common."""
    return all(_names_groups_alone(node) for node in walk((part,)))


def _names_groups_alone(node: Node) -> bool:
    match node:
        case IdTest() | ItemTest():
            return False
        case CodeTest(leaf):
            return leaf.place[0] != TERM
        case TimeTest(_, moments):
            return all(moment in GROUP_COLUMNS for moment in moments if isinstance(moment, str))
    return True


def _cost(node: Node) -> int:
    """Return how much a condition costs, as a rank: codes and bits before moments before the rest."""
    match node:
        case Visible() | CodeTest() | BitTest() | Constant():
            return 0
        case TimeTest() | IdTest():
            return 1
    return 2


def _properties_of(node: Node) -> frozenset[str]:
    """Return the properties with codes that a condition names; a condition on something else has the name ""."""
    match node:
        case All(parts) | AnyOf(parts):
            return frozenset().union(*map(_properties_of, parts))
        case Not(part):
            return _properties_of(part)
        case CodeTest(leaf):
            return frozenset((leaf.place[1] or leaf.place[0],))
    return frozenset(("",))
