"""The files of the pages: style, icon, htmx. Their names have a digest, so that browsers keep them for a year."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import preconditions
from fedstac.domain.errors import NotFound

MEDIA_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
SOURCES = (("static", "console.css"), ("static", "icon.svg"), ("htmx", "htmx.min.js"))  # folder, file
A_YEAR = 31_536_000  # seconds


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the pages, and the name under which it is served."""

    served_as: str
    body: bytes
    media_type: str


@cache
def by_source() -> Mapping[str, PageFile]:
    """Return the files by their names here. htmx is there if setup could fetch it."""
    assets = {}
    for folder, name in SOURCES:
        file = files("fedstac.console").joinpath(folder, name)
        if file.is_file():
            body = file.read_bytes()
            stem, _, kind = name.rpartition(".")
            digest = hashlib.sha256(body).hexdigest()[:16]
            assets[name] = PageFile(f"{stem}.{digest}.{kind}", body, MEDIA_TYPES[kind])
    return assets


async def get_asset(call: Call) -> Response:
    """Return a file of the pages."""
    name = call.path_params["name"]
    asset = next((each for each in by_source().values() if each.served_as == name), None)
    if asset is None:
        raise NotFound(f"the console has no file {name[:100]!r}; load its page again")
    headers = {"Cache-Control": f"public, max-age={A_YEAR}, immutable", "X-Content-Type-Options": "nosniff"}
    return preconditions.serve(call.headers, asset.body, asset.media_type, headers)
