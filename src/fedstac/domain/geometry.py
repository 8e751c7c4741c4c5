"""Geometry as it is searched: two dimensions, longitudes −180..180, split at the antimeridian (RFC 7946, 3.1.9).

The document keeps what the publisher wrote; only the search copy is normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any, Final, NamedTuple, TypeAlias, cast

import orjson

from fedstac.domain.errors import Finding, Severity

EMPTY = '{"type":"GeometryCollection","geometries":[]}'  # where a document has no geometry (STAC allows null)
MAX_VERTICES = 10_000
MAX_CROSSINGS: Final = 500  # of segments, in one geometry
MAX_NEAR: Final = 300_000  # pairs of segments whose boxes meet
FEW_VERTICES: Final = 750  # that cannot have more of those
SEGMENTS_AT_ONCE: Final = 64  # that are compared with all the others: bounds the memory
DEPTH = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
WORLDS: Final = ((-180.0, 0.0), (180.0, -360.0))  # the western edge of each world, and its shift into the first
LONGEST_KEPT = 4096  # bytes of a footprint that is worth remembering
Position = list[float]
Shape: TypeAlias = Any  # a geometry of shapely, which only servers have


class Rectangle(NamedTuple):
    """A rectangle along the axes, with its edges, in degrees. Without width or height it is a line or a point."""

    west: float
    south: float
    east: float
    north: float


class TooComplex(ValueError):
    """A geometry that would take too long to be prepared for searches; the text names what is too complex."""


def check(geometry: object) -> Iterator[Finding]:
    """Yield the faults of a GeoJSON geometry: its form, its size, longitudes outside −180..360, latitudes over 90.

    PostGIS stores an open ring and fails to compare it: it would fail everybody's search by place.
    """
    if geometry is None:
        return
    if not isinstance(geometry, dict):
        yield Finding("geometry", "/geometry", "geometry has to be a GeoJSON object or null")
    elif geometry.get("type") == "GeometryCollection":
        yield from _check_collection(geometry)
    else:
        yield from _check_simple(geometry, "/geometry", MAX_VERTICES)


def vertices(geometry: Mapping[str, Any]) -> int:
    """Count the positions of a checked geometry."""
    if geometry["type"] == "GeometryCollection":
        return sum(vertices(member) for member in geometry["geometries"])
    return sum(1 for _ in _positions(geometry["coordinates"], DEPTH[geometry["type"]]))


def complexity(geometry: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Yield why a checked geometry would take too long to be prepared for searches. Only servers can tell."""
    if geometry is None or geometry["type"] not in ("Polygon", "MultiPolygon") or _is_plain(geometry):
        return
    try:
        import shapely  # the server's
    except ModuleNotFoundError:
        return
    shape = shapely.from_geojson(orjson.dumps(_without_heights(geometry)))
    if (fault := _fault_of_complexity(shape)) is not None:
        yield Finding("geometry", "/geometry/coordinates", fault)


def rectangles(geometry: Mapping[str, Any]) -> list[Rectangle]:
    """Return the rectangles along the axes that a valid geometry consists of; none where it is more than those."""
    match geometry:
        case {"type": "Polygon", "coordinates": polygon}:
            polygons = [polygon]
        case {"type": "MultiPolygon", "coordinates": polygons}:
            pass
        case _:
            return []
    parts = [_rectangle_of(polygon) for polygon in polygons]
    return [part for part in parts if part is not None] if None not in parts else []


def _rectangle_of(polygon: list[list[Position]]) -> Rectangle | None:
    if not _is_rectangle(polygon):
        return None
    xs, ys = [position[0] for position in polygon[0]], [position[1] for position in polygon[0]]
    return Rectangle(min(xs), min(ys), max(xs), max(ys))


def _is_rectangle(polygon: list[list[Position]]) -> bool:
    """Tell whether the rings of a polygon are one rectangle along the axes."""
    if len(polygon) != 1 or len(polygon[0]) != 5:
        return False
    ring = polygon[0]
    return (
        all((a[0] == b[0]) != (a[1] == b[1]) for a, b in pairwise(ring))  # along an axis
        and all(a[0] != b[0] and a[1] != b[1] for a, b in (ring[0::2][:2], ring[1::2]))  # and not back again
    )


