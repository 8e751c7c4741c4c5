"""What a CMIP6 NetCDF file says of itself: global attributes, the variable, where and when its data lies.

Sources: "CMIP6 Global Attributes, DRS, Filenames, Directory Structure, and CV's" 6.2.7 (attributes), CF conventions
1.12 (coordinates 4, bounds and climatologies 7), the NetCDF-4 format (HDF5 whose dimensions are dimension scales).

A file may be hostile: variables.py says what of it is followed, and how much is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import h5py

from fedstac.scan import variables, when, where
from fedstac.scan.attributes import Notes, text, tolerant_text
from fedstac.scan.extents import GLOBE
from fedstac.scan.values import Unusable, printable

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
IDENTIFYING: Final = ("mip_era", "activity_id", "tracking_id", *NAMING)  # nothing about these is mended
UUID: Final = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
TRACKING_ID: Final = re.compile(rf"hdl:21\.14100/{UUID}")


def read(raw: BinaryIO) -> dict[str, Any]:
    """Return the facts of an open file, less its checksum (values.py).

    Unusable if it is no CMIP6 file in NetCDF-4.
    """
    notes: Notes = []
    with _opened(raw) as file:
        attributes = _attributes(file, notes)
        variable = variables.find(file, attributes["variable_id"])
        if variable is None:
            raise Unusable(
                "variable", f"the file has no variable {printable(attributes['variable_id'])}, its variable_id"
            )
        texts = _texts(variable, ("units", "long_name", "standard_name"), notes)
        near, others = variables.attached(file, variable, notes)
        box = where.box_of(file, near, others, notes)
        if box is None and attributes["grid_label"] == "gm":  # a global mean
            box = GLOBE
        start, end = when.span_of(file, near, attributes["frequency"], notes)
    return {
        "attributes": attributes, "variable": texts, "box": box and list(box), "start": start, "end": end,
        "notes": notes,
    }  # fmt: skip


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
        # a chunk is unpacked once, however many blocks of it are read
        return h5py.File(raw, "r", rdcc_nbytes=variables.MOST_CHUNK)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error)
        sizes = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", reason)
        if sizes:
            raise Unusable(
                "unreadable", f"the file is truncated: {sizes[1]} of its {sizes[2]} bytes are there"
            ) from None
        raise Unusable("unreadable", f"HDF5 cannot open it: {printable(reason, 120)}") from None


def _texts(thing: Any, names: Sequence[str], notes: Notes) -> dict[str, str]:
    return {name: value for name in names if (value := tolerant_text(thing, name, notes)) is not None}


def _attributes(file: Any, notes: Notes) -> dict[str, str]:
    """Return the global attributes that are used, each in its form."""
    values = {name: value for name in IDENTIFYING if (value := text(file, name)) is not None}
    values |= _texts(file, [name for name in WANTED if name not in IDENTIFYING], notes)
    missing = [name for name in NEEDED if not values.get(name)]
    if missing:
        raise Unusable("attribute", f"global attributes of CMIP6 are missing or empty: {', '.join(missing)}")
    if values["mip_era"] != "CMIP6":
        raise Unusable(
            "attribute", f"the attribute mip_era is {printable(values['mip_era'])}; this makes items of CMIP6"
        )
    for name in NAMING:
        _check(name, values[name])
    for activity in values["activity_id"].split():
        _check("activity_id", activity)
    if not TRACKING_ID.fullmatch(values["tracking_id"]):
        raise Unusable("attribute", f"the attribute tracking_id is {printable(values['tracking_id'])}, not "
                                    "`hdl:21.14100/` and a UUID")  # fmt: skip
    return values


def _check(name: str, value: str) -> None:
    if not TOKEN.fullmatch(value):
        raise Unusable("attribute", f"the attribute {name} is {printable(value)}; it is letters, digits and hyphens")
