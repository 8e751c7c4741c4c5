"""Which paths of a document a file may be stored under. Whatever comes from a document stays below the folder."""

from __future__ import annotations

from typing import Final

PART_FOLDER: Final = ".fedstac-part"  # beside a target: files that are not whole yet
MARK: Final = ".fedstac-tier"  # in the folder of a tier: says that its disk is mounted
LONGEST_NAME: Final = 255  # bytes, as file systems have it
LONGEST_PATH: Final = 3000  # bytes below the folder; Linux takes 4096 with the folder


class PathUnsafe(ValueError):
    """A file must not be stored under this path; the message names the path and the fault."""


def parts_of(path: str) -> tuple[str, ...]:
    """Return the folders of a relative path and the file's name. PathUnsafe where it leads out or is no plain path."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise PathUnsafe(f"the path {path!a} is no Unicode text") from None
    if not path or size > LONGEST_PATH:
        raise PathUnsafe(f"a path has 1 to {LONGEST_PATH} bytes, not {size}")
    if any(ord(each) < 32 or ord(each) == 127 for each in path):
        raise PathUnsafe(f"the path {path!r} has control characters")
    parts = tuple(path.split("/"))
    for part in parts:
        if part in ("", ".", ".."):
            raise PathUnsafe(f"the path {path!r} has a part {part!r}; it is relative, without empty parts, . and ..")
        if len(part.encode()) > LONGEST_NAME:
            raise PathUnsafe(f"the path {path!r} has a name of more than {LONGEST_NAME} bytes")
        if part.startswith(MARK):
            raise PathUnsafe(f"the path {path!r} has the name {MARK}, which the mark of a tier has")
        if part == PART_FOLDER:
            raise PathUnsafe(f"the path {path!r} has the name {PART_FOLDER}, which files that are not whole have")
    return parts


def is_safe_path(path: str) -> bool:
    """Tell whether a file may be stored under this path."""
    try:
        parts_of(path)
    except PathUnsafe:
        return False
    return True
