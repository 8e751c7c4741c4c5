"""Years, months and days as the intervals that they mean: a node takes moments and intervals of moments only."""

from __future__ import annotations

import calendar
import re

PERIOD = re.compile(r"([0-9]{4})(?:-(0[1-9]|1[0-2])(?:-([0-9]{2}))?)?")


def interval(text: str) -> str:
    """Return the interval as RFC 3339 has it: `2000` is all of that year, `2000-02/2001` ends with 2001.

    Moments, open ends and whatever else stay as they are: the node judges them.
    """
    ends = text.split("/")
    if len(ends) > 2 or not any(PERIOD.fullmatch(end) for end in ends):
        return text
    return f"{_moment(ends[0], last=False)}/{_moment(ends[-1], last=True)}"


def _moment(end: str, *, last: bool) -> str:
    """Return the first or the last moment of a period."""
    period = PERIOD.fullmatch(end)
    if period is None or int(period[1]) == 0:
        return end
    year, month, day = period.groups()
    month = month or ("12" if last else "01")
    day = day or (f"{calendar.monthrange(int(year), int(month))[1]:02}" if last else "01")
    return f"{year}-{month}-{day}T{'23:59:59.999999' if last else '00:00:00'}Z"
