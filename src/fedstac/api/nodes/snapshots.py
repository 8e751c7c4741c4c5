"""Snapshots in files: the manifest and the parts that `fedstac snapshot write` left in a folder."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links
from fedstac.api.http.files import FileAnswer
from fedstac.domain.errors import NotFound
from fedstac.geoparquet import manifest as manifests
from fedstac.geoparquet.manifest import SnapshotBroken

GEOPARQUET = "geoparquet"
PARQUET = "application/vnd.apache.parquet"
MEDIA_TYPES = {".parquet": PARQUET, ".ndjson": "application/x-ndjson", ".cv": links.JSON}
NONE_HERE = "this node has no snapshot in files; its operator makes one with `fedstac snapshot write`"


async def manifest_answer(call: Call) -> Response:
    """Return the manifest of the snapshot in files. NotFound where there is none."""

    def read() -> bytes:
        try:
            return manifests.read((_folder(call) / manifests.NAME).read_bytes()).text()
        except (OSError, SnapshotBroken):
            raise NotFound(NONE_HERE) from None

    headers = {"Cache-Control": "private, no-store"}
    return Response(await asyncio.to_thread(read), headers=headers, media_type=links.JSON)


async def get_part(call: Call) -> Response:
    """Return a part of the snapshot in files, all of it or a range of its bytes.

    The manifest of `GET /snapshot?format=geoparquet` names the parts, or the one before it did: who reads those may go
    on. What has a name never changes.
    """
    name = call.path_params["part"]
    folder = _folder(call)

    def open_part() -> BinaryIO:
        manifest_paths = folder / manifests.NAME, folder / manifests.BEFORE
        try:
            if Path(name).suffix in MEDIA_TYPES and any(name in _part_names(path) for path in manifest_paths):
                file: BinaryIO = (folder / name).open("rb")
                return file
        except OSError:
            pass
        raise NotFound(f"there is no part {name[:150]!r}; the manifest names those that there are")

    file = await asyncio.to_thread(open_part)
    headers = {"Cache-Control": "private, max-age=86400, immutable", "ETag": f'"{name}"'}
    return FileAnswer(file, call.services.open_files, media_type=MEDIA_TYPES[Path(name).suffix], headers=headers)


def _part_names(path: Path) -> frozenset[str]:
    """Return the names of the parts in a manifest; none where it is none."""
    try:
        state = path.stat()
        return _read_part_names(path, state.st_ino, state.st_mtime_ns, state.st_size)
    except (OSError, SnapshotBroken):
        return frozenset()


@lru_cache(maxsize=4)
def _read_part_names(path: Path, *_: int) -> frozenset[str]:
    return frozenset(part.name for part in manifests.read(path.read_bytes()).parts)


def _folder(call: Call) -> Path:
    folder = call.node.settings.snapshot_folder
    if not folder:
        raise NotFound(NONE_HERE)
    return Path(folder)
