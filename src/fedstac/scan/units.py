"""Units of time and angle, in the spellings of UDUNITS 2, to which the CF conventions refer (1.12, 3.1, 4.1, 4.2, 4.4).

A spelling that is not here is refused by name. Where UDUNITS and people's habits differ, nothing is guessed: UDUNITS
takes `month` and `year` for parts of a tropical year, which hardly any file means, so they are refused too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import pi
from typing import Final

from fedstac.scan.values import Unusable, printable

_DAY: Final = 86_400
SYMBOLS: Final = {  # case matters: `Min` is a megainch, `Msec` a megasecond
    "d": Fraction(_DAY), "h": Fraction(3600), "hr": Fraction(3600), "min": Fraction(60), "s": Fraction(1),
    "ms": Fraction(1, 1000), "us": Fraction(1, 10**6), "µs": Fraction(1, 10**6), "μs": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9), "msec": Fraction(1, 1000), "msecs": Fraction(1, 1000),
}  # fmt: skip
NAMES: Final = {  # case does not matter, and all may be plural
    "day": Fraction(_DAY), "hour": Fraction(3600), "hr": Fraction(3600), "minute": Fraction(60), "min": Fraction(60),
    "second": Fraction(1), "sec": Fraction(1), "week": Fraction(7 * _DAY), "fortnight": Fraction(14 * _DAY),
    "millisecond": Fraction(1, 1000), "millisec": Fraction(1, 1000),
    "microsecond": Fraction(1, 10**6), "nanosecond": Fraction(1, 10**9),
    "common_year": Fraction(365 * _DAY), "leap_year": Fraction(366 * _DAY),
    "julian_year": Fraction(36525 * _DAY, 100), "gregorian_year": Fraction(3652425 * _DAY, 10_000),
}  # fmt: skip
UNCERTAIN: Final = frozenset(("month", "year", "yr", "tropical_year", "a"))
NUMBER: Final = r"(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?:[eE][-+]?[0-9])?"
SINCE: Final = re.compile(rf"(?:(?P<number>{NUMBER})[\s*]\s*)?(?P<unit>[A-Za-zµμ_]{{1,32}})\s+since\s+(?P<date>\S.*)",
                          re.IGNORECASE | re.DOTALL)  # fmt: skip
DATE: Final = re.compile(
    r"(?P<sign>[-+]?)(?:(?P<year>\d{1,4})(?:-(?P<month>\d{1,2})(?:-(?P<day>\d{1,2}))?)?"
    r"|(?P<packed>\d{6}(?:\d\d)?))(?P<rest>(?:[\sT].*|[Zz])?)",
    re.ASCII | re.DOTALL,
)
CLOCK: Final = re.compile(
    r"(?:[T\s]\s*)(?:(?P<hour>\d{1,2})(?::(?P<minute>\d{1,2})(?::(?P<second>\d{1,2}(?:\.\d{0,12})?))?)?"
    r"|(?P<packed>\d{4}(?:\d\d)?))(?P<zone>(?:[-+\s].*|[A-Za-z]+)?)",
    re.ASCII | re.DOTALL,
)
ZONE: Final = re.compile(
    r"(?P<sign>[-+])(?:(?P<hours>\d{1,2})(?::(?P<minutes>\d{1,2}))?|(?P<packed>\d{3,4}))", re.ASCII
)
UNIVERSAL: Final = frozenset(("", "utc", "gmt", "z"))

_TURNS: Final = {
    "degree": 1.0, "deg": 1.0, "arc_degree": 1.0, "angular_degree": 1.0, "arcdeg": 1.0, "°": 1.0,
    "degree_true": 1.0, "degree_t": 1.0, "degreet": 1.0, "radian": 180 / pi, "rad": 180 / pi, "grade": 0.9, "gon": 0.9,
    "arc_minute": 1 / 60, "angular_minute": 1 / 60, "arcminute": 1 / 60, "arcmin": 1 / 60,
    "arc_second": 1 / 3600, "angular_second": 1 / 3600, "arcsecond": 1 / 3600, "arcsec": 1 / 3600,
}  # fmt: skip
DIRECTIONS: Final = {
    "north": ("latitude", 1.0), "n": ("latitude", 1.0),
    "east": ("longitude", 1.0), "e": ("longitude", 1.0), "west": ("longitude", -1.0), "w": ("longitude", -1.0),
}  # fmt: skip
DIRECTED: Final = re.compile(r"degrees?_?(north|east|west|n|e|w)", re.IGNORECASE)
ANGLE: Final = re.compile(rf"(?:(?P<number>{NUMBER})[\s*]\s*)?(?P<unit>[^\s0-9]+)")


@dataclass(frozen=True, slots=True)
class Reference:
    """What the numbers of a time coordinate count: steps since a date and clock time of its calendar, in UTC."""

    step: Fraction  # seconds
    year: int
    month: int
    day: int
    seconds: Fraction  # to add to the day's midnight: the clock time, less the zone


def is_time(units: str) -> bool:
    """Return whether these are units of a time coordinate, however they are spelt."""
    return re.search(r"\ssince(\s|$)", units, re.IGNORECASE) is not None


def reference(units: str) -> Reference:
    """Read the units of a time coordinate; the date is not checked against a calendar. Unusable if they are none."""
    match = SINCE.fullmatch(units.strip())
    if match is None:
        raise Unusable("time", f"the units {printable(units)} of time are not of the form `days since 1850-01-01`")
    step = _step(match["unit"], units) * Fraction(match["number"] or 1)
    if step <= 0:
        raise Unusable("time", f"the units {printable(units)} of time count nothing")
    return _since(match["date"].strip(), step, units)


def _step(unit: str, units: str) -> Fraction:
    name = unit.lower()
    singular = name.removesuffix("s") if len(name) > 2 else name
    if unit in SYMBOLS:
        return SYMBOLS[unit]
    if singular in UNCERTAIN:
        message = (
            f"the units {printable(units)} of time are uncertain: to UDUNITS a {singular} is part of a tropical year"
        )
        raise Unusable("time", f"{message}, to other software one of the calendar; use days")
    if singular in NAMES and unit not in ("Min", "MIN"):
        return NAMES[singular]
    raise Unusable(
        "time", f"{printable(unit)} in the units {printable(units)} of time is no unit of time that is known here"
    )


def _since(text: str, step: Fraction, units: str) -> Reference:
    date = DATE.fullmatch(text)
    if date is None:
        raise _no_date(units, text)
    if packed := date["packed"]:
        year, month, day = int(packed[:4]), int(packed[4:6]), int(packed[6:] or 1)
    else:
        year, month, day = int(date["year"]), int(date["month"] or 1), int(date["day"] or 1)
    year = -year if date["sign"] == "-" else year
    rest = date["rest"]
    if rest.strip().lower() in UNIVERSAL:
        return Reference(step, year, month, day, Fraction(0))
    clock = CLOCK.fullmatch(rest)
    if clock is None:
        raise _no_date(units, rest.strip())
    seconds = _clock(clock, units) - _zone(clock["zone"].strip(), units)
    return Reference(step, year, month, day, seconds)


def _clock(clock: re.Match[str], units: str) -> Fraction:
    if packed := clock["packed"]:
        hour, minute, second = int(packed[:2]), int(packed[2:4]), Fraction(packed[4:] or 0)
    else:
        hour, minute, second = int(clock["hour"]), int(clock["minute"] or 0), Fraction(clock["second"] or 0)
    if hour > 23 or minute > 59 or second >= 60:
        raise Unusable("time", f"the clock time in the units {printable(units)} of time is not valid")
    return hour * 3600 + minute * 60 + second


def _zone(text: str, units: str) -> int:
    """Return seconds by which the zone is ahead of UTC."""
    if text.lower() in UNIVERSAL:
        return 0
    zone = ZONE.fullmatch(text)
    if zone is None:
        raise _no_date(units, text)
    hours, minutes = (zone["packed"][:-2], zone["packed"][-2:]) if zone["packed"] else (zone["hours"], zone["minutes"])
    if int(hours) > 23 or int(minutes or 0) > 59:
        raise Unusable("time", f"the zone {printable(text)} in the units {printable(units)} of time is not valid")
    return (-1 if zone["sign"] == "-" else 1) * (int(hours) * 3600 + int(minutes or 0) * 60)


def _no_date(units: str, part: str) -> Unusable:
    where = f"{printable(part)} in the units {printable(units)} of time"
    return Unusable("time", f"{where} is no date, clock time or zone whose meaning is certain")


def direction(units: str) -> str | None:
    """Return `latitude` or `longitude` if the units say it, as `degrees_north` does."""
    match = DIRECTED.fullmatch(units.strip())
    return DIRECTIONS[match[1].lower()][0] if match else None


def degrees(units: str | None, kind: str, name: str) -> float:
    """Return the factor from numbers in these units to degrees north or east.

    `kind` is latitude or longitude, `name` the variable's. Unusable if the units are no angle, or another kind's.
    """
    if not units:
        raise Unusable("coordinates", f"{name}, a {kind}, has no units: they may be degrees or radians")
    match = ANGLE.fullmatch(units.strip())
    if match is not None:
        factor = float(match["number"] or 1)
        directed = DIRECTED.fullmatch(match["unit"])
        if directed is not None and DIRECTIONS[directed[1].lower()][0] == kind:
            return factor * DIRECTIONS[directed[1].lower()][1]
        unit = match["unit"].lower()
        turn = _TURNS.get(unit, _TURNS.get(unit.removesuffix("s"), _TURNS.get(unit.replace("degrees_", "degree_"))))
        if directed is None and turn is not None and factor > 0:
            return factor * turn
    raise Unusable("coordinates", f"the units {printable(units)} of {name} are not units of {kind} that are known here")
