"""Time coordinates of the CF conventions (1.12, 4.4): numbers since a moment, in one of nine calendars.

Moments are texts `YYYY-MM-DDThh:mm:ss` in the file's own calendar, which sort as time goes. `moment_text` puts them
into the calendar that everybody searches by.
"""

from __future__ import annotations

import math
import warnings
from calendar import monthrange
from datetime import timedelta
from fractions import Fraction
from typing import Any, Final

from fedstac.scan import units
from fedstac.scan.values import Unusable, printable

CALENDARS: Final = frozenset(
    ("standard", "gregorian", "proleptic_gregorian", "noleap", "365_day", "360_day", "all_leap", "366_day", "julian")
)
WITHOUT_YEAR_0: Final = frozenset(("standard", "gregorian", "julian"))
# what holds at all times: STAC has no item without a start, and a search for any time finds it
ALWAYS: Final = ("0001-01-01T00:00:00", "9999-12-31T23:59:59")
SECOND: Final = 1_000_000  # ticks, which are microseconds
FURTHEST: Final = 7_400_000 * 86_400 * SECOND  # over 20 000 years: from any year that units can name, beyond all dates


class Beyond(Unusable):
    """A moment before year 1 or after year 9999. `limit` is the first or the last moment of these years."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__("time", message)
        self.limit = limit


class Clock:
    """How a time coordinate counts. Unusable where its units or its calendar are none that is known here."""

    def __init__(self, text: str, calendar: str) -> None:
        import cftime

        self.calendar = calendar.strip().lower()
        if self.calendar not in CALENDARS:
            raise Unusable("time", f"the calendar {printable(calendar)} of time is not one that is known here")
        reference = units.reference(text)
        has_year_0 = self.calendar not in WITHOUT_YEAR_0
        try:
            if reference.year < 0 or (reference.year == 0 and not has_year_0):
                raise ValueError("the year is before the first one")
            day = cftime.datetime(
                reference.year, reference.month, reference.day, calendar=self.calendar, has_year_zero=has_year_0
            )
        except ValueError as error:
            reason = printable(str(error), 120)
            raise Unusable(
                "time", f"the units {printable(text)} of time name no date of {self.calendar}: {reason}"
            ) from None
        self._day: Any = day
        self._seconds = reference.seconds
        self._step = reference.step

    def ticks(self, value: float) -> int:
        """Return microseconds from the reference day's midnight to the moment that a number stands for."""
        if not math.isfinite(value):
            raise Unusable("time", "time holds a number that is not finite")
        return round((Fraction(value) * self._step + self._seconds) * SECOND)

    def moment(self, ticks: int) -> str:
        """Return the moment so many microseconds after the reference day's midnight, to the second.

        Unusable if it is out of range.
        """
        date: Any = None
        if abs(ticks) < FURTHEST:
            with warnings.catch_warnings():  # that a year before the first one is unusual is said below
                warnings.simplefilter("ignore")
                date = self._day + timedelta(microseconds=ticks + SECOND // 2)  # then cut: rounded
            year, month, day, hour, minute, second = date.timetuple()[:6]
            if 1 <= year <= 9999:
                return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        where = f"in the year {date.timetuple()[0]}" if date is not None else "more than 20 000 years away"
        is_before = date.timetuple()[0] < 1 if date is not None else ticks < 0
        raise Beyond(f"time is {where}; dates are in the years 1 to 9999", ALWAYS[0] if is_before else ALWAYS[1])


def moment_text(moment: str) -> str:
    """Return the moment as RFC 3339 has it: a day that its month lacks (30 February of 360_day) is the month's last."""
    year, month, day = int(moment[:4]), int(moment[5:7]), int(moment[8:10])
    return f"{moment[:8]}{min(day, monthrange(year, month)[1]):02}{moment[10:]}Z"
