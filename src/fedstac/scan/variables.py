"""Variables of a NetCDF-4 file: which ones there are, and their values in blocks (CF 1.12, 2.5.1, 7.1, 8.1).

A file may be hostile. Only hard links are followed: HDF5 also has links, raw data and virtual data in other files,
which could lie outside the archive. What is read at a time is bounded, whatever shape, chunks and filters a file has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import h5py
import numpy as np

from fedstac.scan import attributes
from fedstac.scan.attributes import Notes, hdf5_name, note, quiet_text
from fedstac.scan.values import Unusable

Block: TypeAlias = tuple[slice, ...]

MOST_VALUES: Final = 1 << 27  # of a coordinate; the finest CMIP6 grid has some 10 million cells with 4 corners each
MOST_CHUNK: Final = 1 << 27  # bytes of a chunk, which HDF5 holds as a whole
MOST_CHUNKS: Final = 1 << 20  # of a variable: a step an hour for a century
MOST_CORNERS: Final = 64  # of a cell
BLOCK: Final = 1 << 20  # values read at a time
CHUNKS: Final = 1 << 14  # read at a time: HDF5 holds two kilobytes for each
MOST_NAMES: Final = 1000  # variables of a file that are looked at
FILL: Final = 1e19  # CF's default fill values are above
PLAIN: Final = re.compile(r"[A-Za-z0-9_.+-]{1,128}")  # names of variables: none leads through groups
# how the NetCDF library stores a dimension without a variable, and a variable whose name is that of such a dimension
PLACEHOLDER: Final = "This is a netCDF dimension but not a netCDF variable"
RENAMED: Final = "_nc4_non_coord_"


def find(file: Any, name: str) -> Any:
    """Return a variable at the root, None if there is none. Unusable if its data lies in another file."""
    if not PLAIN.fullmatch(name):
        return None
    link = file.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise Unusable("outside", f"the variable {name} is a link to somewhere else, which is not followed")
    candidate = file[name]
    if not isinstance(candidate, h5py.Dataset):
        return None
    if candidate.is_virtual or candidate.external:
        raise Unusable("outside", f"the data of {name} lies in another file, which is not followed")
    if quiet_text(candidate, "NAME").startswith(PLACEHOLDER):
        return None if name.startswith(RENAMED) else find(file, RENAMED + name)
    return candidate


def shown_name(variable: Any) -> str:
    """Return the name that NetCDF gives to a variable."""
    return hdf5_name(variable).removeprefix(RENAMED)


def attached(file: Any, variable: Any, notes: Notes) -> tuple[list[Any], list[Any]]:
    """Return the variables that may tell where and when a variable's data is, and all others of the file.

    The first are those that it names as coordinates, then those of its dimensions.
    """
    coordinates = (attributes.tolerant_text(variable, "coordinates", notes) or "").split()[:100]
    scales = [hdf5_name(axis[0]) for axis in islice(variable.dims, 32) if len(axis) > 0]
    names = {hdf5_name(variable)}
    near: list[Any] = []
    others: list[Any] = []
    for name in (*coordinates, *scales):
        candidate = find(file, name)
        if candidate is not None and hdf5_name(candidate) not in names:
            names.add(hdf5_name(candidate))
            near.append(candidate)
    for name in islice(file.keys(), MOST_NAMES):
        try:
            candidate = find(file, name)
        except Unusable:  # nothing points at it
            continue
        if candidate is not None and hdf5_name(candidate) not in names:
            names.add(hdf5_name(candidate))
            others.append(candidate)
    return near, others


def bounds(file: Any, one: Any, names: Sequence[str], rule: str, notes: Notes) -> Any:
    """Return the variable with the edges of `one`'s cells; None if it has none that can be used, with a note."""
    for name in names:
        target = quiet_text(one, name)
        if not target:
            continue
        candidate, what = find(file, target), f"{shown_name(one)} names {target[:128]!a} as its {name}, which"
        if candidate is None or candidate.dtype.kind not in "iuf":
            note(notes, rule, f"{what} is no variable with numbers; its points count")
        elif candidate.shape[:-1] != one.shape or not 2 <= (candidate.shape or (0,))[-1] <= MOST_CORNERS:
            note(notes, rule, f"{what} has the shape {candidate.shape} for that of {one.shape}; its points count")
        elif any(_differ(candidate, one, key) for key in ("units", "calendar")):
            note(notes, rule, f"{what} has other units or another calendar; its points count")
        else:
            return candidate
    return None


def _differ(candidate: Any, one: Any, key: str) -> bool:
    """Return whether the first of two variables has an attribute, and another than the second."""
    return attributes.exists(candidate, key) and quiet_text(candidate, key).lower() != quiet_text(one, key).lower()


