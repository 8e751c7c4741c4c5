"""Geometry as it is judged, and as it is searched."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
import shapely
from shapely.geometry.base import BaseGeometry

from fedstac.domain import geometry

Json = dict[str, Any]


def rectangle(west: float, south: float, east: float, north: float, *height: float) -> list[Any]:
    corners = ((west, south), (east, south), (east, north), (west, north), (west, south))
    return [[[*corner, *height] for corner in corners]]


def polygon(*box: float) -> Json:
    return {"type": "Polygon", "coordinates": rectangle(*box)}


def boxes(*all_of: tuple[float, float, float, float]) -> BaseGeometry:
    union: BaseGeometry = shapely.union_all([shapely.box(*box) for box in all_of])
    return union


def searched(value: Json | None) -> BaseGeometry:
    found: BaseGeometry = shapely.from_geojson(geometry.searchable(value))
    return found


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (polygon(-180, -90, 178.125, 90), boxes((-180, -90, 178.125, 90))),
        (polygon(0, -90, 360, 90), boxes((-180, -90, 180, 90))),
        (polygon(0, -90, 358.75, 90), boxes((-180, -90, -1.25, 90), (0, -90, 180, 90))),
        (polygon(160, 0, 220, 10), boxes((160, 0, 180, 10), (-180, 0, -140, 10))),
        (polygon(200, 0, 250, 10), boxes((-160, 0, -110, 10))),
        (polygon(180, 0, 190, 10), boxes((-180, 0, -170, 10))),
        (polygon(100, 0, 180, 10), boxes((100, 0, 180, 10))),
        (polygon(0, 0, 10, 10, 500), boxes((0, 0, 10, 10))),
        (
            {"type": "MultiPolygon", "coordinates": [rectangle(170, 0, 180, 5), rectangle(-180, 0, -170, 5)]},
            boxes((170, 0, 180, 5), (-180, 0, -170, 5)),
        ),
        (
            {"type": "MultiPolygon", "coordinates": [rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10)]},
            boxes((0, 0, 15, 10)),
        ),
        ({"type": "Point", "coordinates": [190, 5, 3]}, shapely.Point(-170, 5)),
        ({"type": "Point", "coordinates": [180, 5]}, shapely.Point(180, 5)),
        ({"type": "LineString", "coordinates": [[170, 0], [190, 0]]},
         shapely.MultiLineString([[[170, 0], [180, 0]], [[-180, 0], [-170, 0]]])),
        ({"type": "Polygon", "coordinates": [[[0, 0], [10, 0, 5], [10, 10], [0, 0]]]},
         shapely.Polygon([[0, 0], [10, 0], [10, 10], [0, 0]])),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [1, 0], [0, 0]]]},
         shapely.MultiLineString([[[0, 0], [1, 0]], [[1, 0], [1, 1]]])),
        (
            {"type": "GeometryCollection",
             "geometries": [{"type": "Point", "coordinates": [200, 5]}, polygon(0, 0, 9, 9)]},
            shapely.GeometryCollection([shapely.Point(-160, 5), shapely.box(0, 0, 9, 9)]),
        ),
    ],
)  # fmt: skip
def test_what_is_searched_is_flat_valid_and_in_one_world(value: Json, wanted: BaseGeometry) -> None:
    assert not list(geometry.check(value))
    before = orjson.dumps(value)
    found = searched(value)
    assert found.is_valid
    assert not shapely.has_z(found)
    assert found.bounds[0] >= -180
    assert found.bounds[2] <= 180
    if wanted.geom_type == "GeometryCollection":
        assert shapely.normalize(found) == shapely.normalize(wanted)
    else:
        assert shapely.equals(found, wanted)
    assert orjson.dumps(value) == before


def test_a_rectangle_is_searched_as_it_is_written() -> None:
    value = polygon(-180, -90, 178.125, 90)
    assert orjson.loads(geometry.searchable(value)) == value


def test_no_geometry_is_empty() -> None:
    assert not list(geometry.check(None))
    assert searched(None).is_empty


def test_a_bow_tie_is_made_valid() -> None:
    bow_tie = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
    assert searched(bow_tie).is_valid
    assert searched(bow_tie).area == pytest.approx(50)


def test_large_footprints_are_not_remembered() -> None:
    before = geometry._footprint.cache_info().currsize
    geometry.searchable({"type": "MultiPoint", "coordinates": [[n / 100, 0.5] for n in range(5000)]})
    assert geometry._footprint.cache_info().currsize == before


POINT = {"type": "Point", "coordinates": [0, 0]}


@pytest.mark.parametrize(
    ("value", "pointer"),
    [
        (5, ""), ([], ""), ("POINT(0 0)", ""), ({}, "/type"), ({"type": None}, "/type"), ({"type": []}, "/type"),
        ({"type": "point", "coordinates": [0, 0]}, "/type"), ({"type": "Feature"}, "/type"),
        ({"type": "Point"}, "/coordinates"), ({"type": "Point", "coordinates": None}, "/coordinates"),
        ({"type": "Point", "coordinates": []}, "/coordinates"), ({"type": "Point", "coordinates": [0]}, "/coordinates"),
        ({"type": "Point", "coordinates": [0, 0, 0, 0]}, "/coordinates"),
        ({"type": "Point", "coordinates": [True, 0]}, "/coordinates"),
        ({"type": "Point", "coordinates": [[0, 0]]}, "/coordinates"),
        ({"type": "Point", "coordinates": {"0": 0}}, "/coordinates"),
        ({"type": "Point", "coordinates": [-180.1, 0]}, "/coordinates"),
        ({"type": "Point", "coordinates": [360.1, 0]}, "/coordinates"),
        ({"type": "Point", "coordinates": [0, -90.1]}, "/coordinates"),
        ({"type": "Point", "coordinates": [float("nan"), 0]}, "/coordinates"),
        ({"type": "MultiPoint", "coordinates": []}, "/coordinates"),
        ({"type": "MultiPoint", "coordinates": [[0, 0]] * 10_001}, "/coordinates"),
        ({"type": "LineString", "coordinates": [[0, 0]]}, "/coordinates"),
        ({"type": "MultiLineString", "coordinates": [[[0, 0], [1, 1]], [[0, 0]]]}, "/coordinates/1"),
        ({"type": "MultiLineString", "coordinates": [[[0, 0], [1, 1]], []]}, "/coordinates/1"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}, "/coordinates/0"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 0]]]}, "/coordinates/0"),
        ({"type": "Polygon", "coordinates": [*rectangle(0, 0, 9, 9), []]}, "/coordinates/1"),
        ({"type": "MultiPolygon", "coordinates": [rectangle(0, 0, 9, 9), []]}, "/coordinates/1/0"),
        ({"type": "MultiPolygon", "coordinates": [rectangle(0, 0, 9, 9), [[[0, 0]]]]}, "/coordinates/1/0"),
        ({"type": "GeometryCollection"}, "/geometries"),
        ({"type": "GeometryCollection", "geometries": []}, "/geometries"),
        ({"type": "GeometryCollection", "geometries": [POINT, None]}, "/geometries/1"),
        ({"type": "GeometryCollection", "geometries": [POINT, {"type": []}]}, "/geometries/1/type"),
        ({"type": "GeometryCollection", "geometries": [POINT, {"type": "Point", "coordinates": [0, 99]}]},
         "/geometries/1/coordinates"),
        ({"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection", "geometries": []}]},
         "/geometries/0"),
        ({"type": "GeometryCollection", "geometries": [{"type": "MultiPoint", "coordinates": [[0, 0]] * 6000}] * 2},
         "/geometries/1/coordinates"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_place(value: object, pointer: str) -> None:
    findings = list(geometry.check(value))
    assert findings
    assert findings[0].pointer == "/geometry" + pointer
    assert findings[0].rule == "geometry"


def zigzag(vertices: int) -> list[list[float]]:
    """Return a closed line whose every segment crosses most of the others."""
    corners = [[-170.0 if n % 2 else 170.0, (n * 37) % 160 - 80.0] for n in range(vertices)]
    return [*corners, corners[0]]


def coastline(vertices: int) -> list[list[float]]:
    """Return a ring that goes around without crossing itself, as rugged as a coast."""
    turns = [math.tau * n / vertices for n in range(vertices)]
    ring = [[(40 + n % 7) * math.cos(turn), (40 + n % 7) * math.sin(turn)] for n, turn in enumerate(turns)]
    return [*ring, ring[0]]


def comb(teeth: int, shift: float = 0.0) -> list[list[float]]:
    """Return a valid ring of long slanted teeth: the box of each meets those of all the others."""
    tooth = ((-170, -80), (100, 80), (100.004, 80), (-169.996, -80))
    ring = [[x + n * 0.01 + shift, y] for n in range(teeth) for x, y in tooth]
    return [*ring, [100 + shift, -85], [-170 + shift, -85], ring[0]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"type": "Polygon", "coordinates": [zigzag(120)]}, "crosses itself in over 500 places"),
        ({"type": "Polygon", "coordinates": [zigzag(9000)]}, "too dense"),
        ({"type": "MultiPolygon", "coordinates": [rectangle(0, 0, 9, 9)] * 400}, "crosses itself in over 500 places"),
        ({"type": "Polygon", "coordinates": [comb(2000)]}, "too dense"),
        ({"type": "Polygon", "coordinates": [comb(2000, 170)]}, "too dense"),
    ],
)  # fmt: skip
def test_a_geometry_that_would_take_too_long_is_refused(value: Json, reason: str) -> None:
    assert not list(geometry.check(value))
    assert [reason in finding.message for finding in geometry.complexity(value)] == [True]
    with pytest.raises(geometry.TooComplex, match=reason):
        geometry.searchable(value)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "Polygon", "coordinates": [coastline(2000)]},
        {"type": "Polygon", "coordinates": [coastline(9990)]},
        {"type": "Polygon", "coordinates": [[[x + 150, y] for x, y in coastline(2000)]]},
        {"type": "Polygon", "coordinates": [zigzag(25)]},
        {"type": "MultiPoint", "coordinates": [[n * 0.036, n % 90] for n in range(10_000)]},
        {"type": "LineString", "coordinates": zigzag(9000)},
        {"type": "LineString", "coordinates": [[x + 175, y] for x, y in zigzag(9000)]},
    ],
)
def test_a_large_geometry_of_an_instrument_or_a_coast_is_taken(value: Json) -> None:
    assert not list(geometry.check(value))
    assert not list(geometry.complexity(value))
    found = searched(value)
    assert found.is_valid
    assert -180 <= found.bounds[0] <= found.bounds[2] <= 180


def test_a_stored_geometry_that_is_too_complex_is_searched_by_its_box() -> None:
    value = {"type": "Polygon", "coordinates": [zigzag(120)]}
    assert shapely.equals(shapely.from_geojson(geometry.footprint(value)), shapely.Polygon(zigzag(120)).envelope)


@pytest.mark.parametrize(
    "turned", [[[170, 0], [190, 10], [200, 0]], [[180, 0], [180, 9]], [[190, 0], [180, 0], [170, 5]]]
)
def test_a_line_is_cut_where_it_crosses_the_antimeridian(turned: list[list[float]]) -> None:
    whole = shapely.LineString(turned)
    halves = [whole.intersection(shapely.box(west, -90, west + 360, 90)) for west in (-180, 180)]
    wanted = [
        shapely.affinity.translate(half, shift) for half, shift in zip(halves, (0, -360), strict=True)
        if half.length and not (shift and half.bounds[2] == 180)
    ]  # fmt: skip
    assert shapely.equals(searched({"type": "LineString", "coordinates": turned}), shapely.union_all(wanted))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (polygon(0.1, -0.2, 0.3, 0.4), [(0.1, -0.2, 0.3, 0.4)]),
        (polygon(0, 0, 10, 10, 12.5), [(0, 0, 10, 10)]),
        ({"type": "Polygon", "coordinates": [rectangle(0, 0, 10, 10)[0][::-1]]}, [(0, 0, 10, 10)]),
        (
            {"type": "MultiPolygon", "coordinates": [rectangle(170, 0, 180, 5), rectangle(-180, 0, -170, 5)]},
            [(170, 0, 180, 5), (-180, 0, -170, 5)],
        ),
        ({"type": "Polygon", "coordinates": [*rectangle(0, 0, 10, 10), *rectangle(2, 2, 3, 3)]}, []),
        ({"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 10], [1, 10], [0, 0]]]}, []),
        ({"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}, []),
        ({"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [0, 0], [0, 10], [0, 0]]]}, []),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [2, 0], [3, 0], [0, 0]]]}, []),
        ({"type": "MultiPolygon", "coordinates": [rectangle(0, 0, 1, 1), [[[0, 0], [9, 0], [0, 9], [0, 0]]]]}, []),
        ({"type": "LineString", "coordinates": [[0, 0], [10, 0]]}, []),
    ],
)
def test_rectangles_of_a_geometry(value: Json, wanted: list[tuple[float, ...]]) -> None:
    assert geometry.rectangles(value) == wanted
