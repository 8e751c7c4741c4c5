"""When the data of a file is: the first and the last moment of its time coordinate (CF 1.12, 4.4, 7.1, 7.4).

A step's bounds count where they hold the step's own time. Where they do not, they say nothing: the point counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from fedstac.scan import attributes, units, variables
from fedstac.scan.attributes import Notes, note, quiet_text
from fedstac.scan.calendars import SECOND, Beyond, Clock
from fedstac.scan.values import Unusable, printable
from fedstac.scan.variables import Values, shown_name

RULE: Final = "time"
ROUNDING: Final = 1e-7  # of a number of 32 bits


def span_of(file: Any, near: Sequence[Any], frequency: str, notes: Notes) -> tuple[str | None, str | None]:
    """Return the first and the last moment, as calendars.py writes them; None if nothing depends on time (fx).

    A step lasts from its lower bound to the last second before its upper one. Bounds before year 1 or after 9999 end
    there, with a note. Unusable where time cannot be understood, or a point lies out of these years.
    """
    if frequency == "fx":
        return None, None
    time = _pick(near)
    if time is None:
        raise Unusable(RULE, f"the variable has no time coordinate, and its frequency is {printable(frequency)}")
    if len(time.shape) > 1:
        raise Unusable(RULE, f"time has {len(time.shape)} dimensions")
    if attributes.exists(time, "month_lengths"):
        raise Unusable(RULE, "time has a calendar of its own (month_lengths), which is not known here")
    calendar = quiet_text(time, "calendar") if attributes.exists(time, "calendar") else "standard"
    clock = Clock(quiet_text(time, "units"), calendar)
    steps = _Steps(file, time, notes)
    for number in steps.points:
        clock.moment(clock.ticks(number))  # Beyond: that a point is in no year which dates have is an error
    ends = [clock.ticks(number) for number in steps.last_points]
    ends += [clock.ticks(number) - SECOND for number in steps.last_bounds]
    start = clock.ticks(min(steps.firsts))
    return _limited(clock, start, "first", notes), _limited(clock, max(start, *ends), "last", notes)


def _limited(clock: Clock, ticks: int, which: str, notes: Notes) -> str:
    try:
        return clock.moment(ticks)
    except Beyond as beyond:
        note(notes, RULE, f"the {which} bound of time lies out of the years 1 to 9999; {beyond.limit}Z stands for it")
        return beyond.limit


def _pick(near: Sequence[Any]) -> Any:
    """Return the variable that is time: rather a dimension's than another one."""
    return next(iter(sorted((one for one in near if _is(one)), key=lambda one: not one.is_scale)), None)


def _is(one: Any) -> bool:
    standard = quiet_text(one, "standard_name")
    return standard == "time" if standard else units.is_time(quiet_text(one, "units")) or shown_name(one) == "time"


class _Steps:
    """The numbers of a time coordinate that matter: `points` are the first and the last one of all.

    `firsts` are the first lower bound and the first point without a bound that counts, `last_bounds` and `last_points`
    the last ones of each; a kind of which there is none is left out. Unusable where there is no step.
    """

    def __init__(self, file: Any, time: Any, notes: Notes) -> None:
        bounds = variables.bounds(file, time, ("bounds", "climatology"), RULE, notes)
        values, edges = Values(time, RULE), Values(bounds, RULE) if bounds is not None else None
        if bounds is not None:
            variables.check_size(bounds)
        points, lows, highs, alone = _Range(), _Range(), _Range(), _Range()
        odd = 0
        for block in variables.blocks(time, 1 if bounds is None else bounds.shape[-1]):
            there = np.reshape(values.read(block), -1)
            is_step = ~np.isnan(there)
            there = there[is_step]
            points.add(there)
            if edges is None:
                alone.add(there)
                continue
            rows = np.reshape(edges.read(block), (-1, bounds.shape[-1]))[is_step]
            low, high = np.fmin.reduce(rows, axis=1), np.fmax.reduce(rows, axis=1)
            slack = ROUNDING * np.fmax(np.abs(low), np.abs(high))
            holds = (low - slack <= there) & (there <= high + slack)
            lasts = holds & (low < high)  # what has no length is an instant, and its point says all
            lows.add(low[lasts])
            highs.add(high[lasts])
            alone.add(there[~lasts])
            odd += int(np.count_nonzero(~holds))
        if not points:
            raise Unusable(RULE, "the file holds no time step")
        if odd:
            what = f"{odd} of {math.prod(time.shape)} steps"
            note(
                notes,
                RULE,
                f"the bounds {shown_name(bounds)} of {what} do not hold the step itself, which counts alone",
            )
        self.points = (points.low, points.high)
        self.firsts = [kind.low for kind in (lows, alone) if kind]
        self.last_bounds = [highs.high] if highs else []
        self.last_points = [alone.high] if alone else []


class _Range:
    """The least and the greatest of numbers; false while there is none."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def add(self, values: Any) -> None:
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def __bool__(self) -> bool:
        return self.low <= self.high
