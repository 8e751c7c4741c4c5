"""Geometry as it is searched: two dimensions, longitudes −180..180, split at the antimeridian (RFC 7946, 3.1.9).

The document keeps what the publisher wrote; only the search copy is normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, cast

import orjson

from fedstac.domain.errors import Finding, Severity

EMPTY = '{"type":"GeometryCollection","geometries":[]}'  # where a document has no geometry (STAC allows null)
MAX_VERTICES = 10_000
DEPTH = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
WORLDS: Final = ((-180.0, 0.0), (180.0, -360.0))  # the western edge of each world, and its shift into the first
LONGEST_KEPT = 4096  # bytes of a footprint that is worth remembering
Position = list[float]


def check(geometry: object) -> Iterator[Finding]:
    """What is wrong with a GeoJSON geometry: its form, its size, longitudes outside −180..360, latitudes over 90.

    What PostGIS would store and then not compare (an open ring) would fail everybody's search by place.
    """
    if geometry is None:
        return
    if not isinstance(geometry, dict):
        yield Finding("geometry", "/geometry", "geometry has to be a GeoJSON object or null")
    elif geometry.get("type") == "GeometryCollection":
        yield from _check_collection(geometry)
    else:
        yield from _check_simple(geometry, "/geometry", MAX_VERTICES)


def beyond(geometry: Mapping[str, Any]) -> Iterator[Finding]:
    """Of a checked geometry: a warning where longitudes are over 180, that is, where it is searched by their equals."""
    furthest = max(position[0] for position in _positions(geometry["coordinates"], DEPTH[geometry["type"]]))
    if furthest > 180:
        message = f"the longitude {furthest:g} is over 180; it is searched as {furthest - 360:g}"
        yield Finding("longitude", "/geometry/coordinates", message, Severity.WARNING)


def check_box(box: object) -> Iterator[Finding]:
    """What is wrong with a bbox (RFC 7946, 5): four or six numbers within −180..360 and −90..90, the south first."""
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
    left = MAX_VERTICES
    for n, member in enumerate(members):
        where = f"/geometry/geometries/{n}"
        if not isinstance(member, dict):
            yield Finding("geometry", where, "a member of a GeometryCollection is a geometry")
            return
        if member.get("type") == "GeometryCollection":
            yield Finding("geometry", where, "collections of collections are not taken")
            return
        findings = [*_check_simple(member, where, left)]
        yield from findings
        if findings:
            return
        left -= sum(1 for _ in _positions(member["coordinates"], DEPTH[member["type"]]))


def _check_simple(geometry: Mapping[str, Any], where: str, most: int) -> Iterator[Finding]:
    kind = geometry.get("type")
    if not isinstance(kind, str) or kind not in DEPTH:
        known = ", ".join((*DEPTH, "GeometryCollection"))
        yield Finding("geometry", f"{where}/type", f"{str(kind)[:80]!r} is no GeoJSON geometry; use one of {known}")
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
    """The lines or rings of a geometry that has them, with their places."""
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
    """GeoJSON text of a checked geometry as it goes into the index."""
    if geometry is None:
        return EMPTY
    text = orjson.dumps(geometry)
    return _footprint(text) if len(text) <= LONGEST_KEPT else _searchable(text)


def _searchable(text: bytes) -> str:
    geometry = orjson.loads(text)
    return text.decode() if _is_plain(geometry) else _normalised(geometry)


_footprint = lru_cache(maxsize=4096)(_searchable)  # a model's datasets share a handful of footprints


def _is_plain(geometry: Mapping[str, Any]) -> bool:
    """A rectangle within the world that is searched: what nearly all datasets have, and surely valid."""
    if geometry["type"] != "Polygon" or len(geometry["coordinates"]) != 1:
        return False
    ring: list[Position] = geometry["coordinates"][0]
    return (
        len(ring) == 5
        and all(len(position) == 2 and -180 <= position[0] <= 180 for position in ring)
        and all((a[0] == b[0]) != (a[1] == b[1]) for a, b in pairwise(ring))  # along an axis
        and all(a[0] != b[0] and a[1] != b[1] for a, b in (ring[0::2][:2], ring[1::2]))  # and not back again
    )


def _normalised(geometry: dict[str, Any]) -> str:
    """Two dimensions, valid (PostGIS fails on overlapping parts), and turned into the world that is searched."""
    import shapely  # the server's, and only for the footprint that needs it
    from shapely import affinity

    flat = shapely.make_valid(shapely.geometry.shape(_without_heights(geometry)))
    parts = []
    for piece in shapely.get_parts(flat):
        for west, shift in WORLDS[: 1 + (piece.bounds[2] > 180)]:
            part = piece.intersection(shapely.box(west, -90, west + 360, 90))
            if not part.is_empty and shapely.get_dimensions(part) == shapely.get_dimensions(piece):  # no mere touch
                parts.append(affinity.translate(part, shift))
    return shapely.to_geojson(shapely.union_all(parts))


def _without_heights(geometry: Mapping[str, Any]) -> dict[str, Any]:
    """Heights may be there for some positions only, which shapely does not take."""
    if geometry["type"] == "GeometryCollection":
        return {**geometry, "geometries": [_without_heights(member) for member in geometry["geometries"]]}

    def flat(coordinates: Any, depth: int) -> Any:
        return [flat(part, depth - 1) for part in coordinates] if depth else coordinates[:2]

    return {"type": geometry["type"], "coordinates": flat(geometry["coordinates"], DEPTH[geometry["type"]])}
