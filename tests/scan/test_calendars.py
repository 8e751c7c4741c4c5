"""Numbers since a moment, in the calendars of CF."""

from __future__ import annotations

import pytest

from fedstac.scan.calendars import Beyond, Clock, moment_text
from fedstac.scan.values import Unusable


def moment(value: float, units: str, calendar: str) -> str:
    clock = Clock(units, calendar)
    return clock.moment(clock.ticks(value))


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


@pytest.mark.parametrize(
    ("value", "units", "calendar", "reason"),
    [
        (1, "days since 1850-01-01", "lunar", "calendar"),
        (1, "lustra since 1850-01-01", "standard", "no unit of time"),
        (1, "months since 1850-01-01", "standard", "uncertain"),
        (1, "Year since 1850-01-01", "360_day", "uncertain"),
        (1, "days", "standard", "units"),
        (1, "days since yesterday\x1b[2J", "standard", "units"),
        (1e300, "days since 1850-01-01", "standard", "20 000 years away"),
        (1, "days since 1850-02-30", "standard", "no date of standard"),
        (1, "days since 0000-01-01", "standard", "no date of standard"),
        (1, "days since -001-01-01", "noleap", "no date of noleap"),
        (1, "days since 1850-01-01", "365_DAYS", "'365_DAYS'"),
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
    ("units", "at_one"),
    [
        ("days since 1850-01-01 00:00:00 UTC", "1850-01-02T00:00:00"),
        ("days since 1850-01-01 00:00 gmt", "1850-01-02T00:00:00"),
        ("days since 1850-01-01 UTC", "1850-01-02T00:00:00"),
        ("days since 1850-01-01T00:00:00Z", "1850-01-02T00:00:00"),
        ("Days  Since   1850-1-1", "1850-01-02T00:00:00"),
        ("days since 1850", "1850-01-02T00:00:00"),
        ("days since 1850-1", "1850-01-02T00:00:00"),
        ("days since 18500101T0630", "1850-01-02T06:30:00"),
        ("days since 1850-01-01 6", "1850-01-02T06:00:00"),
        ("days since 1850-1-1 0:0:0.0 -6:00", "1850-01-02T06:00:00"),
        ("days since 1850-1-1 0:0:0.0 -6", "1850-01-02T06:00:00"),
        ("days since 1850-1-1 0:0:0.0 -600", "1850-01-02T06:00:00"),
        ("days since 1850-1-1 0:0:0.0 -06", "1850-01-02T06:00:00"),
        ("days since 1850-1-1 0:0:0.0 -0600", "1850-01-02T06:00:00"),
        ("days since 1850-1-1 0:0:0.0 +5:30", "1850-01-01T18:30:00"),
        ("days since 1850-1-1 0:0:0.0+0530", "1850-01-01T18:30:00"),
        ("days since 1850-01-01 00:00:29.75", "1850-01-02T00:00:30"),
        ("d since 1850-01-01", "1850-01-02T00:00:00"),
        ("h since 1850-01-01", "1850-01-01T01:00:00"),
        ("hrs since 1850-01-01", "1850-01-01T01:00:00"),
        ("min since 1850-01-01", "1850-01-01T00:01:00"),
        ("sec since 1850-01-01", "1850-01-01T00:00:01"),
        ("ms since 1850-01-01 00:00:59.999", "1850-01-01T00:01:00"),
        ("6 hours since 1850-01-01", "1850-01-01T06:00:00"),
        ("weeks since 1850-01-01", "1850-01-08T00:00:00"),
        ("common_year since 1851-01-01", "1852-01-01T00:00:00"),
    ],
)
def test_units_in_the_spellings_of_udunits(units: str, at_one: str) -> None:
    assert moment(1, units, "standard") == at_one


@pytest.mark.parametrize(
    "units",
    [
        "Min since 1850-01-01",  # megainches
        "Msec since 1850-01-01",  # megaseconds
        "days since 1850-01-01 -6:00",  # to UDUNITS a clock time before midnight, to people a zone
        "days since 1850-01-01 00:00 5:30",
        "days since 1850-01-01 00:00 EST",
        "days since 1850-01-01 24:00",
        "days since 1850-01-01 00:60",
        "days since 1850-01-01 00:00 -25:00",
        "days since 1850/01/01",
        "days since 1850-001",
        "days since 20000-01-01",
        "0 days since 1850-01-01",
        "dayssince 1850-01-01",
    ],
)
def test_units_of_uncertain_meaning_are_refused_by_name(units: str) -> None:
    with pytest.raises(Unusable) as caught:
        Clock(units, "standard")
    assert caught.value.rule == "time"
    assert repr(units) in caught.value.message


@pytest.mark.parametrize("calendar", ["standard", "julian", "proleptic_gregorian", "noleap", "360_day", "all_leap"])
def test_beyond_the_years_of_dates_there_is_the_nearest_moment(calendar: str) -> None:
    for days, limit in ((-400, "0001-01-01T00:00:00"), (-1e9, "0001-01-01T00:00:00"),
                        (4e6, "9999-12-31T23:59:59"), (1e200, "9999-12-31T23:59:59")):  # fmt: skip
        with pytest.raises(Beyond) as caught:
            moment(days, "days since 0001-06-01", calendar)
        assert caught.value.limit == limit


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
    assert moment_text(own) == everybodys
