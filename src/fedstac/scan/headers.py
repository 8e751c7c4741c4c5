"""What a CMIP6 NetCDF file says of itself: global attributes, the variable, where and when its data lies.

Sources: "CMIP6 Global Attributes, DRS, Filenames, Directory Structure, and CV's" 6.2.7 (attributes), CF conventions
1.12 (coordinates 4, bounds and climatologies 7), the NetCDF-4 format (HDF5 whose dimensions are dimension scales).

A file may be hostile. Only hard links are followed: HDF5 also has links, raw data and virtual data in other files,
which could lie outside the archive. Only what is named here is read, and arrays in blocks, so memory stays small.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO, Final

import h5py
import numpy as np

from fedstac.scan import calendars
from fedstac.scan.extents import GLOBE, WHOLE, Box, box, hull
from fedstac.scan.values import Unusable, shown

NEEDED: Final = (
    "mip_era", "activity_id", "institution_id", "source_id", "experiment_id", "sub_experiment_id", "variant_label",
    "table_id", "variable_id", "grid_label", "frequency", "realm", "source_type", "product", "nominal_resolution",
    "data_specs_version", "tracking_id",
)  # fmt: skip
WANTED: Final = (*NEEDED, "experiment", "grid", "further_info_url", "creation_date")
TOKEN: Final = re.compile(r"[A-Za-z0-9-]{1,128}")  # what a dataset id is made of
NAMING: Final = (
    "institution_id", "source_id", "experiment_id", "sub_experiment_id", "variant_label", "table_id", "variable_id",
    "grid_label",
)  # fmt: skip
UUID: Final = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
TRACKING_ID: Final = re.compile(rf"hdl:21\.14100/{UUID}")

LONGEST: Final = 2048  # characters of an attribute that is used
MOST_VALUES: Final = 1 << 29  # of a coordinate; the finest CMIP6 grid has some 10 million cells with 4 corners each
BLOCK: Final = 1 << 20  # values read at a time
MOST_CHUNK: Final = 1 << 28  # bytes that HDF5 has to hold to read one value
BINS: Final = 7200  # of longitude: 0.05 degrees
FILL: Final = 1e19  # CF's default fill values are above
PLAIN: Final = re.compile(r"[A-Za-z0-9_.+-]{1,128}")  # names of variables: none leads through groups
UNITS: Final = {
    "latitude": ("degrees_north", "degree_north", "degree_N", "degrees_N", "degreeN", "degreesN"),
    "longitude": ("degrees_east", "degree_east", "degree_E", "degrees_E", "degreeE", "degreesE"),
}
NAMES: Final = {"latitude": ("lat", "latitude", "nav_lat"), "longitude": ("lon", "longitude", "nav_lon"),
                "time": ("time",)}  # fmt: skip


def read(raw: BinaryIO) -> dict[str, Any]:
    """The facts of an open file, less its checksum (values.py). Unusable where it is no CMIP6 file in NetCDF-4."""
    with _opened(raw) as file:
        attributes = _attributes(file)
        variable = dataset(file, attributes["variable_id"])
        if variable is None:
            raise Unusable("variable", f"the file has no variable {shown(attributes['variable_id'])}, its variable_id")
        names = ("units", "long_name", "standard_name")
        described = {name: value for name in names if (value := text(variable, name)) is not None}
        near = list(_coordinates(file, variable))
        where = _box(file, near)
        if where is None and attributes["grid_label"] == "gm":  # a global mean
            where = GLOBE
        start, end = _span(file, near, attributes["frequency"])
    return {"attributes": attributes, "variable": described, "box": where and list(where), "start": start, "end": end}


def _opened(raw: BinaryIO) -> Any:
    magic = raw.read(8)
    raw.seek(0)
    if not magic:
        raise Unusable("unreadable", "the file is empty")
    if magic[:3] == b"CDF":
        raise Unusable("unreadable", "this is NetCDF-3 (classic); CMIP6 files are NetCDF-4")
    if magic != b"\x89HDF\r\n\x1a\n":
        raise Unusable("unreadable", "this is no NetCDF-4 file")
    try:
        return h5py.File(raw, "r")
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error)
        sizes = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", reason)
        if sizes:
            raise Unusable(
                "unreadable", f"the file is truncated: {sizes[1]} of its {sizes[2]} bytes are there"
            ) from None
        raise Unusable("unreadable", f"HDF5 cannot open it: {shown(reason, 120)}") from None


# --- attributes ---


def text(thing: Any, name: str) -> str | None:
    """An attribute's text, None where there is none. Unusable where it is no single, short, printable UTF-8 text."""
    key, where = name.encode(), _named(thing, name)
    if not h5py.h5a.exists(thing.id, key):
        return None
    if h5py.h5a.open(thing.id, key).get_storage_size() > 4 * LONGEST:
        raise Unusable("attribute", f"{where} is longer than {LONGEST} characters")
    value = thing.attrs[name]
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0].item() if value.dtype.kind in "iufb" else value.reshape(-1)[0]
    if isinstance(value, h5py.Empty):
        value = "" if value.dtype.kind in "SO" else value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise Unusable("attribute", f"{where} is {shown(value)}, not a text")
    value = value.rstrip("\0").strip()
    if len(value) > LONGEST:
        raise Unusable("attribute", f"{where} is longer than {LONGEST} characters")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise Unusable("attribute", f"{where} is not UTF-8: {shown(value)}")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in value):
        raise Unusable("attribute", f"{where} has control characters: {shown(value)}")
    return value


