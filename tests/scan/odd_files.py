"""Odd NetCDF-4 files, as many as seeds, and what xarray and cf_xarray make of them.

Each file is a monthly field whose coordinates are written in one of the many ways that CF, UDUNITS and people know.
What is odd in it is drawn by its seed; a `refused` one has something that must not be guessed at. The expected extent
is read from the file by xarray and cf_xarray; only what they do not know (spellings of units, zones, valid ranges) is
from the draw, and which bounds count is decided here, cell by cell.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import cf_xarray  # noqa: F401 - gives datasets the accessor `cf`
import cftime
import netCDF4
import numpy as np
import xarray as xr

from tests.scan.files import ATTRIBUTES, VARIABLE, tracking_id

CALENDARS = ("standard", "gregorian", "proleptic_gregorian", "noleap", "365_day", "360_day", "all_leap", "366_day",
             "julian", "Standard", "NOLEAP")  # fmt: skip
STEPS = {  # spelling → its plain name, and how many of it
    "days": ("days", 1), "day": ("days", 1), "Days": ("days", 1), "DAYS": ("days", 1), "d": ("days", 1),
    "hours": ("hours", 1), "hour": ("hours", 1), "Hours": ("hours", 1), "h": ("hours", 1), "hr": ("hours", 1),
    "minutes": ("minutes", 1), "min": ("minutes", 1), "seconds": ("seconds", 1), "sec": ("seconds", 1),
    "s": ("seconds", 1), "6 hours": ("hours", 6), "weeks": ("days", 7), "0.5 days": ("hours", 12),
    "common_years": ("days", 365),
}  # fmt: skip
SECONDS = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
ZONES = {  # spelling → seconds ahead of UTC
    "": 0, " UTC": 0, " GMT": 0, "Z": 0, " utc": 0, " +0": 0, " -6:00": -21_600, " -6": -21_600, " -600": -21_600,
    " -06": -21_600, " +5:30": 19_800, " +0530": 19_800, "+01:00": 3600, " -12": -43_200,
}  # fmt: skip
BAD_UNITS = ("months since 1850-01-01", "years since 1850-01-01", "days", "days since forever", "Min since 1850-01-01",
             "days since 1850-01-01 -6:00", "days since 1850-02-30", "days since 1850-01-01 00:00 EST", "")  # fmt: skip
ANGLES = {  # spelling → degrees in one of it
    "degrees": 1.0, "degree": 1.0, "Degrees": 1.0, "radian": 180 / math.pi, "rad": 180 / math.pi,
    "radians": 180 / math.pi, "gon": 0.9, "arcmin": 1 / 60, "arc_second": 1 / 3600,
}  # fmt: skip
NORTH = ("degrees_north", "degree_north", "degree_N", "degrees_N", "degreeN", "degreesN")
EAST = ("degrees_east", "degree_east", "degree_E", "degrees_E", "degreeE", "degreesE")
BAD_ANGLES = ("m", "1", "", "K", "degC", "days")


@dataclass
class Odd:
    """A file that was written, and what a reader of CF cannot know of it."""

    path: Path
    refused: list[str] = field(default_factory=list)  # why it must be refused
    is_noted: bool = False  # whether something is to be said about it
    factors: dict[str, float] = field(default_factory=dict)  # by variable: degrees in one of its units
    invalid: dict[str, tuple[float, float]] = field(default_factory=dict)  # by variable: its valid range, unpacked
    units: str = ""  # of time, in a spelling that everybody knows
    calendar: str = "standard"
    ahead: int = 0  # seconds by which time is ahead of UTC
    times_factor: float = 1.0


def write(folder: Path, seed: int) -> Odd:
    """Write the odd file of a seed."""
    chance = random.Random(seed)
    odd = Odd(folder / f"odd_{seed}.nc")
    with netCDF4.Dataset(odd.path, "w", format="NETCDF4_CLASSIC" if chance.random() < 0.5 else "NETCDF4") as file:
        file.setncatts(dict(ATTRIBUTES) | {"tracking_id": tracking_id(odd.path.name)})
        dimensions = (*_time(file, odd, chance), *chance.choice(GRIDS)(file, odd, chance))
        data = file.createVariable("tas", "f4", dimensions)
        data.setncatts(VARIABLE)
        auxiliary = [name for name in ("time", "lat", "lon") if name in file.variables and name not in dimensions]
        if auxiliary:
            data.coordinates = "  ".join(auxiliary)
    return odd


# --- time ---


def _time(file: Any, odd: Odd, chance: random.Random) -> tuple[str, ...]:
    spelling, (plain, count) = chance.choice(list(STEPS.items()))
    zone, odd.ahead = chance.choice(list(ZONES.items()))
    odd.calendar = chance.choice(CALENDARS)
    year = chance.choice((1850, 1850, 1900, 2000, 1582, 1, 1, 9990))
    month, day = chance.randrange(1, 13), chance.randrange(1, 28)
    hour, second = chance.choice(((0, 0), (0, 0), (12, 0), (6, 30)))
    odd.units = f"{plain} since {year:04}-{month:02}-{day:02} {hour:02}:00:{second:02}"
    since = chance.choice(("since", "since", "Since", "SINCE"))
    gap = chance.choice((" ", " ", "  "))
    if chance.random() < 0.3 and (month, day, hour, second) == (1, 1, 0, 0):
        written = f"{spelling}{gap}{since}{gap}{year}"
    else:
        date = chance.choice((f"{year:04}-{month:02}-{day:02}", f"{year}-{month}-{day}"))
        clock = chance.choice((f"{hour:02}:00:{second:02}", f"{hour}:0:{second}.0"))
        written = f"{spelling}{gap}{since}{gap}{date}{chance.choice(' T')}{clock}{zone}"
    if " since" not in written.lower() or not written.endswith(zone):
        odd.ahead = 0
    odd.times_factor = count
    steps = chance.choice((1, 2, 12, 12))
    days = 30 * np.arange(steps) + 15.0 + chance.choice((0, 0, 100, 36_500 if 1 < year < 9000 else 0))
    edges = np.stack([days - 15, days + 15], axis=1)
    bounds = chance.choice(
        (None, "good", "good", "good", "odd", "all odd", "reversed", "missing", "shape", "climatology")
    )
    if bounds == "odd":
        edges[chance.randrange(steps)] = chance.choice((0.0, 1e6, np.nan)) if days[0] > 15 else -1.0
    if bounds == "all odd":
        edges[:] = days[-1] + 1000.0
    if year == 1 and bounds == "good" and chance.random() < 0.7:
        edges[0, 0] = -500.0  # before year 1
    if year == 9990 and bounds == "good":
        edges[-1, 1] = 8000.0  # after year 9999
    if bounds == "reversed":
        edges = edges[:, ::-1]
    per_day = 86_400 / SECONDS[plain] / count
    kind = chance.choice(("f8", "f8", "f4", "i4", "i8" if file.data_model == "NETCDF4" else "i4"))
    if chance.random() < 0.06:
        odd.refused.append(chance.choice(("units", "calendar", "empty", "own calendar", "far", "letters")))
    if "units" in odd.refused:
        written = chance.choice(BAD_UNITS)
    shape: tuple[str, ...] = ("time",)
    if steps == 1 and chance.random() < 0.5:
        shape = ()
    else:
        file.createDimension("time", None if chance.random() < 0.7 else steps)
    if "letters" in odd.refused:
        file.createDimension("letters", 4)
        file.createVariable("time", "S1", ("letters",)).standard_name = "time"
        return shape
    kind = "f8" if "far" in odd.refused else kind
    time = file.createVariable("time", kind, shape)
    time.setncatts({"units": written, "axis": "T"} | ({"standard_name": "time"} if chance.random() < 0.8 else {}))
    if odd.calendar != "standard" or chance.random() < 0.5:
        time.calendar = odd.calendar
    if "calendar" in odd.refused:
        time.calendar = chance.choice(("365_DAYS", "lunar", "none", "tai", "utc"))
    if "own calendar" in odd.refused:
        time.month_lengths = np.full(12, 30)
    values = days * per_day
    if "far" in odd.refused:
        values, bounds = values + 4e6 * per_day, None
    if kind[0] == "i":
        values, edges = np.floor(values), np.where(np.isnan(edges), -1e6, edges)
        if np.abs(values).max() > 2e9 or np.abs(edges * per_day).max() > 2e9:
            kind, bounds = "i8", None
            if np.abs(values).max() > 2e9:
                values = values % 1_000_000_000
    if "empty" not in odd.refused or shape == ():
        time[...] = values[0] if shape == () else values
        if "empty" in odd.refused:
            odd.refused.remove("empty")
    if bounds is None or "empty" in odd.refused:
        return shape
    time.setncattr("climatology" if bounds == "climatology" else "bounds", "time_bnds")
    if bounds == "missing":
        odd.is_noted = True
        return shape
    file.createDimension("two", 2 if bounds != "shape" else 1)
    written_edges = file.createVariable("time_bnds", "f8", (*shape, "two"))
    scaled = edges * per_day
    scaled = scaled[:, :1] if bounds == "shape" else scaled
    written_edges[...] = scaled[0] if shape == () else scaled
    return shape


# --- grids ---

Grid = Callable[[Any, Odd, random.Random], tuple[str, ...]]


def _longitudes(chance: random.Random, count: int) -> tuple[Any, float]:
    """Return middles of equal cells and their width: around the globe or a part of it, in one of the ways."""
    if chance.random() < 0.4:
        width, start = 360 / count, chance.choice((0.0, -180.0, -180 / count, 20.0, 300.0))
    else:
        width = chance.uniform(1.0, 200 / count)
        start = chance.choice((0.0, 100.0, 170.0, 350.0, -20.0, -170.0, 5.5, 181.0))
    points = start + width * (np.arange(count) + 0.5)
    way = chance.choice(("on", "on", "0", "180"))
    if way == "0":
        points = points % 360
    elif way == "180":
        points = (points + 180) % 360 - 180
    return points, width


def _latitudes(chance: random.Random, count: int) -> tuple[Any, float]:
    south, north = chance.choice(((-90.0, 90.0), (-30.0, 30.0), (40.0, 52.0), (-90.0, -60.0), (66.0, 90.0)))
    width = (north - south) / count
    points = south + width * (np.arange(count) + 0.5)
    return (points[::-1] if chance.random() < 0.4 else points), width


def _axes(file: Any, odd: Odd, chance: random.Random) -> tuple[str, ...]:
    rows, columns = chance.choice((1, 2, 3, 7)), chance.choice((1, 2, 4, 9))
    for name, (points, width) in (("lat", _latitudes(chance, rows)), ("lon", _longitudes(chance, columns))):
        file.createDimension(name, points.size)
        edges = np.stack([points - width / 2, points + width / 2], axis=1)
        _variable(file, odd, chance, name, (name,), points, edges)
    return "lat", "lon"


def _zonal(file: Any, odd: Odd, chance: random.Random) -> tuple[str, ...]:
    points, width = _latitudes(chance, 5)
    file.createDimension("lat", 5)
    _variable(file, odd, chance, "lat", ("lat",), points, np.stack([points - width / 2, points + width / 2], axis=1))
    return ("lat",)


def _station(file: Any, odd: Odd, chance: random.Random) -> tuple[str, ...]:
    for name, value in (("lat", chance.uniform(-89, 89)), ("lon", chance.uniform(-179, 359))):
        _variable(file, odd, chance, name, (), np.array(value), None)
    return ()


def _cells(file: Any, odd: Odd, chance: random.Random) -> tuple[str, ...]:
    """Write a curvilinear grid, also named as its dimensions; or an unstructured one."""
    rows, columns = chance.choice((2, 3, 6)), chance.choice((3, 5, 8))
    (y, height), (x, width) = _latitudes(chance, rows), _longitudes(chance, columns)
    x, y = np.meshgrid(x, y)
    corners_x = x[..., None] + np.array([-width, width, width, -width]) / 2
    corners_y = y[..., None] + np.array([-height, -height, height, height]) / 2
    dimensions: tuple[str, ...] = chance.choice((("j", "i"), ("cell",), ("lat", "lon")))
    if dimensions == ("cell",):
        x, y, corners_x, corners_y = x.ravel(), y.ravel(), corners_x.reshape(-1, 4), corners_y.reshape(-1, 4)
    for name, size in zip(dimensions, x.shape, strict=True):
        file.createDimension(name, size)
    if chance.random() < 0.3:
        hole = (0,) * x.ndim
        x[hole] = y[hole] = np.nan  # land
    state = chance.getstate()
    with_bounds = chance.random() < 0.6
    chance.setstate(state)
    for name, values, corners in (("lat", y, corners_y), ("lon", x, corners_x)):
        _variable(file, odd, chance, name, dimensions, values, corners if with_bounds else None)
    return dimensions


def _named_dimensions(file: Any, odd: Odd, chance: random.Random) -> tuple[str, ...]:
    """Write dimensions called lat and lon, and nothing that says where they are."""
    file.createDimension("lat", 3)
    file.createDimension("lon", 4)
    return "lat", "lon"


GRIDS: tuple[Grid, ...] = (_axes, _axes, _axes, _axes, _cells, _cells, _cells, _station, _zonal, _named_dimensions)


def _variable(
    file: Any, odd: Odd, chance: random.Random, name: str, dimensions: tuple[str, ...], points: Any, edges: Any
) -> None:
    """Write a latitude or longitude in one of the many ways."""
    attributes: dict[str, Any] = {}
    standard = {"lat": "latitude", "lon": "longitude"}[name]
    if chance.random() < 0.6:
        units = chance.choice(NORTH if name == "lat" else EAST)
        attributes |= {"standard_name": standard} if chance.random() < 0.5 else {}
        odd.factors[name] = 1.0
    else:
        units, odd.factors[name] = chance.choice(list(ANGLES.items()))
        attributes["standard_name"] = standard
    written = units
    if chance.random() < 0.03:
        written = chance.choice((*BAD_ANGLES, (EAST if name == "lat" else NORTH)[0]))
        attributes["standard_name"] = standard
        odd.refused.append(f"units of {name}")
    if written:
        attributes["units"] = written
    values = points / odd.factors[name]
    if edges is not None and chance.random() < 0.25:
        edges = None
    if edges is not None and chance.random() < 0.3:
        edges = edges.copy()
        row = tuple(chance.randrange(size) for size in points.shape)
        edges[row] = chance.choice((0.0, 1e5, -1e5, np.nan))
        if chance.random() < 0.3:
            edges[:] = 7777.0
    is_packed = np.ndim(points) > 0 and odd.factors[name] <= 1 and chance.random() < 0.2
    kind = "i4" if is_packed else chance.choice(("f8", "f8", "f4"))
    one = file.createVariable(name, kind, dimensions, fill_value=-2147483647 if is_packed else 1e20)
    one.set_auto_maskandscale(False)
    if is_packed:
        scale, offset = 1e-5 / odd.factors[name], chance.choice((0.0, 10.0))
        attributes |= {"scale_factor": scale, "add_offset": offset}
        stored = np.where(np.isnan(values), -2147483647, np.round((values - offset) / scale))
        one[...] = stored.astype("i4")
    else:
        one[...] = np.where(np.isnan(values), 1e20, values)
    if chance.random() < 0.1 and points.ndim == 1 and points.size > 2 and not is_packed:
        limit = 90.0 if name == "lat" else 720.0
        odd.invalid[name] = (float(np.sort(values)[1]), limit / odd.factors[name])
        low, high = odd.invalid[name]
        attributes |= {"valid_min": one.dtype.type(low)} if chance.random() < 0.5 else {
            "valid_range": np.array([low, high], one.dtype)
        }  # fmt: skip
    one.setncatts(attributes)
    if edges is None:
        return
    one.bounds = f"{name}_bnds"
    corners = f"corners{edges.shape[-1]}"
    if corners not in file.dimensions:
        file.createDimension(corners, edges.shape[-1])
    file.createVariable(f"{name}_bnds", "f8", (*dimensions, corners), fill_value=1e30)[...] = np.where(
        np.isnan(edges), 1e30, edges / odd.factors[name]
    )


# --- what is expected ---


@dataclass(frozen=True)
class OddFacts:
    """`arcs`: start and width in degrees of what the longitudes cover; None where they are everywhere, or none are."""

    latitudes: tuple[float, float] | None
    arcs: list[tuple[float, float]] | None
    width: float
    start: Any  # moments of cftime; the text of a limit where it is out of the years 1 to 9999
    end: Any
    is_odd: bool  # whether bounds do not hold their point


def expected(odd: Odd) -> OddFacts:
    """Read the extent by xarray and cf_xarray."""
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    with xr.open_dataset(odd.path, decode_times=False, decode_coords="all") as file:
        found = {name: names[0] for name, names in file.cf.coordinates.items()}
        latitude, longitude = found.get("latitude"), found.get("longitude")
        start, end, odd_time = _span(file, found.get("time", "time"), odd, coder)
        if latitude is None:
            return OddFacts(None, None, 0.0, start, end, odd_time)
        y, sides = _degrees(file, latitude, odd)
        if longitude is None:
            south, north, odd_y = _range(y, sides)
            return OddFacts((south, north), None, 360.0, start, end, odd_y or odd_time)
        x, corners = _degrees(file, longitude, odd)
        is_axis = file[longitude].dims == (longitude,)
        if not is_axis and file[longitude].ndim:
            there = ~(np.isnan(x) | np.isnan(y))
            x, y = x[there], y[there]
            corners, sides = (None if one is None else one[there] for one in (corners, sides))
    south, north, odd_y = _range(y, sides)
    arcs, odd_x = _arcs(x, corners)
    count = x.size if is_axis else math.sqrt(file[longitude].size)
    return OddFacts((south, north), arcs, _width(arcs, count, is_exact=corners is not None and not odd_x),
                    start, end, odd_x or odd_y or odd_time)  # fmt: skip


def _degrees(file: xr.Dataset, name: str, odd: Odd) -> tuple[Any, Any]:
    values = np.ravel(np.asarray(file[name].values, "f8"))
    if name in odd.invalid:
        low, high = odd.invalid[name]
        kind = np.float32 if file[name].encoding.get("dtype") == np.float32 else np.float64
        values = np.where((values < float(kind(low))) | (values > float(kind(high))), np.nan, values)
    bounds = file[name].encoding.get("bounds") or file[name].attrs.get("bounds")
    edges = np.asarray(file[bounds].values, "f8") if bounds in file.variables else None
    values = values * odd.factors[name]
    there = ~np.isnan(values)
    if file[name].ndim <= 1 and file[name].dims == (name,):
        values, edges = values[there], None if edges is None else edges[there]
    return values, None if edges is None else edges.reshape(-1, edges.shape[-1]) * odd.factors[name]


def _range(points: Any, edges: Any) -> tuple[float, float, bool]:
    values, is_odd = list(points), False
    for n, row in enumerate(edges if edges is not None else ()):
        if np.nanmin(row, initial=999) - 1e-4 <= points[n] <= np.nanmax(row, initial=-999) + 1e-4 and np.nanmax(
            np.abs(row), initial=0
        ) <= 90.5:  # fmt: skip
            values += list(row)
        else:
            is_odd = True
    return min(values), max(values), is_odd


def _arcs(points: Any, edges: Any) -> tuple[list[tuple[float, float]], bool]:
    arcs, is_odd = [], False
    for n, point in enumerate(points):
        arc = (point, 0.0)
        if edges is not None:
            row = edges[n]
            offsets = [(edge - point + 180) % 360 - 180 for edge in row]
            if len(row) == 2:
                low, high = min(row), max(row)
                offsets = [low - point, high - point]
                turns = [360 * turn for turn in range(-3, 4) if offsets[0] - 1e-4 <= 360 * turn <= offsets[1] + 1e-4]
                offsets = [offset - turns[0] for offset in offsets] if turns else [math.nan]
            good = all(abs(edge) <= 720 for edge in row) and min(offsets) <= 1e-4 and max(offsets) >= -1e-4
            if good and max(offsets) - min(offsets) <= 360 + 1e-4:
                arc = (point + min(offsets), max(offsets) - min(offsets))
            else:
                is_odd = True
        arcs.append(arc)
    return arcs, is_odd


def _width(arcs: list[tuple[float, float]], count: float, *, is_exact: bool) -> float:
    """Return how wide the smallest arc is that holds all: what the widest gap leaves."""
    turned = sorted((start % 360, width) for start, width in arcs)
    if any(width >= 359.999 for _, width in turned):
        return 360.0
    reach, gap = max(start + width for start, width in turned) - 360, 0.0
    for start, width in turned:
        gap, reach = max(gap, start - reach), max(reach, start + width)
    if gap < 0.001 or (not is_exact and count > 1 and gap <= 1.5 * 360 / count):
        return 360.0
    return 360 - gap


def _span(file: xr.Dataset, name: str, odd: Odd, coder: xr.coders.CFDatetimeCoder) -> tuple[Any, Any, bool]:
    points = np.atleast_1d(np.asarray(file[name].values, "f8"))
    bounds = next((file[name].encoding.get(key) or file[name].attrs.get(key) for key in ("bounds", "climatology")
                   if file[name].encoding.get(key) or file[name].attrs.get(key)), None)  # fmt: skip
    edges = np.asarray(file[bounds].values, "f8") if bounds in file.variables else None
    if edges is not None:
        edges = edges.reshape(-1, edges.shape[-1])
    is_odd = edges is None and bounds is not None
    if edges is not None and edges.shape[1] != 2:
        edges, is_odd = None, True
    firsts, lasts, limits = [], [], []
    for n, point in enumerate(points):
        low, high = (min(edges[n]), max(edges[n])) if edges is not None else (point, point)
        slack = 1e-7 * max(abs(low), abs(high)) if edges is not None else 0.0
        if low < high and low - slack <= point <= high + slack:
            firsts.append(low)
            limits.append(high)
            continue
        is_odd = is_odd or not low == point == high
        firsts.append(point)
        lasts.append(point)
    decode = _decoder(odd, coder)
    ends = [decode(max(lasts))] if lasts else []
    ends += [decode(max(limits)) - timedelta(seconds=1)] if limits else []
    start, end = decode(min(firsts)), max(ends)
    return start, max(start, end), is_odd


def _decoder(odd: Odd, coder: xr.coders.CFDatetimeCoder) -> Callable[[float], Any]:
    attributes = {"units": odd.units, "calendar": odd.calendar.lower()}

    def decode(number: float) -> Any:
        variable = xr.Variable((), np.float64(number * odd.times_factor), attributes)
        moment = coder.decode(variable).values.item()
        assert isinstance(moment, cftime.datetime)
        return moment - timedelta(seconds=odd.ahead)

    return decode
