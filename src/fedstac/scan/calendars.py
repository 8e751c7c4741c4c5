"""Time coordinates of the CF conventions (1.12, 4.4): numbers since a moment, in one of nine calendars.

Moments are texts `YYYY-MM-DDThh:mm:ss` in the file's own calendar, which sort as time goes, until `rfc3339` puts them
into the one that everybody searches by.
"""

from __future__ import annotations

import math
import re
from calendar import monthrange
from datetime import timedelta
from typing import Final

from fedstac.scan.values import Unusable, shown

CALENDARS: Final = frozenset(
    ("standard", "gregorian", "proleptic_gregorian", "noleap", "365_day", "360_day", "all_leap", "366_day", "julian")
)
UNITS: Final = re.compile(r"[A-Za-z]+ since [-+0-9TZ:. ]+")
# what holds at all times: STAC has no item without a start, and a search for any time finds it
ALWAYS: Final = ("0001-01-01T00:00:00", "9999-12-31T23:59:59")


def moment(value: float, units: str, calendar: str, *, earlier: int = 0) -> str:
    """The moment that a number stands for, to the second; `earlier` seconds are taken off.

    Unusable where the units or the calendar are none, or the year is not in 1 to 9999.
    """
    import cftime

    kind = calendar.lower()
    if kind not in CALENDARS:
        raise Unusable("time", f"the calendar {shown(calendar)} of time is not one of CF's")
    if not UNITS.fullmatch(units):
        raise Unusable("time", f"the units {shown(units)} of time are not of the form `days since 1850-01-01`")
    if not math.isfinite(value):
        raise Unusable("time", "time holds a number that is not finite")
    try:
        date = cftime.num2date(value, units, kind, only_use_cftime_datetimes=True)
        date += timedelta(microseconds=500_000) - timedelta(seconds=earlier)  # then cut: rounded
        year, month, day, hour, minute, second = date.timetuple()[:6]
    except (ValueError, OverflowError, ArithmeticError, TypeError) as error:
        raise Unusable("time", f"{value:g} {shown(units)} ({kind}) is no date: {shown(str(error), 120)}") from None
    if not 1 <= year <= 9999:
        raise Unusable("time", f"time is in the year {year}; dates are in the years 1 to 9999")
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"


def rfc3339(moment: str) -> str:
    """The moment as RFC 3339 has it: a day that its month lacks (30 February of 360_day) is the month's last."""
    year, month, day = int(moment[:4]), int(moment[5:7]), int(moment[8:10])
    return f"{moment[:8]}{min(day, monthrange(year, month)[1]):02}{moment[10:]}Z"