def blocks(one: Any, per_value: int = 1) -> Iterator[Block]:
    """Yield slices that cut a variable into blocks of some million values; `per_value` are read beside for each.

    Unusable if the variable, or a chunk of it, is larger than that of any CMIP6 coordinate.
    """
    check_size(one)
    most = min(BLOCK, CHUNKS * math.prod(one.chunks)) if one.chunks else BLOCK
    yield from _cut(one.shape, max(1, most // per_value))


def check_size(one: Any) -> None:
    """Refuse a variable of which to read a little takes much. Unusable."""
    size, chunk = math.prod(one.shape), math.prod(one.chunks or (0,))
    count = math.prod(
        -(-length // step) for length, step in zip(one.shape, one.chunks or one.shape, strict=True) if step
    )
    if size > MOST_VALUES or chunk * one.dtype.itemsize > MOST_CHUNK or (chunk and count > MOST_CHUNKS):
        name = shown_name(one)
        raise Unusable("coordinates", f"{name} has {size} values, or chunks of a size, that no CMIP6 coordinate has")


def _cut(shape: tuple[int, ...], most: int) -> Iterator[Block]:
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    if row <= most:
        step = max(1, most // max(row, 1))
        for start in range(0, shape[0], step):
            yield (slice(start, min(shape[0], start + step)),)
        return
    for n in range(shape[0]):
        for rest in _cut(shape[1:], most):
            yield (slice(n, n + 1), *rest)


class _ValidRange(NamedTuple):
    """The least and the largest valid number, and whether they are packed."""

    low: float
    high: float
    is_packed: bool


class Values:
    """A variable's numbers as 64-bit floats: unpacked, not a number where one is missing or out of its valid range.

    Unusable, by the rule, where they are no numbers, or the attributes that say how to unpack them are none.
    """

    def __init__(self, one: Any, rule: str) -> None:
        self._one, self._rule = one, rule
        if one.dtype.kind not in "iuf":
            raise Unusable(rule, f"{shown_name(one)} is text, or of another kind that is no number")
        self._scale, self._offset = self._single("scale_factor", 1.0), self._single("add_offset", 0.0)
        self._is_unsigned = one.dtype.kind == "i" and quiet_text(one, "_Unsigned").lower() == "true"
        missing = [attributes.numbers(one, name) for name in ("_FillValue", "missing_value")]
        self._missing = [self._as_stored(values) for values in missing if values is not None]
        self._valid = self._valid_range()

    def _single(self, name: str, default: float) -> float:
        if not attributes.exists(self._one, name):
            return default
        candidate = attributes.numbers(self._one, name)
        if candidate is None or candidate.size != 1 or not np.isfinite(candidate[0]):
            raise Unusable(self._rule, f"the attribute {name} of {shown_name(self._one)} is not a number")
        return float(candidate[0])

    def _as_stored(self, values: Any) -> Any:
        """Return an attribute's numbers as they compare with those that are stored."""
        if self._one.dtype.kind == "f":
            values = values.astype(self._one.dtype)  # a 32-bit number is missing also where the attribute has 64
        elif self._is_unsigned and values.dtype == self._one.dtype:
            values = _unsigned(values)
        return values.astype(np.float64)

    def _valid_range(self) -> _ValidRange:
        """Return the least and the largest valid number.

        Their type says whether they are packed or unpacked numbers (NetCDF users' guide, Attribute Conventions).
        """
        low, high = (attributes.numbers(self._one, name) for name in ("valid_min", "valid_max"))
        both = attributes.numbers(self._one, "valid_range")
        if both is not None and both.size == 2:
            low, high = both[:1], both[1:]
        present_limits = [limit for limit in (low, high) if limit is not None]
        is_packed = not any(limit.dtype.kind == "f" and self._one.dtype.kind in "iu" for limit in present_limits)
        limits = [self._as_stored(limit)[0] if limit is not None else None for limit in (low, high)]
        return _ValidRange(
            -np.inf if limits[0] is None else float(limits[0]),
            np.inf if limits[1] is None else float(limits[1]),
            is_packed,
        )

    def read(self, block: Block) -> Any:
        """Return the values of a block; a single one where the variable is a scalar."""
        raw = np.atleast_1d(self._one[block])
        packed = (_unsigned(raw) if self._is_unsigned else raw).astype(np.float64)
        is_missing = ~np.isfinite(packed) | (np.abs(packed) > FILL)
        for missing in self._missing:
            is_missing |= np.isin(packed, missing)
        packed[is_missing] = np.nan
        values = packed * self._scale + self._offset
        compared_values = packed if self._valid.is_packed else values
        values[(compared_values < self._valid.low) | (compared_values > self._valid.high)] = np.nan
        return values


def _unsigned(values: Any) -> Any:
    """Return whole numbers without their sign, as the attribute `_Unsigned` asks."""
    native = values.astype(values.dtype.newbyteorder("="))
    return native.view(f"u{native.dtype.itemsize}")