def beyond(geometry: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a warning where a checked geometry has longitudes over 180: searches find it by their equals."""
    furthest = max(position[0] for position in _positions(geometry["coordinates"], DEPTH[geometry["type"]]))
    if furthest > 180:
        message = f"the longitude {furthest:g} is over 180; it is searched as {furthest - 360:g}"
        yield Finding("longitude", "/geometry/coordinates", message, Severity.WARNING)


def check_box(box: object) -> Iterator[Finding]:
    """Yield the faults of a bbox (RFC 7946, 5): four or six numbers within −180..360 and −90..90, the south first."""
    if box is None:
        return
    if not isinstance(box, list) or len(box) not in (4, 6) or any(type(number) not in (int, float) for number in box):
        yield Finding("geometry", "/bbox", "a bbox has four numbers, or six with heights")
        return
    west, south, east, north = (box[n] for n in ((0, 1, 2, 3) if len(box) == 4 else (0, 1, 3, 4)))
    if not (-180 <= west <= 360 and -180 <= east <= 360 and -90 <= south <= north <= 90):
        message = f"{box} is no box of longitudes (−180..360) and latitudes (−90..90), the south before the north"
        yield Finding("geometry", "/bbox", message)


def _check_collection(geometry: Mapping[str, object]) -> Iterator[Finding]:
    members = geometry.get("geometries")
    if not isinstance(members, list) or not members:
        message = "a GeometryCollection needs the list `geometries`, not empty; use null where there is no geometry"
        yield Finding("geometry", "/geometry/geometries", message)
        return
    rest = MAX_VERTICES
    for n, member in enumerate(members):
        where = f"/geometry/geometries/{n}"
        if not isinstance(member, dict):
            yield Finding("geometry", where, "a member of a GeometryCollection is a geometry")
            return
        if member.get("type") == "GeometryCollection":
            yield Finding("geometry", where, "collections of collections are not taken")
            return
        findings = [*_check_simple(member, where, rest)]
        yield from findings
        if findings:
            return
        rest -= sum(1 for _ in _positions(member["coordinates"], DEPTH[member["type"]]))


def _check_simple(geometry: Mapping[str, Any], where: str, most: int) -> Iterator[Finding]:
    kind = geometry.get("type")
    if not isinstance(kind, str) or kind not in DEPTH:
        kinds = ", ".join((*DEPTH, "GeometryCollection"))
        yield Finding("geometry", f"{where}/type", f"{str(kind)[:80]!r} is no GeoJSON geometry; use one of {kinds}")
        return
    coordinates, where = geometry.get("coordinates"), f"{where}/coordinates"
    try:
        positions = list(_positions(coordinates, DEPTH[kind]))
    except (TypeError, ValueError):
        yield Finding("geometry", where, f"the coordinates are not those of a {kind}")
        return
    if not positions:
        yield Finding("geometry", where, "the geometry has no positions; use null where there is none")
    if len(positions) > most:
        yield Finding("geometry", where, f"{len(positions)} vertices; {MAX_VERTICES} are the most: simplify it")
    for position in positions:
        if not (-180 <= position[0] <= 360 and -90 <= position[1] <= 90):
            yield Finding("geometry", where, f"{position} is no longitude (−180..360) and latitude (−90..90)")
            return
    for place, line in _lines(coordinates, kind):
        if kind.endswith("LineString") and len(line) < 2:
            yield Finding("geometry", where + place, "a line has two positions at least")
        elif kind.endswith("Polygon") and (len(line) < 4 or line[0] != line[-1]):
            yield Finding("geometry", where + place, "a ring has four positions at least, and ends where it begins")


def _lines(coordinates: Any, kind: str) -> Iterator[tuple[str, list[Position]]]:
    """Yield the lines or rings of a geometry that has them, with their places."""
    match kind:
        case "LineString":
            yield "", coordinates
        case "MultiLineString" | "Polygon":
            yield from ((f"/{n}", line) for n, line in enumerate(coordinates))
        case "MultiPolygon":
            for n, rings in enumerate(coordinates):
                yield from ((f"/{n}/{m}", ring) for m, ring in enumerate(rings or [[]]))


def _positions(coordinates: object, depth: int) -> Iterator[Position]:
    if not isinstance(coordinates, list):
        raise TypeError
    if depth:
        for part in coordinates:
            yield from _positions(part, depth - 1)
    elif 2 <= len(coordinates) <= 3 and all(type(number) in (int, float) for number in coordinates):
        yield cast("Position", coordinates)
    else:
        raise ValueError


def searchable(geometry: Mapping[str, object] | None) -> str:
    """Return GeoJSON text of a checked geometry as it goes into the index. TooComplex where that takes too long."""
    if geometry is None:
        return EMPTY
    text = orjson.dumps(geometry)
    return _footprint(text) if len(text) <= LONGEST_KEPT else _searchable(text)


def footprint(geometry: Mapping[str, Any] | None) -> str:
    """Return the searchable geometry of a stored document, or of the box around a geometry that is too complex.

    Publishing refuses most of those (`complexity`); the others come from nodes that took them.
    """
    try:
        return searchable(geometry)
    except TooComplex:
        assert geometry is not None
        positions = list(_positions(geometry["coordinates"], DEPTH[geometry["type"]]))
        west, east = min(x for x, *_ in positions), max(x for x, *_ in positions)
        south, north = min(y for _, y, *_ in positions), max(y for _, y, *_ in positions)
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        return searchable({"type": "Polygon", "coordinates": [ring]})


def _searchable(text: bytes) -> str:
    geometry = orjson.loads(text)
    return text.decode() if _is_plain(geometry) else _normalised(geometry)


_footprint = lru_cache(maxsize=4096)(_searchable)  # a model's datasets share a handful of footprints


def _is_plain(geometry: Mapping[str, Any]) -> bool:
    """Tell whether a geometry is a rectangle within the world: nearly all datasets have one, and it is surely valid."""
    if geometry["type"] != "Polygon" or not _is_rectangle(geometry["coordinates"]):
        return False
    ring: list[Position] = geometry["coordinates"][0]
    return all(len(position) == 2 and -180 <= position[0] <= 180 for position in ring)


def _normalised(geometry: dict[str, Any]) -> str:
    """Return a geometry in two dimensions, valid (PostGIS fails on overlapping parts), turned into −180..180."""
    import shapely  # the server's, and only for the footprint that needs it

    flat = _without_heights(geometry)
    match flat["type"]:
        case "Point" | "MultiPoint":
            positions = _positions(flat["coordinates"], DEPTH[flat["type"]])
            turned = dict.fromkeys((x - 360 if x > 180 else x, y) for x, y in positions)
            return str(shapely.to_geojson(_collect(list(shapely.points(list(turned))))))
        case "LineString" | "MultiLineString":  # valid whatever they cross, and cut by hand: shapely cuts at crossings
            lines = [part for _, line in _lines(flat["coordinates"], flat["type"]) for part in _cut(line)]
            return str(shapely.to_geojson(_collect([shapely.LineString(line) for line in lines])))
    shape = shapely.from_geojson(orjson.dumps(flat))
    if (fault := _fault_of_complexity(shape)) is not None:
        raise TooComplex(fault)
    valid = shape if shapely.is_valid(shape) and flat["type"] != "GeometryCollection" else shapely.make_valid(shape)
    here, beyond_it = _in_worlds(_parts(valid))
    if flat["type"] == "GeometryCollection" or _overlap(here, beyond_it):
        if (fault := _fault_of_complexity(shapely.geometrycollections([*here, *beyond_it]))) is not None:
            raise TooComplex(fault)
        return str(shapely.to_geojson(shapely.union_all([*here, *beyond_it])))
    return str(shapely.to_geojson(_collect([*here, *beyond_it])))


def _parts(shape: Shape) -> list[Shape]:
    """Return points, lines and polygons; shapely takes collections apart one level at a time."""
    import shapely

    return [part for member in shapely.get_parts(shape) for part in shapely.get_parts(member)]


def _in_worlds(parts: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    """Return the valid parts up to 180, and those beyond, turned back by 360."""
    import shapely
    from shapely import affinity

    here: list[Shape] = []
    beyond_it: list[Shape] = []
    for part in parts:
        if part.bounds[2] <= 180:
            here.append(part)
            continue
        for (west, shift), into in zip(WORLDS, (here, beyond_it), strict=True):
            cut = part.intersection(shapely.box(west, -90, west + 360, 90))
            if not cut.is_empty and shapely.get_dimensions(cut) == shapely.get_dimensions(part):  # no mere touch
                into += _parts(affinity.translate(cut, shift))
    return here, beyond_it


def _overlap(some: list[Shape], others: list[Shape]) -> bool:
    """Tell whether the boxes of two sets of parts meet."""
    import shapely

    if not some or not others:
        return False
    west, south, east, north = shapely.total_bounds(some)
    other_west, other_south, other_east, other_north = shapely.total_bounds(others)
    return bool(west <= other_east and other_west <= east and south <= other_north and other_south <= north)


def _collect(parts: list[Shape]) -> Shape:
    """Return one geometry of parts that have nothing in common."""
    import shapely

    if len(parts) == 1:
        return parts[0]
    match {part.geom_type for part in parts}:
        case kinds if kinds == {"Point"}:
            return shapely.multipoints(parts)
        case kinds if kinds == {"LineString"}:
            return shapely.multilinestrings(parts)
        case kinds if kinds == {"Polygon"}:
            return shapely.multipolygons(parts)
    return shapely.geometrycollections(parts)


def _cut(line: list[Position]) -> Iterator[list[Position]]:
    """Yield a line in two dimensions, in parts that lie on one side of 180; those beyond are turned back by 360."""
    segments: list[tuple[Position, Position]] = []
    for start, end in pairwise(line):
        if (start[0] - 180) * (end[0] - 180) < 0:
            middle = [180.0, start[1] + (end[1] - start[1]) * (180 - start[0]) / (end[0] - start[0])]
            segments += [(start, middle), (middle, end)]
        else:
            segments.append((start, end))
    for is_beyond, run in groupby(segments, key=lambda segment: max(segment[0][0], segment[1][0]) > 180):
        first, *rest = run
        shift = -360.0 if is_beyond else 0.0
        yield [[position[0] + shift, position[1]] for position in (*first, *(end for _, end in rest))]


def _fault_of_complexity(shape: Shape) -> str | None:
    """Say why the geometry would take too long to be made valid, cut or united; None if it does not.

    The time to find out whether it is valid grows with the pairs of segments whose boxes meet, the time to make it so
    with the places where they cross: of both, n vertices can have n² / 4. Coastlines and swaths have a few n.
    """
    import shapely

    is_small = shapely.count_coordinates(shape) <= FEW_VERTICES
    if is_small and shape.geom_type != "GeometryCollection" and shapely.is_valid(shape):
        return None
    near = crossings = 0
    for pairs, count in _meetings(shape):
        near += pairs
        crossings += count
        if near > MAX_NEAR:
            return "the lines of the geometry are too dense, many run beside many others; simplify it"
        if crossings > MAX_CROSSINGS:
            return f"the geometry crosses itself in over {MAX_CROSSINGS} places; simplify it, or mend it there"
    return None


def _meetings(shape: Shape) -> Iterator[tuple[int, int]]:
    """Yield pairs of segments whose boxes meet, and how many of these cross or lie on each other; in portions."""
    import numpy as np
    import shapely

    parts = np.array(_parts(shape))
    dimensions = shapely.get_dimensions(parts)
    lines = np.concatenate((shapely.get_rings(parts[dimensions == 2]), parts[dimensions == 1]))
    positions, line = shapely.get_coordinates(lines, return_index=True)
    is_segment = line[:-1] == line[1:]
    starts, ends = positions[:-1][is_segment], positions[1:][is_segment]
    segments: Any = shapely.linestrings(np.stack((starts, ends), axis=1))
    tree = shapely.STRtree(segments)
    for first in range(0, len(segments), SEGMENTS_AT_ONCE):
        one, other = tree.query(segments[first : first + SEGMENTS_AT_ONCE])
        one += first
        later = other > one  # each pair once
        one, other = one[later], other[later]
        yield len(one), _count_crossings(starts[one], ends[one], starts[other], ends[other])


def _count_crossings(a: Any, b: Any, c: Any, d: Any) -> int:
    """Count the rows in which a → b and c → d cross, or lie on each other; to touch is neither. Arrays of positions."""
    import numpy as np

    def side(start: Any, end: Any, position: Any) -> Any:
        """Return a positive number where the position is left of start → end, negative right of it, 0 on it."""
        along, across = end - start, position - start
        return along[:, 0] * across[:, 1] - along[:, 1] * across[:, 0]

    of_c, of_d, of_a, of_b = side(a, b, c), side(a, b, d), side(c, d, a), side(c, d, b)
    crossing = (of_c * of_d < 0) & (of_a * of_b < 0)
    common = np.minimum(np.maximum(a, b), np.maximum(c, d)) - np.maximum(np.minimum(a, b), np.minimum(c, d))
    lying = (of_c == 0) & (of_d == 0) & (common >= 0).all(axis=1) & (common > 0).any(axis=1)
    return int(np.count_nonzero(crossing | lying))


def _without_heights(geometry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the geometry without heights: some positions only may have them, which shapely does not take."""
    if geometry["type"] == "GeometryCollection":
        return {**geometry, "geometries": [_without_heights(member) for member in geometry["geometries"]]}
    return {"type": geometry["type"], "coordinates": _flat(geometry["coordinates"], DEPTH[geometry["type"]])}


def _flat(coordinates: Any, depth: int) -> Any:
    return [_flat(part, depth - 1) for part in coordinates] if depth else coordinates[:2]
