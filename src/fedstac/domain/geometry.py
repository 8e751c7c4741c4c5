"""Geometry as it is searched: two dimensions, longitudes −180..180, split at the antimeridian (RFC 7946, 3.1.9).

The document keeps what the publisher wrote; only the search copy is normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

import orjson

from fedstac.domain.errors import Finding

EMPTY = '{"type":"GeometryCollection","geometries":[]}'  # where a document has no geometry (STAC allows null)
MAX_VERTICES = 10_000
DEPTH = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
Position = list[float]


def check(geometry: object) -> Iterator[Finding]:
    """What is wrong with a GeoJSON geometry: its form, its size, longitudes outside −180..360, latitudes over 90."""
    if geometry is None:
        return
    if not isinstance(geometry, dict):
        yield Finding("geometry", "/geometry", "geometry has to be a GeoJSON object or null")
        return
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        yield from _check_collection(geometry)
        return
    if kind not in DEPTH:
        known = ", ".join(DEPTH)
        yield Finding("geometry", "/geometry/type", f"{kind!r} is no GeoJSON geometry; use one of {known}")
        return
    try:
        positions = list(_positions(geometry.get("coordinates"), DEPTH[kind]))
    except (TypeError, ValueError):
        yield Finding("geometry", "/geometry/coordinates", f"the coordinates are not those of a {kind}")
        return
    yield from _check_positions(positions)


def _check_collection(geometry: Mapping[str, object]) -> Iterator[Finding]:
    members = geometry.get("geometries")
    if not isinstance(members, list):
        yield Finding("geometry", "/geometry/geometries", "a GeometryCollection needs the list `geometries`")
        return
    for n, member in enumerate(members):
        if isinstance(member, dict) and member.get("type") == "GeometryCollection":
            yield Finding("geometry", f"/geometry/geometries/{n}", "collections of collections are not taken")
            return
        for finding in check(member):
            place = finding.pointer.replace("/geometry", f"/geometry/geometries/{n}", 1)
            yield Finding(finding.rule, place, finding.message)


def _check_positions(positions: list[Position]) -> Iterator[Finding]:
    where = "/geometry/coordinates"
    if not positions:
        yield Finding("geometry", where, "the geometry has no positions; use null where there is none")
    if len(positions) > MAX_VERTICES:
        yield Finding("geometry", where, f"{len(positions)} vertices; {MAX_VERTICES} are the most: simplify it")
    for position in positions:
        if not (-180 <= position[0] <= 360 and -90 <= position[1] <= 90):
            yield Finding("geometry", where, f"{position} is no longitude (−180..360) and latitude (−90..90)")
            return


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
    return EMPTY if geometry is None else _searchable(orjson.dumps(geometry))


@lru_cache(maxsize=4096)  # a model's datasets share a handful of footprints
def _searchable(text: bytes) -> str:
    geometry = orjson.loads(text)
    members = geometry.get("geometries") or [geometry]
    positions = [
        position for member in members for position in _positions(member["coordinates"], DEPTH[member["type"]])
    ]
    if all(len(position) == 2 and -180 <= position[0] <= 180 for position in positions):
        return text.decode()
    return _normalised(geometry)


def _normalised(geometry: dict[str, Any]) -> str:
    import shapely  # the server's, and only for the rare footprint that needs it

    flat = shapely.force_2d(shapely.make_valid(shapely.geometry.shape(geometry)))
    turns = ((-180.0, 0.0), (180.0, -360.0))  # the western edge of each world that is searched, and its shift
    parts = [
        shapely.affinity.translate(flat.intersection(shapely.box(west, -90, west + 360, 90)), shift)
        for west, shift in turns
    ]
    return shapely.to_geojson(shapely.union_all([part for part in parts if not part.is_empty]))
