"""Odd files: `fedstac scan` reads what xarray and cf_xarray read, or refuses by name what is uncertain.

Two thousand in the soak, and every fourth hundred of them in each run.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cftime
import pytest

from fedstac.scan import reader
from fedstac.scan.calendars import ALWAYS
from fedstac.scan.values import Unusable
from tests.scan import odd_files
from tests.scan.odd_files import Odd

FILES, BLOCKS = 2000, 20
EVERY = 4  # block is in each run


@pytest.mark.parametrize(
    "block", [pytest.param(n, marks=[pytest.mark.soak] if n % EVERY else []) for n in range(BLOCKS)]
)
def test_odd_files_have_the_extent_that_xarray_reads_or_are_refused_by_name(block: int, tmp_path: Path) -> None:
    refused = 0
    for seed in range(block * FILES // BLOCKS, (block + 1) * FILES // BLOCKS):
        odd = odd_files.write(tmp_path, seed)
        try:
            refused += compare(odd)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}; {odd}") from error
        odd.path.unlink()
    assert refused < FILES // BLOCKS // 3


def compare(odd: Odd) -> bool:
    """Return whether the file was refused; AssertionError if its extent is another one than expected."""
    facts = read(odd)
    if isinstance(facts, Unusable):
        assert odd.refused, facts.message
        assert facts.rule in ("time", "coordinates")
        assert facts.message.isprintable()
        return True
    assert not odd.refused
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of years before the first one
        expected = odd_files.expected(odd)
        for which, wanted in (("start", expected.start), ("end", expected.end)):
            assert_moment(facts[which], wanted, odd.calendar.lower())
    assert bool(facts["notes"]) == (
        odd.is_noted or expected.is_odd or is_beyond(expected.start) or is_beyond(expected.end)
    )
    assert_box(facts["box"], expected)
    return False


def read(odd: Odd) -> dict[str, Any] | Unusable:
    status = odd.path.stat()
    try:
        return reader.read(str(odd.path), status.st_size, status.st_mtime_ns, checksum=False, report=lambda done: None)
    except Unusable as fault:
        return fault


def is_beyond(moment: Any) -> bool:
    return not 1 <= moment.year <= 9999


def assert_moment(text: str, wanted: Any, calendar: str) -> None:
    if is_beyond(wanted):
        assert text == ALWAYS[wanted.year > 9999], wanted
        return
    numbers = [int(text[:4]), int(text[5:7]), int(text[8:10]), int(text[11:13]), int(text[14:16]), int(text[17:19])]
    found = cftime.datetime(*numbers, calendar=calendar, has_year_zero=wanted.has_year_zero)
    assert abs((found - wanted).total_seconds()) <= 1, (text, wanted)


def assert_box(box: list[float] | None, expected: odd_files.OddFacts) -> None:
    if expected.latitudes is None:
        assert box is None
        return
    assert box is not None
    west, south, east, north = box
    assert (south, north) == pytest.approx(expected.latitudes, abs=1e-3)
    assert east - west == pytest.approx(expected.width, abs=2e-3), (box, expected)
    for start, width in expected.arcs or ():
        offset = (start - west + 1e-3) % 360
        assert offset + width <= east - west + 4e-3 or east - west >= 359.999, (start, width, box)
