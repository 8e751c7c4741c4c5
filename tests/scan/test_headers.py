"""What is read from real files: facets, where, when; and that no file, however broken or hostile, does harm."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest

from fedstac.scan import reader
from fedstac.scan.values import Unusable
from tests.scan.files import GLOBAL, File, amon, cells, centres, months, tracking_id


def facts_of(path: Path, *, checksum: bool = False) -> dict[str, Any]:
    status = path.stat()
    facts = reader.read(str(path), status.st_size, status.st_mtime_ns, checksum=checksum, report=lambda done: None)
    return facts


def refusal(path: Path) -> Unusable:
    with pytest.raises(Unusable) as caught:
        facts_of(path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    return caught.value


def test_a_regular_monthly_file(tmp_path: Path) -> None:
    path = amon(1850, 1851).write(tmp_path)
    facts = facts_of(path, checksum=True)
    assert facts["box"] == [-180, -90, 180, 90]
    assert (facts["start"], facts["end"]) == ("1850-01-01T00:00:00", "1851-12-31T23:59:59")
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["variable"] == {
        "units": "K", "standard_name": "air_temperature", "long_name": "Near-Surface Air Temperature"
    }  # fmt: skip
    assert facts["attributes"]["tracking_id"] == tracking_id(path.name)


# --- where ---


def curvilinear(west: float, east: float, south: float = -78.0, north: float = 89.5) -> dict[str, Any]:
    """Return a tripolar-like grid: the rows bend in the north; land at a corner has no coordinates."""
    x, y = np.meshgrid(centres(west, east, 36), centres(south, north, 20))
    x = x + np.linspace(0, 3, 20)[:, None]
    x = np.where(x >= 360, x - 360, x)
    x[:2, :2] = y[:2, :2] = 1e20
    return {"longitudes": x, "latitudes": y}


@pytest.mark.parametrize(
    ("grid", "box"),
    [
        (GLOBAL, [-180, -90, 180, 90]),
        ({"latitudes": centres(-90, 90, 18), "longitudes": np.arange(-180, 180, 10.0)}, [-180, -85, 180, 85]),
        ({"latitudes": np.linspace(90, -90, 19), "longitudes": np.arange(0, 360, 5.0)}, [-180, -90, 180, 90]),
        (curvilinear(0, 360), [-180, -73.8125, 180, 85.3125]),
        (curvilinear(20, 60), [20.8713, -73.8125, 62.4444, 85.3125]),
        (  # a region from 0..360
            {"latitudes": centres(10, 20, 5), "latitude_edges": cells(10, 20, 5), "longitudes": centres(200, 220, 4),
             "longitude_edges": cells(200, 220, 4)},
            [-160, 10, -140, 20],
        ),
        (  # across the antimeridian, in both ways to write it
            {"latitudes": centres(-20, 0, 5), "longitudes": np.arange(165, 196, 5.0)},
            [165, -18, 195, -2],
        ),
        (
            {"latitudes": centres(-20, 0, 5), "longitudes": np.array([165, 170, 175, -180, -175, -170, -165.0])},
            [165, -18, 195, -2],
        ),
        ({"latitudes": centres(-90, 90, 18), "latitude_edges": cells(-90, 90, 18)}, [-180, -90, 180, 90]),  # zonal
        ({"latitudes": np.array([47.5]), "longitudes": np.array([8.25])}, [8.25, 47.5, 8.25, 47.5]),
        (  # one cell all around
            {"latitudes": centres(-90, 90, 18), "longitudes": np.array([180.0]), "longitude_edges": [[0.0, 360.0]]},
            [-180, -85, 180, 85],
        ),
        ({}, None),
    ],
)  # fmt: skip
def test_boxes(tmp_path: Path, grid: dict[str, Any], box: list[float] | None) -> None:
    facts = facts_of(File("tas.nc", **{**months(1850, 1850), **grid}).write(tmp_path))
    assert facts["box"] == (box if box is None else pytest.approx(box, abs=1e-3))


def test_a_global_mean_is_everywhere(tmp_path: Path) -> None:
    file = File("tas.nc", {"grid_label": "gm"}, **months(1850, 1850))
    assert facts_of(file.write(tmp_path))["box"] == [-180, -90, 180, 90]


def test_vertices_of_cells_count(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(10, 20, 1.0), np.arange(40, 50, 1.0))
    corners = np.array([-0.5, 0.5, 0.5, -0.5]), np.array([-0.5, -0.5, 0.5, 0.5])
    file = File("tos.nc", longitudes=x, latitudes=y, longitude_edges=x[..., None] + corners[0],
                latitude_edges=y[..., None] + corners[1], **months(1850, 1850))  # fmt: skip
    assert facts_of(file.write(tmp_path))["box"] == pytest.approx([9.5, 39.5, 19.5, 49.5])


def test_an_unstructured_grid(tmp_path: Path) -> None:
    path = amon().write(tmp_path)
    angle = np.arange(5000) * 2.399963  # points of a sunflower's head, evenly over the globe
    with netCDF4.Dataset(path, "a") as file:
        file.createDimension("cell", 5000)
        for name, values, units in (("latitude", np.degrees(np.arcsin(np.linspace(-1, 1, 5000))), "degrees_north"),
                                    ("longitude", np.degrees(angle % (2 * np.pi)), "degrees_east")):  # fmt: skip
            one = file.createVariable(name, "f4", ("cell",))
            one.units = units
            one[:] = values
        file.variables["tas"].coordinates = "latitude longitude"
    assert facts_of(path)["box"] == pytest.approx([-180, -90, 180, 90])


def test_a_large_grid_is_read_in_blocks(tmp_path: Path) -> None:
    x, y = np.meshgrid(centres(0, 360, 1440), centres(-80, 90, 1080))
    file = File("tos.nc", longitudes=x, latitudes=y, **months(1850, 1850))
    assert facts_of(file.write(tmp_path))["box"] == pytest.approx([-180, -79.921, 180, 89.921], abs=1e-3)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ({"latitudes": np.array([0.0, 900]), "longitudes": np.arange(3.0)}, "latitudes are from 0 to 900"),
        ({"latitudes": np.arange(3.0), "longitudes": np.array([0.0, 1e6])}, "longitudes are from 0 to 1e"),
        ({"latitudes": np.full((2, 2), 1e20), "longitudes": np.full((2, 2), 1e20)}, "no longitude has a value"),
    ],
)
def test_coordinates_that_are_none_are_named(tmp_path: Path, grid: dict[str, Any], reason: str) -> None:
    fault = refusal(File("tas.nc", **months(1850, 1850), **grid).write(tmp_path))
    assert fault.rule == "coordinates"
    assert reason in fault.message


EUROPE: dict[str, Any] = {
    "latitudes": np.array([42.0, 46, 50]), "latitude_edges": cells(40, 52, 3),
    "longitudes": np.array([12.0, 16, 20]), "longitude_edges": cells(10, 22, 3),
}  # fmt: skip


def europe(folder: Path) -> Path:
    return File("tas.nc", **months(1850, 1850), **EUROPE).write(folder)


@pytest.mark.parametrize(("row", "edge"), [(1, 1e5), (1, 0.0), (0, 0.0), (2, -1e5), (1, np.nan)])
@pytest.mark.parametrize("kind", ["lat", "lon"])
def test_bounds_that_do_not_hold_their_point_do_not_count(tmp_path: Path, kind: str, row: int, edge: float) -> None:
    path = europe(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        file[f"{kind}_bnds"][row] = edge
    facts = facts_of(path)
    box = [10.0, 40, 22, 52]
    if row != 1:  # the outermost point stands for its cell
        side = (0 if kind == "lon" else 1) + (2 if row == 2 else 0)
        box[side] = EUROPE["longitudes" if kind == "lon" else "latitudes"][row]
    assert facts["box"] == pytest.approx(box)
    [(rule, sentence)] = facts["notes"]
    assert rule == "coordinates"
    assert f"the bounds {kind}_bnds of 1 of 3 values of {kind}" in sentence


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        ("radian", np.pi / 180), ("radians", np.pi / 180), ("rad", np.pi / 180), ("gon", 1 / 0.9), ("degrees", 1),
        ("Degrees", 1), ("arcmin", 60), ("arc_second", 3600), ("0.01 degrees", 100),
    ],
)  # fmt: skip
def test_angles_are_converted_to_degrees(tmp_path: Path, units: str, factor: float) -> None:
    path = europe(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        for name in ("lat", "lon"):
            file[name].units = units
            for one in (file[name], file[f"{name}_bnds"]):
                one[:] = one[:] * factor
    assert facts_of(path)["box"] == pytest.approx([10, 40, 22, 52])


def test_degrees_to_the_west_are_so(tmp_path: Path) -> None:
    path = europe(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        file["lon"].units = "degrees_west"
    assert facts_of(path)["box"] == pytest.approx([-22, 40, -10, 52])


@pytest.mark.parametrize("units", ["m", "1", "K", "degrees_east", "degrees_south", "", "degC", "Rad s", "days"])
def test_units_that_are_none_of_latitudes_are_refused_by_name(tmp_path: Path, units: str) -> None:
    path = europe(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        file["lat"].units = units
    fault = refusal(path)
    assert fault.rule == "coordinates"
    assert "lat" in fault.message
    assert repr(units) in fault.message or "no units" in fault.message


def test_packed_values_are_unpacked_and_what_is_missing_or_invalid_is_none(tmp_path: Path) -> None:
    path = File("tas.nc", **months(1850, 1850)).write(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        file.set_auto_maskandscale(False)
        for name, values, units in (("lat", [4200, 4600, 5000, -999, 20000, 7777], "degrees_north"),
                                    ("lon", [1200, 1600, 2000, -32768, 30000, -5], "degrees_east")):  # fmt: skip
            file.createDimension(name, 6)
            one = file.createVariable(name, "i2", (name,), fill_value=-32768)
            one.set_auto_maskandscale(False)
            one.setncatts({"units": units, "scale_factor": 0.01, "add_offset": 1.0, "missing_value": np.int16(-999),
                           "valid_range": np.array([0, 10000], np.int16)})  # fmt: skip
            one[:] = values
        file["lat"].setncattr("missing_value", np.array([-999, 7777], np.int16))
        file["tas"].coordinates = "lat lon"
    assert facts_of(path)["box"] == pytest.approx([13, 43, 21, 51])


@pytest.mark.parametrize(
    ("attribute", "reason"), [({"scale_factor": "0.01"}, "scale_factor"), ({"add_offset": np.nan}, "add_offset")]
)
def test_a_packing_that_is_none_is_refused(tmp_path: Path, attribute: dict[str, Any], reason: str) -> None:
    path = europe(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        file["lat"].setncatts(attribute)
    assert f"the attribute {reason} of lat is not a number" in refusal(path).message


def test_the_name_of_a_dimension_is_no_coordinate(tmp_path: Path) -> None:
    """The NetCDF library keeps a dimension without a variable as a variable full of zeros."""
    path = File("tas.nc", **months(1850, 1850)).write(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        file.createDimension("lat", 3)
        file.createDimension("lon", 4)
        file.renameVariable("tas", "old")
        file.createVariable("tas", "f4", ("time", "lat", "lon"))
    assert facts_of(path)["box"] is None
    with netCDF4.Dataset(path, "a") as file:  # curvilinear, and named as its dimensions: stored under another name
        for name, values, units in (("lat", [42.0, 50], "degrees_north"), ("lon", [12.0, 20], "degrees_east")):
            one = file.createVariable(name, "f8", ("lat", "lon"))
            one.units = units
            one[:] = np.linspace(values[0], values[1], 12).reshape(3, 4)
        file["tas"].coordinates = "lat lon"
    assert facts_of(path)["box"] == pytest.approx([12, 42, 20, 50])


@pytest.mark.parametrize("kind", [h5py.string_dtype(), "S1"])
def test_a_latitude_in_letters_is_refused(tmp_path: Path, kind: Any) -> None:
    path = File("tas.nc", **months(1850, 1850)).write(tmp_path)
    with h5py.File(path, "a") as file:
        for name, standard in (("lat", "latitude"), ("lon", "longitude")):
            file.create_dataset(name, data=np.array(list("42.5"), dtype=kind)).attrs["standard_name"] = standard
        file["tas"].attrs["coordinates"] = "lat lon"
    fault = refusal(path)
    assert (fault.rule, "lat is text" in fault.message) == ("coordinates", True)


def test_a_station_has_scalar_coordinates(tmp_path: Path) -> None:
    path = File("tas.nc", **months(1850, 1850)).write(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        for name, value, units in (("lat", 47.5, "degrees_north"), ("lon", 188.25, "degrees_east")):
            one = file.createVariable(name, "f8", ())
            one.units = units
            one[...] = value
        file["tas"].coordinates = "lat lon"
    assert facts_of(path)["box"] == pytest.approx([-171.75, 47.5, -171.75, 47.5])


@pytest.mark.parametrize(
    ("points", "edges", "sides"),
    [
        ([150.0], [[0, 300]], (0, 300)),
        ([75.0, 225], [[0, 150], [150, 300]], (0, 300)),
        ([0.0, 10], [[355, 5], [5, 15]], (-5, 15)),  # written across the seam
        ([-175.0, 175], [[180, 190], [170, 180]], (170, 190)),
        (np.arange(5, 350, 10.0), cells(0, 350, 35), (0, 350)),  # bounds say that a cell is missing
        (centres(-180, 180, 8), cells(-180, 180, 8), (-180, 180)),
    ],
)
def test_cells_cover_what_lies_between_their_edges(
    tmp_path: Path, points: Any, edges: Any, sides: tuple[float, float]
) -> None:
    grid = EUROPE | {"longitudes": np.array(points), "longitude_edges": np.array(edges, float)}
    facts = facts_of(File("tas.nc", **months(1850, 1850), **grid).write(tmp_path))
    assert (facts["box"][0], facts["box"][2]) == pytest.approx(sides)
    assert facts["notes"] == []


def test_a_cell_at_the_pole_may_have_a_vertex_of_any_longitude(tmp_path: Path) -> None:
    x, y = np.array([[100.0, 110, 120]]), np.array([[88.0, 88, 88]])
    corners_x = np.stack([x - 5, x + 5, np.zeros_like(x)], axis=-1)
    corners_y = np.stack([y - 1, y - 1, np.full_like(y, 90)], axis=-1)
    file = File("tos.nc", longitudes=x, latitudes=y, longitude_edges=corners_x, latitude_edges=corners_y,
                **months(1850, 1850))  # fmt: skip
    facts = facts_of(file.write(tmp_path))
    assert facts["box"] == pytest.approx([95, 87, 125, 90])
    assert facts["notes"] == []


def test_a_dimension_without_length_is_named(tmp_path: Path) -> None:
    path = File("tas.nc", **months(1850, 1850)).write(tmp_path)
    with h5py.File(path, "a") as file:
        for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
            one = file.create_dataset(name, (0,), "f8", maxshape=(None,))
            one.make_scale(name)
            one.attrs["units"] = units
        file["tas"].attrs["coordinates"] = "lat lon"
    assert "has a value" in refusal(path).message


# --- when ---


def spans(path: Path) -> tuple[Any, Any]:
    facts = facts_of(path)
    return facts["start"], facts["end"]


def test_without_bounds_the_points_are_the_span(tmp_path: Path) -> None:
    file = File("tas.nc", times=[0.125, 0.25, 0.375], units="days since 2000-01-01", calendar="standard", **GLOBAL)
    assert spans(file.write(tmp_path)) == ("2000-01-01T03:00:00", "2000-01-01T09:00:00")


def test_a_calendar_of_360_days(tmp_path: Path) -> None:
    file = File("tas.nc", times=[45.0], time_edges=[[30.0, 60.0]], units="days since 2001-01-01", calendar="360_day",
                **GLOBAL)  # fmt: skip
    assert spans(file.write(tmp_path)) == ("2001-02-01T00:00:00", "2001-02-30T23:59:59")


def test_climatologies_have_bounds_too(tmp_path: Path) -> None:
    file = File("tas.nc", times=[15.0], time_edges=[[0.0, 3650.0]], climatology=True, **GLOBAL)
    assert spans(file.write(tmp_path)) == ("1850-01-01T00:00:00", "1859-12-31T23:59:59")


@pytest.mark.parametrize(
    ("edges", "span"),
    [
        ([[0.0, 0.0], [0.0, 0.0]], ("1850-01-16T00:00:00", "1850-02-15T00:00:00")),
        ([[0.0, 31.0], [0.0, 0.0]], ("1850-01-01T00:00:00", "1850-02-15T00:00:00")),
        ([[1e5, 1e5], [31.0, 59.0]], ("1850-01-16T00:00:00", "1850-02-28T23:59:59")),
        ([[np.nan, np.nan], [31.0, 59.0]], ("1850-01-16T00:00:00", "1850-02-28T23:59:59")),
    ],
)
def test_time_bounds_that_do_not_hold_their_point_do_not_count(
    tmp_path: Path, edges: Any, span: tuple[str, str]
) -> None:
    path = File("tas.nc", times=[15.0, 45.0], time_edges=edges, **GLOBAL).write(tmp_path)
    assert spans(path) == span
    assert [rule for rule, _ in facts_of(path)["notes"]] == ["time"]


def test_instants_have_bounds_without_length(tmp_path: Path) -> None:
    path = File("tas.nc", times=[15.0, 45.0], time_edges=[[15.0, 15.0], [45.0, 45.0]], **GLOBAL).write(tmp_path)
    assert spans(path) == ("1850-01-16T00:00:00", "1850-02-15T00:00:00")
    assert facts_of(path)["notes"] == []


@pytest.mark.parametrize(
    ("units", "span"),
    [
        ("days since 1850-01-01 00:00:00 UTC", ("1850-01-01T00:00:00", "1850-01-31T23:59:59")),
        ("days since 1850-1-1 0:0:0.0 -6:00", ("1850-01-01T06:00:00", "1850-02-01T05:59:59")),
        ("days since 1850-1-1 0:0:0.0 -600", ("1850-01-01T06:00:00", "1850-02-01T05:59:59")),
        ("Days  Since 1850", ("1850-01-01T00:00:00", "1850-01-31T23:59:59")),
    ],
)
def test_zones_and_spellings_of_units_are_understood(tmp_path: Path, units: str, span: tuple[str, str]) -> None:
    path = File("tas.nc", times=[14.5], time_edges=[[0.0, 31.0]], units=units, **GLOBAL).write(tmp_path)
    assert spans(path) == span
    assert facts_of(path)["notes"] == []


def test_bounds_beyond_the_years_of_dates_end_there(tmp_path: Path) -> None:
    early = File("early.nc", times=[14.5, 45.0], time_edges=[[-1.0, 31.0], [31.0, 59.0]],
                 units="days since 0001-01-01", **GLOBAL).write(tmp_path)  # fmt: skip
    late = File("late.nc", times=[14.5], time_edges=[[0.0, 31.0]], units="days since 9999-12-01",
                **GLOBAL).write(tmp_path)  # fmt: skip
    assert spans(early) == ("0001-01-01T00:00:00", "0001-02-28T23:59:59")
    assert spans(late) == ("9999-12-01T00:00:00", "9999-12-31T23:59:59")
    assert "the first bound of time lies out of the years 1 to 9999" in facts_of(early)["notes"][0][1]
    assert facts_of(late)["notes"] == []  # the last second before the end is in year 9999
    later = File("later.nc", times=[14.5], time_edges=[[0.0, 32.0]], units="days since 9999-12-01", **GLOBAL)
    assert "the last bound" in facts_of(later.write(tmp_path))["notes"][0][1]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (lambda file: file["time"].setncattr("bounds", "absent"), "is no variable with numbers"),
        (lambda file: file["time"].setncattr("bounds", "lat_bnds"), "has the shape (18, 2) for that of (12,)"),
        (lambda file: file["time_bnds"].setncattr("units", "days since 0001-01-01"), "has other units"),
        (lambda file: file["time_bnds"].setncattr("calendar", "360_day"), "has other units or another calendar"),
    ],
)
def test_bounds_that_cannot_be_used_are_named(tmp_path: Path, changed: Any, reason: str) -> None:
    path = amon().write(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        changed(file)
    facts = facts_of(path)
    assert facts["start"] == "1850-01-16T12:00:00"
    [(rule, sentence)] = facts["notes"]
    assert (rule, reason in sentence) == ("time", True), sentence


def test_a_calendar_of_ones_own_is_refused(tmp_path: Path) -> None:
    path = amon().write(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        file["time"].setncattr("month_lengths", np.full(12, 31))
    assert "calendar of its own" in refusal(path).message


def test_what_is_fixed_has_no_time(tmp_path: Path) -> None:
    file = File("areacella.nc", {"frequency": "fx", "table_id": "fx", "variable_id": "areacella"}, **GLOBAL)
    assert spans(file.write(tmp_path)) == (None, None)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (File("a.nc", **GLOBAL), "no time coordinate"),
        (File("a.nc", times=[], **GLOBAL), "no time step"),
        (File("a.nc", times=[1.0], units="days since forever", **GLOBAL), "no date, clock time or zone"),
        (File("a.nc", times=[1.0], calendar="lunar", **GLOBAL), "calendar"),
        (File("a.nc", times=[1e30], **GLOBAL), "no time step"),  # as large as fill values
        (File("a.nc", times=[1e18], **GLOBAL), "20 000 years away"),
        (File("a.nc", times=[-400.0], units="days since 0001-01-01", **GLOBAL), "in the year -1"),
        (File("a.nc", times=[1.0], units="months since 1850-01-01", **GLOBAL), "months since .* uncertain"),
        (File("a.nc", times=[1.0], units="", **GLOBAL), "units '' of time"),
    ],
)
def test_times_that_are_none_are_named(tmp_path: Path, file: File, reason: str) -> None:
    with pytest.raises(Unusable, match=reason) as caught:
        facts_of(file.write(tmp_path))
    assert caught.value.rule == "time"


# --- attributes ---


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"source_id": None, "grid_label": ""}, "missing or empty: source_id, grid_label"),
        ({"mip_era": "CMIP5"}, "mip_era is 'CMIP5'"),
        ({"source_id": 7}, "source_id is 7, not a text"),
        ({"source_id": np.array([1.5, 2.5])}, "source_id is array([1.5, 2.5]), not a text"),
        ({"source_id": "../../etc"}, "letters, digits and hyphens"),
        ({"activity_id": "CMIP ../x"}, "activity_id is '../x'"),
        ({"experiment_id": "his\ntorical"}, "control characters"),
        ({"table_id": "Amon" + "x" * 100_000}, "longer than 2048"),
        ({"realm": "\x1b[31matmos"}, "missing or empty: realm"),
        ({"institution_id": "x" * 200}, "letters, digits and hyphens"),
        ({"tracking_id": "abcd"}, "tracking_id is 'abcd'"),
        ({"variable_id": "absent"}, "no variable 'absent'"),
        ({"variable_id": "tas-x"}, "no variable 'tas-x'"),
    ],
)
def test_attributes_of_no_use_are_named(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    path = amon().write(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        for name, value in changed.items():
            file.delncattr(name) if value is None else file.setncattr(name, value)
    fault = refusal(path)
    assert reason in fault.message
    assert fault.rule in ("attribute", "variable")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = amon().write(tmp_path)
    with h5py.File(path, "a") as file:
        file.attrs["source_id"] = np.bytes_("Modèle".encode("latin-1"))
    assert "source_id is not UTF-8" in refusal(path).message


@pytest.mark.parametrize(
    ("written", "read", "reason"),
    [
        ("native\ngrid,\t\tlatxlon", "native grid, latxlon", "control characters"),
        (np.bytes_("0.9° grid".encode("latin-1")), None, "not UTF-8"),
        ("\x1b[31mred", None, "control characters"),
        ("x" * 2049, None, "longer than 2048"),
        ("x" * 100_000, None, "longer than 2048"),
        (7, None, "is 7, not a text"),
        ("line\u2028separated", "line separated", "control characters"),
    ],
)
@pytest.mark.parametrize("name", ["grid", "experiment", "further_info_url", "creation_date", "long_name"])
def test_an_odd_text_that_names_nothing_is_mended_or_left_out(
    tmp_path: Path, name: str, written: Any, read: str | None, reason: str
) -> None:
    path = amon().write(tmp_path)
    with h5py.File(path, "a") as file:
        (file["tas"] if name == "long_name" else file).attrs[name] = written
    facts = facts_of(path)
    assert (facts["variable"] if name == "long_name" else facts["attributes"]).get(name) == read
    [(rule, sentence)] = facts["notes"]
    assert rule == "attribute"
    assert f"the attribute {name} " in sentence
    assert reason in sentence


@pytest.mark.parametrize("kind", ["vlen", "fixed", "array", "padded"])
def test_texts_may_be_stored_in_any_of_hdf5s_ways(tmp_path: Path, kind: str) -> None:
    path = amon().write(tmp_path)
    stored = {
        "vlen": "modèle α",
        "fixed": np.bytes_("modèle α".encode()),
        "padded": np.bytes_("modèle α \0\0".encode()),
        "array": np.array(["modèle α"], dtype=h5py.string_dtype()),
    }
    with h5py.File(path, "a") as file:
        file.attrs["experiment"] = stored[kind]
    assert facts_of(path)["attributes"]["experiment"] == "modèle α"


# --- hostile ---


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = amon().write(tmp_path).read_bytes()
    cases = {
        "empty": (b"", "empty"),
        "text": (b"<html>404 Not ScanFile</html>", "no NetCDF-4 file"),
        "classic": (b"CDF\x01" + bytes(100), "NetCDF-3"),
        "truncated": (whole[: len(whole) // 2], "is truncated"),
        "stub": (whole[:20], "HDF5 cannot open it"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / f"{name}.nc"
        path.write_bytes(content)
        fault = refusal(path)
        assert (fault.rule, reason in fault.message) == ("unreadable", True), fault.message


def test_plain_hdf5_lacks_the_attributes(tmp_path: Path) -> None:
    path = tmp_path / "plain.nc"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    assert "are missing or empty: mip_era, activity_id" in refusal(path).message


@pytest.mark.parametrize("way", ["external link", "soft link", "raw data elsewhere", "virtual data"])
@pytest.mark.parametrize("name", ["tas", "lat"])
def test_nothing_outside_the_file_is_followed(tmp_path: Path, way: str, name: str) -> None:
    path = amon().write(tmp_path)
    secret = tmp_path / "secret.nc"
    amon().write(tmp_path).rename(secret)
    with h5py.File(secret, "r") as file:
        shape = file[name].shape
    amon().write(tmp_path)
    with h5py.File(path, "a") as file:
        file.move(name, "before")
        match way:
            case "external link":
                file[name] = h5py.ExternalLink(str(secret), f"/{name}")
            case "soft link":
                file[name] = h5py.SoftLink("/before")
            case "raw data elsewhere":
                file.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
            case "virtual data":
                layout = h5py.VirtualLayout(shape, "f4")
                layout[...] = h5py.VirtualSource(str(secret), name, shape)
                file.create_virtual_dataset(name, layout)
        file["before" if name == "tas" else "tas"].attrs["coordinates"] = np.bytes_("lat lon")
    assert refusal(path).rule == "outside"


def test_a_coordinate_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = amon().write(tmp_path)
    with h5py.File(path, "a") as file:
        file.move("lat", "before")
        bomb = file.create_dataset("lat", (1 << 36,), "f8", chunks=(1 << 20,), compression="gzip")
        bomb.attrs["units"] = "degrees_north"
        file["tas"].attrs["coordinates"] = np.bytes_("lat lon")
    assert path.stat().st_size < 1 << 20
    assert "that no CMIP6 coordinate has" in refusal(path).message


def test_a_file_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    path = amon().write(tmp_path)
    status = path.stat()
    with pytest.raises(Unusable, match="changed while"):
        reader.read(str(path), status.st_size + 1, status.st_mtime_ns, checksum=False, report=lambda done: None)
    os.symlink(path, tmp_path / "link.nc")
    with pytest.raises(Unusable, match="cannot be opened"):
        reader.read(
            str(tmp_path / "link.nc"), status.st_size, status.st_mtime_ns, checksum=False, report=lambda done: None
        )
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(Unusable, match="no regular file"):
        reader.read(str(tmp_path / "pipe.nc"), 0, 0, checksum=False, report=lambda done: None)
