"""Counts over columns of rows: by code, by year, sums and bounds. Pure functions over arrays, and their sum: `count`.

Rows are given by their numbers, which are their places in the columns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

import numpy as np

from fedstac.columns.plan import Plan
from fedstac.columns.selection import Evaluation, Selection
from fedstac.columns.table import Array, Mask, Numbers
from fedstac.domain import aggregating
from fedstac.domain.aggregating import Counts, Measure
from fedstac.runtime import budget

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL; moments are microseconds since
MICROSECONDS_OF_YEAR: Final = 365.2425 * 86_400e6  # on average
FAR_CODE: Final = 4  # times the rows: from there on codes are sorted, below they are counted, which is faster
PIECE: Final = 1 << 16  # rows of one look for a value


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be counted: measures, and facets by property.

    multi_select: the counts of a facet leave the conditions on it out.
    """

    measures: Collection[Measure]
    properties: Collection[str]
    multi_select: bool


def count(wish: Wish, evaluation: Evaluation, plan: Plan, selection: Selection) -> Counts | None:
    """Count what a search finds; None where a condition that is left out elsewhere is one that memory cannot tell."""
    near = None
    if wish.multi_select:
        near = _near(wish, evaluation, plan)
        if near is None:
            return None
    numbers = selection.hits
    table, dictionaries = evaluation.table, evaluation.dictionaries
    first, last = (None, None)
    if {Measure.FIRST, Measure.LAST} & set(wish.measures):
        first, last = bounds(table.column("starts"), table.column("ends"), numbers)
    names = {key: name for name, key in dictionaries.collections.items()}
    facets = {}
    for name in wish.properties:
        budget.checkpoint()
        rows = near.without(name) if near else numbers
        values = dictionaries.values_of(name)
        codes = by_code(evaluation.codes(name)[0], rows)
        facets[name] = aggregating.facet_counts(((values.get(code), n) for code, n in codes.items()), len(rows))
    return Counts(
        datasets=len(numbers),
        files=total(table.column("files"), numbers) if Measure.FILES in wish.measures else 0,
        bytes=total(table.column("size"), numbers) if Measure.BYTES in wish.measures else 0,
        first=first,
        last=last,
        years=by_year(table.column("starts"), numbers) if Measure.YEARS in wish.measures else {},
        collections={names[key]: n for key, n in by_key(table.column("collection"), numbers).items()}
        if Measure.COLLECTIONS in wish.measures
        else {},
        facets=facets,
    )


def properties_shown(evaluation: Evaluation, plan: Plan, selection: Selection) -> frozenset[tuple[str, str]]:
    """Return the facets of which a row that searches may find has a value, as (collection, property)."""
    table, dictionaries = evaluation.table, evaluation.dictionaries
    names = {key: name for name, key in dictionaries.collections.items()}
    by_place: dict[int, dict[int, str]] = {}  # of the codes: the property of each collection, by its key
    for name, places in dictionaries.slots.items():
        for key, place in places.items():
            if place >= 0:
                by_place.setdefault(place, {})[key] = name
    visible, collections = evaluation.visible(), table.column("collection")
    pairs = set()
    for place, properties in by_place.items():
        missing = set(properties) & table.collections
        codes = table.place(place)
        for start in range(0, table.length, PIECE):
            if not missing:
                break
            piece = slice(start, start + PIECE)
            keys = by_key(collections[piece], np.flatnonzero((codes[piece] != 0) & visible[piece])).keys() & missing
            pairs |= {(names[key], properties[key]) for key in keys}
            missing -= keys
    return frozenset(pairs)


def _near(wish: Wish, evaluation: Evaluation, plan: Plan) -> NearRows | None:
    """Return the rows that meet all conditions, but maybe those on one of the facets; None where memory cannot tell."""
    base, own = evaluation.visible(), dict[str, Mask]()
    for condition in evaluation.each(plan):
        name = next(iter(condition.properties), "")
        if not condition.masks.is_known:
            return None
        mask = condition.masks.certain
        if condition.properties == {name} and name in wish.properties:
            own[name] = own[name] & mask if name in own else mask
        else:
            base = base & mask
    return NearRows(base, own)