def _named(thing: Any, name: str) -> str:
    path = h5py.h5i.get_name(thing.id) or b"/"
    return f"the attribute {name}" + (f" of {path[1:].decode(errors='replace')}" if path != b"/" else "")


def _attributes(file: Any) -> dict[str, str]:
    """The global attributes that are used, each in its form."""
    values = {name: value for name in WANTED if (value := text(file, name)) is not None}
    missing = [name for name in NEEDED if not values.get(name)]
    if missing:
        raise Unusable("attribute", f"global attributes of CMIP6 are missing or empty: {', '.join(missing)}")
    if values["mip_era"] != "CMIP6":
        raise Unusable("attribute", f"the attribute mip_era is {shown(values['mip_era'])}; this makes items of CMIP6")
    for name in NAMING:
        _check(name, values[name])
    for activity in values["activity_id"].split():
        _check("activity_id", activity)
    if not TRACKING_ID.fullmatch(values["tracking_id"]):
        raise Unusable("attribute", f"the attribute tracking_id is {shown(values['tracking_id'])}, not "
                                    "`hdl:21.14100/` and a UUID")  # fmt: skip
    return values


def _check(name: str, value: str) -> None:
    if not TOKEN.fullmatch(value):
        raise Unusable("attribute", f"the attribute {name} is {shown(value)}; it is letters, digits and hyphens")


# --- variables ---


def dataset(file: Any, name: str) -> Any:
    """A variable at the root, None where there is none. Unusable where its data lies in another file, or is no data."""
    if not PLAIN.fullmatch(name):
        return None
    link = file.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise Unusable("outside", f"the variable {name} is a link to somewhere else, which is not followed")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        return None
    if found.is_virtual or found.external:
        raise Unusable("outside", f"the data of {name} lies in another file, which is not followed")
    return found


def _coordinates(file: Any, variable: Any) -> Iterator[Any]:
    """Variables that may tell where and when: those named as coordinates, then those of the dimensions.

    Where neither names one, all others of the file: horizontal coordinates are sometimes not attached.
    """
    named = (text(variable, "coordinates") or "").split()
    scales = [
        h5py.h5i.get_name(scale.id).decode(errors="replace").lstrip("/")
        for axis in islice(variable.dims, 32)
        for scale in [axis[0]] * (len(axis) > 0)
    ]
    others = list(islice(file.keys(), 1000))
    seen = set()
    for name in (*named[:100], *scales, "", *others):
        if not name:
            yield None  # those that come now are a last resort
        elif name not in seen and name != h5py.h5i.get_name(variable.id).decode(errors="replace").lstrip("/"):
            seen.add(name)
            try:
                found = dataset(file, name)
            except Unusable:
                if name in others and name not in (*named, *scales):
                    continue  # nothing points at it
                raise
            if found is not None:
                yield found


def _pick(near: Sequence[Any], kind: str) -> Any:
    """The first attached variable that is a latitude, longitude or time."""
    return next((one for one in near[: near.index(None)] if _is(one, kind)), None)


def _is(one: Any, kind: str) -> bool:
    if one.dtype.kind not in "iuf":
        return False
    standard = text(one, "standard_name")
    if standard:
        return standard == kind
    units = text(one, "units") or ""
    name = h5py.h5i.get_name(one.id).decode(errors="replace").lstrip("/")
    return units in UNITS.get(kind, ()) or (name in NAMES[kind] and (" since " in units or kind != "time"))


