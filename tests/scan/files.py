"""Small real NetCDF-4 files, written by the NetCDF library itself, with the attributes and coordinates of CMIP6."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import netCDF4
import numpy as np

from fedstac.scan.site import Site, site

ATTRIBUTES: Mapping[str, Any] = {
    "Conventions": "CF-1.7 CMIP-6.2", "mip_era": "CMIP6", "activity_id": "CMIP", "institution_id": "NCAR",
    "source_id": "CESM2", "experiment_id": "historical", "experiment": "all-forcing simulation of the recent past",
    "sub_experiment_id": "none", "variant_label": "r1i1p1f1", "table_id": "Amon", "variable_id": "tas",
    "grid_label": "gn", "grid": "native 0.9x1.25 finite volume grid (192x288 latxlon)", "frequency": "mon",
    "realm": "atmos", "source_type": "AOGCM BGC", "product": "model-output", "nominal_resolution": "100 km",
    "data_specs_version": "01.00.29", "creation_date": "2019-01-16T22:15:42Z",
    "further_info_url": "https://furtherinfo.es-doc.org/CMIP6.NCAR.CESM2.historical.none.r1i1p1f1",
}  # fmt: skip
VARIABLE = {"standard_name": "air_temperature", "long_name": "Near-Surface Air Temperature", "units": "K"}


@dataclass(frozen=True)
class File:
    """A file to write; its attributes over those of a monthly near-surface air temperature of CESM2."""

    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    variable: Mapping[str, Any] = field(default_factory=dict)
    latitudes: Any = None  # 1-D, or with `longitudes` 2-D
    longitudes: Any = None
    latitude_edges: Any = None
    longitude_edges: Any = None
    times: Any = None
    time_edges: Any = None
    units: str = "days since 1850-01-01"
    calendar: str = "noleap"
    climatology: bool = False

    def but(self, **attributes: Any) -> Self:
        return replace(self, attributes={**self.attributes, **attributes})

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.name
        with netCDF4.Dataset(path, "w", format="NETCDF4_CLASSIC") as file:
            given = {**ATTRIBUTES, "tracking_id": tracking_id(self.name), **self.attributes}
            file.setncatts({name: value for name, value in given.items() if value is not None})
            dimensions = (*self._time(file), *self._horizontal(file))
            name = given["variable_id"]
            name = name if isinstance(name, str) and name.isidentifier() else "tas"
            data = file.createVariable(name, "f4", dimensions, fill_value=1e20)
            data.setncatts({name: value for name, value in {**VARIABLE, **self.variable}.items() if value is not None})
            if self.longitudes is not None and np.ndim(self.longitudes) == 2:
                data.coordinates = "latitude longitude"
            data[...] = 280.0
        return path

    def _time(self, file: Any) -> tuple[str, ...]:
        if self.times is None:
            return ()
        file.createDimension("time", None)
        time = file.createVariable("time", "f8", ("time",))
        time.setncatts({"units": self.units, "calendar": self.calendar, "standard_name": "time", "axis": "T"})
        time[:] = self.times
        if self.time_edges is not None:
            _edges(file, time, self.time_edges, "climatology" if self.climatology else "bounds")
        return ("time",)

    def _horizontal(self, file: Any) -> tuple[str, ...]:
        if np.ndim(self.longitudes) == 2:
            dimensions: tuple[str, ...] = ("j", "i")
            file.createDimension("j", self.longitudes.shape[0])
            file.createDimension("i", self.longitudes.shape[1])
            names = ("latitude", "longitude")
        else:
            dimensions, names = (), ("lat", "lon")
        axes = (
            (self.latitudes, self.latitude_edges, "degrees_north"),
            (self.longitudes, self.longitude_edges, "degrees_east"),
        )
        for name, (values, edges, units) in zip(names, axes, strict=True):
            if values is None:
                continue
            if np.ndim(values) == 1:
                file.createDimension(name, len(values))
                dimensions = (*dimensions, name)
            own = dimensions if np.ndim(values) == 2 else (name,)
            one = file.createVariable(name, "f8", own, fill_value=1e20 if np.ndim(values) == 2 else None)
            one.units = units
            one.standard_name = {"degrees_north": "latitude", "degrees_east": "longitude"}[units]
            one[...] = values
            if edges is not None:
                _edges(file, one, edges, "bounds")
        return dimensions


def _edges(file: Any, one: Any, values: Any, attribute: str) -> None:
    corners = np.shape(values)[-1]
    dimension = f"corners{corners}"
    if dimension not in file.dimensions:
        file.createDimension(dimension, corners)
    name = f"{one.name}_bnds"
    one.setncattr(attribute, name)
    file.createVariable(name, "f8", (*one.dimensions, dimension))[...] = values


def tracking_id(name: str) -> str:
    return f"hdl:21.14100/{UUID(bytes=hashlib.sha256(name.encode()).digest()[:16])}"


def centres(start: float, stop: float, count: int) -> Any:
    """Return the middles of equal cells."""
    edges = np.linspace(start, stop, count + 1)
    return (edges[:-1] + edges[1:]) / 2


def cells(start: float, stop: float, count: int) -> Any:
    """Return the edges of cells, two a cell."""
    edges = np.linspace(start, stop, count + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def months(first: int, last: int) -> dict[str, Any]:
    """Return the months of these years, first of January to end of December, in the calendar without leap days from
    1850.
    """
    lengths = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] * (last - first + 1))
    ends = (first - 1850) * 365 + np.cumsum(lengths)
    return {"times": ends - lengths / 2, "time_edges": np.stack([ends - lengths, ends], axis=1)}


GLOBAL = {
    "latitudes": centres(-90, 90, 18), "latitude_edges": cells(-90, 90, 18),
    "longitudes": np.arange(0, 360, 10.0), "longitude_edges": cells(-5, 355, 36),
}  # fmt: skip


def amon(first: int = 1850, last: int = 1850, member: str = "r1i1p1f1", **others: Any) -> File:
    """Return a regular monthly file."""
    name = f"tas_Amon_CESM2_historical_{member}_gn_{first:04}01-{last:04}12.nc"
    attributes = {"variant_label": member, **others.pop("attributes", {})}
    return File(name, attributes, **{**GLOBAL, **months(first, last), **others})


def drs(root: Path, version: str = "20190308", *, member: str = "r1i1p1f1", variable: str = "tas") -> Path:
    """Return the folder of a version, as CMIP6's directory structure has it."""
    return root / "CMIP6/CMIP/NCAR/CESM2/historical" / member / "Amon" / variable / "gn" / f"v{version}"