class NearRows:
    """The rows that meet all conditions but at most one, and which one that is.

    `base`: the rows that meet the conditions that nobody leaves out. `own`: those that meet the conditions on a
    property, by its name.
    """

    def __init__(self, base: Mask, own: Mapping[str, Mask]) -> None:
        numbers = np.flatnonzero(base)
        missed = np.zeros(len(numbers), np.int16)
        missing = np.zeros(len(numbers), np.int16)
        self._places = {name: n for n, name in enumerate(own, 1)}
        for name, mask in own.items():
            fails = ~mask[numbers]
            missed += fails
            missing[fails] = self._places[name]
        near = missed <= 1
        self._numbers, self._missing = (numbers[near], missing[near]) if own else (numbers, missing)
        self.numbers: Numbers = self._numbers[self._missing == 0] if own else numbers

    def without(self, property: str) -> Numbers:
        """Return the rows that meet all conditions but those on a property."""
        place = self._places.get(property)
        if place is None:
            return self.numbers
        meeting: Numbers = self._numbers[(self._missing == 0) | (self._missing == place)]
        return meeting


def by_code(codes: Array, numbers: Numbers) -> dict[int, int]:
    """Return how many of the rows have each code; without those that have none, or one of no dictionary."""
    return of_codes(codes[numbers])


def of_codes(codes: Array) -> dict[int, int]:
    """Return how often each code of a dictionary comes, in the order of the codes."""
    codes = np.maximum(codes, 0)
    if int(codes.max(initial=0)) > FAR_CODE * len(codes):
        present, counts = np.unique(codes, return_counts=True)
    else:
        counts = np.bincount(codes)
        present = np.flatnonzero(counts)
        counts = counts[present]
    real = present > 0
    return dict(zip(present[real].tolist(), counts[real].tolist(), strict=True))


def by_key(keys: Array, numbers: Numbers) -> dict[int, int]:
    """Return how many of the rows have each key, from 0 on."""
    counts = np.bincount(keys[numbers])
    present = np.flatnonzero(counts)
    return dict(zip(present.tolist(), counts[present].tolist(), strict=True))


def total(column: Array, numbers: Numbers) -> int:
    """Return the sum of a column. It is exact: petabytes fit, and what does not is summed up in Python."""
    values = column[numbers]
    if len(values) and int(values.max()) > np.iinfo(np.int64).max // len(values):
        return sum(values.tolist())
    return int(values.sum(dtype=np.int64))


def by_year(moments: Array, numbers: Numbers) -> dict[int, int]:
    """Return how many of the moments are in each year of the calendar; those beyond it are in its first or last."""
    starts = _year_starts()
    values = np.maximum(moments[numbers], starts[0])
    years = np.floor(values / MICROSECONDS_OF_YEAR).astype(np.int64) + (EPOCH.year - 1)  # from year 1, off by one
    np.clip(years, 0, len(starts) - 1, out=years)
    years -= values < starts[years]
    years += values >= np.append(starts[1:], np.iinfo(np.int64).max)[years]
    return {year + 1: count for year, count in by_key(years, np.arange(len(years))).items()}


@cache
def _year_starts() -> Array:
    """Return the first moment of each year from 1 on, in microseconds."""
    years = np.arange(1 - 1970, 10_000 - 1970).astype("datetime64[Y]").astype("datetime64[us]").astype(np.int64)
    return years - int((EPOCH - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def bounds(starts: Array, ends: Array, numbers: Numbers) -> tuple[datetime | None, datetime | None]:
    """Return the first start and the last end; one beyond the calendar is its first or last moment."""
    if not len(numbers):
        return None, None
    return _moment(int(starts[numbers].min())), _moment(int(ends[numbers].max()))


def _moment(microseconds: int) -> datetime:
    try:
        return EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if microseconds < 0 else datetime.max.replace(tzinfo=UTC)
