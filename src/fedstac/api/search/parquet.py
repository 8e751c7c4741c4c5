"""A search as a file in GeoParquet: pages go into a temporary file line by line, which is converted in a thread."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from fedstac.api.call import Call
from fedstac.api.http import links
from fedstac.api.http.media_types import Accept
from fedstac.domain.errors import BadRequest, Finding
from fedstac.runtime import budget

MEDIA_TYPE: Final = "application/vnd.apache.parquet"
PARAMETER: Final = "f"  # of the query, for those who cannot set Accept
FORMATS: Final = ("json", "parquet")
MOST_BYTES: Final = 64 << 20  # of the documents of one answer; the link `next` leads to the others
AT_ONCE: Final = 500  # datasets of one look into the database
LONGEST_WARNINGS: Final = 4 << 10  # bytes of the header


def is_asked_for(call: Call) -> bool:
    """Return whether the caller wants a file, by `f` or else by Accept. BadRequest for another `f`."""
    form = call.query_params.get(PARAMETER, "")
    if form and form not in FORMATS:
        raise BadRequest(f"f={form[:40]!r} is no form of a search; there are {' and '.join(FORMATS)}")
    return form == "parquet" or (not form and Accept(call.headers).asks_for(MEDIA_TYPE, instead_of=(links.GEOJSON,)))


def warnings_header(warnings: Sequence[Finding]) -> dict[str, str]:
    """Return the warnings about a search as a header with a JSON list, as a page has it; those that have room."""
    texts: list[str] = []
    size = len("[]")
    for finding in warnings:
        texts.append(json.dumps(finding.as_json()))  # in ASCII
        size += len(texts[-1]) + len(", ")
        if size > LONGEST_WARNINGS:
            texts.pop()
            break
    return {"Fedstac-Warnings": f"[{', '.join(texts)}]"} if texts else {}


class ItemFile:
    """The items of one answer on their way into a file."""

    def __init__(self, folder: Path) -> None:
        self._lines, self._target = folder / "items.ndjson", folder / "items.parquet"
        self.size = 0  # bytes

    def add(self, texts: Sequence[bytes]) -> None:
        """Add items, each a JSON text without line breaks."""
        content = b"".join(piece for text in texts for piece in (text, b"\n"))
        with self._lines.open("ab") as file:
            file.write(content)
        self.size += len(content)

    def convert(self) -> BinaryIO:
        """Return the items as an open file of GeoParquet. BadRequest where that cannot be."""
        try:
            from fedstac.geoparquet import items
        except ModuleNotFoundError:
            raise BadRequest("this node gives no Parquet: its operator has not installed fedstac[parquet]") from None
        self._lines.touch()
        try:
            items.write(self._lines, self._target, on_items=lambda _: budget.checkpoint())
        except items.TooWide as error:
            raise BadRequest(f"{error}; name those that you want: fields=…") from None
        return self._target.open("rb")


@contextmanager
def item_file() -> Iterator[ItemFile]:
    """Hold a folder for one answer. What is open of it when it goes can be read to its end."""
    with tempfile.TemporaryDirectory(prefix="fedstac-parquet-") as folder:
        yield ItemFile(Path(folder))
