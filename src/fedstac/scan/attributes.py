"""Attributes of a file and its variables: texts and numbers, however HDF5 stores them, and whatever is in them.

A text that names a dataset has to be right. Any other may be odd: it is mended where white space is all that is wrong
with it, else left out, and a note says so. A note is a rule and a sentence; it becomes a warning of the scan.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import h5py
import numpy as np

from fedstac.scan.values import Unusable, printable

Notes: TypeAlias = list[tuple[str, str]]

LONGEST: Final = 2048  # characters of a text that is used
LARGEST: Final = 4 * LONGEST  # bytes of an attribute that is read
MOST_NOTES: Final = 20  # of one file


def note(notes: Notes, rule: str, message: str) -> None:
    """Add a note, unless it is there already or there are very many."""
    if len(notes) < MOST_NOTES and (rule, message) not in notes:
        notes.append((rule, message))


def text(thing: Any, name: str) -> str | None:
    """Return an attribute's text, None if there is none. Unusable if it is no single, short, printable text."""
    value, fault = _read(thing, name)
    if fault:
        raise Unusable("attribute", f"{_referenced_name(thing, name)} {fault}")
    return value


def tolerant_text(thing: Any, name: str, notes: Notes) -> str | None:
    """Return an attribute's text with single spaces, None if there is none or it cannot be read; a note says so."""
    value, fault = _read(thing, name)
    if fault:
        remedy = "white space is taken for one space" if value is not None else "it is left out"
        note(notes, "attribute", f"{_referenced_name(thing, name)} {fault}; {remedy}")
    return value


def quiet_text(thing: Any, name: str) -> str:
    """Return the text of an attribute that says what a variable is; empty if there is none or it is unreadable."""
    return _read(thing, name)[0] or ""


def numbers(thing: Any, name: str) -> Any:
    """Return an attribute's numbers as an array of one dimension; None if there are none, or they are no numbers."""
    value = _raw(thing, name)
    if value is None or isinstance(value, (str, bytes, h5py.Empty)):
        return None
    array = np.asarray(value).reshape(-1)
    return array if array.dtype.kind in "iuf" and array.size else None


def exists(thing: Any, name: str) -> bool:
    """Return whether there is such an attribute."""
    return bool(h5py.h5a.exists(thing.id, name.encode()))


def hdf5_name(thing: Any) -> str:
    """Return a variable's name in the file, empty for the file itself."""
    return (h5py.h5i.get_name(thing.id) or b"/").decode(errors="replace").lstrip("/")


def _raw(thing: Any, name: str) -> Any:
    """Return the value as h5py gives it; None if there is none, or it is too large to be read."""
    if not exists(thing, name) or h5py.h5a.open(thing.id, name.encode()).get_storage_size() > LARGEST:
        return None
    return thing.attrs[name]


def _read(thing: Any, name: str) -> tuple[str | None, str]:
    """Return the text of an attribute with single spaces, and what is wrong with it; None if it cannot be used."""
    if not exists(thing, name):
        return None, ""
    value = _raw(thing, name)
    if value is None:
        return None, f"is longer than {LONGEST} characters"
    if isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
        value = value.reshape(-1)[0].item() if value.dtype.kind in "iufb" else value.reshape(-1)[0]
    if isinstance(value, h5py.Empty):
        value = "" if value.dtype.kind in "SO" else value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        return None, f"is {printable(value)}, not a text"
    return _mended(value.rstrip("\0").strip())


def _mended(value: str) -> tuple[str | None, str]:
    if len(value) > LONGEST:
        return None, f"is longer than {LONGEST} characters"
    if any("\ud800" <= char <= "\udfff" for char in value):
        return None, f"is not UTF-8: {printable(value)}"
    odd = [char for char in value if ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u2028\u2029"]
    if not odd:
        return value, ""
    fault = f"has control characters: {printable(value)}"
    return (" ".join(value.split()), fault) if all(char.isspace() for char in odd) else (None, fault)


def _referenced_name(thing: Any, name: str) -> str:
    variable = hdf5_name(thing)
    return f"the attribute {name}" + (f" of {variable}" if variable else "")
