"""Numbers since a moment, in the calendars of CF."""

from __future__ import annotations

import pytest

from fedstac.scan.calendars import moment, rfc3339
from fedstac.scan.values import Unusable


@pytest.mark.parametrize(
    ("value", "units", "calendar", "expected"),
    [
        (0, "days since 1850-01-01", "standard", "1850-01-01T00:00:00"),
        (15.5, "days since 1850-01-01 00:00:00", "noleap", "1850-01-16T12:00:00"),
        (59, "days since 2000-01-01", "365_day", "2000-03-01T00:00:00"),
        (59, "days since 2000-01-01", "proleptic_gregorian", "2000-02-29T00:00:00"),
        (59, "days since 2000-01-01", "360_day", "2000-02-30T00:00:00"),
        (59, "days since 2001-01-01", "all_leap", "2001-02-29T00:00:00"),
        (59, "days since 1900-01-01", "julian", "1900-02-29T00:00:00"),
        (59, "days since 1900-01-01", "Gregorian", "1900-03-01T00:00:00"),
        (1.5, "hours since 2015-01-01 00:00", "standard", "2015-01-01T01:30:00"),
        (0.9999999999, "days since 2000-01-01", "standard", "2000-01-02T00:00:00"),  # a hair before is rounded
        (365 * 9998, "days since 0001-01-01", "noleap", "9999-01-01T00:00:00"),
    ],
)
def test_moments_in_their_own_calendar(value: float, units: str, calendar: str, expected: str) -> None:
    assert moment(value, units, calendar) == expected


def test_the_last_second_before() -> None:
    assert moment(31, "days since 1850-01-01", "noleap", earlier=1) == "1850-01-31T23:59:59"
    assert moment(60, "days since 2000-01-01", "360_day", earlier=1) == "2000-02-30T23:59:59"


@pytest.mark.parametrize(
    ("value", "units", "calendar", "reason"),
    [
        (1, "days since 1850-01-01", "lunar", "calendar"),
        (1, "fortnights since 1850-01-01", "standard", "no date"),
        (1, "months since 1850-01-01", "standard", "no date"),
        (1, "days", "standard", "units"),
        (1, "days since yesterday\x1b[2J", "standard", "units"),
        (1e300, "days since 1850-01-01", "standard", "no date"),
        (float("nan"), "days since 1850-01-01", "standard", "finite"),
        (0, "days since 0000-01-01", "noleap", "year 0"),
        (-800 * 365, "days since 0100-01-01", "noleap", "year -"),
        (3652500, "days since 1850-01-01", "standard", "year 118"),
    ],
)
def test_what_is_no_moment_is_named(value: float, units: str, calendar: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason) as caught:
        moment(value, units, calendar)
    assert caught.value.rule == "time"
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("own", "everybodys"),
    [
        ("2000-02-30T12:00:00", "2000-02-29T12:00:00Z"),
        ("2001-02-30T12:00:00", "2001-02-28T12:00:00Z"),
        ("1900-02-29T00:00:00", "1900-02-28T00:00:00Z"),
        ("1850-01-31T23:59:59", "1850-01-31T23:59:59Z"),
        ("0001-04-30T00:00:00", "0001-04-30T00:00:00Z"),
    ],
)
def test_a_day_that_its_month_lacks_is_the_months_last(own: str, everybodys: str) -> None:
    assert rfc3339(own) == everybodys
