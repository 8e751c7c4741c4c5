"""Where the data of a file lies: the box of its latitudes and longitudes (CF 1.12, 4.1, 4.2, 5, 7.1).

A cell's bounds count where they hold the cell's own point. Where they do not, they say nothing: the point counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from fedstac.scan import units, variables
from fedstac.scan.attributes import Notes, note, quiet_text
from fedstac.scan.extents import WHOLE, Box, box, hull
from fedstac.scan.values import Unusable
from fedstac.scan.variables import Block, Values, shown_name

RULE: Final = "coordinates"
NAMES: Final = {"latitude": ("lat", "latitude", "nav_lat"), "longitude": ("lon", "longitude", "nav_lon")}
BINS: Final = 7200  # of longitude: 0.05 degrees
NEAR: Final = 1e-4  # degrees: what numbers of 32 bits are off by
FURTHEST: Final = {"latitude": 90.5, "longitude": 720.0}


def box_of(file: Any, near: Sequence[Any], others: Sequence[Any], notes: Notes) -> Box | None:
    """Return the box of the horizontal coordinates; None if there are none.

    `near` are the variables that are attached to the data, `others` all else, which count where nothing is attached.
    With latitudes alone (zonal means) it has all longitudes. Unusable where the coordinates cannot be understood.
    """
    latitude, longitude = _pick(near, "latitude"), _pick(near, "longitude")
    if latitude is None and longitude is None:
        latitude, longitude = _pick(others, "latitude"), _pick(others, "longitude")
        if longitude is None:
            return None
    if latitude is None:
        return None
    north, latitudes = _Coordinate(file, latitude, "latitude", notes), _Latitudes()
    if longitude is None:
        north.count_all(latitudes)
        return box(-180.0, 360.0, latitudes.range())
    east, longitudes = _Coordinate(file, longitude, "longitude", notes), _Longitudes()
    shapes = latitude.shape, longitude.shape
    cells: float = math.prod(longitude.shape)
    if shapes[0] == shapes[1] and not (latitude.is_scale and longitude.is_scale):
        _count_cells(north, east, latitudes, longitudes)
        cells = math.sqrt(cells)
    elif len(shapes[0]) <= 1 and len(shapes[1]) <= 1:
        north.count_all(latitudes)
        east.count_all(longitudes)
    else:
        raise Unusable(RULE, f"latitudes have the shape {shapes[0]}, longitudes {shapes[1]}")
    west, width = longitudes.arc(cells, is_exact=east.has_good_bounds)
    return box(west, width, latitudes.range())


def _pick(candidates: Sequence[Any], kind: str) -> Any:
    """Return the first variable that is a latitude or longitude."""
    return next((one for one in candidates if _is(one, kind)), None)


def _is(one: Any, kind: str) -> bool:
    standard = quiet_text(one, "standard_name")
    if standard:
        return standard == kind
    direction = units.direction(quiet_text(one, "units"))
    return direction == kind if direction else shown_name(one) in NAMES[kind]


def _count_cells(north: _Coordinate, east: _Coordinate, latitudes: _Latitudes, longitudes: _Longitudes) -> None:
    """Count the cells of a curvilinear or unstructured grid. A cell without a latitude or a longitude is none."""
    for block in north.blocks(max(north.corners, east.corners)):
        y, x = north.points(block), east.points(block)
        is_cell = ~(np.isnan(y) | np.isnan(x))
        y, x = y[is_cell], x[is_cell]
        sides, corners = (
            None if all_edges is None else all_edges[is_cell] for all_edges in (north.edges(block), east.edges(block))
        )
        if corners is not None and sides is not None and sides.shape == corners.shape:
            is_pole = np.abs(np.abs(sides) - 90) <= NEAR  # where a vertex may have any longitude
            corners = np.where(is_pole, x[:, None], corners)
        north.odd += latitudes.add(y, sides)
        east.odd += longitudes.add(x, corners)
    north.note_odd()
    east.note_odd()


class _Coordinate:
    """A variable of latitudes or longitudes with its bounds, read as degrees to the north or east.

    `odd`: how many of its cells have bounds that do not hold their own point.
    """

    def __init__(self, file: Any, one: Any, kind: str, notes: Notes) -> None:
        self._one, self._kind, self._notes = one, kind, notes
        self._values = Values(one, RULE)
        self._factor = units.degrees(quiet_text(one, "units"), kind, shown_name(one))
        self._bounds = variables.bounds(file, one, ("bounds",), RULE, notes)
        self._edges = Values(self._bounds, RULE) if self._bounds is not None else None
        if self._bounds is not None:
            variables.check_size(self._bounds)
        self.odd = 0

    @property
    def corners(self) -> int:
        return int(self._bounds.shape[-1]) if self._bounds is not None else 1

    @property
    def has_good_bounds(self) -> bool:
        return self._bounds is not None and not self.odd

    def blocks(self, per_value: int) -> Iterator[Block]:
        return variables.blocks(self._one, per_value)

    def points(self, block: Block) -> Any:
        return self._within(np.reshape(self._values.read(block), -1) * self._factor)

    def edges(self, block: Block) -> Any:
        """Return the edges of a block of cells, one row a cell; None if there are none."""
        if self._edges is None:
            return None
        return np.reshape(self._edges.read(block), (-1, self.corners)) * self._factor

    def count_all(self, extent: _Latitudes | _Longitudes) -> None:
        """Count every cell of an axis."""
        for block in self.blocks(self.corners):
            points, edges = self.points(block), self.edges(block)
            is_there = ~np.isnan(points)
            self.odd += extent.add(points[is_there], None if edges is None else edges[is_there])
        self.note_odd()

    def note_odd(self) -> None:
        if self.odd:
            name, bounds = shown_name(self._one), shown_name(self._bounds)
            what = f"{self.odd} of {math.prod(self._one.shape)} values of {name}"
            note(self._notes, RULE, f"the bounds {bounds} of {what} do not hold the value itself, which counts alone")

    def _within(self, values: Any) -> Any:
        there, furthest = values[~np.isnan(values)], FURTHEST[self._kind]
        if there.size and (there.min() < -furthest or there.max() > furthest):
            raise Unusable(RULE, f"{self._kind}s are from {there.min():g} to {there.max():g} degrees")
        return values


class _Latitudes:
    """The southernmost and the northernmost latitude."""

    def __init__(self) -> None:
        self._south, self._north = np.inf, -np.inf

    def add(self, points: Any, edges: Any) -> int:
        """Count these cells; return how many have edges that do not hold their point."""
        self._extend(points)
        if edges is None:
            return 0
        low, high = np.fmin.reduce(edges, axis=1), np.fmax.reduce(edges, axis=1)
        furthest = FURTHEST["latitude"]
        holds = (low - NEAR <= points) & (points <= high + NEAR) & (low >= -furthest) & (high <= furthest)
        self._extend(low[holds])
        self._extend(high[holds])
        return int(np.count_nonzero(~holds))

    def _extend(self, values: Any) -> None:
        if values.size:
            self._south, self._north = min(self._south, float(values.min())), max(self._north, float(values.max()))

    def range(self) -> tuple[float, float]:
        if self._south > self._north:
            raise Unusable(RULE, "no latitude has a value")
        return self._south, self._north


class _Longitudes:
    """What part of the circle the cells cover, in bins: their widest gap is exact unless it is smaller than a bin."""

    def __init__(self) -> None:
        self._low = np.full(BINS, np.inf)  # of each bin: the lowest longitude that is covered, and the highest
        self._high = np.full(BINS, -np.inf)
        self._changes = np.zeros(
            2 * BINS + 2, np.int64
        )  # how many arcs that cover whole bins begin at one, less their ends
        self._is_whole = False

    def add(self, points: Any, edges: Any) -> int:
        """Count these cells; return how many have edges that do not hold their point."""
        if edges is None:
            self._cover(points, np.zeros(points.size))
            return 0
        is_near = ~(np.abs(edges) > FURTHEST["longitude"]).any(axis=1)
        edges = np.where(is_near[:, None], edges, np.nan)
        starts, widths = _arcs_of_axis(points, edges) if edges.shape[1] == 2 else _arcs_of_cells(points, edges)
        holds = ~np.isnan(widths)
        self._cover(np.where(holds, starts, points), np.where(holds, widths, 0.0))
        return int(np.count_nonzero(~holds))

    def _cover(self, starts: Any, widths: Any) -> None:
        self._is_whole = self._is_whole or bool(np.any(widths >= WHOLE))
        starts = starts % 360
        ends = starts + widths
        first, last = (starts * (BINS / 360)).astype(np.int64), (ends * (BINS / 360)).astype(np.int64)
        is_long = last > first
        np.minimum.at(self._low, first % BINS, starts % 360)
        np.maximum.at(self._high, first % BINS, np.where(is_long, (first % BINS + 1) * (360 / BINS), ends))
        np.minimum.at(self._low, last[is_long] % BINS, (last[is_long] % BINS) * (360 / BINS))
        np.maximum.at(self._high, last[is_long] % BINS, ends[is_long] % 360)
        self._changes += np.bincount(first[is_long] + 1, minlength=self._changes.size)
        self._changes -= np.bincount(last[is_long], minlength=self._changes.size)

    def arc(self, cells: float, *, is_exact: bool) -> tuple[float, float]:
        """Start and width. All of the globe where no gap is wider than between two of `cells` points around it, unless
        bounds say exactly where the cells end."""
        covered = np.cumsum(self._changes)
        inside = (covered[:BINS] > 0) | (covered[BINS : 2 * BINS] > 0)
        edges = np.arange(BINS + 1) * (360 / BINS)
        low, high = np.where(inside, edges[:-1], self._low), np.where(inside, edges[1:], self._high)
        filled = np.isfinite(low)
        if not filled.any():
            raise Unusable(RULE, "no longitude has a value")
        west, width = hull(zip(low[filled].tolist(), (high - low)[filled].tolist(), strict=True))
        if self._is_whole or (not is_exact and cells > 1 and 360 - width <= 1.5 * 360 / cells):
            return -180.0, 360.0
        return west, width


def _arcs_of_axis(points: Any, edges: Any) -> tuple[Any, Any]:
    """Start and width of cells with two edges; the width is not a number where they do not hold their point.

    The cell lies between its edges, or from the greater to the smaller one where they are written across the seam.
    """
    low, high = edges.min(axis=1), edges.max(axis=1)
    width = high - low
    holds = (width <= 360 + NEAR) & ((points - low + NEAR) % 360 <= width + 2 * NEAR)
    across = (width >= 180) & ((points - high + NEAR) % 360 <= 360 - width + 2 * NEAR)
    starts = np.where(across, high, low)
    widths = np.where(across, 360 - width, np.where(holds, np.minimum(width, 360.0), np.nan))
    return starts, widths


def _arcs_of_cells(points: Any, edges: Any) -> tuple[Any, Any]:
    """Return the same of cells with vertices, which lie less than half a turn from their point."""
    offsets = (edges - points[:, None] + 180) % 360 - 180
    low, high = np.fmin.reduce(offsets, axis=1), np.fmax.reduce(offsets, axis=1)
    holds = (low <= NEAR) & (high >= -NEAR)
    return points + low, np.where(holds, high - low, np.nan)
