"""Where data lies: boxes on a globe whose longitudes close, and their geometry (RFC 7946, 3.1.9 and 5.2).

A box has its west in −180..180 and its east at most 360 degrees further; across the antimeridian its east is over 180.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

WHOLE: Final = 359.999  # degrees of longitude that are as good as all
DIGITS: Final = 6  # of a degree: a tenth of a metre, and coarser than what a 32-bit coordinate is off by


class Box(NamedTuple):
    west: float
    south: float
    east: float
    north: float


GLOBE: Final = Box(-180.0, -90.0, 180.0, 90.0)


def hull(arcs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the shortest arc of longitudes that holds all of `arcs`: its start in 0..360 and its width, in degrees.

    Each arc is a start in 0..360 and a width; what is left out is the widest gap between them.
    """
    ordered = sorted(arcs)
    reach = max(start + width for start, width in ordered) - 360  # how far they go into the next turn
    west, gap = ordered[0][0], 0.0
    for start, width in ordered:
        if start - reach > gap:
            west, gap = start, start - reach
        reach = max(reach, start + width)
    return west, 360 - gap


def box(west: float, width: float, latitudes: tuple[float, float]) -> Box:
    """Return a box from an arc of longitudes and the southernmost and northernmost latitude."""
    south, north = (round(min(90.0, max(-90.0, latitude)), DIGITS) + 0.0 for latitude in latitudes)
    if width >= WHOLE:
        return Box(-180.0, south, 180.0, north)
    start = round(west, DIGITS) % 360
    start = start - 360 if start >= 180 else start
    return Box(round(start, DIGITS) + 0.0, south, round(start + width, DIGITS) + 0.0, north)


def union(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that holds all of them."""
    if len(set(boxes)) == 1:
        return boxes[0]
    west, width = hull([(box.west % 360, box.east - box.west) for box in boxes])
    return box(west, width, (min(box.south for box in boxes), max(box.north for box in boxes)))


def bbox(box: Box) -> list[float]:
    """Return the box as GeoJSON has it: the west is greater than the east across the antimeridian."""
    return [box.west, box.south, box.east - 360 if box.east > 180 else box.east, box.north]


def geometry(box: Box) -> dict[str, Any]:
    """Return a polygon, or two if the antimeridian cuts it; a line or a point if the box has no height or width."""
    west, south, east, north = box
    sides = [(west, 180.0), (-180.0, round(east - 360, DIGITS))] if east > 180 else [(west, east)]
    if west == east and south == north:
        return {"type": "Point", "coordinates": [west, south]}
    parts: list[list[Any]]
    if west == east or south == north:
        kind, parts = "LineString", [[[left, south], [right, north]] for left, right in sides]
    else:
        kind = "Polygon"
        parts = [[[[a, south], [b, south], [b, north], [a, north], [a, south]]] for a, b in sides]
    if len(parts) == 1:
        return {"type": kind, "coordinates": parts[0]}
    return {"type": f"Multi{kind}", "coordinates": parts}
