"""Boxes on a globe whose longitudes close."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstac.domain import geometry as rules
from fedstac.scan import extents
from fedstac.scan.extents import GLOBE, Box


@pytest.mark.parametrize(
    ("arcs", "start", "width"),
    [
        ([(10, 20)], 10, 20),
        ([(350, 20)], 350, 20),
        ([(350, 0), (10, 0)], 350, 20),
        ([(0, 0), (120, 0), (240, 0)], 0, 240),
        ([(0, 180), (180, 180)], 0, 360),
        ([(5, 1), (10, 1), (350, 30)], 350, 30),  # one that goes over the start covers those behind it
    ],
)
def test_the_hull_leaves_out_the_widest_gap(arcs: list[tuple[float, float]], start: float, width: float) -> None:
    assert extents.hull(arcs) == pytest.approx((start, width))


@pytest.mark.parametrize(
    ("west", "width", "expected"),
    [
        (0, 360, GLOBE),
        (10, 20, Box(10, -90, 30, 90)),
        (200, 20, Box(-160, -90, -140, 90)),
        (170, 20, Box(170, -90, 190, 90)),
        (180, 10, Box(-180, -90, -170, 90)),
        (0.5, 349.5, Box(0.5, -90, 350, 90)),
    ],
)
def test_a_box_begins_between_minus_180_and_180(west: float, width: float, expected: Box) -> None:
    assert extents.box(west, width, (-90, 90)) == expected


def test_across_the_antimeridian_there_are_two_polygons_and_a_box_whose_west_is_greater() -> None:
    box = Box(170, -20, 190, 10)
    assert extents.bbox(box) == [170, -20, -170, 10]
    shape = extents.geometry(box)
    assert shape["type"] == "MultiPolygon"
    assert [sorted({x for x, _ in rings[0]}) for rings in shape["coordinates"]] == [[170, 180], [-180, -170]]


def test_what_has_no_height_or_width_is_a_line_or_a_point() -> None:
    assert extents.geometry(Box(5, 6, 5, 6)) == {"type": "Point", "coordinates": [5, 6]}
    assert extents.geometry(Box(5, 6, 7, 6)) == {"type": "LineString", "coordinates": [[5, 6], [7, 6]]}
    assert extents.geometry(Box(170, 6, 190, 6))["type"] == "MultiLineString"


def test_a_latitude_that_rounding_put_behind_the_pole_is_the_pole() -> None:
    assert extents.box(0, 10, (-90.0000001, 90.2)).south == -90
    assert extents.box(0, 10, (-90.0000001, 90.2)).north == 90


boxes = st.builds(
    extents.box,
    st.floats(0, 359.9),
    st.floats(0, 360),
    st.tuples(st.floats(-90, 90), st.floats(-90, 90)).map(lambda pair: (min(pair), max(pair))),
)


@given(st.lists(boxes, min_size=1, max_size=5))
def test_every_geometry_is_one_that_the_rules_take_and_the_union_holds_all(several: list[Box]) -> None:
    whole = extents.union(several)
    assert not [*rules.check(extents.geometry(whole)), *rules.check_box(extents.bbox(whole))]
    for box in several:
        assert whole.south <= box.south
        assert box.north <= whole.north
        offset = (box.west - whole.west) % 360
        offset = 0 if offset > 359.9999 else offset  # a rounding before its west
        assert offset + box.east - box.west <= whole.east - whole.west + 1e-4 or whole.east - whole.west >= 359.99
