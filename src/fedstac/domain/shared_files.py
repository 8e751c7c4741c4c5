"""Files that several datasets have: known by their address or by their checksum. Pure.

When a dataset is deleted only its references go. A file that no other dataset of this node has is unreferenced from
then on; whoever keeps files may remove it. The datasets that still have one are not named: they may be hidden.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fedstac.domain.crosschecks import mark_of, values_behind

KEYS: Final = ('"href":"', '"file:checksum":"')  # what stands before an address or a checksum in a document's text


@dataclass(frozen=True, slots=True)
class FileReference:
    """A file of a dataset: the key of its asset, its address, and its checksum where it has one."""

    asset: str
    href: str
    checksum: str | None

    @property
    def marks(self) -> frozenset[int]:
        """What it is known by."""
        return frozenset(mark_of(text) for text in (self.href, self.checksum) if text)

    def as_json(self) -> dict[str, str]:
        return {"asset": self.asset, "href": self.href, **({"checksum": self.checksum} if self.checksum else {})}


@dataclass(frozen=True, slots=True)
class ReleasedFiles:
    """The files of a dataset that is deleted: those that no other dataset has, and the others."""

    unreferenced: Sequence[FileReference]
    still_referenced: Sequence[FileReference]

    def as_json(self) -> dict[str, list[dict[str, str]]]:
        return {
            "unreferenced": [each.as_json() for each in self.unreferenced],
            "still_referenced": [each.as_json() for each in self.still_referenced],
        }


def marks_of(document: str) -> list[int]:
    """Return the marks of every address and checksum in a document: JSON text as orjson writes it.

    Addresses in links and alternates count too: who links a file wants it to be there.
    """
    return sorted({mark_of(text) for key in KEYS for text in values_behind(document, key)})


def files_of(document: str) -> list[FileReference]:
    """Return the files of a stored document, in the order of its assets."""
    assets: Mapping[str, Any] = orjson.loads(document).get("assets", {})
    return [
        FileReference(key, asset["href"], checksum if isinstance(checksum := asset.get("file:checksum"), str) else None)
        for key, asset in assets.items() if isinstance(asset.get("href"), str)
    ]  # fmt: skip


def release(documents: Sequence[str], others: Collection[int]) -> list[ReleasedFiles]:
    """Return what becomes of the files of datasets that are deleted one after the other.

    others: the marks that datasets have which are not among these. A file that a later one of these has too is still
    referenced when the earlier one goes.
    """
    ahead = Counter(mark for document in documents for mark in marks_of(document))  # of those that are not gone yet
    releases = []
    for document in documents:
        ahead.subtract(marks_of(document))
        unreferenced: list[FileReference] = []
        still_referenced: list[FileReference] = []
        for file in files_of(document):
            is_held = any(mark in others or ahead[mark] > 0 for mark in file.marks)
            (still_referenced if is_held else unreferenced).append(file)
        releases.append(ReleasedFiles(unreferenced, still_referenced))
    return releases
