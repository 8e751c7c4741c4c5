"""The manifest of a snapshot in files: which parts it has, and the place in the feed that they belong to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import orjson

from fedstac.domain.errors import BadRequest
from fedstac.domain.events import Cursor

FORM: Final = 1  # of manifest and parts; another one is refused
NAME: Final = "manifest.json"
BEFORE: Final = "manifest.before.json"  # the one before it, whose parts are there for those who still read them
LARGEST_MANIFEST: Final = 16 << 20
LARGEST_PART: Final = 4 << 30
MOST_PARTS: Final = 20_000
MOST_GROUPS: Final = 10_000  # of one part
HASHED_AT_ONCE: Final = 1 << 20
_PART_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,120}(\.[A-Za-z0-9]{1,12}){1,2}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ORIGIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")


class SnapshotBroken(Exception):
    """A snapshot's manifest or part is not what it has to be; the text names it."""


class PartKind(StrEnum):
    """What a part holds, in the order in which parts are taken."""

    VOCABULARY = "vocabulary"  # the bytes of one version, as they are judged with
    COLLECTIONS = "collections"  # a line each, as GET /snapshot has them
    RECORDS = "records"  # datasets, each once: GeoParquet
    CHANGES = "changes"  # datasets that changed since, each over the one before: GeoParquet


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """A file of a snapshot. Its name says no folder."""

    name: str
    kind: PartKind
    sha256: str
    size: int  # bytes
    rows: int
    groups: int = 0  # of rows, where it holds datasets


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot of one origin. Whoever has all its parts goes on in the feed from `cursor`."""

    origin: str
    cursor: Cursor
    created: str
    parts: Sequence[SnapshotPart]

    def of_kind(self, kind: PartKind) -> list[SnapshotPart]:
        """Return the parts of a kind, in their order."""
        return [part for part in self.parts if part.kind is kind]

    def find(self, name: str) -> SnapshotPart | None:
        """Return a part by its name; None where there is none."""
        return next((part for part in self.parts if part.name == name), None)

    @property
    def digest(self) -> str:
        """The sha-256 of what it says."""
        return hashlib.sha256(self.text()).hexdigest()

    def text(self) -> bytes:
        """Return the manifest as it is written."""
        counts: dict[str, int] = {}
        for part in self.parts:
            counts[part.kind.value] = counts.get(part.kind.value, 0) + part.rows
        parts = [
            {"name": part.name, "kind": part.kind, "sha256": part.sha256, "bytes": part.size, "rows": part.rows,
             "groups": part.groups}
            for part in self.parts
        ]  # fmt: skip
        return orjson.dumps(
            {"fedstac_snapshot": FORM, "origin": self.origin, "cursor": str(self.cursor), "created": self.created,
             "bytes": sum(part.size for part in self.parts), "rows": counts, "parts": parts},
            option=orjson.OPT_INDENT_2,
        )  # fmt: skip


def read(text: bytes) -> Manifest:
    """Read a manifest. SnapshotBroken where it is none, or names what is not beside it."""
    if len(text) > LARGEST_MANIFEST:
        raise SnapshotBroken(f"the manifest has more than {LARGEST_MANIFEST} bytes")
    try:
        body = orjson.loads(text)
        if body["fedstac_snapshot"] != FORM:
            raise SnapshotBroken(f"the manifest has the form {str(body['fedstac_snapshot'])[:20]}, and not {FORM}")
        parts = [_part(entry) for entry in body["parts"]]
        if not _ORIGIN.fullmatch(body["origin"]) or not isinstance(body["created"], str):
            raise ValueError("origin")
        manifest = Manifest(body["origin"], Cursor.parse(body["cursor"]), body["created"], parts)
    except (LookupError, TypeError, ValueError, AttributeError, BadRequest) as error:
        raise SnapshotBroken(f"the manifest cannot be read: {str(error)[:200] or type(error).__name__}") from error
    if len(parts) > MOST_PARTS or len({part.name for part in parts}) < len(parts):
        raise SnapshotBroken(f"the manifest names more than {MOST_PARTS} parts, or one of them twice")
    return manifest


def _part(entry: Any) -> SnapshotPart:
    name, digest, kind = entry["name"], entry["sha256"], PartKind(entry["kind"])
    size, rows, groups = entry["bytes"], entry["rows"], entry["groups"]
    if not isinstance(name, str) or not is_part_name(name):
        raise SnapshotBroken(f"the manifest names {str(name)[:100]!r}, which is no name of a part beside it")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise SnapshotBroken(f"the manifest has no sha-256 of {name}")
    numbers = {type(number) is int and number >= 0 for number in (size, rows, groups)}
    if numbers != {True} or size > LARGEST_PART or groups > MOST_GROUPS:
        raise SnapshotBroken(
            f"the manifest gives wrong numbers for {name}: a part has at most {LARGEST_PART} bytes and {MOST_GROUPS} "
            f"groups of rows"
        )
    return SnapshotPart(name, kind, digest, size, rows, groups)


def is_part_name(name: str) -> bool:
    """Return whether a part may have this name: it leads to no other folder."""
    return _PART_NAME.fullmatch(name) is not None


def fingerprint(path: Path) -> tuple[str, int]:
    """Return the sha-256 and the size of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(HASHED_AT_ONCE):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def check(path: Path, part: SnapshotPart) -> None:
    """Raise SnapshotBroken where a file is not the part that its manifest names."""
    try:
        digest, size = fingerprint(path)
    except OSError as error:
        raise SnapshotBroken(f"the part {part.name} cannot be read: {error.strerror}") from error
    if (digest, size) != (part.sha256, part.size):
        raise SnapshotBroken(
            f"the part {part.name} is not what the manifest names: it has {size} bytes and the sha-256 {digest}, "
            f"and not {part.size} bytes and {part.sha256}; fetch it again"
        )