def _blocks(one: Any) -> Iterator[tuple[int, int]]:
    """Slices of the first dimension with a block of values each."""
    size = int(np.prod(one.shape, dtype=np.float64))
    name = h5py.h5i.get_name(one.id).decode(errors="replace").lstrip("/")
    if size > MOST_VALUES or int(np.prod(one.chunks or (1,), dtype=np.float64)) * one.dtype.itemsize > MOST_CHUNK:
        raise Unusable("coordinates", f"{name} has {size} values, or chunks of a size, that no CMIP6 coordinate has")
    rows = one.shape[0] if one.shape else 1
    step = max(1, BLOCK * rows // max(size, 1))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _values(one: Any, start: int, stop: int) -> Any:
    """A block as 64-bit floats; not a number where a value is missing."""
    block = np.asarray(one[start:stop] if one.shape else one[()])
    values = block.astype(np.float64)
    values[~np.isfinite(values) | (np.abs(values) > FILL)] = np.nan
    for name in ("_FillValue", "missing_value"):
        if name in one.attrs:
            fill = np.asarray(one.attrs[name])
            if fill.size == 1 and fill.dtype.kind in "iuf":
                values[block == fill.reshape(-1)[0]] = np.nan
    return values


def _bounds(file: Any, one: Any, names: Sequence[str] = ("bounds",)) -> Any:
    """The variable with the edges of `one`'s cells, None where there is none of the right shape."""
    for name in names:
        target = text(one, name)
        found = dataset(file, target) if target else None
        if (
            found is not None
            and found.dtype.kind in "iuf"
            and len(found.shape) == len(one.shape) + 1
            and found.shape[:-1] == one.shape
            and found.shape[-1] >= 2
        ):
            return found
    return None


# --- where ---


def _box(file: Any, near: Sequence[Any]) -> Box | None:
    """The box of the horizontal coordinates; None where there are none.

    With latitudes alone (zonal means) it has all longitudes.
    """
    latitude, longitude = _pick(near, "latitude"), _pick(near, "longitude")
    if latitude is None and longitude is None:
        last = near[near.index(None) + 1 :]
        latitude, longitude = (_pick([*last, None], kind) for kind in ("latitude", "longitude"))
        if longitude is None:
            return None
    if latitude is None:
        return None
    latitudes, longitudes = _Latitudes(), _Longitudes(longitude)
    if longitude is None:
        for start, stop in _blocks(latitude):
            latitudes.add(_values(latitude, start, stop))
            latitudes.add_edges(file, latitude, start, stop)
        return box(-180.0, 360.0, latitudes.range())
    if latitude.shape == longitude.shape and not (latitude.is_scale and longitude.is_scale):
        _read_cells(file, latitude, longitude, latitudes, longitudes)
    elif len(latitude.shape) <= 1 and len(longitude.shape) <= 1:
        _read_axes(file, latitude, longitude, latitudes, longitudes)
    else:
        raise Unusable("coordinates", f"latitudes have the shape {latitude.shape}, longitudes {longitude.shape}")
    west, width = longitudes.arc()
    return box(west, width, latitudes.range())


def _read_cells(file: Any, latitude: Any, longitude: Any, latitudes: _Latitudes, longitudes: _Longitudes) -> None:
    """Curvilinear and unstructured grids: a latitude and a longitude for each cell; both are there, or it is none."""
    for start, stop in _blocks(latitude):
        y, x = _values(latitude, start, stop), _values(longitude, start, stop)
        both = ~(np.isnan(y) | np.isnan(x))
        latitudes.add(y[both])
        longitudes.add(x[both])
        latitudes.add_edges(file, latitude, start, stop, both)
        longitudes.add_edges(file, longitude, start, stop, both)


def _read_axes(file: Any, latitude: Any, longitude: Any, latitudes: _Latitudes, longitudes: _Longitudes) -> None:
    for start, stop in _blocks(latitude):
        latitudes.add(_values(latitude, start, stop))
        latitudes.add_edges(file, latitude, start, stop)
    for start, stop in _blocks(longitude):
        longitudes.add(_values(longitude, start, stop))
        longitudes.add_edges(file, longitude, start, stop)


def _edges(file: Any, one: Any, start: int, stop: int, both: Any) -> Any:
    """A block of the cells' edges, one row a cell; None where the file has none."""
    bounds = _bounds(file, one)
    if bounds is None:
        return None
    list(_blocks(bounds))  # refuses what is too large
    values = _values(bounds, start, stop)
    return values.reshape(-1, values.shape[-1]) if both is None else values[both]


class _Latitudes:
    def __init__(self) -> None:
        self._south, self._north = np.inf, -np.inf

    def add(self, values: Any) -> None:
        values = values[~np.isnan(values)]
        if values.size:
            low, high = float(values.min()), float(values.max())
            if low < -90.5 or high > 90.5:
                raise Unusable("coordinates", f"latitudes are from {low:g} to {high:g} degrees")
            self._south, self._north = min(self._south, low), max(self._north, high)

    def add_edges(self, file: Any, one: Any, start: int, stop: int, both: Any = None) -> None:
        edges = _edges(file, one, start, stop, both)
        if edges is not None:
            self.add(edges)

    def range(self) -> tuple[float, float]:
        if self._south > self._north:
            raise Unusable("coordinates", "no latitude has a value")
        return self._south, self._north


class _Longitudes:
    """The lowest and highest longitude of each bin: their widest gap is exact unless it is smaller than a bin."""

    def __init__(self, one: Any) -> None:
        self._low = np.full(BINS + 1, np.inf)
        self._high = np.full(BINS + 1, -np.inf)
        self._whole = False
        self._fineness = 0  # how many cells a turn has, if they go around the globe
        if one is not None:
            size = float(np.prod(one.shape, dtype=np.float64))
            self._fineness = int(size if one.is_scale else np.sqrt(size))

    def add(self, values: Any) -> None:
        values = values[~np.isnan(values)]
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if low < -720 or high > 720:
            raise Unusable("coordinates", f"longitudes are from {low:g} to {high:g} degrees")
        values = np.unique(values % 360)
        bins, first = np.unique((values * (BINS / 360)).astype(np.int64), return_index=True)
        last = np.append(first[1:], values.size) - 1
        self._low[bins] = np.minimum(self._low[bins], values[first])
        self._high[bins] = np.maximum(self._high[bins], values[last])

    def add_edges(self, file: Any, one: Any, start: int, stop: int, both: Any = None) -> None:
        edges = _edges(file, one, start, stop, both)
        if edges is None or not edges.size:
            return
        if one.is_scale or not one.shape:  # of a region's vertices a pole may have any longitude
            wide = np.abs(edges[:, -1] - edges[:, 0])
            self._whole = self._whole or bool(np.any(wide >= WHOLE))
        self.add(edges)

    def arc(self) -> tuple[float, float]:
        """Start and width; all of the globe where no gap is wider than between two cells of a grid around it."""
        filled = np.isfinite(self._low)
        if not filled.any():
            raise Unusable("coordinates", "no longitude has a value")
        low, high = self._low[filled], self._high[filled]
        west, width = hull(zip(low.tolist(), (high - low).tolist(), strict=True))
        if self._whole or (self._fineness > 1 and 360 - width <= 1.5 * 360 / self._fineness):
            return -180.0, 360.0
        return west, width


# --- when ---


def _span(file: Any, near: Sequence[Any], frequency: str) -> tuple[str | None, str | None]:
    """First and last moment: of the cells where they have bounds, the end being their last second, else of the points.

    None where nothing depends on time (fx).
    """
    if frequency == "fx":
        return None, None
    time = _pick(near, "time")
    if time is None:
        raise Unusable("time", f"the variable has no time coordinate, and its frequency is {shown(frequency)}")
    if len(time.shape) > 1:
        raise Unusable("time", f"time has {len(time.shape)} dimensions")
    first, last = _range(time)
    if first is None or last is None:
        raise Unusable("time", "the file holds no time step")
    units, calendar = text(time, "units") or "", text(time, "calendar") or "standard"
    bounds = _bounds(file, time, ("bounds", "climatology"))
    if bounds is not None:
        low, high = _range(bounds)
        if low is not None and high is not None and low <= first <= last <= high and low < high:
            end = calendars.moment(high, units, calendar, earlier=1)
            return calendars.moment(low, units, calendar), end
    return calendars.moment(first, units, calendar), calendars.moment(last, units, calendar)


def _range(one: Any) -> tuple[float | None, float | None]:
    low, high = np.inf, -np.inf
    for start, stop in _blocks(one):
        values = _values(one, start, stop)
        values = values[~np.isnan(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else (None, None)
