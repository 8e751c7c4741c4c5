"""Counts over columns are those of a plain loop over the rows."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedstac.columns import counts
from fedstac.columns.counts import EPOCH, NearRows

moments = st.datetimes(timezones=st.just(UTC))
edges = st.integers(1, 9999).flatmap(
    lambda year: st.sampled_from(
        [datetime(year, 1, 1, tzinfo=UTC), datetime(year, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)]
    )
)


def microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draw codes of rows, and the numbers of some of them."""
    far = draw(st.sampled_from((40, 10_000)))  # more than all rows, and more than they are counted up to
    codes = draw(st.lists(st.one_of(st.integers(-1, 40), st.just(far)), max_size=60))
    numbers = [n for n in range(len(codes)) if draw(st.booleans())]
    return np.array(codes, np.int32), np.array(numbers, np.int64)


@given(rows())
def test_codes_are_counted(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    codes, numbers = drawn
    wanted = Counter(int(codes[n]) for n in numbers if codes[n] > 0)
    assert counts.by_code(codes, numbers) == wanted
    keys = np.maximum(codes, 0)
    assert counts.by_key(keys, numbers) == Counter(int(keys[n]) for n in numbers)


@given(st.lists(st.one_of(moments, edges), max_size=40), st.data())
def test_moments_are_counted_by_the_year_of_the_calendar(drawn: list[datetime], data: st.DataObject) -> None:
    column = np.array([microseconds(moment) for moment in drawn], np.int64)
    numbers = np.array([n for n in range(len(drawn)) if data.draw(st.booleans())], np.int64)
    chosen = [drawn[n] for n in numbers]
    assert counts.by_year(column, numbers) == Counter(moment.year for moment in chosen)
    first, last = counts.bounds(column, column, numbers)
    assert (first, last) == ((min(chosen), max(chosen)) if chosen else (None, None))


def test_moments_beyond_the_calendar_count_as_its_ends() -> None:
    hour = 3_600_000_000
    column = np.array([microseconds(datetime.min.replace(tzinfo=UTC)) - hour,
                       microseconds(datetime.max.replace(tzinfo=UTC)) + hour], np.int64)  # fmt: skip
    numbers = np.arange(2)
    assert counts.by_year(column, numbers) == {1: 1, 9999: 1}
    first, last = counts.bounds(column, column, numbers)
    assert first is not None
    assert last is not None
    assert (first.isoformat(), last.isoformat()) == ("0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00")


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=40))
def test_rows_miss_at_most_the_condition_that_is_left_out(truths: list[tuple[bool, bool, bool, bool]]) -> None:
    base, *own = (np.array([each[n] for each in truths], bool) for n in range(4))
    near = NearRows(base, dict(zip("abc", own, strict=True)))
    assert near.numbers.tolist() == [n for n, each in enumerate(truths) if all(each)]
    for left_out, name in enumerate("abc", 1):
        others = [n for n, each in enumerate(truths) if all(t for i, t in enumerate(each) if i != left_out)]
        assert near.without(name).tolist() == others
    assert near.without("d").tolist() == near.numbers.tolist()


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_sums_are_exact(sizes: list[int]) -> None:
    column = np.array(sizes, np.int64)
    assert counts.total(column, np.arange(len(sizes))) == sum(sizes)