def site_of(root: Path) -> Site:
    urls = {"https": "https://esgf.example.org/thredds/fileServer/data/"}
    return site({"node": "esgf.example.org", "roots": [{"folder": str(root), "urls": urls}]}, "test")


OCEAN = {
    "table_id": "Omon", "variable_id": "tos", "realm": "ocean",
    "nominal_resolution": "100 km",
}  # fmt: skip


SEA = {"standard_name": "sea_surface_temperature", "long_name": "Sea Surface Temperature", "units": "degC"}


def ocean() -> File:
    x, y = np.meshgrid(centres(0, 360, 60), centres(-79, 90, 40))
    return File("tos_Omon_CESM2_historical_r1i1p1f1_gn_185001-185012.nc", OCEAN, SEA, longitudes=x, latitudes=y,
                **months(1850, 1850))  # fmt: skip


FIXED = File(
    "areacella_fx_CESM2_historical_r1i1p1f1_gn.nc",
    {"table_id": "fx", "variable_id": "areacella", "frequency": "fx", "realm": "atmos land"},
    {"standard_name": "cell_area", "long_name": "Grid-Cell Area for Atmospheric Grid Variables", "units": "m2"},
    **GLOBAL,
)


HINDCAST = File(
    "tas_Amon_CNRM-ESM2-1_dcppA-hindcast_s1960-r2i1p1f2_gr_196001-196012.nc",
    {"activity_id": "DCPP", "experiment_id": "dcppA-hindcast", "sub_experiment_id": "s1960", "source_id": "EC-Earth3",
     "experiment": None, "institution_id": "EC-Earth-Consortium", "source_type": "AOGCM", "grid_label": "gr",
     "variant_label": "r2i1p1f1"},
    times=[45.0, 75.0], time_edges=[[30.0, 60.0], [60.0, 90.0]], units="days since 1961-01-01", calendar="360_day",
    **GLOBAL,
)  # fmt: skip
