"""What a scan speaks of: files that were found, what is wrong with one, the facts read from one.

Facts are plain JSON, since they come from another process and are kept between runs:

    {"attributes": {name: text},                      global attributes of the CMIP6 document, those in headers.WANTED
     "variable": {"units", "long_name", "standard_name"},   each only where the file has it
     "box": [west, south, east, north] or null,       degrees; west in −180..180, east up to west + 360
     "start", "end": "YYYY-MM-DDThh:mm:ss" or null,   in the file's own calendar: 2000-02-30 is possible
     "notes": [[rule, sentence], …],                  what is odd about the file, and does not keep it back
     "sha256": 64 hexadecimal digits, or null where the file was not read as a whole}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from fedstac.domain.errors import Severity

Facts = Mapping[str, Any]
PROCESSOR: Final = 60.0  # seconds of the processor to read one header; to wait for storage costs none


@dataclass(frozen=True, slots=True)
class ScanFile:
    """A file to read. `path` is how it was come upon, `real` what is opened: no step of it is a symbolic link."""

    path: str
    real: str
    local: str  # below the archive's root, with /
    root: int  # which of the site's roots
    size: int  # bytes
    mtime: int  # nanoseconds
    version: str  # YYYYMMDD
    dataset: str | None = None  # the id without version, where a mapfile says it
    checksum: str | None = None  # sha-256 in hexadecimal, where a mapfile says it

    @property
    def name(self) -> str:
        return self.local.rpartition("/")[2]

    @property
    def folder(self) -> str:
        return self.local.rpartition("/")[0]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a file or, where several are at odds, with a dataset. An error keeps the dataset back."""

    path: str  # the file; of a dataset, its id
    rule: str  # stable name: docs/scan.md lists them
    message: str
    severity: Severity = Severity.ERROR
    dataset: str | None = None  # the id of the dataset that lacks the file, where a mapfile says it

    def as_json(self) -> dict[str, str]:
        return {"path": self.path, "rule": self.rule, "severity": self.severity.value, "message": self.message}


class Unusable(Exception):
    """A file cannot be used; the rule's name and a sentence without the path."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule, self.message = rule, message


def printable(value: object, most: int = 60) -> str:
    """Return a value from a file, in one short line that no terminal obeys."""
    text = ascii(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
